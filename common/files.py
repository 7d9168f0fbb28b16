"""Files and folders that are written whole or not at all, and what lies in their way; hashes; the
files that a folder holds, and which of them a written path means; and how many processors the
system's files give this process.
"""

import contextlib
import csv
import errno
import functools
import hashlib
import math
import os
import posixpath
import re
import shutil
import unicodedata
from collections import Counter
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


def cores(root: Path = Path("/")) -> int:
    """Processors that this process may use, at least 1: by its affinity and by the quotas of its
    control groups, such as `docker run --cpus 2` sets; a part of one counts as one.

    Sources: docs.kernel.org, admin-guide/cgroup-v2 (cpu.max) and scheduler/sched-bwc (version 1).
    """
    by_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    found = len(os.sched_getaffinity(0)) if by_affinity else os.cpu_count() or 1
    groups = root / "proc/self/cgroup"
    lines = groups.read_text(encoding="utf-8").splitlines() if groups.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        names = ["cpu.cfs_quota_us", "cpu.cfs_period_us"] if controllers else ["cpu.max"]
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):  # in a container, `path` may be the host's
            with contextlib.suppress(OSError, ValueError):  # no file; no quota: `max`
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                if int(quota) > 0:  # version 1 has -1 for none
                    found = min(found, math.ceil(int(quota) / int(period)))
            if folder == mount:
                break
    return found


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
    """Give the path of a temporary file beside `path`, to be written inside the `with`; it takes
    the place of `path`, or of what that links to, when the `with` ends well; else it is removed.
    """
    path = follow(path)
    aside = path.with_name(path.name + ".tmp")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def write_rows(path: Path, titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, whole or not at all."""
    with (
        whole(path) as aside,
        aside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(titles)
        writer.writerows(rows)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


# region what lies in an output's way


def follow(output: Path) -> Path:
    """Where an output really goes: a link is followed, and stays.

    Raises:
        SystemExit: where it is neither a file nor a folder (a device, a pipe, a socket).
    """
    if output.exists() and not (output.is_file() or output.is_dir()):
        fail(f"{output} is a device, a pipe or a socket, which no result can replace.")
    if output.name not in ("", "..") and not output.is_symlink():
        return output  # as it was written
    return Path(os.path.realpath(output))


def claim(output: Path) -> Path:
    """Where an output really goes that is replaced as a whole, before any work is done for it;
    brings back what a run put aside that was killed in `stand_in`.

    Raises:
        SystemExit: where it is no file or folder, or is a mount point, which nothing can replace.
    """
    output = follow(output)
    if not output.name:
        fail(f"{output} cannot be replaced by a result. Name something in it.")
    aside, probe = _aside(output), output.with_name(f".{output.name}.probe")
    if output.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.exists():
        os.replace(aside, output)
    try:
        probe.unlink(missing_ok=True)
        os.link(output, probe)  # fails for a folder, and otherwise for a mount point of any kind
        probe.unlink()
    except OSError as error:
        if error.errno == errno.EXDEV:
            inside = (
                "file in a mounted folder" if output.is_file() else f"folder in it: {output}/new"
            )
            fail(
                f"{output} is a mount point (a Docker volume, a disk), which cannot be replaced by "
                f"a new result. Name a {inside}"
            )
        if error.errno == errno.ENOTDIR:
            fail(f"{output} cannot be: {output.parent} is a file, not a folder.")
    return output


def stand_in(new: Path, output: Path) -> None:
    """Put a finished folder in the place of `output`, which is deleted when that is done. At a kill
    in between, the old one lies aside, where `claim` finds it.

    Raises:
        SystemExit: where the system does not allow it; both folders are left as they are.
    """
    aside = _aside(output)
    try:
        if output.exists():
            os.replace(output, aside)
        os.replace(new, output)
    except OSError as error:
        if not output.exists() and aside.exists():
            os.replace(aside, output)
        fail(
            f"{new} is complete but cannot be renamed to {output} ({error.strerror}). Move it "
            f"there by hand, or choose another --output."
        )
    shutil.rmtree(aside, ignore_errors=True)


def _aside(output: Path) -> Path:
    return output.with_name(f".{output.name}.replaced")


# endregion


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
    roots = list(dict.fromkeys("/" + "/".join(_parts(os.path.abspath(b))[1]) for b in bases))
    plain = [_Finder.path(path) for path in paths]
    found = _straight(written, plain, roots)
    lost = (hit == ABSENT and not _split(text)[1] for hit, text in zip(found, written, strict=True))
    ids = [text if absent else "" for absent, text in zip(lost, written, strict=True)]
    if any(ids):  # the same without endings; what two files fit is looked at below
        stems = [_split(path)[0] for path in plain]
        found = list(map(max, found, _straight(ids, stems, roots)))
    rest = {i: _parts(written[i]) for i, hit in enumerate(found) if hit == ABSENT}
    finder = _Finder(rest.values(), paths if rest else (), roots)
    find = functools.lru_cache(100_000)(finder.find)
    for i, (start, parts) in rest.items():
        direct = len(parts) > 1 or written[i].startswith("./")
        found[i] = ABSENT if start else find(parts, direct)
    rows = {i: parts for i, (start, parts) in rest.items() if start}
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


def _straight(written: Sequence[str], paths: Sequence[str], roots: Sequence[str]) -> list[int]:
    """Look rows up letter by letter, which finds nearly all: a path below one of the roots, or a
    bare name.
    """
    deep = ["/" in text for text in written]
    at = _indices(paths if any(deep) else ())
    names = _indices(() if all(deep) else [path.rpartition("/")[2] for path in paths])
    found = []
    for text, is_path in zip(written, deep, strict=True):
        if is_path:
            hits = [at[path] for root in roots if (path := f"{root}/{text}") in at]
            found.append(hits[0] if len(hits) == 1 else ABSENT)
        else:
            found.append(names.get(text, ABSENT))
    return found


def _indices(texts: Sequence[str]) -> dict[str, int]:
    """The index of each text, or `SEVERAL`."""
    found: dict[str, int] = {}
    for i, text in enumerate(texts):
        found[text] = SEVERAL if text in found else i
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
        self.found: dict[str, list[int]] = {key: [] for key in keys}
        for i, path in enumerate(paths):
            for key in self._keys(self.path(path).rsplit("/", 2)[-2:]):
                if key in self.found:
                    self.found[key].append(i)

    @staticmethod
    def path(path: str) -> str:
        """A path with slashes and composed accents."""
        return _composed(path.replace(os.sep, "/"))

    @staticmethod
    def _keys(parts: Sequence[str]) -> tuple[str, ...]:
        name = _split(parts[-1])[0] if parts else ""
        return (name, f"{parts[-2]}/{name}") if len(parts) > 1 else (name,)

    def find(self, parts: tuple[str, ...], direct: bool = False) -> int:
        """Index of the file whose path ends in `parts`; direct: one right below a root wins."""
        hits = self.found.get(self._keys(parts)[-1], []) if parts else []
        stem, end = _split("/" + "/".join(parts))
        near = [(i, *_split(self.path(self.paths[i]))) for i in hits]
        near = [file for file in near if file[1].endswith(stem)]
        for ends in (
            [file for file in near if file[2] == end],
            [file for file in near if file[2].lower() == end.lower()],
            [] if end else near,
        ):
            if len(ends) > 1 and direct:
                at = {f"{root}{stem}" for root in self.roots}
                ends = [file for file in ends if file[1] in at] or ends
            if ends:
                return ends[0][0] if len(ends) == 1 else SEVERAL
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
        if first != row and said[first] != said[row]:
            one, other = (", ".join(filter(None, said[i])) for i in (first, row))
            fail(
                f"{where(first)} and {where(row)} contradict each other about {paths[picture]}: "
                f"{one} or {other}? Keep the one that is right."
            )
    return found
