"""Files that are written whole or not at all, their hashes, and which file a written path means."""

import contextlib
import csv
import hashlib
import os
import posixpath
import re
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.console import fail, warn
from common.images import SUFFIXES

ABSENT, SEVERAL = -1, -2  # in place of a file: a written path means none, or more than one
_SPLIT = re.compile("/(train|val|test)")


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, 64 hex digits. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file beside `path`, which takes its place when the `with` ends
    well; else it is removed.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner reads
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_rows(path: Path, titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file aside and rename it."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(titles)
        writer.writerows(rows)
    os.replace(aside, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file aside and rename it."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def match_paths(
    written: Sequence[str], paths: Sequence[str], bases: Sequence[Path | str] = ()
) -> list[int]:
    """Find the file that each written path means.

    A path that names a folder means only a file below that folder; a bare name or id only a file
    that is the only one called so. Windows' paths are read, too. Absolute paths of another machine
    lose the folders that are not here, the same number of them in every row. An ending may be
    missing or in other case.

    Args:
        written: a path per row.
        paths: absolute paths of the files.
        bases: folders that relative paths may start from.

    Returns:
        per row the index of a file, or `ABSENT` or `SEVERAL`.
    """
    rows = [_parts(text) for text in written]
    roots = ["/" + "/".join(_parts(os.path.abspath(base))[1]) for base in bases]
    finder = _Finder([parts for _, parts in rows], paths)
    found = [
        ABSENT if start else finder.find(parts, roots, parts[1:] or text.startswith("./"))
        for (start, parts), text in zip(rows, written, strict=True)
    ]
    far = [i for i, (start, _) in enumerate(rows) if start]
    for drop in range(max((len(rows[i][1]) for i in far), default=0)):
        tails = {i: rows[i][1][drop:] for i in far if len(rows[i][1]) > drop}
        hits = {i: finder.find(tail) for i, tail in tails.items()}
        if all(hit == ABSENT for hit in hits.values()):
            continue
        in_folders = any(hits[i] != ABSENT and len(tails[i]) > 1 for i in tails)
        flat = {rows[i][1][:drop] for i in tails if len(tails[i]) == 1}  # only names are left
        lost = {path for path in flat if in_folders or _elsewhere(path, paths)}
        for i, hit in hits.items():
            found[i] = ABSENT if rows[i][1][:-1] in lost and len(tails[i]) == 1 else hit
        if flat - lost:
            here = "/".join(min(flat - lost))
            warn(f"there is no folder {here} here; its files are found by their names alone.")
        break
    return found


def _elsewhere(folders: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether a folder is on this machine, or names a split where all files lie in others."""
    here = {match[0] for path in paths for match in _SPLIT.finditer(path.lower())}
    told = _SPLIT.match("/" + folders[-1].lower()) if folders else None
    return os.path.isdir("/" + "/".join(folders)) or bool(told and here - {told[0]})


def _parts(text: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a path is absolute, and its parts."""
    text = unicodedata.normalize("NFC", text.strip()).replace("\\", "/")
    text = re.sub(r"^([A-Za-z]:(?=/)|[A-Za-z][\w+.-]+:/(?=/))", "", text)
    start = text.startswith(("/", "~/"))
    return start, tuple(p for p in posixpath.normpath(text or ".").split("/") if p not in ("", "."))


class _Finder:
    """Files by the last two parts of their paths, of those that rows name."""

    def __init__(self, rows: Iterable[Sequence[str]], paths: Sequence[str]) -> None:
        wanted = {_low("/".join(parts[-n:])) for parts in rows for n in (1, 2)}
        self.paths = paths
        self.found: dict[str, list[int]] = defaultdict(list)
        for i, path in enumerate(paths):
            pair = _low("/".join(_slashed(path).rsplit("/", 2)[-2:]))
            for key in (pair, pair.rpartition("/")[2]):
                for end in {key, _stem(key)} & wanted:
                    self.found[end].append(i)

    def find(self, parts: Sequence[str], roots: Sequence[str] = (), direct: object = True) -> int:
        """Index of the file whose path ends in `parts`; `direct`: one right below `roots` wins."""
        names = [part for part in parts if part != ".."]
        hits = self.found.get(_low("/".join(names[-2:])), [])
        full = [posixpath.normpath(f"{root}/{'/'.join(parts)}") for root in roots if direct]
        for shape, end in ((str, str), (_low, _low), (_stem, str)):
            tail = end("/" + "/".join(names))
            ends = [i for i in hits if shape(_slashed(self.paths[i])).endswith(tail)]
            at = {end(path) for path in full}
            ends = [i for i in ends if shape(_slashed(self.paths[i])) in at] or ends
            if ends:
                return ends[0] if len(ends) == 1 else SEVERAL
        return ABSENT


def _slashed(path: str) -> str:
    path = path if path.isascii() else unicodedata.normalize("NFC", path)
    return path.replace(os.sep, "/")


def _low(path: str) -> str:
    """A path with the ending of a picture in lower case."""
    stem, end = os.path.splitext(path)
    return stem + end.lower() if end.lower() in SUFFIXES else path


def _stem(path: str) -> str:
    """A path without the ending of a picture."""
    stem, end = os.path.splitext(path)
    return stem if end.lower() in SUFFIXES else path


def settle(
    rows: Iterable[tuple[int, Any, str]], paths: Sequence[str], flag: str = "--labels"
) -> dict[int, Any]:
    """Put together what rows say of each picture.

    Args:
        rows: (picture, what is said of it, where the row stands).
        paths: of the pictures.

    Raises:
        SystemExit: where two rows say different things of one picture.
    """
    found: dict[int, tuple[Any, str]] = {}
    for picture, said, where in rows:
        before, there = found.setdefault(picture, (said, where))
        if before != said:
            fail(
                f"{flag}: {there} and {where} contradict each other about {paths[picture]}: "
                f"{before} and {said}. Keep one of them."
            )
    return {picture: said for picture, (said, _) in found.items()}
