"""Heads trained again on cached features, for the rare classes.

The backbone stays as it is: rare classes suffer in the classifier first (Kang et al. 2020). A
method corrects for imbalance once; which one, and whether two of them over-correct, is measured by
tests/benchmarks/tail.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.console import fail, progress
from common.train.cached_features import CachedViews
from common.train.dataset import EpochSampler
from common.train.engine import Compute, seed_step
from common.train.heads import PADDING
from common.train.losses import focal_loss, log_priors
from common.train.metrics import f1_per_class
from common.train.model import SwinHierarchical
from common.train.shots import Answers

GRID = tuple(round(0.1 * k, 1) for k in range(21))  # of tau

# region methods


@dataclass(frozen=True)
class Method:
    """What is learned again, and how imbalance is corrected.

    Attributes:
        learns: `heads` (neck and heads, from where they are), `scales` (one factor per class),
            `tau` (nothing: weights are scaled by their length to the power -tau, tau chosen on val)
            or `nothing`.
        prior: times log n_c that is added to the logits while training, and left out afterwards.
        sampling: `shuffle`, or `balanced`: every class as often as any other.
    """

    learns: str
    prior: float = 0.0
    sampling: str = "shuffle"


METHODS: dict[str, Method] = {
    "plain": Method("nothing"),
    "cross_entropy": Method("heads"),
    "balanced_sampling": Method(
        "heads", sampling="balanced"
    ),  # cRT of Kang et al. 2020, from trained heads
    "balanced_softmax": Method("heads", prior=1.0),  # Ren et al. 2020, equation 4
    "lws": Method("scales", sampling="balanced"),  # Kang et al. 2020, section 4
    "tau": Method("tau"),  # Kang et al. 2020, equation 4
}


@dataclass(frozen=True)
class Schedule:
    """How heads are trained again: AdamW, cosine from `lr` to 0.

    The loss is cross-entropy where gamma is 0 and alpha 1, else focal: focusing and a prior would
    both push at rare classes."""

    epochs: int = 20
    lr: float = 1e-3
    batch_size: int = 256
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    disease_weight: float = 1.0
    gamma: float = 0.0
    alpha: float = 1.0
    smoothing: float = 0.0
    heads: str = "all"


def retrain_heads(
    model: SwinHierarchical,
    train: CachedViews,
    val: CachedViews,
    method: str | Method,
    counts: np.ndarray,
    schedule: Schedule,
    seed: int,
    compute: Compute,
    weights: np.ndarray | None = None,
) -> dict[str, Tensor]:
    """Train the heads again on cached features; the model itself is left as it was.

    Every draw is a function of (seed, epoch, step), so that the result is the same each time.

    Args:
        model: on its device, its heads trained; hierarchical or flat.
        train, val: features of the pictures to learn from, and of those that choose tau.
        method: a name of `METHODS`, or a method.
        counts: int (leaves,), train pictures per class.
        schedule: how to train.
        seed: of the run.
        compute: device.
        weights: float (N,) sampling weights in place of the method's sampling, e.g. of
            `dataset.rare_weights`.

    Returns:
        the new state of neck and heads, on the CPU: `model.load_state_dict(state, strict=False)`
        takes it.

    Raises:
        SystemExit: for an unknown method, or a loss that is not a number.
    """
    if isinstance(method, str):
        if method not in METHODS:
            fail(f"there is no tail method `{method}`. Methods: {', '.join(METHODS)}.")
        method = METHODS[method]
    before = head_state(model)
    try:
        if method.learns == "tau":
            species, class_idx = choose_tau(model, val, compute)
            parts = {
                "species": (species, 0.0),
                "disease": (0.0, class_idx),
                "all": (species, class_idx),
            }[schedule.heads]
            _multiply(model, *lengths(model, *parts))
        elif method.learns == "scales":
            scales = _Scales(model).to(compute.device)
            _train(model, scales, train, method, counts, schedule, seed, compute, weights)
            _multiply(model, scales.species, scales.class_idx)
        elif method.learns == "heads":
            _train(model, None, train, method, counts, schedule, seed, compute, weights)
        return head_state(model)
    finally:
        model.load_state_dict(before, strict=False)


def head_state(model: SwinHierarchical) -> dict[str, Tensor]:
    """Copy of everything but the backbone, on the CPU: {name: tensor}."""
    return {
        key: value.detach().cpu().clone()
        for key, value in model.state_dict().items()
        if not key.startswith("backbone.")
    }


class _Scales(nn.Module):
    """LWS: a factor per class on weights that stay as they are."""

    def __init__(self, model: SwinHierarchical) -> None:
        super().__init__()
        self.species = nn.Parameter(torch.ones(model.tree.num_species))
        self.class_idx = nn.Parameter(torch.ones(model.tree.num_classes))


@torch.no_grad()
def _multiply(model: SwinHierarchical, species: Tensor, class_idx: Tensor) -> None:
    parts = [(model.disease_heads, class_idx)] + (
        [] if model.flat else [(model.species_head, species)]
    )
    for head, factor in parts:
        head.weight.mul_(factor[:, None].to(head.weight.device))
        head.bias.mul_(factor.to(head.bias.device))


# endregion

# region training


def adjusted_loss(
    model: SwinHierarchical,
    hidden: Tensor,
    class_idx: Tensor,
    log_prior: Sequence[Tensor],
    scales: _Scales | None,
    schedule: Schedule,
) -> Tensor:
    """Loss over logits that are scaled by `scales` and raised by `log_prior`.

    Args:
        hidden: float (N, hidden), after the neck.
        leaf: int64 (N,), true leaves.
        log_prior: float (species,), float (leaves,).
        scales: factors per class, or None.
        schedule: gives the loss.

    Returns:
        float32 (N,).
    """
    focal = {"gamma": schedule.gamma, "alpha": schedule.alpha, "smoothing": schedule.smoothing}
    heads, (species_prior, class_prior) = model.disease_heads, log_prior
    if model.flat:
        logits = (
            heads.all_logits(hidden)
            if scales is None
            else heads.all_logits(hidden) * scales.class_idx
        )
        return focal_loss(logits + class_prior, class_idx, **focal)
    species = model.class_species[class_idx]
    loss = hidden.new_zeros(len(class_idx))
    if schedule.heads in ("all", "species"):
        logits = (
            model.species_logits(hidden)
            if scales is None
            else model.species_logits(hidden) * scales.species
        )
        loss = loss + focal_loss(logits + species_prior, species, **focal)
    if schedule.heads in ("all", "disease") and heads.widest > 1:
        at, real = heads.class_of[species], heads.real[species]
        logits = model.disease_logits(hidden, species)
        logits = (logits if scales is None else logits * scales.class_idx[at]) + class_prior[at]
        logits = logits.masked_fill(~real, PADDING)
        loss = loss + schedule.disease_weight * focal_loss(
            logits, class_idx - at[:, 0], classes=heads.sizes[species], **focal
        )
    return loss


def _train(
    model: SwinHierarchical,
    scales: _Scales | None,
    train: CachedViews,
    method: Method,
    counts: np.ndarray,
    schedule: Schedule,
    seed: int,
    compute: Compute,
    weights: np.ndarray | None,
) -> None:
    if weights is None and method.sampling == "balanced":
        weights = 1.0 / np.maximum(counts, 1)[train.rows["class_idx"][0]]
    sampler = EpochSampler(train.count, schedule.batch_size, seed, weights)
    was = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    learned = list(scales.parameters()) if scales else model.head_parameters(schedule.heads)
    for parameter in learned:
        parameter.requires_grad_(True)
    model.neck.train(scales is None)
    groups = [
        {
            "params": [p for p in learned if (p.ndim > 1) == decays],
            "weight_decay": schedule.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=schedule.lr, betas=(0.9, 0.999), fused=True
    )
    prior = [method.prior * part.to(compute.device) for part in log_priors(model.tree, counts)]
    steps = schedule.epochs * len(sampler)
    total = torch.zeros((), device=compute.device)
    for epoch in progress(range(schedule.epochs), desc="heads", unit="epoch"):
        sampler.epoch = epoch
        for step, items in enumerate(sampler):
            features, class_idx = (
                part.to(compute.device, non_blocking=True) for part in train.batch(items)
            )
            seed_step(seed, epoch, step)  # dropout of the neck
            for group in optimizer.param_groups:
                group["lr"] = (
                    schedule.lr
                    * 0.5
                    * (1 + math.cos(math.pi * (epoch * len(sampler) + step) / steps))
                )
            loss = adjusted_loss(
                model, model.neck(features), class_idx, prior, scales, schedule
            ).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(learned, schedule.clip_norm)
            optimizer.step()
            total += loss.detach()
        if not math.isfinite(float(total)):
            fail(
                f"the loss of the tail's heads is {float(total)} in epoch {epoch + 1}. Try a "
                f"tenth of the rate."
            )
    model.neck.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(was[name])


# endregion

# region tau


@torch.inference_mode()
def choose_tau(
    model: SwinHierarchical, val: CachedViews, compute: Compute, grid: Iterable[float] = GRID
) -> tuple[float, float]:
    """Choose the power of each head on val: the species' and the diseases', by macro F1; of equals
    the smallest.

    Returns:
        tau of the species head (0 for a flat model, which has none), tau of the disease heads (by
        leaf for a flat model, by disease given the true species otherwise).
    """
    grid, heads, offsets = list(grid), model.disease_heads, model.tree.offsets
    truth, species, classes = [], [], []
    by_species, by_class = zip(*(lengths(model, tau, tau) for tau in grid), strict=True)
    for features, class_idx in val.batches():
        hidden, class_idx = model.neck(features.to(compute.device)), class_idx.to(compute.device)
        logits = heads.all_logits(hidden)
        if not model.flat:
            own = model.class_species[class_idx]
            scores = model.species_logits(hidden)
            species.append(
                torch.stack([(scores * factor).argmax(1) for factor in by_species]).cpu().numpy()
            )
            other = model.class_species[None] != own[:, None]
            classes.append(
                torch.stack([(logits * f).masked_fill(other, PADDING).argmax(1) for f in by_class])
                .cpu()
                .numpy()
            )
        else:
            classes.append(
                torch.stack([(logits * factor).argmax(1) for factor in by_class]).cpu().numpy()
            )
        truth.append(class_idx.cpu().numpy())
    true = np.concatenate(truth)

    def best(answers: list[np.ndarray], of: np.ndarray, classes: int) -> float:
        scores = [
            float(np.nanmean(f1_per_class(of, row, classes)))
            for row in np.concatenate(answers, axis=1)
        ]
        return grid[int(np.argmax(scores))]

    tau = best(classes, true, int(offsets[-1]))
    return (
        0.0 if model.flat else best(species, model.tree.class_species[true], model.tree.num_species)
    ), tau


@torch.no_grad()
def lengths(model: SwinHierarchical, species: float, class_idx: float) -> tuple[Tensor, Tensor]:
    """Factor per class, length of its weights to the power -tau, of geometric mean 1 so that the
    heads stay as sure as they were.

    Args:
        species, leaf: tau of either head.

    Returns:
        float (species,), of ones for a flat model; float (leaves,).
    """

    def factor(weight: Tensor, tau: float) -> Tensor:
        log = weight.norm(dim=1).clamp_min(1e-12).log()
        return (tau * (log.mean() - log)).exp()

    return (
        torch.ones(model.tree.num_species)
        if model.flat
        else factor(model.species_head.weight, species),
        factor(model.disease_heads.weight, class_idx),
    )


# endregion


# region judging


@torch.inference_mode()
def answer(
    model: SwinHierarchical,
    cached: CachedViews,
    compute: Compute,
    state: Mapping[str, Tensor] | None = None,
) -> Answers:
    """Let the heads answer for cached features; `state`, where given, in place of the model's own
    neck and heads."""
    before: dict[str, Tensor] = head_state(model) if state else {}
    model.load_state_dict(dict(state or {}), strict=False)
    model.neck.eval()
    parts = []
    for features, class_idx in cached.batches():
        hidden = model.neck(features.to(compute.device))
        probs = model.probabilities(hidden, model.species_logits(hidden))
        own = model.class_species[class_idx.to(probs.device)]
        by_species = probs.new_zeros(len(probs), model.tree.num_species).index_add_(
            1, model.class_species, probs
        )
        given = probs.masked_fill(model.class_species[None] != own[:, None], -1.0).argmax(1)
        parts.append(
            [class_idx.numpy()]
            + [t.cpu().numpy() for t in (by_species.argmax(1), given, probs.argmax(1))]
        )
    model.load_state_dict(before, strict=False)
    return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))


# endregion
