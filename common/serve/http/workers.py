"""Several server processes on one listening socket: started, watched, and stopped together.

uvicorn's own supervisor cannot do this: it runs `uvicorn.Server` instead of ours, which drains, and
tells nobody when all workers serve.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from common.console import say, warn

QUICK = 30.0  # s: a worker that ends sooner after its start fails by itself, not by one request
MOST_QUICK = 3  # such ends in a row after which the supervisor gives up
STOP_SECONDS = 35.0  # before workers that were asked to stop are killed


def supervise(
    count: int,
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    started: Callable[[], None] | None = None,
) -> int:
    """Run `target(*arguments, ready)` in `count` processes until SIGTERM or Ctrl-C, and restart
    those that die.

    Args:
        count: of processes.
        target: a function that can be pickled; `ready` is an event to set once it serves.
        arguments: values that can be pickled; a listening socket can.
        started: called once every process serves.

    Returns:
        0 after SIGTERM or Ctrl-C; 1 where the workers do not stay alive.
    """
    with tempfile.TemporaryDirectory(prefix="foliar-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read by prometheus_client in the workers
        try:
            return _supervise(count, target, arguments, started, folder)
        finally:
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]


def _supervise(
    count: int,
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
    started: Callable[[], None] | None,
    metrics: str,
) -> int:
    # after a fork the model's threads would be missing
    context = multiprocessing.get_context("spawn")
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    running: dict[BaseProcess, tuple[Event, float]] = {}
    quick, told = 0, False

    def start() -> None:
        ready = context.Event()
        process = context.Process(target=target, args=(*arguments, ready), daemon=False)
        process.start()
        running[process] = ready, time.monotonic()

    try:
        for _ in range(count):
            start()
        while not stop.wait(0.1):
            for process, (ready, since) in list(running.items()):
                if process.exitcode is None:
                    continue
                del running[process]
                mark_process_dead(process.pid, metrics)
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
            if not told and running and all(ready.is_set() for ready, _ in running.values()):
                told = True
                say(f"workers  {count} processes serve")
                if started is not None:
                    started()
        return 0
    finally:
        _stop(list(running))
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
