"""Stage 1 at the size it is made for: a generated tree of 1.47 M small JPEGs in 11,499 folders,
time and memory of each part.

  python tests/benchmarks/scale.py --folder /some/empty/folder
      all of it: 6 GB of disk, about an hour on two cores
  python tests/benchmarks/scale.py --folder /some/empty/folder --share 0.1     a tenth

The pictures are 48 px, so that everything but decoding costs what it costs with real photos;
reading is the one part that real photos make slower (tests/benchmarks/reading.py). Class sizes fall
off as in a long tail; 1 % of the files are exact copies, 1 % are near-duplicates (encoded again),
and of those some stand under another class.
"""

import argparse
import importlib
import itertools
import os
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

FILES, FOLDERS, SPECIES = 1_470_000, 11_499, 320
CROPS = (
    "Tomato",
    "Apple",
    "Grape",
    "Corn_(maize)",
    "Potato",
    "Rice",
    "Wheat",
    "Soybean",
    "Cassava",
    "Mango",
    "Citrus",
    "Banana",
)
ENDINGS = (
    "healthy",
    "early_blight",
    "late_blight",
    "leaf_spot",
    "powdery_mildew",
    "downy_mildew",
    "rust",
    "mosaic_virus",
    "scab",
    "canker",
    "anthracnose",
    "black_rot",
    "leaf_curl",
    "bacterial_wilt",
    "gray_mold",
    "leaf_miner",
    "thrips",
    "aphids",
    "root_rot",
    "nitrogen_deficiency",
)
KINDS = ("", "northern_", "southern_", "brown_", "white_", "common_", "stem_", "fruit_")
SYLLABLES = (
    "ba",
    "cor",
    "den",
    "fi",
    "gal",
    "hel",
    "lan",
    "mi",
    "nor",
    "pe",
    "qui",
    "ros",
    "sal",
    "tri",
    "vi",
    "xan",
)


def class_names(count: int) -> list[str]:
    """Class folder names of `count` classes: crops that the parser knows, and plants that it has
    never heard of.
    """
    rng = np.random.default_rng(0)
    genera = sorted({"".join(rng.choice(SYLLABLES, 3)).capitalize() for _ in range(4 * SPECIES)})
    plants = [*CROPS, *rng.permutation(genera)[: SPECIES - len(CROPS)]]
    diseases = [
        kind + ending
        for ending, kind in itertools.product(ENDINGS, KINDS)
        if ending != "healthy" or not kind
    ]
    names = [f"{plant}___{disease}" for disease in diseases for plant in plants]
    return sorted(names[:count])


def sizes_of(classes: int, files: int) -> np.ndarray:
    """Pictures per class, a long tail with at least 5 each."""
    weights = np.random.default_rng(1).pareto(1.5, classes) + 0.3
    return np.maximum(5, np.round(weights / weights.sum() * files)).astype(int)


def draw(folder: Path, number: int, size: int, other: Path | None) -> int:
    """Write one class folder."""
    rng = np.random.default_rng([2, number])
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(size):
        kind = rng.random()
        low = rng.normal(0, 40, (8, 8, 3)).astype(np.float32)
        rgb = np.clip(
            cv2.resize(low, (48, 48), interpolation=cv2.INTER_CUBIC) + rng.uniform(60, 200, 3),
            0,
            255,
        ).astype(np.uint8)
        name = f"IMG_{number:05d}_{k:05d}"
        data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
        (folder / f"{name}.jpg").write_bytes(data)
        if kind < 0.01:
            (folder / f"{name}_b.jpg").write_bytes(data)
        elif kind < 0.02 and other is not None:
            target = other if kind < 0.011 else folder
            target.mkdir(parents=True, exist_ok=True)
            (target / f"{name}_c.jpg").write_bytes(
                cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()
            )
    return size


def main() -> None:
    """Generate, organize, print."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--folder", type=Path, required=True)
    flags.add_argument("--share", type=float, default=1.0, help="of the files and folders")
    flags.add_argument("--workers", type=int, default=os.cpu_count())
    args, more = flags.parse_known_args()
    names = class_names(round(FOLDERS * args.share))
    sizes = sizes_of(len(names), round(FILES * args.share * 0.98))
    raw = args.folder / "raw"
    start = time.perf_counter()
    if not (args.folder / "drawn").exists():
        with ProcessPoolExecutor(
            args.workers, initializer=cv2.setNumThreads, initargs=(1,)
        ) as pool:
            folders = [raw / name for name in names]
            done = sum(
                pool.map(
                    draw,
                    folders,
                    range(len(names)),
                    sizes.tolist(),
                    [folders[-1], *folders[:-1]],
                    chunksize=16,
                )
            )
        (args.folder / "drawn").touch()
        print(
            f"drew {done:,} pictures and their copies in {len(names):,} folders, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
    stage = importlib.import_module("01_reorganize")
    stage.main(
        [
            str(raw),
            "--output",
            str(args.folder / "organized"),
            "--workers",
            str(args.workers),
            "--small-classes",
            "drop",
            *more,
        ]
    )
    peaks = [
        resource.getrusage(who).ru_maxrss / 1e6
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    print(
        f"peak resident memory: {peaks[0]:.2f} GB here, {peaks[1]:.2f} GB in the largest worker",
        flush=True,
    )


if __name__ == "__main__":
    main()
