"""Swapped labels that the label review lists: 5 % of the labels are changed within their species,
and the share of them among the first pictures listed is counted.

  python tests/benchmarks/wrong_labels.py --data DIR --weights FILE [--backbone-args ... \
      --pixel-mean ... --pixel-std ...]

DIR holds a folder per class, as 01 takes it. As many pictures are looked at as labels were swapped;
whoever picked pictures by chance would find their share of the set. Features are computed once, as
they do not depend on labels. A set of real photos holds wrong labels of its own, and classes that
no one can tell apart: both count against the review.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from cached import add_flags, new_model

from common.console import Stopwatch, say, table
from common.train.cached_features import Extraction, cache_eval
from common.train.compute import choose_compute
from common.train.dataset import load_organized
from common.train.label_review import REVIEWED, find_doubts
from common.train.machine import keep_memory


def swap_within_species(
    class_idx: np.ndarray, class_species: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Give a share of all pictures another class of their species: the labels int64 (N,), and which
    were swapped bool (N,).
    """
    rng, labels = np.random.default_rng(seed), class_idx.copy()
    free = np.flatnonzero(np.bincount(class_species)[class_species[class_idx]] > 1)
    chosen = rng.choice(free, round(share * len(class_idx)), replace=False)
    for i in chosen:
        same = class_species == class_species[class_idx[i]]
        same[class_idx[i]] = False
        labels[i] = rng.choice(np.flatnonzero(same))
    return labels, np.isin(np.arange(len(labels)), chosen)


def main() -> None:
    """Print a row per seed, and the mean."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(flags)
    flags.add_argument("--share", type=float, default=0.05, help="of the labels, swapped")
    args = flags.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    keep_memory()
    organized = args.store / "organized"
    if not organized.is_dir():
        words = ["01_reorganize.py", args.data.resolve(), "--output", organized.resolve()]
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    data, compute = load_organized(organized), choose_compute(args.device, args.precision)
    model, clock = new_model(args, data.tree, 0, compute), Stopwatch()
    extraction = Extraction(model, compute, args.batch_size, args.workers, data.manifest_hash)
    cached = [cache_eval(extraction, data.splits[name], args.store / name) for name in REVIEWED]
    features = torch.from_numpy(np.concatenate([part.rows["feature"][0] for part in cached]))
    seconds = clock()
    true = np.concatenate([data.splits[name].class_idx for name in REVIEWED]).astype(np.int64)
    with (organized / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in REVIEWED]
    group = np.array([int(row["group"], 16) for row in rows], np.uint64)
    found, clock = [], Stopwatch()
    for seed in range(args.seeds):
        labels, swapped = swap_within_species(true, data.tree.class_species, args.share, seed)
        doubts = find_doubts(features, labels, group, data.tree.num_classes, compute.device)
        first = doubts.row[: swapped.sum()]
        listed = swapped[doubts.row]
        mended = doubts.suggested[listed] == true[doubts.row[listed]]
        found.append(
            (
                swapped[first].sum() / swapped.sum(),
                swapped.mean(),
                len(doubts.row),
                listed.sum() / swapped.sum(),
                mended.mean(),
            )
        )
    per_run = clock() / args.seeds
    cells = [
        (name, f"{a:.1%}", f"{b:.1%}", f"{c:.0f}", f"{d:.1%}", f"{e:.1%}")
        for name, (a, b, c, d, e) in [*enumerate(found), ("mean", np.mean(found, 0))]
    ]
    say(
        f"{len(true):,} pictures, {swapped.sum():,} labels swapped; features {seconds:.0f} s, a "
        f"review {per_run:.1f} s",
        table(
            cells,
            (
                "seed",
                f"of the swapped, among the first {swapped.sum():,}",
                "by chance",
                "listed",
                "of the swapped, listed",
                "of these, the true class suggested",
            ),
        ),
    )


if __name__ == "__main__":
    main()
