"""The page as a folder: what is in it, what stands in its way, and that on a plain web host it
answers, keeps working without a connection and asks for nothing but its own files.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_bundle as tiny
import tiny_light
from conftest import run
from page_site import give, needs_runtime

from common.files import file_sha256
from common.serve.http import web_files

HEAD = "species,disease,language,scientific_name,local_name,text,severity,treatment,link,source\n"
TEXT = "Rake up the fallen leaves."


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Path:
    """Exports with a light model, a row of advice and a reference picture."""
    folder = tiny.make(tmp_path_factory.mktemp("static") / "exports")
    tiny_light.add(folder, padding=1_000_000)  # more heads than a page with a server would keep
    (folder / "browser" / "light.json.gz").write_bytes(b"of no use on plain hosts")
    (folder / "advice.csv").write_text(f"{HEAD}apple,scab,,Venturia,,{TEXT},,,,\n")
    picture = folder / "reference" / "apple" / "scab" / "1.jpg"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(tiny.picture(tiny.color_of(2), (64, 48), "JPEG"))
    index = {"apple/scab": [{"file": "apple/scab/1.jpg", "source": "garden"}]}
    (picture.parents[2] / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Stand-ins for the runtime's two files."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name in web_files.PINNED:
        (folder / name).write_bytes(name.encode())
        (folder / f"{name}.br").write_bytes(b"of no use either")
    hashes = {name: file_sha256(folder / name) for name in web_files.PINNED}
    monkeypatch.setattr(web_files, "RUNTIME", folder)
    monkeypatch.setattr(web_files, "PINNED", hashes)
    return folder


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_what_the_page_asks_for_and_nothing_else(
    exports, stand_in, tmp_path, capsys
):
    site = tmp_path / "site"
    assert run("03_export", "--output", exports, "--static", site) == 0
    facts = json.loads((site / "page.json").read_text())
    light = facts["light"]
    assert facts["server"] is None
    assert facts["top_k"] == 5
    assert "data-alone" in (site / "index.html").read_text()
    asked = {light[key] for key in ("script", "wasm", "settings", "onnx")} | {light["heads"]["url"]}
    asked |= {"index.html" if name == "./" else name for name in facts["shell"]}
    asked |= {"sw.js", "reference/apple/scab/1.jpg"}
    asked |= {f"icon-{size}.png" for size in (180, 192, 512)}
    assert files_of(site) == {name.removeprefix("./") for name in asked}
    for url in (light["onnx"], light["heads"]["url"], light["wasm"]):
        assert Path(url).parent.name == file_sha256(site / url)[:16]
    assert json.loads((site / "advice.json").read_text())["en"]["apple/scab"]["text"] == TEXT
    known = json.loads((site / "model").read_text())
    assert known["num_classes"] == tiny.TREE.num_classes
    assert [row["species"] for row in known["classes"]] == list(tiny.TREE.species)
    told = capsys.readouterr().out
    assert f"python -m http.server --directory {site}" in told
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert f"({size / 1e6:.1f} MB)" in told


def test_it_speaks_the_language_of_the_texts(exports, stand_in, tmp_path):
    (tmp_path / "de.json").write_text(json.dumps({"language": "de", "choose": "Foto wählen"}))
    flags = ["--texts", tmp_path / "de.json", "--static", tmp_path / "site"]
    assert run("03_export", "--output", exports, *flags) == 0
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert re.search('<html[^>]* lang="de"', page)
    assert ">Foto wählen<" in page
    assert json.loads((tmp_path / "site" / "texts.json").read_text())["choose"] == "Foto wählen"
    advice = json.loads((tmp_path / "site" / "advice.json").read_text())
    assert advice.keys() == {"de"}, "a row that names no language"


def test_written_again_it_is_replaced_and_files_of_others_stay(exports, stand_in, tmp_path):
    site, changed = tmp_path / "site", tmp_path / "changed"
    shutil.copytree(exports, changed)
    site.mkdir()
    (site / "CNAME").write_text("leaves.example.org")
    assert run("03_export", "--output", changed, "--static", site) == 0
    version = json.loads((site / "page.json").read_text())["version"]
    for name in files_of(site) - {"page.json", "CNAME"}:  # as where it was killed
        (site / name).unlink()
    (site / ".partial").mkdir()
    (site / ".partial" / "app.js").write_text("half")
    shutil.rmtree(changed / "reference")
    tiny_light_file = changed / "browser" / "light.json"
    settings = json.loads(tiny_light_file.read_text())
    tiny_light_file.write_text(json.dumps(settings | {"version": "newer"}))
    assert run("03_export", "--output", changed, "--static", site) == 0
    assert (site / "CNAME").read_text() == "leaves.example.org"
    assert not (site / "reference" / "apple").exists()
    assert not (site / ".partial").exists()
    assert len([name for name in files_of(site) if name.endswith("/light.json")]) == 1
    assert json.loads((site / "page.json").read_text())["version"] != version


def test_what_is_missing_or_in_the_way_is_told(exports, stand_in, tmp_path, refused):
    plain = tiny.make(tmp_path / "plain")
    start = ["--static", tmp_path / "site", "--output"]
    refused("03_export.py --browser", run, "03_export", *start, plain)
    refused("--static", run, "03_export", "--output", exports, "--texts", tmp_path / "de.json")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("somebody's own")
    refused(("index.html", "another folder"), run, "03_export", *start, exports)
    assert files_of(tmp_path / "site") == {"index.html"}
    for place in (Path(__file__), Path(__file__) / "site"):
        refused("another folder", run, "03_export", "--output", exports, "--static", place)
    before = files_of(exports)
    refused(
        ("bundle.json", "another folder"),
        run,
        "03_export",
        "--output",
        exports,
        "--static",
        exports,
    )
    assert files_of(exports) == before
    (stand_in / web_files.WASM).unlink()
    refused("web_runtime fetch", run, "03_export", *start, exports)


@pytest.fixture
def host(exports, tmp_path):
    """The page below a prefix of `python -m http.server`: .url; .log() of its requests; .stop()."""
    assert run("03_export", "--output", exports, "--static", tmp_path / "www" / "leaves") == 0
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--directory", str(tmp_path / "www")], stdout=subprocess.PIPE, stderr=log
        )
    port = re.search(rb"port (\d+)", process.stdout.readline())[1].decode()

    def stop() -> None:
        process.kill()
        process.wait()

    yield SimpleNamespace(
        url=f"http://127.0.0.1:{port}/leaves/",
        log=lambda: re.findall(r'"(\S+) (\S+) HTTP/[\d.]+" (\d+)', (tmp_path / "log").read_text()),
        files=files_of(tmp_path / "www"),
        stop=stop,
    )
    stop()
    process.stdout.close()


@needs_runtime
def test_a_plain_web_host_is_enough_and_gets_nothing_but_requests_for_its_files(host, places, tab):
    page = tab(host)
    assert page.js("document.getElementById('private').checkVisibility()") is False
    assert "stay on this device" in page.js("document.getElementById('privacy').innerText")
    seen = give(page, places, "scab.jpg")
    assert (seen.state, seen.by) == ("answered", "browser")
    for word in (TEXT, "Venturia"):
        assert word in seen.text
    # unsure, several, and one that no browser can open: elsewhere the server is asked
    seen = give(page, places, "between.png")
    assert (seen.state, seen.by) == ("rolled_up", "browser")
    seen = give(page, places, "scab.jpg", "healthy.png")
    assert (seen.state, seen.by) == ("answered", "browser")
    assert give(page, places, "scan.tif").state == "error"
    page.wait(
        "navigator.serviceWorker.controller && !document.getElementById('known').hidden && "
        "fetch('reference/apple/scab/1.jpg').then((answer) => answer.ok)"
    )
    log = host.log()
    assert {method for method, _, _ in log} == {"GET"}
    assert {status for _, _, status in log} <= {"200", "304"}
    asked = {path.partition("?")[0].lstrip("/") for _, path, _ in log}
    assert {name.removesuffix("/") for name in asked - host.files} == {"leaves"}

    host.stop()
    for address in (host.url, f"{host.url}index.html"):
        page.open(address)
        page.wait("document.documentElement.dataset.ready === 'browser'")
        seen = give(page, places, "scab.jpg")
        assert (seen.state, seen.by) == ("answered", "browser")
        assert TEXT in seen.text
        page.wait("fetch('reference/apple/scab/1.jpg').then((answer) => answer.ok)")
        assert give(page, places, "corn.png").state == "answered"
