"""Labels from a label file: what its rows say of a source's files, and the files of other splits
beside it.
"""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.console import fail, say, warn
from common.files import SEVERAL, match_paths, settle
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
SPLIT_COLUMNS = {"split", "subset", "partition", "set", "phase", "fold", "is_train", "is_test"}


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
        files: changed in place: label, cluster, given, notes, missing.
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
    mine = np.flatnonzero(files.origin == origin)
    paths = [files.path(i) for i in mine.tolist()]
    files.label[mine], files.given[mine] = -1, -1
    reads, rows = [], []
    for path, split, below in _tables(table, root):
        read = read_label_file(path, columns, (root,))
        reads.append(read)
        rows += _rows(read, _splits(read, split), paths, below, pattern)
        say(f"{path}: {read.note}")
    for row in rows:
        if row.picture < 0:
            which = "no such file" if row.picture != SEVERAL else "several files are called so"
            told = f"{row.where}: {which} in the source"
            files.missing.append((row.file, ", ".join(row.labels), "missing", told))
    if not any(row.picture >= 0 for row in rows):
        fail(
            f"{table}: not one row names a file of {root}, or one alone. The first looks for "
            f"{pattern.replace('{}', rows[0].file)}: say how with --path-pattern, e.g. "
            f"images/{{}}.jpg."
        )
    _take(files, mine, paths, rows, multi)
    _say_groups(reads, rows)


class _Row(NamedTuple):
    """What a row says of a picture: an index into the source's files, or below 0."""

    picture: int
    file: str
    labels: tuple[str, ...]
    group: str
    split: int
    where: str


def _rows(
    read: LabelFile, splits: Sequence[int], paths: Sequence[str], below: Path, pattern: str
) -> Iterator[_Row]:
    inside = [i for i, path in enumerate(paths) if path.startswith(f"{below}{os.sep}")]
    written = [pattern.replace("{}", file) for file in read.files]
    found = match_paths(written, [paths[i] for i in inside], (below, read.table.path.parent))
    group = read.table.cells.get(read.columns.get("group", ""), itertools.repeat(""))
    for number, (hit, file, labels, name, split) in enumerate(
        zip(found, read.files, read.labels, group, splits)  # noqa: B905
    ):
        name = "" if name.lower() in NO_GROUP else name
        picture = inside[hit] if hit >= 0 else hit
        yield _Row(picture, file, labels, name, split, read.table.where(number))


def _take(
    files: Files, mine: np.ndarray, paths: Sequence[str], rows: Sequence[_Row], multi: str
) -> None:
    """Write what rows say into the arrays of `files`."""
    origin = int(files.origin[mine[0]])
    numbers = {label: i for i, label in enumerate(files.labels)}
    start = int(files.cluster.max(initial=-1)) + 1
    groups: dict[str, int] = defaultdict(lambda: len(groups) + start)
    for row in rows:
        if row.picture >= 0 and not row.labels:
            told = ("no_class", f"{row.where}: the label is empty")
            files.notes.setdefault(int(mine[row.picture]), told)
    full = [row for row in rows if row.labels]
    said = [
        (
            r.picture,
            (" + ".join(r.labels), r.group, SPLITS[r.split] if r.split >= 0 else ""),
            r.where,
        )
        for r in full
    ]
    several = no_plant = 0
    for picture, number in settle(said, paths).items():
        row, i = full[number], int(mine[picture])
        files.notes.pop(i, None)
        last = row.labels[0].rpartition("/")[2].lower()
        if multi != "first" and (len(row.labels) > 1 or MIXED.fullmatch(last)):
            several += 1
            files.notes[i] = ("no_class", f"{row.where}: several labels: {', '.join(row.labels)}")
        elif NO_PLANT.fullmatch(last):
            no_plant += 1
            files.notes[i] = ("no_class", f"{row.where}: {row.labels[0]} names no plant")
        else:
            files.label[i] = numbers.setdefault(Label(origin, row.labels[0]), len(numbers))
            files.given[i] = row.split
            files.cluster[i] = groups[row.group] if row.group else -1
    there = files.label >= 0
    used, files.label[there] = np.unique(files.label[there], return_inverse=True)
    names = list(numbers)
    files.labels = [names[i] for i in used.tolist()]  # without this source's folder names
    found = sum(row.picture >= 0 for row in rows)
    say(f"  {found:,} rows have their file, {len(rows) - found:,} do not")
    if several:
        warn(
            f"{several:,} pictures have several labels and are left out. To take the first of "
            f"each, add --multi first."
        )
    if no_plant:
        warn(
            f"{no_plant:,} pictures are labelled as showing no plant and are left out. To use "
            f"them, put them into a folder of their own and give it as --not-plants."
        )


