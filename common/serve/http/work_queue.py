"""The work behind the server: a pool of threads, a bounded number of requests, batches on a GPU.

Reading, running and deciding a photo is one job on one thread, with a thread per core and a model
session of one thread: neither two stages with a queue between them nor batches are faster on a CPU.
A GPU needs batches: there `Batcher` runs together whatever is waiting.
"""

import asyncio
import contextlib
import ctypes
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import _imaging

from common.serve.predictor import Outputs

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

    async def run(
        self, jobs: Sequence[Callable[[], Result]], gone: Callable[[], Awaitable[Any]]
    ) -> list[Result]:
        """Run jobs on the next free runners; those that have not begun are dropped when one fails
        or the client leaves.

        Args:
            jobs: called without arguments.
            gone: makes an awaitable that ends when the client has left.

        Raises:
            ClientGone: where the client left. Whatever a job raises.
        """
        loop, begun = asyncio.get_running_loop(), time.perf_counter()

        def timed(job: Callable[[], Result]) -> Result:
            self.waited(time.perf_counter() - begun)
            return job()

        work = [loop.run_in_executor(self.executor, timed, job) for job in jobs]
        left = asyncio.ensure_future(gone())
        try:
            open_ = set(work)
            while open_:
                done, _ = await asyncio.wait({*open_, left}, return_when=asyncio.FIRST_COMPLETED)
                for future in done & open_:
                    future.result()  # a failed job ends the others at once
                open_ -= done
                if open_ and left in done:
                    raise ClientGone
            return [future.result() for future in work]
        finally:
            left.cancel()
            for future in work:
                future.cancel()
                if future.done() and not future.cancelled():
                    future.exception()  # retrieved, else asyncio would warn of it

    def stop(self) -> None:
        """Let running jobs end, and start no more."""
        self.executor.shutdown(wait=True, cancel_futures=True)


class Batcher:
    """Runs the pictures that threads bring while the model is busy as one batch, of at most `most`.

    A picture that finds the model idle runs at once. Batches are padded to powers of two, as some
    providers compile a model anew for every size.
    """

    def __init__(self, run: Callable[[np.ndarray], Outputs], most: int = 32) -> None:
        self._run, self.most = run, most
        self._lock, self._device = threading.Lock(), threading.Lock()
        self._waiting: list[tuple[np.ndarray, Future[Outputs]]] = []

    def warm(self, size: int) -> None:
        """Run every size of batch once; `size` is the pictures' side in px."""
        for power in range(self.most.bit_length()):
            self._run(np.zeros((1 << power, size, size, 3), np.uint8))

    def run(self, batch: np.ndarray) -> Outputs:
        """Run one picture, uint8 (1, size, size, 3), together with those that wait. Raises what
        the model raises.
        """
        mine: Future[Outputs] = Future()
        with self._lock:
            self._waiting.append((batch, mine))
        with self._device:
            while not mine.done():  # another thread may have run it in its batch
                with self._lock:
                    waiting = self._waiting[: self.most]
                    del self._waiting[: self.most]
                self._serve(waiting)
        return mine.result()

    def _serve(self, waiting: list[tuple[np.ndarray, Future[Outputs]]]) -> None:
        try:
            pictures = np.concatenate([batch for batch, _ in waiting])
            padding = (1 << (len(pictures) - 1).bit_length()) - len(pictures)
            found = self._run(np.pad(pictures, ((0, padding), (0, 0), (0, 0), (0, 0))))
            for i, (_, future) in enumerate(waiting):
                row = slice(i, i + 1)
                future.set_result(
                    Outputs(found.probabilities[row], found.ood[row], found.heatmap[row])
                )
        except Exception as error:
            for _, future in waiting:
                future.set_exception(error)


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
