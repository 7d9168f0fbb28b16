"""The search for an INT8 model that passes the gate: what is tried, in which order, and which
layers go back to float.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from common.console import long_part, warn
from common.export import ood, quantize
from common.export.answers import Run, run_over, take
from common.export.fitting import Outcome, Reference, outcome_of
from common.export.gate import GateResult, Side, Speed, judge_gate
from common.export.measure import check_batches, measure_speed, session_run
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

Build = Callable[[list[str]], onnx.ModelProto]  # of the layers to quantize
Judge = Callable[[str, Run, Speed], GateResult]


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

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values that `json.dumps` takes."""
        figures = {check.name: check.figure for check in self.gate.checks} if self.gate else {}
        return {
            "way": self.way,
            "layers": f"{self.layers} of {self.of}",
            "kept_float": self.kept_float,
            "builds": self.builds,
            "val_agreement": figures.get("agreement"),
            "ms_ratio": figures.get("time"),
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
    reference: Reference,
) -> tuple[list[Attempt], Outcome | None, list[GateResult]]:
    """Search for an INT8 model that passes the gate on val, and hold it against test.

    Args:
        source: the FP32 model.
        target: the file to write; it is not there afterwards where no way passes.
        fp32: what the FP32 model answers.
        weights: of the scores in the FP32 model's rejection, whose AUROC the gate compares.
        held_out, reference: as for `outcome_of`.
        some: uint8 (8, size, size, 3), for the clock and for batches.

    Returns:
        what was tried; the answers of the model that is kept, or None; the verdicts on val and on
        test, as far as they were reached.
    """
    pictures, data = fp32.pictures, fp32.pictures.data
    counts = np.bincount(data.splits["train"].class_idx, minlength=data.tree.num_classes)

    def side(outcome: Outcome, split: str) -> Side:
        groups = outcome.columns(split), outcome.shown("plant", split)
        scores = (ood.value(weights, group) if group else None for group in groups)
        return Side.of(outcome.splits[split], *scores)

    def judge(way: str, run: Run, speed: Speed) -> GateResult:
        few = run_over(run, pictures.batches("val", at_most=QUICK), data.tree)
        wanted = take(fp32.splits["val"], spread(pictures.count("val"), QUICK))
        quick = judge_gate(way, Side.of(wanted), Side.of(few), data.tree, counts, speed=speed)
        if not quick.passed:
            return quick
        what = f"INT8, {way}, on val"
        found = outcome_of(what, run, pictures, fp32.names, held_out, splits=("val",))
        sides = side(fp32, "val"), side(found, "val")
        return judge_gate(way, *sides, data.tree, counts, speed=speed)

    tried = search_int8(source, target, list(pictures.calibration()), some, judge)
    best = kept(tried)
    if not best:
        reasons = [f"{row.way}: {row.rejected}" for row in tried]
        warn("NO INT8 MODEL is written: " + "; ".join(reasons))
        return tried, None, []
    run = session_run(target, default_workers())
    found = outcome_of(target.name, run, pictures, fp32.names, held_out, reference=reference)
    verdict = judge_gate(
        best.way, side(fp32, "test"), side(found, "test"), data.tree, counts, split="test"
    )
    if not verdict.passed:  # chosen on val; test may still reject it, but never choose another
        best.rejected = f"on test: {verdict.why()}"
        target.unlink()
        warn(f"NO INT8 MODEL is written: {best.way}: {best.rejected}")
    return tried, found if verdict.passed else None, [best.gate, verdict]


def kept(tried: Sequence[Attempt]) -> Attempt | None:
    """Return the attempt whose model was written, if any."""
    return next((attempt for attempt in tried if not attempt.rejected), None)


def search_int8(
    fp32: Path, target: Path, calibration: list[np.ndarray], some: np.ndarray, judge: Judge
) -> list[Attempt]:
    """Try static INT8, and weights alone where that does not pass the gate.

    Where a way fails by its answers alone, the layers that harm most go back to float until it
    passes.

    Args:
        fp32: the FP32 model.
        target: the file to write; nothing is written where every way is rejected.
        calibration: batches of class-balanced train pictures, uint8 (N, size, size, 3).
        some: uint8 (8, size, size, 3), for the clock and for batches against single pictures.
        judge: (way, run, speed) -> the verdict on val. Called up to seven times per way.

    Returns:
        what was tried; the kept one is `kept(tried)`.
    """
    search, tried = _Search(fp32, calibration, some, judge), []
    for way in ("static", "weights"):
        path, attempt = target.with_suffix(f".{way}.onnx"), Attempt(way)
        tried.append(attempt)
        try:
            search.run(attempt, path)
            if not attempt.rejected:
                os.replace(path, target)
                break
        except Exception as error:  # the checker and the runtime raise anything; try the next way
            attempt.rejected = f"failed: {str(error)[:160]}"
        finally:
            path.unlink(missing_ok=True)
    return tried


