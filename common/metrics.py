"""What a hierarchical classifier is measured by, from its joint probabilities."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from common.decide import joint_leaf, routed_leaf, species_probabilities
from common.taxonomy import ClassTree


@dataclass
class Judged:
    """Per-picture outcomes, so that a split of any size is judged batch by batch. All arrays are (N,).

    Attributes:
        leaf, joint, routed: int64; the true leaf, the joint and the routed decision.
        species: int64; the predicted species.
        rank: int64; how many diseases of the true species are put before the true one (0 = right).
        confidence: float64; probability of the joint decision.
        species_nll, disease_nll: float64; -log P(true species), -log P(true disease given the true species).
    """

    leaf: np.ndarray
    joint: np.ndarray
    routed: np.ndarray
    species: np.ndarray
    rank: np.ndarray
    confidence: np.ndarray
    species_nll: np.ndarray
    disease_nll: np.ndarray


def judge(probabilities: np.ndarray, leaf: np.ndarray, tree: ClassTree) -> Judged:
    """Judge joint probabilities against the truth.

    Args:
        probabilities: float (N, leaves), rows sum to 1.
        leaf: int (N,), true leaves.
        tree: the classes.

    Returns:
        one outcome per picture.
    """
    rows, leaf = np.arange(len(leaf)), np.asarray(leaf, np.int64)
    true_species = tree.leaf_species[leaf]
    by_species = species_probabilities(probabilities, tree)
    same_species = tree.leaf_species[None, :] == true_species[:, None]
    own = probabilities[rows, leaf]
    joint = joint_leaf(probabilities, tree)
    return Judged(
        leaf=leaf, joint=joint, routed=routed_leaf(probabilities, tree), species=by_species.argmax(1),
        rank=((probabilities > own[:, None]) & same_species).sum(1), confidence=probabilities[rows, joint].astype(np.float64),
        species_nll=-np.log(np.maximum(by_species[rows, true_species], 1e-12), dtype=np.float64),
        disease_nll=-np.log(np.maximum(own / np.maximum(by_species[rows, true_species], 1e-30), 1e-12), dtype=np.float64))


def join(parts: list[Judged]) -> Judged:
    """Put batches of outcomes together."""
    return Judged(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Judged)})


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


def summarise(judged: Judged, tree: ClassTree, class_sizes: np.ndarray, tail_at_most: int = 80) -> dict[str, float]:
    """Sum outcomes up as the figures of the reports.

    Args:
        judged: outcomes of a split.
        tree: the classes.
        class_sizes: int (leaves,), pictures per class over all splits.
        tail_at_most: a class with at most so many pictures belongs to the tail.

    Returns:
        n; species_top1; disease_top1, disease_top3 given the true species, over species with two diseases or more;
        cascade_top1 (joint decision right, nothing given), routed_top1; macro_f1 over leaves, tail_f1 over the tail's
        leaves (NaN where there is none); species_nll, disease_nll. Fractions are 0..1.
    """
    true_species = tree.leaf_species[judged.leaf]
    several = np.diff(tree.offsets)[true_species] > 1
    ranks = judged.rank[several] if several.any() else judged.rank
    f1 = f1_per_class(judged.leaf, judged.joint, tree.num_leaves)
    tail = f1[(class_sizes <= tail_at_most) & ~np.isnan(f1)]
    return {
        "n": len(judged.leaf),
        "species_top1": float((judged.species == true_species).mean()),
        "disease_top1": float((ranks == 0).mean()),
        "disease_top3": float((ranks < 3).mean()),
        "cascade_top1": float((judged.joint == judged.leaf).mean()),
        "routed_top1": float((judged.routed == judged.leaf).mean()),
        "macro_f1": float(np.nanmean(f1)),
        "tail_f1": float(tail.mean()) if len(tail) else float("nan"),
        "tail_classes": len(tail),
        "species_nll": float(judged.species_nll.mean()),
        "disease_nll": float(judged.disease_nll[several].mean()) if several.any() else 0.0,
    }


def for_json(metrics: dict[str, object]) -> dict[str, object]:
    """Return the same figures with None for NaN, which JSON has no word for."""
    return {key: None if isinstance(value, float) and value != value else value for key, value in metrics.items()}


def auroc(known: np.ndarray, strange: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a stranger scores higher than a known picture, ties counting half.

    Args:
        known, strange: float (N,), (M,); larger = stranger.

    Returns:
        0..1.
    """
    both = np.concatenate([known, strange])
    values, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share the mean rank
    wins = ranks[len(known):].sum() - len(strange) * (len(strange) + 1) / 2
    return float(wins / (len(known) * len(strange)))
