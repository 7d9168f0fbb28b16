"""Organized folders or tar shards as packed arrays, training and evaluation views, and loaders
whose draws do not depend on workers.
"""

import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common import images
from common.classes import ClassTree
from common.console import fail, warn
from common.files import cores, file_sha256
from common.train.augment import draw_mix, step_draws, train_view
from common.train.compute import SINGLE_PROCESS, World
from common.train.manifest import read_manifest
from common.train.recipes import Phase, Recipe

OPEN_SHARDS = 128  # per process and split: the system may allow no more than 256 open files


# region index


@dataclass(frozen=True)
class Split:
    """One split as packed arrays: a million Python strings would be copied into every worker by
    reference counts.

    The pictures stand in the order of the manifest, which is the same for files and for shards.

    Attributes:
        root: folder the paths are relative to.
        arena, ends: uint8 (bytes of all paths), int64 (F,) where each path ends.
        file: int32 (N,), which path.
        offset, size: int64 (N,), where the JPEG begins in a shard and its length, bytes; offset -1:
            a file of its own.
        class_idx: int32 (N,), packed class index.
        width, height: int32 (N,), px.
    """

    root: Path
    arena: np.ndarray
    ends: np.ndarray
    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    class_idx: np.ndarray
    width: np.ndarray
    height: np.ndarray
    _shards: dict[int, IO[bytes]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.class_idx)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # a spawned worker opens its own

    def path(self, i: int) -> Path:
        """Path of picture i, or of the shard that holds it."""
        k = int(self.file[i])
        start = int(self.ends[k - 1]) if k else 0
        return self.root / self.arena[start : self.ends[k]].tobytes().decode()

    def read(self, i: int) -> bytes:
        """Read the JPEG of picture i. Raises OSError where its file or shard is gone or too
        short.
        """
        if self.offset[i] < 0:
            return self.path(i).read_bytes()
        k, size, offset = int(self.file[i]), int(self.size[i]), int(self.offset[i])
        shard = self._shards.get(k)
        if shard is None:
            for old in list(self._shards)[: len(self._shards) - OPEN_SHARDS + 1]:
                self._shards.pop(old, None)  # closed when no thread reads it any more
            shard = self._shards[k] = self.path(i).open("rb", buffering=0)
        # needs no file position, which forked workers would share
        data = os.pread(shard.fileno(), size, offset)
        if len(data) < size:
            raise OSError(f"the shard ends after {len(data):,} of its {size:,} bytes")
        return data


@dataclass(frozen=True)
class Organized:
    """What 01_reorganize.py wrote: the class tree, the splits, a hash of the manifest, the px that
    photos were shrunk to.
    """

    root: Path
    tree: ClassTree
    splits: dict[str, Split]
    manifest_hash: str
    long_side: int

    @property
    def train_sizes(self) -> np.ndarray:
        """Pictures per class of the train split, int64 (classes,)."""
        return np.bincount(self.splits["train"].class_idx, minlength=self.tree.num_classes)

    @property
    def class_sizes(self) -> np.ndarray:
        """Pictures per class over all splits, int64 (classes,): the size by which a class is called
        rare.
        """
        return sum(
            np.bincount(split.class_idx, minlength=self.tree.num_classes)
            for split in self.splits.values()
        )


def load_organized(root: Path) -> Organized:
    """Read data/organized/, whether its pictures are files or in shards.

    Args:
        root: the folder that 01_reorganize.py wrote.

    Returns:
        the index of all splits; rows of the holdouts are left out.

    Raises:
        SystemExit: where the folder, its manifest or its class index is missing or does not fit
            together.
    """
    manifest, index = root / "manifest.csv", root / "species_index.json"
    if not manifest.is_file() or not index.is_file():
        fail(
            f"{root} is not an organized data set (no {manifest.name} or {index.name}). Run "
            f"01_reorganize.py first, or give "
            "its folder with --data."
        )
    try:
        tree = ClassTree.from_json(json.loads(index.read_text()))
    except (ValueError, KeyError) as error:
        fail(f"{index} cannot be read ({error}). Run 01_reorganize.py again.")
    splits = {
        name: Split(root, **columns) for name, columns in read_manifest(manifest, tree).items()
    }
    for name in ("train", "val"):
        if not len(splits[name]):
            fail(f"{manifest} has no picture in the {name} split.")
    made_of = root / "build_info.json"
    long_side = json.loads(made_of.read_text())["long_side"] if made_of.is_file() else 512
    return Organized(root, tree, splits, file_sha256(manifest), long_side)


