"""The HTTP application: photos in, an answer in JSON out, the raw model, and the web page.

One job reads, runs and decides a photo on one thread of a pool, so that the event loop only moves
bytes. Requests are admitted before their body is read: what waits is bounded in number and in
memory.
"""

import contextlib
import logging
import time
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
from common.serve.http import docs, inference_protocol, openapi
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
    told = docs.page(described)

    async def schema(_: Request) -> Response:
        return JSONResponse(described)

    async def docs_page(request: Request) -> Response:
        up = "../" * request.scope["raw_path"].endswith(b"/")  # of /docs/
        return HTMLResponse(told.replace("=./", f"={up}./"))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        service.queue.stop()
        service.decoder.stop()

    pages = page_routes(
        predictor, settings.texts, top_k=settings.top_k, max_upload_mb=settings.max_upload_mb
    )
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/model", service.model),
        Route("/healthz", service.healthz),
        Route("/readyz", service.readyz),
        Route("/metrics", service.metrics),
        Route("/openapi.json", schema),
        Route("/docs", docs_page),
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
    app.router.redirect_slashes = False  # ErrorMiddleware takes both
    app.state.queue, app.state.addresses = service.queue, inference_protocol.addresses(predictor)
    app.state.decoder = service.decoder
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
        # a redirect would name a host and a scheme, which behind a proxy are not the client's
        if scope["path"] not in ("/", "//"):  # below // the page's links would lead nowhere
            scope["path"] = scope["path"].removesuffix("/")

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
                scope["path"],
                431,
                "too_large",
                f"The header of the request has {size} bytes; at most {HEADER_BYTES} are read.",
            )
            await (large if size > HEADER_BYTES else self.app)(scope, receive, send_with_headers)
        except Exception:  # the client gets JSON, the terminal gets the traceback
            if status:
                raise  # uvicorn logs it, and closes the connection
            logging.getLogger("foliar").exception("%s %r", scope["method"], scope["path"])
            response = _error(
                scope["path"],
                500,
                "internal",
                "Something went wrong in the server; its terminal says what.",
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
    return _error(request.url.path, error.status, error.code, error.message, error.headers)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, message, headers = "http", str(error.detail), dict(error.headers or {})
    if error.status_code == 405:
        code = "method_not_allowed"
        message = f"{request.method} does not work here. Allowed: {headers.get('Allow')}."
    if error.status_code == 404:
        code = "not_found"
        message = (
            "There is nothing here. There are /, /predict, /model, /healthz, /readyz, /metrics, "
            f"/docs, /v2, {' and '.join(request.app.state.addresses)}."
        )
    return _error(request.url.path, error.status_code, code, message, headers)


def _error(
    path: str, status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> Response:
    message = message.encode(errors="replace").decode()  # JSON may bring lone surrogates
    if f"{path}/".startswith("/v2/"):  # in the form of the Open Inference Protocol
        return JSONResponse({"error": message}, status, headers)
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)
