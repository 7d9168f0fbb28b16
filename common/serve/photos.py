"""A photo as a model takes it. Apart from `predictor`, since the process that decodes risky photos
needs no ONNX Runtime.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.images import middle_of, read_sized, resize_to_model


@dataclass(frozen=True)
class Photo:
    """A picture for the model: pixels uint8 (size, size, 3) RGB, the width and height of the
    upright original, and perhaps its middle as a second view.
    """

    pixels: np.ndarray
    width: int
    height: int
    middle: np.ndarray | None = None


def read_at_size(
    source: bytes | Path | str, size: int, middle: float | None = None, **limits: int | None
) -> Photo:
    """Read a picture at `size` px a side, and the `middle` share of its sides as another.

    The limits and errors are those of `images.read_sized`.
    """
    rgb, (width, height) = read_sized(source, **limits)
    part = middle and resize_to_model(middle_of(rgb, middle), size)
    return Photo(resize_to_model(rgb, size), width, height, part)
