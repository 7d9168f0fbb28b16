"""RandAugment (Cubuk et al. 2020) on uint8 in OpenCV: the 14 operations as Pillow has them, in a
tenth of its time. No torch.
"""

import math
from collections.abc import Callable
from functools import cache

import cv2
import numpy as np

OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "rotate",
    "solarize",
    "posterize",
    "colour",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
FILL = (128, 128, 128)  # of what an operation moves in from outside
RAMP = np.arange(256)
LUMA = np.array([0.299, 0.587, 0.114])
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # Pillow's ImageFilter.SMOOTH


def rand_augment(rgb: np.ndarray, ops: int, magnitude: int, rng: np.random.Generator) -> np.ndarray:
    """Apply N random operations of 14 at magnitude M of 10 (Cubuk et al. 2020), each in a random
    direction.

    Args:
        rgb: uint8 (size, size, 3).
        ops: N.
        magnitude: M, 0..10.

    Returns:
        uint8 (size, size, 3).
    """
    for _ in range(ops):
        name = OPERATIONS[int(len(OPERATIONS) * rng.random())]
        rgb = operate(rgb, name, magnitude / 10.0, 1.0 if rng.random() < 0.5 else -1.0)
    return rgb


def operate(rgb: np.ndarray, name: str, strength: float, sign: float) -> np.ndarray:
    """Apply one operation.

    Args:
        rgb: uint8 (height, width, 3).
        name: one of OPERATIONS.
        strength: 0..1. At 1: 30 degrees, shear 0.3, translation 0.45 of the side, 4 bits, gain 0.1
            or 1.9.
        sign: 1 or -1, the direction of what has one.

    Returns:
        uint8 (height, width, 3).
    """
    height, width = rgb.shape[:2]
    gain, shear = 1.0 + sign * 0.9 * strength, sign * 0.3 * strength
    match name:
        case "identity":
            return rgb
        case "autocontrast":
            return _by_channel(rgb, _stretch)
        case "equalize":
            return _by_channel(rgb, _flatten)
        case "solarize":
            return cv2.LUT(rgb, _solarize(round(256 - 256 * strength)))
        case "posterize":
            return rgb & np.uint8(256 - (1 << round(4 * strength)))
        case "colour":
            return cv2.transform(rgb, np.eye(3) * gain + np.outer(np.ones(3), LUMA) * (1 - gain))
        case "contrast":
            grey = int(cv2.mean(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))[0] + 0.5)
            return cv2.addWeighted(rgb, gain, rgb, 0.0, grey * (1 - gain))
        case "brightness":
            return cv2.addWeighted(rgb, gain, rgb, 0.0, 0.0)
        case "sharpness":
            kernel = SMOOTH * (1 - gain)
            kernel[1, 1] += gain
            out = cv2.filter2D(rgb, -1, kernel)
            for edge in (
                np.s_[0],
                np.s_[-1],
                np.s_[:, 0],
                np.s_[:, -1],
            ):  # the filter is not defined there
                out[edge] = rgb[edge]
            return out
        case "rotate":
            cos, sin = (
                math.cos(math.radians(30.0 * strength)),
                sign * math.sin(math.radians(30.0 * strength)),
            )
            return _about_the_middle(rgb, cos, -sin, sin, cos)
        case "shear_x":
            return _about_the_middle(rgb, 1, shear, 0, 1)
        case "shear_y":
            return _about_the_middle(rgb, 1, 0, shear, 1)
        case "translate_x":
            return _moved(rgb, [[1, 0, sign * 0.45 * strength * width], [0, 1, 0]])
        case "translate_y":
            return _moved(rgb, [[1, 0, 0], [0, 1, sign * 0.45 * strength * height]])
    raise ValueError(f"{name} is no operation of RandAugment; known: {', '.join(OPERATIONS)}")


def affine(
    picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int], border: int
) -> np.ndarray:
    """Warp bilinearly.

    Args:
        picture: uint8 (height, width, 3).
        matrix: float64 (2, 3), from px of the result to px of `picture`.
        size: width, height of the result.
        border: cv2.BORDER_*, for what lies beyond the picture; a constant one is grey.

    Returns:
        uint8 (size[1], size[0], 3).
    """
    # OpenCV 5 warps four channels in a half to two thirds of the time of three, to the same bytes
    four = cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA)
    four = cv2.warpAffine(
        four,
        matrix,
        size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=border,
        borderValue=FILL,
    )
    return cv2.cvtColor(four, cv2.COLOR_BGRA2BGR)


def _about_the_middle(rgb: np.ndarray, a: float, b: float, c: float, d: float) -> np.ndarray:
    """The pixel at offset (x, y) from the middle is read at (a x + b y, c x + d y)."""
    x, y = (rgb.shape[1] - 1) / 2, (rgb.shape[0] - 1) / 2
    return _moved(rgb, [[a, b, x - a * x - b * y], [c, d, y - c * x - d * y]])


def _moved(rgb: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    return affine(rgb, np.array(matrix), (rgb.shape[1], rgb.shape[0]), cv2.BORDER_CONSTANT)


@cache
def _solarize(threshold: int) -> np.ndarray:
    return np.where(RAMP < threshold, RAMP, 255 - RAMP).astype(np.uint8)


def _by_channel(rgb: np.ndarray, table_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    channels = cv2.split(rgb)
    return cv2.merge([cv2.LUT(channel, table_of(channel)) for channel in channels])


def _stretch(channel: np.ndarray) -> np.ndarray:
    """The darkest value becomes 0, the lightest 255."""
    low, high = cv2.minMaxLoc(channel)[:2]
    if high <= low:
        return RAMP.astype(np.uint8)
    scale = 255.0 / (high - low)
    return np.clip(RAMP * scale - low * scale, 0, 255).astype(np.uint8)


def _flatten(channel: np.ndarray) -> np.ndarray:
    """All values equally often, as far as a table of values can."""
    counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    last = counts[np.flatnonzero(counts)[-1]]
    step = (counts.sum() - last) // 255
    if step == 0:
        return RAMP.astype(np.uint8)
    below = np.cumsum(counts) - counts
    return np.minimum((step // 2 + below) // step, 255).astype(np.uint8)
