"""The HTTP application: a photo in, an answer in JSON out, and the web page. No torch.

One job reads, runs and decides a photo, on one thread of a pool with a runner per core, so that the event loop only
moves bytes. Requests are admitted before their body is read: what waits is bounded in number and in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.bundle import Predictor
from common.console import say
from common.decide import decide
from common.images import ImageError
from common.poor_photos import photo_quality
from common.uploads import Refusal, read_options, read_photo

WEB = Path(__file__).parent / "web"
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
          ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_STATUS = {"empty": 400, "text": 415, "format": 415, "too_large": 413}  # of an ImageError's reason; else 422


@dataclass(frozen=True)
class Settings:
    """How to serve: runners is the number of photos computed at once, waiting how many more may be under way."""

    top_k: int = 5
    mode: str = "joint"
    runners: int = 1
    waiting: int = 32
    max_upload_mb: float = 20.0
    upload_seconds: float = 60.0
    access_log: bool = False


class Engine:
    """A pool of `runners` threads that admits at most `runners + waiting` requests at once."""

    def __init__(self, runners: int, waiting: int) -> None:
        self.executor = ThreadPoolExecutor(runners, thread_name_prefix="runner")
        self.places = runners + waiting
        self.taken = 0
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for one request. Raises Refusal (503) where none is free."""
        with self.lock:
            if self.taken >= self.places:
                raise Refusal(503, "busy", "Too many photos are waiting. Try again in a moment.", {"retry-after": "1"})
            self.taken += 1
        try:
            yield
        finally:
            with self.lock:
                self.taken -= 1

    async def run(self, job: Callable[..., Any], *arguments: Any) -> Any:
        """Run a job on the next free runner; give what it returns, or raise what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, job, *arguments)


def answer_photo(predictor: Predictor, source: bytes | Path, *, mode: str = "joint", top_k: int = 5,
                 heatmap: bool = False) -> dict[str, Any]:
    """Read, run and decide one photo.

    Args:
        predictor: the model.
        source: the photo's bytes or its path.
        mode: `joint` or `routed`.
        top_k: how many alternatives to list.
        heatmap: whether to add the heatmap, rows of values 0 to 1.

    Returns:
        the answer as plain values (`decide.Answer` with model, image, timings_ms and perhaps heatmap).

    Raises:
        ImageError: where it is no usable picture. OSError where a path cannot be read.
    """
    start = time.perf_counter()
    photo = predictor.read(source)
    decoded = time.perf_counter()
    outputs = predictor.run(photo.pixels[None])
    done = time.perf_counter()
    measured = {name: float(values[0]) for name, values in photo_quality(photo.pixels[None]).items()}
    measured["short_side"] = min(photo.width, photo.height)
    answer = decide(outputs.probabilities[0], outputs.ood[0], predictor.bundle.tree, predictor.card.rejection,
                    predictor.card.rollup, mode=mode, top_k=top_k, photo=measured).to_dict()
    answer["model"] = {"file": predictor.card.file, "version": predictor.bundle.version}
    answer["image"] = {"width": photo.width, "height": photo.height}
    if heatmap:
        answer["heatmap"] = [[round(float(value), 3) for value in row] for row in outputs.heatmap[0]]
    answer["timings_ms"] = {"decode": _ms(decoded - start), "model": _ms(done - decoded),
                            "total": _ms(time.perf_counter() - start)}
    return answer


def make_app(predictor: Predictor, settings: Settings) -> Starlette:
    """Build the application: POST /predict, GET /model, GET /healthz and the page at GET /."""
    engine = Engine(settings.runners, settings.waiting)
    limit = int(settings.max_upload_mb * 1e6)

    async def predict(request: Request) -> Response:
        start = time.perf_counter()
        options = read_options(request.query_params, top_k=settings.top_k, mode=settings.mode,
                               leaves=predictor.bundle.tree.num_leaves)
        with engine.place():
            try:
                data = await asyncio.wait_for(read_photo(request, limit), settings.upload_seconds)
            except asyncio.TimeoutError:  # noqa: UP041 - its own class before Python 3.11
                raise Refusal(408, "too_slow", f"The photo did not arrive within {settings.upload_seconds:g} s.",
                              {"connection": "close"}) from None
            except ClientDisconnect:
                return Response(status_code=400)  # nobody is left to read it
            try:
                answer = await engine.run(lambda: answer_photo(predictor, data, **options))
            except ImageError as error:
                raise Refusal(_STATUS.get(error.reason, 422), error.reason, f"This cannot be read: {error}.") from None
        answer["timings_ms"]["total"] = _ms(time.perf_counter() - start)
        return JSONResponse(answer)

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok", "model": predictor.card.file, "version": predictor.bundle.version})

    async def model(_: Request) -> Response:
        return JSONResponse(_describe(predictor, settings))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        engine.executor.shutdown(wait=True, cancel_futures=True)

    # A route per file of the page: a mount at "/" would answer 404 where 405 is meant.
    pages = [_page_route("/" if path.name == "index.html" else f"/{path.name}", path)
             for path in sorted(WEB.iterdir()) if path.suffix in _TYPES]
    app = Starlette(
        routes=[Route("/predict", predict, methods=["POST"]), Route("/model", model), Route("/healthz", healthz),
                *pages],
        middleware=[Middleware(Shell, access_log=settings.access_log)],
        exception_handlers={Refusal: _on_refusal, HTTPException: _on_http_exception}, lifespan=lifespan)
    app.state.engine = engine
    return app


class Shell:
    """What surrounds every answer: security headers, a last resort for our own faults, a log line without pictures."""

    def __init__(self, app: ASGIApp, access_log: bool) -> None:
        self.app, self.access_log = app, access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; everything but HTTP is passed on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((name.encode(), value.encode()) for name, value
                                                             in _HEADERS.items() if name.encode() not in present)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:  # a fault of ours: the person gets JSON, the terminal gets the traceback
            traceback.print_exc()
            if status:
                raise
            response = _error(500, "internal", "Something went wrong in the server; its terminal says what.")
            await response(scope, receive, send_with_headers)
        if self.access_log:
            say(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {scope['method']} {scope['path']!r} {status} "
                f"{1000 * (time.perf_counter() - start):.0f} ms")


def _describe(predictor: Predictor, settings: Settings) -> dict[str, Any]:
    bundle, card = predictor.bundle, predictor.card
    plain = bundle.raw["models"][card.file]
    rejection = plain["rejection"] and {key: plain["rejection"][key] for key in ("score", "threshold")}
    return {
        "name": bundle.name, "version": bundle.version, "created": bundle.created, "recipe": bundle.recipe,
        "backbone": bundle.backbone, "file": card.file, "models": list(bundle.models), "sha256": card.sha256,
        "precision": card.precision, "size_mb": card.size_mb, "temperature": plain["temperature"],
        "preprocessing": bundle.raw["preprocessing"], "scores": list(bundle.scores), "rejection": rejection,
        "rollup": plain["rollup"], "mode": settings.mode, "top_k": settings.top_k,
        "limits": {"max_upload_mb": settings.max_upload_mb}, "metrics": plain["metrics"],
        "num_species": bundle.tree.num_species, "num_leaves": bundle.tree.num_leaves,
        "classes": [{"species": name, "diseases": list(diseases)} for name, diseases
                    in zip(bundle.tree.species, bundle.tree.diseases, strict=True)],
    }


def _page_route(url: str, path: Path) -> Route:
    data = path.read_bytes()
    headers = {"etag": f'"{hashlib.sha256(data).hexdigest()[:16]}"', "cache-control": "no-cache"}

    async def page(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, headers={**headers, "content-type": _TYPES[path.suffix]})

    return Route(url, page)


async def _on_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _error(error.status, error.code, error.message, error.headers)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        message = f"{request.method} does not work here; {(error.headers or {}).get('Allow', 'another method')} does."
        return _error(405, "method_not_allowed", message, dict(error.headers or {}))
    if error.status_code == 404:
        return _error(404, "not_found", "There is nothing here. There are /, /predict, /model and /healthz.")
    return _error(error.status_code, "http", str(error.detail), dict(error.headers or {}))


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
