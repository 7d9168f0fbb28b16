"""The loop: signals, memory that runs out, numbers that are none, averages, phases that end early,
teachers.
"""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import tiny_data
import torch
from conftest import run

from common.train import checkpoint, loop
from common.train.optim import Average
from common.train.run import Run
from common.train.signals import StopRequest

SPECIES = [*tiny_data.SPECIES, "--species-finetune-epochs", "1"]


def train(organized, folder, *more: object) -> SimpleNamespace:
    assert (
        run("02a_train_species", "--data", organized, "--checkpoints", folder, *SPECIES, *more) == 0
    )
    return SimpleNamespace(**checkpoint.load(folder / "species_only" / "last.pt"))


def weights_differ(a: dict, b: dict) -> float:
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


@pytest.fixture(scope="module")
def plain(organized, tmp_path_factory):
    return train(organized, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    ("number", "at"), [(signal.SIGTERM, 3), (signal.SIGINT, 6), (signal.SIGTERM, 8)]
)
def test_a_signal_saves_and_the_same_command_goes_on(
    organized, tmp_path, monkeypatch, plain, capfd, number, at
):
    real, taken = Run.take_step, []

    def counting(*args):
        taken.append(1)
        if len(taken) == at:
            os.kill(os.getpid(), number)
        return real(*args)

    monkeypatch.setattr(Run, "take_step", counting)
    with pytest.raises(SystemExit) as caught:
        train(organized, tmp_path)
    assert caught.value.code == 143, "the step is finished, and no other is taken"
    assert len(taken) == at, "the step is finished, and no other is taken"
    assert "and saved" in capfd.readouterr().out
    monkeypatch.setattr(Run, "take_step", real)
    again = train(organized, tmp_path)
    assert weights_differ(again.model, plain.model) == 0, "bit for bit"


def test_the_handlers_are_given_back_and_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_memory_that_runs_out_halves_the_pieces_and_changes_nothing_else(
    organized, tmp_path, monkeypatch, capfd
):
    flags = [
        "--backbone",
        "test_vit",
        "--species-final-epochs",
        "0",
    ]  # no batch norm: pieces make no difference
    whole = train(organized, tmp_path / "whole", *flags)
    real, sizes = loop.hierarchical_loss, []

    def hungry(model, features, *rest):
        sizes.append(len(features))
        if len(features) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(model, features, *rest)

    monkeypatch.setattr(loop, "hierarchical_loss", hungry)
    parts = train(organized, tmp_path / "parts", *flags)
    assert sizes[:3] == [8, 4, 2]
    assert set(sizes[3:]) == {2}
    assert (
        weights_differ(parts.model, whole.model) < 1e-4
    )  # 2e-5 seen: sums in another order, which AdamW divides by their size
    told = capfd.readouterr().err
    assert "going on with 4 images at once and 2 pieces per step" in told
    assert "--device-batch 2 starts so" in told


def test_memory_for_not_even_one_picture_is_told(organized, tmp_path, monkeypatch, refused):
    def full(*args):
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 "
            "bytes"
        )

    monkeypatch.setattr(loop, "hierarchical_loss", full)
    refused("a single image", train, organized, tmp_path)


