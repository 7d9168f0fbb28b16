"""INT8 weights in an ONNX model: which layers there are, weights alone, and dynamic ranges (fixed
ones: see qdq). No torch.

A layer is a Conv or MatMul with constant weights. Everything else stays float: LayerNorm, Softmax,
GELU, residual sums, products of two activations, heads and scores."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from common.export.ranges import Seen

# quantized heads clip the logits; the scores need their distances
KEPT_FLOAT = ("species_head", "disease_heads", "neck.", "_space.", "learned.")
SMALLEST = 1024  # weights of a layer worth storing as int8


def fuse(model: Path, target: Path) -> None:
    """Fold batch norms and constants, so that what is quantized are the weights that are used;
    writes `target`."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def load_fused(model: Path) -> onnx.ModelProto:
    """Load a model with batch norms folded and every node named."""
    fused = model.with_suffix(".fused.onnx")
    try:
        fuse(model, fused)
        loaded = onnx.load(fused)
    finally:
        fused.unlink(missing_ok=True)
    del loaded.graph.value_info[
        :
    ]  # shapes of the exporter contradict the nodes that come in between
    for number, node in enumerate(loaded.graph.node):
        node.name = f"{node.name or node.op_type}_{number}"  # unique, as excluding by name needs it
    return loaded


def layers(model: onnx.ModelProto, kinds: Collection[str] = ("Conv", "MatMul")) -> list[str]:
    """Name the layers that may be quantized, in the order they run; none of the heads and
    scores."""
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
        and not any(part in node.input[1] for part in KEPT_FLOAT)
    ]


def storable(model: onnx.ModelProto) -> list[str]:
    """Name the nodes whose weights `weights` stores as int8, in the order they run; none of the
    heads and scores."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    chosen = set(layers(model, ("Conv", "MatMul", "Gemm")))
    return [
        node.name
        for node in model.graph.node
        if node.name in chosen and sizes[node.input[1]] >= SMALLEST and not grouped(node)
    ]


def main_kind(model: onnx.ModelProto) -> str:
    """`Conv` or `MatMul`: which of them holds most weights of the backbone."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    chosen, held = set(layers(model)), {"Conv": 0, "MatMul": 0}
    for node in model.graph.node:
        if node.name in chosen:
            held[node.op_type] += sizes[node.input[1]]
    return max(held, key=lambda kind: held[kind])


def dynamic(
    model: onnx.ModelProto, chosen: Collection[str], seen: Mapping[str, Seen] | None = None
) -> onnx.ModelProto:
    """Quantize matrix products with ranges found anew in each call: int8 weights per output
    channel.

    One range serves a whole batch, so that an answer depends on what else is in it.

    Args:
        model: as `load_fused` gives it; it is not changed.
        chosen: names of MatMul layers; others are left float.
        seen: of the tensors that the layers read, for `correct_sum`; None leaves the rounding's
            shift as it is.
    """
    made = copy.deepcopy(model)
    graph, nodes, ranged = made.graph, [], set()
    floats = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.name not in chosen or node.op_type != "MatMul":
            nodes.append(node)
            continue
        name, (left, weight) = node.name, node.input
        values = numpy_helper.to_array(floats[weight])
        small, scale = int8(values, values.ndim - 1)
        if seen:
            correct_sum(graph, node, values, small * scale, seen[left].mean)
        graph.initializer.extend(
            [
                numpy_helper.from_array(small, name + "_int8"),
                numpy_helper.from_array(scale.reshape(-1), name + "_scales"),
                numpy_helper.from_array(np.zeros(scale.size, np.int8), name + "_zeros"),
            ]
        )
        if left not in ranged:
            nodes.append(
                helper.make_node(
                    "DynamicQuantizeLinear",
                    [left],
                    [left + "_q", left + "_scale", left + "_zero"],
                    name=left + "_quantize",
                )
            )
            ranged.add(left)
        nodes += [
            helper.make_node(
                "MatMulInteger",
                [left + "_q", name + "_int8", left + "_zero", name + "_zeros"],
                [name + "_sum"],
                name=name,
            ),
            helper.make_node(
                "Cast",
                [name + "_sum"],
                [name + "_float"],
                name=name + "_cast",
                to=TensorProto.FLOAT,
            ),
            helper.make_node(
                "Mul", [left + "_scale", name + "_scales"], [name + "_both"], name=name + "_scale"
            ),
            helper.make_node(
                "Mul", [name + "_float", name + "_both"], [node.output[0]], name=name + "_unfold"
            ),
        ]
    put(graph, nodes)
    return made


