"""Camera corruptions and holes: every one against a slow plain reference in float64, and how often
they are drawn.
"""

import colorsys
import io
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from common.train import corruptions
from common.train.augment_levels import Level
from common.train.corruptions import (
    camera_corruptions,
    coarse_dropout,
    gaussian_noise,
    grid_mask,
    iso_noise,
    poisson_quantiles,
    recompress,
    shadow,
)

NONE = Level(jpeg_p=0, shadow_p=0)


def photo(width: int = 48, height: int = 48, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(
        rng.integers(0, 256, (6, 6, 3)).astype(np.uint8),
        (width, height),
        interpolation=cv2.INTER_CUBIC,
    )


class Dice:
    """A generator that gives what it is told, in order, and then fails."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)


# region blur, noise


@pytest.mark.parametrize(("place", "kernel"), [(0.0, 3), (0.4, 5), (0.99, 7)])
def test_blur_equals_the_slow_reference(place, kernel):
    rgb = photo()
    got = camera_corruptions(rgb, NONE, 1.0, Dice(0.0, 0.0, place, 0.9, 0.9, 0.9, 0.9))
    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    weights = np.exp(-((np.arange(kernel) - kernel // 2) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    want = np.pad(rgb.astype(float), ((kernel // 2,) * 2, (kernel // 2,) * 2, (0, 0)), "reflect")
    want = sum(w * want[i : i + 48] for i, w in enumerate(weights))
    want = sum(w * want[:, i : i + 48] for i, w in enumerate(weights))
    assert np.abs(got - want).max() <= 1.5  # OpenCV counts in 1/256


@pytest.mark.parametrize("std", [math.sqrt(10), math.sqrt(50)])
def test_noise_is_normal_and_its_own_in_every_value(std):
    grey = np.full((160, 160, 3), 128, np.uint8)
    noise = gaussian_noise(grey, std, np.random.default_rng(0)).astype(float) - 128
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.std() == pytest.approx(math.hypot(std, 12**-0.5), rel=0.02)
    shares = [np.mean(np.abs(noise) > k * std + 0.5) for k in (1, 2, 3)]
    for k, share in enumerate(shares, 1):
        edge = (math.floor(k * std + 0.5) + 0.5) / std  # noise is whole numbers
        assert share == pytest.approx(
            math.erfc(edge / math.sqrt(2)), abs=0.015
        )  # the bank has 32 steps per std
    flat = noise.reshape(-1)
    for lag in (1, 3, 480):
        assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < 0.02


def test_noise_saturates():
    assert (
        gaussian_noise(np.full((64, 64, 3), 255, np.uint8), 7.0, np.random.default_rng(0)).min()
        > 200
    )
    assert gaussian_noise(np.zeros((64, 64, 3), np.uint8), 7.0, np.random.default_rng(0)).max() < 55


def test_noise_for_pictures_larger_than_the_bank():
    noisy = gaussian_noise(np.full((700, 700, 3), 128, np.uint8), 5.0, np.random.default_rng(0))
    assert noisy.std() == pytest.approx(5.0, rel=0.02)


@pytest.mark.parametrize("mean", [0.0, 0.3, 3.0, 20.0, 40.0])
def test_poisson_quantiles(mean):
    counts = poisson_quantiles(mean)
    assert counts.mean() == pytest.approx(mean, rel=0.01, abs=0.01)
    assert counts.var() == pytest.approx(mean, rel=0.04, abs=0.01)
    for k in range(60):
        chance = math.exp(-mean) * mean**k / math.factorial(k)
        assert np.mean(counts == k) == pytest.approx(chance, abs=1.01 / 256)


@pytest.mark.parametrize(("shift", "intensity"), [(0.01, 0.1), (0.05, 0.3)])
def test_iso_noise_equals_the_slow_reference(shift, intensity):
    """Pixel by pixel with colorsys; hues on both sides of red, where the circle closes."""
    rgb = photo(40, 32)
    rgb[:8] = np.random.default_rng(1).integers(0, 40, (8, 40, 3)) + (200, 0, 0)
    got, rng = iso_noise(rgb, shift, intensity, np.random.default_rng(5)), np.random.default_rng(5)
    normal, _, uniform = corruptions._banks()
    turn = corruptions._slice(normal, 40 * 32, rng).reshape(32, 40).astype(float)
    rank = corruptions._slice(uniform, 40 * 32, rng).reshape(32, 40)
    light = (rgb.max(-1).astype(float) + rgb.min(-1)) / 510
    shot = poisson_quantiles(255 * intensity * light.std())[rank]
    for y in range(32):
        for x in range(40):
            h, lightness, s = colorsys.rgb_to_hls(*(rgb[y, x] / 255))
            lightness += shot[y, x] / 255 * (1 - lightness)
            want = 255 * np.array(
                colorsys.hls_to_rgb((h + shift * intensity * turn[y, x]) % 1, lightness, s)
            )
            assert np.abs(got[y, x] - want).max() < 1.0, (y, x)


def test_iso_noise_follows_the_pictures_contrast():
    flat = np.full((64, 64, 3), (120, 120, 120), np.uint8)
    np.testing.assert_array_equal(iso_noise(flat, 0.05, 0.3, np.random.default_rng(0)), flat)

    def change(rgb: np.ndarray, intensity: float) -> float:
        noisy = iso_noise(rgb, 0.05, intensity, np.random.default_rng(0))
        return float(np.abs(noisy.astype(int) - rgb).mean())

    rgb = photo(64, 64)
    pale = (96 + rgb.astype(float) / 4).astype(np.uint8)  # a quarter of the contrast
    assert change(rgb, 0.3) == pytest.approx(7.2, rel=0.05)
    assert change(rgb, 0.1) == pytest.approx(change(rgb, 0.3) / 3, rel=0.05)
    assert change(pale, 0.3) == pytest.approx(change(rgb, 0.3) / 4, rel=0.05)


# endregion

# region JPEG, shadow


@pytest.mark.parametrize("quality", [60, 80, 95])
def test_recompression_equals_pillows(quality):
    rgb = photo(64, 48)
    rgb[:16, :32], rgb[:16, 32:] = (
        (250, 10, 10),
        (10, 10, 250),
    )  # swapped channels would show in the size of the fault
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    want = np.array(Image.open(buffer)).astype(int)
    got = recompress(rgb, quality)
    assert np.abs(got - want).mean() < 1.0
    assert np.abs(got - want).max() <= 16
    assert np.abs(got - rgb.astype(int)).mean() > 0.3


def test_a_shadow_halves_the_light_within_its_corners():
    rgb = photo(80, 80)
    corners = np.array([[10.0, 12.0], [70.0, 8.0], [60.0, 66.0], [15.0, 50.0]])
    y, x = np.mgrid[:80, :80].astype(float)
    inside = np.full((80, 80), np.inf)  # px to the nearest side, negative outside
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        inside = np.minimum(
            inside, ((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / math.hypot(x1 - x0, y1 - y0)
        )
    got = shadow(rgb, [corners[[2, 0, 3, 1]]]).astype(float)
    assert np.abs(got[inside > 4] - rgb[inside > 4] / 2).max() <= 0.5
    np.testing.assert_array_equal(got[inside < -5], rgb[inside < -5])
    edge = np.abs(inside) < 1
    assert (got[edge] <= rgb[edge]).all()
    assert (got[edge] >= rgb[edge] / 2 - 0.5).all()


def test_two_shadows_do_not_add_up():
    whole = np.array([[0, 0], [31, 0], [31, 31], [0, 31]], float)
    got = shadow(np.full((32, 32, 3), 200, np.uint8), [whole, whole])
    assert (got == 100).all()


# endregion

# region holes


def test_coarse_dropout_equals_the_slow_reference():
    rgb = photo(40, 40)
    want = rgb.copy()
    for y in range(40):
        for x in range(40):
            if (4 <= y < 12 and 20 <= x < 26) or (30 <= y < 40 and 0 <= x < 10):
                want[y, x] = 128
    np.testing.assert_array_equal(
        coarse_dropout(rgb, [(0.1, 0.5, 0.2, 0.15), (0.75, 0.0, 0.25, 0.25)]), want
    )
    assert not np.array_equal(rgb, want), "the picture itself is left as it was"


@pytest.mark.parametrize(
    ("unit", "down", "right"), [(0.5, 0.0, 0.0), (0.43, 0.3, 0.7), (1.0, 0.99, 0.5)]
)
def test_grid_mask_equals_the_slow_reference(unit, down, right):
    rgb, step = photo(60, 60), round(60 * unit)
    want = rgb.copy()
    for y in range(60):
        for x in range(60):
            if (y + int(step * down)) % step < round(0.4 * step) and (
                x + int(step * right)
            ) % step < round(0.4 * step):
                want[y, x] = 128
    got = grid_mask(rgb, unit, 0.4, down, right)
    np.testing.assert_array_equal(got, want)
    if unit == 0.5:
        assert (got != rgb).any(-1).mean() == pytest.approx(0.16, abs=0.01)


def test_holes_keep_to_their_ranges_and_to_the_picture():
    level = replace(NONE, dropout_p=1.0, dropout_holes=(1, 1))
    white, areas = np.full((200, 200, 3), 255, np.uint8), []
    for seed in range(300):
        hidden = camera_corruptions(white, level, 0.0, np.random.default_rng(seed))[..., 0] == 128
        rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
        assert 10 <= len(rows) <= 30
        assert 10 <= len(columns) <= 30
        assert hidden.sum() == len(rows) * len(columns)
        areas.append((rows[0], columns[0]))
    assert np.min(areas) < 5
    assert np.max(areas) > 165
    level = replace(NONE, dropout_p=1.0, dropout_holes=(2, 8))
    shares = [
        (camera_corruptions(white, level, 0.0, np.random.default_rng(i)) == 128).mean()
        for i in range(200)
    ]
    assert 2 * 0.05**2 * 0.5 < min(shares)
    assert 0.07 < max(shares) < 8 * 0.15**2


# endregion

# region draws


def test_shares_of_the_corruptions():
    """`share` of the pictures get one of three corruptions; with every chance at 0 none changes."""
    rgb = photo(32, 32)
    changed = [
        not np.array_equal(camera_corruptions(rgb, NONE, 0.3, np.random.default_rng(i)), rgb)
        for i in range(600)
    ]
    assert 0.25 < np.mean(changed) < 0.35
    assert all(
        np.array_equal(camera_corruptions(rgb, NONE, 0.0, np.random.default_rng(i)), rgb)
        for i in range(50)
    )


@pytest.mark.parametrize(
    ("field", "share"), [("jpeg_p", 0.2), ("shadow_p", 0.15), ("dropout_p", 0.5), ("grid_p", 0.3)]
)
def test_shares_of_each_fault(field, share):
    rgb, level = photo(32, 32), replace(NONE, **{field: share})
    changed = [
        not np.array_equal(camera_corruptions(rgb, level, 0.0, np.random.default_rng(i)), rgb)
        for i in range(400)
    ]
    assert np.mean(changed) == pytest.approx(share, abs=0.06)


def test_drawn_parameters_fill_their_ranges(monkeypatch):
    seen: dict[str, list] = {}

    def note(name: str):
        def noted(rgb, *args):
            seen.setdefault(name, []).append(args)
            return rgb

        return noted

    for name in ("gaussian_noise", "iso_noise", "recompress", "shadow", "grid_mask"):
        monkeypatch.setattr(corruptions, name, note(name))
    rng = np.random.default_rng(0)
    for _ in range(3000):
        camera_corruptions(
            photo(8, 8), replace(NONE, jpeg_p=0.5, shadow_p=0.5, grid_p=0.5), 1.0, rng
        )
    for values, low, high in [
        ([std**2 for std, _ in seen["gaussian_noise"]], 10, 50),
        ([shift for shift, _, _ in seen["iso_noise"]], 0.01, 0.05),
        ([intensity for _, intensity, _ in seen["iso_noise"]], 0.1, 0.3),
        ([quality for (quality,) in seen["recompress"]], 60, 95),
        ([unit for unit, *_ in seen["grid_mask"]], 0.43, 1.0),
    ]:
        slack = 0.01 * (high - low)
        assert low - 1e-6 <= min(values) <= low + slack
        assert high - slack <= max(values) <= high + 1e-6
    assert {len(polygons) for (polygons,) in seen["shadow"]} == {1, 2}
    assert {corners.shape for (polygons,) in seen["shadow"] for corners in polygons} == {(4, 2)}
    corners = np.concatenate([np.concatenate(polygons) for (polygons,) in seen["shadow"]])
    assert 0 <= corners.min() < 0.1
    assert 7.9 < corners.max() < 8


def test_whole_numbers_are_drawn_evenly():
    rng = np.random.default_rng(0)
    counts = np.bincount([corruptions.whole(2, 4, rng) for _ in range(3000)])
    assert (counts[:2] == 0).all()
    assert len(counts) == 5
    assert (abs(counts[2:] - 1000) < 120).all()


# endregion
