"""The answer rule: joint against routed, roll-up, rejection, and its edges."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from common.classes import ClassTree
from common.decide import (
    ANSWERED,
    NOT_A_PLANT,
    ROLLED_UP,
    UNKNOWN_SPECIES,
    UNSURE,
    Rejection,
    Rollup,
    ScoreThreshold,
    decide,
    decide_batch,
    joint_class,
    rank,
    rejection_from_json,
    rollups_from_json,
    species_probabilities,
)
from common.serve.texts import english, message

pytestmark = pytest.mark.smoke

TREE = ClassTree(
    ("apple", "basil", "corn"), (("healthy", "rust", "scab"), ("healthy",), ("blight", "healthy"))
)
PERCENTILES = tuple(np.linspace(0.0, 3.0, 101))
THRESHOLD = ScoreThreshold("gen", (0.0, 1.0), 2.0, PERCENTILES)
REJECTION = Rejection(THRESHOLD)
ALL_THRESHOLDS = Rejection(
    THRESHOLD,
    ScoreThreshold("far", (-1.0, 2.0), -4.0, PERCENTILES),
    ScoreThreshold("leaf", (1.0, 0.0), 9.2, PERCENTILES),
    {"brightness": 0.2, "sharpness": 0.01, "short_side": 200.0},
)
ROLLUP = Rollup(0.6, 0.7, 0.95)
CALM = np.array([9.0, 0.5])  # the first score is another one and must not matter


def test_species_probabilities_sum_the_segments_of_each_species():
    probs = np.random.default_rng(0).dirichlet(np.ones(6), size=50).astype(np.float32)
    expected = np.stack([probs[:, :3].sum(1), probs[:, 3], probs[:, 4:].sum(1)], axis=1)
    np.testing.assert_allclose(species_probabilities(probs, TREE), expected, atol=1e-6)


def test_joint_and_routed_differ_where_a_species_spreads_over_its_classes():
    probs = np.array([[0.19, 0.18, 0.18, 0.45, 0.0, 0.0], [0.0, 0.1, 0.8, 0.1, 0.0, 0.0]])
    assert joint_class(probs, TREE).tolist() == [3, 2]
    assert rank(probs, TREE).routed.tolist() == [0, 2]


def test_routed_equals_a_loop_over_random_rows():
    probs = np.random.default_rng(1).dirichlet(np.full(6, 0.3), size=200)
    segments = [probs[:, a:b] for a, b in zip(TREE.offsets[:-1], TREE.offsets[1:], strict=True)]
    best = np.stack([part.sum(1) for part in segments], axis=1).argmax(1)
    expected = [int(TREE.offsets[s] + segments[s][row].argmax()) for row, s in enumerate(best)]
    assert rank(probs, TREE).routed.tolist() == expected


def test_a_sure_class_is_answered_with_its_path_and_alternatives():
    answer = decide(
        np.array([0.05, 0.05, 0.85, 0.02, 0.03, 0.0]), CALM, TREE, REJECTION, ROLLUP, top_k=2
    )
    assert (answer.decision, answer.level, answer.species, answer.disease) == (
        "answered",
        "disease",
        "apple",
        "scab",
    )
    assert answer.healthy is False
    assert answer.probabilities == {
        "species": 0.95,
        "disease_given_species": pytest.approx(0.85 / 0.95, rel=1e-5),
        "joint": 0.85,
    }
    assert answer.path == [
        {"level": "species", "name": "apple", "probability": 0.95},
        {"level": "disease", "name": "scab", "probability": 0.85},
    ]
    assert [item["disease"] for item in answer.alternatives] == ["scab", "healthy"]
    assert answer.rejection["rejected"] is False
    assert answer.rejection["reason"] is None
    json.dumps(asdict(answer), allow_nan=False)


def test_healthy_is_told_and_only_where_it_is_known():
    assert decide(np.array([0.9, 0.1, 0, 0, 0, 0]), CALM, TREE, REJECTION, ROLLUP).healthy is True
    assert decide(np.array([0.5, 0.5, 0, 0, 0, 0]), CALM, TREE, REJECTION, ROLLUP).healthy is None


def test_an_unsure_disease_rolls_up_to_its_species():
    answer = decide(np.array([0.0, 0.5, 0.45, 0.05, 0.0, 0.0]), CALM, TREE, REJECTION, ROLLUP)
    assert (answer.decision, answer.level, answer.species, answer.disease) == (
        "rolled_up",
        "species",
        "apple",
        None,
    )
    assert [step["level"] for step in answer.path] == ["species"]
    assert answer.rejection["rejected"] is False


def test_an_unsure_species_is_rejected_but_the_best_guess_is_told():
    answer = decide(np.array([0.0, 0.4, 0.0, 0.3, 0.3, 0.0]), CALM, TREE, REJECTION, ROLLUP)
    assert (answer.decision, answer.level, answer.species, answer.disease) == (
        "rejected",
        "none",
        None,
        None,
    )
    assert answer.rejection["reason"] == "unsure"
    assert answer.alternatives[0] == {"species": "apple", "disease": "rust", "probability": 0.4}
    assert answer.path == []


def test_a_picture_out_of_distribution_is_rejected_however_sure_the_model_is():
    answer = decide(
        np.array([0.0, 0.0, 1.0, 0, 0, 0]), np.array([0.0, 2.5]), TREE, REJECTION, ROLLUP
    )
    assert answer.decision == "rejected"
    assert answer.species is None
    assert answer.rejection == {
        "rejected": True,
        "reason": "not_a_plant",
        "photo": [],
        "score": "gen",
        "value": 2.5,
        "threshold": 2.0,
        "quantile": pytest.approx(2.5 / 3),
    }


def test_the_threshold_itself_is_still_accepted_and_nan_is_not():
    probs = np.array([0.0, 0.0, 1.0, 0, 0, 0])
    assert decide(probs, np.array([0.0, 2.0]), TREE, REJECTION, ROLLUP).decision == "answered"
    lost = decide(probs, np.array([0.0, np.nan]), TREE, REJECTION, ROLLUP)
    assert lost.rejection["reason"] == "not_a_plant"
    assert lost.rejection["value"] is None
    json.dumps(asdict(lost), allow_nan=False)


def test_without_rollup_or_rejection_a_class_is_always_answered():
    answer = decide(np.full(6, 1 / 6), np.array([1e9, 1e9]), TREE, None, None)
    assert answer.decision == "answered"
    assert answer.disease is not None
    assert answer.rejection["score"] is None
    assert answer.rejection["quantile"] is None


def test_the_species_level_answers_the_most_probable_species_not_the_best_class():
    probs = np.array([0.19, 0.18, 0.18, 0.45, 0.0, 0.0])  # best leaf: basil; best species: apple
    answer = decide(probs, CALM, TREE, None, Rollup(0.6, 0.5))
    assert (answer.decision, answer.species, answer.disease) == ("rolled_up", "apple", None)
    assert answer.probabilities["species"] == pytest.approx(0.55)


def test_a_species_with_one_class_is_answered_at_the_bar_of_species():
    probs = np.array([0.1, 0.0, 0.0, 0.65, 0.25, 0.0])
    answer = decide(probs, CALM, TREE, None, Rollup(0.9, 0.6))
    assert (answer.decision, answer.level, answer.species, answer.disease) == (
        "answered",
        "disease",
        "basil",
        "healthy",
    )
    assert answer.probabilities["disease_given_species"] == 1.0


def test_a_flat_tree_answers_its_class_as_species_and_class():
    flat = ClassTree(("cat", "dog"), (("cat",), ("dog",)))
    answer = decide(np.array([0.2, 0.8]), CALM, flat, None, Rollup(0.7, 0.7))
    assert (answer.decision, answer.level, answer.species, answer.disease) == (
        "answered",
        "disease",
        "dog",
        "dog",
    )
    assert answer.healthy is None


@pytest.mark.parametrize("mode", ["joint", "routed"])
def test_the_batch_rule_agrees_with_the_single_one(mode):
    rng = np.random.default_rng(2)
    probs, ood = rng.dirichlet(np.full(6, 0.3), size=300), rng.uniform(0, 2.4, size=(300, 2))
    ood[:, 0] *= 4.5
    batch = decide_batch(rank(probs, TREE), ood, TREE, ALL_THRESHOLDS, ROLLUP, mode=mode)
    words = {
        ANSWERED: "answered",
        ROLLED_UP: "rolled_up",
        NOT_A_PLANT: "rejected",
        UNKNOWN_SPECIES: "rejected",
        UNSURE: "rejected",
    }
    assert set(batch.outcome.tolist()) == set(words)  # the sample meets every outcome
    for row in range(300):
        single = decide(probs[row], ood[row], TREE, ALL_THRESHOLDS, ROLLUP, mode=mode)
        assert single.decision == words[int(batch.outcome[row])]
        assert (single.rejection["reason"] == "unknown_disease") == (
            batch.outcome[row] == ROLLED_UP and batch.unknown_disease[row]
        )
        if single.species:
            assert single.species == TREE.species[batch.species[row]]
        if single.disease:
            assert (single.species, single.disease) == TREE.pair(int(batch.class_idx[row]))


def test_quantiles_interpolate_and_end_at_zero_and_one():
    assert THRESHOLD.quantile(1.5) == pytest.approx(0.5)
    assert THRESHOLD.quantile(-4) == 0.0
    assert THRESHOLD.quantile(3.0) == 1.0
    assert THRESHOLD.quantile(99) == 1.0
    assert THRESHOLD.quantile(float("nan")) == 1.0
    assert replace(THRESHOLD, quantiles=(1.0,) * 101).quantile(1.0) == 1.0


def test_top_k_is_bounded_by_the_classes():
    assert len(decide(np.full(6, 1 / 6), CALM, TREE, None, None, top_k=99).alternatives) == 6


def test_wrong_shapes_and_modes_are_rejected():
    with pytest.raises(ValueError, match="6 classes"):
        decide(np.ones(5) / 5, CALM, TREE, None, None)
    with pytest.raises(ValueError, match="unknown mode 'best'"):
        decide(np.ones(6) / 6, CALM, TREE, None, None, mode="best")
    with pytest.raises(ValueError, match="made of 2 scores, but there are 1"):
        decide(np.ones(6) / 6, np.zeros(1), TREE, REJECTION, None)
    with pytest.raises(ValueError, match="do not belong"):
        decide_batch(rank(np.ones((2, 6)) / 6, TREE), np.zeros((3, 2)), TREE, None, None)


def test_a_plant_of_no_species_we_know_is_told_apart_from_no_plant():
    sure = np.array([0.0, 0.0, 1.0, 0, 0, 0])
    answer = decide(
        sure, np.array([9.1, 2.1]), TREE, ALL_THRESHOLDS, ROLLUP
    )  # 2 x 2.1 - 9.1 lies below -4
    assert (answer.decision, answer.species) == ("rejected", None)
    assert answer.path == []
    assert answer.rejection["reason"] == "unknown_species"
    assert answer.rejection["score"] == "gen"
    assert answer.rejection["value"] == pytest.approx(2.1)
    assert answer.rejection["threshold"] == 2.0
    assert (
        decide(sure, np.array([9.1, 2.6]), TREE, ALL_THRESHOLDS, ROLLUP).rejection["reason"]
        == "not_a_plant"
    )
    assert (
        decide(sure, np.array([0.0, 1.9]), TREE, ALL_THRESHOLDS, ROLLUP).decision == "answered"
    ), "the plant threshold alone rejects nothing"


def test_a_disease_we_do_not_know_keeps_the_answer_at_the_species():
    strange = np.array([9.4, 0.2])
    answer = decide(np.array([0.0, 0.02, 0.98, 0, 0, 0]), strange, TREE, ALL_THRESHOLDS, ROLLUP)
    assert (answer.decision, answer.level, answer.species, answer.disease) == (
        "rolled_up",
        "species",
        "apple",
        None,
    )
    assert answer.rejection["rejected"] is False
    assert answer.rejection["reason"] == "unknown_disease"
    assert answer.rejection["score"] == "leaf"
    only = decide(np.array([0.0, 0.0, 0.0, 1.0, 0, 0]), strange, TREE, ALL_THRESHOLDS, ROLLUP)
    assert (only.decision, only.disease) == ("answered", "healthy"), (
        "a species of one class has no disease threshold"
    )
    unsure = decide(np.array([0.0, 0.3, 0.35, 0.35, 0, 0]), strange, TREE, ALL_THRESHOLDS, ROLLUP)
    assert unsure.rejection["reason"] == "unsure"
    assert (
        decide(np.array([0.0, 0.0, 1.0, 0, 0, 0]), strange, TREE, ALL_THRESHOLDS, None).decision
        == "rolled_up"
    )


def test_a_poor_photo_explains_a_rejection_and_never_causes_one():
    sure, torn = np.array([0.0, 0.0, 1.0, 0, 0, 0]), np.full(6, 1 / 6)
    poor = {"brightness": 0.0812, "sharpness": 0.5, "short_side": 96}
    good = decide(sure, CALM, TREE, ALL_THRESHOLDS, ROLLUP, photo=poor)
    assert good.decision == "answered"
    assert good.rejection["reason"] is None
    assert [row["measure"] for row in good.rejection["photo"]] == ["short_side", "brightness"]
    for ood in (CALM, np.array([0.0, 5.0])):
        answer = decide(torn, ood, TREE, ALL_THRESHOLDS, ROLLUP, photo=poor)
        assert answer.decision == "rejected"
        assert answer.rejection["reason"] == "small"
        assert [
            (row["measure"], row["value"], row["limit"]) for row in answer.rejection["photo"]
        ] == [("short_side", 96, 200), ("brightness", 0.0812, 0.2)]
    dark = decide(
        torn,
        CALM,
        TREE,
        ALL_THRESHOLDS,
        ROLLUP,
        photo={"brightness": 0.0812, "sharpness": 0.01, "short_side": 200},
    )
    assert dark.rejection["reason"] == "dark"
    blurred = decide(torn, CALM, TREE, ALL_THRESHOLDS, ROLLUP, photo={"sharpness": 0.0031})
    assert blurred.rejection["reason"] == "blurred"
    rolled = decide(
        np.array([0.0, 0.5, 0.45, 0.05, 0.0, 0.0]),
        np.array([0.0, 0.0]),
        TREE,
        ALL_THRESHOLDS,
        ROLLUP,
        photo=poor,
    )
    assert rolled.decision == "rolled_up"
    assert rolled.rejection["reason"] is None
    assert len(rolled.rejection["photo"]) == 2
    assert (
        decide(torn, CALM, TREE, REJECTION, ROLLUP, photo=poor).rejection["reason"] == "unsure"
    ), "no limits were fitted"
    json.dumps(asdict(dark), allow_nan=False)


def test_what_is_all_but_black_is_rejected_however_sure_the_model_is():
    sure, rolled = np.array([0.0, 0.0, 1.0, 0, 0, 0]), np.array([0.0, 0.5, 0.45, 0.05, 0.0, 0.0])
    for probabilities in (sure, rolled):
        for brightness, rejected in ((0.049, True), (0.051, False)):  # a quarter of 0.2
            answer = decide(
                probabilities,
                CALM,
                TREE,
                ALL_THRESHOLDS,
                ROLLUP,
                photo={"brightness": brightness, "sharpness": 0.5, "short_side": 300},
            )
            assert answer.rejection["rejected"] == rejected
            assert (answer.decision == "rejected") == rejected
            assert (answer.rejection["reason"] == "dark") == rejected
            assert (answer.species is None) == rejected
    assert decide(sure, CALM, TREE, None, ROLLUP, photo={"brightness": 0.0}).decision == "answered"


def test_every_reason_has_a_sentence_of_what_is_wrong_and_one_of_what_to_do():
    """Without numbers, which no grower can use."""
    answers = [
        decide(np.full(6, 1 / 6), CALM, TREE, ALL_THRESHOLDS, ROLLUP, photo={name: 0.0})
        for name in ALL_THRESHOLDS.photo
    ]
    answers += [
        decide(np.eye(6)[2], np.array(ood), TREE, ALL_THRESHOLDS, ROLLUP)
        for ood in ([0, 3.0], [9.1, 2.1], [9.4, 0.2])
    ]
    answers.append(decide(np.full(6, 1 / 6), CALM, TREE, None, ROLLUP))
    reasons = [answer.rejection["reason"] for answer in answers]
    assert reasons == [
        "dark",
        "blurred",
        "small",
        "not_a_plant",
        "unknown_species",
        "unknown_disease",
        "unsure",
    ]
    for answer in answers:
        problem, advice = (
            english()[f"{key}_{answer.rejection['reason']}"] for key in ("why", "do")
        )
        assert message(answer.rejection, english()) == f"{problem} {advice}"
        assert problem.endswith(".")
        assert advice.endswith(".")
        assert not re.search("[0-9{}%]", problem + advice)
    assert message({"reason": None}, english()) is None


def test_thresholds_are_read_from_json_and_nonsense_is_rejected():
    plain = {
        "score": "gen+msp",
        "weights": {"gen": 2, "msp": 0.5},
        "threshold": 1.5,
        "quantiles": list(range(101)),
    }
    got = rejection_from_json(
        {**plain, "plant": {**plain, "weights": {"msp": 1}}, "photo": {"brightness": 0.1}},
        ["msp", "gen", "x"],
    )
    assert got.ood.weights == (0.5, 2.0, 0.0)
    assert got.plant.weights == (1.0, 0.0, 0.0)
    assert got.disease is None
    assert (got.ood.score, got.ood.threshold, got.photo) == ("gen+msp", 1.5, {"brightness": 0.1})
    assert got.ood.value(np.array([[2.0, 3.0, np.nan]])).tolist() == [7.0], (
        "what has no weight does not matter"
    )
    alone = rejection_from_json(
        {"score": "gen", "threshold": 0.0, "quantiles": [0.0] * 101}, ["msp", "gen"]
    )
    assert alone.ood.weights == (0.0, 1.0)
    assert alone.photo == {}
    assert rejection_from_json(None, []) is None
    for wrong in (
        {"weights": {"other": 1}},
        {"threshold": float("nan")},
        {"quantiles": [1, 2]},
        {"weights": {"gen": float("inf")}},
        {"quantiles": list(range(101))[::-1]},
        {"photo": {"smell": 1}},
        {"photo": {"brightness": float("nan")}},
        {"plant": {**plain, "quantiles": []}},
    ):
        with pytest.raises(ValueError):
            rejection_from_json({**plain, **wrong}, ["msp", "gen"])


def test_rollups_are_read_by_precision_the_default_first():
    plain = {
        "default": "0.95",
        "precisions": {
            "0.90": {"disease": 0.5, "species": 0.4},
            "0.95": {"disease": 0.6, "species": 1.1},
        },
    }
    got = rollups_from_json(plain)
    assert list(got.items()) == [("0.95", Rollup(0.6, 1.1, 0.95)), ("0.90", Rollup(0.5, 0.4, 0.9))]
    assert rollups_from_json(None) == {}
    for wrong in ({"disease": -0.1, "species": 0.5}, {"disease": float("nan"), "species": 0.5}):
        with pytest.raises(ValueError):
            rollups_from_json({**plain, "precisions": {"0.95": wrong}})
    with pytest.raises(ValueError, match="'0.5' is not among 0.90, 0.95"):
        rollups_from_json({**plain, "default": "0.5"})
