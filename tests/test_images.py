"""The one way to read a picture: unusual ones come out right, broken ones say why, bombs are refused by their header."""

from __future__ import annotations

import csv
import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from common import images
from common.images import FORMATS, ImageError, read_rgb, resize_to_model

DATA = Path(__file__).resolve().parents[2] / "shared/data"


def ramp(width: int = 60, height: int = 40) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 90)], -1).astype(np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **save) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)
    return buffer.getvalue()


def reason_of(data: bytes, **limits) -> str:
    with pytest.raises(ImageError) as caught:
        read_rgb(data, **limits)
    assert str(caught.value)
    return caught.value.reason


# region pictures that are unusual


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_formats(kind):
    save = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    rgb = read_rgb(encode(Image.fromarray(ramp()), kind, **save))
    assert rgb.dtype == np.uint8 and rgb.shape == (40, 60, 3) and rgb.flags.writeable
    assert np.abs(rgb.astype(int) - ramp()).mean() < (15 if kind == "GIF" else 3 if kind == "JPEG" else 0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(orientation, kind):
    upright = Image.fromarray(ramp())
    undo = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}
    stored = upright if undo[orientation] is None else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = read_rgb(encode(stored, kind, exif=exif, quality=95))
    assert rgb.shape == (40, 60, 3) and np.abs(rgb.astype(int) - ramp()).mean() < 4
    small = read_rgb(encode(stored, kind, exif=exif, quality=95), long_side=32, min_side=20)
    assert small.shape == (21, 32, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(mode):
    image = Image.new("RGBA", (40, 40), (200, 10, 10, 0))
    image.paste((10, 20, 200, 255), (0, 0, 20, 40))
    rgb = read_rgb(encode(image.convert(mode)))
    assert (rgb[:, 25:] == 255).all()
    assert abs(int(rgb[0, 0, 2]) - (200 if mode != "LA" else int(rgb[0, 0, 0]))) <= 8 and rgb[0, 0].min() < 60
    half = read_rgb(encode(Image.new("RGBA", (40, 40), (0, 0, 0, 128))))
    assert np.abs(half.astype(int) - 127).max() <= 1


def test_a_transparent_colour_of_an_rgb_png_shows_white():
    rgb = ramp()
    rgb[:, :30] = (1, 2, 3)
    got = read_rgb(encode(Image.fromarray(rgb), transparency=(1, 2, 3)))
    assert (got[:, :30] == 255).all() and np.array_equal(got[:, 30:], rgb[:, 30:])


def test_16_bit_is_scaled_not_clipped():
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    want = (deep / 257.0).round().astype(int)
    for data in (encode(Image.fromarray(deep)), encode(Image.fromarray(deep), "TIFF")):
        rgb = read_rgb(data)
        assert np.abs(rgb[..., 0].astype(int) - want).max() <= 1 and (rgb[..., 0] == rgb[..., 1]).all()
    dark = (deep // 64).astype(np.uint16)  # a dark picture stays dark
    assert abs(int(read_rgb(encode(Image.fromarray(dark)))[..., 0].max()) - 4) <= 1


def test_32_bit_and_floating_grey():
    unit = np.linspace(0, 255, 64 * 64).reshape(64, 64)
    floats = unit.astype(np.float32)
    floats[0, 0] = np.nan
    assert np.abs(read_rgb(encode(Image.fromarray(floats), "TIFF"))[1:, :, 0] - unit[1:]).max() <= 1
    large = (unit * 1e6).astype(np.int32)
    assert np.abs(read_rgb(encode(Image.fromarray(large, "I"), "TIFF"))[..., 0] - unit).max() <= 1


def test_cmyk_palettes_bilevel_and_animations():
    cmyk = read_rgb(encode(Image.fromarray(ramp()).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - ramp()).mean() < 4, "not inverted"
    assert np.abs(read_rgb(encode(Image.fromarray(ramp()).quantize(256))).astype(int) - ramp()).mean() < 12
    assert set(np.unique(read_rgb(encode(Image.fromarray(ramp()).convert("1"))))) <= {0, 255}
    first, second = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    for kind in ("GIF", "PNG", "WEBP"):
        data = encode(first, kind, save_all=True, append_images=[second])
        assert read_rgb(data)[0, 0, 0] > 240, f"{kind}: the first frame"


def test_shrinking_keeps_the_shape_and_never_enlarges():
    big = Image.fromarray(ramp(1203, 801))
    for kind in ("PNG", "JPEG"):
        small = read_rgb(encode(big, kind), long_side=256)
        assert small.shape[0] in (170, 171) and small.shape[1:] == (256, 3), "libjpeg's half may round up"
        want = np.array(big.resize(small.shape[1::-1], Image.Resampling.LANCZOS)).astype(int)
        assert np.abs(small - want).mean() < 2
    assert read_rgb(encode(big), long_side=5000).shape == (801, 1203, 3)


def test_resize_to_model():
    rgb = ramp(90, 45)
    assert resize_to_model(rgb, 32).shape == (32, 32, 3)
    square = ramp(32, 32)
    assert resize_to_model(square, 32) is square
    fine = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    assert np.abs(resize_to_model(fine, 32).astype(int) - 127).max() < 12, "antialiased"


def test_jpeg_bytes_repeat():
    assert images.encode_jpeg(ramp()) == images.encode_jpeg(ramp())
    assert np.abs(read_rgb(images.encode_jpeg(ramp())).astype(int) - ramp()).mean() < 4


# endregion

# region files that are no pictures


def test_reasons():
    good = encode(Image.fromarray(ramp()), "JPEG")
    assert reason_of(b"") == "empty"
    assert reason_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n") == "text"
    assert reason_of(b"\n <!DOCTYPE html><html></html>") == "text"
    assert reason_of(b"a text file") == "text"
    assert reason_of(b"\x00\x01\x02\x03" * 20) == "format"
    assert reason_of(good[: len(good) // 2]) == "truncated"
    assert reason_of(encode(Image.new("RGB", (20, 200)))) == "too_small"
    assert reason_of(encode(Image.new("RGB", (300, 300))), max_pixels=80_000) == "too_large"
    assert "gif" not in FORMATS and reason_of(encode(Image.new("RGB", (64, 64)), "PPM")) == "format"
    png = encode(Image.fromarray(ramp()))
    assert reason_of(png[:60]) in ("truncated", "unreadable")
    broken = bytearray(png)
    broken[len(png) // 2] ^= 255
    assert reason_of(bytes(broken)) in ("truncated", "unreadable")


def test_large_files_are_refused_unread(tmp_path):
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    assert reason_of(path) == "too_large"


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (200_000, 200_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_by_their_header(width, height):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    bomb += chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")
    begin = time.perf_counter()
    assert reason_of(bomb) == "too_large"
    assert time.perf_counter() - begin < 0.5


@pytest.mark.filterwarnings("ignore")
def test_random_damage_never_raises_anything_else():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"):
        data = encode(Image.fromarray(ramp()), kind)
        for _ in range(40):
            bad = bytearray(data[: int(rng.integers(1, len(data)))] if rng.random() < 0.5 else data)
            for place in rng.integers(0, len(bad), 3):
                bad[place] = rng.integers(256)
            try:
                rgb = read_rgb(bytes(bad), max_pixels=1_000_000)
            except ImageError:
                continue
            assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3


# endregion

# region files that broke other readers; local, not part of the project


def expectations() -> list[dict[str, str]]:
    table = DATA / "bad_files/pillow_tests/expect.csv"
    if not table.is_file():
        pytest.skip(f"{table} is not here")
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore")
def test_files_that_broke_pillow():
    odd = []
    for row in expectations():
        data = (DATA / "bad_files/pillow_tests" / row["file"]).read_bytes()
        try:
            rgb, reason = read_rgb(data, min_side=1), ""
            assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
        except ImageError as error:
            reason = error.reason
        if row["pillow_result"] == "ok" and row["format"] in FORMATS + ("MPO",):
            width, height = map(int, row["size"].strip("()").split(","))
            if reason:
                odd.append((row["file"], "refused", reason))
            elif {rgb.shape[0], rgb.shape[1]} != {width, height}:
                odd.append((row["file"], rgb.shape, (width, height)))
        elif not reason:
            odd.append((row["file"], "read", row["pillow_result"]))
        if row["pillow_result"] == "ok" and row["format"] not in FORMATS + ("MPO",) and reason != "format":
            odd.append((row["file"], row["format"], reason))
    assert not odd, odd


@pytest.mark.parametrize(("folder", "reason"), [("lfs_pointer", "text"), ("zero_bytes", "empty")])
def test_pointers_and_empty_files(folder, reason):
    found = sorted((DATA / "bad_files" / folder).glob("*")) if DATA.is_dir() else []
    if not found:
        pytest.skip(f"{DATA / 'bad_files' / folder} is not here")
    for path in found:
        assert reason_of(path) == reason, path.name


def test_odd_pictures_are_read():
    found = sorted(p for p in (DATA / "odd_files").rglob("*") if p.is_file()) if DATA.is_dir() else []
    if not found:
        pytest.skip(f"{DATA / 'odd_files'} is not here")
    for path in found:
        if path.suffix.lower() not in images.SUFFIXES:
            continue
        with Image.open(path) as image:
            width, height = ImageOps.exif_transpose(image).size
        assert read_rgb(path, min_side=1).shape == (height, width, 3), path.name


# endregion
