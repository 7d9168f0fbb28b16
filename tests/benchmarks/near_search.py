"""Exact near-duplicate search among hashes that look like those of real pictures: seconds, peak
memory, and a check.

  python tests/benchmarks/near_search.py [--count 1470000] [--radius 6] [--workers 2]

The pairs of a sample of pictures are checked against a comparison with every hash under all 8 flips
and turns.
"""

import argparse
import platform
import resource
import sys
from pathlib import Path

import numpy as np

for _part in (1, 2):
    sys.path.insert(0, str(Path(__file__).resolve().parents[_part]))

from near_pairs import neighbours, pair_count

from common.console import Stopwatch, table
from common.organize.duplicates import phash

# Fitted to the hashes of 4,019 leaf photos. Nearly all signs are even coins, with two exceptions. A
# thing in the middle of the frame, larger or smaller, lighter or darker than its ground, moves the
# coefficients that are even both ways together: the signs of (2, 0) and (0, 2) correlate at +0.57,
# of (2, 2) and (0, 2) at -0.37, of (4, 0) and (2, 0) at +0.28, and (2, 0) is positive in 65 % of
# photos, (4, 0) in 60 %. And light comes from above: (1, 0) is positive in 64 %. One common factor
# with these loadings gives those figures (a correlation r of signs is one of sin(pi r / 2) of what
# they are signs of).
LOADINGS = {
    (2, 0): 0.88,
    (0, 2): 0.88,
    (2, 2): -0.6,
    (4, 0): 0.5,
    (0, 4): 0.5,
    (4, 2): -0.35,
    (2, 4): -0.35,
    (6, 2): -0.3,
    (2, 6): -0.3,
}
MEANS = {
    (2, 0): 0.39,
    (0, 2): 0.36,
    (1, 0): 0.36,
    (4, 0): 0.25,
    (0, 4): 0.22,
    (2, 2): -0.18,
    (4, 2): -0.29,
    (2, 4): -0.24,
}


def likely(count: int, rng: np.random.Generator) -> np.ndarray:
    """Hashes of unrelated pictures: uint64 (count,)."""
    hashes = np.zeros(count, np.uint64)
    factor = rng.standard_normal(count, np.float32)
    for bit, place in enumerate(map(tuple, phash._PLACES.tolist())):
        loading = LOADINGS.get(place, 0.0)
        value = (
            loading * factor
            + np.sqrt(1 - loading**2) * rng.standard_normal(count, np.float32)
            + MEANS.get(place, 0.0)
        )
        hashes |= (value > 0).astype(np.uint64) << np.uint64(bit)
    return hashes


def near(hashes: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Flip up to `most` bits of each hash and turn it."""
    changed = hashes.copy()
    amount = rng.integers(0, most + 1, len(hashes))
    for n in range(most):
        changed ^= (n < amount).astype(np.uint64) << rng.integers(0, 64, len(hashes)).astype(
            np.uint64
        )
    return phash.orientations(changed)[np.arange(len(hashes)), rng.integers(0, 8, len(hashes))]


def collection(count: int, seed: int = 0) -> np.ndarray:
    """Three quarters unrelated pictures; copies of one of them; bursts of 5 to 50; one series of
    0.2 % of all with a fixed camera, in which all are alike; 1 % that show one and the same
    picture; some blank ones.
    """
    rng = np.random.default_rng(seed)
    hashes = likely(count, rng)
    copies, bursts, series, same = np.split(
        rng.permutation(count), (np.array([0.15, 0.238, 0.24, 0.25]) * count).astype(int)
    )[:4]
    hashes[copies] = near(hashes[rng.integers(0, count, len(copies))], 8, rng)
    lengths = rng.integers(5, 51, len(bursts))
    hashes[bursts] = near(np.repeat(likely(len(bursts), rng), lengths)[: len(bursts)], 5, rng)
    hashes[series] = near(np.repeat(likely(1, rng), len(series)), 4, rng)
    hashes[same] = likely(1, rng)
    hashes[rng.integers(0, count, count // 10_000)] = phash.BLANK
    return hashes


def brute(hashes: np.ndarray, queries: np.ndarray, radius: int) -> list[np.ndarray]:
    """Neighbours of some pictures, by comparing with all."""
    found = []
    for i in queries.tolist():
        close = np.zeros(len(hashes), bool)
        for turned in phash.orientations(hashes[i : i + 1])[0]:
            close |= np.bitwise_count(hashes ^ turned) <= radius
        close &= (hashes != phash.BLANK) & (hashes[i] != phash.BLANK)
        close[i] = False
        found.append(np.flatnonzero(close))
    return found


def main() -> int:
    """Measure, check and print a table."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--count", type=int, default=1_470_000)
    flags.add_argument("--radius", type=int, default=6)
    flags.add_argument("--workers", type=int, default=2)
    flags.add_argument("--sample", type=int, default=200)
    args = flags.parse_args()
    hashes = collection(args.count)
    clock = Stopwatch()
    found = phash.near_search(hashes, args.radius, args.workers)
    searched = clock()
    groups = phash.connected(len(hashes), found.edges())
    joined = clock() - searched
    unit = 1 if sys.platform == "darwin" else 1024
    main_peak, child_peak = (
        resource.getrusage(who).ru_maxrss * unit / 1e9
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    rng = np.random.default_rng(1)
    queries = rng.choice(args.count, min(args.sample, args.count), replace=False)
    want = brute(hashes, queries, args.radius)
    wrong = sum(
        not np.array_equal(neighbours(found, int(i)), pictures)
        for i, pictures in zip(queries, want, strict=True)
    )
    sizes = np.bincount(groups)
    children = args.workers if args.workers > 1 else 0
    print(
        f"{platform.processor() or platform.machine()}, numpy {np.__version__}, {args.workers} "
        f"processes\n"
    )
    print(
        table(
            [
                ("pictures, different hashes", f"{len(hashes):,}, {len(found.first):,}"),
                ("radius", args.radius),
                ("search, s", f"{searched:.1f}"),
                ("joining groups, s", f"{joined:.1f}"),
                (
                    "peak memory at most, GB",
                    f"{main_peak + children * child_peak:.2f} (main {main_peak:.2f}, "
                    f"{children} workers of {child_peak:.2f}, shared pages counted in each)",
                ),
                ("pairs of pictures", f"{pair_count(found):,}"),
                ("pairs of different hashes", f"{len(found.pairs):,}"),
                ("groups of two or more, the largest", f"{(sizes > 1).sum():,}, {sizes.max():,}"),
                (
                    "pictures checked against all others",
                    f"{len(queries)}, with {sum(map(len, want)):,} neighbours",
                ),
                ("of them wrong", wrong),
            ],
            ("what", "value"),
        )
    )
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
