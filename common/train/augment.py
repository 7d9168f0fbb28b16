"""Training views of a picture: tier 1 (geometry, colour), then tier 2 (`corruptions`) and
RandAugment; MixUp and CutMix of batches.

All of it works on uint8 in OpenCV: the JPEG is decoded at the scale that the crop needs, crop,
flip, rotation and resize are one affine warp, and brightness, contrast, saturation, hue and grey
one 3 x 4 colour matrix, so that a view costs little more than its decode. Every draw comes from the
generator that is passed in.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from common import images
from common.train.augment_levels import LEVELS, Level
from common.train.corruptions import between, camera_corruptions
from common.train.randaugment import LUMA, affine, rand_augment
from common.train.recipes import Recipe

# A JPEG is decoded at the smallest scale that leaves this many px along a side of the crop for each
# of the view (geometric mean of both sides). Measured against evaluation's resize of the same
# crops, photos of 512 px, views of 224, 160 and 96 px: PSNR is best at 0.8 (mean 41 dB). At 1,
# where nothing is ever enlarged, the worst twentieth of the views is 1 to 4 dB worse, since a
# bilinear warp then skips up to every second pixel; at 0.65 it is 0.3 to 1.5 dB worse, since detail
# is lost.
ENOUGH = 0.8
DECODE = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}

Box = tuple[float, float, float, float]  # x, y, width, height in px

GREY = np.tile(LUMA, (3, 1))
COLOUR = np.eye(3) - GREY  # what is left of a colour without its grey
# A quarter turn of hue, in the I, Q plane of NTSC's YIQ
_TO_IQ = np.array([[0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_IQ = np.linalg.inv(np.vstack([LUMA, _TO_IQ]))[:, 1:]
QUARTER = _FROM_IQ @ np.array([[0.0, 1.0], [-1.0, 0.0]]) @ _TO_IQ


def train_view(
    data: bytes, width: int, height: int, recipe: Recipe, rng: np.random.Generator
) -> np.ndarray:
    """Decode a JPEG and draw one augmented view of it (tiers 1 and 2, RandAugment).

    Args:
        data: bytes of an upright RGB or grey picture.
        width, height: its size in px, as the manifest has it; decides at which scale it is decoded.
        recipe: gives the level, the share of tier 2, RandAugment and the size.
        rng: source of every draw.

    Returns:
        uint8 (size, size, 3), RGB.

    Raises:
        ValueError: where the bytes cannot be decoded.
    """
    level, size = LEVELS[recipe.augment], recipe.image_size
    if level.plain:
        view = images.resize_to_model(images.read_rgb(data, min_side=1), size)
    else:
        box = _draw_crop(width, height, level, rng)
        scale = decode_scale(box[2] * box[3] / size**2)
        picture = cv2.imdecode(
            np.frombuffer(data, np.uint8), DECODE[scale] | cv2.IMREAD_IGNORE_ORIENTATION
        )
        if picture is None:
            raise ValueError("the picture cannot be decoded")
        mirror = rng.random() < level.flip_p
        angle = (
            between(-level.rotate_degrees, level.rotate_degrees, rng)
            if rng.random() < level.rotate_p
            else 0.0
        )
        x, y, w, h = (side / scale for side in box)
        view = warp(picture, (x, y, w, h), size, mirror, angle)
        view = cv2.transform(view, _draw_colours(view, level, rng))
        view = camera_corruptions(view, level, recipe.tier2_share, rng)
    if recipe.randaugment_ops:
        view = rand_augment(view, recipe.randaugment_ops, recipe.randaugment_magnitude, rng)
    return view


# region tier 1


def decode_scale(pixels: float) -> int:
    """Choose libjpeg's scale (1, 2, 4 or 8: 1/1 to 1/8) for a crop that has `pixels` px for each px
    of the view.
    """
    return next((scale for scale in (8, 4, 2) if pixels >= (ENOUGH * scale) ** 2), 1)


def _draw_crop(width: int, height: int, level: Level, rng: np.random.Generator) -> Box:
    """Draw a random resized crop in px; the whole picture after ten draws that do not fit."""
    narrow, wide = (math.log(ratio) for ratio in level.crop_ratio)
    for _ in range(10):
        area = width * height * between(*level.crop_area, rng)
        ratio = math.exp(between(narrow, wide, rng))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            return between(0, width - w, rng), between(0, height - h, rng), w, h
    return 0.0, 0.0, float(width), float(height)


def warp(picture: np.ndarray, box: Box, size: int, mirror: bool, angle: float) -> np.ndarray:
    """Crop, resize, mirror, then turn about the middle of the view, reading bilinearly, beyond the
    picture by reflection.

    Args:
        picture: uint8 (height, width, 3).
        box: of the crop, in px of `picture`. Without a turn it is rounded to whole px, which makes
            it a crop and a resize.
        size: of the view, px.
        mirror: left to right.
        angle: degrees, clockwise.

    Returns:
        uint8 (size, size, 3).
    """
    x, y, w, h = box
    if angle == 0.0:
        left, top, right, bottom = round(x), round(y), round(x + w), round(y + h)
        view = cv2.resize(
            picture[top : max(bottom, top + 1), left : max(right, left + 1)],
            (size, size),
            interpolation=cv2.INTER_LINEAR,
        )
        return cv2.flip(view, 1) if mirror else view
    cos, sin, middle = math.cos(math.radians(angle)), math.sin(math.radians(angle)), (size - 1) / 2
    across, down = (-w if mirror else w) / size, h / size
    # pixel of the view -> pixel of the picture: turn about the middle, mirror, scale to the crop
    a, b, c, d = across * cos, across * sin, -down * sin, down * cos
    matrix = np.array(
        [[a, b, x + (w - 1) / 2 - (a + b) * middle], [c, d, y + (h - 1) / 2 - (c + d) * middle]]
    )
    return affine(picture, matrix, (size, size), cv2.BORDER_REFLECT_101)


def _draw_colours(bgr: np.ndarray, level: Level, rng: np.random.Generator) -> np.ndarray:
    """Draw colour jitter, exposure and grey; contrast turns about the mean grey of `bgr`."""
    gain, offset, chroma, turn = 1.0, 0.0, 1.0, 0.0
    if rng.random() < level.jitter_p:
        brightness, contrast, chroma = (
            between(1 - r, 1 + r, rng) for r in (level.brightness, level.contrast, level.saturation)
        )
        turn = between(-level.hue, level.hue, rng)
        blue, green, red, _ = cv2.mean(bgr)
        gain = brightness * contrast
        offset = brightness * (1 - contrast) * float(LUMA @ (red, green, blue))
    if rng.random() < level.exposure_p:
        contrast = between(1 - level.exposure_contrast, 1 + level.exposure_contrast, rng)
        gain, offset = gain * contrast, offset * contrast
        offset += 255 * between(-level.exposure_brightness, level.exposure_brightness, rng)
    if rng.random() < level.grey_p:
        chroma = 0.0
    return colour_matrix(gain, offset, chroma, turn)


def colour_matrix(gain: float, offset: float, chroma: float, turn: float) -> np.ndarray:
    """Fold a change of colours into one matrix; it clips once, at the end, not after every step.

    Args:
        gain: brightness times contrast.
        offset: added to all channels, of 255.
        chroma: saturation; 0 is grey (luma of BT.601).
        turn: of hue in YIQ, of the full circle; over all hues about the same turn as in HSV, for
            one of them up to 1.7 times it.

    Returns:
        float64 (3, 4) for `cv2.transform`, from BGR to RGB.
    """
    cos, sin = chroma * math.cos(2 * math.pi * turn), chroma * math.sin(2 * math.pi * turn)
    matrix = np.empty((3, 4))
    matrix[:, 2::-1] = gain * (GREY + cos * COLOUR + sin * QUARTER)
    matrix[:, 3] = offset
    return matrix


# endregion

# region tier 3, by batch


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed: sample i with sample `partner[i]`, `share` being what stays of i
    itself.

    `box` (top, bottom, left, right in px) is the patch of CutMix; None is MixUp. share 1 mixes
    nothing.
    """

    partner: Tensor
    share: float = 1.0
    box: tuple[int, int, int, int] | None = None

    def apply(self, images: Tensor, rows: slice) -> Tensor:
        """Mix some rows of a batch: uint8 (N, size, size, 3) -> uint8 (CutMix, none) or float32
        (MixUp), 0..255.
        """
        if self.share == 1.0:
            return images[rows]
        partner = self.partner[rows]
        if self.box is None:
            return (
                images[rows].float().mul_(self.share).add_(images[partner], alpha=1.0 - self.share)
            )
        top, bottom, left, right = self.box
        mixed = images[rows].clone()
        mixed[:, top:bottom, left:right] = images[:, top:bottom, left:right][partner]
        return mixed

    def of_rows(self, rows: slice) -> "Mix":
        """The mix of a process that holds its own rows of a batch and, behind them, those that
        they are mixed with.
        """
        own = torch.arange(rows.stop - rows.start)
        return Mix(own + len(own) if self.share < 1 else own, self.share, self.box)


