"""Which files the sources hold, as packed arrays: a million Python objects would cost gigabytes and
copies in every worker.
"""

import hashlib
import itertools
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.classes import slug
from common.console import fail, progress
from common.files import walk
from common.images import SUFFIXES
from common.labels import name_map
from common.organize.names.folders import class_path, splits, version_of

SPLITS = ("train", "val", "test")


class Label(NamedTuple):
    """A class name as found. name: the path of its folder below the source, without the folders
    that tell nothing, or the label that a file gives; source: number of the source.
    """

    source: int
    name: str


@dataclass(frozen=True)
class Source:
    """A folder to take pictures from. `name` identifies it in the manifest; `named`: a person gave
    it that name; `not_plants`: its pictures show no plant.
    """

    name: str
    root: Path
    not_plants: bool = False
    named: bool = False


@dataclass
class Files:
    """All files of all sources, N of them, in a fixed order.

    Attributes:
        sources: where they come from.
        folders: absolute paths of the folders that hold them.
        labels: class names as found; a file's folder or its rows in a label file may give it one.
        folder, label, origin: int32 (N,), indices into `folders`, `labels` (-1: none) and
            `sources`.
        given: int8 (N,), split that the source puts the file in, an index into SPLITS, or -1.
        version: int8 (N,), which version of its leaf the file's folder names, an index into
            VERSIONS of `names.folders`, or -1.
        cluster: int32 (N,), number of its value in the group column of a labels CSV, or -1.
        datasets: names of sources: those of `sources`, then values of the source column of a labels
            CSV.
        dataset: int32 (N,), index into `datasets`.
        held_out: bool (N,), files of a source that --holdout-source names.
        arena, ends: uint8 bytes of all file names, int64 (N,) where each ends.
        size, mtime_ns: int64 (N,); size is -1 where it is no regular file (a broken link, a pipe).
        notes: what is wrong with a file's rows in a labels CSV: {file: (reason, detail)}.
        missing: rows of labels CSVs whose file is not there, as rows of rejected.csv.
    """

    sources: Sequence[Source]
    folders: list[str]
    labels: list[Label]
    folder: np.ndarray
    label: np.ndarray
    origin: np.ndarray
    given: np.ndarray
    version: np.ndarray
    cluster: np.ndarray
    datasets: list[str]
    dataset: np.ndarray
    held_out: np.ndarray
    arena: np.ndarray
    ends: np.ndarray
    size: np.ndarray
    mtime_ns: np.ndarray
    notes: dict[int, tuple[str, str]] = field(default_factory=dict)
    missing: list[tuple[str, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.folder)

    def name(self, i: int) -> str:
        """File name of file i."""
        start = int(self.ends[i - 1]) if i else 0
        return os.fsdecode(self.arena[start : self.ends[i]].tobytes())

    def path(self, i: int) -> str:
        """Absolute path of file i."""
        return os.path.join(self.folders[self.folder[i]], self.name(i))

    def paths(self, which: Iterable[int]) -> list[str]:
        """Absolute paths of many files."""
        names, ends = self.arena.tobytes(), [*self.ends.tolist(), 0]
        folders, folder = [os.path.join(f, "") for f in self.folders], self.folder.tolist()
        return [folders[folder[i]] + os.fsdecode(names[ends[i - 1] : ends[i]]) for i in which]

    def label_of(self, i: int) -> str:
        """Class name of file i as found, "" where it has none."""
        return self.labels[self.label[i]].name if self.label[i] >= 0 else ""

    def is_picture(self, i: int) -> bool:
        """Whether file i is a picture by its ending."""
        return os.path.splitext(self.name(i))[1].lower() in SUFFIXES

    def parts(self, folder: int, origin: int) -> tuple[str, ...]:
        """Names of the folders from a source down to one of `folders`."""
        below = os.path.relpath(self.folders[folder], self.sources[origin].root)
        return () if below == os.curdir else tuple(below.split(os.sep))

    def kind_of(self, i: int) -> str:
        """Which kind of thing file i of no plant shows: the folder of its source that holds it; ""
        where it lies in none.
        """
        below = os.path.relpath(self.folders[self.folder[i]], self.sources[self.origin[i]].root)
        return "" if below == os.curdir else slug(below.split(os.sep)[0])

    def is_not_plant(self) -> np.ndarray:
        """bool (N,): files of sources that show no plant."""
        return np.array([s.not_plants for s in self.sources], bool)[self.origin]

    def keys(self, *settings: object) -> np.ndarray:
        """Name each file's state: path, size, time and `settings`, hashed.

        Returns:
            uint64 (N, 2).
        """
        prefix = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        out = bytearray()
        for i in range(len(self)):
            digest = prefix.copy()
            digest.update(os.fsencode(f"{self.path(i)}\0{self.size[i]}\0{self.mtime_ns[i]}"))
            out += digest.digest()
        return np.frombuffer(bytes(out), np.uint64).reshape(-1, 2)


def list_files(sources: Sequence[Source]) -> Files:
    """List the files of all sources once; links are followed, but no folder is entered twice;
    system files are not counted.

    A folder with pictures of its own is a class. Folders whose names say train, validation set,
    test ... tell the split that the source gives. Numbers take their names from a JSON file in the
    source, where it has them all.

    Raises:
        SystemExit: where a folder cannot be opened: leaving it out in silence would change the
            data.
    """
    kinds = dict(folder="i", origin="i", ends="q", size="q", mtime_ns="q")
    arrays = {name: array(kind) for name, kind in kinds.items()}  # no Python object per file
    folders: list[str] = []
    arena = bytearray()
    classes: list[dict[tuple[str, ...], int]] = [{} for _ in sources]  # path -> folder
    with progress([], None, "listing", "folder") as bar:
        for number, source in enumerate(sources):
            for folder, parts, entries in walk(source.root):
                if entries:
                    folders.append(folder)
                if parts and any(os.path.splitext(e.name)[1].lower() in SUFFIXES for e in entries):
                    classes[number][parts] = len(folders) - 1
                for entry in entries:
                    stat = entry.stat() if entry.is_file() else None
                    arena += os.fsencode(entry.name)
                    size, mtime_ns = (stat.st_size, stat.st_mtime_ns) if stat else (-1, 0)
                    row = (len(folders) - 1, number, len(arena), size, mtime_ns)
                    for column, value in zip(arrays.values(), row, strict=True):
                        column.append(value)
                bar.update()
    labels: dict[Label, int] = {}
    label_of = np.full(len(folders) + 1, -1, np.int32)
    split_of = np.full(len(folders) + 1, -1, np.int8)
    versions = split_of.copy()
    for number, source in enumerate(sources):
        found = splits(classes[number])
        ends = {path[-1] for _, path in found.values() if path}
        numbered = all(map(str.isdigit, ends)) and not source.not_plants
        names = (numbered and name_map(source.root, ends)) or {}
        for parts, (split, path) in found.items():
            folder = classes[number][parts]
            split_of[folder], versions[folder] = split, version_of(parts)
            if path and not source.not_plants:
                path = (*path[:-1], names.get(path[-1], path[-1]))
                label_of[folder] = labels.setdefault(Label(number, class_path(path)), len(labels))
    folder = np.array(arrays["folder"])
    return Files(
        sources=sources,
        folders=folders,
        labels=list(labels),
        label=label_of[folder],
        given=split_of[folder],
        version=versions[folder],
        arena=np.frombuffer(bytes(arena), np.uint8),
        cluster=np.full(len(folder), -1, np.int32),
        datasets=[source.name for source in sources],
        dataset=np.array(arrays["origin"]),
        held_out=np.zeros(len(folder), bool),
        **{name: np.array(values) for name, values in arrays.items()},
    )


def parse_sources(texts: Sequence[str], not_plants: Path | None) -> list[Source]:
    """Read `PATH` and `NAME=PATH`; names default to the folder's and are made unique.

    Raises:
        SystemExit: where a folder is missing, is a file, or one name is given twice.
    """
    sources: list[Source] = []
    for text in texts:
        name, _, path = text.partition("=")
        if not path or Path(text).exists():  # a folder may have "=" in its name
            name, path = "", text
        root = Path(path).expanduser().absolute()  # the same files, however their folder is written
        _require_folder(root)
        taken = {s.name for s in sources}
        if name and name in taken:
            fail(f"two sources are called {name}. Give each its own name: NAME=PATH.")
        base = name or root.name or "source"
        names = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
        free = next(n for n in names if n not in taken)
        sources.append(Source(free, root, named=bool(name)))
    if not_plants is not None:
        _require_folder(not_plants.absolute())
        sources.append(Source("not_plants", not_plants.absolute(), not_plants=True))
    return sources


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        fail(
            f"there is no folder {root}."
            if not root.exists()
            else f"{root} is a file; give the folder above it."
        )
