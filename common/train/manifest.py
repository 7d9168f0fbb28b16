"""manifest.csv as packed arrays: a million rows as Python objects would take gigabytes, in every
worker.
"""

import csv
from array import array
from collections.abc import Iterator
from itertools import islice
from operator import itemgetter
from pathlib import Path

import numpy as np

from common.classes import ClassTree
from common.console import fail

SPLITS = ("train", "val", "test")
# set aside to test the model on what it has not learned
HOLDOUTS = ("holdout_species", "holdout_diseases", "holdout_source", "holdout_copies")
COLUMNS = (
    "path",
    "species",
    "disease",
    "split",
    "width",
    "height",
    "offset",
    "size",
)  # what is read
ROW = np.dtype(
    [
        ("file", "i4"),
        ("offset", "i8"),
        ("size", "i8"),
        ("class_idx", "i4"),
        ("width", "i4"),
        ("height", "i4"),
    ]
)
AT_ONCE = 2048  # rows: enough for arrays to pay, few enough to stay in the cache


def read_manifest(manifest: Path, tree: ClassTree) -> dict[str, dict[str, np.ndarray]]:
    """Read manifest.csv.

    Args:
        manifest: the file; its rows are sorted by split, species, disease and id, for files and for
            shards alike.
        tree: the classes that rows may have.

    Returns:
        per split, for its N rows in the order of the file; rows of the holdouts are left out:
        arena: uint8, the bytes of all paths; ends: int64 (F,), where each path ends. A shard's path
            stands there once.
        file: int32 (N,), which path.
        offset, size: int64 (N,), where the JPEG begins in its shard and its bytes; offset -1: a
            file of its own.
        class_idx: int32 (N,), packed class index; width, height: int32 (N,), px.

    Raises:
        SystemExit: where a column is missing or a row does not fit, with its line.
    """
    with manifest.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.reader(file)
        try:
            header, line = next(reader, []), 1
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                fail(
                    f"{manifest} has no column `{missing[0]}`: another version wrote it. Run "
                    f"01_reorganize.py again."
                )
            packed = _Rows(tree, header)
            while rows := list(islice(reader, AT_ONCE)):
                try:
                    packed.add(rows)
                except (LookupError, ValueError, OverflowError):
                    _name_the_line(manifest, packed, rows, line)
                    raise
                line = reader.line_num
        except csv.Error as error:
            fail(f"{manifest}, line {reader.line_num}: {error}. Run 01_reorganize.py again.")
    return {name: part.columns() for name, part in packed.parts.items()}


def rows_of(manifest: Path, split: str) -> Iterator[dict[str, str]]:
    """Yield a split's rows with all their columns, in the order of its pictures."""
    with manifest.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield from (row for row in csv.DictReader(file) if row["split"] == split)


def _name_the_line(manifest: Path, packed: "_Rows", rows: list[list[str]], line: int) -> None:
    """Fail at the row that does not fit; `line` is the one before the first."""
    for row in rows:
        line += 1
        try:
            packed.add([row])
        except (LookupError, ValueError, OverflowError) as error:
            what = (
                f"{error.args[0]!r} is no class of species_index.json and no split"
                if isinstance(error, LookupError)
                else error
            )
            fail(f"{manifest}, line {line}: {what}. Run 01_reorganize.py again.")
        line += sum(cell.count("\n") for cell in row)


class _Rows:
    """Rows of all splits, packed as they come."""

    def __init__(self, tree: ClassTree, header: list[str]) -> None:
        self.width, self.pick = len(header), itemgetter(*map(header.index, COLUMNS))
        class_idx = {
            (s, d): tree.class_index(i, j)
            for i, s in enumerate(tree.species)
            for j, d in enumerate(tree.diseases[i])
        }
        self.parts = {name: _Part(class_idx) for name in SPLITS}

    def add(self, rows: list[list[str]]) -> None:
        """Add rows; raises KeyError, ValueError or OverflowError where one does not fit."""
        for row in rows:
            if len(row) != self.width:
                raise ValueError(f"{len(row)} columns, not {self.width}")
        picked = list(map(self.pick, rows))
        for split in dict.fromkeys(row[3] for row in picked):
            if split not in HOLDOUTS:
                self.parts[split].add([row for row in picked if row[3] == split])


class _Part:
    """Rows of one split."""

    def __init__(self, class_idx: dict[tuple[str, str], int]) -> None:
        self.class_idx = class_idx
        self.arena, self.ends = bytearray(), array("q")
        self.shards: dict[str, int] = {}
        self.rows = [np.zeros(0, ROW)]

    def add(self, rows: list[tuple[str, ...]]) -> None:
        paths, species, diseases, _, widths, heights, offsets, sizes = zip(*rows, strict=True)
        packed = np.empty(len(rows), ROW)
        packed["class_idx"] = [self.class_idx[pair] for pair in zip(species, diseases, strict=True)]
        packed["width"], packed["height"], packed["size"] = (
            list(map(int, widths)),
            list(map(int, heights)),
            list(map(int, sizes)),
        )
        packed["offset"] = [int(at) if at else -1 for at in offsets]
        if (
            min(packed[name].min() for name in ("width", "height", "size")) < 1
            or packed["offset"].min() < -1
        ):
            raise ValueError("a width, height, size or offset is out of range")
        packed["file"] = [
            self._number(path, bool(at)) for path, at in zip(paths, offsets, strict=True)
        ]
        self.rows.append(packed)

    def _number(self, path: str, is_shard: bool) -> int:
        """Number of a path; a shard's is given once."""
        number = self.shards.get(path) if is_shard else None
        if number is None:
            number = len(self.ends)
            self.arena += path.encode()
            self.ends.append(len(self.arena))
            if is_shard:
                self.shards[path] = number
        return number

    def columns(self) -> dict[str, np.ndarray]:
        rows = np.concatenate(self.rows)
        self.rows.clear()
        return {
            "arena": np.frombuffer(self.arena, np.uint8),
            "ends": np.array(self.ends),
            **{name: np.ascontiguousarray(rows[name]) for name in ROW.names},
        }
