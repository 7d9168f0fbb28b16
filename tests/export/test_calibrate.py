"""Temperatures: the best one, shrunk where there is little to go by; calibration errors that say
what chance adds.
"""

import numpy as np
import pytest
from benchmarks.rollup import logits_of

from common.classes import ClassTree
from common.export import calibrate
from common.export.answers import sum_up
from common.export.calibrate import Temperatures

# as common/train/model.py fills columns that a species does not have; importing it would bring
# torch
PADDING = -1e9


def nll(logits: np.ndarray, target: np.ndarray, t: float) -> float:
    scaled = logits / t - (logits / t).max(1, keepdims=True)
    return float(
        -(scaled - np.log(np.exp(scaled).sum(1, keepdims=True)))[
            np.arange(len(target)), target
        ].mean()
    )


def drawn(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Truths as the softmax of the logits has them."""
    odds = np.exp(logits - logits.max(1, keepdims=True)).cumsum(1)
    return (rng.random((len(odds), 1)) * odds[:, -1:] > odds).sum(1)


@pytest.mark.parametrize("wrong_by", [0.3, 1.0, 3.5])
def test_the_temperature_is_the_best_one(wrong_by):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3000, 5))
    target = drawn(logits, rng)
    t = calibrate.fit_temperature((logits * wrong_by).astype(np.float32), target)
    assert t == pytest.approx(wrong_by, rel=0.1)
    assert all(
        nll(logits * wrong_by, target, t) <= nll(logits * wrong_by, target, t * k) + 1e-9
        for k in (0.8, 0.95, 1.05, 1.2)
    )


def test_padding_and_empty_sets_do_not_disturb_it():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(0, 3, (400, 3)), rng.integers(0, 3, 400)
    padded = np.hstack([logits, np.full((400, 2), PADDING)])
    assert calibrate.fit_temperature(padded, target) == pytest.approx(
        calibrate.fit_temperature(logits, target), rel=1e-6
    )
    assert calibrate.fit_temperature(np.zeros((0, 4)), np.zeros(0, int)) == 1.0
    assert calibrate.fit_temperature(np.zeros((5, 1)), np.zeros(5, int)) == 1.0
    right = np.eye(3)[[0, 1, 2]] * 9
    assert 0.05 <= calibrate.fit_temperature(right, np.arange(3)) < 0.5
    assert calibrate.fit_temperature(right, np.array([1, 2, 0])) > 19


# region per species


def tree_of(*sizes: int) -> ClassTree:
    return ClassTree(
        tuple(f"p{i}" for i in range(len(sizes))),
        tuple(tuple(f"d{j}" for j in range(n)) for n in sizes),
    )


def pictures(tree: ClassTree, counts: list[int], true_t: list[float], seed: int = 0):
    """Species logits, padded disease logits of the true species and leaves, where species s needs
    temperature true_t[s].
    """
    rng, sizes = np.random.default_rng(seed), np.diff(tree.offsets)
    species = np.repeat(np.arange(len(counts)), counts)
    logits = np.where(
        np.arange(sizes.max()) < sizes[species][:, None],
        rng.normal(0, 2.5, (len(species), sizes.max())),
        PADDING,
    )
    class_idx = tree.offsets[species] + drawn(logits, rng)
    logits = np.where(logits > PADDING, logits * np.array(true_t)[species][:, None], PADDING)
    return (
        rng.normal(0, 1, (len(species), len(counts))) + 3 * np.eye(len(counts))[species],
        logits,
        class_idx,
    )


def test_species_that_differ_get_their_own_and_those_with_few_pictures_the_global_one():
    tree, true_t = tree_of(4, 4, 4, 4, 4, 1), [0.5, 0.5, 2.0, 2.0, 2.0, 1.0]
    species_logits, logits, class_idx = pictures(tree, [400, 400, 400, 400, 3, 50], true_t)
    got = calibrate.fit_temperatures(species_logits, logits, class_idx, tree)
    assert got.spread > 0.2
    np.testing.assert_allclose(got.disease[:4], true_t[:4], rtol=0.2)
    pull = np.abs(np.log(got.disease / got.disease_global))
    assert pull[4] < 0.6 * pull[:4].min(), "three pictures move little"
    assert got.disease[5] == got.disease_global, "a species with one disease has nothing to fit"
    assert got.species == pytest.approx(
        calibrate.fit_temperature(species_logits, tree.class_species[class_idx])
    )


def test_the_shrinkage_helps_pictures_that_were_not_fitted():
    tree, rng = tree_of(*[4] * 20), np.random.default_rng(3)
    gain = []
    for seed in range(4):
        true_t = np.exp(rng.normal(0, 0.3, 20)).tolist()
        fit, fresh = (
            pictures(tree, [n] * 20, true_t, 2 * seed + k) for k, n in enumerate((25, 200))
        )
        got = calibrate.fit_temperatures(*fit, tree)
        species, truth = (
            tree.class_species[fresh[2]],
            fresh[2] - tree.offsets[tree.class_species[fresh[2]]],
        )
        own = [
            calibrate.fit_temperature(
                fit[1][tree.class_species[fit[2]] == s], fit[2][tree.class_species[fit[2]] == s] % 4
            )
            for s in range(20)
        ]
        losses = [
            nll(fresh[1] / np.asarray(t)[species][:, None], truth, 1.0)
            for t in (got.disease, own, [got.disease_global] * 20)
        ]
        gain.append([losses[1] - losses[0], losses[2] - losses[0]])
    assert (np.mean(gain, 0) > 0).all(), "better than each species alone, and than all alike"


def test_species_that_do_not_differ_get_one_temperature():
    tree = tree_of(*[3] * 6)
    got = [
        calibrate.fit_temperatures(*pictures(tree, [60] * 6, [1.5] * 6, seed), tree)
        for seed in range(6)
    ]
    assert sum(t.spread == 0 and (t.disease == t.disease_global).all() for t in got) >= 3
    assert all(np.ptp(np.log(t.disease)) < 0.35 for t in got)


def test_nothing_to_fit_changes_nothing():
    got = calibrate.fit_temperatures(
        np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(0, int), tree_of(3, 2)
    )
    assert got.species == 1.0
    assert got.disease.tolist() == [1.0, 1.0]
    assert got.spread == 0
    one_level = tree_of(1, 1)
    got = calibrate.fit_temperatures(np.eye(2), np.zeros((2, 1)), np.array([0, 1]), one_level)
    assert got.disease.tolist() == [1.0, 1.0]
    assert got.species < 0.1
    assert got.to_json() == {
        "species": got.species,
        "disease": [1.0, 1.0],
        "disease_global": 1.0,
        "spread": 0.0,
    }


def joint_of(
    tree: ClassTree, n: int, seed: int, t: Temperatures
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    species, classes = (
        rng.normal(0, 2, (n, tree.num_species)),
        rng.normal(0, 2, (n, tree.num_classes)),
    )
    a = np.exp(species / t.species)
    b = np.exp(classes / t.disease[tree.class_species])
    b /= np.add.reduceat(b, tree.offsets[:-1], axis=1)[:, tree.class_species]
    return (a / a.sum(1, keepdims=True))[:, tree.class_species] * b, species, classes


def test_answers_give_their_logits_back_and_move_between_temperatures():
    tree = tree_of(3, 1, 5)
    old, new = (
        Temperatures(0.5, np.array([0.4, 1.0, 3.0])),
        Temperatures(1.7, np.array([0.9, 0.5, 0.8])),
    )
    there, species, classes = joint_of(tree, 40, 1, old)
    np.testing.assert_allclose(
        calibrate.retemper(there.astype(np.float32), tree, old, new),
        joint_of(tree, 40, 1, new)[0],
        atol=2e-6,
    )
    class_idx = np.arange(40) % tree.num_classes
    got_species, got_disease = logits_of(there, class_idx, tree, old)
    np.testing.assert_allclose(
        got_species - got_species[:, :1], species - species[:, :1], atol=1e-6
    )
    for i, s in enumerate(tree.class_species[class_idx]):
        mine = classes[i, tree.offsets[s] : tree.offsets[s + 1]]
        np.testing.assert_allclose(
            got_disease[i, : len(mine)] - got_disease[i, 0], mine - mine[0], atol=1e-6
        )
        assert (got_disease[i, len(mine) :] < -1000).all()
    sure = np.zeros((1, 9), np.float32)
    sure[0, 0] = 1.0
    moved = calibrate.retemper(sure, tree, old, new)
    assert np.isfinite(moved).all()
    assert moved.sum() == pytest.approx(1.0)
    assert moved.argmax() == 0


# endregion

# region calibration error


def test_calibration_error_against_bins_by_hand():
    confidence, right = np.linspace(0.1, 1.0, 30), np.arange(30) % 2 == 0
    order = np.argsort(confidence)
    want = (
        sum(
            abs(confidence[order[i : i + 2]].mean() - right[order[i : i + 2]].mean()) * 2
            for i in range(0, 30, 2)
        )
        / 30
    )
    assert calibrate.calibration_error(confidence, right) == pytest.approx(want)
    assert calibrate.calibration(confidence, right)["counted"] == pytest.approx(want)
    assert calibrate.calibration_error(np.full(100, 0.9), np.zeros(100, bool)) == pytest.approx(0.9)


def calibrated_answers(n: int, sharper: float, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Confidences like those of a good model, answers that come true as those of the sharper one,
    and the true error.
    """
    rng = np.random.default_rng(seed)
    odds = rng.gamma(2.0, 2.0, n)
    confidence, true = 1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(-odds * sharper))
    return confidence, rng.random(n) < true, float(np.abs(confidence - true).mean())


