"""Reading and shrinking photos: `read_rgb` against Pillow, OpenCV, libvips and the reduced-scale
decode alone.

  python tests/benchmarks/reading.py

Four made-up photos (blurred background, leaves, grass, soil) of 12 megapixels, JPEG quality 90, to
512 px. Speed: the contestants take turns on every photo, one thread each, so that the machine's
moods hit all alike; CPU time, medians, mean over the photos. Quality: PSNR against a full decode
and OpenCV's area filter, over the photos in 10 variants (chroma subsampling, sizes that are no
multiple of 8, portrait, panorama, progressive, smaller cameras). Then two processes against one.
pyvips takes part where it is installed.
"""

import argparse
import io
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("VIPS_CONCURRENCY", "1")

import cv2
import numpy as np
import PIL
from PIL import Image

try:
    import pyvips
except (ImportError, OSError):  # not installed, or without its C library
    pyvips = None

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.console import table
from common.images import read_rgb

SIDE, WIDTH, HEIGHT = 512, 4000, 3000
OURS, THUMBNAIL, FLOORS = (
    "read_rgb",
    "Pillow thumbnail",
    ("OpenCV 1/4 decode alone", "Pillow 1/4 decode alone"),
)
PHOTOS: list[bytes] = []  # of a worker process


# region photos that never were


