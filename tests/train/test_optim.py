"""What learns in a phase: blocks from the top, modes, groups, rates by depth, and the cosine of
each group.
"""

import math
from dataclasses import replace

import pytest
import timm
import torch

from common.classes import ClassTree
from common.train import optim, recipes
from common.train.model import SwinHierarchical

TREE = ClassTree(("a", "b", "c"), (("x", "y", "z"), ("x",), ("x", "y")))
BASE = recipes.get("hierarchical")
NETWORKS = (
    "resnet10t",
    "resnet50",
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "mobilenetv2_100",
    "vit_small_patch16_224",
    "densenet121",
    "regnety_002",
)


def bare(name: str) -> torch.nn.Module:
    with torch.device("meta"):  # names and shapes are enough
        return timm.create_model(name, num_classes=0)


def small(recipe: recipes.Recipe = BASE, name: str = "test_resnet", **more) -> SwinHierarchical:
    torch.manual_seed(0)
    return SwinHierarchical(name, TREE, image_size=32, classes=recipe.classes, **more)


def roots(names) -> set[str]:
    """Names of parameters -> the stages, blocks or single layers they belong to."""
    return {
        ".".join(
            name.split(".")[
                : 2 if name.split(".")[0] in ("blocks", "layers", "stages", "features") else 1
            ]
        )
        for name in names
    }


# region blocks

# (network, share) -> how many blocks there are, and what learns; written by hand from the networks'
# papers
SHARES = [
    ("resnet50", 0.3, 5, {"layer3", "layer4"}),
    ("resnet10t", 0.3, 5, {"layer3", "layer4"}),
    ("resnet50", 0.2, 5, {"layer4"}),
    ("resnet50", 0.41, 5, {"layer2", "layer3", "layer4"}),
    ("resnet50", 1.0, 5, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    ("efficientnet_b0", 0.3, 9, {"blocks.5", "blocks.6", "conv_head", "bn2"}),
    ("mobilenetv3_small_100", 0.3, 8, {"blocks.4", "blocks.5", "conv_head"}),
    ("swin_tiny_patch4_window7_224", 0.3, 5, {"layers.2", "layers.3", "norm"}),
    ("swin_tiny_patch4_window7_224", 0.01, 5, {"layers.3", "norm"}),
    ("convnext_tiny", 0.3, 5, {"stages.2", "stages.3", "head"}),
    ("vit_small_patch16_224", 0.3, 13, {"blocks.8", "blocks.9", "blocks.10", "blocks.11", "norm"}),
    ("resnet50", 0.0, 5, set()),
]


@pytest.mark.parametrize(
    ("name", "share", "count", "want"), SHARES, ids=[f"{row[0]}-{row[1]}" for row in SHARES]
)
def test_a_share_of_the_blocks_learns_from_the_top(name, share, count, want):
    backbone = bare(name)
    assert len(optim.blocks(backbone)) == count
    assert roots(optim.trainable_names(backbone, share)) == want


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_hold_every_parameter_once(name):
    backbone = bare(name)
    names = [p for p, _ in backbone.named_parameters()]
    assert sorted(p for block in optim.blocks(backbone) for p in block) == sorted(names)
    shares = [optim.trainable_names(backbone, s / 20) for s in range(21)]
    assert all(a <= b for a, b in zip(shares, shares[1:], strict=False))
    assert shares[0] == set()
    assert shares[-1] == set(names)
    assert set(optim.depth_scales(backbone, 0.7)) == set(names)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_what_is_frozen_stands_still_and_the_rest_moves(name):
    phase = replace(recipes.species_phases(BASE)[1], unfreeze=0.3)
    model = small(name=name)
    optim.set_trainable(model, phase)
    optimizer = optim.make_optimizer(model, phase, BASE)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    moves = {f"backbone.{n}" for n in optim.trainable_names(model.backbone, 0.3)} | {
        "species_head.weight",
        "species_head.bias",
    }
    assert 2 < len(moves) < len(list(model.parameters())) - 2
    optim.set_rates(optimizer, 1e-2)
    for _ in range(3):  # a residual branch that ends in a norm of weight 0 has no gradient at first
        hidden, logits = model(torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8))
        (logits.square().mean() + hidden.square().mean()).backward()
        optimizer.step()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == moves
    assert not any(p.grad is not None for n, p in model.named_parameters() if n not in moves)
    changed = {
        key for key, value in model.state_dict().items() if not torch.equal(before[key], value)
    }
    named = {n for n, _ in model.named_parameters()}
    assert changed & named == moves
    top = roots(optim.trainable_names(model.backbone, 0.3))
    assert {roots([n.removeprefix("backbone.")]).pop() for n in changed - named} <= top, (
        "norms of frozen blocks keep their statistics"
    )
    for n, module in model.backbone.named_modules():
        own = [p.requires_grad for p in module.parameters()]
        if own:
            assert module.training == any(own), n


def test_modes_of_whole_phases():
    model = small()
    a1, a2, _ = recipes.species_phases(BASE)
    for phase, learns in ((a1, False), (a2, True), (a1, False)):
        optim.set_trainable(model, phase)
        assert all(m.training == learns for m in model.backbone.modules())
        assert model.species_head.training
        assert all(p.requires_grad == learns for p in model.backbone.parameters())


