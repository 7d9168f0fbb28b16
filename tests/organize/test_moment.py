"""When and with what a photo was taken, by its EXIF block."""

import io

import numpy as np
import pytest
from PIL import Image

from common.organize.moment import capture_moment

PLAIN = Image.new("RGB", (60, 40), (90, 140, 60))


def photo_of(kind: str = "JPEG", original: str = "", **tags: str) -> bytes:
    exif = Image.Exif()
    for name, tag in (("make", 0x010F), ("model", 0x0110), ("changed", 0x0132)):
        if name in tags:
            exif[tag] = tags[name]
    if original:
        exif.get_ifd(0x8769)[0x9003] = original
    buffer = io.BytesIO()
    PLAIN.save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_capture_moment(kind):
    full = {"make": "Canon", "model": "Canon EOS 5D ", "changed": "2020:01:02 03:04:05"}
    assert capture_moment(photo_of(kind, **full)) == "canon eos 5d 2020-01-02 03:04"
    assert (
        capture_moment(photo_of(kind, make="Apple", model="iPhone 6", changed=full["changed"]))
        == "apple iphone 6 2020-01-02 03:04"
    )
    if kind != "TIFF":  # Pillow writes no EXIF directory into a TIFF
        assert (
            capture_moment(photo_of(kind, "2019:06:01 14:03:22", **full))
            == "canon eos 5d 2019-06-01 14:03"
        )


def test_no_capture_moment():
    assert capture_moment(b"") == capture_moment(b"no picture") == capture_moment(photo_of()) == ""
    assert capture_moment(photo_of(original="2019:06:01 14:03:22")) == "", (
        "a minute alone would join photos of different people"
    )
    for never_set in (
        "0000:00:00 00:00:00",
        "1970:01:01 00:00:00",
        "2000:01:01 00:00:31",
        "    :  :     :  :  ",
        "2019",
    ):
        assert capture_moment(photo_of(original=never_set, make="Canon")) == ""
    data = photo_of(original="2019:06:01 14:03:22", make="Canon", model="EOS")
    assert capture_moment(data.replace(b"2019:06:01", b"2019:06:0\xff")) == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_photos_have_a_moment_or_none(kind):
    rng = np.random.default_rng(0)
    data = photo_of(kind, "2019:06:01 14:03:22", make="Canon", model="EOS")
    for _ in range(40):
        bad = bytearray(data[: int(rng.integers(1, len(data)))] if rng.random() < 0.5 else data)
        for place in rng.integers(0, len(bad), 3):
            bad[place] = rng.integers(256)
        assert isinstance(capture_moment(bytes(bad)), str)
