"""The training step, evaluation, rates, precision: the numerical part of both trainers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.augment import Mix
from common.console import fail
from common.losses import focal_loss
from common.metrics import Judged, join, judge
from common.model import SwinHierarchical
from common.recipes import Phase, Recipe

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
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the gradient scaler: at work for fp16, passing through otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{self.device} ({name}), {str(self.dtype).removeprefix('torch.')}"


def choose_compute(device: str = "auto", precision: str = "auto") -> Compute:
    """Choose device and precision: bf16 where the hardware has it, fp16 elsewhere on a GPU, fp32 elsewhere on a CPU.

    Args:
        device: `auto`, or what torch.device takes.
        precision: `auto`, `bf16`, `fp16` or `fp32`.

    Raises:
        SystemExit: for a device that is not there, or fp16 on a CPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        fail(f"--device {device} is unknown. Use auto, cpu, cuda or cuda:1 (ROCm is called cuda too).")
    if place.type == "cuda" and not torch.cuda.is_available():
        fail("--device cuda, but torch sees no GPU: the driver is missing, or this torch was built for another one. "
             "README, Troubleshooting, says how to check; --device cpu runs without.")
    if precision == "auto":
        if place.type == "cuda":
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            precision = "bf16" if _cpu_has_bf16() else "fp32"
    if precision == "fp16" and place.type != "cuda":
        fail("--precision fp16 needs a GPU. On a CPU use bf16 or fp32.")
    return Compute(place, {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision])


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; oneDNN would emulate it elsewhere, slower than float32."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check)


# endregion

# region rates and parameters


def set_trainable(model: SwinHierarchical, phase: Phase) -> None:
    """Freeze and unfreeze by the phase; a frozen backbone is in evaluation mode, so that its batch norms stand still."""
    model.requires_grad_(False)
    model.backbone.requires_grad_(phase.backbone_scale > 0)
    for parameter in model.head_parameters(phase.heads):
        parameter.requires_grad_(True)
    model.train()
    model.backbone.train(phase.backbone_scale > 0)


def make_optimizer(model: SwinHierarchical, phase: Phase, recipe: Recipe) -> torch.optim.AdamW:
    """Make AdamW over what the phase trains: backbone and heads apart, weight decay on matrices only."""
    heads = {id(p) for p in model.head_parameters("all")}
    groups = []
    for is_head in (False, True):
        for decays in (True, False):
            chosen = [p for p in model.parameters() if p.requires_grad and (id(p) in heads) == is_head and (p.ndim > 1) == decays]
            if chosen:
                groups.append({"params": chosen, "weight_decay": recipe.weight_decay if decays else 0.0,
                               "scale": 1.0 if is_head else phase.backbone_scale})
    return torch.optim.AdamW(groups, lr=phase.lr, betas=(0.9, 0.999), fused=True)


def rate_at(phase: Phase, step: int, steps: int) -> float:
    """Rate of the heads at a step of a phase: cosine from `lr` at step 0 towards `lr_end` at step `steps`."""
    return phase.lr_end + (phase.lr - phase.lr_end) * 0.5 * (1.0 + math.cos(math.pi * min(step, steps) / max(steps, 1)))


def seed_step(seed: int, epoch: int, step: int) -> np.random.Generator:
    """Make all randomness of a step a function of (seed, epoch, step): dropout through torch, mixing through the result."""
    rng = np.random.default_rng([seed, epoch, step, 1])
    torch.manual_seed(int(rng.integers(2**62)))
    return rng


# endregion

# region the step


def hierarchical_loss(model: SwinHierarchical, features: Tensor, leaf: Tensor, phase: Phase, recipe: Recipe) -> Tensor:
    """Species loss plus disease loss of each sample under its own species' head, weighted by the phase.

    Args:
        features: float (N, features).
        leaf: int64 (N,), true leaves.

    Returns:
        float32 (N,).
    """
    species = model.leaf_species[leaf]
    loss = features.new_zeros(len(leaf), dtype=torch.float32)
    focal = {"gamma": recipe.focal_gamma, "alpha": recipe.focal_alpha, "smoothing": recipe.label_smoothing}
    if phase.species_weight > 0:
        loss = loss + phase.species_weight * focal_loss(model.species_logits(features), species, **focal)
    if phase.disease_weight > 0 and model.disease_heads.widest > 1:
        disease = leaf - model.disease_heads.leaf_of[species, 0]
        logits = model.disease_logits(features, species)
        loss = loss + phase.disease_weight * focal_loss(logits, disease, classes=model.disease_heads.sizes[species], **focal)
    return loss


def training_step(model: SwinHierarchical, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, images: Tensor,
                  leaf: Tensor, mix: Mix, *, phase: Phase, recipe: Recipe, compute: Compute, rate: float,
                  device_batch: int) -> Tensor:
    """Take one optimizer step on one effective batch, `device_batch` pictures at a time.

    Args:
        images: uint8 (N, size, size, 3), on the device.
        leaf: int64 (N,), on the device.
        mix: how the batch is mixed; a mixed sample's loss is that of each partner, weighted, under its own species.
        rate: learning rate of the heads; the backbone's is its group's share of it.

    Returns:
        float32 scalar on the device: the mean loss of the batch (not synchronised).
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=images.device)
    for start in range(0, len(images), device_batch):
        rows = slice(start, start + device_batch)
        # 1. backbone, in the fast precision; without a graph while it is frozen
        with compute.autocast(), torch.set_grad_enabled(phase.backbone_scale > 0):
            features = model.features(mix.apply(images, rows))
        # 2. heads and loss, in float32
        loss = mix.share * hierarchical_loss(model, features, leaf[rows], phase, recipe)
        if mix.share < 1:
            loss = loss + (1 - mix.share) * hierarchical_loss(model, features, leaf[mix.partner[rows]], phase, recipe)
        # 3. gradients add up over the pieces of the batch to those of its mean
        loss = loss.sum() / len(images)
        scaler.scale(loss).backward()
        total += loss.detach()
    # 4. clip what the optimizer will see, then step; a step with inf in fp16 is skipped and the scale halved
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], recipe.clip_norm)
    scaler.step(optimizer)
    scaler.update()
    return total


def require_finite(loss: float, epoch: int, step: int, compute: Compute) -> None:
    """Stop over a loss that is not a number, with what to try; nothing has been saved since the last good checkpoint.

    Raises:
        SystemExit: where the loss is NaN or infinite.
    """
    if not math.isfinite(loss):
        hint = " fp16 overflows in Swin's attention: use --precision bf16." if compute.dtype == torch.float16 else ""
        fail(f"the loss is {loss} in epoch {epoch + 1}, around step {step}.{hint} Try a tenth of the learning rate, or "
             "--precision fp32, which tells overflow from divergence. The last checkpoint is good: the same command with another "
             "--precision goes on from it; with another rate, add --fresh to start over.")


# endregion

# region evaluation


@torch.inference_mode()
def evaluate(model: SwinHierarchical, batches: Iterable[tuple[Tensor, Tensor]], compute: Compute) -> Judged:
    """Judge the model on a split.

    Args:
        batches: (uint8 (N, size, size, 3), int64 (N,)), every picture once.

    Returns:
        one outcome per picture, in order.
    """
    model.eval()
    parts = []
    for images, leaf in batches:
        with compute.autocast():
            features = model.features(images.to(compute.device, non_blocking=True))
        probs = model.probabilities(features, model.species_logits(features))
        parts.append(judge(probs.cpu().numpy(), leaf.numpy(), model.tree))
    return join(parts)


# endregion
