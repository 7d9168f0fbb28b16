"""The one way to read a picture: unusual ones come out right, broken ones say why, bombs are
rejected by their header.
"""

import csv
import io
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, features

from common import images
from common.images import FORMATS, ImageError, read_rgb, resize_to_model

DATA = Path(__file__).resolve().parents[2] / "shared/data"


def ramp(width: int = 60, height: int = 40) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack(
        [x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 90)], -1
    ).astype(np.uint8)


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
    assert rgb.dtype == np.uint8
    assert rgb.shape == (40, 60, 3)
    assert rgb.flags.writeable
    assert np.abs(rgb.astype(int) - ramp()).mean() < (
        15 if kind == "GIF" else 3 if kind == "JPEG" else 0.01
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(orientation, kind):
    upright = Image.fromarray(ramp())
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if undo[orientation] is None else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = read_rgb(encode(stored, kind, exif=exif, quality=95))
    assert rgb.shape == (40, 60, 3)
    assert np.abs(rgb.astype(int) - ramp()).mean() < 4
    small = read_rgb(encode(stored, kind, exif=exif, quality=95), long_side=32, min_side=20)
    assert small.shape == (21, 32, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(mode):
    image = Image.new("RGBA", (40, 40), (200, 10, 10, 0))
    image.paste((10, 20, 200, 255), (0, 0, 20, 40))
    rgb = read_rgb(encode(image.convert(mode)))
    assert (rgb[:, 25:] == 255).all()
    assert abs(int(rgb[0, 0, 2]) - (200 if mode != "LA" else int(rgb[0, 0, 0]))) <= 8
    assert rgb[0, 0].min() < 60
    half = read_rgb(encode(Image.new("RGBA", (40, 40), (0, 0, 0, 128))))
    assert np.abs(half.astype(int) - 127).max() <= 1


def test_a_transparent_colour_of_an_rgb_png_shows_white():
    rgb = ramp()
    rgb[:, :30] = (1, 2, 3)
    got = read_rgb(encode(Image.fromarray(rgb), transparency=(1, 2, 3)))
    assert (got[:, :30] == 255).all()
    assert np.array_equal(got[:, 30:], rgb[:, 30:])


def test_16_bit_is_scaled_not_clipped():
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    want = (deep / 257.0).round().astype(int)
    for data in (encode(Image.fromarray(deep)), encode(Image.fromarray(deep), "TIFF")):
        rgb = read_rgb(data)
        assert np.abs(rgb[..., 0].astype(int) - want).max() <= 1
        assert (rgb[..., 0] == rgb[..., 1]).all()
    dark = (deep // 6).astype(np.uint16)  # a dark picture stays dark
    assert abs(int(read_rgb(encode(Image.fromarray(dark)))[..., 0].max()) - 42) <= 1


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
    assert (
        np.abs(read_rgb(encode(Image.fromarray(ramp()).quantize(256))).astype(int) - ramp()).mean()
        < 12
    )
    assert set(np.unique(read_rgb(encode(Image.fromarray(ramp()).convert("1"))))) <= {0, 255}
    first, second = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    for kind in ("GIF", "PNG", "WEBP"):
        data = encode(first, kind, save_all=True, append_images=[second])
        assert read_rgb(data)[0, 0, 0] > 240, f"{kind}: the first frame"


def test_icons():
    art = Image.fromarray(ramp(256, 256)).convert("RGBA")
    art.paste((9, 9, 9, 0), (0, 0, 128, 256))
    for save in ({}, {"bitmap_format": "bmp"}):
        rgb = read_rgb(encode(art, "ICO", sizes=[(32, 32), (256, 256)], **save))
        assert rgb.shape == (256, 256, 3)
        assert (rgb[:, :128] == 255).all()
        assert np.array_equal(rgb[:, 128:], ramp(256, 256)[:, 128:])


# endregion

# region shrinking


def photo(width: int, height: int) -> np.ndarray:
    """Noise whose amplitude falls with its fineness, as in photos."""
    rng, total = np.random.default_rng(width), np.full((height, width, 3), 120, np.float32)
    for cells in (4, 8, 16, 32, 64, 128, 256, 512):
        noise = rng.standard_normal((cells, cells, 3 if cells < 64 else 1)).astype(np.float32)
        total += (
            cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).reshape(
                height, width, -1
            )
            * 70
            / cells**0.5
        )
    return np.clip(total, 0, 255).astype(np.uint8)


def psnr(got: np.ndarray, want: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(1e-9, ((got.astype(float) - want) ** 2).mean()))


@pytest.mark.parametrize(
    ("width", "height", "long_side"),
    [
        (1000, 750, 128),
        (750, 1000, 128),
        (1003, 751, 128),
        (1151, 863, 128),
        (905, 701, 128),
        (1601, 97, 128),
        (700, 525, 400),
        (517, 389, 512),
        (2040, 1530, 128),
        (9, 1200, 128),
    ],
)
def test_shrinking_is_the_area_mean(width, height, long_side):
    rgb = photo(width, height)
    for data in (
        *(
            encode(Image.fromarray(rgb), "JPEG", quality=90, subsampling=kind)
            for kind in ("4:2:0", "4:2:2", "4:4:4")
        ),
        encode(Image.fromarray(rgb), "JPEG", quality=90, progressive=True),
        encode(Image.fromarray(rgb), "BMP"),
    ):
        with Image.open(io.BytesIO(data)) as image:
            full = np.asarray(image)
        small = read_rgb(data, long_side=long_side, min_side=1)
        size = tuple(
            max(1, round(side * long_side / max(width, height))) for side in (width, height)
        )
        assert small.shape == (*size[::-1], 3)
        assert small.flags.writeable
        assert psnr(small, cv2.resize(full, size, interpolation=cv2.INTER_AREA)) > 38
        assert np.array_equal(small, read_rgb(data, long_side=long_side, min_side=1))


def area_mean(rgb: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Shrink one axis by the definition: the integral over each small pixel, divided by its
    width.
    """
    whole = np.moveaxis(rgb.astype(np.float64), axis, 0)
    integral = np.concatenate([np.zeros_like(whole[:1]), whole.cumsum(0)])
    edges = np.linspace(0, len(whole), size + 1)
    below = np.minimum(edges.astype(int), len(whole) - 1)
    at = integral[below] + (edges - below).reshape(-1, *[1] * (whole.ndim - 1)) * whole[below]
    return np.moveaxis(np.diff(at, axis=0) * size / len(whole), 0, axis)


@pytest.mark.parametrize(
    ("width", "height"),
    [(1000, 750), (1001, 751), (1007, 1007), (1500, 1111), (2047, 999), (999, 2050), (523, 403)],
)
@pytest.mark.parametrize("kind", ["JPEG", "BMP"])
def test_shrinking_moves_nothing(width, height, kind):
    data = encode(
        Image.fromarray(photo(width, height)), kind, **({"quality": 95} if kind == "JPEG" else {})
    )
    small = read_rgb(data, long_side=128).astype(float)
    with Image.open(io.BytesIO(data)) as image:
        want = area_mean(area_mean(np.asarray(image), small.shape[0], 0), small.shape[1], 1)
    assert psnr(small, want) > 40
    for axis in (0, 1):
        slope, off = np.gradient(want, axis=axis), small - want
        for part in (
            slice(0, 30),
            slice(-30, None),
        ):  # pixels at either end: a stretch shows at the far one
            at = (slice(None),) * axis + (part,)
            shift = -(slope[at] * off[at]).sum() / (slope[at] ** 2).sum()
            assert abs(shift) < 0.02, (axis, part, shift)


def test_no_shrinking_where_none_is_asked():
    data = encode(Image.fromarray(ramp(1203, 801)))
    assert read_rgb(data, long_side=5000).shape == (801, 1203, 3)
    assert np.array_equal(read_rgb(data, long_side=1203), ramp(1203, 801))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_shrunk_pictures_are_turned_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "TIFF"):
        data = encode(Image.fromarray(ramp(400, 300)), kind, exif=exif)
        with Image.open(io.BytesIO(data)) as image:
            want = np.asarray(ImageOps.exif_transpose(image).reduce(8)).astype(int)
        got = read_rgb(data, long_side=50)
        assert (
            np.abs(
                got[: want.shape[0] - 1, : want.shape[1] - 1]
                - want[: got.shape[0] - 1, : got.shape[1] - 1]
            ).mean()
            < 3
        ), kind


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
    assert (
        reason_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n") == "text"
    )
    assert reason_of(b"\n <!DOCTYPE html><html></html>") == "text"
    assert reason_of(b"a text file") == "text"
    assert reason_of(b"\x00\x01\x02\x03" * 20) == "format"
    assert reason_of(good[: len(good) // 2]) == "truncated"
    assert reason_of(encode(Image.new("RGB", (20, 200)))) == "too_small"
    assert reason_of(encode(Image.new("RGB", (300, 300))), max_pixels=80_000) == "too_large"
    assert "gif" not in FORMATS
    assert reason_of(encode(Image.new("RGB", (64, 64)), "PPM")) == "format"
    png = encode(Image.fromarray(ramp()))
    assert reason_of(png[:60]) in ("truncated", "unreadable")
    broken = bytearray(png)
    broken[len(png) // 2] ^= 255
    assert reason_of(bytes(broken)) in ("truncated", "unreadable")
    assert reason_of("naïve – ü\n".encode()) == "text"
    assert reason_of(png[:8] + bytes(40)) == "unreadable"
    assert "like PNG" in str(pytest.raises(ImageError, read_rgb, png[:8]).value)


@pytest.mark.parametrize(
    "save", [{}, {"progressive": True}, {"subsampling": "4:4:4"}, {"restart_marker_blocks": 8}]
)
def test_a_truncated_jpeg_is_rejected_at_every_scale(save, capfd):
    data = encode(Image.fromarray(photo(600, 450)), "JPEG", **save)
    for share in (0.3, 0.6, 0.9, 0.98):
        for long_side in (None, 300, 128, 40):
            assert reason_of(data[: int(share * len(data))], long_side=long_side) == "truncated"
    damaged = bytearray(data)
    damaged[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    assert read_rgb(bytes(damaged), long_side=128).shape == (96, 128, 3), "what viewers show, too"
    assert capfd.readouterr() == ("", ""), "a decoder wrote to the terminal"


def test_a_jpeg_of_endless_scans_is_refused():
    data = encode(Image.new("RGB", (640, 480)), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    assert read_rgb(data[:-2] + 20 * last + data[-2:]).shape == (480, 640, 3)
    assert reason_of(data[:-2] + 1000 * last + data[-2:]) == "unreadable"


def test_memory_and_recursion_errors_have_a_reason(monkeypatch):
    for error, reason in (
        (MemoryError(), "too_large"),
        (RecursionError("deep"), "unreadable"),
        (AssertionError(), "unreadable"),
    ):

        def fail(*args, error=error):
            raise error

        monkeypatch.setattr(images, "_to_rgb", fail)
        assert reason_of(encode(Image.fromarray(ramp()))) == reason


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
def test_icons_are_measured_before_pillow_decodes_them():
    def icon(frame: bytes) -> bytes:
        return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(frame), 22) + frame

    assert reason_of(icon(encode(Image.new("L", (700, 500)))), max_pixels=340_000) == "too_large"
    assert read_rgb(icon(encode(Image.new("L", (700, 500)))), max_pixels=350_000).shape == (
        500,
        700,
        3,
    )
    assert (
        reason_of(
            icon(struct.pack("<IiiHHIIiiII", 40, 700, 1000, 1, 32, *[0] * 6)), max_pixels=340_000
        )
        == "too_large"
    )
    assert reason_of(b"\0\0\1\0\0\0") == "unreadable"


def test_large_files_are_rejected_unread(tmp_path):
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    assert reason_of(path) == "too_large"


@pytest.mark.timing
@pytest.mark.parametrize(
    ("width", "height"), [(20_000, 20_000), (200_000, 200_000), (2**31 - 1, 2**31 - 1)]
)
def test_bombs_are_rejected_by_their_header(width, height):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    )
    bomb += chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")
    begin = time.perf_counter()
    assert reason_of(bomb) == "too_large"
    assert time.perf_counter() - begin < 0.5


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_words_of_a_png_stay_small(name):
    bomb = zlib.compress(bytes(50_000_000), 9)
    block = name + b"a\0" + (b"\1\0\0\0" if name == b"iTXt" else b"\0") + bomb
    png = encode(Image.fromarray(ramp()))
    data = (
        png[:33]
        + struct.pack(">I", len(block) - 4)
        + block
        + struct.pack(">I", zlib.crc32(block))
        + png[33:]
    )
    tracemalloc.start()
    assert reason_of(data) == "unreadable"
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore")
def test_random_damage_never_raises_anything_else():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "ICO"):
        data = encode(Image.fromarray(ramp()), kind)
        for _ in range(40):
            bad = bytearray(data[: int(rng.integers(1, len(data)))] if rng.random() < 0.5 else data)
            for place in rng.integers(0, len(bad), 3):
                bad[place] = rng.integers(256)
            try:
                rgb = read_rgb(
                    bytes(bad), max_pixels=1_000_000, long_side=(None, 40, 16)[int(rng.integers(3))]
                )
            except ImageError:
                continue
            assert rgb.dtype == np.uint8
            assert rgb.ndim == 3
            assert rgb.shape[2] == 3


# endregion

# region files that broke other readers; local, not part of the project


def expectations() -> list[dict[str, str]]:
    table = DATA / "bad_files/pillow_tests/expect.csv"
    if not table.is_file():
        pytest.skip(f"{table} is not here")
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def loads(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        return True
    except Exception:
        return False


@pytest.mark.timing
@pytest.mark.filterwarnings("ignore")
def test_files_that_broke_pillow():
    odd = []
    for row in expectations():
        data = (DATA / "bad_files/pillow_tests" / row["file"]).read_bytes()
        begin = time.perf_counter()
        try:
            small = read_rgb(data, min_side=1, long_side=50).shape
            rgb, reason = read_rgb(data, min_side=1), ""
            assert rgb.dtype == np.uint8
            assert rgb.ndim == 3
            assert rgb.shape[2] == 3
            assert max(small) <= 50
        except ImageError as error:
            reason = error.reason
        assert time.perf_counter() - begin < 2, row["file"]
        if (
            row["format"] == "AVIF"
            and not features.check("avif")
            or row["format"] == "TIFF"
            and reason
            and not loads(data)
        ):
            continue  # this Pillow reads less than the one that wrote the table
        if row["pillow_result"] == "ok" and row["format"] in FORMATS + ("MPO",):
            width, height = map(int, row["size"].strip("()").split(","))
            if reason:
                odd.append((row["file"], "rejected", reason))
            elif {rgb.shape[0], rgb.shape[1]} != {width, height}:
                odd.append((row["file"], rgb.shape, (width, height)))
        elif not reason:
            odd.append((row["file"], "read", row["pillow_result"]))
        if (
            row["pillow_result"] == "ok"
            and row["format"] not in FORMATS + ("MPO",)
            and reason != "format"
        ):
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
    found = (
        sorted(p for p in (DATA / "odd_files").rglob("*") if p.is_file()) if DATA.is_dir() else []
    )
    if not found:
        pytest.skip(f"{DATA / 'odd_files'} is not here")
    for path in found:
        if path.suffix.lower() not in images.SUFFIXES:
            continue
        with Image.open(path) as image:
            width, height = ImageOps.exif_transpose(image).size
        assert read_rgb(path, min_side=1).shape == (height, width, 3), path.name


# endregion


def test_a_photo_of_an_iphone_is_told_from_rubbish():
    with pytest.raises(images.ImageError, match="export it as JPEG") as caught:
        images.read_rgb(b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(2000))
    assert caught.value.reason == "format"
