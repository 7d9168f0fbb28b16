"""The recipe tables: the checks on them, and the flags and phases made from them (published
numbers: test_protocols.py).
"""

import argparse
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from common.train import protocols, recipe_flags, recipes
from common.train.augment_levels import LEVELS
from common.train.protocols import BASE, FAMILIES, RECIPES, Protocol

ROOT = Path(__file__).resolve().parents[2]


def flags(*argv: str, default: str | None = "demo") -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    recipe_flags.add_flags(parser, default)
    return parser.parse_args(list(argv))


def test_augmentation_ranges_are_as_published():
    full = LEVELS["full"]
    assert (full.crop_area, full.crop_ratio, full.flip_p) == ((0.6, 1.0), (0.75, 1.33), 0.5)
    assert (full.rotate_degrees, full.rotate_p) == (45.0, 0.5)
    assert (full.jitter_p, full.brightness, full.contrast, full.saturation, full.hue) == (
        0.8,
        0.3,
        0.3,
        0.3,
        0.1,
    )
    assert (full.exposure_p, full.exposure_brightness, full.exposure_contrast) == (0.5, 0.2, 0.2)
    assert (full.blur_kernels, full.noise_variance) == ((3, 5, 7), (10.0, 50.0))
    assert (full.iso_colour_shift, full.iso_intensity) == ((0.01, 0.05), (0.1, 0.3))
    assert (full.jpeg_p, full.jpeg_quality, full.shadow_p, full.grey_p) == (
        0.2,
        (60, 95),
        0.15,
        0.05,
    )


def test_every_recipe_is_in_one_table_and_what_it_states_is_a_setting():
    names = {f.name for f in fields(recipes.Recipe)}
    shown = [name for columns in FAMILIES.values() for name in columns]
    assert shown == list(RECIPES) == list(recipes.COLUMNS)
    assert len(shown) == 15
    assert RECIPES["hierarchical"] == Protocol(BASE, RECIPES["hierarchical"].stated)
    for name, protocol in RECIPES.items():
        assert protocol.stated <= names - {"source"}, name
        hidden = recipes.without_effect(protocol.recipe) & protocol.stated
        assert not hidden or protocol.recipe.source.startswith("ours"), (name, hidden)


def test_a_setting_of_a_wrong_name_fails_where_it_stands():
    with pytest.raises(TypeError, match="join_epochs"):
        protocols._variant("ours", join_epochs=3)
    with pytest.raises(TypeError, match="join_epochs"):
        protocols._protocol("a paper", {"join_epochs": 3})


def test_every_cell_has_the_type_of_its_row():
    for name in recipes.COLUMNS:
        recipe = recipes.get(name)
        for f in fields(recipe):
            kind = f.type
            assert type(getattr(recipe, f.name)) is kind, (name, f.name)
        assert recipe_flags.from_flags(flags("--recipe", name)) == (recipe, {}), (
            "every column passes the checks of the flags"
        )


def test_a_setting_without_effect_comes_from_hierarchical():
    flat, base = recipes.get("camera_trap_swin"), recipes.get("hierarchical")
    assert (flat.joint_epochs, flat.rare_weight, flat.focal_gamma) == (
        base.joint_epochs,
        base.rare_weight,
        base.focal_gamma,
    )
    both = recipe_flags.from_flags(
        flags("--recipe", "camera_trap_swin", "--classes", "hierarchical")
    )[0]
    assert len(recipes.disease_phases(both)) == 2
    assert recipes.joint_phases(both)[0].epochs == 10
    assert recipes.disease_phases(flat) == recipes.joint_phases(flat) == []