def weights(
    model: onnx.ModelProto,
    chosen: Collection[str] | None = None,
    smallest: int = SMALLEST,
    depthwise: bool = False,
    seen: Mapping[str, Seen] | None = None,
) -> onnx.ModelProto:
    """Store large float weights as int8 per output channel, with Cast and Mul, which the runtime
    folds to float at load.

    (It does not fold DequantizeLinear.) Depthwise convolutions stay float unless asked for: they
    are small, and the most easily hurt.

    Args:
        model: it is changed, and returned.
        chosen: names of nodes whose weights are stored so; None = every Conv, MatMul and Gemm but
            heads and scores.
        smallest: weights below this count stay float.
        depthwise: whether depthwise convolutions are stored so, too.
        seen: of the tensors that the layers read: their biases take back by how much rounding
            shifts the mean; None leaves them.
    """
    graph, nodes = model.graph, []
    users = defaultdict(list)
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
            or grouped(own[0])
            and not depthwise
            or any(part in tensor.name for part in KEPT_FLOAT)
            or chosen is not None
            and not any(n.name in chosen for n in own)
        ):
            continue
        values, name = numpy_helper.to_array(tensor), tensor.name
        transposed = any(a.name == "transB" and a.i for a in own[0].attribute)
        small, scale = int8(
            values, 0 if own[0].op_type == "Conv" or transposed else values.ndim - 1
        )
        for node in own if seen else []:
            if node.input[0] in seen:
                _correct(graph, node, values, small * scale, seen[node.input[0]].mean)
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            [
                numpy_helper.from_array(small, name + "_int8"),
                numpy_helper.from_array(scale, name + "_scale"),
            ]
        )
        nodes += [
            helper.make_node(
                "Cast",
                [name + "_int8"],
                [name + "_cast"],
                name=name + "_cast",
                to=TensorProto.FLOAT,
            ),
            helper.make_node(
                "Mul", [name + "_cast", name + "_scale"], [name], name=name + "_unfold"
            ),
        ]
    put(graph, [*nodes, *graph.node])
    del graph.value_info[:]
    return model


def _correct(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    before: np.ndarray,
    after: np.ndarray,
    mean: np.ndarray,
) -> None:
    if node.op_type == "MatMul":
        correct_sum(graph, node, before, after, mean)
    elif node.op_type == "Conv":
        bias = next(
            (
                tensor
                for tensor in graph.initializer
                if len(node.input) > 2 and tensor.name == node.input[2]
            ),
            None,
        )
        if len(node.input) > 2 and bias is None:
            return  # it is computed
        values = (0 if bias is None else numpy_helper.to_array(bias)) - conv_shift(
            node, after.astype(np.float64) - before, mean
        )
        node.input[:] = [*node.input[:2], node.input[1] + "_bias"]
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.input[2]))


def conv_shift(node: onnx.NodeProto, rounding: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """By how much rounded weights shift the mean of a convolution's outputs, at its edges a little
    less.

    Args:
        node: the Conv, for its groups.
        rounding: float (out, in / groups, ...), rounded weights minus weights.
        mean: float (in,), mean of what it reads, per channel.

    Returns:
        float64 (out,).
    """
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    by_input = rounding.reshape(*rounding.shape[:2], -1).sum(axis=2)
    return (by_input * np.repeat(mean.reshape(groups, -1), len(rounding) // groups, axis=0)).sum(
        axis=1
    )


def int8(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Round weights to int8, symmetric about 0, one scale per channel.

    Args:
        values: float32.
        axis: the output channels.

    Returns:
        int8 of the same shape, -127..127; float32 scales, 1 along all other axes.
    """
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = (np.maximum(np.abs(values).max(axis=others, keepdims=True), 1e-8) / 127.0).astype(
        np.float32
    )
    return np.clip(np.round(values / scale), -127, 127).astype(np.int8), scale


def correct_sum(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    before: np.ndarray,
    after: np.ndarray,
    mean: np.ndarray,
) -> None:
    """Take back by how much rounded weights shift a product's mean (Nagel et al. 2019), where a
    constant is added right behind it.

    Args:
        graph: the constant is replaced in it.
        node: the MatMul.
        before, after: float (K, N), weights as they were, and as they are when they are read back.
        mean: float (K,), mean of what the product reads.
    """
    users = [other for other in graph.node if node.output[0] in other.input]
    if (
        len(users) != 1
        or users[0].op_type != "Add"
        or before.ndim != 2
        or mean.shape != before.shape[:1]
    ):
        return
    place = 1 if users[0].input[0] == node.output[0] else 0
    bias = next(
        (tensor for tensor in graph.initializer if tensor.name == users[0].input[place]), None
    )
    if bias is None or list(bias.dims) != [before.shape[1]]:
        return
    values = numpy_helper.to_array(bias) - mean @ (after.astype(np.float64) - before)
    users[0].input[place] = node.input[1] + "_bias"
    graph.initializer.append(
        numpy_helper.from_array(values.astype(np.float32), users[0].input[place])
    )


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
        nodes.append(
            helper.make_node(
                "Cast", [name + "_int8"], [name], name=name + "_cast", to=TensorProto.FLOAT
            )
        )
    put(graph, [*nodes, *graph.node])
    return model


def grouped(node: onnx.NodeProto) -> bool:
    """Whether a convolution is in groups, as depthwise ones are."""
    return any(a.name == "group" and a.i > 1 for a in node.attribute)


def put(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Set the nodes of a graph, and forget the weights that none of them reads."""
    nodes = [copy.deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {tensor for node in nodes for tensor in node.input} | {
        output.name for output in graph.output
    }
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
