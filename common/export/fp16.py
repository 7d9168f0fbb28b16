"""FP16 for GPUs: weights and heavy maths as float16, with islands of float32 where float16
overflows or loses too much. No torch.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from common.export.quantize import TensorStats, is_kept_float, observe, put

# Whatever is not named here stays float32: above all LayerNormalization, Softmax, means, powers and
# roots.
FP16_OPS = frozenset(
    """Conv MatMul Gemm Add Sub Mul Div Neg Gelu Erf Relu LeakyRelu PRelu Clip HardSwish HardSigmoid
    Sigmoid Tanh
    Reshape Transpose Slice Concat Pad Split Squeeze Unsqueeze Flatten Expand Gather
    GlobalAveragePool AveragePool MaxPool Identity""".split()
)
HEAVY_OPS = ("Conv", "MatMul", "Gemm")
LARGEST = 65504.0
ROOM = 4.0  # a tensor that comes within this factor of float16's largest value stays float32


def to_fp16(model: onnx.ModelProto, pictures: Sequence[np.ndarray]) -> onnx.ModelProto:
    """Make the float16 copy of an FP32 model; input stays uint8 and outputs float32.

    In float16 are the nodes between the first layer with weights and the last one; normalisation of
    the pixels before, heads and scores behind stay float32, and so does every node between that
    takes or gives a value near float16's largest on the pictures.

    Args:
        model: FP32; it is not changed.
        pictures: batches uint8 (N, size, size, 3) to look for large values with.

    Returns:
        the model.

    Raises:
        ValueError: where there is no layer with weights, or no picture.
        onnx.checker.ValidationError: where the copy is no valid model.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph, types = made.graph, _types(made)
    for number, node in enumerate(graph.node):
        node.name = f"{node.name or node.op_type}_{number}"
    in_fp16, weights = _between_heavy(made), {tensor.name for tensor in graph.initializer}
    tensors = [
        name
        for node in graph.node
        if node.name in in_fp16
        for name in [*node.input, *node.output]
        if types.get(name) == TensorProto.FLOAT and name not in weights
    ]
    large = _large(observe(made, tensors, pictures))
    in_fp16 -= {node.name for node in graph.node if large & {*node.input, *node.output}}
    _cast(graph, in_fp16, types)
    del graph.value_info[:]
    onnx.checker.check_model(made)
    return made


def write_fp16(source: Path, target: Path, pictures: Sequence[np.ndarray]) -> None:
    """Read an FP32 file, write its float16 copy. Raises as `to_fp16`."""
    onnx.save(to_fp16(onnx.load(source), pictures), target)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {
        info.name: info.type.tensor_type.elem_type
        for info in [*graph.input, *graph.output, *graph.value_info]
    }
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _between_heavy(model: onnx.ModelProto) -> set[str]:
    """Names of nodes of FP16_OPS that a heavy layer of the backbone stands before, or is, and
    behind, or is.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    heavy = {
        node.name
        for node in graph.node
        if node.op_type in HEAVY_OPS
        and node.input[1] in weights
        and not is_kept_float(model, node.input[1])
    }
    if not heavy:
        raise ValueError("the model has no layer with weights that could be float16")
    made_by = {tensor: node for node in graph.node for tensor in node.output}
    users = defaultdict(list)
    for node in graph.node:
        for tensor in node.input:
            users[tensor].append(node)

    def reached(step) -> set[str]:  # noqa: ANN001
        found, open_ = set(heavy), [node for node in graph.node if node.name in heavy]
        while open_:
            for other in step(open_.pop()):
                if other.name not in found:
                    found.add(other.name)
                    open_.append(other)
        return found

    before = reached(lambda node: [made_by[tensor] for tensor in node.input if tensor in made_by])
    behind = reached(lambda node: [user for tensor in node.output for user in users[tensor]])
    return {
        node.name
        for node in graph.node
        if node.name in before & behind and node.op_type in FP16_OPS
    }


def _large(stats: Mapping[str, TensorStats]) -> set[str]:
    return {
        name for name, entry in stats.items() if not max(-entry.low, entry.high) * ROOM < LARGEST
    }


def _cast(graph: onnx.GraphProto, in_fp16: set[str], types: Mapping[str, int]) -> None:
    """Make the nodes in `in_fp16` read and write float16, with casts wherever the two meet."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    fp16_tensors = {
        tensor
        for node in graph.node
        if node.name in in_fp16
        for tensor in node.output
        if types.get(tensor) == TensorProto.FLOAT
    }
    outputs = {output.name for output in graph.output}
    nodes, casts, small = [], set(), {}

    def cast(tensor: str, ending: str, to: int) -> str:
        if (tensor, ending) not in casts:
            casts.add((tensor, ending))
            nodes.append(
                helper.make_node("Cast", [tensor], [tensor + ending], name=tensor + ending, to=to)
            )
        return tensor + ending

    for node in graph.node:
        here = node.name in in_fp16
        for place, tensor in enumerate(node.input):
            if types.get(tensor) != TensorProto.FLOAT:
                continue
            if here and tensor in weights:
                small[tensor] = tensor + "_fp16"
                node.input[place] = tensor + "_fp16"
            elif here and tensor not in fp16_tensors:
                node.input[place] = cast(tensor, "_to_fp16", TensorProto.FLOAT16)
            elif tensor in fp16_tensors:
                node.input[place] = (
                    tensor + "_fp16"
                    if here
                    else cast(tensor + "_fp16", "_to_fp32", TensorProto.FLOAT)
                )
        if here:
            node.output[:] = [
                tensor + "_fp16" if tensor in fp16_tensors else tensor for tensor in node.output
            ]
        nodes.append(node)
        nodes += [
            helper.make_node(
                "Cast", [tensor + "_fp16"], [tensor], name=tensor + "_out", to=TensorProto.FLOAT
            )
            for tensor in fp16_tensors & outputs
            if tensor + "_fp16" in node.output
        ]
    for name, new in small.items():
        values = np.clip(numpy_helper.to_array(weights[name]), -LARGEST, LARGEST).astype(np.float16)
        graph.initializer.append(numpy_helper.from_array(values, new))
    put(graph, nodes)
