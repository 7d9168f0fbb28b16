"""Recipe auto: the rule, what flags change in it, its time, and a run that goes on."""

import argparse
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny_data
import torch
from conftest import run

from common.train import auto, checkpoint, recipe_flags, recipes
from common.train.machine import set_up
from common.train.model import SwinHierarchical

MOST = auto.PASSES[0][1]  # passes over few photos
SMALL = {"backbone": "test_resnet"}  # a small convolutional network; test_vit is a transformer


def sizes(photos: int, classes: int = 50) -> np.ndarray:
    return np.bincount(np.arange(photos) % classes, minlength=classes)


def rule(photos: int, device: str = "cpu", **given) -> recipes.Recipe:
    return auto.resolve(sizes(photos), 15, device, SMALL | given)[0]


# region the rule


def test_more_photos_get_fewer_passes_and_more_augmentation():
    found = [
        rule(photos, "cuda", backbone="resnet26.bt_in1k")
        for photos in (350, 2_800, 100_000, 1_470_000)
    ]
    assert [r.joint_epochs for r in found] == [60, 60, 50, 7]
    assert [r.batch_size for r in found] == [32, 32, 256, 256]
    assert [r.ema_decay for r in found] == [0.99, 0.999, 0.999, 0.999]
    assert [r.augment for r in found] == ["gentle", "gentle", "full", "full"]
    assert [(r.mix_share, r.randaugment_ops) for r in found] == [(0, 0), (0, 0), (0.5, 2), (0.5, 2)]
    assert [r.cached_views for r in found] == [2, 2, 1, 1]
    for r in found:
        assert (r.tail, r.loss, r.average_with_heads) == (
            "balanced_softmax",
            "cross_entropy",
            "yes",
        )
        assert {p.name[:2] for p in recipes.species_phases(r)} == {"A1"}
        assert [p.frozen for p in recipes.disease_phases(r) + recipes.joint_phases(r)] == [
            True,
            False,
        ]
        assert 2 <= r.species_warmup_epochs == r.disease_heads_epochs <= 30


def test_passes_fall_between_the_known_points():
    passes = [auto.passes_of(photos) for photos in np.geomspace(100, 5_000_000, 40).astype(int)]
    assert passes == sorted(passes, reverse=True)
    assert (passes[0], passes[-1]) == (auto.PASSES[0][1], auto.PASSES[-1][1])


def test_rates_follow_the_kind_of_network_and_the_batch():
    assert auto.look_at("test_resnet", "")[1] == auto.SMALL
    assert auto.look_at("resnet50", "")[1] == auto.CONVOLUTIONAL
    assert auto.look_at("test_vit", "")[1] == auto.ATTENTION
    assert auto.look_at("convnext_atto", "")[1] == auto.ATTENTION
    assert auto.look_at("hf-hub:someone/something", "")[1] == auto.ATTENTION
    conv, vit = rule(2_800), rule(2_800, backbone="test_vit")
    lr, batch, _ = auto.KINDS[auto.SMALL]
    assert conv.joint_lr == pytest.approx(lr * math.sqrt(conv.batch_size / batch), rel=0.05)
    assert vit.joint_lr < conv.joint_lr
    assert rule(2_800, batch_size=4 * batch).joint_lr == pytest.approx(2 * lr, rel=0.05)


def test_the_backbone_follows_the_device_and_says_what_else_there_is():
    for device, kind in (("cpu", "a CPU"), ("cuda", "a GPU"), ("mps", "a GPU")):
        recipe, why = auto.resolve(sizes(500), 15, device, {})
        first, *others = auto.BACKBONES[kind]
        assert recipe.backbone == first
        assert all(other in why["backbone"] for other in others)
    assert rule(500, "cpu").image_size == auto.CPU_SIDE
    assert rule(500, "cuda").image_size == 160, "what test_resnet's weights were trained at"
    assert rule(500, "cpu", backbone="vit_small_patch16_224").image_size == 224


def test_every_backbone_of_the_table_exists():
    for name in {name for names in auto.BACKBONES.values() for name in names}:
        recipe_flags.require_backbone(name)


