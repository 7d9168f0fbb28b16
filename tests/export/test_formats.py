"""FP16, metadata, the check in a fresh process, and the Triton repository, read by a real parser of
its format.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_nets
from conftest import ROOT
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from common.export import formats, fp16, quantize
from common.export.formats import FormatError
from common.export.measure import check_batches, session_run
from common.serve.predictor import open_session

BUNDLE = {
    "name": "foliar",
    "version": "abc123",
    "created": "2026-01-01T00:00:00+00:00",
    "tree": tiny_nets.TREE.to_json(),
    "preprocessing": {"size": tiny_nets.SIZE},
    "scores": list(tiny_nets.SCORES),
}


@pytest.fixture
def model(tmp_path) -> Path:
    path = tiny_nets.write(tmp_path, "model.onnx", tiny_nets.conv_net)
    formats.stamp(path, formats.metadata(BUNDLE, "fp32"))
    return path


# region FP16


@pytest.mark.parametrize("make", [tiny_nets.conv_net, tiny_nets.token_net])
def test_fp16_is_half_as_large_and_answers_alike(make, tmp_path):
    path, small, pictures = (
        tiny_nets.write(tmp_path, "model.onnx", make),
        tmp_path / "model.fp16.onnx",
        tiny_nets.pictures(24, seed=9),
    )
    fp16.write_fp16(path, small, [pictures[:4]])
    made = onnx.load(small)
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    layers = quantize.layers(quantize.load_fused(path))
    assert sum(
        kind == TensorProto.FLOAT16 and "weight" in name for name, kind in kinds.items()
    ) == len(layers)
    assert all(
        kind == TensorProto.FLOAT
        for name, kind in kinds.items()
        if name.startswith(tiny_nets.KEPT_FLOAT)
    )
    assert [i.type.tensor_type.elem_type for i in made.graph.input] == [TensorProto.UINT8]
    assert [o.type.tensor_type.elem_type for o in made.graph.output] == [TensorProto.FLOAT] * 3
    want, got = session_run(path)(pictures), session_run(small)(pictures)
    assert 0 < np.abs(got[0] - want[0]).max() < 0.02
    assert (got[0].argmax(1) == want[0].argmax(1)).all()
    np.testing.assert_allclose(got[1], want[1], atol=0.05)
    assert check_batches(session_run(small), pictures[:8]) <= 1e-5
    types = fp16._types(made)
    for node in made.graph.node:
        if node.op_type in ("LayerNormalization", "Softmax", "ReduceMean", "Sigmoid"):
            assert types[node.input[0]] == TensorProto.FLOAT, node.op_type


def overflowing() -> onnx.ModelProto:
    """A residual sum that reaches 200,000, normalised right behind."""
    model = tiny_nets.token_net()
    for tensor in model.graph.initializer:
        if tensor.name in ("embed.weight", "embed.bias"):
            tensor.CopyFrom(
                numpy_helper.from_array(
                    numpy_helper.to_array(tensor) * np.float32(5e4), tensor.name
                )
            )
        elif tensor.name == "model.disease_heads.weight":
            tensor.CopyFrom(
                numpy_helper.from_array(
                    numpy_helper.to_array(tensor) / np.float32(5e4), tensor.name
                )
            )
    return model


def test_what_would_overflow_stays_float32(tmp_path, monkeypatch):
    """Judged by ONNX's own evaluator, which has a float16 of its own: onnxruntime on a CPU computes
    in float32 between its casts.
    """
    path, pictures = (
        tiny_nets.write(tmp_path, "model.onnx", overflowing),
        tiny_nets.pictures(8, seed=9),
    )
    want, made = session_run(path)(pictures), fp16.to_fp16(onnx.load(path), [pictures])
    np.testing.assert_allclose(
        ReferenceEvaluator(made).run(None, {"images": pictures})[0], want[0], atol=0.02
    )
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert kinds["embed.weight"] == TensorProto.FLOAT
    assert "embed.weight_fp16" not in kinds
    assert kinds["up.weight_fp16"] == TensorProto.FLOAT16
    monkeypatch.setattr(fp16, "_large", lambda stats: set())
    with np.errstate(all="ignore"):
        broken = ReferenceEvaluator(fp16.to_fp16(onnx.load(path), [pictures])).run(
            None, {"images": pictures}
        )[0]
    assert not np.allclose(broken, want[0], atol=0.02), (
        "without the island it overflows, so the test tests something"
    )


def test_a_model_without_layers_is_told():
    graph = helper.make_graph(
        [helper.make_node("Cast", ["images"], ["out"], to=TensorProto.FLOAT)],
        "none",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 2])],
    )
    with pytest.raises(ValueError, match="no layer with weights"):
        fp16.to_fp16(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), [])


# endregion

# region metadata and the fresh process


def test_metadata_travels_in_the_file(model):
    found = formats.read_metadata(model)
    assert json.loads(found["classes"]) == [
        "apple/healthy",
        "apple/rust",
        "apple/scab",
        "basil/healthy",
        "corn/blight",
        "corn/healthy",
    ]
    assert json.loads(found["species"]) == ["apple", "basil", "corn"]
    assert json.loads(found["scores"]) == ["gen", "mahalanobis"]
    assert (found["name"], found["version"], found["weights_sha256"]) == (
        "foliar",
        "abc123",
        "abc123",
    )
    assert found["class_tree"] == tiny_nets.TREE.fingerprint()
    assert found["precision"] == "fp32"
    formats.stamp(model, formats.metadata(BUNDLE, "int8, static"))
    again = formats.read_metadata(model)
    assert again["precision"] == "int8, static", "replaced, not added to"
    assert set(again) == set(found), "replaced, not added to"
    assert [p.name for p in model.parent.iterdir()] == ["model.onnx"]


def test_a_fresh_process_needs_no_more_than_onnxruntime(model):
    pictures = tiny_nets.pictures(8)
    found = formats.check_fresh(model, pictures, tiny_nets.TREE, tiny_nets.SCORES)
    assert found["others"] == []
    assert found["batches"]["probabilities"] <= 1e-5
    assert found["top1"] == session_run(model)(pictures)[0].argmax(1).tolist()
    assert found["metadata"]["class_tree"] == tiny_nets.TREE.fingerprint()
    assert found["outputs"][0] == ["probabilities", "tensor(float)", [None, 6]]


def test_importing_the_fresh_check_imports_nothing_heavy():
    code = (
        "import sys, common.export.standalone; print(sorted({'torch', 'onnx', 'cv2', 'PIL', "
        "'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def batchwise() -> onnx.ModelProto:
    """Pixels are divided by what the batch sums up to, as a range found per call would."""
    model = tiny_nets.conv_net()
    graph = model.graph
    at = next(i for i, node in enumerate(graph.node) if node.op_type == "Div")
    graph.node[at].input[1] = "length"
    graph.node.insert(
        at, helper.make_node("ReduceL2", [graph.node[at].input[0]], ["length"], keepdims=0)
    )
    return model


def unnormalised() -> onnx.ModelProto:
    model = tiny_nets.conv_net()
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Identity"
    del next(node for node in model.graph.node if node.output[0] == "probabilities").attribute[:]
    return model


def renamed() -> onnx.ModelProto:
    model = tiny_nets.conv_net()
    for node in model.graph.node:
        node.output[:] = ["strangeness" if name == "ood" else name for name in node.output]
    next(output for output in model.graph.output if output.name == "ood").name = "strangeness"
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (batchwise, "another batch changes a probability by"),
        (unnormalised, "probabilities sum to"),
        (renamed, "strangeness"),
    ],
)
def test_broken_contracts_are_named(make, words, tmp_path):
    with pytest.raises(FormatError, match=f"broken.onnx breaks the contract: .*{words}"):
        formats.check_fresh(
            tiny_nets.write(tmp_path, "broken.onnx", make),
            tiny_nets.pictures(5),
            tiny_nets.TREE,
            tiny_nets.SCORES,
        )


def test_other_classes_and_no_model_are_named(model, tmp_path):
    with pytest.raises(FormatError, match="for 6 classes and 1 scores"):
        formats.check_fresh(model, tiny_nets.pictures(3), tiny_nets.TREE, ("gen",))
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:2000])
    with pytest.raises(FormatError, match="cut.onnx does not run in a fresh process: .+"):
        formats.check_fresh(
            tmp_path / "cut.onnx", tiny_nets.pictures(3), tiny_nets.TREE, tiny_nets.SCORES
        )


# endregion

# region Triton


def model_config() -> type:
    """The part of Triton's ModelConfig message that is used here; its text form goes by names, and
    refuses unknown ones.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="part_of_model_config.proto", package="inference", syntax="proto3"
    )
    kinds = {"s": 9, "i": 5, "l": 3, "u": 4, "u4": 13, "b": 8}

    def enum(name: str, *values: str) -> None:
        made = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            made.value.add(name=value, number=number)

    def message(name: str, fields: dict[str, str], at=None):
        made = (at or file).add(name=name) if at is not None else file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            label = 3 if kind.startswith("*") else 1
            kind = kind.lstrip("*")
            if kind in kinds:
                made.field.add(name=field, number=number, label=label, type=kinds[kind])
            else:
                made.field.add(
                    name=field,
                    number=number,
                    label=label,
                    type=14 if kind in ("DataType", "Kind") else 11,
                    type_name=f".inference.{kind}",
                )
        return made

    enum("DataType", "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_FP16", "TYPE_FP32")
    enum("Kind", "KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL")
    message("ModelInput", {"name": "s", "data_type": "DataType", "dims": "*l"})
    message(
        "ModelOutput", {"name": "s", "data_type": "DataType", "dims": "*l", "label_filename": "s"}
    )
    message(
        "ModelDynamicBatching", {"preferred_batch_size": "*i", "max_queue_delay_microseconds": "u"}
    )
    message("ModelInstanceGroup", {"count": "i", "kind": "Kind"})
    message("ModelParameter", {"string_value": "s"})
    message("Input", {"data_type": "DataType", "dims": "*l", "zero_data": "b"})
    warm_up = message(
        "ModelWarmup", {"name": "s", "batch_size": "u4", "inputs": "*ModelWarmup.InputsEntry"}
    )
    config = message(
        "ModelConfig",
        {
            "name": "s",
            "platform": "s",
            "max_batch_size": "i",
            "input": "*ModelInput",
            "output": "*ModelOutput",
            "dynamic_batching": "ModelDynamicBatching",
            "instance_group": "*ModelInstanceGroup",
            "parameters": "*ModelConfig.ParametersEntry",
            "model_warmup": "*ModelWarmup",
        },
    )
    for owner, name, value in (
        (config, "ParametersEntry", "ModelParameter"),
        (warm_up, "InputsEntry", "Input"),
    ):
        entry = owner.nested_type.add(name=name)
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=1, type=9)
        entry.field.add(name="value", number=2, label=1, type=11, type_name=f".inference.{value}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def test_the_triton_repository(model, tmp_path):
    made = formats.write_triton(tmp_path / "repository", model, BUNDLE)
    assert {
        p.relative_to(tmp_path / "repository").as_posix()
        for p in (tmp_path / "repository").rglob("*")
        if p.is_file()
    } == {"foliar/1/model.onnx", "foliar/config.pbtxt", "foliar/labels.txt", "foliar/bundle.json"}
    assert (made / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert json.loads((made / "bundle.json").read_text()) == BUNDLE
    assert (made / "labels.txt").read_text().splitlines() == [
        tiny_nets.TREE.class_name(i) for i in range(6)
    ]
    config = text_format.Parse((made / "config.pbtxt").read_text(), model_config()())
    assert (config.name, config.platform, config.max_batch_size) == (
        "foliar",
        "onnxruntime_onnx",
        32,
    )
    kind = {
        value.number: value.name
        for value in type(config).DESCRIPTOR.file.enum_types_by_name["DataType"].values
    }
    (image,) = config.input
    assert (image.name, kind[image.data_type], list(image.dims)) == (
        "images",
        "TYPE_UINT8",
        [32, 32, 3],
    )
    session = {output.name: output.shape for output in open_session(model).get_outputs()}
    assert [o.name for o in config.output] == ["probabilities", "ood", "heatmap"]
    for output in config.output:
        assert kind[output.data_type] == "TYPE_FP32", "without the batch"
        assert list(output.dims) == session[output.name][1:], "without the batch"
        assert output.label_filename == ("labels.txt" if output.name == "probabilities" else "")
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 12, 16, 24, 32]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert config.instance_group[0].count == 2
    assert [one.batch_size for one in config.model_warmup] == [*range(1, 9), 12, 16, 24, 32]
    for one in config.model_warmup:
        (filled,) = one.inputs.values()
        assert (list(one.inputs), list(filled.dims)) == (["images"], [32, 32, 3])
        assert kind[filled.data_type] == "TYPE_UINT8"
        assert filled.zero_data
    assert config.parameters["cudnn_conv_algo_search"].string_value == "1"
    assert config.parameters["class_tree"].string_value == tiny_nets.TREE.fingerprint()
    assert config.parameters["version"].string_value == "abc123"
    with pytest.raises(text_format.ParseError):
        text_format.Parse(
            (made / "config.pbtxt").read_text().replace("dims", "shape"), model_config()()
        )


def test_the_triton_repository_is_replaced_but_nothing_else(model, tmp_path):
    folder = tmp_path / "repository"
    (folder / "other").mkdir(parents=True)
    formats.write_triton(folder, model, BUNDLE)
    (folder / "foliar" / "1" / "old").write_text("old")
    formats.write_triton(folder, model, BUNDLE)
    assert {p.name for p in folder.iterdir()} == {"foliar", "other"}
    assert not (folder / "foliar" / "1" / "old").exists()
    (folder / "foliar" / "config.pbtxt").unlink()
    with pytest.raises(FormatError, match="foliar is there and is no Triton model"):
        formats.write_triton(folder, model, BUNDLE)


def test_a_fixed_batch_is_no_triton_model(tmp_path):
    fixed = tiny_nets.conv_net()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(fixed, tmp_path / "fixed.onnx")
    with pytest.raises(FormatError, match="fixed batch"):
        formats.write_triton(tmp_path / "repository", tmp_path / "fixed.onnx", BUNDLE)
    assert not (tmp_path / "repository" / "foliar").exists()


def test_names_with_quotes_survive(model, tmp_path):
    facts = formats.metadata({**BUNDLE, "version": 'a "b" \\ c\nd'}, "fp32")
    formats.stamp(model, facts)
    config = text_format.Parse(formats.triton_config(model, tiny_nets.TREE), model_config()())
    assert config.parameters["version"].string_value == 'a "b" \\ c\nd'


# endregion
