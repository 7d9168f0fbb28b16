"""The gate: every figure by hand, its bar, and what it says where a split is too small to judge."""

import json
from dataclasses import replace

import numpy as np
import pytest

from common.classes import ClassTree
from common.export.gate import GateLimits, Side, Speed, judge_gate, report_lines

TREE = ClassTree(("apple", "basil"), (("healthy", "rust", "scab"), ("healthy",)))
COUNTS = np.array([100, 100, 10, 100])


def answers(class_idx: np.ndarray, confidence: float = 0.97) -> np.ndarray:
    """Probabilities (N, 4) that name these leaves."""
    probabilities = np.full((len(class_idx), 4), (1 - confidence) / 3)
    probabilities[np.arange(len(class_idx)), class_idx] = confidence
    return probabilities.astype(np.float32)


def side_of(probabilities: np.ndarray, class_idx: np.ndarray, *scores: np.ndarray) -> Side:
    return Side(probabilities.argmax(1), probabilities.max(1), class_idx, *scores)


def figures(result) -> dict:
    return {check.name: check for check in result.checks}


@pytest.fixture
def truth() -> np.ndarray:
    return np.tile(np.arange(4), 250)


def test_a_copy_passes(truth):
    side = side_of(answers(truth), truth, np.linspace(0, 1, 1000), np.linspace(0.5, 2, 100))
    result = judge_gate(
        "static", side, side, TREE, COUNTS, speed=Speed(0.6, 0.55, 0.65, 0.3, batch_difference=0.0)
    )
    assert result.passed
    assert result.why() == ""
    assert (result.lost, result.won) == (0, 0)
    assert {c.name for c in result.checks} == {
        "agreement",
        "macro_f1",
        "few_recall",
        "auroc",
        "calibration",
        "batch",
        "time",
        "size",
    }
    assert all(c.passed is True for c in result.checks)
    json.dumps(result.to_dict(), allow_nan=False)


def test_figures_by_hand(truth):
    """15 pictures of scab called rust: agreement, macro F1, and recall of the one class with few
    pictures.
    """
    said = truth.copy()
    said[np.flatnonzero(truth == 2)[:15]] = 1
    result = judge_gate(
        "static", side_of(answers(truth), truth), side_of(answers(said), truth), TREE, COUNTS
    )
    found = figures(result)
    assert found["agreement"].figure == pytest.approx(0.985)
    assert found["agreement"].passed is False
    f1 = (1 + 2 * 250 / (250 + 265) + 2 * 235 / (235 + 250) + 1) / 4
    assert found["macro_f1"].candidate == pytest.approx(f1)
    assert found["macro_f1"].figure == pytest.approx(1 - f1)
    assert found["macro_f1"].passed is False
    assert found["macro_f1"].limit == 0.005
    assert found["few_recall"].figure == pytest.approx(15 / 250)
    assert found["few_recall"].passed is False
    assert found["auroc"].passed is None
    assert "no OOD pictures" in found["auroc"].note
    assert (result.lost, result.won) == (15, 0)
    assert not result.passed
    assert "same top-1 as FP32 0.9850, >= 0.99 is needed" in result.why()
    back = judge_gate(
        "static", side_of(answers(said), truth), side_of(answers(truth), truth), TREE, COUNTS
    )
    assert (back.lost, back.won) == (0, 15), "a gain is no drop"
    assert figures(back)["macro_f1"].figure < 0, "a gain is no drop"
    assert figures(back)["macro_f1"].passed
    assert figures(back)["few_recall"].passed
    assert figures(back)["agreement"].passed is False


def test_ten_of_a_thousand_may_differ(truth):
    for wrong, passed in ((10, True), (11, False)):
        said = truth.copy()
        said[np.flatnonzero(truth == 3)[:wrong]] = 0
        found = figures(
            judge_gate(
                "static",
                side_of(answers(truth), truth),
                side_of(answers(said), truth),
                TREE,
                COUNTS,
            )
        )
        assert found["agreement"].passed is passed


def test_few_and_only_few_are_counted(truth):
    """Recall is the mean over classes, not over pictures, and a class of exactly `few` pictures is
    one of them.
    """
    class_idx = np.concatenate([np.zeros(100, int), np.full(4, 2), np.full(40, 3)])
    said = class_idx.copy()
    said[100] = 0
    counts = np.array([100, 100, 20, 20])
    check = figures(
        judge_gate(
            "x",
            side_of(answers(class_idx), class_idx),
            side_of(answers(said), class_idx),
            TREE,
            counts,
        )
    )["few_recall"]
    assert check.fp32 == 1
    assert check.candidate == pytest.approx((0.75 + 1) / 2)
    assert "2 classes, 44 pictures" in check.note
    assert check.passed, "one picture makes 12.5 points"
    assert check.limit == pytest.approx(0.125), "one picture makes 12.5 points"
    said[101] = 0
    assert (
        figures(
            judge_gate(
                "x",
                side_of(answers(class_idx), class_idx),
                side_of(answers(said), class_idx),
                TREE,
                counts,
            )
        )["few_recall"].passed
        is False
    )


@pytest.mark.parametrize(
    ("counts", "words"),
    [([100, 50, 30, 21], "the smallest has 21"), ([100, 5, 100, 100], "has a picture here")],
)
def test_no_few_shot_class_is_told(counts, words):
    class_idx = np.array([0, 2, 3] * 20)
    side = side_of(answers(class_idx), class_idx)
    check = figures(judge_gate("x", side, side, TREE, np.array(counts)))["few_recall"]
    assert check.passed is None
    assert check.figure is None
    assert words in check.note


