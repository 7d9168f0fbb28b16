"""INT8 models from the FP32 one: three ways, of which the export keeps the fastest that answers alike."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from common.measure import measure_ms, run_over, session_run

KEPT_FLOAT = ("species_head", "disease_heads", "neck", "_space.")  # quantized heads clip the logits; the scores need their distances


class _Pictures(CalibrationDataReader):
    def __init__(self, batches: Iterator[np.ndarray]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}


def candidates(model: Path) -> list[str]:
    """Name the ways worth trying, most promising first: dynamic for matrix products, static for convolutions, weights for all."""
    share = _weights_by_kind(onnx.load(model))
    return ["dynamic", "static", "weights"] if share["MatMul"] > share["Conv"] else ["static", "weights"]


def quantize(way: str, model: Path, target: Path, pictures: Callable[[], Iterator[np.ndarray]]) -> None:
    """Write an INT8 model.

    Args:
        way: `dynamic` (MatMul, activations scaled per call, weights per channel), `static` (Conv and MatMul, u8 activations
            with ranges from calibration, s8 weights per channel) or `weights` (int8 storage, unfolded to float at load).
        model: the FP32 model.
        target: the file to write.
        pictures: makes an iterator over calibration batches, uint8 (N, size, size, 3).

    Raises:
        Exception: what onnxruntime raises for a graph it cannot quantize.
    """
    if way == "weights":
        onnx.save(_int8_weights(onnx.load(model)), target)
        return
    prepared = target.with_suffix(".prepared.onnx")
    try:
        _fuse(model, prepared)
        graph = onnx.load(prepared)
        del graph.graph.value_info[:]  # the exporter's shapes contradict the quantizer's new nodes
        kept = _nodes_kept_float(graph)
        if way == "dynamic":
            _open_gemms(graph, kept)
        onnx.save(graph, prepared)
        logging.getLogger().setLevel(logging.ERROR)  # the quantizer advises on the root logger
        if way == "dynamic":
            quantize_dynamic(prepared, target, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"],
                             nodes_to_exclude=kept)
        else:
            quantize_static(prepared, target, _Pictures(pictures()), quant_format=QuantFormat.QDQ, per_channel=True,
                            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=kept,
                            op_types_to_quantize=["Conv", "MatMul", "Gemm"])
    finally:
        prepared.unlink(missing_ok=True)


def _fuse(model: Path, target: Path) -> None:
    """Fold batch norms into convolutions, so that the quantizer sees the weights that are used."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _weights_by_kind(model: onnx.ModelProto) -> dict[str, int]:
    sizes = {i.name: int(np.prod(i.dims)) for i in model.graph.initializer}
    share = {"MatMul": 0, "Conv": 0}
    for node in model.graph.node:
        for name in node.input[1:2]:
            if node.op_type in share and name in sizes and not any(part in name for part in KEPT_FLOAT):
                share[node.op_type] += sizes[name]
    return share


def _nodes_kept_float(model: onnx.ModelProto) -> list[str]:
    """Name the products that stay float: heads and scores, and whatever multiplies two activations."""
    weights = {i.name for i in model.graph.initializer}
    kept = []
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"
        if node.op_type in ("MatMul", "Gemm"):
            own = [name for name in node.input if name in weights]
            if not own or any(part in name for name in own for part in KEPT_FLOAT):
                kept.append(node.name)
    return kept


