"""The files of the web page over HTTP: its own, the light model of exports/browser/, the runtime
that runs the model, advice and reference pictures.

The page's own files are revalidated each time (an ETag answers "unchanged"). The URLs of the model
and the runtime hold their hash, so that a browser keeps them for ever. A compressed copy beside a
file (`.br`, `.gz`) is sent where the browser takes it and it is not older than the file; heads.bin
is fetched by byte ranges.
"""

import gzip
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from common.files import file_sha256
from common.images import MIN_SIDE
from common.serve import icon
from common.serve.advice import INDEX, REFERENCE, read_advice, read_reference
from common.serve.predictor import (
    HEADS,
    MODEL,
    SETTINGS,
    Bundle,
    BundleError,
    Predictor,
    read_settings,
)
from common.serve.texts import fill_page
from common.serve.web_runtime import PINNED, RUNTIME, SCRIPT, WASM

WEB = Path(__file__).parents[1] / "web"
PAGE, TEXTS = "index.html", "texts.json"
DOCS = ("docs.css", "docs.js")  # of /docs, which only a server has
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".onnx": "application/octet-stream",
    ".bin": "application/octet-stream",
    ".jpg": "image/jpeg",
}
_PACKED = (".bin", ".jpg")
_RANGE = re.compile("bytes=([0-9]+)-([0-9]*)|bytes=-([0-9]+)", re.I)
_TOGETHER = 60  # s: files of a copied folder get the times of copying, in any order
_RANGE_HEADERS = (b"range", b"if-range")
# bytes up to which a file without a compressed copy is compressed on its first request
_ZIP_AT_ONCE = 4_000_000


@dataclass
class Stored:
    """A file to serve, how long it may be kept, and its copy gzipped on request."""

    path: Path
    cache: str = "no-cache"
    zipped: bytes | None = None

    @cached_property
    def sha256(self) -> str:
        """The file's hash, when it is first asked for."""
        return file_sha256(self.path)

    def answer(self, request: Request) -> Response:
        """Answer a GET or HEAD: 304 where the browser has it, a byte range where one is asked for,
        else the whole file, compressed where the browser takes that.
        """
        headers = {
            "etag": f'"{self.sha256[:16]}"',
            "cache-control": self.cache,
            "content-type": _TYPES[self.path.suffix],
            "vary": "accept-encoding",
        }
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        unchanged = request.headers.get("if-range", headers["etag"]) == headers["etag"]
        part = self._part(request.headers.get("range", "")) if unchanged else None
        # starlette reads the range anew, and fails at what it cannot read
        others = [pair for pair in request.scope["headers"] if pair[0] not in _RANGE_HEADERS]
        request.scope["headers"] = [*others, (b"range", part.encode())] if part else others
        accepted = request.headers.get("accept-encoding", "").lower().split(",")
        accepted = [] if part else [one.strip() for one in accepted]
        for encoding, suffix in (("br", ".br"), ("gzip", ".gz")):
            copy = self.path.with_name(self.path.name + suffix)
            if encoding in accepted and _is_current(copy, self.path):
                return FileResponse(copy, headers={**headers, "content-encoding": encoding})
        small = self.path.stat().st_size <= _ZIP_AT_ONCE
        if "gzip" in accepted and small and self.path.suffix not in _PACKED:
            self.zipped = self.zipped or gzip.compress(self.path.read_bytes(), 6, mtime=0)
            return _in_parts(self.zipped, {**headers, "content-encoding": "gzip"})
        return FileResponse(self.path, headers=headers)

    def _part(self, asked: str) -> str | None:
        """The bytes that a Range header asks for, as `bytes=FIRST-LAST`; None, for the whole file,
        where it names none, several parts or what is no range (RFC 9110, 14.2).

        Raises HTTPException (416) where the file has no such bytes.
        """
        if not (found := _RANGE.fullmatch(asked.strip())):
            return None
        size = self.path.stat().st_size
        # a float takes any number of digits, and is exact up to 2^53
        first, last, count = (float(text or 0) for text in found.groups())
        if found[3]:
            first, last = max(size - count, 0), size
        elif not found[2]:
            last = size
        elif last < first:
            return None
        if first >= size:
            told = {"content-range": f"bytes */{size}"}
            raise HTTPException(416, f"The file has {size} bytes.", told)
        return f"bytes={first:.0f}-{min(last, size - 1):.0f}"


