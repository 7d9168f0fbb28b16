"""Scanning raw folders, and what becomes of a single file."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_data import draw

from common.hygiene import perceptual_hashes
from common.images import read_rgb
from common.sources import Checked, check_and_store, scan


def put(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_scan_names_classes_and_skips_system_files(tmp_path):
    for name in ("Tomato___healthy/a.jpg", "Tomato___healthy/deep/b.jpg", "train/Apple scab/c.jpg", "a/b/c/d.jpg", "loose.jpg",
                 "apple/scab/e.JPG", "Images/Valid/corn/f.jpg",
                 ".git/x.jpg", "Thumbs.db", "corn/.DS_Store", "corn/._f.jpg", "corn/notes.txt"):
        put(tmp_path / name)
    found = {str(Path(f.path).relative_to(tmp_path)): f.name for f in scan(tmp_path)}
    assert found == {"Tomato___healthy/a.jpg": "Tomato___healthy", "Tomato___healthy/deep/b.jpg": "Tomato___healthy/deep",
                     "train/Apple scab/c.jpg": "Apple scab", "a/b/c/d.jpg": "b/c", "loose.jpg": "", "apple/scab/e.JPG": "apple/scab",
                     "Images/Valid/corn/f.jpg": "corn", "corn/notes.txt": "corn"}
    assert [f.path for f in scan(tmp_path)] == [f.path for f in scan(tmp_path)]
    one = next(f for f in scan(tmp_path) if f.name == "apple/scab")
    assert one.size == 1 and one.mtime_ns == (tmp_path / "apple/scab/e.JPG").stat().st_mtime_ns


def test_links_to_folders_are_not_followed(tmp_path):
    put(tmp_path / "corn/a.jpg")
    os.symlink(tmp_path, tmp_path / "corn" / "up")
    assert [f.name for f in scan(tmp_path)] == ["corn"]


def check(tmp_path: Path, data: bytes, name: str = "x.jpg", long_side: int = 256) -> tuple[Checked, Path]:
    path = put(tmp_path / "in" / name, data)
    (tmp_path / "out").mkdir(exist_ok=True)
    checked = check_and_store(str(path), str(tmp_path / "out" / "stored"), long_side)
    assert path.read_bytes() == data and not list((tmp_path / "out").glob("*.tmp"))
    return checked, tmp_path / "out" / "stored.jpg"


def encode(rgb: np.ndarray, kind: str = "JPEG", **save) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, kind, **save)
    return buffer.getvalue()


def test_an_ordinary_jpeg_is_stored_byte_for_byte(tmp_path):
    data = encode(draw("apple", "scab", 1), quality=88)
    checked, stored = check(tmp_path, data)
    assert stored.read_bytes() == data and (checked.reason, checked.width, checked.height) == ("", 64, 64)
    assert checked.sha256 == hashlib.sha256(data).hexdigest()
    assert checked.pixels == hashlib.sha256(read_rgb(data).tobytes()).hexdigest()
    assert checked.hashes == tuple(perceptual_hashes(read_rgb(data)).tolist())


@pytest.mark.parametrize("what", ["png", "large", "turned", "grey", "cmyk", "progressive"])
def test_anything_else_is_stored_as_an_upright_rgb_jpeg(what, tmp_path):
    rgb = draw("corn", "common_rust", 2, 300)[:200]
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image = Image.fromarray(rgb)
    {"png": lambda: image.save(buffer, "PNG"), "large": lambda: image.save(buffer, "JPEG"),
     "turned": lambda: image.save(buffer, "JPEG", exif=exif), "grey": lambda: image.convert("L").save(buffer, "JPEG"),
     "cmyk": lambda: image.convert("CMYK").save(buffer, "JPEG"),
     "progressive": lambda: image.save(buffer, "JPEG", progressive=True)}[what]()
    checked, stored = check(tmp_path, buffer.getvalue(), "x.png" if what == "png" else "x.jpg", 150 if what == "large" else 512)
    size = {"large": (150, 100), "turned": (200, 300)}.get(what, (300, 200))
    with Image.open(stored) as out:
        assert (out.format, out.mode, out.size) == ("JPEG", "RGB", size) and 0x0112 not in out.getexif()
        assert not out.info.get("progressive")
    assert (checked.reason, checked.width, checked.height) == ("", *size) and stored.read_bytes() != buffer.getvalue()


def test_bad_files_have_a_reason_and_leave_nothing(tmp_path):
    good = encode(draw("apple", "scab", 1))
    for data, name, reason in ((b"", "x.jpg", "empty"), (good[:400], "x.jpg", "truncated"), (b"hello there", "x.png", "text"),
                               (good, "x.txt", "not_a_picture"), (good, "noending", "not_a_picture"),
                               (encode(draw("apple", "scab", 1)[:16]), "x.jpg", "too_small")):
        checked, stored = check(tmp_path, data, name)
        assert checked.reason == reason and checked.detail and not stored.exists(), name
    gone = check_and_store(str(tmp_path / "gone.jpg"), str(tmp_path / "out" / "g"), 256)
    assert gone.reason == "unreadable"


def test_a_target_that_cannot_be_written_is_an_error_not_a_reason(tmp_path):
    path = put(tmp_path / "x.jpg", encode(draw("apple", "scab", 1)))
    with pytest.raises(OSError):
        check_and_store(str(path), str(tmp_path / "nowhere" / "x"), 256)
