"""Duplicates, near-duplicates and a split that keeps them together."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

ORIENTATIONS = 8  # four turns, each with its mirror image
SPLITS = ("train", "val", "test")


def perceptual_hashes(rgb: np.ndarray) -> np.ndarray:
    """Perceptual hash (64 bits of a 32 x 32 cosine transform) of a picture in its 8 flips and turns.

    A flip changes the sign of odd coefficients and a quarter turn also swaps the axes, so that one transform gives all.

    Args:
        rgb: uint8 (height, width, 3).

    Returns:
        uint64 (8,); the first is the picture as it stands.
    """
    grey = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(grey.astype(np.float32))[:8, :8]
    sign = np.where(np.arange(8) % 2, -1.0, 1.0).astype(np.float32)
    hashes = []
    for base in (low, low.T):
        for rows in (1.0, sign[:, None]):
            for columns in (1.0, sign[None, :]):
                bits = (base * rows * columns).ravel()
                packed = np.packbits(bits > np.median(bits[1:]))
                hashes.append(packed.view(">u8")[0])
    return np.array(hashes, np.uint64)


def near_pairs(hashes: np.ndarray, radius: int) -> np.ndarray:
    """Find all pairs of pictures whose hashes differ in at most `radius` bits under some flip or turn.

    Exact: of radius + 1 bands of bits, one must be equal in such a pair, so only pictures that share a band are compared.

    Args:
        hashes: uint64 (N, 8), from `perceptual_hashes`.
        radius: bits, 0..15.

    Returns:
        int64 (M, 2), each pair once, first index smaller.
    """
    plain, found = hashes[:, 0], []
    edges = np.linspace(0, 64, radius + 2).astype(int)
    for low, high in zip(edges, edges[1:], strict=False):
        mask = np.uint64((1 << int(high)) - (1 << int(low)))
        order = np.argsort(plain & mask, kind="stable")
        keys = (plain & mask)[order]
        for turn in range(hashes.shape[1]):
            wanted = hashes[:, turn] & mask
            starts, ends = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            for rows in _blocks(ends - starts):  # bounded memory where a band is shared by many
                counts = ends[rows] - starts[rows]
                left = np.repeat(np.arange(rows.start, rows.stop), counts)
                offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                right = order[np.repeat(starts[rows], counts) + offsets]
                close = (np.bitwise_count(hashes[left, turn] ^ plain[right]) <= radius) & (left != right)
                found.append(np.sort(np.stack([left[close], right[close]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), np.int64)


def _blocks(counts: np.ndarray, most: int = 4_000_000) -> Iterable[slice]:
    start, ends = 0, np.cumsum(counts)
    while start < len(counts):
        base = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, base + most, "right")))
        yield slice(start, stop)
        start = stop


def groups_of(count: int, pairs: np.ndarray) -> np.ndarray:
    """Join pairs into groups (union-find).

    Args:
        count: pictures.
        pairs: int (M, 2).

    Returns:
        int64 (count,): the smallest member of each picture's group.
    """
    parent = np.arange(count)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in pairs.tolist():
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(count)], np.int64)


def split_groups(leaves: Sequence[str], groups: Sequence[int], keys: Sequence[str], val: float, test: float) -> list[str]:
    """Put whole groups into train, val and test, stratified by leaf; where a group goes follows from its content.

    Within a leaf, groups come in the order of a hash of their smallest key and fill test, then val, up to their shares;
    the rest is train. A leaf with three groups or more has one in every split; one with two has no test picture, one with
    a single group is all train. A group that spans leaves goes where the first of its leaves (by name) puts it.

    Args:
        leaves: (N,) class of each picture.
        groups: (N,) group of each picture.
        keys: (N,) content hash of each picture.
        val, test: shares of the pictures, 0..1.

    Returns:
        (N,) of `train`, `val`, `test`.
    """
    members: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    smallest: dict[int, str] = {}
    for i, (leaf, group) in enumerate(zip(leaves, groups, strict=True)):
        members[leaf][group].append(i)
        smallest[group] = min(smallest.get(group, keys[i]), keys[i])
    place: dict[int, str] = {}
    for leaf in sorted(members):
        mine = members[leaf]
        order = sorted(mine, key=lambda g: hashlib.sha256(smallest[g].encode()).digest())
        total = sum(len(pictures) for pictures in mine.values())
        want = {"test": test * total, "val": val * total}
        have = {name: sum(len(mine[g]) for g in order if place.get(g) == name) for name in SPLITS}
        free = [g for g in order if g not in place]
        for group in free:
            size = len(mine[group])
            fits = [name for name in want if have[name] + size / 2 <= want[name]]
            place[group] = fits[0] if fits else "train"
            have[place[group]] += size
        _ensure_each_split(mine, free, place, have, [name for name in want if want[name] > 0])
    return [place[group] for group in groups]


def _ensure_each_split(mine: dict[int, list[int]], free: list[int], place: dict[int, str], have: dict[str, int],
                       wanted: list[str]) -> None:
    """Give a small leaf a train picture first, then a val and a test picture where there are groups left to take."""
    for name in ["train", *sorted(wanted, reverse=True)]:  # train, val, test
        if have[name]:
            continue
        if name == "val" and len(mine) == 2 and "test" in (place[g] for g in free):  # with two groups, val matters more than test
            group = next(g for g in free if place[g] == "test")
            place[group], have["val"], have["test"] = "val", have["test"], 0
            continue
        counts = {other: sum(place[g] == other for g in mine) for other in SPLITS}
        movable = [g for g in free if counts[place[g]] > 1 or (name == "train" and place[g] != name)]
        if movable:
            group = min(movable, key=lambda g: len(mine[g]))
            have[place[group]] -= len(mine[group])
            place[group] = name
            have[name] += len(mine[group])
