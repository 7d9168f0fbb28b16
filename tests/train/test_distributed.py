"""Several processes: shares, and two processes under torchrun that end where one ends."""

import pytest
import torch
import warm
from conftest import run
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from common.train import checkpoint, compute
from common.train.compute import SINGLE_PROCESS, GradientSum, World
from common.train.dataset import mix_partners
from common.train.recipes import get


@pytest.mark.parametrize("count", [1, 5, 8, 23])
def test_shares_are_whole_and_nearly_equal(count):
    shares = [World(rank, 3).share(count) for rank in range(3)]
    rows = [row for share in shares for row in range(count)[share]]
    assert rows == list(range(count))
    assert max(s.stop - s.start for s in shares) - min(s.stop - s.start for s in shares) <= 1


def test_alone_nothing_changes():
    parameter = torch.nn.Parameter(torch.ones(2))
    gradients = GradientSum([parameter], SINGLE_PROCESS)
    parameter.sum().backward()
    gradients.finish()
    assert parameter.grad.tolist() == [1, 1]
    assert not gradients.hooks
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.gather(3) == [3]
    assert SINGLE_PROCESS.any(True)
    assert SINGLE_PROCESS.share(7) == slice(0, 7)


class Sent:
    """Stands for the other process, which has the same gradients: a sum is twice one's own."""

    def __init__(self):
        self.sums = []

    def all_reduce(self, tensor, async_op=False):
        if async_op:
            self.sums.append(tensor)
        return self

    def wait(self):
        self.sums.pop(0).mul_(2)


@pytest.fixture
def layers(monkeypatch):
    """Three layers in three buckets, and what is sent of them."""
    sent = Sent()
    monkeypatch.setattr(compute.dist, "all_reduce", sent.all_reduce)
    monkeypatch.setattr(compute, "BUCKET", 4)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(3)))
    return layers, GradientSum(list(layers.parameters()), World(0, 2)), sent


def test_gradients_are_sent_while_the_backward_pass_goes_on(layers):
    layers, gradients, sent = layers
    seen = []
    layers[0].register_full_backward_pre_hook(lambda *_: seen.append(len(sent.sums)))
    layers(torch.ones(1, 2)).sum().backward()
    assert seen == [0], "a piece that is not the last is summed here alone"
    gradients.armed = True
    layers(torch.ones(1, 2)).sum().backward()
    assert seen == [0, 2], "both layers above have been sent when the lowest begins"
    alone = [p.grad.clone() for p in layers.parameters()]
    gradients.finish()
    assert not sent.sums
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(layers.parameters(), alone, strict=True))


def test_a_gradient_that_is_missing_or_was_never_computed_counts_as_zero(layers):
    layers, gradients, sent = layers
    gradients.armed = True
    layers[2](torch.ones(1, 2)).sum().backward()  # as where memory runs out on the way
    assert len(sent.sums) == 1
    own = layers[2].bias.grad.clone()
    gradients.finish()
    assert torch.equal(layers[2].bias.grad, 2 * own)
    assert layers[0].weight.grad.tolist() == [[0, 0], [0, 0]]
    gradients.armed = True
    layers.zero_grad()
    layers(torch.ones(1, 2)).sum().backward()
    gradients.finish(keep=False)
    assert torch.equal(layers[2].bias.grad, own), "what ran out of memory is not kept"
    gradients.close()
    gradients.armed = True
    layers(torch.ones(1, 2)).sum().backward()
    assert not sent.sums


def test_partners_are_those_of_the_step():
    recipe = get("hierarchical")
    mixed = [mix_partners(recipe, 0, 2, step, 16) for step in range(20)]
    assert 0 < sum(p is None for p in mixed) < 20, "half of the batches are mixed"
    assert all(sorted(p.tolist()) == list(range(16)) for p in mixed if p is not None)


FLAGS = [
    "--recipe",
    "demo",
    "--weights",
    "none",
    "--backbone",
    "test_vit",
    "--image-size",
    "32",
    "--batch-size",
    "8",
    "--mix-share",
    "0.5",
    "--drop-path",
    "0.3",
    "--species-warmup-epochs",
    "1",
    "--species-finetune-epochs",
    "3",
    "--species-final-epochs",
    "1",
    "--species-finetune-lr",
    "1e-3",
    "--ema-decay",
    "0.9",
    "--workers",
    "0",
    "--precision",
    "fp32",
    "--device",
    "cpu",
]


def torchrun(script: str, *argv: object) -> None:
    """Run a script as `torchrun --nproc_per_node=2` does, by its own launcher, in processes that
    begin with torch imported.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, run)(script, *argv)


def test_two_processes_end_where_one_ends(organized, tmp_path):
    """30 steps with MixUp, CutMix, stochastic depth and an average of the weights; each process
    sees half of each batch.
    """
    where, log = ["--data", organized, "--checkpoints"], tmp_path / "log"
    process = warm.start(log, torchrun, "02a_train_species", *where, tmp_path / "two", *FLAGS)
    process.join(240)
    process.kill()  # or pytest would wait for it at its end
    told = log.read_text()
    assert process.exitcode == 0, told[-3000:]
    assert told.count("next: python 02b") == 1, "one process speaks"
    assert "2 processes x 1 x 4" in told, "one process speaks"
    assert run("02a_train_species", *where, tmp_path / "one", *FLAGS, "--device-batch", 4) == 0
    one, two = (
        checkpoint.load(tmp_path / name / "species_only" / "last.pt") for name in ("one", "two")
    )
    assert one["epochs_done"] == two["epochs_done"] == 5
    for state in ("model", "ema"):
        difference = max(
            float((one[state][k].double() - two[state][k].double()).abs().max()) for k in one[state]
        )
        assert difference < 1e-5, f"{state}: {difference}"
    assert one["metrics"]["species_nll"] == pytest.approx(
        two["metrics"]["species_nll"], abs=1e-5
    ), "each judged half of val"


def test_a_batch_smaller_than_the_processes_is_told(monkeypatch, refused):
    import argparse

    from common.train import machine

    args = argparse.Namespace(device="cpu", precision="fp32", device_batch=0, seed=0, workers=0)
    monkeypatch.setattr(machine, "join", lambda device: World(0, 16))
    refused(
        "16 processes",
        machine.resolve_machine,
        args,
        get("hierarchical").__class__(**{**vars(get("hierarchical")), "batch_size": 8}),
    )
