"""Exact Hamming-distance join of 64-bit hashes under the 8 flips and turns of a picture.

The bits are divided into bands. By the pigeonhole principle, a pair within the radius differs in at
most a bit or two of some band, so only hashes in neighbouring buckets of a band are compared, whole
buckets at a time. A band holds each coefficient together with its transpose, so turning a picture
permutes its keys, and a hash is looked up only under the smallest of its 8 keys.
Source: Norouzi, Punjani and Fleet, "Fast search in Hamming space with multi-index hashing", CVPR
2012.
"""

import itertools
import math
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.console import progress

SHOWN_FROM = 100_000  # hashes; fewer are compared in seconds
_CELLS = 1 << 15  # pairs compared at once: their differences stay in a core's cache
MOST_PAIRS = 80_000_000  # what 3 GB hold while they are sorted
_TASKS = 64  # shares of a band's buckets, handed to the workers as they become free


@dataclass(frozen=True)
class _Band:
    """Bits shift .. shift + width - 1 of a regrouped hash; a pair counts as found here where at
    most `slack` of them differ.
    """

    shift: int
    width: int
    slack: int

    @property
    def mask(self) -> np.uint64:
        return np.uint64(((1 << self.width) - 1) << self.shift)

    def keys(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes >> np.uint64(self.shift) & np.uint64((1 << self.width) - 1)).astype(
            np.uint16
        )  # sorted by radix

    @property
    def probes(self) -> int:
        return sum(math.comb(self.width, n) for n in range(self.slack + 1))


def join(
    stored: np.ndarray,
    queries: np.ndarray | None,
    radius: int,
    together: Sequence[Sequence[int]],
    workers: int = 1,
) -> np.ndarray:
    """Find all pairs within the radius under some turn; without queries, those among the stored
    hashes.

    Args:
        stored: uint64 (N, 8), hashes in all their turns (which are isometries and form a group), N
            < 2**31; without queries no two rows may hold the same.
        queries: uint64 (Q, 8).
        radius: bits.
        together: the 64 bits in groups that every flip and turn maps onto themselves.
        workers: processes; the result does not depend on them.

    Returns:
        int64 (M,), ascending, each pair once: stored << 32 | query, or smaller << 32 | larger
        without queries.

    Raises:
        OverflowError: where there are more than `MOST_PAIRS`.
    """
    if not len(stored) or queries is not None and not len(queries):
        return np.zeros(0, np.int64)
    bands, order = _plan(len(stored), len(stored if queries is None else queries), radius, together)
    arguments = (
        _regroup(stored, order),
        None if queries is None else _regroup(queries, order),
        bands,
        radius,
    )
    tasks = [
        (number, share)
        for number, band in enumerate(bands)
        for share in range(_TASKS if band.width else 1)
    ]
    if workers < 2 or len(tasks) == 1:
        found = _gather(_shown(map(_Joiner(*arguments), tasks), len(stored), len(tasks)), radius)
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context(), _start, arguments) as pool:
            found = _gather(_shown(pool.map(_work, tasks), len(stored), len(tasks)), radius)
    found.sort()
    return found[np.diff(found, prepend=-1) != 0]


def _shown(pieces: Iterable[np.ndarray], hashes: int, total: int) -> Iterable[np.ndarray]:
    """The pieces, behind a progress bar where the search takes long."""
    return progress(pieces, total, "near-duplicates", "block") if hashes > SHOWN_FROM else pieces


def _gather(pieces: Iterable[np.ndarray], radius: int) -> np.ndarray:
    """Join arrays, unless they grow beyond `MOST_PAIRS`."""
    kept, count = [np.zeros(0, np.int64)], 0
    for piece in pieces:
        count += len(piece)
        if count > MOST_PAIRS:
            raise OverflowError(
                f"more than {MOST_PAIRS:,} pairs of different pictures lie within {radius} bits, "
                f"too many to be "
                "duplicates. Choose a smaller radius, or leave out series in which all pictures "
                "look alike"
            )
        kept.append(piece)
    return np.concatenate(kept)


def _plan(
    stored: int, queries: int, radius: int, together: Sequence[Sequence[int]]
) -> tuple[list[_Band], np.ndarray]:
    """Choose the bands with the least work; for few hashes a single band of no bits, which compares
    all with all.

    Returns:
        the bands, and int (64,): which bit of a hash comes at each place of the regrouped hash.
    """
    # Four bands at least: keys of 16 bits sort fast, and their buckets still hold enough to fill a
    # block
    best: tuple[float, list[_Band], np.ndarray] = (
        stored * queries * 8.0,
        [_Band(0, 0, 0)],
        np.arange(64),
    )
    for number in range(4, radius + 2 if radius > 3 else 5):
        places: list[list[int]] = [[] for _ in range(number)]
        for unit in together:
            min(places, key=len).extend(unit)
        places.sort(key=len, reverse=True)
        shifts = np.cumsum([0, *map(len, places)])
        # slacks s with sum(s + 1) = radius + 1: were all bands further off, the whole would be off
        # by more than the radius
        bands = [
            _Band(
                int(shifts[i]),
                len(places[i]),
                (radius + 1) // number + (i < (radius + 1) % number) - 1,
            )
            for i in range(number)
            if i < radius + 1
        ]
        compared = sum(stored * queries * 8 * band.probes / 2**band.width for band in bands)
        overhead = sum(
            2**band.width / 8 * (20_000 + 300 * band.probes) + 100 * queries for band in bands
        )  # in comparisons
        # Bits of real hashes are correlated, which fills some buckets: about twice the comparisons
        # of random ones
        best = min(
            best, (2 * compared + overhead, bands, np.concatenate(places)), key=lambda plan: plan[0]
        )
    return best[1:]


