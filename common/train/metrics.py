"""What a hierarchical classifier is measured by, from its joint probabilities."""

from dataclasses import dataclass, fields

import numpy as np

from common.classes import ClassTree
from common.decide import joint_class, species_probabilities

FEW_AT_MOST = 20  # train pictures of a few-shot class (as ImageNet-LT, Liu et al. 2019)
ENDS = (0.025, 0.975)  # of an interval, as shares of the resamples
TAIL_AT_MOST = 80  # train pictures of a tail class, by the hierarchical system's plan


@dataclass
class Judged:
    """Per-picture outcomes, so that a split of any size is judged batch by batch. All arrays are
    (N,); 80 bytes a picture.

    Attributes:
        class_idx: int64; the true class.
        joint, routed: int64; the class of the joint and of the routed decision.
        flat: int64; argmax of the packed heads' logits as if they were one softmax, -1 where it was
            not given. A flat model's joint decision is the same class; a hierarchical model's is
            its disease heads without its species head.
        species: int64; the species of the greatest summed probability, which is the species head's
            own answer.
        rank: int64; how many diseases of the true species are put before the true one (0 = right).
        confidence: float64; probability of the joint decision.
        species_nll, disease_nll: float64; -log P(true species), -log P(true disease given the true
            species).
        species_p: float64; probability of `species`.
    """

    class_idx: np.ndarray
    joint: np.ndarray
    routed: np.ndarray
    flat: np.ndarray
    species: np.ndarray
    rank: np.ndarray
    confidence: np.ndarray
    species_nll: np.ndarray
    disease_nll: np.ndarray
    species_p: np.ndarray


def judge(
    probabilities: np.ndarray,
    class_idx: np.ndarray,
    tree: ClassTree,
    flat: np.ndarray | None = None,
) -> Judged:
    """Judge joint probabilities against the truth.

    Args:
        probabilities: float (N, classes), rows sum to 1.
        class_idx: int (N,), true classes.
        tree: the classes.
        flat: int (N,), argmax over the class logits of the packed heads, where they are at hand.

    Returns:
        one outcome per picture.
    """
    rows, class_idx = np.arange(len(class_idx)), np.asarray(class_idx, np.int64)
    true_species = tree.class_species[class_idx]
    by_species = species_probabilities(probabilities, tree)
    species, own, own_species = (
        by_species.argmax(1),
        probabilities[rows, class_idx],
        by_species[rows, true_species],
    )
    joint = joint_class(probabilities, tree)
    return Judged(
        class_idx=class_idx,
        joint=joint,
        routed=tree.offsets[species] + _segment(probabilities, species, tree).argmax(1),
        flat=np.full(len(class_idx), -1, np.int64) if flat is None else np.asarray(flat, np.int64),
        species=species,
        rank=(_segment(probabilities, true_species, tree) > own[:, None]).sum(1),
        confidence=probabilities[rows, joint].astype(np.float64),
        species_nll=-np.log(np.maximum(own_species, 1e-12), dtype=np.float64),
        disease_nll=-np.log(
            np.maximum(own / np.maximum(own_species, 1e-30), 1e-12), dtype=np.float64
        ),
        species_p=by_species[rows, species],
    )


def _segment(probabilities: np.ndarray, species: np.ndarray, tree: ClassTree) -> np.ndarray:
    """The classes of one species per row, side by side: (N, widest); -1 beyond its last."""
    sizes, columns = np.diff(tree.offsets)[species], np.arange(np.diff(tree.offsets).max())
    at = np.minimum(tree.offsets[species][:, None] + columns, tree.num_classes - 1)
    return np.where(columns < sizes[:, None], np.take_along_axis(probabilities, at, axis=1), -1)


def join(parts: list[Judged]) -> Judged:
    """Put batches of outcomes together."""
    return Judged(
        **{
            f.name: np.concatenate([getattr(part, f.name) for part in parts])
            for f in fields(Judged)
        }
    )


# region per class


