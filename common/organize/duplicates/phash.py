"""One 64-bit perceptual hash per picture, and an exact search for all near pairs among millions of
them.

A bit is the sign of one coefficient of the cosine transform. A mirror image flips the signs of the
odd coefficients and a quarter turn swaps the axes, so the hashes of all 8 flips and turns of a
picture follow from one stored value.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from common.organize.duplicates.bands import join

BLANK = 0  # the hash of a picture of one colour; it has no neighbours
MOST_RADIUS = 15
FLAT = 1.0  # grey levels (standard deviation of 32 x 32 means); noise of a plain photo is far below
STILL = 0.01  # coefficients at most this large are rounding

# The 64 lowest coefficients (v, u) of the transform's corner, without the mean and (5, 5): 4 on the
# diagonal, then 30 above it, then their 30 mirror images, so that swapping the axes exchanges two
# fields of 30 bits. Bit i is the i-th of them.
_DIAGONAL = [(k, k) for k in range(1, 5)]
_ABOVE = sorted(
    ((v, u) for v in range(11) for u in range(v + 1, 11 - v)), key=lambda at: (sum(at), at)
)
_PLACES = np.array(_DIAGONAL + _ABOVE + [(u, v) for v, u in _ABOVE])
_WEIGHTS = np.uint64(1) << np.arange(64, dtype=np.uint64)
_ODD_ROWS, _ODD_COLUMNS = (
    np.bitwise_or.reduce(_WEIGHTS[_PLACES[:, axis] % 2 == 1]) for axis in (0, 1)
)
_LOW, _HIGH = (np.uint64(((1 << 30) - 1) << at) for at in (4, 34))
# Bits that a band must hold together, so that turning permutes its keys; low frequencies first
_TOGETHER = [(4 + i, 34 + i) for i in range(30)] + [(i,) for i in range(4)]


def perceptual_hash(rgb: np.ndarray) -> int:
    """Hash what a picture shows: 64 signs of the low coefficients of the cosine transform of 32 x
    32 grey means.

    Args:
        rgb: uint8 (height, width, 3).

    Returns:
        0 .. 2**64 - 1; `BLANK` where the picture has one colour only, and for no other picture.
    """
    means = _means(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
    if means.std() < FLAT:
        return BLANK
    bits = cv2.dct(means)[_PLACES[:, 0], _PLACES[:, 1]] > STILL
    return int(np.packbits(bits, bitorder="little").view("<u8")[0]) or 1


def _means(grey: np.ndarray) -> np.ndarray:
    """float32 (32, 32): the means of 32 x 32 equal cells, whose borders may cut pixels. As
    `cv2.resize` with INTER_AREA does it, but from sums over rectangles, which is five times as fast
    where the sides are no multiples of 32, and without rounding.
    """
    sums = cv2.integral(grey, sdepth=cv2.CV_32S if grey.size < 2**31 // 255 else cv2.CV_64F)
    for axis, length in enumerate(grey.shape):
        at = np.arange(33) * (length / 32)
        below = np.minimum(at.astype(np.intp), length - 1)
        part = (at - below)[:, None] if axis == 0 else at - below
        sums = sums.take(below, axis) * (1 - part) + sums.take(below + 1, axis) * part
    return (np.diff(np.diff(sums, axis=0), axis=1) * (1024 / grey.size)).astype(np.float32)


def orientations(hashes: np.ndarray) -> np.ndarray:
    """Give the hashes of the 8 flips and turns of pictures.

    Args:
        hashes: uint64 (N,), from `perceptual_hash`.

    Returns:
        uint64 (N, 8), C order; the first column is the picture as it stands.
    """
    plain = np.asarray(hashes, np.uint64)
    swapped = (
        (plain & np.uint64(15)) | (plain & _LOW) << np.uint64(30) | (plain & _HIGH) >> np.uint64(30)
    )
    masks = np.array([0, _ODD_COLUMNS, _ODD_ROWS, _ODD_COLUMNS ^ _ODD_ROWS], np.uint64)
    return np.concatenate([plain[:, None] ^ masks, swapped[:, None] ^ masks], axis=1)


@dataclass(frozen=True)
class Near:
    """All pairs of pictures whose hashes lie within a radius, under any flip or turn.

    Pictures whose hashes are equal (under a flip or turn) share one number, so that ten thousand
    copies of one picture cost ten thousand entries and not fifty million pairs.

    Attributes:
        of: int64 (N,), the number of each picture's hash, 0 .. U - 1; -1 for a blank picture, which
            has no neighbours.
        first: int64 (U,), the first picture with this number.
        pairs: int32 (P, 2), numbers of different hashes within the radius, the smaller first, in
            ascending order.
    """

    of: np.ndarray
    first: np.ndarray
    pairs: np.ndarray

    @property
    def blank(self) -> int:
        """Pictures of one colour, which the search leaves out."""
        return int((self.of < 0).sum())

    def edges(self) -> np.ndarray:
        """int64 (E, 2): a subset of the pairs with the same connected components (`connected`)."""
        first = np.where(
            self.of >= 0, self.first[self.of] if len(self.first) else 0, np.arange(len(self.of))
        )
        copies = np.flatnonzero(first != np.arange(len(self.of)))
        return np.concatenate(
            [np.stack([first[copies], copies], axis=1), self.first[self.pairs]]
        ).astype(np.int64)

    def has_neighbour_in(self, mask: np.ndarray) -> np.ndarray:
        """Whether another picture of those in the mask lies within the radius of each picture.

        Args:
            mask: bool (N,).

        Returns:
            bool (N,).
        """
        mask, known = np.asarray(mask, bool), self.of >= 0
        inside = np.bincount(self.of[known & mask], minlength=len(self.first))
        beside = np.zeros(len(self.first), bool)
        beside[self.pairs[inside[self.pairs[:, 1]] > 0, 0]] = True
        beside[self.pairs[inside[self.pairs[:, 0]] > 0, 1]] = True
        found = np.zeros(len(self.of), bool)
        found[known] = (inside[self.of[known]] - mask[known] > 0) | beside[self.of[known]]
        return found


def near_search(hashes: np.ndarray, radius: int, workers: int = 1) -> Near:
    """Find all pairs of pictures whose hashes differ in at most `radius` bits under some flip or
    turn. Exact.

    Args:
        hashes: uint64 (N,), from `perceptual_hash`; blank pictures match nothing.
        radius: bits, 0..15.
        workers: processes; the result does not depend on them.

    Returns:
        the pairs.

    Raises:
        ValueError: where the radius is out of range.
        OverflowError: where more than `bands.MOST_PAIRS` pairs of different hashes lie within the
            radius.
    """
    _check(radius)
    hashes = np.asarray(hashes, np.uint64)
    of, known = np.full(len(hashes), -1, np.int64), np.flatnonzero(hashes != BLANK)
    # A flip or turn keeps distances, so the smallest of the 8 can stand for all
    unique, first, of[known] = np.unique(
        orientations(hashes[known]).min(axis=1), return_index=True, return_inverse=True
    )
    found = join(orientations(unique), None, radius, _TOGETHER, workers)
    return Near(
        of, known[first], np.stack([found >> 32, found & 0xFFFFFFFF], axis=1).astype(np.int32)
    )


def matches(queries: np.ndarray, hashes: np.ndarray, radius: int) -> np.ndarray:
    """Find for each query all stored hashes within `radius` bits under some flip or turn. Exact.

    Args:
        queries: uint64 (Q,); hashes: uint64 (N,); blank ones match nothing.
        radius: bits, 0..15.

    Returns:
        int64 (M, 2): query and stored picture, in ascending order, each pair once.

    Raises:
        ValueError: where the radius is out of range.
    """
    _check(radius)
    queries, hashes = np.asarray(queries, np.uint64), np.asarray(hashes, np.uint64)
    asked, stored = np.flatnonzero(queries != BLANK), np.flatnonzero(hashes != BLANK)
    found = join(
        *(orientations(values[kept]) for values, kept in ((hashes, stored), (queries, asked))),
        radius,
        _TOGETHER,
    )
    pairs = np.stack([asked[found & 0xFFFFFFFF], stored[found >> 32]], axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def connected(count: int, edges: np.ndarray) -> np.ndarray:
    """Find the connected groups of pictures.

    Args:
        count: pictures.
        edges: int (E, 2), pairs of pictures.

    Returns:
        int64 (count,): the smallest member of each picture's group.
    """
    label = np.arange(count, dtype=np.int64)
    edges = np.asarray(edges, np.int64).reshape(-1, 2)
    while True:
        edges = label[edges]
        edges = edges[edges[:, 0] != edges[:, 1]]
        if not len(edges):
            return label
        np.minimum.at(
            label, edges.max(axis=1), edges.min(axis=1)
        )  # each root goes under its smallest neighbour, if smaller
        while not np.array_equal(above := label[label], label):
            label = above


def _check(radius: int) -> None:
    if not 0 <= radius <= MOST_RADIUS:
        raise ValueError(
            f"the radius of a near-duplicate search is 0 to {MOST_RADIUS} bits, not {radius}"
        )
