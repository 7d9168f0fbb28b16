"""From checked files to data/organized/: what is kept, what is not and why, and the files that say so."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.console import progress, table
from common.files import write_rows, write_text
from common.hygiene import SPLITS, groups_of, near_pairs, split_groups
from common.sources import Checked, Found, target_of
from common.taxonomy import ClassTree

MANIFEST = ("path", "species", "disease", "split", "group", "sha256", "phash", "width", "height", "source")
REJECTED = ("source", "name", "reason", "detail")


@dataclass
class Kept:
    """A picture that stays: its file, what it holds, its leaf, and where it goes."""

    found: Found
    checked: Checked
    leaf: tuple[str, str]
    group: int = -1
    split: str = ""

    @property
    def id(self) -> str:
        """File name without ending: first 16 hex digits of the SHA-256 of the source file."""
        return self.checked.sha256[:16]

    @property
    def path(self) -> str:
        """Where it stands below data/organized/."""
        return f"{self.split}/{self.leaf[0]}/{self.leaf[1]}/{self.id}.jpg"


def drop_duplicates(files: Sequence[tuple[Found, Checked, tuple[str, str]]]) -> tuple[list[Kept], list[tuple[str, ...]]]:
    """Keep one of each picture; of a picture under two labels keep none.

    Two files are one picture where their bytes are equal or where their decoded pixels are.

    Args:
        files: (file, what it holds, (species, disease)) of every usable picture.

    Returns:
        what stays, ordered by content, and rows of rejected.csv.
    """
    same: dict[str, list[tuple[Found, Checked, tuple[str, str]]]] = defaultdict(list)
    for item in files:
        same[item[1].pixels].append(item)
    kept, rejected = [], []
    for items in same.values():
        items.sort(key=lambda item: (item[1].sha256, item[0].path))
        leaves = sorted({item[2] for item in items})
        if len(leaves) > 1:
            labels = " and ".join("/".join(leaf) for leaf in leaves)
            rejected += [(f.path, f.name, "label_conflict", f"the same picture stands under {labels}") for f, _, _ in items]
            continue
        first = items[0]
        kept.append(Kept(*first))
        for found, checked, _ in items[1:]:
            exact = checked.sha256 == first[1].sha256
            rejected.append((found.path, found.name, "duplicate" if exact else "same_pixels", f"of {first[0].path}"))
    return sorted(kept, key=lambda k: k.checked.sha256), rejected


def assign_splits(kept: list[Kept], radius: int, val: float, test: float) -> dict[str, float]:
    """Group near-duplicates, split by group, and measure what leaks.

    Args:
        kept: all pictures; their `group` and `split` are set.
        radius: bits in which the hashes of near-duplicates may differ; -1 groups nothing.
        val, test: shares.

    Returns:
        near-duplicate pairs, pictures in groups of two or more, largest group; share of val and test pictures with a
        near neighbour in train as split here (`leak`), and had each picture been split alone (`leak_alone`).
    """
    hashes = np.array([k.checked.hashes for k in kept], np.uint64).reshape(len(kept), -1)
    pairs = near_pairs(hashes, radius) if radius >= 0 and len(kept) > 1 else np.zeros((0, 2), np.int64)
    groups = groups_of(len(kept), pairs)
    leaves, keys = ["/".join(k.leaf) for k in kept], [k.checked.sha256 for k in kept]
    splits = split_groups(leaves, groups.tolist(), keys, val, test)
    alone = split_groups(leaves, list(range(len(kept))), keys, val, test)
    for k, group, split in zip(kept, groups.tolist(), splits, strict=True):
        k.group, k.split = group, split
    sizes = np.bincount(groups)
    return {"pairs": len(pairs), "grouped": int(sizes[sizes > 1].sum()), "largest_group": int(sizes.max(initial=0)),
            "leak": _leak(pairs, splits), "leak_alone": _leak(pairs, alone)}


def _leak(pairs: np.ndarray, splits: list[str]) -> float:
    """Share of val and test pictures with a near neighbour in train."""
    held = sum(split != "train" for split in splits)
    leaking = set()
    for a, b in pairs.tolist():
        if (splits[a] == "train") != (splits[b] == "train"):
            leaking.add(b if splits[a] == "train" else a)
    return len(leaking) / held if held else 0.0


def place(kept: list[Kept], store: Path, partial: Path) -> None:
    """Move the stored pictures to where they belong; the store keeps its files until the run is complete."""
    for folder in {(k.split, *k.leaf) for k in kept}:
        (partial / Path(*folder)).mkdir(parents=True, exist_ok=True)
    for k in progress(kept, desc="placing", unit="file"):
        _link(store / (target_of(k.found) + ".jpg"), partial / k.path)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)


def place_strangers(found: list[Found], checked: dict[str, Checked], store: Path, partial: Path) -> list[tuple[str, ...]]:
    """Place pictures of no plant, half in val, half in test, by their content; returns rows of rejected.csv."""
    rejected, seen = [], set()
    for split in ("val", "test"):
        (partial / "not_plants" / split).mkdir(parents=True, exist_ok=True)
    good = sorted((f for f in found if not checked[f.path].reason), key=lambda f: checked[f.path].sha256)
    for f in good:
        c = checked[f.path]
        if c.pixels in seen:
            rejected.append((f.path, "not_plants", "duplicate", "of another picture of no plant"))
            continue
        split = ("val", "test")[len(seen) % 2]
        seen.add(c.pixels)
        _link(store / (target_of(f) + ".jpg"), partial / "not_plants" / split / f"{c.sha256[:16]}.jpg")
    return rejected + [(f.path, "not_plants", checked[f.path].reason, checked[f.path].detail) for f in found if checked[f.path].reason]


def counts_by_leaf(kept: Iterable[Kept]) -> dict[tuple[str, str], Counter[str]]:
    """Count pictures per leaf and split."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for k in kept:
        counts[k.leaf][k.split] += 1
    return counts


