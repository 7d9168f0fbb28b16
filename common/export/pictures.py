"""The pictures that an export is fitted and judged by: splits, out-of-distribution (OOD) pictures
of every kind, and poor copies of plants.
"""

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from common import images
from common.console import fail, long_part, warn
from common.train.dataset import EvalViews, Organized, make_loader

BATCH = 32
POOR_AT_MOST = 200  # pictures per kind of poor photo: enough to measure how many are rejected
POOR_SHARE = 4  # to fit with, one train picture in so many has a poor copy, for each kind
SHIFTS = ("dark", "blur", "crop", "compression")
FAILED = 0.01  # share of val photos below each limit of brightness, sharpness and size
# what OOD pictures show: no plant, another species, or another disease of a known species, each of
# which has a threshold of its own; or plants in a new place, which are only reported
ROLES = ("plant", "species", "disease", "source")


@dataclass(frozen=True)
class OodKind:
    """Out-of-distribution pictures of one kind: its name, its role (one of `ROLES`), and per split
    the files.
    """

    name: str
    role: str
    files: dict[str, list[Path]]


def known_ood(
    data: Organized, ood: Iterable[str] = (), unknown_plants: Iterable[str] = ()
) -> list[OodKind]:
    """List the out-of-distribution pictures that a person has given.

    Args:
        data: below it stand not_plants/{val,test}/, a folder there for each kind that --not-plants
            of 01 had, and holdout/ for the rows of the holdouts: every other species or disease
            (by the hash of its name) fits and the others are reported, the first among them; of
            held-out sources all pictures are reported.
        ood, unknown_plants: further folders, `DIR` or `NAME=DIR`; half of their pictures, by the
            hash of the file, fit and the other half are reported.

    Raises:
        SystemExit: for a folder that is not there or holds no picture, and where two kinds have one
            name.
    """
    kinds: dict[str, dict[str, list[Path]]] = {}
    for split in ("val", "test"):
        for path in sorted((data.root / "not_plants" / split).rglob("*.jpg")):
            kind = path.parent.name if path.parent.parent.name == split else "not_plants"
            kinds.setdefault(kind, {"val": [], "test": []})[split].append(path)
    found = [OodKind(kind, "plant", files) for kind, files in sorted(kinds.items())]
    found += [
        _folder(text, role, flag)
        for role, flag, texts in (
            ("plant", "--ood", ood),
            ("species", "--unknown-plants", unknown_plants),
        )
        for text in texts
    ]
    held: dict[str, list[Path]] = {"holdout_species": [], "holdout_diseases": []}
    if (data.root / "holdout").is_dir():
        with (data.root / "manifest.csv").open(
            newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            for row in csv.DictReader(file):
                place = row["split"] == "holdout_source"
                kind = f"source {row['dataset']}" if place else row["split"]
                if place or kind in held:
                    held.setdefault(kind, []).append(data.root / row["path"])
    for kind, files in held.items():
        files.sort(key=lambda path: path.name)  # by content: the first are a fair sample
        role = {"holdout_species": "species", "holdout_diseases": "disease"}.get(kind, "source")
        parts = {"val": [], "test": files} if role == "source" else _whole_classes(files, role)
        found.append(OodKind(kind, role, parts))
    found = [kind for kind in found if any(kind.files.values())]
    names = [kind.name for kind in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        fail(
            f"two kinds of OOD pictures are called {twice}. Give yours another name: "
            "--ood NAME=DIR, --unknown-plants NAME=DIR."
        )
    return found


def _folder(text: str, role: str, flag: str) -> OodKind:
    name, _, folder = text.rpartition("=") if not Path(text).is_dir() else ("", "", text)
    path = Path(folder)
    if not path.is_dir():
        fail(f"{flag} {text}: there is no folder {folder}.")
    files = sorted(
        p for p in path.rglob("*") if p.suffix.lower() in images.SUFFIXES and p.is_file()
    )
    if not files:
        fail(f"{flag} {text}: the folder holds no picture.")
    return OodKind(name or path.name, role, _halves(files))


def class_of(path: Path) -> tuple[str, str]:
    """Species and disease of a picture below holdout/."""
    return path.parts[-3], path.parts[-2]


def _whole_classes(files: list[Path], role: str) -> dict[str, list[Path]]:
    # what is reported as unknown must not have been seen by any fit in other photos
    names = [class_of(path)[: ROLES.index(role)] for path in files]
    order = sorted(set(names), key=lambda name: hashlib.sha256("/".join(name).encode()).digest())
    fits = set(order[1::2])
    return {
        split: [path for path, name in zip(files, names, strict=True) if (name in fits) == fit]
        for split, fit in (("val", True), ("test", False))
    }


def _halves(files: list[Path]) -> dict[str, list[Path]]:
    parts: dict[str, list[Path]] = {"val": [], "test": []}
    for path in files:
        parts["test" if hashlib.sha256(path.read_bytes()).digest()[0] % 2 else "val"].append(path)
    return parts


@dataclass(frozen=True)
class Pictures:
    """All pictures of an export at one model size, in batches, in a fixed order.

    Attributes:
        data: the organized data.
        size: px of the model.
        kinds: of `known_ood`.
        at_most: pictures per split and kind, evenly spread; those of train over the classes.
        workers: of the loader.
        unreadable: OOD files that `ood` has left out so far.
    """

    data: Organized
    size: int
    kinds: list[OodKind]
    at_most: int
    workers: int
    unreadable: set[Path] = field(default_factory=set)

    @cached_property
    def photo_limits(self) -> dict[str, float]:
        """Limits below which a photo counts as poor, from val: {measure: limit}."""
        parts = []
        with long_part("quality of val photos", self.count("val")) as bar:
            for batch, _ in self.batches("val"):
                parts.append(images.photo_quality(batch))
                bar.update(len(batch))
        quality = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        val = self.data.splits["val"]
        return fit_photo(quality | {"short_side": np.minimum(val.width, val.height).astype(float)})

    def count(self, split: str, at_most: int | None = None) -> int:
        """How many pictures `batches` yields of a split."""
        return min(len(self.data.splits[split]), self.at_most, at_most or self.at_most)

    def batches(
        self, split: str, batch_size: int = BATCH, at_most: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (uint8 (N, size, size, 3), class_idx int64 (N,)) of a split; with `at_most`, of
        some of the pictures it gives without.
        """
        pictures = self.data.splits[split]
        chosen = spread(len(pictures), self.at_most)
        if split == "train" and len(pictures) > self.at_most:  # a rare class is known, too
            chosen = balanced(pictures.class_idx, self.at_most)
        yield from self.load(
            split, chosen[spread(len(chosen), at_most or self.at_most)], batch_size
        )

    def calibration(self, at_most: int = 256) -> Iterator[np.ndarray]:
        """Yield class-balanced pictures of train, uint8 (N, size, size, 3)."""
        chosen = balanced(self.data.splits["train"].class_idx, at_most)
        return (pictures for pictures, _ in self.load("train", chosen, 16))

    def load(
        self, split: str, chosen: np.ndarray, batch_size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (uint8 (N, size, size, 3), class_idx int64 (N,)) of the chosen pictures of a split,
        int (M,).
        """
        views: Any = torch.utils.data.Subset(
            EvalViews(self.data.splits[split], self.size), chosen.tolist()
        )
        for pictures, class_idx in make_loader(views, self.workers, batch_size=batch_size):
            yield pictures.numpy(), class_idx.numpy()

    def ood(self, role: str, split: str) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
        """Yield (kind, its batches uint8 (N, size, size, 3)) of the OOD pictures of a role."""
        for kind in self.kinds:
            if kind.role == role and kind.files[split]:
                yield kind.name, self.read(self.ood_files(kind, split))

    def ood_files(self, kind: OodKind, split: str) -> list[Path]:
        """The files of a kind, of which `ood` gives every one that can be read, in this order."""
        return [p for p in kind.files[split][: self.at_most] if p not in self.unreadable]

    def count_ood(self, role: str, split: str) -> int:
        """How many files `ood` reads at most."""
        return sum(
            len(kind.files[split][: self.at_most]) for kind in self.kinds if kind.role == role
        )

    def read(self, files: list[Path]) -> Iterator[np.ndarray]:
        """Yield batches uint8 (N, size, size, 3) of those files that can be read."""
        for start in range(0, len(files), BATCH):
            batch = []
            for path in files[start : start + BATCH]:
                try:
                    rgb = images.read_rgb(path, long_side=self.data.long_side, min_side=1)
                    batch.append(images.resize_to_model(rgb, self.size))
                except images.ImageError as error:
                    self.unreadable.add(path)
                    warn(f"{path} is left out: {error}")
            if batch:
                yield np.stack(batch)
        if self.unreadable.issuperset(files):
            fail(f"none of the OOD pictures can be read: {files[0]} and the like. Leave them out.")

    def poor(
        self, kind: str, split: str, at_most: int = POOR_AT_MOST
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield poor copies of some of a split's plants: (uint8 (N, size, size, 3), class_idx int64
        (N,)).
        """
        first = 0
        for pictures, class_idx in self.batches(split, at_most=max(1, min(at_most, self.at_most))):
            yield shifted(pictures, kind, first), class_idx
            first += len(pictures)

    def with_poor(self, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield a split as `batches` does, and poor copies of every kind of one picture in
        `POOR_SHARE`.
        """
        yield from self.batches(split)
        for kind in SHIFTS:
            yield from self.poor(kind, split, self.count(split) // POOR_SHARE)


def spread(count: int, at_most: int) -> np.ndarray:
    """At most so many of 0..count - 1, evenly spread."""
    return np.linspace(0, count - 1, min(count, at_most)).astype(int)


def balanced(class_idx: np.ndarray, at_most: int) -> np.ndarray:
    """Choose calibration pictures that stand for all classes alike: in turns, one of each class.

    Args:
        class_idx: int (N,), class of each picture.
        at_most: how many to choose.

    Returns:
        int64 (at_most or N,), ascending places in `class_idx`; within a class they are evenly
        spread.
    """
    class_idx = np.asarray(class_idx)
    order = np.argsort(class_idx, kind="stable")
    _, starts, counts = np.unique(class_idx[order], return_index=True, return_counts=True)
    turn = np.empty(len(class_idx), np.float64)
    quota = max(1, -(-at_most // max(1, len(starts))))
    for start, count in zip(starts, counts, strict=True):
        first = np.linspace(0, count - 1, min(quota, count)).round().astype(int)
        places = np.concatenate([first, np.setdiff1d(np.arange(count), first)])
        turn[order[start + places]] = np.arange(count)
    classes = np.unique(class_idx, return_inverse=True)[1]
    if at_most < len(starts):  # fewer pictures than classes: classes evenly spread
        kept = np.isin(classes, np.linspace(0, len(starts) - 1, at_most).round().astype(int))
        turn[~kept] = np.inf
    return np.sort(np.lexsort((classes, turn))[:at_most])


def shifted(pictures: np.ndarray, kind: str, first: int = 0) -> np.ndarray:
    """Make a poor photo of each picture: a third of the light, out of focus, a crop off the middle,
    or a strong JPEG.

    Args:
        pictures: uint8 (N, size, size, 3), RGB.
        kind: one of `SHIFTS`.
        first: number of the first picture in its split; where a crop lies follows from it, so that
            batches do not matter.

    Returns:
        uint8 (N, size, size, 3).

    Raises:
        ValueError: for another kind.
    """
    if kind not in SHIFTS:
        raise ValueError(f"unknown shift '{kind}': choose one of {', '.join(SHIFTS)}")
    return np.stack([_shift(picture, kind, first + i) for i, picture in enumerate(pictures)])


def _shift(rgb: np.ndarray, kind: str, number: int) -> np.ndarray:
    size = rgb.shape[0]
    if kind == "dark":
        return np.rint(rgb * np.float32(0.35)).astype(np.uint8)
    if kind == "blur":
        return cv2.GaussianBlur(rgb, (0, 0), size / 80)
    if kind == "crop":
        side = max(1, round(0.6 * size))
        far = size - side
        y, x = ((0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2))[number % 5]
        return cv2.resize(
            np.ascontiguousarray(rgb[y : y + side, x : x + side]),
            (size, size),
            interpolation=cv2.INTER_LINEAR,
        )
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=10)
    return np.array(Image.open(buffer))


def fit_photo(quality: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Find the limits below which a photo counts as poor: the value that `FAILED` of val photos lie
    below.

    Args:
        quality: {measure: float (N,)} of val plants: `photo_quality`, and `short_side`, px as the
            photo came.

    Returns:
        {measure: limit}; half the smallest value where there are fewer than 100 photos.
    """
    return {
        name: float(np.quantile(values, FAILED) if len(values) >= 1 / FAILED else values.min() / 2)
        for name, values in quality.items()
        if len(values)
    }
