"""What the page is made of, over HTTP: its own files, the light model of exports/browser/ and the
runtime that runs it. No torch.

Files of the page are asked for anew each time (an ETag answers "unchanged"). The model and the
runtime stand under an address that holds their hash, so that a browser keeps them for ever. A copy
compressed beforehand beside a file (`.br`, `.gz`) is sent where the browser takes it and the copy
is not older than the file; heads.bin is also given by byte ranges."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from common import decide
from common.export.browser.light_model import HEADS, MODEL, SETTINGS, read_settings
from common.files import file_sha256
from common.images import MIN_SIDE
from common.serve.predictor import BundleError, Predictor

WEB = Path(__file__).parents[1] / "web"
RUNTIME = WEB.parents[2] / ".web" / "onnxruntime-web-1.30.0"  # `run_all.sh` fetches it
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
PINNED = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".onnx": "application/octet-stream",
    ".bin": "application/octet-stream",
}
_PACKED = (("br", ".br"), ("gzip", ".gz"))
_CHUNK = 1 << 16
_TOGETHER = 60  # s: a folder that is copied gets the times of its copying, in any order
# bytes up to which a file without a compressed copy is compressed on its first request
_ZIP_AT_ONCE = 4_000_000


@dataclass
class Stored:
    """A file to serve: its type and hash, and the compressed copies that were asked for so far."""

    path: Path
    sha256: str
    cache: str
    packed: dict[str, bytes | None] = field(default_factory=dict)

    def read(self, way: str) -> bytes | None:
        """The file's bytes packed by `br` or `gzip`, or None where there is no such copy;
        `identity`: as they are."""
        if way == "identity":
            return self.path.read_bytes()
        if way not in self.packed:
            beside = self.path.with_name(self.path.name + dict(_PACKED)[way])
            data = None
            if beside.is_file() and beside.stat().st_mtime >= self.path.stat().st_mtime - _TOGETHER:
                data = beside.read_bytes()
            elif (
                way == "gzip"
                and self.path.suffix != ".bin"
                and self.path.stat().st_size <= _ZIP_AT_ONCE
            ):
                data = gzip.compress(self.path.read_bytes(), 6, mtime=0)
            self.packed[way] = data
        return self.packed[way]

    async def answer(self, request: Request) -> Response:
        """Answer a GET or HEAD: 304 where the browser has it, 206 or 416 for a byte range, else the
        whole, packed if that is taken."""
        tag = f'"{self.sha256[:16]}"'
        headers = {
            "etag": tag,
            "cache-control": self.cache,
            "content-type": _TYPES[self.path.suffix],
            "vary": "accept-encoding",
            "accept-ranges": "bytes",
        }
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if wanted := request.headers.get("range"):
            data = await asyncio.to_thread(self.read, "identity")
            return _part(data, wanted, headers)
        taken = [
            part.strip() for part in request.headers.get("accept-encoding", "").lower().split(",")
        ]
        for way in [way for way, _ in _PACKED if way in taken]:
            if (data := await asyncio.to_thread(self.read, way)) is not None:
                return _whole(data, {**headers, "content-encoding": way})
        return _whole(await asyncio.to_thread(self.read, "identity"), headers)


def _whole(data: bytes, headers: dict[str, str]) -> Response:
    """Send in parts: the server cuts off who does not read for a while, and a phone takes minutes
    for the runtime as one."""

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(data), _CHUNK):
            yield data[start : start + _CHUNK]

    if len(data) <= _CHUNK:
        return Response(data, headers=headers)
    return StreamingResponse(parts(), headers={**headers, "content-length": str(len(data))})


def _part(data: bytes, wanted: str, headers: dict[str, str]) -> Response:
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    if not (wanted.startswith("bytes=") and first.isdecimal() and (last == "" or last.isdecimal())):
        return _whole(
            data, headers
        )  # several ranges, or the last bytes: nobody needs them, and the whole is a right answer
    start, stop = int(first), min(len(data), int(last) + 1 if last else len(data))
    if start >= stop:
        return Response(
            status_code=416, headers={**headers, "content-range": f"bytes */{len(data)}"}
        )
    return Response(
        data[start:stop],
        206,
        headers={**headers, "content-range": f"bytes {start}-{stop - 1}/{len(data)}"},
    )


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
            f"there is no {runtime / missing[0]}, which runs a model in the browser; `bash "
            f"run_all.sh` fetches it with npm"
        )
    if wrong := [name for name, sha256 in PINNED.items() if file_sha256(runtime / name) != sha256]:
        raise BundleError(
            f"{runtime / wrong[0]} is not the file that is meant; delete its folder and `bash "
            f"run_all.sh` fetches it again"
        )
    return {
        **{name: folder / name for name in (SETTINGS, MODEL, HEADS)},
        **{name: runtime / name for name in PINNED},
    }


def tell_light(exports: Path) -> str:
    """Say for the terminal whether the page of an exports folder answers by itself, or why it asks
    the server for every photo."""
    try:
        return (
            f"answers in the browser ({light_files(exports)[MODEL].stat().st_size / 1e6:.1f} "
            f"MB); unsure photos come here"
        )
    except BundleError as error:
        return f"asks this server for every photo: {error}"


def page_routes(
    predictor: Predictor, *, top_k: int, max_upload_mb: float, runtime: Path | None = None
) -> list[Route]:
    """Build the routes of the page, of /page.json (what it has to know before it starts) and of the
    files under /files/.

    Args:
        predictor: the served model, whose folder may hold a light one.
        top_k, max_upload_mb: as the server answers and refuses.
        runtime: as for `light_files`.
    """

    def store(path: Path, cache: str) -> Stored:
        return Stored(path, file_sha256(path), cache)

    pages = {
        ("/" if path.name == "index.html" else f"/{path.name}"): store(path, "no-cache")
        for path in sorted(WEB.iterdir())
        if path.suffix in _TYPES
    }
    try:
        found, why = light_files(predictor.bundle.folder, runtime), None
    except BundleError:  # `tell_light` says more in the terminal: a visitor has no use for paths
        found, why = {}, "This server has no model for the browser."
    kept = {
        name: store(path, "public, max-age=31536000, immutable") for name, path in found.items()
    }
    urls = {name: f"/files/{one.sha256[:16]}/{name}" for name, one in kept.items()}
    everything = (
        "".join(one.sha256 for one in (*pages.values(), *kept.values())) + predictor.card.sha256
    )
    facts: dict[str, Any] = {
        "version": hashlib.sha256(everything.encode()).hexdigest()[:16],
        "top_k": top_k,
        "min_side": MIN_SIDE,
        "texts": decide.texts(),
        "server": {
            "size": predictor.bundle.size,
            "long_side": predictor.bundle.long_side,
            "max_upload_mb": max_upload_mb,
            "tall_first": int(PIL.__version__.split(".")[0]) >= 13,
        },  # then its resize begins with the height of tall pictures
        "why": why,
        "light": {
            "script": urls[SCRIPT],
            "wasm": urls[WASM],
            "settings": urls[SETTINGS],
            "onnx": urls[MODEL],
            "heads": {"url": urls[HEADS], "bytes": kept[HEADS].path.stat().st_size},
        }
        if kept
        else None,
        "shell": [*(url for url in pages if url != "/sw.js"), "/page.json", "/model"],
    }

    async def page_json(_: Request) -> Response:
        return JSONResponse(facts, headers={"cache-control": "no-cache"})

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if urls.get(name) != request.url.path:
            raise HTTPException(404)
        return await kept[name].answer(request)

    def page(stored: Stored) -> Any:
        async def answer(request: Request) -> Response:
            return await stored.answer(request)

        return answer

    # A route per file of the page: a mount at "/" would answer 404 where 405 is meant.
    return [
        *(Route(url, page(stored)) for url, stored in pages.items()),
        Route("/page.json", page_json),
        Route("/files/{hash}/{name}", file),
    ]
