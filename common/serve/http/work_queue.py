"""The work behind the server: a pool of threads, and a bounded number of requests, of which nobody
may keep the others out: not one client's many, and not those whose bodies do not come.

Reading and running a photo is one job on one thread, with a thread per core and a model session of
one thread: neither two stages with a queue between them nor batches are faster on a CPU. A GPU
needs batches: there the job ends with the photo read, and `Batcher` has threads of its own.
"""

import asyncio
import contextlib
import ctypes
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import cv2
from PIL import _imaging
from starlette.types import Message, Receive

M_MMAP_THRESHOLD = -3  # from glibc's malloc.h
SHARE = 0.5  # of places and memory for one client, while there are others
# an upload is late after so many s of silence, or where it comes at fewer bytes/s
SILENCE, SLOWEST = 3.0, 10_000
Result = TypeVar("Result")


class Busy(Exception):
    """There is no place for a request, or it has lost its own: `reason` is `busy`, `draining`,
    `too_many` (of its client, while there are others) or `too_slow` (its body, while others wait).
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ClientGone(Exception):
    """The client left before its answer was ready."""


class Place:
    """What a request holds while it is under way; `lost` says why it had to give it up."""

    def __init__(self, client: str, size: int) -> None:
        self.client, self.size, self.lost = client, size, ""
        self.task = asyncio.current_task()
        self.due = time.monotonic() + SILENCE  # when its upload is late

    def watch(self, receive: Receive) -> Receive:
        """The ASGI `receive` of the request, through which the upload is followed."""

        async def watched() -> Message:
            message = await receive()
            if message.get("more_body"):
                paid = self.due + len(message["body"]) / SLOWEST
                self.due = min(paid, time.monotonic() + SILENCE)
            else:
                self.due = math.inf
            return message

        return watched


class WorkQueue:
    """A pool of `runners` threads that admits at most `runners + waiting` requests, and `memory`
    bytes of their bodies, at a time.

    One client may take them all while it is alone. When nothing is free for another, late uploads
    give way, and then the latest request of whoever has more than its share.

    Its methods are called on the event loop; jobs run on the threads, first come, first served.
    """

    def __init__(self, runners: int, waiting: int, memory: int) -> None:
        self.executor = ThreadPoolExecutor(runners, thread_name_prefix="runner")
        self.places, self.memory = runners + waiting, memory
        self.open: dict[Place, None] = {}  # in the order of their coming
        self.counts: Counter[str] = Counter()  # by client: places,
        self.sizes: Counter[str] = Counter()  # and bytes
        self.draining = False
        self.waited: Callable[[float], Any] = lambda _: None  # called with a job's queueing time

    @property
    def taken(self) -> int:
        """Places held."""
        return len(self.open)

    @property
    def held(self) -> int:
        """Bytes held."""
        return self.sizes.total()

    @contextlib.contextmanager
    def place(self, size: int, client: str = "") -> Iterator[Place]:
        """Hold a place, and `size` bytes, for the request of this task. Raises Busy where there is
        none, and where it has to be given up.
        """
        if self.draining:
            raise Busy("draining")
        mine = self.counts[client]
        if mine and self.taken > mine and self._use(client, 1, size) > SHARE:
            raise Busy("too_many")
        while self.taken >= self.places or (self.taken and self.held + size > self.memory):
            self._make_room(client)
        place = Place(client, size)
        self.open[place] = None
        self.counts[client] += 1
        self.sizes[client] += size
        try:
            yield place
        except asyncio.CancelledError:
            if not place.lost:
                raise
            raise Busy(place.lost) from None
        finally:
            self._leave(place)

    def end_all(self) -> None:
        """Make the requests that are under way give up their places; called again until none is."""
        for place in self.open:
            place.lost = "draining"
            place.task.cancel()

    def _use(self, client: str, places: int = 0, size: int = 0) -> float:
        """The share of places or of memory that a client holds, whichever is larger, with so much
        more.
        """
        return max(
            (self.counts[client] + places) / self.places,
            (self.sizes[client] + size) / self.memory,
        )

    def _make_room(self, client: str) -> None:
        """End a request of others for one of this client. Raises Busy where none gives way."""
        place, reason = min(self.open, key=lambda one: one.due), "too_slow"
        if place.due > time.monotonic():
            most, reason = max(self.counts, key=self._use), "too_many"
            if most == client or self._use(most) <= SHARE:
                raise Busy("busy")
            place = next(one for one in reversed(self.open) if one.client == most)
        self._leave(place)
        place.lost = reason
        place.task.cancel()

    def _leave(self, place: Place) -> None:
        if place in self.open:
            del self.open[place]
            self.counts[place.client] -= 1
            self.sizes[place.client] -= place.size
            if not self.counts[place.client]:
                del self.counts[place.client], self.sizes[place.client]

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
        """Start no more jobs; the process ends with those that run."""
        self.executor.shutdown(wait=False, cancel_futures=True)


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