def _is_current(copy: Path, original: Path) -> bool:
    return copy.is_file() and copy.stat().st_mtime >= original.stat().st_mtime - _TOGETHER


def _in_parts(data: bytes, headers: dict[str, str]) -> Response:
    """Bytes in parts, as `FileResponse` sends files: the server cuts off clients that read nothing
    for a while, and a slow phone takes minutes for a single large part.
    """

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(data), FileResponse.chunk_size):
            yield data[start : start + FileResponse.chunk_size]

    return StreamingResponse(parts(), headers={**headers, "content-length": str(len(data))})


def light_files(exports: Path, runtime: Path | None = None) -> dict[str, Path]:
    """Find and check what the page needs to answer by itself.

    Args:
        exports: the folder that may hold browser/.
        runtime: the folder of onnxruntime-web's two files; None: `RUNTIME`.

    Returns:
        paths by name.

    Raises:
        BundleError: where something is missing or not what it should be; its message says what, and
            how to mend it.
    """
    folder, runtime = exports / "browser", runtime or RUNTIME
    if not folder.is_dir():
        raise BundleError(
            "these exports hold no model for the browser; 03_export.py --browser writes one"
        )
    settings = read_settings(folder)
    for name, sha256 in (
        (MODEL, settings["model"]["sha256"]),
        (HEADS, settings["heads"]["sha256"]),
    ):
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
            raise BundleError(f"{folder / name} is not the file that was exported")
    if missing := [name for name in PINNED if not (runtime / name).is_file()]:
        raise BundleError(
            f"there is no {runtime / missing[0]}, which runs a model in the browser; `python "
            f"-m common.serve.web_runtime fetch` fetches it with npm"
        )
    if wrong := [name for name, sha256 in PINNED.items() if file_sha256(runtime / name) != sha256]:
        raise BundleError(
            f"{runtime / wrong[0]} is not the expected file; delete its folder and run "
            f"`python -m common.serve.web_runtime fetch`"
        )
    return {
        **{name: folder / name for name in (SETTINGS, MODEL, HEADS)},
        **{name: runtime / name for name in PINNED},
    }


def describe_light(exports: Path) -> str:
    """Say whether the page of an exports folder answers by itself, or why it asks the server for
    every photo.
    """
    try:
        return (
            f"answers in the browser ({light_files(exports)[MODEL].stat().st_size / 1e6:.1f} "
            f"MB); unsure photos come here"
        )
    except BundleError as error:
        return f"asks this server for every photo: {error}"


