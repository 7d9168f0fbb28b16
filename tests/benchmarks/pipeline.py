"""Training views per second: `train_view` against decoding alone, AlbumentationsX, torchvision and
timm doing the same work.

  python tests/benchmarks/pipeline.py [--photos FOLDER]

16 made-up photos (background, leaves, grass, soil; four shapes; or JPEGs of one's own), stored as
01 stores them: long side 512 px, quality 92. A view is 224 px with tiers 1 and 2 of level `full`.
Contestants take turns on all photos, one thread each, in an order that moves on every round; CPU
time, median over the rounds. All end with uint8, as ours do; one row adds the float tensor that
AlbumentationsX usually ends with. Where a peer has no ISO noise it adds Gaussian noise once more,
where it has no shadow it does without. Then `DataLoader`s of 1 and 2 workers in turn, and what
uint8 saves on the way to the device. Peers that are not installed (albumentationsx) are left out,
and named. Needs two cores and nothing else running.
"""

import argparse
import io
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "NO_ALBUMENTATIONS_UPDATE", "1"
)  # it would ask the network for a newer version

import cv2
import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode, v2

try:
    import albumentations
except ImportError:
    albumentations = None

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import reading

from common.console import table
from common.demo.pictures import draw_picture
from common.images import encode_jpeg, read_rgb
from common.train import recipes
from common.train.augment import train_view
from common.train.augment_levels import LEVELS
from common.train.dataset import EpochSampler, TrainViews, make_loader

SIZE, LEVEL = 224, LEVELS["full"]
RECIPE = replace(
    recipes.get("hierarchical"), image_size=SIZE, augment="full", tier2_share=0.3, randaugment_ops=0
)
OURS, DECODE, HALF = "train_view", "decode alone", "decode alone, half scale"
PEERS = {
    "AlbumentationsX": "albumentations",
    "torchvision v2, tensors": "torchvision",
    "torchvision v2, PIL": "torchvision",
    "timm default + tier 2": "timm",
}
STD = tuple(math.sqrt(v) / 255 for v in LEVEL.noise_variance)

Photo = tuple[bytes, int, int]
View = Callable[[Photo], object]


# region pictures


def store(rgb: np.ndarray) -> Photo:
    """As 01 keeps it."""
    return encode_jpeg(rgb), rgb.shape[1], rgb.shape[0]


def made_up() -> list[Photo]:
    photos = []
    for seed, make in enumerate((reading.background, reading.classes, reading.grass, reading.soil)):
        large = make(np.random.default_rng(seed))
        for shape in (
            large,
            np.rot90(large),
            large[:, 500:3500],
            large[300:2550],
        ):  # 4:3, 3:4, 1:1, 16:9
            photos.append(
                store(read_rgb(encode_jpeg(np.ascontiguousarray(shape), 90), long_side=512))
            )
    return photos


