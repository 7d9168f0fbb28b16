"""What is fitted on val: the best temperature, a threshold that keeps its promise, bars that reach their precision."""

from __future__ import annotations

import numpy as np
import pytest

from common import calibrate
from common.metrics import auroc
from common.model import PADDING
from common.taxonomy import ClassTree


def nll(logits: np.ndarray, target: np.ndarray, t: float) -> float:
    scaled = logits / t - (logits / t).max(1, keepdims=True)
    return float(-(scaled - np.log(np.exp(scaled).sum(1, keepdims=True)))[np.arange(len(target)), target].mean())


@pytest.mark.parametrize("wrong_by", [0.3, 1.0, 3.5])
def test_the_temperature_is_the_best_one(wrong_by):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3000, 5))
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = np.array([rng.choice(5, p=row) for row in odds])
    t = calibrate.fit_temperature((logits * wrong_by).astype(np.float32), target)
    assert t == pytest.approx(wrong_by, rel=0.1)
    assert all(nll(logits * wrong_by, target, t) <= nll(logits * wrong_by, target, t * k) + 1e-9 for k in (0.8, 0.95, 1.05, 1.2))


def test_padding_and_empty_sets_do_not_disturb_it():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(0, 3, (400, 3)), rng.integers(0, 3, 400)
    padded = np.hstack([logits, np.full((400, 2), PADDING)])
    assert calibrate.fit_temperature(padded, target) == pytest.approx(calibrate.fit_temperature(logits, target), rel=1e-6)
    assert calibrate.fit_temperature(np.zeros((0, 4)), np.zeros(0, int)) == 1.0
    assert calibrate.fit_temperature(np.zeros((5, 1)), np.zeros(5, int)) == 1.0
    right = np.eye(3)[[0, 1, 2]] * 9
    assert 0.05 <= calibrate.fit_temperature(right, np.arange(3)) < 0.5 and calibrate.fit_temperature(right, np.array([1, 2, 0])) > 19


def test_calibration_error_against_bins_by_hand():
    confidence, right = np.linspace(0.1, 1.0, 30), np.arange(30) % 2 == 0
    order = np.argsort(confidence)
    want = sum(abs(confidence[order[i : i + 2]].mean() - right[order[i : i + 2]].mean()) * 2 for i in range(0, 30, 2)) / 30
    assert calibrate.calibration_error(confidence, right) == pytest.approx(want)
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.2, 1, 20000)
    assert calibrate.calibration_error(sure, rng.random(20000) < sure) < 0.02
    assert calibrate.calibration_error(np.full(100, 0.9), np.zeros(100, bool)) == pytest.approx(0.9)


def plants_and_strangers(seed: int, n: int = 400):
    rng = np.random.default_rng(seed)
    plants = {"gen": rng.normal(0, 1, n), "mahalanobis_species": rng.normal(5, 1, n), "mahalanobis_leaf": rng.normal(5, 1, n)}
    strange = {"gen": rng.normal(1, 1, n), "mahalanobis_species": rng.normal(10, 1, n), "mahalanobis_leaf": rng.normal(8, 1, n)}
    return plants, strange


def test_the_best_score_is_chosen_and_keeps_both_promises():
    plants, strange = plants_and_strangers(0)
    got = calibrate.fit_rejection(plants, strange)
    assert got["score"] == "mahalanobis_species"
    assert got["val"]["plants_lost"] <= 0.01 and got["val"]["strangers_rejected"] >= 0.98
    assert got["val"]["auroc"] == {name: auroc(plants[name], strange[name]) for name in plants}
    assert len(got["quantiles"]) == 101 and got["quantiles"] == sorted(got["quantiles"])
    assert got["quantiles"][50] == pytest.approx(np.median(plants["mahalanobis_species"]))
    fresh_plants, fresh_strange = plants_and_strangers(1)
    test = calibrate.judge_rejection(got, fresh_plants, fresh_strange)
    assert test["plants_lost"] < 0.02 and test["rejected"] > 0.95 and test["n_plants"] == test["n_strangers"] == 400


