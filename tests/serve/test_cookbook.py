"""The curl cookbook of common/serve/README.md: every command is run against a server on
a tiny bundle, and its status and answer are checked.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import tiny_bundle as tiny
from conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
KEY = "a key for tests"

# a part of the command -> what its answer must hold; the first that fits counts
EXPECTED = (
    ("note.txt", lambda found: found["error"]["code"] == "text"),
    ("readyz", lambda found: found["status"] == "ready"),
    ("healthz", lambda found: found["status"] == "ok"),
    ("8000/model", lambda found: len(found["classes"]) == 3 and found["limits"]["photos"] == 5),
    (
        "/infer",
        lambda found: (
            found["outputs"][0]["shape"] == [1, 6]
            and abs(sum(found["outputs"][0]["data"]) - 1) < 1e-3
        ),
    ),
    ("/v2/models", lambda found: found["inputs"][0]["shape"] == [-1, tiny.SIZE, tiny.SIZE, 3]),
    (
        "top_k=3",
        lambda found: (
            len(found["alternatives"]) == 3
            and len(found["heatmap"]) == tiny.CELLS
            and found["precision"] == "0.90"
        ),
    ),
    (
        "-F photo=@leaf.jpg -F photo=@leaf.jpg",
        lambda found: len(found["photos"]) == 2 and found["agreement"] is not None,
    ),
    (
        "species=",
        lambda found: found["conditioned"]["species"] == "apple" and found["conditioned"]["agrees"],
    ),
    ("prior=", lambda found: found["prior"]["weights"] == {"apple": 3.0, "corn": 0.5}),
    (
        "/predict",
        lambda found: (
            (found["decision"], found["species"], found["disease"]) == ("answered", "apple", "scab")
        ),
    ),
)


def recipes() -> list[str]:
    """The lines of the cookbook that do something."""
    text = (
        (ROOT / "common" / "serve" / "README.md")
        .read_text(encoding="utf-8")
        .split("<!-- cookbook -->")[1]
        .split("<!-- /cookbook -->")[0]
    )
    return [
        line
        for line in re.search(r"```bash\n(.*?)```", text, re.S)
        .group(1)
        .replace("\\\n", " ")
        .splitlines()
        if line.strip() and not line.startswith("#")
    ]


@contextlib.contextmanager
def server(exports, key: str = ""):
    command = [sys.executable, str(ROOT / "04_serve.py"), "--exports", str(exports), "--port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FOLIAR_API_KEY": key},
    )
    try:
        told = []
        for line in process.stdout:
            told.append(line)
            if found := re.search(r"page +http://127\.0\.0\.1:(\d+)/", line):
                yield int(found.group(1))
                return
        raise AssertionError(f"the server ended: {told}")
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with leaf.jpg and the tiny exports."""
    folder = tmp_path_factory.mktemp("cookbook")
    (folder / "leaf.jpg").write_bytes(tiny.picture(tiny.color_of(2), (120, 90), "JPEG", quality=95))
    tiny.make(folder / "exports")
    return folder


def cook(line: str, port: int, place) -> tuple[int, str]:
    """Run a line of the cookbook as it stands, but for the port, the model's size and the status
    that curl is to print.
    """
    line = line.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace(
        "(80, 80)", f"({tiny.SIZE}, {tiny.SIZE})"
    )
    line = line.replace("[1, 80, 80, 3]", f"[1, {tiny.SIZE}, {tiny.SIZE}, 3]")
    line = re.sub(r"^curl ", "curl -sS -w '\\\\n%{http_code}' ", line)
    line = re.sub(r"^python ", f"'{sys.executable}' ", line)
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "FOLIAR_API_KEY": KEY, "NO_PROXY": "*"},
    )
    assert done.returncode == 0, (line, done.stderr)
    if "curl " not in line:
        return 0, done.stdout
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def check(line: str, status: int, body: str) -> None:
    assert status == (415 if "note.txt" in line else 200), (line, status, body)
    if "/metrics" in line:
        assert "foliar_requests_total" in body
        return
    looks_right = next(check for part, check in EXPECTED if part in line)
    assert looks_right(json.loads(body)), (line, body)


def test_the_open_recipes(place):
    lines = [line for line in recipes() if "FOLIAR_API_KEY" not in line]
    assert sum(line.startswith("curl ") for line in lines) >= 10
    with server(place / "exports") as port:
        for line in lines:
            status, body = cook(line, port, place)
            if line.startswith("curl "):
                check(line, status, body)


def test_the_recipes_with_a_key(place):
    lines = [line for line in recipes() if "FOLIAR_API_KEY" in line]
    assert len(lines) >= 2
    with server(place / "exports", KEY) as port:
        assert (
            cook("curl --data-binary @leaf.jpg http://127.0.0.1:8000/predict", port, place)[0]
            == 401
        )
        for line in lines:
            check(line, *cook(line, port, place))
