"""The training step: accumulation, clipping, what is frozen, rates, and the stops over numbers that
are none.
"""

import math
from dataclasses import replace

import pytest
import torch

from common.classes import ClassTree
from common.train import augment, loop, losses, recipes, run
from common.train.augment import Mix
from common.train.compute import Compute, choose_compute
from common.train.model import SwinHierarchical
from common.train.optim import make_optimizer, rate_at, set_rates, set_trainable
from common.train.recipes import Phase

pytestmark = pytest.mark.smoke

TREE = ClassTree(("a", "b", "c"), (("x", "y", "z"), ("x",), ("x", "y")))
RECIPE = replace(recipes.get("hierarchical"), image_size=32, batch_size=8)
CPU = Compute(torch.device("cpu"), torch.float32)
A1, A2, A3 = recipes.species_phases(RECIPE)
B1, B2 = recipes.disease_phases(RECIPE)
(B3,) = recipes.joint_phases(RECIPE)
NONE = Mix(torch.arange(8))


def build(name: str = "test_vit", seed: int = 0) -> SwinHierarchical:
    torch.manual_seed(seed)
    return SwinHierarchical(name, TREE, image_size=32)


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=generator
    ), torch.randint(6, (8,), generator=generator)


def step(
    model,
    phase: Phase,
    *,
    recipe=RECIPE,
    rate=None,
    device_batch=8,
    mix=NONE,
    seed=0,
    optimizer=None,
    compute=CPU,
) -> float:
    set_trainable(model, phase)
    optimizer = optimizer or make_optimizer(model, phase, recipe)
    images, class_idx = batch(seed)
    set_rates(optimizer, phase.lr if rate is None else rate)
    work = loop.Work(model, optimizer, compute.scaler(), compute, phase, recipe, 8, device_batch)
    return float(loop.training_step(work, images, class_idx, mix))


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


LOOSE = replace(RECIPE, clip_norm=1e9)
CUT = Mix(torch.tensor([3, 2, 1, 0, 7, 6, 5, 4]), 0.7, (0, 16, 0, 20))
UP = Mix(torch.tensor([3, 2, 1, 0, 7, 6, 5, 4]), 0.4)


@pytest.mark.parametrize("mix", [NONE, CUT, UP], ids=["plain", "cutmix", "mixup"])
@pytest.mark.parametrize("pieces", [4, 3, 1])
def test_accumulation_adds_up_to_the_whole_batch(mix, pieces):
    whole, parts = build(), build()
    loss = step(whole, B3, recipe=LOOSE, mix=mix)
    assert step(parts, B3, recipe=LOOSE, mix=mix, device_batch=pieces) == pytest.approx(
        loss, rel=1e-5
    )
    want, got = gradients(whole), gradients(parts)
    assert set(want) == set(got)
    assert len(want) > 20
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-3, atol=1e-6, msg=name)


def test_the_mixed_loss_is_that_of_both_partners():
    model = build().eval()
    images, class_idx = batch()
    with torch.no_grad():
        features = model.features(CUT.apply(images, slice(0, 8)))
        own = losses.hierarchical_loss(model, features, class_idx, B3, RECIPE)
        other = losses.hierarchical_loss(model, features, class_idx[CUT.partner], B3, RECIPE)
    assert step(build(), B3, mix=CUT, rate=0.0) == pytest.approx(
        float((0.7 * own + 0.3 * other).mean()), rel=1e-5
    )


def test_the_joint_loss_is_species_plus_a_share_of_disease():
    model = build().eval()
    images, class_idx = batch()
    with torch.no_grad():
        features = model.features(images)
        species = losses.hierarchical_loss(model, features, class_idx, A2, RECIPE)
        disease = losses.hierarchical_loss(model, features, class_idx, B1, RECIPE)
        joint = losses.hierarchical_loss(model, features, class_idx, B3, RECIPE)
    torch.testing.assert_close(joint, species + 0.7 * disease)
    assert (disease[class_idx == 3] == 0).all(), "a species with one disease costs nothing"
    assert (disease[class_idx != 3] > 0).all(), "a species with one disease costs nothing"


def test_gradients_are_clipped():
    model = build()
    step(model, B3, recipe=replace(RECIPE, clip_norm=1e-3))
    assert math.sqrt(
        sum(float(g.square().sum()) for g in gradients(model).values())
    ) == pytest.approx(1e-3, rel=1e-3)
    free = build()
    step(free, B3, recipe=LOOSE)
    assert math.sqrt(sum(float(g.square().sum()) for g in gradients(free).values())) > 1e-2


