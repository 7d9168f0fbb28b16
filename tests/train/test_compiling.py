"""torch.compile of the backbone: the same answers, when it begins, and what happens if it fails."""

import copy
import functools

import pytest
import torch
from conftest import run

from common.train import checkpoint, compiling
from common.train.compiling import BackboneCompiler
from common.train.compute import SINGLE_PROCESS, Compute, World
from common.train.model import SwinHierarchical

CPU = Compute(torch.device("cpu"), torch.float32)
IMAGES = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile without the machine's C++ compiler: its graphs are run as they are."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    yield
    torch._dynamo.reset()


@pytest.fixture
def model(data):
    """A small model in evaluation mode."""
    torch.manual_seed(0)
    return SwinHierarchical("test_vit", data.tree, image_size=32).eval()


def compiler(mode: str, *sizes: int) -> BackboneCompiler:
    made = BackboneCompiler(mode, CPU, SINGLE_PROCESS)
    made.begin(*sizes)
    return made


def test_the_same_answers_under_the_same_names(model, no_compiler):
    names, want = set(model.state_dict()), model.features(IMAGES)
    model.run_backbone = compiler("on", 4)
    assert torch.allclose(model.features(IMAGES), want, atol=1e-6)
    assert model.run_backbone.warm_up > 0
    assert set(checkpoint.describe_model(model)["model"]) == names
    average = copy.deepcopy(model)  # as the moving average is made
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
    assert not torch.allclose(average.features(IMAGES), want), "it has weights of its own"
    assert torch.allclose(model.features(IMAGES), want, atol=1e-6)


def test_batches_of_odd_sizes_run_without(model, monkeypatch):
    called = []
    monkeypatch.setattr(
        torch, "compile", lambda f, **_: lambda model, x: called.append(len(x)) or f(model, x)
    )
    model.run_backbone = compiler("on", 4)
    for size in (4, 3, 4):
        assert len(model.features(IMAGES[:size])) == size
    assert called == [4, 4]


def test_what_fails_is_told_and_goes_on(model, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    model.run_backbone = compiler("on", 4)
    assert len(model.features(IMAGES)) == 4
    assert "torch.compile does not work here (no C++ compiler found)" in capsys.readouterr().err
    model.run_backbone.begin(4)
    assert model.run_backbone.compiled is None, "not tried again in the next phase"


def test_memory_that_runs_out_is_no_failure_of_the_compiler(model, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: full)
    model.run_backbone = compiler("on", 4)
    with pytest.raises(torch.OutOfMemoryError):
        model.features(IMAGES)
    assert model.run_backbone.compiled is full


def test_a_storm_of_recompilations_ends_it(model, no_compiler, monkeypatch, capsys):
    few = [("torch._dynamo.config", "recompile_limit", 2)]
    monkeypatch.setattr(compiling, "SETTINGS", [*compiling.SETTINGS[1:], *few])
    model.run_backbone = compiler("on", 1, 2, 3, 4)
    for size in (4, 3, 2, 1):
        assert len(model.features(IMAGES[:size])) == size
    assert "torch.compile does not work here" in capsys.readouterr().err
    assert model.run_backbone.compiled is None


@pytest.fixture
def on_nvidia(monkeypatch):
    """A compiler in mode auto, as on an NVIDIA GPU."""
    monkeypatch.setattr(Compute, "on_gpu", True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    return compiler("auto", 4)


def test_auto_begins_where_the_phase_is_long_enough(on_nvidia, capsys):
    on_nvidia.note(9.0, 10_000)  # the first steps are slow for other reasons
    on_nvidia.note(0.1, 10_000)  # 1,000 s left, 300 of them may be saved
    assert on_nvidia.compiled
    assert "should save 5 min" in capsys.readouterr().out
    on_nvidia.warm_up = 40.0
    on_nvidia.note(2.0, 9_980)  # holds the warm-up
    on_nvidia.note(0.06, 9_960)
    told = capsys.readouterr().out
    assert "40 s of warm-up, then 60 ms a step, 100 ms before; won back after 1,000 steps" in told


def test_auto_leaves_a_short_phase_alone(on_nvidia):
    for left in (900, 880, 860):
        on_nvidia.note(0.1, left)
    assert on_nvidia.compiled is None


def test_auto_ends_what_is_no_faster(on_nvidia, capsys):
    for seconds in (0.1, 0.1, 2.0, 0.11):
        on_nvidia.note(seconds, 10_000)
    assert on_nvidia.compiled is None
    assert "110 ms a step, 100 ms before: going on without" in capsys.readouterr().err


def test_a_failure_in_one_process_ends_it_in_all(on_nvidia, monkeypatch):
    monkeypatch.setattr(on_nvidia, "world", World(1, 2))
    asked = []

    def any_(_: World, flag: bool) -> bool:
        asked.append(flag)
        return True

    monkeypatch.setattr(World, "any", any_)
    on_nvidia.note(0.1, 10_000)
    assert asked == [False], "this one has not failed, the other has"
    assert (on_nvidia.mode, on_nvidia.compiled) == ("off", None)
    on_nvidia.note(0.1, 10_000)
    assert len(asked) == 1, "nobody asks again"


def test_auto_is_off_elsewhere(on_nvidia, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert compiler("auto", 4).mode == "off", "the source warns of it on ROCm"
    monkeypatch.setattr(Compute, "on_gpu", False)
    assert compiler("auto", 4).mode == "off"


FLAGS = (
    "--recipe demo --weights none --backbone test_vit --image-size 32 --batch-size 8 "
    "--device-batch 4 --mix-share 0.5 --drop-path 0.3 --ema-decay 0.9 --species-warmup-epochs 1 "
    "--species-finetune-epochs 1 --species-final-epochs 0 --workers 0 --precision fp32 --device cpu"
).split()


@pytest.mark.parametrize("cached", [0, 2])
def test_a_run_compiled_ends_where_one_without_ends(organized, tmp_path, no_compiler, cached):
    """With accumulation, MixUp, an average of the weights, and cached features."""
    weights = {}
    for mode in ("on", "off"):
        flags = ["--data", organized, "--checkpoints", tmp_path / mode, "--compile", mode]
        assert run("02a_train_species", *flags, "--cached-views", cached, *FLAGS) == 0
        weights[mode] = checkpoint.load(tmp_path / mode / "species_only" / "last.pt")
    for state in ("model", "ema"):
        on, off = weights["on"][state], weights["off"][state]
        assert on.keys() == off.keys()
        assert (
            max(float((on[k] - off[k]).abs().max()) for k in on if on[k].is_floating_point()) < 1e-5
        )
