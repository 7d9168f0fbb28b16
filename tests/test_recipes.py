"""The recipe table: the published numbers, the checks on it, and the flags and phases made from it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from common import recipe_flags, recipes
from common.augment import LEVELS

ROOT = Path(__file__).resolve().parents[1]

# protocols.md, `hierarchical`, number by number
PUBLISHED = {
    "backbone": "swin_tiny_patch4_window7_224.ms_in22k", "image_size": 224, "batch_size": 256, "clip_norm": 1.0,
    "species_warmup_epochs": 5, "species_warmup_lr": 1e-3,
    "species_finetune_epochs": 20, "species_finetune_lr": 1e-4, "species_finetune_lr_end": 1e-6,
    "species_final_epochs": 5, "species_final_lr": 5e-6, "species_final_backbone_scale": 0.1,
    "disease_heads_epochs": 15, "disease_heads_lr": 1e-3, "disease_boost_epochs": 5, "disease_boost_lr": 5e-4,
    "joint_epochs": 10, "joint_lr": 1e-5, "focal_gamma": 2.0, "focal_alpha": 0.25, "label_smoothing": 0.1,
    "disease_weight": 0.7, "rare_below": 80, "rare_weight": 3.0, "very_rare_below": 50, "very_rare_weight": 5.0,
    "augment": "full", "tier2_share": 0.3, "mix_share": 0.5, "mixup_alpha": 0.2, "cutmix_alpha": 1.0,
    "randaugment_ops": 2, "randaugment_magnitude": 9,
}


def flags(*argv: str, default: str | None = "demo") -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    recipe_flags.add_flags(parser, default)
    return parser.parse_args(list(argv))


@pytest.mark.parametrize("name", PUBLISHED)
def test_hierarchical_is_as_published(name):
    assert getattr(recipes.get("hierarchical"), name) == PUBLISHED[name]
    assert not isinstance(recipes.TABLE[name][0], recipes._Ours), "a published number must not be marked as ours"


def test_whatever_is_not_published_is_marked():
    for name, cells in recipes.TABLE.items():
        if name not in PUBLISHED and name != "source":
            assert isinstance(cells[0], recipes._Ours), name


def test_augmentation_ranges_are_as_published():
    full = LEVELS["full"]
    assert (full.crop_area, full.crop_ratio, full.flip_p) == ((0.6, 1.0), (0.75, 1.33), 0.5)
    assert (full.rotate_degrees, full.rotate_p) == (45.0, 0.5)
    assert (full.jitter_p, full.brightness, full.contrast, full.saturation, full.hue) == (0.8, 0.3, 0.3, 0.3, 0.1)
    assert (full.exposure_p, full.exposure_brightness, full.exposure_contrast) == (0.5, 0.2, 0.2)
    assert (full.blur_kernels, full.noise_variance) == ((3, 5, 7), (10.0, 50.0))
    assert (full.iso_colour_shift, full.iso_intensity) == ((0.01, 0.05), (0.1, 0.3))
    assert (full.jpeg_p, full.jpeg_quality, full.shadow_p, full.grey_p) == (0.2, (60, 95), 0.15, 0.05)


def test_rows_and_columns_are_checked(monkeypatch):
    monkeypatch.setitem(recipes.TABLE, "clip_norm", (1.0,))
    with pytest.raises(ValueError, match="clip_norm has 1 cells"):
        recipes._check_table()
    monkeypatch.undo()
    monkeypatch.setitem(recipes.TABLE, "clip_norn", recipes.TABLE["clip_norm"])
    with pytest.raises(ValueError, match="clip_norn"):
        recipes._check_table()
    monkeypatch.undo()
    recipes._check_table()


def test_mistakes_are_told(refused):
    refused(("heirarchical", *recipes.COLUMNS), recipes.get, "heirarchical")
    refused(("--joint-lr", "0 or more"), recipe_flags.from_flags, flags("--joint-lr", "-1"))
    refused("--image-size", recipe_flags.from_flags, flags("--image-size", "0"))
    refused(("--batch-size", "at least 1"), recipe_flags.from_flags, flags("--batch-size", "0"))
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
    assert recipe_flags.arguments("pad_type=same, drop_path_rate=0.2") == {"pad_type": "same", "drop_path_rate": 0.2}


def test_arguments_that_are_lists():
    found = recipe_flags.arguments("embed_dim=48,depths=(2,2,4,2),num_heads=(2, 4, 8, 16),pad_type=same")
    assert {k: list(v) if isinstance(v, (list, tuple)) else v for k, v in found.items()} == {
        "embed_dim": 48, "depths": [2, 2, 4, 2], "num_heads": [2, 4, 8, 16], "pad_type": "same"}


def test_channels():
    assert recipe_flags.channels("pixel_mean", "timm") is None
    assert recipe_flags.channels("pixel_mean", "0.5") == (0.5, 0.5, 0.5)
    assert recipe_flags.channels("pixel_mean", "0.1 0.2 0.3") == (0.1, 0.2, 0.3)


def test_overrides_are_recorded_and_shown():
    recipe, changed = recipe_flags.from_flags(flags("--joint-epochs", "3", "--focal-gamma", "2.0"))
    assert recipe.joint_epochs == 3 and changed == {"joint_epochs": recipes.get("demo").joint_epochs}
    shown = recipe_flags.describe("demo", recipe, changed)
    assert f"<- was {recipes.get('demo').joint_epochs}" in shown and shown.count("<- was") == 1


def test_a_recipe_is_inherited_unless_one_is_named():
    before = {**vars(recipes.get("two_core")), "joint_epochs": 77}
    assert recipe_flags.from_flags(flags(default=None), before)[0].joint_epochs == 77
    assert recipe_flags.from_flags(flags("--recipe", "demo", default=None), before)[0] == recipes.get("demo")


def test_phases():
    r = recipes.get("hierarchical")
    a1, a2, a3 = recipes.species_phases(r)
    b1, b2 = recipes.disease_phases(r)
    (b3,) = recipes.joint_phases(r)
    assert [p.epochs for p in (a1, a2, a3, b1, b2, b3)] == [5, 20, 5, 15, 5, 10]
    assert [(p.lr, p.lr_end) for p in (a1, a2, a3, b1, b2)] == [
        (1e-3, 1e-3), (1e-4, 1e-6), (5e-6, 5e-6), (1e-3, 1e-3), (5e-4, 5e-4)]
    assert b3.lr == 1e-5
    assert [p.backbone_scale for p in (a1, a2, a3, b1, b2, b3)] == [0.0, 1.0, 0.1, 0.0, 0.0, 1.0]
    assert [p.heads for p in (a1, a2, a3, b1, b2, b3)] == ["species"] * 3 + ["disease"] * 2 + ["all"]
    assert [p.sampling for p in (a1, a2, a3, b1, b2, b3)] == ["shuffle"] * 3 + ["rare", "boost", "shuffle"]
    assert [(p.species_weight, p.disease_weight) for p in (a1, a2, a3, b1, b2, b3)] == [(1, 0)] * 3 + [(0, 1)] * 2 + [(1, 0.7)]


def test_a_phase_of_no_epochs_is_left_out():
    recipe, _ = recipe_flags.from_flags(flags("--species-warmup-epochs", "0", "--joint-epochs", "0"))
    assert [p.name[:2] for p in recipes.species_phases(recipe)] == ["A2", "A3"] and recipes.joint_phases(recipe) == []


def test_the_readme_shows_the_printed_table():
    printed = subprocess.run([sys.executable, "-m", "common.recipes"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- recipes -->" in readme and "<!-- /recipes -->" in readme
    shown = readme.split("<!-- recipes -->")[1].split("<!-- /recipes -->")[0]
    assert shown.strip() == printed.strip() == recipes.markdown().strip()
    assert all(f"`{name}`" in printed for name in recipes.TABLE)
