"""Averages of the weights with those after the heads' phase: which one is taken, and its batch
norms.
"""

import shutil
from types import SimpleNamespace

import pytest
import torch

from common.train import averaging, checkpoint, recipes
from common.train.compute import SINGLE_PROCESS, choose_compute
from common.train.protocols import Recipe


@pytest.fixture
def ended(trained, data, tmp_path):
    """A run that has ended, the checkpoint of its heads' phase, and a copy of its best."""
    best = tmp_path / "epoch=02-best.pt"
    shutil.copy(checkpoint.find_best(trained.checkpoints / "hierarchical_full"), best)
    recipe = Recipe(**checkpoint.load(best)["recipe"])
    run = SimpleNamespace(
        args=SimpleNamespace(workers=0, seed=0),
        data=data,
        recipe=recipe,
        compute=choose_compute("cpu", "fp32"),
        world=SINGLE_PROCESS,
        phases=recipes.joint_phases(recipe),
        eval_batch=64,
    )
    return run, trained.checkpoints / "disease_heads" / "disease_heads_final.pt", best


def scores(monkeypatch, by_share: dict[float, float]) -> None:
    """Val scores the shares as given, whatever the models answer; 1 is the end's."""
    order = iter([1.0, *averaging.SHARES])
    names = ("species_nll", "disease_nll", "macro_f1")

    def summarise(*_):
        return {"cascade_top1": by_share.get(next(order), 0.0), **dict.fromkeys(names, 0.5)}

    monkeypatch.setattr(averaging, "summarise", summarise)


@pytest.mark.parametrize("best_share", [0.7, 0.9, 1.0])
def test_the_share_that_val_scores_highest_is_taken(ended, monkeypatch, capsys, best_share):
    run, heads, best = ended
    before, start = checkpoint.load(best), checkpoint.load(heads)["model"]
    scores(monkeypatch, {0.6: 0.8, 1.0: 0.8, best_share: 0.9})
    averaging.average_with_heads(run, heads, best)
    after = checkpoint.load(best)
    assert after["metrics"]["average_share"] == best_share
    assert after["metrics"]["cascade_top1"] == 0.9
    assert after["metrics"]["tail_f1_per_class"].keys() == (
        before["metrics"]["tail_f1_per_class"].keys()
    )
    for name, value in after["model"].items():
        end = (before["ema"] or before["model"])[name]
        if "running" not in name and value.is_floating_point():
            torch.testing.assert_close(value, best_share * end + (1 - best_share) * start[name])
        elif best_share == 1.0:
            assert torch.equal(value, end), "the final weights keep their own statistics"
    assert after["recipe"] == before["recipe"]
    assert checkpoint.build_model(after) is not None
    told = capsys.readouterr().out
    assert ("no average" in told) if best_share == 1 else (f"{best_share:.0%} of the final" in told)
    content = best.read_bytes()
    averaging.average_with_heads(run, heads, best)
    assert best.read_bytes() == content, "an averaged checkpoint is not averaged again"


def test_equal_scores_are_decided_by_the_loss(ended, monkeypatch):
    run, heads, best = ended
    losses = iter([0.5, 0.5, 0.4, 0.6, 0.5, 0.5])

    def summarise(*_):
        loss = next(losses)
        return {"cascade_top1": 0.9, "species_nll": loss, "disease_nll": 0.5, "macro_f1": 0.5}

    monkeypatch.setattr(averaging, "summarise", summarise)
    averaging.average_with_heads(run, heads, best)
    assert checkpoint.load(best)["metrics"]["average_share"] == averaging.SHARES[1]


def test_batch_norms_measure_averaged_weights_anew(ended):
    run, heads, best = ended
    start, end = (checkpoint.build_model(checkpoint.load(path)) for path in (heads, best))
    model = averaging.between(start, end, 0.5)
    pictures = averaging.first_views(run)
    assert sum(map(len, pictures)) == len(run.data.splits["train"]) <= 64
    model.eval()
    norm = averaging.batch_norms(model)[0]
    seen = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    averaging.measure_batch_norms(model, [pictures[0][:30], pictures[0][30:]], run.compute)
    hook.remove()
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in seen]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    assert not torch.allclose(norm.running_mean, averaging.batch_norms(end)[0].running_mean)
    assert not any(module.training for module in model.modules())
