"""Training views of a picture: tier 1 (geometry, colour), tier 2 (camera faults), tier 3 (RandAugment, MixUp, CutMix).

Tiers 1 and 2 work on uint8 in OpenCV: crop, flip, rotation and resize are one affine warp, and brightness, contrast,
saturation, hue and grey one 3 x 4 colour matrix, so that a view costs little more than its JPEG decode.
Every draw comes from the generator that is passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from common.levels import LEVELS, Level
from common.recipes import Recipe

LUMA = np.array([0.299, 0.587, 0.114])
# NTSC YIQ: hue turns the I, Q plane
RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)


def train_view(data: bytes, width: int, height: int, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Decode a JPEG and draw one augmented view of it (tiers 1 and 2, RandAugment).

    Args:
        data: bytes of an upright RGB or grey picture.
        width, height: its size in px, as the manifest has it; decides whether half scale is enough.
        recipe: gives the level, the share of tier 2, RandAugment and the size.
        rng: source of every draw.

    Returns:
        uint8 (size, size, 3), RGB.

    Raises:
        ValueError: where the bytes cannot be decoded.
    """
    level, size = LEVELS[recipe.augment], recipe.image_size
    x, y, w, h = _draw_crop(width, height, level, rng)
    half = min(w, h) >= 2 * size
    flags = cv2.IMREAD_REDUCED_COLOR_2 if half else cv2.IMREAD_COLOR
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None:
        raise ValueError("the picture cannot be decoded")
    sx, sy = picture.shape[1] / width, picture.shape[0] / height
    view = _warp(picture, x * sx, y * sy, w * sx, h * sy, size, level, rng)
    view = cv2.transform(view, _colour_matrix(view, level, rng))  # BGR in, RGB out
    view = _camera_faults(view, level, recipe.tier2_share, rng)
    if recipe.randaugment_ops:
        view = rand_augment(view, recipe.randaugment_ops, recipe.randaugment_magnitude, rng)
    return view


# region tier 1


