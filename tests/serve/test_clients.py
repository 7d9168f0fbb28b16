"""Tools and clients of others against a server on a port, where they are installed: schemathesis,
which makes requests from the description, and Triton's client. .ci/run installs both.
"""

import importlib.util
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import tiny_bundle as tiny
from starlette.testclient import TestClient

from common.serve.http import sockets
from common.serve.http.app import make_app
from common.serve.http.service import Settings
from common.serve.predictor import OUTPUTS, Predictor

NAME = "acme/leaves"  # clients do not encode the slash


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(tiny.make(tmp_path_factory.mktemp("clients") / "exports", name=NAME))


@pytest.fixture(scope="module")
def address(predictor):
    app, listener = make_app(predictor, Settings()), sockets.bind("127.0.0.1", 0)
    server = sockets.Server(sockets.config(app), app.state.queue, worker=True)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    server.drain()
    thread.join(10)
    assert not thread.is_alive()


def test_schemathesis_finds_nothing_that_the_description_does_not_say(address, tmp_path):
    """No fault, and no status, type, header, method or body but those described, also for requests
    that break the description. That a described body is accepted is not asked: no schema says that
    a string is a photo, or a list as long as its shape.
    """
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed")
    found = subprocess.run(
        [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("run", f"http://{address}/openapi.json", "--checks", "all", "--exclude-checks"),
            *("positive_data_acceptance", "--generation-deterministic", "--max-examples", "8"),
            *("--phases", "examples,coverage,fuzzing"),
        ],
        cwd=tmp_path,  # it writes a folder of its own
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    assert re.search(r"\b(\d+) selected / \1 total", found.stdout), found.stdout


def test_answers_are_as_described(predictor):
    validation = pytest.importorskip("jsonschema_rs", reason="it comes with schemathesis")
    with TestClient(make_app(predictor, Settings())) as client:
        told = client.get("/openapi.json").json()

        def check(answer, schema):
            whole = {"$ref": f"#/components/schemas/{schema}", "components": told["components"]}
            validation.validate(whole, answer.json())

        leaf, blue = tiny.picture(tiny.color_of(0)), tiny.picture(tiny.NO_PLANT)
        between = tiny.picture(tiny.between(0, 1))
        for photo in (leaf, blue, between):
            check(client.post("/predict?heatmap=1", content=photo), "Answer")
        check(client.post("/predict", files=[("f", leaf), ("f", between)]), "Answer")
        check(client.post("/predict", content=b"x"), "Error")
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3]}
        for data in ([5] * 3072, [[[[5] * 3] * 32] * 32]):
            asked = {"id": "x", "inputs": [{**tensor, "data": data}]}
            validation.validate(
                {
                    "$ref": "#/components/schemas/InferRequest",
                    "components": told["components"],
                },
                asked,
            )
            check(client.post(f"/v2/models/{NAME}/infer", json=asked), "InferResponse")
        check(client.get(f"/v2/models/{NAME}"), "ModelMetadata")
        check(client.post(f"/v2/models/{NAME}/infer"), "ProtocolError")


def test_tritons_own_client_is_answered(address, predictor):
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(NAME)
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    for version in ("", "abc1234"):
        told = client.get_model_metadata(NAME, version)
        assert told["inputs"][0]["shape"] == [-1, tiny.SIZE, tiny.SIZE, 3]
    batch = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    wanted = predictor.run(batch)
    for binary in (True, False):
        given = triton.InferInput("images", list(batch.shape), "UINT8")
        given.set_data_from_numpy(batch, binary_data=binary)
        asked = [triton.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
        found = client.infer(NAME, [given], outputs=asked, request_id="x1" * 300)
        assert found.get_response()["id"] == "x1" * 300
        for name in OUTPUTS:
            np.testing.assert_allclose(found.as_numpy(name), getattr(wanted, name), rtol=1e-6)
    for call, words in (
        (lambda: client.infer("other", [given]), f"/v2/models/{NAME}"),
        (lambda: client.infer(NAME, [given], model_version="2"), f"/v2/models/{NAME}"),
        (lambda: client.infer(NAME, [given], request_compression_algorithm="gzip"), "'gzip'"),
        (lambda: client.get_model_config(NAME), "There is nothing here"),
        (lambda: client.load_model(NAME), "There is nothing here"),
    ):
        with pytest.raises(triton.InferenceServerException, match=words):
            call()
    client.close()
