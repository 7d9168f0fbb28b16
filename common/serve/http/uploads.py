"""What comes in over HTTP: the photos of a request, bounded in bytes, and its options."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import replace
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
# bytes of a too large body that are still read, so that its sender sees the reason
_DRAIN = 64 * 1024 * 1024
_STEP = 1024 * 1024  # bytes of a form between which other requests have their turn
_POSITIVE = re.compile("(?=[0-9]*[1-9])[0-9]{1,6}")
# what is sent where the bytes of a photo are meant, by how it begins; no picture begins so
_NO_PHOTO = [
    (re.compile(pattern), what)
    for pattern, what in (
        (rb"\s*(?i:https?|ftp|file)://", "an address, and this server fetches nothing"),
        (rb"\s*(?i:data):[\w.+-]+/", "a data: URL"),
        (rb"\s*[{[]\s*[\"{[]", "JSON"),
        (rb"\s*(/9j/|iVBORw|UklGR|R0lGOD)[\w+/=\s-]{9}", "base64"),
        (
            rb"@?[^\0-\x1f=]{1,255}\.(?i:jpe?g|png|webp|gif|tiff?|bmp|hei[cf]|avif)\s*\Z",
            "a file's name",
        ),
        (rb"[\w.-]{1,40}=[\x21-\x7e]", "a form that holds no file"),
        (
            rb"--[^\r\n]+\r?\n(?i:Content-Disposition):",
            "a form without its header Content-Type, which the program that makes the form sets",
        ),
        # no picture begins with so many bytes of which none is zero
        (
            rb"(\xff\xd8|\x89PNG|RIFF|GIF8|II\*|MM\*|.?ftyp)[^\0\r\n]{50,}\Z",
            "a photo without its zeros and line ends, which curl -d takes away",
        ),
    )
]
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

    Raises RequestError (400, 413, 415) where there is none or too many, the form is damaged, the
    body too large, whatever its headers say, or plainly something else than a photo, and
    starlette's ClientDisconnect where the sender left.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise RequestError(
            415,
            "encoding",
            f"The body is compressed ({encoding[:40]}). Send the photo's own bytes, without the "
            f"header Content-Encoding.",
            {"accept-encoding": "identity"},
        )
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
        photos, said = await _read_form(request, body)
    else:
        photos, said = [body], []
    for photo in photos:
        for pattern, what in _NO_PHOTO:
            if pattern.match(photo[:4096]):
                raise RequestError(
                    415,
                    "text",
                    f"This is {what}. Send the photo's own bytes: "
                    f"curl --data-binary @leaf.jpg URL/predict, or in a form: "
                    f"curl -F photo=@leaf.jpg URL/predict",
                )
    return photos, said


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
    # never what the header names: 1 MB of punycode takes minutes, and UTF-7 gives lone surrogates
    _charset = property(lambda _: "utf-8", lambda *_: None)


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
        for start in range(0, len(body), _STEP):
            yield body[start : start + _STEP]
            await asyncio.sleep(0)  # a form is parsed on the event loop

    try:
        form = await _MemoryParser(request.headers, feed(), max_files=16, max_fields=64).parse()
    except Exception as error:  # on bytes from anywhere the parser raises more kinds than its own
        raise RequestError(
            400,
            "bad_form",
            f"The form cannot be read: {str(error).rstrip('.') or type(error).__name__}. curl -F "
            f"photo=@leaf.jpg makes a good one; a header Content-Type of your own spoils it.",
        ) from None
    try:
        fields = form.multi_items()
        files = [
            await value.read()
            for _, value in fields
            # a browser sends a field in which no file was chosen too, with an empty name
            if isinstance(value, UploadFile) and (value.filename or value.size)
        ]
    finally:
        await form.close()
    said = [(key, value) for key, value in fields if isinstance(value, str)]
    if not files:
        named = f", but text in its field {said[0][0][:40]}" if said else ""
        raise RequestError(
            400,
            "no_file",
            f"The form holds no file{named}. Send one, with an @ before its name: "
            f"curl -F photo=@leaf.jpg URL/predict",
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
    return files, said
