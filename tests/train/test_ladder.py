"""tests/benchmarks/ladder.py: its splits, passes and table, on made-up photos and results."""

import argparse
import csv
import importlib
import json
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT

from common.classes import ClassTree
from common.train import recipes
from common.train.dataset import load_organized


@pytest.fixture
def part(monkeypatch):
    """Import a module of the benchmark."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    return importlib.import_module


def photos(classes=6, each=40):
    """Rows of a manifest: in every class every eighth photo is in the group of the one before."""
    rows = []
    for c, i in np.ndindex(classes, each):
        name = f"{c:02d}{i:04d}"
        group = f"{c:02d}{i - (i % 8 == 7):04d}"
        row = {"path": f"/photos/{name}.jpg", "species": f"plant{c // 2}", "disease": f"d{c % 2}"}
        row |= {"split": "train", "group": group, "width": "8", "height": "8"}
        rows.append(row | {"offset": "", "size": "1"})
    return rows


def test_a_split_keeps_groups_whole_and_classes_balanced(part):
    data, rows = part("ladder_data"), photos()
    splits = [data.split_rows(rows, seed) for seed in (0, 1)]
    assert (splits[0] != splits[1]).any()
    for split in splits:
        where = {(row["group"], s) for row, s in zip(rows, split, strict=True)}
        assert len(where) == len({group for group, _ in where})
        for c in range(6):
            counts = np.bincount(split[data.class_numbers(rows) == c], minlength=3)
            assert counts.tolist() == pytest.approx([28, 6, 6], abs=2)


def test_smaller_sets_are_within_larger_ones_and_test_is_the_same(part):
    data, rows = part("ladder_data"), photos()
    split, number = data.split_rows(rows, 0), data.class_numbers(rows)
    kept = {size: data.subset(rows, split, size, 0) for size in (1, 60, 120, 240, 999)}
    for size, places in kept.items():
        assert ((places == 2) == (split == 2)).all()
        assert np.isin(places - split, (0, *(-1 - np.arange(2)))).all()  # left out, or where it was
        assert set(number[places == 0]) == set(number[places == 1]) == set(range(6)), size
    for small, large in zip(kept.values(), list(kept.values())[1:], strict=False):
        assert (large[small >= 0] == small[small >= 0]).all()
    assert (kept[999] == split).all()
    counts = np.bincount(number[kept[120] == 0])
    assert counts.tolist() == [round(np.sum((number == c) & (split == 0)) / 2) for c in range(6)]


def test_a_cell_is_an_organized_folder_and_timms_folders_have_the_same_photos(part, tmp_path):
    data, rows = part("ladder_data"), photos()
    source = tmp_path / "organized"
    source.mkdir()
    tree = ClassTree.from_pairs((row["species"], row["disease"]) for row in rows)
    (source / "species_index.json").write_text(json.dumps(tree.to_json()))
    with (source / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(
            {**row, "split": "val" if i % 2 else "train"} for i, row in enumerate(rows)
        )
    rows = data.read_rows(source)
    kept = data.subset(rows, data.split_rows(rows, 0), 120, 0)
    data.write_cell(tmp_path / "cell", rows, kept, load_organized(source), linked=True)
    cell = load_organized(tmp_path / "cell")
    names = (tmp_path / "cell" / "timm" / "classes.txt").read_text().split()
    for k, (split, folder) in enumerate((("train", "train"), ("val", "validation"), ("test", ""))):
        ours = Counter(
            (cell.splits[split].path(i).name, int(cell.splits[split].class_idx[i]))
            for i in range(len(cell.splits[split]))
        )
        assert len(ours) == (kept == k).sum()
        if folder:
            links = (tmp_path / "cell" / "timm" / folder).glob("*/*.jpg")
            assert ours == Counter((p.readlink().name, names.index(p.parent.name)) for p in links)


@pytest.mark.parametrize("passes", [1, 6, 7, 15, 16, 61])
@pytest.mark.parametrize("name", ["two_core", "foliar", "hierarchical"])
def test_scaled_recipes_take_the_passes_that_are_asked_for(part, name, passes):
    scaled = part("ladder_contestants").scaled
    flags = dict(flag[2:].replace("-", "_").split("=") for flag in scaled(name, passes))
    views = int(flags.pop("cached_views"))
    epochs = {key: int(value) for key, value in flags.items()}
    own = {key: getattr(recipes.get(name), key) for key in epochs}
    assert sum(epochs.values()) == max(passes, sum(n > 0 for n in own.values()))
    assert [n > 0 for n in epochs.values()] == [n > 0 for n in own.values()]
    assert views <= min(epochs["species_warmup_epochs"], epochs["disease_heads_epochs"])
    if passes == 16 and name == "two_core":
        assert epochs == own


def result(both, macro_f1, minutes=2.0, passes=10, tried=1):
    row = {"both": both, "macro_f1": macro_f1, "minutes": minutes, "passes": passes}
    row |= {"species": 1.0, "few_f1": 0.5, "ece": 0.1, "nll": 0.25, "tried": tried}
    return row | {"train": 70, "val": 15, "judged": 15}


def ladder_args(**changed):
    args = {"contestants": {"auto": "--recipe auto", "foliar": "--recipe foliar"}}
    args |= {"contestants": args["contestants"] | {"probe": "probe", "flat": "timm"}}
    args |= {"only": ["auto", "foliar", "probe", "flat"], "seeds": [0, 1], "sizes": [500]}
    args |= {"equal": ["passes", "time"], "reference": "auto", "passes": 0, "judge": "test"}
    return argparse.Namespace(**args | {"backbone": "net", "image_size": 64} | changed)


def test_the_table_has_means_spreads_and_the_lead_over_the_best_other(part):
    ladder = part("ladder")
    done = {
        ladder.Task(seed, 500, name): result(*figures)
        for seed, name, figures in [
            (0, "auto", (0.90, 0.8)), (1, "auto", (0.94, 0.9)),
            (0, "foliar", (0.89, 0.7)), (1, "foliar", (0.91, 0.8)),
            (0, "probe", (0.50, 0.85)), (1, "probe", (0.60, 0.85)),
        ]
    }  # fmt: skip
    done[ladder.Task(0, 500, "flat")] = {"error": "exit code 2: it broke"}
    done[ladder.Task(0, 500, "foliar", "time")] = result(0.95, 0.7)
    text = ladder.report(done, ladder_args())
    passes, time = text.split("equal time", 1)
    assert "| auto       | 100.0 (0.0) | 92.0 (2.8) | 85.0 (7.1) |" in passes
    assert "both right: auto minus the best other (foliar): +2.0 (1.4)" in passes
    assert "macro F1: auto minus the best other (probe): +0.0 (7.1)" in passes
    assert "both right: auto minus the best other (foliar): -5.0" in time
    assert "| probe " in time, "equal time changes nothing for it"
    assert text.endswith("failed: flat, 500 photos, seed 0, equal passes: exit code 2: it broke")


def test_passes_follow_the_reference_and_equal_time_the_seconds_a_pass(part):
    ladder, args = part("ladder"), ladder_args()
    auto, flat = ladder.Task(0, 500, "auto"), ladder.Task(0, 500, "flat")
    done = {auto: result(1, 1, minutes=6.0, passes=20)}
    done[flat] = result(1, 1, minutes=30.0, passes=20, tried=3)  # half a minute a pass
    assert ladder.passes_of(auto, args, done) == 0, "its own"
    assert ladder.passes_of(flat, args, done) == 20
    assert ladder.passes_of(ladder.Task(0, 500, "flat", "time"), args, done) == 12
    args.passes = 7
    assert ladder.passes_of(flat, args, {}) == 7


def test_passes_of_a_run_are_its_epochs_and_the_views_of_stored_features(part, tmp_path):
    for folder, views, rates in (
        ("species_only", 2, [0] * 5 + [1] * 3),
        ("disease_heads", 0, [0] * 4),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(f'{{"cached_views": {{"value": {views}}}}}')
        lines = [json.dumps({"phase": f"A{rate}", "backbone_lr": rate}) for rate in rates]
        (tmp_path / folder / "log.jsonl").write_text("\n".join(lines))
    assert part("ladder_contestants").passes_taken(tmp_path) == 2 + 3 + 4


def test_a_contestant_is_judged_at_its_own_size(part, data):
    args = argparse.Namespace(image_size=64, workers=0)
    batches = part("ladder_contestants").batches
    assert next(iter(batches(args, data, "val")))[0].shape[1:] == (64, 64, 3)
    assert next(iter(batches(args, data, "val", 32)))[0].shape[1:] == (32, 32, 3)


@pytest.mark.parametrize("text", ["mixed", "mixed=", "mixed=--recipes auto"])
def test_an_odd_contestant_is_told(part, monkeypatch, refused, text):
    monkeypatch.setattr("sys.argv", ["ladder.py", "--weights", "x", "--contestant", text])
    refused("must begin with one of --recipe", part("ladder").parse)
