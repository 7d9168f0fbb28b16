"""What values flow through an ONNX model: the ranges that INT8 activations are scaled by. No
torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from common.serve.predictor import open_session

BINS = 2048
KEPT = 4096  # values kept of each tensor and batch, evenly spread over it
LEVELS = 255


@dataclass
class Seen:
    """What was seen of one tensor.

    Attributes:
        low, high: least and greatest value.
        sample: float32 (K,), values evenly spread over pictures and places.
        mean: float64 (C,), mean per channel: along axis 1 of maps (N, C, h, w), else along the last
            axis.
    """

    low: float
    high: float
    sample: np.ndarray
    mean: np.ndarray


@dataclass(frozen=True)
class Range:
    """Scale and zero point of a tensor as uint8: value = scale * (stored - zero)."""

    scale: float
    zero: int

    @property
    def top(self) -> float:
        """The greatest value that can be stored."""
        return self.scale * (LEVELS - self.zero)


def observe(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[np.ndarray]
) -> dict[str, Seen]:
    """Run a model over pictures and look at some of its tensors.

    Args:
        model: reads `images`.
        tensors: names of float tensors; a name that is an output of the model is fine too.
        batches: uint8 (N, size, size, 3), one batch at least.

    Returns:
        what was seen of each. It follows from the pictures alone: nothing is drawn at random.

    Raises:
        ValueError: where there are no pictures.
        BundleError: where the runtime cannot load the model.
    """
    wanted = list(dict.fromkeys(tensors))
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    outputs = {output.name for output in opened.graph.output}
    opened.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in wanted
        if name not in outputs
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "opened.onnx"
        onnx.save(opened, path)
        session = open_session(path)
    seen: dict[str, Seen] = {}
    samples: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    pictures = 0
    for batch in batches:
        for name, value in zip(
            wanted, session.run(wanted, {"images": np.ascontiguousarray(batch)}), strict=True
        ):
            flat, last = value.reshape(-1), seen.get(name)
            step = max(1, flat.size // KEPT)
            samples[name].append(
                flat[pictures % step :: step].copy()
            )  # begins elsewhere in each batch
            axes = tuple(
                i for i in range(value.ndim) if i != (1 if value.ndim == 4 else value.ndim - 1)
            )
            mean = value.mean(axis=axes, dtype=np.float64) * len(batch)
            seen[name] = Seen(
                min(float(flat.min()), last.low if last else np.inf),
                max(float(flat.max()), last.high if last else -np.inf),
                samples[name][-1],
                mean + (last.mean if last else 0.0),
            )
        pictures += len(batch)
    if not pictures:
        raise ValueError("there are no pictures to calibrate with")
    for name, entry in seen.items():
        entry.sample, entry.mean = np.concatenate(samples[name]), entry.mean / pictures
    return seen


def choose_range(seen: Seen, *, least_error: bool = True) -> Range:
    """Choose the range of uint8 for a tensor.

    Args:
        seen: of the tensor.
        least_error: cut rare values off where the squared error of all values gains by it; else
            from the least value to the greatest. Zero is always stored exactly, as padding needs
            it.

    Returns:
        the range; its zero is 0 where no value is negative.
    """
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if not high - low > 1e-12 or not np.isfinite(high - low):
        return Range(1.0 / LEVELS, 0)
    if not least_error:
        return _range(low, high)
    counts, edges = np.histogram(seen.sample, bins=BINS)
    centres = ((edges[1:] + edges[:-1]) / 2)[counts > 0]
    weights = counts[counts > 0].astype(np.float64)
    # the sample may have missed the farthest values: they count as one each, so that nobody is cut
    # off for free
    centres, weights = np.append(centres, (low, high)), np.append(weights, (1.0, 1.0))
    shares = np.linspace(0.2, 1.0, 33)
    best, least = _range(low, high), np.inf
    for below in shares if low < 0 else (1.0,):
        for above in shares if high > 0 else (1.0,):
            candidate = _range(low * below, high * above)
            stored = np.clip(np.round(centres / candidate.scale) + candidate.zero, 0, LEVELS)
            error = float(
                (weights * ((stored - candidate.zero) * candidate.scale - centres) ** 2).sum()
            )
            if error < least:
                best, least = candidate, error
    return best


def _range(low: float, high: float) -> Range:
    scale = max((high - low) / LEVELS, 1e-12)
    return Range(scale, int(np.clip(round(-low / scale), 0, LEVELS)))


def balanced(class_idx: np.ndarray, at_most: int) -> np.ndarray:
    """Choose calibration pictures that stand for all classes alike: in turns, one of each class.

    Args:
        leaf: int (N,), class of each picture.
        at_most: how many to choose.

    Returns:
        int64 (at_most or N,), ascending places in `leaf`; within a class they are evenly spread.
    """
    class_idx = np.asarray(class_idx)
    order = np.argsort(class_idx, kind="stable")
    _, starts, counts = np.unique(class_idx[order], return_index=True, return_counts=True)
    turn = np.empty(len(class_idx), np.float64)
    quota = max(1, -(-at_most // max(1, len(starts))))
    for start, count in zip(starts, counts, strict=True):
        spread = np.linspace(0, count - 1, min(quota, count)).round().astype(int)
        turns = np.full(count, np.inf)
        turns[spread] = np.arange(len(spread))
        rest = np.flatnonzero(np.isinf(turns))
        turns[rest] = len(spread) + np.arange(len(rest))
        turn[order[start : start + count]] = turns
    classes = np.unique(class_idx, return_inverse=True)[1]
    if at_most < len(starts):  # fewer pictures than classes: classes evenly spread
        kept = np.isin(classes, np.linspace(0, len(starts) - 1, at_most).round().astype(int))
        turn[~kept] = np.inf
    chosen = np.lexsort((classes, turn))[: min(at_most, len(class_idx))]
    return np.sort(chosen)
