"""Focal loss for hard and soft targets, over all classes or over each species' own diseases."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def focal_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float = 0.25, smoothing: float = 0.0,
               classes: Tensor | None = None) -> Tensor:
    """Focal loss, `-alpha * sum_c q_c (1 - p_c)^gamma log p_c`, one value per sample.

    For a hard target without smoothing it is equation 5 of Lin et al. 2017 with one alpha for all classes. It is linear
    in the target q, so that the loss of a mixed target is the mixture of the losses. gamma 0 and alpha 1 give
    cross-entropy.

    Args:
        logits: float (N, C).
        target: int64 (N,) class indices, or float (N, C) distributions.
        gamma: focusing exponent, >= 0.
        alpha: factor.
        smoothing: share of the target spread evenly over the classes, 0..1.
        classes: int64 (N,), how many of the C columns are real for each row (the first ones); the rest is padding that
            must hold very negative finite logits. None: all are.

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
    weight = target if gamma == 0 else target * (1.0 - log_probs.exp()).clamp_min(1e-7) ** gamma  # the root of 0 has no slope
    return -alpha * (weight * log_probs).sum(dim=1)
