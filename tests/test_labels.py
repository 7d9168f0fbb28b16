"""Label files: encodings, delimiters, faults with their lines, and which columns say what."""

import json
from pathlib import Path

import pytest

from common.labels import name_map, read_label_file, read_table

ROWS = "file,label\na.jpg,rust\nb.jpg,leaf mold\n"


def write(tmp_path: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def labels(tmp_path, text, *told, name="labels.csv", **more):
    read = read_label_file(write(tmp_path, text, name), told, **more)
    return dict(zip(read.files, read.labels, strict=True))


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_delimiters_and_line_ends(tmp_path, codec, mark, end):
    text = ROWS.replace("rust", "råte").replace(",", mark).replace("\n", end)
    found = labels(tmp_path, text.encode(codec))
    assert found == {"a.jpg": ("råte",), "b.jpg": ("leaf mold",)}


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;", "sep=;;"])
def test_excels_line_that_tells_the_delimiter(tmp_path, first):
    found = labels(tmp_path, f"{first}\nfile;label,s\na,1.jpg;rust\n", "label=label,s")
    assert found == {"a,1.jpg": ("rust",)}


def test_quotes_spaces_empty_lines_and_empty_cells_at_the_end(tmp_path):
    text = '\n file , "label",,\n\n"a.jpg", "x, y",\n b.jpg ,"say ""no""",,\n,,\n'
    assert labels(tmp_path, text) == {"a.jpg": ("x, y",), "b.jpg": ('say "no"',)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ROWS + "c.jpg,Tomato, late blight\n", ("line 4", "3 cells", "header has 2", "quotes")),
        (ROWS + "c.jpg\n", ("line 4", "1 cells")),
        (ROWS + "c.jpg;rust\n", ("line 4", "1 cells", "comma")),
        (ROWS + '\n"c.jpg,rust\nd.jpg,rust\n"e.jpg",rust\n', ("line 5", "not closed")),
        (ROWS + 'c.jpg,"rust\nd.jpg,"scab"\n', ("line 4", "not closed")),
        (ROWS + 'c.jpg,"rust\nd.jpg,scab\n', ("line 4", "not closed")),
        (ROWS + 'c.jpg,"rust"x\n', ("line 4", "expected")),
        (ROWS + "file,label\n", ("line 4", "header again")),
        ("file,label,Label\na.jpg,rust,scab\n", ("line 1", "'label'", "twice")),
        ("file,label,label?\na.jpg,rust,scab\n", ("'label'", "'label?'")),
        (ROWS + "c.jpg,ru\0st\n", ("line 4", "damaged")),
        (ROWS + "c.jpg,ru\x1fst\n", ("line 4", "damaged")),
        (ROWS.encode() + b"c.jpg,bl\xe5\n", ("line 4", "UTF-8")),
        ("file,l\xe5bel\n1,2\n".encode("latin-1"), "which column holds the label"),
        (ROWS.encode("utf-16")[:-1], "UTF-16"),
        (b"PK\3\4....", ("spreadsheet", "CSV")),
        (b"\xd0\xcf\x11\xe0....", ("spreadsheet", "CSV")),
        ("", "empty"),
        ("file,label\n", "empty"),
        ("a.jpg,rust\nb.jpg,scab\n", ("which column holds the label", "header row")),
    ],
)
def test_faults_stop_with_their_line(tmp_path, refused, text, words):
    refused(words, labels, tmp_path, text)


def test_bytes_that_are_no_utf8_do_no_harm_beside_the_labels(tmp_path):
    assert labels(tmp_path, b"file,label,by\na.jpg,rust,\xe5se\n") == {"a.jpg": ("rust",)}


# region columns


def test_text_is_taken_before_numbers(tmp_path):
    text = "Filename,Label,Species\na.jpg,0,Chinee apple\nb.jpg,8,Negative\n"
    assert labels(tmp_path, text) == {"a.jpg": ("Chinee apple",), "b.jpg": ("Negative",)}


