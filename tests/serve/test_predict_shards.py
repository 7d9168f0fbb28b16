"""04_serve --predict in shards: which photos each has, what is merged and what is refused, and the
rows inside Ray Data and Dask.
"""

import csv
import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tiny_bundle as tiny
from conftest import ROOT

from common.serve.batch import predictions, shards
from common.serve.batch.engines import Rows
from common.serve.batch.photo_list import find_photos, names_below
from common.serve.batch.predictions import COLUMNS

serve = importlib.import_module("04_serve")
COUNT = 4


@pytest.fixture
def photos(tmp_path):
    """Ten photos in folders named as classes, one of no plant, and a file that is no picture."""
    folder = tmp_path / "photos"
    for i in range(10):
        place = folder / Path(*tiny.TREE.pair(i % 6))
        place.mkdir(parents=True, exist_ok=True)
        (place / f"p{i}.png").write_bytes(tiny.picture(tiny.color_of(i % 6 if i < 8 else 0)))
    (folder / "not_plants").mkdir()
    (folder / "not_plants" / "sky.png").write_bytes(tiny.picture(tiny.NO_PLANT))
    (folder / "apple" / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def predict(exports, photos, tmp_path, monkeypatch):
    """Predict the photos into out.csv of the test's folder, with more flags."""
    monkeypatch.chdir(tmp_path)

    def run(*flags, exports=exports, output="out.csv", photos="photos"):
        given = ("--exports", exports, "--predict", photos, "--output", output, *flags)
        return serve.main([str(part) for part in given])

    return run


def shard_file(shard: int) -> Path:
    return Path(f"out.csv.shard-{shard}-of-{COUNT}")


def all_shards(predict, *flags, **options):
    for shard in range(COUNT):
        assert predict("--shard", f"{shard}/{COUNT}", *flags, **options) == 0


# region which photos


def test_a_photo_has_the_same_name_wherever_its_folder_lies(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, tmp_path / "mnt" / "copy")
    below = ["apple/broken.jpg", "apple/healthy/p0.png", "apple/healthy/p6.png"]
    for given in ("photos", "./photos/", photos, tmp_path / "mnt" / "copy"):
        assert list(names_below(find_photos([given]), [given]))[:3] == below
    monkeypatch.chdir(photos)
    assert list(names_below(find_photos(["."]), ["."]))[:3] == below
    mixed = ["apple/healthy", "apple", "corn/*/*.png", "not_plants/sky.png"]
    names = list(names_below(find_photos(mixed), mixed))
    assert names[:3] == ["p0.png", "p6.png", "broken.jpg"]  # below the nearest folder
    assert names[-1] == "not_plants/sky.png"  # as written
    assert all(name.startswith("corn/") for name in names if name.split("/")[0] == "corn")


def test_the_shard_of_a_name_is_fixed(tmp_path):
    names = tuple(f"apple/scab/{i}.jpg" for i in range(8)) + ("Äpfel/\udcff.jpg",)
    job = predictions.Job(tuple(map(Path, names)), tmp_path / "o.csv", None, names=names)
    jobs, chosen = shards.split(job, 16)
    # whoever changes these makes the shards of runs under way useless
    assert chosen == [0, 15, 8, 3, 7, 12, 15, 0, 3]
    assert jobs[chosen[0]].output == tmp_path / f"o.csv.shard-{chosen[0]}-of-16"
    assert sorted(name for one in jobs for name in one.names) == sorted(names)
    many = tuple(map(str, range(16_000)))
    parts, _ = shards.split(
        predictions.Job(tuple(map(Path, many)), Path("o"), None, names=many), 16
    )
    assert all(850 < len(one.photos) < 1150 for one in parts)


def test_flags_of_shards_that_cannot_be(predict, refused):
    for wrong in ("16/16", "0/0", "-1/4", "3", "1/2/3", "0/1001", "a/b"):
        refused(f"'{wrong}' is no shard: of 16 they are 0/16", predict, f"--shard={wrong}")
    refused("not allowed with argument", predict, "--shard", "0/4", "--merge")
    for flag in (["--shard", "0/4"], ["--merge"]):
        refused(f"{flag[0]} needs --predict", serve.main, flag)
        refused("--benchmark writes nothing", predict, "--benchmark", *flag)


# endregion

# region shards and their merge


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--tta", "--mode", "routed"],
        ["--model", "model.onnx", "--model", "model.int8.onnx", "--labels", "labels.csv"],
    ],
)
def test_merged_shards_are_the_file_of_one_run(predict, capsys, flags):
    Path("labels.csv").write_text("file,label\nphotos/apple/healthy/p0.png,apple/scab\n")
    assert predict(*flags, "--submission", "one.zip", output="one.csv") == 1
    one = capsys.readouterr().out.splitlines()
    all_shards(predict, *flags, "--submission", "out.zip")
    assert not Path("out.csv").exists()
    assert not Path("out.zip").exists()
    assert "the same command with --merge instead of --shard 3/4" in capsys.readouterr().out
    assert predict(*flags, "--submission", "out.zip", "--merge") == 1
    merged = capsys.readouterr().out.splitlines()
    assert Path("out.csv").read_bytes() == Path("one.csv").read_bytes()
    told = [line for line in one if line.startswith(("labelled", "given", "no plant"))]
    assert len(told) >= 2
    assert set(told) <= set(merged)
    tables = [[line.split("|")[4:7] for line in lines if "|" in line] for lines in (one, merged)]
    assert tables[0] == tables[1]  # what each model adds; its times differ
    assert one[-2].split(": ")[1] == merged[-2].split(": ")[1]  # photos ... : 9 answered, ...
    for name in ("out", "one"):
        with zipfile.ZipFile(f"{name}.zip") as archive:
            Path(f"{name}.submission").write_bytes(archive.read(f"{name}.csv"))
    assert Path("out.submission").read_bytes() == Path("one.submission").read_bytes()
    assert not list(Path().glob("out.csv*shard*")) + list(Path().glob("out.csv.part"))


