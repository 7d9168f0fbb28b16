"""The gate: whether a smaller model may stand in for FP32. Decided on val, reported on test. No
torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.console import table
from common.export.answers import Answers
from common.export.calibrate import calibration_error
from common.train.metrics import FEW_AT_MOST, auroc


@dataclass(frozen=True)
class GateLimits:
    """How far a candidate may fall behind FP32; shares and drops are 0..1.

    Attributes:
        agreement: least share of equal joint decisions.
        macro_f1, few_recall, auroc: greatest drop. few_recall is the mean recall of classes with at
            most `few` train pictures.
        calibration: greatest rise of the calibration error.
        batch: greatest change of a probability when the same picture stands in a larger batch.
        time: a candidate that computes in INT8 takes at most this share of FP32's time: faster by
            more than the clock's noise.
        time_weights: the same for one that only stores its weights small, and so has to be smaller,
            not faster.
        few: train pictures.
    """

    agreement: float = 0.99
    macro_f1: float = 0.005
    few_recall: float = 0.01
    auroc: float = 0.005
    calibration: float = 0.01
    batch: float = 1e-5
    time: float = 0.95
    time_weights: float = 1.05
    few: int = FEW_AT_MOST


@dataclass(frozen=True)
class Side:
    """What one model answers on one split.

    Attributes:
        answer, confidence: int (N,), its joint decision; float (N,), 0..1, how probable that is by
            the model.
        class_idx: int (N,), true classes.
        plants, ood: float (N,) and (M,), the score by which the model rejects pictures, of plants
            and of OOD pictures, larger = farther from the training data; None without OOD pictures.
    """

    answer: np.ndarray
    confidence: np.ndarray
    class_idx: np.ndarray
    plants: np.ndarray | None = None
    ood: np.ndarray | None = None

    @classmethod
    def of(cls, answers: Answers, *scores: np.ndarray | None) -> "Side":
        """The side of a model's answers; `scores`: plants and ood."""
        return cls(answers.ranked.joint, answers.ranked.joint_p, answers.class_idx, *scores)


@dataclass(frozen=True)
class Speed:
    """What was measured of a candidate beside its answers.

    Attributes:
        ratio, low, high: its time as a share of FP32's (below 1 = faster), and the 95 % interval.
        size_ratio: of the files.
        weights_only: it stores its weights small, and computes as FP32 does.
        batch_difference: greatest change of a probability between a batch and the same pictures
            one by one; None where it was not measured.
    """

    ratio: float
    low: float
    high: float
    size_ratio: float
    weights_only: bool = False
    batch_difference: float | None = None


@dataclass(frozen=True)
class Check:
    """One figure against its limit.

    Attributes:
        name, words: short key; what is compared.
        fp32, candidate: the two figures; None where there is but one, or nothing to judge.
        figure: what is held against the limit: a share, a drop (positive = worse than FP32) or a
            ratio.
        limit: what it is held against: that of `GateLimits`, or the step that one picture makes
            where this is wider.
        one_picture: the greatest change that a single picture can cause here; None where that means
            nothing.
        passed: None where the split has nothing to judge by.
        note: why not judged, or why the limit is wider.
    """

    name: str
    words: str
    fp32: float | None
    candidate: float | None
    figure: float | None
    limit: float
    one_picture: float | None
    passed: bool | None
    note: str = ""


