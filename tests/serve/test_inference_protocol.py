"""The Open Inference Protocol for the raw model: metadata, tensors as JSON and as bytes, and what
is rejected.
"""

import gzip
import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_bundle as tiny
from starlette.testclient import TestClient

from common.serve.http import inference_protocol
from common.serve.http.app import make_app
from common.serve.http.service import Settings
from common.serve.http.uploads import RequestError
from common.serve.predictor import OUTPUTS, Predictor

URL = "/v2/models/foliar/infer"


@pytest.fixture(scope="module")
def client(predictor):
    with TestClient(make_app(predictor, Settings())) as made:
        yield made


def pictures(count=2):
    return np.random.default_rng(0).integers(
        0, 256, (count, tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8
    )


def body(batch, **changes):
    tensor = {
        "name": "images",
        "datatype": "UINT8",
        "shape": list(batch.shape),
        "data": batch.ravel().tolist(),
        **changes,
    }
    return {"id": "x1", "inputs": [tensor]}


def test_health_and_metadata(client):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    told = client.get("/v2/models/foliar").json()
    assert told["versions"] == ["abc1234"]
    assert told["inputs"] == [
        {"name": "images", "datatype": "UINT8", "shape": [-1, tiny.SIZE, tiny.SIZE, 3]}
    ]
    assert {row["name"]: row["shape"] for row in told["outputs"]} == {
        "probabilities": [-1, 6],
        "ood": [-1, 2],
        "heatmap": [-1, tiny.CELLS, tiny.CELLS],
    }
    for url in ("/v2/models/foliar/ready", "/v2/models/foliar/versions/abc1234/ready"):
        assert client.get(url).json() == {"name": "foliar", "ready": True}


def test_tensors_as_json_flat_and_nested_give_the_models_numbers(client, predictor):
    batch = pictures()
    wanted = predictor.run(batch)
    for data in (batch.ravel().tolist(), batch.tolist()):
        answer = client.post(URL, json=body(batch, data=data)).json()
        assert (answer["model_name"], answer["model_version"], answer["id"]) == (
            "foliar",
            "abc1234",
            "x1",
        )
        assert [row["name"] for row in answer["outputs"]] == list(OUTPUTS)
        for row in answer["outputs"]:
            np.testing.assert_allclose(
                np.reshape(row["data"], row["shape"]), getattr(wanted, row["name"]), rtol=1e-6
            )
    one = client.post(URL, json={**body(batch), "outputs": [{"name": "ood"}]}).json()
    assert [row["name"] for row in one["outputs"]] == ["ood"]


def test_tensors_as_bytes(client, predictor):
    batch = pictures(3)
    tensor = {
        "name": "images",
        "datatype": "UINT8",
        "shape": list(batch.shape),
        "parameters": {"binary_data_size": batch.size},
    }
    asked = {
        "inputs": [tensor],
        "parameters": {"binary_data_output": True},
        "outputs": [
            {"name": "probabilities"},
            {"name": "ood", "parameters": {"binary_data": False}},
        ],
    }
    head = json.dumps(asked).encode()
    answer = client.post(
        URL,
        content=head + batch.tobytes(),
        headers={"inference-header-content-length": str(len(head))},
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    cut = int(answer.headers["inference-header-content-length"])
    first, second = json.loads(answer.content[:cut])["outputs"]
    wanted = predictor.run(batch)
    assert first["parameters"]["binary_data_size"] == len(answer.content) - cut
    np.testing.assert_allclose(
        np.frombuffer(answer.content[cut:], "<f4").reshape(first["shape"]),
        wanted.probabilities,
        rtol=1e-6,
    )
    np.testing.assert_allclose(np.reshape(second["data"], second["shape"]), wanted.ood, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "image"}, "images"),
        ({"datatype": "FP32"}, "UINT8"),
        ({"shape": [2, 8, 8, 3]}, "shape"),
        ({"shape": [0, 32, 32, 3]}, "shape"),
        ({"shape": [9, 32, 32, 3]}, "N from 1 to 8"),
        ({"shape": [True, 32, 32, 3]}, "shape"),
        ({"shape": "2"}, "shape"),
        ({"data": [1, 2]}, "whole numbers"),
        ({"data": None}, "whole numbers"),
        ({"data": [[1], [1, 2]]}, "numbers"),
        ({"data": "abc"}, "whole numbers"),
        ({"data": [256] * 6144}, "0 to 255"),
        ({"data": [0.5] * 6144}, "whole numbers"),
        ({"data": [10**9] * 6144}, "whole numbers"),
        ({"data": True}, "whole numbers"),
        ({"data": np.zeros((2, 3, 32, 32), int).tolist()}, "flat or nested as the shape says"),
        ({"data": np.zeros((32, 32, 3, 2), int).tolist()}, "flat or nested as the shape says"),
        ({"parameters": {"binary_data_size": 5}}, "bytes"),
        ({"parameters": {"binary_data_size": 6144}}, "no `data`"),
        ({"parameters": {"binary_data_size": True}}, "a whole number"),
        ({"parameters": {"binary_data_size": "6144"}}, "a whole number"),
        ({"parameters": []}, "an object"),
        ({"parameters": None}, "an object"),
    ],
)
def test_tensors_that_do_not_fit_are_rejected_in_words(client, change, word):
    answer = client.post(URL, json=body(pictures(), **change))
    assert answer.status_code == 400, answer.text
    assert word in answer.json()["error"], answer.text