def page_files(
    bundle: Bundle,
    texts: Mapping[str, str],
    *,
    top_k: int,
    server: Mapping[str, Any] | None,
    version: str,
    runtime: Path | None = None,
) -> tuple[dict[str, Stored], dict[str, bytes]]:
    """List what the page consists of, by the address below the page's own.

    Args:
        bundle: of the exports, which may hold a light model, advice and reference pictures.
        texts: sentences by key.
        top_k: alternatives of an answer.
        server: what the page has to know of the server that it may ask; None: there is none.
        version: of all that the page asks for besides.
        runtime: as for `light_files`.

    Returns:
        its files; and the bytes of what is in no file: the page itself, in the words of `texts`,
        its icons, and JSON, of which page.json is what it has to know before it starts.

    Raises:
        SystemExit: where advice.csv or the reference pictures cannot be used.
    """
    pages = {
        path.name: Stored(path)
        for path in sorted(WEB.iterdir())
        if path.suffix in _TYPES and path.name not in (PAGE, TEXTS, *(() if server else DOCS))
    }
    index_html = fill_page((WEB / PAGE).read_text(encoding="utf-8"), texts)
    if server is None:
        index_html = index_html.replace("<html", "<html data-alone", 1)
    try:
        found = light_files(bundle.folder, runtime)
    except BundleError:  # the terminal says why: a visitor has no use for paths
        found = {}
    kept = {
        name: Stored(path, "public, max-age=31536000, immutable") for name, path in found.items()
    }
    urls = {name: f"./files/{one.sha256[:16]}/{name}" for name, one in kept.items()}
    advice = read_advice(bundle.folder, bundle.tree, texts["language"])
    index = read_reference(bundle.folder, bundle.tree)
    pictures = {
        f"{REFERENCE}/{one['file']}": Stored(bundle.folder / REFERENCE / one["file"])
        for row in index.values()
        for one in row
    }
    shell = [f"./{name}" for name in ("", TEXTS, *pages) if name not in ("sw.js", *DOCS)]
    facts: dict[str, Any] = {
        "top_k": top_k,
        "min_side": MIN_SIDE,
        # from this version on, a resize begins with the height of tall pictures
        "tall_first": int(PIL.__version__.split(".")[0]) >= 13,
        "server": server,
        "light": {
            "script": urls[SCRIPT],
            "wasm": urls[WASM],
            "settings": urls[SETTINGS],
            "onnx": urls[MODEL],
            "heads": {"url": urls[HEADS], "bytes": kept[HEADS].path.stat().st_size},
        }
        if kept
        else None,
        "shell": [*shell, "page.json", "model", *["advice.json"] * bool(advice)],
    }
    facts["shell"] += [f"{REFERENCE}/{INDEX}"] * bool(index)
    values = {TEXTS: texts, "advice.json": advice, f"{REFERENCE}/{INDEX}": index}
    hashes = [one.sha256 for one in (*pages.values(), *kept.values())]
    sizes = [one.path.stat().st_size for one in pictures.values()]  # cheaper, and enough
    everything = json.dumps([index_html, facts, values, hashes, sizes, version])
    facts["version"] = hashlib.sha256(everything.encode()).hexdigest()[:16]
    made = {f"icon-{size}.png": icon.png(size) for size in icon.SIZES} | {"": index_html.encode()}
    for name, value in {**values, "page.json": facts}.items():
        made[name] = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return pages | {urls[name][2:]: one for name, one in kept.items()} | pictures, made


def page_routes(
    predictor: Predictor,
    texts: Mapping[str, str],
    *,
    top_k: int,
    max_upload_mb: float,
    runtime: Path | None = None,
) -> list[Route]:
    """Build the routes of all that the page consists of.

    Args:
        predictor: the served model, whose folder may hold a light one.
        texts: sentences by key.
        top_k, max_upload_mb: as of the server.
        runtime: as for `light_files`.

    Raises:
        SystemExit: as `page_files`.
    """
    server = {
        "size": predictor.bundle.size,
        "long_side": predictor.bundle.long_side,
        "max_upload_mb": max_upload_mb,
    }
    files, made = page_files(
        predictor.bundle,
        texts,
        top_k=top_k,
        server=server,
        version=predictor.card.sha256,
        runtime=runtime,
    )

    # A route per file of the page: a mount at "/" would answer 404 where 405 is meant.
    return [
        *(Route(f"/{name}", _told(name, data)) for name, data in made.items()),
        *(Route(f"/{name}", one.answer) for name, one in files.items() if "/" not in name),
        *(
            Route(f"/{folder}/{{name:path}}", _inside(folder, files))
            for folder in ("files", REFERENCE)
        ),
    ]


def _told(name: str, data: bytes) -> Callable[[Request], Response]:
    """Answer with what is in no file, 304 where the browser has it."""
    headers = {
        "etag": f'"{hashlib.sha256(data).hexdigest()[:16]}"',
        "cache-control": "no-cache",
        "content-type": _TYPES[Path(name or PAGE).suffix],
        "vary": "accept-encoding",
    }
    zipped = gzip.compress(data, 6, mtime=0)

    def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", "").lower():
            return _in_parts(zipped, {**headers, "content-encoding": "gzip"})
        return _in_parts(data, headers)

    return answer


def _inside(folder: str, files: Mapping[str, Stored]) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        found = files.get(f"{folder}/{request.path_params['name']}")
        if found is None:
            raise HTTPException(404)
        return found.answer(request)

    return answer
