"""Files that are written whole or not at all, their hashes, those that a folder holds, and which of
them a written path means.
"""

import contextlib
import csv
import functools
import hashlib
import os
import posixpath
import re
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from common.console import fail, say
from common.images import SUFFIXES

ABSENT, SEVERAL = -1, -2  # in place of a file: a written path means none, or more than one
JUNK = {".ds_store", "thumbs.db", "desktop.ini"}
# folders that systems and tools keep beside the pictures; those that begin with a dot are, too
JUNK_FOLDERS = {"@eadir", "__macosx", "$recycle.bin", "lost+found", "system volume information"}
_NO_NAMES = {"", ".", ".."}
_SPLIT = re.compile("/(train|val|test)")


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, 64 hex digits. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def walk(
    root: Path | str, skipped: Counter[str] | None = None
) -> Iterator[tuple[str, tuple[str, ...], list[os.DirEntry[str]]]]:
    """Every folder below `root`, the names of the folders down to it, and its files in order: links
    are followed, but no folder is entered twice; system files are not listed, and hidden folders
    not entered.

    Args:
        skipped: counts what is left out, by what it is.

    Raises:
        SystemExit: where a folder cannot be opened: leaving it out in silence would change the
            data.
    """
    stack: list[tuple[str, tuple[str, ...]]] = [(str(root), ())]
    entered, skipped = set(), Counter() if skipped is None else skipped
    while stack:
        folder, parts = stack.pop()
        real = os.path.realpath(folder)
        if real in entered:
            skipped["linked folders that are listed already"] += 1
            continue
        entered.add(real)
        try:
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda e: e.name)
        except OSError as error:
            fail(
                f"the folder {folder} cannot be opened ({error.strerror}). Mend its permissions "
                f"or leave it out."
            )
        files, folders = [], []
        for entry in ordered:
            (folders if entry.is_dir() else files).append(entry)
        kept = [e for e in files if e.name.lower() not in JUNK and not e.name.startswith("._")]
        inside = [
            e for e in folders if not e.name.startswith(".") and e.name.lower() not in JUNK_FOLDERS
        ]
        skipped["files of the system"] += len(files) - len(kept)
        skipped["hidden folders and folders of the system"] += len(folders) - len(inside)
        yield folder, parts, kept
        stack += [(entry.path, (*parts, entry.name)) for entry in reversed(inside)]


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
    roots = ["/" + "/".join(_parts(os.path.abspath(base))[1]) for base in bases]
    finder = _Finder(map(_parts, written), paths, roots)
    find = functools.lru_cache(100_000)(finder.find)
    rows, found = {}, []
    for i, text in enumerate(written):
        start, parts = _parts(text)
        if start:
            rows[i] = parts
        found.append(ABSENT if start else find(parts, len(parts) > 1 or text.startswith("./")))
    folders = {parts[:-1] for parts in rows.values()}
    for drop in range(max(map(len, folders), default=-1) + 1):
        hits = {i: find(parts[drop:]) for i, parts in rows.items() if len(parts) > drop}
        firm = {i: hit for i, hit in hits.items() if hit != ABSENT and len(rows[i]) > drop + 1}
        here = {_above(paths[hit], len(rows[i]) - drop) for i, hit in firm.items() if hit >= 0}
        if len(folders) > 1 or _known_elsewhere(*folders, paths):  # a name alone is not enough
            kept = (i for i, hit in hits.items() if hit >= 0 and _above(paths[hit], 1) in here)
            hits = firm | {i: hits[i] for i in kept if len(rows[i]) == drop + 1}
        if any(hit != ABSENT for hit in hits.values()):
            for i, hit in hits.items():
                found[i] = hit
            if drop:
                there = "/".join(rows[min(hits)][:drop])
                say(f"  {there} is taken to be {' and '.join(sorted(here)) or 'any folder'} here")
            break
    return found


def _above(path: str, levels: int) -> str:
    return path.replace(os.sep, "/").rsplit("/", levels)[0]


