"""The published protocols, number by number, and what each step of them trains at which rate.

Written from the sources as data, not from the tables: a slip in common/train/protocols.py, in the
phases or in the optimizer shows.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from common.classes import ClassTree
from common.train import loop, optim, recipes
from common.train import model as model_module
from common.train.augment import Mix
from common.train.augment_levels import LEVELS
from common.train.compute import Compute
from common.train.model import SwinHierarchical
from common.train.protocols import RECIPES
from common.train.recipe_flags import model_settings

CPU = Compute(torch.device("cpu"), torch.float32)

# region cells

# what each source states, by the rows of the recipe
STATED: dict[str, dict[str, Any]] = {
    "hierarchical": {  # the hierarchical system's plan
        "classes": "hierarchical",
        "backbone": "swin_tiny_patch4_window7_224.ms_in22k",
        "neck": "",
        "image_size": 224,
        "batch_size": 256,
        "clip_norm": 1.0,
        "cached_views": 0,
        "species_sampling": "shuffle",
        "species_warmup_epochs": 5,
        "species_warmup_unfreeze": 0.0,
        "species_warmup_lr": 1e-3,
        "species_warmup_lr_end": 1e-3,
        "species_finetune_epochs": 20,
        "species_finetune_unfreeze": 1.0,
        "species_finetune_lr": 1e-4,
        "species_finetune_lr_end": 1e-6,
        "species_final_epochs": 5,
        "species_final_unfreeze": 1.0,
        "species_final_lr": 5e-6,
        "species_final_lr_end": 5e-6,
        "species_final_backbone_scale": 0.1,
        "disease_heads_epochs": 15,
        "disease_heads_lr": 1e-3,
        "disease_boost_epochs": 5,
        "disease_boost_lr": 5e-4,
        "joint_epochs": 10,
        "joint_lr": 1e-5,
        "loss": "focal",
        "focal_gamma": 2.0,
        "focal_alpha": 0.25,
        "label_smoothing": 0.1,
        "disease_weight": 0.7,
        "tail": "sampler",
        "rare_below": 80,
        "rare_weight": 3.0,
        "very_rare_below": 50,
        "very_rare_weight": 5.0,
        "augment": "full",
        "tier2_share": 0.3,
        "mix_share": 0.5,
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
        "randaugment_ops": 2,
        "randaugment_magnitude": 9,
    },
    "three_stage": {  # three-stage protocol
        "classes": "flat",
        "backbone": "resnet50.tv_in1k",
        "neck": "dropout=0.3,width=512,dropout_after=0.15",
        "weight_decay": 1e-4,
        "betas": "0.9 0.999",
        "clip_norm": 1.0,
        "layer_decay": 1.0,
        "cosine_end": "same",
        "best_by": "macro_f1",
        "patience": 5,
        "cached_views": 0,
        "species_warmup_epochs": 5,
        "species_warmup_unfreeze": 0.0,
        "species_warmup_lr": 1e-3,
        "species_warmup_lr_end": 1e-7,
        "species_finetune_epochs": 10,
        "species_finetune_unfreeze": 0.3,
        "species_finetune_lr": 1e-4,
        "species_finetune_lr_end": 1e-7,
        "species_final_epochs": 10,
        "species_final_unfreeze": 1.0,
        "species_final_lr": 5e-5,
        "species_final_lr_end": 1e-7,
        "species_final_backbone_scale": 1e-5 / 5e-5,
        "loss": "cross_entropy",
        "label_smoothing": 0.1,
    },
}
PLAIN = {  # camera-trap report, what its three models share
    "classes": "flat",
    "neck": "",
    "image_size": 224,
    "pixel_mean": "0.485 0.456 0.406",
    "pixel_std": "0.229 0.224 0.225",
    "batch_size": 64,
    "decay_on": "all",
    "betas": "0.9 0.999",
    "layer_decay": 1.0,
    "best_by": "cascade_top1",
    "patience": 0,
    "species_warmup_epochs": 0,
    "species_finetune_unfreeze": 1.0,
    "species_final_epochs": 0,
    "loss": "cross_entropy",
    "label_smoothing": 0.0,
    "tail": "none",
    "augment": "plain",
    "tier2_share": 0.0,
    "mix_share": 0.0,
    "randaugment_ops": 0,
}
STATED["camera_trap_resnet18"] = {
    **PLAIN,
    "backbone": "resnet18.tv_in1k",
    "species_finetune_epochs": 5,
    "species_finetune_lr": 1e-3,
    "species_finetune_lr_end": 1e-3,
    "weight_decay": 0.01,
}  # torch's default
STATED["camera_trap_resnet50"] = {**STATED["camera_trap_resnet18"], "backbone": "resnet50.tv_in1k"}
STATED["camera_trap_swin"] = {
    **PLAIN,
    "backbone": "swin_tiny_patch4_window7_224.ms_in1k",
    "drop_path": "0.2",
    "species_finetune_epochs": 30,
    "species_finetune_lr": 1e-5,
    "species_finetune_lr_end": 1e-5,
    "weight_decay": 1e-8,
}
FLOWER = {
    "classes": "flat",
    "image_size": 600,
    "batch_size": 32,
    "patience": 10,
    "loss": "focal",
    "focal_gamma": 2.0,
    "focal_alpha": 0.25,
    "label_smoothing": 0.1,
}  # flower competition
STATED["flower_quick"] = {
    **FLOWER,
    "backbone": "convnext_tiny.fb_in1k",
    "augment": "medium",
    "species_finetune_epochs": 5,
}
STATED["flower_baseline"] = {
    **FLOWER,
    "backbone": "convnext_base.fb_in1k",
    "augment": "ultra_strong",
    "species_finetune_epochs": 50,
}
STATED["flower_high_performance"] = {
    **FLOWER,
    "backbone": "tf_efficientnetv2_l.in1k",
    "augment": "ultra_strong",
    "species_finetune_epochs": 100,
}


@pytest.mark.parametrize("column", STATED)
def test_what_a_source_states_is_in_the_table_and_the_rest_is_marked(column):
    recipe = recipes.get(column)
    for name, value in STATED[column].items():
        assert (
            getattr(recipe, name) == pytest.approx(value)
            if isinstance(value, float)
            else getattr(recipe, name) == value
        ), name
    assert RECIPES[column].stated == set(STATED[column]), "all others are marked as ours"


def test_columns_of_ours():
    ours = (
        "two_core",
        "demo",
        "foliar",
        "camera_trap_plus",
        "light",
        "light_two_core",
        "light_demo",
    )
    assert set(recipes.COLUMNS) == {*STATED, *ours}
    for column in ours:
        assert recipes.get(column).source.startswith("ours"), column


def test_foliar_takes_as_many_image_passes_as_hierarchical():
    both = [
        sum(
            p.epochs
            for p in recipes.species_phases(r) + recipes.disease_phases(r) + recipes.joint_phases(r)
        )
        for r in map(recipes.get, ("hierarchical", "foliar"))
    ]
    assert both == [60, 60]


@pytest.mark.parametrize("column", ["hierarchical", "two_core", "demo"])
def test_the_first_recipes_ask_for_nothing_new(column):
    """The settings that came later leave them as they were."""
    r = recipes.get(column)
    for phase in recipes.species_phases(r) + recipes.disease_phases(r) + recipes.joint_phases(r):
        assert (
            phase.prior,
            phase.cached_views,
            phase.patience,
            phase.layer_decay,
            phase.same_end,
        ) == (False, 0, 0, 1.0, False)
    assert (r.neck, r.drop_path, r.ema_decay, r.betas, r.decay_on, r.loss, r.tail) == (
        "",
        "timm",
        0.0,
        "0.9 0.999",
        "matrices",
        "focal",
        "sampler",
    )


def test_every_level_of_a_column_is_there():
    assert {recipes.get(column).augment for column in recipes.COLUMNS} <= set(LEVELS)


# endregion

# region steps


class Stage(NamedTuple):
    """What a source says about a phase: epochs; rates of head and backbone, first and last; what
    learns, and by which losses.
    """

    name: str
    epochs: int
    head: tuple[float, float]
    backbone: tuple[float, float] | None  # None = frozen
    learns: tuple[
        str, ...
    ]  # beginnings of the names of parameters that learn; all others are frozen
    decays: str = "matrices"
    losses: tuple[float, float] = (
        1.0,
        1.0,
    )  # weights of species and disease; a flat model has one loss
    best_by: str = "cascade_top1"
    patience: int = 0
    sampling: str = "shuffle"
    prior: bool = False
    views: int = 0  # cached ones
    decay: float = 1.0  # rate of a layer as a share of that of the one above


ALL, SPECIES, DISEASE, NECK = "backbone.", "species_head.", "disease_heads.", "neck."
ONE = (ALL, DISEASE)
A: dict[str, Any] = {"losses": (1.0, 0.0), "best_by": "species_top1"}
B: dict[str, Any] = {"losses": (0.0, 1.0), "best_by": "disease_top1"}
STAGES: dict[str, list[Stage]] = {
    "hierarchical": [
        Stage("A1 warm-up", 5, (1e-3, 1e-3), None, (SPECIES,), **A),
        Stage("A2 fine-tune", 20, (1e-4, 1e-6), (1e-4, 1e-6), (ALL, SPECIES), **A),
        Stage("A3 final", 5, (5e-6, 5e-6), (5e-7, 5e-7), (ALL, SPECIES), **A),
        Stage("B1 disease heads", 15, (1e-3, 1e-3), None, (DISEASE,), sampling="rare", **B),
        Stage("B2 rare classes", 5, (5e-4, 5e-4), None, (DISEASE,), sampling="boost", **B),
        Stage(
            "B3 end to end",
            10,
            (1e-5, 1e-5),
            (1e-5, 1e-5),
            (ALL, SPECIES, DISEASE),
            losses=(1.0, 0.7),
        ),
    ],
    "three_stage": [
        Stage(
            "A1 warm-up",
            5,
            (1e-3, 1e-7),
            None,
            (DISEASE, NECK),
            "all",
            best_by="macro_f1",
            patience=5,
        ),
        Stage(
            "A2 fine-tune",
            10,
            (1e-4, 1e-7),
            (1e-4, 1e-7),
            ("backbone.layer3.", "backbone.layer4.", DISEASE, NECK),
            "all",
            best_by="macro_f1",
            patience=5,
        ),
        Stage(
            "A3 final",
            10,
            (5e-5, 1e-7),
            (1e-5, 1e-7),
            (ALL, DISEASE, NECK),
            "all",
            best_by="macro_f1",
            patience=5,
        ),
    ],
    "camera_trap_resnet18": [Stage("A2 fine-tune", 5, (1e-3, 1e-3), (1e-3, 1e-3), ONE, "all")],
    "camera_trap_resnet50": [Stage("A2 fine-tune", 5, (1e-3, 1e-3), (1e-3, 1e-3), ONE, "all")],
    "camera_trap_swin": [Stage("A2 fine-tune", 30, (1e-5, 1e-5), (1e-5, 1e-5), ONE, "all")],
    "flower_quick": [Stage("A2 fine-tune", 5, (1e-4, 1e-6), (1e-4, 1e-6), ONE, patience=10)],
    "flower_baseline": [Stage("A2 fine-tune", 50, (1e-4, 1e-6), (1e-4, 1e-6), ONE, patience=10)],
    "flower_high_performance": [
        Stage("A2 fine-tune", 100, (1e-4, 1e-6), (1e-4, 1e-6), ONE, patience=10)
    ],
    # ours: no source, but each column is to do what its cells say
    "camera_trap_plus": [
        Stage("A1 warm-up", 1, (1e-3, 1e-3), None, (DISEASE,)),
        Stage("A2 fine-tune", 29, (5e-5, 1e-6), (5e-5, 1e-6), ONE, decay=0.9),
    ],
}
_a1, _a2, _a3, _b1, _b2, _b3 = STAGES["hierarchical"]
STAGES[
    "foliar"
] = [  # as many epochs, most of them end to end; log-priors; cached views where frozen
    _a1._replace(prior=True, views=5),
    _a2._replace(epochs=5, prior=True),
    _b1._replace(epochs=5, prior=True, views=5, sampling="shuffle"),
    _b3._replace(
        epochs=45, head=(1e-4, 1e-6), backbone=(1e-4, 1e-6), losses=(1.0, 1.0), prior=True
    ),
]
STAGES["two_core"] = [
    _a1._replace(epochs=1),
    _a2._replace(epochs=2, head=(5e-4, 1e-5), backbone=(5e-4, 1e-5)),
    _a3._replace(epochs=1, head=(5e-5, 5e-5), backbone=(5e-6, 5e-6)),
    _b1._replace(epochs=1),
    _b2._replace(epochs=1),
    _b3._replace(head=(5e-4, 1e-6), backbone=(5e-4, 1e-6)),
]
STAGES["demo"] = [
    _a1._replace(epochs=1),
    _a2._replace(epochs=8, head=(2e-3, 1e-4), backbone=(2e-3, 1e-4)),
    _a3._replace(epochs=1, head=(1e-4, 1e-4), backbone=(1e-5, 1e-5)),
    _b1._replace(epochs=1, head=(3e-3, 3e-3)),
    _b2._replace(epochs=1, head=(1e-3, 1e-3)),
    _b3._replace(epochs=15, head=(2e-3, 1e-5), backbone=(2e-3, 1e-5), losses=(1.0, 1.0)),
]
for _column, _warm, _first, _last, _end in (
    ("light", 1, 3, 27, 1e-6),
    ("light_two_core", 1, 1, 11, 1e-6),
    ("light_demo", 0, 1, 6, 1e-5),
):
    STAGES[_column] = [_a1._replace(epochs=_warm)][
        :_warm
    ] + [  # diseases and species together nearly from the start
        _a2._replace(epochs=_first, head=(1e-3, 1e-3), backbone=(1e-3, 1e-3)),
        _b3._replace(epochs=_last, head=(1e-3, _end), backbone=(1e-3, _end), losses=(1.0, 1.0)),
    ]
TREE = ClassTree(("a", "b", "c"), (("x", "y", "z"), ("x",), ("x", "y")))


def network(recipe: recipes.Recipe, monkeypatch: pytest.MonkeyPatch) -> SwinHierarchical:
    """The recipe's model with the backbone's true names and shapes, and no memory behind them."""
    build = model_module.create_backbone

    def without_memory(
        name: str, size: int, pretrained: bool, arguments: dict[str, Any]
    ) -> torch.nn.Module:
        with torch.device("meta"):
            return build(name, size, False, arguments)

    monkeypatch.setattr(model_module, "create_backbone", without_memory)
    return SwinHierarchical(recipe.backbone, TREE, **model_settings(recipe))


def depth(name: str) -> int:
    """How many layers stand above a parameter of Swin-Small and itself: 2, 2, 18 and 2 blocks,
    below them the patches.
    """
    parts = name.removeprefix(ALL).split(".")
    if parts[0] != "layers":
        return 25 if parts[0] == "patch_embed" else 1  # the last norm goes with the last block
    block = (
        int(parts[3]) if parts[2] == "blocks" else 0
    )  # a stage's merging of patches goes with its first block
    return 24 - (0, 2, 4, 22)[int(parts[1])] - block


def check(
    recipe: recipes.Recipe, stages: list[Stage], model: SwinHierarchical, steps_per_epoch: int = 7
) -> None:
    """Compare every phase, parameter and mode, and the rate of every parameter at every step."""
    phases = (
        recipes.species_phases(recipe)
        + recipes.disease_phases(recipe)
        + recipes.joint_phases(recipe)
    )
    assert [(p.name, p.epochs) for p in phases] == [(s.name, s.epochs) for s in stages]
    for phase, stage in zip(phases, stages, strict=True):
        said = (
            phase.best_by,
            phase.patience,
            phase.sampling,
            phase.prior,
            phase.cached_views,
            phase.frozen,
        )
        assert said == (
            stage.best_by,
            stage.patience,
            stage.sampling,
            stage.prior,
            stage.views,
            stage.backbone is None,
        ), phase.name
        assert (phase.species_weight, phase.disease_weight) == stage.losses, phase.name
        optim.set_trainable(model, phase)
        optimizer = optim.make_optimizer(model, phase, recipe)
        group_of = {
            id(p): k for k, group in enumerate(optimizer.param_groups) for p in group["params"]
        }
        names = {name for name, _ in model.named_parameters() if name.startswith(stage.learns)}
        assert {name for name, p in model.named_parameters() if p.requires_grad} == names, (
            phase.name
        )
        assert len(group_of) == len(names), phase.name
        for name, module in model.backbone.named_modules():
            if own := [p.requires_grad for p in module.parameters()]:
                assert module.training == any(own), (
                    f"{phase.name}: batch norms of frozen parts stand still, {name}"
                )
        wanted: dict[
            int, tuple[float, float]
        ] = {}  # first and last rate of each group, one and the same for all that is in it
        for name, parameter in model.named_parameters():
            if name in names:
                first, last = (
                    stage.backbone if name.startswith(ALL) and stage.backbone else stage.head
                )
                share = (
                    stage.decay ** depth(name) if name.startswith(ALL) and stage.decay < 1 else 1.0
                )
                k = group_of[id(parameter)]
                assert wanted.setdefault(k, (share * first, share * last)) == (
                    share * first,
                    share * last,
                ), (phase.name, name)
                decays = stage.decays == "all" or parameter.ndim > 1
                assert optimizer.param_groups[k]["weight_decay"] == (
                    recipe.weight_decay if decays else 0.0
                ), (phase.name, name)
        assert len(wanted) == len(optimizer.param_groups)
        steps = stage.epochs * steps_per_epoch
        for step in range(steps + 1):
            optim.set_rates(optimizer, optim.rate_at(phase, step, steps))
            share = 0.5 * (1 + math.cos(math.pi * step / steps))
            for k, (first, last) in wanted.items():
                assert optimizer.param_groups[k]["lr"] == pytest.approx(
                    last + (first - last) * share, rel=1e-9
                ), (phase.name, step, k)


def test_no_column_is_left_out():
    assert set(STAGES) == set(recipes.COLUMNS)


@pytest.mark.parametrize("column", STAGES)
def test_each_step_of_a_protocol(column, monkeypatch):
    recipe = recipes.get(column)
    check(recipe, STAGES[column], network(recipe, monkeypatch))


TOPS = {
    "efficientnet_b0": (
        "backbone.blocks.5.",
        "backbone.blocks.6.",
        "backbone.conv_head.",
        "backbone.bn2.",
    ),
    "mobilenetv3_small_100": ("backbone.blocks.4.", "backbone.blocks.5.", "backbone.conv_head."),
}


@pytest.mark.parametrize("backbone", TOPS)
def test_the_other_networks_of_three_stage(backbone, monkeypatch):
    """The source unfreezes features[int(0.7 N):]: torchvision's features 6, 7, 8 of 9, and 9 to 12
    of 13.
    """
    recipe = replace(recipes.get("three_stage"), backbone=backbone)
    first, second, third = STAGES["three_stage"]
    check(
        recipe,
        [first, second._replace(learns=(*TOPS[backbone], DISEASE, NECK)), third],
        network(recipe, monkeypatch),
    )


@pytest.mark.parametrize("column", recipes.COLUMNS)
def test_a_step_of_every_column_moves_what_learns(column):
    """On a small network, to the end of the line: loss, gradient, clipping (none where the norm is
    0), rates, AdamW.
    """
    recipe = replace(
        recipes.get(column), backbone="test_resnet", backbone_args="", image_size=32, batch_size=8
    )
    settings = {**model_settings(recipe), "backbone_args": {}}
    for phase in (
        recipes.species_phases(recipe)
        + recipes.disease_phases(recipe)
        + recipes.joint_phases(recipe)
    ):
        torch.manual_seed(0)
        model = SwinHierarchical("test_resnet", TREE, **settings)
        model.use_counts(np.arange(1, 7))
        optim.set_trainable(model, phase)
        optimizer = optim.make_optimizer(model, phase, recipe)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        images = torch.randint(
            0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
        )
        work = loop.Work(model, optimizer, CPU.scaler(), CPU, phase, recipe, 8, 8)
        optim.set_rates(optimizer, phase.lr)
        loss = loop.training_step(work, images, torch.arange(8) % 6, Mix(torch.arange(8)))
        assert math.isfinite(float(loss))
        assert float(loss) > 0
        for name, parameter in model.named_parameters():
            # a residual branch that ends in a norm of weight 0 has no gradient at first
            moved = (
                parameter.requires_grad
                and parameter.grad is not None
                and bool((parameter.grad != 0).any())
            )
            assert (
                not torch.equal(before[name], parameter)
                if moved
                else parameter.requires_grad or torch.equal(before[name], parameter)
            )
        for head in model.head_parameters(phase.heads):
            assert bool((head.grad != 0).any()), (column, phase.name)


def test_stochastic_depth_reaches_the_network(monkeypatch):
    """Swin-Tiny has 12 blocks; the share grows from 0 at the first to the recipe's at the last."""
    recipe = recipes.get("camera_trap_swin")
    shares = [
        getattr(m, "drop_prob", 0.0)
        for n, m in network(recipe, monkeypatch).backbone.named_modules()
        if n.endswith("drop_path2")
    ]
    assert len(shares) == 12
    assert shares == pytest.approx([0.2 * i / 11 for i in range(12)], abs=1e-6)


def test_weights_of_losses_and_sampling():
    r = recipes.get("hierarchical")
    phases = recipes.species_phases(r) + recipes.disease_phases(r) + recipes.joint_phases(r)
    assert [(p.species_weight, p.disease_weight) for p in phases] == [(1, 0)] * 3 + [(0, 1)] * 2 + [
        (1, 0.7)
    ]
    assert [p.sampling for p in phases] == ["shuffle"] * 3 + ["rare", "boost", "shuffle"]


# endregion
