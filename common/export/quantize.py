"""INT8 in an ONNX model: which layers there are, fixed ranges for activations (ONNX Runtime's
quantizer), and weights alone. No torch.

A layer is a Conv or MatMul with constant weights. Everything else stays float: LayerNorm, Softmax,
GELU, residual sums, products of two activations, and the modules that declare `keep_float`.
"""

import contextlib
import copy
import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from common.console import long_part
from common.serve.predictor import open_session

KEEP_FLOAT = "keep_float"  # key of an ONNX file's metadata: JSON list of name prefixes of weights
SMALLEST = 1024  # number of weights from which on a layer is worth storing as int8
PERCENTILE = 99.999  # of the values of a tensor lie within its range
AT_ONCE = 4  # pictures per calibration step: the calibrator keeps all their activations in memory


@dataclass
class TensorStats:
    """Statistics of one tensor over the calibration pictures.

    Attributes:
        low, high: least and greatest value.
        mean: float64 (C,), mean per channel: along axis 1 of maps (N, C, h, w), else along the last
            axis.
    """

    low: float
    high: float
    mean: np.ndarray


# region the model and its layers


def load_fused(model: Path) -> onnx.ModelProto:
    """Load a model with batch norms and constants folded, so that the weights which are used are
    quantized, and with every node named.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "fused.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        loaded = onnx.load(options.optimized_model_filepath)
    # the exporter's shapes contradict the nodes that quantization inserts
    del loaded.graph.value_info[:]
    for number, node in enumerate(loaded.graph.node):
        node.name = f"{node.name or node.op_type}_{number}"  # unique: nodes are chosen by name
    facts = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    del loaded.metadata_props[:]
    helper.set_model_props(loaded, {k: v for k, v in facts.items() if k == KEEP_FLOAT})
    return loaded


def is_kept_float(model: onnx.ModelProto, weight: str) -> bool:
    """Whether a weight belongs to a module that declares `keep_float` (`graph.export_onnx` writes
    their names into the file).

    Raises:
        ValueError: where the file does not say.
    """
    for entry in model.metadata_props:
        if entry.key == KEEP_FLOAT:
            return weight.startswith(tuple(json.loads(entry.value)))
    raise ValueError(f"the model's metadata has no {KEEP_FLOAT}, the weights that stay float")


def layers(model: onnx.ModelProto, kinds: Collection[str] = ("Conv", "MatMul")) -> list[str]:
    """Name the layers that may be quantized, in the order they run."""
    weights = {
        tensor.name
        for tensor in model.graph.initializer
        if len(tensor.dims) > 1 and tensor.data_type == TensorProto.FLOAT
    }
    return [
        node.name
        for node in model.graph.node
        if node.op_type in kinds
        and node.input[1] in weights
        and not is_kept_float(model, node.input[1])
    ]


def storable(model: onnx.ModelProto) -> list[str]:
    """Name the nodes whose weights `weights` stores as int8, in the order they run."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    chosen = set(layers(model, ("Conv", "MatMul", "Gemm")))
    return [
        node.name
        for node in model.graph.node
        if node.name in chosen and sizes[node.input[1]] >= SMALLEST and not grouped(node)
    ]


def static_kinds(model: onnx.ModelProto) -> list[str]:
    """Types of the nodes to quantize with fixed ranges: convolutions only where they hold most
    weights, as a transformer's patch embedding gains nothing.
    """
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    chosen, held = set(layers(model)), {"Conv": 0, "MatMul": 0}
    for node in model.graph.node:
        if node.name in chosen:
            held[node.op_type] += sizes[node.input[1]]
    return ["MatMul"] if held["MatMul"] > held["Conv"] else ["Conv", "MatMul"]


def grouped(node: onnx.NodeProto) -> bool:
    """Whether a convolution is in groups, as depthwise ones are."""
    return any(a.name == "group" and a.i > 1 for a in node.attribute)


