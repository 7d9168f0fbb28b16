"""02a and 02b: what they leave, and that a run killed at any moment ends with the same weights, bit
for bit.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import tiny_data
import torch
import warm
from conftest import run
from same_runs import same, same_run

from common.train import checkpoint
from common.train.run import Run


def species(data: Path, checkpoints: Path, *flags: object) -> int:
    return run(
        "02a_train_species",
        "--data",
        data,
        "--checkpoints",
        checkpoints,
        *tiny_data.SPECIES,
        *flags,
    )


def disease(data: Path, checkpoints: Path, *flags: object) -> int:
    return run(
        "02b_train_disease",
        "--data",
        data,
        "--checkpoints",
        checkpoints,
        *tiny_data.DISEASE,
        *flags,
    )


# region what a run leaves


def test_files_of_the_runs(trained):
    a, b, c = (
        trained.checkpoints / n for n in ("species_only", "disease_heads", "hierarchical_full")
    )
    names = {p.name for p in a.iterdir()}
    assert {
        "last.pt",
        "log.jsonl",
        "config.json",
        "curves.png",
        "confusion.png",
        "report.md",
        "report.html",
    } <= names
    assert len([n for n in names if n.endswith("-best.pt")]) == 1
    assert sorted(n[:8] for n in names if "val_loss" in n) == [
        "epoch=01",
        "epoch=03",
        "epoch=04",
    ], "one after each phase"
    assert {"disease_heads_epoch=02.pt", "disease_heads_final.pt", "last.pt", "report.md"} <= {
        p.name for p in b.iterdir()
    }
    names = {p.name for p in c.iterdir()}
    assert {"epoch=01.pt", "last.pt", "report.md"} <= names
    assert len([n for n in names if n.endswith("-best.pt")]) == 1
    assert not list(trained.checkpoints.rglob("*.tmp"))
    rows = [json.loads(line) for line in (a / "log.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in rows] == [1, 2, 3, 4]
    assert [r["phase"][:2] for r in rows] == [
        "A1",
        "A2",
        "A2",
        "A3",
    ]
    best = max(rows, key=lambda r: r["score"])
    assert (a / f"epoch={best['epoch']:02d}-best.pt").is_file()
    config = json.loads((a / "config.json").read_text())
    assert config["batch_size"] == {"value": 8, "from": "flag"}
    assert config["clip_norm"]["from"] == "recipe demo"
    assert config["device"]["from"] == "machine"


def test_every_checkpoint_is_plain_and_complete(trained):
    found = sorted(trained.checkpoints.rglob("*.pt"))
    assert len(found) >= 10
    for path in found:
        payload = torch.load(path, weights_only=True)
        assert {
            "format",
            "settings",
            "tree",
            "model",
            "recipe",
            "epochs_done",
            "metrics",
            "provenance",
            "manifest_hash",
            "rng",
            "ema",
            "identity",
        } <= set(payload), path.name
        assert not [k for k in payload["model"] if k.startswith(("module.", "_orig_mod."))]
        assert path.name == "last.pt" or {"species_top1", "macro_f1", "tail_f1_per_class"} <= set(
            payload["metrics"]
        )
        if path.name == "last.pt":
            assert {"optimizer", "scaler", "step", "history"} <= set(payload)


def test_heads_alone_move_in_the_first_part_of_stage_b(trained):
    best = checkpoint.load(checkpoint.find_best(trained.checkpoints / "species_only"))["model"]
    final = checkpoint.load(trained.checkpoints / "disease_heads" / "disease_heads_final.pt")[
        "model"
    ]
    joint = checkpoint.load(checkpoint.find_best(trained.checkpoints / "hierarchical_full"))[
        "model"
    ]
    moved = {key for key in best if not torch.equal(best[key], final[key])}
    assert moved == {"disease_heads.weight", "disease_heads.bias"}
    assert any(
        key.startswith("backbone") for key in joint if not torch.equal(joint[key], final[key])
    )


def test_run_again_it_is_trained_already(trained, capsys):
    before = {p: p.stat().st_mtime_ns for p in trained.checkpoints.rglob("*")}
    assert species(trained.data, trained.checkpoints) == 0
    assert "trained already" in capsys.readouterr().out
    assert disease(trained.data, trained.checkpoints) == 0
    assert capsys.readouterr().out.count("trained already") == 2
    assert before == {p: p.stat().st_mtime_ns for p in trained.checkpoints.rglob("*")}


def test_a_page_that_is_missing_is_made_and_fresh_deletes_an_old_one(trained, tmp_path, refused):
    shutil.copytree(trained.checkpoints, tmp_path / "c")
    page = tmp_path / "c" / "species_only" / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert species(trained.data, tmp_path / "c") == 0
    assert page.read_bytes() == before
    wild = ["--species-warmup-epochs", 0, "--species-finetune-lr", "1e30"]
    wild += ["--species-finetune-lr-end", "1e30", "--fresh"]
    refused("the loss is", species, trained.data, tmp_path / "c", *wild)
    assert not list(page.parent.glob("report.*")), "a run that failed has no report of another"


# endregion

# region killed

FEW = ["--species-final-epochs", "0"]


@pytest.fixture(scope="module")
def whole(organized, tmp_path_factory) -> Path:
    """A run never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert species(organized, folder, *FEW) == 0
    return folder / "species_only"


