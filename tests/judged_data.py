"""Outcomes of a made-up model over a made-up tree, without the matrix of probabilities, so that any
size is quick.
"""

import numpy as np

from common.classes import ClassTree
from common.train.metrics import Judged


def tree_of(species: int, classes: int) -> ClassTree:
    """`species` species that share `classes` classes as evenly as possible."""
    sizes = np.diff(np.linspace(0, classes, species + 1).astype(int))
    return ClassTree(
        tuple(f"plant_{s}" for s in range(species)),
        tuple(tuple(f"ill_{d}" for d in range(n)) for n in sizes),
    )


def outcomes(
    tree: ClassTree, n: int, accuracy: float = 0.8, seed: int = 0
) -> tuple[Judged, np.ndarray]:
    """Outcomes of n pictures with a long tail, and pictures per class; wrong answers are neighbours
    in index order.
    """
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, tree.num_classes + 1)
    class_idx = rng.choice(tree.num_classes, n, p=weights / weights.sum())
    right = rng.random(n) < accuracy
    joint = np.where(right, class_idx, (class_idx + rng.integers(1, 4, n)) % tree.num_classes)
    routed = np.where(rng.random(n) < 0.95, joint, (class_idx + 5) % tree.num_classes)
    species, truth = tree.class_species[routed], tree.class_species[class_idx]
    rank = ((joint != class_idx) & (tree.class_species[joint] == truth)) * rng.integers(1, 5, n)
    losses = rng.random((4, n))
    return (
        Judged(
            class_idx,
            joint,
            routed,
            np.where(right, joint, routed),
            species,
            rank,
            *losses,
        ),
        np.bincount(class_idx, minlength=tree.num_classes) * 5 + 3,
    )
