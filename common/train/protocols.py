"""The published training protocols as cells: a column is a protocol, a row a setting of
`common.train.recipes.Recipe`.

Three tables, so that each can be read; a row that a table leaves out has no effect on its columns.
A plain cell is stated by the protocol's source; `ours(...)` marks one that is not; `-` marks a
setting without effect in that column, which takes the value of `hierarchical` where a flag brings
it into play."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ours:
    """The mark of a cell that the protocol's source does not state."""

    value: Any


def ours(value: Any) -> Ours:
    """Mark a cell that the protocol's source does not state."""
    return Ours(value)


UNUSED = "-"  # no setting has this value
_ = UNUSED

# fmt: off
HIERARCHICAL: dict[str, tuple[Any, ...]] = {
    # hierarchical             foliar                   two_core                demo
    "source":                       ("sources/000 and 001",  ours("hierarchical, bettered"), ours("for 2 cores"), ours("for minutes")),
    "classes":                      ("hierarchical",         "hierarchical",          "hierarchical",         "hierarchical"),
    "backbone":                     ("swin_tiny_patch4_window7_224.ms_in22k", "swin_tiny_patch4_window7_224.ms_in22k",
                                     ours("mobilenetv2_100"), ours("resnet10t")),
    "backbone_args":                (ours(""),               ours(""),                ours(""),               ours("")),
    "drop_path":                    (ours("timm"),           ours("timm"),            ours("timm"),           ours("timm")),
    "neck":                         ("",                     "",                      "",                     ""),
    "image_size":                   (224,                    224,                     ours(160),              ours(80)),
    "pixel_mean":                   (ours("timm"),           ours("timm"),            ours("timm"),           ours("timm")),
    "pixel_std":                    (ours("timm"),           ours("timm"),            ours("timm"),           ours("timm")),
    "batch_size":                   (256,                    256,                     ours(32),               ours(16)),
    "weight_decay":                 (ours(0.05),             ours(0.05),              ours(0.05),             ours(0.05)),
    "decay_on":                     (ours("matrices"),       ours("matrices"),        ours("matrices"),       ours("matrices")),
    "betas":                        (ours("0.9 0.999"),      ours("0.9 0.999"),       ours("0.9 0.999"),      ours("0.9 0.999")),
    "clip_norm":                    (1.0,                    1.0,                     1.0,                    1.0),
    "layer_decay":                  (ours(1.0),              ours(1.0),               ours(1.0),              ours(1.0)),
    "cosine_end":                   (ours("scaled"),         ours("scaled"),          ours("scaled"),         ours("scaled")),
    "ema_decay":                    (ours(0.0),              ours(0.999),             ours(0.0),              ours(0.0)),
    "best_by":                      (ours("stage"),          ours("stage"),           ours("stage"),          ours("stage")),
    "patience":                     (ours(0),                ours(0),                 ours(0),                ours(0)),
    "cached_views":                 (0,                      ours(5),                 0,                      0),
    "species_sampling":             ("shuffle",              "shuffle",               "shuffle",              "shuffle"),
    "species_warmup_epochs":        (5,                      5,                       ours(1),                ours(1)),
    "species_warmup_unfreeze":      (0.0,                    0.0,                     0.0,                    0.0),
    "species_warmup_lr":            (1e-3,                   1e-3,                    1e-3,                   1e-3),
    "species_warmup_lr_end":        (1e-3,                   1e-3,                    1e-3,                   1e-3),
    "species_finetune_epochs":      (20,                     ours(5),                 ours(2),                ours(8)),
    "species_finetune_unfreeze":    (1.0,                    1.0,                     1.0,                    1.0),
    "species_finetune_lr":          (1e-4,                   1e-4,                    ours(5e-4),             ours(2e-3)),
    "species_finetune_lr_end":      (1e-6,                   1e-6,                    ours(1e-5),             ours(1e-4)),
    "species_final_epochs":         (5,                      ours(0),                 ours(1),                ours(1)),
    "species_final_unfreeze":       (1.0,                    1.0,                     1.0,                    1.0),
    "species_final_lr":             (5e-6,                   5e-6,                    ours(5e-5),             ours(1e-4)),
    "species_final_lr_end":         (5e-6,                   5e-6,                    ours(5e-5),             ours(1e-4)),
    "species_final_backbone_scale": (0.1,                    0.1,                     0.1,                    0.1),
    "disease_heads_epochs":         (15,                     ours(5),                 ours(1),                ours(1)),
    "disease_heads_lr":             (1e-3,                   1e-3,                    1e-3,                   ours(3e-3)),
    "disease_boost_epochs":         (5,                      ours(0),                 ours(1),                ours(1)),
    "disease_boost_lr":             (5e-4,                   5e-4,                    5e-4,                   ours(1e-3)),
    "joint_epochs":                 (10,                     ours(45),                ours(10),               ours(15)),
    "joint_lr":                     (1e-5,                   ours(1e-4),              ours(5e-4),             ours(2e-3)),
    "joint_lr_end":                 (ours(1e-5),             ours(1e-6),              ours(1e-6),             ours(1e-5)),
    "loss":                         ("focal",                ours("cross_entropy"),   "focal",                "focal"),
    "focal_gamma":                  (2.0,                    _,                       2.0,                    2.0),
    "focal_alpha":                  (0.25,                   _,                       0.25,                   0.25),
    "label_smoothing":              (0.1,                    0.1,                     0.1,                    ours(0.05)),
    "disease_weight":               (0.7,                    ours(1.0),               0.7,                    ours(1.0)),
    "tail":                         ("sampler",              ours("balanced_softmax"), "sampler",              "sampler"),
    "rare_below":                   (80,                     80,                      ours(20),               80),
    "rare_weight":                  (3.0,                    3.0,                     3.0,                    3.0),
    "very_rare_below":              (50,                     50,                      ours(10),               50),
    "very_rare_weight":             (5.0,                    5.0,                     5.0,                    5.0),
    "boost_share":                  (ours(0.5),              ours(0.5),               ours(0.5),              ours(0.5)),
    "augment":                      ("full",                 "full",                  ours("gentle"),         ours("gentle")),
    "tier2_share":                  (0.3,                    0.3,                     0.3,                    0.3),
    "mix_share":                    (0.5,                    0.5,                     ours(0.0),              ours(0.0)),
    "mixup_alpha":                  (0.2,                    0.2,                     0.2,                    0.2),
    "cutmix_alpha":                 (1.0,                    1.0,                     1.0,                    1.0),
    "randaugment_ops":              (2,                      2,                       ours(0),                ours(0)),
    "randaugment_magnitude":        (9,                      9,                       9,                      9),
}

