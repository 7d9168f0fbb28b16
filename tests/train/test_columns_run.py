"""Every protocol's column runs by name, at tiny size: flat ones on hierarchical and on flat data,
and through to an export.
"""

import json

import pytest
import tiny_data
from conftest import run

from common.train import checkpoint, recipes

SMALL = [
    "--weights",
    "none",
    "--backbone",
    "test_resnet",
    "--backbone-args",
    "",
    "--image-size",
    "32",
    "--batch-size",
    "8",
    "--drop-path",
    "0.1",
    "--cached-views",
    "2",
    "--species-warmup-epochs",
    "1",
    "--species-finetune-epochs",
    "1",
    "--species-final-epochs",
    "1",
    *tiny_data.TRAIN,
]
FLAT = [name for name in recipes.COLUMNS if recipes.get(name).classes == "flat"]


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", FLAT)
def test_a_flat_column_learns_all_classes_of_hierarchical_data(organized, tmp_path, name):
    assert (
        run(
            "02a_train_species",
            "--recipe",
            name,
            "--data",
            organized,
            "--checkpoints",
            tmp_path,
            *SMALL,
        )
        == 0
    )
    payload = checkpoint.load(checkpoint.find_best(tmp_path / "species_only"))
    model = checkpoint.build_model(payload)
    assert model.flat
    assert model.species_head is None
    assert payload["recipe"]["source"] == recipes.get(name).source
    rows = rows_of(tmp_path / "species_only")
    assert [row["phase"][:2] for row in rows] == ["A1", "A2", "A3"]
    assert all(row["train_loss"] > 0 for row in rows)


@pytest.mark.parametrize("name", ["hierarchical", "foliar", "two_core", "light"])
def test_a_hierarchical_column_runs_both_stages(organized, tmp_path, capfd, name):
    where = ["--data", organized, "--checkpoints", tmp_path]
    assert run("02a_train_species", "--recipe", name, *where, *SMALL) == 0
    disease = [
        "--disease-heads-epochs",
        "1",
        "--disease-boost-epochs",
        "1",
        "--joint-epochs",
        "1",
        *tiny_data.TRAIN,
    ]
    assert run("02b_train_disease", *where, *disease) == 0
    assert (
        checkpoint.load(checkpoint.find_best(tmp_path / "hierarchical_full"))["identity"]["recipe"]
        == name
    )
    assert "cached features: 2 views" in capfd.readouterr().out
    assert not (tmp_path / "disease_heads" / "features").exists()


def test_a_flat_column_on_flat_data_goes_through_to_an_export(tmp_path, capsys):
    raw = tiny_data.make_raw(tmp_path / "raw")
    data, runs = tmp_path / "organized", tmp_path / "checkpoints"
    assert run("01_reorganize", raw, "--levels", 1, "--output", data, "--workers", 1) == 0
    assert (
        run(
            "02a_train_species",
            "--recipe",
            "three_stage",
            "--data",
            data,
            "--checkpoints",
            runs,
            *SMALL,
        )
        == 0
    )
    assert run("02b_train_disease", "--data", data, "--checkpoints", runs, *tiny_data.TRAIN) == 0
    assert "there is no disease to train" in capsys.readouterr().out
    assert (
        run(
            "03_export",
            "--data",
            data,
            "--checkpoints",
            runs,
            "--output",
            tmp_path / "exports",
            "--workers",
            0,
        )
        == 0
    )
    report = json.loads((tmp_path / "exports" / "report.json").read_text())
    assert report["test"]["top1_agreement"] >= 0.99
    assert report["data"]["classes"] == 7
