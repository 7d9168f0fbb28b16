"""Which files stay: one of each picture, none under two labels, classes large enough."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common.organize.deduplicate import (
    Kept,
    Rejected,
    choose,
    class_numbers,
    drop_duplicates,
    require_sizes,
)
from common.organize.intake import FACTS, REASONS
from common.organize.sources import Files, Source


def files_of(labels: list[str], given: list[int] | None = None, not_plants: int = 0) -> Files:
    """Files a/0 ... of one source, and after them `not_plants` of another."""
    n = len(labels) + not_plants
    names = [f"{i}.jpg".encode() for i in range(n)]
    known = sorted(set(labels) - {""})
    zeros = np.zeros(n, np.int32)
    sources = [Source("s", Path("s")), Source("x", Path("x"), not_plants=True)]
    numbers = [known.index(label) if label else -1 for label in labels] + [-1] * not_plants
    return Files(
        sources,
        ["a"],
        known,
        zeros,
        np.array(numbers, np.int32),
        np.array([0] * len(labels) + [1] * not_plants, np.int32),
        np.array(given or [-1] * n, np.int8),
        zeros - 1,  # version
        zeros - 1,  # cluster
        ["s", "x"],
        zeros,  # dataset
        zeros > 0,  # held out
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([len(x) for x in names]),
        zeros.astype(np.int64),
        zeros.astype(np.int64),
    )


def facts_of(pixels: list[int], shas: list[int]) -> np.ndarray:
    facts = np.zeros(len(pixels), FACTS)
    facts["pixels"][:, 0] = pixels
    facts["sha256"][:, 0] = shas
    return facts


def dropped(labels, pixels, shas, given=None, not_plants=0, keep_split=False):
    files, facts = files_of(labels, given, not_plants), facts_of(pixels, shas)
    index, class_idx = class_numbers(files, {name: (name, "healthy") for name in files.labels})
    refused = Rejected(facts["reason"].copy(), {}, np.full(len(files), -1))
    stay = drop_duplicates(files, facts, class_idx, index, refused, keep_split)
    return stay.tolist(), [REASONS[r] for r in refused.reason], refused


def test_one_of_each_picture_stays_and_the_order_is_that_of_the_content():
    stay, reasons, refused = dropped(["a"] * 6, [1, 2, 1, 3, 1, 2], [9, 5, 4, 7, 4, 5])
    assert stay == [2, 1, 3], "4, 5, 7: in the order of their SHA-256"
    assert reasons == ["same_pixels", "", "", "", "duplicate", "duplicate"]
    assert refused.twin.tolist() == [2, -1, -1, -1, 2, 1]


def test_a_picture_under_two_labels_is_kept_under_none():
    stay, reasons, refused = dropped(["a", "b", "a", "a"], [1, 1, 1, 2], [3, 4, 3, 5])
    assert stay == [3]
    assert reasons == ["label_conflict"] * 3 + [""]
    assert refused.details[0] == "the same picture stands under a/healthy and b/healthy"


def test_a_plant_among_the_strangers_is_a_conflict():
    stay, reasons, refused = dropped(["a", "a"], [1, 2, 2, 3], [1, 2, 2, 3], not_plants=2)
    assert stay == [0, 3]
    assert reasons == ["", "label_conflict", "label_conflict", ""]
    assert "pictures of no plant" in refused.details[2]


@pytest.mark.parametrize(("keep_split", "stays"), [(False, 0), (True, 2)])
def test_with_a_given_split_the_held_out_copy_stays(keep_split, stays):
    assert dropped(["a"] * 3, [1, 1, 1], [1, 2, 3], given=[0, 1, 2], keep_split=keep_split)[0] == [
        stays
    ]


def test_many_conflicts_stay_quick():
    n = 40_000
    labels = ["a", "b"] * (n // 2)
    stay, reasons, _ = dropped(
        labels, list(np.repeat(np.arange(n // 2), 2)), list(np.arange(n) % 251)
    )
    assert not stay
    assert set(reasons) == {"label_conflict"}


def test_choose_accounts_for_every_file(refused):
    labels = ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d", ""]
    files, facts = files_of(labels, not_plants=1), facts_of(list(range(12)), list(range(12)))
    classes = {"a": ("a", "x"), "b": ("b", "x"), "c": ("c", "x")}
    index, class_idx = class_numbers(files, classes)
    files.notes[0] = ("label_conflict", "told so")

    def run(small_classes):
        out = Rejected(facts["reason"].copy(), {}, np.full(len(files), -1))
        args = SimpleNamespace(small_classes=small_classes, keep_split=False, labels=None)
        return choose(files, facts, out, index, class_idx, args), out

    (kept, not_plants), out = run("drop")
    assert isinstance(kept, Kept)
    assert kept.classes == [("a", "x"), ("b", "x")]
    assert kept.file.tolist() == [1, 2, 3, 4, 5, 6]
    assert not_plants.tolist() == [11]
    assert [REASONS[r] for r in out.reason] == ["label_conflict"] + [""] * 6 + [
        "small_class"
    ] * 2 + ["no_class"] * 2 + [""]
    assert out.details[10] == "the file lies in no class folder"
    assert "names.csv" in out.details[9]
    assert out.details[0] == "told so"
    assert run("train")[0][0].classes == [("a", "x"), ("b", "x"), ("c", "x")]
    refused(("1 of 3 classes", "c/x (2)", "--small-classes train"), run, "fail")


def test_one_class_is_nothing_to_tell_apart(refused):
    refused(
        "only one class (a/x)", require_sizes, np.array([9, 0]), [("a", "x"), ("b", "x")], "train"
    )