STAGES_AND_FLOWERS: dict[str, tuple[Any, ...]] = {
    # three_stage              flower_quick             flower_baseline
    # flower_high_performance
    "source":                       ("sources/002",          "sources/004, option 3", "sources/004, option 2", "sources/004, option 1"),
    "classes":                      ("flat",                 "flat",                  "flat",                 "flat"),
    "backbone":                     ("resnet50.tv_in1k",     "convnext_tiny.fb_in1k", "convnext_base.fb_in1k", "tf_efficientnetv2_l.in1k"),
    "backbone_args":                (ours(""),               ours(""),                ours(""),               ours("")),
    "drop_path":                    (ours("timm"),           ours("0.1"),             ours("0.2"),            ours("0.25")),
    "neck":                         ("dropout=0.3,width=512,dropout_after=0.15", ours(""), ours(""),          ours("")),
    "image_size":                   (ours(224),              600,                     600,                    600),
    "pixel_mean":                   (ours("timm"),           ours("timm"),            ours("timm"),           ours("timm")),
    "pixel_std":                    (ours("timm"),           ours("timm"),            ours("timm"),           ours("timm")),
    "batch_size":                   (ours(32),               32,                      32,                     32),
    "weight_decay":                 (1e-4,                   ours(0.05),              ours(0.05),             ours(0.05)),
    "decay_on":                     (ours("all"),            ours("matrices"),        ours("matrices"),       ours("matrices")),
    "betas":                        ("0.9 0.999",            ours("0.9 0.999"),       ours("0.9 0.999"),      ours("0.9 0.999")),
    "clip_norm":                    (1.0,                    ours(1.0),               ours(1.0),              ours(1.0)),
    "layer_decay":                  (1.0,                    ours(1.0),               ours(1.0),              ours(1.0)),
    "cosine_end":                   ("same",                 _,                       _,                      _),
    "ema_decay":                    (ours(0.0),              ours(0.0),               ours(0.0),              ours(0.0)),
    "best_by":                      ("macro_f1",             ours("cascade_top1"),    ours("cascade_top1"),   ours("cascade_top1")),
    "patience":                     (5,                      10,                      10,                     10),
    "cached_views":                 (0,                      _,                       _,                      _),
    "species_sampling":             (ours("shuffle"),        ours("shuffle"),         ours("shuffle"),        ours("shuffle")),
    "species_warmup_epochs":        (5,                      ours(0),                 ours(0),                ours(0)),
    "species_warmup_unfreeze":      (0.0,                    _,                       _,                      _),
    "species_warmup_lr":            (1e-3,                   _,                       _,                      _),
    "species_warmup_lr_end":        (1e-7,                   _,                       _,                      _),
    "species_finetune_epochs":      (10,                     5,                       50,                     100),
    "species_finetune_unfreeze":    (0.3,                    ours(1.0),               ours(1.0),              ours(1.0)),
    "species_finetune_lr":          (1e-4,                   ours(1e-4),              ours(1e-4),             ours(1e-4)),
    "species_finetune_lr_end":      (1e-7,                   ours(1e-6),              ours(1e-6),             ours(1e-6)),
    "species_final_epochs":         (10,                     ours(0),                 ours(0),                ours(0)),
    "species_final_unfreeze":       (1.0,                    _,                       _,                      _),
    "species_final_lr":             (5e-5,                   _,                       _,                      _),
    "species_final_lr_end":         (1e-7,                   _,                       _,                      _),
    "species_final_backbone_scale": (0.2,                    _,                       _,                      _),
    "loss":                         ("cross_entropy",        "focal",                 "focal",                "focal"),
    "focal_gamma":                  (_,                      2.0,                     2.0,                    2.0),
    "focal_alpha":                  (_,                      0.25,                    0.25,                   0.25),
    "label_smoothing":              (0.1,                    0.1,                     0.1,                    0.1),
    "tail":                         (ours("none"),           ours("none"),            ours("none"),           ours("none")),
    "augment":                      (ours("medium"),         "medium",                "ultra_strong",         "ultra_strong"),
    "tier2_share":                  (ours(0.0),              ours(0.3),               ours(0.3),              ours(0.3)),
    "mix_share":                    (ours(0.0),              ours(0.0),               ours(0.0),              ours(0.0)),
    "randaugment_ops":              (ours(0),                ours(0),                 ours(0),                ours(0)),
}

