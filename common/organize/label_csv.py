"""Labels from a CSV file: which column holds the file or its id, the label, the group, the split,
by its usual names or as --columns says.
"""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common.console import fail, say, warn
from common.organize.names.folders import split_of
from common.organize.sources import Files, Label

# columns as public label files call them, the likelier first
USUAL = {
    "file": (
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "path",
        "image_path",
        "image",
        "image_id",
        "imageid",
        "img",
        "id",
    ),
    "label": ("label", "labels", "class", "class_name", "category", "category_name", "target"),
    "species": ("species", "plant", "crop", "host"),
    "disease": ("disease", "condition", "pathogen"),
}
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
NO_GROUP = {"", "unknown", "none", "nan", "null", "n/a", "na", "-"}  # values of no group


def read_labels(
    files: Files, origin: int, table: Path, columns: Sequence[str], pattern: str
) -> None:
    """Take labels, groups and splits of one source's files from a CSV; its folder names are then
    ignored.

    A row finds its file by `pattern` below the source's folder, else by a file name or stem that
    only one file has.

    Args:
        files: changed in place: label, cluster, given, notes, missing.
        origin: number of the source.
        table: the CSV file, UTF-8; comma, semicolon or tab.
        columns: `file=NAME`, `label=NAME` (or `species=NAME` and `disease=NAME`), `group=NAME`,
            `split=NAME`.
        pattern: path with {} where the value of the file column goes.

    Raises:
        SystemExit: where the file or a column is missing, or no row finds a file.
    """
    header, rows = _open(table)
    chosen = _choose_columns(table, header, columns)
    if pattern.count("{}") != 1:
        fail(
            f"--path-pattern {pattern!r} needs {{}} once, where the value of column "
            f"{chosen['file']} goes."
        )
    find = _Finder(files, origin)
    mine = files.origin == origin
    files.label[mine], files.given[mine] = -1, -1
    numbers = {name: i for i, name in enumerate(files.labels)}
    first_group = int(files.cluster.max(initial=-1)) + 1
    groups: dict[str, int] = {}
    found = ungrouped = 0
    for line, row in rows:
        value, group, split = (row.get(chosen.get(c, ""), "") for c in ("file", "group", "split"))
        parts = (row[chosen[c]] for c in ("label", "species", "disease") if c in chosen)
        label, where = "/".join(parts).strip("/"), f"{table.name}, line {line}"
        i = find(pattern.replace("{}", value), value)
        if i is None:
            why = f"{where}: no such file in the source, or several"
            files.missing.append((value, label, "missing", why))
            continue
        found += 1
        if not label:
            files.notes.setdefault(i, ("no_class", f"{where}: the label is empty"))
            continue
        number = numbers.setdefault(Label(origin, label), len(numbers))
        if files.label[i] not in (-1, number):
            why = f"{table.name} calls it both {list(numbers)[files.label[i]].name} and {label}"
            files.notes[i] = ("label_conflict", why)
            continue
        files.label[i], files.given[i] = number, split_of(split)
        if group.lower() in NO_GROUP:
            ungrouped += 1
        else:
            files.cluster[i] = first_group + groups.setdefault(group, len(groups))
    if not found:
        first = pattern.replace("{}", files.missing[0][0] if files.missing else "?")
        fail(
            f"{table}: not one row names a file of {files.sources[origin].root}. The first looks "
            f"for {first}: say how with --path-pattern, e.g. images/{{}}.jpg."
        )
    labelled = files.label >= 0
    used, files.label[labelled] = np.unique(files.label[labelled], return_inverse=True)
    names = list(numbers)
    files.labels = [names[i] for i in used]  # without this source's folder names
    columns_used = ", ".join(f"{use} = {name}" for use, name in chosen.items())
    say(f"{table}: {columns_used}; {found:,} rows have their file, {len(files.missing):,} do not")
    if "group" in chosen:
        say(f"  {len(groups):,} groups; {ungrouped:,} rows name none and stand for themselves")
    elif likely := [name for name in header if name.lower() in LOOK_LIKE_GROUPS]:
        warn(
            f"column {likely[0]} may say which pictures belong together. If so, add --columns "
            f"group={likely[0]}, or the same place will stand in train and in test."
        )


class _Finder:
    """Finds a source's file by its path below the source, else by a name or stem that is unique."""

    def __init__(self, files: Files, origin: int) -> None:
        self.root = os.path.normpath(files.sources[origin].root)
        self.paths: dict[str, int] = {}
        self.names: dict[str, int] = {}
        for i in (files.origin == origin).nonzero()[0].tolist():
            name = files.name(i)
            self.paths[files.path(i)] = i
            for short in {name, os.path.splitext(name)[0]}:
                self.names[short] = -1 if short in self.names else i

    def __call__(self, path: str, value: str) -> int | None:
        i = self.paths.get(os.path.normpath(os.path.join(self.root, path)))
        if i is None:
            i = self.names.get(os.path.basename(value))
        return None if i == -1 else i


def _open(table: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    if not table.is_file():
        fail(f"--labels: there is no file {table}.")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        fail(
            f"--labels {table} is not UTF-8 text ({error.reason} at byte {error.start}). Save it "
            f"as UTF-8 CSV."
        )
    mark = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, restval="")
    header = [name for name in reader.fieldnames or [] if name]
    if not header:
        fail(f"--labels {table} is empty; it needs a header row and a row per picture.")
    rows = (
        (reader.line_num, {k: (v or "").strip() for k, v in row.items() if k}) for row in reader
    )
    return header, rows


def _choose_columns(table: Path, header: list[str], columns: Sequence[str]) -> dict[str, str]:
    low = {name.lower().strip(): name for name in header}
    chosen: dict[str, str] = {}
    for text in columns:
        use, _, name = text.partition("=")
        if use not in ("file", "label", "species", "disease", "group", "split"):
            fail(
                f"--columns {text}: write file=NAME, label=NAME (or species=NAME disease=NAME), "
                f"group=NAME or split=NAME."
            )
        if name not in header:
            fail(f"--columns {text}: {table} has no column {name!r}; it has {', '.join(header)}.")
        chosen[use] = name
    usual = {
        use: next((low[name] for name in names if name in low), None)
        for use, names in USUAL.items()
    }
    if "file" not in chosen and usual["file"]:
        chosen["file"] = usual["file"]
    if not {"label", "species", "disease"} & set(chosen):
        uses = (
            ("species", "disease")
            if usual["species"] and usual["disease"] or not usual["label"]
            else ("label",)
        )
        chosen |= {use: usual[use] for use in uses if usual[use]}
    if "file" not in chosen or not {"label", "species", "disease"} & set(chosen):
        lacking = "file" if "file" not in chosen else "label"
        fail(
            f"{table}: which column holds the {lacking}? It has {', '.join(header)}. Say so: "
            f"--columns {lacking}=NAME."
        )
    order = ("file", "label", "species", "disease", "group", "split")
    return {use: chosen[use] for use in order if use in chosen}
