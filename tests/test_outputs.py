"""What lies in the way of outputs: links, mount points, devices, full and read-only disks, a kill
at any moment, a closed pipe, little shared memory.
"""

import errno
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_bundle as tiny
import tiny_data
from conftest import ROOT, run

from common import console, files


def tree(folder: Path) -> dict[str, bytes]:
    """Contents of all files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def organize(output: Path, *flags: object) -> int:
    return run("01_reorganize", *flags, "--output", output, "--workers", 1)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """The tiny set's class folders, four pictures each; read only."""
    return tiny_data.make_raw(tmp_path_factory.mktemp("raw") / "raw", each=4)


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(tiny.picture(tiny.color_of(i), (80, 80)))
    return folder


@pytest.fixture
def quick_03(monkeypatch):
    """03 whose export is one file, made at once."""
    script = importlib.import_module("03_export")

    def export(payload, before, data, folder, args, version):
        (folder / "made.txt").write_text(str(args.max_pictures))
        return {"bundle": {"default_model": "made.txt"}}

    def write_bundle(folder, bundle):
        (folder / "bundle.json").write_text(json.dumps(bundle))

    monkeypatch.setattr(script, "export", export)
    monkeypatch.setattr(script, "write_report", lambda *_: "")
    monkeypatch.setattr(script.predictor, "write_bundle", write_bundle)
    return script


def private_mounts(code: str, *argv: object) -> subprocess.CompletedProcess:
    """Run Python code where it can mount what nobody else sees."""
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no private mounts here: they need Linux and root or user namespaces")
    start = (
        f"import importlib, os, shutil, subprocess, sys\nsys.path[:0] = [{str(ROOT)!r}]\n"
        "import cv2\ncv2.setNumThreads(1)\n"  # as in conftest
        "def mount(*words): subprocess.run(['mount', *map(str, words)], check=True)\n"
        "def run(script, *argv):\n"
        "    try: return importlib.import_module(script).main([str(part) for part in argv])\n"
        "    except SystemExit as stop: return stop.code\n"
    )
    command = ["unshare", "-rm", sys.executable, "-c", start + code, *map(str, argv)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert "Traceback" not in done.stderr, done.stderr
    return done


# region links


def test_01_follows_a_link_and_leaves_it(raw, tmp_path):
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "organized", tmp_path / "disk" / "there"
    link.symlink_to(target)
    assert organize(link, raw) == 0
    assert organize(link, raw, "--fresh", "--val", 0.3) == 0
    assert link.is_symlink()
    assert organize(tmp_path / "plain", raw, "--val", 0.3) == 0
    assert tree(target) == tree(tmp_path / "plain")
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["there"]
    assert organize(link, "--undo") == 0
    assert link.is_symlink()
    assert not target.exists()


def test_03_follows_a_link_and_leaves_it(trained, quick_03, tmp_path):
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "exports", tmp_path / "disk" / "there"
    link.symlink_to(target)
    flags = ["--data", trained.data, "--checkpoints", trained.checkpoints, "--output", link]
    for count in (20, 30):
        assert run("03_export", *flags, "--max-pictures", count) == 0
        assert link.is_symlink()
        assert (target / "made.txt").read_text() == str(count)
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["there"]


def test_04_follows_links_and_leaves_them(exports, photos, tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "a.csv").write_text("old")
    flags = ["--output", tmp_path / "a.csv", "--submission", tmp_path / "b.csv"]
    assert run("04_serve", "--exports", exports, "--predict", photos, *flags) == 0
    for name in ("a.csv", "b.csv"):
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "disk" / name).read_text().count("\n") == 4
    assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == ["a.csv", "b.csv"]


