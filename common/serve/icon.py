"""The page's icon as PNG, for phones that take no SVG: drawn, since no picture is committed."""

import io
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

SIZES = (180, 192, 512)  # px: iOS, and what a page needs to be installed
_GREEN, _WHITE = (44, 122, 75), (255, 255, 255)
# leaf.svg's outline and veins, on its 32 x 32 pixels: cubic curves from (5, 27), and lines
_OUTLINE = (((3, 13), (11, 4), (28, 3)), ((29, 19), (21, 28), (8, 25.5)))
_VEINS = (
    ((4, 29), (9, 20.5), (14, 14.5), (21, 10)),
    ((11.5, 19.5), (11.5, 13)),
    ((16, 21), (10, 21)),
    ((16.5, 14.5), (16.5, 9.5)),
    ((21, 15.5), (15, 15.5)),
)


def png(size: int) -> bytes:
    """The icon, `size` px square: a white leaf on green, with the margin that round masks need."""
    scale = 2 * size / 50  # drawn twice as large, with 9 of 50 parts of margin on each side

    def placed(points: np.ndarray) -> list[tuple[float, float]]:
        return [tuple(point) for point in (points + 9) * scale]

    image = Image.new("RGB", (2 * size, 2 * size), _GREEN)
    draw, start, outline = ImageDraw.Draw(image), (5, 27), []
    for curve in _OUTLINE:
        outline += placed(_along(start, *curve))
        start = curve[-1]
    draw.polygon(outline, fill=_WHITE)
    for vein in _VEINS:
        points = placed(_along(*vein) if len(vein) == 4 else np.array(vein, float))
        for pair in pairwise(points):
            draw.line(pair, _GREEN, round(1.7 * scale))
    buffer = io.BytesIO()
    image.reduce(2).save(buffer, "PNG")
    return buffer.getvalue()


def _along(*points: tuple[float, float]) -> np.ndarray:
    """40 points of a cubic Bezier curve, float (40, 2)."""
    t = np.linspace(0, 1, 40)[:, None]
    a, b, c, d = (np.array(point, float) for point in points)
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
