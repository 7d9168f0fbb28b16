"""Labels from files: columns found or told, pictures found by path, name or stem, rows that do not
fit, files per split, and public collections as they are.
"""

import json
from pathlib import Path

import pytest
from conftest import run

from common.organize.label_csv import read_labels
from common.organize.sources import list_files, parse_sources


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in (
        "images/1.jpg",
        "images/2.png",
        "images/deep/3.jpg",
        "images/deep/4.jpg",
        "other/4.jpg",
        "5.jpg",
    ):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    return tmp_path / "set"


def labelled(source: Path, text: str, columns=(), pattern="{}", encoding="utf-8", **more):
    table = source.parent / "labels.csv"
    table.write_bytes(text.encode(encoding))
    return taken(source, table, columns, pattern, **more)


def taken(source: Path, table: Path, columns=(), pattern="{}", **more):
    files = list_files(parse_sources([str(source)], None))
    read_labels(files, 0, table, list(columns), pattern, **more)
    return files, {Path(files.path(i)).relative_to(source).as_posix(): i for i in range(len(files))}


def test_usual_columns_are_found_and_ids_find_their_files(source):
    files, at = labelled(source, "id,label,station\n1,leopard,A\n2,hog,B\n3,hog,A\n")
    assert {name: files.label_of(i) for name, i in at.items()} == {
        "images/1.jpg": "leopard",
        "images/2.png": "hog",
        "images/deep/3.jpg": "hog",
        "images/deep/4.jpg": "",
        "other/4.jpg": "",
        "5.jpg": "",
    }
    assert (files.cluster == -1).all(), "groups only where they are asked for"
    assert sorted(label.name for label in files.labels) == ["hog", "leopard"], (
        "folder names count for nothing, and nobody is asked about them"
    )


def test_a_likely_group_column_is_pointed_out(source, capsys):
    labelled(source, "id,label,station\n1,leopard,A\n")
    assert "--columns group=station" in capsys.readouterr().err


def test_groups_and_splits(source):
    rows = (
        "file;class;place;part",
        "images/1.jpg;a;A;train",
        "images/2.png;b;unknown;valid",
        "images/deep/3.jpg;a;A;Test set",
        "5.jpg;a;;dev",
    )
    files, at = labelled(source, "\n".join(rows), ["group=place", "split=part"])
    assert files.cluster[at["images/1.jpg"]] == files.cluster[at["images/deep/3.jpg"]] >= 0
    assert files.cluster[at["images/2.png"]] == files.cluster[at["5.jpg"]] == -1
    assert [
        files.given[at[n]] for n in ("images/1.jpg", "images/2.png", "images/deep/3.jpg", "5.jpg")
    ] == [0, 1, 2, 1]


@pytest.mark.parametrize(
    ("words", "lacking"),
    [("0 1 2", "0, 1, 2"), ("True False True", "True, False"), ("train val fold3", "fold3")],
)
def test_split_words_that_are_not_understood_stop_with_their_list(source, refused, words, lacking):
    first, second, third = words.split()
    rows = f"file,label,part\n1.jpg,a,{first}\n2.png,b,{second}\n5.jpg,b,{third}\n"
    refused((lacking, "part", "train, val or test"), labelled, source, rows, ["split=part"])
    rows = rows.replace(f",{third}", ",")
    refused("(empty)", labelled, source, rows, ["split=part"])


def test_a_split_column_is_used_where_it_is_understood(source, capsys):
    files, at = labelled(source, "file,label,split\n1.jpg,a,training\n2.png,b,test\n")
    assert [files.given[at[n]] for n in ("images/1.jpg", "images/2.png", "5.jpg")] == [0, 2, -1]
    files, at = labelled(source, "file,label,split\n1.jpg,a,0\n2.png,b,1\n")
    assert (files.given == -1).all()
    assert "column split holds words that tell no split: 0, 1" in capsys.readouterr().err


