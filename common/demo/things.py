"""Pictures of no plant for the demo: figures from a table, streets, documents, textures; some are
green on purpose. No torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from common.demo.scenes import (
    GROUNDS,
    SKIN,
    Range,
    Rng,
    area,
    box,
    line,
    noise,
    oval,
    random_colour,
    sky,
    surface,
    tinted,
    turned,
)

Ground = Callable[[Rng, int, int], np.ndarray]
ANY, GREEN, GREY = ((0, 360), (0.2, 0.9), (0.2, 0.95)), (85.0, 150.0), ((0, 360), (0, 0.1))
METAL, BROWN = ((30, 50), (0, 0.5), (0.5, 0.85)), ((18, 36), (0.4, 0.7), (0.25, 0.7))
INDOORS = (surface, GROUNDS["wood"], GROUNDS["cloth"])
LYING = [GROUNDS[name] for name in ("soil", "gravel", "wood", "paper", "cloth", "skin")]


@dataclass(frozen=True)
class Figure:
    """A thing made of parts, in units of `size` shorter sides of the picture around `at`.

    A part is ("box", colour, x0, y0, x1, y1), ("oval", colour, x, y, radius, radius), ("rod",
    colour, x0, y0, x1, y1, thickness) or ("area", colour, x0, y0, x1, y1, ...). A colour is RGB or
    the name of one drawn from `colours`; "dark" before the name makes it 0.8 of that.
    """

    grounds: Sequence[Ground]
    parts: Sequence[tuple]
    colours: dict[str, tuple] = field(default_factory=dict)
    size: Range = (0.9, 1.1)
    at: Range = (0.5, 0.5)
    degrees: float = 0  # turned by up to this much
    scatter: tuple[Range, Range, float, Range] | None = None  # ovals: count, radius, spread, hue

    def __call__(self, rng: Rng, h: int, w: int) -> np.ndarray:
        """The figure on one of its grounds, stretched, mirrored, turned and coloured at random ->
        RGB (h, w, 3).
        """
        image = self.grounds[int(rng.integers(len(self.grounds)))](rng, h, w)
        palette = {name: random_colour(rng, *ranges) for name, ranges in self.colours.items()}
        palette |= {f"dark {name}": 0.8 * colour for name, colour in palette.items()}
        unit = min(h, w) * rng.uniform(*self.size)
        at = np.array([w, h]) * (self.at + rng.normal(0, 0.02, 2))
        stretch, degrees = rng.uniform(0.88, 1.12, 2), rng.uniform(-1, 1) * self.degrees
        mirrored = np.diag(stretch * [rng.choice([-1, 1]), 1])
        matrix = mirrored @ turned(np.radians(degrees)) * unit
        for shape, colour, *numbers in self.parts:
            colour = palette[colour] if isinstance(colour, str) else colour
            points = np.reshape(numbers[: len(numbers) // 2 * 2], (-1, 2))
            if shape == "oval":
                oval(image, points[0] @ matrix + at, points[1] * stretch * unit, colour, degrees)
            elif shape == "rod":
                line(image, points @ matrix + at, colour, numbers[-1] * unit)
            else:
                corners = np.column_stack([points[[0, 0, 1, 1], 0], points[[0, 1, 1, 0], 1]])
                area(image, (corners if shape == "box" else points) @ matrix + at, colour)
        if self.scatter:
            count, radius, spread, hue = self.scatter
            for _ in range(int(rng.integers(*count))):
                centre = at + unit * rng.uniform(-spread, spread, 2)
                radii, colour = unit * rng.uniform(*radius, 2), random_colour(rng, hue)
                oval(image, centre + 0.3 * radii, radii, image.mean((0, 1)) * 0.6)
                oval(image, centre, radii, colour, turn := rng.uniform(0, 180))
                oval(image, centre - 0.25 * radii, 0.4 * radii, 0.8 * colour + 45, turn)
        return image


_CAR = [
    ("box", "road", -3, 0.1, 3, 3),
    ("area", "paint", -0.28, -0.08, -0.17, -0.24, 0.14, -0.24, 0.27, -0.08),
    ("area", (145, 175, 192), -0.2, -0.09, -0.14, -0.21, -0.02, -0.21, -0.02, -0.09),
    ("area", (145, 175, 192), 0.01, -0.09, 0.01, -0.21, 0.12, -0.21, 0.2, -0.09),
    *[("area", "paint", -0.44, 0.1, -0.45, -0.03, -0.28, -0.09, 0.28, -0.09, 0.44, 0, 0.45, 0.1)],
    *[
        (shape, colour, side, 0.1, radius, radius)
        for side in (-0.26, 0.27)
        for shape, colour, radius in (
            ("oval", (25, 25, 28), 0.085),
            ("oval", (170, 170, 175), 0.04),
        )
    ],
]
_ROAD = {"road": (*GREY, (0.25, 0.5))}
_GLASS = ((80, 160), (0.5, 0.9), (0.25, 0.6))


def _grid(
    image: np.ndarray,
    rng: Rng,
    frame: Sequence[float],
    cells: tuple[int, int],
    colours: Sequence[float | np.ndarray],
    *,
    fill: tuple[float, float, float],
    shift: Sequence[float] = (0,),
    shade: float = 0.0,
) -> None:
    """Fills a part of each of `cells` (columns, rows) of `frame` (x0, y0, x1, y1) with `colours`
    in turn: `fill` is least width, largest width and height. Rows are shifted by `shift` in turn,
    in cells, and colours darker or lighter by up to `shade`.
    """
    (columns, rows), (x0, y0, x1, y1) = cells, frame
    dx, dy = (x1 - x0) / columns, (y1 - y0) / rows
    for j, i in np.ndindex(rows, columns + len(shift) - 1):
        x, y = x0 + (i - shift[j % len(shift)]) * dx, y0 + j * dy
        colour = colours[(i + j) % len(colours)] * (1 + shade * rng.uniform(-1, 1))
        box(image, x, y, x + rng.uniform(*fill[:2]) * dx, y + fill[2] * dy, colour)


def document(rng: Rng, h: int, w: int) -> np.ndarray:
    """A page of print with a picture."""
    image = surface(rng, h, w, hue=(30, 60), saturation=(0, 0.12), value=(0.8, 1))
    page, ink = np.multiply([0.08, 0.08, 0.92, 0.94], [w, h, w, h]), rng.uniform(20, 80)
    rows, (top, left) = rng.integers(13, 24), rng.uniform(0.08, 0.5, 2)
    for columns in (9, 14):  # long and short words
        _grid(image, rng, page, (columns, rows), [ink], fill=(0.3, 0.9, 0.42))
    colour, size = random_colour(rng, (0, 360), (0, 0.5)), rng.uniform(0, 0.4, 2)
    box(image, left * w, top * h, (left + size[0]) * w, (top + size[1]) * h, colour)
    return image


def street(rng: Rng, h: int, w: int) -> np.ndarray:
    """A row of houses along a road."""
    image, x, ground = sky(rng, h, w), 0.0, h * rng.uniform(0.7, 0.85)
    while x < w:
        wide, top = rng.uniform(0.12, 0.3) * w, rng.uniform(0.1, 0.55) * h
        box(image, x, top, x + wide, h, random_colour(rng, (0, 60), (0, 0.4), (0.25, 0.8)))
        panes, (columns, rows) = random_colour(rng, (190, 230), (0, 0.4)), rng.integers(2, 8, 2)
        frame = (x + 0.25 * wide / columns, top + 0.03 * h, x + wide, ground)
        _grid(image, rng, frame, (columns, rows), [panes], fill=(0.5, 0.5, 0.5))
        x += wide
    box(image, 0, ground, w, h, random_colour(rng, *GREY, (0.25, 0.5)))
    middle, white = (ground + h) / 2, np.array([225, 220, 200])
    _grid(image, rng, (0, middle, w, middle + 4), (5, 1), [white], fill=(0.5, 0.5, 1))
    return image


def wall(
    rng: Rng, h: int, w: int, *, rows: Range, aspect: float, colours: Sequence[tuple], **look
) -> np.ndarray:
    """A wall of bricks or tiles, `aspect` as wide as they are tall; `look` is for `_grid`."""
    image = surface(rng, h, w, saturation=(0, 0.05), value=(0.5, 0.8))
    rows, colours = int(rng.integers(*rows)), [random_colour(rng, *ranges) for ranges in colours]
    columns = max(2, round(rows * w / h / aspect))
    _grid(image, rng, (0, 0, w, h), (columns, rows), colours, **look)
    return image * tinted(1 + 0.05 * noise(rng, 90, h, w))


def chart(rng: Rng, h: int, w: int) -> np.ndarray:
    """A chart of bars, of lines or of both."""
    image, (bars, lines) = np.full((h, w, 3), 250, np.float32), rng.choice([[8, 0], [5, 2], [0, 3]])
    _grid(image, rng, (0.1 * w, 0.1 * h, 0.95 * w, h), (1, 6), [215], fill=(1, 1, 0.03))
    colour = random_colour(rng)
    for x in 0.13 + 0.8 * np.arange(bars) / max(1, bars):
        box(image, x * w, rng.uniform(0.15, 0.75) * h, (x + 0.44 / bars) * w, 0.87 * h, colour)
    for _ in range(lines):
        y = 0.5 + 0.05 * np.cumsum(rng.normal(0, 1, 30))
        path = np.column_stack([np.linspace(0.1, 0.95, 30), y]) * [w, h]
        line(image, path, random_colour(rng), 2)
    line(image, np.multiply([[0.1, 0.08], [0.1, 0.87], [0.95, 0.87]], [w, h]), 40, 2)
    return image


def fabric(rng: Rng, h: int, w: int) -> np.ndarray:
    """Checked fabric."""
    x, y = np.arange(w) / w, np.arange(h)[:, None] / h
    across, down = (np.sign(np.sin(rng.uniform(20, 90) * v)) * rng.uniform(0, 0.3) for v in (x, y))
    return tinted(1 + across + down + 0.1 * np.sin(2 * noise(rng, 3, h, w)), random_colour(rng))


def gradient(rng: Rng, h: int, w: int) -> np.ndarray:
    """Two colours that run into each other."""
    share = 1 / (1 + np.exp(-noise(rng, int(rng.choice([1, 2, 4, 30])), h, w)))
    return tinted(share, random_colour(rng)) + tinted(1 - share, random_colour(rng))


THINGS: list[Ground] = [
    document,
    street,
    sky,
    # a face
    Figure(
        (surface,),
        [
            ("oval", "shirt", 0, 2.0, 1.7, 1.0),
            ("box", "dark skin", -0.3, 0.5, 0.3, 1.25),
            ("oval", "hair", 0, -0.25, 0.86, 0.95),
            ("oval", "skin", 0, 0, 0.72, 0.95),
            *[
                part
                for side in (-0.28, 0.28)
                for part in (
                    ("oval", (240, 240, 238), side, -0.12, 0.13, 0.07),
                    ("oval", (50, 35, 25), side, -0.12, 0.06, 0.065),
                    ("rod", (60, 42, 30), side - 0.15, -0.3, side + 0.15, -0.3, 0.06),
                )
            ],
            ("area", "dark skin", 0, -0.1, -0.1, 0.25, 0.1, 0.25),
            ("oval", (170, 80, 78), 0, 0.5, 0.24, 0.07),
        ],
        {"skin": SKIN, "hair": ((10, 45), (0.1, 0.7), (0.05, 0.6)), "shirt": ANY},
        size=(0.3, 0.42),
        at=(0.5, 0.47),
    ),
    # a hand
    Figure(
        INDOORS,
        [
            *[
                (
                    "rod",
                    "skin",
                    0.7 * np.sin(a),
                    -0.6 * np.cos(a),
                    n * np.sin(a),
                    -n * np.cos(a),
                    0.4,
                )
                for a, n in ((-0.55, 1.5), (-0.2, 1.9), (0.08, 2.05), (0.36, 1.85), (0.95, 1.3))
            ],
            ("oval", "skin", 0, 0, 0.95, 1.05),
            ("box", "skin", -0.6, 0.6, 0.6, 5),
            ("rod", "dark skin", -0.5, 0, 0.6, -0.2, 0.05),
            ("rod", "dark skin", -0.6, 0.35, 0.3, 0.1, 0.05),
        ],
        {"skin": SKIN},
        size=(0.2, 0.26),
        at=(0.5, 0.62),
        degrees=25,
    ),
    # a car
    Figure((street, sky), _CAR, {"paint": ANY, **_ROAD}, size=(0.85, 1.05), at=(0.5, 0.65)),
    # a room
    Figure(
        (surface,),
        [
            ("box", "floor", -3, 0.15, 3, 3),
            ("box", "frame", -0.5, -0.4, -0.2, -0.06),
            ("box", (190, 215, 235), -0.47, -0.37, -0.23, -0.09),
            ("box", "sofa", -0.3, -0.2, 0.3, 0.1),
            ("box", "dark sofa", -0.36, 0.05, 0.36, 0.22),
            *[("box", (50, 38, 30), x, 0.22, x + 0.04, 0.32) for x in (-0.32, 0.28)],
            ("rod", (60, 60, 60), 0.45, 0.25, 0.45, -0.2, 0.02),
            ("area", (235, 220, 170), 0.36, -0.15, 0.54, -0.15, 0.49, -0.32, 0.41, -0.32),
        ],
        {"floor": BROWN, "frame": ANY, "sofa": ANY},
    ),
    fabric,
    # bricks and tiles
    partial(
        wall,
        rows=(9, 17),
        aspect=2.4,
        colours=[((0, 30), (0.2, 0.65), (0.4, 0.75))],
        fill=(0.94, 0.94, 0.86),
        shift=(0, 0.5),
        shade=0.18,
    ),
    partial(wall, rows=(3, 9), aspect=1, colours=[ANY, ANY], fill=(0.95, 0.95, 0.95)),
    # a program's window
    Figure(
        (partial(surface, value=(0.9, 1)), partial(surface, value=(0.05, 0.2))),
        [
            ("box", "accent", -1, -0.8, 1, -0.42),
            ("box", "side", -1, -0.42, -0.3, 1),
            *[
                ("box", "ink", -0.5, y / 10, -0.34 - y % 3 / 20, y / 10 + 0.03)
                for y in range(-3, 5)
            ],
            ("box", "ink", -0.2, -0.34, 0.1, -0.16),
            ("box", "accent", -0.2, -0.1, 0.2, 0.12),
            *[("box", "ink", -0.2, y / 10, 0.1 + y % 3 / 8, y / 10 + 0.04) for y in range(2, 5)],
        ],
        {"accent": ANY, "side": (*GREY, (0.2, 0.8)), "ink": (*GREY, (0.3, 0.6))},
    ),
    chart,
    # an animal
    Figure(
        (sky, GROUNDS["soil"], GROUNDS["cloth"], surface),
        [
            *[("rod", "dark fur", x, 0, 1.1 * x, 0.62, 0.12) for x in (-0.42, -0.28, 0.28, 0.42)],
            ("oval", "fur", 0, 0, 0.6, 0.3),
            ("rod", "fur", -0.55, -0.1, -0.82, -0.3, 0.08),
            ("rod", "fur", 0.45, -0.1, 0.68, -0.4, 0.22),
            ("area", "dark fur", 0.52, -0.55, 0.68, -0.55, 0.6, -0.8),
            ("area", "dark fur", 0.72, -0.55, 0.88, -0.55, 0.8, -0.8),
            ("oval", "fur", 0.72, -0.45, 0.22, 0.18),
            ("oval", "dark fur", 0.92, -0.4, 0.12, 0.09),
            ("oval", (15, 15, 15), 0.76, -0.5, 0.03, 0.03),
        ],
        {"fur": ((15, 40), (0.05, 0.6), (0.1, 0.85))},
        size=(0.42, 0.55),
        degrees=5,
    ),
    # a plate of food
    Figure(
        INDOORS,
        [
            ("oval", (238, 236, 230), 0, 0, 1, 1),
            ("oval", (222, 220, 214), 0, 0, 0.72, 0.72),
            ("rod", (180, 180, 185), -1.15, -0.7, -1.15, 0.7, 0.05),
        ],
        size=(0.36, 0.44),
        scatter=((4, 14), (0.08, 0.26), 0.4, (0, 55)),
    ),
    gradient,
    surface,
    # green, but no plant: a car, bottles, billiards, a wall
    Figure(
        (sky, surface),
        _CAR,
        {"paint": (GREEN, (0.4, 0.9), (0.3, 0.85)), **_ROAD},
        size=(0.85, 1.05),
        at=(0.5, 0.65),
    ),
    Figure(
        INDOORS,
        [
            part
            for name, x in (("tall", -0.2), ("low", 0.2))
            for part in (
                ("box", name, x - 0.035, -0.4, x + 0.035, -0.1),
                ("area", name, x - 0.035, -0.18, x + 0.035, -0.18, x + 0.1, 0, x - 0.1, 0),
                ("box", name, x - 0.1, -0.01, x + 0.1, 0.42),
                ("box", "label", x - 0.09, 0.08, x + 0.09, 0.26),
                ("rod", (220, 230, 222), x - 0.065, 0.03, x - 0.065, 0.38, 0.02),
            )
        ],
        {"tall": _GLASS, "low": _GLASS, "label": ((0, 360), (0, 0.5), (0.7, 1))},
    ),
    Figure(
        (partial(surface, hue=(110, 155), saturation=(0.55, 0.85), value=(0.3, 0.6)),),
        [("box", "rail", -3, -0.6, 3, -0.44), ("rod", (200, 165, 110), -0.3, 0.7, 0, 0.1, 0.025)],
        {"rail": BROWN},
        scatter=((3, 10), (0.045, 0.05), 0.4, (0, 360)),
    ),
    partial(surface, hue=GREEN, saturation=(0.2, 0.8), value=(0.25, 0.85)),
    # the very grounds that leaves lie on: bare, with a coin, a hammer, a pen
    Figure(LYING, []),
    Figure(
        LYING,
        [("oval", "metal", 0, 0, 0.12, 0.12), ("oval", "dark metal", 0, 0, 0.095, 0.095)],
        {"metal": METAL},
    ),
    Figure(
        LYING,
        [("rod", "wood", 0, -0.4, 0, 0.28, 0.06), ("box", "metal", -0.18, 0.26, 0.18, 0.36)],
        {"wood": BROWN, "metal": METAL},
        degrees=180,
    ),
    Figure(
        LYING,
        [("rod", "ink", 0, -0.36, 0, 0.34, 0.04), ("rod", (40, 40, 45), 0, 0.34, 0, 0.42, 0.02)],
        {"ink": ANY},
        degrees=180,
    ),
]


def draw_thing(number: int, rng: Rng, height: int, width: int) -> np.ndarray:
    """Picture `number` of no plant, its subject from THINGS in turn -> RGB float32 (height, width,
    3) in 0..255.
    """
    return np.clip(THINGS[number % len(THINGS)](rng, height, width), 0, 255).astype(np.float32)