def _regroup(hashes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Reorder bits: place p of the result holds bit order[p]; a table of 256 entries per byte does
    eight bits at once.
    """
    target = np.empty(64, np.uint64)
    target[order] = np.arange(64, dtype=np.uint64)
    values, result = np.arange(256, dtype=np.uint64), np.zeros_like(hashes)
    for byte in range(8):
        table = np.zeros(256, np.uint64)
        for bit in range(8):
            table |= (values >> np.uint64(bit) & np.uint64(1)) << target[8 * byte + bit]
        result |= table[(hashes >> np.uint64(8 * byte)).astype(np.uint8)]
    return result


class _Joiner:
    """Compares shares of a band's buckets; keeps the sorted hashes of the current band."""

    def __init__(
        self, left: np.ndarray, right: np.ndarray | None, bands: list[_Band], radius: int
    ) -> None:
        self.left, self.right, self.alone = left, left if right is None else right, right is None
        self.bands, self.radius, self.number = bands, radius, -1
        self.differences, self.counts = np.empty(_CELLS, np.uint64), np.empty(_CELLS, np.uint8)

    def __call__(self, task: tuple[int, int]) -> np.ndarray:
        """Packed pairs of one share of one band."""
        if task[0] != self.number:
            self.number = task[0]
            self._sort(self.bands[self.number])
        return np.unique(
            _gather(
                (hits for block in self._blocks(task[1]) for hits in self._compare(*block)),
                self.radius,
            )
        )

    def _sort(self, band: _Band) -> None:
        """Sort the right side under all 8 keys and the left side under the smallest of its 8
        keys.
        """
        edges = np.arange(2**band.width + 1)
        keys = band.keys(self.right)
        self.smallest = np.zeros(2**band.width, np.uint16)  # of the 8 keys, for each key in use
        self.smallest[keys] = keys.min(axis=1, keepdims=True)
        keys = keys.ravel()
        order = np.argsort(keys, kind="stable")
        self.right_hashes, self.right_ids = (
            self.right.ravel()[order],
            (order // self.right.shape[1]).astype(np.int32),
        )
        self.right_starts = np.searchsorted(keys[order], edges)
        keys = band.keys(self.left)
        chosen = np.arange(len(keys)), keys.argmin(axis=1)
        order = np.argsort(keys[chosen], kind="stable")
        self.left_hashes, self.left_ids = self.left[chosen][order], order.astype(np.int32)
        self.left_starts = np.searchsorted(keys[chosen][order], edges)
        self.filled = np.flatnonzero(np.diff(self.left_starts))
        self.flips = np.array(
            [
                sum(1 << bit for bit in bits)
                for n in range(band.slack + 1)
                for bits in itertools.combinations(range(band.width), n)
            ]
        )

    def _blocks(
        self, share: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """The pictures of each bucket of this share, with those of the buckets around it."""
        for key in self.filled[share::_TASKS].tolist():
            around = key ^ self.flips
            if self.alone:
                around = around[
                    self.smallest[around] >= key
                ]  # the other buckets met this one before
            starts, ends = self.right_starts[around], self.right_starts[around + 1]
            filled = ends > starts
            slices = [
                slice(a, b)
                for a, b in zip(starts[filled].tolist(), ends[filled].tolist(), strict=True)
            ]
            if slices:
                mine = slice(self.left_starts[key], self.left_starts[key + 1])
                yield (
                    self.left_hashes[mine],
                    self.left_ids[mine],
                    np.concatenate([self.right_hashes[s] for s in slices]),
                    np.concatenate([self.right_ids[s] for s in slices]),
                )

    def _compare(
        self, left: np.ndarray, left_ids: np.ndarray, right: np.ndarray, right_ids: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Compare all with all and yield the packed pairs within the radius, block by block."""
        wide = min(len(right), _CELLS)
        high = max(1, _CELLS // wide)
        for column in range(0, len(right), wide):
            columns = right[column : column + wide]
            for row in range(0, len(left), high):
                rows = left[row : row + high, None]
                cells = len(rows) * len(columns)
                differences, counts = self.differences[:cells], self.counts[:cells]
                np.bitwise_xor(rows, columns, out=differences.reshape(len(rows), -1))
                hits = np.flatnonzero(np.bitwise_count(differences, out=counts) <= self.radius)
                if not len(hits):
                    continue
                for band in self.bands[
                    : self.number
                ]:  # pairs that an earlier band has found already
                    hits = hits[np.bitwise_count(differences[hits] & band.mask) > band.slack]
                a = left_ids[row + hits // len(columns)].astype(np.int64)
                b = right_ids[column + hits % len(columns)].astype(np.int64)
                if self.alone:
                    a, b = np.minimum(a, b)[a != b], np.maximum(a, b)[a != b]
                yield a << 32 | b


_joiner: _Joiner  # of a worker process


def _start(*args: Any) -> None:
    global _joiner
    _joiner = _Joiner(*args)


def _work(task: tuple[int, int]) -> np.ndarray:
    return _joiner(task)