def test_02a_follows_links_and_tells_of_one_species(tmp_path, capfd):
    raw = tiny_data.make_raw(tmp_path / "raw")
    for folder in [*raw.glob("[Aa]pple*"), *raw.glob("[Cc]orn*")]:
        shutil.rmtree(folder)
    assert organize(tmp_path / "organized", raw) == 0
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")  # that is not there yet
    flags = ["--data", tmp_path / "organized", "--checkpoints", tmp_path / "checkpoints"]
    assert run("02a_train_species", *flags, *tiny_data.SPECIES) == 0
    told = capfd.readouterr().err
    assert "tomato IS THE ONLY SPECIES" in told
    assert "--levels 1" in told
    last, moved = tmp_path / "disk" / "species_only" / "last.pt", tmp_path / "moved.pt"
    os.replace(last, moved)
    last.symlink_to(moved)
    before = moved.stat().st_mtime_ns
    longer = [*tiny_data.SPECIES, "--fresh"]
    files.write_text(last.with_name("config.json"), "old")
    from common.train import checkpoint

    checkpoint.save(last, checkpoint.load(last))
    assert last.is_symlink()
    assert moved.stat().st_mtime_ns > before
    assert run("02a_train_species", *flags, *longer) == 0
    assert (tmp_path / "checkpoints").is_symlink()


# endregion

# region mount points, devices


