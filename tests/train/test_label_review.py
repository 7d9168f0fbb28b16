"""Labels in doubt: planted swaps are found, groups never straddle folds, and a person's decisions
come back through 01 and are kept.
"""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
from conftest import run
from PIL import Image

from common.organize.label_decisions import read_decisions
from common.train.label_review import COLUMNS, FOLDS, assign_folds, find_doubts
from common.train.label_review_page import page

CPU, SHA = torch.device("cpu"), "ab" * 32


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# region finding


def clusters(each: int = 40, classes: int = 6) -> tuple[torch.Tensor, np.ndarray]:
    """Features float16 (N, 16) around one centre per class, and the true classes."""
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(classes), each)
    features = rng.normal(0, 2, (classes, 16))[true] + rng.normal(0, 1, (len(true), 16))
    return torch.from_numpy(features.astype(np.float16)), true


def test_planted_swaps_are_listed_first_with_their_true_class():
    features, true = clusters()
    given = true.copy()
    swapped = np.arange(3, len(true), 20)
    given[swapped] = (true[swapped] + 1 + np.arange(len(swapped)) % 5) % 6
    found = find_doubts(features, given, np.arange(len(true)), 6, CPU)
    first = found.row[: len(swapped)]
    assert len(set(first) & set(swapped)) >= len(swapped) - 1
    assert len(found.row) <= len(swapped) + 3, "tidy pictures are left alone"
    hits = np.isin(found.row, swapped)
    assert (found.suggested[hits] == true[found.row[hits]]).all()
    assert (found.confidence > 0).all()
    assert (found.confidence <= 1).all()
    assert (given[found.example] == np.arange(6)).all()
    assert not np.isin(found.example, swapped).any(), "an example is a clear one"
    again = find_doubts(features, given, np.arange(len(true)), 6, CPU)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_class_of_one_group_and_one_without_pictures_accuse_nobody():
    features, true = clusters()
    group = np.where(true == 2, 1000, np.arange(len(true)))
    found = find_doubts(features, true, group, 8, CPU)
    assert found.unreviewed.tolist() == [2]
    assert not (true[found.row] == 2).any()
    assert not np.isin(found.suggested, [6, 7]).any()
    assert found.example[6:].tolist() == [-1, -1]


def test_groups_never_straddle_folds_and_every_fold_has_some_of_each_class():
    rng = np.random.default_rng(1)
    group = rng.integers(0, 150, 600).astype(np.uint64) * 7919
    class_idx = (group % 10).astype(np.int64)
    class_idx[:20] = rng.integers(0, 10, 20)  # groups that hold several classes
    fold = assign_folds(class_idx, group)
    assert all(len(set(fold[group == g])) == 1 for g in np.unique(group))
    assert all(len(set(fold[class_idx == c])) == FOLDS for c in range(10))
    assert np.ptp(np.bincount(fold)) < 60


def test_one_group_alone_cannot_judge_itself(refused):
    features, true = clusters(4)
    refused("one group", find_doubts, features, true, np.zeros(len(true)), 6, CPU)


# endregion

# region the round trip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Raw folders with an apple under tomato and a corn under apple; read only."""
    raw = tiny_data.make_raw(tmp_path_factory.mktemp("mixed") / "raw")
    for name, (folder, *drawn) in {
        "apple": ("Tomato___healthy", "apple", "healthy", 77),
        "corn": ("Apple___healthy", "corn", "healthy", 77),
    }.items():
        Image.fromarray(tiny_data.draw(*drawn)).save(raw / folder / f"wrong {name}.png")
    return raw


def organize(raw: Path, output: Path, *flags: object) -> int:
    return run("01_reorganize", raw, "--output", output, "--workers", 1, *flags)


def review(data: Path, checkpoints: Path) -> list[dict[str, str]]:
    where = ["--data", data, "--checkpoints", checkpoints]
    assert run("02a_train_species", *where, *tiny_data.SPECIES, "--review-labels") == 0
    return rows_of(checkpoints / "labels_review" / "labels_review.csv")


def write(path: Path, rows: list[dict[str, str]], mark: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=mark)
        writer.writeheader()
        writer.writerows(rows)
    return path


def by_name(rows: list[dict[str, str]], column: str) -> dict[str, dict[str, str]]:
    return {Path(row[column]).name: row for row in rows}


@pytest.fixture(scope="module")
def reviewed(mixed, tmp_path_factory):
    """(data/organized, labels_review.csv as rows, its folder) of a first review; read only."""
    folder = tmp_path_factory.mktemp("reviewed")
    assert organize(mixed, folder / "organized", "--val", 0.3) == 0
    rows = review(folder / "organized", folder)
    return folder / "organized", rows, folder / "labels_review"


