"""The published training protocols, each as a recipe: what its source states, and what is ours.

To change a value, edit it here, or give it as a flag of the script (`--joint-epochs 20`).
"""

from dataclasses import dataclass, field, replace
from typing import Any


def _row(
    meaning: str,
    unit: str = "",
    *,
    choices: tuple[str, ...] = (),
    least: float = 0,
    most: float | None = None,
) -> Any:
    """A setting: what it means, its unit, and the values it may have."""
    limits = {"choices": choices, "least": least, "most": most}
    return field(metadata={"meaning": meaning, "unit": unit, **limits})


METRICS = ("species_top1", "disease_top1", "cascade_top1", "macro_f1", "loss")


@dataclass(frozen=True)
class Recipe:
    """Everything about a training run that a paper would state. Epoch counts may be 0: the phase is
    left out.
    """

    source: str = _row("where the protocol comes from")
    classes: str = _row(
        "hierarchical: species, then diseases; flat: one softmax over all classes",
        choices=("hierarchical", "flat"),
    )
    backbone: str = _row("timm model name")
    backbone_args: str = _row("extra arguments of timm.create_model, as name=value,name=value")
    drop_path: str = _row(
        "stochastic depth: largest share of skipped blocks; `timm` takes the backbone's own"
    )
    neck: str = _row(
        "layers before the heads, as dropout=0.3,width=512,dropout_after=0.15; nothing: none"
    )
    image_size: int = _row("side of the square picture the model sees", "px", least=1)
    pixel_mean: str = _row(
        "mean of the input per channel, 0..1; `timm` takes that of the backbone's weights"
    )
    pixel_std: str = _row("standard deviation of the input per channel")
    batch_size: int = _row("pictures per optimizer step", "images", least=1)
    weight_decay: float = _row("AdamW weight decay")
    decay_on: str = _row(
        "parameters with weight decay: matrices only, or all", choices=("matrices", "all")
    )
    betas: str = _row("AdamW betas")
    clip_norm: float = _row("largest norm of the gradient; 0 = not clipped")
    layer_decay: float = _row(
        "learning rate of a backbone block as a share of that of the block above; 1 = the same",
        most=1.0,
    )
    cosine_end: str = _row(
        "last rate of the backbone: scaled like its first, or the same as the heads'",
        choices=("scaled", "same"),
    )
    ema_decay: float = _row("moving average of the weights; 0 = none", most=0.9999999)
    average_with_heads: str = _row(
        "at the end, average the weights with those after the heads' phase (A1 or B1) where val "
        "scores that higher (WiSE-FT)",
        choices=("no", "yes"),
    )
    best_by: str = _row(
        "the best epoch has most of this on val; stage: species_top1 in A, disease_top1 in B1 and "
        "B2, cascade_top1 in B3",
        choices=("stage", *METRICS),
    )
    patience: int = _row(
        "a phase ends after so many epochs without a better one; 0 = never early", "epochs"
    )
    cached_views: int = _row(
        "frozen phases learn from features of so many views of each picture; 0 = new views each "
        "epoch"
    )

    species_sampling: str = _row(
        "A1 to A3: as they come, or each class as often as any other",
        choices=("shuffle", "balanced"),
    )
    species_warmup_epochs: int = _row("A1: heads of stage A (a flat recipe's only stage)", "epochs")
    species_warmup_unfreeze: float = _row(
        "A1: share of the backbone's blocks that learn, from the top", most=1.0
    )
    species_warmup_lr: float = _row("A1: first rate")
    species_warmup_lr_end: float = _row("A1: last rate of the cosine; equal = constant")
    species_finetune_epochs: int = _row("A2: heads and backbone", "epochs")
    species_finetune_unfreeze: float = _row(
        "A2: share of the backbone's blocks that learn", most=1.0
    )
    species_finetune_lr: float = _row("A2: first rate")
    species_finetune_lr_end: float = _row("A2: last rate of the cosine")
    species_final_epochs: int = _row("A3: heads, and the backbone slower", "epochs")
    species_final_unfreeze: float = _row("A3: share of the backbone's blocks that learn", most=1.0)
    species_final_lr: float = _row("A3: initial rate of the heads")
    species_final_lr_end: float = _row("A3: last rate of the heads")
    species_final_backbone_scale: float = _row(
        "A3: the backbone's first rate as a share of the heads'"
    )

    disease_heads_epochs: int = _row("B1: all disease heads, backbone frozen", "epochs")
    disease_heads_lr: float = _row("B1: constant rate")
    disease_boost_epochs: int = _row(
        "B2: the same again; with tail sampler, rare classes oversampled", "epochs"
    )
    disease_boost_lr: float = _row("B2: constant rate")
    joint_epochs: int = _row("B3: everything, species and disease loss together", "epochs")
    joint_lr: float = _row("B3: first rate")
    joint_lr_end: float = _row("B3: last rate of the cosine")

    loss: str = _row("focal or cross_entropy", choices=("focal", "cross_entropy"))
    focal_gamma: float = _row("focal loss: exponent that down-weights easy pictures")
    focal_alpha: float = _row("focal loss: factor")
    label_smoothing: float = _row("share of the target spread evenly over all classes", most=0.999)
    disease_weight: float = _row("joint loss = species + this x disease")
    tail: str = _row(
        "for rare classes: samplers in B1 and B2, log-priors in the loss (balanced softmax), or "
        "both",
        choices=("sampler", "none", "balanced_softmax", "softmax_and_sampler"),
    )
    rare_below: int = _row("a class under this many pictures is rare", "images")
    rare_weight: float = _row("tail sampler, B1: sampling weight of a rare class")
    very_rare_below: int = _row("a class under this many pictures is very rare", "images")
    very_rare_weight: float = _row("tail sampler, B1: sampling weight of a very rare class")
    boost_share: float = _row(
        "tail sampler, B2: least share of an epoch that rare classes fill", most=1.0
    )

    augment: str = _row("tiers 1 and 2, by level (common/train/augment_levels.py)")
    tier2_share: float = _row(
        "tier 2: share of pictures with blur, Gaussian or ISO noise", most=1.0
    )
    mix_share: float = _row("tier 3: share of batches with MixUp or CutMix", most=1.0)
    mixup_alpha: float = _row("tier 3: Beta(a, a) of MixUp; 0 = none")
    cutmix_alpha: float = _row("tier 3: Beta(a, a) of CutMix; 0 = none")
    randaugment_ops: int = _row("tier 3: RandAugment N; 0 = none")
    randaugment_magnitude: int = _row("tier 3: RandAugment M, of 10", most=10)


