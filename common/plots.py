"""Pictures and per-class tables of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.metrics import Judged, f1_per_class
from common.taxonomy import ClassTree


def _pyplot() -> Any:
    import matplotlib  # slow to import, and loader workers never draw

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def tail_f1(judged: Judged, tree: ClassTree, class_sizes: np.ndarray, at_most: int = 80) -> dict[str, float]:
    """F1 of each class with at most so many pictures: {"apple/scab": 0.8}; classes absent from the split are left out."""
    f1 = f1_per_class(judged.leaf, judged.joint, tree.num_leaves)
    return {tree.leaf_name(i): float(f1[i]) for i in range(tree.num_leaves) if class_sizes[i] <= at_most and f1[i] == f1[i]}


def class_rows(judged: Judged, tree: ClassTree, class_sizes: np.ndarray) -> list[tuple[str, int, int, str, str, str]]:
    """Per class, rarest first: name, pictures in all, pictures judged, precision, recall, F1."""
    n = tree.num_leaves
    hits = np.bincount(judged.leaf[judged.leaf == judged.joint], minlength=n)
    present, said = np.bincount(judged.leaf, minlength=n), np.bincount(judged.joint, minlength=n)
    f1 = f1_per_class(judged.leaf, judged.joint, n)

    def share(part: int, whole: int) -> str:
        return f"{part / whole:.3f}" if whole else "-"

    return [(tree.leaf_name(i), int(class_sizes[i]), int(present[i]), share(hits[i], said[i]), share(hits[i], present[i]),
             f"{f1[i]:.3f}" if f1[i] == f1[i] else "-") for i in np.argsort(class_sizes, kind="stable")]


def curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, accuracy, macro F1 and learning rate over the epochs, phase boundaries marked (2 x 2, PNG)."""
    plt = _pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    x = [row["epoch"] for row in history]
    plans = [("loss", [("train_loss", "train (focal)"), ("species_nll", "val, species (log-likelihood)"),
                       ("disease_nll", "val, disease (log-likelihood)")]),
             ("accuracy on val", [("species_top1", "species"), ("disease_top1", "disease given species"),
                                  ("cascade_top1", "both right")]),
             ("F1 on val", [("macro_f1", "all classes"), ("tail_f1", "tail (80 pictures or fewer)")]),
             ("learning rate of the heads", [("lr", "")])]
    for axis, (title, series) in zip(axes.flat, plans, strict=True):
        for key, label in series:
            axis.plot(x, [float("nan") if row[key] is None else row[key] for row in history], marker="o", markersize=3, label=label or None)
        for before, after in zip(history, history[1:], strict=False):
            if before["phase"] != after["phase"]:
                axis.axvline(after["epoch"] - 0.5, color="grey", linestyle=":", linewidth=1)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if len(series) > 1:
            axis.legend(fontsize=8)
    axes[1, 1].set_yscale("log")
    top = axes[0, 0].get_ylim()[1]
    for i, row in enumerate(history):
        if i == 0 or history[i - 1]["phase"] != row["phase"]:
            axes[0, 0].text(row["epoch"] + 0.05, top * 0.98, row["phase"], fontsize=7, va="top", rotation=90, color="grey")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def confusion(judged: Judged, tree: ClassTree, path: Path) -> None:
    """Draw the confusion matrix between species, rows summing to 1 (PNG)."""
    plt = _pyplot()
    n = tree.num_species
    matrix = np.zeros((n, n))
    np.add.at(matrix, (tree.leaf_species[judged.leaf], judged.species), 1)
    matrix /= np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(16.0, 3.0 + 0.35 * n)
    figure, axis = plt.subplots(figsize=(side + 1, side), constrained_layout=True)
    shown = axis.imshow(matrix, cmap="Greens", vmin=0, vmax=1)
    if n <= 60:
        axis.set_xticks(range(n), tree.species, rotation=90, fontsize=8)
        axis.set_yticks(range(n), tree.species, fontsize=8)
    if n <= 20:
        for i, j in zip(*np.nonzero(matrix >= 0.005), strict=True):
            axis.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", fontsize=7,
                      color="white" if matrix[i, j] > 0.5 else "black")
    axis.set(xlabel="predicted species", ylabel="true species", title="Species on val (row = 1)")
    figure.colorbar(shown, shrink=0.8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
