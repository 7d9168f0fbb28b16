"""Training views against slow plain references and against evaluation's resize."""

import math
import multiprocessing
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from common import images
from common.train import augment, corruptions, recipes
from common.train.augment import LEVELS, LUMA, Level, colour_matrix, decode_scale, train_view, warp

STILL = Level(flip_p=0, rotate_p=0, jitter_p=0, exposure_p=0, jpeg_p=0, shadow_p=0, grey_p=0)
RECIPE = replace(recipes.get("hierarchical"), image_size=32, randaugment_ops=0)


def photo(width: int = 48, height: int = 48, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(
        rng.integers(0, 256, (6, 6, 3)).astype(np.uint8),
        (width, height),
        interpolation=cv2.INTER_CUBIC,
    )


def jpeg(rgb: np.ndarray, quality: int = 95) -> bytes:
    return cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


# region geometry


def slow_warp(
    picture: np.ndarray,
    box: tuple[float, ...],
    size: int,
    mirror: bool,
    degrees: float,
    border: str,
) -> np.ndarray:
    """Turn about the middle of the view, mirror it, scale to the box, read bilinearly, all in
    float64.
    """
    x0, y0, w, h = box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    v, u = np.mgrid[:size, :size] - (size - 1) / 2
    a, b = u * cos + v * sin, -u * sin + v * cos
    x = x0 + ((-a if mirror else a) + size / 2) * w / size - 0.5
    y = y0 + (b + size / 2) * h / size - 0.5
    far = 2 * max(picture.shape)
    padded = np.pad(picture.astype(float), ((far, far), (far, far), (0, 0)), border)
    i, j = np.floor(x).astype(int), np.floor(y).astype(int)
    p, q = (x - i)[..., None], (y - j)[..., None]
    i, j = i + far, j + far
    return (1 - q) * ((1 - p) * padded[j, i] + p * padded[j, i + 1]) + q * (
        (1 - p) * padded[j + 1, i] + p * padded[j + 1, i + 1]
    )


def test_the_whole_picture_without_a_turn_is_the_picture_and_mirrored_its_mirror_image():
    picture = photo(32, 32)
    np.testing.assert_array_equal(warp(picture, (0, 0, 32, 32), 32, False, 0.0), picture)
    np.testing.assert_array_equal(warp(picture, (0, 0, 32, 32), 32, True, 0.0), picture[:, ::-1])


def test_a_quarter_turn_is_clockwise():
    picture = photo(32, 32)
    assert (
        np.abs(
            warp(picture, (0, 0, 32, 32), 32, False, 90.0).astype(int) - np.rot90(picture, -1)
        ).max()
        <= 1
    )


@pytest.mark.parametrize(
    ("mirror", "degrees"), [(False, 30.0), (True, -45.0), (False, 12.5), (True, 0.01)]
)
def test_a_turned_view_equals_the_slow_reference(mirror, degrees):
    picture, box = photo(50, 40), (7.3, 4.1, 33.0, 29.5)
    got, want = (
        warp(picture, box, 24, mirror, degrees),
        slow_warp(picture, box, 24, mirror, degrees, "reflect"),
    )
    assert np.abs(got - want).max() <= 6
    assert np.abs(got - want).mean() < 1.0  # OpenCV counts in 1/32 px


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    "box",
    [
        (7.3, 4.1, 33.0, 29.5),
        (0.0, 0.0, 50.0, 40.0),
        (49.2, 0.0, 0.3, 40.0),
        (10.6, 20.4, 12.0, 9.0),
    ],
)
def test_an_upright_view_equals_the_slow_reference_on_whole_pixels(box, mirror):
    picture = photo(50, 40)
    left, top, right, bottom = (
        round(v) for v in (box[0], box[1], box[0] + box[2], box[1] + box[3])
    )
    right = max(right, left + 1)
    want = slow_warp(
        picture[top:bottom, left:right], (0, 0, right - left, bottom - top), 24, mirror, 0.0, "edge"
    )
    assert np.abs(warp(picture, box, 24, mirror, 0.0) - want).max() <= 1.01