def _known_elsewhere(folder: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether a folder is on this machine, or names a split, as folders here do."""
    told = bool(folder) and _SPLIT.match("/" + folder[-1].lower())
    here = told and any(_SPLIT.search(path.lower()) for path in paths)
    return os.path.isdir("/" + "/".join(folder)) or bool(here)


def _parts(text: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a path is absolute, and its parts."""
    text = _composed(text.strip().replace("\\", "/"))
    text = re.sub(r"^([A-Za-z]:(?=/)|[A-Za-z][\w+.-]+:/(?=/))", "", text) if ":" in text else text
    plain = posixpath.normpath(text) if "./" in text or "//" in text else text
    return text.startswith(("/", "~/")), tuple(p for p in plain.split("/") if p not in _NO_NAMES)


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class _Finder:
    """Files by the last two parts of their paths without endings, of those that rows name."""

    def __init__(
        self,
        rows: Iterable[tuple[bool, Sequence[str]]],
        paths: Sequence[str],
        roots: Sequence[str],
    ) -> None:
        self.paths, self.roots = paths, roots
        # rows of another machine's paths may come down to a name alone
        keys = (key for far, parts in rows for key in self._keys(parts)[0 if far else -1 :])
        self.first: dict[str, int] = dict.fromkeys(keys, ABSENT)
        self.more: dict[str, list[int]] = defaultdict(list)
        for i, path in enumerate(paths):
            for key in self._keys(self._path(path).rsplit("/", 2)[-2:]):
                if key in self.first:
                    if self.first[key] == ABSENT:
                        self.first[key] = i
                    else:
                        self.more[key].append(i)

    @staticmethod
    def _path(path: str) -> str:
        return _composed(path.replace(os.sep, "/"))

    @staticmethod
    def _keys(parts: Sequence[str]) -> tuple[str, ...]:
        name = _split(parts[-1])[0] if parts else ""
        return (name, f"{parts[-2]}/{name}") if len(parts) > 1 else (name,)

    def find(self, parts: tuple[str, ...], direct: bool = False) -> int:
        """Index of the file whose path ends in `parts`; direct: one right below a root wins."""
        key = self._keys(parts)[-1]
        first = self.first.get(key, ABSENT)
        hits = [first, *self.more.get(key, ())] if first != ABSENT and parts else []
        stem, end = _split("/" + "/".join(parts))
        for low, bare in ((False, False), (True, False), (True, True)):
            ends = []
            for i in hits:
                here, its = _split(self._path(self.paths[i]))
                same = not end if bare else (its.lower() == end.lower() if low else its == end)
                ends += [i] if same and here.endswith(stem) else []
            if len(ends) > 1 and direct:
                at = {f"{root}{stem}" for root in self.roots}
                ends = [i for i in ends if _split(self._path(self.paths[i]))[0] in at] or ends
            if ends:
                return ends[0] if len(ends) == 1 else SEVERAL
        return ABSENT


def _split(path: str) -> tuple[str, str]:
    """A path without the ending of a picture, and that ending or ""."""
    stem, dot, end = path.rpartition(".")
    return (stem, dot + end) if dot and f".{end.lower()}" in SUFFIXES else (path, "")


def settle(
    pictures: Sequence[int],
    said: Sequence[tuple[str, ...]],
    where: Callable[[int], str],
    paths: Sequence[str],
) -> dict[int, int]:
    """Choose a row of label files for each picture: the first, as all must say the same.

    Args:
        pictures: per row; below 0: none.
        said: per row, what it says.
        where: tells where a row stands.
        paths: of the pictures.

    Returns:
        {picture: row}.

    Raises:
        SystemExit: where two rows say different things of one picture.
    """
    found: dict[int, int] = {}
    for row, picture in enumerate(pictures):
        first = found.setdefault(picture, row) if picture >= 0 else row
        if said[first] != said[row]:
            one, other = (", ".join(filter(None, said[i])) for i in (first, row))
            fail(
                f"{where(first)} and {where(row)} contradict each other about {paths[picture]}: "
                f"{one} or {other}? Keep the one that is right."
            )
    return found
