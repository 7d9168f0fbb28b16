"""Batches for a GPU, of the pictures that requests, or the photos of --predict, bring at one time.

A lane is a thread that takes what waits, at most a full batch, and runs it. There are two, so that
one copies while the other computes; ONNX Runtime's sessions may be run by several threads at once.
(Its I/O binding is not used: it copies to and from the device under Python's lock, and the decoding
threads would stand still; `session.run` lets go of the lock.)
"""

import atexit
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from common.serve.predictor import SIZES, BundleError, Outputs

LANES = 2


class Batcher:
    """Runs pictures in batches on `LANES` threads of its own; usable from several threads at once.

    A picture that finds a lane idle runs at once; those that come meanwhile run together.

    Args:
        run: runs a batch, uint8 (N, size, size, 3) with N one of `sizes`; called by the lanes.
        size: the pictures' side in px.
        sizes: of batches, in rising order.

    Raises:
        BundleError: where a size of batch does not run; each lane has run all of them before this
            returns.
    """

    def __init__(
        self, run: Callable[[np.ndarray], Outputs], size: int, sizes: Sequence[int] = SIZES
    ) -> None:
        self._run, self._sizes = run, sizes
        self._stopped, self._changed = False, threading.Condition()
        self._waiting: deque[tuple[np.ndarray, Future[Outputs]]] = deque()
        warm: list[Future[None]] = [Future() for _ in range(LANES)]
        self._lanes = [
            threading.Thread(target=self._lane, args=(size, one), daemon=True) for one in warm
        ]
        for lane in self._lanes:
            lane.start()
        try:
            for one in warm:
                one.result()
        except BaseException:  # Ctrl-C too
            self.stop()  # or the other lane would keep the session
            raise
        atexit.register(self._leave)

    def submit(self, pictures: np.ndarray) -> "Future[Outputs]":
        """Have uint8 (N, size, size, 3), N from 1 to `sizes[-1]`, run within one batch.

        Returns:
            a future of their outputs, N rows each, or of what the model raised. One that is
            cancelled before its batch begins is not run.
        """
        if not 1 <= len(pictures) <= self._sizes[-1]:
            raise ValueError(f"{len(pictures)} pictures at once; 1 to {self._sizes[-1]} are run")
        future: Future[Outputs] = Future()
        with self._changed:
            self._waiting.append((pictures, future))
            self._changed.notify()
        return future

    def stop(self) -> None:
        """Run what waits, then end the lanes."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for lane in self._lanes:
            lane.join()

    def _leave(self) -> None:
        """At the end of the process, where nobody waits any longer: let the lanes end their runs.
        A thread that is inside ONNX Runtime by then would abort the process.
        """
        with self._changed:
            self._waiting.clear()
        self.stop()

    def _lane(self, size: int, warm: "Future[None]") -> None:
        buffer = np.zeros((self._sizes[-1], size, size, 3), np.uint8)
        try:
            for count in self._sizes:
                self._run(buffer[:count])
            warm.set_result(None)
        except Exception as error:  # the runtime's exceptions share no base class of their own
            told = f"the model does not run in batches of {count}: {str(error)[:300]}"
            return warm.set_exception(BundleError(told))
        while batch := self._take():
            batch = [one for one in batch if one[1].set_running_or_notify_cancel()]
            try:
                self._serve(batch, buffer)
            except Exception as error:  # of the model: it concerns this batch alone
                for _, future in batch:
                    future.set_exception(error)
            del batch  # an idle lane must not hold on to pictures

    def _take(self) -> list[tuple[np.ndarray, "Future[Outputs]"]]:
        """Wait for pictures, and take what is there of them, up to a full batch; none at the
        end.
        """
        batch, rows = [], 0
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            while self._waiting and (rows := rows + len(self._waiting[0][0])) <= self._sizes[-1]:
                batch.append(self._waiting.popleft())
        return batch

    def _serve(self, batch: list[tuple[np.ndarray, "Future[Outputs]"]], buffer: np.ndarray) -> None:
        if not (rows := sum(len(pictures) for pictures, _ in batch)):
            return
        np.concatenate([pictures for pictures, _ in batch], out=buffer[:rows])
        # what else the buffer holds fills the batch up
        found = self._run(buffer[: next(size for size in self._sizes if size >= rows)])
        start = 0
        for pictures, future in batch:
            part = slice(start, start := start + len(pictures))
            future.set_result(
                Outputs(found.probabilities[part], found.ood[part], found.heatmap[part])
            )
