"""Diseases for the demo pictures: a table of lesions, painted onto a healthy leaf. No torch.

A lesion is a field over the leaf and the layers of colour painted where the field has their
values. Lengths are in the leaf's own unit (`Leaf.unit`), counts are from mild to severe.
"""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from common.demo.leaves import Leaf
from common.demo.scenes import CANVAS, Range, Rng, area, line, mix, noise, ramp, tinted, turned

GRID = np.arange(CANVAS, dtype=np.float32)
Field = Callable[[Leaf, Rng, float], np.ndarray]  # leaf, rng and severity -> float32 (C, C)
Places = tuple[float, float, float]  # count when mild and when severe, least distance
Layer = tuple[float, float, float, tuple[int, int, int]]  # opacity, field at 0 and at 1, RGB


def _draw_places(
    mask: np.ndarray, rng: Rng, severity: float, places: Places, unit: float
) -> list[tuple[int, int]]:
    """Pixels (x, y) of `mask` (C, C): as many as the severity asks for, or fewer where there is no
    room.
    """
    count, apart = round(np.interp(severity, (0, 1), places[:2])), round(places[2] * unit)
    free, (ys, xs), found = mask.astype(np.uint8), np.nonzero(mask), []
    for k in rng.integers(0, len(xs), 3 * count).tolist():
        x, y = int(xs[k]), int(ys[k])
        if free[y, x] and len(found) < count:
            found.append((x, y))
            cv2.circle(free, (x, y), apart, 0, -1)
    return found


def _inside(leaf: Leaf, margin: float) -> np.ndarray:
    return leaf.depth > min(margin, 0.6 * leaf.depth.max())


def spots(
    leaf: Leaf,
    rng: Rng,
    severity: float,
    *,
    places: Places,
    radius: Range,
    wobble: float = 0.15,
    on: str = "blade",
    veins: float = 0.0,
) -> np.ndarray:
    """Distance to the nearest spot in radii: 0 in its middle, 1 on its rim, 9 far away. Spots lie
    on the "blade", its "margin" or the "veins"; with `veins` > 0 they do not cross veins.
    """
    mask = {
        "blade": _inside(leaf, 4),
        "margin": (leaf.depth > 0.5) & (leaf.depth < 2.5),
        "veins": leaf.veins > 0.4,
    }[on]
    field = np.full((CANVAS, CANVAS), 9.0, np.float32)
    for x, y in _draw_places(mask, rng, severity, places, leaf.unit):
        r = rng.uniform(*radius) * leaf.unit
        rows, cols = (slice(max(0, int(v - 3 * r)), int(v + 3 * r) + 2) for v in (y, x))
        distance = np.hypot(GRID[None, cols] - x, GRID[rows, None] - y) / r
        np.minimum(field[rows, cols], distance, out=field[rows, cols])
    field += wobble * noise(rng, 30) * np.minimum(field, 1)
    return field + veins * leaf.veins


def streaks(
    leaf: Leaf,
    rng: Rng,
    severity: float,
    *,
    places: Places,
    length: Range,
    width: Range,
    power: float = 1.0,
) -> np.ndarray:
    """0 far from any streak, up to 1 around it, 1 to 2 inside. Streaks lie along the main vein:
    bars for a `power` near 0, ellipses for 1, pointed spindles for 2.
    """
    layer = np.zeros((CANVAS, CANVAS), np.uint8)
    t = np.linspace(0, 2 * np.pi, 32)
    outline = np.column_stack([np.cos(t), np.sign(np.sin(t)) * np.abs(np.sin(t)) ** power]) / 2
    for place in _draw_places(_inside(leaf, 3), rng, severity, places, leaf.unit):
        size = np.array([rng.uniform(*length), rng.uniform(*width)]) * leaf.unit
        matrix = turned(leaf.along + rng.normal(0, 0.05))
        area(layer, outline * size @ matrix + place, 255)
    inside = layer.astype(np.float32) / 255
    return inside + cv2.GaussianBlur(inside, (0, 0), 2.5)


def tunnels(leaf: Leaf, rng: Rng, severity: float) -> np.ndarray:
    """Winding tunnels that widen on their way: 0.5 in a tunnel, 1 on the thread of droppings."""
    layer = np.zeros((CANVAS, CANVAS), np.uint8)
    steps = np.arange(44 + int(30 * severity))
    for place in _draw_places(_inside(leaf, 8), rng, severity, (2, 4.4, 26), 1):
        wander = rng.normal(0, 0.36, len(steps)).cumsum()
        turn = wander + 0.9 * np.sin(steps / 2.5) + rng.uniform(0, 2 * np.pi)
        step = 3.4 * leaf.unit * np.column_stack([np.cos(turn), np.sin(turn)])
        path = place + step.cumsum(axis=0)
        for part, thick in zip(np.array_split(path, 3), (4, 5, 7), strict=True):
            line(layer, part, 128, thick)
        line(layer, path, 255, 1)
    return layer.astype(np.float32) / 255


