"""Nothing that the project runs reports to anybody, or leaves files outside its own folders."""

import os
import subprocess
import sys

import pytest
import traced
from conftest import ROOT

needs_strace = pytest.mark.skipif(
    traced.STRACE is None
    or subprocess.run([traced.STRACE, "-o", os.devnull, "true"], check=False).returncode != 0,
    reason="strace is not installed or may not trace here",
)
PIPELINE = """
import importlib, pathlib, sys
sys.path[:0] = [".", "tests"]
import tiny_data
work = pathlib.Path(sys.argv[1])
data, exports = str(tiny_data.organize(work)), str(work / "exports")
where = ["--data", data, "--checkpoints", str(work / "checkpoints")]
for script, flags in (
    ("02a_train_species", tiny_data.SPECIES),
    ("02b_train_disease", tiny_data.DISEASE),
    ("03_export", ["--output", exports, "--workers", "0"]),
    ("common.serve.trial", None),
):
    flags = where + flags if flags else ["--data", data, "--exports", exports]
    assert importlib.import_module(script).main(flags) == 0
"""


@needs_strace
def test_the_pipeline_and_the_server_ask_nobody_and_write_into_their_folders(tmp_path):
    """01 to 04 in one process, for speed, and those that 03 and the trial of 04 start."""
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    found = traced.run(
        [sys.executable, "-c", PIPELINE, work],
        tmp_path / "log",
        cwd=ROOT,
        env=traced.without_settings(home),
    )
    assert found.asked == frozenset()
    assert found.local >= 2, "the trial's two questions to its server are in the trace"
    assert work / "exports.partial" / "model.onnx" in found.written
    # matplotlib's list of fonts, which would take seconds in each run
    kept = [home / ".cache" / "matplotlib", home / ".config" / "matplotlib"]
    outside = found.outside(work, home / "tmp", *kept)
    assert set(outside) <= {home / ".cache", home / ".config"}


@needs_strace
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
