"""--holdout-source of 01: nothing of a held-out source is learned from, its copies do not count."""

import csv
import hashlib
import shutil
from collections import Counter
from pathlib import Path

import pytest
import tiny_data
from conftest import run
from PIL import Image

from common.export.pictures import known_ood
from common.train.dataset import load_organized

LATE = "Tomato leaf late blight"


def organize(output: Path, *flags: object) -> int:
    return run("01_reorganize", *flags, "--output", output, "--workers", 1)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in files
        if path.suffix in (".jpg", ".tar", ".csv")
    }


def known_twin(raw: Path) -> Path:
    """The picture of `a` that `b` has, too: by its SHA-256 alone, that of `b` would be kept."""
    return max((raw / "a" / "corn healthy").glob("*.png"), key=sha256)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Sources `a`, all seven classes of eight pictures each, and `b`: three others of each class
    but late blight, a species of its own, a copy of a picture of `a` and a poorer one of
    another.
    """
    raw = tmp_path_factory.mktemp("two_sources")
    tiny_data.make_raw(raw / "a", each=8)
    for name, pair in tiny_data.CLASSES.items():
        if name != LATE:
            (raw / "b" / name).mkdir(parents=True)
            for number in range(20, 23):
                picture = Image.fromarray(tiny_data.draw(*pair, number))
                picture.save(raw / "b" / name / f"b{number}.png")
    (raw / "b" / "Potato___late_blight").mkdir()
    for number in range(50, 53):
        picture = Image.fromarray(tiny_data.draw("tomato", "late_blight", number))
        picture.save(raw / "b" / "Potato___late_blight" / f"b{number}.png")
    with Image.open(known_twin(raw)) as picture:
        for level in range(10):
            picture.save(raw / "b" / "corn healthy" / "c.png", compress_level=level)
            if sha256(raw / "b" / "corn healthy" / "c.png") < sha256(known_twin(raw)):
                break
    with Image.open(raw / "a" / "Apple___healthy" / "photo 01.png") as picture:
        picture.save(raw / "b" / "Apple___healthy" / "again.jpg", quality=60)
    return raw


@pytest.fixture(scope="module")
def out(raw, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("held_out") / "organized"
    assert organize(out, raw / "a", f"b={raw / 'b'}", "--holdout-source", "b") == 0
    return out


def test_nothing_of_a_held_out_source_is_learned_from(out):
    rows = rows_of(out / "manifest.csv")
    found = Counter((row["dataset"], row["split"]) for row in rows)
    assert found["b", "holdout_source"] == 6 * 3 + 3
    assert found["b", "holdout_copies"] == 1
    assert sum(found[name] for name in found if name[0] == "b") == 22
    assert found["a", "train"] + found["a", "val"] + found["a", "test"] == 7 * 8
    assert all((out / row["path"]).is_file() for row in rows)
    assert len(list((out / "holdout/source/apple/healthy").iterdir())) == 3
    data = load_organized(out)
    assert data.tree.species == ("apple", "corn", "tomato")
    assert sum(map(len, data.splits.values())) == 7 * 8


def test_copies_of_what_is_known_do_not_count_and_are_told(raw, out):
    rejected = {row["source"]: row for row in rows_of(out / "rejected.csv")}
    assert sha256(raw / "b/corn healthy/c.png") < sha256(known_twin(raw))
    row = rejected[str(raw / "b/corn healthy/c.png")]
    assert (row["reason"], row["detail"]) == (
        "same_pixels",
        f"of {known_twin(raw)}",
    ), "the known source keeps a picture that both have"
    assert [p.parent.name for p in (out / "holdout/copies").rglob("*.jpg")] == ["healthy"]
    report = (out / "report.md").read_text()
    assert "in a new place (`holdout/source/`): b." in report
    assert "in one group with them, do not count (`holdout/copies/`): 1." in report


def test_an_export_reports_on_all_of_it_and_fits_on_none(out):
    (kind,) = known_ood(load_organized(out))
    assert (kind.name, kind.role) == ("source b", "source")
    assert kind.files["val"] == []
    assert {path.parent.parent.name for path in kind.files["test"]} == {
        *("apple", "corn", "tomato", "potato")
    }
    assert len(kind.files["test"]) == 21


def test_shards_hold_no_held_out_source(raw, out, tmp_path):
    flags = raw / "a", f"b={raw / 'b'}", "--holdout-source", "b", "--shards", 0.05
    assert organize(tmp_path / "out", *flags) == 0
    chosen = ("species", "disease", "split", "group", "sha256", "dataset")
    assert [[row[key] for key in chosen] for row in rows_of(out / "manifest.csv")] == [
        [row[key] for key in chosen] for row in rows_of(tmp_path / "out" / "manifest.csv")
    ]
    files = [path for path in (tmp_path / "out").rglob("*.jpg") if "holdout" in path.parts]
    assert len(files) == 22
    assert (load_organized(tmp_path / "out").splits["train"].offset > 0).all()


def test_a_dry_run_says_what_is_held_out(raw, tmp_path, capfd, refused):
    sources = raw / "a", f"b={raw / 'b'}", "--dry-run", "--holdout-source"
    assert organize(tmp_path / "no", *sources, "b") == 0
    told = capfd.readouterr().out
    assert "held out: source b, 23 files; 6 of its 7 classes are in other sources, too" in told
    assert "but not potato/late_blight" in told
    refused(("no source bee", "are a, b"), organize, tmp_path / "no", *sources, "bee")
    assert not list(tmp_path.iterdir())


def test_holdouts_that_leave_nothing_to_judge_or_to_learn(raw, tmp_path, refused):
    a, b, no = raw / "a", f"b={raw / 'b'}", tmp_path / "no"
    held = "--holdout-source"
    refused("no source is left to learn", organize, no, a, b, held, "a,b")
    refused("no source is left to learn", organize, no, a, held, "a")
    name = "Potato___late_blight"
    shutil.copytree(raw / "b" / name, tmp_path / "late" / name)
    late = tmp_path / "late"
    refused("no other source has one of its classes", organize, no, a, late, held, "late")
    shutil.copytree(raw / "a" / "corn healthy", tmp_path / "again" / "corn healthy")
    for path in (tmp_path / "again").rglob("*.png"):
        with Image.open(path) as picture:
            picture.save(path.with_suffix(".bmp"))
            picture.convert("RGB").save(path.with_suffix(".jpg"), quality=60)
        path.unlink()
    again = f"again={tmp_path / 'again'}"
    refused("all pictures that can be read are dup", organize, no, a, again, held, "again")
    for path in (tmp_path / "again").rglob("*.jpg"):
        path.unlink()  # what is left has the very pixels of pictures of the other source
    refused("all pictures that can be read are dup", organize, no, a, again, held, "again")
    assert not no.exists()


def test_classes_too_small_without_the_held_out_source(raw, tmp_path, refused):
    shutil.copytree(raw / "a", tmp_path / "a")
    for path in sorted((tmp_path / "a" / "corn healthy").iterdir())[2:]:
        path.unlink()
    sources = tmp_path / "a", f"b={raw / 'b'}"
    assert organize(tmp_path / "both", *sources) == 0, "with source b there are enough"
    held = (*sources, "--holdout-source", "b")
    refused("corn/healthy (2)", organize, tmp_path / "no", *held)
    assert organize(tmp_path / "dropped", *held, "--small-classes", "drop") == 0
    rows = rows_of(tmp_path / "dropped" / "manifest.csv")
    assert ("corn", "healthy") not in {(row["species"], row["disease"]) for row in rows}


def test_other_holdouts_choose_among_what_is_left(raw, tmp_path):
    flags = raw / "a", f"b={raw / 'b'}", "--holdout-source", "b", "--holdout-species"
    assert organize(tmp_path / "out", *flags, 2) == 0
    rows = rows_of(tmp_path / "out" / "manifest.csv")
    held = {row["species"] for row in rows if row["split"] == "holdout_species"}
    assert len(held) == 2
    assert "potato" not in held, "source b alone has it"
    splits = {row["split"] for row in rows if row["dataset"] == "b"}
    assert splits == {"holdout_source", "holdout_copies"}


def test_a_column_names_the_sources(tmp_path, refused):
    raw = tiny_data.make_raw(tmp_path / "raw", each=6)
    lines = ["file,label,place"]
    for name in tiny_data.CLASSES:
        for number, path in enumerate(sorted((raw / name).iterdir())):
            place = ("north", "south", "unknown")[number // 2]
            lines.append(f"{name}/{path.name},{name},{place}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    flags = raw, "--labels", tmp_path / "labels.csv", "--columns", "source=place"
    assert organize(tmp_path / "out", *flags, "--holdout-source", "south") == 0
    found = Counter((r["dataset"], r["split"]) for r in rows_of(tmp_path / "out" / "manifest.csv"))
    assert found["south", "holdout_source"] == 14
    assert sum(n for (name, _), n in found.items() if name == "north") == 14
    assert sum(n for (name, _), n in found.items() if name == "raw") == 14, "the source's own name"
    assert {split for name, split in found if name != "south"} == {"train", "val", "test"}
    sentence = "no source east. The sources are raw, north, south."
    refused(sentence, organize, tmp_path / "no", *flags, "--holdout-source", "east")
    refused("has no column 'plaec'", organize, tmp_path / "no", *flags[:-1], "source=plaec")


def test_a_stopped_run_goes_on_a_repeated_one_rests_and_undo_leaves_nothing(
    raw, out, tmp_path, monkeypatch, refused, capfd
):
    flags = raw / "a", f"b={raw / 'b'}", "--holdout-source", "b"
    made = tmp_path / "organized"
    with monkeypatch.context() as patch:

        def stop(*_: object) -> None:
            raise OSError("stopped")

        patch.setattr("common.organize.placing.write_index", stop)
        with pytest.raises((OSError, SystemExit)):
            organize(made, *flags)
    assert not made.exists()
    assert organize(made, *flags) == 0
    assert digest(made) == digest(out)
    capfd.readouterr()
    assert organize(made, *flags) == 0
    assert "up to date" in capfd.readouterr().out
    refused("other files or settings", organize, made, *flags[:2])
    assert organize(made, "--undo") == 0
    assert not list(tmp_path.iterdir())
