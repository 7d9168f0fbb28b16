"""Files that are written whole or not at all, their hashes, and those that a folder holds."""

import contextlib
import csv
import hashlib
import os
import tempfile
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
