"""What cameras and storage do to a picture (tier 2), and holes that hide parts of it. uint8 in
OpenCV and numpy, no torch.

Random fields are slices of tables that are made once: fresh normal draws for one picture cost more
than its decode.
"""

import math
from functools import cache

import cv2
import numpy as np

from common.train.augment_levels import Level

HOLE = 128  # grey of what is hidden: near the mean, which normalisation makes 0
BANK = 1 << 20
STEPS = 32  # of the uint8 bank, per standard deviation


def camera_corruptions(
    rgb: np.ndarray, level: Level, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw the corruptions of one picture: one of blur, Gaussian or ISO noise; JPEG; shadow; holes;
    a grid of holes.

    Args:
        rgb: uint8 (size, size, 3).
        level: ranges and chances.
        share: chance of blur, Gaussian or ISO noise, together.
        rng: source of every draw.

    Returns:
        uint8 (size, size, 3).
    """
    size = rgb.shape[0]
    if rng.random() < share:
        kind = whole(0, 2, rng)
        if kind == 0:
            kernel = level.blur_kernels[whole(0, len(level.blur_kernels) - 1, rng)]
            rgb = cv2.GaussianBlur(rgb, (kernel, kernel), 0)
        elif kind == 1:
            rgb = gaussian_noise(rgb, math.sqrt(between(*level.noise_variance, rng)), rng)
        else:
            rgb = iso_noise(
                rgb, between(*level.iso_colour_shift, rng), between(*level.iso_intensity, rng), rng
            )
    if rng.random() < level.jpeg_p:
        rgb = recompress(rgb, whole(*level.jpeg_quality, rng))
    if rng.random() < level.shadow_p:
        rgb = shadow(rgb, [size * rng.random((4, 2)) for _ in range(whole(1, 2, rng))])
    if rng.random() < level.dropout_p:
        sides = [
            [between(*level.dropout_side, rng) for _ in "hw"]
            for _ in range(whole(*level.dropout_holes, rng))
        ]
        rgb = coarse_dropout(
            rgb, [((1 - h) * rng.random(), (1 - w) * rng.random(), h, w) for h, w in sides]
        )
    if rng.random() < level.grid_p:
        rgb = grid_mask(
            rgb, between(*level.grid_unit, rng), level.grid_hole, rng.random(), rng.random()
        )
    return rgb


def between(low: float, high: float, rng: np.random.Generator) -> float:
    """Draw uniformly from low..high; `rng.uniform` takes five times as long for one number."""
    return low + (high - low) * rng.random()


def whole(low: int, high: int, rng: np.random.Generator) -> int:
    """Draw one of low, low + 1, ..., high; `rng.integers` takes ten times as long for one
    number.
    """
    return low + int((high - low + 1) * rng.random())


def gaussian_noise(rgb: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Add normal noise of standard deviation `std` (of 255) to every value, clipped: uint8 of any
    shape -> the same.

    The noise comes in steps of std / 32 and ends at 4 std.
    """
    noise = _slice(_banks()[1], rgb.size, rng).reshape(rgb.shape)
    return cv2.addWeighted(rgb, 1.0, noise, std / STEPS, -128.0 * std / STEPS)


def iso_noise(
    rgb: np.ndarray, colour_shift: float, intensity: float, rng: np.random.Generator
) -> np.ndarray:
    """Add a sensor's noise: shot noise in lightness that follows the picture's contrast, and shifts
    of hue.

    In HLS (degrees, 0..1, 0..1): hue + N(0, 360 colour_shift intensity); lightness + P / 255 (1 -
    lightness), where P is Poisson with mean 255 x intensity x standard deviation of the picture's
    lightness. As `iso_noise` of Albumentations 1.3.

    Args:
        rgb: uint8 (height, width, 3).
        colour_shift: share of the circle of hues, times `intensity`.
        intensity: 0..1.

    Returns:
        uint8 (height, width, 3).
    """
    hls = cv2.cvtColor(np.multiply(rgb, np.float32(1 / 255), dtype=np.float32), cv2.COLOR_RGB2HLS)
    hue, light, colour = cv2.split(hls)
    mean = 255.0 * intensity * float(cv2.meanStdDev(light)[1][0, 0])
    normal, _, uniform = _banks()
    # + 360 keeps hues positive: the conversion back takes whole turns out of those alone
    hue = cv2.scaleAdd(
        _slice(normal, hue.size, rng).reshape(hue.shape),
        360.0 * colour_shift * intensity,
        hue + np.float32(360),
    )
    shot = cv2.LUT(
        _slice(uniform, hue.size, rng).reshape(hue.shape), poisson_quantiles(mean) / np.float32(255)
    )
    light += shot * (1 - light)
    return cv2.convertScaleAbs(
        cv2.cvtColor(cv2.merge((hue, light, colour)), cv2.COLOR_HLS2RGB), alpha=255.0
    )


def poisson_quantiles(mean: float) -> np.ndarray:
    """The counts at the 256 quantiles 1/512, 3/512, ... of a Poisson distribution, float32 (256,);
    `mean` 0 to 100.
    """
    counts = np.arange(1, 2 + int(mean + 6 * math.sqrt(mean) + 6))
    chances = np.cumprod(np.concatenate(([math.exp(-mean)], mean / counts)))
    return np.searchsorted(np.cumsum(chances), (np.arange(256) + 0.5) / 256).astype(np.float32)


def recompress(rgb: np.ndarray, quality: int) -> np.ndarray:
    """Store as JPEG (colour at half size) and read again: uint8 (height, width, 3) -> the same."""
    data = cv2.imencode(
        ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )[1]
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def shadow(rgb: np.ndarray, polygons: list[np.ndarray]) -> np.ndarray:
    """Darken by half within the hulls of point sets (K, 2) in px (x, y), with an edge of 5 px:
    uint8 (h, w, 3) -> the same.
    """
    light = np.full(rgb.shape[:2], 254, np.uint8)
    for corners in polygons:
        cv2.fillConvexPoly(light, cv2.convexHull(corners.astype(np.int32)), 127)
    light = cv2.blur(light, (5, 5))
    return cv2.multiply(rgb, cv2.merge((light, light, light)), scale=1 / 254)


def coarse_dropout(rgb: np.ndarray, holes: list[tuple[float, float, float, float]]) -> np.ndarray:
    """Hide rectangles under grey.

    Args:
        rgb: uint8 (size, size, 3).
        holes: top, left, height, width of each, as shares of the side.

    Returns:
        uint8 (size, size, 3), own memory.
    """
    size, out = rgb.shape[0], rgb.copy()
    for hole in holes:
        top, left, height, width = (round(size * part) for part in hole)
        out[top : top + height, left : left + width] = HOLE
    return out


def grid_mask(rgb: np.ndarray, unit: float, hole: float, down: float, right: float) -> np.ndarray:
    """Hide a regular grid of squares under grey (GridMask, Chen et al. 2020, without its rotation).

    Args:
        rgb: uint8 (size, size, 3).
        unit: distance of the squares, as a share of the side.
        hole: side of a square, as a share of the unit.
        down, right: offset of the grid, 0..1 units.

    Returns:
        uint8 (size, size, 3), own memory.
    """
    size, out = rgb.shape[0], rgb.copy()
    step = max(2, round(size * unit))
    rows, columns = (
        (np.arange(size) + int(step * shift)) % step < round(step * hole) for shift in (down, right)
    )
    out[np.ix_(rows, columns)] = HOLE
    return out


@cache
def _banks() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal draws as float32 and as uint8 (128 + 32 n), uniform uint8; BANK of each."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(BANK, dtype=np.float32)
    coarse = np.clip(np.rint(128 + STEPS * normal), 0, 255).astype(np.uint8)
    return normal, coarse, rng.integers(0, 256, BANK, dtype=np.uint8)


def _slice(bank: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    if 2 * count > len(bank):  # room for many starts
        bank = np.resize(bank, 2 * count)
    start = whole(0, len(bank) - count, rng)
    return bank[start : start + count]
