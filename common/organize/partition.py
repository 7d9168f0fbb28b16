"""Which pictures form a group, which split each group goes to, and how much still leaks."""

import argparse
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from common.console import fail, say
from common.organize.deduplicate import (
    HOLDOUT_COPIES,
    HOLDOUT_DISEASES,
    HOLDOUT_SOURCE,
    HOLDOUT_SPECIES,
    Kept,
    Pair,
)
from common.organize.duplicates.phash import Near, connected, near_search
from common.organize.duplicates.planted import Row
from common.organize.sources import Files
from common.organize.splits import (
    TRAIN,
    draws,
    equal_edges,
    keep_given,
    sizes_of,
    split_groups,
    stem_edges,
    version_groups,
)


@dataclass(frozen=True)
class Certificate:
    """What was grouped and what leaks.

    Attributes:
        radius: bits of 64; -1 where hashes were not compared.
        near: near-duplicate pairs by hash, None where not compared.
        cosine: pairs by features, int64 (M, 2) of picture numbers.
        joined: {what joins pictures: how many pairs of them it joined}.
        group_sizes: of groups of two or more, largest first.
        leak: share of val and test pictures with a near neighbour or another version of their leaf
            in train, as split here.
        leak_alone: the same, had each picture been split alone.
        leak_given: the same in the split that the source gives; None where it gives none.
        planted: {search: what it made of altered copies}, empty until it is judged.
    """

    radius: int
    near: Near | None
    cosine: np.ndarray
    joined: dict[str, int]
    group_sizes: Sequence[int]
    leak: float
    leak_alone: float
    leak_given: float | None
    planted: dict[str, list[Row]] = field(default_factory=dict)


def hold_out(classes: Sequence[tuple[str, str]], species: str, diseases: str) -> np.ndarray:
    """Choose the classes to set aside.

    Args:
        classes: L sorted (species, disease).
        species: names separated by commas, or a number: so many, chosen by a hash of their name; ""
            for none.
        diseases: the same for classes: `tomato/leaf_mold`, or `leaf_mold` of every species. A
            number never takes `healthy` or the only disease of a species.

    Returns:
        int8 (L,): 0, HOLDOUT_SPECIES or HOLDOUT_DISEASES.

    Raises:
        SystemExit: where a name is unknown, or fewer than two classes would be left.
    """
    chosen = np.zeros(len(classes), np.int8)
    all_species = sorted({s for s, _ in classes})
    wanted = set(_pick(species, all_species, "--holdout-species", all_species))
    chosen[[s in wanted for s, _ in classes]] = HOLDOUT_SPECIES
    left = [pair for pair, out in zip(classes, chosen, strict=True) if not out]
    diseases_left = Counter(s for s, _ in left)
    free = [f"{s}/{d}" for s, d in left if diseases_left[s] > 1 and d != "healthy"]
    known = ["/".join(pair) for pair in left] + sorted({d for _, d in left})
    wanted = set(_pick(diseases, free, "--holdout-diseases", known))
    named = np.array([not wanted.isdisjoint(("/".join(pair), pair[1])) for pair in classes])
    chosen[(chosen == 0) & named] = HOLDOUT_DISEASES
    if (chosen == 0).sum() < 2:
        fail(
            "--holdout-species and --holdout-diseases leave fewer than two classes to learn. Hold "
            "out less."
        )
    return chosen


def hold_out_sources(
    files: Files, class_idx: np.ndarray, classes: Sequence[Pair], text: str
) -> None:
    """Set whole sources aside, and say which of their classes can be judged; sets `files.held_out`.

    Args:
        class_idx: int (N,), index into `classes`, or below 0 for a file without a class.
        text: names of `files.datasets` separated by commas.

    Raises:
        SystemExit: where a name is unknown, no other source is left, or none of the classes held
            out is in one that is left.
    """
    names = {name.strip() for name in text.split(",")} - {""}
    if not (text and classes):
        return
    plants, not_plants = class_idx >= 0, files.is_not_plant()
    known = {files.datasets[i]: i for i in np.unique(files.dataset[~not_plants]).tolist()}
    lost = sorted(names - known.keys())
    held = [known[name] for name in sorted(names & known.keys())]
    files.held_out = np.isin(files.dataset, held) & ~not_plants
    learned = class_idx[plants & ~files.held_out]
    if lost or not len(learned):
        what = f"there is no source {lost[0]}" if lost else "no source is left to learn from"
        fail(
            f"--holdout-source: {what}. The sources are {', '.join([*known][:20])}. NAME=FOLDER "
            f"names one; in a labels file, --columns source=NAME is the column that says of which "
            f"place, camera or year each picture is."
        )
    if not np.isin(class_idx[plants & files.held_out], learned).any():
        fail(
            f"--holdout-source {text}: no other source has one of its classes, so that there is "
            f"nothing to judge in a new place. If they have other names there, say so with "
            f"--names. To test plants that the model does not know, use --holdout-species, or "
            f"--unknown-plants of 03_export.py."
        )
    for number in held:
        mine = class_idx[plants & (files.dataset == number)]
        own = ["/".join(classes[i]) for i in np.setdiff1d(mine, learned)]
        count = len(np.unique(mine))
        say(
            f"held out: source {files.datasets[number]}, {len(mine):,} files; {count - len(own)} "
            f"of its {count} classes are in other sources, too"
            + (f", but not {', '.join(own[:8])}" if own else "")
        )