def _draw_crop(width: int, height: int, level: Level, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Draw x, y, w, h of a random resized crop in px; the whole picture after ten draws that do not fit."""
    for _ in range(10):
        area = width * height * rng.uniform(*level.crop_area)
        ratio = math.exp(rng.uniform(math.log(level.crop_ratio[0]), math.log(level.crop_ratio[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            return rng.uniform(0, width - w), rng.uniform(0, height - h), w, h
    return 0.0, 0.0, float(width), float(height)


def _warp(picture: np.ndarray, x: float, y: float, w: float, h: float, size: int, level: Level,
          rng: np.random.Generator) -> np.ndarray:
    mirror = -1.0 if rng.random() < level.flip_p else 1.0
    turn = rng.random() < level.rotate_p
    angle = math.radians(rng.uniform(-level.rotate_degrees, level.rotate_degrees)) if turn else 0.0
    cos, sin, middle = math.cos(angle), math.sin(angle), (size - 1) / 2
    # output pixel -> source pixel: turn about the middle, mirror, scale to the crop
    a = np.array([[w / size * mirror * cos, w / size * mirror * sin], [-h / size * sin, h / size * cos]])
    shift = np.array([x + (w - 1) / 2, y + (h - 1) / 2]) - a @ [middle, middle]
    matrix = np.hstack([a, shift[:, None]])
    return cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                          borderMode=cv2.BORDER_REFLECT_101)


def _colour_matrix(bgr: np.ndarray, level: Level, rng: np.random.Generator) -> np.ndarray:
    """Fold colour jitter, exposure, grey and BGR -> RGB into one float64 (3, 4) matrix."""
    m, offset = np.eye(3), np.zeros(3)
    mean = float(LUMA @ np.array(cv2.mean(bgr)[2::-1]))  # contrast turns about the mean grey

    def around(matrix: np.ndarray, constant: np.ndarray | float) -> None:
        nonlocal m, offset
        m, offset = matrix @ m, matrix @ offset + constant

    if rng.random() < level.jitter_p:
        brightness = rng.uniform(1 - level.brightness, 1 + level.brightness)
        around(np.eye(3) * brightness, 0.0)
        contrast = rng.uniform(1 - level.contrast, 1 + level.contrast)
        around(np.eye(3) * contrast, mean * brightness * (1 - contrast))
        saturation = rng.uniform(1 - level.saturation, 1 + level.saturation)
        around(np.eye(3) * saturation + np.outer(np.ones(3), LUMA) * (1 - saturation), 0.0)
        angle = 2 * math.pi * rng.uniform(-level.hue, level.hue)
        cos, sin = math.cos(angle), math.sin(angle)
        around(YIQ_TO_RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ RGB_TO_YIQ, 0.0)
    if rng.random() < level.exposure_p:
        contrast = rng.uniform(1 - level.exposure_contrast, 1 + level.exposure_contrast)
        around(np.eye(3) * contrast, 255 * rng.uniform(-level.exposure_brightness, level.exposure_brightness))
    if rng.random() < level.grey_p:
        around(np.outer(np.ones(3), LUMA), 0.0)
    return np.hstack([m[:, ::-1], offset[:, None]])  # columns reversed: the input is BGR


# endregion

# region tier 2


def _camera_faults(rgb: np.ndarray, level: Level, share: float, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < share:
        kind = rng.integers(3)
        if kind == 0:
            kernel = int(rng.choice(level.blur_kernels))
            rgb = cv2.GaussianBlur(rgb, (kernel, kernel), 0)
        elif kind == 1:
            rgb = _add_noise(rgb, math.sqrt(rng.uniform(*level.noise_variance)), rng)
        else:
            rgb = _iso_noise(rgb, rng.uniform(*level.iso_colour_shift), rng.uniform(*level.iso_intensity), rng)
    if rng.random() < level.jpeg_p:
        quality = int(rng.integers(level.jpeg_quality[0], level.jpeg_quality[1] + 1))
        rgb = cv2.imdecode(cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    if rng.random() < level.shadow_p:
        rgb = _shadow(rgb, rng)
    return rgb


@cache
def _noise_bank() -> np.ndarray:
    """2^20 standard normal draws, float32: drawing fresh ones for a picture costs more than its decode."""
    return np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)


def _normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    count, bank = math.prod(shape), _noise_bank()
    start = int(rng.integers(len(bank)))
    return np.take(bank, np.arange(start, start + count), mode="wrap").reshape(shape)


def _add_noise(rgb: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    return np.clip(rgb + std * _normal(rgb.shape, rng), 0, 255).astype(np.uint8)


def _iso_noise(rgb: np.ndarray, colour_shift: float, intensity: float, rng: np.random.Generator) -> np.ndarray:
    """Sensor noise: shot noise in lightness that follows the picture's own contrast, and a shift of hue."""
    hls = cv2.cvtColor(rgb.astype(np.float32) / 255.0, cv2.COLOR_RGB2HLS)
    contrast = float(hls[..., 1].std())
    hls[..., 0] = (hls[..., 0] + 360.0 * colour_shift * intensity * _normal(hls.shape[:2], rng)) % 360.0
    hls[..., 1] = np.clip(hls[..., 1] + contrast * intensity * _normal(hls.shape[:2], rng) * (1.0 - hls[..., 1]), 0, 1)
    return np.clip(cv2.cvtColor(hls, cv2.COLOR_HLS2RGB) * 255.0, 0, 255).astype(np.uint8)


def _shadow(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Darken one or two random quadrilaterals by half, with a soft edge."""
    size = rgb.shape[0]
    light = np.ones(rgb.shape[:2], np.float32)
    for _ in range(int(rng.integers(1, 3))):
        corners = rng.integers(0, size, (4, 2)).astype(np.int32)
        cv2.fillConvexPoly(light, cv2.convexHull(corners), 0.5)
    light = cv2.blur(light, (5, 5))
    return (rgb * light[..., None]).astype(np.uint8)


# endregion

# region tier 3


def rand_augment(rgb: np.ndarray, ops: int, magnitude: int, rng: np.random.Generator) -> np.ndarray:
    """Apply N random operations of 14 at magnitude M of 10 (Cubuk et al. 2020).

    Args:
        rgb: uint8 (size, size, 3).
        ops: N.
        magnitude: M, 0..10.

    Returns:
        uint8 (size, size, 3).
    """
    m = magnitude / 10.0
    image = Image.fromarray(rgb)
    for _ in range(ops):
        name, sign = int(rng.integers(14)), 1.0 if rng.random() < 0.5 else -1.0
        gain, size = 1.0 + sign * 0.9 * m, image.width
        image = [
            lambda i: i,
            lambda i: ImageOps.autocontrast(i),
            lambda i: ImageOps.equalize(i),
            lambda i, s=sign: i.rotate(s * 30.0 * m, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)),
            lambda i: ImageOps.solarize(i, round(256 - 256 * m) if m < 1 else 0),
            lambda i: ImageOps.posterize(i, 8 - round(4 * m)),
            lambda i, g=gain: ImageEnhance.Color(i).enhance(g),
            lambda i, g=gain: ImageEnhance.Contrast(i).enhance(g),
            lambda i, g=gain: ImageEnhance.Brightness(i).enhance(g),
            lambda i, g=gain: ImageEnhance.Sharpness(i).enhance(g),
            lambda i, s=sign: _affine(i, (1, s * 0.3 * m, -s * 0.15 * m * i.width, 0, 1, 0)),
            lambda i, s=sign: _affine(i, (1, 0, 0, s * 0.3 * m, 1, -s * 0.15 * m * i.height)),
            lambda i, s=sign, z=size: _affine(i, (1, 0, s * 0.45 * m * z, 0, 1, 0)),
            lambda i, s=sign, z=size: _affine(i, (1, 0, 0, 0, 1, s * 0.45 * m * z)),
        ][name](image)
    return np.array(image)


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed: sample i with sample `partner[i]`, `share` being what stays of i itself.

    `box` (top, bottom, left, right in px) is the patch of CutMix; None is MixUp. share 1 mixes nothing.
    """

    partner: Tensor
    share: float = 1.0
    box: tuple[int, int, int, int] | None = None

    def apply(self, images: Tensor, rows: slice) -> Tensor:
        """Mix some rows of a batch: uint8 (N, size, size, 3) -> uint8 (CutMix, none) or float32 (MixUp), 0..255."""
        if self.share == 1.0:
            return images[rows]
        other = images[self.partner[rows]]
        if self.box is None:
            return images[rows].float().mul_(self.share).add_(other, alpha=1.0 - self.share)
        top, bottom, left, right = self.box
        mixed = images[rows].clone()
        mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        return mixed


def draw_mix(count: int, size: int, recipe: Recipe, rng: np.random.Generator, device: torch.device) -> Mix:
    """Draw MixUp (Zhang et al. 2018), CutMix (Yun et al. 2019) or nothing for a batch of `count` pictures of `size` px."""
    kinds = [name for name, alpha in (("mixup", recipe.mixup_alpha), ("cutmix", recipe.cutmix_alpha)) if alpha > 0]
    if not kinds or rng.random() >= recipe.mix_share:
        return Mix(torch.arange(count, device=device))
    partner = torch.from_numpy(rng.permutation(count)).to(device)
    if kinds[int(rng.integers(len(kinds)))] == "mixup":
        return Mix(partner, float(rng.beta(recipe.mixup_alpha, recipe.mixup_alpha)))
    side = math.sqrt(1.0 - rng.beta(recipe.cutmix_alpha, recipe.cutmix_alpha)) * size
    x, y = rng.uniform(0, size, 2)
    left, right = (int(np.clip(round(v), 0, size)) for v in (x - side / 2, x + side / 2))
    top, bottom = (int(np.clip(round(v), 0, size)) for v in (y - side / 2, y + side / 2))
    return Mix(partner, 1.0 - (right - left) * (bottom - top) / size**2, (top, bottom, left, right))


# endregion
