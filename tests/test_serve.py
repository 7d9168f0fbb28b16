"""04_serve: its mistakes, and a real server as a subprocess. Batch predictions are in test_predict.py."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import onnx
import pytest
import tiny_bundle as tiny

from common.bundle import write_bundle

ROOT = Path(__file__).resolve().parent.parent
serve = importlib.import_module("04_serve")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("serve") / "exports")


def fails(argv, capsys, *words):
    with pytest.raises(SystemExit) as caught:
        serve.main([str(part) for part in argv])
    told = capsys.readouterr().err
    assert caught.value.code == 2 and all(word in told for word in words), told


def test_mistakes_end_in_a_sentence_and_exit_code_2(exports, tmp_path, capsys):
    photo = tmp_path / "a.png"
    photo.write_bytes(tiny.picture(tiny.color_of(0)))
    fails(["--exports", tmp_path / "none", "--predict", photo], capsys, "no exports folder", "03_export.py")
    fails(["--exports", tmp_path, "--predict", photo], capsys, "bundle.json")
    fails(["--exports", exports, "--model", "x.onnx", "--predict", photo], capsys, "model.int8.onnx, model.onnx")
    fails(["--exports", exports, "--port", "99999"], capsys, "65535")
    fails(["--exports", exports, "--host", "no.such.host.invalid"], capsys, "no address")
    fails(["--exports", exports, "--treads", "2"], capsys, "--treads")
    fails(["--exports", exports, "--mode", "best"], capsys, "joint")
    fails(["--exports", exports, "--model", "model.onnx", "--model", "model.int8.onnx"], capsys, "one model", "--predict")
    broken = tiny.make(tmp_path / "broken")
    onnx.save(tiny.model(leaves=5), broken / "model.int8.onnx")
    fails(["--exports", broken, "--predict", photo], capsys, "not the file that was exported")
    write_bundle(broken, tiny.describe(broken))
    fails(["--exports", broken, "--predict", photo], capsys, "probabilities of shape (1, 5)")


def test_it_answers_without_torch(exports, tmp_path):
    code = ("import importlib, sys; s = importlib.import_module('04_serve');"
            "assert s.main(sys.argv[1:]) == 0;"
            "from starlette.testclient import TestClient; from common.bundle import Predictor; import tiny_bundle as t;"
            "c = TestClient(s.make_app(Predictor(sys.argv[2]), s.Settings()));"
            "assert c.post('/predict', content=t.picture(t.color_of(0))).json()['species'] == 'apple';"
            "bad = {'torch', 'torchvision', 'timm'} & set(sys.modules); assert not bad, bad; print('clean')")
    (tmp_path / "a.png").write_bytes(tiny.picture(tiny.color_of(0)))
    arguments = ["--exports", exports, "--predict", tmp_path / "a.png", "--output", tmp_path / "o.csv"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("clean\n"), done.stderr


def read_until(process, word):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return line
    raise AssertionError(f"the server ended without '{word}': {lines} {process.stderr.read()}")


def test_a_real_server_answers_keeps_its_port_and_stops_on_sigterm(exports):
    command = [sys.executable, str(ROOT / "04_serve.py"), "--exports", str(exports), "--port"]
    server = subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        url = re.search(r"http://127\.0\.0\.1:(\d+)", read_until(server, "page"))
        port = url.group(1)
        request = urllib.request.Request(f"{url.group(0)}/predict", data=tiny.picture(tiny.color_of(3)))
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert json.load(answer)["species"] == "basil"
            assert "server" not in answer.headers
        request = urllib.request.Request(f"{url.group(0)}/predict", data=bytes(21_000_000))
        with pytest.raises(urllib.error.HTTPError) as caught:  # the sender of too much gets to read why
            urllib.request.urlopen(request, timeout=20)
        assert caught.value.code == 413 and json.load(caught.value)["error"]["code"] == "too_large"
        with socket.create_connection(("127.0.0.1", int(port)), 5) as half:  # leaves in the middle of its photo
            half.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        second = subprocess.run([*command, port], capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert second.returncode == 2 and f"port {port}" in second.stderr and "--port" in second.stderr
        with urllib.request.urlopen(f"{url.group(0)}/healthz", timeout=20) as answer:
            assert answer.status == 200
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=20)
        assert server.returncode == 0 and "stopped" in out and "Traceback" not in err, err
    finally:
        server.kill()
        server.communicate()
