"""Frozen phases without the backbone: features of a few augmented views of each picture, on disk,
safe from a kill.

While a backbone is frozen it answers the same for the same view, so that heads may train on stored
features in minutes. Features cannot be mixed as pixels are: a phase on cached features goes without
MixUp and CutMix, and `cache_views` says so.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from os import fsync
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from common.console import fail, progress, say
from common.files import write_text
from common.train.augment_levels import LEVELS
from common.train.checkpoint import weights_hash
from common.train.compute import Compute
from common.train.dataset import EvalViews, Split, TrainViews, make_loader
from common.train.distributed import SINGLE_PROCESS, World
from common.train.model import SwinHierarchical
from common.train.recipes import Recipe

BLOCK = 2048  # pictures of one view that are recorded as done together
ROWS, DONE, MADE_OF = "features.f16", "features.done", "features.json"
# what a training view depends on, besides the picture and the draws
VIEW_SETTINGS = ("image_size", "augment", "tier2_share", "randaugment_ops", "randaugment_magnitude")
SAMPLE = 16  # views whose pixels are compared, so that an edited augmentation is noticed


class CachedViews(Dataset[tuple[Tensor, int]]):
    """Stored features in place of pictures: item (epoch, position, i) -> (float32 (features,),
    class index).

    It is row [epoch % views, i], so that `EpochSampler` and `make_loader` serve it as they serve
    pictures, and the training step gets features (N, features) in place of pixels.

    Attributes:
        views, count, num_features: K stored views of each of N pictures, and the length of a
            feature.
    """

    def __init__(self, path: Path, views: int, count: int, num_features: int) -> None:
        self.path, self.views, self.count, self.num_features = path, views, count, num_features
        # the class stands beside its feature: another picture replaces one that cannot be read
        self.row = np.dtype([("feature", "<f2", (num_features,)), ("class_idx", "<i4")])
        self._rows: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_rows": None,
        }  # pickled, a memory map would travel whole; a spawned worker opens its own

    def __len__(self) -> int:
        return self.count

    @property
    def rows(self) -> np.ndarray:
        """The file, mapped read-only: (views, count) of `feature` float16 (features,) and
        `class_idx` int32.
        """
        if self._rows is None:
            self._rows = np.memmap(self.path, self.row, "r", shape=(self.views, self.count))
        return self._rows

    @property
    def features(self) -> np.ndarray:
        """All features: float16 (views, count, features), mapped read-only."""
        return self.rows["feature"]

    def batch(self, items: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
        """Read items (epoch, position, i) at once: float32 (n, features), int64 (n,) class
        indices.
        """
        chosen = np.array(items, np.int64)
        rows = self.rows[chosen[:, 0] % self.views, chosen[:, 2]]
        return torch.from_numpy(rows["feature"].astype(np.float32)), torch.from_numpy(
            rows["class_idx"].astype(np.int64)
        )

    def __getitem__(self, item: tuple[int, int, int]) -> tuple[Tensor, int]:
        features, class_idx = self.batch([item])
        return features[0], int(class_idx[0])

    def __getitems__(self, items: Sequence[tuple[int, int, int]]) -> list[tuple[Tensor, int]]:
        """Read a whole batch for the loader, whose workers ask for it by this name."""
        features, class_idx = self.batch(items)
        return list(zip(features, class_idx.tolist(), strict=True))

    def batches(self, size: int = 1024, view: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every picture once, in order, for judging: float32 (n, features), int64 (n,) class
        indices.
        """
        for start in range(0, self.count, size):
            rows = self.rows[view, start : start + size]
            yield (
                torch.from_numpy(rows["feature"].astype(np.float32)),
                torch.from_numpy(rows["class_idx"].astype(np.int64)),
            )


class HeadsOnFeatures:
    """A model whose backbone has done its work: `features` passes cached features on, everything
    else is the model's own.
    """

    def __init__(self, model: SwinHierarchical) -> None:
        self.model = model

    def features(self, cached: Tensor) -> Tensor:
        """Float (N, features), as `CachedViews` holds them."""
        return cached

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


# region making