# endregion

# region views


class TrainViews(Dataset[tuple[torch.Tensor, int]]):
    """Augmented views: item (epoch, position, i) -> (uint8 (size, size, 3), class index).

    The draws are a function of (seed, epoch, position), so that neither workers nor a restart
    change them.
    """

    def __init__(self, split: Split, recipe: Recipe, seed: int) -> None:
        self.split, self.recipe, self.seed = split, recipe, seed

    def __getitem__(self, item: tuple[int, int, int]) -> tuple[torch.Tensor, int]:
        epoch, position, i = item
        # a file that broke after 01 checked it must not end an epoch: take the next picture
        for j in range(i, i + 8):
            j %= len(self.split)
            rng = np.random.default_rng([self.seed, epoch, position])
            try:
                view = train_view(
                    self.split.read(j),
                    int(self.split.width[j]),
                    int(self.split.height[j]),
                    self.recipe,
                    rng,
                )
                return torch.from_numpy(view), int(self.split.class_idx[j])
            except (OSError, ValueError, cv2.error) as error:
                where = f"{self.split.path(j)}" + (
                    f" at byte {self.split.offset[j]}" if self.split.offset[j] >= 0 else ""
                )
                warn(
                    f"{where} cannot be read ({error}); the next picture stands in for it. Run "
                    f"01_reorganize.py again."
                )
        raise RuntimeError(
            f"eight pictures in a row cannot be read, the last {where}: is {self.split.root} "
            f"still complete?"
        )


class EvalViews(Dataset[tuple[torch.Tensor, int]]):
    """Pictures as the served model sees them: item i -> (uint8 (size, size, 3), class index)."""

    def __init__(self, split: Split, size: int) -> None:
        self.split, self.size = split, size

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        rgb = images.resize_to_model(images.read_rgb(self.split.read(i), min_side=1), self.size)
        return torch.from_numpy(rgb), int(self.split.class_idx[i])


# endregion

# region loaders


class EpochSampler(Sampler[list[tuple[int, int, int]]]):
    """Batches of (epoch, position, picture), epoch after epoch, so that loaders work on over its
    end; the order is a function of (seed, epoch), resumable at any step (`start`).

    Args:
        weights: float (N,) sampling weights, drawn with replacement; None shuffles, each picture
            once.
        count: pictures in the split.
        batch_size: pictures per batch; the last partial batch is dropped, unless it is the only
            one.
        seed: of the run.
        world: processes that share each batch; this one's items are followed by the pictures they
            are mixed with.
        partners: (epoch, step, size of the batch) -> int (size,), with which row each is mixed, or
            None.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        weights: np.ndarray | None = None,
        world: World = SINGLE_PROCESS,
        partners: Callable[[int, int, int], np.ndarray | None] | None = None,
    ) -> None:
        self.count, self.batch_size, self.seed, self.weights, self.world, self.partners = (
            count,
            batch_size,
            seed,
            weights,
            world,
            partners,
        )
        self.epochs, self.first_step = range(1), 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        return max(1, self.count // self.batch_size)

    def start(self, epochs: range, step: int = 0) -> None:
        """Choose the epochs, and the step of the first with which to begin."""
        self.epochs, self.first_step = epochs, step

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for epoch in self.epochs:
            yield from self._epoch(epoch, self.first_step if epoch == self.epochs.start else 0)

    def _epoch(self, epoch: int, first_step: int) -> Iterator[list[tuple[int, int, int]]]:
        rng = np.random.default_rng([self.seed, epoch])
        if self.weights is None:
            order = rng.permutation(self.count)
        else:
            order = rng.choice(self.count, self.count, p=self.weights / self.weights.sum())
        for step in range(first_step, len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            items = [(epoch, step * self.batch_size + k, int(i)) for k, i in enumerate(chosen)]
            if self.world.size > 1:
                share = self.world.share(len(items))
                partner = self.partners(epoch, step, len(items)) if self.partners else None
                items = items[share] + (
                    [] if partner is None else [items[k] for k in partner[share]]
                )
            yield items


def rare_weights(split: Split, class_sizes: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Sampling weights of phase B1: 1, `rare_weight` or `very_rare_weight` by the size of the
    picture's class.

    Returns:
        float64 (N,).
    """
    by_class = np.where(
        class_sizes < recipe.very_rare_below,
        recipe.very_rare_weight,
        np.where(class_sizes < recipe.rare_below, recipe.rare_weight, 1.0),
    )
    return by_class[split.class_idx]