def _say_groups(reads: Sequence[LabelFile], rows: Sequence[_Row]) -> None:
    named = {row.group for row in rows} - {""}
    likely = [name for name in reads[0].table.cells if name.lower() in LOOK_LIKE_GROUPS]
    if "group" in reads[0].columns:
        alone = sum(not row.group for row in rows)
        say(f"  {len(named):,} groups; {alone:,} rows name none and stand for themselves")
    elif likely:
        warn(
            f"column {likely[0]} may tell which pictures belong together. If so, add --columns "
            f"group={likely[0]}, or the same place will stand in train and in test."
        )


def _splits(read: LabelFile, split: int) -> list[int]:
    """The split of each row, from a column or else as the table's own."""
    cells, told = read.table.cells, read.columns.get("split")
    column = told or next((name for name in cells if name.lower() in SPLIT_COLUMNS), None)
    if column is None:
        return [split] * len(read.files)
    words = {word: split_of(word) for word in dict.fromkeys(cells[column])}
    strange = [word or "(empty)" for word, number in words.items() if number < 0]
    if not strange:
        return [words[word] for word in cells[column]]
    lack = (
        f"{read.table.path.name}: column {column} holds words that tell no split: "
        f"{', '.join(strange[:12])}. Write train, val or test"
    )
    if told:
        fail(f"{lack}.")
    warn(f"{lack}, if it tells the split; it is not used.")
    return [split] * len(read.files)


def _tables(table: Path, root: Path) -> list[tuple[Path, int, Path]]:
    """The label files to read, the split of each (-1: none), and the folder that holds its files.

    `train/_classes.csv` has the same file in valid/ beside it; `train.csv` has `val.csv` beside it,
    where their first lines are equal.
    """
    table = table.absolute()
    if not table.is_file():
        return [(table, -1, root)]
    inside = root in table.parent.parents
    folders = table.parent.parent.iterdir() if inside else []
    own = [folder for folder in sorted(folders) if (folder / table.name).is_file()]
    found = [(folder / table.name, split_of(folder.name), folder) for folder in own]
    if split_of(table.parent.name) < 0:
        split, rest = _split_and_rest(table)
        first = _first_line(table)
        beside = [p for p in sorted(table.parent.iterdir()) if p.suffix == table.suffix != ".json"]
        found = [
            (path, _split_and_rest(path)[0], root)
            for path in beside
            if split >= 0 and _split_and_rest(path)[1] == rest and _first_line(path) == first
        ]
    found = [entry for entry in found if entry[1] >= 0]
    return found if len(found) > 1 else [(table, -1, root)]


def _split_and_rest(path: Path) -> tuple[int, str]:
    """The split that a word of a file's name tells, and the name without it."""
    words = re.split(r"([\W_]+)", path.stem.lower())
    at = [i for i, word in enumerate(words) if split_of(word) >= 0]
    if len(at) != 1:
        return -1, ""
    return split_of(words[at[0]]), "".join(words[: at[0]] + ["*"] + words[at[0] + 1 :])


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline(100_000)
