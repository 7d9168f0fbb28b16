"""A request's way through the server: key, admission, body, queue, answer, and what is counted on
the way.
"""

import asyncio
import contextlib
import functools
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from common.images import ImageError, NeedsMemory
from common.serve.answer import (
    Options,
    PhotoResult,
    RunningPhoto,
    answer,
    ms,
    result_of,
    start_photo,
)
from common.serve.http import inference_protocol
from common.serve.http.decoder import LIGHT, MOST, RISKY, Decoder
from common.serve.http.metrics import Telemetry
from common.serve.http.uploads import (
    MOST_PHOTOS,
    RequestError,
    expected_bytes,
    read_body,
    read_options,
    read_photos,
)
from common.serve.http.work_queue import Busy, ClientGone, WorkQueue
from common.serve.predictor import Outputs, Predictor
from common.serve.shared import ModelGone
from common.serve.texts import english

LEFT = 499  # counted, as nginx does, where nobody is left to read an answer
# by an ImageError's reason; any other is 422
_STATUS = {"empty": 400, "text": 415, "format": 415, "too_large": 413}


_NO_PLACE = {  # status and sentence, by the reason of Busy
    "busy": (503, "Too many photos are waiting. Try again in a moment."),
    "draining": (503, "The server is stopping."),
    "too_many": (
        429,
        "Your address has as many photos waiting as it may while others ask. Try again in a "
        "moment.",
    ),
    "too_slow": (408, "The photo came too slowly while others were waiting."),
}


@dataclass(frozen=True)
class Settings:
    """How to serve.

    runners: photos read, and without a GPU also computed, at once; waiting: how many more requests
    may be under way; max_upload_mb: bytes of a request's body, in millions; max_megapixels: of one
    photo; memory_mb: of all bodies together; upload_seconds: for a body to arrive; provider: what
    runs the model; api_key: required unless empty; cors_origins: pages of other addresses that may
    ask, `*` for all; texts: sentences by key.
    """

    top_k: int = 5
    mode: str = "joint"
    runners: int = 1
    waiting: int = 32
    max_upload_mb: float = 20.0
    max_megapixels: float = 64.0
    memory_mb: float = 64.0
    upload_seconds: float = 60.0
    access_log: bool = False
    provider: str = "cpu"
    api_key: str = ""
    cors_origins: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=english)