def _pick(text: str, free: Sequence[str], flag: str, known: Sequence[str]) -> list[str]:
    if text.isdigit():
        if int(text) > len(free):
            fail(f"{flag} {text}: there are only {len(free)} to choose from.")
        return sorted(free, key=lambda name: hashlib.sha256(name.encode()).digest())[: int(text)]
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            fail(
                f"{flag}: there is no class {name}. Names are written as --dry-run prints them, "
                f"such as {', '.join(known[:3])}."
            )
    return names


def partition(
    kept: Kept,
    files: Files,
    facts: np.ndarray,
    held_out: np.ndarray,
    cosine: np.ndarray,
    args: argparse.Namespace,
) -> Certificate:
    """Group and split the kept pictures; sets their `group` and `split`.

    Pictures of a held-out source that are in one group with others count as copies of those: they
    would show nothing of a new place.

    Args:
        held_out: int8 (classes,), from `hold_out`.
        cosine: int64 (M, 2), near-duplicates by features.
        args: the flags near, val, test, group_by, keep_split and workers.

    Returns:
        the certificate.

    Raises:
        SystemExit: where --near joins too much, or all pictures of the held-out sources are copies.
    """
    chosen, radius = facts[kept.file], args.near
    try:
        near = near_search(chosen["phash"], radius, args.workers) if radius >= 0 else None
    except OverflowError as error:
        fail(f"--near {radius} joins too much: {error}")
    leaf = version_groups(files, kept.file, kept.class_idx)
    edges = {
        "versions of one leaf, by file name": equal_edges(leaf, none=-1),
        f"perceptual hash, at most {radius} of 64 bits apart": near.edges()
        if near
        else np.zeros((0, 2), np.int64),
        "cosine of features": cosine,
        "group column": equal_edges(files.cluster[kept.file], none=-1),
    }
    if "stem" in args.group_by:
        edges["made from one picture, by file name"] = stem_edges(files, kept.file, kept.class_idx)
    if "moment" in args.group_by:
        edges["one camera in one minute"] = equal_edges(
            files.origin[kept.file], chosen["moment"], none=0
        )
    kept.group = connected(len(kept), np.concatenate(list(edges.values())))
    draw, given = draws(chosen["sha256"]), files.given[kept.file]
    away = files.held_out[kept.file]
    copies = away & np.isin(kept.group, kept.group[~away])
    if files.held_out.any() and (copies == away).all():
        fail(
            f"--holdout-source {args.holdout_source}: all pictures that can be read are duplicates "
            f"or near-duplicates of pictures of other sources, or in one group with them "
            f"(--columns group=), so that there is nothing new to judge. Hold out another source."
        )
    out = held_out[kept.class_idx]
    out = np.where(copies, HOLDOUT_COPIES, np.where(away, HOLDOUT_SOURCE, out)).astype(np.int8)
    kept.split, inside = out.copy(), np.flatnonzero(out == 0)
    class_idx, group = kept.class_idx[inside], kept.group[inside]
    first = np.full(len(kept), len(kept))
    # a group whose first picture is held out is named by its first one inside
    np.minimum.at(first, group, inside)
    local = np.searchsorted(inside, first[group])
    split = split_groups(class_idx, local, draw[inside], args.val, args.test)
    kept.split[inside] = keep_given(split, given[inside], group) if args.keep_split else split
    alone = out.copy()
    alone[inside] = split_groups(
        class_idx, np.arange(len(inside)), draw[inside], args.val, args.test
    )

    def leak(split: np.ndarray) -> float:
        held, train = (split > TRAIN) & (split < HOLDOUT_SPECIES), split == TRAIN
        kin = near.has_neighbour_in(train) if near else np.zeros(len(kept), bool)
        for a, b in (cosine.T, cosine.T[::-1]):
            kin[a[train[b]]] = True
        kin |= (leaf >= 0) & np.isin(leaf, leaf[train])
        return float(kin[held].mean()) if held.any() else 0.0

    return Certificate(
        radius,
        near,
        cosine,
        {what: len(e) for what, e in edges.items() if len(e)},
        sizes_of(kept.group),
        leak(kept.split),
        leak(alone),
        leak(given) if (given > TRAIN).any() else None,
    )
