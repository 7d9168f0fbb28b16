"""The running average of a model's weights over the steps of a phase."""

from __future__ import annotations

import copy

import torch

from common.train.model import SwinHierarchical


class Average:
    """Exponential moving average (EMA): `average = d x average + (1 - d) x weights` after each
    step.

    d grows from 0.1 to `decay` with the steps of the phase, `min(decay, (1 + t) / (10 + t))`, so
    that the weights from before training are soon forgotten. Buffers, such as the statistics of
    batch norms, are taken as they are. A phase ends with the average as the model, so that the next
    one, whose frozen parts never change, starts from what was judged."""

    def __init__(self, model: SwinHierarchical, decay: float) -> None:
        """Copy the model; the average is on its device."""
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: SwinHierarchical, step: int) -> None:
        """Take in the weights after step `step` of the phase, counted from 0."""
        share = 1.0 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.model.parameters()), [p.detach() for p in model.parameters()], share
        )
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    @torch.no_grad()
    def give(self, model: SwinHierarchical) -> None:
        """Make the average the model's weights."""
        for theirs, mine in zip(model.parameters(), self.model.parameters(), strict=True):
            theirs.copy_(mine)
