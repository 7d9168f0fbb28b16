"""What a GPU needs of a run, without one: loaders that end, an evaluation that does not wait, no
synchronisation within steps, and a device that refuses what Apple's refuses.
"""

import itertools
import multiprocessing
import os
import signal
import threading

import numpy as np
import pytest
import torch
from conftest import run
from torch.utils._python_dispatch import TorchDispatchMode

from common.train import checkpoint, compute, dataset, loop
from common.train.compute import Compute, choose_compute
from common.train.dataset import EvalViews, Feed, make_loader
from common.train.model import SwinHierarchical

FLAGS = (
    "--recipe demo --weights none --backbone test_vit --image-size 32 --batch-size 8 "
    "--species-warmup-epochs 1 --species-finetune-epochs 2 --species-final-epochs 0 "
    "--precision fp32 --device cpu --workers 2"
).split()


def at_work() -> list[object]:
    """Loader processes, and threads that pin their batches."""
    pinning = [t for t in threading.enumerate() if "_pin_memory_loop" in repr(t._target)]
    return [*multiprocessing.active_children(), *pinning]


@pytest.fixture
def pinned(monkeypatch):
    """Loaders pin memory, as on a GPU; counts the threads that do it."""
    begun, loop_of = [], torch.utils.data._utils.pin_memory._pin_memory_loop
    for name, value in (
        ("is_available", True),
        ("current_accelerator", torch.device("cpu")),
        ("current_device_index", 0),
        ("set_device_index", None),
    ):
        monkeypatch.setattr(torch.accelerator, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)

    def _pin_memory_loop(*args: object) -> None:
        begun.append(1)
        loop_of(*args)

    monkeypatch.setattr(torch.utils.data._utils.pin_memory, "_pin_memory_loop", _pin_memory_loop)

    class Loader(torch.utils.data.DataLoader):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **{**options, "pin_memory": True})

    monkeypatch.setattr(dataset, "DataLoader", Loader)
    return begun


def test_no_worker_is_left_when_main_returns(organized, tmp_path, pinned):
    where = ["--data", organized, "--checkpoints", tmp_path]
    assert run("02a_train_species", *where, *FLAGS) == 0
    assert len(pinned) >= 4, "train and val of both phases"
    assert not at_work()
    best = checkpoint.find_best(tmp_path / "species_only")
    assert run("02a_train_species", *where, "--evaluate", best, "--workers", 2) == 0
    assert not at_work()


def test_no_worker_is_left_by_a_run_that_fails(organized, tmp_path, pinned, monkeypatch):
    def broken(*_):
        assert at_work(), "they read ahead"
        raise KeyError("a fault")

    monkeypatch.setattr(loop, "training_step", broken)
    with pytest.raises(KeyError) as kept:  # whose traceback holds on to every frame
        run("02a_train_species", "--data", organized, "--checkpoints", tmp_path, *FLAGS)
    assert not at_work(), kept


def test_a_feed_reads_on_over_the_end_of_an_epoch(data):
    split = data.splits["train"]
    sampler = dataset.EpochSampler(len(split), 8, 0)
    sampler.start(range(3), step=2)
    steps = len(sampler)
    feed = Feed(make_loader(EvalViews(split, 32), 0, sampler=_pictures(sampler)), steps)
    first = [classes for _, (_, classes) in zip(range(steps - 2), feed.iterator, strict=False)]
    second, third = ([classes for _, classes in feed] for _ in range(2))
    assert [len(first), len(second), len(third)] == [steps - 2, steps, steps]
    assert not list(feed), "three epochs were asked for"
    for epoch, found in ((0, first), (1, second), (2, third)):
        sampler.start(range(epoch, epoch + 1), 0 if epoch else 2)
        want = [[split.class_idx[i] for _, _, i in batch] for batch in sampler]
        assert [classes.tolist() for classes in found] == want
    feed.close()


def test_workers_leave_ctrl_c_to_the_run(data):
    """A terminal sends it to every process, a cluster's USR1 too; the run then saves and ends."""
    split = data.splits["train"]
    feed = Feed(make_loader(EvalViews(split, 32), 1, sampler=itertools.cycle([[0, 1]])), 20)
    assert len(next(iter(feed))[1]) == 2, "the worker is at work"
    (worker,) = multiprocessing.active_children()
    for name in ("SIGINT", "SIGUSR1", "SIGTERM"):
        os.kill(worker.pid, getattr(signal, name))
    assert len(list(feed)) == 20
    assert worker.is_alive()
    feed.close()
    assert not at_work()


def _pictures(sampler):
    return ([i for _, _, i in batch] for batch in sampler)


def test_a_gpu_that_is_not_there_is_told_and_the_one_named_is_used(monkeypatch, refused):
    used = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    refused("torch sees 2 GPUs", choose_compute, "cuda:2", "fp32")
    assert choose_compute("cuda:1", "fp32").device == torch.device("cuda:1")
    assert used == [torch.device("cuda:1")]


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(96), raising=False)
    assert [dataset.default_workers(n) for n in (1, 8, 32, 200)] == [8, 8, 3, 1]


