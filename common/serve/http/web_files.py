"""The files of the web page over HTTP: its own, the light model of exports/browser/, and the
runtime that runs the model.

The page's own files are revalidated each time (an ETag answers "unchanged"). The URLs of the model
and the runtime hold their hash, so that a browser keeps them for ever. A compressed copy beside a
file (`.br`, `.gz`) is sent where the browser takes it and it is not older than the file; heads.bin
is fetched by byte ranges.
"""

import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from common.files import file_sha256
from common.images import MIN_SIDE
from common.serve import icon
from common.serve.predictor import (
    HEADS,
    MODEL,
    SETTINGS,
    BundleError,
    Predictor,
    read_settings,
)
from common.serve.texts import fill_page
from common.serve.web_runtime import PINNED, RUNTIME, SCRIPT, WASM

WEB = Path(__file__).parents[1] / "web"
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
}
_TOGETHER = 60  # s: files of a copied folder get the times of copying, in any order
# bytes up to which a file without a compressed copy is compressed on its first request
_ZIP_AT_ONCE = 4_000_000


@dataclass
class Stored:
    """A file to serve: its type and hash, and the copies gzipped on request so far."""

    path: Path
    sha256: str
    cache: str
    zipped: bytes | None = None

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
        accepted = request.headers.get("accept-encoding", "").lower().split(",")
        accepted = [] if "range" in request.headers else [part.strip() for part in accepted]
        for encoding, suffix in (("br", ".br"), ("gzip", ".gz")):
            copy = self.path.with_name(self.path.name + suffix)
            if encoding in accepted and _is_current(copy, self.path):
                return FileResponse(copy, headers={**headers, "content-encoding": encoding})
        small = self.path.stat().st_size <= _ZIP_AT_ONCE
        if "gzip" in accepted and small and self.path.suffix != ".bin":
            self.zipped = self.zipped or gzip.compress(self.path.read_bytes(), 6, mtime=0)
            return _in_parts(self.zipped, {**headers, "content-encoding": "gzip"})
        return FileResponse(self.path, headers=headers)


@dataclass(frozen=True)
class Made:
    """Bytes to serve that are in no file, and their type; revalidated each time."""

    data: bytes
    kind: str

    def answer(self, request: Request) -> Response:
        """Answer a GET or HEAD: 304 where the browser has it, else all of it, compressed where the
        browser takes that.
        """
        tag = f'"{hashlib.sha256(self.data).hexdigest()[:16]}"'
        headers = {"etag": tag, "cache-control": "no-cache", "content-type": _TYPES[self.kind]}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", "").lower():
            headers["content-encoding"] = "gzip"
            return Response(gzip.compress(self.data, 6, mtime=0), headers=headers)
        return Response(self.data, headers=headers)


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


def page_routes(
    predictor: Predictor,
    texts: Mapping[str, str],
    *,
    top_k: int,
    max_upload_mb: float,
    runtime: Path | None = None,
) -> list[Route]:
    """Build the routes of the page, of /page.json (what it has to know before it starts) and of the
    files under /files/.

    Args:
        predictor: the served model, whose folder may hold a light one.
        texts: sentences by key.
        top_k, max_upload_mb: as of the server.
        runtime: as for `light_files`.
    """

    def store(path: Path, cache: str) -> Stored:
        return Stored(path, file_sha256(path), cache)

    pages = {
        f"/{path.name}": store(path, "no-cache")
        for path in sorted(WEB.iterdir())
        if path.suffix in _TYPES and path.name not in ("index.html", "texts.json")
    }
    index = fill_page((WEB / "index.html").read_text(encoding="utf-8"), texts)
    made = {
        "/": Made(index.encode(), ".html"),
        "/texts.json": Made(json.dumps(texts, ensure_ascii=False).encode(), ".json"),
    }
    try:
        found = light_files(predictor.bundle.folder, runtime)
    except BundleError:  # the terminal says why: a visitor has no use for paths
        found = {}
    kept = {
        name: store(path, "public, max-age=31536000, immutable") for name, path in found.items()
    }
    urls = {name: f"./files/{one.sha256[:16]}/{name}" for name, one in kept.items()}
    everything = (
        "".join(one.sha256 for one in (*pages.values(), *kept.values())) + predictor.card.sha256
    ) + "".join(one.data.decode() for one in made.values())
    facts: dict[str, Any] = {
        "version": hashlib.sha256(everything.encode()).hexdigest()[:16],
        "top_k": top_k,
        "min_side": MIN_SIDE,
        "server": {
            "size": predictor.bundle.size,
            "long_side": predictor.bundle.long_side,
            "max_upload_mb": max_upload_mb,
            "tall_first": int(PIL.__version__.split(".")[0]) >= 13,
        },  # then its resize begins with the height of tall pictures
        "light": {
            "script": urls[SCRIPT],
            "wasm": urls[WASM],
            "settings": urls[SETTINGS],
            "onnx": urls[MODEL],
            "heads": {"url": urls[HEADS], "bytes": kept[HEADS].path.stat().st_size},
        }
        if kept
        else None,
        "shell": [
            *(f".{url}" for url in (*made, *pages) if url != "/sw.js"),
            "page.json",
            "model",
        ],
    }

    async def page_json(_: Request) -> Response:
        return JSONResponse(facts, headers={"cache-control": "no-cache"})

    def file(request: Request) -> Response:
        name, sha = request.path_params["name"], request.path_params["hash"]
        if urls.get(name) != f"./files/{sha}/{name}":
            raise HTTPException(404)
        return kept[name].answer(request)

    def drawn(request: Request) -> Response:
        if (size := request.path_params["size"]) not in icon.SIZES:
            raise HTTPException(404)
        return Made(icon.png(size), ".png").answer(request)

    # A route per file of the page: a mount at "/" would answer 404 where 405 is meant.
    return [
        *(Route(url, stored.answer) for url, stored in (*made.items(), *pages.items())),
        Route("/icon-{size:int}.png", drawn),
        Route("/page.json", page_json),
        Route("/files/{hash}/{name}", file),
    ]
