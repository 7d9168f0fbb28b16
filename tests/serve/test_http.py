"""The HTTP application: answers, options, errors in JSON, limits, the page's headers."""

import asyncio
import base64
import gzip
import json
import re
import struct
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import Future

import pytest
import tiny_bundle as tiny
from starlette.requests import Request
from starlette.testclient import TestClient

from common.serve import answer as answering
from common.serve.http import service
from common.serve.http.app import make_app
from common.serve.http.service import Settings
from common.serve.http.uploads import MOST_PHOTOS, RequestError, read_photos
from common.serve.predictor import Predictor
from common.serve.shared import ModelGone


@pytest.fixture(scope="module")
def client(exports):
    with TestClient(
        make_app(Predictor(exports), Settings(runners=2, max_upload_mb=0.5, top_k=3))
    ) as made:
        yield made


def code_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert len(error["message"]) > 10
    return error["code"]


def test_a_photo_is_answered_as_a_raw_body_and_as_a_form(client):
    photo = tiny.picture(tiny.color_of(2), (120, 90), "JPEG")
    for answer in (
        client.post("/predict", content=photo),
        client.post("/predict", files={"photo": ("a.jpg", photo)}),
        client.post("/predict", content=photo, headers={"content-type": "text/plain"}),
        client.post("/predict", files={"any": ("b", photo, "application/x")}),
    ):
        assert answer.status_code == 200, answer.text
        plain = answer.json()
        assert (plain["decision"], plain["species"], plain["disease"], plain["healthy"]) == (
            "answered",
            "apple",
            "scab",
            False,
        )
        assert plain["image"] == {"width": 120, "height": 90}
        assert plain["model"] == {"file": "model.int8.onnx", "version": "abc1234"}
        assert len(plain["alternatives"]) == 3
        assert "heatmap" not in plain
        assert set(plain["timings_ms"]) == {"decode", "model", "total"}
        assert plain["timings_ms"]["total"] >= plain["timings_ms"]["model"] > 0


def test_no_plants_and_the_undecided(client):
    rejected = client.post("/predict", content=tiny.picture(tiny.NO_PLANT)).json()
    assert rejected["decision"] == "rejected"
    assert rejected["rejection"]["reason"] == "not_a_plant"
    assert rejected["rejection"]["quantile"] == 1.0
    assert rejected["species"] is None
    rolled = client.post("/predict", content=tiny.picture(tiny.between(1, 2))).json()
    assert (rolled["decision"], rolled["species"], rolled["disease"]) == (
        "rolled_up",
        "apple",
        None,
    )


def test_options(client):
    photo = tiny.picture(tiny.color_of(0))
    answer = client.post("/predict?top_k=2&heatmap=1&mode=routed", content=photo).json()
    assert len(answer["alternatives"]) == 2
    assert len(answer["heatmap"]) == tiny.CELLS
    assert len(answer["heatmap"][0]) == tiny.CELLS
    assert len(client.post("/predict?top_k=500", content=photo).json()["alternatives"]) == 6
    for wrong in (
        "top_k=0",
        "top_k=-1",
        "top_k=x",
        "top_k=²",
        "mode=best",
        "heatmap=maybe",
        "topk=3",
    ):
        assert code_of(client.post(f"/predict?{wrong}", content=photo), 400) == "bad_option"


def test_an_export_without_thresholds_is_served_too(tmp_path):
    folder = tiny.make(tmp_path / "exports")
    bundle = json.loads((folder / "bundle.json").read_text())
    for card in bundle["models"].values():
        card |= {"rejection": None, "rollup": None}
    (folder / "bundle.json").write_text(json.dumps(bundle))
    with TestClient(make_app(Predictor(folder), Settings())) as client:
        for address in ("/", "/docs", "/openapi.json", "/model", "/page.json"):
            assert client.get(address).status_code == 200
        photo = tiny.picture(tiny.color_of(0))
        assert client.post("/predict?precision=", content=photo).json()["decision"] == "answered"
        assert client.post("/predict?precision=0.95", content=photo).status_code == 400