def test_killed_within_an_epoch_it_ends_the_same(organized, whole, tmp_path):
    """kill -9 as soon as a state within an epoch of A2 is there, wherever the process is by
    then.
    """
    log, often = tmp_path / "log", ("--save-minutes", "0.000001")
    process = warm.start(log, species, organized, tmp_path, *FEW, *often)
    last, limit = tmp_path / "species_only" / "last.pt", time.monotonic() + 60
    while time.monotonic() < limit and process.is_alive():
        if last.is_file():
            payload = torch.load(last, weights_only=True)
            if payload["epochs_done"] >= 1 and payload["step"] >= 1:
                break
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, log.read_text()[-2000:]
    assert not list((tmp_path / "species_only").glob("report.md"))
    assert species(organized, tmp_path, *FEW) == 0
    same_run(whole, tmp_path / "species_only")


def killed_after_the_best(*argv: object) -> None:
    """02a, killed where the best of epoch 2 is on disk and `last.pt` is still that of epoch 1."""
    real = Run.save_last

    def save_last(self: Run) -> None:
        if self.epochs_done == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self)

    Run.save_last = save_last
    species(*argv)


def test_killed_between_best_and_last_it_ends_the_same(organized, whole, tmp_path):
    log = tmp_path / "log"
    process = warm.start(log, killed_after_the_best, organized, tmp_path, *FEW)
    process.join()
    assert process.exitcode == -signal.SIGKILL, log.read_text()[-2000:]
    assert torch.load(tmp_path / "species_only" / "last.pt", weights_only=True)["epochs_done"] == 1
    assert species(organized, tmp_path, *FEW) == 0
    same_run(whole, tmp_path / "species_only")


class Stop(BaseException):
    pass


@pytest.mark.parametrize("epoch", [1, 4])
def test_stage_b_stopped_while_writing_ends_the_same(trained, tmp_path, monkeypatch, epoch):
    """Stopped in B1 and in B3, in the middle of writing a checkpoint."""
    shutil.copytree(trained.checkpoints / "species_only", tmp_path / "species_only")
    real, seen = checkpoint.save, []

    def save(path, payload):
        if path.name == "last.pt":
            seen.append(path)
            if len(seen) == epoch + 1:
                path.with_name(path.name + ".tmp").write_bytes(b"half")
                raise Stop
        real(path, payload)

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(Stop):
        disease(trained.data, tmp_path)
    monkeypatch.undo()
    assert disease(trained.data, tmp_path) == 0
    for name in ("disease_heads", "hierarchical_full"):
        for path in sorted((trained.checkpoints / name).glob("*.pt")):
            same(
                torch.load(path, weights_only=True),
                torch.load(tmp_path / name / path.name, weights_only=True),
                path.name,
            )


# endregion

# region mistakes


def test_other_settings_are_refused(trained, refused):
    before = {p: p.stat().st_mtime_ns for p in trained.checkpoints.rglob("*")}
    refused(
        ("other settings", "clip_norm", "--fresh"),
        species,
        trained.data,
        trained.checkpoints,
        "--clip-norm",
        2,
    )
    refused("seed", species, trained.data, trained.checkpoints, "--seed", 1)
    refused("joint_lr", disease, trained.data, trained.checkpoints, "--joint-lr", 0.01)
    assert before == {p: p.stat().st_mtime_ns for p in trained.checkpoints.rglob("*")}