def test_without_strangers_the_threshold_follows_the_tail():
    plants, _ = plants_and_strangers(2, 400)
    got = calibrate.fit_rejection(plants, None)
    assert got["score"] == list(plants)[-1] and "strangers_rejected" not in got["val"]
    assert got["threshold"] == calibrate.tail_quantile(plants[got["score"]], 0.007)


@pytest.mark.parametrize("draw", ["exponential", "standard_normal", "gumbel"])
def test_tail_quantile_loses_what_it_says_and_jumps_less_than_an_order_statistic(draw):
    rng = np.random.default_rng(3)
    fresh = getattr(rng, draw)(size=200_000)
    samples = [getattr(rng, draw)(size=400) for _ in range(200)]
    lost = [(fresh > calibrate.tail_quantile(s, 0.007)).mean() for s in samples]
    counted = [(fresh > np.sort(s)[-3]).mean() for s in samples]  # 3 of 400 is 0.75 %
    assert 0.002 < np.mean(lost) < 0.0095 and np.std(lost) < np.std(counted)
    assert calibrate.tail_quantile(np.arange(49.0), 0.007) == 48.0, "too few for a fit: the largest"


def test_judged_figures_by_hand():
    fitted = {"score": "s", "threshold": 5.0}
    plants, strange = {"s": np.array([1.0, 2, 3, 4, 6])}, {"s": np.array([4.5, 5.5, 7, 8])}
    got = calibrate.judge_rejection(fitted, plants, strange)
    assert got["plants_lost"] == pytest.approx(1 / 5) and got["rejected"] == pytest.approx(3 / 4)
    assert got["precision"] == pytest.approx(3 / 4) and got["accepted_precision"] == pytest.approx(4 / 5)
    assert got["rejected_at_1pct_plants_lost"] == pytest.approx(2 / 4), "no plant may be lost: above 6"
    assert got["auroc"] == pytest.approx(auroc(plants["s"], strange["s"]))


TREE = ClassTree(("a", "b"), (("x", "y"), ("x", "y")))


def test_bars_reach_the_precision_and_are_the_lowest_that_do():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2.0, (2000, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    leaf = np.array([rng.choice(4, p=row) for row in probabilities])
    bars = calibrate.fit_rollup(probabilities, leaf, TREE, 0.9)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == leaf
    answered = confidence >= bars["leaf"]
    assert 0.2 < answered.mean() < 0.9 and right[answered].mean() >= 0.9
    for lower in confidence[confidence < bars["leaf"]]:
        assert right[confidence >= lower].mean() < 0.9
    species = probabilities.reshape(-1, 2, 2).sum(2)
    rest = ~answered & (species.max(1) >= bars["species"])
    assert rest.any() and (species.argmax(1) == leaf // 2)[rest].mean() >= 0.9


def test_a_bar_among_equal_confidences_still_reaches_the_precision():
    """Certain networks answer many pictures with exactly 1: all of them are answered at that bar, or none."""
    probabilities = np.array([[1.0, 0, 0, 0]] * 10 + [[0.6, 0.2, 0.1, 0.1]] * 4)
    leaf = np.array([0] * 7 + [2] * 3 + [0] * 4)  # 70 % of the certain ones are right
    bars = calibrate.fit_rollup(probabilities, leaf, TREE, 0.95)
    answered = probabilities.max(1) >= bars["leaf"]
    assert not answered.any() or (leaf[answered] == 0).mean() >= 0.95


def test_bars_at_the_ends():
    right = np.eye(4)[[0, 1, 2, 3]] * 0.4 + 0.15
    assert calibrate.fit_rollup(right, np.arange(4), TREE)["leaf"] == 0.0
    wrong = calibrate.fit_rollup(right, np.array([2, 3, 0, 1]), TREE)
    assert wrong["leaf"] == wrong["species"] == 2.0
