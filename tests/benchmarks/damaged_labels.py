"""Damaged label files: 20,000 drawn from seeds (bytes flipped, cut out and put in, lines shuffled,
joined and doubled, delimiters mixed), read as 01 and 04 read their --labels.

  python tests/benchmarks/damaged_labels.py --count 20000

Counts the pictures that got a label which no row of the damaged file gives them: none may. CSV and
JSON of eight kinds, in UTF-8 and UTF-16, with paths written in five ways.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import damaged_tables as damaged

from common.console import progress, say, table


def main() -> int:
    """See the module's docstring."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--count", type=int, default=20_000)
    flags.add_argument("--seed", type=int, default=0, help="of the first file")
    args = flags.parse_args()
    counts, bad = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        files = damaged.make_source(Path(folder))
        for seed in progress(range(args.seed, args.seed + args.count), args.count, unit="file"):
            outcome, labelled, wrong = damaged.trial(files, Path(folder), seed)
            counts.update({outcome: 1, "labelled": labelled, "wrong": wrong})
            bad += [seed] if wrong else []
    titles = ("files", "stopped", "read", "labels given", "wrong labels")
    row = [args.count, *(counts[key] for key in ("stopped", "read", "labelled", "wrong"))]
    say(table([[f"{value:,}" for value in row]], titles))
    if bad:
        say(f"seeds: {', '.join(map(str, bad[:20]))}")
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main())