def _open_gemms(model: onnx.ModelProto, names: list[str]) -> None:
    """Write the named Gemm nodes as Transpose, MatMul, Add: the quantizer would turn their weights over in place, under the
    feet of the heatmap, which reads the same weights.
    """
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "Gemm" or node.name not in names or not any(a.name == "transB" and a.i for a in node.attribute):
            nodes.append(node)
            continue
        name, (left, weight, *bias) = node.name, node.input
        nodes += [helper.make_node("Transpose", [weight], [name + "_turned"], name=name + "_turn", perm=[1, 0]),
                  helper.make_node("MatMul", [left, name + "_turned"], [name + "_product"], name=name + "_product"),
                  helper.make_node("Add" if bias else "Identity", [name + "_product", *bias], list(node.output), name=name + "_add")]
        names.append(name + "_product")
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _int8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store large float weights as int8 per output channel, with Cast and Mul, which the runtime folds to float at load.

    (It does not fold DequantizeLinear.) Depthwise convolutions stay float: they are small, and the most easily hurt.
    """
    graph, nodes = model.graph, []
    for tensor in list(graph.initializer):
        users = [n for n in graph.node if tensor.name in n.input and n.op_type in ("Conv", "MatMul", "Gemm")]
        values = numpy_helper.to_array(tensor)
        if not users or values.dtype != np.float32 or values.ndim < 2 or values.size < 1024 or _grouped(users[0]) or any(
                part in tensor.name for part in KEPT_FLOAT):
            continue
        transposed = any(a.name == "transB" and a.i for a in users[0].attribute)
        axis = 0 if users[0].op_type == "Conv" or transposed else values.ndim - 1
        others = tuple(i for i in range(values.ndim) if i != axis)
        scale = np.maximum(np.abs(values).max(axis=others, keepdims=True), 1e-8).astype(np.float32) / 127.0
        small = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
        name = tensor.name
        graph.initializer.remove(tensor)
        graph.initializer.extend([numpy_helper.from_array(small, name + "_int8"), numpy_helper.from_array(scale, name + "_scale")])
        nodes += [helper.make_node("Cast", [name + "_int8"], [name + "_cast"], name=name + "_cast", to=TensorProto.FLOAT),
                  helper.make_node("Mul", [name + "_cast", name + "_scale"], [name], name=name + "_unfold")]
    for node in reversed(nodes):
        graph.node.insert(0, node)
    del graph.value_info[:]
    return model


def _grouped(node: onnx.NodeProto) -> bool:
    return any(a.name == "group" and a.i > 1 for a in node.attribute)


@dataclass
class Attempt:
    """One way to INT8 that was tried: agreement with FP32 on val (0..1), time as a share of FP32's, why it was refused."""

    way: str
    val_agreement: float | None = None
    ms_ratio: float | None = None
    refused: str = ""


def make_int8(fp32: Path, target: Path, calibration: Callable[[], Iterator[np.ndarray]],
              val: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]], val_top1: np.ndarray, least: float) -> list[Attempt]:
    """Try the ways to INT8 and keep the fastest that answers like FP32 on val.

    Args:
        fp32: the FP32 model.
        target: the file to write; nothing is written where every way is refused.
        calibration: makes an iterator over batches of train pictures, uint8 (N, size, size, 3).
        val: makes an iterator over (pictures, leaves) of val.
        val_top1: int (N,), FP32's decisions on val.
        least: least share of equal decisions, 0..1.

    Returns:
        what was tried; the kept one is the fastest that was not refused.
    """
    picture, fp32_run, tried = next(iter(val()))[0][0], session_run(fp32), []
    for way in candidates(fp32):
        attempt, row = target.with_suffix(f".{way}.onnx"), Attempt(way)
        fastest = min((a.ms_ratio for a in tried if not a.refused), default=float("inf"))
        tried.append(row)
        try:
            quantize(way, fp32, attempt, calibration)
            run = session_run(attempt)
            row.val_agreement = float((run_over(run, val())[0].argmax(1) == val_top1).mean())
        except Exception as error:  # the quantizer and the runtime raise anything; the next way may do
            row.refused = f"failed: {str(error)[:120]}"
            attempt.unlink(missing_ok=True)
            continue
        ms = measure_ms({"fp32": fp32_run, "int8": run}, picture)
        row.ms_ratio = ms["int8"] / ms["fp32"]
        if row.val_agreement < least:
            row.refused = f"agrees on {row.val_agreement:.1%} of val, {least:.0%} are needed"
        if not row.refused and row.ms_ratio < fastest:
            os.replace(attempt, target)
        else:
            attempt.unlink()
    return tried


def kept(tried: list[Attempt]) -> Attempt | None:
    """Return the attempt whose model was written, if any."""
    return min((a for a in tried if not a.refused), key=lambda a: a.ms_ratio, default=None)
