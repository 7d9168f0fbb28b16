"""Leaves for the demo pictures: a table of species, the blade painted from it, and the leaf laid on
its ground. No torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import cv2
import numpy as np

from common.demo.scenes import (
    CANVAS,
    GROUNDS,
    Range,
    Rng,
    Style,
    area,
    hsv,
    line,
    mix,
    noise,
    tinted,
    turned,
)


@dataclass
class Shape:
    """Outlines, veins and stalk of one leaf as float points (n, 2), x to the right and y upwards;
    a vein comes with its relative thickness, and the main vein is the first.
    """

    blades: list[np.ndarray]
    veins: list[tuple[np.ndarray, float]]
    stalk: np.ndarray

    def moved(self, move: Callable[[np.ndarray], np.ndarray], thickness: float = 1.0) -> "Shape":
        """Every point taken through `move`, and the veins' thickness multiplied."""
        veins = [(move(points), weight * thickness) for points, weight in self.veins]
        return Shape([move(points) for points in self.blades], veins, move(self.stalk))

    def placed(self, scale: float, degrees: float, at: Sequence[float] = (0, 0)) -> "Shape":
        """Scaled, turned clockwise by `degrees` and moved to `at`."""
        matrix = scale * turned(-np.radians(degrees))  # minus because y points upwards
        return self.moved(lambda points: points @ matrix + at, scale**0.7)


@dataclass
class Leaf:
    """One leaf painted on a square of CANVAS pixels, tip up; every plane is float32 (C, C)."""

    rgb: np.ndarray  # (C, C, 3) in 0..255
    blade: np.ndarray  # 0..1, where lesions may go
    alpha: np.ndarray  # 0..1, blade and stalk
    veins: np.ndarray  # 0..1
    depth: np.ndarray  # pixels to the margin
    tone: np.ndarray  # light and relief, around 1
    along: float  # direction of the main vein in radians, clockwise from the x axis

    @cached_property
    def unit(self) -> float:
        """The length in pixels that lesions are measured in: 1 for a blade of 100 x 100 pixels."""
        return float(np.sqrt(self.blade.sum()) / 100)


def _vein(foot: np.ndarray, tip: np.ndarray, weight: float) -> tuple[np.ndarray, float]:
    """A side vein that leaves the main vein flat and bends towards the leaf's tip."""
    t = np.linspace(0, 1, 9)[:, None]
    return foot + (tip - foot) * (2 * t * (1 - t) * [0.55, 0.4] + t**2), weight


def _blade(
    rng: Rng,
    *,
    width: Range,
    ends: tuple[float, float],
    teeth: tuple[int, float] = (0, 0.0),
    lobes: tuple[int, float] = (0, 0.0),
    pairs: tuple[int, float] = (0, 0.2),
    parallel: int = 0,
    stalk: float = 0.1,
) -> Shape:
    """One blade from (0, 0) to (0, 1): a range of half widths, bluntness of its `ends` (base, tip),
    a margin of `teeth` or `lobes` (number, depth), `pairs` of side veins (number, rise; one to each
    lobe) or `parallel` ones, and the length of the stalk.
    """
    t = np.linspace(0, 1, 60 + 6 * teeth[0])
    profile = t ** ends[0] * (1 - t) ** ends[1]
    profile *= rng.uniform(*width) / profile.max()
    saw = teeth[0] + rng.integers(-1, 2)
    waves = lobes[0] + rng.integers(2) * bool(lobes[0])
    sides, veins = [], [(np.array([[0, 0.0], [0, 0.97]]), 1.0)]
    for side in (-1, 1):
        x = profile * (1 + 0.07 * np.interp(t, np.linspace(0, 1, 6), rng.standard_normal(6)))
        y, start = t.copy(), rng.uniform(-0.15, 0.15)
        count = waves or pairs[0]
        foot = (np.arange(count) + 0.35) / (count + 0.6) * 0.92
        end = foot + pairs[1] * (1.1 - foot)
        if waves:
            wave = 0.5 + 0.5 * np.cos(2 * np.pi * (waves * t**0.9 + start))
            x = x * (1 - lobes[1] * wave**1.7)
            y += 0.16 * (x - profile * (1 - lobes[1])) * np.sin(np.pi * t)
            end = ((np.arange(waves) + 0.5 - start) / waves) ** (1 / 0.9)
        x = x + teeth[1] * ((saw * t + start) % 1 - 0.3) * np.sin(np.pi * t) ** 0.4
        sides.append(np.column_stack([side * x, y]))
        tips = np.column_stack([side * 0.92 * np.interp(end, t, x), np.interp(end, t, y)])
        feet = np.column_stack([0 * foot, np.minimum(foot, end - 0.04)])
        veins += [_vein(a, b, 0.5) for a, b, e in zip(feet, tips, end, strict=True) if e < 0.97]
        for out in side * np.linspace(0.08, 0.86, parallel):
            veins.append((np.column_stack([out * profile, t])[:-2], 0.28))
    stem = np.array([[0, 0.0], [rng.uniform(-0.3, 0.3) * stalk, -stalk]])
    return Shape([np.vstack([sides[0], sides[1][::-1]])], veins, stem)


