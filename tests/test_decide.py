"""The answer rule: joint against routed, roll-up, refusal, and its edges."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from common.decide import (
    ANSWERED,
    ROLLED_UP,
    STRANGER,
    UNSURE,
    Rejection,
    Rollup,
    decide,
    decide_batch,
    joint_leaf,
    rejection_from_json,
    rollup_from_json,
    routed_leaf,
    species_probabilities,
)
from common.taxonomy import ClassTree

TREE = ClassTree(("apple", "basil", "corn"), (("healthy", "rust", "scab"), ("healthy",), ("blight", "healthy")))
REJECTION = Rejection("gen", 1, 2.0, tuple(np.linspace(0.0, 3.0, 101)))
ROLLUP = Rollup(0.6, 0.7, 0.95)
CALM = np.array([9.0, 0.5])  # the first score is another one and must not matter


def test_species_probabilities_sum_the_segments_of_each_species():
    probs = np.random.default_rng(0).dirichlet(np.ones(6), size=50).astype(np.float32)
    expected = np.stack([probs[:, :3].sum(1), probs[:, 3], probs[:, 4:].sum(1)], axis=1)
    np.testing.assert_allclose(species_probabilities(probs, TREE), expected, atol=1e-6)


def test_joint_and_routed_differ_where_a_species_spreads_over_its_leaves():
    probs = np.array([[0.19, 0.18, 0.18, 0.45, 0.0, 0.0], [0.0, 0.1, 0.8, 0.1, 0.0, 0.0]])
    assert joint_leaf(probs, TREE).tolist() == [3, 2]
    assert routed_leaf(probs, TREE).tolist() == [0, 2]


def test_routed_equals_a_loop_over_random_rows():
    probs = np.random.default_rng(1).dirichlet(np.full(6, 0.3), size=200)
    segments = [probs[:, a:b] for a, b in zip(TREE.offsets[:-1], TREE.offsets[1:], strict=True)]
    best = np.stack([part.sum(1) for part in segments], axis=1).argmax(1)
    expected = [int(TREE.offsets[s] + segments[s][row].argmax()) for row, s in enumerate(best)]
    assert routed_leaf(probs, TREE).tolist() == expected


def test_a_sure_leaf_is_answered_with_its_path_and_alternatives():
    answer = decide(np.array([0.05, 0.05, 0.85, 0.02, 0.03, 0.0]), CALM, TREE, REJECTION, ROLLUP, top_k=2)
    assert (answer.decision, answer.level, answer.species, answer.disease) == ("answered", "leaf", "apple", "scab")
    assert answer.healthy is False
    assert answer.probabilities == {"species": 0.95, "disease_given_species": pytest.approx(0.85 / 0.95, rel=1e-5),
                                    "leaf": 0.85}
    assert answer.path == [{"level": "species", "name": "apple", "probability": 0.95},
                           {"level": "leaf", "name": "scab", "probability": 0.85}]
    assert [item["disease"] for item in answer.alternatives] == ["scab", "healthy"]
    assert answer.rejection["rejected"] is False and answer.rejection["reason"] is None
    json.dumps(answer.to_dict(), allow_nan=False)


def test_healthy_is_told_and_only_where_it_is_known():
    assert decide(np.array([0.9, 0.1, 0, 0, 0, 0]), CALM, TREE, REJECTION, ROLLUP).healthy is True
    assert decide(np.array([0.5, 0.5, 0, 0, 0, 0]), CALM, TREE, REJECTION, ROLLUP).healthy is None


def test_an_unsure_disease_rolls_up_to_its_species():
    answer = decide(np.array([0.0, 0.5, 0.45, 0.05, 0.0, 0.0]), CALM, TREE, REJECTION, ROLLUP)
    assert (answer.decision, answer.level, answer.species, answer.disease) == ("rolled_up", "species", "apple", None)
    assert [step["level"] for step in answer.path] == ["species"]
    assert answer.rejection["rejected"] is False


def test_an_unsure_species_is_refused_but_the_best_guess_is_told():
    answer = decide(np.array([0.0, 0.4, 0.0, 0.3, 0.3, 0.0]), CALM, TREE, REJECTION, ROLLUP)
    assert (answer.decision, answer.level, answer.species, answer.disease) == ("rejected", "none", None, None)
    assert answer.rejection["reason"] == "unsure" and "photo" in answer.rejection["message"]
    assert answer.alternatives[0] == {"species": "apple", "disease": "rust", "probability": 0.4}
    assert answer.path == []


def test_a_stranger_is_refused_however_sure_the_model_is():
    answer = decide(np.array([0.0, 0.0, 1.0, 0, 0, 0]), np.array([0.0, 2.5]), TREE, REJECTION, ROLLUP)
    assert answer.decision == "rejected" and answer.species is None
    assert answer.rejection == {"rejected": True, "reason": "stranger", "message": answer.rejection["message"],
                                "score": "gen", "value": 2.5, "threshold": 2.0, "quantile": pytest.approx(2.5 / 3)}
    assert "plant" in answer.rejection["message"]


def test_the_threshold_itself_is_still_accepted_and_nan_is_not():
    probs = np.array([0.0, 0.0, 1.0, 0, 0, 0])
    assert decide(probs, np.array([0.0, 2.0]), TREE, REJECTION, ROLLUP).decision == "answered"
    lost = decide(probs, np.array([0.0, np.nan]), TREE, REJECTION, ROLLUP)
    assert lost.rejection["reason"] == "stranger" and lost.rejection["value"] is None
    json.dumps(lost.to_dict(), allow_nan=False)


def test_without_rollup_or_rejection_a_leaf_is_always_answered():
    answer = decide(np.full(6, 1 / 6), np.array([1e9, 1e9]), TREE, None, None)
    assert answer.decision == "answered" and answer.disease is not None
    assert answer.rejection["score"] is None and answer.rejection["quantile"] is None


def test_the_species_level_answers_the_most_probable_species_not_the_best_leafs():
    probs = np.array([0.19, 0.18, 0.18, 0.45, 0.0, 0.0])  # best leaf: basil; best species: apple
    answer = decide(probs, CALM, TREE, None, Rollup(0.6, 0.5))
    assert (answer.decision, answer.species, answer.disease) == ("rolled_up", "apple", None)
    assert answer.probabilities["species"] == pytest.approx(0.55)


def test_a_species_with_one_leaf_is_answered_at_the_bar_of_species():
    probs = np.array([0.1, 0.0, 0.0, 0.65, 0.25, 0.0])
    answer = decide(probs, CALM, TREE, None, Rollup(0.9, 0.6))
    assert (answer.decision, answer.level, answer.species, answer.disease) == ("answered", "leaf", "basil", "healthy")
    assert answer.probabilities["disease_given_species"] == 1.0


def test_a_flat_tree_answers_its_class_as_species_and_leaf():
    flat = ClassTree(("cat", "dog"), (("cat",), ("dog",)))
    answer = decide(np.array([0.2, 0.8]), CALM, flat, None, Rollup(0.7, 0.7))
    assert (answer.decision, answer.level, answer.species, answer.disease) == ("answered", "leaf", "dog", "dog")
    assert answer.healthy is None


@pytest.mark.parametrize("mode", ["joint", "routed"])
def test_the_batch_rule_agrees_with_the_single_one(mode):
    rng = np.random.default_rng(2)
    probs, ood = rng.dirichlet(np.full(6, 0.3), size=300), rng.uniform(0, 2.4, size=(300, 2))
    batch = decide_batch(probs, ood, TREE, REJECTION, ROLLUP, mode=mode)
    words = {ANSWERED: "answered", ROLLED_UP: "rolled_up", STRANGER: "rejected", UNSURE: "rejected"}
    assert set(batch.outcome.tolist()) == set(words)  # the sample meets every outcome
    for row in range(300):
        single = decide(probs[row], ood[row], TREE, REJECTION, ROLLUP, mode=mode)
        assert single.decision == words[int(batch.outcome[row])]
        if single.species:
            assert single.species == TREE.species[batch.species[row]]
        if single.disease:
            assert (single.species, single.disease) == TREE.leaf(int(batch.leaf[row]))


def test_quantiles_interpolate_and_end_at_zero_and_one():
    assert REJECTION.quantile(1.5) == pytest.approx(0.5)
    assert REJECTION.quantile(-4) == 0.0 and REJECTION.quantile(3.0) == 1.0 and REJECTION.quantile(99) == 1.0
    assert REJECTION.quantile(float("nan")) == 1.0
    assert replace(REJECTION, quantiles=(1.0,) * 101).quantile(1.0) == 1.0


def test_top_k_is_bounded_by_the_leaves():
    assert len(decide(np.full(6, 1 / 6), CALM, TREE, None, None, top_k=99).alternatives) == 6


def test_wrong_shapes_and_modes_are_refused():
    with pytest.raises(ValueError, match="6 leaves"):
        decide(np.ones(5) / 5, CALM, TREE, None, None)
    with pytest.raises(ValueError, match="unknown mode 'best'"):
        decide(np.ones(6) / 6, CALM, TREE, None, None, mode="best")
    with pytest.raises(ValueError, match="column 1"):
        decide(np.ones(6) / 6, np.zeros(1), TREE, REJECTION, None)
    with pytest.raises(ValueError, match="do not belong"):
        decide_batch(np.ones((2, 6)) / 6, np.zeros((3, 2)), TREE, None, None)


def test_thresholds_are_read_from_json_and_nonsense_is_refused():
    plain = {"score": "gen", "threshold": 1.5, "quantiles": list(range(101))}
    assert rejection_from_json(plain, ["msp", "gen"]).column == 1
    assert rejection_from_json(None, []) is None and rollup_from_json(None) is None
    for wrong in ({"score": "other"}, {"threshold": float("nan")}, {"quantiles": [1, 2]},
                  {"quantiles": list(range(101))[::-1]}):
        with pytest.raises(ValueError):
            rejection_from_json({**plain, **wrong}, ["msp", "gen"])
    assert rollup_from_json({"leaf": 0.5, "species": 1.1}) == Rollup(0.5, 1.1, None)
    for wrong in ({"leaf": -0.1, "species": 0.5}, {"leaf": float("nan"), "species": 0.5}):
        with pytest.raises(ValueError):
            rollup_from_json(wrong)
