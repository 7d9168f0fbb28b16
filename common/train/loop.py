"""The training loop: what happens to a batch between the loader and the optimizer's step.

One image travels `dataset.py` -> `augment.py` -> here. What surrounds the loop (signals, saves,
resume, memory that runs out, reports) is in `run.py`; this page knows nothing of it.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from common.train.augment import Mix, draw_mix, step_draws
from common.train.compute import (
    SINGLE_PROCESS,
    Compute,
    GradientSum,
    World,
    is_out_of_memory,
)
from common.train.losses import Teacher, hierarchical_loss
from common.train.metrics import Judged, join, judge
from common.train.model import SwinHierarchical
from common.train.optim import Average, rate_at, set_rates
from common.train.recipes import Phase, Recipe


@dataclass
class Work:
    """What a training step works with.

    Attributes:
        model: learns; its `features` turn a batch's inputs into float (N, F).
        optimizer, scaler: of this phase.
        compute: device and precision.
        phase, recipe: what is trained, at which rate, with which loss.
        batch_size: images of an optimizer step, over all processes.
        device_batch: images that go through the network at once; the rest is accumulated.
        first_epoch: epoch at which the phase begins.
        seed: of all randomness.
        average: moving average of the weights, or None.
        teacher: a trained model whose answers are targets as well, or None.
        world: the processes that share a batch.
        skip_nan: leave out a step whose gradient is not finite.
        gradients: their sum over the processes.
    """

    model: SwinHierarchical
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    compute: Compute
    phase: Phase
    recipe: Recipe
    batch_size: int
    device_batch: int
    first_epoch: int = 0
    seed: int = 0
    average: Average | None = None
    teacher: Teacher | None = None
    world: World = SINGLE_PROCESS
    skip_nan: bool = False
    gradients: GradientSum = field(init=False)

    def __post_init__(self) -> None:
        """Prepare the sum of the gradients over the processes."""
        self.gradients = GradientSum(self.parameters, self.world)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer changes."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]


class OutOfMemory(RuntimeError):
    """The device cannot hold `device_batch` images; nothing has changed, so the same step can be
    taken again in smaller pieces.
    """


def train_epoch(
    work: Work,
    batches: Iterable[tuple[Tensor, Tensor]],
    epoch: int,
    first_step: int,
    steps: int,
    take_step: Callable[[Work, Tensor, Tensor, Mix, int], Tensor] | None = None,
) -> Iterator[tuple[Tensor, float]]:
    """Train one epoch, a step each time the caller asks for the next one.

    Args:
        batches: images uint8 (N, size, size, 3) and classes int64 (N,), from `first_step` on.
        epoch: counted from 0 over all phases of the run.
        first_step, steps: where to begin, and how many steps an epoch has.
        take_step: called in place of `training_step`.

    Yields:
        loss float32 scalar on the device, not synchronised; seconds spent waiting for the batch.
    """
    compute, loader = work.compute, iter(batches)
    for step in range(first_step, steps):
        # 1. fetch a batch; it is copied while the device is still busy with the one before
        begin = time.perf_counter()
        images, class_idx = next(loader)
        waited = time.perf_counter() - begin
        images, class_idx = compute.upload(images), compute.upload(class_idx)
        # 2. set the rates, which follow the steps of the phase
        done = (epoch - work.first_epoch) * steps + step
        set_rates(work.optimizer, rate_at(work.phase, done, work.phase.epochs * steps))
        # 3. draw MixUp or CutMix for the whole batch, and take this process's rows of it
        seed, rng = step_draws(work.seed, epoch, step)
        mix = draw_mix(work.batch_size, work.recipe.image_size, work.recipe, rng)
        mix = mix.of_rows(work.world.share(work.batch_size)) if work.world.size > 1 else mix
        mix = replace(mix, partner=compute.upload(mix.partner))
        # 4. forward, backward, optimizer step
        loss = (take_step or training_step)(work, images, class_idx, mix, seed)
        # 5. moving average of the weights
        if work.average is not None:
            work.average.update(work.model, done)
        yield loss, waited


def training_step(work: Work, images: Tensor, class_idx: Tensor, mix: Mix, seed: int = 0) -> Tensor:
    """Take one optimizer step on one effective batch, `device_batch` images at a time.

    Args:
        images: what `model.features` takes, on the device: uint8 (N, size, size, 3).
        class_idx: int64 (N,), on the device.
        mix: a mixed image's loss is that of both partners, weighted, each under its own species.
        seed: of dropout and stochastic depth; each piece has draws of its own, whichever process
            computes it.

    Returns:
        float32 scalar on the device: mean loss of the batch; inf for a step that was left out.

    Raises:
        OutOfMemory: where memory ran out in any of the processes.
    """
    model, optimizer, scaler, world = work.model, work.optimizer, work.scaler, work.world
    optimizer.zero_grad(set_to_none=True)
    total, mine = torch.zeros((), device=images.device), len(mix.partner)
    first, full = world.share(work.batch_size).start, False
    try:
        for start in range(0, mine, work.device_batch):
            rows = slice(start, min(start + work.device_batch, mine))
            torch.manual_seed(seed + first + start)
            # 1. mix, then the backbone in the fast precision; no graph while it is frozen
            inputs = mix.apply(images, rows)
            with work.compute.autocast(), torch.set_grad_enabled(not work.phase.frozen):
                features = model.features(inputs)
            # 2. heads and loss in float32; the loss is linear in the target, so mixing is a sum
            loss = hierarchical_loss(model, features, class_idx[rows], work.phase, work.recipe)
            if mix.share < 1:
                partner = class_idx[mix.partner[rows]]
                other = hierarchical_loss(model, features, partner, work.phase, work.recipe)
                loss = mix.share * loss + (1 - mix.share) * other
            if work.teacher is not None:
                loss = work.teacher.blend(loss, model, features, inputs, work.phase, work.compute)
            # 3. backward; the gradients of the pieces add up to that of the batch's mean, and those
            # of the last piece are summed over the processes as they come
            loss = loss.sum() / work.batch_size
            work.gradients.armed = rows.stop == mine
            scaler.scale(loss).backward()
            total += loss.detach()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        full = True
    work.gradients.finish(keep=not full)
    if world.any(full):
        optimizer.zero_grad(set_to_none=True)
        raise OutOfMemory
    # 4. clip the gradient that the optimizer will see
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(work.parameters, work.recipe.clip_norm or math.inf)
    # 5. step; in fp16 the scaler skips one with an inf and halves its scale
    if work.skip_nan and not torch.isfinite(norm):
        scaler.update()
        return torch.full_like(total, math.inf)
    scaler.step(optimizer)
    scaler.update()
    return world.total(total)


@torch.inference_mode()
def evaluate(
    model: SwinHierarchical, batches: Iterable[tuple[Tensor, Tensor]], compute: Compute
) -> Judged:
    """Judge a model on a split.

    Args:
        batches: what `model.features` takes, and classes int64 (N,); every image once.

    Returns:
        one outcome per image, in order.
    """
    model.eval()
    parts: list[Judged] = []
    waiting: list[tuple[Callable[[], list[np.ndarray]], Tensor]] = []

    def judge_next() -> None:
        answers, class_idx = waiting.pop(0)
        probs, flat = answers()
        parts.append(judge(probs, class_idx.numpy(), model.tree, flat))

    for images, class_idx in batches:
        with compute.autocast():
            features = model.features(compute.upload(images))
        hidden = model.neck(features.float())
        probs = model.probabilities(hidden, model.species_logits(hidden))
        # the flat answer: all packed heads as one softmax
        flat = model.disease_heads.all_logits(hidden).argmax(dim=1)
        waiting.append((compute.download(probs, flat), class_idx))
        if len(waiting) > 1:  # a batch is judged while the device answers the next
            judge_next()
    while waiting:
        judge_next()
    return join(parts)
