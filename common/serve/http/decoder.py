"""Risky photos, read in a process of its own: a thread that decodes cannot be ended, a process can.

Ordinary photos never come here. The process starts with the first risky one, reads one at a time,
is ended by its own alarm where one takes too long, and ends with the server.
"""

import asyncio
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from PIL import AvifImagePlugin

from common.images import ImageError, NeedsMemory
from common.serve.http.work_queue import Busy, settle_process
from common.serve.photos import Photo, read_at_size

# how BMP, TIFF, GIF, and ICO or AVIF begin
RISKY = (b"BM", b"II", b"MM", b"GI", b"\0\0")
LIGHT = 24_000_000  # bytes that decoding takes: 3 megapixels of PNG, 64 of a baseline JPEG
MOST = 128_000_000  # bytes, of one photo at a time: 16 megapixels of PNG
SECONDS = 10  # for one photo; 16 megapixels of PNG take one
WAITING = 8  # risky photos at a time; more are sent away
_SPARE = 256_000_000  # bytes of addresses beside: the upload, and where estimates fall short


class Decoder:
    """Reads photos at `size` px a side in a process of its own, first come, first served.

    long_side: px, to which a photo is shrunk first, or None; max_pixels: of a photo; seconds: that
    it may take.
    """

    def __init__(
        self, size: int, long_side: int | None, max_pixels: int, seconds: int = SECONDS
    ) -> None:
        self.size, self.seconds = size, seconds
        self.limits = {"long_side": long_side, "max_pixels": max_pixels}
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self.process: subprocess.Popen[bytes] | None = None
        self.waiting = 0

    async def read(self, photo: bytes) -> Photo:
        """Read a photo. Raises ImageError, also where it takes too long; Busy where others wait."""
        if self.waiting >= WAITING:
            raise Busy("busy")
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, self._ask, photo)
        finally:
            self.waiting -= 1

    def _ask(self, photo: bytes) -> Photo:
        if self.process is None or self.process.poll() is not None:
            self._end()
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    __name__,
                    json.dumps([self.seconds, self.size, self.limits]),
                ],
                cwd=Path(__file__).resolve().parents[3],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        try:
            self.process.stdin.write(struct.pack("<Q", len(photo)))
            self.process.stdin.write(photo)
            self.process.stdin.flush()
            told = json.loads(self.process.stdout.readline())
            if "error" in told:
                raise ImageError(*told["error"])
            pixels = np.frombuffer(self.process.stdout.read(3 * self.size**2), np.uint8)
            return Photo(pixels.reshape(self.size, self.size, 3), told["width"], told["height"])
        except ImageError:
            raise
        except (OSError, ValueError):  # it has ended
            late = self._end() == -getattr(signal, "SIGALRM", 0)
            why = f"decoding it takes longer than {self.seconds} s" if late else "decoding it fails"
            raise ImageError("unreadable", f"{why}; send it as a JPEG") from None

    def stop(self) -> None:
        """End the process, and drop what waits for it."""
        self.thread.shutdown(wait=False, cancel_futures=True)
        self._end()

    def _end(self) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.kill()
        for pipe in (process.stdout, process.stdin):
            with contextlib.suppress(OSError):  # what was not written
                pipe.close()
        return process.wait()


def serve(
    source: IO[bytes], answers: IO[bytes], seconds: int, size: int, limits: dict[str, int | None]
) -> None:
    """Read photos from `source` until it ends, each behind its length, and write a line of JSON
    for each: an ImageError's reason and message; or width and height, and then the pixels.
    """
    while head := source.read(8):
        photo = source.read(*struct.unpack("<Q", head))
        try:
            try:
                read = _read(seconds, photo, size, max_bytes=LIGHT, **limits)
            except NeedsMemory as large:
                if large.needed > MOST:
                    raise
                with _alone():
                    read = _read(seconds, photo, size, max_bytes=MOST, **limits)
            told, pixels = {"width": read.width, "height": read.height}, read.pixels.tobytes()
        except ImageError as error:
            told, pixels = {"error": [error.reason, str(error)]}, b""
        answers.write(json.dumps(told).encode() + b"\n" + pixels)
        answers.flush()


def _read(seconds: int, photo: bytes, size: int, **limits: int | None) -> Photo:
    if not hasattr(signal, "alarm"):  # Windows
        return read_at_size(photo, size, **limits)
    signal.alarm(seconds)  # nothing handles it: it ends the process
    try:
        return read_at_size(photo, size, **limits)
    finally:
        signal.alarm(0)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other worker of this server decodes a large photo."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")  # that of several workers
    if folder is None:
        yield
        return
    import fcntl  # not on Windows, where there are no several workers on one port

    with open(Path(folder) / "decoder.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a process that is ended gives it back
        yield


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # a drain goes on; it ends with its input
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print
    settle_process()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with contextlib.suppress(ImportError, OSError):  # Linux
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MOST + _SPARE,) * 2)
    try:
        serve(sys.stdin.buffer, answers, *json.loads(sys.argv[1]))
    except BrokenPipeError:  # its server was killed
        os._exit(0)  # now: on the way out Python would write the rest again, and complain


if __name__ == "__main__":
    _main()