def _gaps(leaf: Leaf, width: float) -> np.ndarray:
    near = cv2.GaussianBlur(leaf.veins, (0, 0), width * leaf.unit)
    return np.clip(1 - 2.6 * near / max(1e-6, float(near.max())), 0, 1)


def stripes(leaf: Leaf, rng: Rng, severity: float) -> np.ndarray:
    """0 on the veins, growing between them and towards the margin."""
    reach = ramp(leaf.depth + 7 * noise(rng, 6), (26 + 26 * severity) * leaf.unit, 4)
    return (_gaps(leaf, 4.5) + 0.12 * noise(rng, 14)) * (0.45 + 0.75 * reach)


def blotches(leaf: Leaf, rng: Rng, severity: float) -> np.ndarray:
    """0 on the veins, up to 1 between them, in blotches and more on one side of the leaf."""
    side = float(rng.choice([-0.3, 0.3])) * np.linspace(-1, 1, CANVAS, dtype=np.float32)
    return _gaps(leaf, 2.6) * np.clip(0.62 + 0.3 * severity + side + 0.3 * noise(rng, 7), 0, 1)


def mottle(leaf: Leaf, rng: Rng, severity: float) -> np.ndarray:
    """Noise of deviation about 1 all over the leaf, less when mild."""
    cells = int(rng.integers(10, 15))
    return (noise(rng, cells) + 0.4 * noise(rng, 2 * cells)) * (0.6 + 0.4 * severity)


def inward(leaf: Leaf, rng: Rng, severity: float) -> np.ndarray:
    """0 on the margin, 1 where the dry part ends, larger towards the middle."""
    return leaf.depth / (leaf.depth.max() * (0.2 + 0.36 * severity)) + 0.28 * noise(rng, 9)