def test_machine_flags_are_no_other_settings(trained, capsys):
    assert (
        species(
            trained.data,
            trained.checkpoints,
            "--device-batch",
            3,
            "--workers",
            1,
            "--save-minutes",
            1,
        )
        == 0
    )
    assert "trained already" in capsys.readouterr().out


def test_mistakes_of_02a_are_told_before_anything_is_written(organized, tmp_path, refused):
    out = tmp_path / "new"
    for words, flags in (
        (("recipe", "hierarchical"), ["--recipe", "demmo"]),
        ("no file", ["--weights", "none.pth"]),
        ("resnet999", ["--backbone", "resnet999"]),
        ("name=value", ["--backbone-args", "depth"]),
        ("--backbone", ["--backbone", "test_vit", "--image-size", "33"]),
        ("negative", ["--device-batch", -1]),
        ("--device", ["--device", "gpu"]),
        ("fp16", ["--precision", "fp16"]),
        ("--workers", ["--workers", -1]),
        ("not an organized data set", ["--data", tmp_path / "nothing"]),
    ):
        refused(words, species, organized, out, *flags)
        assert not out.exists(), flags
    with pytest.raises(SystemExit) as caught:
        species(organized, out, "--batchsize", 4)
    assert caught.value.code == 2
    assert not out.exists()


def test_a_misspelt_augmentation_level_is_told(organized, tmp_path, refused):
    refused(
        ("gentel", "gentle", "full"), species, organized, tmp_path / "new", "--augment", "gentel"
    )
    assert not (tmp_path / "new").exists()


def test_a_run_of_no_epochs_is_told(organized, tmp_path, refused):
    none = [
        "--species-warmup-epochs",
        0,
        "--species-finetune-epochs",
        0,
        "--species-final-epochs",
        0,
    ]
    refused("epochs", species, organized, tmp_path / "new", *none)


def test_a_loss_that_is_no_number_stops_before_it_is_saved(organized, tmp_path, refused):
    """A rate that explodes: the sentence comes, and no state with NaN is on disk, however often
    states are saved.
    """
    wild = [
        "--species-warmup-epochs",
        0,
        "--species-finetune-lr",
        "1e30",
        "--species-finetune-lr-end",
        "1e30",
        "--save-minutes",
        "0.000001",
        "--clip-norm",
        "1e30",
        "--weight-decay",
        "0",
    ]
    refused("the loss is", species, organized, tmp_path, *wild)
    for path in tmp_path.rglob("*.pt"):
        for key, value in torch.load(path, weights_only=True)["model"].items():
            assert torch.isfinite(value.float()).all(), f"{path.name} holds {key} with NaN"


def test_mistakes_of_02b(organized, trained, tmp_path, refused):
    refused("02a_train_species.py", disease, organized, tmp_path)
    best = checkpoint.find_best(trained.checkpoints / "species_only")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(best.read_bytes()[:5000])
    refused("cut.pt", disease, organized, tmp_path, "--species-checkpoint", cut)
    other = tmp_path / "other"
    shutil.copytree(organized, other)
    for name in ("manifest.csv", "species_index.json"):
        (other / name).write_text((other / name).read_text().replace("late_blight", "rust"))
    for split in ("train", "val", "test"):
        os.rename(other / split / "tomato" / "late_blight", other / split / "tomato" / "rust")
    refused(("another data set", "tomato/"), disease, other, trained.checkpoints)
    refused("--image-size", disease, organized, trained.checkpoints, "--image-size", 64)
    assert not (tmp_path / "disease_heads").exists()


def test_a_flat_set_has_no_stage_b(tmp_path, capsys):
    raw = tiny_data.make_raw(tmp_path / "raw", each=6)
    assert (
        run("01_reorganize", raw, "--output", tmp_path / "flat", "--levels", 1, "--workers", 1) == 0
    )
    assert species(tmp_path / "flat", tmp_path, *FEW, "--species-finetune-epochs", 1) == 0
    assert disease(tmp_path / "flat", tmp_path) == 0
    assert "no disease to train" in capsys.readouterr().out
    assert not (tmp_path / "disease_heads").exists()


# endregion
