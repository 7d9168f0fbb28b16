"""What a demo picture has besides its subject, the same for plants and non-plants: brushes (smooth
noise, colours, shapes), grounds, light and camera. No torch.
"""

import io
from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
from PIL import Image

Rng = np.random.Generator
Range = tuple[float, float]
SUB = 4  # fractional bits of OpenCV's drawing coordinates
CANVAS = 224  # side in pixels of the square that one leaf is painted on, tip up


def noise(rng: Rng, cells: int, height: int = CANVAS, width: int = CANVAS) -> np.ndarray:
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


def tinted(tone: np.ndarray, colour: Sequence[float | np.ndarray] = (1, 1, 1)) -> np.ndarray:
    """tone (h, w) times a colour, three numbers or planes (h, w) -> float32 (h, w, 3). It goes
    plane by plane because numpy is slow over a last axis of 3.
    """
    return cv2.merge([tone.astype(np.float32, copy=False) * np.float32(c) for c in colour])


def mix(image: np.ndarray, amount: np.ndarray, colour: Sequence[float | np.ndarray]) -> None:
    """Moves `image` (h, w, 3) in place towards `colour`, three numbers or planes (h, w), by
    `amount` float32 (h, w) in 0..1.
    """
    image *= tinted(1 - amount)
    image += tinted(amount, colour)


def turned(angle: float) -> np.ndarray:
    """The matrix (2, 2) that turns `points @ matrix` by `angle` radians, clockwise where y points
    down.
    """
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


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


class Style:
    """All that is drawn about a picture beside its subject: size, ground, light and camera.

    It comes from `rng` alone: this signature is why ground and quality say nothing about the class.
    """

    def __init__(self, rng: Rng) -> None:
        size = rng.choice(len(SIZE_ODDS), p=list(SIZE_ODDS.values()))
        self.width, self.height = list(SIZE_ODDS)[size]
        self.ground = list(GROUNDS)[rng.integers(len(GROUNDS))]
        self.brightness = np.exp(rng.normal(0.0, 0.17))
        self.warmth = rng.normal(0, 0.07)  # < 0 cold, > 0 warm
        self.slope = rng.normal(0, 0.10, 2).tolist()  # of brightness across the picture, per axis
        self.shadow = rng.uniform(0.15, 0.4) if rng.random() < 0.25 else 0.0
        self.vignette = rng.uniform(0, 0.35)
        self.blur = rng.uniform(0.5, 1.1) if rng.random() < 0.35 else 0.0  # pixels at 256
        self.grain = rng.uniform(1, 7)
        self.quality = int(rng.integers(55, 96))  # of the JPEG
        self.orientation = int(rng.choice([1, 3, 6, 8], p=[0.92, 0.02, 0.04, 0.02]))  # EXIF


def surface(
    rng: Rng,
    h: int,
    w: int,
    hue: Range = (0, 360),
    saturation: Range = (0, 0.4),
    value: Range = (0.2, 0.95),
    bumps: tuple[Range, ...] = ((0.05, 3), (0.02, 80)),
) -> np.ndarray:
    """One colour from the given ranges under `bumps` of light, each (strength, cells along the
    longer side).
    """
    tone = 1 + sum(strength * noise(rng, cells, h, w) for strength, cells in bumps)
    return np.clip(tinted(tone, random_colour(rng, hue, saturation, value)), 0, 255)


def gravel(rng: Rng, h: int, w: int) -> np.ndarray:
    """Gravel of round stones."""
    base, size = rng.uniform(55, 95), max(h, w) / rng.uniform(14, 26)
    image = np.full((h, w, 3), base, np.float32)
    for _ in range(170):
        grey = base * rng.uniform(1.1, 2.2) + rng.normal(0, 6, 3)
        at, radii = rng.uniform(0, (w, h)), size * rng.uniform(0.4, 1, 2)
        oval(image, at, radii, grey, rng.uniform(0, 180))
    return cv2.GaussianBlur(image, (3, 3), 0) * tinted(1 + 0.1 * noise(rng, 60, h, w))


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
    rings = np.sin(3.6 * noise(rng, 3, side, side) + rng.uniform(60, 108) * down)
    fibres = cv2.resize(rng.standard_normal((side, 8), dtype=np.float32), (side, side))
    tone = (1 + 0.09 * rings + 0.07 * fibres) * (1 - 0.5 * (down * rng.integers(2, 5) % 1 < 0.008))
    tone = tone if rng.random() < 0.5 else np.ascontiguousarray(tone.T)
    colour = random_colour(rng, (22, 36), (0.2, 0.6), (0.4, 0.8))
    return np.clip(tinted(tone[:h, :w], colour), 0, 255)


