"""Brushes shared by the demo's drawings: smooth noise, colours and shapes. No torch."""

from collections.abc import Sequence

import cv2
import numpy as np

Rng = np.random.Generator
Range = tuple[float, float]
SUB = 4  # fractional bits of OpenCV's drawing coordinates


def noise(rng: Rng, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise, float32 (height, width) of mean 0 and deviation about 1, with about `cells`
    bumps along the longer side.
    """
    step = max(height, width) / cells
    shape = [max(2, round(side / step)) + 2 for side in (height, width)]
    grid = rng.standard_normal(shape, dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def ramp(value: np.ndarray, zero: float, one: float) -> np.ndarray:
    """Linear from 0 where `value` is `zero` to 1 where it is `one`, clipped; `zero` may be the
    larger.
    """
    return np.clip((value - zero) / (one - zero), 0, 1)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Hue in degrees, saturation and value in 0..1 -> RGB float32 (3,) in 0..255."""
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    rgb = 255 * (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
    return rgb.astype(np.float32)


def random_colour(
    rng: Rng, hue: Range = (0, 360), saturation: Range = (0.2, 0.9), value: Range = (0.2, 0.95)
) -> np.ndarray:
    """A colour drawn uniformly from ranges of hue, saturation and value -> RGB float32 (3,)."""
    return hsv(rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value))


def tinted(tone: np.ndarray, colour: Sequence[float] | np.ndarray) -> np.ndarray:
    """tone (h, w) times an RGB colour -> float32 (h, w, 3), plane by plane because numpy is slow
    over a last axis of 3.
    """
    tone = tone.astype(np.float32, copy=False)
    return cv2.merge([tone * np.float32(c) for c in colour])


def mix(image: np.ndarray, amount: np.ndarray, colour: Sequence[float] | np.ndarray) -> None:
    """Moves `image` (h, w, 3) in place towards `colour`, an RGB triple or an image, by `amount`
    (h, w) in 0..1.
    """
    amount = amount.astype(np.float32, copy=False)
    image *= cv2.merge([1 - amount] * 3)
    if np.ndim(colour) == 1:
        image += tinted(amount, colour)
    else:
        image += colour * cv2.merge([amount] * 3)


def _rgb(colour: float | np.ndarray) -> list[float]:
    return np.full(3, colour).tolist()


def _fixed(points: Sequence | np.ndarray) -> np.ndarray:
    return np.round(np.asarray(points, float) * (1 << SUB)).astype(np.int32)


def area(image: np.ndarray, points: Sequence | np.ndarray, colour: float | np.ndarray) -> None:
    """Fills the polygon `points` (n, 2) in place."""
    cv2.fillPoly(image, [_fixed(points)], _rgb(colour), cv2.LINE_AA, SUB)


def box(
    image: np.ndarray, x0: float, y0: float, x1: float, y1: float, colour: float | np.ndarray
) -> None:
    """Fills an upright rectangle of whole pixels, both corners included, in place."""
    cv2.rectangle(image, (int(x0), int(y0)), (int(x1), int(y1)), _rgb(colour), -1)


def line(
    image: np.ndarray, points: Sequence | np.ndarray, colour: float | np.ndarray, thick: float
) -> None:
    """Draws the open line through `points` (n, 2), at least one pixel thick, in place."""
    width = max(1, round(thick))
    cv2.polylines(image, [_fixed(points)], False, _rgb(colour), width, cv2.LINE_AA, SUB)


def oval(
    image: np.ndarray,
    centre: Sequence[float] | np.ndarray,
    radii: Sequence[float] | np.ndarray,
    colour: float | np.ndarray,
    degrees: float = 0,
) -> None:
    """Fills the ellipse of the two `radii`, turned clockwise by `degrees`, in place."""
    centre, radii = _fixed(centre).tolist(), _fixed(np.maximum(radii, 0.5)).tolist()
    cv2.ellipse(image, centre, radii, degrees, 0, 360, _rgb(colour), -1, cv2.LINE_AA, SUB)
