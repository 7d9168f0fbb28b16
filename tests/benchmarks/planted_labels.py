"""Swapped labels that report.html shows: some labels of an organized set are swapped within their
species, and after training on it those on the page are counted.

  python tests/benchmarks/planted_labels.py --data data/organized --copy COPY [--share 0.02]
  python tests/benchmarks/planted_labels.py --copy COPY --page exports/report.html

The first makes the copy (of links); train and export on it as on any other set. The second counts
the planted pictures of the split that the page is about, by its sections.
"""

import argparse
import csv
import re
import sys
from html import unescape
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from wrong_labels import swap_within_species

from common.console import fail, say, table
from common.files import write_rows
from common.train.dataset import load_organized

PLANTED = "planted.csv"  # in the copy: what was swapped


def plant(organized: Path, copy: Path, share: float) -> None:
    """Copy an organized set as links, with a share of each split's labels swapped."""
    data = load_organized(organized)
    with (organized / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    copy.mkdir(parents=True)
    for path in organized.resolve().iterdir():
        if path.name != "manifest.csv":
            (copy / path.name).symlink_to(path)
    planted = []
    for seed, (split, pictures) in enumerate(data.splits.items()):
        mine = [row for row in rows if row["split"] == split]
        true = pictures.class_idx.astype(np.int64)
        labels, swapped = swap_within_species(true, data.tree.class_species, share, seed)
        for i in np.flatnonzero(swapped).tolist():
            planted.append((split, mine[i]["path"], mine[i]["disease"]))
            mine[i]["disease"] = data.tree.pair(int(labels[i]))[1]
    write_rows(copy / "manifest.csv", list(rows[0]), [list(row.values()) for row in rows])
    write_rows(copy / PLANTED, ("split", "path", "true_disease"), planted)
    say(f"{copy}: {len(planted):,} of {len(rows):,} labels are swapped")


def count(copy: Path, page: Path) -> None:
    """Print how many of the planted pictures of the page's split are in each of its sections."""
    html = page.read_text(encoding="utf-8")
    title = re.search(r"<h1>.* on (val|test)</h1>", html)
    if title is None or not (copy / PLANTED).is_file():
        fail(f"{page} is no report.html of a run or an export, or {copy} has no {PLANTED}.")
    split = title[1]
    with (copy / PLANTED).open(newline="", encoding="utf-8") as file:
        planted = {row["path"] for row in csv.DictReader(file) if row["split"] == split}
    shown = {
        key: [*map(unescape, re.findall(r"</(?:span|strong)><small>([^<]*)", part))]
        for key, part in re.findall(r'<section id="(\w+)">(.*?)</section>', html, re.DOTALL)
    }
    first = {f"the first {len(planted)} mistakes": shown["mistakes"][: len(planted)]}
    parts = first | shown | {"the whole page": [path for paths in shown.values() for path in paths]}
    rows = [
        (name, len(paths), f"{len(planted & set(paths))} of {len(planted)}")
        for name, paths in parts.items()
        if paths
    ]
    say(table(rows, ("part of the page", "pictures", f"planted in {split}")))


def main() -> None:
    """Make the copy, or count."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--data", type=Path, help="an organized set of files, to make the copy of")
    flags.add_argument("--copy", type=Path, required=True)
    flags.add_argument("--share", type=float, default=0.02, help="of the labels of each split")
    flags.add_argument("--page", type=Path, help="a report.html of the copy")
    args = flags.parse_args()
    if not (args.data or args.page):
        fail("give --data to make the copy, or --page to count what is on it.")
    if args.data and args.copy.exists():
        fail(f"--copy {args.copy} is there already.")
    if args.data:
        plant(args.data, args.copy, args.share)
    if args.page:
        count(args.copy, args.page)


if __name__ == "__main__":
    main()