def test_mistakes_are_told(refused):
    refused(
        ("heirarchical", "Did you mean `hierarchical`?", "auto", *recipes.COLUMNS),
        recipes.get,
        "heirarchical",
    )
    refused(("auto", "leave --recipe out"), recipes.get, "auto")
    refused(
        ("--best-by", "Did you mean `macro_f1`?", "cascade_top1"),
        recipe_flags.from_flags,
        flags("--best-by", "macro_f"),
    )
    refused(("--loss", "cross_entropy"), recipe_flags.from_flags, flags("--loss", "cross_entropi"))
    refused(
        ("--tail", "balanced_softmax"), recipe_flags.from_flags, flags("--tail", "balanced-softmax")
    )
    refused(
        ("--classes", "Did you mean `flat`?"), recipe_flags.from_flags, flags("--classes", "flt")
    )
    refused(
        ("--augment", "Did you mean `medium`?"),
        recipe_flags.from_flags,
        flags("--augment", "medum"),
    )
    refused(
        ("--species-finetune-unfreeze", "at most 1"),
        recipe_flags.from_flags,
        flags("--species-finetune-unfreeze", "30"),
    )
    refused("--layer-decay", recipe_flags.from_flags, flags("--layer-decay", "0"))
    refused("--ema-decay", recipe_flags.from_flags, flags("--ema-decay", "1"))
    refused("--drop-path", recipe_flags.from_flags, flags("--drop-path", "1.0"))
    refused("--drop-path", recipe_flags.from_flags, flags("--drop-path", "some"))
    refused(
        "twice",
        recipe_flags.from_flags,
        flags("--drop-path", "0.1", "--backbone-args", "drop_path_rate=0.2"),
    )
    refused("--betas", recipe_flags.from_flags, flags("--betas", "0.9"))
    refused(
        ("--neck", "Did you mean `dropout`?"),
        recipe_flags.from_flags,
        flags("--neck", "dropuot=0.3,width=512"),
    )
    refused(("--neck", "width"), recipe_flags.from_flags, flags("--neck", "dropout=0.3"))
    refused(("--neck", "width"), recipe_flags.from_flags, flags("--neck", "width=0.5"))
    refused(("--joint-lr", "0 or more"), recipe_flags.from_flags, flags("--joint-lr", "-1"))
    refused("--image-size", recipe_flags.from_flags, flags("--image-size", "0"))
    refused(("--batch-size", "1 or more"), recipe_flags.from_flags, flags("--batch-size", "0"))
    refused("name=value", recipe_flags.arguments, "pad_type")
    refused("--pixel-mean", recipe_flags.channels, "pixel_mean", "0.5 0.5")
    refused("--pixel-mean", recipe_flags.channels, "pixel_mean", "127")
    with pytest.raises(SystemExit) as caught:
        flags("--joint-epoch", "3")
    assert caught.value.code == 2


def test_a_rate_that_is_no_number_is_told(refused):
    refused("--joint-lr", recipe_flags.from_flags, flags("--joint-lr", "nan"))


def test_arguments_of_the_backbone():
    assert recipe_flags.arguments("") == {}
    assert recipe_flags.arguments("pad_type=same, drop_path_rate=0.2") == {
        "pad_type": "same",
        "drop_path_rate": 0.2,
    }


def test_arguments_that_are_lists():
    found = recipe_flags.arguments(
        "embed_dim=48,depths=(2,2,4,2),num_heads=(2, 4, 8, 16),pad_type=same"
    )
    assert {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in found.items()} == {
        "embed_dim": 48,
        "depths": [2, 2, 4, 2],
        "num_heads": [2, 4, 8, 16],
        "pad_type": "same",
    }


def test_channels():
    assert recipe_flags.channels("pixel_mean", "timm") is None
    assert recipe_flags.channels("pixel_mean", "0.5") == (0.5, 0.5, 0.5)
    assert recipe_flags.channels("pixel_mean", "0.1 0.2 0.3") == (0.1, 0.2, 0.3)


def test_overrides_are_recorded_and_shown():
    recipe, changed = recipe_flags.from_flags(flags("--joint-epochs", "3", "--focal-gamma", "2.0"))
    assert recipe.joint_epochs == 3
    assert changed == {"joint_epochs": recipes.get("demo").joint_epochs}
    shown = recipe_flags.describe("demo", recipe, changed)
    assert f"<- was {recipes.get('demo').joint_epochs}" in shown
    assert shown.count("<- was") == 1


def test_settings_are_inherited_in_place_of_a_recipe():
    before = {**vars(recipes.get("two_core")), "joint_epochs": 77}
    assert recipe_flags.from_flags(flags(default=None), before)[0].joint_epochs == 77
    assert recipe_flags.from_flags(flags("--recipe", "demo"), None)[0] == recipes.get("demo")


