"""Outcomes of a made-up model over a made-up tree, without the matrix of probabilities, so that any size is quick."""

from __future__ import annotations

import numpy as np

from common.classes import ClassTree
from common.train.metrics import Judged


def tree_of(species: int, leaves: int) -> ClassTree:
    """`species` species that share `leaves` leaves as evenly as may be."""
    sizes = np.diff(np.linspace(0, leaves, species + 1).astype(int))
    return ClassTree(tuple(f"plant_{s}" for s in range(species)), tuple(tuple(f"ill_{d}" for d in range(n)) for n in sizes))


def outcomes(tree: ClassTree, n: int, accuracy: float = 0.8, seed: int = 0) -> tuple[Judged, np.ndarray]:
    """Outcomes of n pictures with a long tail, and pictures per class; wrong answers are neighbours in index order."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, tree.num_leaves + 1)
    leaf = rng.choice(tree.num_leaves, n, p=weights / weights.sum())
    right = rng.random(n) < accuracy
    joint = np.where(right, leaf, (leaf + rng.integers(1, 4, n)) % tree.num_leaves)
    routed = np.where(rng.random(n) < 0.95, joint, (leaf + 5) % tree.num_leaves)
    species, truth = tree.leaf_species[routed], tree.leaf_species[leaf]
    rank = ((joint != leaf) & (tree.leaf_species[joint] == truth)) * rng.integers(1, 5, n)
    losses = rng.random((3, n))
    return (Judged(leaf, joint, routed, np.where(right, joint, routed), species, rank, (joint != leaf) * 1, *losses),
            np.bincount(leaf, minlength=tree.num_leaves) * 5 + 3)
