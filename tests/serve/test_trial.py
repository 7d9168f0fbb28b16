"""The trial of a running server, and the runtime of the page."""

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
import tiny_bundle as tiny
from conftest import ROOT

from common.serve import trial, web_runtime


@pytest.fixture
def data(tmp_path):
    """A data set of one test photo, in a file of its own as in a shard: at an offset."""
    photo = tiny.picture(tiny.color_of(2), (120, 90), "PNG")
    folder = tmp_path / "organized"
    folder.mkdir()
    (folder / "shard.tar").write_bytes(b"x" * 512 + photo)
    (folder / "manifest.csv").write_text(
        "path,species,disease,split,offset,size\n"
        "train.jpg,apple,scab,train,,9\n"
        f"shard.tar,apple,scab,test,512,{len(photo)}\n"
    )
    return folder


def run(*argv):
    return subprocess.run(
        [sys.executable, "-m", *map(str, argv)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_trial_asks_about_a_plant_and_about_no_plant(data, tmp_path):
    exports = tiny.make(tmp_path / "exports")
    done = run("common.serve.trial", "--exports", exports, "--data", data)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a held-out leaf, apple / scab (shard.tar)\n  -> answered: apple / scab" in done.stdout
    assert "a picture of no plant (a drawn page of text)\n  -> rejected: " in done.stdout


def test_a_trial_that_cannot_be_says_why(data, tmp_path):
    done = run("common.serve.trial", "--exports", tmp_path / "none", "--data", data)
    assert done.returncode == 2
    assert "the server did not start" in done.stderr
    assert "no exports folder" in done.stderr
    done = run("common.serve.trial", "--data", tmp_path)
    assert done.returncode == 2
    assert "01_reorganize.py" in done.stderr


def test_a_picture_of_no_plant_comes_from_the_data_set_where_it_has_one(data):
    folder = data / "not_plants" / "test" / "text"
    folder.mkdir(parents=True)
    (folder / "b.jpg").write_bytes(b"b")
    (folder / "a.jpg").write_bytes(b"a")
    title, picture = trial.no_plant(data)
    assert picture == b"a"
    assert title.endswith(f"({os.path.join('not_plants', 'test', 'text', 'a.jpg')})")


def test_compressed_copies(tmp_path, refused):
    file = tmp_path / "light.json"
    file.write_bytes(b"abc" * 1000)
    assert web_runtime.main(["pack", str(file)]) == 0
    assert gzip.decompress(file.with_name("light.json.gz").read_bytes()) == file.read_bytes()
    assert file.with_name("light.json.br").is_file() == bool(shutil.which("node"))
    refused("there is no file", web_runtime.main, ["pack", str(tmp_path / "none")])


def test_only_the_pinned_runtime_is_unpacked(tmp_path, monkeypatch):
    archive = tmp_path / "runtime.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in web_runtime.PINNED:
            info = tarfile.TarInfo(f"package/dist/{name}")
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(ValueError, match="SHA-512"):
        web_runtime.unpack(archive, tmp_path)
    assert not (tmp_path / web_runtime.SCRIPT).exists()


def test_without_npm_the_page_does_without(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not web_runtime.fetch(tmp_path / "runtime")
    assert "no npm" in capsys.readouterr().out


def test_serving_loads_neither_torch_nor_the_name_parser():
    code = (
        "import importlib, sys; importlib.import_module('04_serve');"
        "bad = [m for m in sys.modules if m == 'torch' or m.startswith(('common.organize',"
        " 'common.train', 'common.export'))]; print(bad); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