def test_a_review_lists_what_is_wrong_and_shows_it(reviewed):
    data, rows, folder = reviewed
    manifest = by_name(rows_of(data / "manifest.csv"), "source")
    assert tuple(rows[0]) == COLUMNS
    for name, row in by_name(rows, "picture").items():
        fact = manifest[name]
        assert row["given"] == f"{fact['species']}/{fact['disease']}" != row["suggested"]
        assert (row["group"], row["sha256"]) == (fact["group"], fact["sha256"])
        assert fact["split"] in ("train", "val"), "the test split is not reviewed"
        assert row["decision"] == ""
    planted = [n for n in ("wrong apple.png", "wrong corn.png") if manifest[n]["split"] != "test"]
    assert planted
    assert set(planted) <= set(by_name(rows, "picture"))
    pictures = sorted(path.name for path in folder.glob("*.jpg"))
    assert pictures == [f"{i:04d}.jpg" for i in range(len(rows))]
    with Image.open(folder / "0000.jpg") as strip:
        assert strip.size == (600, 200)
    html = (folder / "index.html").read_text()
    data = json.loads(re.search(r"shown } = (\{.*\});\n", html)[1])
    assert data["rows"] == [list(row.values()) for row in rows]
    assert not (folder / "features").exists()


def test_decisions_come_back_and_are_kept(reviewed, mixed, tmp_path):
    rows = [dict(row) for row in reviewed[1]]
    manifest = rows_of(reviewed[0] / "manifest.csv")
    facts = by_name(manifest, "source")
    wrong = facts["wrong apple.png"]
    taken = [row for row in manifest if Path(row["source"]).name[:5] == "photo"]
    kept, dropped = taken[0], taken[1]
    told = {wrong["sha256"]: "apple/healthy", kept["sha256"]: "keep", dropped["sha256"]: "drop"}
    blank = dict.fromkeys(COLUMNS, "")
    answers = [dict(blank, picture="gone elsewhere.png", sha256=sha) for sha in told]
    rows = [row for row in rows if row["sha256"] not in told] + answers
    for row in rows:
        row["decision"] = told.get(row["sha256"], "")
    path = write(tmp_path / "answers.csv", rows, ";")  # as some spreadsheets save it
    moved = Path(shutil.copytree(mixed, tmp_path / "moved" / "raw"))
    assert organize(moved, tmp_path / "organized", "--labels-review", path) == 0
    after = {row["sha256"]: row for row in rows_of(tmp_path / "organized" / "manifest.csv")}
    assert (after[wrong["sha256"]]["species"], after[wrong["sha256"]]["disease"]) == (
        "apple",
        "healthy",
    )
    assert after[kept["sha256"]]["species"] == kept["species"]
    left_out = by_name(rows_of(tmp_path / "organized" / "rejected.csv"), "source")
    assert dropped["sha256"] not in after
    reasons = [(row["reason"], row["detail"]) for row in left_out.values()]
    assert ("dropped", f"{path}, line {1 + len(rows)}") in reasons
    again = review(tmp_path / "organized", tmp_path)
    assert [row for row in again if row["sha256"] in told] == again[-3:], "carried on at the end"
    assert {row["sha256"]: row["decision"] for row in again[-3:]} == told
    assert not any(row["decision"] for row in again[:-3])
    # the newest table holds all decisions: it makes the same data again
    newest = tmp_path / "labels_review" / "labels_review.csv"
    assert organize(moved, tmp_path / "anew", "--labels-review", newest) == 0
    assert rows_of(tmp_path / "anew" / "manifest.csv") == rows_of(
        tmp_path / "organized" / "manifest.csv"
    )


def test_a_second_review_keeps_what_was_decided_in_the_table(reviewed, tmp_path):
    shutil.copytree(reviewed[2], tmp_path / "labels_review")
    rows = [dict(row) for row in reviewed[1]]
    rows[0]["decision"] = "keep"
    write(tmp_path / "labels_review" / "labels_review.csv", rows, ";")
    assert review(reviewed[0], tmp_path) == [*rows[1:], rows[0]]