def test_classes_of_one_level_are_learned_in_stage_a():
    recipe, why = auto.resolve(sizes(2_800), 50, "cpu", SMALL)
    assert recipe.classes == "flat"
    assert why["classes"] == "50 species, 50 classes"
    assert [p.name[:2] for p in recipes.species_phases(recipe)] == ["A1", "A2"]
    assert recipe.species_finetune_epochs == MOST
    assert recipes.joint_phases(recipe) == []
    told = auto.resolve(sizes(2_800), 50, "cpu", SMALL | {"classes": "hierarchical"})[0]
    assert (told.species_finetune_epochs, told.joint_epochs) == (MOST, 0), "02b would train nothing"
    assert told.average_with_heads == "no"
    one = auto.resolve(sizes(2_800), 1, "cpu", SMALL)[0]
    assert one.species_warmup_epochs == 1, "a head of one species has nothing to learn"


def test_every_setting_of_the_rule_has_a_reason():
    recipe, why = auto.resolve(sizes(2_800), 15, "cpu", SMALL)
    changed = {n for n, v in vars(recipe).items() if v != getattr(recipes.BASE, n)} - {"source"}
    assert changed <= why.keys()
    shown = recipe_flags.describe(
        "auto", replace(recipe, joint_epochs=3), {"joint_epochs": 60}, why
    )
    (line,) = [line for line in shown.splitlines() if line.startswith("  joint_epochs ")]
    assert line.endswith("3                                        <- was 60")
    assert shown.count("<- ") == len(why)


def test_odd_flags_are_told(data, refused):
    for flag, value in (("--batch-size", "0"), ("--augment", "gentel"), ("--backbone", "resnet5O")):
        refused(flag, auto.choose, arguments(flag, value), data)


# endregion

# region the time


def test_what_the_passes_and_all_else_cost():
    recipe = replace(rule(3_200), cached_views=2, average_with_heads="no")
    pace = auto.Pace(step=0.5, val=6.0)  # val has 600 photos: 10 ms a photo
    # a pass is 100 steps and val; in each script two views of 3,200 photos, the heads' epochs and
    # two times val; and val once more at the end
    heads = 2 * recipe.disease_heads_epochs * auto.HEADS_SHARE * 50
    once = 2 * (2 * 32 + 2 * 6) + 6 + heads
    assert auto.costs(pace, recipe, 3_200, 600) == pytest.approx((once, 56))
    averaged = replace(recipe, average_with_heads="yes")
    more = 6 + len(auto.SHARES) * (6 + auto.PICTURES * 0.01)
    assert auto.costs(pace, averaged, 3_200, 600)[0] == pytest.approx(once + more)
    flat = auto.costs(pace, replace(recipe, classes="flat"), 3_200, 600)[0]
    assert flat == pytest.approx(2 * 32 + 3 * 6 + heads / 2)
    assert auto.costs(pace, recipe, 5, 600)[1] == 0.5 + 6, "at least one step"
    epochs = recipe.disease_heads_epochs
    anew = auto.costs(pace, replace(recipe, cached_views=0), 3_200, 600)[0]
    assert anew - once == pytest.approx(2 * (epochs - 2) * 32), "the network sees every epoch"


def test_a_typical_step_counts_bursts_and_no_disturbance():
    bursts = [0.01, 0.01, 0.01, 0.37] * 9  # four workers that deliver at once
    assert auto.typical(bursts) == pytest.approx(0.1)
    assert auto.typical([*bursts, 60.0]) == pytest.approx(0.1, rel=0.1)
    assert auto.typical([0.5]) == 0.5


def arguments(*flags: str) -> argparse.Namespace:
    import importlib

    return importlib.import_module("02a_train_species").parse([*flags])


def test_the_time_limit(data, monkeypatch, refused):
    assert auto.time_limit(arguments("--device", "cpu"), data) == auto.CPU_MINUTES
    assert auto.time_limit(arguments("--device", "cpu", "--minutes", "7"), data) == 7
    assert auto.time_limit(arguments("--joint-epochs", "3"), data) is None
    assert auto.time_limit(arguments("--recipe", "demo"), data) is None
    monkeypatch.setattr(auto, "CPU_PHOTOS", len(data.splits["train"]) / 3)
    assert auto.time_limit(arguments("--device", "cpu"), data) == pytest.approx(90)
    for flags, word in (
        (("--recipe", "demo"), "--recipe demo"),
        (("--joint-epochs", "3"), "epochs"),
        (("--species-final-epochs", "3"), "epochs"),
        (("--review-labels",), "--review-labels"),
    ):
        refused(word, auto.time_limit, arguments("--minutes", "5", *flags), data)
    for odd in ("0", "-3", "nan", "inf"):
        refused("--minutes", auto.time_limit, arguments("--minutes", odd), data)