def _palmate(
    rng: Rng, *, lobes: Sequence[tuple[float, float, float, float]], tooth: float, stalk: float
) -> Shape:
    """A leaf of `lobes` around its stalk: (degrees from the tip, reach, width in radians, power:
    1 for a sharp tip, 2 for a round one); one vein with side veins runs to each lobe.
    """
    angle = np.linspace(-0.97 * np.pi, 0.97 * np.pi, 260)
    tips = [(side * 0.2 * (1.1 - f), f + 0.14, f) for f in (0.3, 0.5, 0.7) for side in (-1, 1)]
    side_veins = [_vein(np.array([0, f]), np.array([x, y]), 0.4) for x, y, f in tips]
    rib = Shape([], [(np.array([[0, 0], [0, 0.93]]), 0.95), *side_veins], np.zeros((1, 2)))
    radius, veins = 0.0, []
    for degrees, reach, width, power in lobes:
        degrees, reach = degrees + rng.normal(0, 3), reach * rng.uniform(0.94, 1.06)
        lobe = np.exp(-0.62 * (np.abs(angle - np.radians(degrees)) / width) ** power)
        radius = radius + (reach * lobe) ** 10
        veins += rib.placed(reach, degrees).veins
    radius = radius**0.1 * (1 + tooth * ((angle * 5.2) % 1 - 0.4))
    outline = np.column_stack([np.sin(angle), np.cos(angle)]) * radius[:, None]
    stem = np.array([[0, 0], [rng.uniform(-0.1, 0.1), -stalk]])
    return Shape([np.vstack([outline, [[0, 0]]])], veins, stem)


def _compound(
    rng: Rng,
    *,
    leaflets: Sequence[tuple[float, float, float]],
    spread: Range,
    stalk: Range,
    pairs: Range = (1, 1),
    leaflet: Callable[[Rng], Shape],
) -> Shape:
    """A stalk from and to a height, a leaflet at its top, and pairs of leaflets `spread` degrees
    aside: rows of (scale, height, distance from the stalk), the top one first.
    """
    (top, height, _), *rows = leaflets
    stem = np.array([[0, stalk[1]], [rng.uniform(-0.04, 0.04), stalk[0]]])
    parts, turn = [leaflet(rng).placed(top, rng.normal(0, 6), (0, height))], rng.uniform(*spread)
    for scale, height, out in rows[: int(rng.integers(pairs[0], pairs[1] + 1))]:
        for side in (-1, 1):
            at = (side * out, height + rng.uniform(-0.02, 0.02))
            parts.append(leaflet(rng).placed(scale, side * turn + rng.normal(0, 6), at))
    veins = [(stem, 1.1), *(vein for part in parts for vein in part.veins)]
    return Shape([blade for part in parts for blade in part.blades], veins, stem)


