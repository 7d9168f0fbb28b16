"""Training views: every transform against a slow plain reference, and the draws of MixUp and CutMix."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from common import augment, recipes
from common.augment import LEVELS, LUMA, Level, Mix, draw_mix, rand_augment, train_view

STILL = Level(flip_p=0, rotate_p=0, jitter_p=0, exposure_p=0, jpeg_p=0, shadow_p=0, grey_p=0)
RECIPE = replace(recipes.get("hierarchical"), image_size=32, randaugment_ops=0)


class Dice:
    """A generator that gives what it is told, in order, and then fails."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)

    def uniform(self, low: float, high: float) -> float:
        value = self.values.pop(0)
        assert low <= value <= high, f"{value} is outside {low}..{high}"
        return value


def photo(width: int = 48, height: int = 48, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(rgb: np.ndarray, quality: int = 95) -> bytes:
    return cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


# region geometry


def slow_warp(picture: np.ndarray, box: tuple[float, ...], size: int, mirror: bool, degrees: float) -> np.ndarray:
    """Pixel by pixel: turn about the middle of the view, mirror it, scale to the box, read bilinearly with reflected edges."""
    x0, y0, w, h = box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    out = np.zeros((size, size, 3))
    rows, columns = picture.shape[:2]

    def reflect(i: int, n: int) -> int:
        while not 0 <= i < n:
            i = -i if i < 0 else 2 * (n - 1) - i
        return i

    for v in range(size):
        for u in range(size):
            a, b = u - (size - 1) / 2, v - (size - 1) / 2
            a, b = a * cos + b * sin, -a * sin + b * cos
            a = -a if mirror else a
            x = x0 + (a + size / 2) * w / size - 0.5
            y = y0 + (b + size / 2) * h / size - 0.5
            i, j = math.floor(x), math.floor(y)
            for dy, wy in ((0, 1 - (y - j)), (1, y - j)):
                for dx, wx in ((0, 1 - (x - i)), (1, x - i)):
                    out[v, u] += wx * wy * picture[reflect(j + dy, rows), reflect(i + dx, columns)]
    return out


def test_the_whole_picture_without_a_turn_is_the_picture():
    picture = photo(32, 32)
    np.testing.assert_array_equal(augment._warp(picture, 0, 0, 32, 32, 32, STILL, np.random.default_rng(0)), picture)


def test_a_flip_is_the_mirror_image():
    picture = photo(32, 32)
    flipped = augment._warp(picture, 0, 0, 32, 32, 32, replace(STILL, flip_p=1.0), np.random.default_rng(0))
    np.testing.assert_array_equal(flipped, picture[:, ::-1])


@pytest.mark.parametrize(("mirror", "degrees"), [(False, 0.0), (True, 0.0), (False, 30.0), (True, -45.0), (False, 12.5)])
def test_warp_equals_the_slow_reference(mirror, degrees):
    picture, box, level = photo(50, 40), (7.3, 4.1, 33.0, 29.5), LEVELS["full"]
    dice = Dice(0.0 if mirror else 0.99, 0.0 if degrees else 0.99, *([degrees] if degrees else []))
    got = augment._warp(picture, *box, 24, level, dice)
    want = slow_warp(picture, box, 24, mirror, degrees)
    assert np.abs(got - want).max() <= 6 and np.abs(got - want).mean() < 1.0  # OpenCV counts in 1/32 px


def test_crops_keep_to_area_ratio_and_picture():
    rng, areas, ratios = np.random.default_rng(0), [], []
    for _ in range(2000):
        x, y, w, h = augment._draw_crop(300, 300, LEVELS["full"], rng)
        assert 0 <= x and x + w <= 300 + 1e-9 and 0 <= y and y + h <= 300 + 1e-9
        areas.append(w * h / 90_000)
        ratios.append(w / h)
    assert 0.6 <= min(areas) < 0.62 and 0.9 < max(areas) <= 1.0
    assert 0.75 <= min(ratios) < 0.78 and 1.3 < max(ratios) <= 1.3301
    assert augment._draw_crop(1000, 10, LEVELS["full"], rng) == (0.0, 0.0, 1000.0, 10.0), "no crop of that shape fits"


# endregion

# region colour


def test_colour_matrix_equals_one_operation_after_the_other():
    """Brightness, contrast about the mean grey of what is there by then, saturation, hue, exposure, each in floats."""
    bgr, level = photo(), LEVELS["full"]
    b, c, s, turn, c2, b2 = 1.25, 0.75, 1.2, 0.06, 1.1, -0.15
    matrix = augment._colour_matrix(bgr, level, Dice(0.0, b, c, s, turn, 0.0, c2, b2, 0.99))
    x = bgr[..., ::-1].astype(np.float64)
    x = x * b
    x = (x - (x @ LUMA).mean()) * c + (x @ LUMA).mean()
    grey = (x @ LUMA)[..., None]
    x = (x - grey) * s + grey
    yiq = x @ augment.RGB_TO_YIQ.T
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    x = np.stack([yiq[..., 0], cos * yiq[..., 1] - sin * yiq[..., 2], sin * yiq[..., 1] + cos * yiq[..., 2]], -1) @ augment.YIQ_TO_RGB.T
    x = x * c2 + 255 * b2
    got = bgr.astype(np.float64) @ matrix[:, :3].T + matrix[:, 3]
    np.testing.assert_allclose(got, x, atol=0.05)


def test_no_draw_leaves_the_colours():
    bgr = photo()
    matrix = augment._colour_matrix(bgr, LEVELS["full"], Dice(0.99, 0.99, 0.99))
    np.testing.assert_array_equal(cv2.transform(bgr, matrix), bgr[..., ::-1])


def test_grey_is_the_luma():
    bgr = photo()
    got = cv2.transform(bgr, augment._colour_matrix(bgr, LEVELS["full"], Dice(0.99, 0.99, 0.0)))
    luma = bgr[..., ::-1] @ LUMA
    assert np.abs(got - luma[..., None]).max() <= 1


@pytest.mark.parametrize("turn", [-0.1, -0.03, 0.05, 0.1])
def test_a_turn_of_hue_keeps_luma_and_turns_by_the_angle(turn):
    m = augment._colour_matrix(photo(), LEVELS["full"], Dice(0.0, 1.0, 1.0, 1.0, turn, 0.99, 0.99))[:, 2::-1]
    colour = np.array([180.0, 90.0, 60.0])
    assert LUMA @ (m @ colour) == pytest.approx(LUMA @ colour, abs=0.02)
    i, q = (augment.RGB_TO_YIQ @ colour)[1:]
    i2, q2 = (augment.RGB_TO_YIQ @ m @ colour)[1:]
    assert math.hypot(i2, q2) == pytest.approx(math.hypot(i, q), rel=1e-6)
    turned = (math.atan2(q2, i2) - math.atan2(q, i) + math.pi) % (2 * math.pi) - math.pi
    assert turned == pytest.approx(2 * math.pi * turn, abs=1e-6)


# endregion

# region camera faults


def test_noise_has_the_variance_it_is_given():
    grey = np.full((128, 128, 3), 128, np.uint8)
    noisy = augment._add_noise(grey, 6.0, np.random.default_rng(0)).astype(float)
    assert noisy.std() == pytest.approx(6.0, rel=0.05) and noisy.mean() == pytest.approx(127.5, abs=0.2)


def test_iso_noise_follows_the_pictures_contrast():
    flat, lively = np.full((64, 64, 3), (120, 120, 120), np.uint8), photo(64, 64)
    assert np.abs(augment._iso_noise(flat, 0.05, 0.3, np.random.default_rng(0)).astype(int) - 120).max() <= 1
    change = augment._iso_noise(lively, 0.05, 0.3, np.random.default_rng(0)).astype(int) - lively
    assert 1 < np.abs(change).mean() < 30


def test_a_shadow_darkens_a_part_by_at_most_half():
    white = np.full((64, 64, 3), 200, np.uint8)
    for seed in range(5):
        dark = augment._shadow(white, np.random.default_rng(seed))
        assert dark.min() >= 100 and dark.max() == 200 and (dark < 200).any()


def test_shares_of_the_faults():
    """About `tier2_share` of pictures get one of three faults; with every chance at 0 none change."""
    grey, level = photo(32, 32), replace(STILL)
    changed = [not np.array_equal(augment._camera_faults(grey, level, 0.3, np.random.default_rng(i)), grey) for i in range(600)]
    assert 0.25 < np.mean(changed) < 0.35
    assert all(np.array_equal(augment._camera_faults(grey, level, 0.0, np.random.default_rng(i)), grey) for i in range(50))
    pressed = augment._camera_faults(grey, replace(STILL, jpeg_p=1.0), 0.0, np.random.default_rng(0))
    assert 0 < np.abs(pressed.astype(int) - grey).mean() < 12, "channels must keep their order through JPEG"


# endregion

# region whole views


@pytest.mark.parametrize(("width", "height"), [(33, 31), (64, 64), (200, 67), (129, 301), (512, 384)])
@pytest.mark.parametrize("size", [32, 45])
def test_views_of_odd_sizes(width, height, size):
    recipe = replace(recipes.get("hierarchical"), image_size=size)
    view = train_view(jpeg(photo(width, height)), width, height, recipe, np.random.default_rng(1))
    assert view.shape == (size, size, 3) and view.dtype == np.uint8 and view.std() > 0


def test_same_generator_same_bytes():
    data, recipe = jpeg(photo(80, 60)), replace(recipes.get("hierarchical"), image_size=32)
    views = [train_view(data, 80, 60, recipe, np.random.default_rng([7, i])) for i in (0, 0, 1)]
    assert np.array_equal(views[0], views[1]) and not np.array_equal(views[0], views[2])


def test_half_scale_decoding_shows_the_same_picture(monkeypatch):
    """Where the crop has pixels to spare the JPEG is decoded at half scale: the view is where it would have been."""
    monkeypatch.setitem(LEVELS, "full", STILL)
    picture = photo(301, 257)
    data = jpeg(picture)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x, y, w, h = augment._draw_crop(301, 257, STILL, np.random.default_rng(seed))
        view = train_view(data, 301, 257, replace(RECIPE, image_size=64, tier2_share=0.0), rng)
        want = slow_warp(picture, (x, y, w, h), 64, False, 0.0)
        assert np.abs(view - want).mean() < 2.0 and np.abs(view - want).max() < 25


def test_bytes_that_are_no_picture_raise():
    with pytest.raises(ValueError, match="decoded"):
        train_view(b"no picture", 64, 64, RECIPE, np.random.default_rng(0))


# endregion

# region tier 3


class Chosen:
    def __init__(self, operation: int, sign: float) -> None:
        self.operation, self.sign = operation, sign

    def integers(self, most: int) -> int:
        assert most == 14
        return self.operation

    def random(self) -> float:
        return 0.0 if self.sign > 0 else 0.9


def test_all_14_operations_run_and_all_but_one_change_the_picture():
    picture, changed = photo(40, 40) // 2 + 30, set()
    for operation in range(14):
        for sign in (1.0, -1.0):
            out = rand_augment(picture, 1, 9, Chosen(operation, sign))
            assert out.shape == picture.shape and out.dtype == np.uint8
            if not np.array_equal(out, picture):
                changed.add(operation)
    assert changed == set(range(1, 14))


@pytest.mark.parametrize("magnitude", [0, 10])
def test_every_magnitude_runs(magnitude):
    for operation in range(14):
        out = rand_augment(photo(40, 40), 2, magnitude, Chosen(operation, -1.0))
        if magnitude == 0 and operation not in (1, 2):
            assert np.abs(out.astype(int) - photo(40, 40)).max() <= 1, operation


def test_rand_augment_shifts_by_what_it_says():
    out = rand_augment(photo(40, 40), 1, 10, Chosen(12, 1.0))
    np.testing.assert_array_equal(out[:, :22], photo(40, 40)[:, 18:])
    assert (out[:, 22:] == 128).all()


def test_mix_shares_and_pixels():
    images = torch.randint(0, 256, (6, 20, 20, 3), dtype=torch.uint8)
    recipe, seen = replace(RECIPE, mix_share=1.0), set()
    for seed in range(60):
        mix = draw_mix(6, 20, recipe, np.random.default_rng(seed), torch.device("cpu"))
        assert sorted(mix.partner.tolist()) == list(range(6)) and 0 <= mix.share <= 1
        out = torch.cat([mix.apply(images, slice(0, 4)), mix.apply(images, slice(4, 6))])
        other = images[mix.partner]
        if mix.box is None:
            seen.add("mixup")
            torch.testing.assert_close(out.float(), mix.share * images.float() + (1 - mix.share) * other.float(), atol=1e-3, rtol=0)
        else:
            seen.add("cutmix")
            top, bottom, left, right = mix.box
            pasted = np.zeros((20, 20), bool)
            pasted[top:bottom, left:right] = True
            assert 1 - mix.share == pytest.approx(pasted.mean(), abs=1e-9), "the share is that of the area that was pasted"
            assert torch.equal(out[:, torch.from_numpy(pasted)], other[:, torch.from_numpy(pasted)])
            assert torch.equal(out[:, torch.from_numpy(~pasted)], images[:, torch.from_numpy(~pasted)])
    assert seen == {"mixup", "cutmix"}


def test_how_often_batches_are_mixed():
    device = torch.device("cpu")
    mixed = [draw_mix(4, 32, RECIPE, np.random.default_rng(i), device).share < 1 for i in range(600)]
    assert 0.43 < np.mean(mixed) < 0.57
    never = replace(RECIPE, mix_share=0.0)
    assert all(draw_mix(4, 32, never, np.random.default_rng(i), device).share == 1 for i in range(20))
    only = replace(RECIPE, mix_share=1.0, mixup_alpha=0.0)
    assert all(draw_mix(4, 32, only, np.random.default_rng(i), device).box for i in range(20))
    none = replace(RECIPE, mix_share=1.0, mixup_alpha=0.0, cutmix_alpha=0.0)
    assert draw_mix(4, 32, none, np.random.default_rng(0), device).share == 1


def test_a_batch_that_is_not_mixed_stays_as_it_is():
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(Mix(torch.arange(3)).apply(images, slice(1, 3)), images[1:3])


# endregion


def test_pillow_reads_the_same_pixels_as_the_decoder():
    """The trainer decodes with OpenCV, evaluation with Pillow: both must see one picture."""
    import io
    data = jpeg(photo(64, 48))
    mine = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    theirs = np.array(Image.open(io.BytesIO(data)))
    assert np.abs(mine.astype(int) - theirs).max() <= 6 and np.abs(mine.astype(int) - theirs).mean() < 0.5