def observe(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Sequence[np.ndarray]
) -> dict[str, TensorStats]:
    """Run a model over pictures and take statistics of some of its tensors.

    Args:
        model: reads `images`.
        tensors: names of float tensors; a name that is an output of the model is fine too.
        batches: uint8 (N, size, size, 3), one batch at least.

    Raises:
        ValueError: where there are no pictures.
        BundleError: where the runtime cannot load the model.
    """
    pictures = sum(map(len, batches))
    if not pictures:
        raise ValueError("there are no pictures to calibrate with")
    wanted = list(dict.fromkeys(tensors))
    opened = copy.deepcopy(model)
    outputs = {output.name for output in opened.graph.output}
    opened.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in wanted
        if name not in outputs
    )
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(opened, Path(folder) / "opened.onnx")
        session = open_session(Path(folder) / "opened.onnx")
    stats: dict[str, TensorStats] = {}
    with long_part("statistics of activations", pictures) as bar:
        for batch in batches:
            values = session.run(wanted, {"images": np.ascontiguousarray(batch)})
            for name, value in zip(wanted, values, strict=True):
                channel = 1 if value.ndim == 4 else value.ndim - 1
                others = tuple(i for i in range(value.ndim) if i != channel)
                mean = value.mean(axis=others, dtype=np.float64) * len(batch)
                last = stats.get(name, TensorStats(np.inf, -np.inf, np.zeros_like(mean)))
                stats[name] = TensorStats(
                    min(float(value.min()), last.low),
                    max(float(value.max()), last.high),
                    mean + last.mean,
                )
            bar.update(len(batch))
    for entry in stats.values():
        entry.mean = entry.mean / pictures
    return stats


# endregion

# region static


def calibrate(model: onnx.ModelProto, batches: Iterable[np.ndarray]) -> Any:
    """Find the ranges of activations for `static` with ONNX Runtime's percentile calibrator.

    Args:
        model: as `load_fused` gives it.
        batches: uint8 (N, size, size, 3), one batch at least.

    Returns:
        onnxruntime.quantization.calibrate.TensorsData of all inputs and outputs of the layers.
    """
    from onnxruntime import quantization  # slow to import

    pieces = [
        np.ascontiguousarray(batch[start : start + AT_ONCE])
        for batch in batches
        for start in range(0, len(batch), AT_ONCE)
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        long_part("ranges of activations", sum(map(len, pieces))) as bar,
        contextlib.redirect_stdout(io.StringIO()),  # the calibrator prints
    ):
        onnx.save(model, Path(folder) / "model.onnx")
        calibrator = quantization.create_calibrator(
            str(Path(folder) / "model.onnx"),
            static_kinds(model),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={"symmetric": False, "percentile": PERCENTILE},
        )
        for piece in pieces:
            feeds = iter([{"images": piece}])
            calibrator.collect_data(SimpleNamespace(get_next=partial(next, feeds, None)))
            bar.update(len(piece))
        return calibrator.compute_data()