# Shape, then what a healthy blade looks like: the middle of its range of hues (degrees; the ranges
# are 48 wide and overlap), depth of the relief, paleness of the veins, gloss.
SPECIES: dict[str, tuple[Callable[[Rng], Shape], tuple[float, float, float, float]]] = {
    "apple": (
        partial(_blade, width=(0.3, 0.36), ends=(0.6, 0.8), teeth=(15, 0.075), pairs=(7, 0.26)),
        (100, 0.42, 0.85, 0.10),
    ),
    "corn": (
        partial(_blade, width=(0.115, 0.15), ends=(0.16, 0.6), parallel=5, stalk=0.04),
        (92, 0.20, 0.75, 0.15),
    ),
    "grape": (
        partial(
            _palmate,
            lobes=[
                *((0, 1.0, 0.46, 1.3), (52, 0.88, 0.46, 1.3), (-52, 0.88, 0.46, 1.3)),
                *((108, 0.68, 0.5, 1.3), (-108, 0.68, 0.5, 1.3)),
            ],
            tooth=0.13,
            stalk=0.62,
        ),
        (94, 0.34, 0.75, 0.10),
    ),
    "lemon": (
        partial(_blade, width=(0.21, 0.26), ends=(0.8, 0.85), pairs=(8, 0.13)),
        (106, 0.14, 0.40, 0.55),
    ),
    "oak": (
        partial(_blade, width=(0.33, 0.4), ends=(0.75, 0.42), lobes=(4, 0.62)),
        (98, 0.22, 0.60, 0.30),
    ),
    "strawberry": (
        partial(
            _compound,
            leaflets=[(0.62, 0.04, 0), (0.58, 0, 0.03)],
            spread=(78, 96),
            stalk=(-0.36, 0.03),
            leaflet=partial(
                _blade, width=(0.38, 0.44), ends=(0.62, 0.33), teeth=(9, 0.1), pairs=(7, 0.24)
            ),
        ),
        (104, 0.60, 0.45, 0.10),
    ),
    "sweet potato": (
        partial(
            _palmate,
            lobes=[
                *((0, 1.0, 0.8, 1.1), (58, 0.72, 1.0, 2), (-58, 0.72, 1.0, 2)),
                *((120, 0.68, 0.85, 2), (-120, 0.68, 0.85, 2)),
            ],
            tooth=0,
            stalk=0.4,
        ),
        (98, 0.26, 0.95, 0.20),
    ),
    "tomato": (
        partial(
            _compound,
            leaflets=[(0.5, 0.62, 0), (0.42, 0.52, 0.03), (0.46, 0.26, 0.03), (0.38, 0.02, 0.03)],
            spread=(58, 72),
            stalk=(-0.1, 0.66),
            pairs=(2, 3),
            leaflet=partial(
                _blade, width=(0.27, 0.33), ends=(0.55, 0.85), teeth=(6, 0.13), pairs=(5, 0.25)
            ),
        ),
        (96, 0.42, 0.40, 0.05),
    ),
}


def _on_canvas(shape: Shape, bend: float) -> Shape:
    """Bent sideways by `bend` of its height, y downwards, and as large as the canvas allows."""
    low = min(points[:, 1].min() for points in [*shape.blades, shape.stalk])
    height = max(points[:, 1].max() for points in shape.blades) - low
    bent = shape.moved(lambda p: p + bend * (p[:, 1:] - low) ** 2 / height * [1, 0])
    every = np.vstack([*bent.blades, bent.stalk])
    centre, scale = (every.min(0) + every.max(0)) / 2, 0.95 * CANVAS / np.ptp(every, axis=0).max()
    return bent.moved(lambda p: (p - centre) * [scale, -scale] + CANVAS / 2)