def test_other_errors_are_not_taken_for_lack_of_memory(organized, tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(loop, "hierarchical_loss", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        train(organized, tmp_path)


def test_a_step_that_is_no_number_stops_or_is_left_out(organized, tmp_path, monkeypatch, refused):
    real, calls = loop.hierarchical_loss, []

    def poisoned(model, features, *rest):
        calls.append(1)
        loss = real(model, features, *rest)
        return loss * float("nan") if len(calls) == 4 else loss

    monkeypatch.setattr(loop, "hierarchical_loss", poisoned)
    refused(("the loss is nan", "--precision fp32"), train, organized, tmp_path / "stops")
    calls.clear()
    left = train(organized, tmp_path / "skips", "--skip-nan")
    rows = [
        json.loads(line)
        for line in (tmp_path / "skips" / "species_only" / "log.jsonl").read_text().splitlines()
    ]
    assert [row["skipped_steps"] for row in rows] == [1] + [0] * (len(rows) - 1)
    assert all(torch.isfinite(v).all() for v in left.model.values())
    assert all(row["train_loss"] < 10 for row in rows)


def test_the_average_follows_the_weights_and_is_what_is_judged(organized, tmp_path, plain):
    averaged = train(organized, tmp_path, "--ema-decay", "0.9")
    assert plain.ema is None
    assert averaged.ema is not None
    assert 0 < weights_differ(averaged.ema, averaged.model) < 1
    best = checkpoint.load(checkpoint.find_best(tmp_path / "species_only"))
    assert weights_differ(checkpoint.build_model(best).state_dict(), best["ema"]) == 0, (
        "what 02b and 03 take is the average"
    )


def test_the_average_is_the_formula():
    model = torch.nn.BatchNorm1d(2)
    average = Average(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(30):
        with torch.no_grad():
            model.weight += 1.0
            model.running_mean += 2.0
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.model.weight.detach(), expected)
    assert average.model.running_mean.tolist() == model.running_mean.tolist()
    average.copy_to(model)
    assert model.weight.detach().tolist() == average.model.weight.detach().tolist()


def test_a_killed_run_with_an_average_goes_on_bit_for_bit(organized, tmp_path, monkeypatch):
    flags = ["--ema-decay", "0.9", "--cached-views", "2"]
    whole = train(organized, tmp_path / "whole", *flags)
    for at in (
        2,
        6,
        9,
        15,
    ):  # within the first phase, at its end, within the second, within the last
        real, taken = Run.take_step, []

        def counting(*args, real=real, taken=taken, at=at):
            taken.append(1)
            if len(taken) == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args)

        monkeypatch.setattr(Run, "take_step", counting)
        with pytest.raises(SystemExit):
            train(organized, tmp_path / f"cut{at}", *flags)
        monkeypatch.setattr(Run, "take_step", real)
        again = train(organized, tmp_path / f"cut{at}", *flags)
        assert weights_differ(again.model, whole.model) == 0
        assert weights_differ(again.ema, whole.ema) == 0


def test_a_phase_that_no_longer_improves_ends_early(organized, tmp_path, monkeypatch):
    flags = ["--species-warmup-epochs", "6", "--patience", "2", "--species-warmup-lr", "0"]
    train(organized, tmp_path, *flags)
    rows = [
        json.loads(line)
        for line in (tmp_path / "species_only" / "log.jsonl").read_text().splitlines()
    ]
    warm = [row for row in rows if row["phase"].startswith("A1")]
    assert len(warm) == 3, "the first epoch, and two that were no better"
    assert warm[-1]["stopped_early"], "the first epoch, and two that were no better"
    assert [row["epoch"] for row in rows][:4] == [1, 2, 3, 7], (
        "the next phase begins where it was planned"
    )
    assert (
        run("02a_train_species", "--data", organized, "--checkpoints", tmp_path, *SPECIES, *flags)
        == 0
    )
    assert len((tmp_path / "species_only" / "log.jsonl").read_text().splitlines()) == len(rows), (
        "and is not taken up again"
    )


def test_a_phase_on_cached_features_learns_from_labels_alone(organized, tmp_path, trained):
    """There are no pixels to show the teacher, or to mix, while features are cached."""
    teacher = checkpoint.find_best(trained.checkpoints / "hierarchical_full")
    flags = ["--cached-views", "2", "--species-finetune-epochs", "0", "--species-final-epochs", "0"]
    alone = train(organized, tmp_path / "alone", *flags)
    taught = train(organized, tmp_path / "taught", *flags, "--teacher", teacher)
    mixed = train(organized, tmp_path / "mixed", *flags, "--mix-share", "1")
    assert weights_differ(taught.model, alone.model) == 0
    assert weights_differ(mixed.model, alone.model) == 0


def test_a_teacher_is_learned_from(organized, tmp_path, plain, trained, refused):
    teacher = checkpoint.find_best(trained.checkpoints / "hierarchical_full")
    taught = train(organized, tmp_path / "taught", "--teacher", teacher)
    assert weights_differ(taught.model, plain.model) > 0
    small = train(organized, tmp_path / "small", "--teacher", teacher, "--image-size", "24")
    assert small.settings["image_size"] == 24, "each model at its own size"
    refused(
        "--teacher-share",
        train,
        organized,
        tmp_path / "no",
        "--teacher",
        teacher,
        "--teacher-share",
        "2",
    )
    refused(
        "other settings",
        train,
        organized,
        tmp_path / "taught",
        "--teacher",
        teacher,
        "--teacher-share",
        "0.5",
    )


def test_a_checkpoint_is_judged_without_training(trained, tmp_path, capsys):
    best = checkpoint.find_best(trained.checkpoints / "hierarchical_full")
    best = shutil.copy(best, tmp_path / best.name)
    flags = [
        "--data",
        trained.data,
        "--evaluate",
        best,
        "--split",
        "test",
        "--workers",
        0,
        "--precision",
        "fp32",
    ]
    assert run("02b_train_disease", *flags) == 0
    assert (tmp_path / f"{best.stem} on test" / "report.md").is_file()
    assert "species" in capsys.readouterr().out
