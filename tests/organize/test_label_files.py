"""Labels from a CSV: columns found or told, files found by path, name or stem, and rows that do not
fit.
"""

from pathlib import Path

import pytest

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


def labelled(source: Path, text: str, columns=(), pattern="{}", encoding="utf-8"):
    table = source.parent / "labels.csv"
    table.write_bytes(text.encode(encoding))
    files = list_files(parse_sources([str(source)], None))
    read_labels(files, 0, table, list(columns), pattern)
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
    assert sorted(files.labels) == ["hog", "leopard"], (
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
        "images/deep/3.jpg;a;A;Test",
        "5.jpg;a;;x",
    )
    files, at = labelled(source, "\n".join(rows), ["group=place", "split=part"])
    assert files.cluster[at["images/1.jpg"]] == files.cluster[at["images/deep/3.jpg"]] >= 0
    assert files.cluster[at["images/2.png"]] == files.cluster[at["5.jpg"]] == -1
    assert [
        files.given[at[n]] for n in ("images/1.jpg", "images/2.png", "images/deep/3.jpg", "5.jpg")
    ] == [0, 1, 2, -1]


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
        source, "file,label\n1.jpg,a\n1.jpg,b\n2.png,\n4.jpg,a\nnone.jpg,a\n5.jpg,a\n5.jpg,a\n"
    )
    assert files.notes[at["images/1.jpg"]][0] == "label_conflict"
    assert "both a and b" in files.notes[at["images/1.jpg"]][1]
    assert files.notes[at["images/2.png"]] == ("no_class", "labels.csv, line 4: the label is empty")
    assert [(row[0], row[2]) for row in files.missing] == [
        ("4.jpg", "missing"),
        ("none.jpg", "missing"),
    ], "two files are called 4.jpg"
    assert at["5.jpg"] not in files.notes
    assert files.label_of(at["5.jpg"]) == "a"


@pytest.mark.parametrize(
    ("text", "columns", "pattern", "words"),
    [
        ("a,b\n1,2\n", [], "{}", ("which column holds the file", "a, b", "--columns file=NAME")),
        ("id,b\n1,2\n", [], "{}", "which column holds the label"),
        ("id,label\n1,2\n", ["label=lable"], "{}", ("no column 'lable'", "id, label")),
        ("id,label\n1,2\n", ["name=id"], "{}", "file=NAME"),
        ("id,label\n1,2\n", [], "images/x.jpg", "{} once"),
        ("id,label\n77,2\n", [], "p/{}.png", ("not one row", "p/77.png", "--path-pattern")),
        ("", [], "{}", "empty"),
    ],
)
def test_mistakes_end_in_a_sentence(source, refused, text, columns, pattern, words):
    refused(words, labelled, source, text, columns, pattern)


def test_a_file_that_is_no_text_or_not_there(source, refused):
    refused("UTF-8", labelled, source, "id,label\n1,blåbær\n", encoding="latin-1")
    files = list_files(parse_sources([str(source)], None))
    refused("there is no file", read_labels, files, 0, source / "no.csv", [], "{}")
