"""Poor photos: dark, blurred, cropped or compressed copies of a picture, and the limits below which
a photo counts as poor. No torch."""

from __future__ import annotations

import io
from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image

SHIFTS = ("dark", "blur", "crop", "compression")
FAILED = 0.01  # share of val photos below each limit of brightness, sharpness and size


def shifted(pictures: np.ndarray, kind: str, first: int = 0) -> np.ndarray:
    """Make a poor photo of each picture: a third of the light, out of focus, a crop off the middle,
    or a strong JPEG.

    Args:
        pictures: uint8 (N, size, size, 3), RGB.
        kind: one of `SHIFTS`.
        first: number of the first picture in its split; where a crop lies follows from it, so that
            batches do not matter.

    Returns:
        uint8 (N, size, size, 3).

    Raises:
        ValueError: for another kind.
    """
    if kind not in SHIFTS:
        raise ValueError(f"unknown shift '{kind}': choose one of {', '.join(SHIFTS)}")
    return np.stack([_shift(picture, kind, first + i) for i, picture in enumerate(pictures)])


def _shift(rgb: np.ndarray, kind: str, number: int) -> np.ndarray:
    size = rgb.shape[0]
    if kind == "dark":
        return np.rint(rgb * np.float32(0.35)).astype(np.uint8)
    if kind == "blur":
        return cv2.GaussianBlur(rgb, (0, 0), size / 80)
    if kind == "crop":
        side = max(1, round(0.6 * size))
        far = size - side
        y, x = ((0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2))[number % 5]
        return cv2.resize(
            np.ascontiguousarray(rgb[y : y + side, x : x + side]),
            (size, size),
            interpolation=cv2.INTER_LINEAR,
        )
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=10)
    return np.array(Image.open(buffer))


def fit_photo(quality: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Find the limits below which a photo counts as poor: the value that `FAILED` of val photos lie
    below.

    Args:
        quality: {measure: float (N,)} of val plants: `photo_quality`, and `short_side`, px as the
            photo came.

    Returns:
        {measure: limit}; half the smallest value where there are fewer than 100 photos.
    """
    return {
        name: float(np.quantile(values, FAILED) if len(values) >= 1 / FAILED else values.min() / 2)
        for name, values in quality.items()
        if len(values)
    }
