"""Losses against slow plain references, what padding must not do, flat models, and the log-prior of
balanced softmax.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.classes import ClassTree
from common.train import losses, recipes
from common.train.heads import PADDING
from common.train.losses import class_loss, cross_entropy, focal_loss
from common.train.model import SwinHierarchical, log_priors

pytestmark = pytest.mark.smoke

TREE = ClassTree(("a", "b", "c"), (("x", "y", "z"), ("x",), ("x", "y")))
COUNTS = np.array([100, 10, 1, 30, 0, 50])


def plain(
    logits: list[float], target: list[float], gamma: float, alpha: float, smoothing: float
) -> float:
    """One row, in Python floats: -alpha * sum q (1 - p)^gamma log p with q smoothed."""
    top = max(logits)
    total = sum(math.exp(v - top) for v in logits)
    loss = 0.0
    for value, share in zip(logits, target, strict=True):
        p = math.exp(value - top) / total
        q = share * (1 - smoothing) + smoothing / len(logits)
        loss -= alpha * q * (1 - p) ** gamma * math.log(p)
    return loss


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_equals_the_plain_reference(gamma, smoothing, soft):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(20, 5, generator=generator) * 4
    index = torch.randint(5, (20,), generator=generator)
    share = (
        torch.rand(20, 5, generator=generator).softmax(1) if soft else F.one_hot(index, 5).float()
    )
    got = focal_loss(logits, share if soft else index, gamma=gamma, alpha=0.25, smoothing=smoothing)
    want = [
        plain(r, s, gamma, 0.25, smoothing)
        for r, s in zip(logits.tolist(), share.tolist(), strict=True)
    ]
    assert got.shape == (20,)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.tensor(want), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gamma_0_is_cross_entropy(smoothing):
    logits, target = torch.randn(30, 7), torch.randint(7, (30,))
    want = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(
        focal_loss(logits, target, gamma=0.0, alpha=1.0, smoothing=smoothing),
        want,
        rtol=1e-5,
        atol=1e-6,
    )


def test_is_linear_in_the_target():
    logits, a, b = torch.randn(16, 6), torch.randint(6, (16,)), torch.randint(6, (16,))
    mixed = 0.3 * F.one_hot(a, 6) + 0.7 * F.one_hot(b, 6)
    parts = 0.3 * focal_loss(logits, a, smoothing=0.1) + 0.7 * focal_loss(logits, b, smoothing=0.1)
    torch.testing.assert_close(
        focal_loss(logits, mixed, smoothing=0.1), parts, rtol=1e-5, atol=1e-6
    )


def test_padding_changes_nothing_and_gets_no_gradient():
    sizes = torch.tensor([2, 5, 3, 4])
    logits = torch.randn(4, 5)
    padded = logits.masked_fill(torch.arange(5) >= sizes[:, None], PADDING).requires_grad_()
    target = torch.tensor([1, 4, 0, 3])
    loss = focal_loss(padded, target, smoothing=0.1, classes=sizes)
    alone = torch.stack(
        [
            focal_loss(logits[i : i + 1, :n], target[i : i + 1], smoothing=0.1)[0]
            for i, n in enumerate(sizes.tolist())
        ]
    )
    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=1e-6)
    loss.sum().backward()
    assert torch.isfinite(padded.grad).all()
    assert (padded.grad[torch.arange(5) >= sizes[:, None]] == 0).all()
    assert (padded.grad[torch.arange(5) < sizes[:, None]] != 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("width", [1, 4])
def test_a_single_class_costs_nothing(gamma, width):
    logits = torch.full((3, width), PADDING)
    logits[:, 0] = torch.tensor([-3.0, 0.0, 8.0])
    logits.requires_grad_()
    loss = focal_loss(
        logits,
        torch.zeros(3, dtype=torch.int64),
        gamma=gamma,
        smoothing=0.1,
        classes=torch.ones(3, dtype=torch.int64),
    )
    loss.sum().backward()
    assert (loss == 0).all()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_certain_rows_have_finite_gradients(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0, 0]), gamma=gamma).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(8, 5)
    torch.testing.assert_close(
        focal_loss(logits.bfloat16(), torch.arange(8) % 5),
        focal_loss(logits.bfloat16().float(), torch.arange(8) % 5),
    )


# region cross-entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_equals_torchs(smoothing):
    generator = torch.Generator().manual_seed(1)
    logits, target = (
        torch.randn(30, 7, generator=generator) * 3,
        torch.randint(7, (30,), generator=generator),
    )
    want = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(
        cross_entropy(logits, target, smoothing=smoothing), want, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_leaves_padding_out(smoothing):
    sizes, target = torch.tensor([2, 5, 1, 4]), torch.tensor([1, 4, 0, 3])
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    padded = logits.masked_fill(torch.arange(5) >= sizes[:, None], PADDING).requires_grad_()
    loss = cross_entropy(padded, target, smoothing=smoothing, classes=sizes)
    alone = torch.stack(
        [
            F.cross_entropy(logits[i : i + 1, :n], target[i : i + 1], label_smoothing=smoothing)
            for i, n in enumerate(sizes.tolist())
        ]
    )
    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=1e-6)
    assert loss[2] == 0, "a species with one disease costs nothing"
    loss.sum().backward()
    assert (padded.grad[torch.arange(5) >= sizes[:, None]] == 0).all()
    assert torch.isfinite(padded.grad).all()


def test_the_recipe_chooses_the_loss():
    logits, target = (
        torch.randn(9, 4, generator=torch.Generator().manual_seed(3)),
        torch.arange(9) % 4,
    )
    recipe = replace(
        recipes.get("hierarchical"), focal_gamma=1.5, focal_alpha=0.5, label_smoothing=0.2
    )
    torch.testing.assert_close(
        class_loss(logits, target, recipe),
        focal_loss(logits, target, gamma=1.5, alpha=0.5, smoothing=0.2),
    )
    torch.testing.assert_close(
        class_loss(logits, target, replace(recipe, loss="cross_entropy")),
        F.cross_entropy(logits, target, label_smoothing=0.2, reduction="none"),
    )


# endregion

# region the model's loss


def model_of(classes: str = "hierarchical", **more) -> SwinHierarchical:
    torch.manual_seed(0)
    model = SwinHierarchical("test_resnet", TREE, image_size=32, classes=classes, **more)
    with torch.no_grad():
        model.disease_heads.bias.normal_()
    return model.eval()


def test_log_priors_by_hand():
    species, class_idx = log_priors(TREE, COUNTS)
    torch.testing.assert_close(
        class_idx, torch.tensor([100.0, 10, 1, 30, 1, 50]).log()
    )  # none counts as one
    torch.testing.assert_close(
        species, torch.tensor([111 / 3, 30 / 1, 51 / 2]).log()
    )  # pictures per class of the species
    with pytest.raises(ValueError, match="6 classes"):
        log_priors(TREE, COUNTS[:5])


def test_the_flat_loss_is_that_of_a_plain_linear_layer():
    model, recipe = model_of("flat"), replace(recipes.get("camera_trap_swin"), label_smoothing=0.1)
    (phase,) = recipes.species_phases(recipe)
    features, class_idx = torch.randn(8, model.num_features), torch.arange(8) % 6
    want = F.cross_entropy(
        F.linear(features, model.disease_heads.weight, model.disease_heads.bias),
        class_idx,
        label_smoothing=0.1,
        reduction="none",
    )
    torch.testing.assert_close(
        losses.hierarchical_loss(model, features, class_idx, phase, recipe),
        want,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("classes", ["hierarchical", "flat"])
def test_the_prior_is_added_to_the_logits(classes):
    """Loss with a prior = loss of a model whose biases are higher by the prior."""
    recipe = replace(recipes.get("foliar"), classes=classes)
    phase = (recipes.joint_phases(recipe) or recipes.species_phases(recipe))[-1]
    assert phase.prior
    model, raised = model_of(classes), model_of(classes)
    model.use_counts(COUNTS)
    species, class_idx = log_priors(TREE, COUNTS)
    with torch.no_grad():
        raised.disease_heads.bias += class_idx
        if classes == "hierarchical":
            raised.species_head.bias += species
    features, target = torch.randn(12, model.num_features), torch.arange(12) % 6
    got = losses.hierarchical_loss(model, features, target, phase, recipe)
    torch.testing.assert_close(
        got, losses.hierarchical_loss(raised, features, target, replace(phase, prior=False), recipe)
    )
    assert (
        got - losses.hierarchical_loss(model, features, target, replace(phase, prior=False), recipe)
    ).abs().max() > 0.1
    torch.testing.assert_close(
        model.probabilities(features, model.species_logits(features)),
        model_of(classes).probabilities(features, model_of(classes).species_logits(features)),
    )


def test_the_prior_makes_a_rare_class_as_likely_as_a_frequent_one():
    """100 pictures of one class and 1 of another that look the same: plain training says 99 %,
    balanced softmax 50 %.
    """
    tree, counts = ClassTree(("a",), (("common", "rare"),)), np.array([100, 1])
    answers = {}
    for tail in ("none", "balanced_softmax"):
        recipe = replace(recipes.get("foliar"), tail=tail, label_smoothing=0.0)
        torch.manual_seed(0)
        model = SwinHierarchical("test_resnet", tree, image_size=32)
        model.use_counts(counts)
        features, class_idx = torch.ones(101, model.num_features), torch.tensor([0] * 100 + [1])
        optimizer = torch.optim.SGD(model.disease_heads.parameters(), lr=0.02)
        for _ in range(400):
            optimizer.zero_grad()
            losses.hierarchical_loss(
                model, features, class_idx, recipes.disease_phases(recipe)[0], recipe
            ).mean().backward()
            optimizer.step()
        answers[tail] = float(
            model.probabilities(features[:1], model.species_logits(features[:1]))[0, 1].detach()
        )
    assert answers["none"] == pytest.approx(1 / 101, rel=0.05)
    assert answers["balanced_softmax"] == pytest.approx(0.5, rel=0.02)


def test_the_neck_stands_between_feature_and_heads():
    model, recipe = model_of("flat", neck={"dropout": 0.0, "width": 12}), recipes.get("three_stage")
    features, class_idx = torch.randn(8, model.num_features), torch.arange(8) % 6
    loss = losses.hierarchical_loss(
        model, features, class_idx, recipes.species_phases(recipe)[0], recipe
    )
    logits = model.disease_heads.all_logits(
        F.relu(F.linear(features, model.neck.linear.weight, model.neck.linear.bias))
    )
    torch.testing.assert_close(
        loss,
        F.cross_entropy(logits, class_idx, label_smoothing=0.1, reduction="none"),
        rtol=1e-5,
        atol=1e-6,
    )


# endregion