def test_requests_that_make_no_sense_are_rejected(client):
    good = json.dumps(body(pictures(1))).encode()
    for content in (
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"{}",
        b'{"inputs": {}}',
        b'{"inputs": [1]}',
        b'{"a":' + b"[" * 100_000,
        json.dumps({**body(pictures(1)), "outputs": [{"name": "x"}]}).encode(),
    ):
        assert client.post(URL, content=content).status_code == 400, content[:50]
    for length in ("-1", "x", "99999999999999", str(len(good) + 1), "5"):
        assert (
            client.post(
                URL, content=good, headers={"inference-header-content-length": length}
            ).status_code
            == 400
        )
    for url in ("/v2/models/other", "/v2/models/other/infer", "/v2/models/foliar/versions/2/infer"):
        answer = client.post(url, content=good) if url.endswith("infer") else client.get(url)
        assert answer.status_code == 404
        assert "foliar" in answer.json()["error"]
    assert client.get(URL).status_code == 405


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"id": 5}, "`id`"),
        ({"id": None}, "`id`"),
        ({"parameters": "x"}, "an object"),
        ({"parameters": {"binary_data_output": "false"}}, "true or false"),
        ({"parameters": {"binary_data_output": 1}}, "true or false"),
        ({"outputs": None}, "`outputs`"),
        ({"outputs": {"name": "ood"}}, "`outputs`"),
        ({"outputs": ["ood"]}, "`outputs`"),
        ({"outputs": [{"name": ["ood"]}]}, "`outputs`"),
        ({"outputs": [{"name": "logits"}]}, "probabilities, ood, heatmap"),
        ({"outputs": [{"name": "ood"}, {"name": "ood"}]}, "each once"),
        ({"outputs": [{"name": "ood", "parameters": {"binary_data": "false"}}]}, "true or false"),
        ({"outputs": [{"name": "ood", "parameters": 1}]}, "an object"),
    ],
)
def test_wrong_types_are_rejected_in_words(client, change, word):
    answer = client.post(URL, json={**body(pictures(1)), **change})
    assert answer.status_code == 400, answer.text
    assert word in answer.json()["error"], answer.text


def test_half_of_a_surrogate_pair_is_told_as_a_question_mark(client):
    tensor = body(pictures(1))["inputs"][0]
    content = json.dumps({"inputs": [{**tensor, "shape": "\ud800"}]})
    answer = client.post(URL, content=content)
    assert answer.status_code == 400
    assert answer.json()["error"].endswith("not ?.")


def test_the_id_comes_back_whole_and_outputs_in_the_order_asked_for(client):
    names = ["heatmap", "probabilities", "ood"]
    asked = {**body(pictures(1)), "id": "ä" * 5000, "outputs": [{"name": name} for name in names]}
    answer = client.post(URL, json=asked).json()
    assert answer["id"] == "ä" * 5000
    assert [row["name"] for row in answer["outputs"]] == names
    del asked["id"]
    assert "id" not in client.post(URL, json=asked).json()


def test_numbers_are_read_as_json_has_them(client, predictor):
    batch = pictures(1)
    wanted = predictor.run(batch).ood
    head, text = json.dumps(body(batch, data=None)), json.dumps(batch.tolist(), indent=1)
    assert len(text) < 60_000

    def post(text):
        return client.post(URL, content=head.replace('"data": null', f'"data" :\n {text}'))

    found = post(text.replace("\n", "\r\n\t")).json()["outputs"][1]["data"]
    np.testing.assert_allclose(np.reshape(found, wanted.shape), wanted, rtol=1e-6)
    flat = batch.ravel().tolist()
    for wrong in (
        "[007" + ",1" * 3071 + "]",
        "[1 2" + ",1" * 3071 + "]",
        "[1,,2" + ",1" * 3070 + "]",
        "[" + "1," * 3072 + "]",
        "1" + ",1" * 3071,
        "[-1" + ",1" * 3071 + "]",
        "[1.0" + ",1" * 3071 + "]",
        "[1" + ",NaN" * 3071 + "]",
        f"{flat}, {flat}",
        f'{flat}, "data": {flat[:-1]}',
    ):
        assert post(wrong).status_code == 400, wrong[:20]


