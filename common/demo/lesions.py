"""Diseases for the demo pictures: each paints its own kind of lesion onto a healthy leaf, in place.
No torch."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from common.demo.leaves import CANVAS, SUB, Leaf, fixed, mix, noise, tinted

GRID = np.arange(CANVAS, dtype=np.float32)


def _ramp(value: np.ndarray, zero: float, one: float) -> np.ndarray:
    return np.clip((value - zero) / (one - zero), 0, 1)


def _tint(leaf: Leaf, amount: np.ndarray, colour: np.ndarray) -> None:
    """Mixes `colour` (RGB 0..255, one or per pixel) into the blade by `amount` (C, C) 0..1, in the
    blade's light."""
    mix(leaf.rgb, amount * leaf.blade, tinted(leaf.tone, colour) if colour.ndim == 1 else colour)


def _shade(
    rng: np.random.Generator, colour: tuple[float, float, float], spread: float = 10.0
) -> np.ndarray:
    return np.clip(
        np.array(colour) + rng.normal(0, spread) + rng.normal(0, spread / 2, 3), 0, 255
    ).astype(np.float32)


def _inside(
    leaf: Leaf, rng: np.random.Generator, count: int, margin: float = 3.0, apart: float = 0.0
) -> np.ndarray:
    """Up to `count` places (n, 2) as x, y on the blade, `margin` pixels from the edge and `apart`
    from each other."""
    ys, xs = np.nonzero(leaf.depth > min(margin, 0.6 * float(leaf.depth.max())))
    pick = rng.integers(0, len(xs), count * 3)
    kept: list[tuple[float, float]] = []
    for x, y in zip(xs[pick].tolist(), ys[pick].tolist(), strict=True):
        if len(kept) < count and all((x - a) ** 2 + (y - b) ** 2 >= apart**2 for a, b in kept):
            kept.append((x, y))
    return np.array(kept, dtype=np.float32)


def _spots(
    rng: np.random.Generator, places: np.ndarray, radii: np.ndarray, wobble: float = 0.15
) -> np.ndarray:
    """Distance to the nearest spot in units of its radius, float32 (C, C): 0 in the middle, 1 on
    the rim, 9 far."""
    field = np.full((CANVAS, CANVAS), 9.0, np.float32)
    for (x, y), r in zip(places, radii, strict=True):
        x0, x1 = max(0, int(x - 3 * r)), min(CANVAS, int(x + 3 * r) + 2)
        y0, y1 = max(0, int(y - 3 * r)), min(CANVAS, int(y + 3 * r) + 2)
        d = np.sqrt((GRID[None, x0:x1] - x) ** 2 + (GRID[y0:y1, None] - y) ** 2) / r
        np.minimum(field[y0:y1, x0:x1], d, out=field[y0:y1, x0:x1])
    return field + wobble * noise(rng, CANVAS, CANVAS, 30) * np.minimum(field, 1)


def _many(low: float, high: float, severity: float) -> int:
    return round(low + (high - low) * severity)


def _between_veins(leaf: Leaf, width: float) -> np.ndarray:
    near = cv2.GaussianBlur(leaf.veins, (0, 0), width)
    return np.clip(1 - near / max(1e-6, float(near.max())) * 2.6, 0, 1)


