"""The engine behind the server: runner threads, a bounded number of requests, and batches where a
GPU wants them. No torch.

Reading, running and deciding a photo is one job on one thread, with a thread per core and a model
session of one thread: two stages with a queue between them, or batches, bring nothing on a CPU. A
GPU wants batches: there `Batcher` runs together whatever waits."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import _imaging

from common.serve.predictor import Outputs

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
Result = TypeVar("Result")


class Busy(Exception):
    """There is no place for another request: `reason` is `busy` or `draining`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Gone(Exception):
    """The client left before its answer was ready."""


class Engine:
    """A pool of `runners` threads that admits at most `runners + waiting` requests, and `memory`
    bytes of their bodies, at once.

    Its methods are called on the event loop; jobs run on the threads, first come, first served.
    """

    def __init__(self, runners: int, waiting: int, memory: int) -> None:
        self.executor = ThreadPoolExecutor(runners, thread_name_prefix="runner")
        self.places, self.memory = runners + waiting, memory
        self.taken = self.held = 0
        self.draining = False
        self.waited: Callable[[float], None] = lambda seconds: (
            None
        )  # told of each job's time in the queue, on the runner

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
            gone: makes what returns when the client has left.

        Raises:
            Gone: where the client left. Whatever a job raises.
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
                    raise Gone
            return [future.result() for future in work]
        finally:
            left.cancel()
            for future in work:
                future.cancel()
                if future.done() and not future.cancelled():
                    future.exception()  # seen, so that nothing complains of a second failure

    def stop(self) -> None:
        """Let running jobs end and take no more."""
        self.executor.shutdown(wait=True, cancel_futures=True)


class Batcher:
    """Runs together, up to `most`, the pictures that several threads bring while the model is busy
    with others.

    Nobody waits for company: a picture that finds the model idle runs at once. Batches are filled
    up to powers of two, since some providers compile a model anew for every size."""

    def __init__(self, run: Callable[[np.ndarray], Outputs], most: int = 32) -> None:
        self._run, self.most = run, most
        self._door, self._device = threading.Lock(), threading.Lock()
        self._waiting: list[_Ticket] = []

    def warm(self, size: int) -> None:
        """Run every size of batch once; `size` is the pictures' side in px."""
        count = 1
        while count <= self.most:
            self._run(np.zeros((count, size, size, 3), np.uint8))
            count *= 2

    def run(self, batch: np.ndarray) -> Outputs:
        """Run one picture, uint8 (1, size, size, 3), with the company there is. Raises what the
        model raises."""
        ticket = _Ticket(batch)
        with self._door:
            self._waiting.append(ticket)
        with self._device:
            while not ticket.done:  # whoever comes in first has run it along
                with self._door:
                    crew, self._waiting = self._waiting[: self.most], self._waiting[self.most :]
                self._serve(crew)
        if ticket.error is not None:
            raise ticket.error
        assert ticket.outputs is not None
        return ticket.outputs

    def _serve(self, crew: list[_Ticket]) -> None:
        try:
            pictures = np.concatenate([ticket.batch for ticket in crew])
            filled = np.zeros(
                (1 << (len(pictures) - 1).bit_length(), *pictures.shape[1:]), pictures.dtype
            )
            filled[: len(pictures)] = pictures
            found = self._run(filled)
            for i, ticket in enumerate(crew):
                ticket.outputs = Outputs(
                    found.probabilities[i : i + 1], found.ood[i : i + 1], found.heatmap[i : i + 1]
                )
        except Exception as error:
            for ticket in crew:
                ticket.error = error
        for ticket in crew:
            ticket.done = True


class _Ticket:
    def __init__(self, batch: np.ndarray) -> None:
        self.batch, self.done = batch, False
        self.outputs: Outputs | None = None
        self.error: Exception | None = None


def settle_process() -> None:
    """Make a process fit to serve: OpenCV stays on the runner's thread, libtiff keeps quiet, freed
    pictures go back to the system.

    glibc would keep hundreds of megabytes after a few large photos.
    """
    cv2.setNumThreads(1)
    silence_libtiff()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc: macOS, Windows, musl
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def silence_libtiff() -> None:
    """Keep libtiff from writing about damaged uploads to stderr; the answer says what is wrong."""
    with contextlib.suppress(
        OSError, AttributeError, TypeError
    ):  # where Pillow does not bring libtiff as a library of its own
        library = ctypes.CDLL(
            _imaging.__file__
        )  # the symbols of what it was linked with are found through it
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