def test_an_average_with_heads_needs_a_phase_of_heads(refused):
    wanted = ("--average-with-heads", "yes")
    assert recipe_flags.from_flags(flags(*wanted))[0].average_with_heads == "yes"
    for off, flat in (("--disease-heads-epochs", ()), ("--species-warmup-epochs", ("flat",))):
        more = ("--classes", *flat) if flat else ()
        refused((off, "no"), recipe_flags.from_flags, flags(*wanted, *more, off, "0"))


def test_settings_of_an_older_checkpoint():
    """A row that it does not know is that of hierarchical; a row that is gone is left out."""
    before = {
        name: value
        for name, value in vars(recipes.get("two_core")).items()
        if name not in ("classes", "neck", "tail")
    }
    recipe, changed = recipe_flags.from_flags(
        flags(default=None), {**before, "joint_epochs": 7, "no_longer_there": 1}
    )
    assert recipe == replace(recipes.get("two_core"), joint_epochs=7)
    assert changed == {}


def test_a_constant_rate_stays_one():
    recipe, changed = recipe_flags.from_flags(
        flags("--species-warmup-lr", "0.01", "--species-finetune-lr", "0.02")
    )
    demo = recipes.get("demo")
    assert (recipe.species_warmup_lr, recipe.species_warmup_lr_end) == (
        0.01,
        0.01,
    )
    assert "species_warmup_lr_end" in changed
    assert (recipe.species_finetune_lr, recipe.species_finetune_lr_end) == (
        0.02,
        demo.species_finetune_lr_end,
    )
    both = recipe_flags.from_flags(
        flags("--species-warmup-lr", "0.01", "--species-warmup-lr-end", "0.001")
    )[0]
    assert (both.species_warmup_lr, both.species_warmup_lr_end) == (0.01, 0.001)


def test_settings_of_the_model():
    settings = recipe_flags.model_settings(recipes.get("camera_trap_swin"))
    assert settings == {
        "image_size": 224,
        "backbone_args": {"drop_path_rate": 0.2},
        "classes": "flat",
        "neck": None,
        "pixel_stats": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }
    assert recipe_flags.model_settings(recipes.get("three_stage"))["neck"] == {
        "dropout": 0.3,
        "width": 512,
        "dropout_after": 0.15,
    }
    assert recipe_flags.model_settings(recipes.get("hierarchical"))["backbone_args"] == {}, (
        "Swin keeps timm's own stochastic depth"
    )


def test_backbones_are_listed_and_checked(refused, capfd):
    assert (
        recipe_flags.backbone_names("*resnet10t*")
        == recipe_flags.backbone_names("resnet10t")
        == ["resnet10t.c3_in1k"]
    )
    with pytest.raises(SystemExit) as caught:
        flags("--list-backbones", "resnet18.*")
    shown = capfd.readouterr().out.split()
    assert caught.value.code == 0
    assert "resnet18.tv_in1k" in shown
    assert all(name.startswith("resnet18.") for name in shown)
    with pytest.raises(SystemExit):
        flags("--list-backbones")
    assert len(capfd.readouterr().out.split()) > 500
    for name in {recipes.get(column).backbone for column in recipes.COLUMNS} | {
        "test_vit",
        "hf-hub:timm/resnet18",
    }:
        recipe_flags.require_backbone(name)
    refused(("resnet5O", "Did you mean `resnet50`?"), recipe_flags.require_backbone, "resnet5O")
    refused(("tv_in1", "Did you mean `tv_in1k`?"), recipe_flags.require_backbone, "resnet18.tv_in1")
    refused("Did you mean", recipe_flags.backbone_names, "resnet_18")


@pytest.mark.parametrize(
    ("best_by", "want"), [("stage", "AAADDC"), ("macro_f1", "FFFFFF"), ("loss", "LLLLLL")]
)
def test_the_best_epoch_is_chosen_by_stage_or_by_one_metric(best_by, want):
    r = replace(recipes.get("hierarchical"), best_by=best_by)
    phases = recipes.species_phases(r) + recipes.disease_phases(r) + recipes.joint_phases(r)
    short = {
        "species_top1": "A",
        "disease_top1": "D",
        "cascade_top1": "C",
        "macro_f1": "F",
        "loss": "L",
    }
    assert "".join(short[p.best_by] for p in phases) == want