def test_costly_json_is_rejected_before_it_becomes_objects():
    size, most = 96, inference_protocol.body_limit(96)
    fake = SimpleNamespace(bundle=SimpleNamespace(size=size), submit=lambda batch: batch)
    shape = [8, size, size, 3]
    batch = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    head = json.dumps(body(batch[:0], shape=shape, data=None)).encode()

    def read(data):
        text = head.replace(b"null", data)
        assert len(text) <= most
        tracemalloc.start()
        try:
            return inference_protocol.read_request(fake, text, {}).outputs
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 6 * most, f"{peak / 1e6:.0f} MB for {data[:30]}"

    rest = most - 200
    for data in (
        b'["' + b"a" * 400 + b'"' + b',""' * 400_000 + b"]",
        b"[[]" + b",[]" * (rest // 3 - 4) + b"]",
        b"[{}" + b",{}" * (rest // 3 - 4) + b"]",
        b"[" * (rest // 2) + b"]" * (rest // 2),
        b"[" + b"1" * (rest - 2) + b"]",
        b"[1" + b",1000" * (rest // 5 - 1) + b"]",
        b'0,"a":[1' + b",1" * (rest // 2 - 10) + b"]",
    ):
        with pytest.raises(RequestError, match="whole numbers"):
            read(data)
    np.testing.assert_array_equal(read(json.dumps(batch.tolist()).encode()), batch)


def test_a_body_beyond_the_models_own_limit_is_rejected_and_reserves_no_more(client, monkeypatch):
    most = inference_protocol.body_limit(tiny.SIZE)
    reserved, place = [], client.app.state.queue.place
    monkeypatch.setattr(
        client.app.state.queue,
        "place",
        lambda size, who: reserved.append(size) or place(size, who),
    )
    good = json.dumps(body(pictures(8), data=pictures(8).tolist())).encode()
    assert client.post(URL, content=good).status_code == 200
    assert reserved.pop() == len(good) < most
    for content in (b" " * (most + 1), iter([b" " * most, b" "])):  # with a Content-Length, without
        answer = client.post(URL, content=content)
        assert answer.status_code == 413
        assert f"{most / 1e6:.3g} MB" in answer.json()["error"]
        assert reserved.pop() == most


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "application/x-www-form-urlencoded"}, 200),
        ({"content-type": "APPLICATION/OCTET-STREAM"}, 200),
        ({"content-type": "", "content-encoding": ""}, 200),
        ({"content-encoding": "identity"}, 200),
        ({"content-encoding": "gzip"}, 415),
        ({"content-encoding": "deflate"}, 415),
        ({"content-type": "image/jpeg"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
    ],
)
def test_encodings_and_types_that_are_not_understood(client, headers, status):
    content = json.dumps(body(pictures(1))).encode()
    if "content-encoding" in headers and status == 415:
        content = gzip.compress(content)
    answer = client.post(URL, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    if status == 415:
        assert "Send" in answer.json()["error"]


def test_every_error_is_a_string(exports, monkeypatch):
    made = Predictor(exports)
    content = json.dumps(body(pictures(1)))
    with TestClient(make_app(made, Settings(api_key="k", max_upload_mb=0.1))) as client:
        client.headers["x-api-key"] = "k"

        def check(answer, status):
            assert answer.status_code == status, answer.text
            assert isinstance(answer.json()["error"], str) and len(answer.json()["error"]) > 15

        check(client.post(URL, content="{"), 400)
        check(client.post(URL, content=content, headers={"x-api-key": "x"}), 401)
        for path in (
            "/v2/models",
            "/v2/x",
            "/v2/models/foliar/config",
            "/v2/models/foliar/versions/2",
        ):
            check(client.get(path), 404)
        for path in ("/v2", "/v2/models/foliar", "/v2/health/ready"):
            check(client.delete(path), 405)
        check(client.get(URL), 405)
        assert client.get(URL).headers["allow"] == "POST"
        check(client.post(URL, content=" " * 100_001), 413)
        check(client.get("/v2", headers={"x": "y" * 20_000}), 431)
        with monkeypatch.context() as patched:
            patched.setattr(made, "submit", lambda batch: 1 / 0)
            check(client.post(URL, content=content), 500)
        client.app.state.queue.draining = True
        check(client.post(URL, content=content), 503)
        for path in ("/v2/health/ready", "/v2/models/foliar/ready"):
            check(client.get(path), 503)
            assert client.get(path).json()["ready"] is False
        assert client.get("/v2x").json()["error"]["code"] == "not_found"


def test_names_with_slashes(tmp_path):
    made = Predictor(tiny.make(tmp_path / "exports", name="acme/leaves"))
    with TestClient(make_app(made, Settings())) as client:
        for base in ("/v2/models/acme/leaves", "/v2/models/acme%2Fleaves/versions/abc1234"):
            assert client.get(base).json()["name"] == "acme/leaves"
            assert client.get(f"{base}/ready").json() == {"name": "acme/leaves", "ready": True}
            answer = client.post(f"{base}/infer", json=body(pictures(1)))
            assert answer.json()["model_name"] == "acme/leaves"
        assert "/v2/models/acme/leaves" in client.get("/v2/models/leaves").json()["error"]
