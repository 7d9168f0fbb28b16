"""04_serve: its mistakes, and a real server as a subprocess. Batch predictions are in
test_predict.py.
"""

import argparse
import contextlib
import functools
import http.client
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest
import tiny_bundle as tiny

from common.serve.predictor import write_bundle

ROOT = Path(__file__).resolve().parents[2]
serve = importlib.import_module("04_serve")


def fails(argv, capsys, *words):
    with pytest.raises(SystemExit) as caught:
        serve.main([str(part) for part in argv])
    told = capsys.readouterr().err
    assert caught.value.code == 2, told
    assert all(word in told for word in words), told


def test_mistakes_end_in_a_sentence_and_exit_code_2(exports, tmp_path, capsys):
    photo = tmp_path / "a.png"
    photo.write_bytes(tiny.picture(tiny.color_of(0)))
    fails(
        ["--exports", tmp_path / "none", "--predict", photo],
        capsys,
        "no exports folder",
        "03_export.py",
    )
    fails(["--exports", tmp_path, "--predict", photo], capsys, "bundle.json")
    fails(
        ["--exports", exports, "--model", "x.onnx", "--predict", photo],
        capsys,
        "model.int8.onnx, model.onnx",
    )
    fails(["--exports", exports, "--port", "99999"], capsys, "65535")
    fails(["--exports", exports, "--host", "no.such.host.invalid"], capsys, "no address")
    fails(["--exports", exports, "--treads", "2"], capsys, "--treads")
    fails(["--exports", exports, "--mode", "best"], capsys, "joint")
    fails(["--forwarded-allow-ips", "127.0.0.1,*"], capsys, "'*' is no address or network")
    fails(
        ["--exports", exports, "--model", "model.onnx", "--model", "model.int8.onnx"],
        capsys,
        "one model",
        "--predict",
    )
    fails(
        ["--exports", exports, "--port", "0", "--provider", "coreml"],
        capsys,
        "'coreml'",
        "It has: cpu",
    )
    fails(
        ["--exports", exports, "--port", "0", "--workers", "2", "--model", "x.onnx"],
        capsys,
        "model.int8.onnx, model.onnx",
    )
    broken = tiny.make(tmp_path / "broken")
    onnx.save(tiny.model(classes=5), broken / "model.int8.onnx")
    fails(["--exports", broken, "--predict", photo], capsys, "not the file that was exported")
    write_bundle(broken, tiny.describe(broken))
    fails(["--exports", broken, "--predict", photo], capsys, "probabilities of shape (1, 5)")


