"""The way to an INT8 model that passes the gate: what is tried, in which order, and which layers go
back to float. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from common.export import qdq, quantize
from common.export.gate import GateResult, Speed
from common.export.measure import Run, check_batches, measure_speed, session_run
from common.export.ranges import Range, Seen, choose_range, observe

QUALITY = {
    "agreement",
    "macro_f1",
    "few_recall",
    "auroc",
    "calibration",
}  # what more float layers can mend
ROUNDS = 6  # times that layers are put back to float
MOST_FLOAT = 0.75  # of the layers
AIM = 0.8  # of the disagreement that the gate lets pass is aimed at
GROUPS = 64  # layers are judged one by one up to so many, beyond in groups of neighbours
LOOKED_AT = 24  # pictures that a layer's harm is measured on

Judge = Callable[[str, Run, Speed, float], GateResult]


@dataclass
class Attempt:
    """One way to INT8 that was tried.

    Attributes:
        way: `dynamic`, `static` or `weights`.
        layers, of: how many layers are INT8 in the last model built, and how many might be.
        kept_float: names of the layers put back to float, most harmful first.
        builds: models judged.
        gate: the last judgement on val.
        refused: why it is not used; empty where it passed.
    """

    way: str
    layers: int = 0
    of: int = 0
    kept_float: list[str] = field(default_factory=list)
    builds: int = 0
    gate: GateResult | None = None
    refused: str = ""

    @property
    def ratio(self) -> float:
        """Time as a share of FP32's; infinite where it was not measured."""
        found = (
            [check.figure for check in self.gate.checks if check.name == "time"]
            if self.gate
            else []
        )
        return float(found[0]) if found and found[0] is not None else float("inf")

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values that `json.dumps` takes."""
        checks = {check.name: check.figure for check in self.gate.checks} if self.gate else {}
        return {
            "way": self.way,
            "layers": f"{self.layers} of {self.of}",
            "kept_float": self.kept_float,
            "builds": self.builds,
            "val_agreement": checks.get("agreement"),
            "ms_ratio": checks.get("time"),
            "refused": self.refused,
            "gate": self.gate.to_dict() if self.gate else None,
        }


def ways(model: onnx.ModelProto) -> list[str]:
    """Name the ways worth trying, in order: dynamic first for matrix products, never for
    convolutions; weights alone last."""
    return (
        ["dynamic", "static", "weights"]
        if quantize.main_kind(model) == "MatMul"
        else ["static", "weights"]
    )


def make_int8(
    fp32: Path,
    target: Path,
    calibration: Callable[[], Iterator[np.ndarray]],
    picture: np.ndarray,
    judge: Judge,
    quick: Judge | None = None,
) -> list[Attempt]:
    """Try the ways to INT8 and keep the fastest that passes the gate; weights alone only where no
    other way passes.

    Where a way fails by its answers alone, the layers that harm most go back to float until it
    passes.

    Args:
        fp32: the FP32 model.
        target: the file to write; nothing is written where every way is refused.
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
    for way in ways(model):
        if way == "weights" and kept(tried):
            continue
        path, attempt = target.with_suffix(f".{way}.onnx"), Attempt(way)
        tried.append(attempt)
        try:
            search = _Search(way, model, fp32, path, fp32_run, pictures, picture, judge, quick)
            fastest = min((a.ratio for a in tried[:-1] if not a.refused), default=float("inf"))
            search.run(attempt)
            if not attempt.refused and attempt.ratio < fastest:
                os.replace(path, target)
        except (
            Exception
        ) as error:  # the checker and the runtime raise anything; the next way may do
            attempt.refused = f"failed: {str(error)[:160]}"
        finally:
            path.unlink(missing_ok=True)
    return tried


def kept(tried: Sequence[Attempt]) -> Attempt | None:
    """Return the attempt whose model was written, if any."""
    return min(
        (attempt for attempt in tried if not attempt.refused),
        key=lambda attempt: attempt.ratio,
        default=None,
    )


