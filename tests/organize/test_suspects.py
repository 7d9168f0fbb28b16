"""Suspicious classes: each fault is planted in a tidy set and found there only; and what eight
background pixels give away.
"""

from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest

from common.organize.background import background_check, border_pixels
from common.organize.suspects import Pictures, printed, reasons_by_class, suspicious

NAMES = ["apple/healthy", "apple/rust", "apple/scab", "corn/healthy", "corn/rust", "tea/blight"]
EACH = 40
SPLIT = np.array([0, 0, 0, 1, 2])
NO_PAIRS, NOTHING = np.zeros((0, 2), np.int64), MappingProxyType({})


def tidy() -> SimpleNamespace:
    """Six classes of 40 pictures, each its own group, from two sources and in two sizes each."""
    count = len(NAMES) * EACH
    k = np.arange(count)
    return SimpleNamespace(
        class_idx=k // EACH,
        group=k * 3,
        split=SPLIT[k % 5],
        origin=k % 2,
        width=np.where(k % 3, 640, 512),
        height=np.full(count, 480),
    )


def mixed(classes: int, each: int, split: np.ndarray) -> SimpleNamespace:
    """Classes of pictures that are each a group of its own, of many sizes and two sources."""
    k = np.arange(classes * each)
    return SimpleNamespace(
        class_idx=np.repeat(np.arange(classes), each),
        group=k,
        split=split[k % len(split)],
        origin=k % 2,
        width=k % 7 + 300,
        height=k % 5 + 300,
    )


def judge(
    data: SimpleNamespace, names=NAMES, pairs=NO_PAIRS, rejected=NOTHING, origins="abcdefgh"
) -> list:
    return suspicious(names, Pictures(**vars(data)), pairs, rejected, list(origins))


def test_a_tidy_set_raises_no_doubt():
    pairs = np.array([[0, 1], [3, 9], [0, 50], [1, 51]])  # within a class; and too few across
    few = {"text": np.full(6, 4), "label_conflict": np.full(6, 2)}
    few["duplicate"] = np.full(6, 900)  # copies of one's own are no damage
    assert judge(tidy(), pairs=pairs, rejected=few) == []
    assert printed([], NAMES) == "No class looks suspicious."


def plant_few_groups(data):
    data.group[data.class_idx == 1] = np.arange(EACH) % 2
    data.group[data.class_idx == 1] += np.arange(EACH) % 2 * 1000


def plant_no_test(data):
    data.split[(data.class_idx == 1) & (data.split == 2)] = 0


def plant_one_group(data):
    data.group[np.flatnonzero(data.class_idx == 1)[:20]] = 5000


def plant_one_size(data):
    data.width[data.class_idx == 1], data.height[data.class_idx == 1] = 256, 300


def plant_one_source(data):
    data.origin[data.class_idx == 1] = 7