def balanced_weights(classes: np.ndarray) -> np.ndarray:
    """Sampling weights with which every class comes as often as any other: float64 (N,); `classes`
    int (N,), of each picture.
    """
    return 1.0 / np.bincount(classes)[classes]


def boost_weights(split: Split, class_sizes: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Sampling weights of phase B2: those of B1, raised so that rare classes fill at least
    `boost_share` of an epoch.

    Returns:
        float64 (N,).
    """
    weights = rare_weights(split, class_sizes, recipe)
    rare = (class_sizes < recipe.rare_below)[split.class_idx]
    share = weights[rare].sum() / weights.sum()
    if 0 < share < recipe.boost_share < 1:
        weights = np.where(
            rare,
            weights * recipe.boost_share / share,
            weights * (1 - recipe.boost_share) / (1 - share),
        )
    return weights


def phase_sampler(
    phase: Phase, data: Organized, recipe: Recipe, seed: int, world: World
) -> EpochSampler:
    """The order in which a phase sees the train split, by its way of sampling."""
    split = data.splits["train"]
    weigh = {"rare": rare_weights, "boost": boost_weights}.get(phase.sampling)
    weights = weigh(split, data.class_sizes, recipe) if weigh else None
    if phase.sampling == "balanced":  # over what the phase learns
        flat = recipe.classes == "flat"
        targets = split.class_idx if flat else data.tree.class_species[split.class_idx]
        weights = balanced_weights(targets)
    partners = partial(mix_partners, recipe, seed)
    return EpochSampler(len(split), recipe.batch_size, seed, weights, world, partners)


def mix_partners(recipe: Recipe, seed: int, epoch: int, step: int, count: int) -> np.ndarray | None:
    """With which row each row of a batch is mixed, int64 (count,), or None; the loaders of several
    processes must know before the step does.
    """
    rng = step_draws(seed, epoch, step)[1]
    mix = draw_mix(count, recipe.image_size, recipe, rng)
    return mix.partner.numpy() if mix.share < 1 else None


def make_loader(
    dataset: Dataset[Any],
    workers: int,
    *,
    sampler: Iterable[list[Any]] | None = None,
    batch_size: int = 64,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Make a loader: of the batches of items that `sampler` names, else in order and complete."""
    # a pool of OpenCV threads in this process would not survive the fork into a worker
    cv2.setNumThreads(1)
    if workers:  # where /dev/shm is full, this ends in a sentence, the loader's own in a traceback
        multiprocessing.Lock()
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        batch_size=batch_size if sampler is None else 1,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_quiet_worker,
        prefetch_factor=4 if workers else None,
    )


class Feed:
    """A loader's batches for as long as a phase lasts: its workers begin at once, read ahead over
    the end of an epoch, and end with `close`.
    """

    def __init__(self, loader: DataLoader[Any], batches: int) -> None:
        """Read batches; each iteration over the feed takes the next `batches` of them."""
        self.batches, self.iterator = batches, iter(loader)

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.iterator, self.batches)

    def close(self) -> None:
        """End the workers now; those of an iterator that is still alive when Python ends would be
        waited for, for five seconds each.
        """
        if end := getattr(self.iterator, "_shutdown_workers", None):  # none without workers
            end()


def default_workers(processes: int = 1) -> int:
    """Workers for each of so many processes on this machine: a share of the cores, at most 8."""
    return max(1, min(8, cores() // processes))


def _quiet_worker(_: int) -> None:
    cv2.setNumThreads(1)  # the workers are the parallelism; OpenCV's own threads would fight them
    torch.set_num_threads(1)
    # signals that stop a run may reach every process, but the run needs its workers until it has
    # saved, and ends them then
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))


# endregion
