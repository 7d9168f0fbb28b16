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
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_bundle as tiny
import uvicorn
from starlette.responses import HTMLResponse

from common.serve.http import web_files
from common.serve.http.app import make_app
from common.serve.http.service import Settings
from common.serve.predictor import Predictor

PHOTOS = {
    "scab.jpg": tiny.picture(tiny.color_of(2), (300, 200), "JPEG"),
    "healthy.png": tiny.picture(tiny.color_of(0)),
    "between.png": tiny.picture(tiny.between(1, 2)),
    "no_plant.png": tiny.picture(tiny.NO_PLANT),
    "corn.png": tiny.picture(tiny.color_of(4)),
    "small.png": tiny.picture(tiny.color_of(2), (40, 24)),
    "text.txt": b"no picture",
    "broken.jpg": tiny.picture(tiny.color_of(2), (300, 200), "JPEG")[:100],
    "scan.tif": tiny.picture(tiny.color_of(2), (90, 70), "TIFF"),
    "halves.png": tiny.halves(tiny.color_of(2), tiny.color_of(4)),
    "huge.bmp": tiny.picture(tiny.color_of(2), (700, 500), "BMP"),
}  # over the server's limit: only its small copy is sent
NO_RUNTIME = any(not (web_files.RUNTIME / name).is_file() for name in web_files.PINNED)
needs_runtime = pytest.mark.skipif(
    NO_RUNTIME,
    reason="onnxruntime-web was not fetched: `python -m common.serve.web_runtime fetch` does that",
)

# the server takes its time with every answer
SLOW = """globalThis.fetch = ((real) => (url, options) => (String(url).startsWith('predict')
  ? new Promise((_, no) => {
    options.signal.addEventListener('abort', () => no(options.signal.reason));
    if (options.signal.aborted) no(options.signal.reason); })
  : real(url, options)))(fetch)"""


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


def settle(page, timeout=20):
    """Wait for the last answer, and return what a reader finds."""
    page.wait(
        "(({dataset: {state}, ariaBusy}) => state && state !== 'waiting' && ariaBusy === "
        "'false')(document.getElementById('result'))",
        timeout,
    )
    return SimpleNamespace(
        **page.js("""(() => {
        const $ = (id) => document.getElementById(id);
        if (!$('heat-switch').hidden) $('heat-switch').click();
        const [heat, photo] = [$('heat').getBoundingClientRect(),
          $('preview').getBoundingClientRect()];
        return { state: $('result').dataset.state, by: $('result').dataset.by,
          text: $('result').innerText, spoken: $('spoken').textContent,
          bars: [...document.querySelectorAll('#result .bar i')].map((bar) =>
            parseFloat(bar.style.width)),
          heat: $('heat').hidden ? null : [$('heat').width, $('heat').height],
          covers: Math.abs(heat.width - photo.width) < 1 &&
            Math.abs(heat.height - photo.height) < 1,
          framed: !$('frame').hidden, privacy: $('privacy').innerText,
            wide: document.documentElement.scrollWidth, window: innerWidth };
    })()""")
    )


def choose(page, places, *names):
    """Choose the photos of a plant."""
    page.choose("#file", [places.photos / name for name in names])
    page.wait("!document.getElementById('ask').hidden")


def give(page, places, *names):
    """Choose photos, ask what they show, wait for the answer."""
    choose(page, places, *names)
    page.click("ask")
    return settle(page)


def yes(page):
    """Agree that a photo is sent whole, and wait for the answer."""
    assert "must be sent whole" in settle(page).text
    page.click("whole-yes")
    return settle(page)
