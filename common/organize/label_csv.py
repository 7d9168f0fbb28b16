"""Labels from a label file: what its rows say of a source's files, and the files of other splits
beside it.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.console import fail, say, warn
from common.files import ABSENT, SEVERAL, match_paths, settle
from common.labels import LabelFile, read_label_file
from common.organize.names.folders import split_of
from common.organize.sources import SPLITS, Files, Label

LOOK_LIKE_GROUPS = (
    "group",
    "site",
    "station",
    "location",
    "camera",
    "plant_id",
    "leaf_id",
    "sequence",
    "seq_id",
    "burst",
)
NO_GROUP = {"", "unknown", "none", "nan", "null", "n/a", "na", "-"}  # these name no common origin
NO_PLANT = re.compile(
    r"(not?|non|without)[\W_]*(an?[\W_]+)?(plants?|leaf|leaves)|"
    r"negatives?|backgrounds?|soil|nothing"
)
MIXED = re.compile(r"(multiple|several|mixed|multi)[\W_]*(diseases?|labels?|infections?|classes)?")
EXPORTED = ("_classes.csv", "_annotations.coco.json")
_UNLABELLED = -3  # in place of a picture
SPLIT_COLUMNS = {"split", "subset", "partition", "set", "phase", "fold", "is_train", "is_test"}


def find_table(root: Path) -> Path | None:
    """A label file as collections are exported with: in a source's folder or one of its splits."""
    tables = (
        path for name in EXPORTED for at in ("", "*/") for path in sorted(root.glob(at + name))
    )
    return next(tables, None)


def read_labels(
    files: Files,
    origin: int,
    table: Path,
    columns: Sequence[str],
    pattern: str,
    multi: str = "",
) -> None:
    """Take labels, groups and splits of one source's files from a label file; folder names then
    count for nothing.

    A row finds its file by `pattern` as `files.match_paths` does. Files of other splits beside the
    table are read with it; rows of a table in a split's folder mean files below that folder.

    Args:
        files: changed in place: label, cluster, dataset, given, notes, missing.
        origin: number of the source.
        table: the label file.
        columns: as `labels.read_label_file` takes them.
        pattern: path with {} where the value of the file column goes.
        multi: "first": of several labels of a picture the first counts; else it has none.

    Raises:
        SystemExit: where a table cannot be read, rows contradict each other, a split is not
            understood, or no row finds a file.
    """
    if pattern.count("{}") != 1:
        fail(
            f"--path-pattern {pattern!r} needs {{}} once, where the value of the file column goes."
        )
    root = files.sources[origin].root
    mine = np.flatnonzero(files.origin == origin).tolist()
    files.label[mine], files.given[mine] = -1, -1
    rows = _Rows()
    tables = _tables(table, root)
    reads = [read_label_file(path, columns, (root,)) for path, _, _ in tables]
    paths = files.paths(mine)
    for (path, split, below), read in zip(tables, reads, strict=True):
        say(f"{path}: {read.note}")
        inside = [i for i, path in enumerate(paths) if path.startswith(f"{below}{os.sep}")]
        written = read.files
        if pattern != "{}":
            written = [pattern.replace("{}", file) for file in written]
        found = match_paths(written, [paths[i] for i in inside], (below, path.parent))
        rows.add(read, [inside[hit] if hit >= 0 else hit for hit in found], _splits(read, split))
    lost = [row for row, picture in enumerate(rows.pictures) if picture in (ABSENT, SEVERAL)]
    for row in lost:
        which = "several files are called so" if rows.pictures[row] == SEVERAL else "no such file"
        told = f"{rows.where(row)}: {which} in the source"
        files.missing.append((rows.files[row], ", ".join(rows.said[row][:-3]), "missing", told))
    if len(lost) == len(rows.files):
        fail(
            f"{table}: not one row names a file of {root}, or one alone. The first looks for "
            f"{pattern.replace('{}', rows.files[0])}: say how with --path-pattern, e.g. "
            f"images/{{}}.jpg, or give the folder that its paths start from."
        )
    say(f"  {len(rows.files) - len(lost):,} rows have their file, {len(lost):,} do not")
    chosen = settle(rows.pictures, rows.said, rows.where, paths)
    for picture, row in rows.empty.items():
        if picture not in chosen:
            files.notes[mine[picture]] = ("no_class", f"{rows.where(row)}: the label is empty")
    _take(files, mine, chosen, rows, multi)
    _say_groups(read, rows)


class _Rows:
    """The rows of all tables: the picture that each means, below 0 where it means none or gives it
    no label, and what it says of it: its labels, its source, its group, its split. empty: {picture:
    row without a label}.
    """

    def __init__(self) -> None:
        self.reads: list[LabelFile] = []
        self.files: list[str] = []
        self.pictures: list[int] = []
        self.said: list[tuple[str, ...]] = []
        self.empty: dict[int, int] = {}
        self._known: dict[tuple[str, ...], tuple[str, ...]] = {}  # one object for what is equal

    def add(self, read: LabelFile, pictures: Sequence[int], splits: Sequence[str]) -> None:
        sources, groups = (
            read.table.cells.get(read.columns.get(use, ""), [""] * len(pictures))
            for use in ("source", "group")
        )
        for picture, labels, *origin, split in zip(
            pictures, read.labels, sources, groups, splits, strict=True
        ):
            if picture >= 0 and not labels:
                self.empty.setdefault(picture, len(self.said))
                picture = _UNLABELLED
            self.pictures.append(picture)
            origin = ["" if name.lower() in NO_GROUP else name for name in origin]
            said = (*labels, *origin, split)
            self.said.append(self._known.setdefault(said, said))
        self.reads.append(read)
        self.files += read.files

    def where(self, row: int) -> str:
        for read in self.reads:
            if row < len(read.files):
                break
            row -= len(read.files)
        return read.table.where(row)


