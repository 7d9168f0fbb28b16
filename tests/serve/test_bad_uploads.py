"""Thousands of damaged uploads: each gets an answer or an error in JSON with a reason, and the
server goes on.
"""

import asyncio
import collections
import io
import json
import random
from typing import Any

import mutations
import pytest
import tiny_bundle as tiny
from PIL import Image

from common.serve.http.app import make_app
from common.serve.http.service import Settings
from common.serve.http.work_queue import silence_libtiff
from common.serve.predictor import Predictor

STATUSES = {200, 400, 413, 415, 422}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    silence_libtiff()
    made = make_app(
        Predictor(tiny.make(tmp_path_factory.mktemp("bad") / "exports")),
        Settings(runners=1, max_upload_mb=1),
    )
    yield made
    made.state.queue.stop()
    made.state.decoder.stop()


async def post(
    app: Any, body: bytes, kind: str = "", query: bytes = b"", path: str = "/predict"
) -> tuple[int, bytes]:
    """Call the application as a server does, without the cost of sockets."""
    incoming = [{"type": "http.request", "body": body, "more_body": False}]
    left, sent = asyncio.Event(), []

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-length", str(len(body)).encode())] + [
        (b"content-type", kind.encode("latin-1"))
    ] * bool(kind)
    await app(
        {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "headers": headers,
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            "server": ("x", 80),
            "client": ("x", 1),
        },
        receive,
        send,
    )
    left.set()
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def check(status: int, body: bytes) -> str:
    told = json.loads(body)
    assert status in STATUSES, (status, told)
    if status == 200:
        assert told["decision"] in ("answered", "rolled_up", "rejected")
        return told["decision"]
    assert set(told["error"]) == {"code", "message"}
    assert len(told["error"]["message"]) > 15
    return told["error"]["code"]


@pytest.mark.filterwarnings("ignore")
def test_two_thousand_damaged_pictures(app, capfd):
    async def all_of_them() -> collections.Counter:
        counts = collections.Counter()
        for data in mutations.mutated(mutations.whole(), 2000):
            counts[check(*await post(app, data))] += 1
        return counts

    counts = asyncio.run(all_of_them())
    assert sum(counts.values()) == 2000, counts
    assert len(counts) >= 6, counts
    assert (
        min(
            counts["unreadable"],
            counts["format"],
            sum(counts[d] for d in ("answered", "rolled_up", "rejected")),
        )
        > 50
    ), counts
    assert app.state.queue.taken == app.state.queue.held == 0
    assert capfd.readouterr().err == ""  # no traceback, no word of a library


@pytest.mark.filterwarnings("ignore")
def test_pictures_of_damaged_structure_and_giants(app, capfd):
    uploads = [*mutations.restructured(mutations.whole(), 300), *mutations.costly(900_000).values()]
    giants = [data for seed in range(6) for data in mutations.giants(random.Random(seed))]

    async def all_of_them() -> collections.Counter:
        counts = collections.Counter()
        for data in [*uploads, *giants]:
            counts[check(*await post(app, data))] += 1
        return counts

    counts = asyncio.run(all_of_them())
    assert counts["unreadable"] > 100, counts
    assert counts["too_large"] > 30, counts
    assert counts["answered"] + counts["rolled_up"] + counts["rejected"] > 100, counts
    assert app.state.decoder.waiting == app.state.queue.taken == app.state.queue.held == 0
    assert capfd.readouterr().err == ""


def test_what_a_photo_takes_decides_where_it_is_decoded(app):
    """PNG of 1 megapixel in a thread, of 5 apart, of 20 not at all."""
    asked, where = [], app.state.decoder

    async def counted(photo: bytes) -> Any:
        asked.append(len(photo))
        return await type(where).read(where, photo)

    for side, apart, status in ((1000, 0, 200), (2300, 1, 200), (4500, 0, 413)):
        buffer = io.BytesIO()
        Image.new("RGB", (side, side), "green").save(buffer, "PNG")
        asked.clear()
        where.read = counted
        got, told = asyncio.run(post(app, buffer.getvalue()))
        del where.read
        assert (got, len(asked)) == (status, apart), told
    assert b"takes 162 MB of memory, more than one picture may take; send it smaller" in told


@pytest.mark.filterwarnings("ignore")
def test_damaged_forms_and_options(app):
    draw, whole = random.Random(1), mutations.whole()
    queries = (
        b"",
        b"",
        b"top_k=2",
        b"species=corn&prior=apple:2",
        b"precision=0.9",
        b"%ff=%00",
        b"species=%F0%9F%8C%BF",
        b"a=" + b"9" * 500,
        b"prior=%7B%22apple%22%3A1e400%7D",
        b"top_k=1&top_k=0",
    )

    async def all_of_them() -> collections.Counter:
        counts = collections.Counter()
        for turn, data in enumerate(mutations.mutated(whole, 300, seed=1)):
            body, kind = mutations.form(
                whole[turn % len(whole)] if turn % 2 else data, draw, damage=turn % 3 > 0
            )
            counts[check(*await post(app, body, kind, draw.choice(queries)))] += 1
        return counts

    counts = asyncio.run(all_of_them())
    assert {"bad_form", "no_file", "bad_option"} <= set(counts), counts
    assert counts["answered"] + counts["rejected"] + counts["rolled_up"] > 20, counts


def test_damaged_tensors(app):
    tensor = {
        "name": "images",
        "datatype": "UINT8",
        "shape": [1, tiny.SIZE, tiny.SIZE, 3],
        "data": [7] * (tiny.SIZE**2 * 3),
    }
    good, draw = json.dumps({"inputs": [tensor]}).encode(), random.Random(2)

    async def all_of_them() -> collections.Counter:
        counts = collections.Counter()
        for _ in range(200):
            data = bytearray(good)
            for _ in range(draw.choice((0, 1, 3))):
                data[draw.randrange(120)] = draw.choice(b'0129-.eE"[]{},:x\xff')
            status, body = await post(
                app, bytes(data), "application/json", path="/v2/models/foliar/infer"
            )
            assert status in STATUSES
            assert (
                "outputs" in json.loads(body)
                if status == 200
                else len(json.loads(body)["error"]) > 15
            )
            counts[status] += 1
        return counts

    counts = asyncio.run(all_of_them())
    assert counts[200] > 20, counts
    assert counts[400] > 50, counts
