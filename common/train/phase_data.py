"""What a phase learns from: the order of its images, and cached features while its backbone stands
still.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.train.augment import draw_mix
from common.train.cached_features import CachedViews, Extraction, cache_eval, cache_views
from common.train.compute import World
from common.train.dataset import (
    EpochSampler,
    Organized,
    TrainViews,
    balanced_weights,
    boost_weights,
    rare_weights,
)
from common.train.loop import step_draws
from common.train.machine import Setup
from common.train.model import SwinHierarchical
from common.train.recipes import Phase, Recipe


def phase_sampler(
    phase: Phase, data: Organized, recipe: Recipe, seed: int, world: World
) -> EpochSampler:
    """The order in which a phase sees the train split, by its way of sampling."""
    split = data.splits["train"]
    weigh = {"rare": rare_weights, "boost": boost_weights}.get(phase.sampling)
    weights = weigh(split, data.class_sizes, recipe) if weigh else None
    if phase.sampling == "balanced":  # over what the phase learns
        flat = recipe.classes == "flat"
        targets = split.class_idx if flat else data.tree.class_species[split.class_idx]
        weights = balanced_weights(targets)
    partners = partial(mix_partners, recipe, seed)
    return EpochSampler(len(split), recipe.batch_size, seed, weights, world, partners)


def mix_partners(recipe: Recipe, seed: int, epoch: int, step: int, count: int) -> np.ndarray | None:
    """With which row each row of a batch is mixed, int64 (count,), or None; the loaders of several
    processes must know before the step does.
    """
    rng = step_draws(seed, epoch, step)[1]
    mix = draw_mix(count, recipe.image_size, recipe, rng, torch.device("cpu"))
    return mix.partner.numpy() if mix.share < 1 else None


def cache_phase(
    phase: Phase, model: SwinHierarchical, setup: Setup, folder: Path
) -> tuple[CachedViews, "_ShareOfFeatures"]:
    """Features of the train views, and this process's share of val's in batches, under a frozen
    backbone; stored in `folder`/features.
    """
    extraction = Extraction(
        model,
        setup.compute,
        device_batch=setup.args.device_batch,
        workers=setup.args.workers,
        manifest_hash=setup.data.manifest_hash,
        world=setup.world,
    )
    train, val = setup.data.splits["train"], setup.data.splits["val"]
    seed, stored = setup.args.seed, folder / "features"
    views = TrainViews(train, setup.recipe, seed)
    cached = cache_views(extraction, views, phase.cached_views, stored / "train")
    judged = cache_eval(extraction, val, stored / "val")
    return cached, _ShareOfFeatures(judged, setup.world)


class _ShareOfFeatures:
    """A process's share of cached features, in batches, each time it is iterated over."""

    def __init__(self, cached: CachedViews, world: World) -> None:
        self.cached, self.rows = cached, world.share(len(cached))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(self.rows.start, self.rows.stop, 1024):
            stop = min(start + 1024, self.rows.stop)
            yield self.cached.batch([(0, i, i) for i in range(start, stop)])
