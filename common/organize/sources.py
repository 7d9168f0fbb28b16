"""Which files the sources hold, as packed arrays: a million Python objects would cost gigabytes and
copies in every worker.
"""

import hashlib
import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.classes import slug
from common.console import fail, progress

SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {
    "train": 0,
    "training": 0,
    "val": 1,
    "valid": 1,
    "validation": 1,
    "test": 2,
    "testing": 2,
}
PLAIN_FOLDERS = {
    "images",
    "image",
    "imgs",
    "img",
    "data",
    "dataset",
    "photos",
    "pictures",
}  # hold classes, name none
JUNK = {".ds_store", "thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Source:
    """A folder to take pictures from. `name` identifies it in the manifest; `not_plants`:
    its pictures show no plant.
    """

    name: str
    root: Path
    not_plants: bool = False


@dataclass
class Files:
    """All files of all sources, N of them, in a fixed order.

    Attributes:
        sources: where they come from.
        folders: absolute paths of the folders that hold them.
        labels: class names as found; a file's name or its rows in a labels CSV may give it one.
        folder, label, origin: int32 (N,), indices into `folders`, `labels` (-1: none) and
            `sources`.
        given: int8 (N,), split that the source puts the file in, an index into SPLITS, or -1.
        cluster: int32 (N,), number of its value in the group column of a labels CSV, or -1.
        arena, ends: uint8 bytes of all file names, int64 (N,) where each ends.
        size, mtime_ns: int64 (N,); size is -1 where it is no regular file (a broken link, a pipe).
        notes: what is wrong with a file's rows in a labels CSV: {file: (reason, detail)}.
        missing: rows of labels CSVs whose file is not there, as rows of rejected.csv.
    """

    sources: Sequence[Source]
    folders: list[str]
    labels: list[str]
    folder: np.ndarray
    label: np.ndarray
    origin: np.ndarray
    given: np.ndarray
    cluster: np.ndarray
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

    def label_of(self, i: int) -> str:
        """Class name of file i as found, "" where it has none."""
        return self.labels[self.label[i]] if self.label[i] >= 0 else ""

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

    A class name is made of the last two folders above a file. Folders called train, valid, test ...
    tell the split that the source gives, and like those called images or data they are no class
    names.

    Raises:
        SystemExit: where a folder cannot be opened: leaving it out in silence would change the
            data.
    """
    kinds = dict(folder="i", label="i", origin="i", given="b", ends="q", size="q", mtime_ns="q")
    arrays = {name: array(kind) for name, kind in kinds.items()}  # no Python object per file
    folders: list[str] = []
    labels: dict[str, int] = {}
    arena = bytearray()
    with progress([], None, "listing", "folder") as bar:
        for number, source in enumerate(sources):
            for folder, parts, given, entries in _folders(source.root):
                label = -1
                if parts and not source.not_plants:
                    label = labels.setdefault("/".join(parts[-2:]), len(labels))
                if entries:
                    folders.append(folder)
                for entry in entries:
                    stat = entry.stat() if entry.is_file() else None
                    arena += os.fsencode(entry.name)
                    size, mtime_ns = (stat.st_size, stat.st_mtime_ns) if stat else (-1, 0)
                    row = (len(folders) - 1, label, number, given, len(arena), size, mtime_ns)
                    for column, value in zip(arrays.values(), row, strict=True):
                        column.append(value)
                bar.update()
    return Files(
        sources=sources,
        folders=folders,
        labels=list(labels),
        arena=np.frombuffer(bytes(arena), np.uint8),
        cluster=np.full(len(arrays["folder"]), -1, np.int32),
        **{name: np.array(values) for name, values in arrays.items()},
    )


def _folders(root: Path) -> Iterator[tuple[str, tuple[str, ...], int, list[os.DirEntry[str]]]]:
    """Every folder below `root` with the names above its files, its split, and its files in
    order.
    """
    stack: list[tuple[str, tuple[str, ...], int]] = [(str(root), (), -1)]
    entered = set()
    while stack:
        folder, parts, given = stack.pop()
        real = os.path.realpath(folder)
        if real in entered:
            continue
        entered.add(real)
        try:
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda e: e.name)
        except OSError as error:
            fail(
                f"the folder {folder} cannot be opened ({error.strerror}). Mend its permissions "
                f"or take it out of the source."
            )
        yield (
            folder,
            parts,
            given,
            [
                e
                for e in ordered
                if not e.is_dir() and e.name.lower() not in JUNK and not e.name.startswith("._")
            ],
        )
        for entry in reversed(ordered):
            if entry.is_dir() and not entry.name.startswith("."):
                low = entry.name.lower()
                inner = (
                    parts if low in SPLIT_FOLDERS or low in PLAIN_FOLDERS else (*parts, entry.name)
                )
                stack.append((entry.path, inner, SPLIT_FOLDERS.get(low, given)))


def parse_sources(texts: Sequence[str], not_plants: Path | None) -> list[Source]:
    """Read `PATH` and `NAME=PATH`; names default to the folder's and are made unique.

    Raises:
        SystemExit: where a folder is missing, is a file, or one name is given twice.
    """
    sources: list[Source] = []
    for text in texts:
        name, cut, path = text.partition("=")
        if not cut or Path(text).exists():  # a folder may have "=" in its name
            name, path = "", text
        root = Path(path).expanduser().absolute()  # the same files, however their folder is written
        _require_folder(root)
        taken = {s.name for s in sources}
        if name and name in taken:
            fail(f"two sources are called {name}. Give each its own name: NAME=PATH.")
        name = name or root.name or "source"
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        free = next(n for n in names if n not in taken)
        sources.append(Source(free, root))
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
