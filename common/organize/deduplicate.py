"""Which files stay as pictures of the data set, and why the others do not."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.classes import ClassTree
from common.console import fail
from common.organize.intake import REASONS
from common.organize.names.folders import VERSIONS
from common.organize.sources import Files
from common.organize.splits import several_versions

# the first three are in the class tree; the last: pictures of a held-out source in one group with
# others
SPLITS = (
    *("train", "val", "test"),
    *("holdout_species", "holdout_diseases", "holdout_source", "holdout_copies"),
)
HOLDOUT_SPECIES, HOLDOUT_DISEASES, HOLDOUT_SOURCE, HOLDOUT_COPIES = range(3, len(SPLITS))
OTHER_VERSION = -2  # class_idx of a file that --versions leaves out
Pair = tuple[str, str]


@dataclass
class Kept:
    """The K pictures that stay, in the order of their SHA-256, so that nothing depends on the order
    of files.

    Attributes:
        file: int64 (K,), number of the file.
        class_idx: int32 (K,), index into `classes`.
        classes: (species, disease) of every class, sorted.
        group, split: int64 and int8 (K,), set once they are known; a group is the smallest picture
            number in it.
    """

    file: np.ndarray
    class_idx: np.ndarray
    classes: list[tuple[str, str]]
    group: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    split: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))

    def __len__(self) -> int:
        return len(self.file)

    def counts(self) -> np.ndarray:
        """Pictures per class and split, int64 (classes, 7)."""
        flat = np.bincount(
            self.class_idx.astype(np.int64) * len(SPLITS) + self.split,
            minlength=len(self.classes) * len(SPLITS),
        )
        return flat.reshape(-1, len(SPLITS))

    def tree(self) -> ClassTree:
        """The class tree of the classes that are not held out."""
        inside = np.unique(self.class_idx[self.split < HOLDOUT_SPECIES])
        return ClassTree.from_pairs(self.classes[i] for i in inside)


@dataclass
class Rejected:
    """Why files are left out: `reason` uint8 (N,), index into REASONS, 0 for those that stay;
    `details` of some of them; `twin` int64 (N,), the file that is kept in its stead, or -1.
    """

    reason: np.ndarray
    details: dict[int, str]
    twin: np.ndarray

    def add(self, files: np.ndarray, reason: str, detail: str | None = None) -> None:
        """Leave these files out, unless they are out already for another reason."""
        fresh = files[self.reason[files] == 0]
        self.reason[fresh] = REASONS.index(reason)
        if detail:
            self.details.update(dict.fromkeys(fresh.tolist(), detail))


def drop_duplicates(
    files: Files,
    facts: np.ndarray,
    class_idx: np.ndarray,
    classes: Sequence[tuple[str, str]],
    rejected: Rejected,
    keep_split: bool,
) -> np.ndarray:
    """Keep one file of each picture, and none of a picture that has two labels.

    Two files are one picture where their decoded pixels are equal. The one kept has the smallest
    SHA-256, but one of a held-out source is kept only where no other source has the picture, and
    with `keep_split` one that the source holds out (test, then val) before one in its train.

    Args:
        files, facts: N files and what they hold.
        class_idx: int (N,), index into `classes`, or -1 for a picture of no plant.
        rejected: gets the reasons.

    Returns:
        int64 (K,): the files that stay, in the order of their SHA-256.
    """
    good = np.flatnonzero(rejected.reason == 0)
    sha = np.ascontiguousarray(facts["sha256"]).view(">u8")  # (N, 4), in the order of the bytes
    held = files.given[good] if keep_split else np.zeros(len(good), np.int8)
    order = good[
        np.lexsort(
            (good, *sha[good].T[::-1], -held, files.held_out[good], *facts["pixels"][good].T[::-1])
        )
    ]
    if not len(order):
        return order
    pixels = facts["pixels"][order]
    starts = np.flatnonzero(np.r_[True, (pixels[1:] != pixels[:-1]).any(axis=1)])
    run = np.repeat(
        np.arange(len(starts)), np.diff(np.r_[starts, len(order)])
    )  # files of equal pixels
    conflicts = np.minimum.reduceat(class_idx[order], starts) != np.maximum.reduceat(
        class_idx[order], starts
    )
    for start, stop in zip(
        starts[conflicts], np.r_[starts, len(order)][1:][conflicts], strict=True
    ):
        names = sorted(
            {
                "/".join(classes[j]) if j >= 0 else "pictures of no plant"
                for j in class_idx[order[start:stop]].tolist()
            }
        )
        rejected.add(
            order[start:stop],
            "label_conflict",
            f"the same picture stands under {' and '.join(names)}",
        )
    first, conflict = order[starts][run], conflicts[run]
    copy = ~conflict & (first != order)
    exact = (sha[first] == sha[order]).all(axis=1)
    rejected.twin[order[copy]] = first[copy]
    rejected.add(order[copy & exact], "duplicate")
    rejected.add(order[copy & ~exact], "same_pixels")
    stay = order[~conflict & ~copy]
    return stay[np.lexsort(sha[stay].T[::-1])]


def class_numbers(files: Files, classes: Mapping[str, Pair]) -> tuple[list[Pair], np.ndarray]:
    """Number the classes that names were read as.

    Args:
        classes: {class name as found: (species, disease)}.

    Returns:
        all classes, sorted, and int64 (N,), the number of each file's class or -1.
    """
    index = sorted(set(classes.values()))
    numbers = {pair: i for i, pair in enumerate(index)}
    by_label = np.array(
        [numbers[classes[label]] if label in classes else -1 for label in files.labels] + [-1]
    )
    return index, by_label[files.label]


def leave_out_versions(files: Files, class_idx: np.ndarray, version: str) -> None:
    """Set `class_idx` to OTHER_VERSION where a class has the wanted version and a file is of
    another one.

    Raises:
        SystemExit: where no class has several versions with this one among them.
    """
    mine = np.flatnonzero(class_idx >= 0)
    mine = mine[several_versions(files, mine, class_idx[mine])]
    place = class_idx[mine] * len(files.sources) + files.origin[mine]
    wanted = files.version[mine] == VERSIONS.index(version)
    others = mine[np.isin(place, place[wanted]) & ~wanted]
    if not len(others):
        found = ", ".join(VERSIONS[i] for i in np.unique(files.version[mine]) if i >= 0)
        fail(f"--versions {version}: no class has it among others; there are {found or 'none'}.")
    class_idx[others] = OTHER_VERSION


def class_sizes(
    rows: np.ndarray, files: Files, class_idx: np.ndarray, classes: Sequence[Pair]
) -> np.ndarray:
    """Pictures per class that can be learned from: int64 (classes,), of the files `rows` that have
    a class and no held-out source.
    """
    learned = rows[(class_idx[rows] >= 0) & ~files.held_out[rows]]
    return np.bincount(class_idx[learned], minlength=len(classes))


def require_sizes(
    sizes: np.ndarray, classes: Sequence[Pair], small_classes: str, note: str = ""
) -> np.ndarray:
    """Which classes have fewer than three pictures, too few to be in every split.

    Args:
        sizes: int (L,), pictures per class.
        classes: their names.
        small_classes: `fail`, `train` or `drop`.
        note: added to the message.

    Returns:
        their numbers.

    Raises:
        SystemExit: where there are such classes and `small_classes` is `fail`, or where there is
            only one class.
    """
    there = np.flatnonzero(sizes)
    if len(there) < 2:
        only = "/".join(classes[there[0]]) if len(there) else "none"
        fail(
            f"there is only one class ({only}): nothing to distinguish. Give at least two class "
            f"folders.{note}"
        )
    small = there[sizes[there] < 3]
    if len(small) and small_classes == "fail":
        names = ", ".join(f"{'/'.join(classes[i])} ({sizes[i]})" for i in small[:8])
        fail(
            f"{len(small)} of {len(there)} classes have fewer than 3 pictures and cannot be in "
            f"train, val and test: {names}. Add "
            f"pictures, or run again with --small-classes train (learned, never judged) or "
            f"--small-classes drop.{note}"
        )
    return small


def choose(
    files: Files,
    facts: np.ndarray,
    rejected: Rejected,
    index: Sequence[Pair],
    class_idx: np.ndarray,
    args: argparse.Namespace,
) -> tuple[Kept, np.ndarray]:
    """Choose the files that stay.

    Args:
        files, facts: N files and what they hold.
        rejected: holds what could not be read; gets the reasons of the others.
        index, class_idx: of `class_numbers`.
        args: the flags small_classes, keep_split and labels.

    Returns:
        the pictures of plants, and int64 (M,), the pictures of no plant, in the order of their
        SHA-256.

    Raises:
        SystemExit: where no picture is left, or a class is too small.
    """
    not_plants = files.is_not_plant()
    for i, (reason, detail) in files.notes.items():
        rejected.add(np.array([i]), reason, detail)
    why = f"no row in {args.labels.name}" if args.labels else "the file lies in no class folder"
    rejected.add(np.flatnonzero(~not_plants & (files.label < 0)), "no_class", why)
    rejected.add(np.flatnonzero(class_idx == OTHER_VERSION), "other_version", "--versions")
    rejected.add(
        np.flatnonzero(~not_plants & (files.label >= 0) & (class_idx < 0)),
        "no_class",
        "no class was read from its name: names.csv",
    )
    stay = drop_duplicates(files, facts, class_idx, index, rejected, args.keep_split)
    plants = stay[~not_plants[stay]]
    if not len(plants):
        counts = np.bincount(rejected.reason[~not_plants], minlength=len(REASONS)).tolist()
        most = sorted(
            ((n, reason) for n, reason in zip(counts, REASONS, strict=True) if n and reason),
            reverse=True,
        )
        fail(
            "not one usable picture was found. "
            + "; ".join(f"{n} files: {reason}" for n, reason in most[:4])
            + "."
        )
    small = require_sizes(
        class_sizes(plants, files, class_idx, index),
        index,
        args.small_classes,
        " What was read is kept, so that the next run is quick.",
    )
    if args.small_classes == "drop" and len(small):
        rejected.add(
            plants[np.isin(class_idx[plants], small)], "small_class", "fewer than 3 usable pictures"
        )
        plants = plants[rejected.reason[plants] == 0]
        require_sizes(class_sizes(plants, files, class_idx, index), index, "drop")
    used, numbers = np.unique(class_idx[plants], return_inverse=True)
    return Kept(plants, numbers.astype(np.int32), [index[i] for i in used]), stay[not_plants[stay]]