def cache_views(
    model: SwinHierarchical,
    split: Split,
    recipe: Recipe,
    compute: Compute,
    folder: Path,
    views: int,
    seed: int,
    workers: int,
    device_batch: int,
    *,
    manifest_hash: str,
    world: World = SINGLE_PROCESS,
) -> CachedViews:
    """Compute the pooled features of `views` augmented views of each picture, before the neck; what
    is there is not done again.

    View k of picture i is the item (k, i, i) of `TrainViews`: a function of (seed, k, i), whatever
    the workers and kills. With as many views as epochs no view comes twice. More views than before
    are added to those that are there. When memory runs out, smaller pieces go through the network.

    Args:
        model: on its device; heads and neck play no part.
        split: the pictures to train on.
        recipe: gives augmentation and size.
        compute: device and precision.
        folder: of this cache alone; 2 bytes per value, e.g. 1.47 million pictures x 4 views x 768
            features = 9 GB.
        views: K, 1 or more.
        seed: of the run.
        workers: loader processes.
        device_batch: pictures per forward pass. It may change rounding, so it is no part of what
            the features are known by.
        manifest_hash: of the data set, so that features of other pictures are never used.
        world: processes that share the work and the folder.

    Raises:
        SystemExit: where the disk has not enough room, or a feature is not a number.
        OSError: where the disk gets full or cannot be written.
    """
    if views < 1:
        raise ValueError(f"views is {views}; at least 1")
    dataset = TrainViews(split, recipe, seed)
    made_of = {
        "seed": seed,
        "augmentation": {name: getattr(recipe, name) for name in VIEW_SETTINGS},
        "ranges of the augmentation": asdict(LEVELS[recipe.augment]),
        **_made_of(model, split, compute, manifest_hash),
        "pixels": _pixels(dataset, [(0, i, i) for i in _spread(len(split))]),
    }
    if recipe.mix_share > 0 and world.is_main:
        say("MixUp and CutMix mix pixels: phases on cached features go without them")
    source = _Source(dataset, lambda k, i: (k, i, i), len(split), views)
    return _store(source, _Extractor(model, compute, device_batch), folder, made_of, workers, world)


def cache_eval(
    model: SwinHierarchical,
    split: Split,
    compute: Compute,
    folder: Path,
    workers: int,
    device_batch: int,
    *,
    manifest_hash: str,
    world: World = SINGLE_PROCESS,
) -> CachedViews:
    """Compute the pooled features of a split's evaluation views, for judging heads without the
    backbone (`batches`).

    Args and raises: as for `cache_views`; the size is the model's.
    """
    dataset = EvalViews(split, model.settings["image_size"])
    made_of = {
        **_made_of(model, split, compute, manifest_hash),
        "pixels": _pixels(dataset, _spread(len(split))),
    }
    source = _Source(dataset, lambda k, i: i, len(split), 1)
    return _store(source, _Extractor(model, compute, device_batch), folder, made_of, workers, world)


def _spread(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, SAMPLE).round().astype(int)).tolist()


def _pixels(dataset: Dataset[Any], items: Sequence[Any]) -> str:
    """Hash of some views: augmentation code, libraries and pictures may change while every setting
    stays.
    """
    digest = hashlib.sha256()
    for item in items:
        digest.update(dataset[item][0].numpy().tobytes())
    return digest.hexdigest()[:16]


def _made_of(
    model: SwinHierarchical, split: Split, compute: Compute, manifest_hash: str
) -> dict[str, Any]:
    pictures = hashlib.sha256()
    for name in ("arena", "ends", "file", "offset", "size", "class_idx", "width", "height"):
        pictures.update(np.ascontiguousarray(getattr(split, name)).tobytes())
    return {
        "weights": weights_hash({"model": model.backbone.state_dict()}),
        "model": model.settings,
        "features": model.num_features,
        "precision": f"{compute.dtype} on {compute.device.type}",
        "manifest": manifest_hash,
        "pictures": pictures.hexdigest()[:16],
        "count": len(split),
    }


class _Source(NamedTuple):
    """`views` x `count` items of a data set; `item(k, i)` names view k of picture i."""

    dataset: Dataset[Any]
    item: Callable[[int, int], Any]
    count: int
    views: int