@dataclass(frozen=True)
class Protocol:
    """A recipe, and the names of the settings that its source states; all others are ours."""

    recipe: Recipe
    stated: frozenset[str]


def _protocol(source: str, stated: dict[str, Any], **ours: Any) -> Protocol:
    """Take what a source states; what it does not is `ours`, and that of BASE where left out."""
    return Protocol(replace(BASE, source=source, **stated, **ours), frozenset(stated))


def _variant(source: str, **ours: Any) -> Protocol:
    """Take the hierarchical protocol with some settings changed."""
    return Protocol(replace(BASE, source=source, **ours), frozenset(_PLAN) - set(ours))


# fmt: off
_PLAN = dict(
    classes="hierarchical", backbone="swin_tiny_patch4_window7_224.ms_in22k", neck="",
    image_size=224, batch_size=256, clip_norm=1.0, cached_views=0, species_sampling="shuffle",
    species_warmup_epochs=5, species_warmup_unfreeze=0.0, species_warmup_lr=1e-3,
    species_warmup_lr_end=1e-3, species_finetune_epochs=20, species_finetune_unfreeze=1.0,
    species_finetune_lr=1e-4, species_finetune_lr_end=1e-6, species_final_epochs=5,
    species_final_unfreeze=1.0, species_final_lr=5e-6, species_final_lr_end=5e-6,
    species_final_backbone_scale=0.1, disease_heads_epochs=15, disease_heads_lr=1e-3,
    disease_boost_epochs=5, disease_boost_lr=5e-4, joint_epochs=10, joint_lr=1e-5, loss="focal",
    focal_gamma=2.0, focal_alpha=0.25, label_smoothing=0.1, disease_weight=0.7, tail="sampler",
    rare_below=80, rare_weight=3.0, very_rare_below=50, very_rare_weight=5.0, augment="full",
    tier2_share=0.3, mix_share=0.5, mixup_alpha=0.2, cutmix_alpha=1.0, randaugment_ops=2,
    randaugment_magnitude=9,
)
BASE = Recipe(
    source="the hierarchical system's plan",
    **_PLAN,
    # ours:
    backbone_args="", drop_path="timm", pixel_mean="timm", pixel_std="timm",
    weight_decay=0.05, decay_on="matrices", betas="0.9 0.999", layer_decay=1.0, cosine_end="scaled",
    ema_decay=0.0, average_with_heads="no", best_by="stage", patience=0, joint_lr_end=1e-5,
    boost_share=0.5,
)

