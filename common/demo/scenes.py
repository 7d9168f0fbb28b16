"""Grounds, light and cameras for the demo pictures, the same for every class of plant and for
non-plants. No torch."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from common.demo.leaves import CANVAS, SUB, Leaf, fixed, hsv, mix, noise, tinted

SIZES = [
    (256, 256),
    (288, 288),
    (320, 240),
    (240, 320),
    (300, 200),
    (640, 480),
    (480, 640),
    (800, 600),
]  # w, h
SIZE_ODDS = [0.50, 0.12, 0.16, 0.12, 0.06, 0.015, 0.010, 0.015]


@dataclass
class Style:
    """What is chosen about a picture beside its subject: size, ground, light and camera; never told
    the class."""

    width: int
    height: int
    ground: str
    brightness: float
    warmth: float  # < 0 cold, > 0 warm
    slope: tuple[float, float]  # change of brightness across the picture, per axis
    shadow: float
    vignette: float
    blur: float  # pixels at 256
    grain: float
    quality: int  # of the JPEG
    orientation: int  # EXIF


def draw_style(rng: np.random.Generator) -> Style:
    """A Style from `rng` alone: this signature is why ground and quality say nothing about the
    class."""
    width, height = SIZES[int(rng.choice(len(SIZES), p=SIZE_ODDS))]
    blur = rng.uniform(0.5, 1.1) if rng.random() < 0.35 else 0.0
    return Style(
        width,
        height,
        list(GROUNDS)[int(rng.integers(len(GROUNDS)))],
        float(np.exp(rng.normal(0.0, 0.17))),
        float(rng.normal(0, 0.07)),
        tuple(rng.normal(0, 0.10, 2).tolist()),
        float(rng.uniform(0.15, 0.4)) if rng.random() < 0.25 else 0.0,
        float(rng.uniform(0, 0.35)),
        blur,
        float(rng.uniform(1, 7)),
        int(rng.integers(55, 96)),
        int(rng.choice([1, 3, 6, 8], p=[0.92, 0.02, 0.04, 0.02])),
    )


def _flat(colour: np.ndarray, tone: np.ndarray) -> np.ndarray:
    return np.clip(tinted(np.ascontiguousarray(tone), colour), 0, 255)


def soil(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Bare soil."""
    tone = (
        1 + 0.14 * noise(rng, h, w, 6) + 0.16 * noise(rng, h, w, 40) + 0.14 * noise(rng, h, w, 110)
    )
    return _flat(hsv(rng.uniform(18, 36), rng.uniform(0.25, 0.5), rng.uniform(0.25, 0.5)), tone)


