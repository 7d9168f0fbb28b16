"""PyTorch's passes of 03 on a device, with a device that exists in shapes only standing in for a
GPU; and that no process is left of its loaders.
"""

import multiprocessing
from functools import partial

import numpy as np
import pytest
import torch
from conftest import run
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.data import _utils

from common.classes import ClassTree
from common.export import fitting, pictures
from common.export.graph import FeatureSpace, LearnedScore, ServingGraph, extract_features
from common.export.pictures import Pictures
from common.train.model import SwinHierarchical

TREE = ClassTree(("a", "b", "c"), (("x", "y"), ("x",), ("x", "y", "z")))
IMAGES = torch.zeros(12, 32, 32, 3, dtype=torch.uint8)


def graph_of(classes: str) -> ServingGraph:
    torch.manual_seed(0)
    model = SwinHierarchical("test_resnet", TREE, image_size=32, classes=classes).eval()
    with torch.inference_mode():
        _, *parts = extract_features(model, IMAGES)
    parts = [torch.rand_like(values) for values in parts]
    spaces = (FeatureSpace(v, torch.arange(12) % 6, model.class_species, rank=4) for v in parts)
    learned = LearnedScore(parts[1], parts[1][:6] + 0.1)
    return ServingGraph(model, *spaces, 1.3, [0.5, 1.0, 2.0], learned).eval()


@pytest.mark.parametrize("classes", ["hierarchical", "flat"])
def test_every_part_of_the_graph_goes_to_the_device(classes):
    """A tensor that stayed behind would be refused, as a GPU refuses it."""
    graph = graph_of(classes)

    def answer() -> list[torch.Tensor]:
        maps = extract_features(graph.model, IMAGES.to("cuda"))
        flat = graph.model.disease_heads.all_logits(graph.model.neck(maps[1])).argmax(dim=1)
        return [*graph.answer(*maps), flat]

    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        graph.to("cuda")
        assert {values.device.type for values in answer()} == {"cuda"}
        graph.feature_space.means = graph.feature_space.means.to("cpu")
        with pytest.raises(RuntimeError, match="devices"):
            answer()


def test_it_computes_exactly_there_and_comes_back():
    moves = []

    class Watched(nn.Linear):
        def _apply(self, fn):  # noqa: ANN001, ANN202
            moves.append(torch.is_inference_mode_enabled())
            return super()._apply(fn)

    def state() -> tuple[bool, str, bool]:
        return (
            torch.is_inference_mode_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
        )

    before = state()
    torch.set_float32_matmul_precision("high")  # as training leaves it
    try:
        module = Watched(2, 2)
        with fitting.on_device(module, torch.device("cpu")):
            assert state() == (True, "highest", False)
        assert state() == (False, "high", before[2])
        with pytest.raises(KeyError), fitting.on_device(module, torch.device("cpu")):
            raise KeyError
        assert state() == (False, "high", before[2])
    finally:
        torch.set_float32_matmul_precision(before[1])
    assert moves == [False] * 4, "there and back, and never as tensors of inference mode"


def test_features_are_taken_on_the_device_that_was_asked_for(monkeypatch):
    asked = []

    def on_device(_: nn.Module, device: torch.device) -> torch.inference_mode:
        asked.append(device)
        return torch.inference_mode()

    monkeypatch.setattr(fitting, "on_device", on_device)
    device = torch.device("cpu", 0)
    batch = IMAGES.numpy(), np.arange(12) % 6
    model = graph_of("hierarchical").model
    features, layers, class_idx = fitting.features_of(model, [batch, batch], 24, "x", device)
    assert asked == [device]
    assert len(features) == len(layers) == 24
    assert class_idx.tolist() == [*range(6)] * 4


def test_a_device_that_is_not_there_is_told(tmp_path, refused):
    flags = ["--data", tmp_path, "--output", tmp_path / "exports"]
    refused("--device tpu is unknown", run, "03_export", *flags, "--device", "tpu")
    if not torch.cuda.is_available():
        refused("torch sees no GPU", run, "03_export", *flags, "--device", "cuda:1")


@pytest.fixture
def pinned(monkeypatch):
    """Loaders pin as on a GPU, but for what the driver does."""
    monkeypatch.setattr(pictures, "make_loader", partial(pictures.make_loader, pin_memory=True))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)
    count = []
    monkeypatch.setattr(
        _utils.pin_memory, "pin_memory", lambda data, *_: count.append(data) or data
    )
    return count


def test_no_worker_is_left_of_a_pass(data, pinned, monkeypatch):
    """Neither of one that ends, nor of one that is left, nor for the interpreter's end: an export
    ends with its last line.
    """
    later = []
    monkeypatch.setattr("atexit.register", lambda *call: later.append(call))
    shown = Pictures(data, 32, [], 100, 2)
    assert sum(len(batch) for batch, _ in shown.batches("val", batch_size=4)) == 10
    assert pinned
    assert not multiprocessing.active_children()
    started = shown.batches("val", batch_size=4)
    assert len(next(started)[0]) == 4
    assert len(multiprocessing.active_children()) == 2
    del started
    assert not multiprocessing.active_children()
    assert not later
