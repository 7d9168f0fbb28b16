"""The Open Inference Protocol for the raw model: metadata, tensors as JSON and as bytes, and what
is rejected.
"""

import json
import threading

import numpy as np
import pytest
import tiny_bundle as tiny
from starlette.testclient import TestClient

from common.serve.http import sockets
from common.serve.http.app import make_app
from common.serve.http.service import Settings
from common.serve.predictor import OUTPUTS

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
        ({"parameters": {"binary_data_size": 5}}, "bytes"),
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


def test_tritons_own_client_is_answered(predictor):
    triton = pytest.importorskip("tritonclient.http")
    app, listener = make_app(predictor, Settings()), sockets.bind("127.0.0.1", 0)
    server = sockets.Server(sockets.config(app), app.state.queue, worker=True)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    client = triton.InferenceServerClient(f"127.0.0.1:{listener.getsockname()[1]}")
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("foliar")
    assert client.get_model_metadata("foliar")["inputs"][0]["shape"] == [-1, 32, 32, 3]
    batch = pictures(3)
    wanted = predictor.run(batch)
    for binary in (True, False):
        given = triton.InferInput("images", list(batch.shape), "UINT8")
        given.set_data_from_numpy(batch, binary_data=binary)
        asked = [triton.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
        found = client.infer("foliar", [given], outputs=asked, request_id="x1")
        for name in OUTPUTS:
            np.testing.assert_allclose(found.as_numpy(name), getattr(wanted, name), rtol=1e-6)
    with pytest.raises(triton.InferenceServerException, match="There is no model 'other'"):
        client.infer("other", [given])
    client.close()
    server.drain()
    thread.join(10)
    assert not thread.is_alive()