class _Search:
    """One way, from all its layers down to those that may stay."""

    def __init__(
        self,
        way: str,
        model: onnx.ModelProto,
        fp32: Path,
        path: Path,
        fp32_run: Run,
        calibration: list[np.ndarray],
        picture: np.ndarray,
        judge: Judge,
        quick: Judge | None,
    ) -> None:
        self.way, self.model, self.fp32, self.path, self.fp32_run = way, model, fp32, path, fp32_run
        self.calibration, self.picture, self.judges = (
            calibration,
            picture,
            [j for j in (quick, judge) if j],
        )
        kinds = (
            ("Conv", "MatMul")
            if way == "static" and quantize.main_kind(model) == "Conv"
            else ("MatMul",)
        )
        self.layers = (
            quantize.storable(model) if way == "weights" else quantize.layers(model, kinds)
        )
        self.ranges: dict[str, Range] = {}
        self.seen: dict[str, Seen] = {}
        if self.layers:
            self.seen = observe(model, qdq.observed_tensors(model, self.layers), calibration)
            self.ranges = (
                {tensor: choose_range(seen) for tensor, seen in self.seen.items()}
                if way == "static"
                else {}
            )

    def run(self, attempt: Attempt) -> None:
        """Build with all layers; then put the most harmful back to float, until the gate lets it
        pass or nothing is gained."""
        attempt.of = len(self.layers)
        if not self.layers:
            attempt.refused = "there is nothing to quantize"
            return
        order: list[str] = []
        harm = np.zeros(0)
        share = 1.0
        for round_ in range(ROUNDS + 1):
            self._build(attempt)
            attempt.gate, attempt.builds = self._judge(), attempt.builds + 1
            attempt.refused = attempt.gate.why()
            failed = {check.name for check in attempt.gate.checks if check.passed is False}
            if not failed or failed - QUALITY or round_ == ROUNDS:
                return
            if not order:
                order, harm = self._by_harm()
            share = self._next_share(attempt.gate, share, round_)
            back = self._how_many(harm, share, len(attempt.kept_float))
            if back > MOST_FLOAT * len(order):
                attempt.refused += f"; {back} of {len(order)} layers would have to stay float"
                return
            attempt.kept_float = [name for group in order[:back] for name in group]

    def _build(self, attempt: Attempt) -> None:
        chosen = [name for name in self.layers if name not in attempt.kept_float]
        attempt.layers = len(chosen)
        made = quantize.shrink_masks(self._quantized(chosen))
        onnx.checker.check_model(made)
        onnx.save(made, self.path)

    def _quantized(self, chosen: list[str]) -> onnx.ModelProto:
        if self.way == "static":
            return qdq.static(self.model, chosen, self.ranges, self.seen)
        if self.way == "dynamic":
            return quantize.dynamic(self.model, chosen, self.seen)
        copied = onnx.ModelProto()
        copied.CopyFrom(self.model)
        return quantize.weights(copied, chosen, seen=self.seen)

    def _judge(self) -> GateResult:
        run = session_run(self.path)
        ratio, low, high = measure_speed(self.fp32_run, run, self.picture[0])
        speed = Speed(
            ratio,
            low,
            high,
            self.path.stat().st_size / self.fp32.stat().st_size,
            self.way == "weights",
        )
        difference = check_batches(run, self.picture)
        for judge in self.judges:
            result = judge(self.way, run, speed, difference)
            if not result.passed:
                break
        return result

    def _by_harm(self) -> tuple[list[list[str]], np.ndarray]:
        """Groups of layers, most harmful first, and their harm: the mean squared change of the
        log-probabilities when this group alone is quantized. Errors of layers add up about
        independently, so that the sum of those left foretells the whole."""
        ends = (
            np.linspace(0, len(self.layers), min(GROUPS, len(self.layers)) + 1).astype(int).tolist()
        )
        groups = [self.layers[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
        looked = np.concatenate(self.calibration)
        looked = looked[np.linspace(0, len(looked) - 1, min(LOOKED_AT, len(looked))).astype(int)]
        before = _log_probabilities(self.fp32_run, looked)
        harm = []
        for group in groups:
            onnx.save(self._quantized(group), self.path)
            harm.append(
                float(np.square(_log_probabilities(session_run(self.path), looked) - before).mean())
            )
        order = np.argsort(-np.array(harm), kind="stable")
        return [groups[i] for i in order], np.array(harm)[order]

    @staticmethod
    def _next_share(gate: GateResult, share: float, round_: int) -> float:
        """How much of the whole squared error may stay: disagreement grows with its root."""
        agreement = next(check for check in gate.checks if check.name == "agreement")
        if round_ == 0 and agreement.passed is False:
            return float(
                np.clip((AIM * (1 - agreement.bar) / (1 - agreement.figure)) ** 2, 0.01, 0.5)
            )
        return share / 2.5

    @staticmethod
    def _how_many(harm: np.ndarray, share: float, before: int) -> int:
        left = harm.sum() - np.cumsum(harm)
        return max(before + 1, int(np.argmax(left <= share * harm.sum())) + 1)


def _log_probabilities(run: Run, pictures: np.ndarray) -> np.ndarray:
    parts: Iterable[np.ndarray] = (run(pictures[i : i + 8])[0] for i in range(0, len(pictures), 8))
    return np.log(np.maximum(np.concatenate(list(parts)).astype(np.float64), 1e-6))
