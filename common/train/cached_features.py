"""Frozen phases without the backbone: features of a few augmented views of each picture, on disk,
safe from a kill.

A frozen backbone gives the same features for the same view, so that heads may train on stored
features in minutes. Features cannot be mixed as pixels are: a phase on cached features goes without
MixUp and CutMix, and `cache_views` says so.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from os import fsync
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.console import fail, progress, say
from common.files import write_text
from common.train.augment_levels import LEVELS
from common.train.checkpoint import weights_hash
from common.train.compute import SINGLE_PROCESS, Compute, World, is_out_of_memory
from common.train.dataset import EvalViews, Split, TrainViews, make_loader
from common.train.machine import Setup
from common.train.model import SwinHierarchical
from common.train.recipes import Phase

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

    def __getstate__(self) -> dict[str, Any]:
        # pickled, a memory map would travel whole; a spawned worker opens its own
        return {key: value for key, value in self.__dict__.items() if key != "rows"}

    def __len__(self) -> int:
        return self.count

    @cached_property
    def rows(self) -> np.ndarray:
        """The file, mapped read-only: (views, count) of `feature` float16 (features,) and
        `class_idx` int32.
        """
        return np.memmap(self.path, self.row, "r", shape=(self.views, self.count))

    def batch(self, items: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
        """Read items (epoch, position, i) at once: float32 (n, features), int64 (n,) class
        indices.
        """
        chosen = np.array(items, np.int64)
        rows = self.rows[chosen[:, 0] % self.views, chosen[:, 2]]
        features, class_idx = rows["feature"].astype(np.float32), rows["class_idx"].astype(np.int64)
        return torch.from_numpy(features), torch.from_numpy(class_idx)

    def __getitems__(self, items: Sequence[tuple[int, int, int]]) -> list[tuple[Tensor, int]]:
        """Read a whole batch for the loader, whose workers ask for it by this name."""
        features, class_idx = self.batch(items)
        return list(zip(features, class_idx.tolist(), strict=True))


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


@dataclass
class Extraction:
    """The frozen backbone at work: pixels -> float16 features.

    Attributes:
        model: on its device; heads and neck play no part.
        compute: device and precision.
        device_batch: pictures per forward pass, halved when memory runs out. It may change
            rounding, so it is no part of what the features are known by.
        workers: loader processes.
        manifest_hash: of the data set, so that features of other pictures are never used.
        world: processes that share the work and the folder.
    """

    model: SwinHierarchical
    compute: Compute
    device_batch: int
    workers: int
    manifest_hash: str
    world: World = SINGLE_PROCESS

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> np.ndarray:
        """Compute features; stops where one is not a number."""
        pixels = self.compute.upload(pixels)
        while True:
            try:
                with self.compute.autocast():
                    pieces = [self.model.features(p) for p in pixels.split(self.device_batch)]
                break
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.device_batch == 1:
                    raise
                self.device_batch = -(-min(self.device_batch, len(pixels)) // 2)
                self.compute.empty_cache()
                say(f"out of memory: {self.device_batch} pictures at once from here on")
        made = torch.cat(pieces).to(torch.float16).cpu().numpy()
        if not np.isfinite(made).all():
            fail(
                "a feature is not a number: the network overflows. Run again with --precision fp32."
            )
        return made

    def made_of(self, split: Split) -> dict[str, Any]:
        """What features depend on, besides the views of the pictures."""
        pictures = hashlib.sha256()
        for name in ("arena", "ends", "file", "offset", "size", "class_idx", "width", "height"):
            pictures.update(np.ascontiguousarray(getattr(split, name)).tobytes())
        return {
            "weights": weights_hash({"model": self.model.backbone.state_dict()}),
            "model": self.model.settings,
            "features": self.model.num_features,
            "precision": f"{self.compute.dtype} on {self.compute.device.type}",
            "manifest": self.manifest_hash,
            "pictures": pictures.hexdigest()[:16],
            "count": len(split),
        }


def cache_views(
    extraction: Extraction, dataset: TrainViews, views: int, folder: Path
) -> CachedViews:
    """Compute the pooled features of `views` augmented views of each picture, before the neck; what
    is there is not done again.

    View k of picture i is the item (k, i, i) of `dataset`: a function of (seed, k, i), whatever the
    workers and kills. With as many views as epochs no view comes twice. More views than before are
    added to those that are there.

    Args:
        extraction: the backbone, and the machine.
        dataset: views of the pictures to train on.
        views: K, 1 or more.
        folder: of this cache alone; 2 bytes per value, e.g. 1.47 million pictures x 4 views x 768
            features = 9 GB.

    Raises:
        SystemExit: where the disk has not enough room, or a feature is not a number.
        OSError: where the disk gets full or cannot be written.
    """
    recipe = dataset.recipe
    if recipe.mix_share > 0:
        say("MixUp and CutMix mix pixels: phases on cached features go without them")
    made_of = {
        "seed": dataset.seed,
        "augmentation": {name: getattr(recipe, name) for name in VIEW_SETTINGS},
        "ranges of the augmentation": asdict(LEVELS[recipe.augment]),
    }
    source = _Source(dataset, lambda k, i: (k, i, i), len(dataset.split), views)
    return _store(extraction, source, folder, made_of)


def cache_eval(extraction: Extraction, split: Split, folder: Path) -> CachedViews:
    """Compute the pooled features of a split's evaluation views, for judging heads without the
    backbone.

    Args and raises: as for `cache_views`; the size is the model's.
    """
    dataset = EvalViews(split, extraction.model.settings["image_size"])
    return _store(extraction, _Source(dataset, lambda k, i: i, len(split), 1), folder, {})


class _Source(NamedTuple):
    """`views` x `count` items of a data set; `item(k, i)` names view k of picture i."""

    dataset: TrainViews | EvalViews
    item: Callable[[int, int], Any]
    count: int
    views: int

    def pixels(self) -> str:
        """Hash of some views: augmentation code, libraries and pictures may change while every
        setting stays.
        """
        digest = hashlib.sha256()
        for i in np.unique(np.linspace(0, self.count - 1, SAMPLE).round().astype(int)).tolist():
            digest.update(self.dataset[self.item(0, i)][0].numpy().tobytes())
        return digest.hexdigest()[:16]


def _store(
    extraction: Extraction, source: _Source, folder: Path, made_of: dict[str, Any]
) -> CachedViews:
    """Fill the cache block by block; a block is written before it is recorded, and its batches
    never depend on where a run began.
    """
    backbone, world = extraction.model.backbone, extraction.world
    cached = CachedViews(folder / ROWS, source.views, source.count, extraction.model.num_features)
    blocks = [
        (k, a, min(a + BLOCK, source.count))
        for k in range(source.views)
        for a in range(0, source.count, BLOCK)
    ]
    if world.is_main:
        made_of |= extraction.made_of(source.dataset.split) | {"pixels": source.pixels()}
        # as it comes back from the file: no tuples
        _prepare(folder, json.loads(json.dumps(made_of, default=str)))
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
    mine = {n: blocks[n] for n in todo[world.rank :: world.size]}
    if mine:
        training = backbone.training
        backbone.eval()
        try:
            _fill(cached, source, extraction, mine)
        finally:
            backbone.train(training)
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
        for name in (DONE, ROWS):  # in this order: rows being replaced must not count as done
            (folder / name).unlink(missing_ok=True)
        if isinstance(before, dict):
            odd = [key for key in made_of if before.get(key) != made_of[key]]
            say(f"the features in {folder} were made with other {', '.join(odd)}: made anew")
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
            "GB are free. Make room, choose another folder, or cache fewer views (--cached-views "
            f"{cached.views} now)."
        )


def _fill(
    cached: CachedViews,
    source: _Source,
    extraction: Extraction,
    blocks: dict[int, tuple[int, int, int]],
) -> None:
    at_once = extraction.device_batch
    spans = [
        (n, k, i, min(i + at_once, end))
        for n, (k, first, end) in blocks.items()
        for i in range(first, end, at_once)
    ]
    items = ([source.item(k, i) for i in range(first, end)] for _, k, first, end in spans)
    on_gpu = extraction.compute.on_gpu
    loader = make_loader(source.dataset, extraction.workers, sampler=items, pin_memory=on_gpu)
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
            made["feature"], made["class_idx"] = extraction(pixels), class_idx.numpy()
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

# region a phase


def cache_phase(
    phase: Phase, model: SwinHierarchical, setup: Setup, folder: Path
) -> tuple[CachedViews, "_ShareOfFeatures"]:
    """Features of the train views, and this process's share of val's in batches, under a frozen
    backbone; stored in `folder`/features.
    """
    extraction = Extraction(
        model,
        setup.compute,
        device_batch=setup.args.device_batch,
        workers=setup.args.workers,
        manifest_hash=setup.data.manifest_hash,
        world=setup.world,
    )
    train, val = setup.data.splits["train"], setup.data.splits["val"]
    seed, stored = setup.args.seed, folder / "features"
    views = TrainViews(train, setup.recipe, seed)
    cached = cache_views(extraction, views, phase.cached_views, stored / "train")
    judged = cache_eval(extraction, val, stored / "val")
    return cached, _ShareOfFeatures(judged, setup.world)


class _ShareOfFeatures:
    """A process's share of cached features, in batches, each time it is iterated over."""

    def __init__(self, cached: CachedViews, world: World) -> None:
        self.cached, self.rows = cached, world.share(len(cached))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(self.rows.start, self.rows.stop, 1024):
            stop = min(start + 1024, self.rows.stop)
            yield self.cached.batch([(0, i, i) for i in range(start, stop)])


# endregion
