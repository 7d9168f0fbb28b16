"""Focal loss against a slow plain reference, and what padding must not do."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from common.losses import focal_loss
from common.model import PADDING


def plain(logits: list[float], target: list[float], gamma: float, alpha: float, smoothing: float) -> float:
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
    share = torch.rand(20, 5, generator=generator).softmax(1) if soft else F.one_hot(index, 5).float()
    got = focal_loss(logits, share if soft else index, gamma=gamma, alpha=0.25, smoothing=smoothing)
    want = [plain(r, s, gamma, 0.25, smoothing) for r, s in zip(logits.tolist(), share.tolist(), strict=True)]
    assert got.shape == (20,) and got.dtype == torch.float32
    torch.testing.assert_close(got, torch.tensor(want), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gamma_0_is_cross_entropy(smoothing):
    logits, target = torch.randn(30, 7), torch.randint(7, (30,))
    want = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(focal_loss(logits, target, gamma=0.0, alpha=1.0, smoothing=smoothing), want, rtol=1e-5, atol=1e-6)


def test_is_linear_in_the_target():
    logits, a, b = torch.randn(16, 6), torch.randint(6, (16,)), torch.randint(6, (16,))
    mixed = 0.3 * F.one_hot(a, 6) + 0.7 * F.one_hot(b, 6)
    parts = 0.3 * focal_loss(logits, a, smoothing=0.1) + 0.7 * focal_loss(logits, b, smoothing=0.1)
    torch.testing.assert_close(focal_loss(logits, mixed, smoothing=0.1), parts, rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing_and_gets_no_gradient():
    sizes = torch.tensor([2, 5, 3, 4])
    logits = torch.randn(4, 5)
    padded = logits.masked_fill(torch.arange(5) >= sizes[:, None], PADDING).requires_grad_()
    target = torch.tensor([1, 4, 0, 3])
    loss = focal_loss(padded, target, smoothing=0.1, classes=sizes)
    alone = torch.stack([focal_loss(logits[i : i + 1, :n], target[i : i + 1], smoothing=0.1)[0] for i, n in enumerate(sizes.tolist())])
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
    loss = focal_loss(logits, torch.zeros(3, dtype=torch.int64), gamma=gamma, smoothing=0.1, classes=torch.ones(3, dtype=torch.int64))
    loss.sum().backward()
    assert (loss == 0).all() and torch.isfinite(logits.grad).all() and logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_certain_rows_have_finite_gradients(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0, 0]), gamma=gamma).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(8, 5)
    torch.testing.assert_close(focal_loss(logits.bfloat16(), torch.arange(8) % 5),
                               focal_loss(logits.bfloat16().float(), torch.arange(8) % 5))
