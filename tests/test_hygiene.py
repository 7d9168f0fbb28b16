"""Near-duplicates against brute force, and splits that never part a group."""

from __future__ import annotations

import random
from collections import defaultdict

import cv2
import numpy as np
import pytest
from tiny_data import draw

from common.hygiene import groups_of, near_pairs, perceptual_hashes, split_groups


def bits(a: int, b: int) -> int:
    return bin(int(a) ^ int(b)).count("1")


def brute(hashes: np.ndarray, radius: int) -> set[tuple[int, int]]:
    rows = hashes.tolist()
    return {(i, j) for i in range(len(rows)) for j in range(i + 1, len(rows))
            if min([bits(turned, rows[j][0]) for turned in rows[i]] + [bits(turned, rows[i][0]) for turned in rows[j]]) <= radius}


@pytest.mark.parametrize("radius", [0, 3, 6, 11, 15])
def test_near_pairs_equal_brute_force(radius):
    rng = np.random.default_rng(radius)
    hashes = rng.integers(0, 2**64, (120, 8), dtype=np.uint64)
    planted = 0
    for k in range(0, 60, 2):  # neighbours at exactly 0 ... radius + 2 bits, under some turn
        distance, turn, value = k // 2 % (radius + 3), int(rng.integers(8)), int(hashes[k, 0])
        for bit in rng.choice(64, distance, replace=False):
            value ^= 1 << int(bit)
        hashes[k + 1, turn] = value
        planted += distance <= radius
    hashes[100:104] = hashes[99]  # a clump of equals
    found = near_pairs(hashes, radius)
    assert found.dtype == np.int64 and (found[:, 0] < found[:, 1]).all() and len(np.unique(found, axis=0)) == len(found)
    assert {tuple(pair) for pair in found.tolist()} == brute(hashes, radius)
    assert len(found) >= planted + 10


def test_the_neighbours_of_real_hashes_equal_brute_force():
    hashes = np.array([perceptual_hashes(draw("apple", "scab", n // 3)[n % 3 :, : 64 - n % 3]) for n in range(60)])
    pairs = {tuple(pair) for pair in near_pairs(hashes, 10).tolist()}
    assert pairs == brute(hashes, 10) and len(pairs) > 10


def test_many_equal_hashes_are_compared_in_bounded_blocks(monkeypatch):
    from common import hygiene
    blocks = list(hygiene._blocks(np.array([3, 3, 3, 10, 0, 0, 1]), most=6))
    assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(7))
    assert [(b.start, b.stop) for b in blocks][0] == (0, 2)
    hashes = np.zeros((40, 8), np.uint64)
    assert len(near_pairs(hashes, 2)) == 40 * 39 // 2


def test_no_pictures_and_one():
    assert near_pairs(np.zeros((0, 8), np.uint64), 6).shape == (0, 2) and near_pairs(np.zeros((1, 8), np.uint64), 6).shape == (0, 2)


def test_turned_and_mirrored_pictures_match():
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8), (100, 80), interpolation=cv2.INTER_CUBIC)
    mine = perceptual_hashes(picture)
    assert mine.dtype == np.uint64 and mine.shape == (8,) and len(set(mine.tolist())) == 8
    seen = set()
    for turns in range(4):
        for mirrored in (False, True):
            other = np.ascontiguousarray(np.rot90(picture[:, ::-1] if mirrored else picture, turns))
            distances = [bits(h, perceptual_hashes(other)[0]) for h in mine]
            assert min(distances) <= 2, (turns, mirrored, distances)
            seen.add(int(np.argmin(distances)))
    assert seen == set(range(8)), "each orientation is another one of the eight"
    small = cv2.resize(picture, (50, 40), interpolation=cv2.INTER_AREA)
    pressed = cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
    assert bits(perceptual_hashes(pressed)[0], mine[0]) <= 6
    others = [perceptual_hashes(cv2.resize(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8), (100, 80))) for _ in range(20)]
    assert min(bits(h, mine[0]) for other in others for h in other) > 10


def test_groups_are_the_connected_parts():
    pairs = np.array([(1, 4), (4, 7), (2, 3), (0, 9), (9, 8), (8, 0)])
    assert groups_of(10, pairs).tolist() == [0, 1, 2, 2, 1, 5, 6, 1, 0, 0]
    assert groups_of(3, np.zeros((0, 2), np.int64)).tolist() == [0, 1, 2]
    chain = np.array([(i, i + 1) for i in range(4999)])
    assert (groups_of(5000, chain) == 0).all()


def draw_set(seed: int, spanning: float) -> tuple[list[str], list[int], list[str]]:
    rng = random.Random(seed)
    leaves, groups, keys, group = [], [], [], 0
    for leaf in range(12):
        for _ in range(rng.choice([1, 2, 3, 4, 8, 30])):
            group += 1
            for _ in range(rng.choice([1, 1, 1, 2, 5])):
                other = f"leaf{rng.randrange(12):02d}" if rng.random() < spanning else f"leaf{leaf:02d}"
                leaves.append(other)
                groups.append(group)
                keys.append(f"{rng.getrandbits(64):016x}")
    return leaves, groups, keys


@pytest.mark.parametrize("spanning", [0.0, 0.05])
def test_groups_stay_whole_and_leaves_are_everywhere(spanning):
    for seed in range(40):
        leaves, groups, keys = draw_set(seed, spanning)
        splits = split_groups(leaves, groups, keys, 0.15, 0.15)
        places, of_leaf, whole = defaultdict(set), defaultdict(set), defaultdict(set)
        spans = defaultdict(set)
        for leaf, group, split in zip(leaves, groups, splits, strict=True):
            places[group].add(split)
            of_leaf[leaf].add(split)
            whole[leaf].add(group)
            spans[group].add(leaf)
        assert all(len(p) == 1 for p in places.values()), "a group straddles splits"
        for leaf, mine in whole.items():
            own = [g for g in mine if len(spans[g]) == 1]
            if len(own) >= 3:
                assert of_leaf[leaf] == {"train", "val", "test"}, (seed, leaf, len(mine), of_leaf[leaf])
            elif len(mine) == len(own) == 2:
                assert of_leaf[leaf] == {"train", "val"}
            elif len(mine) == len(own) == 1:
                assert of_leaf[leaf] == {"train"}


def test_the_order_of_the_input_changes_nothing():
    leaves, groups, keys = draw_set(3, 0.05)
    want = dict(zip(keys, split_groups(leaves, groups, keys, 0.15, 0.15), strict=True))
    for seed in range(5):
        order = list(range(len(keys)))
        random.Random(seed).shuffle(order)
        names = list(range(1000))
        random.Random(seed + 100).shuffle(names)  # and neither do the groups' numbers
        again = split_groups([leaves[i] for i in order], [names[groups[i]] for i in order], [keys[i] for i in order], 0.15, 0.15)
        assert dict(zip((keys[i] for i in order), again, strict=True)) == want


def test_shares_are_those_asked_for():
    keys = [f"{random.Random(i).getrandbits(64):016x}" for i in range(1000)]
    splits = split_groups(["a"] * 1000, list(range(1000)), keys, 0.2, 0.1)
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (700, 200, 100)


def test_a_new_picture_moves_few_others():
    keys = [f"{random.Random(i).getrandbits(64):016x}" for i in range(200)]
    before = split_groups(["a"] * 200, list(range(200)), keys, 0.15, 0.15)
    after = split_groups(["a"] * 201, list(range(201)), [*keys, "0123456789abcdef"], 0.15, 0.15)[:200]
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 4