def test_numbers_that_tell_more_than_the_species_are_not_passed_over(tmp_path):
    text = "image,label,crop\na,0,tomato\nb,1,tomato\nc,1,corn\n"
    assert labels(tmp_path, text)["b"] == ("tomato/1",)
    write(tmp_path, json.dumps({"0": "rust", "1": "scab"}), "names.json")
    assert labels(tmp_path, text)["b"] == ("tomato/scab",)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("id,species,disease\n1,Tomato,leaf mold\n", "Tomato/leaf mold"),
        ("id,species,disease\n1,Tomato,\n", "Tomato"),
        ("id,species,disease\n1,,leaf mold\n", "leaf mold"),
        ("id,label,species\n1,leaf mold,Tomato\n", "Tomato/leaf mold"),
        ("id,label,species\n1,Tomato___leaf_mold,tomato\n", "Tomato___leaf_mold"),
        ("id,label,plant\n1,leaf mold,plant 7\n", "leaf mold"),
        ("id,species,disease\n1,sp1,d1\n", "sp1/d1"),
        ("id,label,disease\n1,a,b\n", "a"),
        ("Photo,Class Name,age\n1,rust,5\n", "rust"),
        ("thing,label\n1.jpg,rust\n", "rust"),
        ("id,label\n1,nan\n", None),
    ],
)
def test_species_disease_and_label_columns(tmp_path, text, label):
    assert list(labels(tmp_path, text).values()) == [(label,) if label else ()]


def test_columns_of_0_and_1_are_labels(tmp_path):
    text = (
        "Filename, Rust, Leaf mold,Negative,is_train\na,1,0,0,0\nb,1.0,1,0,1\nc,0,0,0,1\nd,,,1,0\n"
    )
    assert labels(tmp_path, text) == {
        "a": ("Rust",),
        "b": ("Rust", "Leaf mold"),
        "c": (),
        "d": ("Negative",),
    }


def test_a_number_among_columns_of_0_and_1_stops(tmp_path, refused):
    rows = "".join(f"{i},{i % 2},{1 - i % 2},{i}\n" for i in range(11))
    assert labels(tmp_path, f"id,rust,scab,age\n{rows}")["3"] == ("rust",)
    refused(("line 13", "'7'", "scab"), labels, tmp_path, f"id,rust,scab,age\n{rows}x,1,7,1\n")


def test_numbers_win_over_flags_that_are_no_labels(tmp_path):
    assert labels(tmp_path, "id,label,wet,dark\n1,3,0,0\n2,4,1,1\n") == {"1": ("3",), "2": ("4",)}
    assert labels(tmp_path, "id,label,rust,scab\n1,0,1,0\n2,1,0,1\n")["2"] == ("scab",)
    assert labels(tmp_path, "id,healthy,disease\n1,0,1\n2,1,0\n")["1"] == ("disease",)


@pytest.mark.parametrize("mark", [" ", "|", ";", ", "])
def test_several_labels_in_one_cell(tmp_path, mark):
    cell = mark.join(("scab", "frog_eye_leaf_spot", "complex"))
    text = f"image\tlabels\na\thealthy\nb\t{cell}\nc\tscab\nd\tcomplex\ne\tleaf mold\n"
    found = labels(tmp_path, text)
    assert found.pop("b") == ("scab", "frog_eye_leaf_spot", "complex")
    assert all(len(parts) == 1 for parts in found.values())


def test_words_that_stand_nowhere_alone_are_one_label(tmp_path):
    text = 'image,labels\na,"Tomato, late blight"\nb,early blight\nc,late leaf_spot\nd,Tomato\n'
    assert labels(tmp_path, text) == {
        "a": ("Tomato, late blight",),
        "d": ("Tomato",),
        "b": ("early blight",),
        "c": ("late leaf_spot",),
    }


# endregion

# region names of numbers


