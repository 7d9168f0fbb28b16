"""The photos of ladder.py: a grouped split per seed, and nested parts of it."""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.console import fail
from common.organize.splits import split_groups
from common.train.dataset import Organized

SPLITS = ("train", "val", "test")
SHARE = 0.15  # of val, and of test


def read_rows(root: Path) -> list[dict[str, str]]:
    """Read the rows of an organized folder's manifest, with absolute paths; those of holdouts are
    left out.

    Raises:
        SystemExit: where the pictures are in shards.
    """
    with (root / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in SPLITS]
    if any(row["offset"] for row in rows):
        fail(f"{root} holds shards. Run 01_reorganize.py without --shards: files are wanted here.")
    return [{**row, "path": str(root.resolve() / row["path"])} for row in rows]


def class_numbers(rows: Sequence[dict[str, str]]) -> np.ndarray:
    """Number the classes of the rows in the order of their names, int64 (N,)."""
    names = [(row["species"], row["disease"]) for row in rows]
    number = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.array([number[name] for name in names])


def split_rows(rows: Sequence[dict[str, str]], seed: int) -> np.ndarray:
    """Split anew: whole groups, 70 : 15 : 15 of each class as far as groups allow.

    Returns:
        int8 (N,), which of SPLITS.
    """
    _, first, group = np.unique(
        [row["group"] for row in rows], return_index=True, return_inverse=True
    )
    draw = np.random.default_rng([seed, 15]).random(len(rows))
    return split_groups(class_numbers(rows), first[group], draw, SHARE, SHARE)


def subset(rows: Sequence[dict[str, str]], split: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Choose what `size` photos in all leave of each class's train and val; test stays whole. What
    a smaller size keeps, a larger one keeps, too.

    Returns:
        int8 (N,): which of SPLITS, -1 for what is left out.
    """
    rank = np.random.default_rng([seed, 16]).permutation(len(rows))
    place = class_numbers(rows) * len(SPLITS) + split
    kept = np.where(split == SPLITS.index("test"), split, -1)
    for part in np.unique(place[kept < 0]):
        members = np.flatnonzero(place == part)
        count = max(1, round(len(members) * min(1.0, size / len(rows))))
        chosen = members[np.argsort(rank[members])[:count]]
        kept[chosen] = split[chosen]
    return kept


def write_cell(
    folder: Path, rows: Sequence[dict[str, str]], kept: np.ndarray, data: Organized, linked: bool
) -> None:
    """Write an organized folder of the kept rows; its pictures stay where they are.

    Args:
        folder: replaced.
        kept: from `subset`.
        data: where the rows are from.
        linked: also link the pictures in `timm/`, a folder per class, as timm's train.py reads
            them; `classes.txt` numbers them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tree = data.tree
    for name in ("species_index.json", "build_info.json"):
        if (data.root / name).is_file():
            shutil.copy(data.root / name, folder)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for i, split in enumerate(SPLITS):
            writer.writerows({**rows[k], "split": split} for k in np.flatnonzero(kept == i))
    if linked:
        pairs = [tree.pair(c) for c in range(tree.num_classes)]
        number = {pair: f"{c:05d}" for c, pair in enumerate(pairs)}
        (folder / "timm").mkdir()
        (folder / "timm" / "classes.txt").write_text("\n".join(number.values()))
        for i, split in enumerate(("train", "validation")):
            for k in np.flatnonzero(kept == i).tolist():
                place = folder / "timm" / split / number[rows[k]["species"], rows[k]["disease"]]
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{k:06d}.jpg").symlink_to(rows[k]["path"])