def test_species_and_disease_columns_make_a_nested_name(source):
    files, at = labelled(
        source, "\ufeffimage\tspecies\tdisease\n1.jpg\tTomato\tleaf mold\n2.png\tTomato\t\n"
    )
    assert files.label_of(at["images/1.jpg"]) == "Tomato/leaf mold"
    assert files.label_of(at["images/2.png"]) == "Tomato"


def test_the_pattern_tells_files_of_one_name_apart(source):
    files, at = labelled(source, "id,label\n4,a\n", pattern="images/deep/{}.jpg")
    assert files.label_of(at["images/deep/4.jpg"]) == "a"
    assert files.label_of(at["other/4.jpg"]) == ""


def test_rows_that_do_not_fit_are_listed(source):
    files, at = labelled(
        source, "file,label\n2.png,\n4.jpg,a\nnone.jpg,a\nimages/5.jpg,a\n5.jpg,a\n5.jpg,a\n"
    )
    assert files.notes[at["images/2.png"]] == ("no_class", "labels.csv, line 2: the label is empty")
    assert [(row[0], row[2], row[3]) for row in files.missing] == [
        ("4.jpg", "missing", "labels.csv, line 3: several files are called so in the source"),
        ("none.jpg", "missing", "labels.csv, line 4: no such file in the source"),
        ("images/5.jpg", "missing", "labels.csv, line 5: no such file in the source"),
    ]
    assert at["5.jpg"] not in files.notes
    assert files.label_of(at["5.jpg"]) == "a"


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ("1.jpg,a,x\n2.png,a,x\n1.jpg,b,x", [], ("line 2", "line 4", "images/1.jpg", "a or b")),
        ("1.jpg,a,x\nimages/1.jpg,b,x", [], ("line 2", "line 3")),
        ("1.jpg,a,train\n1.jpg,a,test", ["split=more"], ("line 3", "a, train or a, test")),
        ("1.jpg,a,A\n1.jpg,a,B", ["group=more"], ("line 3", "a, A or a, B")),
    ],
)
def test_rows_that_contradict_each_other_stop(source, refused, rows, columns, words):
    refused(words, labelled, source, f"file,label,more\n{rows}\n", columns)


def test_several_labels_are_left_out_or_the_first_is_taken(source, capsys):
    text = "id,rust,scab\n1,1,1\n2,0,1\n"
    files, at = labelled(source, text)
    assert files.label_of(at["images/1.jpg"]) == ""
    assert files.notes[at["images/1.jpg"]][1] == "labels.csv, line 2: several labels: rust, scab"
    assert "1 pictures have several labels" in capsys.readouterr().err
    files, at = labelled(source, "id,multiple_diseases,scab\n1,1,0\n2,0,1\n")
    assert files.label_of(at["images/1.jpg"]) == ""
    files, at = labelled(source, text, multi="first")
    assert files.label_of(at["images/1.jpg"]) == "rust"
    assert files.notes == {}


@pytest.mark.parametrize("word", ["Negative", "negatives", "Background", "no plant", "not_a_leaf"])
def test_labels_that_name_no_plant_are_left_out(source, capsys, word):
    files, at = labelled(source, f"id,label\n1,{word}\n2,leaf mold\n")
    assert files.labels == [(0, "leaf mold")]
    assert "names no plant" in files.notes[at["images/1.jpg"]][1]
    assert "--not-plants" in capsys.readouterr().err


# region a file per split


