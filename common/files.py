"""Files and folders that are written whole or not at all, what lies in their way, hashes, and the
files that a folder holds.
"""

import contextlib
import csv
import errno
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from common.console import fail

JUNK = {".ds_store", "thumbs.db", "desktop.ini"}
# folders that systems and tools keep beside the pictures; those that begin with a dot are, too
JUNK_FOLDERS = {"@eadir", "__macosx", "$recycle.bin", "lost+found", "system volume information"}


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
    nameless = output.name in ("", "..")  # of the current folder, or one above
    return Path(os.path.realpath(output)) if nameless or output.is_symlink() else output


def claim(output: Path) -> Path:
    """Where an output really goes that is replaced as a whole, before any work is done for it;
    brings back what a run put aside that was killed in `stand_in`.

    Raises:
        SystemExit: where it is no file or folder, or is a mount point, which nothing can replace.
        OSError: where its folder cannot be written.
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
        if error.errno in (errno.EROFS, errno.EACCES) and not os.access(output.parent, os.W_OK):
            raise
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
