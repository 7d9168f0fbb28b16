"""04_serve --predict: which photos, what is written, runs that are killed, several models and
views, submissions, the benchmark.
"""

import csv
import importlib
import io
import os
import signal
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_bundle as tiny
from conftest import ROOT
from onnx import numpy_helper
from PIL import Image

from common.classes import ClassTree
from common.images import SUFFIXES
from common.organize.sources import list_files, parse_sources
from common.serve.answer import read_photo
from common.serve.answer import views as views_of
from common.serve.batch import ensembles, latency, photo_list, predictions, submission
from common.serve.predictor import BundleError, Predictor, write_bundle

serve = importlib.import_module("04_serve")
FLAT = ClassTree(("daisy", "rose"), (("daisy",), ("rose",)))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second export whose model takes healthy apples for rusty ones, and knows all else."""
    folder = tiny.make(tmp_path_factory.mktemp("other") / "exports")
    for name in ("model.onnx", "model.int8.onnx"):
        made = onnx.load(folder / name)
        swap = [1, 0, 2, 3, 4, 5]
        for tensor in made.graph.initializer:
            if tensor.name in ("weights", "norms"):
                tensor.CopyFrom(
                    numpy_helper.from_array(
                        np.ascontiguousarray(numpy_helper.to_array(tensor)[..., swap]), tensor.name
                    )
                )
        onnx.save(made, folder / name)
    write_bundle(folder, tiny.describe(folder))
    return folder


@pytest.fixture
def photos(tmp_path):
    """Two photos of each class in folders named after it, one of no plant, and a file that is no
    picture.
    """
    folder = tmp_path / "photos"
    for class_idx in range(6):
        place = folder / Path(*tiny.TREE.pair(class_idx))
        place.mkdir(parents=True)
        for i in range(2):
            (place / f"p{class_idx}{i}.png").write_bytes(
                tiny.picture(tiny.color_of(class_idx), (80 + i, 60))
            )
    (folder / "not_plants").mkdir()
    (folder / "not_plants" / "sky.png").write_bytes(tiny.picture(tiny.NO_PLANT))
    (folder / "apple" / "broken.jpg").write_bytes(b"no picture")
    return folder


def run(*argv):
    return serve.main([str(part) for part in argv])


@pytest.fixture
def predict(exports, tmp_path):
    """Predict photos into o.csv of the test's folder: takes paths, then more flags."""
    return lambda *argv: run(
        "--exports", exports, "--output", tmp_path / "o.csv", "--predict", *argv
    )


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# region which photos, and what they show


