"""uvicorn with timeouts for slow senders and readers, errors in JSON, and a stop that first answers
the accepted requests.
"""

import asyncio
import contextlib
import errno
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.console import fail
from common.serve.http.uploads import HEADER_BYTES
from common.serve.http.work_queue import WorkQueue

# what libraries log, as lines that begin like ours; their warnings are about clients, whose answers
# say what was wrong
LOG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "format": "%(asctime)s %(levelname)s %(name)s: %(message)s",
            "datefmt": "%Y-%m-%d %H:%M:%S",
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "ERROR", "handlers": ["stderr"]},
}
HEADER_SECONDS = 10.0  # from the connection or a request's first byte to the end of its header
KEEP_SECONDS = 15.0  # that a connection may be idle after an answer
DISCARD_SECONDS = 10.0  # for the rest of a body that is answered already, and for lingering
READ_SECONDS = 20.0  # that a client may read nothing of its answer
# of an answer in the system's buffer: with more, a slow reader looks like one that stopped
SEND_BYTES = 256 * 1024
CONNECTIONS = 1000  # open at once, beside those of requests that hold a place
BACKLOG = 512  # that may wait to be accepted
DRAIN_SECONDS = 23.0  # for accepted requests once the server is to stop; then they get 503
SENDING_SECONDS = 3  # for those answers to be read
LAST_SECONDS = 1.0  # for jobs that still run and for whose answers nobody waits


