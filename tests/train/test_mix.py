"""MixUp and CutMix: how batches are drawn and mixed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.train import recipes
from common.train.augment import Mix, draw_mix

RECIPE = replace(recipes.get("hierarchical"), image_size=32)


def test_mix_shares_and_pixels():
    images = torch.randint(0, 256, (6, 20, 20, 3), dtype=torch.uint8)
    recipe, seen = replace(RECIPE, mix_share=1.0), set()
    for seed in range(60):
        mix = draw_mix(6, 20, recipe, np.random.default_rng(seed))
        assert sorted(mix.partner.tolist()) == list(range(6))
        assert 0 <= mix.share <= 1
        out = torch.cat([mix.apply(images, slice(0, 4)), mix.apply(images, slice(4, 6))])
        other = images[mix.partner]
        if mix.box is None:
            seen.add("mixup")
            assert out.dtype == torch.float32
            torch.testing.assert_close(
                out.float(),
                mix.share * images.float() + (1 - mix.share) * other.float(),
                atol=1e-3,
                rtol=0,
            )
        else:
            seen.add("cutmix")
            assert out.dtype == torch.uint8
            top, bottom, left, right = mix.box
            pasted = np.zeros((20, 20), bool)
            pasted[top:bottom, left:right] = True
            assert 1 - mix.share == pytest.approx(pasted.mean(), abs=1e-9), (
                "the share is that of the area that was pasted"
            )
            assert torch.equal(out[:, torch.from_numpy(pasted)], other[:, torch.from_numpy(pasted)])
            assert torch.equal(
                out[:, torch.from_numpy(~pasted)], images[:, torch.from_numpy(~pasted)]
            )
    assert seen == {"mixup", "cutmix"}


def test_how_often_batches_are_mixed():
    mixed = [draw_mix(4, 32, RECIPE, np.random.default_rng(i)).share < 1 for i in range(600)]
    assert 0.43 < np.mean(mixed) < 0.57
    never = replace(RECIPE, mix_share=0.0)
    assert all(draw_mix(4, 32, never, np.random.default_rng(i)).share == 1 for i in range(20))
    only = replace(RECIPE, mix_share=1.0, mixup_alpha=0.0)
    assert all(draw_mix(4, 32, only, np.random.default_rng(i)).box for i in range(20))
    none = replace(RECIPE, mix_share=1.0, mixup_alpha=0.0, cutmix_alpha=0.0)
    assert draw_mix(4, 32, none, np.random.default_rng(0)).share == 1


def test_a_batch_that_is_not_mixed_stays_as_it_is():
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(Mix(torch.arange(3)).apply(images, slice(1, 3)), images[1:3])
