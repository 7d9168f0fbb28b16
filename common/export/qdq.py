"""Static INT8: ranges known beforehand, written as pairs of QuantizeLinear and DequantizeLinear. No
torch."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from common.export.quantize import conv_shift, correct_sum, int8, put
from common.export.ranges import Range, Seen

ACTIVATIONS = (
    "Relu",
    "Clip",
)  # what a quantized output does by itself, as it ends where its range ends


def observed_tensors(model: onnx.ModelProto, chosen: Collection[str]) -> list[str]:
    """Name the tensors whose ranges `static` needs for these layers, each once."""
    inputs, outputs = _points(model, chosen)
    return list(dict.fromkeys([*inputs.values(), *outputs.values()]))


def static(
    model: onnx.ModelProto,
    chosen: Collection[str],
    ranges: Mapping[str, Range],
    seen: Mapping[str, Seen],
) -> onnx.ModelProto:
    """Quantize layers with fixed ranges: uint8 activations, int8 weights per output channel, as
    QuantizeLinear and Dequantize pairs.

    A convolution gives uint8 again; a matrix product gives float, as what follows it is float. The
    rounding of the weights shifts each output by its mean over the calibration pictures; the bias
    takes this shift back (Nagel et al. 2019).

    Args:
        model: as `load_fused` gives it; it is not changed.
        chosen: names of layers.
        ranges, seen: of `observed_tensors(model, chosen)` at least.

    Returns:
        the model.
    """
    made = copy.deepcopy(model)
    graph, chosen = made.graph, set(chosen)
    inputs, outputs = _points(made, chosen)
    made_nodes, behind = [], {}
    floats = {tensor.name: tensor for tensor in graph.initializer}
    convs = {node.name for node in graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")}
    replaced = set(outputs.values())
    for tensor in observed_tensors(model, chosen):
        graph.initializer.extend(
            [
                numpy_helper.from_array(np.float32(ranges[tensor].scale), tensor + "_scale"),
                numpy_helper.from_array(np.uint8(ranges[tensor].zero), tensor + "_zero"),
            ]
        )
        behind[tensor] = _pair(tensor)
    widths = {
        tensor: floats[node.input[1]].dims[0]
        for node in graph.node
        if (tensor := outputs.get(node.name))
    }
    dropped, by_channel = _covered_activations(graph, outputs, ranges, floats), set()
    kept = [node for node in graph.node if node.name not in dropped]
    renamed = {node.input[0]: node.output[0] for node in graph.node if node.name in dropped}
    for node in kept:
        for place, tensor in enumerate(node.input):
            if node.name in chosen and place == 0 or tensor in replaced and node.name not in convs:
                node.input[place] = tensor + "_dq" if tensor in behind else tensor
            elif tensor in replaced:
                # A float convolution between two quantized ones would be quantized by the runtime
                # itself, with one scale for all channels; it leaves alone what is scaled per
                # channel, even by equal scales.
                node.input[place] = tensor + "_dq_by_channel"
                by_channel.add(tensor)
        if node.name in chosen:
            made_nodes += _int8_layer(
                graph, node, floats, ranges[inputs[node.name]], seen[inputs[node.name]].mean
            )
    for tensor in sorted(by_channel):
        behind[tensor] += _by_channel(graph, tensor, ranges[tensor], widths[tensor])
    made_nodes += behind.pop("images", [])
    for node in kept:
        node.output[:] = [renamed.get(tensor, tensor) for tensor in node.output]
        made_nodes.append(node)
        for tensor in node.output:
            made_nodes += behind.pop(tensor, [])
    put(graph, made_nodes)
    return made


def _points(
    model: onnx.ModelProto, chosen: Collection[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """For each chosen layer: the tensor it reads; and, for convolutions, the tensor that is stored
    as uint8 behind it."""
    users, ends = defaultdict(list), {output.name for output in model.graph.output}
    for node in model.graph.node:
        for tensor in node.input:
            users[tensor].append(node)
    inputs, outputs, chosen = {}, {}, set(chosen)
    for node in model.graph.node:
        if node.name in chosen:
            inputs[node.name], tensor = node.input[0], node.output[0]
            if node.op_type == "Conv":
                following = users[tensor]
                if (
                    len(following) == 1
                    and following[0].op_type in ACTIVATIONS
                    and tensor not in ends
                ):
                    tensor = following[0].output[0]
                outputs[node.name] = tensor
    return inputs, outputs


def _pair(tensor: str) -> list[onnx.NodeProto]:
    parameters = [tensor + "_scale", tensor + "_zero"]
    return [
        helper.make_node(
            "QuantizeLinear", [tensor, *parameters], [tensor + "_q"], name=tensor + "_quantize"
        ),
        helper.make_node(
            "DequantizeLinear",
            [tensor + "_q", *parameters],
            [tensor + "_dq"],
            name=tensor + "_dequantize",
        ),
    ]


def _by_channel(
    graph: onnx.GraphProto, tensor: str, range_: Range, width: int
) -> list[onnx.NodeProto]:
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.full(width, range_.scale, np.float32), tensor + "_scales"),
            numpy_helper.from_array(np.full(width, range_.zero, np.uint8), tensor + "_zeros"),
        ]
    )
    return [
        helper.make_node(
            "DequantizeLinear",
            [tensor + "_q", tensor + "_scales", tensor + "_zeros"],
            [tensor + "_dq_by_channel"],
            name=tensor + "_dequantize_by_channel",
            axis=1,
        )
    ]


def _covered_activations(
    graph: onnx.GraphProto,
    outputs: Mapping[str, str],
    ranges: Mapping[str, Range],
    floats: Mapping[str, onnx.TensorProto],
) -> set[str]:
    """Name the Relu and Clip nodes that do no more than the ends of the range behind them: older
    runtimes stumble over them."""
    dropped, wanted = set(), set(outputs.values())
    for node in graph.node:
        if (
            node.op_type not in ACTIVATIONS
            or node.output[0] not in wanted
            or ranges[node.output[0]].zero
        ):
            continue
        ends = [
            float(numpy_helper.to_array(floats[name])) if name in floats else None
            for name in node.input[1:]
        ]
        low, high = (0.0, np.inf) if node.op_type == "Relu" else (ends + [None, None])[:2]
        if (
            low is not None
            and high is not None
            and low <= 0
            and ranges[node.output[0]].top <= high * (1 + 1e-6)
        ):
            dropped.add(node.name)
    return dropped


def _int8_layer(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    floats: Mapping[str, onnx.TensorProto],
    range_: Range,
    mean: np.ndarray,
) -> list[onnx.NodeProto]:
    """Make a layer read int8 weights, and a convolution an int32 bias; returns the nodes that come
    before all others."""
    name, weight = node.name, numpy_helper.to_array(floats[node.input[1]])
    axis = 0 if node.op_type == "Conv" else weight.ndim - 1
    small, scale = int8(weight, axis)
    rounding = small.astype(np.float64) * scale - weight
    graph.initializer.extend(
        [
            numpy_helper.from_array(small, name + "_int8"),
            numpy_helper.from_array(scale.reshape(-1), name + "_scales"),
            numpy_helper.from_array(np.zeros(scale.size, np.int8), name + "_zeros"),
        ]
    )
    nodes = [
        helper.make_node(
            "DequantizeLinear",
            [name + "_int8", name + "_scales", name + "_zeros"],
            [name + "_weight"],
            name=name + "_weights",
            axis=axis,
        )
    ]
    node.input[1] = name + "_weight"
    if node.op_type != "Conv":
        correct_sum(graph, node, weight, small * scale, mean)
        return nodes
    scale = scale.reshape(-1)
    bias = (
        numpy_helper.to_array(floats[node.input[2]]).astype(np.float64)
        if len(node.input) > 2
        else np.zeros(len(scale))
    )
    bias = bias - conv_shift(node, rounding, mean)
    bias_scale = range_.scale * scale.astype(np.float64)
    stored = np.clip(np.round(bias / bias_scale), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    graph.initializer.extend(
        [
            numpy_helper.from_array(stored, name + "_bias_int32"),
            numpy_helper.from_array(bias_scale.astype(np.float32), name + "_bias_scales"),
            numpy_helper.from_array(np.zeros(len(scale), np.int32), name + "_bias_zeros"),
        ]
    )
    nodes.append(
        helper.make_node(
            "DequantizeLinear",
            [name + "_bias_int32", name + "_bias_scales", name + "_bias_zeros"],
            [name + "_bias"],
            name=name + "_biases",
            axis=0,
        )
    )
    node.input[:] = [*node.input[:2], name + "_bias"]
    return nodes