def test_classes_without_diseases_are_named_once(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text(f"sha256,decision\n{SHA},Cat\n{'cd' * 32},dog/dog\n")
    decided = read_decisions(path, [("cat", "cat"), ("dog", "dog")])
    assert [d.class_idx for d in decided] == [0, 1]
    assert decided[1].where.endswith("answers.csv, line 3")


def test_a_decision_settles_every_copy(mixed, tmp_path):
    raw = Path(shutil.copytree(mixed, tmp_path / "raw"))
    shutil.copy(raw / "Tomato___healthy/wrong apple.png", raw / "Apple___healthy/copy.png")
    with Image.open(raw / "Tomato___healthy/wrong apple.png") as same:
        same.save(raw / "Apple Scab Leaf/same pixels.bmp")
    assert organize(raw, tmp_path / "before") == 0
    rejected = by_name(rows_of(tmp_path / "before/rejected.csv"), "source")
    assert rejected["copy.png"]["reason"] == "label_conflict"
    path = tmp_path / "answers.csv"
    path.write_text(f'picture,decision\n"{raw}/Apple___healthy/copy.png",Apple/Healthy\n')
    assert organize(raw, tmp_path / "after", "--labels-review", path) == 0
    names = ("copy.png", "wrong apple.png", "same pixels.bmp")
    kept = [r for r in rows_of(tmp_path / "after/manifest.csv") if r["source"].endswith(names)]
    assert [(row["species"], row["disease"]) for row in kept] == [("apple", "healthy")]


def test_another_file_of_decisions_makes_other_data(mixed, tmp_path, refused):
    sha = rows_of(tiny_manifest(mixed, tmp_path))[0]["sha256"]
    path = tmp_path / "answers.csv"
    path.write_text(f"sha256,decision\n{sha},keep\n")
    refused("--fresh", organize, mixed, tmp_path / "organized", "--labels-review", path)
    assert organize(mixed, tmp_path / "organized", "--labels-review", path, "--fresh") == 0
    assert organize(mixed, tmp_path / "organized", "--labels-review", path) == 0, "up to date"
    kept = tmp_path / "organized" / "labels_review.csv"
    assert rows_of(kept) == [dict.fromkeys(COLUMNS, "") | {"sha256": sha, "decision": "keep"}]
    assert organize(mixed, tmp_path / "organized", "--labels-review", kept, "--fresh") == 0


def tiny_manifest(raw: Path, folder: Path) -> Path:
    assert organize(raw, folder / "organized") == 0
    return folder / "organized" / "manifest.csv"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            f"sha256,decision\n{SHA},\n{SHA},apple/heatlhy\n",
            ("line 3", "Did you mean apple/healthy"),
        ),
        (f"sha256,decision\n{SHA},keep\n", ("line 2", "no source holds that picture")),
        (f"sha256,decision\n{SHA},keep\n{SHA},drop\n", ("line 3", "line 2 decides otherwise")),
        (f"sha256,decision\n{SHA},\n", ("no row has a decision",)),
        (f"sha256,decision\n{SHA}\n", ("line 2", "cells")),
        (f"sha256,decision\n{SHA},keep,keep\n", ("line 2", "cells")),
        ("picture,decision\nnowhere.png,keep\n", ("line 2", "names a picture")),
        ("picture,given\nnowhere.png,keep\n", ("decision and sha256",)),
        ("decision\nkeep\n", ("decision and sha256",)),
        (f'sha256,decision\n{SHA},"keep\n', ("line 2", "CSV")),
    ],
)
def test_decisions_that_cannot_be_used_stop_with_their_line(text, words, mixed, tmp_path, refused):
    path = tmp_path / "answers.csv"
    path.write_text(text)
    refused(words, organize, mixed, tmp_path / "organized", "--labels-review", path)
    assert not (tmp_path / "organized").exists()


def test_without_a_file_it_stops(mixed, tmp_path, refused):
    flags = ["--labels-review", tmp_path / "none.csv"]
    refused("there is no file", organize, mixed, tmp_path / "organized", *flags)


# endregion


def test_a_page_survives_odd_names_and_saves_the_decisions(browser, tmp_path):
    row = ('a "b", </script>é.jpg', "apple/scab", "apple/healthy", "0.9", "0", "", SHA)
    decided = ("old.jpg", "x", "", "", "", "keep", "cd" * 32)
    classes = ["apple/scab", "apple/healthy"]
    (tmp_path / "index.html").write_text(page(COLUMNS, [row, decided], classes, 1))
    tab = browser.page((tmp_path / "index.html").as_uri())
    assert tab.wait("document.querySelectorAll('article').length") == 1
    tab.js("[...document.querySelectorAll('article button')][1].click()")
    assert tab.js("document.getElementById('state').value") == "1 of 1 decided"
    saved = list(csv.reader(tab.js("table()").splitlines()))
    assert saved == [[*COLUMNS], [*row[:5], "apple/healthy", SHA], [*decided]]
    tab.close()
