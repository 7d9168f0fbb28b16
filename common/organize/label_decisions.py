"""What a person decided about single pictures (`--labels-review`): another class, keep, or drop."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.console import fail, say
from common.files import file_sha256
from common.organize.deduplicate import Pair
from common.organize.sources import Files

KEEP, DROP = -1, -2
COLUMNS = ("picture", "given", "suggested", "confidence", "group", "decision", "sha256")


class Decision(NamedTuple):
    """One decided row: its file and line, its cells by column, and a class number, KEEP or DROP."""

    where: str
    row: dict[str, str]
    class_idx: int


def read_decisions(path: Path | None, classes: Sequence[Pair]) -> list[Decision]:
    """Read an edited labels_review.csv; rows without a decision say nothing.

    A picture is known by its `sha256`, wherever its file lies; where that cell is empty, by the
    file that `picture` names.

    Args:
        path: comma, semicolon or tab, UTF-8, with the columns `decision` and `sha256` or `picture`;
            None: no decisions.
        classes: (species, disease) in the order of their numbers.

    Raises:
        SystemExit: with the line, where a row cannot be read, a class is unknown or two rows
            contradict each other; also where there is no file or no decision at all.
    """
    if path is None:
        return []
    if not path.is_file():
        fail(f"--labels-review: there is no file {path}.")
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    mark = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    # a class without diseases is named once
    numbers = {"/".join(dict.fromkeys(pair)): i for i, pair in enumerate(classes)}
    numbers |= {"keep": KEEP, "drop": DROP}
    found: dict[str, Decision] = {}
    try:
        titles = set(reader.fieldnames or ())
        if "decision" not in titles or not titles & {"sha256", "picture"}:
            fail(f"{path} needs the columns decision and sha256 (or picture) in its first line.")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                fail(f"{where}: it has not as many cells as the first line.")
            name = "/".join(dict.fromkeys(row["decision"].strip().lower().split("/")))
            if not name:
                continue
            if name not in numbers:
                near = "".join(f" Did you mean {n}?" for n in get_close_matches(name, numbers, 1))
                fail(f"{where}: {name} is no class, nor keep or drop.{near}")
            row["sha256"] = _sha256(row, where)
            decision = Decision(where, row, numbers[name])
            first = found.setdefault(row["sha256"], decision)
            if first.class_idx != decision.class_idx:
                fail(f"{where}: {first.where} decides otherwise about the same picture.")
    except csv.Error as error:
        fail(f"{path}, line {reader.reader.line_num}, is no CSV: {error}.")
    if not found:
        fail(f"{path}: no row has a decision. Write a class, keep or drop into that column.")
    return list(found.values())


def _sha256(row: dict[str, str], where: str) -> str:
    known = row.get("sha256", "").strip().lower()
    if re.fullmatch("[0-9a-f]{64}", known):
        return known
    try:
        return file_sha256(row["picture"])
    except (OSError, KeyError, ValueError):
        fail(f"{where}: neither sha256 nor picture names a picture.")


def apply_decisions(
    decisions: Sequence[Decision], files: Files, facts: np.ndarray, class_idx: np.ndarray
) -> None:
    """Give each decided picture its class, and so every copy of it, under whichever label it lies.

    Args:
        decisions: of `read_decisions`.
        files, facts: N files and what they hold; dropped ones are noted in `files.notes`.
        class_idx: int (N,), changed in place.

    Raises:
        SystemExit: with the lines, where a picture is not among the files that have a label.
    """
    if not decisions:
        return
    wanted = np.array([int(d.row["sha256"][:16], 16) for d in decisions], np.uint64)
    ids = np.ascontiguousarray(facts["sha256"][:, :8]).view(">u8")[:, 0]
    hits = np.flatnonzero(np.isin(ids, wanted) & (facts["reason"] == 0) & (files.label >= 0))
    pixels = {facts["sha256"][i].tobytes().hex(): facts["pixels"][i].tobytes() for i in hits}
    copies = defaultdict(list)
    same = np.isin(facts["pixels"][:, 0], facts["pixels"][hits, 0]) & (files.label >= 0)
    for i in np.flatnonzero(same).tolist():
        copies[facts["pixels"][i].tobytes()].append(i)
    lost = [d.where for d in decisions if d.row["sha256"] not in pixels]
    if lost:
        fail(
            f"{'; '.join(lost[:5])}{' ...' if len(lost) > 5 else ''}: no source holds that picture "
            f"under a label ({len(lost)} such lines). Take these lines out, or give their source."
        )
    for d in decisions:
        for i in copies[pixels[d.row["sha256"]]]:
            if d.class_idx >= 0:
                class_idx[i] = d.class_idx
            elif d.class_idx == DROP:
                files.notes[i] = ("dropped", d.where)
    kinds = [min(d.class_idx, 0) for d in decisions]
    say(
        f"labels review: {kinds.count(0):,} pictures have another class, {kinds.count(KEEP):,} "
        f"keep theirs, {kinds.count(DROP):,} are dropped"
    )


def decided_rows(decisions: Sequence[Decision]) -> Iterator[list[str]]:
    """Rows of COLUMNS as they were given, so that a later review leaves these pictures out."""
    return ([d.row.get(column, "") for column in COLUMNS] for d in decisions)