def test_crops_keep_to_area_ratio_and_picture():
    rng, areas, ratios = np.random.default_rng(0), [], []
    for _ in range(2000):
        x, y, w, h = augment._draw_crop(300, 300, LEVELS["full"], rng)
        assert 0 <= x
        assert x + w <= 300 + 1e-9
        assert 0 <= y
        assert y + h <= 300 + 1e-9
        areas.append(w * h / 90_000)
        ratios.append(w / h)
    assert 0.6 <= min(areas) < 0.62
    assert 0.9 < max(areas) <= 1.0
    assert 0.75 <= min(ratios) < 0.78
    assert 1.3 < max(ratios) <= 1.3301
    assert augment._draw_crop(1000, 10, LEVELS["full"], rng) == (0.0, 0.0, 1000.0, 10.0), (
        "no crop of that shape fits"
    )


# endregion

# region decoding at a smaller scale


def test_scales_by_px_of_the_crop_per_px_of_the_view():
    for side, scale in (
        (0.5, 1),
        (1.59, 1),
        (1.61, 2),
        (3.19, 2),
        (3.21, 4),
        (6.39, 4),
        (6.41, 8),
        (40.0, 8),
    ):
        assert decode_scale(side**2) == scale


def texture(side: int) -> np.ndarray:
    """Detail at every fineness, falling off as in photos."""
    rng, total, cells = np.random.default_rng(0), np.zeros((side, side, 3)), 8
    while cells <= side:
        total += cells**-0.5 * cv2.resize(
            rng.standard_normal((cells, cells, 3)), (side, side), interpolation=cv2.INTER_CUBIC
        )
        cells *= 2
    return np.clip(128 + 45 * total / total.std(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("ratio", [1.0, 1.3, 1.55, 1.65, 2.0, 2.5, 3.1, 3.3, 4.5, 6.3, 6.5, 9.0])
def test_the_scale_that_is_chosen_is_about_the_best(ratio):
    """Against evaluation's antialiased resize of the same crop: no other scale is nearer by more
    than 2 dB, at any shrinkage.
    """
    data = jpeg(texture(512), 92)
    full = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    size = int(480 / ratio)
    side = ratio * size
    want = np.array(
        Image.fromarray(full).resize(
            (size, size), Image.Resampling.BILINEAR, box=(13.3, 21.7, 13.3 + side, 21.7 + side)
        )
    )
    decibels = {}
    for scale, how in augment.DECODE.items():
        view = warp(
            cv2.imdecode(np.frombuffer(data, np.uint8), how),
            (13.3 / scale, 21.7 / scale, side / scale, side / scale),
            size,
            False,
            1e-9,
        )
        decibels[scale] = 10 * math.log10(255**2 / ((view.astype(float) - want) ** 2).mean())
    assert decibels[decode_scale(ratio**2)] > max(decibels.values()) - 2.0, decibels
    assert decibels[decode_scale(ratio**2)] > 26


@pytest.mark.parametrize(("width", "height"), [(301, 257), (260, 262), (511, 130)])
def test_a_smaller_decode_shows_the_same_place(monkeypatch, width, height):
    """Sizes that are no multiple of the scale: the last, partial pixel must not shift the view."""
    monkeypatch.setitem(LEVELS, "full", replace(STILL, rotate_p=1.0, rotate_degrees=1e-9))
    picture = photo(width, height)
    data = jpeg(picture)
    for size in (24, 48, 96):
        for seed in range(4):
            box = augment._draw_crop(width, height, STILL, np.random.default_rng(seed))
            view = train_view(
                data,
                width,
                height,
                replace(RECIPE, image_size=size, tier2_share=0.0),
                np.random.default_rng(seed),
            )
            want = np.array(
                Image.fromarray(picture).resize(
                    (size, size),
                    Image.Resampling.BILINEAR,
                    box=(box[0], box[1], box[0] + box[2], box[1] + box[3]),
                )
            )
            assert np.abs(view.astype(int) - want).mean() < 2.5


# endregion

# region colour


def step_by_step(
    rgb: np.ndarray, b: float, c: float, s: float, turn: float, c2: float, b2: float
) -> np.ndarray:
    """Brightness, contrast about the mean grey of what is there by then, saturation, hue, exposure,
    each in float64.
    """
    x = rgb.astype(np.float64) * b
    x = (x - (x @ LUMA).mean()) * c + (x @ LUMA).mean()
    grey = (x @ LUMA)[..., None]
    x = (x - grey) * s + grey
    to_yiq = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    yiq = x @ to_yiq.T
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    yiq = np.stack(
        [yiq[..., 0], cos * yiq[..., 1] + sin * yiq[..., 2], cos * yiq[..., 2] - sin * yiq[..., 1]],
        -1,
    )
    return (yiq @ np.linalg.inv(to_yiq).T) * c2 + 255 * b2


class Dice:
    """A generator that gives what it is told, in order, and then fails."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)


def place(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low)


@pytest.mark.parametrize(
    ("b", "c", "s", "turn", "c2", "b2"),
    [(1.25, 0.75, 1.2, 0.06, 1.1, -0.15), (0.7, 1.3, 0.7, -0.1, 0.8, 0.2)],
)
def test_drawn_colours_equal_one_operation_after_the_other(b, c, s, turn, c2, b2):
    bgr = photo()
    dice = Dice(
        0.0,
        *(place(v, 0.7, 1.3) for v in (b, c, s)),
        place(turn, -0.1, 0.1),
        0.0,
        place(c2, 0.8, 1.2),
        place(b2, -0.2, 0.2),
        0.99,
    )
    matrix = augment._draw_colours(bgr, LEVELS["full"], dice)
    want = step_by_step(bgr[..., ::-1], b, c, s, turn, c2, b2)
    np.testing.assert_allclose(
        bgr.astype(np.float64) @ matrix[:, :3].T + matrix[:, 3], want, atol=0.05
    )
    assert np.abs(cv2.transform(bgr, matrix) - np.clip(want, 0, 255)).max() <= 1.0


def test_no_draw_leaves_the_colours_and_grey_is_the_luma():
    bgr = photo()
    np.testing.assert_array_equal(
        cv2.transform(bgr, augment._draw_colours(bgr, LEVELS["full"], Dice(0.99, 0.99, 0.99))),
        bgr[..., ::-1],
    )
    grey = cv2.transform(bgr, augment._draw_colours(bgr, LEVELS["full"], Dice(0.99, 0.99, 0.0)))
    assert np.abs(grey - (bgr[..., ::-1] @ LUMA)[..., None]).max() <= 1


@pytest.mark.parametrize("turn", [-0.1, -0.03, 0.05, 0.1])
def test_a_turn_of_hue_keeps_luma_and_goes_as_far_as_in_hsv_on_average(turn):
    hues = np.zeros((1, 360, 3), np.float32)
    hues[0, :, 0], hues[0, :, 1], hues[0, :, 2] = np.arange(360), 0.2, 0.6
    colours = cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0].astype(np.float64)
    turned = colours @ colour_matrix(1.0, 0.0, 1.0, turn)[:, 2::-1].T
    np.testing.assert_allclose(turned @ LUMA, colours @ LUMA, atol=1e-6)
    after = cv2.cvtColor(turned[None].astype(np.float32), cv2.COLOR_RGB2HSV)[0, :, 0]
    by = (after - np.arange(360) + 180) % 360 - 180
    assert by.mean() == pytest.approx(360 * turn, rel=0.1)
    assert np.abs(by - 360 * turn).max() < 0.75 * 360 * abs(turn), "YIQ's circle is not quite HSV's"


def test_drawn_colours_fill_their_ranges(monkeypatch):
    seen, level = [], replace(LEVELS["full"], grey_p=0.25)
    monkeypatch.setattr(augment, "colour_matrix", lambda *values: seen.append(values))
    rng, grey = np.random.default_rng(0), np.full((4, 4, 3), 100, np.uint8)
    for _ in range(4000):
        augment._draw_colours(grey, level, rng)
    gain, offset, chroma, turn = np.array(seen).T
    lively = chroma[chroma > 0]
    assert 0.25 == pytest.approx(np.mean(chroma == 0), abs=0.03)
    assert 0.8 == pytest.approx(np.mean(turn != 0), abs=0.03)
    assert 0.7 <= lively.min() < 0.705
    assert 1.295 < lively.max() <= 1.3
    assert -0.1 <= turn.min() < -0.098
    assert 0.098 < turn.max() <= 0.1
    assert 0.7 * 0.7 * 0.8 <= gain.min() < 0.5
    assert 1.6 < gain.max() <= 1.3 * 1.3 * 1.2
    only_exposure = (turn == 0) & (gain != 1)
    assert np.mean(only_exposure) == pytest.approx(0.1, abs=0.02)
    assert 48 < np.abs(offset[only_exposure]).max() <= 51


# endregion

# region whole views


@pytest.mark.parametrize(
    ("width", "height"), [(33, 31), (64, 64), (200, 67), (129, 301), (512, 384), (3, 700)]
)
@pytest.mark.parametrize("size", [32, 45])
def test_views_of_odd_sizes(width, height, size):
    recipe = replace(recipes.get("hierarchical"), image_size=size)
    for seed in range(5):
        view = train_view(
            jpeg(photo(width, height)), width, height, recipe, np.random.default_rng(seed)
        )
        assert view.shape == (size, size, 3)
        assert view.dtype == np.uint8
        assert view.std() > 0


def views(order: list[int]) -> dict[int, bytes]:
    """Views of one picture by position, every fault among them."""
    corruptions._banks.cache_clear()
    data, recipe = (
        jpeg(photo(80, 60)),
        replace(
            recipes.get("hierarchical"), image_size=32, augment="ultra_strong", tier2_share=0.9
        ),
    )
    return {
        i: train_view(data, 80, 60, recipe, np.random.default_rng([7, 0, i])).tobytes()
        for i in order
    }


def test_a_view_is_a_function_of_its_generator_alone():
    first = views(list(range(24)))
    assert len(set(first.values())) == 24
    assert views(list(reversed(range(24)))) == first, "the order of views must not matter"
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(views, (list(range(8, 16)),)) == {i: first[i] for i in range(8, 16)}


def test_grey_jpegs_become_rgb():
    data = cv2.imencode(".jpg", photo()[..., 0])[1].tobytes()
    view = train_view(data, 48, 48, replace(RECIPE, tier2_share=0.0), np.random.default_rng(0))
    assert view.shape == (32, 32, 3)


def test_plain_is_what_evaluation_sees():
    data = jpeg(photo(300, 200))
    view = train_view(
        data, 300, 200, replace(RECIPE, augment="plain", tier2_share=0.3), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(view, images.resize_to_model(images.read_rgb(data), 32))


def test_levels_grow_stronger():
    """Mean change against the plain view."""
    data, recipe = jpeg(photo(300, 200)), replace(RECIPE, tier2_share=0.3)
    plain = train_view(
        data, 300, 200, replace(recipe, augment="plain"), np.random.default_rng(0)
    ).astype(int)
    change = {
        name: np.mean(
            [
                np.abs(
                    train_view(
                        data, 300, 200, replace(recipe, augment=name), np.random.default_rng(i)
                    )
                    - plain
                ).mean()
                for i in range(150)
            ]
        )
        for name in ("light", "medium", "full", "strong", "ultra_strong")
    }
    assert list(change) == sorted(change, key=change.__getitem__), change
    assert list(LEVELS) == ["full", "gentle", "plain", "light", "medium", "strong", "ultra_strong"]


def test_only_ultra_strong_hides_parts():
    assert {name for name, level in LEVELS.items() if level.dropout_p or level.grid_p} == {
        "ultra_strong"
    }
    level, data = (
        replace(
            STILL, dropout_p=LEVELS["ultra_strong"].dropout_p, grid_p=LEVELS["ultra_strong"].grid_p
        ),
        np.full((64, 64, 3), 255, np.uint8),
    )
    hidden = [
        (corruptions.camera_corruptions(data, level, 0.0, np.random.default_rng(i)) == 128).any()
        for i in range(400)
    ]
    assert np.mean(hidden) == pytest.approx(1 - 0.5 * 0.7, abs=0.06)


@pytest.mark.parametrize("level", ["full", "plain"])
def test_bytes_that_are_no_picture_raise(level):
    for data in (b"no picture", b"\xff\xd8\xff\xe0 cut off", b""):
        with pytest.raises((ValueError, cv2.error)):
            train_view(data, 64, 64, replace(RECIPE, augment=level), np.random.default_rng(0))


# endregion


def test_pillow_reads_the_same_pixels_as_the_decoder():
    """The trainer decodes with OpenCV, evaluation with Pillow: both must see one picture."""
    import io

    data = jpeg(photo(64, 48))
    mine = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    theirs = np.array(Image.open(io.BytesIO(data)))
    assert np.abs(mine.astype(int) - theirs).max() <= 6
    assert np.abs(mine.astype(int) - theirs).mean() < 0.5