class _Search:
    """One way after the other, from all its layers down to those that may stay INT8."""

    def __init__(
        self, fp32: Path, calibration: list[np.ndarray], some: np.ndarray, judge: Judge
    ) -> None:
        self.model, self.run_fp32 = quantize.load_fused(fp32), session_run(fp32)
        self.size, self.calibration = fp32.stat().st_size, calibration
        self.some, self.judge = some, judge

    def run(self, attempt: Attempt, path: Path) -> None:
        """Build with all layers; then put the most harmful back to float until the gate passes or
        nothing is gained.
        """
        layers, build = self._way(attempt.way)
        attempt.of = len(layers)
        if not layers:
            attempt.rejected = "there is nothing to quantize"
            return
        order, harm, share = [], np.zeros(0), 1.0
        for round_ in range(ROUNDS + 1):
            chosen = [name for name in layers if name not in attempt.kept_float]
            made = quantize.shrink_masks(build(chosen))
            onnx.checker.check_model(made)
            onnx.save(made, path)
            attempt.layers, attempt.builds = len(chosen), round_ + 1
            gate = attempt.gate = self._judge(attempt.way, path)
            attempt.rejected = gate.why()
            failed = {check.name for check in gate.checks if check.passed is False}
            if not failed or failed - QUALITY or round_ == ROUNDS:
                return
            if not order:
                order, harm = self._by_harm(layers, build)
            share = _next_share(gate, share, round_)
            left = harm.sum() - np.cumsum(harm)
            enough = int(np.argmax(left <= share * harm.sum())) + 1
            back = max(len(attempt.kept_float) + 1, enough)
            if back > MOST_FLOAT * len(order):
                attempt.rejected += f"; {back} of {len(order)} layers would have to stay float"
                return
            attempt.kept_float = [name for group in order[:back] for name in group]

    def _way(self, way: str) -> tuple[list[str], Build]:
        """The layers that a way may quantize, and how it quantizes some of them."""
        if way == "weights":
            return quantize.storable(self.model), partial(quantize.weights, self.model)
        layers = quantize.layers(self.model, quantize.static_kinds(self.model))
        ranges = quantize.calibrate(self.model, self.calibration) if layers else None
        return layers, partial(quantize.static, self.model, ranges=ranges)

    def _judge(self, way: str, path: Path) -> GateResult:
        run = session_run(path)
        speed = Speed(
            *measure_speed(self.run_fp32, run, self.some[0]),
            path.stat().st_size / self.size,
            way == "weights",
            check_batches(run, self.some),
        )
        return self.judge(way, run, speed)

    def _by_harm(self, layers: list[str], build: Build) -> tuple[list[list[str]], np.ndarray]:
        """Groups of layers, most harmful first, and their harm: the mean squared change of the
        log-probabilities when this group alone is quantized. Errors of layers add up about
        independently, so that the sum over those left estimates the error of the whole.
        """
        groups = [p.tolist() for p in np.array_split(layers, min(GROUPS, len(layers)))]
        pictures = np.concatenate(self.calibration)
        pictures = pictures[spread(len(pictures), HARM_PICTURES)]
        before, harm = _log_probabilities(self.run_fp32, pictures), []
        with (
            tempfile.TemporaryDirectory() as folder,
            long_part("harm of INT8, layer by layer", len(groups), "group") as bar,
        ):
            path = Path(folder) / "group.onnx"
            for group in groups:
                onnx.save(build(group), path)
                after = _log_probabilities(session_run(path), pictures)
                harm.append(float(np.square(after - before).mean()))
                bar.update()
        order = np.argsort(-np.array(harm), kind="stable")
        return [groups[i] for i in order], np.array(harm)[order]


def _next_share(gate: GateResult, share: float, round_: int) -> float:
    """How much of the whole squared error may stay: disagreement grows with its root."""
    agreement = next(check for check in gate.checks if check.name == "agreement")
    if round_ == 0 and agreement.passed is False:
        allowed = TARGET_SHARE * (1 - agreement.limit) / (1 - agreement.figure)
        return float(np.clip(allowed**2, 0.01, 0.5))
    return share / 2.5


def _log_probabilities(run: Run, pictures: np.ndarray) -> np.ndarray:
    parts = [run(pictures[i : i + 8])[0] for i in range(0, len(pictures), 8)]
    return np.log(np.maximum(np.concatenate(parts).astype(np.float64), 1e-6))
