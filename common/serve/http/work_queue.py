"""The work behind the server: a pool of threads, and a bounded number of requests.

Reading and running a photo is one job on one thread, with a thread per core and a model session of
one thread: neither two stages with a queue between them nor batches are faster on a CPU. A GPU
needs batches: there the job ends with the photo read, and `Batcher` has threads of its own.
"""

import asyncio
import contextlib
import ctypes
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import cv2
from PIL import _imaging

M_MMAP_THRESHOLD = -3  # from glibc's malloc.h
Result = TypeVar("Result")


class Busy(Exception):
    """There is no place for another request: `reason` is `busy` or `draining`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ClientGone(Exception):
    """The client left before its answer was ready."""


class WorkQueue:
    """A pool of `runners` threads that admits at most `runners + waiting` requests, and `memory`
    bytes of their bodies, at a time.

    Its methods are called on the event loop; jobs run on the threads, first come, first served.
    """

    def __init__(self, runners: int, waiting: int, memory: int) -> None:
        self.executor = ThreadPoolExecutor(runners, thread_name_prefix="runner")
        self.places, self.memory = runners + waiting, memory
        self.taken = self.held = 0
        self.draining = False
        self.waited: Callable[[float], Any] = lambda _: None  # called with a job's queueing time

    @contextlib.contextmanager
    def place(self, size: int) -> Iterator[None]:
        """Hold a place, and `size` bytes, for one request. Raises Busy where there is none."""
        if self.draining:
            raise Busy("draining")
        if self.taken >= self.places or (self.taken and self.held + size > self.memory):
            raise Busy("busy")
        self.taken += 1
        self.held += size
        try:
            yield
        finally:
            self.taken -= 1
            self.held -= size

    async def on_runner(
        self, job: Callable[..., Result], *arguments: Any, **options: Any
    ) -> Result:
        """Call a job on the next free runner. One that is cancelled before is not called."""
        begun = time.perf_counter()

        def timed() -> Result:
            self.waited(time.perf_counter() - begun)
            return job(*arguments, **options)

        return await asyncio.get_running_loop().run_in_executor(self.executor, timed)

    async def run(
        self, work: Sequence[Awaitable[Result]], gone: Callable[[], Awaitable[Any]]
    ) -> list[Result]:
        """Wait for all parts of a request's work; what has not begun is dropped when one fails or
        the client leaves.

        Args:
            work: coroutines that call `on_runner`.
            gone: makes an awaitable that ends when the client has left.

        Raises:
            ClientGone: where the client left. Whatever a part raises.
        """
        tasks = [asyncio.ensure_future(one) for one in work]
        left = asyncio.ensure_future(gone())
        try:
            open_ = set(tasks)
            while open_:
                done, _ = await asyncio.wait({*open_, left}, return_when=asyncio.FIRST_COMPLETED)
                for task in done & open_:
                    task.result()  # a part that failed ends the others at once
                open_ -= done
                if open_ and left in done:
                    raise ClientGone
            return [task.result() for task in tasks]
        finally:
            left.cancel()
            for task in tasks:
                task.cancel()
                if task.done() and not task.cancelled():
                    task.exception()  # retrieved, else asyncio would warn of it

    def stop(self) -> None:
        """Let running jobs end, and start no more."""
        self.executor.shutdown(wait=True, cancel_futures=True)


def settle_process() -> None:
    """Set up a process to serve: OpenCV uses no threads of its own, libtiff writes no warnings, and
    freed pictures go back to the system, of which glibc would keep hundreds of megabytes.
    """
    cv2.setNumThreads(1)
    silence_libtiff()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc: macOS, Windows, musl
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def silence_libtiff() -> None:
    """Keep libtiff from writing about damaged uploads to stderr; the answer says what is wrong."""
    # fails where Pillow brings no shared libtiff; its symbols are found through the module's own
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
