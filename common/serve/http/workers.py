"""Several server processes on one listening socket: started, watched, and stopped together.

uvicorn's own supervisor cannot do this: it runs `uvicorn.Server` instead of ours, which drains, and
tells nobody when all workers serve.
"""

import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.synchronize import Semaphore
from typing import Any

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

from common.console import say, warn

PAUSE, MOST_PAUSE = 0.1, 30.0  # s before a worker that died is replaced, twice as long each time
ALONE_PAUSE = 5.0  # s between two starts where no worker is left to answer
STEADY = 5.0  # s after its start that a worker must serve for the pause to be short again
MOST_FAILED = 3  # starts, before the first worker serves, after which none is tried
STOP_SECONDS = 29.0  # before workers that were asked to stop are killed


class Worker:
    """One of the processes, and those that replace it one after the other."""

    def __init__(self, number: int, target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.number, self.target, self.arguments = number, target, arguments
        self.process: SpawnProcess | None = None
        self.due, self.since, self.pause = 0.0, 0.0, PAUSE

    def start(self, context: SpawnContext) -> None:
        """Start a process."""
        self.serves, self.since = False, time.monotonic()
        try:
            # no event: a process killed inside its `set` would leave it locked
            self._ready = context.Semaphore(0)
            process = context.Process(
                target=_work, args=(self.number, self.target, self.arguments, self._ready)
            )
            process.start()
            self.process = process
        except OSError as error:  # no memory, or too many processes
            self._replace_later(f"a worker cannot start: {error}")

    def look(self) -> int | None:
        """Note whether it serves, and for how long; returns the exit code of a process that has
        just ended, which is to be replaced at `due`.
        """
        self.serves = self.serves or self._ready.acquire(block=False)
        lived = time.monotonic() - self.since
        if self.serves and lived > STEADY:
            self.pause = PAUSE
        code = self.process.exitcode
        if code is None:
            return None
        # real-time signals have numbers only
        names = {number: f"signal {number.name}" for number in signal.Signals}
        how = names.get(-code, f"exit code {code}")
        self._replace_later(f"worker {self.process.pid} ended with {how} after {lived:.0f} s")
        return code

    def _replace_later(self, why: str) -> None:
        warn(f"{why}; another one starts within {self.pause:g} s")
        self.process, self.due = None, time.monotonic() + self.pause
        self.pause = min(2 * self.pause, MOST_PAUSE)


def supervise(
    count: int,
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    started: Callable[[], None] | None = None,
) -> int:
    """Run `target(*arguments, ready)` in `count` processes until SIGTERM or Ctrl-C, and replace
    those that die, however often; a second signal ends them at once.

    Args:
        count: of processes.
        target: a function that can be pickled; `ready` is a semaphore to release once it serves.
        arguments: values that can be pickled; a listening socket can.
        started: called once every process serves.

    Returns:
        0 after SIGTERM or Ctrl-C; where no worker ever served, 1, or the exit code 2 of one.
    """
    with tempfile.TemporaryDirectory(prefix="foliar-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read by prometheus_client in the workers
        try:
            return _supervise(
                [Worker(number, target, arguments) for number in range(count)], started, folder
            )
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]


def _work(
    number: int, target: Callable[..., Any], arguments: tuple[Any, ...], ready: Semaphore
) -> None:
    """Call `target`, counting on in the files of the workers of this number before: sums do not
    fall when one dies, nor do files pile up. Gauges are of one process and end with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal's Ctrl-C; the supervisor decides
    of_number, of_process = values.MultiProcessValue(lambda: number), values.MultiProcessValue()
    values.ValueClass = lambda kind, *rest, **more: (of_process if kind == "gauge" else of_number)(
        kind, *rest, **more
    )
    target(*arguments, ready)


def _supervise(workers: list[Worker], started: Callable[[], None] | None, metrics: str) -> int:
    # after a fork the model's threads would be missing
    context = multiprocessing.get_context("spawn")
    signals: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: signals.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    failed, served, told = 0, False, False
    try:
        while not signals:
            time.sleep(0.1)
            alone = all(one.process is None for one in workers)
            for worker in workers:
                if worker.process is None:
                    due = min(worker.due, worker.since + ALONE_PAUSE) if alone else worker.due
                    if time.monotonic() >= due:
                        worker.start(context)
                    continue
                pid, code = worker.process.pid, worker.look()
                served = served or worker.serves
                if code is None:
                    continue
                mark_process_dead(pid, metrics)
                failed += 1
                if not served and (code == 2 or failed >= MOST_FAILED):
                    warn("no worker could start; the messages above say why")
                    return 2 if code == 2 else 1
            if not told and all(one.process and one.serves for one in workers):
                told = True
                say(f"workers  {len(workers)} processes serve")
                if started is not None:
                    started()
        return 0
    finally:
        _stop(workers, signals)
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(workers: list[Worker], signals: list[int]) -> None:
    for one in workers[0].arguments:
        if isinstance(one, socket.socket):
            one.close()  # else connections would be accepted, and wait, with no worker left
    left = [worker.process for worker in workers if worker.process is not None]
    for process in left:
        process.terminate()  # SIGTERM: it drains
    end = time.monotonic() + STOP_SECONDS
    while left:
        if len(signals) > 1 or time.monotonic() > end:
            warn(f"{len(left)} workers are killed before they have stopped")
            for process in left:
                process.kill()
            for process in left:
                process.join()
        time.sleep(0.05)
        left = [process for process in left if process.exitcode is None]