def step_draws(seed: int, epoch: int, step: int) -> tuple[int, np.random.Generator]:
    """Randomness of a step as a function of (seed, epoch, step): torch's seed, and a generator for
    mixing.
    """
    rng = np.random.default_rng([seed, epoch, step, 1])
    return int(rng.integers(2**62)), rng


def draw_mix(count: int, size: int, recipe: Recipe, rng: np.random.Generator) -> Mix:
    """Draw MixUp (Zhang et al. 2018), CutMix (Yun et al. 2019) or nothing for a batch of `count`
    pictures of `size` px.
    """
    kinds = [
        name
        for name, alpha in (("mixup", recipe.mixup_alpha), ("cutmix", recipe.cutmix_alpha))
        if alpha > 0
    ]
    if not kinds or rng.random() >= recipe.mix_share:
        return Mix(torch.arange(count))
    partner = torch.from_numpy(rng.permutation(count))
    if kinds[int(rng.integers(len(kinds)))] == "mixup":
        return Mix(partner, float(rng.beta(recipe.mixup_alpha, recipe.mixup_alpha)))
    side = math.sqrt(1.0 - rng.beta(recipe.cutmix_alpha, recipe.cutmix_alpha)) * size
    x, y = rng.uniform(0, size, 2)
    left, right = (int(np.clip(round(v), 0, size)) for v in (x - side / 2, x + side / 2))
    top, bottom = (int(np.clip(round(v), 0, size)) for v in (y - side / 2, y + side / 2))
    return Mix(partner, 1.0 - (right - left) * (bottom - top) / size**2, (top, bottom, left, right))


# endregion
