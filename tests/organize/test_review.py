"""Names as classes: a person's answers, what is asked, and that nothing is merged in silence."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.organize.names.review import NAMES, REVIEW, read_names
from common.organize.sources import Label, Source

RAW = [
    "Apple___Black_rot",
    "apple black rots",
    "Apple_Black_rot",
    "Pear___Scab",
    "Quandong thing",
    "spots",
    "Plum__leaf",
]


def answers(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "answers.csv"
    path.write_bytes(text.encode(encoding))
    return path


def read(names: list[str], levels: int, given: Path | None) -> SimpleNamespace:
    """Names of one source, whose column is left out."""
    labels = [Label(0, name) for name in names]
    found = read_names(labels, [Source("photos", Path("photos"))], levels, given)
    return SimpleNamespace(
        classes={label.name: pair for label, pair in found.classes.items()},
        review=[row[1:] for row in found.review],
        table=[row[1:] for row in found.table],
    )


def rows(names: SimpleNamespace) -> dict[str, tuple[str, ...]]:
    return {row[0]: row for row in names.review}


def test_every_name_is_on_record_and_doubts_are_listed() -> None:
    names = read([*RAW, RAW[0]], 2, None)
    assert [row[0] for row in names.table] == RAW
    assert all(len(row) == len(NAMES) - 1 for row in names.table)
    assert {row[4] for row in names.table} == {"parser"}
    assert names.classes["Pear___Scab"] == (
        "pear",
        "scab",
    )
    review = rows(names)
    assert len(review) == len(names.review)
    assert all(len(row) == len(REVIEW) - 1 for row in names.review)  # one row per name
    assert "Pear___Scab" not in review  # nothing is unsure about it
    assert review["spots"][1:3] == ("", "")
    assert review["spots"][4] == "left out"
    assert "spots" not in names.classes
    assert review["Plum__leaf"][4] == "unsure"
    assert "no disease named" in review["Plum__leaf"][5]
    assert names.classes["apple black rots"] == ("apple", "black_rots")  # proposed, not merged
    row = review["apple black rots"]
    assert row[1:3] == ("apple", "black_rots")
    assert row[4] == "kept apart"
    assert "apple/black_rots would join apple/black_rot" in row[5]
    assert "plural" in row[5]
    assert "write apple,black_rot" in row[5]
    assert review["Apple_Black_rot"][4] == "put together"
    assert "Apple___Black_rot" in review["Apple_Black_rot"][5]


def test_answers_win_are_kept_and_not_asked_again(tmp_path: Path) -> None:
    given = answers(
        tmp_path,
        "name,species,disease\napple black rots,Apple,Black Rot\nspots,Plum,Leaf Spot\nQuandong "
        "thing,,\n"
        "Plum__leaf,plum,healthy\nApple_Black_rot,apple,black rot\nApple___Black_rot,apple,black "
        "rot\n",
    )
    names = read(RAW, 2, given)
    assert names.review == []
    assert names.classes["apple black rots"] == ("apple", "black_rot")
    assert names.classes["spots"] == ("plum", "leaf_spot")
    assert "Quandong thing" not in names.classes
    table = {row[0]: row for row in names.table}
    assert table["Quandong thing"][1:5] == ("", "", "1.00", "person")
    assert "line 4" in table["Quandong thing"][5]
    assert table["Pear___Scab"][4] == "parser"


@pytest.mark.parametrize("columns", ["review", "table"])
def test_our_own_tables_work_as_answers_and_change_nothing(tmp_path: Path, columns: str) -> None:
    first = read(RAW, 2, None)
    path = tmp_path / "again.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # as a spreadsheet saves it
        csv.writer(file).writerows(
            [(REVIEW if columns == "review" else NAMES)[1:], *getattr(first, columns)]
        )
    again = read(RAW, 2, path)
    assert again.classes == first.classes
    assert again.review == []


def test_an_edited_row_of_review_joins(tmp_path: Path) -> None:
    first = read(RAW, 2, None)
    path = tmp_path / "review.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        edited = [
            (r[0], "apple", "black_rot", *r[3:]) if r[0] == "apple black rots" else r
            for r in first.review
        ]
        csv.writer(file).writerows([REVIEW[1:], *edited])
    assert read(RAW, 2, path).classes["apple black rots"] == ("apple", "black_rot")


def test_labels_taken_as_they_stand(tmp_path: Path) -> None:
    names = read(["Red Fox", "red_fox", "Red Foxes", "Lynx"], 1, None)
    assert names.classes["Lynx"] == ("lynx", "lynx")
    assert names.classes["Red Foxes"] == (
        "red_foxes",
        "red_foxes",
    )
    review = rows(names)
    assert review["Red Fox"][4] == "put together"
    assert "Lynx" not in review
    assert "red_foxes/red_foxes would join red_fox/red_fox" in review["Red Foxes"][5]
    given = answers(tmp_path, "name,species,disease\nRed Foxes,red fox,\nLynx,,\n")
    named = read(["Red Fox", "Red Foxes", "Lynx"], 1, given)
    assert named.classes == {"Red Fox": ("red_fox", "red_fox"), "Red Foxes": ("red_fox", "red_fox")}


def test_readings_that_share_only_their_folder_name_are_told() -> None:
    review = rows(read(["Röd Räv", "rod rav"], 1, None))
    assert len(review) == 2
    assert all(row[4] == "put together" for row in review.values())
    names = read(["番茄", "玉米"], 1, None)
    assert len(set(names.classes.values())) == 2
    assert names.review == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "columns name,species,disease"),
        ("name;plant\na;b\n", "species, disease is missing"),
        ("name,species,disease\nspots,plum,rust\nspots,pear,rust\n", "line 2"),
        ("name,species,disease\nspots,plum,rust\nspots,,\n", "left out in line 3"),
        (
            "name,species,disease\n\nspots,,rust\n",
            "line 3: 'spots' has the disease 'rust' but no species",
        ),
        (
            "name,species,disease\nspots,plum,\n",
            "line 2: 'spots' has the species 'plum' but no disease",
        ),
        ("name,species,disease\nPepper, bell,bell pepper,rust\n", "line 2: 4 values for 3 columns"),
        ("name,species,disease\n,plum,rust\n", "line 2: this row has no name"),
        ('name,species,disease\n"spots,plum,rust\n', "is no CSV"),
        ("name,species,disease\nspots,plum,ro\0t\n", "line 2, is no UTF-8"),
    ],
)
def test_answers_that_cannot_be_used_say_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        read(RAW, 2, answers(tmp_path, text))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_answers_in_another_encoding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    with pytest.raises(SystemExit):
        read(RAW, 2, answers(tmp_path, "name,species,disease\nspots,plum,tizón\n", encoding))
    assert "UTF-8" in capsys.readouterr().err


def test_missing_file_and_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(SystemExit):
            read(RAW, 2, path)
        assert str(path) in capsys.readouterr().err


def test_answers_for_names_that_do_not_exist_warn_with_the_closest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = answers(tmp_path, "name,species,disease\nPear___Scabb,pear,rust\nzzzz,plum,rust\n")
    assert read(RAW, 2, given).classes == read(RAW, 2, None).classes
    said = capsys.readouterr().err
    assert "line 2: 'Pear___Scabb' (did you mean 'Pear___Scab'?)" in said
    assert "line 3: 'zzzz'" in said


def test_names_with_accents_and_odd_bytes_find_their_answers(tmp_path: Path) -> None:
    decomposed, odd = "cafe\u0301 mancha", "plum r\udcfcst"
    path = tmp_path / "answers.csv"
    text = f"\ufeffname;species;disease\r\ncaf\u00e9 mancha;coffee;rust\r\n{odd};plum;rust\r\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    classes = read([decomposed, odd], 2, path).classes
    assert classes == {decomposed: ("coffee", "rust"), odd: ("plum", "rust")}


def test_order_of_names_changes_nothing() -> None:
    forward, backward = read(RAW, 2, None), read(RAW[::-1], 2, None)
    assert forward.classes == backward.classes
    assert {r[:5] for r in forward.review} == {r[:5] for r in backward.review}
