"""What photos show by a label file, as 04 --labels takes it."""

import json
from pathlib import Path

import pytest
import tiny_bundle as tiny

from common.serve.batch.photo_list import NO_PLANT, UNKNOWN, labels_from_csv

SCAB, RUST, BLIGHT = (tiny.TREE.class_index(*pair) for pair in ((0, 2), (0, 1), (2, 0)))
NAMES = ("a/0.jpg", "a/1.jpg", "b/0.jpg", "b/2.png")


def shown(folder: Path, text: str | bytes, name="labels.csv", names=NAMES) -> list[int]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    photos = [folder / "photos" / photo for photo in names]
    return labels_from_csv(path, photos, tiny.TREE, lambda found: [None] * len(found)).tolist()


def test_rows_of_one_folder_say_nothing_of_another(tmp_path, capfd):
    text = "file,label\na/0.jpg,apple/scab\na/1.jpg,apple/rust\na/2.png,apple/rust\n"
    assert shown(tmp_path, text) == [SCAB, RUST, UNKNOWN, UNKNOWN]
    assert shown(tmp_path, text, names=NAMES[1:]) == [RUST, UNKNOWN, UNKNOWN]


def test_a_bare_name_means_a_photo_only_where_it_is_the_only_one(tmp_path, capfd):
    text = "file,label\n0.jpg,apple/scab\n1,apple/rust\n2.PNG,corn/blight\n"
    assert shown(tmp_path, text) == [UNKNOWN, RUST, UNKNOWN, BLIGHT]
    assert "1 rows" in capfd.readouterr().err


def test_rows_that_contradict_each_other_stop(tmp_path, refused):
    text = "file,label\na/0.jpg,apple/scab\na/1.jpg,apple/rust\na/0.jpg,apple/rust\n"
    refused(("line 2", "line 4", "apple/scab or apple/rust"), shown, tmp_path, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\na/0.jpg,apple, scab\n", ("line 2", "quotes")),
        ('file,label\na/0.jpg,"apple/scab\na/1.jpg,apple/rust\n', ("line 2", "not closed")),
        ("file,label,Label\na/0.jpg,apple/scab,apple/rust\n", ("line 1", "twice")),
        ("file,label\nc/0.jpg,apple/scab\n", "names none of the photos"),
        ("file,label\n0.jpg,apple/scab\n", "none alone"),
        (b"PK\3\4", "CSV"),
    ],
)
def test_faults_stop(tmp_path, refused, text, words):
    refused(words, shown, tmp_path, text)


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
def test_the_same_tables_as_01(tmp_path, codec):
    text = "sep=;\nImage;Label;Species;Disease\nC:\\my\\a\\0.jpg;7;apple;scab\n"
    text += "C:\\my\\b\\2.png;9;corn;blight\nC:\\my\\a\\1.jpg;9;not_a_plant;\n"
    assert shown(tmp_path, text.encode(codec)) == [SCAB, NO_PLANT, UNKNOWN, BLIGHT]


def test_columns_of_0_and_1_and_names_of_numbers(tmp_path):
    text = "file,apple/scab,corn/blight\na/0.jpg,1,0\nb/0.jpg,0,1\nb/2.png,1,1\n"
    assert shown(tmp_path, text) == [SCAB, UNKNOWN, BLIGHT, UNKNOWN]
    (tmp_path / "names.json").write_text(json.dumps({"0": "apple/scab", "1": "corn/blight"}))
    assert shown(tmp_path, "file,label\na/0.jpg,1\nb/0.jpg,0\n")[::2] == [BLIGHT, SCAB]
    assert shown(tmp_path, json.dumps({"a/0.jpg": 0}), "labels.json")[0] == SCAB


def test_the_manifest_of_01(tmp_path):
    text = "path,species,disease,split,group,dataset,source\n"
    text += "photos/a/0.jpg,apple,scab,test,7,mine,/elsewhere/7.jpg\n"
    assert shown(tmp_path, text) == [SCAB, UNKNOWN, UNKNOWN, UNKNOWN]


def test_longer_labels_are_not_read_by_their_end(tmp_path, capfd):
    assert shown(tmp_path, "file,label\na/0.jpg,corn/blight/apple/scab\n")[0] == UNKNOWN
    assert "no class of the model" in capfd.readouterr().err
