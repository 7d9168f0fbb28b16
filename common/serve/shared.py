"""One model for several processes.

Python's lock lets a process answer some hundred photos a second, and a GPU runs thousands. So one
process has the GPU, and workers read the photos, decide and speak HTTP; pictures and outputs travel
between them over a local socket.
"""

import contextlib
import itertools
import os
import queue
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import AuthenticationError, current_process
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import numpy as np

from common.serve.predictor import BundleError, Outputs

Submit = Callable[[np.ndarray], "Future[Outputs]"]


class ModelGone(BundleError):
    """The process that runs the model has ended, or cannot be reached any longer."""

    def __init__(self) -> None:
        super().__init__("the process that runs the model has ended")


class SharedModel:
    """Runs the pictures of other processes by `submit`, as long as this process lives.

    `address` is where processes that this one starts reach it, with `RemoteModel`.
    """

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        key = bytes(current_process().authkey)
        try:
            self._listener = Listener(backlog=256, authkey=key)
        except OSError:  # a TMPDIR too long for the name of a socket
            self._listener = Listener(("127.0.0.1", 0), backlog=256, authkey=key)
        self.address: Any = self._listener.address
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            # one that ends before it is accepted is no matter of the others
            with contextlib.suppress(OSError, EOFError, AuthenticationError):
                connection = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        """Run what one process sends until it ends; it may be slow to take its answers, and no lane
        waits for that.
        """
        answers: queue.SimpleQueue[tuple[int, Future[Outputs]] | None] = queue.SimpleQueue()
        threading.Thread(target=_answer, args=(connection, answers), daemon=True).start()
        try:
            with contextlib.suppress(OSError, EOFError):
                while True:
                    number, pictures = connection.recv()
                    self._submit(pictures).add_done_callback(
                        lambda done, number=number: answers.put((number, done))
                    )
        finally:
            answers.put(None)


def _answer(connection: Connection, answers: "queue.SimpleQueue[Any]") -> None:
    try:
        with contextlib.suppress(OSError):
            while (one := answers.get()) is not None:
                number, done = one
                failed = done.exception()  # as text: a driver's own exceptions may not travel
                connection.send((number, RuntimeError(str(failed)) if failed else done.result()))
    finally:
        # the other side is told at once, and so is a thread that reads: a mere close would tell
        # neither while that thread waits
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)


class RemoteModel:
    """The model of a `SharedModel` in the process that started this one; usable from several
    threads at once.
    """

    def __init__(self, address: Any) -> None:
        self._connection = Client(address, authkey=bytes(current_process().authkey))
        self._lock, self._numbers = threading.Lock(), itertools.count()
        self._open: dict[int, Future[Outputs]] = {}
        threading.Thread(target=self._receive, daemon=True).start()

    def submit(self, pictures: np.ndarray) -> "Future[Outputs]":
        """As `Batcher.submit`. Raises ModelGone, as the future does."""
        future: Future[Outputs] = Future()
        with self._lock:
            number = next(self._numbers)
            self._open[number] = future
            try:
                self._connection.send((number, pictures))
            except OSError:  # `_receive` closes the connection
                raise ModelGone from None
        return future

    def _receive(self) -> None:
        try:
            with contextlib.suppress(OSError, EOFError):
                while True:
                    number, found = self._connection.recv()
                    future = self._open.pop(number)
                    if not future.set_running_or_notify_cancel():
                        continue
                    if isinstance(found, Exception):
                        future.set_exception(found)
                    else:
                        future.set_result(found)
        finally:
            with self._lock:  # nobody is sending
                self._connection.close()
                left = list(self._open.values())
            for future in left:
                if future.set_running_or_notify_cancel():
                    future.set_exception(ModelGone())