def skin(rng: Rng, h: int, w: int) -> np.ndarray:
    """The palm of a hand."""
    image = surface(rng, h, w, *SKIN, bumps=((0.08, 3), (0.02, 70)))
    x = np.linspace(-0.1, 1.1, 20)
    for _ in range(int(rng.integers(1, 4))):  # creases of the palm
        y = rng.uniform(0, 1) + rng.normal(0, 0.4) * (x - 0.5) + rng.normal(0, 0.5) * (x - 0.5) ** 2
        line(image, np.column_stack([x * w, y * h]), image.mean((0, 1)) * 0.85, 2)
    return cv2.GaussianBlur(image, (0, 0), 1.2)


def sky(rng: Rng, h: int, w: int) -> np.ndarray:
    """Sky with clouds."""
    blue = random_colour(rng, (200, 222), (0.15, 0.6), (0.65, 0.95))
    image = blue + np.linspace(-12, 25, h, dtype=np.float32)[:, None, None].repeat(w, 1)
    cloud = np.clip(noise(rng, 4, h, w) + 0.5 * noise(rng, 9, h, w) - rng.uniform(-0.2, 1.2), 0, 1)
    mix(image, cloud * 0.85, (240, 240, 240))
    return np.clip(image, 0, 255)


SKIN = ((14, 28), (0.28, 0.55), (0.4, 0.92))
GROUNDS: dict[str, Callable[[Rng, int, int], np.ndarray]] = {
    "soil": partial(
        surface,
        hue=(18, 36),
        saturation=(0.25, 0.5),
        value=(0.25, 0.5),
        bumps=((0.14, 6), (0.16, 40), (0.14, 110)),
    ),
    "gravel": gravel,
    "foliage": foliage,
    "wood": wood,
    "paper": partial(
        surface, saturation=(0, 0.08), value=(0.45, 0.95), bumps=((0.02, 3), (0.01, 90))
    ),
    "cloth": partial(
        surface, saturation=(0, 0.45), value=(0.1, 0.6), bumps=((0.1, 4), (0.05, 120))
    ),
    "skin": skin,
    "sky": sky,
}


def photograph(image: np.ndarray, style: Style, rng: Rng) -> bytes:
    """Light, lens, sensor and JPEG of `style` applied to RGB (h, w, 3) in 0..255 -> the file's
    bytes, EXIF included.
    """
    h, w = image.shape[:2]
    x = np.linspace(-1, 1, w, dtype=np.float32)
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    light = 1 + style.slope[0] * x + style.slope[1] * y
    light -= 0.35 * style.vignette * (x * x + y * y) ** 2
    angle = rng.uniform(0, 2 * np.pi)
    across = np.cos(angle) * x + np.sin(angle) * y - rng.uniform(-0.3, 0.6)
    light *= 1 - style.shadow / (1 + np.exp(-12 * across))
    image = image * tinted(light, style.brightness * (1 + style.warmth * np.array([1, 0.25, -1])))
    if style.blur:
        image = cv2.GaussianBlur(image, (0, 0), style.blur * max(h, w) / 256)
    image += tinted(style.grain * rng.standard_normal((h, w), dtype=np.float32))
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    stored = np.rot90(pixels, {1: 0, 3: 2, 6: 1, 8: 3}[style.orientation])  # a reader turns it back
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = style.orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(
        buffer, "JPEG", quality=style.quality, exif=exif
    )
    return buffer.getvalue()
