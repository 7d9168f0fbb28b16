"""Pictures of no plant for the demo: documents, streets, faces, tools, textures, some green on
purpose. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from common.demo.leaves import SUB, fixed, hsv, noise
from common.demo.scenes import cloth, fabric, gradient, gravel, paper, skin, sky, soil, wood

Rng = np.random.Generator
GREEN = (85.0, 150.0)


def _colour(
    rng: Rng,
    hue: tuple[float, float] = (0, 360),
    s: tuple[float, float] = (0.2, 0.9),
    v: tuple[float, float] = (0.2, 0.95),
) -> list[float]:
    return hsv(rng.uniform(*hue), rng.uniform(*s), rng.uniform(*v)).tolist()


def _box(
    image: np.ndarray, x0: float, y0: float, x1: float, y1: float, colour: Sequence[float]
) -> None:
    cv2.rectangle(image, (int(x0), int(y0)), (int(x1), int(y1)), tuple(colour), -1)


def _oval(
    image: np.ndarray,
    x: float,
    y: float,
    a: float,
    b: float,
    colour: Sequence[float],
    turn: float = 0,
) -> None:
    axes = fixed([max(a, 0.5), max(b, 0.5)]).tolist()
    cv2.ellipse(
        image, fixed([x, y]).tolist(), axes, turn, 0, 360, tuple(colour), -1, cv2.LINE_AA, SUB
    )


def _area(image: np.ndarray, points: Sequence[Sequence[float]], colour: Sequence[float]) -> None:
    cv2.fillPoly(image, [fixed(points)], tuple(colour), cv2.LINE_AA, SUB)


def _poly(
    image: np.ndarray,
    x: float,
    y: float,
    u: float,
    colour: Sequence[float],
    *points: Sequence[float],
) -> None:
    _area(image, np.array(points) * u + (x, y), colour)


def _rod(
    image: np.ndarray, a: Sequence[float], b: Sequence[float], colour: Sequence[float], thick: float
) -> None:
    cv2.line(
        image,
        fixed(a).tolist(),
        fixed(b).tolist(),
        tuple(colour),
        max(1, int(thick)),
        cv2.LINE_AA,
        SUB,
    )


def _plain(rng: Rng, h: int, w: int, colour: Sequence[float] | None = None) -> np.ndarray:
    base = np.float32(colour if colour is not None else _colour(rng, s=(0, 0.4)))
    tone = 1 + 0.05 * noise(rng, h, w, 3) + 0.02 * noise(rng, h, w, 80)
    return np.clip(base * tone[..., None], 0, 255).astype(np.float32)


def _document(rng: Rng, h: int, w: int) -> np.ndarray:
    image, ink = (
        _plain(rng, h, w, _colour(rng, (30, 60), (0, 0.12), (0.8, 1))),
        [rng.uniform(20, 80)] * 3,
    )
    step, y = h / rng.uniform(14, 26), h * 0.08
    while y < h * 0.93:
        if rng.random() < 0.08:
            _box(
                image,
                w * 0.1,
                y,
                w * rng.uniform(0.3, 0.9),
                min(h * 0.95, y + 5 * step),
                _colour(rng, s=(0, 0.5)),
            )
            y += 6 * step
        x, end = w * 0.08, w * (0.92 if rng.random() < 0.8 else rng.uniform(0.3, 0.9))
        while x < end:
            word = rng.uniform(0.02, 0.11) * w
            _box(image, x, y, min(x + word, w * 0.94), y + step * 0.42, ink)
            x += word + 0.02 * w
        y += step
    return image


def _street(rng: Rng, h: int, w: int) -> np.ndarray:
    image, x, ground = sky(rng, h, w), 0.0, h * rng.uniform(0.7, 0.85)
    while x < w:
        wide, top = rng.uniform(0.12, 0.3) * w, rng.uniform(0.1, 0.55) * h
        _box(image, x, top, x + wide, h, _colour(rng, (0, 60), (0, 0.4), (0.25, 0.8)))
        pane, (cols, rows) = (
            _colour(rng, (190, 230), (0, 0.4), (0.1, 0.9)),
            rng.integers((2, 3), (6, 9)).tolist(),
        )
        for i in range(cols):
            for j in range(rows):
                px, py = x + wide * (i + 0.25) / cols, top + (ground - top) * (j + 0.25) / rows
                _box(image, px, py, px + 0.5 * wide / cols, py + 0.5 * (ground - top) / rows, pane)
        x += wide
    _box(image, 0, ground, w, h, _colour(rng, s=(0, 0.1), v=(0.25, 0.5)))
    for k in range(5):
        _box(
            image,
            w * (k + 0.2) / 5,
            (h + ground) / 2,
            w * (k + 0.7) / 5,
            (h + ground) / 2 + 3,
            [225, 220, 200],
        )
    return image


def _vehicle(image: np.ndarray, rng: Rng, hue: tuple[float, float]) -> np.ndarray:
    h, w = image.shape[:2]
    paint, glass = _colour(rng, hue, (0.4, 0.9), (0.3, 0.85)), [145.0, 175.0, 192.0]
    u, x, y = w * rng.uniform(0.8, 1.0), w * 0.5, h * rng.uniform(0.6, 0.7)
    _box(image, 0, y + 0.1 * u, w, h, _colour(rng, s=(0, 0.1), v=(0.25, 0.5)))
    _poly(image, x, y, u, paint, (-0.28, -0.08), (-0.17, -0.24), (0.14, -0.24), (0.27, -0.08))
    _poly(image, x, y, u, glass, (-0.2, -0.09), (-0.14, -0.21), (-0.02, -0.21), (-0.02, -0.09))
    _poly(image, x, y, u, glass, (0.01, -0.09), (0.01, -0.21), (0.12, -0.21), (0.2, -0.09))
    _poly(
        image,
        x,
        y,
        u,
        paint,
        (-0.44, 0.1),
        (-0.45, -0.03),
        (-0.28, -0.09),
        (0.28, -0.09),
        (0.44, 0.0),
        (0.45, 0.1),
    )
    for side in (-0.26, 0.27):
        _oval(image, x + side * u, y + 0.1 * u, 0.085 * u, 0.085 * u, [25, 25, 28])
        _oval(image, x + side * u, y + 0.1 * u, 0.04 * u, 0.04 * u, [170, 170, 175])
    return image


def _car(rng: Rng, h: int, w: int) -> np.ndarray:
    return _vehicle(_street(rng, h, w) if rng.random() < 0.5 else sky(rng, h, w), rng, (0, 360))


def _green_car(rng: Rng, h: int, w: int) -> np.ndarray:
    return _vehicle(sky(rng, h, w) if rng.random() < 0.6 else _plain(rng, h, w), rng, GREEN)


def _face(rng: Rng, h: int, w: int) -> np.ndarray:
    image, u, x, y = (
        _plain(rng, h, w),
        min(h, w) * rng.uniform(0.3, 0.42),
        w * rng.uniform(0.42, 0.58),
        h * 0.47,
    )
    tone = hsv(rng.uniform(14, 28), rng.uniform(0.25, 0.55), rng.uniform(0.35, 0.92))
    shirt = _colour(rng, GREEN) if rng.random() < 0.4 else _colour(rng)
    _oval(image, x, y + 2.0 * u, 1.7 * u, 1.0 * u, shirt)
    _box(image, x - 0.3 * u, y + 0.5 * u, x + 0.3 * u, y + 1.25 * u, (tone * 0.85).tolist())
    _oval(
        image, x, y - 0.25 * u, 0.86 * u, 0.95 * u, _colour(rng, (10, 45), (0.1, 0.7), (0.05, 0.6))
    )
    _oval(image, x, y, 0.72 * u, 0.95 * u, tone.tolist())
    for side in (-1, 1):
        _oval(image, x + side * 0.28 * u, y - 0.12 * u, 0.13 * u, 0.07 * u, [240, 240, 238])
        _oval(image, x + side * 0.28 * u, y - 0.12 * u, 0.06 * u, 0.065 * u, [50, 35, 25])
        _rod(
            image,
            (x + side * 0.13 * u, y - 0.3 * u),
            (x + side * 0.43 * u, y - 0.3 * u),
            [60, 42, 30],
            0.06 * u,
        )
    _poly(image, x, y, u, (tone * 0.88).tolist(), (0, -0.1), (-0.1, 0.25), (0.1, 0.25))
    _oval(image, x, y + 0.5 * u, 0.24 * u, 0.07 * u, [170, 80, 78])
    return cv2.GaussianBlur(image, (0, 0), 1.0)


def _hand(rng: Rng, h: int, w: int) -> np.ndarray:
    image, u, x, y = (
        [_plain, wood, cloth][int(rng.integers(3))](rng, h, w),
        min(h, w) * 0.24,
        w * 0.5,
        h * 0.66,
    )
    tone = hsv(rng.uniform(14, 28), rng.uniform(0.28, 0.55), rng.uniform(0.4, 0.92))
    for k, (a, long) in enumerate(
        ((-0.55, 1.5), (-0.2, 1.9), (0.08, 2.05), (0.36, 1.85), (0.95, 1.3))
    ):
        shade = (tone * (0.9 + 0.03 * k)).tolist()
        foot = (x + np.sin(a) * 0.7 * u, y - np.cos(a) * 0.6 * u)
        _rod(
            image, foot, (x + np.sin(a) * long * u * 1.1, y - np.cos(a) * long * u), shade, 0.42 * u
        )
    _oval(image, x, y, 0.95 * u, 1.05 * u, tone.tolist())
    _box(image, x - 0.6 * u, y + 0.6 * u, x + 0.6 * u, h, tone.tolist())
    _rod(image, (x - 0.5 * u, y), (x + 0.6 * u, y - 0.2 * u), (tone * 0.75).tolist(), 2)
    return cv2.GaussianBlur(image, (0, 0), 1.0)


def _room(rng: Rng, h: int, w: int) -> np.ndarray:
    image, floor, u = _plain(rng, h, w), h * rng.uniform(0.65, 0.8), min(h, w)
    image[int(floor) :] = wood(rng, h, w)[int(floor) :]
    _box(image, 0.08 * w, 0.12 * h, 0.36 * w, 0.45 * h, _colour(rng, s=(0, 0.7)))
    _box(
        image,
        0.11 * w,
        0.15 * h,
        0.33 * w,
        0.42 * h,
        _colour(rng, (190, 230), (0.1, 0.4), (0.7, 1)),
    )
    body, x, y = _colour(rng), w * rng.uniform(0.45, 0.6), floor - 0.1 * u
    _box(image, x - 0.3 * u, y - 0.3 * u, x + 0.3 * u, y, body)
    _box(image, x - 0.36 * u, y - 0.05 * u, x + 0.36 * u, y + 0.12 * u, [0.8 * c for c in body])
    for side in (-0.32, 0.3):
        _box(image, x + side * u, y + 0.12 * u, x + (side + 0.04) * u, y + 0.24 * u, [50, 38, 30])
    _rod(image, (0.88 * w, floor + 0.1 * u), (0.88 * w, 0.35 * h), [60, 60, 60], 0.02 * u)
    _poly(
        image,
        0.88 * w,
        0.38 * h,
        u,
        [235, 220, 170],
        (-0.09, 0),
        (0.09, 0),
        (0.04, -0.16),
        (-0.04, -0.16),
    )
    return image


def _bricks(rng: Rng, h: int, w: int) -> np.ndarray:
    image, tall = _plain(rng, h, w, [150, 145, 138]), max(h, w) / rng.uniform(9, 16)
    base = hsv(rng.uniform(0, 30), rng.uniform(0.2, 0.65), rng.uniform(0.4, 0.75))
    for j in range(int(h / tall) + 1):
        for i in range(-1, int(w / (2.4 * tall)) + 1):
            x, y = (i + 0.5 * (j % 2)) * 2.4 * tall, j * tall
            _box(
                image,
                x,
                y,
                x + 2.25 * tall,
                y + 0.86 * tall,
                (base * rng.uniform(0.8, 1.15)).tolist(),
            )
    return image * (1 + 0.05 * noise(rng, h, w, 90))[..., None]


def _tiles(rng: Rng, h: int, w: int) -> np.ndarray:
    image, side = _plain(rng, h, w, [200, 200, 195]), max(h, w) / rng.integers(4, 9)
    one, two = _colour(rng), _colour(rng, s=(0, 0.4))
    for j in range(int(h / side) + 1):
        for i in range(int(w / side) + 1):
            _box(
                image,
                i * side + 2,
                j * side + 2,
                (i + 1) * side - 2,
                (j + 1) * side - 2,
                one if (i + j) % 2 else two,
            )
    return image


def _screen(rng: Rng, h: int, w: int) -> np.ndarray:
    dark = rng.random() < 0.5
    image = np.full((h, w, 3), 28 if dark else 246, np.float32)
    accent, ink = _colour(rng), [190.0] * 3 if dark else [70.0] * 3
    _box(image, 0, 0, w, 0.09 * h, accent)
    _box(image, 0, 0.09 * h, 0.22 * w, h, [48] * 3 if dark else [226] * 3)
    for k in range(7):
        _box(
            image,
            0.03 * w,
            (0.15 + 0.1 * k) * h,
            rng.uniform(0.1, 0.19) * w,
            (0.18 + 0.1 * k) * h,
            ink,
        )
    for k in range(int(rng.integers(3, 8))):
        x, y = rng.uniform(0.26, 0.7) * w, rng.uniform(0.13, 0.85) * h
        wide, tall = rng.uniform((0.08, 0.03), (0.28, 0.2))
        _box(image, x, y, x + wide * w, y + tall * h, ink if k % 3 else accent)
    return image


def _chart(rng: Rng, h: int, w: int) -> np.ndarray:
    image, n = np.full((h, w, 3), 250, np.float32), int(rng.integers(4, 10))
    for k in range(6):
        _box(image, 0.1 * w, (0.1 + 0.15 * k) * h, 0.95 * w, (0.1 + 0.15 * k) * h, [215] * 3)
    colour = _colour(rng)
    if rng.random() < 0.5:
        for k in range(n):
            x = (0.13 + 0.8 * k / n) * w
            _box(image, x, rng.uniform(0.15, 0.75) * h, x + 0.55 * w / n, 0.87 * h, colour)
    else:
        for _ in range(int(rng.integers(1, 4))):
            path = np.column_stack(
                [np.linspace(0.1, 0.95, 30) * w, (0.5 + 0.05 * np.cumsum(rng.normal(0, 1, 30))) * h]
            )
            cv2.polylines(image, [fixed(path)], False, _colour(rng), 2, cv2.LINE_AA, SUB)
    _box(image, 0.1 * w, 0.87 * h, 0.95 * w, 0.88 * h, [40] * 3)
    _box(image, 0.095 * w, 0.08 * h, 0.1 * w, 0.88 * h, [40] * 3)
    return image


def _animal(rng: Rng, h: int, w: int) -> np.ndarray:
    image, u, x, y = (
        [sky, soil, cloth, _plain][int(rng.integers(4))](rng, h, w),
        min(h, w) * 0.5,
        w * 0.46,
        h * 0.52,
    )
    fur = hsv(rng.uniform(15, 40), rng.uniform(0.05, 0.6), rng.uniform(0.1, 0.85))
    colour, legs = fur.tolist(), (fur * 0.8).tolist()
    for side in (-0.42, -0.28, 0.28, 0.42):
        _rod(
            image,
            (x + side * u, y),
            (x + (side + rng.normal(0, 0.04)) * u, y + 0.62 * u),
            legs,
            0.12 * u,
        )
    _oval(image, x, y, 0.6 * u, 0.3 * u, colour)
    _rod(
        image,
        (x - 0.55 * u, y - 0.1 * u),
        (x - 0.82 * u, y - rng.uniform(-0.2, 0.45) * u),
        colour,
        0.08 * u,
    )
    _rod(image, (x + 0.45 * u, y - 0.1 * u), (x + 0.68 * u, y - 0.4 * u), colour, 0.22 * u)
    for side in (-0.1, 0.1):
        _poly(image, x + side * u, y, u, legs, (0.62, -0.55), (0.78, -0.55), (0.7, -0.8))
    _oval(image, x + 0.72 * u, y - 0.45 * u, 0.22 * u, 0.18 * u, colour)
    _oval(image, x + 0.92 * u, y - 0.4 * u, 0.12 * u, 0.09 * u, legs)
    _oval(image, x + 0.76 * u, y - 0.5 * u, 0.03 * u, 0.03 * u, [15, 15, 15])
    return image * (1 + 0.06 * noise(rng, h, w, 100))[..., None]


def _plate(rng: Rng, h: int, w: int) -> np.ndarray:
    image, u, x, y = (
        [wood, cloth, _plain][int(rng.integers(3))](rng, h, w),
        min(h, w) * 0.42,
        w / 2,
        h / 2,
    )
    _oval(image, x, y, u, u, [238, 236, 230])
    _oval(image, x, y, 0.72 * u, 0.72 * u, [222, 220, 214])
    for _ in range(int(rng.integers(4, 14))):
        a, r = rng.uniform(0, 6.28), rng.uniform(0, 0.45) * u
        long, wide = rng.uniform(0.08, 0.26, 2) * u
        _oval(
            image,
            x + r * np.cos(a),
            y + r * np.sin(a),
            long,
            wide,
            _colour(rng, (0, 55)),
            rng.uniform(0, 180),
        )
    _rod(image, (x - 1.15 * u, y - 0.7 * u), (x - 1.15 * u, y + 0.7 * u), [180, 180, 185], 0.05 * u)
    return image


def _clouds(rng: Rng, h: int, w: int) -> np.ndarray:
    image = sky(rng, h, w)
    if rng.random() < 0.5:
        line = h * (0.75 + 0.06 * noise(rng, 2, w, 8)[0])
        hills = [(0, h), *zip(range(w), line.tolist(), strict=True), (w, h)]
        _area(image, hills, _colour(rng, (200, 260), (0, 0.3), (0.15, 0.5)))
    return image


def _green_wall(rng: Rng, h: int, w: int) -> np.ndarray:
    return _plain(rng, h, w, _colour(rng, GREEN, (0.2, 0.8), (0.25, 0.85)))


def _billiards(rng: Rng, h: int, w: int) -> np.ndarray:
    image = _plain(rng, h, w, _colour(rng, (110, 155), (0.55, 0.85), (0.3, 0.6)))
    u = min(h, w)
    _box(image, 0, 0, w, 0.1 * h, _colour(rng, (15, 35), (0.5, 0.8), (0.25, 0.5)))
    for _ in range(int(rng.integers(3, 10))):
        x, y, r = rng.uniform(0.1, 0.9) * w, rng.uniform(0.2, 0.9) * h, 0.05 * u
        _oval(image, x + 0.3 * r, y + 0.4 * r, r, r, (image[int(y), int(x)] * 0.6).tolist())
        _oval(image, x, y, r, r, _colour(rng, s=(0, 1)))
        _oval(image, x - 0.3 * r, y - 0.3 * r, 0.25 * r, 0.25 * r, [250, 250, 250])
    _rod(
        image,
        (rng.uniform(0, w), h),
        (0.5 * w, rng.uniform(0.4, 0.7) * h),
        [200, 165, 110],
        0.025 * u,
    )
    return image


def _bottle(rng: Rng, h: int, w: int) -> np.ndarray:
    image, u = [_plain, wood, cloth][int(rng.integers(3))](rng, h, w), min(h, w)
    for k in range(int(rng.integers(1, 4))):
        x, glass = w * (0.28 + 0.24 * k), np.array(_colour(rng, (80, 160), (0.5, 0.9), (0.25, 0.6)))
        _box(image, x - 0.035 * u, 0.1 * h, x + 0.035 * u, 0.4 * h, glass.tolist())
        _box(image, x - 0.1 * u, 0.47 * h, x + 0.1 * u, 0.92 * h, glass.tolist())
        _poly(
            image,
            x,
            0.48 * h,
            u,
            glass.tolist(),
            (-0.035, -0.16),
            (0.035, -0.16),
            (0.1, 0),
            (-0.1, 0),
        )
        _box(
            image,
            x - 0.09 * u,
            0.58 * h,
            x + 0.09 * u,
            0.76 * h,
            _colour(rng, s=(0, 0.5), v=(0.7, 1)),
        )
        _rod(
            image,
            (x - 0.065 * u, 0.5 * h),
            (x - 0.065 * u, 0.88 * h),
            (glass * 0.5 + 125).tolist(),
            0.02 * u,
        )
    return image


def on_the_ground(rng: Rng, h: int, w: int) -> np.ndarray:
    """The very grounds that leaves lie on, bare or with a coin, a key, a pen or a hammer."""
    image, u = [soil, gravel, wood, paper, cloth, skin][int(rng.integers(6))](rng, h, w), min(h, w)
    x, y, a = rng.uniform(0.35, 0.65) * w, rng.uniform(0.35, 0.65) * h, rng.uniform(0, 6.28)
    way, side = np.array([np.cos(a), np.sin(a)]), np.array([-np.sin(a), np.cos(a)])
    at, kind = np.array([x, y]), int(rng.integers(4))
    metal = _colour(rng, (30, 50), (0, 0.5), (0.5, 0.85))
    if kind == 0:
        for k in range(int(rng.integers(1, 5))):
            cx, cy = at + rng.normal(0, 0.16, 2) * u * (k > 0)
            _oval(image, cx, cy, 0.09 * u, 0.09 * u, metal)
            _oval(image, cx, cy, 0.07 * u, 0.07 * u, [0.85 * c for c in metal])
    elif kind == 1:
        _rod(
            image,
            at - way * 0.4 * u,
            at + way * 0.28 * u,
            _colour(rng, (20, 35), (0.4, 0.7), (0.4, 0.8)),
            0.06 * u,
        )
        head = ((-0.18, 0.26), (0.18, 0.26), (0.18, 0.36), (-0.18, 0.36))
        _area(image, [at + u * (t * way + s * side) for s, t in head], metal)
    elif kind == 2:
        ink = _colour(rng, GREEN if rng.random() < 0.4 else (0, 360))
        _rod(image, at - way * 0.36 * u, at + way * 0.34 * u, ink, 0.04 * u)
        _rod(image, at + way * 0.34 * u, at + way * 0.42 * u, [40, 40, 45], 0.02 * u)
    return image


THINGS: list[Callable[[Rng, int, int], np.ndarray]] = [
    _document,
    _street,
    _clouds,
    _face,
    _hand,
    _car,
    _room,
    _bricks,
    fabric,
    _tiles,
    _screen,
    _chart,
    _animal,
    _plate,
    gradient,
    _plain,
    _green_car,
    _bottle,
    _billiards,
    _green_wall,
    *[on_the_ground] * 4,
]


def draw_thing(number: int, rng: Rng, height: int, width: int) -> np.ndarray:
    """Picture `number` of no plant, its subject by turns from THINGS -> float32 (height, width, 3)
    0..255, RGB."""
    return np.clip(THINGS[number % len(THINGS)](rng, height, width), 0, 255).astype(np.float32)