CAMERA_TRAPS: dict[str, tuple[Any, ...]] = {
    # camera_trap_resnet18     camera_trap_resnet50     camera_trap_swin        camera_trap_plus
    "source":                       ("sources/003",          "sources/003",           "sources/003",          ours("next in 003")),
    "classes":                      ("flat",                 "flat",                  "flat",                 "flat"),
    "backbone":                     ("resnet18.tv_in1k",     "resnet50.tv_in1k",      "swin_tiny_patch4_window7_224.ms_in1k",
                                     ours("swin_small_patch4_window7_224.ms_in22k_ft_in1k")),
    "backbone_args":                (ours(""),               ours(""),                ours(""),               ours("")),
    "drop_path":                    (ours("timm"),           ours("timm"),            "0.2",                  ours("0.3")),
    "neck":                         ("",                     "",                      "",                     ours("")),
    "image_size":                   (224,                    224,                     224,                    ours(384)),
    "pixel_mean":                   ("0.485 0.456 0.406",    "0.485 0.456 0.406",     "0.485 0.456 0.406",    "0.485 0.456 0.406"),
    "pixel_std":                    ("0.229 0.224 0.225",    "0.229 0.224 0.225",     "0.229 0.224 0.225",    "0.229 0.224 0.225"),
    "batch_size":                   (64,                     64,                      64,                     ours(32)),
    "weight_decay":                 (0.01,                   0.01,                    1e-8,                   ours(0.05)),
    "decay_on":                     ("all",                  "all",                   "all",                  ours("matrices")),
    "betas":                        ("0.9 0.999",            "0.9 0.999",             "0.9 0.999",            ours("0.9 0.999")),
    "clip_norm":                    (ours(0.0),              ours(0.0),               ours(0.0),              ours(1.0)),
    "layer_decay":                  (1.0,                    1.0,                     1.0,                    ours(0.9)),
    "cosine_end":                   (_,                      _,                       _,                      ours("scaled")),
    "ema_decay":                    (ours(0.0),              ours(0.0),               ours(0.0),              ours(0.999)),
    "best_by":                      ("cascade_top1",         "cascade_top1",          "cascade_top1",         ours("cascade_top1")),
    "patience":                     (0,                      0,                       0,                      ours(0)),
    "cached_views":                 (_,                      _,                       _,                      ours(0)),
    "species_sampling":             (ours("shuffle"),        ours("shuffle"),         ours("shuffle"),        ours("shuffle")),
    "species_warmup_epochs":        (0,                      0,                       0,                      ours(1)),
    "species_warmup_unfreeze":      (_,                      _,                       _,                      ours(0.0)),
    "species_warmup_lr":            (_,                      _,                       _,                      ours(1e-3)),
    "species_warmup_lr_end":        (_,                      _,                       _,                      ours(1e-3)),
    "species_finetune_epochs":      (5,                      5,                       30,                     ours(29)),
    "species_finetune_unfreeze":    (1.0,                    1.0,                     1.0,                    ours(1.0)),
    "species_finetune_lr":          (1e-3,                   1e-3,                    1e-5,                   ours(5e-5)),
    "species_finetune_lr_end":      (1e-3,                   1e-3,                    1e-5,                   ours(1e-6)),
    "species_final_epochs":         (0,                      0,                       0,                      ours(0)),
    "loss":                         ("cross_entropy",        "cross_entropy",         "cross_entropy",        "cross_entropy"),
    "label_smoothing":              (0.0,                    0.0,                     0.0,                    ours(0.1)),
    "tail":                         ("none",                 "none",                  "none",                 ours("none")),
    "augment":                      ("plain",                "plain",                 "plain",                ours("medium")),
    "tier2_share":                  (0.0,                    0.0,                     0.0,                    ours(0.0)),
    "mix_share":                    (0.0,                    0.0,                     0.0,                    ours(0.5)),
    "mixup_alpha":                  (_,                      _,                       _,                      ours(0.2)),
    "cutmix_alpha":                 (_,                      _,                       _,                      ours(1.0)),
    "randaugment_ops":              (0,                      0,                       0,                      ours(0)),
}
LIGHT: dict[str, tuple[Any, ...]] = {
    #                               light                    light_two_core           light_demo
    "source":                       (ours("for the browser"), ours("for the browser"), ours("for the browser")),
    "classes":                      (ours("hierarchical"),   ours("hierarchical"),    ours("hierarchical")),
    "backbone":                     (ours("mobilenetv3_small_100"), ours("mobilenetv3_small_100"), ours("resnet10t")),
    "backbone_args":                (ours("conv_head=False"), ours("conv_head=False"),
                                     ours("layers=[1,1,1,0],channels=[64,128,256,256]")),
    "drop_path":                    (ours("timm"),           ours("timm"),            ours("timm")),
    "neck":                         (ours(""),               ours(""),                ours("")),
    "image_size":                   (ours(224),              ours(160),               ours(80)),
    "pixel_mean":                   (ours("timm"),           ours("timm"),            ours("timm")),
    "pixel_std":                    (ours("timm"),           ours("timm"),            ours("timm")),
    "batch_size":                   (ours(128),              ours(32),                ours(16)),
    "weight_decay":                 (ours(0.05),             ours(0.05),              ours(0.05)),
    "decay_on":                     (ours("matrices"),       ours("matrices"),        ours("matrices")),
    "betas":                        (ours("0.9 0.999"),      ours("0.9 0.999"),       ours("0.9 0.999")),
    "clip_norm":                    (ours(1.0),              ours(1.0),               ours(1.0)),
    "layer_decay":                  (ours(1.0),              ours(1.0),               ours(1.0)),
    "cosine_end":                   (ours("scaled"),         ours("scaled"),          ours("scaled")),
    "ema_decay":                    (ours(0.0),              ours(0.0),               ours(0.0)),
    "best_by":                      (ours("stage"),          ours("stage"),           ours("stage")),
    "patience":                     (ours(0),                ours(0),                 ours(0)),
    "cached_views":                 (ours(0),                ours(0),                 ours(0)),
    "species_sampling":             (ours("shuffle"),        ours("shuffle"),         ours("shuffle")),
    "species_warmup_epochs":        (ours(1),                ours(1),                 ours(0)),
    "species_warmup_unfreeze":      (ours(0.0),              ours(0.0),               _),
    "species_warmup_lr":            (ours(1e-3),             ours(1e-3),              _),
    "species_warmup_lr_end":        (ours(1e-3),             ours(1e-3),              _),
    "species_finetune_epochs":      (ours(3),                 ours(1),                 ours(1)),
    "species_finetune_unfreeze":    (ours(1.0),              ours(1.0),               ours(1.0)),
    "species_finetune_lr":          (ours(1e-3),             ours(1e-3),              ours(1e-3)),
    "species_finetune_lr_end":      (ours(1e-3),              ours(1e-3),              ours(1e-3)),
    "species_final_epochs":         (ours(0),                ours(0),                 ours(0)),
    "disease_heads_epochs":         (ours(0),                ours(0),                 ours(0)),
    "disease_boost_epochs":         (ours(0),                ours(0),                 ours(0)),
    "joint_epochs":                 (ours(27),                ours(11),                ours(6)),
    "joint_lr":                     (ours(1e-3),              ours(1e-3),              ours(1e-3)),
    "joint_lr_end":                 (ours(1e-6),             ours(1e-6),              ours(1e-5)),
    "loss":                         (ours("cross_entropy"),  ours("cross_entropy"),   ours("cross_entropy")),
    "label_smoothing":              (ours(0.0),              ours(0.0),               ours(0.0)),
    "disease_weight":               (ours(1.0),              ours(1.0),               ours(1.0)),
    "tail":                         (ours("none"),           ours("none"),            ours("none")),
    "augment":                      (ours("full"),           ours("gentle"),          ours("gentle")),
    "tier2_share":                  (ours(0.3),              ours(0.3),               ours(0.3)),
    "mix_share":                    (ours(0.5),              ours(0.0),               ours(0.0)),
    "mixup_alpha":                  (ours(0.2),              _,                       _),
    "cutmix_alpha":                 (ours(1.0),              _,                       _),
    "randaugment_ops":              (ours(0),                ours(0),                 ours(0)),
}
# fmt: on

TABLES: tuple[tuple[str, tuple[str, ...], dict[str, tuple[Any, ...]]], ...] = (
    ("Hierarchical", ("hierarchical", "foliar", "two_core", "demo"), HIERARCHICAL),
    (
        "Flat: three stages, flowers",
        ("three_stage", "flower_quick", "flower_baseline", "flower_high_performance"),
        STAGES_AND_FLOWERS,
    ),
    (
        "Flat: camera traps",
        ("camera_trap_resnet18", "camera_trap_resnet50", "camera_trap_swin", "camera_trap_plus"),
        CAMERA_TRAPS,
    ),
    (
        "Light: students for the browser, each of a teacher (`--teacher`)",
        ("light", "light_two_core", "light_demo"),
        LIGHT,
    ),
)