@dataclass(frozen=True)
class GateResult:
    """All checks of one candidate on one split, and how many pictures changed from right to wrong
    and back.
    """

    way: str
    split: str
    pictures: int
    checks: tuple[Check, ...]
    lost: int
    won: int
    limits: GateLimits = field(default_factory=GateLimits)

    @property
    def passed(self) -> bool:
        """Whether no check failed; one that could not be judged does not fail."""
        return all(check.passed is not False for check in self.checks)

    def why(self) -> str:
        """Say which checks failed, in words; empty where none did."""
        return "; ".join(
            f"{check.words} {_figure(check)}, {_limit(check)} is needed"
            for check in self.checks
            if check.passed is False
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values that `json.dumps` takes."""
        return {
            "way": self.way,
            "split": self.split,
            "pictures": self.pictures,
            "passed": self.passed,
            "why": self.why(),
            "right_to_wrong": self.lost,
            "wrong_to_right": self.won,
            "checks": [asdict(check) for check in self.checks],
        }


def judge_gate(
    way: str,
    fp32: Side,
    candidate: Side,
    tree: ClassTree,
    train_counts: np.ndarray,
    *,
    speed: Speed | None = None,
    limits: GateLimits | None = None,
    split: str = "val",
) -> GateResult:
    """Compare a candidate with FP32 on the same pictures.

    On a small split a limit may lie below what one picture makes; a drop is then held against one
    picture, and the note says so.

    Args:
        way: name of the candidate.
        fp32, candidate: their answers; the same pictures in the same order.
        tree: the classes.
        train_counts: int (classes,), train pictures per class.
        speed: measured cost; None leaves it out, as on a split where it was not measured again.
        limits: None takes the defaults.
        split: name of the split, for the report.

    Returns:
        one check per figure.

    Raises:
        ValueError: where the two are not of the same pictures, or there are none.
    """
    limits, truth = limits or GateLimits(), fp32.class_idx
    if not len(truth) or not np.array_equal(truth, candidate.class_idx):
        raise ValueError("the gate compares two models on the same pictures, and on one at least")
    sides = fp32, candidate
    answers = [side.answer for side in sides]
    right = [answer == truth for answer in answers]
    agreement, one = float((answers[0] == answers[1]).mean()), 1 / len(truth)
    f1, of_one = np.transpose([_macro_f1(answer, truth, tree.num_classes) for answer in answers])
    errors = [
        calibration_error(side.confidence, hits) for side, hits in zip(sides, right, strict=True)
    ]
    checks = [
        _at_least("agreement", "same top-1 as FP32", agreement, limits.agreement, one),
        _drop("macro_f1", "macro F1", *f1.tolist(), limits.macro_f1, float(of_one[0])),
        _few(right, truth, np.asarray(train_counts), limits),
        _auroc(fp32, candidate, limits),
        _drop("calibration", "calibration error", *errors, limits.calibration, one, rise=True),
        *(_cost(speed, limits) if speed else ()),
    ]
    lost, won = (right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()
    return GateResult(way, split, len(truth), tuple(checks), int(lost), int(won), limits)


# region the checks


def _at_least(name: str, words: str, share: float, limit: float, one: float) -> Check:
    wide = max(1 - limit, one)
    note = "" if wide == 1 - limit else "one picture is more than the limit allows; one may differ"
    return Check(name, words, None, share, share, 1 - wide, one, share >= 1 - wide - 1e-9, note)


def _drop(
    name: str, words: str, before: float, after: float, limit: float, one: float, rise: bool = False
) -> Check:
    drop, wide = (after - before if rise else before - after), max(limit, one)
    note = (
        f"one picture may make {100 * one:.2g} points, more than the limit of {100 * limit:.2g}"
        if one > limit
        else ""
    )
    words += ", rise" if rise else ", drop"
    return Check(name, words, before, after, drop, wide, one, drop <= wide + 1e-9, note)


def _few(
    right: list[np.ndarray], truth: np.ndarray, train_counts: np.ndarray, limits: GateLimits
) -> Check:
    words = f"mean recall of classes with at most {limits.few} train pictures"
    present = np.bincount(truth, minlength=len(train_counts))
    few = (train_counts <= limits.few) & (present > 0)
    if not few.any():
        note = (
            "none of these classes has a picture here"
            if (train_counts <= limits.few).any()
            else f"no class has so few (the smallest has {int(train_counts.min())})"
        )
        return _not_judged("few_recall", words, limits.few_recall, note)
    hits = (np.bincount(truth[hit], minlength=len(present)) for hit in right)
    recalls = [float((hit[few] / present[few]).mean()) for hit in hits]
    one = float(1 / (few.sum() * present[few].min()))
    check = _drop("few_recall", words, *recalls, limits.few_recall, one)
    notes = f"{int(few.sum())} classes, {int(present[few].sum())} pictures", check.note
    return replace(check, note="; ".join(filter(None, notes)))


def _auroc(fp32: Side, candidate: Side, limits: GateLimits) -> Check:
    sides = fp32, candidate
    if any(side.plants is None or side.ood is None or not len(side.ood) for side in sides):
        return _not_judged("auroc", "rejection AUROC", limits.auroc, "no OOD pictures")
    before, after = (auroc(side.plants, side.ood) for side in sides)
    one = 1 / min(len(fp32.plants), len(fp32.ood))
    return _drop("auroc", "rejection AUROC", before, after, limits.auroc, one)


def _not_judged(name: str, words: str, limit: float, note: str) -> Check:
    return Check(name, f"{words}, drop", None, None, None, limit, None, None, note)


def _cost(speed: Speed, limits: GateLimits) -> list[Check]:
    limit = limits.time_weights if speed.weights_only else limits.time
    note = f"{speed.low:.2f} to {speed.high:.2f} with 95 % confidence"
    note += "; weights alone: not slower" if speed.weights_only else ""
    batch, ratio, size = speed.batch_difference, speed.ratio, speed.size_ratio
    words = "a batch against one by one, greatest change of a probability"
    checks = [
        ("batch", words, batch, limits.batch, batch is not None and batch <= limits.batch, ""),
        ("time", "time for one picture / FP32", ratio, limit, ratio <= limit, note),
        ("size", "size of the file / FP32", size, 1.0, size < 1.0, ""),
    ]
    return [
        Check(name, words, None, figure, figure, limit, None, passed, note)
        for name, words, figure, limit, passed, note in checks[batch is None :]
    ]


def _macro_f1(answer: np.ndarray, truth: np.ndarray, classes: int) -> tuple[float, float]:
    """Macro F1, and the most that it can lose when one right answer turns wrong: its own class's
    part, and that of the class now named.
    """
    hits, present, named = (
        np.bincount(values, minlength=classes) for values in (truth[answer == truth], truth, answer)
    )
    shown = present > 0
    hits, both = hits[shown], (present + named)[shown].astype(float)
    f1 = 2 * hits / both
    own = np.where(hits > 0, f1 - 2 * (hits - 1) / np.maximum(both - 1, 1), 0.0)
    other = f1 - 2 * hits / (both + 1)
    return float(f1.mean()), float((own.max() + other.max()) / shown.sum())


# endregion

# region words

_IN_POINTS = ("macro_f1", "few_recall", "auroc", "calibration")
_FORMATS = {"batch": ".2e", "time": ".2f", "size": ".2f"}


def report_lines(
    results: Sequence[GateResult], tried: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """Lay out the gate for report.md.

    Args:
        results: of the kept candidate on val and test, or of every candidate.
        tried: rows of what was tried, as plain values with `way`, `rejected` and, where known,
            `kept_float`.

    Returns:
        lines of Markdown.
    """
    lines = []
    if tried:
        lines += [
            table(
                [
                    (row["way"], row.get("layers", "-"), row["rejected"] or "passes")
                    for row in tried
                ],
                ("way", "INT8 layers", "verdict"),
            ),
            "",
        ]
    for result in results:
        verdict = "passed" if result.passed else "FAILED: " + result.why()
        lines += [
            f"`{result.way}` on {result.split}, {result.pictures} pictures: {verdict}.",
            f"{result.lost} answers turned from right to wrong, {result.won} from wrong to right.",
            "",
            table(
                [
                    (
                        check.words,
                        _number(check, check.fp32),
                        _number(check, check.candidate),
                        _figure(check),
                        _limit(check),
                        {True: "yes", False: "NO", None: "not judged"}[check.passed],
                        check.note,
                    )
                    for check in result.checks
                ],
                (
                    "figure",
                    "FP32",
                    "candidate",
                    "held against the limit",
                    "limit",
                    "passed",
                    "note",
                ),
            ),
            "",
        ]
    return lines


def _number(check: Check, value: float | None) -> str:
    return "-" if value is None else format(value, _FORMATS.get(check.name, ".4f"))


def _figure(check: Check) -> str:
    if check.figure is None or check.name not in _IN_POINTS:
        return _number(check, check.figure)
    return f"{100 * check.figure:+.2f} points"


def _limit(check: Check) -> str:
    if check.name in _IN_POINTS:
        return f"<= {100 * check.limit:.2g} points"
    sign = ">=" if check.name == "agreement" else "<" if check.name == "size" else "<="
    return f"{sign} {check.limit:.0e}" if check.name == "batch" else f"{sign} {check.limit:.4g}"


# endregion