def test_shards_without_photos_are_fine(predict):
    predict(output="one.csv", photos="photos/apple/healthy")
    for shard in range(9):
        predict("--shard", f"{shard}/9", photos="photos/apple/healthy")
    assert predict("--merge", photos="photos/apple/healthy") == 0
    assert Path("out.csv").read_bytes() == Path("one.csv").read_bytes()


def test_shards_of_machines_that_have_the_photos_elsewhere(predict, photos, tmp_path):
    predict(output="one.csv")
    copy = shutil.copytree(photos, tmp_path / "mnt" / "photos")  # with its times
    all_shards(predict, photos=copy)
    assert predict("--merge") == 1
    assert Path("out.csv").read_bytes() == Path("one.csv").read_bytes()


def test_a_merge_says_which_shards_it_lacks(predict, photos, refused):
    refused("no shards of", predict, "--merge")
    all_shards(predict)
    kept = {shard: shard_file(shard).read_bytes() for shard in range(COUNT)}
    assert min(data.count(b"\n") for data in kept.values()) > 1, "each has a photo"
    shard_file(2).unlink()
    shard_file(1).write_bytes(kept[1][:-9])  # its last line torn
    shard_file(0).unlink()
    predict("--shard", f"0/{COUNT}", "--model", "model.onnx", "--model", "model.int8.onnx")
    shard_file(3).unlink()
    predict("--shard", f"3/{COUNT}", "--tta")
    told = (
        "Of other models: 0;",
        "unfinished: 1;",
        "missing: 2;",
        "of other flags: 3.",
    )
    refused(told, predict, "--merge")
    refused("other flags", predict, "--shard", f"3/{COUNT}")
    assert predict("--shard", f"1/{COUNT}") == 0  # goes on
    assert shard_file(1).read_bytes() == kept[1]
    for shard, data in kept.items():
        shard_file(shard).write_bytes(data)
    for name in ("apple/healthy/p0.png", "apple/healthy/p6.png"):
        (photos / name).write_bytes(tiny.picture(tiny.color_of(1), (90, 90)))
    assert "f other photos: " in refused("cannot be merged yet", predict, "--merge")
    shutil.copy(shard_file(0), f"out.csv.shard-0-of-{COUNT + 1}")
    refused("shards of 4 and of 5", predict, "--merge")
    assert not Path("out.csv").exists()
    assert not Path("out.csv.part").exists()