def test_the_time_decides_how_many_passes(data, tmp_path, capfd, monkeypatch):
    args = arguments(
        *("--checkpoints", str(tmp_path), "--backbone", "test_resnet", "--image-size", "32"),
        *("--workers", "0", "--device", "cpu", "--precision", "fp32"),
    )
    recipe, overridden, _ = auto.choose(args, data)
    setup = set_up(args, data, recipe, "auto", overridden)
    model = SwinHierarchical("test_resnet", data.tree, image_size=32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pace = auto.measure(setup, model)
    assert min(pace) > 0
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(auto, "measure", lambda *_: auto.Pace(1.0, 1.0))
    once, each = auto.costs(auto.Pace(1.0, 1.0), recipe, 50, len(data.splits["val"]))

    def passes(seconds: float) -> tuple[int, str]:
        minutes = seconds / 60 / auto.RESERVE
        return auto.passes_that_fit(setup, model, minutes, lambda: 100.0), capfd.readouterr()

    found, told = passes(100 + once + 20.5 * each)
    assert found == 20
    assert f"20 of {MOST} fit" in told.out
    assert f"--minutes {math.ceil((100 + once + MOST * each) / auto.RESERVE / 60)}" in told.out
    assert "few" not in told.err
    found, told = passes(100 + once + 4.5 * each)
    assert found == 4
    assert "few passes (4)" in told.err
    found, told = passes(1.0)
    assert found == 1
    assert f"0 of {MOST} fit" in told.out
    found, told = passes(1e6)
    assert found > MOST
    assert f"all {MOST} fit" in told.out
    few, _, why = auto.choose(args, data, 4)
    assert few.joint_epochs == 4
    assert why["joint_epochs"] == f"what the time allows, of {MOST}"
    assert (few.cached_views, recipe.cached_views) == (1, auto.VIEWS)


# endregion

# region a run


@pytest.fixture(scope="module")
def begun(organized, tmp_path_factory):
    """02a after auto has resolved, of two passes."""
    checkpoints = tmp_path_factory.mktemp("auto") / "checkpoints"
    flags = ["--data", organized, "--checkpoints", checkpoints, "--weights", "none"]
    flags += ["--backbone", "test_resnet", "--image-size", "32", *tiny_data.TRAIN]
    flags += ["--species-warmup-epochs", 1, "--disease-heads-epochs", 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "passes_that_fit", lambda *_: 2)
        assert run("02a_train_species", *flags) == 0
    return flags


def test_a_run_that_goes_on_keeps_what_was_resolved(begun, monkeypatch, capfd, refused):
    folder = begun[3] / "species_only"
    saved = checkpoint.load(folder / "last.pt")
    assert saved["identity"]["recipe"] == "auto"
    assert saved["recipe"]["joint_epochs"] == 2
    config = json.loads((folder / "config.json").read_text())
    assert config["batch_size"] == {"value": 32, "from": "recipe auto"}
    assert config["backbone"]["from"] == "flag"
    monkeypatch.setattr(auto, "PASSES", ((1, 1), (2, 1)))  # another rule, and no time to measure
    monkeypatch.setattr(auto, "passes_that_fit", None)
    capfd.readouterr()
    assert run("02a_train_species", *begun) == 0
    assert "trained already" in capfd.readouterr().out
    refused(("joint_epochs", "--fresh"), run, "02a_train_species", *begun, "--joint-epochs", 3)
    refused(("minutes is 5.0", "--fresh"), run, "02a_train_species", *begun, "--minutes", 5)
    fewer = begun[:-2]
    refused(("flags is", "--fresh"), run, "02a_train_species", *fewer)
    refused("leave --recipe out", run, "02b_train_disease", *begun[:4], "--recipe", "auto")


def test_stage_b_inherits_it_and_averages(begun, capfd):
    assert run("02b_train_disease", *begun[:4], *tiny_data.TRAIN) == 0
    full = begun[3] / "hierarchical_full"
    best = checkpoint.load(checkpoint.find_best(full))
    assert len((full / "log.jsonl").read_text().splitlines()) == 2
    assert 0.5 <= best["metrics"]["average_share"] <= 1
    assert best["ema"] is None
    told = capfd.readouterr().out
    assert told.count("weights after the heads' phase") == 1
    assert run("02b_train_disease", *begun[:4], *tiny_data.TRAIN) == 0
    assert "weights after the heads' phase" not in capfd.readouterr().out, "once is enough"


# endregion
