"""uvicorn with what it leaves out: deadlines for slow senders and readers, errors in JSON, a stop
that answers what it took. No torch."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.serve.http.uploads import HEADER_BYTES
from common.serve.http.work_queue import Engine

HEADER_SECONDS = (
    10.0  # from the first byte of a request, or the connection, to the end of its header
)
KEEP_SECONDS = 15.0  # that a connection may stay idle after an answer
# that the rest of a body, which was answered before it came, may take; a closing connection, too
DISCARD_SECONDS = 10.0
READ_SECONDS = 20.0  # that a client may read nothing of its answer
SEND_BYTES = (
    256 * 1024
)  # that the system may hold of an answer; larger, a slow reader could not be told from one that stopped
CONNECTIONS = 1000  # open ones at once
DRAIN_SECONDS = 25.0  # that accepted requests may take once the server is to stop


class Patient:
    """A transport that, asked to close before a request was read to its end, first lets the client
    read its answer.

    Closed over bytes that nobody read, a connection is reset, and the answer is lost with it.
    """

    def __init__(
        self, transport: Any, unread: Callable[[], bool], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._transport, self._unread, self._loop = transport, unread, loop
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing more is written."""
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        """Close, now or once the client has closed its side."""
        if self.lingers or self._transport.is_closing():
            return
        if not self._unread():
            self._transport.close()
            return
        self.lingers = True
        try:
            self._transport.write_eof()
        except OSError:  # the client is gone
            self._transport.abort()
            return
        self._transport.resume_reading()
        self._loop.call_later(DISCARD_SECONDS, self._transport.abort)


class Deadlines(H11Protocol):
    """One connection, which ends where it keeps the server waiting: uvicorn itself waits for ever
    for a header or a reader."""

    _timer: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _answering = False  # this class has written an answer itself

    def connection_made(self, transport: Any) -> None:
        """Start the clock of the first header; send the one too many away."""
        if (own := transport.get_extra_info("socket")) is not None:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        super().connection_made(
            Patient(transport, lambda: self._answering or self._discarding(), self.loop)
        )  # type: ignore[arg-type]
        if len(self.connections) > CONNECTIONS:
            self._refuse(503, "busy", "Too many connections are open. Try again in a moment.")
        else:
            self._arm(HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and set the clock for what is missing."""
        if self.transport.is_closing():
            return  # it is only read so that the client gets to its answer
        super().data_received(data)
        if self.transport.is_closing():
            self._disarm()
        elif self.conn.their_state is not h11.IDLE and not self._discarding():
            self._disarm()
        elif self._timer is None:
            self._arm(DISCARD_SECONDS if self._discarding() else HEADER_SECONDS)

    def on_response_complete(self) -> None:
        """After an answer: the next request, or the rest of a body that nobody waits for."""
        super().on_response_complete()
        self._disarm()
        if not self.transport.is_closing() and self._discarding():
            self._unset_keepalive_if_required()
            self._arm(DISCARD_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Tell in JSON that this is no HTTP."""
        self._refuse(400, "bad_http", msg)

    def pause_writing(self) -> None:
        """The client does not read: wait, but not for ever."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._disarm()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        if self._stuck is not None:
            self._stuck.cancel()

    def _expect_reading(self) -> None:
        unsent = self.transport.get_write_buffer_size()

        def check() -> None:
            if self.transport.get_write_buffer_size() >= unsent:
                self.transport.abort()
            else:
                self._expect_reading()  # slow, but it reads

        self._stuck = self.loop.call_later(READ_SECONDS, check)

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
            self.transport.abort()  # a connection that says nothing gets no answer
        else:
            self._refuse(408, "too_slow", f"The header did not arrive within {HEADER_SECONDS:g} s.")

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._answering = True
        self._disarm()
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        self.transport.write(
            b"HTTP/1.1 %d -\r\ncontent-type: application/json\r\ncontent-length: "
            b"%d\r\nconnection: close\r\n"
            b"x-content-type-options: nosniff\r\n\r\n" % (status, len(body)) + body
        )
        self.transport.close()


class Server(uvicorn.Server):
    """A server that, asked to stop, turns new requests away and ends when the accepted ones are
    answered."""

    def __init__(self, config: uvicorn.Config, engine: Engine, *, worker: bool) -> None:
        super().__init__(config)
        self.engine, self.worker = engine, worker
        self.asked = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second stops at once."""
        if self.worker and sig == signal.SIGINT:
            # Ctrl-C reaches every process of a terminal; the first process tells the others what to
            # do
            return
        if self.engine.draining:
            self.should_exit = self.force_exit = True
        self.drain()

    def drain(self) -> None:
        """Answer what was accepted, refuse the rest, then end."""
        if not self.engine.draining:
            self.engine.draining, self.asked = True, time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        parent = multiprocessing.parent_process()
        if self.worker and parent is not None and not parent.is_alive():
            self.drain()
        if self.engine.draining:
            spent = time.monotonic() - self.asked
            if (spent > 0.3 and not self.engine.taken) or spent > DRAIN_SECONDS:
                return True
        return await super().on_tick(counter)


def serve(
    app: Starlette,
    listener: socket.socket,
    *,
    worker: bool = False,
    started: Callable[[], None] | None = None,
) -> None:
    """Answer requests on a listening socket until SIGTERM or Ctrl-C; accepted requests are answered
    first.

    Args:
        app: of `http_app.make_app`.
        listener: bound and listening; it is closed at the end.
        worker: whether this is one of several processes; such a one leaves Ctrl-C to the first, and
            ends when that is gone.
        started: called before the first request is taken.
    """
    if started is not None:
        started()
    Server(config(app), app.state.engine, worker=worker).run(sockets=[listener])


def config(app: Starlette) -> uvicorn.Config:
    """uvicorn's settings: our connections, no log, no name of the server."""
    return uvicorn.Config(
        app,
        http=Deadlines,
        ws="none",
        lifespan="on",
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(KEEP_SECONDS),
        timeout_graceful_shutdown=5,
        backlog=512,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