def f1_per_class(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """F1 of each class; NaN for a class that the truth does not contain.

    Args:
        truth, predicted: int (N,).
        classes: how many there are.

    Returns:
        float64 (classes,).
    """
    hits = np.bincount(truth[truth == predicted], minlength=classes)
    present = np.bincount(truth, minlength=classes)
    f1 = 2 * hits / np.maximum(present + np.bincount(predicted, minlength=classes), 1)
    return np.where(present > 0, f1, np.nan)


@dataclass(frozen=True)
class ClassFigures:
    """Figures of each class under the joint decision; all arrays (classes,).

    Attributes:
        present, said, hits: int64; pictures of the class, answers that name it, both at once.
        precision, recall, f1: float64, 0..1; NaN where the class was never named (precision) or has
            no picture (the others).
        taken_for, taken: int64; the wrong answer given most often for its pictures (-1 = none), and
            how often.
    """

    present: np.ndarray
    said: np.ndarray
    hits: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    taken_for: np.ndarray
    taken: np.ndarray


def class_figures(judged: Judged, tree: ClassTree) -> ClassFigures:
    """Count right and wrong answers per class; time and memory grow with pictures and classes,
    never with classes squared.
    """
    n = tree.num_classes
    present, said = (
        np.bincount(judged.class_idx, minlength=n),
        np.bincount(judged.joint, minlength=n),
    )
    hits = np.bincount(judged.class_idx[judged.class_idx == judged.joint], minlength=n)
    pairs, counts = confused_pairs(judged.class_idx, judged.joint)
    taken_for, taken = np.full(n, -1), np.zeros(n, np.int64)
    first = np.unique(pairs[:, 0], return_index=True)[1]  # pairs come by falling count
    taken_for[pairs[first, 0]], taken[pairs[first, 0]] = pairs[first, 1], counts[first]
    with np.errstate(invalid="ignore"):
        return ClassFigures(
            present,
            said,
            hits,
            np.where(said > 0, hits / said, np.nan),
            np.where(present > 0, hits / present, np.nan),
            f1_per_class(judged.class_idx, judged.joint, n),
            taken_for,
            taken,
        )


def confused_pairs(truth: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the wrong answers by (truth, answer).

    Args:
        truth, answer: int (N,).

    Returns:
        int64 (P, 2) pairs, most frequent first, then in index order; int64 (P,) how often.
    """
    wrong = truth != answer
    width = int(max(truth.max(initial=0), answer.max(initial=0))) + 1
    codes, counts = np.unique(
        truth[wrong].astype(np.int64) * width + answer[wrong], return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    return np.stack([codes[order] // width, codes[order] % width], axis=1), counts[order]


def tail_f1(
    judged: Judged, tree: ClassTree, class_sizes: np.ndarray, at_most: int = TAIL_AT_MOST
) -> dict[str, float]:
    """F1 of each class with at most so many pictures: {"apple/scab": 0.8}; classes absent from the
    split are left out.
    """
    f1 = f1_per_class(judged.class_idx, judged.joint, tree.num_classes)
    return {
        tree.class_name(i): float(f1[i])
        for i in np.flatnonzero((class_sizes <= at_most) & ~np.isnan(f1)).tolist()
    }


# endregion

# region of the whole split


def summarise(
    judged: Judged, tree: ClassTree, class_sizes: np.ndarray, tail_at_most: int = TAIL_AT_MOST
) -> dict[str, float]:
    """Sum outcomes up as the figures of the reports.

    Args:
        judged: outcomes of a split.
        tree: the classes.
        class_sizes: int (classes,), pictures per class over all splits.
        tail_at_most: a class with at most so many pictures belongs to the tail.

    Returns:
        n; species_top1; disease_top1, disease_top3 given the true species, over species with two
        diseases or more; cascade_top1 (joint decision right, nothing given), routed_top1; macro_f1
        over classes, tail_f1 over the tail's classes (NaN where there is none); species_nll,
        disease_nll. Fractions are 0..1.
    """
    true_species = tree.class_species[judged.class_idx]
    several = np.diff(tree.offsets)[true_species] > 1
    ranks = judged.rank[several] if several.any() else judged.rank
    f1 = f1_per_class(judged.class_idx, judged.joint, tree.num_classes)
    tail = f1[(class_sizes <= tail_at_most) & ~np.isnan(f1)]
    return {
        "n": len(judged.class_idx),
        "species_top1": float((judged.species == true_species).mean()),
        "disease_top1": float((ranks == 0).mean()),
        "disease_top3": float((ranks < 3).mean()),
        "cascade_top1": float((judged.joint == judged.class_idx).mean()),
        "routed_top1": float((judged.routed == judged.class_idx).mean()),
        "macro_f1": float(np.nanmean(f1)),
        "tail_f1": float(tail.mean()) if len(tail) else float("nan"),
        "tail_classes": len(tail),
        "species_nll": float(judged.species_nll.mean()),
        "disease_nll": float(judged.disease_nll[several].mean()) if several.any() else 0.0,
    }


def error_budget(judged: Judged, tree: ClassTree) -> dict[str, int]:
    """Split the wrong answers up by what went wrong.

    Returns:
        counts of pictures: `n`; `wrong` joint answers = `species_errors` (another plant) +
        `disease_errors` (the right plant); `routing_losses`: routed wrong where joint is right,
        `routing_gains`: the reverse; `species_head_only`: the species head right where the joint
        answer is of another species.
    """
    species = tree.class_species
    wrong, other = (
        judged.joint != judged.class_idx,
        species[judged.joint] != species[judged.class_idx],
    )
    routed_wrong = judged.routed != judged.class_idx
    return {
        key: int(np.count_nonzero(value))
        for key, value in {
            "wrong": wrong,
            "species_errors": other,
            "disease_errors": wrong & ~other,
            "routing_losses": routed_wrong & ~wrong,
            "routing_gains": wrong & ~routed_wrong,
            "species_head_only": other & (judged.species == species[judged.class_idx]),
        }.items()
    } | {"n": len(judged.class_idx)}


DECISIONS = {
    "joint": "the most probable class of all: argmax P(species) P(disease given species)",
    "routed": "the most probable species (largest sum over its classes = the species head's "
    "choice), then its best disease",
    "flat": "the largest logit of all classes as one softmax: a flat model's own answer, or the "
    "disease heads without the species head",
}


def decision_figures(judged: Judged, tree: ClassTree) -> dict[str, dict[str, float]]:
    """Compare the ways to decide.

    Returns:
        `joint`: argmax over classes of P(species) P(disease | species). `routed`: the species of
        the greatest summed probability, which is the species head's argmax, then its best disease.
        `flat`, where it was judged: argmax of one softmax over all class logits. Each with
        `class` (the answered class is right), `species` (its species is) and `macro_f1`, 0..1.
    """
    answers = {"joint": judged.joint, "routed": judged.routed} | (
        {"flat": judged.flat} if (judged.flat >= 0).all() else {}
    )
    truth = tree.class_species[judged.class_idx]
    return {
        name: {
            "class": float((answer == judged.class_idx).mean()),
            "species": float((tree.class_species[answer] == truth).mean()),
            "macro_f1": float(np.nanmean(f1_per_class(judged.class_idx, answer, tree.num_classes))),
        }
        for name, answer in answers.items()
    }


# endregion

# region intervals


def bootstrap(
    judged: Judged,
    tree: ClassTree,
    class_sizes: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, tuple[float, float]], np.ndarray]:
    """Bootstrap intervals: as many pictures of each class are drawn again, with replacement, as the
    split has of it.

    A class's lot is its own pictures and one more, whose outcome is that of any picture of the
    split: drawn from alone, a class with one to three pictures has too little spread, or none
    (intervals of macro F1 over 60 such classes held in 61 % of trials where 95 % were meant, with
    the one more in 90 %). Intervals of means are moved so that the resamples' mean is the reported
    figure, since resampling small classes shifts F1 by itself. Resample k follows from (seed, k);
    one draw serves all figures. The spread is that of other pictures of the same classes, for this
    one model; pictures count as independent.

    Args:
        judged, tree, class_sizes: as for `summarise`.
        resamples: how many draws; 1,000 over 200,000 pictures take seconds.

    Returns:
        (low, high) of species_top1, disease_top1, disease_top3, cascade_top1, routed_top1, macro_f1
        and tail_f1 (NaN where there is no tail) as `summarise` has them; F1 per class, float64
        (classes, 2), NaN for a class without pictures.
    """
    order = np.argsort(judged.class_idx, kind="stable")
    truth, answer = judged.class_idx[order].astype(np.int32), judged.joint[order].astype(np.int32)
    present, starts, counts = np.unique(truth, return_index=True, return_counts=True)
    first, width = (np.repeat(values, counts).astype(np.int32) for values in (starts, counts))
    species = tree.class_species[truth]
    several = np.diff(tree.offsets)[species] > 1
    several = several if several.any() else np.ones(len(truth), bool)
    right = {
        "species_top1": judged.species[order] == species,
        "disease_top1": judged.rank[order] == 0,
        "disease_top3": judged.rank[order] < 3,
        "cascade_top1": answer == truth,
        "routed_top1": judged.routed[order] == truth,
    }
    hit, tail = right["cascade_top1"], class_sizes[present] <= TAIL_AT_MOST
    # one number per picture, a bit per figure, so that one count of numbers serves all figures
    counted = [several if name.startswith("disease") else np.ones_like(hit) for name in right]
    hits = [bits & among for bits, among in zip(right.values(), counted, strict=True)]
    flags = sum(bits.astype(np.int64) << k for k, bits in enumerate(hits))
    bits = (np.arange(1 << len(right))[:, None] >> np.arange(len(right))) & 1
    out_of = np.sum(counted, axis=1)

    def figures(index: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, list[float]]:
        hits = np.add.reduceat(hit[index], starts, dtype=np.int32)
        named = np.bincount(said, minlength=tree.num_classes)[present]
        f1 = (2 * hits / (counts + named)).astype(np.float32)
        shares = np.bincount(flags[index], minlength=len(bits)) @ bits / out_of
        of_tail = f1[tail].mean(dtype=np.float64) if tail.any() else np.nan
        return f1, [*shares, f1.mean(dtype=np.float64), of_tail]

    reported = np.array(figures(np.arange(len(truth)), answer)[1])
    f1, means = (
        np.empty((resamples, len(present)), np.float32),
        np.empty((resamples, len(reported))),
    )
    for k in range(resamples):
        index, lent = _draw_again(first, width, np.random.default_rng([seed, k]))
        said = answer[index]
        said[lent] = np.where(hit[index[lent]], truth[lent], said[lent])
        f1[k], means[k] = figures(index, said)
    moved = np.clip(np.quantile(means, ENDS, axis=0) - means.mean(0) + reported, 0, 1)
    per_class = np.full((tree.num_classes, 2), np.nan)
    for a in range(0, len(present), 256):  # by piece: a sorted copy of all would double the memory
        per_class[present[a : a + 256]] = np.quantile(f1[:, a : a + 256], ENDS, axis=0).T
    names = [*right, "macro_f1", "tail_f1"]
    return dict(zip(names, map(tuple, moved.T.tolist()), strict=True)), per_class


def _draw_again(
    first: np.ndarray, width: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a picture for each place from its class's `first` to `first + width`, or from all.

    Returns:
        int32 (N,), the pictures; int64 (L,), the places whose picture is any of the split's.
    """
    drawn = (rng.random(len(first), dtype=np.float32) * (width + np.float32(1))).astype(np.int32)
    index = first + np.minimum(drawn, width - 1)
    lent = np.flatnonzero(drawn >= width)
    index[lent] = rng.integers(0, len(first), len(lent))
    return index, lent


def wilson(hits: np.ndarray, n: np.ndarray, z: float = 1.96) -> np.ndarray:
    """Wilson's score interval of a share; unlike the bootstrap it does not shrink to a point where
    all or none are right.

    Args:
        hits, n: int (K,), hits of n.
        z: normal quantile; 1.96 = 95 %.

    Returns:
        float64 (K, 2), 0..1; NaN where n is 0.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        share, by = hits / n, 1 + z * z / n
        middle, half = (
            (share + z * z / (2 * n)) / by,
            z / by * np.sqrt(share * (1 - share) / n + z * z / (4.0 * n * n)),
        )
    return np.clip(np.stack([middle - half, middle + half], axis=1), 0, 1)


# endregion


def for_json(metrics: dict[str, object]) -> dict[str, object]:
    """Return the same figures with None for NaN, which JSON has no word for."""
    return {
        key: None if isinstance(value, float) and value != value else value
        for key, value in metrics.items()
    }


def auroc(known: np.ndarray, strange: np.ndarray) -> float:
    """Area under the ROC curve: the chance that an OOD picture scores higher than a known one,
    ties counting half.

    Args:
        known, strange: float (N,), (M,); larger = further out of distribution.

    Returns:
        0..1.
    """
    both = np.concatenate([known, strange])
    values, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share the mean rank
    wins = ranks[len(known) :].sum() - len(strange) * (len(strange) + 1) / 2
    return float(wins / (len(known) * len(strange)))
