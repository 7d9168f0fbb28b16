"""Focal loss and cross-entropy, over all classes or over each species' own diseases; the log-prior
of the classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.classes import ClassTree
from common.train.recipes import Recipe


def class_loss(
    logits: Tensor, target: Tensor, recipe: Recipe, classes: Tensor | None = None
) -> Tensor:
    """Loss of the recipe's kind with its label smoothing, one value per sample.

    Args:
        logits: float (N, C).
        target: int64 (N,).
        classes: int64 (N,), how many of the C columns are real for each row, as for `focal_loss`.

    Returns:
        float32 (N,).
    """
    if recipe.loss == "cross_entropy":
        return cross_entropy(logits, target, smoothing=recipe.label_smoothing, classes=classes)
    return focal_loss(
        logits,
        target,
        gamma=recipe.focal_gamma,
        alpha=recipe.focal_alpha,
        smoothing=recipe.label_smoothing,
        classes=classes,
    )


def cross_entropy(
    logits: Tensor, target: Tensor, *, smoothing: float = 0.0, classes: Tensor | None = None
) -> Tensor:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7), one value per sample; no
    (N, C) target is made.

    Args:
        logits: float (N, C).
        target: int64 (N,).
        smoothing: share of the target spread evenly over the classes, 0..1.
        classes: int64 (N,), how many of the C columns are real for each row; None: all are.

    Returns:
        float32 (N,).
    """
    log_probs = F.log_softmax(logits.float(), dim=1)
    loss = -log_probs.gather(1, target[:, None]).squeeze(1)
    if smoothing > 0:
        if classes is None:
            spread = -log_probs.mean(dim=1)
        else:
            padding = torch.arange(logits.shape[1], device=logits.device) >= classes[:, None]
            spread = -log_probs.masked_fill(padding, 0.0).sum(dim=1) / classes
        loss = (1.0 - smoothing) * loss + smoothing * spread
    return loss


def log_priors(tree: ClassTree, counts: np.ndarray) -> tuple[Tensor, Tensor]:
    """Log of the pictures per species and per class, to be added to the logits in training (Ren et
    al. 2020, equation 4).

    A species' pictures are divided by its number of classes: the model then answers for classes
    that come equally often, and a species of many classes comes more often than one of few. A class
    without pictures counts as one with one.

    Args:
        counts: int (classes,), pictures of the train split.

    Returns:
        float32 (species,), float32 (classes,).

    Raises:
        ValueError: where there is not one count per class.
    """
    if np.shape(counts) != (tree.num_classes,):
        raise ValueError(f"{tree.num_classes} classes, but counts of shape {np.shape(counts)}.")
    class_idx = np.maximum(np.asarray(counts, np.float64), 1.0)
    species = np.add.reduceat(class_idx, tree.offsets[:-1]) / np.diff(tree.offsets)
    return torch.from_numpy(np.log(species)).float(), torch.from_numpy(np.log(class_idx)).float()


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
    smoothing: float = 0.0,
    classes: Tensor | None = None,
) -> Tensor:
    """Focal loss, `-alpha * sum_c q_c (1 - p_c)^gamma log p_c`, one value per sample.

    For a hard target without smoothing it is equation 5 of Lin et al. 2017 with one alpha for all
    classes. It is linear in the target q, so that the loss of a mixed target is the mixture of the
    losses. gamma 0 and alpha 1 give cross-entropy.

    Args:
        logits: float (N, C).
        target: int64 (N,) class indices, or float (N, C) distributions.
        gamma: focusing exponent, >= 0.
        alpha: factor.
        smoothing: share of the target spread evenly over the classes, 0..1.
        classes: int64 (N,), how many of the C columns are real for each row (the first ones); the
            rest is padding that must hold very negative finite logits. None: all are.

    Returns:
        float32 (N,).
    """
    log_probs = F.log_softmax(logits.float(), dim=1)
    if target.dim() == 1:
        target = F.one_hot(target, logits.shape[1]).to(log_probs.dtype)
    if smoothing > 0:
        if classes is None:
            spread = torch.full_like(log_probs, 1.0 / logits.shape[1])
        else:
            real = torch.arange(logits.shape[1], device=logits.device) < classes[:, None]
            spread = real / classes[:, None]
        target = target * (1.0 - smoothing) + spread * smoothing
    weight = (
        target if gamma == 0 else target * (1.0 - log_probs.exp()).clamp_min(1e-7) ** gamma
    )  # the root of 0 has no slope
    return -alpha * (weight * log_probs).sum(dim=1)