@pytest.mark.parametrize(
    ("plant", "kinds", "words"),
    [
        (plant_few_groups, {"few", "one_group"}, "40 pictures in 2 groups"),
        (plant_no_test, {"few"}, "no picture in test: it cannot be judged"),
        (plant_one_group, {"one_group"}, "20 of 40 pictures (50%) are near-duplicates"),
        (
            plant_one_size,
            {"one_size"},
            "100% of its pictures are 256 x 300 px, 0% of other apple classes",
        ),
        (
            plant_one_source,
            {"one_source"},
            "100% of its pictures come from h, 0% of other apple classes",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_fault_is_found_in_its_class_alone(plant, kinds, words):
    data = tidy()
    plant(data)
    found = judge(data)
    assert {s.class_idx for s in found} == {1}
    assert {s.kind for s in found} == kinds
    assert any(words in s.what for s in found)
    assert all(s.advice.endswith(".") and 0 < s.badness <= 1 for s in found)
    order = np.random.default_rng(1).permutation(len(data.class_idx))
    assert (
        judge(SimpleNamespace(**{key: values[order] for key, values in vars(data).items()}))
        == found
    ), "whatever the order of pictures"


def test_one_size_or_source_is_no_doubt_where_the_siblings_have_it_too():
    data = tidy()
    data.origin[data.class_idx == 1] = 0  # half of the other apples come from there
    data.width[data.class_idx == 5], data.origin[data.class_idx == 5] = (
        99,
        9,
    )  # tea has one class: nothing to tell it from
    assert judge(data) == []
    data.origin[data.class_idx == 1] = 7
    assert judge(data)[0].what.startswith("100% of its pictures come from h,")


def test_left_out_files_are_judged_by_their_share():
    broken = {
        "text": np.array([0, 9, 0, 4, 0, 0]),
        "truncated": np.array([0, 3, 0, 0, 0, 0]),
        "duplicate": np.full(6, 99),
        "label_conflict": np.array([0, 0, 10, 2, 0, 0]),
    }
    found = judge(tidy(), rejected=broken)
    assert [(s.class_idx, s.kind) for s in found] == [(2, "conflicts"), (1, "broken")]
    assert "10 of 50 pictures (20%) stand under another class" in found[0].what
    assert "12 of 52 files (23%) are no usable pictures, most of them: text" in found[1].what


def test_shared_near_duplicates_name_the_other_class_and_count_each_picture_once():
    hub = np.array([[40, 80 + k] for k in range(6)])  # one rust picture near six of scab
    pairs = np.concatenate([hub[:, ::-1], [[41, 90], [0, 1]]])
    found = judge(tidy(), pairs=pairs)
    assert [(s.class_idx, s.other, s.kind) for s in found] == [(2, 1, "shared")]
    assert found[0].what == "shares 7 near-duplicate pairs with apple/rust (7 of its 40 pictures)"
    assert found[0].badness == 0.5 + 0.5 * 7 / 40
    told = reasons_by_class(found, NAMES)
    assert told == {
        2: [found[0].what],
        1: ["apple/scab shares 7 near-duplicate pairs with this class (7 of its 40 pictures)"],
    }
    twice = judge(tidy(), pairs=np.stack([np.arange(40, 80), np.arange(120, 160)], axis=1))
    assert twice[0].badness == 1, "worse the more they share"
    assert twice[0].badness > found[0].badness, "worse the more they share"


def test_a_few_shared_pictures_of_a_large_class_are_no_doubt():
    pairs = np.array([[j, 1000 + j] for j in range(5)])
    assert judge(mixed(2, 1000, SPLIT), ["a/x", "a/y"], pairs) == []


def test_the_worst_come_first_and_one_kind_does_not_drown_the_others():
    names = [f"plant/d{i}" for i in range(60)]
    conflicts = np.zeros(60, int)
    conflicts[3], conflicts[4] = 3, 30
    found = judge(mixed(60, 12, np.zeros(1, int)), names, rejected={"label_conflict": conflicts})
    assert [s.class_idx for s in found[:2]] == [4, 3]
    assert all(s.kind == "few" for s in found[2:])
    assert len(found) == 62
    text = printed(found, names, most=20, each=6)
    assert text.count("cannot be judged") == 6
    assert "Not shown: 54 more of few." in text
    assert text.index("plant/d4") < text.index("plant/d3 ")
    assert text.count("The two labels cannot both be right") == 1
    assert printed(found, names, most=1).count("| plant/") == 1


def test_classes_without_pictures_and_no_pictures_at_all():
    none = mixed(0, 0, np.zeros(1, int))
    found = judge(none, ["a/x", "b/y"])
    assert [(s.class_idx, s.what) for s in found] == [
        (0, "no usable picture is left"),
        (1, "no usable picture is left"),
    ]
    assert judge(none, []) == []


# region background


@pytest.mark.parametrize(("height", "width"), [(5, 7), (4, 6), (1, 1), (2, 300)])
def test_border_pixels_are_corners_and_middles(height, width):
    y, x = np.mgrid[:height, :width]
    pixels = (
        border_pixels(np.stack([y, x % 256, x // 256], axis=-1).astype(np.uint8))
        .reshape(8, 3)
        .astype(int)
    )
    rows, columns = pixels[:, 0], pixels[:, 1] + 256 * pixels[:, 2]
    bottom, right = height - 1, width - 1
    assert rows.tolist()[:3] + rows.tolist()[5:] == [0] * 3 + [bottom] * 3
    assert columns[[0, 3, 5]].tolist() == [0] * 3
    assert columns[[2, 4, 7]].tolist() == [right] * 3
    assert np.abs(2 * rows[3:5] - bottom).max() <= 1
    assert np.abs(2 * columns[[1, 6]] - right).max() <= 1
    assert pixels.shape == (8, 3)


SPECIES = np.repeat(np.arange(4), 3)  # of 12 leaves


def grounds(
    tells: str, count: int = 1500, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Border pixels whose colour follows the class, the species or nothing; the first class of a
    species is twice as large.
    """
    rng = np.random.default_rng(seed)
    class_idx = rng.choice(12, count, p=np.tile([0.5, 0.25, 0.25], 4) / 4)
    colors = rng.integers(0, 256, (12, 3))
    color = {
        "class": colors[class_idx],
        "species": colors[SPECIES[class_idx]],
        "nothing": rng.integers(0, 256, (count, 3)),
    }[tells]
    border = (
        np.clip(np.repeat(color[:, None], 8, axis=1) + rng.normal(0, 12, (count, 8, 3)), 0, 255)
        .astype(np.uint8)
        .reshape(count, 24)
    )
    return border, class_idx, SPLIT[rng.integers(0, 5, count)]


def test_a_background_that_follows_the_class_is_found():
    result = background_check(*grounds("class"), SPECIES)
    assert result["accuracy"] > 0.9
    assert result["disease_accuracy"] > 0.9
    assert result["chance"] < 0.2
    assert 0.4 < result["disease_chance"] < 0.6
    assert result["disease_judged"] == result["judged"]
    assert "tells much of the disease" in result["sentence"]


def test_a_background_that_follows_the_species_alone_does_not_tell_the_disease():
    result = background_check(*grounds("species"), SPECIES)
    assert result["accuracy"] > 2 * result["chance"]
    assert result["disease_accuracy"] < result["disease_chance"] + 0.05
    assert "does not tell the disease" in result["sentence"]


@pytest.mark.parametrize("white", [False, True])
def test_a_background_that_follows_nothing_is_chance(white):
    border, class_idx, split = grounds("nothing")
    if white:  # every distance is equal: the answer must not depend on the order of the pictures
        border, order = np.full_like(border, 255), np.argsort(class_idx)
        class_idx, split = class_idx[order], split[order]
    result = background_check(border, class_idx, split, SPECIES)
    assert result["accuracy"] < 0.17
    assert result["disease_accuracy"] < result["disease_chance"] + 0.05
    assert "does not tell the disease" in result["sentence"]


def test_samples_are_capped_and_follow_the_seed():
    data = grounds("species")  # what it answers among a species' diseases is luck
    first, again, other = (
        background_check(*data, SPECIES, seed=seed, most_train=100, most_judged=150)
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first["accuracy"] != other["accuracy"]
    assert (first["trained"], first["judged"]) == (100, 150)


def test_what_cannot_be_judged_says_so():
    border, class_idx, split = grounds("class", 300)
    for classes, splits, species in (
        (class_idx, split * 0, SPECIES),
        (class_idx, split * 0 + 1, SPECIES),
        (class_idx * 0, split, np.array([0])),
    ):
        empty = background_check(border, classes, splits, species)
        assert empty["accuracy"] is None
        assert empty["disease_accuracy"] is None
        assert "could not be checked" in empty["sentence"]
    flat = background_check(border, class_idx, split, np.arange(12))
    assert flat["accuracy"] > 0.8
    assert flat["disease_judged"] == 0
    assert flat["disease_accuracy"] is None
    assert "disease" not in flat["sentence"]


# endregion
