"""What comes in over HTTP: the photo of a request, bounded in bytes, and its options. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import QueryParams, UploadFile
from starlette.formparsers import MultiPartParser
from starlette.requests import Request

from common.decide import MODES

_DRAIN = 64 * 1024 * 1024  # bytes of a too large body that are still read, so that its sender gets to see the reason
_SWITCH = {"1": True, "true": True, "0": False, "false": False}


class Refusal(Exception):
    """A request that gets an error as its answer: an HTTP status, a code for programs and a sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


async def read_photo(request: Request, limit: int) -> bytes:
    """Read the photo of a request: its body, or the first file of a form, at most `limit` bytes in all.

    Raises Refusal (400, 413) where there is none, the form is damaged or the body too large, whatever its headers
    say, and starlette's ClientDisconnect where the sender left.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    body = await _read_body(request, limit)
    if not body:
        raise Refusal(400, "empty", "The request has no body. Send the photo's bytes: "
                                    "curl --data-binary @leaf.jpg URL/predict")
    if kind == "multipart/form-data":
        return await _first_file(request, body)
    return body


def read_options(query: QueryParams, *, top_k: int, mode: str, leaves: int) -> dict[str, Any]:
    """Read the options of a request: `top_k` (1 to the number of leaves), `mode` and `heatmap`.

    top_k and mode are what holds where the query does not say. Raises Refusal (400) for any other key or value.
    """
    options: dict[str, Any] = {"top_k": min(top_k, leaves), "mode": mode, "heatmap": False}
    for key, value in query.multi_items():
        if key == "top_k" and value.isascii() and value.isdigit() and len(value) <= 6 and int(value) >= 1:
            options[key] = min(int(value), leaves)
        elif key == "mode" and value in MODES:
            options[key] = value
        elif key == "heatmap" and value.lower() in _SWITCH:
            options[key] = _SWITCH[value.lower()]
        else:
            raise Refusal(400, "bad_option", f"The option {key[:40]}={value[:40]} is not known. There are top_k (1 or "
                                             f"more), mode ({' or '.join(MODES)}) and heatmap (0 or 1).")
    return options


class _MemoryParser(MultiPartParser):
    spool_max_size = 1 << 40  # the body is bounded already, and photos are not to touch the disk


async def _read_body(request: Request, limit: int) -> bytes:
    too_large = Refusal(413, "too_large", f"The photo has more than {limit / 1e6:g} MB. Send a smaller one.",
                        {"connection": "close"})
    with contextlib.suppress(ValueError):
        # curl waits for leave to send a large body: refused now, it never sends it
        if int(request.headers.get("content-length", "0")) > limit and "expect" in request.headers:
            raise too_large
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            body += chunk
        elif size <= limit + _DRAIN:
            body.clear()
        else:
            break
    if size > limit:
        raise too_large
    return bytes(body)


async def _first_file(request: Request, body: bytes) -> bytes:
    async def feed() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _MemoryParser(request.headers, feed(), max_files=16, max_fields=64).parse()
    except Exception as error:  # on bytes from anywhere the parser raises more kinds than its own
        raise Refusal(400, "bad_form", f"The form cannot be read: {error or type(error).__name__}.") from None
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            data = await value.read()
            await form.close()
            if not data:
                raise Refusal(400, "empty", "The file in the form is empty.")
            return data
    raise Refusal(400, "no_file", "The form holds no file. Send one: curl -F photo=@leaf.jpg URL/predict")