@pytest.mark.parametrize("sharper", [1.0, 0.6, 0.3])
def test_the_estimate_is_closer_to_the_truth_than_the_count_and_its_interval_holds_it(sharper):
    rows = [
        (
            calibrate.calibration(*calibrated_answers(600, sharper, seed)[:2], draws=300),
            calibrated_answers(600, sharper, seed)[2],
        )
        for seed in range(60)
    ]
    counted, error = (
        np.mean([figures[key] - true for figures, true in rows]) for key in ("counted", "error")
    )
    assert -0.006 < error < counted
    assert counted > 0
    assert sum(f["low"] <= true <= f["high"] for f, true in rows) >= 50
    if sharper == 1.0:
        assert np.mean([f["counted"] for f, _ in rows]) == pytest.approx(
            np.mean([f["by_chance"] for f, _ in rows]), rel=0.15
        )
        assert error < 0.75 * counted


def test_figures_of_a_split_by_hand():
    tree = tree_of(2, 1)
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.5, 0.1, 0.4]])
    class_idx, sizes = np.array([0, 0, 2, 2]), np.array([100, 100, 20])
    answers = sum_up(probabilities, class_idx, tree)
    got = calibrate.calibration_figures(answers, tree, sizes)
    assert got["all"]["nll"] == pytest.approx(-np.log([0.6, 0.2, 0.8, 0.4]).mean())
    assert got["all"]["accuracy"] == 0.5
    assert got["species"]["nll"] == pytest.approx(-np.log([0.9, 0.9, 0.8, 0.4]).mean())
    assert got["species"]["accuracy"] == 0.75
    assert got["tail"]["n"] == 2
    assert got["tail"]["nll"] == pytest.approx(-np.log([0.8, 0.4]).mean())
    empty = calibrate.calibration_figures(answers, tree, np.full(3, 100))["tail"]
    assert empty["n"] == 0
    assert np.isnan(empty["error"])
    assert np.isnan(empty["nll"])
    lines = "\n".join(
        calibrate.report_lines(
            got,
            got | {"tail": empty},
            Temperatures(0.5, np.array([0.7, 0.9]), 0.8, 0.2),
            tree.species,
        )
    )
    assert "nan" not in lines
    assert "0.700 (p0) to 0.900 (p1)" in lines
    assert lines.count("class answer, tail") == 1


# endregion
