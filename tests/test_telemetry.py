"""Nothing that the project runs reports to anybody, or leaves files outside its own folders; the
stages, from 01 to 04, are traced in test_pipeline.py.
"""

import subprocess
import sys

import pytest
import traced
from conftest import ROOT


@pytest.mark.skipif(not traced.may_trace(), reason="strace may not trace here")
def test_a_trace_shows_questions_and_files(tmp_path):
    """A datagram socket's connect sends nothing; the addresses are those of documentation."""
    code = (
        "import os, socket\n"
        "for host, kind in (('192.0.2.1', 2), ('2001:db8::1', 10), ('127.0.0.1', 2)):\n"
        "    try: socket.socket(kind, socket.SOCK_DGRAM).connect((host, 9))\n"
        "    except OSError: pass\n"
        "os.mkdir('made'); open('made/x', 'w'); open('made/x'); os.rename('made/x', 'made/y')\n"
    )
    found = traced.run([sys.executable, "-c", code], tmp_path / "log", cwd=tmp_path)
    assert {"192.0.2.1 port 9", "2001:db8::1 port 9"} & found.asked
    assert found.local == 1
    made = tmp_path / "made"
    assert found.outside(tmp_path / "elsewhere") == [made, made / "x", made / "y"]


@pytest.mark.smoke
def test_the_server_leaves_nothing_in_the_home_folder(tmp_path):
    """Telemetry of ONNX Runtime begins with a database and an id there, when it is imported."""
    code = "import importlib, sys; importlib.import_module('04_serve'); sys.modules['onnxruntime']"
    environment = traced.without_settings(tmp_path)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_person_may_turn_telemetry_on(tmp_path):
    code = "import os, common; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, wanted in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        environment = traced.without_settings(tmp_path) | given
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == wanted
