"""A part file: what a long run has done so far, line by line, tied to what the run was asked, so
that a killed run can be resumed.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from common.console import fail


def hash_of(texts: Iterable[str]) -> str:
    """First 16 hex digits of the SHA-256 of texts, each with its end."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


class Part:
    """What a run has done so far, one line of a file each; `done` is their number.

    path is the file, new or of a run that was stopped; belongs says what run that must be. A line
    that a kill cut short is removed. Raises SystemExit where the file belongs to something else, or
    another run is writing it.
    """

    def __init__(self, path: Path, belongs: dict[str, str]) -> None:
        self.path, self.done, self.flushed = path, 0, time.monotonic()
        self.file: BinaryIO = open(path, "a+b")  # closed by `__exit__`
        try:
            _lock(self.file, path)
            self.start = self._take_up(belongs)
        except BaseException:
            self.file.close()
            raise

    def _take_up(self, belongs: dict[str, str]) -> int:
        self.file.seek(0)
        first = self.file.readline()
        if not first.endswith(b"\n"):  # new, or killed before its first line stood
            self.file.truncate(0)
            self.file.write(json.dumps({"predictions": 1, **belongs}).encode() + b"\n")
            self.file.flush()
            return self.file.tell()
        found = _parse(first) or {}
        if other := [name for name, value in belongs.items() if found.get(name) != value]:
            fail(
                f"{self.path} is of a run that was stopped, with other {' and '.join(other)}. To "
                "go on with that run, repeat its command; to begin anew, delete the file or "
                "give another --output."
            )
        end = self.file.tell()
        for line in iter(self.file.readline, b""):
            if not line.endswith(b"\n") or _parse(line) is None:
                break
            self.done, end = self.done + 1, self.file.tell()
        self.file.truncate(end)
        return len(first)

    def add(self, record: dict[str, Any]) -> None:
        """Add a photo's line; it is on its way to the disk within a second."""
        self.file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        self.done += 1
        if time.monotonic() - self.flushed > 1:
            self.file.flush()
            self.flushed = time.monotonic()

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The lines in order, each with its place in the file."""
        self.file.flush()
        at = self.start
        self.file.seek(at)
        for line in iter(self.file.readline, b""):
            yield at, json.loads(line)
            at += len(line)

    def line(self, at: int) -> dict[str, Any]:
        """The line at a place."""
        self.file.seek(at)
        return json.loads(self.file.readline())

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:  # zeros, after the power failed
        return None
    return found if isinstance(found, dict) else None


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows keeps two runs apart by no means of ours
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another run is writing {path}. Wait for it, or give another --output.")
    except OSError:  # a file system without locks
        return
