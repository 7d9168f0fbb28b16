"""Raw image folders: which files are there, what class their folder names, and what each file holds."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from common import images
from common.console import progress, say
from common.hygiene import perceptual_hashes

SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing", "images", "image", "data", "dataset"}
JUNK = {".ds_store", "thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Found:
    """One file of a source: its path, its class folder's name ("a" or "a/b"; "" where it lies in no folder), its stat."""

    path: str
    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Checked:
    """What a file holds. `reason` is empty for a usable picture, else the word of `ImageError` or what `detail` explains."""

    reason: str = ""
    detail: str = ""
    sha256: str = ""
    pixels: str = ""
    hashes: tuple[int, ...] = ()
    width: int = 0
    height: int = 0


def scan(source: Path) -> Iterator[Found]:
    """List the files of a source in a fixed order; links are followed, but no folder is entered twice; system files not counted.

    Folders called train, valid, test, images ... are no class names and are left out of them; of deeper trees the last
    two folders count.
    """
    stack, entered = [(str(source), ())], set()
    while stack:
        folder, parts = stack.pop()
        real = os.path.realpath(folder)
        if real in entered:
            continue
        entered.add(real)
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda e: e.name)
        for entry in ordered:
            if entry.is_file() and entry.name.lower() not in JUNK and not entry.name.startswith("._"):
                stat = entry.stat()
                yield Found(entry.path, "/".join(parts[-2:]), stat.st_size, stat.st_mtime_ns)
        for entry in reversed(ordered):
            if entry.is_dir() and not entry.name.startswith("."):
                inner = parts if entry.name.lower() in SPLIT_FOLDERS else (*parts, entry.name)
                stack.append((entry.path, inner))


def check_and_store(path: str, target: str, long_side: int) -> Checked:
    """Read a file once: hash it, decode it, and store it upright, as JPEG, at most `long_side` px.

    A JPEG that is upright, RGB and small enough is stored byte for byte. The target is written aside and renamed.

    Args:
        path: the file.
        target: where the picture goes, without ending; `.jpg` is added.
        long_side: px.

    Raises:
        OSError: where the target cannot be written (a full disk). A source that cannot be read is a reason, not an error.
    """
    if Path(path).suffix.lower() not in images.SUFFIXES:
        return Checked("not_a_picture", f"no picture by its ending ({Path(path).suffix or 'none'})")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return Checked("unreadable", f"the file cannot be opened: {error.strerror}")
    digest = hashlib.sha256(data).hexdigest()
    try:
        rgb = images.read_rgb(data, long_side=long_side)
    except images.ImageError as error:
        return Checked(error.reason, str(error), digest)
    height, width = rgb.shape[:2]
    _write(target + ".jpg", data if _as_it_is(data, width, height) else images.encode_jpeg(rgb))
    return Checked("", "", digest, hashlib.sha256(np.ascontiguousarray(rgb)).hexdigest(),
                   tuple(int(h) for h in perceptual_hashes(rgb)), width, height)


def _as_it_is(data: bytes, width: int, height: int) -> bool:
    """Whether the bytes are already what would be stored: a baseline RGB JPEG of that size with no EXIF turn."""
    with Image.open(images.io.BytesIO(data)) as image:
        return (image.format == "JPEG" and image.mode == "RGB" and image.size == (width, height)
                and image.getexif().get(0x0112, 1) == 1 and not image.info.get("progressive"))


def _write(path: str, data: bytes) -> None:
    aside = path + ".tmp"
    try:
        with open(aside, "wb") as file:
            file.write(data)
        os.replace(aside, path)
    except OSError:
        if os.path.exists(aside):
            os.unlink(aside)
        raise


def check_all(files: list[Found], store: Path, long_side: int, workers: int) -> dict[str, Checked]:
    """Check and store every file, in parallel; what the journal holds from an earlier run is not done again.

    Args:
        files: what `scan` found.
        store: folder of the journal and of the stored pictures (`target_of` names them).
        long_side: px.
        workers: processes.

    Returns:
        {path: what it holds}.
    """
    store.mkdir(parents=True, exist_ok=True)
    journal, done = store / "journal.jsonl", {}
    if journal.is_file():
        for line in journal.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            try:
                path, size, mtime, side, checked = json.loads(line)
            except ValueError:  # the line that a kill cut short
                continue
            if side == long_side:
                done[path] = (size, mtime, Checked(**{**checked, "hashes": tuple(checked["hashes"])}))
    known = {f.path: done[f.path][2] for f in files if f.path in done and done[f.path][:2] == (f.size, f.mtime_ns)}
    todo = [f for f in files if f.path not in known]
    if known:
        say(f"going on: {len(known):,} of {len(files):,} files were checked before")
    with journal.open("a", encoding="utf-8", errors="surrogateescape") as log, ProcessPoolExecutor(
            workers, initializer=_quiet_worker) as pool:
        jobs = pool.map(check_and_store, [f.path for f in todo], [str(store / target_of(f)) for f in todo],
                        [long_side] * len(todo), chunksize=16)
        for f, checked in zip(todo, progress(jobs, len(todo), "reading", "file"), strict=True):
            known[f.path] = checked
            log.write(json.dumps([f.path, f.size, f.mtime_ns, long_side, asdict(checked)]) + "\n")
    return known


def target_of(found: Found) -> str:
    """Name under which a file's picture waits for its split: a hash of its path."""
    return hashlib.sha256(os.fsencode(found.path)).hexdigest()[:24]


def _quiet_worker() -> None:
    cv2.setNumThreads(1)
    if sys.platform == "linux":  # end with the parent, even one that was killed: PR_SET_PDEATHSIG, SIGKILL
        ctypes.CDLL(None).prctl(1, 9)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and libpng write a line per oddity straight to stderr
