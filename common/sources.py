"""Raw image folders: which files are there, what class their folder names, and what each file holds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common import images
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
    """List the files of a source in a fixed order; links to folders are not followed, system files not counted.

    Folders called train, valid, test, images ... are no class names and are left out of them; of deeper trees the last
    two folders count.
    """
    stack = [(str(source), ())]
    while stack:
        folder, parts = stack.pop()
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda e: e.name)
        for entry in ordered:
            if entry.is_file() and entry.name.lower() not in JUNK and not entry.name.startswith("._"):
                stat = entry.stat()
                yield Found(entry.path, "/".join(parts[-2:]), stat.st_size, stat.st_mtime_ns)
        for entry in reversed(ordered):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
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
