"""What comes in over HTTP: the photos of a request, bounded in bytes, and its options."""

import contextlib
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartParser
from starlette.requests import Request

from common.classes import ClassTree
from common.decide import MODES
from common.serve.answer import Options
from common.serve.fusion import find_species, parse_prior

MOST_PHOTOS = 5  # of one plant, in one request
HEADER_BYTES = 16 * 1024  # of a request, its address included
FIELDS = tuple(field.name for field in fields(Options))
# bytes of a too large body that are still read, so that its sender sees the reason
_DRAIN = 64 * 1024 * 1024
_POSITIVE = re.compile("(?=[0-9]*[1-9])[0-9]{1,6}")
_SWITCH = {"1": True, "true": True, "0": False, "false": False}


class RequestError(Exception):
    """A request that gets an error as its answer: an HTTP status, a code for programs and a
    sentence for people.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


def expected_bytes(request: Request, limit: int) -> int:
    """How many bytes a request may bring into memory: what its header says, at most `limit`;
    `limit` where it does not say.
    """
    length = request.headers.get("content-length", "")
    return (
        min(int(length), limit)
        if length.isascii() and length.isdigit() and len(length) < 16
        else limit
    )


async def read_photos(request: Request, limit: int) -> tuple[list[bytes], list[tuple[str, str]]]:
    """Read the photos of a request, its body or the files of a form, at most `limit` bytes in all,
    and the form's fields.

    Raises RequestError (400, 413) where there is none or too many, the form is damaged or the body
    too large, whatever its headers say, and starlette's ClientDisconnect where the sender left.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    body = await read_body(request, limit)
    if not body:
        raise RequestError(
            400,
            "empty",
            "The request has no body. Send the photo's bytes: "
            "curl --data-binary @leaf.jpg URL/predict",
        )
    if kind == "multipart/form-data":
        return await _read_form(request, body)
    return [body], []


def read_options(
    given: Iterable[tuple[str, str]], options: Options, tree: ClassTree, precisions: Sequence[str]
) -> Options:
    """Read what a request asks for over what holds by default: `species`, `precision`, `prior`,
    `top_k`, `mode`, `heatmap` and `short_side` (px, of the photo that a small copy is of).

    Raises RequestError (400) for any other key or value.
    """
    found: dict[str, Any] = {}
    for key, value in given:
        try:
            if key in ("top_k", "short_side") and _POSITIVE.fullmatch(value):
                found[key] = int(value)
            elif key == "mode" and value in MODES:
                found[key] = value
            elif key == "heatmap" and value.lower() in _SWITCH:
                found[key] = _SWITCH[value.lower()]
            elif key == "species":
                found[key] = find_species(value, tree) if value else None
            elif key == "prior":
                found[key] = parse_prior(value, tree) if value else {}
            elif key == "precision":
                found[key] = _precision(value, precisions) if value else None
            else:
                raise RequestError(
                    400,
                    "bad_option",
                    f"The option {key[:40]}={value[:40]} is not known. There are species, "
                    f"precision, prior, top_k (1 or more), mode ({' or '.join(MODES)}), heatmap "
                    f"(0 or 1) and short_side (pixels).",
                )
        except ValueError as error:
            raise RequestError(400, "bad_option", f"The option {key}: {error}") from None
    found["top_k"] = min(found.get("top_k", options.top_k), tree.num_classes)
    return replace(options, **found)


def _precision(text: str, known: Sequence[str]) -> str:
    for name in known:
        with contextlib.suppress(ValueError):
            if abs(float(text) - float(name)) < 1e-9:
                return name
    raise ValueError(
        f"this model promises no precision of '{text[:20]}'; it has "
        f"{', '.join(sorted(known)) or 'none'}."
    )


class _MemoryParser(MultiPartParser):
    # the body is bounded already, and photos are not to touch the disk; the name changed in
    # starlette 0.46
    spool_max_size = max_file_size = 1 << 40


async def read_body(request: Request, limit: int, what: str = "photo") -> bytes:
    """Read a body of at most `limit` bytes, which an error calls `what`. Raises RequestError (413),
    and starlette's ClientDisconnect.
    """
    too_large = RequestError(
        413,
        "too_large",
        f"The {what} has more than {limit / 1e6:.3g} MB. Send a smaller one.",
        {"connection": "close"},
    )
    with contextlib.suppress(ValueError):
        # curl asks before it sends a large body: answered now, it never sends it
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


async def _read_form(request: Request, body: bytes) -> tuple[list[bytes], list[tuple[str, str]]]:
    async def feed() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _MemoryParser(request.headers, feed(), max_files=16, max_fields=64).parse()
    except Exception as error:  # on bytes from anywhere the parser raises more kinds than its own
        raise RequestError(
            400, "bad_form", f"The form cannot be read: {error or type(error).__name__}."
        ) from None
    try:
        files = [
            await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)
        ]
    finally:
        await form.close()
    if not files:
        raise RequestError(
            400, "no_file", "The form holds no file. Send one: curl -F photo=@leaf.jpg URL/predict"
        )
    if len(files) > MOST_PHOTOS:
        raise RequestError(
            400,
            "too_many",
            f"The form holds {len(files)} photos; at most {MOST_PHOTOS}, all of one plant, are "
            f"put together.",
        )
    if not all(files):
        raise RequestError(
            400,
            "empty",
            "The file in the form is empty." if len(files) == 1 else "A file in the form is empty.",
        )
    said = [
        (key, value)
        for key, value in form.multi_items()
        if isinstance(value, str) and key in FIELDS
    ]
    return files, said
