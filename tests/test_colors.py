"""Deep pictures are as bright as they were meant, and colours of every profile are sRGB's."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_profiles import encoded, in_srgb, profile

from common import images
from common.images import ImageError, color_profile, read_rgb

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
HUES = np.stack([RAMP, RAMP[::-1], RAMP.T], -1)


def by_opencv(values: np.ndarray, ending: str = ".png") -> bytes:
    """Encode uint16 or float RGB or RGBA; Pillow cannot."""
    order = {2: (), 3: (2, 1, 0), 4: (2, 1, 0, 3)}[values.shape[2] if values.ndim > 2 else 2]
    return cv2.imencode(ending, values[..., order] if order else values)[1].tobytes()


def encode(image: Image.Image, kind: str = "PNG", **save) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)
    return buffer.getvalue()


def off(data: bytes, want: np.ndarray) -> float:
    """Largest difference of what is read from shares of white."""
    return np.abs(read_rgb(data).astype(float) - 255 * want.reshape(64, 64, -1)).max()


# region deep pictures


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_fewer_bits_in_16_are_as_bright_as_they_were_meant(bits, ending):
    top = 2**bits - 1
    for shares in (RAMP, HUES):
        assert off(by_opencv((shares * top).round().astype(np.uint16), ending), shares) <= 1.5
    alpha = np.full((64, 64, 1), 65535)
    rgba = np.dstack([(HUES * top).round(), alpha]).astype(np.uint16)
    assert off(by_opencv(rgba, ending), HUES) <= 1.5
    rgba[:, :32, 3] = 0
    assert (read_rgb(by_opencv(rgba, ending))[:, :32] == 255).all(), "alpha shows white"
    # a photo that uses a third of its ten bits is as dark as it was
    third = (HUES * top / 3).round().astype(np.uint16)
    if bits != 12:
        assert off(by_opencv(third, ending), HUES / 3) <= 1.5


def test_16_bits_in_use_are_read_as_ever():
    for top in (65535, 30000, 4200):
        deep = (HUES * top).astype(np.uint16)
        for ending in (".png", ".tiff"):
            assert np.array_equal(read_rgb(by_opencv(deep, ending)), deep >> 8)
        grey = read_rgb(encode(Image.fromarray(deep[..., 0])))
        assert np.array_equal(grey[..., 1], (deep[..., 0] * (255.0 / 65535)).astype(np.uint8))


def test_a_dark_photo_of_8_bits_stays_as_it_is():
    dark = (HUES * 4).round().astype(np.uint8)
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(read_rgb(encode(Image.fromarray(dark), kind)), dark)
    assert (read_rgb(encode(Image.new("L", (40, 40)))) == 0).all()


def test_single_wrong_pixels_do_not_count():
    deep = (HUES * 1023).round().astype(np.uint16)
    deep[5, 7] = 65535
    assert read_rgb(by_opencv(deep))[6:].max() > 240
    floats = RAMP.astype(np.float32)
    floats[3, 3], floats[3, 4], floats[3, 5] = np.nan, np.inf, 3.4e38
    assert (
        np.abs(read_rgb(encode(Image.fromarray(floats), "TIFF"))[4:, :, 0] - 255 * RAMP[4:]).max()
        <= 1.5
    )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("most", [0.8, 1, 1.04, 100, 200, 255, 1000])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_by_the_range_in_use(most, kind):
    # what is as good as a known range is by that range
    white = {0.8: 1, 200: 255, 1000: 1023, 100: 255}.get(most, most)
    for shares in (RAMP, HUES):
        data = by_opencv((shares * most).astype(kind), ".tiff")
        assert off(data, shares * most / white) <= 1.5
    data = by_opencv((HUES * most).astype(kind), ".tiff")
    assert read_rgb(data, long_side=40).shape == (40, 40, 3)
    for cut in (0.3, 0.6, 0.9):
        with pytest.raises(ImageError):
            read_rgb(data[: int(cut * len(data))])


def test_floats_of_other_ranges_by_their_own():
    for most in (0.02, 7, 40, 2e6):
        data = encode(Image.fromarray((RAMP * most).astype(np.float32)), "TIFF")
        assert off(data, RAMP) <= 1.5


def test_what_is_black_in_any_range_is_refused():
    for values in (np.zeros((64, 64, 3)), HUES * 12, RAMP * 12, np.zeros((64, 64))):
        for ending in (".png", ".tiff"):
            with pytest.raises(ImageError, match="black") as caught:
                read_rgb(by_opencv(values.astype(np.uint16), ending))
            assert caught.value.reason == "dark"
    for low in (0, -5):
        with pytest.raises(ImageError, match="black") as caught:
            read_rgb(encode(Image.fromarray(np.full((64, 64), low, np.float32)), "TIFF"))
        assert caught.value.reason == "dark"


def test_grey_with_alpha_and_turned_floats():
    def chunk(name: bytes, data: bytes) -> bytes:
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    values = np.stack([(RAMP * 1023).round(), np.full((64, 64), 65535)], -1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 4, 0, 0, 0))
    assert off(png + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""), RAMP) <= 1.5
    wide = np.repeat(HUES, 2, axis=1).astype(np.float32)
    head = b"II*\0" + struct.pack("<I", 8 + wide.nbytes + 12)
    at, tags = 8 + wide.nbytes, b""
    for tag, kind, count, value in (
        *((256, 3, 1, 128), (257, 3, 1, 64), (258, 3, 3, at), (259, 3, 1, 1), (262, 3, 1, 2)),
        *((273, 4, 1, 8), (274, 3, 1, 6), (277, 3, 1, 3), (278, 3, 1, 64)),
        *((279, 4, 1, wide.nbytes), (339, 3, 3, at + 6)),
    ):
        tags += struct.pack("<HHII", tag, kind, count, value)
    data = head + wide.tobytes() + struct.pack("<6H", 32, 32, 32, 3, 3, 3)
    data += struct.pack("<H", 11) + tags + bytes(4)
    assert np.abs(read_rgb(data) - 255 * np.rot90(wide, -1)).max() <= 1.5
    assert read_rgb(data, long_side=64).shape == (64, 32, 3)


def test_large_pictures_of_many_bits_are_not_decoded_twice(monkeypatch):
    monkeypatch.setattr(images, "MAX_DEEP", 64 * 63)
    with pytest.raises(ImageError, match="more than 8 bits") as caught:
        read_rgb(by_opencv((HUES * 1023).astype(np.uint16)))
    assert caught.value.reason == "too_large"
    assert read_rgb(by_opencv((HUES * 65535).astype(np.uint16))).shape == (64, 64, 3)


# endregion

# region colour profiles


def colors() -> np.ndarray:
    """Colours of leaves, soil and flowers, and the corners of the cube, uint8 (64, 64, 3)."""
    rng = np.random.default_rng(0)
    found = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    found[:8] = np.repeat(rng.choice([0, 255], (8, 8, 3)), 8, axis=1)
    return found


@pytest.mark.parametrize(
    ("name", "stored", "wanted"),
    [
        ("Display P3", (255, 0, 0), (255, 0, 0)),  # redder than sRGB can say
        ("Display P3", (200, 80, 60), (216, 69, 50)),
        ("Display P3", (90, 140, 60), (73, 142, 46)),
        ("Adobe RGB", (90, 140, 60), (52, 141, 50)),
        ("Adobe RGB", (200, 180, 40), (209, 182, 0)),
        ("ProPhoto", (90, 110, 60), (101, 133, 64)),
        ("sRGB", (90, 140, 60), (90, 140, 60)),
    ],
)
def test_colours_of_profiles(name, stored, wanted):
    assert np.abs(in_srgb(np.array(stored), name) - wanted).max() < 1, "by the formulas"
    for kind, save in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = encode(Image.new("RGB", (40, 40), stored), kind, icc_profile=profile(name), **save)
        assert np.abs(read_rgb(data)[20, 20].astype(int) - wanted).max() <= 2, kind
        small = read_rgb(data, long_side=32)
        assert np.abs(small[20, 20].astype(int) - wanted).max() <= 2, kind
    data = encode(Image.new("RGB", (40, 40), stored), "JPEG", icc_profile=profile(name))
    assert np.abs(read_rgb(data)[20, 20].astype(int) - wanted).max() <= 4


@pytest.mark.parametrize("name", ["Display P3", "Adobe RGB", "ProPhoto"])
def test_every_colour_of_a_profile(name):
    data = encode(Image.fromarray(colors()), icc_profile=profile(name))
    apart = np.abs(read_rgb(data) - in_srgb(colors().astype(float), name))
    assert apart.max() < 3
    assert apart.mean() < 0.5
    with Image.open(io.BytesIO(data)) as image:
        assert color_profile(image) == "converted"


def test_srgb_under_any_name_changes_nothing():
    pillow_s = images.ImageCms.ImageCmsProfile(images.ImageCms.createProfile("sRGB")).tobytes()
    for made in (profile("sRGB"), pillow_s):
        data = encode(Image.fromarray(colors()), icc_profile=made)
        assert np.array_equal(read_rgb(data), colors())
        with Image.open(io.BytesIO(data)) as image:
            assert color_profile(image) == ""


def test_greys_by_a_profile_of_greys():
    grey = np.arange(256, dtype=np.uint8).repeat(16).reshape(64, 64)
    wanted = encoded((grey / 255) ** 1.80078125)
    for image in (Image.fromarray(grey), Image.fromarray(np.dstack([grey, grey | 255]), "LA")):
        rgb = read_rgb(encode(image, icc_profile=profile("grey")))
        assert np.abs(rgb - wanted[..., None]).max() < 2
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    rgb = read_rgb(encode(deep, "TIFF", icc_profile=profile("grey")))
    assert np.abs(rgb - wanted[..., None]).max() < 3
    # a profile of colours on a grey picture: its curve counts
    rgb = read_rgb(encode(Image.fromarray(grey), icc_profile=profile("ProPhoto")))
    assert np.abs(rgb - wanted[..., None]).max() < 2


def test_inks_by_their_profile():
    for inks, wanted in (((0, 0, 0, 0), 255), ((255, 0, 0, 0), 119), ((255, 255, 0, 0), 0)):
        data = encode(Image.new("CMYK", (40, 40), inks), "TIFF", icc_profile=profile("inks"))
        assert np.abs(read_rgb(data)[9, 9].astype(int) - wanted).max() <= 3
        plain = encode(Image.new("CMYK", (40, 40), inks), "TIFF")
        assert np.array_equal(
            read_rgb(plain)[9, 9], np.asarray(Image.new("CMYK", (1, 1), inks).convert("RGB"))[0, 0]
        )


def test_transparent_and_palette_pictures_have_a_profile_too():
    rgba = Image.new("RGBA", (40, 40), (90, 140, 60, 255))
    rgba.paste((0, 0, 0, 0), (0, 0, 20, 40))
    for image in (rgba, rgba.quantize(4)):
        rgb = read_rgb(encode(image, icc_profile=profile("Adobe RGB"))).astype(int)
        assert np.abs(rgb[20, 30] - (52, 141, 50)).max() <= 2
        assert rgb[20, 5].min() >= 254, "white stays white"


def test_broken_profiles_are_ignored():
    good = profile("Display P3")
    damaged = bytearray(good)
    damaged[36:40] = b"nope"
    for broken in (b"no profile", good[:100], bytes(damaged), profile("grey"), profile("inks")):
        data = encode(Image.fromarray(colors()), icc_profile=broken)
        assert np.array_equal(read_rgb(data), colors())
        with Image.open(io.BytesIO(data)) as image:
            assert color_profile(image) == "broken"
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(good if rng.random() < 0.7 else profile("inks"))
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] = rng.integers(256)
        data = encode(Image.fromarray(colors()), "TIFF", icc_profile=bytes(damaged))
        assert read_rgb(data).shape == (64, 64, 3)


# endregion
