"""The page's server for tests: the real application on a port of its own, which counts what it is
asked and can be ended.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.responses import HTMLResponse

from common.serve.http.app import make_app
from common.serve.http.service import Settings
from common.serve.predictor import Predictor


@dataclass
class Site:
    """url: where the page is; asked: method, path, query and bytes of the body of each request so
    far, and sent: the bytes of each answer's body; `stop` ends it; while `down`, it answers 502.
    """

    url: str
    asked: list[list[Any]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    stop: Callable[[], None] | None = None
    down: bool = False

    def posts(self) -> list[list[Any]]:
        """Whatever was sent with a body."""
        return [one for one in self.asked if one[0] not in ("GET", "HEAD") or one[3]]


@contextlib.contextmanager
def serve(exports: Path, port: int = 0, prefix: str = "", **settings: object) -> Iterator[Site]:
    """Serve an exports folder until the block ends or `stop` is called; below a prefix as a proxy
    does that takes it away, and answers 404 to all else.
    """
    app = make_app(Predictor(exports), Settings(**settings))
    listener = socket.create_server(("127.0.0.1", port))
    site = Site(f"http://127.0.0.1:{listener.getsockname()[1]}{prefix}")

    async def counted(scope, receive, send):
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        if site.down:
            await HTMLResponse("<center>nginx</center>", 502)(scope, receive, send)
            return
        inside = scope["path"].startswith(f"{prefix}/")
        path = scope["path"].removeprefix(prefix) if inside else "/outside"
        scope = {**scope, "path": path, "raw_path": path.encode()}
        place, row = (
            len(site.asked),
            [scope["method"], scope["path"], scope["query_string"].decode(), 0],
        )
        site.asked.append(
            row
        )  # at once: a client has its answer before the application's call returns
        site.sent.append(0)

        async def counting():
            message = await receive()
            row[3] += len(message.get("body", b""))
            return message

        async def sending(message):
            site.sent[place] += len(message.get("body", b""))
            await send(message)

        await app(scope, counting, sending)

    server = uvicorn.Server(
        uvicorn.Config(counted, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()

    site.stop = stop
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        yield site
    finally:
        stop()
        listener.close()