def test_the_neck_learns_with_the_species_and_rests_with_the_diseases():
    model = small(neck={"dropout": 0.3, "width": 16})
    b1, b3 = recipes.disease_phases(BASE)[0], recipes.joint_phases(BASE)[0]
    for phase, learns in ((recipes.species_phases(BASE)[0], True), (b1, False), (b3, True)):
        optim.set_trainable(model, phase)
        assert all(p.requires_grad == learns for p in model.neck.parameters())
        held = {
            id(p)
            for group in optim.make_optimizer(model, phase, BASE).param_groups
            for p in group["params"]
        }
        assert held == {id(p) for p in model.parameters() if p.requires_grad}


# endregion

# region groups and rates


def rates(
    model: SwinHierarchical, phase: recipes.Phase, recipe: recipes.Recipe, step: int, steps: int
) -> dict[str, float]:
    """{name: rate} of what learns at a step."""
    optim.set_trainable(model, phase)
    optimizer = optim.make_optimizer(model, phase, recipe)
    optim.set_rates(optimizer, optim.rate_at(phase, step, steps))
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_layer_decay_by_hand():
    recipe = replace(BASE, layer_decay=0.5)
    model = small(name="test_vit")
    found = rates(model, recipes.species_phases(recipe)[1], recipe, 0, 10)
    lr = recipe.species_finetune_lr
    want = {
        "backbone.norm.weight": 1,
        "backbone.blocks.5.mlp.fc2.weight": 1,
        "backbone.blocks.4.mlp.fc2.bias": 2,
        "backbone.blocks.0.norm1.weight": 6,
        "backbone.patch_embed.proj.weight": 7,
        "backbone.pos_embed": 7,
    }
    for name, depth in want.items():
        assert found[name] == pytest.approx(lr * 0.5**depth, rel=1e-12), name
    assert found["species_head.weight"] == lr
    assert len(found) == len(list(model.backbone.parameters())) + 2


def test_layer_decay_reaches_every_rate_of_a_stage():
    found = optim.depth_scales(bare("resnet50"), 0.9)
    assert found["layer4.2.conv3.weight"] == pytest.approx(0.9)
    assert found["layer4.0.conv1.weight"] == pytest.approx(0.9**3)
    assert found["conv1.weight"] == pytest.approx(0.9**17)
    assert len(set(found.values())) == 17
    assert set(optim.depth_scales(bare("resnet50"), 1.0).values()) == {1.0}


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """Loshchilov and Hutter 2017, equation 5, as torch's CosineAnnealingLR has it."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * step / steps))


@pytest.mark.parametrize("step", [0, 1, 50, 99, 100])
def test_the_end_of_the_cosine_is_scaled_or_the_same(step):
    recipe = replace(
        BASE, species_final_lr=5e-5, species_final_lr_end=1e-7, species_final_backbone_scale=0.2
    )
    model = small()
    for end, last in (("scaled", 0.2e-7), ("same", 1e-7)):
        r = replace(recipe, cosine_end=end)
        found = rates(model, recipes.species_phases(r)[2], r, step, 100)
        assert found["species_head.weight"] == pytest.approx(
            cosine(5e-5, 1e-7, step, 100), rel=1e-9
        )
        assert found["backbone.layer1.0.conv1.weight"] == pytest.approx(
            cosine(1e-5, last, step, 100), rel=1e-9
        )


def test_rates_equal_torchs_own_scheduler():
    phase = recipes.species_phases(recipes.get("three_stage"))[2]
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    theirs = torch.optim.SGD(
        [{"params": [weights[0]], "lr": 1e-5}, {"params": [weights[1]], "lr": 5e-5}]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=40, eta_min=1e-7)
    model = small(recipes.get("three_stage"))
    for step in range(40):
        found = (
            rates(model, phase, recipes.get("three_stage"), step, 40) if step % 13 == 0 else None
        )
        if found:
            assert found["backbone.layer4.0.conv1.weight"] == pytest.approx(
                schedule.get_last_lr()[0], rel=1e-9
            )
            assert found["disease_heads.weight"] == pytest.approx(
                schedule.get_last_lr()[1], rel=1e-9
            )
        theirs.step()
        schedule.step()


@pytest.mark.parametrize("decay_on", ["matrices", "all"])
def test_weight_decay_and_betas(decay_on):
    recipe = replace(BASE, decay_on=decay_on, weight_decay=0.03, betas="0.8 0.95")
    model, phase = small(), recipes.joint_phases(recipe)[0]
    optim.set_trainable(model, phase)
    optimizer = optim.make_optimizer(model, phase, recipe)
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert len(decay) == len(list(model.parameters()))
    assert all(
        decay[id(p)] == (0.03 if decay_on == "all" or p.ndim > 1 else 0.0)
        for p in model.parameters()
    )
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}
    heads = {id(p) for group in optimizer.param_groups if group["head"] for p in group["params"]}
    assert heads == {id(p) for p in model.head_parameters("all")}
    assert len(optimizer.param_groups) == (2 if decay_on == "all" else 4)


# endregion