def test_folders_files_and_patterns_are_found_each_once(photos, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    (photos / "notes.txt").write_text("left out")
    (tmp_path / "[1].png").write_bytes(b"x")  # a file that looks like a pattern is that file
    names = [
        path.name
        for path in photo_list.find_photos(
            ["[1].png", "photos/apple/scab", "photos/**/*", "photos/apple/scab/p20.png"]
        )
    ]
    assert names[:3] == ["[1].png", "p20.png", "p21.png"]
    assert len(names) == len(set(names)) == 15
    assert "notes.txt" not in names
    assert photo_list.find_photos(["photos/notes.txt"]) == [
        Path("photos/notes.txt")
    ]  # what is named is tried
    refused("none.jpg", photo_list.find_photos, ["none.jpg"])
    refused("fits the pattern", photo_list.find_photos, ["photos/*.gif"])
    (tmp_path / "empty").mkdir()
    refused("no pictures in", photo_list.find_photos, ["empty"])


def test_folders_are_walked_as_stage_1_does_and_what_is_skipped_is_told(
    photos, tmp_path, capfd, refused
):
    for name in (".git/x.jpg", "@eaDir/p.png/THUMB.jpg", "a/.DS_Store", "a/._p.png", "a/n.TXT"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"x")
    kept = tiny.picture(tiny.color_of(0))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.png").write_bytes(kept)
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "twice").symlink_to(tmp_path / "elsewhere")
    (photos / "round").symlink_to(photos)
    (photos / "a" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(photos / "a" / "pipe.jpg")
    found = photo_list.find_photos([photos])
    listed = list_files(parse_sources([str(photos)], None))
    regular = [listed.path(i) for i in range(len(listed)) if listed.size[i] >= 0]
    assert {str(p) for p in found} == {p for p in regular if p.lower().endswith(SUFFIXES)}
    assert len(found) == len(set(found)) == 15
    assert photos / "linked" / "far.png" in found
    told = capfd.readouterr().out
    for part in (
        "2 hidden folders and folders of the system",
        "2 files of the system",
        "2 linked folders that are listed already",
        "2 broken links, pipes and devices",
        "1 files that are no picture by their ending (.txt)",
    ):
        assert part in told
    refused("skipped: 1 files of the system", photo_list.find_photos, [tiny_junk(tmp_path)])
    assert photo_list.find_photos([photos / "apple" / "scab"])
    assert "skipped" not in capfd.readouterr().out


def tiny_junk(folder: Path) -> Path:
    (folder / "junk").mkdir()
    (folder / "junk" / "Thumbs.db").write_bytes(b"x")
    return folder / "junk"


def test_folders_say_what_photos_show():
    paths = [
        Path(text)
        for text in (
            "apple/scab/a.png",
            "x/Apple___Scab/a.png",
            "corn/a.png",
            "photos/a.png",
            "a.png",
            "not_plants/test/a.png",
            "apple/blight/a.png",
            "corn blight/a.png",
        )
    ]
    found = photo_list.labels_from_folders(paths, tiny.TREE, serve.parse_names).tolist()
    assert found == [2, 2, -1, -1, -1, photo_list.NO_PLANT, -1, 4]
    assert photo_list.labels_from_folders(
        [Path("rose/a.png"), Path("daisy/daisy/a.png")], FLAT, serve.parse_names
    ).tolist() == [1, 0]


def test_a_csv_says_what_photos_show(tmp_path, refused, capfd):
    table = tmp_path / "labels.csv"
    paths = [
        tmp_path / "one" / "a.png",
        tmp_path / "two" / "a.png",
        tmp_path / "b.png",
        tmp_path / "c.png",
        tmp_path / "d.png",
    ]
    table.write_text(
        "file,species,disease,more\none/a.png,apple,scab,1\ntwo/a.png,corn,healthy,1\n"
        "b.png,Apple,Rust,\nc.png,,,\nd.png,oak,x,\n"
    )
    assert photo_list.labels_from_csv(table, paths, tiny.TREE, serve.parse_names).tolist() == [
        2,
        5,
        1,
        -1,
        -1,
    ]
    assert "oak/x" in capfd.readouterr().err
    table.write_text("image,label\na.png,apple/scab\nb.png,not_a_plant\n")
    assert photo_list.labels_from_csv(table, paths[:3], tiny.TREE, serve.parse_names).tolist() == [
        -1,
        -1,
        photo_list.NO_PLANT,
    ]  # two photos are called a.png
    table.write_text("file,label\nz.png,apple/scab\n")
    refused(
        "names none of the photos",
        photo_list.labels_from_csv,
        table,
        paths,
        tiny.TREE,
        serve.parse_names,
    )
    table.write_text("file,kind\na.png,apple\n")
    refused(
        "which column holds the label",
        photo_list.labels_from_csv,
        table,
        paths,
        tiny.TREE,
        serve.parse_names,
    )


# endregion

# region one run


def test_a_row_per_file_and_what_the_answers_are_worth(exports, photos, tmp_path, capsys):
    output = tmp_path / "new" / "out.csv"
    (photos / "apple" / "scab" / "torn.png").write_bytes(tiny.picture(tiny.between(1, 2)))
    assert (
        run(
            "--exports",
            exports,
            "--predict",
            photos,
            photos / "apple" / "scab" / "p20.png",
            "--output",
            output,
            "--threads",
            3,
        )
        == 1
    )
    rows = {Path(row["file"]).name: row for row in rows_of(output)}
    assert list(rows) == [path.name for path in sorted(photos.rglob("*.*"))]
    assert (rows["p00.png"]["species"], rows["p00.png"]["disease"], rows["p00.png"]["error"]) == (
        "apple",
        "healthy",
        "",
    )
    assert float(rows["p00.png"]["joint_probability"]) > 0.9
    assert (
        rows["torn.png"]["decision"],
        rows["torn.png"]["species"],
        rows["torn.png"]["disease"],
    ) == ("rolled_up", "apple", "")
    assert (rows["sky.png"]["decision"], rows["sky.png"]["reason"]) == (
        "rejected",
        "not_a_plant",
    )
    assert rows["sky.png"]["best_guess"]
    assert (rows["broken.jpg"]["decision"], rows["broken.jpg"]["reason"]) == (
        "error",
        "text",
    )
    assert rows["broken.jpg"]["error"]
    assert [path.name for path in output.parent.iterdir()] == ["out.csv"]
    told = capsys.readouterr()
    assert "12 answered, 1 rolled up, 1 rejected, 1 error" in told.out
    assert "labelled 13 photos of 6 classes: species right 1.0000" in told.out
    assert "no plant 1 photos: rejected 1.0000" in told.out
    assert "1 photos could not be read" in told.err
    assert "broken.jpg: a text file" in told.err
    assert (
        run("--exports", exports, "--predict", photos / "apple" / "scab", "--output", output) == 0
    )


def test_labels_from_a_csv_outvote_folders(predict, photos, tmp_path, capsys):
    table = tmp_path / "labels.csv"
    table.write_text("file,label\np20.png,apple/scab\np21.png,apple/rust\n")
    assert (
        predict(
            photos / "apple" / "scab",
            "--labels",
            table,
        )
        == 0
    )
    told = capsys.readouterr().out
    assert "species right 1.0000, species and disease both right 0.5000, rejected 0.0000" in told
    assert "given    2 answers, 0 of them of the species alone: 0.5000 right" in told


def test_flags_that_cannot_be(exports, photos, tmp_path, refused):
    start = ["--exports", exports, "--predict", photos / "apple" / "scab"]
    refused("is a folder", run, *start, "--output", tmp_path)
    refused("is a file", run, *start, "--output", photos / "apple" / "broken.jpg" / "x.csv")
    refused("--tta needs --predict", run, "--exports", exports, "--tta")
    refused("needs --submission", run, *start, "--sample-submission", tmp_path / "s.csv")
    refused(".csv or .zip", run, *start, "--submission", tmp_path / "s.txt")
    refused("named twice", run, *start, "--model", "model.onnx", "--model", exports / "model.onnx")
    refused(
        "--labels", run, *start, "--labels", tmp_path / "none.csv", "--output", tmp_path / "o.csv"
    )


# endregion

# region runs that are stopped


def test_a_run_that_breaks_off_leaves_the_old_file_and_goes_on(
    exports, photos, tmp_path, monkeypatch, capsys
):
    fresh, output = tmp_path / "fresh.csv", tmp_path / "out.csv"
    flags = ["--exports", exports, "--predict", photos, "--threads", 2, "--submission"]
    run(*flags, tmp_path / "fresh.zip", "--output", fresh)
    output.write_text("old")
    plain, count = predictions.csv_row, iter(range(100))
    monkeypatch.setattr(
        predictions, "csv_row", lambda *found: plain(*found) if next(count) < 7 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        run(*flags, tmp_path / "out.zip", "--output", output)
    assert output.read_text() == "old"
    assert not (tmp_path / "out.zip").exists()
    part = tmp_path / "out.csv.part"
    done = part.read_bytes().count(b"\n") - 1
    assert 0 < done <= 8
    part.write_bytes(part.read_bytes()[:-9])  # the last line torn by a kill
    looked = []
    real = predictions.answer
    monkeypatch.setattr(predictions, "csv_row", plain)
    monkeypatch.setattr(
        predictions, "answer", lambda *given: looked.append(given[2]) or real(*given)
    )
    capsys.readouterr()
    assert run(*flags, tmp_path / "out.zip", "--output", output) == 1
    assert f"after {done - 1} of 14" in capsys.readouterr().out
    assert len(looked) == 14 - (done - 1)
    assert output.read_bytes() == fresh.read_bytes()
    with (
        zipfile.ZipFile(tmp_path / "out.zip") as mine,
        zipfile.ZipFile(tmp_path / "fresh.zip") as its,
    ):
        assert mine.read("out.csv") == its.read("fresh.csv")
    assert sorted(path.name for path in tmp_path.glob("*out*")) == [
        "out.csv",
        "out.zip",
    ]
    assert not list(tmp_path.glob(".*"))


def test_a_part_file_of_something_else_is_not_used(
    exports, other, photos, tmp_path, monkeypatch, refused
):
    flags = ["--predict", photos / "apple", "--output", tmp_path / "out.csv"]
    monkeypatch.setattr(predictions, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("--exports", exports, *flags)
    refused(("other models", "out.csv.part"), run, "--exports", other, *flags)
    refused("other flags", run, "--exports", exports, *flags, "--tta")
    refused("other flags", run, "--exports", exports, *flags, "--mode", "routed")
    job = predictions.Job(
        tuple(photo_list.find_photos([photos / "apple"])), tmp_path / "o", np.zeros(7)
    )
    with (tmp_path / "out.csv.part").open("a+b") as file:
        predictions.Part(
            file, predictions.tie(ensembles.Ensemble([Predictor(exports)]), job), job.photos
        )
        refused("another run is writing", run, "--exports", exports, *flags)
    (photos / "apple" / "scab" / "p20.png").write_bytes(tiny.picture(tiny.color_of(0), (90, 90)))
    refused("other photos", run, "--exports", exports, *flags)


def test_killed_for_real_it_ends_in_the_same_bytes(exports, photos, tmp_path):
    for i in range(25):
        (photos / "apple" / "rust" / f"n{i}.png").write_bytes(tiny.picture(tiny.color_of(i % 6)))
    command = [
        sys.executable,
        str(ROOT / "04_serve.py"),
        "--exports",
        str(exports),
        "--predict",
        str(photos),
        "--threads",
        "1",
        "--output",
    ]
    part = tmp_path / "out.csv.part"
    slow = (
        "import time; from common.serve.batch import predictions; real = "
        "predictions.answer\n"
        "predictions.answer = lambda *given: time.sleep(0.1) or real(*given)\n"
        "import importlib, sys; importlib.import_module('04_serve').main(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command[2:], str(tmp_path / "out.csv")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while time.monotonic() < end and not (part.exists() and part.read_bytes().count(b"\n") > 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert part.read_bytes().count(b"\n") > 2
    assert not (tmp_path / "out.csv").exists()
    assert run(*command[2:], tmp_path / "out.csv") == 1
    assert run(*command[2:], tmp_path / "fresh.csv") == 1
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "fresh.csv").read_bytes()
    assert not part.exists()


# endregion

# region several models and views


def test_models_answer_together_and_the_table_says_what_each_adds(
    exports, predict, other, photos, tmp_path, capsys
):
    flags = ["--predict", photos, "--output", tmp_path / "o.csv"]
    run("--exports", exports, *flags, "--model", "model.onnx", "--model", other)
    told = capsys.readouterr().out
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in told.splitlines()
        if line.startswith("|")
    ]
    assert lines[0][:2] == ["model", "MB"]
    assert [line[0] for line in lines[2:]] == [
        "model.onnx",
        "model.int8.onnx",
        "together",
    ]
    right, wrong, both = lines[2], lines[3], lines[4]
    assert (right[4], wrong[4]) == ("1.0000", "0.6667")
    assert right[5] == wrong[4]
    assert wrong[5] == right[4]
    assert float(right[6]) == pytest.approx(100 * (float(both[4]) - 0.6667), abs=0.01)
    assert float(right[6]) > float(wrong[6])
    assert float(right[7]) == pytest.approx(float(right[6]) / float(right[2]), rel=0.2)
    flat = [
        Path(path).rename(tmp_path / Path(path).name)
        for path in sorted((photos / "corn").rglob("*.png"))
    ]
    predict(*flat, "--model", "model.onnx", "--model", "model.int8.onnx")
    assert "answers as all do" in capsys.readouterr().out


def test_the_average_is_one_of_probabilities(exports, other, photos):
    ensemble = ensembles.Ensemble([Predictor(exports, "model.onnx"), Predictor(other)])
    photo = photos / "apple" / "healthy" / "p00.png"
    alone = [ensembles.Ensemble([predictor]).run(photo) for predictor in ensemble.predictors]
    seen = ensemble.run(photo)
    assert seen.probabilities == pytest.approx(
        (alone[0].probabilities + alone[1].probabilities) / 2
    )
    assert seen.probabilities.sum() == 1
    assert (seen.ood == alone[0].ood).all(), (
        "the first model's thresholds judge the first model's scores"
    )
    systems = ensemble.systems(seen)
    assert systems.shape == (5, 6)
    assert (systems[1] == seen.each[0]).all()
    assert (systems[3] == systems[2]).all()


def test_tta_sees_the_photo_its_mirror_image_and_its_middle(exports):
    pixels = np.zeros((500, 900, 3), np.uint8)
    pixels[:, :450] = tiny.color_of(0)
    pixels[:60] = pixels[-60:] = tiny.color_of(1)  # outside of the middle, but for ten rows
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    plain, ensemble = (
        ensembles.Ensemble([Predictor(exports)]),
        ensembles.Ensemble([Predictor(exports)], tta=True),
    )
    (photo,) = read_photo(ensemble.predictors, buffer.getvalue(), tta=True)
    views = views_of(photo)
    assert (photo.width, photo.height) == (900, 500)
    assert (views[0] == views_of(*read_photo(plain.predictors, buffer.getvalue()))[0]).all()
    assert views.shape == (3, tiny.SIZE, tiny.SIZE, 3)
    assert (views[1] == views[0][:, ::-1]).all()
    assert (views[0] != views[1]).any()
    assert (views[2][4, :12] == tiny.color_of(0)).all()
    assert (views[0][1] == tiny.color_of(1)).all()
    seen = ensemble.run(buffer.getvalue())
    each = ensemble.predictors[0].run(views)
    wanted = np.exp(np.log(np.maximum(each.probabilities.astype(float), 1e-12)).mean(0))
    assert seen.probabilities == pytest.approx(wanted / wanted.sum())
    assert (seen.ood == each.ood[0]).all()


def test_models_of_other_classes_do_not_answer_together(exports, tmp_path):
    tree = ClassTree(
        ("apple", "basil", "corn"), (("healthy", "rust", "scab"), ("healthy",), ("healthy", "smut"))
    )
    wrong = tiny.make(tmp_path / "wrong", tree)
    with pytest.raises(BundleError, match="corn/blight"):
        ensembles.Ensemble([Predictor(exports), Predictor(wrong)])


# endregion

# region submissions


def test_a_submission_has_every_class_and_is_zipped(predict, photos, tmp_path, capsys):
    target = tmp_path / "deep" / "s.zip"
    assert (
        predict(
            photos,
            "--submission",
            target,
        )
        == 1
    )
    with zipfile.ZipFile(target) as archive:
        assert archive.namelist() == ["s.csv"]
        text = archive.read("s.csv").decode("utf-8")
    titles, *rows = csv.reader(io.StringIO(text))
    assert titles == ["id", *(tiny.TREE.class_name(i) for i in range(6))]
    assert [row[0] for row in rows] == [
        Path(row["file"]).name for row in rows_of(tmp_path / "o.csv")
    ]
    values = {row[0]: np.array(row[1:], float) for row in rows}
    assert all(abs(row.sum() - 1) < 1e-6 for row in values.values())
    assert values["p41.png"].argmax() == 4
    assert np.allclose(values["broken.jpg"], 1 / 6)
    assert "1 rows" in capsys.readouterr().err


def test_a_sample_decides_ids_titles_and_order(exports, photos, tmp_path, refused):
    flags = [
        "--exports",
        exports,
        "--predict",
        photos / "corn",
        photos / "basil",
        "--output",
        tmp_path / "o.csv",
        "--submission",
    ]
    names = ["p50", "p30", "p41", "p31", "p40", "p51"]
    classes = [
        "Corn healthy",
        "Apple scab",
        "apple/rust",
        "apple healthy",
        "basil healthy",
        "corn_blight",
    ]
    sample = tmp_path / "sample.csv"

    def give(ids, titles):
        sample.write_text(
            "\n".join(
                ",".join([name, *["0"] * 6]) for name in [",".join(["image_id", *titles]), *ids]
            ).replace(
                ",".join(["image_id", *titles]) + ",0,0,0,0,0,0", ",".join(["image_id", *titles])
            )
            + "\n"
        )
        return [*flags, tmp_path / "s.csv", "--sample-submission", sample]

    assert run(*give(names, classes)) == 0
    with open(tmp_path / "s.csv", newline="") as file:
        titles, *rows = csv.reader(file)
    assert titles == ["image_id", *classes]
    assert [row[0] for row in rows] == names
    assert [int(np.argmax(np.array(row[1:], float))) for row in rows] == [0, 4, 5, 4, 5, 0]
    refused("such as 'p99'", run, *give([*names, "p99"], classes))
    refused("no id for 1 of 6 photos", run, *give(names[:-1], classes))
    refused("'p50' twice", run, *give([*names[:-1], "p50"], classes))
    refused(("oak", "corn/healthy have no column"), run, *give(names, ["oak", *classes[1:]]))
    refused("5 columns for 6 classes", run, *give(names, classes[1:]))


def test_photos_of_one_name_have_no_ids(exports, photos, tmp_path, refused):
    (photos / "corn" / "p00.png").write_bytes(b"x")
    refused(
        "one id, 'p00.png'",
        run,
        "--exports",
        exports,
        "--predict",
        photos,
        "--output",
        tmp_path / "o.csv",
        "--submission",
        tmp_path / "s.csv",
    )
    assert not list(tmp_path.glob("*.csv*"))


def test_a_submission_that_breaks_off_leaves_nothing(tmp_path):
    plan = submission.plan_submission(tmp_path / "s.csv", [Path("a.png"), Path("b.png")], FLAT)
    assert plan.titles == ("id", "daisy", "rose")
    rows = [np.array([0.25, 0.75]), np.array([0.5, 0.5])]
    submission.write_submission(plan, lambda photo: rows[photo])
    written = "id,daisy,rose\na.png,0.25,0.75\nb.png,0.5,0.5\n"
    assert plan.path.read_text() == written
    with pytest.raises(IndexError):
        submission.write_submission(plan, lambda photo: rows[photo + 1])
    assert plan.path.read_text() == written
    assert list(tmp_path.iterdir()) == [plan.path]


# endregion


def test_a_round_of_the_benchmark_ends_soon_after_its_time(monkeypatch):
    clock, done = types.SimpleNamespace(perf_counter=lambda: len(done) / 10), []

    def job(item):
        time.sleep(0.005)
        done.append(item)

    monkeypatch.setattr(latency, "time", clock)
    rate, found = latency._rate(job, [1, 2], 1)
    assert 10 <= len(found) <= 10 + 4
    assert rate == pytest.approx(10)


def test_the_benchmark_times_each_step(
    exports, predict, photos, tmp_path, monkeypatch, capfd, refused
):
    monkeypatch.setattr(latency, "SECONDS", 0.02)
    assert (
        predict(
            photos,
            "--benchmark",
            "--threads",
            2,
        )
        == 0
    )
    told = capfd.readouterr().out
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in told.splitlines()
        if line.startswith("|")
    ]
    assert rows[0] == ["threads", "decode", "model", "all", "photos/s", "session.run/s", "share"]
    assert [row[0] for row in rows[2:]] == ["1", "2"]
    for row in rows[2:]:
        decode, model, together = (float(cell.split(" / ")[0]) for cell in row[1:4])
        assert 0 < decode <= together
        assert model <= together
        assert all(float(cell) > 0 for cell in row[4:])
    assert "machine" in told
    assert "photos   13, " in told
    assert not (tmp_path / "o.csv").exists()
    only = tmp_path / "bad"
    only.mkdir()
    (only / "a.jpg").write_bytes(b"no")
    refused("none of the first 1", run, "--exports", exports, "--predict", only, "--benchmark")
