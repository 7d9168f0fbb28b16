"""The choice of a provider: which, with what options, and what is told where it does not do its
part. A CPU session stands for the GPU's.
"""

import numpy as np
import onnxruntime
import pytest
import tiny_bundle as tiny

from common.serve import providers
from common.serve.batcher import LANES
from common.serve.predictor import SIZES, BundleError, Outputs, Predictor


@pytest.fixture
def installed(monkeypatch):
    """Make ONNX Runtime report a provider beside the CPU's."""

    def install(name):
        found = [name, "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: found)

    return install


@pytest.fixture
def labelled_int8(tmp_path):
    """A folder whose INT8 file says so in bundle.json: its path, and a function that writes it
    with other values.
    """
    folder = tiny.make(tmp_path / "exports")

    def write(precision="int8, static", **changes):
        bundle = tiny.describe(folder) | changes
        bundle["models"]["model.int8.onnx"]["precision"] = precision
        tiny.write_bundle(folder, bundle)

    write()
    return folder, write


def test_the_cpu_is_what_auto_comes_to_where_nothing_else_is(exports, installed):
    installed("AzureExecutionProvider")
    predictor, name = providers.open_predictor(exports, None, "auto")
    assert name == "cpu"
    assert predictor.card.file == "model.int8.onnx"
    with pytest.raises(BundleError, match="'cuda' is not in this ONNX Runtime. It has: cpu"):
        providers.open_predictor(exports, None, "cuda")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_load_is_told_of_and_replaced_unless_it_was_named(
    exports, installed, capsys
):
    installed("CUDAExecutionProvider")
    # the real session falls back to the CPU by itself, without an error: that must not pass unseen
    predictor, name = providers.open_predictor(exports, None, "auto")
    assert name == "cpu"
    assert predictor.run(np.zeros((1, tiny.SIZE, tiny.SIZE, 3), np.uint8)).probabilities.shape == (
        1,
        6,
    )
    assert "'cuda' is installed but does not work here" in capsys.readouterr().err
    with pytest.raises(BundleError, match="'cuda' does not work here"):
        providers.open_predictor(exports, None, "cuda")


def test_a_gpu_gets_the_fp16_file_and_else_the_fp32_one(labelled_int8):
    folder, write = labelled_int8
    assert providers._files("cuda", folder) == ["model.onnx"]
    assert providers._files("openvino", folder) == ["model.int8.onnx", "model.onnx"]
    write("fp16")
    assert providers._files("migraphx", folder) == ["model.int8.onnx", "model.onnx"]


def test_a_provider_that_answers_otherwise_is_not_used(
    labelled_int8, installed, monkeypatch, capsys
):
    """A provider that reads the INT8 file in a way of its own gets the FP32 one; one that reads
    both wrongly is left alone.
    """
    folder, write = labelled_int8
    write(default_model="model.int8.onnx")
    wrong = {"model.int8.onnx"}

    class Elsewhere(Predictor):
        def __init__(self, folder, model=None, threads=1, providers=None, options=None):
            super().__init__(folder, model, threads)
            self.elsewhere = providers is not None
            self.session = type(
                "Session",
                (),
                {"run": self.session.run, "get_providers": lambda _: providers or ["CPU"]},
            )()

        def run(self, batch):
            found = super().run(batch)
            off = getattr(self, "elsewhere", False) and self.card.file in wrong
            return (
                Outputs(np.roll(found.probabilities, 1, axis=1), found.ood, found.heatmap)
                if off
                else found
            )

    monkeypatch.setattr(providers, "Predictor", Elsewhere)
    installed("OpenVINOExecutionProvider")
    predictor, name = providers.open_predictor(folder, None, "auto")
    assert name == "openvino"
    assert predictor.card.file == "model.onnx"
    assert "model.int8.onnx: it answers otherwise than the CPU does" in capsys.readouterr().err
    wrong.add("model.onnx")
    assert providers.open_predictor(folder, None, "auto")[1] == "cpu"
    with pytest.raises(BundleError, match="answers otherwise"):
        providers.open_predictor(folder, None, "openvino")


@pytest.fixture
def cuda(monkeypatch, installed):
    """A CPU session that says it is CUDA's; gives what happened, in order, and its class."""
    installed("CUDAExecutionProvider")
    happened, real = [], onnxruntime.InferenceSession

    class Part:
        def __init__(self, name, nodes):
            self.ep_name, self.get_nodes = name, lambda: [None] * nodes

    class Session:
        on_cpu = 3

        def __init__(self, path, settings, names, options):
            self.names = names
            happened.append((names, options))
            self.session = real(path, settings, providers=["CPUExecutionProvider"])

            self.get_inputs, self.get_outputs = self.session.get_inputs, self.session.get_outputs

        def run(self, names, inputs):
            happened.append((self.names[0], len(inputs["images"])))
            return self.session.run(names, inputs)

        def get_providers(self):
            return self.names

        def get_provider_graph_assignment_info(self):
            return [Part(self.names[0], 10 - self.on_cpu), Part(self.names[-1], self.on_cpu)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: happened.append("preload"))
    return happened, Session


def test_cuda_gets_its_libraries_its_options_and_all_sizes_of_batch(exports, cuda, capsys):
    happened, _ = cuda
    predictor, name = providers.open_predictor(exports, "model.onnx", "auto")
    assert name == "cuda"
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert happened[:2] == ["preload", (names, [{"cudnn_conv_algo_search": "HEURISTIC"}, {}])]
    assert (names[1:], [{}]) in happened, "what its answers are held against has no options"
    ran = [count for one, count in happened[2:] if one == names[0]]
    assert ran[:2] == [1, 8]
    assert sorted(ran[2:]) == sorted(SIZES * LANES), "before it is given out"
    assert "3 of the model's 10 nodes run on the CPU, not on cuda" in capsys.readouterr().err
    batch = np.zeros((2, tiny.SIZE, tiny.SIZE, 3), np.uint8)
    known = Predictor(exports, "model.onnx").run(batch)
    assert np.allclose(predictor.submit(batch).result().ood, known.ood)


@pytest.mark.parametrize("name", ["migraphx", "rocm"])
def test_where_each_size_of_batch_is_compiled_there_are_two(exports, cuda, installed, name):
    happened, _ = cuda
    installed(providers.PROVIDERS[name])
    providers.open_predictor(exports, "model.onnx", name)
    ran = [count for one, count in happened[1:] if one == providers.PROVIDERS[name]]
    assert sorted(ran[2:]) == [1] * LANES + [32] * LANES


def test_a_model_that_is_left_to_the_cpu_is_told_of(exports, cuda, monkeypatch, capsys):
    _, session = cuda
    monkeypatch.setattr(session, "on_cpu", 10)
    assert providers.open_predictor(exports, "model.onnx", "auto")[1] == "cpu"
    told = capsys.readouterr().err
    assert "10 of the model's 10 nodes run on the CPU" in told
    assert "it leaves the whole model to the CPU" in told
    monkeypatch.setattr(session, "on_cpu", 0)
    assert providers.open_predictor(exports, "model.onnx", "cuda")[1] == "cuda"
    assert "nodes" not in capsys.readouterr().err


def test_an_old_onnxruntime_without_these_functions_serves_too(exports, cuda, monkeypatch):
    happened, session = cuda
    monkeypatch.delattr(onnxruntime, "preload_dlls")
    monkeypatch.delattr(session, "get_provider_graph_assignment_info")
    assert providers.open_predictor(exports, "model.onnx", "cuda")[1] == "cuda"
    assert "preload" not in happened


def test_a_size_of_batch_that_does_not_run_is_named(exports, cuda, monkeypatch):
    _, session = cuda
    run = session.run

    def small(self, names, inputs):
        if len(inputs["images"]) > 16:
            raise RuntimeError("out of memory")
        return run(self, names, inputs)

    monkeypatch.setattr(session, "run", small)
    with pytest.raises(BundleError, match="batches of 24: out of memory"):
        providers.open_predictor(exports, "model.onnx", "cuda")
