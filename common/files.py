"""Files that are written whole or not at all, their hashes, and which file a written path means."""

import contextlib
import csv
import functools
import hashlib
import os
import posixpath
import re
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

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
    find = functools.cache(_Finder([parts for _, parts in rows], paths, roots).find)
    found = [
        ABSENT if start else find(parts, len(parts) > 1 or text.startswith("./"))
        for (start, parts), text in zip(rows, written, strict=True)
    ]
    far = [i for i, (start, _) in enumerate(rows) if start]
    folders = {rows[i][1][:-1] for i in far}
    for drop in range(max(map(len, folders), default=-1) + 1):
        hits = {i: find(rows[i][1][drop:]) for i in far if len(rows[i][1]) > drop}
        bare = {i for i in hits if len(rows[i][1]) == drop + 1}
        if bare and (len(folders) > 1 or _known_elsewhere(*folders, paths)):
            hits = {i: hit for i, hit in hits.items() if i not in bare}
            bare = set()
        if any(hit != ABSENT for hit in hits.values()):
            for i, hit in hits.items():
                found[i] = hit
            if bare:
                warn(f"the folder of {written[far[0]]} is not here: its names alone find files.")
            break
    return found


def _known_elsewhere(folder: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether a folder is on this machine, or names a split, as folders here do."""
    told = bool(folder) and _SPLIT.match("/" + folder[-1].lower())
    here = told and any(_SPLIT.search(path.lower()) for path in paths)
    return os.path.isdir("/" + "/".join(folder)) or bool(here)


def _parts(text: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a path is absolute, and its parts."""
    text = unicodedata.normalize("NFC", text.strip()).replace("\\", "/")
    text = re.sub(r"^([A-Za-z]:(?=/)|[A-Za-z][\w+.-]+:/(?=/))", "", text)
    start = text.startswith(("/", "~/"))
    return start, tuple(p for p in posixpath.normpath(text or ".").split("/") if p not in ("", "."))


class _Finder:
    """Files by the last two parts of their paths, of those that rows name."""

    def __init__(
        self, rows: Iterable[Sequence[str]], paths: Sequence[str], roots: Sequence[str]
    ) -> None:
        wanted = {_low("/".join(parts[-n:])) for parts in rows for n in (1, 2)}
        self.paths, self.roots = paths, roots
        self.found: dict[str, list[int]] = defaultdict(list)
        for i, path in enumerate(paths):
            pair = _low("/".join(_slashed(path).rsplit("/", 2)[-2:]))
            for key in (pair, pair.rpartition("/")[2]):
                for end in {key, _stem(key)} & wanted:
                    self.found[end].append(i)

    def find(self, parts: tuple[str, ...], direct: bool = False) -> int:
        """Index of the file whose path ends in `parts`; direct: one right below a root wins."""
        names = [part for part in parts if part != ".."]
        hits = self.found.get(_low("/".join(names[-2:])), [])
        full = [posixpath.normpath(f"{root}/{'/'.join(parts)}") for root in self.roots if direct]
        for shape, end in ((str, str), (_low, _low), (_stem, str)):
            tail, at = end("/" + "/".join(names)), {end(path) for path in full}
            shaped = {i: shape(_slashed(self.paths[i])) for i in hits}
            ends = [i for i in hits if shaped[i] in at]
            ends = ends or [i for i in hits if shaped[i].endswith(tail)]
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
    rows: Sequence[tuple[int, tuple[str, ...], str]], paths: Sequence[str]
) -> dict[int, int]:
    """Choose a row of label files for each picture: the first, as all must say the same.

    Args:
        rows: (picture, what the row says of it, where it stands); below 0: no picture.
        paths: of the pictures.

    Returns:
        {picture: index into rows}.

    Raises:
        SystemExit: where two rows say different things of one picture.
    """
    found: dict[int, int] = {}
    for number, (picture, said, where) in enumerate(rows):
        if picture >= 0:
            _, before, there = rows[found.setdefault(picture, number)]
            if before != said:
                one, other = (", ".join(filter(None, words)) for words in (before, said))
                fail(
                    f"{there} and {where} contradict each other about {paths[picture]}: {one} "
                    f"or {other}? Keep the one that is right."
                )
    return found
