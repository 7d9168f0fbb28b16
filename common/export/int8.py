"""The search for an INT8 model that passes the gate: what is tried, in which order, and which
layers go back to float.
"""

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from common.console import warn
from common.export import ood, quantize
from common.export.fitting import Outcome, outcome_of
from common.export.gate import GateResult, Side, Speed, judge_gate
from common.export.measure import Run, check_batches, measure_speed, run_over, session_run
from common.export.pictures import spread
from common.train.dataset import default_workers

# checks of the gate that more float layers can mend
QUALITY = {"agreement", "macro_f1", "few_recall", "auroc", "calibration"}
ROUNDS = 6  # times that layers are put back to float
MOST_FLOAT = 0.75  # of the layers
TARGET_SHARE = 0.8  # of the disagreement that the gate allows
GROUPS = 64  # layers are measured one by one up to this number, beyond it in groups of neighbours
HARM_PICTURES = 24  # on which a layer's harm is measured
QUICK = 128  # val pictures that a candidate is judged on first

Judge = Callable[[str, Run, Speed, float], GateResult]


@dataclass
class Attempt:
    """One way to INT8 that was tried.

    Attributes:
        way: `static` or `weights`.
        layers, of: how many layers are INT8 in the last model built, and how many might be.
        kept_float: names of the layers put back to float, most harmful first.
        builds: models judged.
        gate: the last verdict on val.
        rejected: why it is not used; empty where it passed.
    """

    way: str
    layers: int = 0
    of: int = 0
    kept_float: list[str] = field(default_factory=list)
    builds: int = 0
    gate: GateResult | None = None
    rejected: str = ""

    @property
    def _figures(self) -> dict[str, float | None]:
        return {check.name: check.figure for check in self.gate.checks} if self.gate else {}

    @property
    def ratio(self) -> float:
        """Time as a share of FP32's; infinite where it was not measured."""
        found = self._figures.get("time")
        return float("inf") if found is None else float(found)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values that `json.dumps` takes."""
        return {
            "way": self.way,
            "layers": f"{self.layers} of {self.of}",
            "kept_float": self.kept_float,
            "builds": self.builds,
            "val_agreement": self._figures.get("agreement"),
            "ms_ratio": self._figures.get("time"),
            "rejected": self.rejected,
            "gate": self.gate.to_dict() if self.gate else None,
        }


def export_int8(
    source: Path,
    target: Path,
    fp32: Outcome,
    weights: Mapping[str, float],
    held_out: np.ndarray | None,
    some: np.ndarray,
) -> tuple[list[Attempt], Outcome | None, list[GateResult]]:
    """Search for an INT8 model that passes the gate on val, and hold it against test.

    Args:
        source: the FP32 model.
        target: the file to write; it is not there afterwards where no way passes.
        fp32: what the FP32 model answers.
        weights: of the scores in the FP32 model's rejection, whose AUROC the gate compares.
        held_out: as for `outcome_of`.
        some: uint8 (8, size, size, 3), for the clock and for batches.

    Returns:
        what was tried; the answers of the model that is kept, or None; the verdicts on val and on
        test, as far as they were reached.
    """
    pictures, data = fp32.pictures, fp32.pictures.data
    counts = np.bincount(data.splits["train"].class_idx, minlength=data.tree.num_classes)

    def side(outcome: Outcome, split: str) -> Side:
        probabilities, _, class_idx = outcome.splits[split]
        groups = outcome.columns(split), outcome.shown("plant", split)
        return Side(
            probabilities, class_idx, *(ood.value(weights, g) if g else None for g in groups)
        )

    def judge(way: str, run: Run, speed: Speed, difference: float) -> GateResult:
        found = side(outcome_of(run, pictures, fp32.names, held_out, ("val",)), "val")
        cost = {"speed": speed, "batch_difference": difference}
        return judge_gate(way, side(fp32, "val"), found, data.tree, counts, **cost)

    def quick(way: str, run: Run, speed: Speed, difference: float) -> GateResult:
        theirs, _, class_idx = run_over(run, pictures.batches("val", at_most=QUICK))
        ours = fp32.splits["val"][0][spread(len(fp32.splits["val"][2]), QUICK)]
        sides = Side(ours, class_idx), Side(theirs, class_idx)
        cost = {"speed": speed, "batch_difference": difference}
        return judge_gate(way, *sides, data.tree, counts, **cost)

    tried = search_int8(source, target, pictures.calibration, some, judge, quick)
    best = kept(tried)
    if not best:
        why = "; ".join(f"{row.way}: {row.rejected}" for row in tried)
        warn(f"NO INT8 MODEL is written: {why}")
        return tried, None, []
    found = outcome_of(session_run(target, default_workers()), pictures, fp32.names, held_out)
    verdict = judge_gate(
        best.way, side(fp32, "test"), side(found, "test"), data.tree, counts, split="test"
    )
    if not verdict.passed:  # chosen on val; test may still reject it, but never choose another
        best.rejected = f"on test: {verdict.why()}"
        target.unlink()
        warn(f"NO INT8 MODEL is written: {best.way}: {best.rejected}")
    return tried, found if verdict.passed else None, [best.gate, verdict]


def search_int8(
    fp32: Path,
    target: Path,
    calibration: Callable[[], Iterator[np.ndarray]],
    picture: np.ndarray,
    judge: Judge,
    quick: Judge | None = None,
) -> list[Attempt]:
    """Try static INT8, and weights alone where that does not pass the gate.

    Where a way fails by its answers alone, the layers that harm most go back to float until it
    passes.

    Args:
        fp32: the FP32 model.
        target: the file to write; nothing is written where every way is rejected.
        calibration: makes an iterator over batches of class-balanced train pictures, uint8 (N,
            size, size, 3).
        picture: uint8 (8, size, size, 3), for the clock and for batches against single pictures.
        judge: (way, run, speed, batch difference) -> the verdict on val. Called up to seven times
            per way.
        quick: the same on fewer pictures, asked first; None = `judge` alone.

    Returns:
        what was tried; the kept one is `kept(tried)`.
    """
    model, fp32_run, tried = quantize.load_fused(fp32), session_run(fp32), []
    pictures = list(calibration())
    for way in ("static", "weights"):
        path, attempt = target.with_suffix(f".{way}.onnx"), Attempt(way)
        tried.append(attempt)
        try:
            judges = [j for j in (quick, judge) if j]
            _Search(way, model, fp32, path, fp32_run, pictures, picture, judges).run(attempt)
            if not attempt.rejected:
                os.replace(path, target)
                break
        except Exception as error:  # the checker and the runtime raise anything; try the next way
            attempt.rejected = f"failed: {str(error)[:160]}"
        finally:
            path.unlink(missing_ok=True)
    return tried


def kept(tried: Sequence[Attempt]) -> Attempt | None:
    """Return the attempt whose model was written, if any."""
    return next((attempt for attempt in tried if not attempt.rejected), None)


class _Search:
    """One way, from all its layers down to those that may stay INT8."""

    def __init__(
        self,
        way: str,
        model: onnx.ModelProto,
        fp32: Path,
        path: Path,
        fp32_run: Run,
        calibration: list[np.ndarray],
        picture: np.ndarray,
        judges: list[Judge],
    ) -> None:
        self.way, self.model, self.fp32, self.path, self.fp32_run = way, model, fp32, path, fp32_run
        self.calibration, self.picture, self.judges = calibration, picture, judges
        self.ranges: Any = None
        if way == "weights":
            self.layers = quantize.storable(model)
            return
        self.layers = quantize.layers(model, quantize.static_kinds(model))
        if self.layers:
            self.ranges = quantize.calibrate(model, calibration)

    def run(self, attempt: Attempt) -> None:
        """Build with all layers; then put the most harmful back to float until the gate passes or
        nothing is gained.
        """
        attempt.of = len(self.layers)
        if not self.layers:
            attempt.rejected = "there is nothing to quantize"
            return
        order: list[list[str]] = []
        harm, share = np.zeros(0), 1.0
        for round_ in range(ROUNDS + 1):
            chosen = [name for name in self.layers if name not in attempt.kept_float]
            attempt.layers = len(chosen)
            made = quantize.shrink_masks(self._quantized(chosen))
            onnx.checker.check_model(made)
            onnx.save(made, self.path)
            attempt.gate, attempt.builds = self._judge(), attempt.builds + 1
            attempt.rejected = attempt.gate.why()
            failed = {check.name for check in attempt.gate.checks if check.passed is False}
            if not failed or failed - QUALITY or round_ == ROUNDS:
                return
            if not order:
                order, harm = self._by_harm()
            share = self._next_share(attempt.gate, share, round_)
            back = self._how_many(harm, share, len(attempt.kept_float))
            if back > MOST_FLOAT * len(order):
                attempt.rejected += f"; {back} of {len(order)} layers would have to stay float"
                return
            attempt.kept_float = [name for group in order[:back] for name in group]

    def _quantized(self, chosen: list[str]) -> onnx.ModelProto:
        if self.way == "static":
            return quantize.static(self.model, chosen, self.ranges)
        return quantize.weights(copy.deepcopy(self.model), chosen)

    def _judge(self) -> GateResult:
        run, alone = session_run(self.path), self.way == "weights"
        ratio, low, high = measure_speed(self.fp32_run, run, self.picture[0])
        size_ratio = self.path.stat().st_size / self.fp32.stat().st_size
        difference = check_batches(run, self.picture)
        for judge in self.judges:
            result = judge(self.way, run, Speed(ratio, low, high, size_ratio, alone), difference)
            if not result.passed:
                break
        return result

    def _by_harm(self) -> tuple[list[list[str]], np.ndarray]:
        """Groups of layers, most harmful first, and their harm: the mean squared change of the
        log-probabilities when this group alone is quantized. Errors of layers add up about
        independently, so that the sum over those left estimates the error of the whole.
        """
        parts = np.array_split(np.array(self.layers), min(GROUPS, len(self.layers)))
        groups, pictures = [part.tolist() for part in parts], np.concatenate(self.calibration)
        pictures = pictures[spread(len(pictures), HARM_PICTURES)]
        before, harm = _log_probabilities(self.fp32_run, pictures), []
        for group in groups:
            onnx.save(self._quantized(group), self.path)
            after = _log_probabilities(session_run(self.path), pictures)
            harm.append(float(np.square(after - before).mean()))
        order = np.argsort(-np.array(harm), kind="stable")
        return [groups[i] for i in order], np.array(harm)[order]

    @staticmethod
    def _next_share(gate: GateResult, share: float, round_: int) -> float:
        """How much of the whole squared error may stay: disagreement grows with its root."""
        agreement = next(check for check in gate.checks if check.name == "agreement")
        if round_ == 0 and agreement.passed is False:
            allowed = TARGET_SHARE * (1 - agreement.limit) / (1 - agreement.figure)
            return float(np.clip(allowed**2, 0.01, 0.5))
        return share / 2.5

    @staticmethod
    def _how_many(harm: np.ndarray, share: float, before: int) -> int:
        left = harm.sum() - np.cumsum(harm)
        return max(before + 1, int(np.argmax(left <= share * harm.sum())) + 1)


def _log_probabilities(run: Run, pictures: np.ndarray) -> np.ndarray:
    parts = [run(pictures[i : i + 8])[0] for i in range(0, len(pictures), 8)]
    return np.log(np.maximum(np.concatenate(parts).astype(np.float64), 1e-6))