def test_auroc_and_calibration(truth):
    known, strange = np.arange(1000.0), np.arange(500.0, 1500.0)
    base = side_of(answers(truth), truth, known, strange)
    worse = side_of(answers(truth, 0.90), truth, known, strange - 20)
    found = figures(judge_gate("x", base, worse, TREE, COUNTS))
    assert found["auroc"].fp32 == pytest.approx(0.875, abs=1e-3)
    assert found["auroc"].figure > 0.005
    assert not found["auroc"].passed
    assert found["calibration"].fp32 == pytest.approx(0.03, abs=1e-6)
    assert found["calibration"].candidate == pytest.approx(0.1, abs=1e-6)
    assert found["calibration"].passed is False
    assert figures(judge_gate("x", worse, base, TREE, COUNTS))["calibration"].passed


def test_thirty_pictures_are_judged_by_one_picture():
    class_idx = np.tile([0, 1, 3], 10)
    said = class_idx.copy()
    said[0] = 1
    base, one = side_of(answers(class_idx), class_idx), side_of(answers(said), class_idx)
    result = judge_gate("x", base, one, TREE, COUNTS)
    assert result.passed, result.why()
    assert "one may differ" in figures(result)["agreement"].note
    assert "one picture may make" in figures(result)["macro_f1"].note
    assert figures(result)["macro_f1"].limit > 0.03
    said[3] = 1
    assert not judge_gate("x", base, side_of(answers(said), class_idx), TREE, COUNTS).passed


def test_one_picture_is_the_worst_that_one_picture_does():
    """The bound on macro F1 holds for every single change of a right answer, and is reached up to
    what two classes share.
    """
    rng = np.random.default_rng(0)
    class_idx = rng.choice(4, 60, p=[0.5, 0.3, 0.15, 0.05])
    ours = np.where(rng.random(60) < 0.8, class_idx, rng.integers(0, 4, 60))
    drops = []
    for i in np.flatnonzero(ours == class_idx):
        for other in set(range(4)) - {int(class_idx[i])}:
            said = ours.copy()
            said[i] = other
            check = figures(
                judge_gate(
                    "x",
                    side_of(answers(ours), class_idx),
                    side_of(answers(said), class_idx),
                    TREE,
                    COUNTS,
                )
            )["macro_f1"]
            drops.append(check.figure)
    assert max(drops) <= check.one_picture + 1e-12
    assert max(drops) > 0.8 * check.one_picture


def test_cost_and_batches(truth):
    side = side_of(answers(truth), truth)

    def failed(speed: Speed, batch: float = 0.0) -> set[str]:
        result = judge_gate(
            "x", side, side, TREE, COUNTS, speed=replace(speed, batch_difference=batch)
        )
        return {check.name for check in result.checks if check.passed is False}

    assert failed(Speed(0.94, 0.9, 0.97, 0.5)) == set()
    assert failed(Speed(0.97, 0.9, 1.0, 0.5)) == {"time"}
    assert failed(Speed(1.04, 1.0, 1.1, 0.5, weights_only=True)) == set()
    assert failed(Speed(1.06, 1.0, 1.1, 1.0, weights_only=True)) == {"time", "size"}
    assert failed(Speed(0.5, 0.5, 0.5, 0.5), batch=1e-3) == {"batch"}


def test_the_report_shows_every_figure(truth):
    said = truth.copy()
    said[:20] = (truth[:20] + 1) % 4
    base, other = side_of(answers(truth), truth), side_of(answers(said), truth)
    val = judge_gate(
        "static", base, other, TREE, COUNTS, speed=Speed(0.5, 0.4, 0.6, 0.3, batch_difference=2e-7)
    )
    test = judge_gate("static", base, base, TREE, COUNTS, split="test")
    text = "\n".join(
        report_lines(
            [val, test],
            [
                {"way": "dynamic", "layers": "3 of 3", "rejected": "too slow"},
                {"way": "static", "layers": "2 of 3", "rejected": ""},
            ],
        )
    )
    for words in (
        "`static` on val, 1000 pictures: FAILED",
        "`static` on test, 1000 pictures: passed",
        "20 answers turned",
        "0.9800",
        ">= 0.99",
        "not judged",
        "no OOD pictures",
        "<= 0.5 points",
        "0.40 to 0.60",
        "2.00e-07",
        "too slow",
        "2 of 3",
    ):
        assert words in text, words
    assert text.count("| macro F1, drop") == 2


def test_two_models_on_other_pictures_are_refused(truth):
    side = side_of(answers(truth), truth)
    for other in (side_of(answers(truth[:-1]), truth[:-1]), side_of(answers(truth), truth[::-1])):
        with pytest.raises(ValueError, match="same pictures"):
            judge_gate("x", side, other, TREE, COUNTS)
    with pytest.raises(ValueError, match="one at least"):
        judge_gate(
            "x",
            side_of(answers(truth[:0]), truth[:0]),
            side_of(answers(truth[:0]), truth[:0]),
            TREE,
            COUNTS,
        )


def test_bars_can_be_chosen(truth):
    said = truth.copy()
    said[:50] = (truth[:50] + 1) % 4
    base, other = side_of(answers(truth), truth), side_of(answers(said), truth)
    assert judge_gate(
        "x",
        base,
        other,
        TREE,
        COUNTS,
        limits=GateLimits(agreement=0.9, macro_f1=0.1, few_recall=0.2, calibration=0.1),
    ).passed