def _take(
    files: Files, mine: Sequence[int], chosen: dict[int, int], rows: _Rows, multi: str
) -> None:
    """Write what the row chosen for each picture says into the arrays of `files`."""
    origin = int(files.origin[mine[0]])
    kinds = {said: i for i, said in enumerate(dict.fromkeys(rows.said[r] for r in chosen.values()))}
    kind = [kinds[rows.said[row]] for row in chosen.values()]
    label, cluster, given, dataset = np.full((4, len(kinds)), -1)
    numbers = {label: i for i, label in enumerate(files.labels)}
    first_group = int(files.cluster.max(initial=-1)) + 1
    groups: dict[str, int] = {}
    datasets = {name: i for i, name in enumerate(files.datasets)}
    several: dict[int, str] = {}
    no_plant: dict[int, str] = {}
    for k, (*labels, source, group, split) in enumerate(kinds):
        given[k] = SPLITS.index(split) if split else -1
        dataset[k] = datasets.setdefault(source, len(datasets)) if source else origin
        last = labels[0].rpartition("/")[2].lower()
        if multi != "first" and (len(labels) > 1 or MIXED.fullmatch(last)):
            several[k] = f"several labels: {', '.join(labels)}"
        elif NO_PLANT.fullmatch(last):
            no_plant[k] = f"{labels[0]} names no plant"
        else:
            label[k] = numbers.setdefault(Label(origin, labels[0]), len(numbers))
            cluster[k] = first_group + groups.setdefault(group, len(groups)) if group else -1
    at = np.array(mine)[list(chosen)]
    files.given[at], files.label[at], files.cluster[at] = given[kind], label[kind], cluster[kind]
    files.dataset[at], files.datasets = dataset[kind], list(datasets)
    for i, row, k in zip(at.tolist(), chosen.values(), kind, strict=True):
        if told := several.get(k) or no_plant.get(k):
            files.notes[i] = ("no_class", f"{rows.where(row)}: {told}")
    there = files.label >= 0
    used, files.label[there] = np.unique(files.label[there], return_inverse=True)
    names = list(numbers)
    files.labels = [names[i] for i in used.tolist()]  # without this source's folder names
    if count := sum(k in several for k in kind):
        warn(
            f"{count:,} pictures have several labels and are left out. To take the first of "
            f"each, add --multi first."
        )
    if count := sum(k in no_plant for k in kind):
        warn(
            f"{count:,} pictures are labelled as showing no plant and are left out. To use "
            f"them, put them into a folder of their own and give it as --not-plants."
        )


def _say_groups(read: LabelFile, rows: _Rows) -> None:
    likely = [name for name in read.table.cells if name.lower() in LOOK_LIKE_GROUPS]
    if "group" in read.columns:
        groups = [said[-2] for said in rows.said]
        named, alone = len(set(groups) - {""}), groups.count("")
        say(f"  {named:,} groups; {alone:,} rows name none and stand for themselves")
    elif likely:
        warn(
            f"column {likely[0]} may tell which pictures belong together. If so, add --columns "
            f"group={likely[0]}, or the same place will stand in train and in test."
        )


def _splits(read: LabelFile, split: int) -> list[str]:
    """The split of each row, or "": from a column, else the table's own."""
    own = [SPLITS[split] if split >= 0 else ""] * len(read.files)
    cells, told = read.table.cells, read.columns.get("split")
    column = told or next((name for name in cells if name.lower() in SPLIT_COLUMNS), None)
    if column is None:
        return own
    words = {word: split_of(word) for word in dict.fromkeys(cells[column])}
    strange = [word or "(empty)" for word, number in words.items() if number < 0]
    if not strange:
        return [SPLITS[words[word]] for word in cells[column]]
    lack = (
        f"{read.table.path.name}: column {column} holds words that tell no split: "
        f"{', '.join(strange[:12])}. Write train, val or test"
    )
    if told:
        fail(f"{lack}.")
    warn(f"{lack}, if it tells the split; it is not used.")
    return own


def _tables(table: Path, root: Path) -> list[tuple[Path, int, Path]]:
    """The label files to read, the split of each (-1: none), and the folder that holds its files.

    `train/_classes.csv` has the same file in valid/ beside it, and `train.csv` has `val.csv` beside
    it; the first lines of tables must be equal.
    """
    table = table.absolute()
    if not table.is_file():
        return [(table, -1, root)]
    first, split = _first_line(table), split_of(table.parent.name)
    if split >= 0 and root in table.parent.parents:
        beside = [folder / table.name for folder in sorted(table.parent.parent.iterdir())]
        found = [(path, split_of(path.parent.name), path.parent) for path in beside]
    else:
        split, rest = _split_and_rest(table)
        names = ((path, *_split_and_rest(path)) for path in sorted(table.parent.iterdir()))
        found = [(path, number, root) for path, number, name in names if name == rest and first]
    found = [(path, *more) for path, *more in found if more[0] >= 0 and _first_line(path) == first]
    return found if split >= 0 and len(found) > 1 else [(table, -1, root)]


def _split_and_rest(path: Path) -> tuple[int, str]:
    """The split that a word of a file's name tells, and the name without it."""
    words = re.split(r"([\W_]+)", path.stem.lower())
    at = [i for i, word in enumerate(words) if split_of(word) >= 0]
    if len(at) != 1:
        return -1, ""
    words[at[0]], split = "*", split_of(words[at[0]])
    return split, "".join(words) + path.suffix.lower()


def _first_line(path: Path) -> bytes | None:
    """The header of a table; b"" of a JSON file, which has none; None where there is no file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return b"" if path.suffix.lower() == ".json" else file.readline(100_000)
