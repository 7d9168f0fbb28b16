"""INT8 layers against numpy, what must stay float, and what the runtime makes of the pairs by
itself.
"""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_nets
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData

from common.export import quantize
from common.export.measure import session_run
from common.export.pictures import balanced


def ready(make, tmp_path: Path, **arguments):
    """A fused network with its layers, and the ranges of its tensors."""
    model = quantize.load_fused(tiny_nets.write(tmp_path, "fp32.onnx", make, **arguments))
    batches = [tiny_nets.pictures(16, seed) for seed in range(1, 9)]
    return model, quantize.layers(model), quantize.calibrate(model, batches)


def answers(
    model: onnx.ModelProto, pictures: np.ndarray, optimized: bool = True
) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": pictures})


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _weight(model: onnx.ModelProto, node: onnx.NodeProto) -> np.ndarray:
    return numpy_helper.to_array(
        next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    )


# region layers


@pytest.mark.parametrize(
    ("make", "main", "count", "kinds"),
    [
        (tiny_nets.conv_net, "Conv", 5, ["Conv", "MatMul"]),
        (tiny_nets.token_net, "MatMul", 3, ["MatMul"]),
    ],
)
def test_layers_are_all_but_heads_and_scores(make, main, count, kinds, tmp_path):
    model = quantize.load_fused(tiny_nets.write(tmp_path, "fp32.onnx", make))
    chosen = quantize.layers(model)
    by_name = {node.name: node for node in model.graph.node}
    assert len(by_name) == len(model.graph.node), "names are unique"
    assert [by_name[name].op_type for name in chosen] == [main] * count
    assert quantize.static_kinds(model) == kinds
    assert not any(by_name[name].input[1].startswith(tiny_nets.KEPT_FLOAT) for name in chosen)
    assert [p.name for p in tmp_path.iterdir()] == ["fp32.onnx"]
    large = [
        name
        for name in chosen
        if np.prod(_weight(model, by_name[name]).shape) >= 1024
        and not quantize.grouped(by_name[name])
    ]
    assert quantize.storable(model) == large
    assert len(large) >= 2


@pytest.mark.parametrize("make", [tiny_nets.conv_net, tiny_nets.token_net])
@pytest.mark.parametrize("way", ["static", "weights"])
def test_answers_stay_close_and_heads_stay_float(make, way, tmp_path):
    model, names, ranges = ready(make, tmp_path)
    before = model.SerializeToString()
    kept = {
        tensor.name
        for tensor in model.graph.initializer
        if quantize.is_kept_float(model, tensor.name)
    }
    pictures = tiny_nets.pictures(24, seed=9)
    if way == "static":
        made = quantize.static(model, names, ranges)
    else:
        made = quantize.weights(onnx.ModelProto.FromString(before), names, smallest=0)
    assert model.SerializeToString() == before, "the FP32 model is not changed"
    onnx.checker.check_model(made)
    found = types_of(made)
    assert kept
    assert all(found[name] == TensorProto.FLOAT for name in kept)
    end = {"static": "_quantized", "weights": "_int8"}[way]
    int8s = [
        name for name, kind in found.items() if kind == TensorProto.INT8 and name.endswith(end)
    ]
    grouped = sum(quantize.grouped(node) for node in model.graph.node)
    expected = {
        "static": len(names),
        "weights": len(names) - grouped,
    }[way]
    assert len(int8s) == expected
    want, got = answers(model, pictures), answers(made, pictures)
    assert np.abs(got[0] - want[0]).max() < 0.12
    assert np.abs(got[0] - want[0]).mean() < 0.01
    assert (got[0].argmax(1) == want[0].argmax(1)).mean() >= 0.9
    assert [output.shape for output in got] == [output.shape for output in want]
    if expected:
        assert np.abs(got[0] - want[0]).max() > 0, "something was rounded"


def test_a_file_that_does_not_say_what_stays_float_is_rejected(tmp_path):
    model = tiny_nets.conv_net()
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="keep_float"):
        quantize.layers(quantize.load_fused(tmp_path / "model.onnx"))


def test_int8_by_hand():
    values = np.array([[1.27, -0.005, 0.012], [-2.54, 1.0, 0.0]], np.float32)
    small, scale = quantize.int8(values, 0)
    np.testing.assert_allclose(scale, [[0.01], [0.02]], rtol=1e-6)
    assert small.tolist() == [[127, 0, 1], [-127, 50, 0]]
    assert small.dtype == np.int8
    assert quantize.int8(np.zeros((2, 3), np.float32), 1)[0].tolist() == [[0] * 3] * 2, (
        "a dead channel is no division by zero"
    )