class Service:
    """What the routes share: the model, the work queue, the metrics, and how a request passes
    through them.
    """

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self.predictor, self.settings = predictor, settings
        self.limit = int(settings.max_upload_mb * 1e6)
        self.tensor_limit = min(self.limit, inference_protocol.body_limit(predictor.bundle.size))
        self.queue = WorkQueue(settings.runners, settings.waiting, int(settings.memory_mb * 1e6))
        bundle, self.max_pixels = predictor.bundle, int(settings.max_megapixels * 1e6)
        self.decoder = Decoder(bundle.size, bundle.long_side, self.max_pixels)
        self.telemetry = Telemetry(
            {
                "model": predictor.card.file,
                "version": predictor.bundle.version,
                "provider": settings.provider,
            }
        )
        self.queue.waited = self.telemetry.queue_seconds.observe
        self.telemetry.places.set(self.queue.places)

    def check_key(self, request: Request) -> None:
        """Raises RequestError (401) where the request lacks the API key."""
        if not self.settings.api_key:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = (
            token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        )
        if not hmac.compare_digest(given.encode("latin-1"), self.settings.api_key.encode()):
            raise RequestError(
                401,
                "no_key",
                "This server asks for an API key: send the header `Authorization: Bearer KEY`.",
                {"www-authenticate": "Bearer"},
            )

    @contextlib.contextmanager
    def place(self, request: Request, limit: int) -> Iterator[Request]:
        """Hold a place in the queue for a body of at most `limit` bytes; gives the request, to read
        it from. Raises RequestError where there is none, before the body is read, or where it is
        lost (408, 429, 503).
        """
        size, gauges = expected_bytes(request, limit), self.telemetry
        try:
            with (
                self.queue.place(size, client_of(request)) as place,
                gauges.in_flight.track_inprogress(),
            ):
                gauges.body_bytes.inc(size)
                try:
                    yield Request(request.scope, place.watch(request.receive))
                finally:
                    gauges.body_bytes.dec(size)
        except (Busy, ModelGone) as error:
            # this process ends; another may reach the model
            self.queue.draining |= isinstance(error, ModelGone)
            reason = "draining" if self.queue.draining else str(error)
            status, message = _NO_PLACE[reason]
            if status == 503:
                self.telemetry.busy.inc()
            raise RequestError(status, reason, message, {"retry-after": "1"}) from None

    async def receive(self, reading: Awaitable[Any]) -> Any:
        """Wait for a body, within `upload_seconds`. Raises RequestError (408)."""
        try:
            return await asyncio.wait_for(reading, self.settings.upload_seconds)
        except asyncio.TimeoutError:  # noqa: UP041 - its own class before Python 3.11
            raise RequestError(
                408,
                "too_slow",
                f"The request did not arrive within {self.settings.upload_seconds:g} s.",
                {"connection": "close"},
            ) from None

    async def predict(self, request: Request) -> Response:
        """POST /predict."""
        start = time.perf_counter()
        try:
            plain = await self._answer(request)
        except RequestError as error:
            self.telemetry.requests.labels("request_rejected", error.code).inc()
            raise
        except (ClientDisconnect, ClientGone):
            self.telemetry.requests.labels("vanished", "none").inc()
            return Response(status_code=LEFT)
        except Exception:
            self.telemetry.requests.labels("failed", "internal").inc()
            raise
        seconds = time.perf_counter() - start
        self.telemetry.answered(plain, seconds)
        plain["timings_ms"]["total"] = ms(seconds)
        return JSONResponse(plain)

    async def _answer(self, request: Request) -> dict[str, Any]:
        self.check_key(request)
        tree, known = self.predictor.bundle.tree, list(self.predictor.card.rollups)
        options = read_options(
            request.query_params.multi_items(),
            Options(self.settings.mode, self.settings.top_k),
            tree,
            known,
        )
        with self.place(request, self.limit) as request:
            photos, said = await self.receive(read_photos(request, self.limit))
            options = read_options(said, options, tree, known)
            work = [self._run(photo, i, len(photos), options) for i, photo in enumerate(photos)]
            results = await self.queue.run(work, lambda: left(request))
        # here, not on a runner: it takes less than waiting for one again
        return answer(self.predictor, results, options, self.settings.texts)

    async def _run(self, photo: bytes, i: int, count: int, options: Options) -> PhotoResult:
        try:
            running = await self._start(photo, options.short_side)
        except ImageError as error:
            name = "This" if count == 1 else f"Photo {i + 1}"
            raise RequestError(
                _STATUS.get(error.reason, 422), error.reason, f"{name} cannot be read: {error}."
            ) from None
        await outputs_of(running.outputs[0])
        return result_of(running)

    async def _start(self, photo: bytes, short_side: int | None) -> RunningPhoto:
        start = functools.partial(start_photo, [self.predictor], short_side=short_side)
        if photo[:2] not in RISKY:
            try:
                return await self.queue.on_runner(
                    start, photo, max_pixels=self.max_pixels, max_bytes=LIGHT
                )
            except NeedsMemory as large:
                if large.needed > MOST:
                    raise
        begun = time.perf_counter()
        read = await self.decoder.read(photo)
        decode = time.perf_counter() - begun
        return replace(await self.queue.on_runner(start, read), decode=decode)

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/NAME/infer."""
        self.check_key(request)
        inference_protocol.check_headers(request.headers)
        with self.place(request, self.tensor_limit) as request:
            try:
                body = await self.receive(read_body(request, self.tensor_limit, "request"))
                work = self._infer(body, request.headers)
                return (await self.queue.run([work], lambda: left(request)))[0]
            except (ClientDisconnect, ClientGone):
                return Response(status_code=LEFT)

    async def _infer(self, body: bytes, headers: Mapping[str, str]) -> Response:
        asked = await self.queue.on_runner(
            inference_protocol.read_request, self.predictor, body, headers
        )
        outputs = await outputs_of(asked.outputs)
        return await asyncio.to_thread(inference_protocol.respond, self.predictor, asked, outputs)

    async def healthz(self, _: Request) -> Response:
        """GET /healthz."""
        return JSONResponse(
            {
                "status": "ok",
                "model": self.predictor.card.file,
                "version": self.predictor.bundle.version,
            }
        )

    async def readyz(self, _: Request) -> Response:
        """GET /readyz."""
        if self.queue.draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ready"})

    async def model(self, _: Request) -> Response:
        """GET /model."""
        return JSONResponse(describe(self.predictor, self.settings))

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        self.check_key(request)
        self.telemetry.draining.set(self.queue.draining)
        return Response(
            self.telemetry.text(),
            headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"},
        )


async def outputs_of(future: Future[Outputs]) -> Outputs:
    """Wait on the event loop for what a model gives."""
    return future.result() if future.done() else await asyncio.wrap_future(future)


def client_of(request: Request) -> str:
    """Who asks: an address, or the 64 bits of its network, of which a client of IPv6 has all."""
    host = request.client.host if request.client else ""
    with contextlib.suppress(ValueError):  # no address: a proxy may hide it
        address = ipaddress.ip_address(host.partition("%")[0])
        if address.version == 6:
            return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return host


async def left(request: Request) -> None:
    """Return when the client of a request has left; its body is read by then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def describe(predictor: Predictor, settings: Settings) -> dict[str, Any]:
    """What GET /model tells."""
    bundle, card = predictor.bundle, predictor.card
    plain = bundle.raw["models"][card.file]
    rejection = plain["rejection"] and {
        key: plain["rejection"][key] for key in ("score", "threshold")
    }
    return {
        "name": bundle.name,
        "version": bundle.version,
        "created": bundle.created,
        "recipe": bundle.recipe,
        "backbone": bundle.backbone,
        "file": card.file,
        "models": list(bundle.models),
        "sha256": card.sha256,
        "precision": card.precision,
        "provider": settings.provider,
        "size_mb": card.size_mb,
        "temperature": plain["temperature"],
        "preprocessing": bundle.raw["preprocessing"],
        "scores": list(bundle.scores),
        "rejection": rejection,
        "rollup": plain["rollup"],
        "precisions": sorted(card.rollups),
        "mode": settings.mode,
        "top_k": settings.top_k,
        "limits": {
            "max_upload_mb": settings.max_upload_mb,
            "max_megapixels": settings.max_megapixels,
            "photos": MOST_PHOTOS,
        },
        "metrics": plain["metrics"],
        "num_species": bundle.tree.num_species,
        "num_classes": bundle.tree.num_classes,
        "classes": [
            {"species": name, "diseases": list(diseases)}
            for name, diseases in zip(bundle.tree.species, bundle.tree.diseases, strict=True)
        ],
    }