def test_mount_points_are_refused_before_any_work(
    raw, trained, exports, photos, quick_03, tmp_path, monkeypatch, refused
):
    """A folder for 01 and 03 and a file for 04 that cannot be renamed keep what they hold."""
    out, csv = tmp_path / "out", tmp_path / "old.csv"
    assert organize(out, raw) == 0
    shutil.copytree(exports, tmp_path / "exports")
    csv.write_text("old")
    before = tree(tmp_path)

    def mounted(path, *_):
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(path))

    def never(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(os, "link", mounted)
    monkeypatch.setattr(importlib.import_module("01_reorganize"), "list_files", never)
    monkeypatch.setattr(importlib.import_module("04_serve"), "predict", never)
    monkeypatch.setattr(quick_03, "export", never)
    words = ("mount point", "Name a f")
    refused(words, organize, out, raw, "--fresh")
    refused(words, organize, out, "--undo")
    flags = ["--data", trained.data, "--checkpoints", trained.checkpoints, "--fresh", "--output"]
    refused(words, run, "03_export", *flags, tmp_path / "exports")
    refused(words, run, "04_serve", "--exports", exports, "--predict", photos, "--output", csv)
    assert tree(tmp_path) == before


def test_real_mounts_of_every_kind(raw, exports, photos, tmp_path):
    """A disk, a folder bound on the same disk (`os.path.ismount` sees none) and a bound file are
    refused; a folder inside a mount takes results.
    """
    for name in ("disk", "bound", "elsewhere"):
        (tmp_path / name).mkdir()
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("old")
    done = private_mounts(
        "raw, here, exports, photos = sys.argv[1:]\n"
        "mount('-t', 'tmpfs', 'tmpfs', f'{here}/disk')\n"
        "mount('--bind', f'{here}/elsewhere', f'{here}/bound')\n"
        "mount('--bind', f'{here}/a.csv', f'{here}/b.csv')\n"
        "one = ('--workers', 1, '--output')\n"
        "answer = ('04_serve', '--exports', exports, '--predict', photos, '--output')\n"
        "for code, call in (\n"
        "    (2, ('01_reorganize', raw, *one, f'{here}/disk')),\n"
        "    (2, ('01_reorganize', raw, *one, f'{here}/bound')),\n"
        "    (0, ('01_reorganize', raw, *one, f'{here}/bound/result')),\n"
        "    (0, ('01_reorganize', raw, '--fresh', '--val', 0.3, *one, f'{here}/bound/result')),\n"
        "    (2, (*answer, f'{here}/b.csv')),\n"
        "    (0, (*answer, f'{here}/bound/c.csv')),\n"
        "):\n"
        "    assert run(*call) == code, call\n",
        raw,
        tmp_path,
        exports,
        photos,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is a mount point (a Docker volume, a disk)") == 3
    assert (tmp_path / "a.csv").read_text() == "old"
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == ["c.csv", "result"]


def test_what_cannot_be_renamed_loses_neither_result(raw, tmp_path, monkeypatch, refused):
    """As on an image's own folders under Docker, where only the renaming itself tells."""
    out, plain = tmp_path / "out", os.replace
    assert organize(out, raw) == 0
    before = tree(out)
    for kept, error in (("out", errno.EBUSY), ("out.partial", errno.EXDEV)):

        def replace(source, target, kept=kept, error=error):
            if Path(source).name == kept:
                raise OSError(error, os.strerror(error), str(source))
            plain(source, target)

        monkeypatch.setattr(os, "replace", replace)
        refused(
            ("is complete", "out.partial", "by hand"),
            organize,
            *(out, raw, "--fresh", "--val", 0.3),
        )
        assert tree(out) == before
        assert (tmp_path / "out.partial" / "build_info.json").is_file()
    monkeypatch.setattr(os, "replace", plain)
    assert organize(out, raw, "--fresh", "--val", 0.3) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert tree(out) != before


def test_devices_pipes_and_sockets_are_refused(
    raw, trained, exports, photos, quick_03, tmp_path, refused
):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(tmp_path)
        try:
            bound.bind("socket")
        finally:
            os.chdir(ROOT)
        data = ["--data", trained.data]
        export = ["03_export", *data, "--checkpoints", trained.checkpoints, "--output"]
        answer = ["04_serve", "--exports", exports, "--predict", photos]
        train = ["02a_train_species", *data, *tiny_data.SPECIES, "--checkpoints"]
        (tmp_path / "file").touch()
        for place in (Path(os.devnull), tmp_path / "pipe", tmp_path / "socket"):
            was = place.lstat()
            for call in (
                ["01_reorganize", raw, "--output", place],
                ["01_reorganize", "--undo", "--output", place],
                ["01_reorganize", raw, "--dry-run", "--json", place],
                ["01_reorganize", raw, "--dry-run", "--review", place],
                [*export, place],
                [*export, tmp_path / "new", "--triton", place],
                [*answer, "--output", place],
                [*answer, "--output", tmp_path / "new.csv", "--submission", place],
                [*train, place],
            ):
                words = "is a file, not" if "--triton" in call else "a device, a pipe or a socket"
                refused(words, run, *call)
            assert place.lstat() == was
        refused("is a file", run, *train, tmp_path / "file")
        for place in ("/", ".", ".."):
            refused("--output" if place != "/" else "Name something", run, *export, place)
        refused("not made by", run, "01_reorganize", "--undo", "--output", tmp_path / "file")
        refused("is a file, not a folder", run, *answer, "--output", tmp_path / "file" / "a.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "photos", "pipe", "socket"]


# endregion

# region kill -9, full and read-only disks


def test_killed_at_any_moment_of_the_change_either_result_is_there(tmp_path):
    """Each system call of it in turn is the last one, before and after it is done."""
    moments = 0
    for moment in range(1, 40):
        here = tmp_path / str(moment)
        for name, text in (("old", "old"), ("new", "new")):
            (here / name).mkdir(parents=True)
            for k in range(3):
                (here / name / f"{k}.txt").write_text(text)
        child = os.fork()
        if not child:
            count = 0

            def hook(event, args, moment=moment):
                nonlocal count
                if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
                    count += 1
                    if count == moment:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            files.stand_in(here / "new", here / "old")
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        files.claim(here / "old")
        found = {p.read_text() for p in (here / "old").iterdir()}
        assert len(found) == 1, "old and new are mixed"
        assert len(list((here / "old").iterdir())) == 3
        assert found == {"new"} or {p.read_text() for p in (here / "new").iterdir()} == {"new"}
        assert {p.name for p in here.iterdir()} <= {"old", "new"}
        moments += killed
        if not killed:
            break
    assert moments >= 5


KILLED = """
import importlib, os, signal, sys
plain = os.replace
def replace(source, target):
    plain(source, target)
    if str(target).endswith(".out.replaced"):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
importlib.import_module("01_reorganize").main(sys.argv[1:])
"""


def test_01_killed_between_old_and_new_has_both(raw, tmp_path):
    out = tmp_path / "out"
    assert organize(out, raw) == 0
    before = tree(out)
    again = [raw, "--fresh", "--val", 0.3, "--output", out, "--workers", 1]
    command = [sys.executable, "-c", KILLED, *map(str, again)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert organize(out, raw) == 0  # the former command: its result is back
    assert tree(out) == before
    assert run("01_reorganize", *again) == 0
    assert organize(tmp_path / "plain", raw, "--val", 0.3) == 0
    assert tree(out) == tree(tmp_path / "plain")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "plain"]


@pytest.mark.parametrize("last", ["out", ".out.replaced"])
def test_03_that_breaks_off_keeps_the_old_export(
    trained, quick_03, tmp_path, monkeypatch, refused, last
):
    """`last`: what is renamed when the process dies; and a disk that fills before that."""
    out, plain = tmp_path / "out", os.replace
    flags = ["--data", trained.data, "--checkpoints", trained.checkpoints, "--output", out]
    assert run("03_export", *flags, "--max-pictures", 20) == 0
    before = tree(out)

    class Killed(BaseException):
        pass

    def replace(source, target):
        if Path(source).name == "out.partial":
            raise Killed
        plain(source, target)
        if Path(target).name == last:
            raise Killed

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        run("03_export", *flags, "--max-pictures", 30)
    monkeypatch.setattr(os, "replace", plain)
    assert run("03_export", *flags, "--max-pictures", 20) == 0
    assert tree(out) == before, "up to date: the old export is back"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(quick_03, "export", full)
    refused("the disk is full", run, "03_export", *flags, "--max-pictures", 30)
    assert tree(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_fills_keeps_the_old_result(raw, tmp_path):
    larger = tiny_data.make_raw(tmp_path / "larger", each=60)
    (tmp_path / "disk").mkdir()
    done = private_mounts(
        "raw, larger, disk = sys.argv[1:]\n"
        "mount('-t', 'tmpfs', '-o', 'size=900k', 'tmpfs', disk)\n"
        "def tree():\n"
        "    return [(at, name, open(f'{at}/{name}', 'rb').read())\n"
        "            for at, _, names in sorted(os.walk(f'{disk}/out')) for name in names]\n"
        "flags = ('--workers', 1, '--output', f'{disk}/out')\n"
        "assert run('01_reorganize', raw, *flags) == 0\n"
        "before = tree()\n"
        "assert run('01_reorganize', larger, '--fresh', *flags) == 2\n"
        "assert tree() == before\n",
        raw,
        larger,
        tmp_path / "disk",
    )
    assert done.returncode == 0, done.stderr
    assert "the disk is full" in done.stderr


def test_read_only_sources_and_results_are_enough(raw, exports, photos, tmp_path):
    organize(tmp_path / "plain", raw)
    done = private_mounts(
        "raw, exports, photos, here = sys.argv[1:]\n"
        "for place in (raw, exports, photos):\n"
        "    mount('--bind', place, place)\n"
        "    mount('-o', 'remount,bind,ro', place)\n"
        "try:\n"
        "    open(f'{raw}/x', 'w')\n"
        "    raise SystemExit('not read-only')\n"
        "except OSError:\n"
        "    pass\n"
        "flags = ('--workers', 1, '--output')\n"
        "assert run('01_reorganize', raw, *flags, f'{here}/out') == 0\n"
        "assert run('01_reorganize', raw, *flags, f'{photos}/out') == 2\n"
        "answer = ('04_serve', '--exports', exports, '--predict', photos, '--output')\n"
        "assert run(*answer, f'{here}/a.csv') == 0\n"
        "assert run(*answer, f'{photos}/a.csv') == 2\n",
        raw,
        exports,
        photos,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no permission") == 2
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")


# endregion

# region ~, closed pipes, shared memory


def test_home_is_meant_wherever_a_path_begins(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = console.parser("x")
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--output", type=Path)
    given = ["~/a", "b=~/b", "~", "c~/c", "d/~/d", "e=f/~", "~g", "--output=~/x y"]
    found = parser.parse_args(given)
    home = str(tmp_path)
    assert found.sources == [home + "/a", f"b={home}/b", home, "c~/c", "d/~/d", "e=f/~", "~g"]
    assert found.output == tmp_path / "x y"
    monkeypatch.chdir(tmp_path)
    assert run("01_reorganize", f"a={raw}", "--output=~/organized", "--workers", 1) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["organized"]


def test_run_all_knows_home_in_every_argument(tmp_path):
    (tmp_path / "photos").mkdir()
    done = subprocess.run(
        ["bash", ROOT / "run_all.sh", "--dry-run", "--work", "~/w", "a=~/photos"],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"python 01_reorganize.py a={tmp_path}/photos --output {tmp_path}/w/" in done.stdout


@pytest.mark.parametrize("both", [False, True])
def test_a_closed_pipe_ends_quietly(raw, exports, photos, tmp_path, both):
    for script, *flags in (
        ("01_reorganize.py", "--help"),
        ("01_reorganize.py", raw, "--dry-run"),
        ("04_serve.py", "--exports", exports, "--predict", photos, "--output", tmp_path / "o.csv"),
        ("04_serve.py", "--exports", exports, "--port", "0"),
        ("run_all.sh", "--dry-run"),
    ):
        ours, theirs = os.pipe()
        os.close(ours)
        starter = "bash" if script.endswith(".sh") else sys.executable
        done = subprocess.run(
            [starter, script, *map(str, flags)],
            cwd=ROOT,
            stdout=theirs,
            stderr=theirs if both else subprocess.PIPE,
            timeout=120,
            text=True,
        )
        os.close(theirs)
        quiet = (0,) if "--help" in flags else (141, -signal.SIGPIPE)  # argparse has its own way
        assert done.returncode in quiet, (script, flags)
        assert not done.stderr, (script, flags)


def test_a_pipe_between_processes_that_breaks_is_a_fault(capfd):
    from multiprocessing import Pipe

    @console.friendly
    def main(argv=None):
        ours, theirs = Pipe()
        theirs.close()
        ours.send("x")

    with pytest.raises(BrokenPipeError):
        main([])


SHM = ("/dev/shm", "--shm-size", "--workers 0")


def test_little_shared_memory_is_no_full_disk(refused):
    for text in (
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory.",
        "Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: unable to write to "
        "file </torch_7_1>: No space left on device (28)",
    ):

        @console.friendly
        def main(argv=None, text=text):
            raise RuntimeError(text)

        assert "disk" not in refused(SHM, main, [])


def test_shared_memory_as_small_as_in_a_container(raw, trained, tmp_path):
    """With nothing free no process can be started; with 200 KB a batch does not fit."""
    done = private_mounts(
        "raw, data, here, *flags = sys.argv[1:]\n"
        "for free_kb in (0, 200):\n"
        "    mount('-t', 'tmpfs', '-o', f'size={free_kb + 4}k', 'tmpfs', '/dev/shm')\n"
        "    open('/dev/shm/fill', 'wb').write(bytes(4096))\n"
        "    out, train = f'{here}/out{free_kb}', ('--checkpoints', f'{here}/c{free_kb}', *flags)\n"
        "    one = run('01_reorganize', raw, '--output', out, '--workers', 2)\n"
        "    assert one == (0 if free_kb else 2), one\n"
        "    assert run('02a_train_species', '--data', data, *train, '--workers', 1) == 2\n"
        "    print('of', free_kb, file=sys.stderr)\n"
        "assert run('02a_train_species', '--data', data, *train, '--workers', 0) == 0\n",
        raw,
        trained.data,
        tmp_path,
        *tiny_data.SPECIES,
        *("--image-size", 96, "--species-finetune-epochs", 0, "--species-final-epochs", 0),
    )
    assert done.returncode == 0, done.stderr
    none, _, rest = done.stderr.partition("of 0\n")
    for told, errors in ((none, 2), (rest, 1)):
        assert told.count("error: ") == errors
        assert all(told.count(word) == errors for word in SHM)
    assert "disk is full" not in done.stderr


# endregion
