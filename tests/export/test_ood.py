"""The bars against strangers: chosen on val, kept on fresh pictures, honest where there is little
to go by.
"""

import json

import numpy as np
import pytest

from common.classes import ClassTree
from common.decide import NOT_A_PLANT, UNKNOWN_SPECIES, decide_batch, rank, rejection_from_json
from common.export import ood
from common.export.bounds import at_least, lower

pytestmark = pytest.mark.smoke

NAMES = ("gen", "mahalanobis", "mahalanobis_class", "layers")
FAR, NEAR, SICK = (1.0, 3.0, 3.0, 8.0), (5.0, 6.0, 6.0, 0.0), (0.0, 0.0, 6.0, 0.0)


def draw(seed: int, n: int = 600, moved: tuple[float, ...] = (0, 0, 0, 0)) -> dict[str, np.ndarray]:
    """Scores of n pictures, normal about `moved`, in units that differ between the scores."""
    values = np.random.default_rng(seed).normal(np.array(moved), 1, (n, 4)) * (0.1, 1, 1, 20) + (
        3,
        10,
        10,
        60,
    )
    return ood.columns(values.astype(np.float32), NAMES)


def matrix(scores: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([scores[name] for name in NAMES], axis=1)


PLANTS = draw(20, 2000)


@pytest.fixture(scope="module")
def fitted() -> dict:
    return ood.fit(
        PLANTS,
        not_plants=draw(1, 300, FAR),
        unknown_species=draw(2, 100, NEAR),
        unknown_diseases=draw(3, 100, SICK),
    )


def test_strangers_choose_the_scores_and_fresh_pictures_keep_the_promise(fitted):
    assert fitted["score"] == "gen+mahalanobis_class+layers"
    assert set(fitted["val"]["ranking"]) == {
        fitted["score"],
        "gen+mahalanobis_class",
    }
    assert fitted["val"]["false_rejection_rate"] <= 0.01
    assert fitted["val"]["rejected"]["not_plants"] > 0.98
    assert fitted["val"]["shown"] == {
        "not_plants": 300,
        "unknown_species": 100,
        "unknown_diseases": 100,
    }
    judged = ood.judge(
        fitted, draw(4, 4000), {"far": draw(5, 500, FAR), "near": draw(6, 500, NEAR)}
    )
    assert judged["false_rejection_rate"] <= 0.013
    assert judged["kinds"]["far"]["rejected"] > 0.97
    assert judged["kinds"]["near"]["rejected"] > 0.9
    assert judged["kinds"]["far"]["not_a_plant"] > 0.95
    assert judged["kinds"]["near"]["not_a_plant"] < 0.05


def test_a_learned_score_counts_for_what_it_is_worth():
    """It is in the sum where it separates, and not where it does not; the scores that need no
    strangers always are.
    """
    strange, rng = draw(1, 300, (1.5, 1.5, 1.5, 1.5)), np.random.default_rng(7)
    names = {}
    for worth in (8.0, 0.0):
        plants = {**PLANTS, "learned": rng.normal(0, 2, 2000)}
        got = ood.fit(plants, not_plants={**strange, "learned": rng.normal(2 * worth, 2, 300)})
        names[worth] = got["score"]
        assert {"gen", "mahalanobis_class"} <= set(got["weights"])
        assert got["weights"]["gen"] == pytest.approx(1 / plants["gen"].std())
        assert got["plant"]["score"] == "learned"
    assert "learned" in names[8.0]
    assert "learned" not in names[0.0]


@pytest.mark.parametrize(
    "kinds", [("not_plants",), ("unknown_species",), ("not_plants", "unknown_species"), ()]
)
def test_what_is_refused_is_called_by_what_was_shown(kinds):
    pictures = {"not_plants": draw(1, 300, FAR), "unknown_species": draw(2, 300, NEAR)}
    got = ood.fit(PLANTS, **{kind: pictures[kind] for kind in kinds})
    if not kinds:
        assert got["plant"] is None
        return
    far, near = (
        ood.beyond(got["plant"], draw(seed, 500, moved)).mean()
        for seed, moved in ((5, FAR), (6, NEAR))
    )
    assert far > 0.8
    assert near < 0.15
    if kinds == ("not_plants",):
        assert ood.beyond(got["plant"], pictures["not_plants"]).mean() == pytest.approx(
            1 - ood.CALLED_PLANT, abs=0.01
        )


def test_bundle_and_rule_agree_with_what_was_fitted(fitted):
    """The plain values, through JSON and through decide's own reading, refuse the same pictures."""
    read = rejection_from_json(
        json.loads(json.dumps({k: v for k, v in fitted.items() if k != "val"}, allow_nan=False)),
        NAMES,
    )
    mixed = {
        name: np.concatenate([draw(7)[name], draw(8, 200, FAR)[name], draw(9, 200, NEAR)[name]])
        for name in NAMES
    }
    tree = ClassTree(("a", "b"), (("x", "y"), ("x", "y")))
    ranked = rank(np.tile([0.97, 0.01, 0.01, 0.01], (1000, 1)), tree)
    got = decide_batch(ranked, matrix(mixed), tree, read, None)
    refused, called = ood.beyond(fitted, mixed), ood.beyond(fitted["plant"], mixed)
    np.testing.assert_array_equal(got.outcome == NOT_A_PLANT, refused & called)
    np.testing.assert_array_equal(got.outcome == UNKNOWN_SPECIES, refused & ~called)
    np.testing.assert_array_equal(got.unknown_disease, ood.beyond(fitted["disease"], mixed))
    assert refused[:600].mean() < 0.02
    assert (got.outcome[600:800] == NOT_A_PLANT).mean() > 0.9
    assert (got.outcome[800:] == UNKNOWN_SPECIES).mean() > 0.8


@pytest.mark.parametrize("few", [None, {name: np.zeros(0) for name in NAMES}, draw(1, 29, FAR)])
def test_without_enough_strangers_the_scores_are_the_usual_ones(few):
    got = ood.fit(PLANTS, not_plants=few)
    assert got["score"] == "gen+mahalanobis_class+layers"
    assert got["disease"]["score"] == "mahalanobis_class"
    assert got["val"]["ranking"] == {}
    assert got["val"]["shown"] == ({"not_plants": 29} if few and len(few["gen"]) else {})
    fresh = draw(4, 20_000)
    assert 0.001 < ood.beyond(got, fresh).mean() < 0.0105
    assert 0.005 < ood.beyond(got["disease"], fresh).mean() < 0.03


def test_thirty_plants_are_enough_to_fit_and_too_few_to_promise():
    got = ood.fit(draw(0, 30))
    assert got["val"]["false_rejection_rate"] == 0
    assert got["val"]["false_rejection_rate_at_most"] == pytest.approx(1 - at_least(30, 30))
    judged = ood.judge(got, draw(1, 30), {})
    assert "auroc" not in judged
    assert judged["n_plants"] == 30
    text = "\n".join(ood.report_lines(got, got["val"], judged))
    assert "no OOD pictures" in text
    assert "without OOD pictures" in text


def test_poor_photos_raise_the_bar_as_far_as_the_strangers_allow():
    plants, poor = (
        draw(0),
        {"blur": draw(1, 600, (0, 0, 0, 3.0)), "dark": draw(2, 600, (0, 0, 0, 1.0))},
    )

    def layers_bar(far: float, faults: dict) -> dict:
        only = {key: {"layers": scores["layers"]} for key, scores in faults.items()}
        return ood.fit(
            {"layers": plants["layers"]},
            not_plants={"layers": draw(3, 300, (0, 0, 0, far))["layers"]},
            poor=only,
        )

    clean, raised, near = layers_bar(12, {}), layers_bar(12, poor), layers_bar(6, poor)
    assert raised["threshold"] == pytest.approx(
        np.quantile(poor["blur"]["layers"] / plants["layers"].std(), 0.95)
    )
    assert clean["threshold"] < near["threshold"] < raised["threshold"]
    assert near["val"]["rejected"]["not_plants"] >= ood.MIN_REJECTED
    assert clean["val"]["poor_rejected"] == {}
    assert set(raised["val"]["poor_rejected"]) == {
        "blur",
        "dark",
    }


def test_judged_figures_by_hand():
    def bar(threshold: float) -> dict:
        return {"score": "s", "weights": {"s": 1.0}, "threshold": threshold}

    fitted = {**bar(5.0), "plant": bar(7.0), "disease": None}
    plants, strange = (
        {"s": np.array([1.0, 2, 3, 4, 6])},
        {"far": {"s": np.array([4.5, 5.5, 7, 8])}, "near": {"s": np.array([1.2, 3.5])}},
    )
    got = ood.judge(fitted, plants, strange, {"blur": {"s": np.array([1.0, 2, 9, np.nan])}})
    assert got["false_rejection_rate"] == pytest.approx(1 / 5)
    assert got["rejected"] == pytest.approx(3 / 6)
    assert got["kinds"]["far"]["rejected"] == pytest.approx(3 / 4)
    assert got["kinds"]["near"]["rejected"] == 0
    assert got["kinds"]["far"]["not_a_plant"] == pytest.approx(1 / 3)
    assert got["kinds"]["near"]["not_a_plant"] == 0
    assert got["precision"] == pytest.approx(3 / 4)
    assert got["accepted_precision"] == pytest.approx(4 / 7)
    assert (got["precision_at_least"], got["accepted_precision_at_least"]) == (
        at_least(3, 4),
        at_least(4, 7),
    )
    assert got["rejected_at_1pct_frr"] == pytest.approx(2 / 6), "no plant may be lost: above 6"
    assert got["poor_rejected"] == {"blur": 0.5}
    assert (got["n_plants"], got["n_ood"]) == (5, 6)


def test_thresholds_for_a_precision_are_the_lowest_that_reach_its_bound():
    rng = np.random.default_rng(0)
    plants, strangers = rng.normal(0, 1, 2000), rng.normal(3, 1, 800)
    rows = ood.thresholds_for(plants, strangers)
    assert [row["precision"] for row in rows] == [0.9, 0.95, 0.99]
    assert rows[0]["threshold"] < rows[1]["threshold"] < rows[2]["threshold"]
    for row in rows:
        wrong, right = (plants > row["threshold"]).sum(), (strangers > row["threshold"]).sum()
        assert (row["wrong"], row["total"]) == (wrong, wrong + right)
        assert row["bound"] == at_least(right, wrong + right) >= row["precision"]
        assert row["total"] >= row["needed"], "the claim needs no more than what was refused"
        below = row["threshold"] - 0.1
        assert (
            at_least((strangers > below).sum(), (strangers > below).sum() + (plants > below).sum())
            < row["precision"]
        )
    few = ood.thresholds_for(plants, strangers[:100])[2]
    assert few["threshold"] is None
    assert few["needed"] == 299


def test_the_report_says_what_was_measured(fitted):
    judged = ood.judge(fitted, draw(4), {"documents": draw(5, 500, FAR)}, {"blur": draw(6, 100)})
    text = "\n".join(ood.report_lines(fitted, fitted["val"], judged))
    assert "documents" in text
    assert f"{judged['kinds']['documents']['auroc']:.4f}" in text
    assert "blur" in text
    assert lower(judged["precision_at_least"]) in text
    assert "rejections the claim takes" in text