@pytest.mark.parametrize(
    ("phase", "moves"),
    [
        (A1, ("species_head",)),
        (A2, ("backbone", "species_head")),
        (A3, ("backbone", "species_head")),
        (B1, ("disease_heads",)),
        (B2, ("disease_heads",)),
        (B3, ("backbone", "species_head", "disease_heads")),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_what_a_phase_moves_and_what_it_leaves(phase, moves):
    model = build("test_resnet")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for seed in range(2):
        step(model, phase, seed=seed)
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(before[name], value)
    }
    assert {name.split(".")[0] for name in changed} == set(moves)
    statistics = {name for name in before if "running_" in name}
    assert statistics, "batch norm statistics"
    assert statistics <= changed if "backbone" in moves else not statistics & changed, (
        "batch norm statistics"
    )
    if "backbone" in moves:
        weights = {name for name, p in model.named_parameters() if name.startswith("backbone")}
        assert weights <= changed


def test_the_backbone_learns_at_a_tenth_in_the_final_phase():
    optimizer = make_optimizer(model := build(), A3, RECIPE)
    set_trainable(model, A3)
    optimizer = make_optimizer(model, A3, RECIPE)
    step(model, A3, rate=2e-3, optimizer=optimizer)
    heads = {id(p) for p in model.head_parameters("all")}
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for p in model.head_parameters("species"):
        assert rates[id(p)] == pytest.approx(2e-3)
    assert all(rate == pytest.approx(2e-4) for p, rate in rates.items() if p not in heads)
    assert len(rates) == len(list(model.backbone.parameters())) + 2


def test_weight_decay_is_on_matrices_only():
    set_trainable(model := build("test_resnet"), B3)
    groups = make_optimizer(model, B3, RECIPE).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    assert all(decay[id(p)] == (0.05 if p.ndim > 1 else 0.0) for p in model.parameters())


def test_rates():
    assert [rate_at(A2, s, 100) for s in (0, 50, 100)] == pytest.approx(
        [1e-4, (1e-4 + 1e-6) / 2, 1e-6]
    )
    assert rate_at(A2, 99, 100) == pytest.approx(1e-6, rel=0.03)
    assert rate_at(A2, 500, 100) == pytest.approx(1e-6)
    rates = [rate_at(A2, s, 100) for s in range(101)]
    assert all(a > b for a, b in zip(rates, rates[1:], strict=False))
    assert {rate_at(A1, s, 10) for s in range(11)} == {1e-3}
    assert rate_at(A2, 0, 0) == 1e-4


def test_a_steps_randomness_is_a_function_of_its_place():
    def draws(*place: int) -> tuple[int, list[float]]:
        seed, rng = augment.step_draws(*place)
        return seed, rng.random(4).tolist()

    first = draws(1, 2, 3)
    assert draws(1, 2, 3) == first
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert draws(*other)[0] != first[0]
        assert draws(*other)[1] != first[1]


def test_a_few_steps_lower_the_loss():
    model = build("test_resnet")
    set_trainable(model, B3)
    optimizer = make_optimizer(model, B3, RECIPE)
    losses = [step(model, B3, rate=2e-3, optimizer=optimizer) for _ in range(12)]
    assert losses[-1] < 0.6 * losses[0]


def test_bf16_trains_with_float32_heads():
    model = build()
    compute = choose_compute("cpu", "bf16")
    assert compute.dtype == torch.bfloat16
    assert not compute.scaler().is_enabled()
    fine, coarse = step(build(), B3, rate=0.0), step(model, B3, rate=0.0, compute=compute)
    assert coarse == pytest.approx(fine, rel=0.05)
    assert coarse != fine
    assert all(g.dtype == torch.float32 for g in gradients(model).values())


def test_evaluation_judges_every_picture_and_changes_nothing():
    model = build("test_resnet")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images, class_idx = batch()
    judged = loop.evaluate(model, [(images[:5], class_idx[:5]), (images[5:], class_idx[5:])], CPU)
    assert judged.class_idx.tolist() == class_idx.tolist()
    assert not model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_mistakes_are_told(refused):
    refused("fp16", choose_compute, "cpu", "fp16")
    refused("gpu0", choose_compute, "gpu0")
    if not torch.cuda.is_available():
        refused("GPU", choose_compute, "cuda")
    assert choose_compute("cpu", "fp32").dtype == torch.float32


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_the_run(loss, refused):
    refused(("epoch 3", "learning rate"), run.require_finite, loss, 2, 5, CPU)
    refused("bf16", run.require_finite, loss, 2, 5, Compute(torch.device("cpu"), torch.float16))
    run.require_finite(1.0, 0, 0, CPU)