# region copies


class FakeGPU(Compute):
    """The CPU under the calls of a GPU: notes copies, and when the host waits."""

    events: list[str] = []

    def upload(self, tensor):
        self.events.append("up")
        return tensor

    def download(self, *tensors):
        self.events.append("down")

        def wait():
            self.events.append("wait")
            return [tensor.numpy() for tensor in tensors]

        return wait


def test_a_batch_is_judged_while_the_next_is_answered(data):
    gpu = FakeGPU(torch.device("cpu"), torch.float32)
    gpu.events.clear()
    torch.manual_seed(0)
    model = SwinHierarchical("test_vit", data.tree, image_size=32)
    split = data.splits["val"]
    batches = list(make_loader(EvalViews(split, 32), 0, batch_size=-(-len(split) // 3)))
    judged = loop.evaluate(model, batches, gpu)
    assert gpu.events == "up down up down wait up down wait wait".split()
    alone = loop.evaluate(model, batches[:1], gpu)
    assert np.array_equal(judged.class_idx[: len(alone.class_idx)], alone.class_idx)
    assert len(judged.class_idx) == len(split)


def test_copies_pass_beside_the_computing(monkeypatch):
    """The calls in their order, on streams that only note them."""
    called = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            called.append(f"{self.name} waits for {other.name}")

        def record_event(self):
            called.append(f"event on {self.name}")
            return self

        def synchronize(self):
            called.append("host waits")

        def __enter__(self):
            called.append(f"on {self.name}")

        def __exit__(self, *_):
            called.append(f"off {self.name}")

    class Pinned:
        def pin_memory(self):
            called.append("pinned")
            return self

        def to(self, device, non_blocking):
            called.append(f"to {device} {non_blocking}")
            return self

        def record_stream(self, stream):
            called.append(f"kept for {stream.name}")

        def numpy(self):
            return "array"

    main, copying = Stream("main"), Stream("copying")
    monkeypatch.setattr(compute, "_copy_stream", lambda _: copying)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    gpu = Compute(torch.device("cuda:0"), torch.bfloat16)
    gpu.upload(Pinned())
    assert called == [
        "on copying",
        "pinned",
        "to cuda:0 True",
        "off copying",
        "main waits for copying",
        "kept for main",
    ]
    called.clear()
    wait = gpu.download(Pinned())
    assert called == ["to cpu True", "event on main"]
    assert wait() == ["array"]
    assert called[-1] == "host waits"


class HostWaits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: a number read from a tensor, a shape that depends
    on values.
    """

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in self.NAMES):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_steps_read_nothing_back_between_two_logs(organized, tmp_path, monkeypatch):
    waits, real = HostWaits(), loop.train_epoch

    def watched(*args, **options):
        steps = real(*args, **options)
        while True:
            with waits:
                found = next(steps, None)
            if found is None:
                return
            yield found

    monkeypatch.setattr(loop, "train_epoch", watched)
    where = ["--data", organized, "--checkpoints", tmp_path, "--mix-share", "0.7"]
    assert run("02a_train_species", *where, *FLAGS, "--ema-decay", "0.9") == 0
    assert waits.seen == []


# endregion

# region Apple's GPU


class LikeMPS(TorchDispatchMode):
    """Refuses what Apple's GPUs refuse."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        if "fused_adam" in str(func):
            raise RuntimeError("there is no fused AdamW")
        return found


@pytest.fixture
def apple(monkeypatch):
    """A machine with an Apple GPU, as far as torch says; computing stays on the CPU."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_apples_gpu_is_found_after_cuda(apple, monkeypatch, refused):
    found = choose_compute()
    assert (str(found.device), found.dtype) == ("mps", torch.float32)
    assert str(found) == "mps (Apple GPU), float32"
    assert not found.on_gpu, "no pinned memory, no streams"
    for precision in ("bf16", "fp16"):
        refused(f"--precision {precision}", choose_compute, "mps", precision)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_compute(precision="fp32").device.type == "cuda"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    refused("sees no Apple GPU", choose_compute, "mps")


def test_nothing_on_the_device_is_what_apples_gpu_refuses(organized, tmp_path, monkeypatch):
    """A stand-in: the run was never seen on a Mac. Steps and evaluation run under a mode that
    refuses float64 and fused AdamW.
    """
    for name in ("training_step", "evaluate"):
        monkeypatch.setattr(loop, name, _limited(getattr(loop, name)))
    monkeypatch.setattr(torch.optim, "AdamW", _without_fused)
    where = ["--data", organized, "--checkpoints", tmp_path, "--ema-decay", "0.9"]
    assert run("02a_train_species", *where, *FLAGS, "--workers", 0) == 0


def _limited(function):
    def limited(*args):
        with LikeMPS():
            return function(*args)

    return limited


def _without_fused(*args, fused, **options):
    from torch.optim.adamw import AdamW

    return AdamW(*args, **options)


# endregion
