"""Grounds, light and cameras for the demo pictures, the same for every class of plant and for
non-plants. No torch.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from PIL import Image

from common.demo.brush import Range, Rng, line, mix, noise, oval, random_colour, tinted
from common.demo.leaves import CANVAS, Leaf

SIZE_ODDS = {  # (width, height) -> share of the pictures
    (256, 256): 0.50,
    (288, 288): 0.12,
    (320, 240): 0.16,
    (240, 320): 0.12,
    (300, 200): 0.06,
    (640, 480): 0.015,
    (480, 640): 0.010,
    (800, 600): 0.015,
}


@dataclass
class Style:
    """All that is chosen about a picture beside its subject: size, ground, light and camera. It
    never depends on the class.
    """

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


def draw_style(rng: Rng) -> Style:
    """A Style from `rng` alone: this signature is why ground and quality say nothing about the
    class.
    """
    size = rng.choice(len(SIZE_ODDS), p=list(SIZE_ODDS.values()))
    return Style(
        *list(SIZE_ODDS)[size],
        ground=list(GROUNDS)[rng.integers(len(GROUNDS))],
        brightness=float(np.exp(rng.normal(0.0, 0.17))),
        warmth=rng.normal(0, 0.07),
        slope=tuple(rng.normal(0, 0.10, 2).tolist()),
        shadow=rng.uniform(0.15, 0.4) if rng.random() < 0.25 else 0.0,
        vignette=rng.uniform(0, 0.35),
        blur=rng.uniform(0.5, 1.1) if rng.random() < 0.35 else 0.0,
        grain=rng.uniform(1, 7),
        quality=int(rng.integers(55, 96)),
        orientation=int(rng.choice([1, 3, 6, 8], p=[0.92, 0.02, 0.04, 0.02])),
    )


def surface(
    rng: Rng,
    h: int,
    w: int,
    *,
    hue: Range = (0, 360),
    saturation: Range = (0, 0.4),
    value: Range = (0.2, 0.95),
    bumps: tuple[Range, ...] = ((0.05, 3), (0.02, 80)),
) -> np.ndarray:
    """One colour from the given ranges under `bumps` of light, each (strength, cells along the
    longer side).
    """
    tone = 1 + sum(strength * noise(rng, h, w, cells) for strength, cells in bumps)
    return np.clip(tinted(tone, random_colour(rng, hue, saturation, value)), 0, 255)


def gravel(rng: Rng, h: int, w: int) -> np.ndarray:
    """Gravel of round stones."""
    base, size = rng.uniform(55, 95), max(h, w) / rng.uniform(14, 26)
    image = np.full((h, w, 3), base, np.float32)
    for _ in range(170):
        grey = base * rng.uniform(1.1, 2.2) + rng.normal(0, 6, 3)
        oval(
            image, rng.uniform(0, (w, h)), size * rng.uniform(0.4, 1, 2), grey, rng.uniform(0, 180)
        )
    return cv2.GaussianBlur(image, (3, 3), 0) * tinted(1 + 0.1 * noise(rng, h, w, 60), [1] * 3)


def foliage(rng: Rng, h: int, w: int) -> np.ndarray:
    """Leaves and stems out of focus."""
    small = np.full((64, 64, 3), random_colour(rng, (70, 130), (0.6, 0.6), (0.15, 0.3)))
    for _ in range(36):
        colour, at = random_colour(rng, (60, 140), (0.3, 0.7), (0.15, 0.75)), rng.uniform(-4, 68, 2)
        if rng.random() < 0.5:
            oval(small, at, rng.uniform((3, 2), (12, 6)), colour, rng.uniform(0, 180))
        else:
            line(small, [at, at + rng.uniform(-40, 40, 2)], colour, rng.uniform(1, 4))
    small = cv2.GaussianBlur(small.astype(np.float32), (0, 0), rng.uniform(1.2, 3.2))
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC).clip(0, 255)


def wood(rng: Rng, h: int, w: int) -> np.ndarray:
    """Boards with their grain, lengthwise or crosswise."""
    side = max(h, w)
    down = np.linspace(0, 1, side, dtype=np.float32)[:, None]
    rings = np.sin(3.6 * noise(rng, side, side, 3) + rng.uniform(60, 108) * down)
    fibres = cv2.resize(rng.standard_normal((side, 8), dtype=np.float32), (side, side))
    tone = (1 + 0.09 * rings + 0.07 * fibres) * (1 - 0.5 * (down * rng.integers(2, 5) % 1 < 0.008))
    tone = tone if rng.random() < 0.5 else np.ascontiguousarray(tone.T)
    colour = random_colour(rng, (22, 36), (0.2, 0.6), (0.4, 0.8))
    return np.clip(tinted(tone[:h, :w], colour), 0, 255)


def skin(rng: Rng, h: int, w: int) -> np.ndarray:
    """The palm of a hand."""
    image = surface(rng, h, w, **SKIN, bumps=((0.08, 3), (0.02, 70)))
    x = np.linspace(-0.1, 1.1, 20)
    for _ in range(int(rng.integers(1, 4))):  # creases of the palm
        y = rng.uniform(0, 1) + rng.normal(0, 0.4) * (x - 0.5) + rng.normal(0, 0.5) * (x - 0.5) ** 2
        line(image, np.column_stack([x * w, y * h]), image.mean((0, 1)) * 0.85, 2)
    return cv2.GaussianBlur(image, (0, 0), 1.2)


def sky(rng: Rng, h: int, w: int) -> np.ndarray:
    """Sky with clouds."""
    blue = random_colour(rng, (200, 222), (0.15, 0.6), (0.65, 0.95))
    image = blue + np.linspace(-12, 25, h, dtype=np.float32)[:, None, None].repeat(w, 1)
    cloud = np.clip(noise(rng, h, w, 4) + 0.5 * noise(rng, h, w, 9) - rng.uniform(-0.2, 1.2), 0, 1)
    mix(image, cloud * 0.85, (240, 240, 240))
    return np.clip(image, 0, 255)


SKIN = {"hue": (14, 28), "saturation": (0.28, 0.55), "value": (0.4, 0.92)}
soil = partial(
    surface,
    hue=(18, 36),
    saturation=(0.25, 0.5),
    value=(0.25, 0.5),
    bumps=((0.14, 6), (0.16, 40), (0.14, 110)),
)
paper = partial(surface, saturation=(0, 0.08), value=(0.45, 0.95), bumps=((0.02, 3), (0.01, 90)))
cloth = partial(surface, saturation=(0, 0.45), value=(0.1, 0.6), bumps=((0.1, 4), (0.05, 120)))
GROUNDS: dict[str, Callable[[Rng, int, int], np.ndarray]] = {
    "soil": soil,
    "gravel": gravel,
    "foliage": foliage,
    "wood": wood,
    "paper": paper,
    "cloth": cloth,
    "skin": skin,
    "sky": sky,
}


def _pose(rng: Rng, size: float, centre: np.ndarray, turn: float) -> np.ndarray:
    """The 3x3 matrix that takes the leaf's canvas to the picture, `size` pixels wide there, seen a
    little askew.
    """
    c, s = np.cos(turn), np.sin(turn)
    square = np.float32([[0, 0], [1, 0], [1, 1], [0, 1]])
    askew = np.array([[rng.uniform(0.87, 1.0), 0], [rng.normal(0, 0.08), 1]])
    corners = (square - 0.5) @ askew @ np.array([[c, s], [-s, c]]) + rng.normal(0, 0.03, (4, 2))
    return cv2.getPerspectiveTransform(CANVAS * square, np.float32(size * corners + centre))


def compose(leaf: Leaf, style: Style, rng: Rng) -> np.ndarray:
    """The leaf on its ground, sometimes among others of its plant -> float32 (h, w, 3) in
    0..255.
    """
    frame = np.array([style.width, style.height])
    image = GROUNDS[style.ground](rng, style.height, style.width)
    card = cv2.merge([*(plane * leaf.alpha for plane in cv2.split(leaf.rgb)), leaf.alpha * 255])
    card = np.clip(card, 0, 255).astype(np.uint8)
    layers: list[tuple[np.ndarray, float, float]] = []  # pose, light, blur
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.3 else 0):
        side = rng.uniform(0, 2 * np.pi)  # others lie half outside, darker and out of focus
        centre = frame * (0.5 + 0.56 * np.array([np.cos(side), np.sin(side)]))
        pose = _pose(rng, rng.uniform(0.5, 0.85) * frame.min(), centre, rng.uniform(0, 2 * np.pi))
        layers.append((pose, rng.uniform(0.5, 0.8), rng.uniform(1.0, 2.5)))
    near = np.clip(1.25 / np.sqrt(leaf.unit), 0.95, 1.25)  # narrow leaves are taken from nearer
    size = rng.uniform(0.82, 1.1) * near * (0.75 * frame.min() + 0.25 * frame.max())
    turn = rng.normal(0, 0.45) if rng.random() < 0.8 else rng.uniform(0, 2 * np.pi)
    layers.append((_pose(rng, size, frame * rng.normal(0.5, 0.035, 2), turn), 1.0, 0.0))
    shift, soft, dark = rng.normal(0, 0.02, 2), rng.uniform(1.5, 6), rng.uniform(0.1, 0.55)
    move = np.float32(np.column_stack([np.eye(2), shift * frame.min()]))
    for pose, light, blur in layers:
        warped = cv2.warpPerspective(card, pose, frame.tolist())
        if blur:
            warped = cv2.GaussianBlur(warped, (0, 0), blur)
        shadow = cv2.warpAffine(warped[..., 3], move, frame.tolist())
        shadow = cv2.GaussianBlur(shadow, (0, 0), soft).astype(np.float32)
        image *= tinted(1 - shadow * (dark / 255), [1] * 3)
        image *= tinted(1 - cv2.extractChannel(warped, 3).astype(np.float32) / 255, [1] * 3)
        image += cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB) * np.float32(light)
    return image


def photograph(image: np.ndarray, style: Style, rng: Rng) -> bytes:
    """Light, lens, sensor and JPEG of `style` applied to RGB (h, w, 3) in 0..255 -> the file's
    bytes, EXIF included.
    """
    h, w = image.shape[:2]
    x = np.linspace(-1, 1, w, dtype=np.float32)
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    light = 1 + style.slope[0] * x + style.slope[1] * y
    light -= 0.35 * style.vignette * (x * x + y * y) ** 2
    angle, edge = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.6)
    across = np.cos(angle) * x + np.sin(angle) * y - edge
    light *= 1 - style.shadow / (1 + np.exp(-12 * across))
    image = image * tinted(light, style.brightness * (1 + style.warmth * np.array([1, 0.25, -1])))
    if style.blur:
        image = cv2.GaussianBlur(image, (0, 0), style.blur * max(h, w) / 256)
    image += tinted(style.grain * rng.standard_normal((h, w), dtype=np.float32), [1] * 3)
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[style.orientation]  # the reader turns them back
    stored = np.rot90(np.clip(image, 0, 255).astype(np.uint8), turns)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = style.orientation
    photo = Image.fromarray(np.ascontiguousarray(stored))
    photo.save(buffer, "JPEG", quality=style.quality, exif=exif)
    return buffer.getvalue()
