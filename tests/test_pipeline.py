"""The pipeline as a person types it: raw folders in, predictions out, each stage a command that
reads only files.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_data
import traced
from conftest import ROOT, run


def command(*argv: object, cwd: Path = ROOT, **more: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(a) for a in argv], cwd=cwd, capture_output=True, text=True, timeout=120, **more
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.smoke
def test_photos_to_a_trained_model_and_a_bundle_to_answers(trained, exports, tmp_path):
    """01, 02a and 02b ran for the fixture; 04 answers its photos with the model of `tiny_bundle`.

    03 is left to the next test: torch takes most of a smoke run's time to export any model.
    """
    best = [*trained.checkpoints.glob("hierarchical_full/*-best.pt")]
    assert len(best) == 1
    photos, predictions = trained.data / "val", tmp_path / "predictions.csv"
    flags = ["--exports", exports, "--predict", photos, "--output", predictions]
    assert run("04_serve", *flags) == 0
    assert len(rows_of(predictions)) == len(list(photos.rglob("*.jpg"))) > 0


def test_the_pipeline_in_one_process(exported, tmp_path):
    """01 to 03 ran for the fixture; 04 answers every test photo."""
    photos, predictions = exported.data / "test", tmp_path / "predictions.csv"
    assert (
        run("04_serve", "--exports", exported.exports, "--predict", photos, "--output", predictions)
        == 0
    )
    rows = rows_of(predictions)
    assert len(rows) == len(list(photos.rglob("*.jpg")))
    assert {row["decision"] for row in rows} <= {"answered", "rolled_up", "rejected"}
    report = json.loads((exported.exports / "report.json").read_text(encoding="utf-8"))
    assert report["test"]["n"] == len(rows)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory) -> SimpleNamespace:
    """Raw photos to predictions, and 04's trial, each stage a command in `.work`, with an empty
    `.home`: `.told` is what each said, `.traces` what strace saw where it may trace.
    """
    folder = tmp_path_factory.mktemp("by_hand")
    work, home = folder / "work", folder / "home"
    found = SimpleNamespace(work=work, home=home, told={}, traces=[])
    environment, may_trace = traced.without_settings(home), traced.may_trace()

    def stage(*argv: object) -> None:
        log = folder / "strace"
        words = traced.words(log) if may_trace else []
        done = command(*words, sys.executable, *argv, env=environment)
        assert done.returncode == 0, f"{argv}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        found.told[str(argv[0])] = done.stdout
        if may_trace:
            found.traces.append(traced.read(log, ROOT))

    raw = tiny_data.make_raw(work / "raw", each=8)
    things = tiny_data.make_strangers(work / "things")
    data, checkpoints = work / "data" / "organized", work / "checkpoints"
    where, exports = ["--data", data, "--checkpoints", checkpoints], work / "exports"
    stage("01_reorganize.py", raw, "--not-plants", things, "--output", data, "--workers", 2)
    short = ["--species-finetune-epochs", 1, "--species-final-epochs", 0, "--workers", 2]
    stage("02a_train_species.py", *where, *tiny_data.SPECIES, *short)
    short = ["--disease-boost-epochs", 0, "--joint-epochs", 1]
    stage("02b_train_disease.py", *where, *tiny_data.DISEASE, *short)
    stage("03_export.py", *where, "--output", exports)
    predict = ["--predict", data / "test", raw / "corn healthy"]
    output = ["--output", work / "predictions.csv"]
    stage("04_serve.py", "--exports", exports, *predict, *output)
    stage("-m", "common.serve.trial", "--exports", exports, "--data", data)
    return found


def test_raw_photos_to_predictions(by_hand):
    work, told = by_hand.work, list(by_hand.told.values())
    following = ["02a_train_species.py", "02b_train_disease.py", "03_export.py", "04_serve.py"]
    for text, script in zip(told, following, strict=False):
        assert f"next: python {script}" in text
    assert "species top-1" in by_hand.told["03_export.py"]
    photos = list((work / "data" / "organized" / "test").rglob("*.jpg"))
    assert len(rows_of(work / "predictions.csv")) == len(photos) + 8
    written = {"checkpoints", "data", "exports", "predictions.csv"}
    assert {path.name for path in work.iterdir()} == {"raw", "things", *written}


@pytest.mark.skipif(not traced.may_trace(), reason="strace may not trace here")
def test_the_stages_and_the_server_ask_nobody_and_write_into_their_folders(by_hand):
    work, home = by_hand.work, by_hand.home
    assert [found.asked for found in by_hand.traces] == [frozenset()] * 6
    assert by_hand.traces[-1].local >= 2, "the trial's two questions to its server"
    written = set[Path]().union(*(found.written for found in by_hand.traces))
    assert work / "exports.partial" / "model.onnx" in written
    # matplotlib's list of fonts, which would take seconds in each run
    kept = [home / ".cache" / "matplotlib", home / ".config" / "matplotlib"]
    outside = {
        path for found in by_hand.traces for path in found.outside(work, home / "tmp", *kept)
    }
    assert outside <= {home / ".cache", home / ".config"}


def test_run_all_shows_its_commands(tmp_path):
    """--dry-run names every stage with flags that the scripts know, and runs nothing."""
    raw = tiny_data.make_raw(tmp_path / "raw", each=1)
    asked = [raw, "--work", tmp_path / "work", "--dry-run"]
    flags = ["--recipe", "two_core", "--organize", "--near 4", "--train", "--seed 3"]
    done = command(
        "bash",
        ROOT / "run_all.sh",
        *asked,
        *flags,
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
    organize, species, disease, light_species, light_disease, export, _ = lines
    assert "--near 4" in organize
    assert "--not-plants" in organize
    assert "--seed 3" in species
    assert "--seed 3" in disease
    assert "--recipe two_core" in species
    assert "--recipe" not in disease
    assert "--recipe light_two_core" in light_species
    assert "--weights auto" in light_species
    assert "--teacher" in light_species
    assert "--teacher" in light_disease
    assert "checkpoints/light" in light_disease
    assert "--browser" in export
    plain = command(
        "bash", ROOT / "run_all.sh", *asked, "--no-browser", "--minutes", "9", cwd=tmp_path
    )
    assert plain.returncode == 0, plain.stderr
    assert "--recipe auto --weights auto --minutes 9" in plain.stdout
    assert plain.stdout.count("--minutes") == 1, "02b goes on with what 02a resolved"
    assert "03_export.py" in plain.stdout
    assert "light" not in plain.stdout
    assert "--browser" not in plain.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--recip", "demo"], "unknown flag"),
        (["--work"], "needs a value"),
        (["nowhere"], "no folder nowhere"),
        (["--not-plants", "nowhere", "--dry-run"], "nowhere"),
        (["--minutes", "9", "--dry-run"], "not for demo"),
    ],
)
def test_mistakes_of_run_all(argv, words, tmp_path):
    done = command("bash", ROOT / "run_all.sh", *argv, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.smoke
def test_run_all_helps(tmp_path):
    done = command("bash", ROOT / "run_all.sh", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for flag in ("--work", "--recipe", "--weights", "--dry-run", "test"):
        assert flag in done.stdout
    assert "pipefail" not in done.stdout, "the text, and not the code below it"
    assert os.access(ROOT / "run_all.sh", os.X_OK)
