"""Leaves for the demo pictures: outlines and veins per species, and the healthy blade painted from
them. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

CANVAS = 224  # side in pixels of the square that one leaf is painted on, tip up
SUB = 4  # fractional bits of OpenCV's drawing coordinates

Vein = tuple[np.ndarray, float]  # points (n, 2) and relative thickness


@dataclass
class Shape:
    """Outline of one leaf: blades and veins as float points (n, 2), x to the right, y upwards;
    stalk lies below."""

    blades: list[np.ndarray]
    veins: list[Vein]
    stalk: np.ndarray


@dataclass
class Leaf:
    """One painted leaf on a CANVAS square, tip up.

    rgb float32 (C, C, 3) 0..255; blade float32 (C, C) 0..1, where lesions may go; alpha float32 (C,
    C) 0..1, blade and stalk; veins float32 (C, C) 0..1; depth float32 (C, C), pixels to the margin;
    tone float32 (C, C), light and relief around 1; ribs, main veins in pixels."""

    rgb: np.ndarray
    blade: np.ndarray
    alpha: np.ndarray
    veins: np.ndarray
    depth: np.ndarray
    tone: np.ndarray
    ribs: list[np.ndarray]

    @cached_property
    def unit(self) -> float:
        """Length in pixels that lesions are measured in: 1 for a leaf of 100 x 100 pixels of
        area."""
        return float(np.sqrt(self.blade.sum()) / 100)


def noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise float32 (height, width), mean 0 and spread about 1, with some `cells` bumps
    along the long side."""
    step = max(height, width) / cells
    grid = rng.standard_normal(
        (max(2, round(height / step)) + 2, max(2, round(width / step)) + 2), dtype=np.float32
    )
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Hue in degrees, saturation and value 0..1 -> float32 (3,) RGB 0..255."""
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    return (255 * (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))).astype(
        np.float32
    )


def tinted(tone: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """tone (h, w) times an RGB colour -> float32 (h, w, 3); by planes, since numpy is slow over a
    last axis of 3."""
    tone = tone.astype(np.float32, copy=False)
    return cv2.merge([tone * np.float32(c) for c in colour])


def mix(image: np.ndarray, amount: np.ndarray, colour: np.ndarray) -> None:
    """Moves `image` (h, w, 3) towards `colour`, an RGB triple or (h, w, 3), by `amount` (h, w)
    0..1; in place."""
    amount = amount.astype(np.float32, copy=False)
    every = cv2.merge([amount] * 3)
    if colour.ndim == 1:
        image -= image * every
        image += tinted(amount, colour)
    else:
        image += (colour - image) * every


def fixed(points: np.ndarray) -> np.ndarray:
    """Float points -> the int32 fixed point (SUB fractional bits) that OpenCV draws without
    stair-steps."""
    return np.round(np.asarray(points) * (1 << SUB)).astype(np.int32)


def _curve(start: np.ndarray, control: np.ndarray, end: np.ndarray, n: int = 9) -> np.ndarray:
    t = np.linspace(0, 1, n)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def _place(shape: Shape, scale: float, degrees: float, at: tuple[float, float]) -> Shape:
    c, s = np.cos(np.radians(degrees)) * scale, np.sin(np.radians(degrees)) * scale
    turn = np.array([[c, -s], [s, c]])
    move = [p @ turn + at for p in shape.blades]
    return Shape(
        move, [(p @ turn + at, w * scale**0.7) for p, w in shape.veins], shape.stalk @ turn + at
    )


def _blade(
    rng: np.random.Generator,
    width: float,
    base: float,
    tip: float,
    *,
    teeth: int = 0,
    tooth: float = 0.0,
    lobes: int = 0,
    lobe: float = 0.0,
    pairs: int = 7,
    rise: float = 0.2,
) -> Shape:
    """One blade from (0, 0) to (0, 1): half width `width`, `base` and `tip` bluntness, toothed or
    lobed margin."""
    t = np.linspace(0, 1, 60 + 6 * teeth)
    profile = t**base * (1 - t) ** tip
    profile *= width / profile.max()
    blades, veins = [], [(np.array([[0, 0.0], [0, 0.97]]), 1.0)]
    for side in (-1, 1):
        half = profile * (1 + 0.07 * np.interp(t, np.linspace(0, 1, 6), rng.standard_normal(6)))
        start, y = rng.uniform(-0.15, 0.15), t
        if lobes:
            half = half * (
                1 - lobe * (0.5 + 0.5 * np.cos(2 * np.pi * (lobes * t**0.9 + start))) ** 1.7
            )
            y = t + 0.16 * (half - profile * (1 - lobe)) * np.sin(np.pi * t)
        if teeth:
            half = half + tooth * (((teeth * t + start) % 1) - 0.3) * np.sin(np.pi * t) ** 0.4
        blades.append(np.column_stack([side * half, y]))
        count = lobes or pairs
        for i in range(count):
            foot = (i + 0.35) / (count + 0.6) * 0.92
            end = ((i + 0.5 - start) / lobes) ** (1 / 0.9) if lobes else foot + rise * (1.1 - foot)
            if end < 0.97:
                x, height = side * 0.92 * np.interp(end, t, half), np.interp(end, t, y)
                foot = min(foot, end - 0.04)
                veins.append(
                    (
                        _curve(
                            np.array([0, foot]),
                            np.array([0.55 * x, foot + 0.4 * (height - foot)]),
                            np.array([x, height]),
                        ),
                        0.5,
                    )
                )
    stalk = np.array([[0, 0.0], [rng.uniform(-0.03, 0.03), -0.1]])
    return Shape([np.vstack([blades[0], blades[1][::-1]])], veins, stalk)


def _lemon(rng: np.random.Generator) -> Shape:
    return _blade(
        rng, rng.uniform(0.21, 0.26), 0.8, 0.85, pairs=int(rng.integers(7, 10)), rise=0.13
    )


def _apple(rng: np.random.Generator) -> Shape:
    return _blade(
        rng,
        rng.uniform(0.3, 0.36),
        0.6,
        0.8,
        teeth=int(rng.integers(13, 18)),
        tooth=0.075,
        pairs=int(rng.integers(6, 8)),
        rise=0.26,
    )


def _oak(rng: np.random.Generator) -> Shape:
    return _blade(
        rng,
        rng.uniform(0.33, 0.4),
        0.75,
        0.42,
        lobes=int(rng.integers(4, 6)),
        lobe=rng.uniform(0.55, 0.68),
    )


def _corn(rng: np.random.Generator) -> Shape:
    width = rng.uniform(0.115, 0.15)
    shape = _blade(rng, width, 0.16, 0.6, pairs=0)
    t = np.linspace(0, 1, 30)
    half = t**0.16 * (1 - t) ** 0.6
    half *= width / half.max()
    shape.veins = [(shape.veins[0][0], 1.9)]
    shape.veins += [
        (np.column_stack([k * half, t])[:-2], 0.28) for k in np.linspace(-0.86, 0.86, 10)
    ]
    shape.stalk[1] = [0, -0.04]
    return shape


def _sweet_potato(rng: np.random.Generator) -> Shape:
    a = np.linspace(0, 2 * np.pi, 120)
    wide, low = rng.uniform(0.9, 1.08), rng.uniform(2.8, 4.0)
    x = wide * 16 * np.abs(np.sin(a)) ** 2.6 * np.sign(np.sin(a))
    y = 13 * np.cos(a) - 5 * np.cos(2 * a) - low * np.cos(3 * a) - np.cos(4 * a)
    heart = np.column_stack([x, -y]) / 32
    notch = np.array([0, heart[0, 1]])
    veins = [(np.array([notch, [0, heart[60, 1] - 0.04]]), 1.0)]
    for side in (-1, 1):
        ends = [(0.3, -0.02, 0.7), (0.4, 0.1, 0.8), (0.37, 0.3, 0.75)]
        veins += [
            (
                _curve(
                    notch,
                    notch + [0.2 * side, (v - notch[1]) * 0.6],
                    np.array([u * side * wide, v]),
                ),
                w,
            )
            for u, v, w in ends
        ]
        veins += [
            (
                _curve(
                    np.array([0, f]),
                    np.array([0.1 * side, f + 0.05]),
                    np.array([x_ * side, f + 0.16]),
                ),
                0.45,
            )
            for f, x_ in ((0.12, 0.24), (0.26, 0.16), (0.38, 0.09))
        ]
    return Shape([heart], veins, np.array([notch, [rng.uniform(-0.1, 0.1), notch[1] - 0.22]]))


def _grape(rng: np.random.Generator) -> Shape:
    angle = np.linspace(-np.pi * 0.97, np.pi * 0.97, 260)
    tips = np.radians([0, 52, -52, 108, -108]) + rng.normal(0, 0.05, 5)
    reach = np.array([1.0, 0.88, 0.88, 0.68, 0.68]) * rng.uniform(0.94, 1.06, 5)
    sharp = rng.uniform(0.42, 0.52)
    lobes = [
        r * np.exp(-((np.abs(angle - a) / sharp) ** 1.3) * 0.62)
        for a, r in zip(tips, reach, strict=True)
    ]
    radius = np.max(lobes, axis=0)
    radius = np.maximum(radius, 0.5 * np.cos(angle / 2) ** 0.5)
    radius *= 1 + 0.13 * (((angle * 5.2) % 1) - 0.4)
    outline = np.vstack(
        [np.column_stack([np.sin(angle), np.cos(angle)]) * radius[:, None], [[0, 0]]]
    )
    veins: list[Vein] = []
    for a, r in zip(tips, reach, strict=True):
        way = np.array([np.sin(a), np.cos(a)])
        veins.append((np.array([[0, 0], way * r * 0.93]), 0.95))
        for f in (0.3, 0.5, 0.7):
            for side in (-1, 1):
                out = way * (f + 0.14) * r + side * np.array([way[1], -way[0]]) * 0.2 * r * (
                    1.1 - f
                )
                veins.append(
                    (
                        _curve(
                            way * f * r, way * (f + 0.05) * r + (out - way * f * r) * 0.3, out, 5
                        ),
                        0.4,
                    )
                )
    return Shape([outline], veins, np.array([[0, 0], [rng.uniform(-0.1, 0.1), -0.62]]))


def _compound(
    rng: np.random.Generator,
    parts: list[tuple[float, float, tuple[float, float]]],
    stalk: np.ndarray,
    make: Callable[[], Shape],
) -> Shape:
    whole = Shape([], [(stalk, 1.1)], stalk)
    for scale, degrees, at in parts:
        part = _place(make(), scale * rng.uniform(0.9, 1.1), degrees + rng.normal(0, 6), at)
        whole.blades += part.blades
        whole.veins += part.veins
    return whole


def _tomato(rng: np.random.Generator) -> Shape:
    parts = [(0.5, 0.0, (0.0, 0.62))]
    for y, size in ((0.52, 0.42), (0.26, 0.46), (0.02, 0.38))[: int(rng.integers(2, 4))]:
        parts += [
            (size, side * rng.uniform(58, 72), (side * 0.03, y + rng.uniform(-0.03, 0.03)))
            for side in (1, -1)
        ]
    return _compound(
        rng,
        parts,
        np.array([[0, 0.66], [0.0, 0.3], [0.02, -0.1]]),
        lambda: _blade(
            rng, rng.uniform(0.27, 0.33), 0.55, 0.85, teeth=6, tooth=0.13, pairs=5, rise=0.25
        ),
    )


def _strawberry(rng: np.random.Generator) -> Shape:
    spread = rng.uniform(78, 96)
    parts = [(0.62, 0.0, (0.0, 0.04)), (0.58, spread, (0.03, 0.0)), (0.58, -spread, (-0.03, 0.0))]
    return _compound(
        rng,
        parts,
        np.array([[0, 0.03], [rng.uniform(-0.06, 0.06), -0.36]]),
        lambda: _blade(
            rng, rng.uniform(0.38, 0.44), 0.62, 0.33, teeth=9, tooth=0.1, pairs=7, rise=0.24
        ),
    )


SPECIES: dict[str, Callable[[np.random.Generator], Shape]] = {
    "apple": _apple,
    "corn": _corn,
    "grape": _grape,
    "lemon": _lemon,
    "oak": _oak,
    "strawberry": _strawberry,
    "sweet potato": _sweet_potato,
    "tomato": _tomato,
}


# What a blade looks like beside its outline: middle of its range of hues (degrees; the ranges are
# 48 wide and overlap), strength of the relief, how pale the veins are, gloss.
LOOKS: dict[str, tuple[float, float, float, float]] = {
    "apple": (100, 0.42, 0.85, 0.10),
    "corn": (92, 0.20, 0.75, 0.15),
    "grape": (94, 0.34, 0.75, 0.10),
    "lemon": (106, 0.14, 0.40, 0.55),
    "oak": (98, 0.22, 0.60, 0.30),
    "strawberry": (104, 0.60, 0.45, 0.10),
    "sweet potato": (98, 0.26, 0.95, 0.20),
    "tomato": (96, 0.42, 0.40, 0.05),
}


def _to_canvas(shape: Shape, bend: float) -> Shape:
    """Bends the leaf sideways and fits it, stalk included, into the canvas with y turned
    downwards."""
    low = min(p[:, 1].min() for p in [*shape.blades, shape.stalk])
    height = max(p[:, 1].max() for p in shape.blades) - low

    def bent(p: np.ndarray) -> np.ndarray:
        return p + np.column_stack(
            [bend * ((p[:, 1] - low) / height) ** 2 * height, np.zeros(len(p))]
        )

    moved = Shape(
        [bent(p) for p in shape.blades], [(bent(p), w) for p, w in shape.veins], bent(shape.stalk)
    )
    every = np.vstack([*moved.blades, moved.stalk])
    centre, size = (every.min(0) + every.max(0)) / 2, np.ptp(every, axis=0).max()
    scale = 0.95 * CANVAS / size

    def fit(p: np.ndarray) -> np.ndarray:
        return (p - centre) * [scale, -scale] + CANVAS / 2

    return Shape(
        [fit(p) for p in moved.blades], [(fit(p), w) for p, w in moved.veins], fit(moved.stalk)
    )


def paint_leaf(species: str, rng: np.random.Generator) -> Leaf:
    """One healthy leaf of `species` (a key of SPECIES), its shape, green and shading drawn from
    `rng`."""
    shape = _to_canvas(SPECIES[species](rng), rng.normal(0, 0.09))
    blade, veins, stalk = (np.zeros((CANVAS, CANVAS), np.uint8) for _ in range(3))
    for points in shape.blades:
        cv2.fillPoly(blade, [fixed(points)], 255, cv2.LINE_AA, SUB)
    for points, weight in shape.veins:
        cv2.polylines(
            veins,
            [fixed(points)],
            False,
            int(min(255, 110 + 140 * weight)),
            max(1, round(2.9 * weight)),
            cv2.LINE_AA,
            SUB,
        )
    cv2.polylines(
        stalk, [fixed(shape.stalk)], False, 255, int(rng.integers(4, 7)), cv2.LINE_AA, SUB
    )
    depth = cv2.distanceTransform((blade > 127).astype(np.uint8), cv2.DIST_L2, 3)
    on, vein = (
        blade.astype(np.float32) / 255,
        cv2.GaussianBlur(veins, (0, 0), 0.7).astype(np.float32) / 255,
    )
    vein *= on

    hue, relief, paleness, shine = LOOKS[species]
    green = hsv(hue + rng.uniform(-24, 24), rng.uniform(0.38, 0.75), rng.uniform(0.34, 0.66))
    pale = green * 0.55 + hsv(rng.uniform(60, 95), 0.35, 0.9) * 0.45
    ridge = cv2.GaussianBlur(vein, (0, 0), 3.0)
    slope = cv2.Sobel(ridge, cv2.CV_32F, 1, 0) * float(rng.choice([-1, 1])) + cv2.Sobel(
        ridge, cv2.CV_32F, 0, 1
    )
    across = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    fold = rng.normal(0, 0.07) * np.tanh(3 * across)[None] + rng.normal(0, 0.07) * across[:, None]
    tone = 1 + fold + 0.06 * noise(rng, CANVAS, CANVAS, 5) + 0.03 * noise(rng, CANVAS, CANVAS, 40)
    tone += (
        relief * slope - 0.16 * np.exp(-depth / 3.0) + rng.uniform(0, 0.12) * np.tanh(depth / 14)
    )
    rgb = tinted(tone, green)
    yellow = np.clip(0.10 + 0.10 * noise(rng, CANVAS, CANVAS, 4), 0, 0.35)
    mix(rgb, yellow * rng.uniform(0, 1), np.array([190, 190, 70]))
    mix(rgb, vein * min(1.0, paleness * rng.uniform(0.8, 1.2)), pale)
    gloss = np.clip(noise(rng, CANVAS, CANVAS, 6) - 1.0, 0, 1) * shine * rng.uniform(0.2, 1.2)
    mix(rgb, gloss, np.array([235, 235, 235]))
    bare = stalk.astype(np.float32) / 255
    mix(rgb, np.clip(bare - on, 0, 1), pale * rng.uniform(0.6, 0.95))
    alpha = np.maximum(on, bare)
    return Leaf(
        np.clip(rgb, 0, 255), on, alpha, vein, depth, tone, [p for p, w in shape.veins if w >= 0.35]
    )
