"""The recipe row train_size: who sees the smaller pictures, and which networks cannot."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_data
from conftest import run

from common.train import recipes
from common.train import run as training_run
from common.train.augment import draw_mix
from common.train.cached_features import VIEW_SETTINGS
from common.train.dataset import TrainViews, mix_partners
from common.train.machine import check_backbone

RECIPE = replace(recipes.get("demo"), image_size=32, train_size=24)


def test_views_are_smaller_and_patches_fit_them(data):
    split = data.splits["train"]
    assert TrainViews(split, RECIPE, 0)[0, 0, 0][0].shape == (24, 24, 3)
    assert TrainViews(split, replace(RECIPE, train_size=0), 0)[0, 0, 0][0].shape == (32, 32, 3)
    assert "view_size" in VIEW_SETTINGS, "features of another size are made anew"
    mixed = replace(RECIPE, mix_share=1.0, mixup_alpha=0.0)
    boxes = [draw_mix(4, mixed.view_size, mixed, np.random.default_rng(i)).box for i in range(99)]
    assert max(max(box) for box in boxes) == 24
    assert mix_partners(mixed, 0, 0, 0, 4) is not None


@pytest.mark.parametrize("views", [0, 1])
def test_only_phases_that_train_the_backbone_see_them(organized, tmp_path, monkeypatch, views):
    seen = {}

    class Watched(TrainViews):
        def __getitem__(self, item):
            seen.setdefault(item[0], set()).add(self.recipe.view_size)
            return super().__getitem__(item)

    monkeypatch.setattr(training_run, "TrainViews", Watched)
    flags = ["--data", organized, "--checkpoints", tmp_path, *tiny_data.SPECIES]
    flags += ["--train-size", 24, "--species-finetune-epochs", 1, "--species-final-epochs", 0]
    assert run("02a_train_species", *flags, "--cached-views", views) == 0
    assert seen.pop(1) == {24}
    assert seen == ({} if views else {0: {32}}), "heads alone learn at image_size"


def test_networks_of_one_size_refuse_it(refused):
    fixed = replace(RECIPE, backbone="vit_tiny_patch16_224", image_size=224, train_size=160)
    refused(("vit_tiny_patch16_224", "224 px alone", "--train-size"), check_backbone, fixed)
    assert check_backbone(replace(fixed, train_size=0)) is False
    any_size = replace(fixed, backbone_args="dynamic_img_size=True")
    assert check_backbone(any_size) is False
    assert check_backbone(replace(fixed, backbone="mobilenetv2_100")), "it has depthwise layers"
