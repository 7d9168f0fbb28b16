"""Duplicates made on purpose, and the count of what a search finds of them."""

import cv2
import numpy as np

from common.organize.duplicates.phash import perceptual_hash
from common.organize.duplicates.planted import Row, judge, judge_hashes, planted_table, variants


def blobs(seed: int) -> np.ndarray:
    cells = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    return cv2.resize(cells, (120, 90), interpolation=cv2.INTER_CUBIC)


PICTURES = [blobs(seed) for seed in range(30)]


def test_variants_are_what_they_say():
    picture = PICTURES[0]
    kept = picture.copy()
    made = variants(picture, 3)
    assert (picture == kept).all()
    assert all(
        v.dtype == np.uint8 and v.ndim == 3 and not np.shares_memory(v, picture)
        for v in made.values()
    )
    shapes = {name: v.shape[:2] for name, v in made.items()}
    assert shapes["resized to 50 %"] == (45, 60)
    assert shapes["turned by a quarter"] == (120, 90)
    assert shapes["cropped by 5 %"] == (86, 114)
    assert shapes["cropped by 15 %"] == (76, 102)
    assert all(
        shapes[name] == (90, 120)
        for name in (
            "re-encoded, quality 50",
            "blurred",
            "brighter, x 1.3",
            "darker, x 0.7",
            "mirrored",
        )
    )
    means = {name: v.mean() / picture.mean() for name, v in made.items()}
    assert 1.1 < means["brighter, x 1.3"] <= 1.3
    assert 0.68 < means["darker, x 0.7"] < 0.72
    assert 0 < np.abs(made["re-encoded, quality 50"].astype(int) - picture).mean() < 10, (
        "colours are not swapped"
    )
    assert np.array_equal(made["mirrored"], picture[::-1]) or np.array_equal(
        made["mirrored"], picture[:, ::-1]
    )
    assert all(
        np.array_equal(v, again)
        for v, again in zip(made.values(), variants(picture, 3).values(), strict=True)
    )
    frames = {variants(picture, seed)["cropped by 15 %"].tobytes() for seed in range(6)}
    assert len(frames) > 3, "the frame moves with the seed"


def test_small_and_odd_pictures():
    for shape in [(32, 32, 3), (33, 500, 3)]:
        assert all(
            min(v.shape[:2]) >= 16
            for v in variants(
                np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8), 0
            ).values()
        )


def test_counts_of_a_search_that_is_known():
    groups = np.array([0, 0, 1, 1, 2])
    sample = [0, 3]
    kinds = list(variants(PICTURES[0], 0))
    asked = []

    def describe(pictures):
        asked.append(len(pictures))
        return np.full(len(pictures), len(asked) - 1)

    def match(described):
        assert described.tolist() == [0] * len(kinds) + [1] * len(kinds)
        # of picture 0: its first copy finds it, its friend and a stranger; of picture 3: the second
        # copy finds strangers only
        return np.array(
            [(0, 0), (0, 1), (0, 4), (len(kinds) + 1, 0), (len(kinds) + 1, 4), (len(kinds) + 1, 2)]
        )

    rows = judge(PICTURES.__getitem__, sample, describe, match, groups)
    assert [row.kind for row in rows] == kinds
    assert asked == [len(kinds)] * 2
    assert rows[0] == Row(kinds[0], 2, 1, 1, 6)
    assert rows[1] == Row(kinds[1], 2, 0, 2, 6)
    assert rows[2] == Row(kinds[2], 2, 0, 0, 6)
    assert judge(PICTURES.__getitem__, [], describe, match, groups) == []
    lines = planted_table(rows).splitlines()
    assert len(lines) == len(kinds) + 3
    assert "50.0 %" in lines[2]
    assert lines[-1].split("|")[1:4] == [
        " all".ljust(len(lines[0].split("|")[1])),
        f" {2 * len(kinds)}".ljust(8),
        " 5.6 %".ljust(16),
    ]


def test_the_hash_finds_its_copies_and_no_others():
    hashes = np.array([perceptual_hash(p) for p in PICTURES], np.uint64)
    groups = np.arange(len(PICTURES))
    sample = [4, 7, 11, 29]
    rows = {row.kind: row for row in judge_hashes(PICTURES.__getitem__, sample, hashes, groups, 6)}
    for kind in (
        "re-encoded, quality 50",
        "resized to 50 %",
        "blurred",
        "darker, x 0.7",
        "mirrored",
        "turned by a quarter",
    ):
        assert rows[kind] == Row(kind, 4, 4, 0, 4 * 29), kind
    assert rows["cropped by 15 %"].found < 4, "cropping is what such a hash does not survive"
    doubled = judge_hashes(lambda i: PICTURES[i % 30], sample, np.tile(hashes, 2), np.arange(60), 6)
    assert doubled[0].false == 4, "an equal picture in another group is counted as false"
    assert doubled[0].compared == 4 * 59, "an equal picture in another group is counted as false"
    assert judge_hashes(PICTURES.__getitem__, sample, hashes, groups, 6) == list(rows.values())


def test_the_copies_of_a_picture_do_not_depend_on_the_others_sampled():
    def copies_of_5(sample: list[int]) -> bytes:
        seen = []

        def describe(pictures: list[np.ndarray]) -> np.ndarray:
            seen.append(b"".join(p.tobytes() for p in pictures))
            return np.zeros(len(pictures))

        judge(
            PICTURES.__getitem__,
            sample,
            describe,
            lambda described: np.zeros((0, 2), np.int64),
            np.arange(30),
        )
        return seen[sample.index(5)]

    assert copies_of_5([5]) == copies_of_5([2, 5]) == copies_of_5([9, 5, 1])
