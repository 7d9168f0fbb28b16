"""RandAugment's 14 operations against Pillow's own, and how they are drawn."""

from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from common.train import randaugment
from common.train.randaugment import OPERATIONS, operate, rand_augment

GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
# largest difference to Pillow: it cuts where OpenCV rounds, twice where an operation blends two
# uint8 pictures
LARGEST = {
    "identity": 0,
    "autocontrast": 0,
    "equalize": 0,
    "solarize": 0,
    "posterize": 0,
    "colour": 2,
    "contrast": 2,
    "brightness": 1,
    "sharpness": 2,
}


def photo(width: int = 61, height: int = 61, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(
        rng.integers(20, 236, (7, 7, 3)).astype(np.float32),
        (width, height),
        interpolation=cv2.INTER_CUBIC,
    )
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def pillow(rgb: np.ndarray, name: str, m: float, sign: float) -> np.ndarray:
    """The operation as RandAugment's published code has it."""
    image = Image.fromarray(rgb)
    gain, w, h = 1.0 + sign * 0.9 * m, image.width, image.height

    def affine(*matrix: float) -> Image.Image:
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix,
            Image.Resampling.BILINEAR,
            fillcolor=(128, 128, 128),
        )

    return np.array(
        {
            "identity": lambda: image,
            "autocontrast": lambda: ImageOps.autocontrast(image),
            "equalize": lambda: ImageOps.equalize(image),
            "rotate": lambda: image.rotate(
                sign * 30.0 * m, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
            ),
            "solarize": lambda: ImageOps.solarize(image, round(256 - 256 * m)),
            "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * m)),
            "colour": lambda: ImageEnhance.Color(image).enhance(gain),
            "contrast": lambda: ImageEnhance.Contrast(image).enhance(gain),
            "brightness": lambda: ImageEnhance.Brightness(image).enhance(gain),
            "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(gain),
            "shear_x": lambda: affine(1, sign * 0.3 * m, -sign * 0.15 * m * h, 0, 1, 0),
            "shear_y": lambda: affine(1, 0, 0, sign * 0.3 * m, 1, -sign * 0.15 * m * w),
            "translate_x": lambda: affine(1, 0, sign * 0.45 * m * w, 0, 1, 0),
            "translate_y": lambda: affine(1, 0, 0, 0, 1, sign * 0.45 * m * h),
        }[name]()
    )


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", LARGEST)
def test_colours_equal_pillow(name, strength):
    for seed, sign in ((0, 1.0), (1, -1.0)):
        rgb = photo(seed=seed)
        got, want = (
            operate(rgb, name, strength, sign).astype(int),
            pillow(rgb, name, strength, sign),
        )
        assert np.abs(got - want).max() <= LARGEST[name]
        assert np.abs(got - want).mean() <= LARGEST[name] / 2


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_equals_pillow(name, strength):
    for seed, sign in ((0, 1.0), (1, -1.0)):
        rgb = cv2.GaussianBlur(photo(seed=seed), (5, 5), 0)
        got, want = operate(rgb, name, strength, sign), pillow(rgb, name, strength, sign)
        white = pillow(np.full_like(rgb, 255), name, strength, sign)[..., 0]
        inside = (
            cv2.erode(white // 255, np.ones((5, 5)), borderType=cv2.BORDER_CONSTANT, borderValue=0)
            > 0
        )
        assert inside.mean() > 0.4, "the border that is left out must be thin"
        difference = np.abs(got.astype(int) - want)[inside]
        assert difference.max() <= 4
        assert difference.mean() < 0.8
        outside = cv2.dilate(white, np.ones((7, 7))) == 128
        assert (got[outside] == 128).all()


@pytest.mark.parametrize(
    "rgb",
    [np.full((9, 9, 3), 77, np.uint8), np.zeros((9, 9, 3), np.uint8), photo(1, 1), photo(3, 2)],
    ids=["flat", "black", "1 px", "6 px"],
)
def test_pictures_with_little_in_them(rgb):
    for name in OPERATIONS:
        if name not in GEOMETRY:
            difference = np.abs(
                operate(rgb, name, 0.9, 1.0).astype(int) - pillow(rgb, name, 0.9, 1.0)
            )
            assert difference.max() <= LARGEST[name], name


def test_the_input_is_not_written_to():
    rgb = photo()
    before = rgb.copy()
    for name in OPERATIONS:
        operate(rgb, name, 0.9, 1.0)
    np.testing.assert_array_equal(rgb, before)


def test_unknown_operations_are_told():
    with pytest.raises(ValueError, match="posterise.*posterize"):
        operate(photo(), "posterise", 0.9, 1.0)


def test_operations_and_directions_are_drawn_evenly(monkeypatch):
    seen: Counter = Counter()

    def note(rgb: np.ndarray, name: str, strength: float, sign: float) -> np.ndarray:
        assert strength == 0.9
        seen[name, sign] += 1
        return rgb

    monkeypatch.setattr(randaugment, "operate", note)
    rng = np.random.default_rng(0)
    for _ in range(2800):
        rand_augment(photo(1, 1), 2, 9, rng)
    assert set(seen) == {(name, sign) for name in OPERATIONS for sign in (1.0, -1.0)}
    assert min(seen.values()) > 140
    assert max(seen.values()) < 260  # 200 each