def test_scores():
    metrics = {
        "species_top1": 0.9,
        "disease_top1": 0.8,
        "cascade_top1": 0.7,
        "macro_f1": 0.6,
        "species_nll": 0.5,
        "disease_nll": 0.25,
    }
    r = recipes.get("hierarchical")
    a1, b1, b3 = (
        recipes.species_phases(r)[0],
        recipes.disease_phases(r)[0],
        recipes.joint_phases(r)[0],
    )
    assert (a1.score(metrics), b1.score(metrics)) == (0.9 - 1e-6 * 0.5, 0.8 - 1e-6 * 0.25)
    assert b3.score(metrics) == 0.7 - 1e-6 * 0.75
    assert replace(b3, best_by="macro_f1").score(metrics) == 0.6 - 1e-6 * 0.75
    assert replace(b3, best_by="loss").score(metrics) == pytest.approx(-(0.5 + 0.7 * 0.25))
    assert replace(a1, best_by="loss").score(metrics) == -0.5


def test_what_the_tail_does_to_the_phases():
    def b(tail: str) -> list[tuple[str, bool]]:
        r = replace(recipes.get("hierarchical"), tail=tail)
        return [(p.sampling, p.prior) for p in recipes.disease_phases(r) + recipes.joint_phases(r)]

    assert b("sampler") == [("rare", False), ("boost", False), ("shuffle", False)]
    assert b("balanced_softmax") == [("shuffle", True)] * 3
    assert b("softmax_and_sampler") == [("rare", True), ("boost", True), ("shuffle", True)]
    assert b("none") == [("shuffle", False)] * 3


def test_cached_views_are_for_frozen_phases_only():
    r = recipes.get("foliar")
    phases = recipes.species_phases(r) + recipes.disease_phases(r) + recipes.joint_phases(r)
    assert r.cached_views > 0
    assert {p.cached_views for p in phases if p.frozen} == {r.cached_views}
    assert {p.cached_views for p in phases if not p.frozen} == {0}
    assert [p.frozen for p in phases] == [True, False, True, False]


def test_phases():
    r = recipes.get("hierarchical")
    a1, a2, a3 = recipes.species_phases(r)
    b1, b2 = recipes.disease_phases(r)
    (b3,) = recipes.joint_phases(r)
    assert [p.epochs for p in (a1, a2, a3, b1, b2, b3)] == [5, 20, 5, 15, 5, 10]
    assert [(p.lr, p.lr_end) for p in (a1, a2, a3, b1, b2)] == [
        (1e-3, 1e-3),
        (1e-4, 1e-6),
        (5e-6, 5e-6),
        (1e-3, 1e-3),
        (5e-4, 5e-4),
    ]
    assert b3.lr == 1e-5
    assert [p.backbone_scale for p in (a1, a2, a3, b1, b2, b3)] == [0.0, 1.0, 0.1, 0.0, 0.0, 1.0]
    assert [p.heads for p in (a1, a2, a3, b1, b2, b3)] == ["species"] * 3 + ["disease"] * 2 + [
        "all"
    ]
    assert [p.sampling for p in (a1, a2, a3, b1, b2, b3)] == ["shuffle"] * 3 + [
        "rare",
        "boost",
        "shuffle",
    ]
    assert [(p.species_weight, p.disease_weight) for p in (a1, a2, a3, b1, b2, b3)] == [
        (1, 0)
    ] * 3 + [(0, 1)] * 2 + [(1, 0.7)]


def test_a_phase_of_no_epochs_is_left_out():
    recipe, _ = recipe_flags.from_flags(
        flags("--species-warmup-epochs", "0", "--joint-epochs", "0")
    )
    assert [p.name[:2] for p in recipes.species_phases(recipe)] == [
        "A2",
        "A3",
    ]
    assert recipes.joint_phases(recipe) == []


def test_the_page_of_recipes_shows_the_printed_table():
    printed = subprocess.run(
        [sys.executable, "-m", "common.train.recipes"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    page = (ROOT / "common/train/RECIPES.md").read_text(encoding="utf-8")
    assert "<!-- recipes -->" in page
    assert "<!-- /recipes -->" in page
    shown = page.split("<!-- recipes -->")[1].split("<!-- /recipes -->")[0]
    assert shown.strip() == printed.strip() == recipes.markdown().strip()
    assert all(f"`{f.name}`" in printed for f in fields(recipes.Recipe) if f.name != "source")
    assert all(f" {name} " in printed for name in recipes.COLUMNS)