_FLOWERS = dict(
    classes="flat", image_size=600, batch_size=32, patience=10, loss="focal", focal_gamma=2.0,
    focal_alpha=0.25, label_smoothing=0.1,
)
_FLOWERS_OURS = dict(
    best_by="cascade_top1", species_warmup_epochs=0, species_final_epochs=0, tail="none",
    mix_share=0.0, randaugment_ops=0,
)
_CAMERA_TRAPS = dict(
    classes="flat", neck="", image_size=224, pixel_mean="0.485 0.456 0.406",
    pixel_std="0.229 0.224 0.225", batch_size=64, decay_on="all", betas="0.9 0.999",
    layer_decay=1.0, best_by="cascade_top1", patience=0, species_warmup_epochs=0,
    species_finetune_unfreeze=1.0, species_final_epochs=0, loss="cross_entropy",
    label_smoothing=0.0, tail="none", augment="plain", tier2_share=0.0, mix_share=0.0,
    randaugment_ops=0,
)

RECIPES: dict[str, Protocol] = {
    "hierarchical": Protocol(BASE, frozenset(_PLAN)),
    "foliar": _variant(
        "ours: hierarchical, improved",
        ema_decay=0.999, cached_views=5, species_finetune_epochs=5, species_final_epochs=0,
        disease_heads_epochs=5, disease_boost_epochs=0, joint_epochs=45, joint_lr=1e-4,
        joint_lr_end=1e-6, loss="cross_entropy", disease_weight=1.0, tail="balanced_softmax",
    ),
    "two_core": _variant(
        "ours: for 2 cores",
        backbone="mobilenetv2_100", image_size=160, batch_size=32, species_warmup_epochs=1,
        species_finetune_epochs=2, species_finetune_lr=5e-4, species_finetune_lr_end=1e-5,
        species_final_epochs=1, species_final_lr=5e-5, species_final_lr_end=5e-5,
        disease_heads_epochs=1, disease_boost_epochs=1, joint_epochs=10, joint_lr=5e-4,
        joint_lr_end=1e-6, rare_below=20, very_rare_below=10, augment="gentle", mix_share=0.0,
        randaugment_ops=0,
    ),
    "demo": _variant(
        "ours: for minutes",
        backbone="resnet10t", image_size=80, batch_size=16, species_warmup_epochs=1,
        species_finetune_epochs=8, species_finetune_lr=2e-3, species_finetune_lr_end=1e-4,
        species_final_epochs=1, species_final_lr=1e-4, species_final_lr_end=1e-4,
        disease_heads_epochs=1, disease_heads_lr=3e-3, disease_boost_epochs=1,
        disease_boost_lr=1e-3, joint_epochs=15, joint_lr=2e-3, label_smoothing=0.05,
        disease_weight=1.0, augment="gentle", mix_share=0.0, randaugment_ops=0,
    ),
    "three_stage": _protocol(
        "three-stage protocol",
        dict(
            classes="flat", backbone="resnet50.tv_in1k",
            neck="dropout=0.3,width=512,dropout_after=0.15", weight_decay=1e-4, betas="0.9 0.999",
            clip_norm=1.0, layer_decay=1.0, cosine_end="same", best_by="macro_f1", patience=5,
            cached_views=0, species_warmup_epochs=5, species_warmup_unfreeze=0.0,
            species_warmup_lr=1e-3, species_warmup_lr_end=1e-7, species_finetune_epochs=10,
            species_finetune_unfreeze=0.3, species_finetune_lr=1e-4, species_finetune_lr_end=1e-7,
            species_final_epochs=10, species_final_unfreeze=1.0, species_final_lr=5e-5,
            species_final_lr_end=1e-7, species_final_backbone_scale=0.2, loss="cross_entropy",
            label_smoothing=0.1,
        ),
        batch_size=32, decay_on="all", tail="none", augment="medium", tier2_share=0.0,
        mix_share=0.0, randaugment_ops=0,
    ),
    "flower_quick": _protocol(
        "flower competition, option 3",
        _FLOWERS | dict(
            backbone="convnext_tiny.fb_in1k", species_finetune_epochs=5, augment="medium",
        ),
        **_FLOWERS_OURS,
        drop_path="0.1",
    ),
    "flower_baseline": _protocol(
        "flower competition, option 2",
        _FLOWERS | dict(
            backbone="convnext_base.fb_in1k", species_finetune_epochs=50, augment="ultra_strong",
        ),
        **_FLOWERS_OURS,
        drop_path="0.2",
    ),
    "flower_high_performance": _protocol(
        "flower competition, option 1",
        _FLOWERS | dict(
            backbone="tf_efficientnetv2_l.in1k", species_finetune_epochs=100,
            augment="ultra_strong",
        ),
        **_FLOWERS_OURS,
        drop_path="0.25",
    ),
    "camera_trap_resnet18": _protocol(
        "camera-trap report",
        _CAMERA_TRAPS | dict(
            backbone="resnet18.tv_in1k", weight_decay=0.01, species_finetune_epochs=5,
            species_finetune_lr=1e-3, species_finetune_lr_end=1e-3,
        ),
        clip_norm=0.0,
    ),
    "camera_trap_resnet50": _protocol(
        "camera-trap report",
        _CAMERA_TRAPS | dict(
            backbone="resnet50.tv_in1k", weight_decay=0.01, species_finetune_epochs=5,
            species_finetune_lr=1e-3, species_finetune_lr_end=1e-3,
        ),
        clip_norm=0.0,
    ),
    "camera_trap_swin": _protocol(
        "camera-trap report",
        _CAMERA_TRAPS | dict(
            backbone="swin_tiny_patch4_window7_224.ms_in1k", drop_path="0.2", weight_decay=1e-8,
            species_finetune_epochs=30, species_finetune_lr=1e-5, species_finetune_lr_end=1e-5,
        ),
        clip_norm=0.0,
    ),
    "camera_trap_plus": _protocol(
        "ours: next steps of the camera-trap report",
        dict(
            classes="flat", pixel_mean="0.485 0.456 0.406", pixel_std="0.229 0.224 0.225",
            loss="cross_entropy",
        ),
        backbone="swin_small_patch4_window7_224.ms_in22k_ft_in1k", drop_path="0.3", image_size=384,
        batch_size=32, layer_decay=0.9, ema_decay=0.999, best_by="cascade_top1",
        species_warmup_epochs=1, species_finetune_epochs=29, species_finetune_lr=5e-5,
        species_final_epochs=0, tail="none", augment="medium", tier2_share=0.0, randaugment_ops=0,
    ),
    "light": _protocol(
        "ours: for the browser",
        {},
        backbone="mobilenetv3_small_100", backbone_args="conv_head=False", batch_size=128,
        species_warmup_epochs=1, species_finetune_epochs=3, species_finetune_lr=1e-3,
        species_finetune_lr_end=1e-3, species_final_epochs=0, disease_heads_epochs=0,
        disease_boost_epochs=0, joint_epochs=27, joint_lr=1e-3, joint_lr_end=1e-6,
        loss="cross_entropy", label_smoothing=0.0, disease_weight=1.0, tail="none",
        randaugment_ops=0,
    ),
    "light_two_core": _protocol(
        "ours: for the browser",
        {},
        backbone="mobilenetv3_small_100", backbone_args="conv_head=False", image_size=160,
        batch_size=32, species_warmup_epochs=1, species_finetune_epochs=1,
        species_finetune_lr=1e-3, species_finetune_lr_end=1e-3, species_final_epochs=0,
        disease_heads_epochs=0, disease_boost_epochs=0, joint_epochs=11, joint_lr=1e-3,
        joint_lr_end=1e-6, loss="cross_entropy", label_smoothing=0.0, disease_weight=1.0,
        tail="none", augment="gentle", mix_share=0.0, randaugment_ops=0,
    ),
    "light_demo": _protocol(
        "ours: for the browser",
        {},
        backbone="resnet10t", backbone_args="layers=[1,1,1,0],channels=[64,128,256,256]",
        image_size=80, batch_size=16, species_warmup_epochs=0, species_finetune_epochs=1,
        species_finetune_lr=1e-3, species_finetune_lr_end=1e-3, species_final_epochs=0,
        disease_heads_epochs=0, disease_boost_epochs=0, joint_epochs=6, joint_lr=1e-3,
        loss="cross_entropy", label_smoothing=0.0, disease_weight=1.0, tail="none",
        augment="gentle", mix_share=0.0, randaugment_ops=0,
    ),
}
# fmt: on

FAMILIES: dict[str, tuple[str, ...]] = {
    "Hierarchical": ("hierarchical", "foliar", "two_core", "demo"),
    "Flat: three stages, flowers": (
        "three_stage",
        "flower_quick",
        "flower_baseline",
        "flower_high_performance",
    ),
    "Flat: camera traps": (
        "camera_trap_resnet18",
        "camera_trap_resnet50",
        "camera_trap_swin",
        "camera_trap_plus",
    ),
    "Light: students for the browser, each of a teacher (`--teacher`)": (
        "light",
        "light_two_core",
        "light_demo",
    ),
}
