"""The Dockerfile and .dockerignore: what they name is there, suffices to serve, and is pinned to
releases that requirements.txt allows.
"""

import ast
import fnmatch
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path, PurePosixPath

import pytest
import tiny_bundle as tiny
from conftest import ROOT
from packaging.requirements import Requirement

DOCKERFILE = (ROOT / "common" / "serve" / "Dockerfile").read_text(encoding="utf-8")
RULES = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()


def goes_in(path: str) -> bool:
    """Whether the last rule that fits a path, or a folder above it, lets it in."""
    names = [path, *map(str, PurePosixPath(path).parents)]
    kept = True
    for rule in RULES:
        pattern = rule.removeprefix("!").replace("**/", "*")
        if any(fnmatch.fnmatch(name, pattern) for name in names if name != "."):
            kept = rule.startswith("!")
    return kept


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """What `COPY . ./` copies of a fresh clone, in which .web was not fetched."""
    assert re.findall(r"^(?:COPY|ADD) .*", DOCKERFILE, re.M) == ["COPY . ./"]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("image")
    for name in filter(goes_in, listed.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_the_context_holds_what_serves_and_nothing_else(image):
    for rule in RULES:
        assert rule in ("*", "!.web") or "**" in rule or (ROOT / rule.removeprefix("!")).exists()
    assert {path.name for path in image.iterdir()} == {"04_serve.py", "common"}
    held = {path.name for path in (image / "common").iterdir() if path.is_dir()}
    assert held == {"organize", "serve"}  # the names of classes, for --labels
    assert (image / "common" / "serve" / "web" / "index.html").is_file()
    assert goes_in(".web/onnxruntime-web-1.30.0/ort.wasm.bundle.min.mjs")
    for secret in (".git/config", "exports/bundle.json", ".env", "data/organized/manifest.csv"):
        assert not goes_in(secret)


def test_what_is_copied_serves_and_stops(image, exports, tmp_path):
    command = json.loads(re.search(r"^ENTRYPOINT (.*)", DOCKERFILE, re.M)[1])
    assert command[:2] == ["python", "04_serve.py"]
    own = ["--host", "127.0.0.1", "--port", "0", "--exports", str(exports)]
    server = subprocess.Popen(
        [sys.executable, *command[1:], *own],
        cwd=image,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
    )
    try:
        told = ""
        while not (found := re.search(r"page +(http://127\.0\.0\.1:\d+)/", told)):
            line = server.stdout.readline()
            assert line, told
            told += line
        photo = tiny.picture(tiny.color_of(2))
        with urllib.request.urlopen(f"{found[1]}/predict", data=photo, timeout=20) as answer:
            assert json.load(answer)["disease"] == "scab"
        health = re.search(r"^HEALTHCHECK .*?CMD (.*)", DOCKERFILE, re.M)[1]
        assert "http://127.0.0.1:8000/healthz" in health
        check = json.loads(health.replace("http://127.0.0.1:8000", found[1]))
        for code in (0, 1):
            assert subprocess.run([sys.executable, *check[1:]], stderr=-3).returncode == code
            server.send_signal(
                getattr(signal, re.search(r"^STOPSIGNAL (\w+)", DOCKERFILE, re.M)[1])
            )
            assert server.wait(35) == 0
    finally:
        server.kill()
        server.stdout.close()
    assert not list(image.rglob("__pycache__"))


def test_its_packages_are_pinned_as_the_requirements_allow():
    pinned = dict(re.findall(r"^    ([\w-]+)==([\w.]+)", DOCKERFILE, re.M))
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    allowed = {one.name: one.specifier for one in map(Requirement, without_comments(lines))}
    for name, version in pinned.items():
        assert allowed[name.removesuffix("-headless")].contains(version), name
    files = [ROOT / "04_serve.py", *ROOT.glob("common/*.py"), *ROOT.glob("common/serve/**/*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    used = {name.split(".")[0] for name in names} - {"common", *sys.stdlib_module_names}
    owners = importlib.metadata.packages_distributions()
    needed = {owners[name][0].lower().replace("_", "-") for name in used} - {"h11"}  # of uvicorn
    needed |= {"python-multipart"}  # starlette imports it
    assert {name.removesuffix("-headless") for name in pinned} == needed


def without_comments(lines: list[str]) -> list[str]:
    """The requirements of a file, without comments."""
    return [line for line in (line.partition("#")[0].strip() for line in lines) if line]