def test_mode_is_used(exports):
    seen = []
    original = answering.decide
    try:
        answering.decide = lambda *a, **k: (seen.append(k["mode"]), original(*a, **k))[1]
        with TestClient(make_app(Predictor(exports), Settings(mode="routed"))) as client:
            client.post("/predict", content=tiny.picture(tiny.color_of(0)))
            client.post("/predict?mode=joint", content=tiny.picture(tiny.color_of(0)))
    finally:
        answering.decide = original
    assert seen == ["routed", "joint"]


def test_what_is_no_photo_gets_a_reason(client):
    photo = tiny.picture(tiny.color_of(0), (300, 200), "JPEG")
    assert code_of(client.post("/predict"), 400) == "empty"
    assert code_of(client.post("/predict", content=b"hello"), 415) == "text"
    assert code_of(client.post("/predict", content=bytes(range(128, 192))), 415) == "format"
    assert code_of(client.post("/predict", content=photo[: len(photo) // 2]), 422) in (
        "truncated",
        "unreadable",
    )
    assert (
        code_of(client.post("/predict", content=tiny.picture((1, 2, 3), (8, 8))), 422)
        == "too_small"
    )
    assert code_of(client.post("/predict", content=b"x" * 600_000), 413) == "too_large"
    assert code_of(client.post("/predict", files={"f": ("a.jpg", b"")}), 400) == "empty"
    assert (
        code_of(
            client.post(
                "/predict", content=b"--x\r\n", headers={"content-type": "multipart/form-data"}
            ),
            400,
        )
        == "bad_form"
    )
    form = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert code_of(client.post("/predict", content=form, headers=headers), 400) == "no_file"
    assert code_of(client.post("/predict", content=form[:30], headers=headers), 400) == "no_file"


JPEG = tiny.picture(tiny.color_of(2), (300, 200), "JPEG")
PNG = tiny.picture(tiny.color_of(2), (300, 200))
NOT_PHOTOS = {  # as people send them -> what they are told
    b'{"image": "' + base64.b64encode(JPEG) + b'"}': "JSON",
    b'[{"instances": 1}]': "JSON",
    base64.b64encode(JPEG): "base64",
    base64.encodebytes(PNG): "base64",
    b"data:image/jpeg;base64," + base64.b64encode(JPEG): "a data: URL",
    b"https://example.org/leaf.jpg": "fetches nothing",
    b"leaf.jpg": "a file's name",
    b"@photos/my leaf.JPEG\n": "a file's name",
    b"photo=@leaf.jpg": "a form that holds no file",  # curl -d photo=@leaf.jpg
    b"image=" + base64.b64encode(PNG): "a form that holds no file",
    re.sub(rb"[\0\r\n]", b"", JPEG): "curl -d",  # curl -d @leaf.jpg
    re.sub(rb"[\0\r\n]", b"", PNG): "curl -d",
    b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--': "without its header",
}


@pytest.mark.parametrize("as_form", [False, True])
def test_what_people_send_instead_of_a_photo_is_named(client, as_form):
    for body, words in NOT_PHOTOS.items():
        sent = {"files": {"photo": ("a.jpg", body)}} if as_form else {"content": body}
        answer = client.post("/predict", **sent)
        assert code_of(answer, 415) == "text", body[:40]
        assert words in answer.json()["error"]["message"], body[:40]
        assert "--data-binary @leaf.jpg" in answer.json()["error"]["message"]
    for text in (b"BMW and MMM, II*, GIF8", b"a = b", b"hello"):  # none of these
        message = client.post("/predict", content=text).json()["error"]["message"]
        assert "--data-binary" not in message


def test_compressed_bodies_are_told_to_come_as_they_are(client):
    for encoding in ("gzip", "br", "deflate, gzip"):
        answer = client.post(
            "/predict", content=gzip.compress(JPEG), headers={"content-encoding": encoding}
        )
        assert code_of(answer, 415) == "encoding"
        assert encoding in answer.json()["error"]["message"]
        assert answer.headers["accept-encoding"] == "identity"
    plain = {"content-encoding": "Identity"}
    assert client.post("/predict", content=JPEG, headers=plain).status_code == 200


def test_forms_as_people_make_them(client):
    """Misspelt options, a file's name for a file, and a field in which no file was chosen."""
    photo = {"photo": ("a.jpg", JPEG)}
    for field in ("topk", "note", "Species"):
        answer = client.post("/predict", files=photo, data={field: "apple"})
        assert code_of(answer, 400) == "bad_option"
        assert f"{field}=apple" in answer.json()["error"]["message"]
    named = client.post("/predict", files={"photo": (None, "leaf.jpg")})
    assert code_of(named, 400) == "no_file"
    assert "text in its field photo" in named.json()["error"]["message"]
    assert "an @ before its name" in named.json()["error"]["message"]

    def form(*parts):
        head = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="%s"\r\n\r\n'
        body = b"".join(head % name + data + b"\r\n" for name, data in parts) + b"--b--\r\n"
        headers = {"content-type": "multipart/form-data; boundary=b"}
        return client.post("/predict", content=body, headers=headers)

    assert len(form((b"a.jpg", JPEG), (b"", b"")).json()["photos"]) == 1
    assert code_of(form((b"", b"")), 400) == "no_file"
    assert code_of(form((b"a.jpg", b"")), 400) == "empty"
    headers = {"content-type": "multipart/form-data"}
    without = client.post("/predict", content=JPEG, headers=headers)
    assert code_of(without, 400) == "bad_form"
    assert "Content-Type of your own" in without.json()["error"]["message"]
    assert ".." not in without.json()["error"]["message"]


@pytest.mark.parametrize("charset", ["punycode", "utf-7", "undefined", "UTF-8"])
def test_the_text_of_a_form_is_utf8_whatever_its_header_says(client, charset):
    """Half a megabyte of punycode kept the event loop for 30 s; UTF-7 gave a 500."""
    form = b'--b\r\nContent-Disposition: form-data; name="species"\r\n\r\n%s\r\n--b--\r\n'
    headers = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
    photo = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n%s\r\n' % JPEG
    begun = time.perf_counter()
    for text in ("-" + 200_000 * "b", "+2AA-"):
        content = photo + form % text.encode()
        answer = client.post("/predict", content=content, headers=headers)
        assert code_of(answer, 400) == "bad_option"
        assert text[:5] in answer.json()["error"]["message"]
    assert time.perf_counter() - begun < 2
    content = photo + form % b"apple"
    answer = client.post("/predict", content=content, headers=headers)
    assert answer.json()["species"] == "apple"


def test_others_have_their_turn_while_a_form_is_read():
    boundary = b"\r\n--b\r\nContent-Disposition: form-data; name=a; filename=a\r\n\r\n"
    content = boundary + bytes(10_000_000) + b"\r\n--b--\r\n"

    async def receive():
        return {"type": "http.request", "body": content, "more_body": False}

    async def read():
        headers = [(b"content-type", b"multipart/form-data; boundary=b")]
        scope = {"type": "http", "method": "POST", "headers": headers}
        reading = asyncio.ensure_future(read_photos(Request(scope, receive), 1 << 30))
        turns = 0
        while not reading.done():
            await asyncio.sleep(0)
            turns += 1
        return await reading, turns

    (photos, _), turns = asyncio.run(read())
    assert len(photos[0]) == 10_000_000
    assert turns >= 10


def test_a_body_without_a_length_is_bounded_too(client):
    def endless():
        for _ in range(20):
            yield b"x" * 50_000

    assert code_of(client.post("/predict", content=endless()), 413) == "too_large"


def test_a_body_too_large_is_dropped_as_it_comes():
    chunk, sent = bytes(1_000_000), []

    async def receive():
        sent.append(1)
        return {"type": "http.request", "body": bytearray(chunk), "more_body": True}

    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as caught:
            asyncio.run(
                read_photos(
                    Request({"type": "http", "method": "POST", "headers": []}, receive), 2_000_000
                )
            )
        assert caught.value.status == 413
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()
    assert 3 < len(sent) < 100  # an endless sender is not listened to for ever


def test_a_picture_of_too_many_pixels_is_rejected_from_its_header(client):
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", b""))
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    assert code_of(client.post("/predict", content=bomb), 413) == "too_large"


def test_other_addresses(client):
    assert client.get("/healthz").json() == {
        "status": "ok",
        "model": "model.int8.onnx",
        "version": "abc1234",
    }
    told = client.get("/model").json()
    assert told["classes"][0] == {"species": "apple", "diseases": ["healthy", "rust", "scab"]}
    assert told["rejection"] == {"score": "mahalanobis", "threshold": 0.05}
    assert told["num_classes"] == 6
    assert code_of(client.get("/nothing"), 404) == "not_found"
    wrong = client.get("/predict")
    assert code_of(wrong, 405) == "method_not_allowed"
    assert wrong.headers["allow"] == "POST"
    assert code_of(wrong := client.delete("/"), 405) == "method_not_allowed"
    assert f"Allowed: {wrong.headers['allow']}." in wrong.json()["error"]["message"]
    assert set(wrong.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert code_of(client.get("/../04_serve.py"), 404) == "not_found"


def test_every_address_answers_with_and_without_a_slash(client):
    """A redirect would name the scheme and the host as the server sees them behind its proxy."""
    photo = tiny.picture(tiny.color_of(0))
    for route in client.app.routes:
        path = route.path.replace("{name}", "foliar").replace("{version}", "abc1234")
        method = "POST" if "POST" in route.methods else "GET"
        found = [
            client.request(method, url, content=photo, follow_redirects=False)
            for url in (path, f"{path}/", f"{path}/?top_k=x" * (path == "/predict"))
            if url
        ]
        assert len({one.status_code for one in found[:2]}) == 1, path
        assert not [one for one in found if one.is_redirect or "location" in one.headers], path
        if path == "/predict":
            assert [one.status_code for one in found] == [200, 200, 400]
    assert client.post("/predict/", content=photo).json()["decision"] == "answered"
    assert client.get("/model/").json() == client.get("/model").json()
    assert client.get("/predict/").headers["allow"] == "POST"
    assert client.get("/nothing/").status_code == 404
    assert client.get("http://testserver//").status_code == 404  # where the page's links fail
    assert client.get("http://testserver//evil.example/", follow_redirects=False).status_code == 404


def test_the_page_and_its_headers(client):
    for path, kind in {
        "/": "text/html",
        "/app.js": "text/javascript",
        "/style.css": "text/css",
        "/leaf.svg": "image/svg+xml",
    }.items():
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert (
            client.get(path, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
        )
    html = client.get("/").text
    assert not re.search(
        r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", html
    )  # the CSP would block it
    for answer in (
        client.get("/"),
        client.get("/nothing"),
        client.post("/predict"),
        client.get("/healthz"),
    ):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not {"'unsafe-inline'", "'unsafe-eval'"} & set(
            answer.headers["content-security-policy"].replace(";", " ").split()
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_more_than_may_wait_are_sent_away_before_their_photo_is_read(exports, monkeypatch):
    app = make_app(Predictor(exports), Settings(runners=1, waiting=1))
    free, started = threading.Event(), threading.Semaphore(0)
    original = service.start_photo

    def slow(*args, **options):
        started.release()
        assert free.wait(10)
        return original(*args, **options)

    monkeypatch.setattr(service, "start_photo", slow)
    photo, statuses = tiny.picture(tiny.color_of(0)), []
    with TestClient(app) as client:
        threads = [
            threading.Thread(
                target=lambda: statuses.append(client.post("/predict", content=photo).status_code)
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        assert started.acquire(timeout=10)
        while app.state.queue.taken < 2:
            threading.Event().wait(0.01)
        assert (
            client.get("/healthz").status_code == 200
        )  # the event loop is free while the runner works
        rejected = client.post("/predict", content=photo)
        assert code_of(rejected, 503) == "busy"
        assert rejected.headers["retry-after"] == "1"
        free.set()
        for thread in threads:
            thread.join(10)
        assert statuses == [200, 200]
        assert (
            client.post("/predict", content=photo).status_code == 200
        )  # the places are free again
    assert app.state.queue.taken == 0


def test_photos_are_read_while_others_are_computed(exports):
    """One runner reads five photos of which none is computed yet, as on a GPU."""
    predictor, waiting = Predictor(exports), []

    def submit(pictures):
        waiting.append((pictures, Future()))
        return waiting[-1][1]

    predictor.submit = submit
    app, found = make_app(predictor, Settings(runners=1)), {}
    with TestClient(app) as client:

        def ask(i):
            found[i] = client.post("/predict", content=tiny.picture(tiny.color_of(i))).json()

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(5)]
        for thread in threads:
            thread.start()
        while len(waiting) < 5:
            threading.Event().wait(0.01)
        assert client.get("/readyz").status_code == 200
        waiting.pop()[1].set_exception(RuntimeError("the device fell over"))
        for pictures, future in reversed(waiting):
            future.set_result(predictor.run(pictures))
        for thread in threads:
            thread.join(10)
    failed = [i for i, one in found.items() if "error" in one]
    assert len(failed) == 1
    for i in {*range(5)} - {*failed}:
        assert (found[i]["species"], found[i]["disease"]) == tiny.TREE.pair(i)
    assert app.state.queue.taken == 0


@pytest.mark.parametrize("late", [False, True])
def test_a_process_whose_model_is_gone_sends_away_and_ends(exports, late):
    predictor = Predictor(exports)

    def submit(pictures):
        if not late:
            raise ModelGone
        done = Future()
        done.set_exception(ModelGone())
        return done

    predictor.submit = submit
    with TestClient(make_app(predictor, Settings())) as client:
        assert client.get("/readyz").status_code == 200
        answer = client.post("/predict", content=tiny.picture(tiny.color_of(0)))
        assert code_of(answer, 503) == "draining"
        assert client.get("/readyz").status_code == 503


def test_a_photo_that_never_arrives_frees_its_place(exports):
    app = make_app(Predictor(exports), Settings(upload_seconds=0.05))
    sent = []

    async def one_request():
        async def receive():
            await asyncio.sleep(5)

        async def send(message):
            sent.append(message)

        await app(
            {
                "type": "http",
                "method": "POST",
                "path": "/predict",
                "query_string": b"",
                "headers": [],
                "http_version": "1.1",
                "scheme": "http",
                "root_path": "",
            },
            receive,
            send,
        )

    asyncio.run(one_request())
    assert sent[0]["status"] == 408
    assert app.state.queue.taken == 0


def test_a_fault_of_ours_is_json_with_headers_and_a_traceback_in_the_terminal(
    exports, monkeypatch, caplog
):
    def broken(*_, **__):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(service, "answer", broken)
    with TestClient(make_app(Predictor(exports), Settings())) as client:
        answer = client.post("/predict", content=tiny.picture(tiny.color_of(0)))
    assert code_of(answer, 500) == "internal"
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "POST '/predict'" in caplog.text
    assert "secret detail" in caplog.text


def test_the_access_log_is_a_line_without_the_query_and_off_by_default(exports, capsys):
    for wanted in (False, True):
        with TestClient(make_app(Predictor(exports), Settings(access_log=wanted))) as client:
            client.get("/healthz?token=abc")
        out = capsys.readouterr().out
        assert bool(re.search(r"GET '/healthz' 200 \d+ ms", out)) is wanted
        assert "token" not in out


def test_an_error_carries_what_it_says():
    error = RequestError(418, "teapot", "It is a teapot.")
    assert (error.status, error.code, str(error)) == (418, "teapot", "It is a teapot.")


def test_several_photos_in_a_form_with_options_in_fields(client):
    scab, healthy = (
        tiny.picture(tiny.color_of(class_idx), (200, 160), "JPEG") for class_idx in (2, 0)
    )
    files = [("photo", ("a.jpg", scab)), ("photo", ("b.jpg", scab)), ("other", ("c.jpg", healthy))]
    told = client.post(
        "/predict",
        files=files,
        data={"species": "Apple", "prior": '{"corn": 2}', "precision": "0.9"},
    ).json()
    assert len(told["photos"]) == 3
    assert told["precision"] == "0.90"
    assert told["prior"]["weights"] == {"corn": 2.0}
    assert told["conditioned"]["species"] == "apple"
    assert told["agreement"]["level"] == "disease"
    assert (
        code_of(client.post("/predict", files=files, data={"species": "fern"}), 400) == "bad_option"
    )
    assert code_of(client.post("/predict", files=files * 2), 400) == "too_many"
    assert code_of(client.post("/predict", files=[*files, ("d", ("d", b""))]), 400) == "empty"
    broken = client.post("/predict", files=[files[0], ("x", ("x", b"no picture"))])
    assert code_of(broken, 415) == "text"
    assert broken.json()["error"]["message"].startswith("Photo 2 ")


def test_pixels_are_bounded_by_the_header(exports):
    with TestClient(make_app(Predictor(exports), Settings(max_megapixels=0.05))) as client:
        assert (
            code_of(
                client.post("/predict", content=tiny.picture(tiny.color_of(0), (300, 300))), 413
            )
            == "too_large"
        )
        assert (
            client.post("/predict", content=tiny.picture(tiny.color_of(0), (200, 200))).status_code
            == 200
        )


def test_the_api_key_covers_answers_and_counts_but_not_health(exports):
    photo = tiny.picture(tiny.color_of(0))
    with TestClient(make_app(Predictor(exports), Settings(api_key="sésame"))) as client:
        for call in (
            lambda **k: client.post("/predict", content=photo, **k),
            lambda **k: client.get("/metrics", **k),
            lambda **k: client.post("/v2/models/foliar/infer", content=b"{}", **k),
        ):
            for headers in (
                {},
                {"x-api-key": "sesame"},
                {"authorization": "Basic sésame".encode()},
                {"authorization": "Bearer"},
                {"authorization": b"Bearer \xff\xfe"},
            ):
                rejected = call(headers=headers)
                assert rejected.status_code == 401
                assert rejected.headers["www-authenticate"] == "Bearer"
            assert call(headers={"authorization": "Bearer sésame".encode()}).status_code in (
                200,
                400,
            )
            assert call(headers={"x-api-key": "sésame".encode()}).status_code in (200, 400)
        for path in (
            "/",
            "/model",
            "/healthz",
            "/readyz",
            "/v2/health/live",
            "/v2/models/foliar",
            "/openapi.json",
        ):
            assert client.get(path).status_code == 200


def test_other_pages_may_ask_only_where_they_are_named(exports):
    photo, there = tiny.picture(tiny.color_of(0)), {"origin": "https://farm.example"}
    ask = {
        **there,
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-api-key",
    }
    with TestClient(make_app(Predictor(exports), Settings())) as client:
        assert (
            "access-control-allow-origin"
            not in client.post("/predict", content=photo, headers=there).headers
        )
        assert client.options("/predict", headers=ask).status_code == 405
    with TestClient(
        make_app(Predictor(exports), Settings(cors_origins=("https://farm.example",), api_key="k"))
    ) as client:
        assert (
            client.options("/predict", headers=ask).headers["access-control-allow-origin"]
            == "https://farm.example"
        )
        answer = client.post("/predict", content=photo, headers={**there, "x-api-key": "k"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://farm.example"
        other = client.post(
            "/predict", content=photo, headers={"origin": "https://evil.example", "x-api-key": "k"}
        )
        assert "access-control-allow-origin" not in other.headers


def test_metrics_after_some_requests(exports):
    with TestClient(make_app(Predictor(exports), Settings())) as client:
        client.post("/predict", content=tiny.picture(tiny.color_of(0)))
        client.post("/predict", content=tiny.picture(tiny.NO_PLANT))
        client.post("/predict", content=b"hello")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'foliar_requests_total{outcome="answered",reason="none"} 1.0',
        'foliar_requests_total{outcome="request_rejected",reason="text"} 1.0',
        'foliar_requests_total{outcome="rejected",reason="not_a_plant"} 1.0',
        'foliar_http_responses_total{status="200"} 2.0',
        "foliar_photos_total 2.0",
        "foliar_queue_seconds_count 3.0",
        'foliar_score_quantile_bucket{le="+Inf"} 2.0',
        "foliar_in_flight 0.0",
        "foliar_rejected_busy_total 0.0",
    ):
        assert line in answer.text.splitlines(), line


def test_the_description_names_every_address_and_its_options(client):
    told = client.get("/openapi.json").json()
    routes = {
        route.path
        for route in client.app.routes
        if not route.path.endswith((".js", ".css", ".svg"))
    }
    assert told["openapi"].startswith("3.1")
    assert {
        "/predict",
        "/model",
        "/metrics",
        "/v2/models/{name}/infer",
    } <= set(told["paths"])
    model = {"{name}": "foliar", "{version}": "abc1234"}
    assert {
        re.sub("{.+?}", lambda found: model[found[0]], path) for path in told["paths"]
    } <= routes
    names = {row["name"] for row in told["paths"]["/predict"]["post"]["parameters"]}
    assert names == {"species", "precision", "prior", "top_k", "mode", "heatmap", "short_side"}
    form = told["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert set(form["schema"]["properties"]) == names | {"photo"}
    assert form["schema"]["properties"]["photo"]["maxItems"] == MOST_PHOTOS
    assert f"1 to {MOST_PHOTOS} photos" in told["paths"]["/predict"]["post"]["summary"]
    answer = client.post("/predict?heatmap=1", content=tiny.picture(tiny.color_of(0))).json()
    schema = told["components"]["schemas"]["Answer"]
    assert set(answer) == set(schema["properties"])
    assert set(schema["required"]) <= set(answer)
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "POST /predict" in page.text
    assert not re.search(
        r"<script(?! src=)|<style|\sstyle=|\son\w+=|https?://", page.text
    )  # the CSP would block it


def test_answers_say_nothing_of_what_a_camera_wrote(client):
    import io

    from PIL import Image

    exif = Image.Exif()
    exif[0x010F], exif[0x9286] = "SECRETCAM", "SECRETNOTE"
    exif.get_ifd(0x8825)[1] = "N"
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), tiny.color_of(0)).save(buffer, "JPEG", exif=exif)
    assert b"SECRETCAM" in buffer.getvalue()
    whole = client.post("/predict?heatmap=1", files={"f": ("SECRETNAME.jpg", buffer.getvalue())})
    cut = client.post("/predict", files={"f": ("SECRETNAME.jpg", buffer.getvalue()[:-200])})
    assert whole.status_code == 200
    assert cut.status_code == 422
    assert "SECRET" not in whole.text + cut.text + client.get("/metrics").text