class LingeringTransport:
    """A transport that, closed before a request was read to its end, lingers until the client has
    read its answer.

    Closing a connection with unread bytes resets it, and the answer is lost.
    """

    def __init__(
        self, transport: Any, unread: Callable[[], bool], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._transport, self._unread, self._loop = transport, unread, loop
        self.lingering = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing more is written."""
        return self.lingering or self._transport.is_closing()

    def close(self) -> None:
        """Close, now or once the client has closed its side."""
        if self.lingering or self._transport.is_closing():
            return
        if not self._unread():
            self._transport.close()
            return
        self.lingering = True
        try:
            self._transport.write_eof()
        except OSError:  # the client is gone
            self._transport.abort()
            return
        self._transport.resume_reading()
        self._loop.call_later(DISCARD_SECONDS, self._transport.abort)


class TimeoutProtocol(H11Protocol):
    """One connection, closed where it keeps the server waiting: uvicorn alone would wait for ever
    for a header or a reader.
    """

    _timer: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _answering = False  # this class has written an answer itself

    def connection_made(self, transport: Any) -> None:
        """Start the timeout of the first header; reject a connection beyond the limit."""
        if (own := transport.get_extra_info("socket")) is not None:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        super().connection_made(
            LingeringTransport(transport, lambda: self._answering or self._discarding(), self.loop)
        )  # type: ignore[arg-type]
        self._heard = self.loop.time()
        most = CONNECTIONS + self.config.app.state.queue.taken
        if len(self.connections) > most and not self._make_room():
            self._reject(503, "busy", "Too many connections are open. Try again in a moment.")
        else:
            self._arm(HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and set the timeout for what is missing."""
        if self.transport.is_closing():
            return  # lingering: what still arrives is dropped
        self._heard = self.loop.time()
        super().data_received(data)
        if self.transport.is_closing():
            self._disarm()
        elif self.conn.their_state is not h11.IDLE and not self._discarding():
            self._disarm()
        elif self._timer is None:
            self._arm(DISCARD_SECONDS if self._discarding() else HEADER_SECONDS)

    def on_response_complete(self) -> None:
        """After an answer: the next request, or the rest of a body that is not needed."""
        self._heard = self.loop.time()
        super().on_response_complete()
        self._disarm()
        if not self.transport.is_closing() and self._discarding():
            self._unset_keepalive_if_required()
            self._arm(DISCARD_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Answer in JSON that this is not HTTP."""
        self._reject(400, "bad_http", msg)

    def pause_writing(self) -> None:
        """The client does not read: start the timeout."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timeouts."""
        self._disarm()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        if self._reading is not None:
            self._reading.cancel()

    def _make_room(self) -> bool:
        """Close the connection that has been silent longest, of the address that has most; whether
        there was one without a request that is being answered.
        """
        of_address = Counter(one.client and one.client[0] for one in self.connections)
        idle = [
            one
            for one in self.connections
            if one is not self
            and (one.cycle is None or one.cycle.response_complete or one.flow.write_paused)
        ]
        if idle:
            longest = max(
                idle, key=lambda one: (of_address[one.client and one.client[0]], -one._heard)
            )
            longest.transport.abort()
        return bool(idle)

    def _expect_reading(self) -> None:
        unsent = self.transport.get_write_buffer_size()

        def check() -> None:
            if self.transport.get_write_buffer_size() >= unsent:
                self.transport.abort()
            else:
                self._expect_reading()  # slow, but it reads

        self._reading = self.loop.call_later(READ_SECONDS, check)

    def _discarding(self) -> bool:
        return (
            self.cycle is not None
            and self.cycle.response_complete
            and self.conn.their_state is h11.SEND_BODY
        )

    def _arm(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._discarding() or not self.conn.trailing_data[0]:
            self.transport.abort()  # a silent connection gets no answer
        else:
            self._reject(408, "too_slow", f"The header did not arrive within {HEADER_SECONDS:g} s.")

    def _reject(self, status: int, code: str, message: str) -> None:
        self._answering = True
        self._disarm()
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        self.transport.write(
            b"HTTP/1.1 %d -\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\nx-content-type-options: nosniff\r\n\r\n"
            % (status, len(body))
            + body
        )
        self.transport.close()


class Server(uvicorn.Server):
    """A server that, asked to stop, rejects new requests and ends once the accepted ones are
    answered.
    """

    def __init__(self, config: uvicorn.Config, queue: WorkQueue, *, worker: bool) -> None:
        super().__init__(config)
        self.queue, self.worker = queue, worker
        self.asked, self.signalled = 0.0, False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, with the system's queue as long as `bind` made it."""
        _raise_file_limit(2 * (CONNECTIONS + self.queue.places))
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second stops at once."""
        if self.worker:  # the supervisor decides: Ctrl-C reaches every process of a terminal,
            if sig != signal.SIGINT:
                self.drain()  # and systemd's SIGTERM each of a service
            return
        if self.signalled:
            os._exit(128 + sig)  # anything else would wait for the threads of the queue
        self.signalled = True
        self.drain()

    def drain(self) -> None:
        """Answer what was accepted, reject the rest, then end."""
        if not self.queue.draining:
            self.queue.draining, self.asked = True, time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        parent = multiprocessing.parent_process()
        if self.worker and parent is not None and not parent.is_alive():
            self.drain()
        if self.queue.draining:
            spent = time.monotonic() - self.asked
            if spent > DRAIN_SECONDS:
                self.queue.end_all()
            if (spent > 0.3 and not self.queue.taken) or spent > DRAIN_SECONDS + 0.5:
                return True
        return await super().on_tick(counter)


def _raise_file_limit(files: int) -> None:
    """Let the process have so many files and sockets open, if it may; often it has 1,024."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= soft < files:  # -1: as many as it likes
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on a port. Raises SystemExit where the port is in use or forbidden, or
    the host is no address of this computer.
    """
    nowhere = (
        f"--host {host} is no address of this computer. Use 127.0.0.1, or 0.0.0.0 for the whole "
        f"network."
    )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere this option lets two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        return listener
    except (socket.gaierror, UnicodeError):
        fail(nowhere)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            fail(
                f"port {port} on {host} is in use by another program. Stop it, or choose another "
                f"port, for example --port {port + 1 if port < 65535 else 8000}, or --port 0 for "
                f"any free one."
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            fail(
                f"no permission to listen on port {port}. Choose one above 1023, for example "
                f"--port 8000."
            )
        if error.errno == errno.EADDRNOTAVAIL:
            fail(nowhere)
        raise


def serve(
    app: Starlette,
    listener: socket.socket,
    *,
    worker: bool = False,
    proxies: str = "",
    started: Callable[[], None] | None = None,
) -> None:
    """Answer requests on a listening socket until SIGTERM or Ctrl-C; accepted requests are answered
    first.

    Args:
        app: from `app.make_app`.
        listener: bound and listening; it is closed at the end.
        worker: whether this is one of several processes; it leaves Ctrl-C to its supervisor,
            and ends when that is gone.
        proxies: as for `config`.
        started: called before the first request is taken.
    """
    if started is not None:
        started()
    Server(config(app, proxies), app.state.queue, worker=worker).run(sockets=[listener])
    last = threading.Timer(LAST_SECONDS, os._exit, (0,))
    last.daemon = True  # it ends nothing if the process has ended by then
    last.start()


def config(app: Starlette, proxies: str = "") -> uvicorn.Config:
    """uvicorn's settings: our protocol, our log, no server header. Where a connection comes from
    one of the `proxies` (addresses and networks, by commas), X-Forwarded-For names its client.
    """
    return uvicorn.Config(
        app,
        http=TimeoutProtocol,
        ws="none",
        lifespan="on",
        log_config=LOG,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        timeout_keep_alive=int(KEEP_SECONDS),
        timeout_graceful_shutdown=SENDING_SECONDS,
        backlog=1,  # accepted at a time: more would take them from idle workers
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
