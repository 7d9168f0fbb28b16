"""The HTTP application: photos in, an answer in JSON out, the raw model, and the web page.

One job reads, runs and decides a photo on one thread of a pool, so that the event loop only moves
bytes. Requests are admitted before their body is read: what waits is bounded in number and in
memory.
"""

import contextlib
import time
import traceback
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.console import say
from common.serve.http import inference_protocol, openapi
from common.serve.http.service import Service, Settings
from common.serve.http.uploads import HEADER_BYTES, RequestError
from common.serve.http.web_files import page_routes
from common.serve.predictor import Predictor

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; "
    "worker-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def make_app(predictor: Predictor, settings: Settings) -> Starlette:
    """Build the application: POST /predict, GET /model, health, metrics, /v2, the descriptions, and
    the page at GET /.
    """
    service = Service(predictor, settings)
    described = openapi.document(predictor)
    told = openapi.page(described)

    async def schema(_: Request) -> Response:
        return JSONResponse(described)

    async def docs(_: Request) -> Response:
        return HTMLResponse(told)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        service.queue.stop()
        service.decoder.stop()

    pages = page_routes(predictor, top_k=settings.top_k, max_upload_mb=settings.max_upload_mb)
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/model", service.model),
        Route("/healthz", service.healthz),
        Route("/readyz", service.readyz),
        Route("/metrics", service.metrics),
        Route("/openapi.json", schema),
        Route("/docs", docs),
        *inference_protocol.routes(predictor, lambda: not service.queue.draining, service.infer),
    ]
    middleware = [
        Middleware(
            ErrorMiddleware,
            access_log=settings.access_log,
            count=lambda status: service.telemetry.responses.labels(status).inc(),
        )
    ]
    if settings.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-api-key"],
            )
        )
    app = Starlette(
        routes=[*routes, *pages],
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={RequestError: _on_request_error, HTTPException: _on_http_exception},
    )
    app.state.queue, app.state.decoder = service.queue, service.decoder
    return app


class ErrorMiddleware:
    """Around every answer: security headers, a JSON error for exceptions of ours, and a log line
    without pictures.
    """

    def __init__(self, app: ASGIApp, access_log: bool, count: Callable[[str], None]) -> None:
        self.app, self.access_log, self.count = app, access_log, count

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
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.encode(), value.encode())
                        for name, value in _HEADERS.items()
                        if name.encode() not in present
                    ),
                ]
            await send(message)

        try:
            size = (
                len(scope["path"])
                + len(scope["query_string"])
                + sum(len(name) + len(value) for name, value in scope["headers"])
            )
            large = _error(
                431,
                "too_large",
                f"The header of the request has {size} bytes; at most {HEADER_BYTES} are read.",
            )
            await (large if size > HEADER_BYTES else self.app)(scope, receive, send_with_headers)
        except Exception:  # the client gets JSON, the terminal gets the traceback
            traceback.print_exc()
            if status:
                raise
            response = _error(
                500, "internal", "Something went wrong in the server; its terminal says what."
            )
            await response(scope, receive, send_with_headers)
        self.count(str(status))
        if self.access_log:
            say(
                f"{time.strftime('%Y-%m-%d %H:%M:%S')} {scope['method']} {scope['path']!r} "
                f"{status} {1000 * (time.perf_counter() - start):.0f} ms"
            )


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    if request.url.path.startswith("/v2"):  # that protocol's own form of an error
        return JSONResponse({"error": error.message}, error.status, error.headers)
    return _error(error.status, error.code, error.message, error.headers)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        message = (
            f"{request.method} does not work here; "
            f"{(error.headers or {}).get('Allow', 'another method')} does."
        )
        return _error(405, "method_not_allowed", message, dict(error.headers or {}))
    if error.status_code == 404:
        return _error(
            404,
            "not_found",
            "There is nothing here. There are /, /predict, /model, /healthz, /readyz, /metrics, "
            "/v2 and /docs.",
        )
    return _error(error.status_code, "http", str(error.detail), dict(error.headers or {}))


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)
