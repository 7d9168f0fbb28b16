"""The whole line as a person types it: raw folders in, predictions out, each stage a command that
reads only files."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_data
from conftest import ROOT


def command(*argv: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(a) for a in argv], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def stage(script: str, *flags: object) -> str:
    done = command(sys.executable, script, *flags)
    assert done.returncode == 0, f"{script} {flags}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_raw_photos_to_predictions(tmp_path):
    raw, things = (
        tiny_data.make_raw(tmp_path / "raw", each=8),
        tiny_data.make_strangers(tmp_path / "things"),
    )
    data, checkpoints, exports = (
        tmp_path / "data" / "organized",
        tmp_path / "checkpoints",
        tmp_path / "exports",
    )
    told = stage("01_reorganize.py", raw, "--not-plants", things, "--output", data, "--workers", 2)
    assert "next: python 02a_train_species.py" in told
    species = [
        *tiny_data.SPECIES,
        "--species-finetune-epochs",
        1,
        "--species-final-epochs",
        0,
        "--workers",
        2,
    ]
    told = stage("02a_train_species.py", "--data", data, "--checkpoints", checkpoints, *species)
    assert "next: python 02b_train_disease.py" in told
    disease = [*tiny_data.DISEASE, "--disease-boost-epochs", 0, "--joint-epochs", 1]
    told = stage("02b_train_disease.py", "--data", data, "--checkpoints", checkpoints, *disease)
    assert "next: python 03_export.py" in told
    told = stage("03_export.py", "--data", data, "--checkpoints", checkpoints, "--output", exports)
    assert "next: python 04_serve.py" in told and "species top-1" in told
    photos = sorted((data / "test").rglob("*.jpg"))
    predictions = tmp_path / "predictions.csv"
    stage(
        "04_serve.py",
        "--exports",
        exports,
        "--predict",
        data / "test",
        raw / "corn healthy",
        "--output",
        predictions,
    )
    with predictions.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(photos) + 8
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoints",
        "data",
        "exports",
        "predictions.csv",
        "raw",
        "things",
    ]


def test_run_all_shows_its_commands(tmp_path):
    """--dry-run names every stage with flags that the scripts know, and runs nothing."""
    raw = tiny_data.make_raw(tmp_path / "raw", each=1)
    done = command(
        "bash",
        ROOT / "run_all.sh",
        raw,
        "--work",
        tmp_path / "work",
        "--recipe",
        "two_core",
        "--dry-run",
        "--organize",
        "--near 4",
        "--train",
        "--seed 3",
        "--not-plants",
        raw / "corn healthy",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = [line[2:] for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert [line.split()[1] for line in lines] == [
        "01_reorganize.py",
        "02a_train_species.py",
        "02b_train_disease.py",
        "02a_train_species.py",
        "02b_train_disease.py",
        "03_export.py",
        "04_serve.py",
    ]
    assert (
        "--recipe light_two_core" in lines[3]
        and "--weights auto" in lines[3]
        and all("--teacher" in line for line in lines[3:5])
    )
    assert "checkpoints/light" in lines[4] and "--browser" in lines[5]
    plain = command(
        "bash",
        ROOT / "run_all.sh",
        raw,
        "--work",
        tmp_path / "work",
        "--no-browser",
        "--dry-run",
        cwd=tmp_path,
    )
    assert "light" not in plain.stdout and "--browser" not in plain.stdout
    assert (
        "--near 4" in lines[0]
        and "--not-plants" in lines[0]
        and "--seed 3" in lines[1]
        and "--seed 3" in lines[2]
    )
    assert "--recipe two_core" in lines[1] and "--recipe" not in lines[2]
    assert not list((tmp_path / "work").rglob("*")) if (tmp_path / "work").exists() else True


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--recip", "demo"], "unknown flag"),
        (["--work"], "needs a value"),
        (["nowhere"], "no folder nowhere"),
        (["--not-plants", "nowhere", "--dry-run"], "nowhere"),
    ],
)
def test_mistakes_of_run_all(argv, words, tmp_path):
    done = command("bash", ROOT / "run_all.sh", *argv, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and words in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_run_all_helps(tmp_path):
    done = command("bash", ROOT / "run_all.sh", "--help", cwd=tmp_path)
    assert done.returncode == 0 and all(
        flag in done.stdout for flag in ("--work", "--recipe", "--weights", "--dry-run", "test")
    )
    assert os.access(ROOT / "run_all.sh", os.X_OK)