def gravel(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Gravel of round stones."""
    base = rng.uniform(55, 95)
    image = np.full((h, w, 3), base, np.float32)
    size = max(h, w) / rng.uniform(14, 26)
    for _ in range(170):
        grey = base * rng.uniform(1.1, 2.2) + rng.normal(0, 6, 3)
        axes = fixed(size * rng.uniform(0.4, 1.0, 2))
        centre = fixed([rng.uniform(0, w), rng.uniform(0, h)])
        turn = rng.uniform(0, 180)
        cv2.ellipse(
            image, centre.tolist(), axes.tolist(), turn, 0, 360, grey.tolist(), -1, cv2.LINE_8, SUB
        )
    image = cv2.GaussianBlur(image, (3, 3), 0)
    return np.clip(image * tinted(1 + 0.1 * noise(rng, h, w, 60), np.ones(3)), 0, 255)


def _foliage(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    small = np.full((64, 64, 3), hsv(rng.uniform(70, 130), 0.6, rng.uniform(0.15, 0.3)), np.float32)
    for _ in range(36):
        colour = hsv(rng.uniform(60, 140), rng.uniform(0.3, 0.7), rng.uniform(0.15, 0.75))
        x, y = rng.integers(-4, 68, 2).tolist()
        if rng.random() < 0.5:
            cv2.ellipse(
                small,
                (x, y),
                (int(rng.integers(3, 12)), int(rng.integers(2, 6))),
                rng.uniform(0, 180),
                0,
                360,
                colour.tolist(),
                -1,
            )
        else:
            ex, ey = (np.array([x, y]) + rng.integers(-40, 40, 2)).tolist()
            cv2.line(small, (x, y), (ex, ey), colour.tolist(), int(rng.integers(1, 4)))
    small = cv2.GaussianBlur(small, (0, 0), rng.uniform(1.2, 3.2))
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC).clip(0, 255)


def wood(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Boards with their grain."""
    step, side = rng.uniform(5, 9), max(h, w)
    bend = (
        noise(rng, side, side, 3) * 0.6 + np.linspace(0, step * 2, side, dtype=np.float32)[:, None]
    )
    fibre = cv2.resize(
        rng.standard_normal((side, 8), dtype=np.float32),
        (side, side),
        interpolation=cv2.INTER_LINEAR,
    )
    tone = 1 + 0.09 * np.sin(6 * bend) + 0.07 * fibre
    board = side / rng.integers(2, 5)
    tone *= np.where((np.arange(side) % board) < 2.0, 0.5, 1.0).astype(np.float32)[:, None]
    if rng.random() < 0.5:
        tone = tone.T
    return _flat(
        hsv(rng.uniform(22, 36), rng.uniform(0.2, 0.6), rng.uniform(0.4, 0.8)), tone[:h, :w]
    )


def paper(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A sheet of paper or a grey card."""
    grey = rng.uniform(0.45, 0.95)
    colour = hsv(rng.uniform(0, 360), rng.uniform(0, 0.08), grey)
    return _flat(colour, 1 + 0.02 * noise(rng, h, w, 3) + 0.01 * noise(rng, h, w, 90))


def cloth(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Woven cloth of one colour."""
    fold = np.sin(noise(rng, h, w, 3) * 1.6)
    colour = hsv(rng.uniform(0, 360), rng.uniform(0, 0.45), rng.uniform(0.1, 0.6))
    return _flat(colour, 1 + 0.12 * fold + 0.05 * noise(rng, h, w, 120))


def skin(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """The palm of a hand."""
    tone = 1 + 0.08 * noise(rng, h, w, 3) + 0.02 * noise(rng, h, w, 70)
    image = _flat(hsv(rng.uniform(14, 28), rng.uniform(0.28, 0.55), rng.uniform(0.4, 0.92)), tone)
    for _ in range(int(rng.integers(1, 4))):  # creases of the palm
        x = np.linspace(-0.1, 1.1, 20)
        y = rng.uniform(0, 1) + rng.normal(0, 0.4) * (x - 0.5) + rng.normal(0, 0.5) * (x - 0.5) ** 2
        cv2.polylines(
            image,
            [fixed(np.column_stack([x * w, y * h]))],
            False,
            (image.mean((0, 1)) * 0.85).tolist(),
            2,
            cv2.LINE_AA,
            SUB,
        )
    return cv2.GaussianBlur(image, (0, 0), 1.2)


def sky(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Sky with clouds."""
    blue = hsv(rng.uniform(200, 222), rng.uniform(0.15, 0.6), rng.uniform(0.65, 0.95))
    image = (
        blue
        + np.linspace(-12, 25, h, dtype=np.float32)[:, None, None]
        + np.zeros((h, w, 1), np.float32)
    )
    cloud = np.clip(noise(rng, h, w, 4) + 0.5 * noise(rng, h, w, 9) - rng.uniform(-0.2, 1.2), 0, 1)
    mix(image, cloud * 0.85, np.array([240, 240, 240]))
    return np.clip(image, 0, 255)


def _any_colour(rng: np.random.Generator) -> np.ndarray:
    return hsv(rng.uniform(0, 360), rng.uniform(0.2, 0.9), rng.uniform(0.2, 0.95))


def fabric(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Striped or plain fabric."""
    x, y = np.arange(w, dtype=np.float32)[None] / w, np.arange(h, dtype=np.float32)[:, None] / h
    a, b = rng.uniform(20, 90, 2)
    weave = np.sign(np.sin(a * x)) * rng.uniform(0, 0.3) + np.sign(np.sin(b * y)) * rng.uniform(
        0, 0.3
    )
    image = _any_colour(rng) * (1 + weave + 0.1 * np.sin(2 * noise(rng, h, w, 3)))[..., None]
    return np.clip(image, 0, 255).astype(np.float32)


def gradient(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Two colours that run into each other."""
    one, two = _any_colour(rng), _any_colour(rng)
    mix = 1 / (1 + np.exp(-noise(rng, h, w, int(rng.choice([1, 2, 4, 30])))))[..., None]
    return (one * mix + two * (1 - mix)).astype(np.float32)


GROUNDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "soil": soil,
    "gravel": gravel,
    "foliage": _foliage,
    "wood": wood,
    "paper": paper,
    "cloth": cloth,
    "skin": skin,
    "sky": sky,
}


def _pose(
    rng: np.random.Generator, size: float, centre: tuple[float, float], turn: float
) -> np.ndarray:
    """The 3x3 matrix that takes the leaf's canvas to the picture: `size` is the canvas side in
    pixels there."""
    c, s = np.cos(turn), np.sin(turn)
    half = size / 2
    squeeze, shear = rng.uniform(0.87, 1.0), rng.normal(0, 0.08)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    corners = corners @ np.array([[squeeze, 0], [shear, 1]])
    corners = corners @ np.array([[c, s], [-s, c]]) + centre + rng.normal(0, 0.03 * size, (4, 2))
    square = np.array([[0, 0], [CANVAS, 0], [CANVAS, CANVAS], [0, CANVAS]])
    return cv2.getPerspectiveTransform(square.astype(np.float32), corners.astype(np.float32))


def compose(leaf: Leaf, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Lays the leaf on its ground, sometimes among others of its plant -> float32 (h, w, 3)
    0..255."""
    w, h = style.width, style.height
    image = GROUNDS[style.ground](rng, h, w)
    card = cv2.merge([*(plane * leaf.alpha for plane in cv2.split(leaf.rgb)), leaf.alpha * 255])
    card = np.clip(card, 0, 255).astype(np.uint8)
    layers: list[tuple[np.ndarray, float, float]] = []
    if (
        rng.random() < 0.3
    ):  # other leaves of the same plant, partly outside the picture, darker and out of focus
        for _ in range(int(rng.integers(1, 4))):
            side = rng.uniform(0, 2 * np.pi)
            centre = (w / 2 + np.cos(side) * 0.56 * w, h / 2 + np.sin(side) * 0.56 * h)
            pose = _pose(rng, rng.uniform(0.5, 0.85) * min(w, h), centre, rng.uniform(0, 2 * np.pi))
            layers.append((pose, rng.uniform(0.5, 0.8), rng.uniform(1.0, 2.5)))
    slim = float(
        np.clip(1.25 / np.sqrt(leaf.unit), 0.95, 1.25)
    )  # narrow leaves are photographed from nearer
    free = rng.uniform(0.82, 1.1) * slim
    turn = rng.normal(0, 0.45) if rng.random() < 0.8 else rng.uniform(0, 2 * np.pi)
    drift = rng.normal(0, 0.035, 2) * (w, h)
    size = free * (0.75 * min(w, h) + 0.25 * max(w, h))
    layers.append((_pose(rng, size, (w / 2 + drift[0], h / 2 + drift[1]), turn), 1.0, 0.0))
    offset, softness, dark = (
        rng.normal(0, 0.02, 2) * min(w, h),
        rng.uniform(1.5, 6),
        rng.uniform(0.1, 0.55),
    )
    for pose, light, blur in layers:
        warped = cv2.warpPerspective(card, pose, (w, h), flags=cv2.INTER_LINEAR)
        if blur:
            warped = cv2.GaussianBlur(warped, (0, 0), blur)
        else:
            move = np.float32([[1, 0, offset[0]], [0, 1, offset[1]]])
            cast = cv2.GaussianBlur(cv2.warpAffine(warped[..., 3], move, (w, h)), (0, 0), softness)
            image *= tinted(1 - cast.astype(np.float32) * (dark / 255), np.ones(3))
        cover = cv2.extractChannel(warped, 3).astype(np.float32)
        image *= tinted(1 - cover / 255, np.ones(3))
        image += cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB) * np.float32(light)
    return image


def photograph(image: np.ndarray, style: Style, rng: np.random.Generator) -> bytes:
    """Light, lens, sensor and JPEG of `style` applied to RGB (h, w, 3) 0..255 -> the file's bytes,
    EXIF included."""
    h, w = image.shape[:2]
    x, y = (
        np.linspace(-1, 1, w, dtype=np.float32)[None],
        np.linspace(-1, 1, h, dtype=np.float32)[:, None],
    )
    light = (
        1 + style.slope[0] * x + style.slope[1] * y - style.vignette * 0.35 * (x * x + y * y) ** 2
    )
    if style.shadow:
        a = rng.uniform(0, 2 * np.pi)
        light *= 1 - style.shadow / (
            1 + np.exp(-12 * (np.cos(a) * x + np.sin(a) * y - rng.uniform(-0.3, 0.6)))
        )
    gain = style.brightness * np.float32(
        [1 + style.warmth, 1 + 0.25 * style.warmth, 1 - style.warmth]
    )
    image = image * tinted(light, gain)
    if style.blur:
        image = cv2.GaussianBlur(image, (0, 0), style.blur * max(h, w) / 256)
    image += tinted(style.grain * rng.standard_normal((h, w), dtype=np.float32), np.ones(3))
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[style.orientation]  # the reader turns them back
    buffer, exif = io.BytesIO(), Image.Exif()
    if style.orientation != 1:
        exif[0x0112] = style.orientation
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)))
    stored.save(buffer, "JPEG", quality=style.quality, exif=exif)
    return buffer.getvalue()
