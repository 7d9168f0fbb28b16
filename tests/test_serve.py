"""04_serve: its mistakes, the batch predictions, and a real server as a subprocess."""

from __future__ import annotations

import csv
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


def test_predict_writes_a_row_per_file(exports, tmp_path, capsys):
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    (photos / "a.jpg").write_bytes(tiny.picture(tiny.color_of(0), kind="JPEG"))
    (photos / "deep" / "b.PNG").write_bytes(tiny.picture(tiny.between(1, 2)))
    (photos / "c.png").write_bytes(tiny.picture(tiny.STRANGER))
    (photos / "d.jpg").write_bytes(b"no picture")
    (photos / "notes.txt").write_text("left out")
    output = tmp_path / "new" / "out.csv"
    argv = ["--exports", exports, "--predict", photos, photos / "a.jpg", "--output", output, "--threads", 3]
    assert serve.main([str(part) for part in argv]) == 0
    with open(output, newline="", encoding="utf-8") as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert list(rows) == ["a.jpg", "c.png", "d.jpg", "b.PNG"]
    assert (rows["a.jpg"]["species"], rows["a.jpg"]["disease"], rows["a.jpg"]["error"]) == ("apple", "healthy", "")
    assert float(rows["a.jpg"]["leaf_probability"]) > 0.9
    assert (rows["b.PNG"]["decision"], rows["b.PNG"]["species"], rows["b.PNG"]["disease"]) == ("rolled_up", "apple", "")
    assert (rows["c.png"]["decision"], rows["c.png"]["reason"]) == ("rejected", "not_a_plant")
    assert rows["c.png"]["best_guess"]
    assert (rows["d.jpg"]["decision"], rows["d.jpg"]["reason"]) == ("error", "text") and rows["d.jpg"]["error"]
    assert [path.name for path in output.parent.iterdir()] == ["out.csv"]
    assert "1 answered, 1 rolled up, 1 rejected, 1 error" in capsys.readouterr().out


def test_predict_broken_off_leaves_the_old_file_alone(exports, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(tiny.picture(tiny.color_of(0)))
    output = tmp_path / "out.csv"
    output.write_text("old")
    monkeypatch.setattr(serve, "csv_row", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        serve.main(["--exports", str(exports), "--predict", str(tmp_path / "a.png"), "--output", str(output)])
    assert output.read_text() == "old" and sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "out.csv"]


def test_mistakes_end_in_a_sentence_and_exit_code_2(exports, tmp_path, capsys):
    photo = tmp_path / "a.png"
    photo.write_bytes(tiny.picture(tiny.color_of(0)))
    (tmp_path / "empty").mkdir()
    fails(["--exports", tmp_path / "none", "--predict", photo], capsys, "no exports folder", "03_export.py")
    fails(["--exports", tmp_path, "--predict", photo], capsys, "bundle.json")
    fails(["--exports", exports, "--model", "x.onnx", "--predict", photo], capsys, "model.int8.onnx, model.onnx")
    fails(["--exports", exports, "--predict", tmp_path / "none.jpg"], capsys, "none.jpg")
    fails(["--exports", exports, "--predict", tmp_path / "empty"], capsys, "no pictures")
    fails(["--exports", exports, "--predict", photo, "--output", tmp_path], capsys, "is a folder")
    fails(["--exports", exports, "--predict", photo, "--output", photo / "x.csv"], capsys, "is a file")
    fails(["--exports", exports, "--port", "99999"], capsys, "65535")
    fails(["--exports", exports, "--host", "no.such.host.invalid"], capsys, "no address")
    fails(["--exports", exports, "--treads", "2"], capsys, "--treads")
    fails(["--exports", exports, "--mode", "best"], capsys, "joint")
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
