"""The training step, evaluation, rates, precision: the numerical part of both trainers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.console import fail
from common.train.augment import Mix
from common.train.distil import Teacher
from common.train.distributed import ALONE, World
from common.train.losses import class_loss
from common.train.metrics import Judged, join, judge
from common.train.model import SwinHierarchical
from common.train.optim import set_rates
from common.train.recipes import Phase, Recipe

# region device and precision


@dataclass(frozen=True)
class Compute:
    """Where and in which precision a run computes.

    Attributes:
        device: torch device; ROCm counts as cuda.
        dtype: of autocast; float32 means autocast is off.
    """

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the backbone; heads and losses are float32 always."""
        return torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        )

    def scaler(self) -> torch.amp.GradScaler:
        """Return the gradient scaler: at work for fp16, passing through otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{self.device} ({name}), {str(self.dtype).removeprefix('torch.')}"


def choose_compute(
    device: str = "auto", precision: str = "auto", slow_in_bf16: bool = False
) -> Compute:
    """Choose device and precision: bf16 where the hardware has it, fp16 elsewhere on a GPU, fp32
    elsewhere on a CPU.

    Args:
        device: `auto`, or what torch.device takes.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
        slow_in_bf16: whether a CPU would rather train the network in fp32.

    Raises:
        SystemExit: for a device that is not there, or fp16 on a CPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        fail(
            f"--device {device} is unknown. Use auto, cpu, cuda or cuda:1 (ROCm is called cuda "
            f"too)."
        )
    if place.type == "cuda" and not torch.cuda.is_available():
        fail(
            "--device cuda, but torch sees no GPU: the driver is missing, or this torch was built "
            "for another one. "
            "README, Troubleshooting, says how to check; --device cpu runs without."
        )
    if precision == "auto":
        if place.type == "cuda":
            precision = (
                "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            )
        else:
            precision = "bf16" if _cpu_has_bf16() and not slow_in_bf16 else "fp32"
    if precision == "fp16" and place.type != "cuda":
        fail("--precision fp16 needs a GPU. On a CPU use bf16 or fp32.")
    return Compute(
        place, {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    )


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; oneDNN would emulate it elsewhere, slower than
    float32."""
    checks = (
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(check() for check in checks if check)


# endregion

# region randomness


def step_draws(seed: int, epoch: int, step: int) -> tuple[int, np.random.Generator]:
    """Make all randomness of a step a function of (seed, epoch, step): a seed for dropout, a
    generator for mixing."""
    rng = np.random.default_rng([seed, epoch, step, 1])
    return int(rng.integers(2**62)), rng


def seed_step(seed: int, epoch: int, step: int) -> np.random.Generator:
    """Seed torch with `step_draws`, for steps that are taken in one piece."""
    first, rng = step_draws(seed, epoch, step)
    torch.manual_seed(first)
    return rng


# endregion

# region the step


def hierarchical_loss(
    model: SwinHierarchical, features: Tensor, class_idx: Tensor, phase: Phase, recipe: Recipe
) -> Tensor:
    """Species loss plus disease loss of each sample under its own species' head, weighted by the
    phase.

    A flat model has one loss over all its leaves. Where the phase has a prior, log-priors are added
    to the logits (balanced softmax, Ren et al. 2020), as `model.use_counts` set them.

    Args:
        features: float (N, features), pooled.
        leaf: int64 (N,), true leaves.

    Returns:
        float32 (N,).
    """
    hidden, species = model.neck(features), model.class_species[class_idx]
    if model.flat:
        logits = model.disease_heads.all_logits(hidden)
        return phase.species_weight * class_loss(
            logits + model.class_prior if phase.prior else logits, class_idx, recipe
        )
    loss = features.new_zeros(len(class_idx), dtype=torch.float32)
    if phase.species_weight > 0:
        logits = model.species_logits(hidden)
        loss = loss + phase.species_weight * class_loss(
            logits + model.species_prior if phase.prior else logits, species, recipe
        )
    if phase.disease_weight > 0 and model.disease_heads.widest > 1:
        own = model.disease_heads.class_of[species]
        logits = model.disease_logits(hidden, species)
        logits = logits + model.class_prior[own] if phase.prior else logits
        loss = loss + phase.disease_weight * class_loss(
            logits, class_idx - own[:, 0], recipe, model.disease_heads.sizes[species]
        )
    return loss


class DeviceFull(RuntimeError):
    """The device's memory does not hold `device_batch` pictures; nothing was changed, the step can
    be taken again in smaller pieces."""


def training_step(
    model: SwinHierarchical,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    images: Tensor,
    class_idx: Tensor,
    mix: Mix,
    *,
    phase: Phase,
    recipe: Recipe,
    compute: Compute,
    rate: float,
    device_batch: int,
    seed: int = 0,
    skip_nan: bool = False,
    teacher: Teacher | None = None,
    world: World = ALONE,
    count: int | None = None,
) -> Tensor:
    """Take one optimizer step on one effective batch, `device_batch` pictures at a time.

    Args:
        images: uint8 (N, size, size, 3), or cached features float (N, F), on the device.
        leaf: int64 (N,), on the device.
        mix: how the batch is mixed; a mixed sample's loss is that of each partner, weighted, under
            its own species.
        rate: learning rate of the heads; the backbone's is its group's share of it.
        seed: of dropout and stochastic depth; each piece has its own draws, whichever process
            computes it.
        skip_nan: leave a step out whose gradient is not finite, instead of taking it.
        teacher: a trained model whose answers are targets, too.
        world: the processes among which the effective batch is shared; `count` is its size (None:
            len(images), all of it).

    Returns:
        float32 scalar on the device: the mean loss of the batch (not synchronised); inf for a step
        that was left out.

    Raises:
        DeviceFull: where memory ran out, in any of the processes.
    """
    set_rates(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    total, count, mine = (
        torch.zeros((), device=images.device),
        count or len(images),
        len(mix.partner),
    )
    first, full = world.share(count).start, False
    try:
        for start in range(0, mine, device_batch):
            rows = slice(start, min(start + device_batch, mine))
            torch.manual_seed(seed + first + start)
            # 1. backbone, in the fast precision; without a graph while it is frozen
            pixels = mix.apply(images, rows)
            with compute.autocast(), torch.set_grad_enabled(phase.backbone_scale > 0):
                features = pixels if pixels.dim() == 2 else model.features(pixels)
            # 2. heads and loss, in float32
            loss = mix.share * hierarchical_loss(model, features, class_idx[rows], phase, recipe)
            if mix.share < 1:
                loss = loss + (1 - mix.share) * hierarchical_loss(
                    model, features, class_idx[mix.partner[rows]], phase, recipe
                )
            if (
                teacher is not None and pixels.dim() == 4
            ):  # of cached features there is nothing to show it
                loss = teacher.blend(loss, model, features, pixels, phase, compute)
            # 3. gradients add up over the pieces of the batch to those of its mean
            loss = loss.sum() / count
            scaler.scale(loss).backward()
            total += loss.detach()
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        full = True
    if world.any(full, images.device):
        optimizer.zero_grad(set_to_none=True)
        raise DeviceFull
    # 4. gradients of all processes, clipped as the optimizer will see them; in fp16 a step with inf
    # is skipped and the scale halved
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    world.sum_gradients(parameters)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_norm or math.inf)
    if skip_nan and not torch.isfinite(norm):
        scaler.update()
        return torch.full_like(total, math.inf)
    scaler.step(optimizer)
    scaler.update()
    return world.total(total)


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: a class of its own on GPUs, words on CPUs."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def require_finite(loss: float, epoch: int, step: int, compute: Compute) -> None:
    """Stop over a loss that is not a number, with what to try; nothing has been saved since the
    last good checkpoint.

    Raises:
        SystemExit: where the loss is NaN or infinite.
    """
    if not math.isfinite(loss):
        hint = (
            " fp16 overflows in Swin's attention: use --precision bf16."
            if compute.dtype == torch.float16
            else ""
        )
        fail(
            f"the loss is {loss} in epoch {epoch + 1}, around step {step}.{hint} Try a tenth of "
            f"the learning rate, or "
            "--precision fp32, which tells overflow from divergence. The last checkpoint is good: "
            "the same command with another "
            "--precision goes on from it; with another rate, add --fresh to start over."
        )


# endregion

# region evaluation


@torch.inference_mode()
def evaluate(
    model: SwinHierarchical, batches: Iterable[tuple[Tensor, Tensor]], compute: Compute
) -> Judged:
    """Judge the model on a split.

    Args:
        batches: (uint8 (N, size, size, 3), int64 (N,)), every picture once.

    Returns:
        one outcome per picture, in order.
    """
    model.eval()
    parts = []
    for images, class_idx in batches:
        images = images.to(compute.device, non_blocking=True)
        with compute.autocast():
            features = (
                images if images.dim() == 2 else model.features(images)
            )  # cached features come as they are
        hidden = model.neck(features.float())
        probs = model.probabilities(hidden, model.species_logits(hidden))
        flat = model.disease_heads.all_logits(hidden).argmax(
            dim=1
        )  # as if the packed heads were one softmax
        parts.append(judge(probs.cpu().numpy(), class_idx.numpy(), model.tree, flat.cpu().numpy()))
    return join(parts)


# endregion