# endregion

# region against numpy


def one_product() -> onnx.ModelProto:
    """images (N, 2, 2, 3) -> floats -> (N, 4, 3) @ (3, 5) + bias."""
    rng = np.random.default_rng(0)
    tensors = {
        "shape": np.array([0, 4, 3]),
        "scale": np.float32(1 / 64),
        "shift": np.float32(1.3),
        "linear.weight": rng.normal(0, 1, (3, 5)).astype(np.float32),
        "linear.bias": rng.normal(0, 1, 5).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["a", "scale"], ["b"]),
        helper.make_node("Sub", ["b", "shift"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["d"]),
        helper.make_node("MatMul", ["d", "linear.weight"], ["e"], name="linear"),
        helper.make_node("Add", ["e", "linear.bias"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 2, 2, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4, 5])],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(made, {quantize.KEEP_FLOAT: "[]"})
    return made


def test_a_static_product_is_what_numpy_computes():
    model, rng = one_product(), np.random.default_rng(1)
    weight, bias = (numpy_helper.to_array(tensor) for tensor in list(model.graph.initializer)[3:])
    pictures = rng.integers(0, 256, (5, 2, 2, 3)).astype(np.uint8)
    inner = pictures.astype(np.float32).reshape(5, 4, 3) / np.float32(64) - np.float32(1.3)
    stats = quantize.observe(model, ["d"], [pictures])
    np.testing.assert_allclose(stats["d"].mean, inner.mean((0, 1)), rtol=1e-5)
    scale = np.float32(2 / 255)
    low, high = -90 * scale, 165 * scale  # too narrow on purpose: what lies outside is cut off
    ranges = TensorsData(CalibrationMethod.MinMax, {"d": (low, high)})
    stored = np.clip(np.round(inner / scale) + 90, 0, 255)
    small, scales = quantize.int8(weight, 1)
    want = (stored - 90) * scale @ (small * scales) + bias
    (got,) = answers(quantize.static(model, ["linear"], ranges), pictures)
    np.testing.assert_allclose(got, want, atol=1e-5)
    (plain,) = answers(model, pictures)
    assert np.abs(got - plain).max() > 0.1, "the narrow range was used"


def test_rounding_weights_alone_no_longer_shifts_the_mean(tmp_path):
    """The bias of each convolution, the depthwise one by its own channels, makes up for it."""
    model, names, _ = ready(tiny_nets.conv_net, tmp_path)
    pictures = [tiny_nets.pictures(8, seed) for seed in (1, 2)]
    nodes = [node for node in model.graph.node if node.name in names]
    outputs, shift = [node.output[0] for node in nodes], {}
    want = quantize.observe(model, outputs, pictures)
    stats = quantize.observe(model, [node.input[0] for node in nodes], pictures)
    for way, known in (("corrected", stats), ("plain", None)):
        made = quantize.weights(copy.deepcopy(model), smallest=1, depthwise=True, stats=known)
        found = quantize.observe(made, outputs, pictures)
        shift[way] = sum(
            np.abs(found[tensor].mean - want[tensor].mean).mean() / np.abs(want[tensor].mean).mean()
            for tensor in outputs
        )
    assert shift["corrected"] < 0.5 * shift["plain"]
    grouped = next(node for node in nodes if quantize.grouped(node))
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in one.graph.initializer}
        for one in (
            model,
            quantize.weights(copy.deepcopy(model), smallest=1, depthwise=True, stats=stats),
        )
    )
    name, mean = grouped.input[1], stats[grouped.input[0]].mean
    rounding = after[name + "_int8"] * after[name + "_scale"] - before[name]
    np.testing.assert_allclose(
        after[name + "_bias"],
        [before[grouped.input[2]][c] - rounding[c].sum() * mean[c] for c in range(32)],
        rtol=1e-5,
        atol=1e-6,
    )


# endregion

# region the runtime


@pytest.mark.parametrize("left_out", [(), (1,), (0,), (2,), (1, 3), (0, 1), (4,)])
def test_the_runtime_quantizes_nothing_by_itself(left_out, tmp_path):
    """A float convolution between two quantized ones: onnxruntime would give it one scale for all
    channels, and these differ by a factor of a thousand. What it computes after its own
    optimizations must be what the graph says.
    """
    model, names, ranges = ready(tiny_nets.conv_net, tmp_path, spread=1000.0)
    made = quantize.static(
        model, [name for i, name in enumerate(names) if i not in left_out], ranges
    )
    pictures = tiny_nets.pictures(12, seed=5)
    as_written, as_run = answers(made, pictures, optimized=False), answers(made, pictures)
    assert np.abs(as_written[0] - as_run[0]).max() < 0.03
    assert np.abs(as_run[0] - answers(model, pictures)[0]).max() < 0.12


