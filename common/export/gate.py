"""The gate: whether a smaller model may stand in for FP32. Decided on val, reported on test. No
torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.console import table
from common.decide import joint_class
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
        probabilities: float (N, classes), rows sum to 1, by the model's own temperatures where it
            has its own.
        class_idx: int (N,), true classes.
        plants, ood: float (N,) and (M,), the score by which the model rejects pictures, of plants
            and of OOD pictures, larger = farther from the training data; None without OOD pictures.
    """

    probabilities: np.ndarray
    class_idx: np.ndarray
    plants: np.ndarray | None = None
    ood: np.ndarray | None = None


@dataclass(frozen=True)
class Speed:
    """Cost beside FP32: `ratio` of the times (below 1 = faster), its 95 % interval, and
    `size_ratio` of the files.
    """

    ratio: float
    low: float
    high: float
    size_ratio: float
    weights_only: bool = False


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
    batch_difference: float | None = None,
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
        batch_difference: greatest change of a probability between a batch and the same pictures one
            by one; None leaves it out.
        limits: None takes the defaults.
        split: name of the split, for the report.

    Returns:
        one check per figure.

    Raises:
        ValueError: where the two are not of the same pictures, or there are none.
    """
    limits = limits or GateLimits()
    if (
        not len(fp32.class_idx)
        or fp32.probabilities.shape != candidate.probabilities.shape
        or not np.array_equal(fp32.class_idx, candidate.class_idx)
    ):
        raise ValueError("the gate compares two models on the same pictures, and on one at least")
    ours, theirs = joint_class(fp32.probabilities, tree), joint_class(candidate.probabilities, tree)
    right = {"fp32": ours == fp32.class_idx, "candidate": theirs == fp32.class_idx}
    n, same = len(ours), ours == theirs
    checks = [
        _at_least("agreement", "same top-1 as FP32", float(same.mean()), limits.agreement, 1 / n),
        _drop(
            "macro_f1",
            "macro F1",
            *(_macro_f1(answer, fp32.class_idx, tree.num_classes) for answer in (ours, theirs)),
            limits.macro_f1,
            _f1_of_one(ours, fp32.class_idx, tree.num_classes),
        ),
        _few(ours, theirs, fp32.class_idx, np.asarray(train_counts), limits),
    ]
    checks.append(_auroc(fp32, candidate, limits))
    errors = [
        calibration_error(side.probabilities.max(axis=1), right[name])
        for name, side in (("fp32", fp32), ("candidate", candidate))
    ]
    checks.append(
        _drop("calibration", "calibration error", *errors, limits.calibration, 1 / n, rise=True)
    )
    if batch_difference is not None:
        checks.append(
            Check(
                "batch",
                "a batch against one by one, greatest change of a probability",
                None,
                batch_difference,
                batch_difference,
                limits.batch,
                None,
                batch_difference <= limits.batch,
            )
        )
    checks += _cost(speed, limits) if speed else []
    return GateResult(
        way,
        split,
        n,
        tuple(checks),
        int((right["fp32"] & ~right["candidate"]).sum()),
        int((right["candidate"] & ~right["fp32"]).sum()),
        limits,
    )


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
    return Check(
        name,
        words + (", rise" if rise else ", drop"),
        before,
        after,
        drop,
        wide,
        one,
        drop <= wide + 1e-9,
        note,
    )


def _few(
    ours: np.ndarray,
    theirs: np.ndarray,
    class_idx: np.ndarray,
    train_counts: np.ndarray,
    limits: GateLimits,
) -> Check:
    words = f"mean recall of classes with at most {limits.few} train pictures, drop"
    present = np.bincount(class_idx, minlength=len(train_counts))
    few = (train_counts <= limits.few) & (present > 0)
    if not few.any():
        note = (
            f"no class has so few (the smallest has {int(train_counts.min())})"
            if not (train_counts <= limits.few).any()
            else "none of these classes has a picture here"
        )
        return Check("few_recall", words, None, None, None, limits.few_recall, None, None, note)
    recalls = [
        np.bincount(class_idx[answer == class_idx], minlength=len(train_counts))[few] / present[few]
        for answer in (ours, theirs)
    ]
    means, one = [float(recall.mean()) for recall in recalls], 1 / (few.sum() * present[few].min())
    check = _drop("few_recall", words, *means, limits.few_recall, float(one))
    count = f"{int(few.sum())} classes, {int(present[few].sum())} pictures"
    return Check(
        **{**asdict(check), "words": words, "note": "; ".join(filter(None, (count, check.note)))}
    )


def _auroc(fp32: Side, candidate: Side, limits: GateLimits) -> Check:
    words = "rejection AUROC, drop"
    if any(
        side.plants is None or side.ood is None or not len(side.ood) for side in (fp32, candidate)
    ):
        return Check("auroc", words, None, None, None, limits.auroc, None, None, "no OOD pictures")
    before, after = (auroc(side.plants, side.ood) for side in (fp32, candidate))
    return _drop(
        "auroc",
        "rejection AUROC",
        before,
        after,
        limits.auroc,
        1 / min(len(fp32.plants), len(fp32.ood)),
    )


def _cost(speed: Speed, limits: GateLimits) -> list[Check]:
    limit = limits.time_weights if speed.weights_only else limits.time
    note = f"{speed.low:.2f} to {speed.high:.2f} with 95 % confidence" + (
        "; weights alone: not slower" if speed.weights_only else ""
    )
    return [
        Check(
            "time",
            "time for one picture / FP32",
            None,
            speed.ratio,
            speed.ratio,
            limit,
            None,
            speed.ratio <= limit,
            note,
        ),
        Check(
            "size",
            "size of the file / FP32",
            None,
            speed.size_ratio,
            speed.size_ratio,
            1.0,
            None,
            speed.size_ratio < 1.0,
        ),
    ]


def _counts(
    answer: np.ndarray, class_idx: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.bincount(class_idx[answer == class_idx], minlength=classes),
        np.bincount(class_idx, minlength=classes),
        np.bincount(answer, minlength=classes),
    )


def _macro_f1(answer: np.ndarray, class_idx: np.ndarray, classes: int) -> float:
    hits, present, said = _counts(answer, class_idx, classes)
    shown = present > 0
    return float((2 * hits[shown] / (present + said)[shown]).mean())


def _f1_of_one(answer: np.ndarray, class_idx: np.ndarray, classes: int) -> float:
    """The most that macro F1 can lose when one right answer turns wrong: its own class's part, and
    that of the class now named.
    """
    hits, present, said = _counts(answer, class_idx, classes)
    shown = present > 0
    hits, both = hits[shown], (present + said)[shown].astype(float)
    own = np.where(hits > 0, 2 * hits / both - 2 * (hits - 1) / np.maximum(both - 1, 1), 0.0)
    named = 2 * hits / both - 2 * hits / (both + 1)
    return float((own.max() + named.max()) / shown.sum())


# endregion

# region words

_IN_POINTS = ("macro_f1", "few_recall", "auroc", "calibration")


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
    if value is None:
        return "-"
    return (
        f"{value:.2e}"
        if check.name == "batch"
        else f"{value:.2f}"
        if check.name in ("time", "size")
        else f"{value:.4f}"
    )


def _figure(check: Check) -> str:
    if check.figure is None:
        return "-"
    return (
        f"{100 * check.figure:+.2f} points"
        if check.name in _IN_POINTS
        else _number(check, check.figure)
    )


def _limit(check: Check) -> str:
    if check.name in _IN_POINTS:
        return f"<= {100 * check.limit:.2g} points"
    sign = ">=" if check.name == "agreement" else "<" if check.name == "size" else "<="
    return f"{sign} {check.limit:.0e}" if check.name == "batch" else f"{sign} {check.limit:.4g}"


# endregion