def static(model: onnx.ModelProto, chosen: Collection[str], ranges: Any) -> onnx.ModelProto:
    """Quantize layers with fixed ranges: uint8 activations, int8 weights per output channel, as
    QuantizeLinear and DequantizeLinear pairs.

    A convolution gives uint8 again; a matrix product gives float, as what follows it is float.

    Args:
        model: as `load_fused` gives it; it is not changed.
        chosen: names of layers, one at least.
        ranges: of `calibrate`.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    quantizer = QDQQuantizer(
        copy.deepcopy(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=list(chosen),
        nodes_to_exclude=[],
        op_types_to_quantize=static_kinds(model),
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


# endregion

# region weights alone


def weights(
    model: onnx.ModelProto,
    chosen: Collection[str] | None = None,
    smallest: int = SMALLEST,
    depthwise: bool = False,
    stats: Mapping[str, TensorStats] | None = None,
) -> onnx.ModelProto:
    """Store large float weights as int8 per output channel, with Cast and Mul, which the runtime
    folds to float at load.

    (It does not fold DequantizeLinear.) Depthwise convolutions stay float unless asked for: they
    are small, and lose most by rounding.

    Args:
        model: it is not changed.
        chosen: names of nodes whose weights are stored so; None = every Conv, MatMul and Gemm that
            may be quantized.
        smallest: weights below this count stay float.
        depthwise: whether depthwise convolutions are stored so, too.
        stats: of the tensors that convolutions read: their biases make up for the shift of each
            output's mean by rounding (Nagel et al. 2019); None leaves them.
    """
    model = copy.deepcopy(model)
    graph, nodes, users = model.graph, [], defaultdict(list)
    for node in graph.node:
        for tensor in node.input[1:2]:
            users[tensor].append(node)
    for tensor in list(graph.initializer):
        own = [node for node in users[tensor.name] if node.op_type in ("Conv", "MatMul", "Gemm")]
        if (
            not own
            or tensor.data_type != TensorProto.FLOAT
            or len(tensor.dims) < 2
            or np.prod(tensor.dims) < smallest
            or (grouped(own[0]) and not depthwise)
            or is_kept_float(model, tensor.name)
            or (chosen is not None and not any(n.name in chosen for n in own))
        ):
            continue
        values, name = numpy_helper.to_array(tensor), tensor.name
        transposed = any(a.name == "transB" and a.i for a in own[0].attribute)
        axis = 0 if own[0].op_type == "Conv" or transposed else values.ndim - 1
        small, scale = int8(values, axis)
        for node in own if stats else []:
            if node.op_type == "Conv" and node.input[0] in stats:
                _correct_bias(graph, node, small * scale - values, stats[node.input[0]].mean)
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            [
                numpy_helper.from_array(small, name + "_int8"),
                numpy_helper.from_array(scale, name + "_scale"),
            ]
        )
        cast, product = name + "_cast", name + "_unfold"
        nodes += [
            helper.make_node("Cast", [name + "_int8"], [cast], name=cast, to=TensorProto.FLOAT),
            helper.make_node("Mul", [cast, name + "_scale"], [name], name=product),
        ]
    put(graph, [*nodes, *graph.node])
    del graph.value_info[:]
    return model


def _correct_bias(
    graph: onnx.GraphProto, node: onnx.NodeProto, rounding: np.ndarray, mean: np.ndarray
) -> None:
    """Subtract from a convolution's bias by how much rounding shifts the mean of its outputs.

    Args:
        rounding: float (out, in / groups, ...), rounded weights minus weights.
        mean: float (in,), mean of what it reads, per channel.
    """
    known = {tensor.name: tensor for tensor in graph.initializer}
    if len(node.input) > 2 and node.input[2] not in known:
        return  # it is computed
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    by_input = rounding.astype(np.float64).reshape(*rounding.shape[:2], -1).sum(axis=2)
    read = np.repeat(mean.reshape(groups, -1), len(rounding) // groups, axis=0)
    bias = numpy_helper.to_array(known[node.input[2]]) if len(node.input) > 2 else 0
    values = bias - (by_input * read).sum(axis=1)
    node.input[:] = [*node.input[:2], node.input[1] + "_bias"]
    graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.input[2]))


def int8(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Round weights to int8, symmetric about 0, one scale per channel.

    Args:
        values: float32.
        axis: the output channels.

    Returns:
        int8 of the same shape, -127..127; float32 scales, 1 along all other axes.
    """
    others = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.maximum(np.abs(values).max(axis=others, keepdims=True), 1e-8)
    scale = (largest / 127.0).astype(np.float32)
    return np.clip(np.round(values / scale), -127, 127).astype(np.int8), scale


def shrink_masks(model: onnx.ModelProto, smallest: int = SMALLEST) -> onnx.ModelProto:
    """Store float constants of small whole numbers, such as the attention masks of a Swin, as int8
    with a Cast: nothing is lost.

    Args:
        model: it is changed, and returned.
        smallest: constants below this count stay float.
    """
    graph, nodes = model.graph, []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < smallest:
            continue
        values, name = numpy_helper.to_array(tensor), tensor.name
        if not (np.abs(values) <= 127).all() or (values != np.rint(values)).any():
            continue
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.int8), name + "_int8"))
        cast = name + "_cast"
        nodes.append(
            helper.make_node("Cast", [name + "_int8"], [name], name=cast, to=TensorProto.FLOAT)
        )
    put(graph, [*nodes, *graph.node])
    return model


def put(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Set the nodes of a graph, and drop the weights that none of them reads."""
    nodes = [copy.deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {tensor for node in nodes for tensor in node.input}
    used |= {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


# endregion