def test_names_of_numbers(tmp_path):
    beside = tmp_path / "other"
    beside.mkdir()
    write(beside, json.dumps({"0": "rust", "1": " scab ", "2": "mold"}), "cat_to_name.json")
    text = "id,label\na,0\nb,1.0\n"
    assert labels(tmp_path, text, folders=(beside,)) == {"a": ("rust",), "b": ("scab",)}
    assert labels(tmp_path, text) == {"a": ("0",), "b": ("1.0",)}
    assert name_map(beside, ["0", "2"]) == {"0": "rust", "2": "mold"}
    assert name_map(beside, ["0", "3"]) is None
    assert name_map(beside, []) is None


def test_names_of_numbers_that_cannot_be_trusted(tmp_path):
    write(tmp_path, json.dumps({"seed": 0, "version": 1}), "settings.json")
    write(tmp_path, json.dumps({"0": "a.jpg", "1": "b.jpg"}), "files.json")
    write(tmp_path, "[1, 2]", "list.json")
    write(tmp_path, '{"0": 5, "1": {}}', "nested.json")
    write(tmp_path, "{no json", "torn.json")
    write(tmp_path, '{"0": "x", "0": "y", "1": "z"}', "twice.json")
    assert name_map(tmp_path, ["0", "1"]) is None
    write(tmp_path, json.dumps({"0": "rust", "1": "scab"}), "names.json")
    assert name_map(tmp_path, ["0", "1"]) == {"0": "rust", "1": "scab"}
    write(tmp_path, json.dumps({"0": "scab", "1": "rust"}), "other.json")
    assert name_map(tmp_path, ["0", "1"]) is None, "two files say different things"


# endregion

# region JSON


COCO = {
    "categories": [{"id": 0, "name": "pest"}, {"id": 1, "name": "rust"}, {"id": 3, "name": "ok"}],
    "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)],
    "annotations": [
        {"image_id": i, "category_id": c} for i, c in ((0, 1), (0, 1), (1, 3), (1, 1), (3, 3))
    ],
}


def test_coco(tmp_path):
    assert labels(tmp_path, json.dumps(COCO), name="_annotations.coco.json") == {
        "0.jpg": ("rust",),
        "1.jpg": ("ok", "rust"),
        "2.jpg": (),
        "3.jpg": ("ok",),
    }


@pytest.mark.parametrize(
    "found",
    [
        {"1.jpg": "rust", "2.jpg": ["rust", "scab"]},
        [{"image": "1.jpg", "label": "rust"}, {"image": "2.jpg", "label": ["rust", "scab"]}],
        {"1.jpg": {"label": "rust", "box": [[1, 2]]}, "2.jpg": {"label": ["rust", "scab"]}},
    ],
)
def test_other_json(tmp_path, found):
    assert labels(tmp_path, json.dumps(found), name="labels.json") == {
        "1.jpg": ("rust",),
        "2.jpg": ("rust", "scab"),
    }


def test_numbers_in_json_take_names_and_tell_their_entry(tmp_path):
    write(tmp_path, json.dumps({"0": "rust", "1": "scab"}), "names.json")
    path = write(tmp_path, json.dumps({"a.jpg": 1, "b.jpg": 0}), "labels.json")
    assert read_label_file(path).labels == [("scab",), ("rust",)]
    assert read_table(path).where(1) == "labels.json, entry 2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a.jpg": "rust"', "cannot be used"),
        ('{"a.jpg": "rust", "a.jpg": "scab"}', ("'a.jpg'", "twice")),
        ('{"a.jpg": "ru\\u001fst"}', "control character"),
        ("[1, 2]", "cannot be used"),
        ('["a.jpg"]', "cannot be used"),
        ("3", "cannot be used"),
        ("{}", "empty"),
        ("[" * 100_000, "cannot be used"),
        (json.dumps(COCO | {"categories": [COCO["categories"][1]] * 2}), ("id", "twice")),
        (json.dumps(COCO | {"images": [{"id": 1}]}), "cannot be used"),
        (json.dumps(COCO | {"images": []}), "cannot be used"),
        (json.dumps(COCO | {"images": [], "annotations": []}), "empty"),
    ],
)
def test_json_that_cannot_be_used(tmp_path, refused, text, words):
    refused(words, labels, tmp_path, text, name="labels.json")


# endregion