def paint_leaf(name: str, rng: Rng) -> Leaf:
    """One healthy leaf of species `name` (a key of SPECIES); `rng` draws its shape, its green and
    its shading.
    """
    draw_shape, (hue, relief, paleness, gloss) = SPECIES[name]
    shape = _on_canvas(draw_shape(rng), rng.normal(0, 0.09))
    masks = np.zeros((3, CANVAS, CANVAS), np.uint8)
    for points in shape.blades:
        area(masks[0], points, 255)
    for points, weight in shape.veins:
        line(masks[1], points, min(255, 110 + 140 * weight), 2.9 * weight)
    line(masks[2], shape.stalk, 255, rng.integers(4, 7))
    depth = cv2.distanceTransform((masks[0] > 127).astype(np.uint8), cv2.DIST_L2, 3)
    blade, veins, stalk = masks.astype(np.float32) / 255
    veins = cv2.GaussianBlur(veins, (0, 0), 0.7) * blade

    green = hsv(hue + rng.uniform(-24, 24), rng.uniform(0.38, 0.75), rng.uniform(0.34, 0.66))
    pale = green * 0.55 + hsv(rng.uniform(60, 95), 0.35, 0.9) * 0.45
    ridge, lit_from = cv2.GaussianBlur(veins, (0, 0), 3.0), float(rng.choice([-1, 1]))
    slope = cv2.Sobel(ridge, cv2.CV_32F, 1, 0) * lit_from + cv2.Sobel(ridge, cv2.CV_32F, 0, 1)
    across = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    tone = 1 + rng.normal(0, 0.07) * np.tanh(3 * across) + rng.normal(0, 0.07) * across[:, None]
    tone = tone + 0.06 * noise(rng, 5) + 0.03 * noise(rng, 40) + relief * slope
    tone += rng.uniform(0, 0.12) * np.tanh(depth / 14) - 0.16 * np.exp(-depth / 3)
    rgb = tinted(tone, green)
    for amount, colour in (
        (np.clip(0.1 + 0.1 * noise(rng, 4), 0, 0.35) * rng.uniform(0, 1), (190, 190, 70)),
        (veins * min(1.0, paleness * rng.uniform(0.8, 1.2)), pale),
        (np.clip(noise(rng, 6) - 1, 0, 1) * gloss * rng.uniform(0.2, 1.2), (235, 235, 235)),
        (np.clip(stalk - blade, 0, 1), pale * rng.uniform(0.6, 0.95)),
    ):
        mix(rgb, amount, colour)
    alpha, (x, y) = np.maximum(blade, stalk), np.diff(shape.veins[0][0][[0, -1]], axis=0)[0]
    return Leaf(np.clip(rgb, 0, 255), blade, alpha, veins, depth, tone, np.arctan2(y, x))


def _pose(rng: Rng, size: float, centre: np.ndarray, turn: float) -> np.ndarray:
    """The 3x3 matrix that takes the leaf's canvas to the picture, `size` pixels wide there, seen a
    little askew.
    """
    square = np.float32([[0, 0], [1, 0], [1, 1], [0, 1]])
    askew = np.array([[rng.uniform(0.87, 1.0), 0], [rng.normal(0, 0.08), 1]])
    corners = (square - 0.5) @ askew @ turned(turn) + rng.normal(0, 0.03, (4, 2))
    return cv2.getPerspectiveTransform(CANVAS * square, np.float32(size * corners + centre))


def compose(leaf: Leaf, style: Style, rng: Rng) -> np.ndarray:
    """The leaf on its ground, sometimes among others of its plant -> float32 (h, w, 3) in
    0..255.
    """
    frame = np.array([style.width, style.height])
    image = GROUNDS[style.ground](rng, style.height, style.width)
    card = cv2.merge([tinted(leaf.alpha, cv2.split(leaf.rgb)), leaf.alpha * 255])
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
        alpha = cv2.extractChannel(warped, 3)
        shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, move, frame.tolist()), (0, 0), soft)
        image *= tinted(1 - shadow.astype(np.float32) * (dark / 255))
        image *= tinted(1 - alpha.astype(np.float32) / 255)
        image += cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB) * np.float32(light)
    return image