class _Extractor:
    """The frozen backbone: pixels -> float16 features."""

    def __init__(self, model: SwinHierarchical, compute: Compute, batch: int) -> None:
        self.model, self.compute, self.batch, self.fits = model, compute, batch, batch

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> np.ndarray:
        pixels = pixels.to(self.compute.device, non_blocking=True)
        while True:
            try:
                with self.compute.autocast():
                    made = torch.cat(
                        [self.model.features(piece) for piece in pixels.split(self.fits)]
                    )
                break
            except torch.OutOfMemoryError:
                if self.fits == 1:
                    raise
                self.fits = -(-min(self.fits, len(pixels)) // 2)
                torch.cuda.empty_cache()
                say(f"out of memory: {self.fits} pictures at once from here on")
        made = made.to(torch.float16).cpu().numpy()
        if not np.isfinite(made).all():
            fail(
                "a feature is not a number: the network overflows. Run again with --precision fp32."
            )
        return made


class _Batches(Sampler[list[Any]]):
    """The items of each span (block, view, first, end), in order."""

    def __init__(
        self, spans: list[tuple[int, int, int, int]], item: Callable[[int, int], Any]
    ) -> None:
        self.spans, self.item = spans, item

    def __iter__(self) -> Iterator[list[Any]]:
        for _, k, first, end in self.spans:
            yield [self.item(k, i) for i in range(first, end)]


def _store(
    source: _Source,
    extract: _Extractor,
    folder: Path,
    made_of: dict[str, Any],
    workers: int,
    world: World,
) -> CachedViews:
    """Fill the cache block by block; a block is written before it is recorded, and its batches
    never depend on where a run began.
    """
    cached = CachedViews(folder / ROWS, source.views, source.count, extract.model.num_features)
    blocks = [
        (k, a, min(a + BLOCK, source.count))
        for k in range(source.views)
        for a in range(0, source.count, BLOCK)
    ]
    if world.is_main:
        _prepare(
            folder, json.loads(json.dumps(made_of, default=str))
        )  # as it comes back from the file: no tuples
    world.barrier()
    have, size = (folder / DONE).read_bytes(), cached.path.stat().st_size
    todo = [
        n
        for n, (k, _, end) in enumerate(blocks)
        if have[n : n + 1] != b"\1" or size < (k * source.count + end) * cached.row.itemsize
    ]
    world.barrier()  # everyone has read the record before anyone adds to it
    if world.is_main:
        _announce(cached, folder, sum(blocks[n][2] - blocks[n][1] for n in todo))
    mine = todo[world.rank :: world.size]
    if mine:
        training = extract.model.backbone.training
        extract.model.backbone.eval()
        try:
            _fill(cached, source, extract, {n: blocks[n] for n in mine}, workers)
        finally:
            extract.model.backbone.train(training)
    world.barrier()
    return cached


def _prepare(folder: Path, made_of: dict[str, Any]) -> None:
    """Make the folder; strike out what was made of anything else."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        before = json.loads((folder / MADE_OF).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if before != made_of:
        (folder / DONE).unlink(
            missing_ok=True
        )  # first: rows that are being replaced must not count as done
        (folder / ROWS).unlink(missing_ok=True)
        if isinstance(before, dict):
            odd = [key for key in made_of if before.get(key) != made_of[key]]
            say(
                f"the features in {folder} were made with other {', '.join(odd)}: they are made "
                f"anew"
            )
        write_text(folder / MADE_OF, json.dumps(made_of, indent=1))
    for name in (ROWS, DONE):
        (folder / name).touch()


def _announce(cached: CachedViews, folder: Path, todo: int) -> None:
    """Say how much is to do and how large it gets; stop where the disk cannot hold it."""
    total = cached.views * cached.count
    say(
        f"cached features: {cached.views} views x {cached.count:,} pictures x "
        f"{cached.num_features} values = "
        f"{total * cached.row.itemsize / 1e9:.2f} GB in {folder}"
        + (f"; {total - todo:,} of {total:,} are there" if todo < total else "")
    )
    need, free = todo * cached.row.itemsize, shutil.disk_usage(folder).free
    if need > free:
        fail(
            f"the cached features need {need / 1e9:.2f} GB more in {folder}, and {free / 1e9:.2f} "
            f"GB are free. Make room, choose "
            f"another folder, or cache fewer views (--cached-views {cached.views} now)."
        )


def _fill(
    cached: CachedViews,
    source: _Source,
    extract: _Extractor,
    blocks: dict[int, tuple[int, int, int]],
    workers: int,
) -> None:
    spans = [
        (n, k, i, min(i + extract.batch, end))
        for n, (k, first, end) in blocks.items()
        for i in range(first, end, extract.batch)
    ]
    loader = make_loader(
        source.dataset,
        workers,
        sampler=_Batches(spans, source.item),
        pin_memory=extract.compute.device.type == "cuda",
    )
    todo = sum(end - first for _, first, end in blocks.values())
    # plain writes: where the disk is full, they raise, and a write to a memory map would kill the
    # process
    with (
        cached.path.open("r+b") as rows,
        cached.path.with_name(DONE).open("r+b") as record,
        progress((), total=todo, desc="features", unit="view") as bar,
    ):
        for (n, k, first, end), (pixels, class_idx) in zip(spans, loader, strict=True):
            made = np.empty(end - first, cached.row)
            made["feature"], made["class_idx"] = extract(pixels), class_idx.numpy()
            rows.seek((k * source.count + first) * cached.row.itemsize)
            rows.write(made.tobytes())
            bar.update(end - first)
            if end == blocks[n][2]:
                _flush(rows)
                record.seek(n)
                record.write(b"\1")
                _flush(record)


def _flush(file: Any) -> None:
    file.flush()
    fsync(file.fileno())


# endregion
