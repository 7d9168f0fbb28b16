"""What is trained in a phase and at which rate: frozen blocks, parameter groups, AdamW, the cosine
schedule, the moving average.
"""

import copy
import math
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from common.train.model import SwinHierarchical
from common.train.recipes import Phase, Recipe

# region what learns


def blocks(backbone: nn.Module) -> list[list[str]]:
    """Split a timm backbone into its blocks, from the picture up: names of parameters, each exactly
    once.

    A block is one of timm's coarse groups: the stem, a stage of a network that has stages (a
    ResNet's layer1 to layer4), a block of one that has none, a convolution behind the last stage.
    Layers without a matrix (a last norm) belong to the block below them. Three tenths of these,
    rounded up, are layer3 and layer4 of a ResNet and the last three of the nine of an
    EfficientNet-B0, as in the three-stage protocol.
    """
    found: list[list[str]] = []
    shapes = {name: parameter.ndim for name, parameter in backbone.named_parameters()}
    for names in group_parameters(backbone, backbone.group_matcher(coarse=True)).values():
        # timm puts a convolution behind the last stage into the same group as that stage
        own = [name for name in names if _top(name) == _top(names[0])] if found else names
        for part in (own, [name for name in names if name not in set(own)]):
            if found and not any(shapes[name] > 1 for name in part):
                found[-1] += part
            elif part:
                found.append(list(part))
    return found


def _top(name: str) -> str:
    return name.partition(".")[0]


def trainable_names(backbone: nn.Module, share: float) -> set[str]:
    """Names of the parameters in the upper `share` of the blocks, 0..1, rounded up to whole
    blocks.
    """
    if share >= 1:
        return {name for name, _ in backbone.named_parameters()}
    parts = blocks(backbone)
    count = math.ceil(share * len(parts) - 1e-9)
    return {name for part in parts[len(parts) - count :] for name in part}


def set_trainable(model: SwinHierarchical, phase: Phase) -> None:
    """Freeze and unfreeze by the phase; what is frozen is in evaluation mode, so that its batch
    norms stand still.
    """
    model.requires_grad_(False)
    chosen = set() if phase.frozen else trainable_names(model.backbone, phase.unfreeze)
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(name in chosen)
    for parameter in model.head_parameters(phase.heads):
        parameter.requires_grad_(True)
    model.train()
    for part in model.backbone.modules():
        learns = [p.requires_grad for p in part.parameters()]
        if learns and not any(learns):
            part.eval()


# endregion

# region rates


def depth_scales(backbone: nn.Module, decay: float) -> dict[str, float]:
    """Rate of each parameter as a share of the heads', with layer-wise decay: {name: share}.

    timm's finest groups count as layers; the uppermost has `decay`, each below it `decay` of the
    one above (Clark et al. 2020, as in timm's and BEiT's fine-tuning). A decay of 1 gives 1 to all.
    """
    names = [name for name, _ in backbone.named_parameters()]
    if decay == 1:
        return dict.fromkeys(names, 1.0)
    layers = list(group_parameters(backbone, backbone.group_matcher(coarse=False)).values())
    return {name: decay ** (len(layers) - i) for i, layer in enumerate(layers) for name in layer}


def make_optimizer(model: SwinHierarchical, phase: Phase, recipe: Recipe) -> torch.optim.AdamW:
    """Make AdamW over what the phase trains, in groups of one rate and one weight decay.

    Weight decay applies to matrices alone, or to all parameters (torch's own default) where the
    recipe says so. A group's rate is `scale` times the heads' plus `shift` (see `set_rates`);
    `head` tells heads from the backbone.
    """
    shares = depth_scales(model.backbone, phase.layer_decay)
    groups: dict[tuple[bool, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_head = not name.startswith("backbone.")
            share = 1.0 if is_head else shares[name.removeprefix("backbone.")]
            scale, shift = (1.0, 0.0) if is_head else _line(phase, phase.backbone_scale * share)
            bare = recipe.decay_on == "matrices" and parameter.ndim <= 1
            group = {
                "params": [],
                "weight_decay": 0.0 if bare else recipe.weight_decay,
                "scale": scale,
                "shift": shift,
                "head": is_head,
            }
            groups.setdefault((is_head, share, bare), group)["params"].append(parameter)
    made = [groups[key] for key in sorted(groups)]
    first, second = map(float, recipe.betas.split())
    fused = made[0]["params"][0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(made, lr=phase.lr, betas=(first, second), fused=fused)


def _line(phase: Phase, scale: float) -> tuple[float, float]:
    """Scale and shift that take the heads' rate to that of a group which starts at `scale` of
    it.
    """
    if not phase.same_end or phase.lr == phase.lr_end:
        return scale, 0.0
    # both are cosines, so one is linear in the other
    slope = (phase.lr * scale - phase.lr_end) / (phase.lr - phase.lr_end)
    return slope, phase.lr_end * (1.0 - slope)


def rate_at(phase: Phase, step: int, steps: int) -> float:
    """Rate of the heads at a step of a phase: cosine from `lr` at step 0 towards `lr_end` at step
    `steps`.
    """
    return phase.lr_end + (phase.lr - phase.lr_end) * 0.5 * (
        1.0 + math.cos(math.pi * min(step, steps) / max(steps, 1))
    )


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its rate, where that of the heads is `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"] + group["shift"]


# endregion

# region average


class Average:
    """Exponential moving average (EMA) of a model's weights: `average = d x average + (1 - d) x
    weights` after each step.

    d grows from 0.1 to `decay` with the steps of the phase, `min(decay, (1 + t) / (10 + t))`, so
    that the weights from before training are soon forgotten. Buffers, such as the statistics of
    batch norms, are taken as they are. A phase ends with the average as the model, so that the next
    one, whose frozen parts never change, starts from what was judged.
    """

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
    def copy_to(self, model: SwinHierarchical) -> None:
        """Make the average the model's weights."""
        for theirs, mine in zip(model.parameters(), self.model.parameters(), strict=True):
            theirs.copy_(mine)


# endregion