def octaves(rng: np.random.Generator, first: int, last: int, falloff: float) -> np.ndarray:
    """Sum noise of doubling fineness whose amplitude falls as fineness ** -falloff; float32
    (HEIGHT, WIDTH), deviation 1.
    """
    total, cells = np.zeros((HEIGHT, WIDTH), np.float32), first
    while cells <= last:
        noise = rng.standard_normal((cells * HEIGHT // WIDTH + 1, cells), dtype=np.float32)
        total += cells**-falloff * cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        cells *= 2
    return total / total.std()


def through_a_lens(rng: np.random.Generator, light: np.ndarray) -> np.ndarray:
    """Blur as a good lens does, add a sensor's noise, clip to uint8."""
    noise = np.tile(
        rng.standard_normal((500, 500, 1), dtype=np.float32), (HEIGHT // 500, WIDTH // 500, 1)
    )
    return np.clip(cv2.GaussianBlur(light, (0, 0), 0.8) + 3 * noise, 0, 255).astype(np.uint8)


def background(rng: np.random.Generator) -> np.ndarray:
    """Out of focus: nothing fine but the noise."""
    return through_a_lens(
        rng, np.exp(0.5 * octaves(rng, 3, 24, 0.7))[..., None] * np.float32((90, 120, 60))
    )


def soil(rng: np.random.Generator) -> np.ndarray:
    """Grain at every fineness, of high contrast."""
    return through_a_lens(
        rng, np.exp(0.45 * octaves(rng, 8, WIDTH, 0.25))[..., None] * np.float32((110, 90, 70))
    )


def grass(rng: np.random.Generator) -> np.ndarray:
    """Strands of 2 to 14 px with sharp sides, each of a colour of its own: the hardest."""
    light = soil(rng).astype(np.float32) * 0.5
    for _ in range(9000):
        start, turn, length = (
            rng.uniform(0, (WIDTH, HEIGHT)),
            rng.normal(-np.pi / 2, 0.5),
            rng.uniform(100, 600),
        )
        end = start + length * np.array([np.cos(turn), np.sin(turn)])
        colour = rng.uniform(0.4, 1.2) * rng.uniform((90, 130, 40), (200, 200, 90))
        cv2.line(
            light,
            fixed(start),
            fixed(end),
            colour.tolist(),
            int(rng.integers(2, 14)),
            cv2.LINE_AA,
            4,
        )
    return through_a_lens(rng, light)


def classes(rng: np.random.Generator) -> np.ndarray:
    """Leaves of all sizes on soil, small below large, with veins."""
    light, mottle = soil(rng).astype(np.float32), octaves(rng, 32, WIDTH, 0.5)
    for count, radius in ((3000, 26), (900, 60), (220, 150), (45, 420)):
        for _ in range(count):
            colour = rng.uniform(0.35, 1.15) * rng.uniform((60, 120, 25), (190, 200, 90))
            middle, turn, a = (
                rng.uniform(0, (WIDTH, HEIGHT)),
                rng.uniform(0, np.pi),
                radius * rng.uniform(0.6, 1.5),
            )
            b, along = a * rng.uniform(0.25, 0.7), np.array([np.cos(turn), np.sin(turn)])
            cv2.ellipse(
                light,
                fixed(middle),
                fixed((a, b)),
                float(np.degrees(turn)),
                0,
                360,
                colour.tolist(),
                -1,
                cv2.LINE_AA,
                4,
            )
            cv2.line(
                light,
                fixed(middle - a * along),
                fixed(middle + a * along),
                (1.25 * colour).tolist(),
                max(1, int(a / 25)),
                cv2.LINE_AA,
                4,
            )
            for at in np.linspace(-0.7, 0.7, 7):
                for across in (np.array([-along[1], along[0]]), np.array([along[1], -along[0]])):
                    start = middle + at * a * along
                    end = start + 0.75 * b * np.sqrt(1 - at * at) * (across + 0.6 * along)
                    cv2.line(
                        light,
                        fixed(start),
                        fixed(end),
                        (1.12 * colour).tolist(),
                        max(1, int(a / 60)),
                        cv2.LINE_AA,
                        4,
                    )
    return through_a_lens(rng, light * (1 + 0.1 * mottle[..., None]))


def fixed(point: tuple[float, float] | np.ndarray) -> tuple[int, int]:
    """OpenCV's sub-pixel coordinates: sixteenths."""
    return int(point[0] * 16), int(point[1] * 16)


def variants(rgb: np.ndarray) -> dict[str, bytes]:
    """Encode a photo of WIDTH x HEIGHT in every way that a reader treats differently."""

    def jpeg(rgb: np.ndarray, subsampling: str = "4:2:0", **save: bool) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "JPEG", quality=90, subsampling=subsampling, **save)
        return buffer.getvalue()

    def smaller(width: int, height: int) -> np.ndarray:
        return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)

    return {
        "4000 x 3000": jpeg(rgb),
        "4:2:2": jpeg(rgb, "4:2:2"),
        "4:4:4": jpeg(rgb, "4:4:4"),
        "progressive": jpeg(rgb, progressive=True),
        "3997 x 2995": jpeg(rgb[:2995, 3:]),
        "3000 x 4000": jpeg(np.rot90(rgb)),
        "4000 x 701": jpeg(rgb[1000:1701]),
        "3264 x 2448": jpeg(smaller(3264, 2448)),
        "1920 x 1080": jpeg(smaller(1920, 1440)[180:1260]),
        "1023 x 767": jpeg(smaller(1023, 767)),
    }


# endregion

# region contestants


def thumbnail(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((SIDE, SIDE))
        return np.asarray(image)


def full_lanczos(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.resize(target(image.size), Image.Resampling.LANCZOS))


def opencv_area(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:  # OpenCV has no way to ask for the size alone
        size = image.size
    scale = next(scale for scale in (8, 4, 2, 1) if max(size) >= scale * SIDE)
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flag(scale))
    return cv2.cvtColor(
        cv2.resize(bgr, target(size), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB
    )


def vips(data: bytes) -> np.ndarray:
    return pyvips.Image.thumbnail_buffer(data, SIDE, height=SIDE).numpy()


def opencv_floor(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flag(4))


def pillow_floor(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (image.width // 4, image.height // 4))
        image.load()
        return image


def flag(scale: int) -> int:
    name = "IMREAD_COLOR" if scale == 1 else f"IMREAD_REDUCED_COLOR_{scale}"
    return getattr(cv2, name) | cv2.IMREAD_IGNORE_ORIENTATION


def target(size: tuple[int, int]) -> tuple[int, int]:
    return max(1, round(size[0] * SIDE / max(size))), max(1, round(size[1] * SIDE / max(size)))


def contestants() -> dict[str, Callable[[bytes], object]]:
    found = {
        OURS: lambda data: read_rgb(data, long_side=SIDE),
        THUMBNAIL: thumbnail,
        "Pillow full decode, Lanczos": full_lanczos,
        "OpenCV 1/4 decode, area": opencv_area,
        "libvips thumbnail": vips,
        FLOORS[0]: opencv_floor,
        FLOORS[1]: pillow_floor,
    }
    if pyvips is None:
        del found["libvips thumbnail"]
    else:
        pyvips.cache_set_max(0)
    return found


# endregion


def speed(photos: list[bytes], rounds: int) -> dict[str, np.ndarray]:
    """CPU milliseconds of each contestant for every photo: medians over the rounds."""
    ways = contestants()
    times = {name: np.zeros((rounds, len(photos))) for name in ways}
    for i in range(-1, rounds):
        for k, data in enumerate(photos):
            for name, read in ways.items():
                begin = (
                    time.process_time()
                )  # of all threads: what else the machine does counts little
                read(data)
                if i >= 0:  # the first calls load libraries
                    times[name][i, k] = 1000 * (time.process_time() - begin)
    return {name: np.median(values, axis=0) for name, values in times.items()}


def quality(pictures: dict[str, bytes]) -> dict[str, dict[str, float]]:
    """PSNR in dB of each contestant that shrinks, for every picture."""
    ways = {name: read for name, read in contestants().items() if name not in FLOORS}
    result: dict[str, dict[str, float]] = {name: {} for name in ways}
    for picture, data in pictures.items():
        with Image.open(io.BytesIO(data)) as image:
            full = np.asarray(image)
        want = cv2.resize(full, target(full.shape[1::-1]), interpolation=cv2.INTER_AREA).astype(
            np.float64
        )
        for name, read in ways.items():
            got = np.asarray(read(data))
            if got.shape == want.shape:  # Pillow and libvips round the short side their own way
                result[name][picture] = 10 * np.log10(
                    255**2 / max(1e-7, float(((got - want) ** 2).mean()))
                )
    return result


def hold(photos: list[bytes]) -> None:
    cv2.setNumThreads(1)
    PHOTOS[:] = photos


def read_one(i: int) -> int:
    return len(read_rgb(PHOTOS[i % len(PHOTOS)], long_side=SIDE))


def two_against_one(photos: list[bytes], rounds: int) -> float:
    """Photos per second of two processes over those of one; medians of alternating runs."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    with (
        ProcessPoolExecutor(1, initializer=hold, initargs=(photos,)) as one,
        ProcessPoolExecutor(2, initializer=hold, initargs=(photos,)) as two,
    ):
        for i in range(-1, rounds):
            for workers, pool in ((1, one), (2, two)):
                begin, count = time.perf_counter(), 24 * workers
                list(pool.map(read_one, range(count), chunksize=2))
                if i >= 0:
                    rates[workers].append(count / (time.perf_counter() - begin))
    return float(np.median(rates[2]) / np.median(rates[1]))


def main() -> int:
    """Measure and print."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--rounds", type=int, default=9)
    rounds = flags.parse_args().rounds
    cv2.setNumThreads(1)
    pictures = {
        f"{make.__name__}, {name}": data
        for seed, make in enumerate((background, classes, grass, soil))
        for name, data in variants(make(np.random.default_rng(seed))).items()
    }
    photos = [data for name, data in pictures.items() if name.endswith("4000 x 3000")]
    print(
        f"{platform.processor() or platform.machine()}, Pillow {PIL.__version__}, OpenCV "
        f"{cv2.__version__}"
        f"{'' if pyvips is None else f', libvips {pyvips.version(0)}.{pyvips.version(1)}'}; 12 "
        f"megapixels, "
        f"{', '.join(f'{len(data) / 1e6:.1f}' for data in photos)} MB\n"
    )
    each, psnr = speed(photos, rounds), quality(pictures)
    ms = {name: float(values.mean()) for name, values in each.items()}
    floor = min(ms[name] for name in FLOORS)
    rows = []
    for name, value in ms.items():
        values = list(psnr.get(name, {}).values())
        rows.append(
            (
                name,
                f"{value:.1f}",
                f"{1000 / value:.1f}",
                f"{ms[THUMBNAIL] / value:.2f}",
                f"{floor / value:.2f}",
                f"{min(values):.1f}" if values else "",
                f"{np.median(values):.1f}" if values else "",
            )
        )
    print(
        table(
            rows,
            (
                "way",
                "ms",
                "photos/s/core",
                "against thumbnail",
                "of the decode alone",
                "PSNR least",
                "median",
            ),
        )
    )
    print(
        f"\n{OURS} against thumbnail, photo by photo: "
        + ", ".join(f"{ratio:.2f}" for ratio in each[THUMBNAIL] / each[OURS])
    )
    worst = min(psnr[OURS], key=psnr[OURS].__getitem__)
    pool = two_against_one(photos, max(3, rounds // 2))
    print()
    goals = [
        ("against Pillow's thumbnail", ms[THUMBNAIL] / ms[OURS], 1.8),
        ("of the reduced decode alone", floor / ms[OURS], 0.9),
        (f"least PSNR, dB ({worst})", psnr[OURS][worst], 38.0),
        ("two processes against one", pool, 1.8),
    ]
    if pyvips is not None:
        goals.insert(1, ("against libvips' thumbnail", ms["libvips thumbnail"] / ms[OURS], 1.0))
    print(
        table(
            [
                (what, f"{value:.2f}", f"{goal:g}", "met" if value >= goal else "not met")
                for what, value, goal in goals
            ],
            ("goal", "measured", "wanted", ""),
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
