"""Metrics against naive references."""

import math

import numpy as np
import pytest

from common.classes import ClassTree
from common.decide import rank as ranked
from common.train.metrics import (
    auroc,
    class_figures,
    confused_pairs,
    decision_figures,
    error_budget,
    f1_per_class,
    join,
    judge,
    summarise,
    tail_f1,
)

TREE = ClassTree(("a", "b", "c"), (("u", "v", "w", "x"), ("u",), ("u", "v")))
OFFSETS = [0, 4, 5, 7]


def draws(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    class_idx = rng.integers(0, 6, n)  # class 6 is never true
    logits = rng.normal(0, 1, (n, 7))
    logits[np.arange(n), class_idx] += 1.2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities.astype(np.float32), class_idx


def naive(probabilities: np.ndarray, class_idx: np.ndarray) -> dict[str, float]:
    """Picture by picture, in plain Python."""
    species_of = [0, 0, 0, 0, 1, 2, 2]
    species_right, top1, top3, joint_right, routed_right, nll_s, nll_d = [], [], [], [], [], [], []
    answers = []
    for row, truth in zip(
        probabilities.astype(np.float64).tolist(), class_idx.tolist(), strict=True
    ):
        by_species = [sum(row[OFFSETS[s] : OFFSETS[s + 1]]) for s in range(3)]
        best_species, s = by_species.index(max(by_species)), species_of[truth]
        species_right.append(best_species == s)
        answers.append(row.index(max(row)))
        joint_right.append(answers[-1] == truth)
        inside = row[OFFSETS[best_species] : OFFSETS[best_species + 1]]
        routed_right.append(OFFSETS[best_species] + inside.index(max(inside)) == truth)
        own = sorted(range(OFFSETS[s], OFFSETS[s + 1]), key=lambda i: -row[i])
        nll_s.append(-math.log(by_species[s]))
        if len(own) > 1:
            top1.append(own[0] == truth)
            top3.append(truth in own[:3])
            nll_d.append(-math.log(row[truth] / by_species[s]))
    f1 = []
    for c in range(7):
        hits = sum(a == t == c for a, t in zip(answers, class_idx, strict=True))
        said, there = answers.count(c), int((class_idx == c).sum())
        f1.append(2 * hits / (said + there) if there else None)
    sizes = [100, 80, 81, 20, 500, 80, 3]
    tail = [v for v, n in zip(f1, sizes, strict=True) if v is not None and n <= 80]
    present = [v for v in f1 if v is not None]

    def mean(values):
        return sum(values) / len(values)

    return {
        "n": len(class_idx),
        "species_top1": mean(species_right),
        "disease_top1": mean(top1),
        "disease_top3": mean(top3),
        "cascade_top1": mean(joint_right),
        "routed_top1": mean(routed_right),
        "macro_f1": mean(present),
        "tail_f1": mean(tail),
        "tail_classes": len(tail),
        "species_nll": mean(nll_s),
        "disease_nll": mean(nll_d),
    }


def test_summary_equals_the_naive_one():
    probabilities, class_idx = draws()
    sizes = np.array([100, 80, 81, 20, 500, 80, 3])
    got = summarise(judge(probabilities, class_idx, TREE), TREE, sizes)
    want = naive(probabilities, class_idx)
    assert set(got) == set(want)
    for key in want:
        assert got[key] == pytest.approx(want[key], rel=1e-5), key
    assert 0.2 < got["cascade_top1"] < 0.9
    assert got["disease_top1"] < got["disease_top3"] < 1


def test_batches_join_to_the_whole():
    probabilities, class_idx = draws(50)
    whole, parts = (
        judge(probabilities, class_idx, TREE),
        [judge(probabilities[a:b], class_idx[a:b], TREE) for a, b in ((0, 7), (7, 50))],
    )
    for name, value in vars(join(parts)).items():
        np.testing.assert_array_equal(value, getattr(whole, name), err_msg=name)


def test_ranks_routes_and_flat_answers_by_hand():
    probabilities, class_idx = draws()
    flat = np.random.default_rng(3).integers(0, 7, len(class_idx))
    judged = judge(probabilities, class_idx, TREE, flat)
    np.testing.assert_array_equal(judged.routed, ranked(probabilities, TREE).routed)
    np.testing.assert_array_equal(judged.flat, flat)
    for row, truth, rank in zip(probabilities, class_idx, judged.rank, strict=True):
        s = int(TREE.class_species[truth])
        assert rank == sum(p > row[truth] for p in row[OFFSETS[s] : OFFSETS[s + 1]])
    assert (judge(probabilities, class_idx, TREE).flat == -1).all()


def test_the_summed_species_is_the_species_head():
    """P(species) P(disease | species), as the model makes it: the largest sum over classes is the
    species head's argmax.
    """
    rng = np.random.default_rng(4)
    head = rng.dirichlet(np.ones(3), 300)
    within = np.concatenate([rng.dirichlet(np.ones(n), 300) for n in (4, 1, 2)], axis=1)
    judged = judge(
        (head[:, TREE.class_species] * within).astype(np.float32), rng.integers(0, 7, 300), TREE
    )
    np.testing.assert_array_equal(judged.species, head.argmax(1))
    np.testing.assert_array_equal(TREE.class_species[judged.routed], head.argmax(1))
    assert (judged.joint != judged.routed).any()


def test_budget_and_decisions_by_counting():
    probabilities, class_idx = draws()
    judged = judge(probabilities, class_idx, TREE, flat=probabilities.argmin(1))
    budget, counted = error_budget(judged, TREE), {}
    for truth, joint, routed, species in zip(
        class_idx, judged.joint, judged.routed, judged.species, strict=True
    ):
        s, own = TREE.class_species[truth], TREE.class_species[joint]
        for name, is_so in (
            ("wrong", joint != truth),
            ("species_errors", own != s),
            ("disease_errors", own == s and joint != truth),
            ("routing_losses", joint == truth != routed),
            ("routing_gains", routed == truth != joint),
            ("species_head_only", own != s and species == s),
        ):
            counted[name] = counted.get(name, 0) + int(is_so)
    assert budget == {**counted, "n": 200}
    assert budget["wrong"] == budget["species_errors"] + budget["disease_errors"]
    assert min(budget.values()) > 0, "every kind of error occurs in this test"
    summary, ways = summarise(judged, TREE, np.full(7, 9)), decision_figures(judged, TREE)
    assert ways["joint"]["class"] == summary["cascade_top1"]
    assert ways["joint"]["macro_f1"] == summary["macro_f1"]
    assert ways["routed"]["class"] == summary["routed_top1"]
    assert ways["routed"]["species"] == summary["species_top1"]
    assert ways["joint"]["species"] == 1 - budget["species_errors"] / 200
    assert ways["flat"]["class"] == (probabilities.argmin(1) == class_idx).mean()
    assert ways["routed"]["class"] - ways["joint"]["class"] == pytest.approx(
        (budget["routing_gains"] - budget["routing_losses"]) / 200
    )
    assert set(decision_figures(judge(probabilities, class_idx, TREE), TREE)) == {"joint", "routed"}


def test_class_figures_by_counting():
    probabilities, class_idx = draws()
    judged = judge(probabilities, class_idx, TREE)
    figures = class_figures(judged, TREE)
    for c in range(7):
        mine, said = class_idx == c, judged.joint == c
        assert (figures.present[c], figures.said[c], figures.hits[c]) == (
            mine.sum(),
            said.sum(),
            (mine & said).sum(),
        )
        np.testing.assert_equal(figures.precision[c], (mine & said).sum() / said.sum())
        np.testing.assert_equal(
            figures.recall[c], (mine & said).sum() / mine.sum() if mine.any() else np.nan
        )
        wrong = np.bincount(judged.joint[mine & ~said], minlength=7)
        assert figures.taken[c] == wrong.max()
        assert figures.taken_for[c] == (wrong.argmax() if wrong.any() else -1)
    assert figures.taken_for[6] == -1
    assert np.isnan(figures.f1[6])
    sizes = np.array([100, 80, 81, 20, 500, 80, 3])
    rare = tail_f1(judged, TREE, sizes)
    assert rare == {TREE.class_name(i): pytest.approx(figures.f1[i]) for i in (1, 3, 5)}


def test_confused_pairs_come_most_frequent_first():
    pairs, counts = confused_pairs(np.array([3, 0, 1, 3, 3, 2]), np.array([1, 9, 1, 1, 0, 0]))
    assert pairs.tolist() == [[3, 1], [0, 9], [2, 0], [3, 0]]
    assert counts.tolist() == [2, 1, 1, 1]
    assert len(confused_pairs(np.arange(3), np.arange(3))[0]) == 0


def test_f1():
    truth, said = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 2, 3])
    np.testing.assert_allclose(
        f1_per_class(truth, said, 5), [2 * 2 / (3 + 2), 2 * 1 / (2 + 2), np.nan, 1.0, np.nan]
    )