def collection(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_text(text, encoding="utf-8")
    return tmp_path / "set"


def result(source: Path, table: str, **more):
    """{picture: (label, split)}."""
    files, at = taken(source, source / table, **more)
    return {
        name: (files.label_of(i), int(files.given[i]))
        for name, i in at.items()
        if name.endswith(".jpg")
    }


def test_one_class_file_per_split(tmp_path):
    head = "filename, Blast, Healthy\n"
    source = collection(
        tmp_path,
        {
            "train/_classes.csv": head + "0.jpg, 1, 0\n1.jpg, 0, 1\n",
            "valid/_classes.csv": head + "0.jpg, 0, 1\n2.jpg, 1, 0\n",
            "more/_classes.csv": head + "5.jpg, 0, 1\n",
            "train/0.jpg": "",
            "train/1.jpg": "",
            "valid/0.jpg": "",
            "test/2.jpg": "",
            "more/5.jpg": "",
        },
    )
    assert result(source, "valid/_classes.csv") == {
        "train/0.jpg": ("Blast", 0),
        "train/1.jpg": ("Healthy", 0),
        "valid/0.jpg": ("Healthy", 1),
        "test/2.jpg": ("", -1),
        "more/5.jpg": ("", -1),
    }


def test_coco_per_split(tmp_path):
    def coco(*pairs):
        names = ("pest", "black pod", "healthy")
        return json.dumps(
            {
                "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
                "images": [{"id": i, "file_name": name} for i, (name, _) in enumerate(pairs)],
                "annotations": [
                    {"image_id": i, "category_id": c} for i, (_, cs) in enumerate(pairs) for c in cs
                ],
            }
        )

    name = "_annotations.coco.json"
    source = collection(
        tmp_path,
        {
            f"train/{name}": coco(("0.jpg", [1]), ("1.jpg", [1, 2])),
            f"test/{name}": coco(("0.jpg", [2, 2])),
            "train/0.jpg": "",
            "train/1.jpg": "",
            "test/0.jpg": "",
        },
    )
    expected = {"train/0.jpg": ("black pod", 0), "test/0.jpg": ("healthy", 2)}
    assert result(source, f"train/{name}") == expected | {"train/1.jpg": ("", 0)}
    found = result(source, f"train/{name}", multi="first")
    assert found == expected | {"train/1.jpg": ("black pod", 0)}


def test_tables_of_splits_beside_each_other(tmp_path, refused):
    head = "image,label\n"
    files = {
        "train_labels.csv": head + "0,rust\n",
        "val_labels.csv": head + "1,scab\n",
        "test_labels.csv": "image\n2\n",
        "labels.csv": head + "2,scab\n",
        **{f"{i}.jpg": "" for i in range(3)},
    }
    source = collection(tmp_path, files)
    expected = {"0.jpg": ("rust", 0), "1.jpg": ("scab", 1), "2.jpg": ("", -1)}
    assert result(source, "train_labels.csv") == expected
    assert result(source, "labels.csv")["2.jpg"] == ("scab", -1)
    (source / "val_labels.csv").write_text(head + "1,scab\n0,rust\n", encoding="utf-8")
    refused(
        ("train_labels.csv, line 2", "val_labels.csv, line 3"), result, source, "val_labels.csv"
    )


def test_a_table_alone_tells_no_split(tmp_path):
    files = {"train.csv": "image,label\n0,rust\n", "test.csv": "image\n1\n", "0.jpg": ""}
    assert result(collection(tmp_path, files), "train.csv") == {"0.jpg": ("rust", -1)}


# endregion

# region the whole command


def dry(source: Path, table: str, *flags) -> dict[str, tuple]:
    out = source.parent / "dry.json"
    flags = [source, "--labels", source / table, *flags, "--dry-run", "--json", out]
    assert run("01_reorganize", *flags, "--output", source.parent / "organized") == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["folders"]
    return {row["path"]: (row["species"], row["disease"], row["split"]) for row in rows}


def test_a_dry_run_tells_every_picture(tmp_path):
    source = collection(
        tmp_path,
        {
            "labels.csv": "image,label,split\n0,rust,train\n1,scab,dev\n2,rust|scab,test\n",
            **{f"images/{i}.jpg": "" for i in range(4)},
        },
    )
    found = dry(source, "labels.csv", "--species", "apple", "--keep-split")
    assert found["images/0.jpg"] == ("apple", "rust", "train")
    assert found["images/1.jpg"] == ("apple", "scab", "val")
    assert found["images/2.jpg"] == (None, None, "test")
    assert found["images/3.jpg"] == (None, None, None)
    found = dry(source, "labels.csv", "--species", "apple", "--multi", "first")
    assert found["images/2.jpg"] == ("apple", "rust", "test")


def test_a_split_that_is_asked_for_and_not_there_stops(tmp_path, refused):
    table = "image,label,split\n0,apple rust,0\n1,apple scab,1\n"
    source = collection(tmp_path, {"labels.csv": table, "0.jpg": "", "1.jpg": ""})
    refused("--keep-split", dry, source, "labels.csv", "--keep-split")


# endregion

# region without being told


def test_a_label_file_of_an_export_is_found_where_there_are_no_class_folders(tmp_path, capsys):
    head = "filename, Apple rust, Apple scab\n"
    files = {f"{split}/{i}.jpg": "" for split in ("train", "valid") for i in range(2)}
    tables = {
        "train/_classes.csv": "0.jpg, 1, 0\n1.jpg, 1, 1\n",
        "valid/_classes.csv": "0.jpg,0,1\n",
    }
    source = collection(tmp_path, files | {name: head + rows for name, rows in tables.items()})
    out = tmp_path / "dry.json"
    assert run("01_reorganize", source, "--dry-run", "--json", out) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["folders"]
    found = {row["path"]: (row["species"], row["disease"], row["split"]) for row in rows}
    assert found["train/0.jpg"] == ("apple", "rust", "train")
    assert found["valid/0.jpg"] == ("apple", "scab", "val")
    assert found["train/1.jpg"][:2] == found["valid/1.jpg"][:2] == (None, None)
    assert "_classes.csv" in capsys.readouterr().out


def test_numbered_folders_take_names_from_a_json_file(tmp_path):
    names = {"1": "pink primrose", "21": "fire lily", "77": "passion flower"}
    files = {f"{split}/{k}/0.jpg": "" for split in ("train", "valid") for k in ("1", "21")}
    source = collection(tmp_path, files | {"cat_to_name.json": json.dumps(names)})
    files = list_files(parse_sources([str(source)], None))
    assert sorted(label.name for label in files.labels) == ["fire lily", "pink primrose"]
    (source / "cat_to_name.json").write_text(json.dumps({"1": "pink primrose"}), encoding="utf-8")
    files = list_files(parse_sources([str(source)], None))
    assert "pink primrose" not in {label.name for label in files.labels}


# endregion

# region public collections


def test_text_beside_numbers_and_names_of_numbers_in_json(tmp_path):
    source = collection(
        tmp_path,
        {
            "labels.csv": "Filename,Label,Species\n0.jpg,0,Chinee apple\n1.jpg,8,Negative\n",
            "sub/train.csv": "image_id,label\n0.jpg,0\n1.jpg,4\n",
            "map.json": json.dumps({"0": "Cassava Bacterial Blight (CBB)", "4": "Healthy"}),
            "images/0.jpg": "",
            "images/1.jpg": "",
        },
    )
    assert result(source, "labels.csv") == {
        "images/0.jpg": ("Chinee apple", -1),
        "images/1.jpg": ("", -1),
    }
    assert result(source, "sub/train.csv") == {
        "images/0.jpg": ("Cassava Bacterial Blight (CBB)", -1),
        "images/1.jpg": ("Healthy", -1),
    }


@pytest.mark.parametrize("table", ['{"0.jpg": "rust"}', '[{"image": "0.jpg", "label": "rust"}]'])
def test_labels_json(tmp_path, table):
    source = collection(tmp_path, {"labels.json": table, "a/0.jpg": ""})
    assert result(source, "labels.json") == {"a/0.jpg": ("rust", -1)}


# endregion