DISEASES: dict[str, tuple[Field, tuple[Layer, ...]]] = {
    # no more than any leaf has: a few specks of dust
    "healthy": (
        partial(spots, places=(0, 5, 0), radius=(0.8, 1.8)),
        ((0.5, 1.2, 0.8, (120, 110, 80)),),
    ),
    # a few large brown spots with rings like a target, in a yellow halo
    "early blight": (
        partial(spots, places=(2, 8, 16), radius=(8, 15), wobble=0.06),
        (
            (0.75, 1.7, 1.0, (215, 195, 60)),
            (0.95, 1.08, 0.92, (142, 98, 56)),
            (0.95, 0.92, 0.8, (80, 52, 28)),
            (0.95, 0.72, 0.62, (146, 102, 60)),
            (0.95, 0.56, 0.46, (80, 52, 28)),
            (0.95, 0.38, 0.28, (146, 102, 60)),
            (0.95, 0.22, 0.12, (80, 52, 28)),
        ),
    ),
    # large dark, water-soaked areas that run in from the margin behind a pale grey-green front
    "late blight": (
        partial(spots, places=(1, 5, 0), radius=(26, 42), wobble=0.14, on="margin"),
        ((0.65, 1.35, 1.05, (165, 175, 120)), (0.92, 1.12, 0.9, (52, 44, 30))),
    ),
    # many small black spots, each in a faint yellow halo
    "bacterial spot": (
        partial(spots, places=(20, 85, 4), radius=(1.8, 3.6), wobble=0.2),
        ((0.55, 2.6, 1.2, (205, 200, 80)), (0.95, 1.2, 0.8, (36, 26, 18))),
    ),
    # round spots, pale grey in the middle within a dark purple rim
    "leaf spot": (
        partial(spots, places=(6, 28, 7), radius=(3.2, 7.5), wobble=0.18),
        ((0.92, 1.35, 0.9, (88, 36, 44)), (0.9, 0.72, 0.4, (196, 184, 162))),
    ),
    # corky tan spots with a sunken dark middle and a broad bright yellow halo
    "canker": (
        partial(spots, places=(4, 20, 8), radius=(2.8, 6.5)),
        (
            (0.85, 2.3, 1.1, (232, 208, 50)),
            (0.95, 1.1, 0.9, (158, 112, 66)),
            (0.8, 0.5, 0.3, (80, 52, 34)),
        ),
    ),
    # round red-brown spots with a thin black border and no halo
    "black rot": (
        partial(spots, places=(4, 18, 10), radius=(5.5, 10), wobble=0.13),
        ((0.95, 1.15, 1.0, (34, 20, 18)), (0.95, 0.82, 0.7, (142, 84, 48))),
    ),
    # olive to black velvety blotches with feathered edges
    "scab": (
        partial(spots, places=(3, 14, 10), radius=(7, 13), wobble=0.4),
        ((0.88, 1.25, 0.55, (50, 46, 26)),),
    ),
    # bright orange spots with a yellow rim and dark dots in the middle
    "cedar apple rust": (
        partial(spots, places=(3, 16, 10), radius=(5, 9), wobble=0.1),
        (
            (0.85, 1.45, 1.05, (228, 200, 60)),
            (0.95, 1.05, 0.8, (226, 112, 24)),
            (0.85, 0.32, 0.2, (70, 34, 18)),
        ),
    ),
    # very many small orange-brown pustules, long in the direction of the veins
    "common rust": (
        partial(streaks, places=(45, 210, 0), length=(4.5, 8.7), width=(2.7, 5.2)),
        ((0.5, 0.0, 0.7, (205, 180, 70)), (0.95, 0.9, 1.3, (176, 78, 22))),
    ),
    # a few long grey-tan lesions shaped like cigars
    "northern leaf blight": (
        partial(streaks, places=(2, 6, 22), length=(55, 100), width=(15, 24), power=1.8),
        ((0.95, 0.1, 0.4, (98, 78, 44)), (0.95, 1.5, 1.75, (192, 176, 142))),
    ),
    # many short brown bars with straight sides
    "gray leaf spot": (
        partial(streaks, places=(9, 34, 4), length=(8, 17), width=(4, 7), power=0.2),
        ((0.55, 0.0, 0.6, (200, 186, 80)), (0.95, 0.9, 1.3, (122, 88, 58))),
    ),
    # soft white patches like flour
    "powdery mildew": (
        partial(spots, places=(2, 12, 10), radius=(12, 22), wobble=0.35),
        ((0.88, 1.25, 0.25, (232, 234, 228)),),
    ),
    # oily yellow patches with blocky outlines that stop at the veins
    "downy mildew": (
        partial(spots, places=(4, 15, 14), radius=(11, 18), wobble=0.3, veins=0.9),
        ((0.85, 1.05, 0.75, (222, 204, 66)), (0.4, 0.4, 0.1, (170, 130, 60))),
    ),
    # tiger stripes: red-brown with yellow edges between veins that stay green
    "esca": (stripes, ((0.9, 0.42, 0.58, (226, 196, 72)), (0.95, 0.66, 0.78, (126, 58, 34)))),
    # blotchy yellow between green veins, stronger on one half of the leaf
    "greening": (blotches, ((0.95, 0.12, 0.62, (226, 208, 74)),)),
    # pale winding tunnels with a dark thread of droppings inside
    "leaf miner": (tunnels, ((0.92, 0.0, 0.5, (222, 220, 176)), (0.5, 0.55, 1.0, (96, 84, 50)))),
    # light and dark green mottled all over
    "mosaic virus": (mottle, ((0.8, 0.0, 0.5, (196, 208, 92)), (0.55, -0.15, -0.7, (24, 66, 26)))),
    # a margin dried up brown, with a thin yellow line towards the green
    "leaf scorch": (inward, ((0.8, 1.35, 1.0, (206, 184, 72)), (0.95, 1.0, 0.82, (124, 70, 36)))),
    # large jagged tan areas with a dark brown border, along the veins
    "anthracnose": (
        partial(spots, places=(3, 7, 0), radius=(14, 24), wobble=0.3, on="veins"),
        ((0.95, 1.12, 0.98, (78, 46, 24)), (0.9, 0.86, 0.72, (188, 146, 92))),
    ),
}


def infect(leaf: Leaf, disease: str, rng: Rng) -> Leaf:
    """The leaf with `disease` (a key of DISEASES) painted onto its `rgb` in place, from mild and
    faint to severe and opaque; every leaf gets the specks of dust of a healthy one.
    """
    tone = leaf.tone + 0.06 * noise(rng, 60)
    for name in dict.fromkeys(("healthy", disease)):
        (draw_field, layers), clean = DISEASES[name], leaf.rgb.copy()
        field = draw_field(leaf, rng, 0.08 + 0.92 * rng.beta(1.5, 1.5))
        for opacity, zero, one, rgb in layers:
            colour = np.array(rgb) * rng.normal(1, 0.06) + rng.normal(0, 5, 3)
            painted = cv2.split(tinted(tone, colour.clip(0)))
            mix(leaf.rgb, opacity * leaf.blade * ramp(field, zero, one), painted)
        leaf.rgb += (clean - leaf.rgb) * np.float32(rng.uniform(0, 0.3))
    np.clip(leaf.rgb, 0, 255, out=leaf.rgb)
    return leaf