def write_index(folder: Path, tree: ClassTree, kept: list[Kept]) -> None:
    """Write species_index.json: the tree in index order with the counts per split."""
    counts = counts_by_leaf(kept)
    data = tree.to_json()
    for row in data["species"]:
        row["counts"] = {d: {s: counts[row["name"], d][s] for s in SPLITS} for d in row["diseases"]}
    write_text(folder / "species_index.json", json.dumps(data, indent=1))


def write_manifest(folder: Path, kept: list[Kept]) -> None:
    """Write manifest.csv, a row per picture in the order of its path."""
    rows = [(k.path, *k.leaf, k.split, k.checked.sha256 if k.group < 0 else f"g{k.group:07d}", k.checked.sha256,
             f"{k.checked.hashes[0]:016x}", k.checked.width, k.checked.height, k.found.path) for k in kept]
    write_rows(folder / "manifest.csv", MANIFEST, sorted(rows))


def report(kept: list[Kept], rejected: Sequence[tuple[str, ...]], merged: Sequence[tuple[str, ...]], leaks: dict[str, float],
           radius: int) -> str:
    """Compose report.md: counts, rejects, near-duplicates, leak check, classes from rare to frequent."""
    counts = counts_by_leaf(kept)
    reasons = Counter(row[2] for row in rejected)
    splits = Counter(k.split for k in kept)
    unjudged = sorted("/".join(leaf) for leaf, c in counts.items() if not c["test"] or not c["val"])
    rows = sorted((sum(c.values()), "/".join(leaf), *(c[s] for s in SPLITS)) for leaf, c in counts.items())
    return "\n".join([
        "# Organized data", "",
        f"{len(kept):,} pictures in {len(counts):,} classes of {len({leaf[0] for leaf in counts}):,} species: "
        + ", ".join(f"{splits[s]:,} {s}" for s in SPLITS) + f". {len(rejected):,} files were left out.", "",
        "## Left out", "", table(reasons.most_common(), ("reason", "files")), "", "Each file with its reason: `rejected.csv`.", "",
        "## Near-duplicates and leaks", "",
        f"Perceptual hash over 8 flips and turns, at most {radius} of 64 bits apart: {leaks['pairs']:,} pairs, "
        f"{leaks['grouped']:,} pictures in groups (largest {leaks['largest_group']:,}). A group never straddles a split.", "",
        f"Val and test pictures with a near neighbour in train: {leaks['leak']:.2%} "
        f"(a split picture by picture would leak {leaks['leak_alone']:.2%}).", "",
        "## Names", "", f"{len(merged)} classes were put together from several folders or need a look: `review.csv`.", "",
        "## Classes that cannot be judged", "",
        ", ".join(unjudged) if unjudged else "None: every class has pictures in all three splits.", "",
        "## Classes, rarest first", "",
        table([(leaf, n, *c) for n, leaf, *c in rows], ("class", "pictures", *SPLITS)), ""])