def test_all_convolutions_run_as_int8(tmp_path):
    """What the pairs are for: the runtime fuses each with its clip to one integer convolution."""
    model, names, ranges = ready(tiny_nets.conv_net, tmp_path)
    made, target = quantize.static(model, names, ranges), tmp_path / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    kinds = [node.op_type for node in onnx.load(target).graph.node]
    assert kinds.count("QLinearConv") == 5
    assert "Conv" not in kinds
    assert "Clip" not in kinds


def test_weights_alone_are_folded_and_a_quarter_as_large(tmp_path):
    path = tiny_nets.write(tmp_path, "fp32.onnx", tiny_nets.token_net)
    made = quantize.weights(onnx.load(path))
    onnx.save(made, tmp_path / "weights.onnx")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    large = [name for name in stored if name.endswith("_int8")]
    assert len(large) == 3
    own = onnx.load(path)
    for tensor in own.graph.initializer:
        if tensor.name + "_int8" in stored:
            read = stored[tensor.name + "_int8"] * stored[tensor.name + "_scale"]
            tensor.CopyFrom(numpy_helper.from_array(read.astype(np.float32), tensor.name))
    onnx.save(own, tmp_path / "rounded.onnx")
    pictures = tiny_nets.pictures(4)
    for got, want in zip(
        session_run(tmp_path / "weights.onnx")(pictures),
        session_run(tmp_path / "rounded.onnx")(pictures),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, atol=1e-6)


# endregion

# region ranges


def test_statistics_do_not_depend_on_the_batches(tmp_path):
    model = quantize.load_fused(tiny_nets.write(tmp_path, "fp32.onnx", tiny_nets.conv_net))
    names = [node.output[0] for node in model.graph.node if node.name in quantize.layers(model)]
    pictures, observe = tiny_nets.pictures(12), quantize.observe
    whole, parts = (
        observe(model, names, [pictures]),
        observe(model, names, [pictures[:5], pictures[5:]]),
    )
    for name in names:
        assert (whole[name].low, whole[name].high) == (parts[name].low, parts[name].high)
        np.testing.assert_allclose(whole[name].mean, parts[name].mean, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no pictures"):
        observe(model, names, [])


def test_calibration_pictures_are_balanced():
    class_idx = np.concatenate([np.zeros(1000, int), np.ones(3, int), np.full(50, 7)])
    chosen = balanced(class_idx, 30)
    assert len(chosen) == 30
    assert (np.diff(chosen) > 0).all()
    assert [int((class_idx[chosen] == c).sum()) for c in (0, 1, 7)] == [14, 3, 13]
    large = chosen[class_idx[chosen] == 0]
    assert large.min() < 100, "spread over the class"
    assert large.max() > 850, "spread over the class"
    assert balanced(class_idx, 5000).tolist() == list(range(1053))
    many = np.arange(500).repeat(2)
    assert len(set(many[balanced(many, 100)])) == 100
    assert many[balanced(many, 100)].max() > 450
    assert balanced(class_idx, 30).tolist() == balanced(class_idx, 30).tolist()


# endregion


def test_whole_numbers_are_stored_as_int8_and_nothing_changes():
    """A mask of 0 and -100 shrinks to a quarter; weights, and constants beyond int8, stay."""
    rng = np.random.default_rng(0)
    constants = {
        "mask": np.where(rng.random((16, 16, 3)) < 0.5, 0, -100).astype(np.float32),
        "far": np.full((16, 16, 3), 200, np.float32),
        "weights": rng.normal(size=(16, 16, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "mask"], ["b"]),
        helper.make_node("Add", ["b", "far"], ["c"]),
        helper.make_node("Mul", ["c", "weights"], ["d"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 16, 16, 3])],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, ["N", 16, 16, 3])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    pictures = rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    before = answers(model, pictures)[0]
    made = quantize.shrink_masks(model, smallest=100)
    onnx.checker.check_model(made)
    assert types_of(made) == {
        "mask_int8": TensorProto.INT8,
        "far": TensorProto.FLOAT,
        "weights": TensorProto.FLOAT,
    }
    assert np.array_equal(answers(made, pictures)[0], before)