def from_folder(folder: Path) -> list[Photo]:
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    return [store(read_rgb(p, long_side=512)) for p in found[:: max(1, len(found) // 64)][:64]]


def of_the_demo() -> list[Photo]:
    return [store(read_rgb(draw_picture(0, k, k), long_side=512)) for k in range(12)]


# endregion

# region contestants


def opencv(data: bytes, how: int = cv2.IMREAD_COLOR) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), how | cv2.IMREAD_IGNORE_ORIENTATION)


def ours(recipe: recipes.Recipe) -> View:
    count = iter(range(10**9))
    return lambda photo: train_view(*photo, recipe, np.random.default_rng([0, 0, next(count)]))


def albumentationsx(as_float: bool) -> View:
    a, r = albumentations, LEVEL
    steps = [
        a.RandomResizedCrop((SIZE, SIZE), scale=r.crop_area, ratio=r.crop_ratio),
        a.HorizontalFlip(p=r.flip_p),
        a.Rotate(
            (-r.rotate_degrees, r.rotate_degrees), border_mode=cv2.BORDER_REFLECT_101, p=r.rotate_p
        ),
        a.ColorJitter(
            (1 - r.brightness, 1 + r.brightness),
            (1 - r.contrast, 1 + r.contrast),
            (1 - r.saturation, 1 + r.saturation),
            (-r.hue, r.hue),
            p=r.jitter_p,
        ),
        a.RandomBrightnessContrast(
            (-r.exposure_brightness, r.exposure_brightness),
            (-r.exposure_contrast, r.exposure_contrast),
            p=r.exposure_p,
        ),
        a.OneOf(
            [
                a.GaussianBlur((3, 7), (0.8, 1.4), p=1),
                a.GaussNoise(STD, per_channel=True, p=1),
                a.ISONoise(r.iso_colour_shift, r.iso_intensity, p=1),
            ],
            p=0.3,
        ),
        a.ImageCompression(quality_range=r.jpeg_quality, p=r.jpeg_p),
        a.RandomShadow((0, 0, 1, 1), p=r.shadow_p),
        a.ToGray(p=r.grey_p),
    ]
    if as_float:
        steps += [a.Normalize(), a.ToTensorV2()]
    pipeline = a.Compose(steps, seed=0)
    if hasattr(cv2, "IMREAD_COLOR_RGB"):  # since OpenCV 4.11
        return lambda photo: pipeline(image=opencv(photo[0], cv2.IMREAD_COLOR_RGB))["image"]
    return lambda photo: pipeline(image=cv2.cvtColor(opencv(photo[0]), cv2.COLOR_BGR2RGB))["image"]


def noisy(picture: Any) -> Any:
    """Gaussian noise of a tensor or a PIL picture, uint8 in and out."""
    std = 255 * float(torch.empty(()).uniform_(*STD))
    if isinstance(picture, torch.Tensor):
        return (picture + std * torch.randn(picture.shape)).clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(
        np.clip(picture + std * np.random.standard_normal((SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    )


def pressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(
        buffer,
        "JPEG",
        quality=int(torch.randint(LEVEL.jpeg_quality[0], LEVEL.jpeg_quality[1] + 1, ())),
    )
    return Image.open(buffer).convert("RGB")


def corruptions(jpeg: Callable[[Any], Any]) -> list[Any]:
    blur = v2.RandomChoice([v2.GaussianBlur(kernel, (0.8, 1.4)) for kernel in LEVEL.blur_kernels])
    return [
        v2.RandomApply([v2.RandomChoice([blur, noisy, noisy])], 0.3),
        v2.RandomApply([jpeg], LEVEL.jpeg_p),
        v2.RandomGrayscale(LEVEL.grey_p),
    ]


def rotation_and_exposure() -> list[Any]:
    return [
        v2.RandomApply(
            [v2.RandomRotation(LEVEL.rotate_degrees, InterpolationMode.BILINEAR)], LEVEL.rotate_p
        ),
        v2.RandomApply(
            [v2.ColorJitter(LEVEL.exposure_brightness, LEVEL.exposure_contrast)], LEVEL.exposure_p
        ),
    ]


def torchvision_v2(on_tensors: bool) -> View:
    steps = [
        v2.RandomResizedCrop(SIZE, LEVEL.crop_area, LEVEL.crop_ratio, antialias=True),
        v2.RandomHorizontalFlip(LEVEL.flip_p),
        v2.RandomApply(
            [v2.ColorJitter(LEVEL.brightness, LEVEL.contrast, LEVEL.saturation, LEVEL.hue)],
            LEVEL.jitter_p,
        ),
        *rotation_and_exposure(),
        *corruptions(v2.JPEG(LEVEL.jpeg_quality) if on_tensors else pressed),
    ]
    pipeline = v2.Compose(steps if on_tensors else [*steps, v2.PILToTensor()])
    if on_tensors:
        return lambda photo: pipeline(
            decode_jpeg(torch.frombuffer(bytearray(photo[0]), dtype=torch.uint8), ImageReadMode.RGB)
        )
    return lambda photo: pipeline(Image.open(io.BytesIO(photo[0])).convert("RGB"))


def timm_default() -> View:
    """What timm's loader does by default (with its prefetcher: uint8 to the device), and the rest
    of tiers 1 and 2.
    """
    first, _, last = create_transform(
        SIZE,
        is_training=True,
        use_prefetcher=True,
        separate=True,
        scale=LEVEL.crop_area,
        ratio=LEVEL.crop_ratio,
        color_jitter=(LEVEL.brightness, LEVEL.contrast, LEVEL.saturation, LEVEL.hue),
        color_jitter_prob=LEVEL.jitter_p,
    )
    pipeline = torchvision.transforms.Compose(
        [first, *rotation_and_exposure(), *corruptions(pressed), last]
    )
    return lambda photo: pipeline(Image.open(io.BytesIO(photo[0])).convert("RGB"))


def contestants() -> dict[str, View]:
    found = {
        OURS: ours(RECIPE),
        "train_view with RandAugment 2, 9": ours(
            replace(RECIPE, randaugment_ops=2, randaugment_magnitude=9)
        ),
        DECODE: lambda photo: opencv(photo[0]),
        HALF: lambda photo: opencv(photo[0], cv2.IMREAD_REDUCED_COLOR_2),
    }
    if albumentations is not None:
        found |= {
            "AlbumentationsX": albumentationsx(False),
            "AlbumentationsX, float tensor": albumentationsx(True),
        }
    return found | {
        "torchvision v2, tensors": torchvision_v2(True),
        "torchvision v2, PIL": torchvision_v2(False),
        "timm default + tier 2": timm_default(),
    }


# endregion


def rates(ways: dict[str, View], photos: list[Photo], rounds: int, passes: int) -> dict[str, float]:
    """Pictures per second of CPU time: medians over the rounds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for i in range(-1, rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            begin = time.process_time()
            for _ in range(passes if i >= 0 else 1):
                for photo in photos:
                    ways[name](photo)
            if i >= 0:  # the first calls load libraries
                times[name].append((time.process_time() - begin) / passes / len(photos))
    return {name: 1 / float(np.median(values)) for name, values in times.items()}


# region loaders


class Photos:
    """Photos in memory in place of an organized split."""

    root = "memory"

    def __init__(self, photos: list[Photo], count: int) -> None:
        self.photos, self.count = photos, count
        self.width, self.height = (np.resize([photo[k] for photo in photos], count) for k in (1, 2))
        self.class_idx, self.offset = np.zeros(count, int), np.full(count, -1)

    def __len__(self) -> int:
        return self.count

    def read(self, i: int) -> bytes:
        return self.photos[i % len(self.photos)][0]

    def path(self, i: int) -> str:
        return f"photo {i}"


class Ready(Dataset[torch.Tensor]):
    """Hands over one picture again and again: what is left is the way from a worker to this
    process.
    """

    def __init__(self, as_float: bool, count: int) -> None:
        self.as_float, self.count = as_float, count
        self.picture = torch.zeros(SIZE, SIZE, 3, dtype=torch.uint8)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.picture.float().sub_(120).div_(60) if self.as_float else self.picture


def loader_rates(loaders: dict[str, DataLoader[Any]], rounds: int) -> dict[str, float]:
    """Pictures per second of whole passes in turn; workers stay, so that their start counts
    nowhere.
    """
    found: dict[str, list[float]] = {name: [] for name in loaders}
    for i in range(-1, rounds):
        for name, loader in loaders.items():
            begin, count = time.perf_counter(), 0
            for batch in loader:
                count += len(batch[0] if isinstance(batch, (list, tuple)) else batch)
            if i >= 0:
                found[name].append(count / (time.perf_counter() - begin))
    return {name: float(np.median(values)) for name, values in found.items()}


def measure_loaders(photos: list[Photo], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    views = TrainViews(Photos(photos, 1536), RECIPE, 0)
    loaders = {
        name: make_loader(views, n, sampler=EpochSampler(1536, 32, 0))
        for n, name in ((1, "1 worker"), (2, "2 workers"))
    }
    by_workers = loader_rates(loaders, rounds)
    ready = {
        name: DataLoader(
            Ready(name == "float32", 8192),
            64,
            num_workers=2,
            persistent_workers=True,
            prefetch_factor=4,
        )
        for name in ("uint8", "float32")
    }
    return by_workers, loader_rates(ready, max(2, rounds // 2))


# endregion


def main() -> int:
    """Measure and print."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument(
        "--photos", type=Path, help="a folder of JPEGs to use in place of made-up photos"
    )
    flags.add_argument("--rounds", type=int, default=9)
    args = flags.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    photos, load = from_folder(args.photos) if args.photos else made_up(), os.getloadavg()[0]
    print(
        f"{platform.processor() or platform.machine()}, load {load:.1f}; OpenCV "
        f"{cv2.__version__}, torchvision "
        f"{torchvision.__version__}, timm {timm.__version__}, AlbumentationsX "
        f"{albumentations.__version__ if albumentations else 'not installed: left out'}; "
        f"{len(photos)} photos of "
        f"{np.mean([len(data) for data, _, _ in photos]) / 1000:.0f} kB\n"
    )
    each = rates(contestants(), photos, args.rounds, max(1, 64 // len(photos)))
    peers = {name: each[name] for name in PEERS if name in each}
    best = max(peers, key=peers.__getitem__)
    print(
        table(
            [
                (name, f"{rate:.0f}", f"{rate / each[best]:.2f}", f"{rate / each[DECODE]:.2f}")
                for name, rate in each.items()
            ],
            ("way", "images/s/core", f"against {best}", "of decode alone"),
        )
    )
    demo = replace(recipes.get("demo"), augment="gentle")
    small = rates(
        {"train_view": ours(demo), DECODE: lambda photo: opencv(photo[0])},
        of_the_demo(),
        args.rounds,
        4,
    )
    print(
        f"\ndemo pictures at {demo.image_size} px, level gentle: {small['train_view']:.0f} "
        f"images/s/core, "
        f"{small['train_view'] / small[DECODE]:.2f} of decode alone"
    )
    by_workers, ready = measure_loaders(photos, max(3, args.rounds // 2))
    print(
        "DataLoader: "
        + ", ".join(f"{name} {rate:.0f} images/s" for name, rate in by_workers.items())
    )
    print(
        "2 workers that hand over ready pictures: "
        + ", ".join(f"{name} {rate:.0f}" for name, rate in ready.items())
        + " images/s\n"
    )
    one, two = by_workers.values()
    goals = [
        (f"against {best}, the best peer", each[OURS] / each[best], 2.0),
        (
            "against torchvision, the better of two",
            each[OURS] / max(v for k, v in peers.items() if "torchvision" in k),
            4.0,
        ),
        ("of decode alone", each[OURS] / each[DECODE], 0.7),
        ("2 workers against 1", two / one, 1.6),
    ]
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
