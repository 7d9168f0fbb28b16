"""Risky photos in a process of their own: the same pixels, a deadline, and no orphans."""

import asyncio
import json
import os
import signal
import struct
import subprocess
import sys
import time

import mutations
import numpy as np
import pytest
from conftest import ROOT

from common.images import ImageError
from common.serve.http import decoder
from common.serve.http.decoder import RISKY, Decoder
from common.serve.http.work_queue import Busy
from common.serve.photos import read_at_size

LIMITS = {"long_side": 64, "max_pixels": 64_000_000}


@pytest.fixture(scope="module")
def reader():
    made = Decoder(32, **LIMITS)
    yield made
    made.stop()


def test_the_same_pixels_and_errors_as_in_a_thread(reader):
    risky = [data for data in mutations.whole() if data[:2] in RISKY]
    assert len(risky) >= 4
    for data in [*risky, *(data[: len(data) // 2] for data in risky)]:
        try:
            want = read_at_size(data, 32, **LIMITS)
        except ImageError as error:
            with pytest.raises(ImageError) as caught:
                reader._ask(data)
            assert (caught.value.reason, str(caught.value)) == (error.reason, str(error))
            continue
        got = reader._ask(data)
        assert np.array_equal(got.pixels, want.pixels)
        assert (got.width, got.height) == (want.width, want.height)


def test_a_photo_that_takes_too_long_ends_its_process_alone():
    quick = Decoder(32, **LIMITS, seconds=1)
    try:
        start = time.perf_counter()
        with pytest.raises(ImageError, match="longer than 1 s; send it as a JPEG"):
            quick._ask(mutations.slow_bitmap(8_000_000))
        assert time.perf_counter() - start < 8
        assert quick._ask(mutations.whole()[11]).pixels.shape == (32, 32, 3), "another one reads on"
    finally:
        quick.stop()


def test_a_process_that_dies_is_an_answer(reader):
    reader._ask(mutations.whole()[11])
    reader.process.kill()
    reader.process.wait()
    assert reader._ask(mutations.whole()[11]).width == 64


def test_only_some_wait():
    async def many() -> list[BaseException | None]:
        asked = [full.read(b"") for _ in range(decoder.WAITING + 1)]
        return await asyncio.gather(*asked, return_exceptions=True)

    full = Decoder(32, **LIMITS)
    full._ask = lambda _: time.sleep(0.02)
    assert [type(one) for one in asyncio.run(many())].count(Busy) == 1
    assert full.waiting == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_process_ends_with_its_server():
    code = (
        "import mutations, time\n"
        "from common.serve.http.decoder import Decoder\n"
        "reader = Decoder(32, 64, 64_000_000)\n"
        "reader._ask(mutations.whole()[11])\n"
        "print(reader.process.pid, flush=True)\n"
        "time.sleep(60)"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )
    reader = int(server.stdout.readline())
    os.kill(reader, signal.SIGTERM)  # as a service manager sends it to all: the server drains
    server.kill()
    server.wait()
    server.stdout.close()
    end = time.monotonic() + 10
    while os.path.exists(f"/proc/{reader}") and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{reader}")


def test_a_server_that_is_killed_while_it_waits_leaves_no_traceback():
    photo, about = mutations.whole()[11], json.dumps([10, 32, LIMITS])
    reader = subprocess.Popen(
        [sys.executable, "-m", decoder.__name__, about],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    reader.stdout.close()
    assert reader.communicate(struct.pack("<Q", len(photo)) + photo)[1] == b""
    assert reader.returncode == 0
