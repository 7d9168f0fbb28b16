"""How well class names are read: python tests/benchmarks/names.py class_names.csv [--aside]

The CSV holds raw_name, species, disease and source; a species or disease of "ambiguous" means that
the name does not say it. Each source is read as a list of its own. Sources are sorted, and every
third is kept aside: without --aside only the others are listed in detail, so that the parser can be
worked on while the rest stays unseen.
"""

import argparse
import csv
import itertools
import random
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.console import table
from common.organize.names.parse import ASK_BELOW, ParsedName, parse_class_names
from common.organize.names.review import read_names
from common.organize.sources import Label, Source

Row = dict[str, str]


def score(pairs: list[tuple[Row, ParsedName]], seconds: float) -> tuple[str, ...]:
    """One row of the table: what is right among rows whose species and disease are known, what is
    bold, what is asked.
    """
    known = [(row, p) for row, p in pairs if "ambiguous" not in (row["species"], row["disease"])]
    vague = [p for row, p in pairs if row["species"] == "ambiguous"]
    right = [(p.species, p.disease) == (row["species"], row["disease"]) for row, p in known]
    sure = [ok for ok, (_, p) in zip(right, known, strict=True) if p.confidence >= ASK_BELOW]
    bold, asked = (
        sum(p.confidence >= ASK_BELOW for p in vague),
        sum(p.confidence < ASK_BELOW for _, p in pairs),
    )

    def share(part: int, whole: int) -> str:
        return f"{part}/{whole} = {part / whole:.1%}" if whole else "-"

    counts = (
        (sum(right), len(right)),
        (bold, len(vague)),
        (sum(sure), len(sure)),
        (asked, len(pairs)),
    )
    return (*(share(*pair) for pair in counts), f"{seconds:.2f}")


def made_up(count: int, species: int = 320) -> list[str]:
    """Names of plants that no table holds, some 36 known and unknown diseases each, to time the
    reading of a large list.
    """
    rng = random.Random(0)

    def word(syllables: int) -> str:
        return "".join(
            rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice(["", "n", "r", "l"])
            for _ in range(syllables)
        )

    plants = [
        " ".join(word(rng.randint(2, 3)).title() for _ in range(rng.choice([1, 1, 2])))
        for _ in range(species)
    ]
    parts = [
        (first, last)
        for first in (
            "early",
            "late",
            "bacterial",
            "black",
            "brown",
            "yellow",
            "leaf",
            "stem",
            "fruit",
            "root",
        )
        for last in ("rust", "blight", "spot", "rot", "mosaic", "wilt", "canker", "mold")
    ]
    diseases = [
        "healthy",
        "powdery_mildew",
        "spider mites",
        *("_".join(p) for p in parts),
        *(f"{word(3)} disease" for _ in range(40)),
    ]
    return [
        f"{plant}{mark}{disease}"
        for plant, mark in zip(plants, itertools.cycle(["___", "_", " "]))
        for disease in rng.sample(diseases, 36)
    ][:count]


def main() -> int:
    """Measure and print."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("csv", type=Path, help="columns raw_name, species, disease, source")
    flags.add_argument(
        "--aside",
        action="store_true",
        help="list the wrong and bold names of the lists kept aside too",
    )
    flags.add_argument("--names", type=int, default=11_499, help="names of the list that is timed")
    args = flags.parse_args()
    lists: dict[str, list[Row]] = defaultdict(list)
    with args.csv.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            lists[row["source"]].append(row)
    results, shown = [], []
    for part in ("practice", "kept aside"):
        pairs: list[tuple[Row, ParsedName]] = []
        begin = time.perf_counter()
        for i, source in enumerate(sorted(lists)):
            if (i % 3 == 2) == (part == "kept aside"):
                pairs += zip(
                    lists[source],
                    parse_class_names([row["raw_name"] for row in lists[source]]),
                    strict=True,
                )
        results.append((part, *score(pairs, time.perf_counter() - begin)))
        for row, p in pairs if part == "practice" or args.aside else []:
            want = (row["species"], row["disease"])
            bold = want[0] == "ambiguous" and p.confidence >= ASK_BELOW
            if bold or ("ambiguous" not in want and (p.species, p.disease) != want):
                shown.append(
                    (
                        part,
                        p.raw,
                        f"{row['species']}/{row['disease']}",
                        f"{p.species}/{p.disease}",
                        f"{p.confidence:.2f}",
                    )
                )
    print(
        table(
            results,
            (
                "lists",
                "right",
                "ambiguous but bold",
                f"right at {ASK_BELOW} or above",
                "asked",
                "s",
            ),
        )
    )
    if shown:
        print(
            "", table(shown, ("lists", "name", "a reader says", "read as", "confidence")), sep="\n"
        )
    names = made_up(args.names)
    begin = time.perf_counter()
    review = read_names(
        [Label(0, name) for name in names], [Source("names", Path("names"))], 2, None
    ).review
    seconds = time.perf_counter() - begin
    print(
        f"\n{len(names):,} names of one list, with near-identical leaves: {seconds:.1f} s; "
        f"{len(review):,} to look at"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