def test_it_answers_without_torch(exports, tmp_path):
    code = (
        "import importlib, sys; s = importlib.import_module('04_serve');"
        "assert s.main(sys.argv[1:]) == 0;"
        "from starlette.testclient import TestClient; from common.serve.predictor import "
        "Predictor; import tiny_bundle as t;"
        "c = TestClient(s.make_app(Predictor(sys.argv[2]), s.Settings()));"
        "assert c.post('/predict', content=t.picture(t.color_of(0))).json()['species'] == 'apple';"
        "bad = {'torch', 'torchvision', 'timm'} & set(sys.modules); assert not bad, bad; "
        "print('clean')"
    )
    (tmp_path / "a.png").write_bytes(tiny.picture(tiny.color_of(0)))
    arguments = [
        "--exports",
        exports,
        "--predict",
        tmp_path / "a.png",
        "--output",
        tmp_path / "o.csv",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("clean\n"), done.stderr


def read_until(process, word):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return line
    raise AssertionError(f"the server ended without '{word}': {lines} {process.stderr.read()}")


def test_a_real_server_answers_keeps_its_port_and_stops_on_sigterm(exports):
    command = [sys.executable, str(ROOT / "04_serve.py"), "--exports", str(exports), "--port"]
    server = subprocess.Popen(
        [*command, "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        url = re.search(r"http://127\.0\.0\.1:(\d+)", read_until(server, "page"))
        port = url.group(1)
        request = urllib.request.Request(
            f"{url.group(0)}/predict", data=tiny.picture(tiny.color_of(3))
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert json.load(answer)["species"] == "basil"
            assert "server" not in answer.headers
        request = urllib.request.Request(f"{url.group(0)}/predict", data=bytes(21_000_000))
        with pytest.raises(
            urllib.error.HTTPError
        ) as caught:  # the sender of too much gets to read why
            urllib.request.urlopen(request, timeout=20)
        assert caught.value.code == 413
        assert json.load(caught.value)["error"]["code"] == "too_large"
        with socket.create_connection(
            ("127.0.0.1", int(port)), 5
        ) as half:  # leaves in the middle of its photo
            half.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        second = subprocess.run(
            [*command, port], capture_output=True, text=True, timeout=60, cwd=ROOT
        )
        assert second.returncode == 2
        assert f"port {port}" in second.stderr
        assert "--port" in second.stderr
        with urllib.request.urlopen(f"{url.group(0)}/healthz", timeout=20) as answer:
            assert answer.status == 200
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=20)
        assert server.returncode == 0, err
        assert "stopped" in out, err
        assert "Traceback" not in err, err
    finally:
        server.kill()
        server.communicate()


@contextlib.contextmanager
def serving(exports, *flags, program=(str(ROOT / "04_serve.py"),)):
    """A server process that is ready; gives the process and its port."""
    command = [
        sys.executable,
        *program,
        "--exports",
        str(exports),
        "--port",
        "0",
        *flags,
    ]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        yield server, int(re.search(r":(\d+)/", read_until(server, "page")).group(1))
    finally:
        server.kill()
        server.communicate()


def ask(port, path="/predict", body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET" if body is None else "POST", path, body)
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_sigterm_under_load_loses_no_accepted_request(exports):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    photo, seen, errors = tiny.picture(tiny.color_of(0), (1500, 1200), "JPEG"), [], []
    head %= len(photo)
    with serving(exports, "--queue", "4", "--threads", "1") as (server, port):

        def client():
            while True:
                try:
                    connection = socket.create_connection(("127.0.0.1", port), 20)
                except OSError:
                    return  # it has stopped listening
                with connection:
                    try:
                        connection.sendall(head + photo)
                        data = b"".join(iter(functools.partial(connection.recv, 65536), b""))
                    except OSError as error:
                        errors.append(repr(error))
                        return
                    if not data:
                        errors.append("closed without an answer")
                        return
                status, told = int(data.split()[1]), json.loads(data.partition(b"\r\n\r\n")[2])
                seen.append(status)
                if status == 503 and told["error"]["code"] == "draining":
                    return

        threads = [threading.Thread(target=client) for _ in range(12)]
        for thread in threads:
            thread.start()
        while seen.count(200) < 20:
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(20)
        out, err = server.communicate(timeout=20)
    assert server.returncode == 0, err
    assert "stopped" in out, err
    assert not err, err
    assert not errors
    assert set(seen) == {200, 503}


# a session on the CPU stands for the GPU's, in the one process that opens it
ON_GPU = """
import importlib, sys
import onnxruntime
from common.serve import providers
from common.serve.batcher import Batcher
from common.serve.predictor import Predictor

def opened(folder, model, provider, threads):
    predictor = Predictor(folder, "model.onnx")
    predictor.submit = Batcher(predictor.run, 32).submit
    print("opened", flush=True)
    return predictor

providers._open = opened
onnxruntime.get_available_providers = lambda: [providers.PROVIDERS["cuda"], "CPUExecutionProvider"]
sys.exit(importlib.import_module("04_serve").main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_on_a_gpu_several_processes_share_one_model(exports):
    flags = ("--provider", "cuda", "--workers", "2", "--threads", "1")
    with serving(exports, *flags, program=("-c", ON_GPU)) as (server, port):
        told = json.loads(ask(port, "/model")[1])
        assert (told["provider"], told["file"]) == ("cuda", "model.onnx")
        photos = [tiny.picture(tiny.color_of(i % 6)) for i in range(24)]
        with ThreadPoolExecutor(8) as pool:
            bodies = [body for _, body in pool.map(lambda one: ask(port, body=one), photos)]
        pairs = [(one["species"], one["disease"]) for one in map(json.loads, bodies)]
        assert pairs == [tiny.TREE.pair(i) for i in range(6)] * 4
        metrics = ask(port, "/metrics")[1]
        killed = int(re.search(rb'pid="(\d+)"', metrics).group(1))
        os.kill(killed, signal.SIGKILL)
        assert ask(port, body=photos[3])[0] == 200
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=30)
        assert server.returncode == 0, err
        assert "opened" not in out, "once, before the first worker"
        assert "Traceback" not in err, err


def test_a_worker_does_not_take_another_export_than_the_shared_model(exports, capsys):
    args = argparse.Namespace(exports=exports, model="model.onnx")
    known = json.loads((exports / "bundle.json").read_text()) | {"version": "of last week"}
    with pytest.raises(SystemExit):
        serve.work(args, None, ("nowhere", known), None)
    assert "has changed; restart the server" in capsys.readouterr().err


def test_workers_that_cannot_start_end_with_a_message(exports, tmp_path):
    broken = tiny.make(tmp_path / "broken")
    onnx.save(tiny.model(classes=5), broken / "model.int8.onnx")
    write_bundle(broken, tiny.describe(broken))
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "04_serve.py"),
            "--exports",
            str(broken),
            "--port",
            "0",
            "--workers",
            "2",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (1, 2)
    assert "probabilities of shape (1, 5)" in done.stderr
    assert "Traceback" not in done.stderr