def test_shards_of_a_gpu_are_merged_without_one_but_not_mixed(predict, refused):
    predict(output="one.csv")
    all_shards(predict)
    for shard in range(COUNT):
        assert shard_file(shard).read_bytes().count(b"CPUExecutionProvider") == 1
        gpu = shard_file(shard).read_bytes().replace(b"CPUExecution", b"CUDAExecution")
        if shard == COUNT - 1:
            refused("Of other providers: 3.", predict, "--merge")
        shard_file(shard).write_bytes(gpu)
    assert predict("--merge") == 1
    assert Path("out.csv").read_bytes() == Path("one.csv").read_bytes()


def test_a_shard_that_is_being_written_is_left_alone(predict, refused):
    all_shards(predict)
    with shard_file(1).open("r+b") as file:
        predictions.Part(file, {}, ())
        refused(("another run is writing", str(shard_file(1))), predict, "--merge")
        refused("another run is writing", predict, "--shard", f"1/{COUNT}")


def test_lines_that_two_runs_wrote_without_locks_are_answered_again(predict):
    predict(output="one.csv")
    all_shards(predict)
    shard = max(range(COUNT), key=lambda shard: shard_file(shard).stat().st_size)
    whole = shard_file(shard).read_bytes()
    head, first, *rest = whole.splitlines(keepends=True)
    shard_file(shard).write_bytes(b"".join([head, first, first, *rest]))
    predict("--shard", f"{shard}/{COUNT}")
    assert shard_file(shard).read_bytes() == whole
    predict("--merge")
    assert Path("out.csv").read_bytes() == Path("one.csv").read_bytes()


def test_xargs_runs_shards_at_once(predict, exports, tmp_path):
    predict(output="one.csv")
    command = f"{sys.executable} {ROOT / '04_serve.py'} --exports {exports} --predict photos"
    done = subprocess.run(
        f"seq 0 1 | xargs -P 2 -I K {command} --threads 1 --output out.csv --shard K/2 && "
        f"{command} --output out.csv --merge",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "random"},
    )
    assert done.returncode == 1, done.stderr  # broken.jpg cannot be read
    assert Path("out.csv").read_bytes() == Path("one.csv").read_bytes()


# endregion

# region engines


@pytest.fixture
def expected(predict, photos):
    """The rows that --predict writes, by file."""
    predict(output="one.csv", photos=photos)
    with open("one.csv", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def as_csv(row):
    """A row as --predict writes it."""
    return {column: "" if row[column] is None else str(row[column]) for column in COLUMNS}


def test_rows_by_path_and_by_bytes_are_those_of_predict(exports, photos, expected):
    rows = Rows(str(exports), threads=2)
    files = list(expected)
    assert [as_csv(row) for row in rows.rows(files)] == list(expected.values())
    batch = rows({"path": files, "bytes": [Path(file).read_bytes() for file in files]})
    assert list(batch) == list(COLUMNS)
    found = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    assert [as_csv(row) for row in found] == list(expected.values())


def test_in_dask(exports, photos, expected):
    bag = pytest.importorskip("dask.bag")
    files = bag.from_sequence(list(expected), partition_size=5)
    rows = files.map_partitions(Rows(str(exports)).rows).compute(num_workers=2)
    assert [as_csv(row) for row in rows] == list(expected.values())


def test_in_ray_data(exports, photos, expected, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        rows = ray.data.read_binary_files(str(photos), include_paths=True).map_batches(
            Rows,
            fn_constructor_kwargs={"exports": str(exports)},
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=2),
            batch_size=5,
        )
        found = {row["file"]: as_csv(row) for row in rows.take_all()}
    finally:
        ray.shutdown()
    assert {file: found[file] for file in expected} == expected


# endregion