def test_a_tree_without_diseases_and_an_empty_tail():
    flat = ClassTree(("a", "b"), (("a",), ("b",)))
    got = summarise(
        judge(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]), flat),
        flat,
        np.array([100, 100]),
    )
    assert got["species_top1"] == got["cascade_top1"] == 0.5
    assert got["disease_top1"] == 1
    assert got["disease_nll"] == 0
    assert math.isnan(got["tail_f1"])
    assert got["tail_classes"] == 0


def test_impossible_pictures_have_finite_losses():
    judged = judge(np.array([[1.0, 0, 0, 0, 0, 0, 0]], np.float32), np.array([5]), TREE)
    assert np.isfinite(judged.species_nll).all()
    assert np.isfinite(judged.disease_nll).all()


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_counts_pairs(ties):
    rng = np.random.default_rng(1)
    known, strange = rng.normal(0, 1, 40), rng.normal(0.7, 1, 30)
    if ties:
        known, strange = known.round(), strange.round()
    wins = np.mean([1.0 if s > k else 0.5 if s == k else 0.0 for s in strange for k in known])
    assert auroc(known, strange) == pytest.approx(wins, abs=1e-12)


def test_auroc_at_the_ends():
    assert auroc(np.zeros(5), np.ones(4)) == 1
    assert auroc(np.ones(5), np.zeros(4)) == 0
    assert auroc(np.ones(5), np.ones(4)) == 0.5