def healthy(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Nothing but what any leaf has: a few specks of dust, seldom a scratch."""
    dust = np.zeros((CANVAS, CANVAS), np.uint8)
    for x, y in _inside(leaf, rng, int(rng.integers(0, 6))):
        cv2.circle(
            dust,
            fixed([x, y]).tolist(),
            int(rng.uniform(0.6, 1.6) * (1 << SUB)),
            255,
            -1,
            cv2.LINE_AA,
            SUB,
        )
    _tint(leaf, dust / 255 * 0.5, _shade(rng, (120, 110, 80), 30))


def early_blight(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """A few large brown spots with rings like a target and a yellow halo."""
    places = _inside(leaf, rng, _many(2, 8, severity), 5, 16 * leaf.unit)
    field = _spots(rng, places, rng.uniform(7, 11 + 6 * severity, len(places)) * leaf.unit, 0.06)
    _tint(leaf, 0.75 * _ramp(field, 1.7, 1.0), _shade(rng, (215, 195, 60)))
    rings = 0.5 + 0.5 * np.cos(2 * np.pi * 3 * np.clip(field, 0, 1.1))
    brown = tinted(leaf.tone, _shade(rng, (78, 50, 26))) + tinted(rings, np.array([66, 50, 32]))
    _tint(leaf, 0.95 * _ramp(field, 1.08, 0.92), brown)


def late_blight(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Large dark, water-soaked areas that run in from the tip or the margin, with a pale grey-green
    front."""
    edge = np.argwhere((leaf.depth > 0.5) & (leaf.depth < 2.5))[:, ::-1]
    top = edge[edge[:, 1] < np.percentile(edge[:, 1], 35)] if rng.random() < 0.6 else edge
    places = top[rng.integers(0, len(top), _many(1, 4, severity))].astype(np.float32)
    field = _spots(rng, places, rng.uniform(20, 26 + 18 * severity, len(places)) * leaf.unit, 0.22)
    _tint(leaf, 0.65 * _ramp(field, 1.35, 1.05), _shade(rng, (165, 175, 120)))
    dark = tinted(leaf.tone + 0.15 * noise(rng, CANVAS, CANVAS, 20), _shade(rng, (52, 44, 30)))
    _tint(leaf, 0.92 * _ramp(field, 1.12, 0.9), dark)


def bacterial_spot(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Many small black spots, each in a faint yellow halo."""
    places = _inside(leaf, rng, _many(20, 85, severity), 2, 4)
    field = _spots(rng, places, rng.uniform(1.8, 3.6, len(places)) * leaf.unit, 0.2)
    _tint(leaf, 0.55 * _ramp(field, 2.6, 1.2), _shade(rng, (205, 200, 80)))
    _tint(leaf, 0.95 * _ramp(field, 1.2, 0.8), _shade(rng, (36, 26, 18), 5))


def leaf_spot(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Round spots, pale grey in the middle within a dark purple rim."""
    places = _inside(leaf, rng, _many(6, 28, severity), 3, 7 * leaf.unit)
    field = _spots(rng, places, rng.uniform(3.2, 7.5, len(places)) * leaf.unit, 0.18)
    _tint(leaf, 0.92 * _ramp(field, 1.35, 0.9), _shade(rng, (88, 36, 44)))
    _tint(leaf, 0.9 * _ramp(field, 0.72, 0.4), _shade(rng, (196, 184, 162), 14))


def canker(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Corky tan spots with a sunken dark middle and a broad bright yellow halo."""
    places = _inside(leaf, rng, _many(4, 20, severity), 4, 8 * leaf.unit)
    field = _spots(rng, places, rng.uniform(2.8, 6.5, len(places)) * leaf.unit)
    _tint(leaf, 0.85 * _ramp(field, 2.3, 1.1), _shade(rng, (232, 208, 50)))
    _tint(leaf, 0.95 * _ramp(field, 1.1, 0.9), _shade(rng, (158, 112, 66)))
    _tint(leaf, 0.8 * _ramp(field, 0.5, 0.3), _shade(rng, (80, 52, 34)))


def black_rot(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Round red-brown spots with a thin black border and no halo."""
    places = _inside(leaf, rng, _many(4, 18, severity), 5, 10 * leaf.unit)
    field = _spots(rng, places, rng.uniform(5.5, 10, len(places)) * leaf.unit, 0.13)
    _tint(leaf, 0.95 * _ramp(field, 1.15, 1.0), _shade(rng, (34, 20, 18), 5))
    _tint(leaf, 0.95 * _ramp(field, 0.82, 0.7), _shade(rng, (142, 84, 48)))


def scab(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Olive to black velvety blotches with feathered edges."""
    places = _inside(leaf, rng, _many(3, 14, severity), 4, 10 * leaf.unit)
    field = _spots(rng, places, rng.uniform(7, 13, len(places)) * leaf.unit, 0.4)
    velvet = tinted(leaf.tone + 0.2 * noise(rng, CANVAS, CANVAS, 60), _shade(rng, (50, 46, 26), 6))
    _tint(leaf, 0.88 * _ramp(field, 1.25, 0.55), velvet)


def cedar_apple_rust(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Bright orange spots with a yellow rim and dark dots in the middle."""
    places = _inside(leaf, rng, _many(3, 16, severity), 5, 10 * leaf.unit)
    field = _spots(rng, places, rng.uniform(5, 9, len(places)) * leaf.unit, 0.1)
    _tint(leaf, 0.85 * _ramp(field, 1.45, 1.05), _shade(rng, (228, 200, 60)))
    _tint(leaf, 0.95 * _ramp(field, 1.05, 0.8), _shade(rng, (226, 112, 24)))
    _tint(leaf, 0.85 * _ramp(field, 0.32, 0.2), _shade(rng, (70, 34, 18)))


def common_rust(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Very many small orange-brown pustules, long in the direction of the veins and lined up along
    them."""
    layer = np.zeros((CANVAS, CANVAS), np.uint8)
    for _ in range(_many(45, 210, severity)):
        rib = leaf.ribs[int(rng.integers(len(leaf.ribs)))] if len(leaf.ribs) > 3 else leaf.ribs[0]
        k = rng.uniform(0, len(rib) - 1.001)
        a, b = rib[int(k)], rib[int(k) + 1]
        x, y = a + (b - a) * (k % 1) + rng.normal(0, 13 * leaf.unit, 2)
        turn = np.degrees(np.arctan2(b[1] - a[1], b[0] - a[0]))
        size = fixed(rng.uniform(1.5, 2.9) * leaf.unit * np.array([1.5, 0.9]))
        cv2.ellipse(
            layer, fixed([x, y]).tolist(), size.tolist(), turn, 0, 360, 255, -1, cv2.LINE_AA, SUB
        )
    around = cv2.GaussianBlur(layer, (0, 0), 2.5 * leaf.unit)
    _tint(leaf, np.minimum(around / 255 * 0.9, 0.5), _shade(rng, (205, 180, 70)))
    _tint(leaf, layer / 255 * 0.95, _shade(rng, (176, 78, 22)))


def _streaks(
    leaf: Leaf,
    rng: np.random.Generator,
    count: int,
    length: tuple[float, float],
    width: tuple[float, float],
    boxy: bool,
) -> np.ndarray:
    """Lesions along the blade's long veins as a float32 (C, C) layer 0..1: spindles, or bars when
    `boxy`."""
    layer = np.zeros((CANVAS, CANVAS), np.uint8)
    rib = leaf.ribs[0]
    turn = np.arctan2(*(rib[-1] - rib[0])[::-1])
    for x, y in _inside(leaf, rng, count, 3, 0.4 * length[0] * leaf.unit):
        a, b = rng.uniform(*length) / 2 * leaf.unit, rng.uniform(*width) / 2 * leaf.unit
        angle = turn + rng.normal(0, 0.04)
        if boxy:
            box = cv2.boxPoints(((float(x), float(y)), (2 * a, 2 * b), float(np.degrees(angle))))
            cv2.fillPoly(layer, [fixed(box)], 255, cv2.LINE_AA, SUB)
        else:
            s = np.linspace(0, 2 * np.pi, 40)
            spindle = np.column_stack(
                [a * np.cos(s), b * np.sin(s) * (0.35 + 0.65 * np.sin(s) ** 2)]
            )
            c, n = np.cos(angle), np.sin(angle)
            cv2.fillPoly(
                layer,
                [fixed(spindle @ np.array([[c, n], [-n, c]]) + [x, y])],
                255,
                cv2.LINE_AA,
                SUB,
            )
    return layer.astype(np.float32) / 255


def northern_leaf_blight(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """One to five long grey-tan lesions shaped like cigars."""
    layer = _streaks(leaf, rng, _many(2, 6, severity), (55, 100), (15, 24), False)
    soft = cv2.GaussianBlur(layer, (0, 0), 2.0)
    _tint(leaf, _ramp(soft, 0.08, 0.35), _shade(rng, (98, 78, 44)))
    _tint(leaf, _ramp(soft, 0.45, 0.7), _shade(rng, (192, 176, 142)))


def gray_leaf_spot(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Many short brown bars with straight sides, kept between the veins."""
    layer = _streaks(leaf, rng, _many(9, 34, severity), (8, 17), (4, 7), True)
    _tint(
        leaf,
        0.55 * np.minimum(1, cv2.GaussianBlur(layer, (0, 0), 2.5) * 1.5),
        _shade(rng, (200, 186, 80)),
    )
    _tint(leaf, 0.95 * layer, _shade(rng, (122, 88, 58)))


def powdery_mildew(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Soft white patches like flour, on top of everything."""
    places = _inside(leaf, rng, _many(2, 12, severity), 3, 10)
    field = _spots(rng, places, rng.uniform(12, 22, len(places)) * leaf.unit, 0.35)
    flour = _ramp(field, 1.25, 0.25) * (0.84 + 0.1 * noise(rng, CANVAS, CANVAS, 60))
    _tint(leaf, np.clip(flour * rng.uniform(0.8, 1.0), 0, 0.95), _shade(rng, (232, 234, 228), 6))


def downy_mildew(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Oily yellow patches with blocky outlines that stop at the veins."""
    places = _inside(leaf, rng, _many(4, 15, severity), 5, 14)
    field = _spots(rng, places, rng.uniform(11, 18, len(places)) * leaf.unit, 0.3)
    patch = _ramp(field, 1.05, 0.75) * np.clip(
        1.1 - 1.1 * cv2.GaussianBlur(leaf.veins, (0, 0), 1.2), 0.1, 1
    )
    _tint(leaf, 0.85 * patch, _shade(rng, (222, 204, 66)))
    _tint(leaf, 0.4 * _ramp(field, 0.4, 0.1), _shade(rng, (170, 130, 60)))


def esca(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Tiger stripes: red-brown dead areas between the veins with yellow edges, the veins stay
    green."""
    gap = _between_veins(leaf, 4.5 * leaf.unit) + 0.12 * noise(rng, CANVAS, CANVAS, 14)
    reach = _ramp(
        leaf.depth + 7 * noise(rng, CANVAS, CANVAS, 6), (26 + 26 * severity) * leaf.unit, 4
    )
    stripe = gap * (0.45 + 0.75 * reach)
    _tint(leaf, 0.9 * _ramp(stripe, 0.42, 0.58), _shade(rng, (226, 196, 72)))
    _tint(leaf, 0.95 * _ramp(stripe, 0.66, 0.78), _shade(rng, (126, 58, 34)))


def greening(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Blotchy yellow between green veins, stronger on one half of the leaf."""
    side = 0.3 * float(rng.choice([-1, 1])) * np.linspace(-1, 1, CANVAS, dtype=np.float32)[None]
    gap = _between_veins(leaf, 2.6 * leaf.unit)
    blotch = gap * np.clip(0.62 + 0.3 * severity + side + 0.3 * noise(rng, CANVAS, CANVAS, 7), 0, 1)
    _tint(leaf, 0.95 * _ramp(blotch, 0.12, 0.62), _shade(rng, (226, 208, 74)))


def leaf_miner(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Pale winding tunnels that widen on their way, with a dark thread of droppings inside."""
    track, thread = np.zeros((CANVAS, CANVAS), np.uint8), np.zeros((CANVAS, CANVAS), np.uint8)
    for place in _inside(leaf, rng, _many(2, 4.4, severity), 8, 26):
        steps = 44 + int(30 * severity)
        turns = (
            np.cumsum(rng.normal(0, 0.36, steps))
            + rng.uniform(0, 2 * np.pi)
            + 0.9 * np.sin(np.arange(steps) / 2.5)
        )
        path = place + np.cumsum(
            np.column_stack([np.cos(turns), np.sin(turns)]) * 3.4 * leaf.unit, axis=0
        )
        third = steps // 3
        for part, thick in (
            (path[: third + 1], 4),
            (path[third : 2 * third + 1], 5),
            (path[2 * third :], 7),
        ):
            cv2.polylines(track, [fixed(part)], False, 255, thick, cv2.LINE_AA, SUB)
        cv2.polylines(thread, [fixed(path)], False, 255, 1, cv2.LINE_AA, SUB)
    _tint(leaf, track / 255 * 0.92, _shade(rng, (222, 220, 176)))
    _tint(leaf, thread / 255 * 0.5, _shade(rng, (96, 84, 50)))


def mosaic(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Mottled light and dark green all over."""
    cells = int(rng.integers(10, 15))
    mottle = noise(rng, CANVAS, CANVAS, cells) + 0.4 * noise(rng, CANVAS, CANVAS, 2 * cells)
    _tint(leaf, (0.55 + 0.35 * severity) * _ramp(mottle, 0.0, 0.55), _shade(rng, (196, 208, 92)))
    _tint(leaf, (0.35 + 0.3 * severity) * _ramp(mottle, -0.2, -0.8), _shade(rng, (24, 66, 26), 6))


def leaf_scorch(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """The margin dries up brown, with a thin yellow line towards the green."""
    inward = leaf.depth / (float(leaf.depth.max()) * (0.2 + 0.36 * severity)) + 0.28 * noise(
        rng, CANVAS, CANVAS, 9
    )
    _tint(leaf, 0.8 * _ramp(inward, 1.35, 1.0), _shade(rng, (206, 184, 72)))
    _tint(leaf, 0.95 * _ramp(inward, 1.0, 0.82), _shade(rng, (124, 70, 36)))


def anthracnose(leaf: Leaf, rng: np.random.Generator, severity: float) -> None:
    """Large jagged tan areas with a dark brown border, following the veins."""
    feet = np.vstack([rib[rng.integers(0, len(rib))] for rib in leaf.ribs])
    places = feet[rng.integers(0, len(feet), _many(3, 7, severity))].astype(np.float32)
    field = _spots(rng, places, rng.uniform(14, 24, len(places)) * leaf.unit, 0.3)
    _tint(leaf, 0.95 * _ramp(field, 1.12, 0.98), _shade(rng, (78, 46, 24)))
    _tint(leaf, 0.9 * _ramp(field, 0.86, 0.72), _shade(rng, (188, 146, 92)))


DISEASES: dict[str, Callable[[Leaf, np.random.Generator, float], None]] = {
    "healthy": healthy,
    "early blight": early_blight,
    "late blight": late_blight,
    "bacterial spot": bacterial_spot,
    "leaf spot": leaf_spot,
    "canker": canker,
    "black rot": black_rot,
    "scab": scab,
    "cedar apple rust": cedar_apple_rust,
    "common rust": common_rust,
    "northern leaf blight": northern_leaf_blight,
    "gray leaf spot": gray_leaf_spot,
    "powdery mildew": powdery_mildew,
    "downy mildew": downy_mildew,
    "esca": esca,
    "greening": greening,
    "leaf miner": leaf_miner,
    "mosaic virus": mosaic,
    "leaf scorch": leaf_scorch,
    "anthracnose": anthracnose,
}


def infect(leaf: Leaf, disease: str, rng: np.random.Generator) -> None:
    """Paints `disease` (a key of DISEASES) onto `leaf` in place, from mild and faint to strong;
    dust on every leaf."""
    healthy(leaf, rng, 0.0)
    if disease != "healthy":
        clean = leaf.rgb.copy()
        DISEASES[disease](leaf, rng, float(0.08 + 0.92 * rng.beta(1.5, 1.5)))
        faint = rng.uniform(0, 0.3)
        leaf.rgb += (clean - leaf.rgb) * np.float32(faint)
    np.clip(leaf.rgb, 0, 255, out=leaf.rgb)
