"""Several server processes on one listening socket: started, watched, and stopped together. No
torch."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any

from common.console import say, warn

QUICK = 30.0  # a worker that ends sooner after its start than this did not die of a single request
MOST_QUICK = 3  # such ends in a row after which it is no use to go on
STOP_SECONDS = 35.0  # until workers that were asked to stop are killed


def supervise(
    count: int,
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    started: Callable[[], None] | None = None,
) -> int:
    """Run `target(*arguments, ready)` in `count` processes until SIGTERM or Ctrl-C, and start anew
    what dies.

    Args:
        count: of processes.
        target: a function of an importable module; `ready` is an event to set once it serves.
        arguments: that can be pickled; a listening socket can.
        started: called once every process serves.

    Returns:
        0 after a stop that was asked for; 1 where the workers do not stay alive, which is said.
    """
    context = multiprocessing.get_context(
        "spawn"
    )  # after a fork the model's threads would be missing
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    crew: dict[BaseProcess, tuple[Event, float]] = {}
    quick, told = 0, False

    def start() -> None:
        ready = context.Event()
        process = context.Process(target=target, args=(*arguments, ready), daemon=False)
        process.start()
        crew[process] = ready, time.monotonic()

    try:
        for _ in range(count):
            start()
        while not stop.wait(0.1):
            for process, (ready, since) in list(crew.items()):
                if process.exitcode is None:
                    continue
                del crew[process]
                lived = time.monotonic() - since
                quick = quick + 1 if lived < QUICK or not ready.is_set() else 0
                how = (
                    f"signal {signal.Signals(-process.exitcode).name}"
                    if process.exitcode < 0
                    else f"exit code {process.exitcode}"
                )
                warn(f"worker {process.pid} ended with {how} after {lived:.0f} s")
                if quick >= MOST_QUICK or (not told and process.exitcode == 2):
                    warn(
                        "the workers do not stay alive; the messages above say why. Try without "
                        "--workers."
                    )
                    return 1
                start()
            if not told and crew and all(ready.is_set() for ready, _ in crew.values()):
                told = True
                say(f"workers  {count} processes serve")
                if started is not None:
                    started()
        return 0
    finally:
        _stop(list(crew))
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(processes: list[BaseProcess]) -> None:
    for process in processes:
        if process.exitcode is None:
            process.terminate()  # SIGTERM: it drains
    end = time.monotonic() + STOP_SECONDS
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
        if process.exitcode is None:
            warn(f"worker {process.pid} did not stop within {STOP_SECONDS:.0f} s and is killed")
            process.kill()
            process.join()
