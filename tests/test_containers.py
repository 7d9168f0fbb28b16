"""Structure out of all proportion is told before a decoder sees it; real pictures pass."""

import io
import random
import time
from pathlib import Path

import mutations
import numpy as np
import pytest
from PIL import Image

from common import containers, images
from common.images import ImageError, NeedsMemory, read_rgb

DATA = Path(__file__).resolve().parents[2] / "shared/data"
COSTLY = mutations.costly(3_000_000)


@pytest.mark.parametrize("name", COSTLY)
def test_structure_out_of_proportion_is_unreadable_at_once(name):
    start = time.process_time()
    with pytest.raises(ImageError) as caught:
        read_rgb(COSTLY[name])
    assert time.process_time() - start < 0.3
    assert caught.value.reason == "unreadable"
    assert "save it again" in str(caught.value) or "text" in name


def test_a_tenth_of_every_bound_passes():
    comments = mutations.segment(0xFE, b"") * (containers.MOST_PARTS // 10)
    texts = mutations.chunk(b"tEXt", b"a\0b") * (containers.MOST_PARTS // 10)
    for data in mutations.whole():
        if data.startswith(b"\xff\xd8"):
            data = data[:2] + comments + b"\xff" * (containers.MOST_FILL // 10) + data[2:]
        elif data.startswith(b"\x89PNG"):
            data = data[:33] + texts + data[33:]
        assert read_rgb(data).size > 5000
    assert read_rgb(mutations.stripes(containers.MOST_VALUES // 10)).shape == (64, 64, 3)


def test_only_jpegs_that_need_all_coefficients_are_whole():
    for data in mutations.whole():
        assert containers.check(data) == (b"\xff\xc2" in data[:700] and data[:2] == b"\xff\xd8")
    plain = mutations.whole()[0]
    at = plain.index(b"\xff\xda")
    alone = plain[: at + 4] + b"\1\1\0\0\x3f\0" + plain[at + 14 :]  # a scan of one of its colours
    assert containers.check(alone)


def test_real_pictures_pass():
    """Every picture of the folder that is read without the check is read with it."""
    if not DATA.is_dir():
        pytest.skip("no real pictures here")
    refused = []
    files = [path for path in sorted(DATA.rglob("*")) if path.is_file()]
    for path in files:
        try:
            containers.check(path.read_bytes())
        except ValueError as error:
            refused.append(f"{path.name}: {error}")
    assert len(files) > 4000
    # two of Pillow's own tests of damaged files
    assert [one for one in refused if not one.startswith("crash-")] == []


def test_tags_are_read_once_whatever_they_point_at():
    """A directory whose values overlap is not unfolded, in EXIF either."""
    bomb = mutations.tiff([(1000 + i, 7, 60_000, 8) for i in range(900)], bytes(60_000))
    with pytest.raises(ValueError, match="bytes in its tags"):
        containers.check(bomb)
    for kind in ("PNG", "WEBP"):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 48)).save(buffer, kind, exif=b"Exif\0\0" + bomb)
        with pytest.raises(ImageError, match="bytes in its tags"):
            read_rgb(buffer.getvalue())
    text = b"Raw profile type exif\0\n\n\n" + bomb.hex().encode()
    png = mutations.whole()[5]
    assert read_rgb(png[:33] + mutations.chunk(b"tEXt", text) + png[33:]).shape == (48, 64, 3)


def test_what_decoding_takes_is_bounded():
    draw = random.Random(3)
    announced = [read_or_error(data) for data in mutations.giants(draw)]
    told = [str(one) for one in announced if isinstance(one, NeedsMemory)]
    assert len(told) >= 6
    assert all("send it smaller, or as a baseline JPEG" in one for one in told)
    large = io.BytesIO()
    Image.new("RGB", (8000, 8000), "green").save(large, "JPEG")
    assert read_or_error(large.getvalue(), long_side=512).shape == (512, 512, 3), "it is drafted"
    assert isinstance(read_or_error(large.getvalue()), NeedsMemory), "in full it is not"


def read_or_error(data: bytes, **limits: int) -> np.ndarray | ImageError:
    try:
        return read_rgb(data, max_bytes=100_000_000, **limits)
    except ImageError as error:
        return error


def test_large_profiles_are_not_kept():
    profile = bytes(images.MAX_PROFILE + 1)
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "WEBP", lossless=True, icc_profile=profile)
    assert (read_rgb(buffer.getvalue())[0, 0] == (255, 0, 0)).all()
    assert images._transform(profile) == ("", None)


def test_still_webp_is_as_pillow_reads_it():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (537, 553, 3), dtype=np.uint8))
    for save in ({"quality": 80}, {"lossless": True}):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", **save)
        want = np.asarray(Image.open(buffer).convert("RGB"))
        assert (read_rgb(buffer.getvalue()) == want).all()
