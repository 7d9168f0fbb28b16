"""01_reorganize: every file accounted for, sources untouched, killed and repeated runs, and
mistakes told in time.
"""

import csv
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import tiny_data
from conftest import ROOT, run
from PIL import Image

from common.demo.pictures import make_demo


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def organize(output: Path, *flags: object) -> int:
    return run("01_reorganize", *flags, "--output", output, "--workers", 1)


# region the demo's planted defects


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small demo, organized: (demo folder, planted, data/organized)."""
    folder = tmp_path_factory.mktemp("demo")
    made = make_demo(folder / "demo", seed=1, workers=1, scale=0.04)
    before = digest(folder / "demo")
    assert (
        organize(
            folder / "organized",
            made["plants"],
            "--not-plants",
            made["not_plants"],
            "--small-classes",
            "train",
        )
        == 0
    )
    assert digest(folder / "demo") == before, "sources are never changed"
    return folder / "demo", made["planted"], folder / "organized"


def test_every_file_is_kept_or_has_a_reason(demo):
    source, _, out = demo
    kept, rejected = rows_of(out / "manifest.csv"), rows_of(out / "rejected.csv")
    not_plants = list((out / "not_plants").rglob("*.jpg"))
    files = [str(p) for p in (source / "plants").rglob("*") if p.is_file()]
    seen = [r["source"] for r in kept] + [
        r["source"] for r in rejected if r["name"] != "not_plants"
    ]
    assert sorted(seen) == sorted(files), "once each"
    assert len(not_plants) + sum(r["name"] == "not_plants" for r in rejected) == len(
        list((source / "not_plants").iterdir())
    )
    for row in kept:
        path = out / row["path"]
        assert (
            row["path"]
            == f"{row['split']}/{row['species']}/{row['disease']}/{row['sha256'][:16]}.jpg"
        )
        with Image.open(path) as image:
            assert image.size == (int(row["width"]), int(row["height"]))
            assert max(image.size) <= 512
            assert image.mode == "RGB"
        assert hashlib.sha256(Path(row["source"]).read_bytes()).hexdigest() == row["sha256"]
    assert {
        str(p.relative_to(out)) for s in ("train", "val", "test") for p in (out / s).rglob("*.jpg")
    } == {r["path"] for r in kept}


def test_planted_defects_are_found(demo):
    source, planted, out = demo
    reasons = {r["source"]: r["reason"] for r in rows_of(out / "rejected.csv")}
    kept = {r["source"]: r for r in rows_of(out / "manifest.csv")}
    for kind, reason in (
        ("truncated", {"truncated"}),
        ("zero_bytes", {"empty"}),
        ("text_pointers", {"text"}),
        ("html_pages", {"text"}),
        ("thumbnails", {"too_small"}),
    ):
        for name in planted[kind]:
            assert reasons[str(source / name)] in reason, name
    for pair in planted["duplicates"]:
        told = sorted(reasons.get(str(source / name), "kept") for name in pair)
        assert told in (["duplicate", "kept"], ["duplicate", "truncated"]), pair
    for pair in planted["label_conflicts"]:
        assert [reasons[str(source / name)] for name in pair] == ["label_conflict"] * 2
    for pair in planted["near_duplicates"]:
        both = [kept[str(source / name)] for name in pair if str(source / name) in kept]
        if len(both) == 2:
            assert both[0]["group"] == both[1]["group"], pair
            assert both[0]["split"] == both[1]["split"], pair


def test_groups_keep_to_one_split_and_the_index_counts_them(demo):
    _, _, out = demo
    kept = rows_of(out / "manifest.csv")
    splits = {}
    for row in kept:
        assert splits.setdefault(row["group"], row["split"]) == row["split"]
    index = json.loads((out / "species_index.json").read_text())
    counts = Counter((r["species"], r["disease"], r["split"]) for r in kept)
    for row in index["species"]:
        assert row["diseases"] == sorted(row["diseases"])
        for disease in row["diseases"]:
            assert row["counts"][disease] == {
                s: counts[row["name"], disease, s] for s in ("train", "val", "test")
            }
    assert [r["name"] for r in index["species"]] == sorted(r["name"] for r in index["species"])
    assert len(index["species"]) == 8


# endregion

# region the tiny set


def test_names_are_read(organized):
    kept = rows_of(organized / "manifest.csv")
    assert {(Path(r["source"]).parent.name, r["species"], r["disease"]) for r in kept} == {
        (name, *class_idx) for name, class_idx in tiny_data.CLASSES.items()
    }
    assert len(kept) == 70
    assert len(list((organized / "not_plants").rglob("*.jpg"))) == 8
    assert "70 pictures in 7 classes of 3 species" in (organized / "report.md").read_text()
    assert sorted(p.name for p in organized.parent.iterdir()) == ["organized"], (
        "no store, no half-made folder"
    )


def test_run_again_it_is_up_to_date(organized, capsys):
    before = {p: p.stat().st_mtime_ns for p in organized.rglob("*")}
    source = organized.parents[1]
    (
        organized.parent / "organized.store"
    ).mkdir()  # of a run that was killed between its last two steps
    assert organize(organized, source / "raw", "--not-plants", source / "things") == 0
    assert "up to date" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in organized.rglob("*")}
    assert not (organized.parent / "organized.store").exists()


def test_other_settings_are_refused_and_fresh_makes_it_anew(tmp_path, refused):
    out = tiny_data.organize(tmp_path)
    before = digest(out)
    refused("--fresh", organize, out, tmp_path / "raw", "--long-side", 64)
    assert digest(out) == before
    assert organize(out, tmp_path / "raw", "--val", 0.3, "--fresh") == 0
    assert Counter(r["split"] for r in rows_of(out / "manifest.csv"))["val"] == 21
    assert not (out / "not_plants").exists()


def test_dry_run_writes_nothing(tmp_path, capsys):
    raw = tiny_data.make_raw(tmp_path / "raw", each=3)
    before = digest(tmp_path)
    assert organize(tmp_path / "data" / "organized", raw, "--dry-run") == 0
    assert digest(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]
    assert "late_blight 3" in capsys.readouterr().out


def test_nested_folders_and_several_sources_are_one_set(tmp_path):
    for name, (species, disease) in tiny_data.CLASSES.items():
        one, two = (
            tmp_path / "one" / species / disease.replace("_", " "),
            tmp_path / "two" / "train" / name,
        )
        for folder, numbers in ((one, range(3)), (two, range(3, 6))):
            folder.mkdir(parents=True)
            for number in numbers:
                Image.fromarray(tiny_data.draw(species, disease, number)).save(
                    folder / f"{number}.png"
                )
    assert organize(tmp_path / "out", tmp_path / "one", tmp_path / "two") == 0
    counts = Counter(
        (r["species"], r["disease"]) for r in rows_of(tmp_path / "out" / "manifest.csv")
    )
    assert counts == {class_idx: 6 for class_idx in tiny_data.CLASSES.values()}
    merged = [
        r for r in rows_of(tmp_path / "out" / "review.csv") if r["decision"] == "put together"
    ]
    assert len(merged) == 14
    assert Counter(r["dataset"] for r in rows_of(tmp_path / "out" / "manifest.csv")) == {
        "one": 21,
        "two": 21,
    }


def test_flat_classes_and_answers_for_names(tmp_path):
    raw = tiny_data.make_raw(tmp_path / "raw", each=4)
    assert organize(tmp_path / "flat", raw, "--levels", 1) == 0
    assert all(r["species"] == r["disease"] for r in rows_of(tmp_path / "flat" / "manifest.csv"))
    answers = tmp_path / "names.csv"
    answers.write_text(
        "name,species,disease\nApple Scab Leaf,Pear,Fire Blight\n", encoding="utf-8-sig"
    )
    assert organize(tmp_path / "named", raw, "--names", answers) == 0
    assert ("pear", "fire_blight") in {
        (r["species"], r["disease"]) for r in rows_of(tmp_path / "named" / "manifest.csv")
    }


def test_small_classes_as_asked(tmp_path, refused):
    raw = tiny_data.make_raw(tmp_path / "raw", each=3)
    for path in sorted((raw / "corn healthy").iterdir())[1:]:
        path.unlink()
    refused(("corn/healthy (1)", "--small-classes"), organize, tmp_path / "out", raw)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()
    assert organize(tmp_path / "kept", raw, "--small-classes", "train") == 0
    kept = rows_of(tmp_path / "kept" / "manifest.csv")
    assert [r["split"] for r in kept if (r["species"], r["disease"]) == ("corn", "healthy")] == [
        "train"
    ]
    assert organize(tmp_path / "dropped", raw, "--small-classes", "drop") == 0
    assert [r["reason"] for r in rows_of(tmp_path / "dropped" / "rejected.csv")] == ["small_class"]


def test_another_long_side_reads_the_files_again(tmp_path, refused):
    """A run that stopped over a small class leaves its checked pictures; they are of no use at
    another size.
    """
    raw = tiny_data.make_raw(tmp_path / "raw", each=3)
    shutil.rmtree(raw / "corn healthy")
    (raw / "corn healthy").mkdir()
    Image.fromarray(tiny_data.draw("corn", "healthy", 0, 200)).save(raw / "corn healthy" / "a.png")
    refused("--small-classes", organize, tmp_path / "out", raw, "--long-side", 512)
    assert organize(tmp_path / "out", raw, "--long-side", 100, "--small-classes", "train") == 0
    assert max(int(r["width"]) for r in rows_of(tmp_path / "out" / "manifest.csv")) <= 100


def test_file_names_that_are_no_utf8(tmp_path):
    """Old archives unpack to Latin-1 names."""
    from common.train.dataset import load_organized

    raw = tiny_data.make_raw(tmp_path / "raw", each=4)
    odd = os.fsencode(raw / "corn healthy") + b"/caf\xe9.png"
    try:
        shutil.copy(os.fsencode(next((raw / "corn healthy").glob("*.png"))), odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    Image.fromarray(tiny_data.draw("corn", "healthy", 99)).save(raw / "corn healthy" / "z.png")
    os.rename(raw / "corn healthy" / "z.png", odd)
    assert organize(tmp_path / "out", raw) == 0
    assert sum(len(s) for s in load_organized(tmp_path / "out").splits.values()) == 29


def test_folders_of_strangers_are_kinds_and_each_is_halved(tmp_path):
    from common.export.pictures import known_ood
    from common.train.dataset import load_organized

    raw = tiny_data.make_raw(tmp_path / "raw", each=3)
    for kind, first in (("Old toys", 0), ("cups/blue", 8), ("cups/red", 16)):
        made = tiny_data.make_strangers(tmp_path / "made" / kind, first + 8)
        (tmp_path / "things" / kind).mkdir(parents=True)
        for number in range(first, first + 8):
            shutil.copy(made / f"thing_{number}.png", tmp_path / "things" / kind)
    shutil.copy(
        tiny_data.make_strangers(tmp_path / "one", 25) / "thing_24.png", tmp_path / "things"
    )
    assert organize(tmp_path / "out", raw, "--not-plants", tmp_path / "things", "--near", -1) == 0
    placed = tmp_path / "out" / "not_plants"
    found = Counter(path.relative_to(placed).parent.as_posix() for path in placed.rglob("*.jpg"))
    assert {
        kind: found[f"val/{kind}"] + found[f"test/{kind}"] for kind in ("old_toys", "cups")
    } == {"old_toys": 8, "cups": 16}
    assert sum(found.values()) == 25
    assert (
        min(found[f"{split}/{kind}"] for split in ("val", "test") for kind in ("old_toys", "cups"))
        >= 3
    )
    kinds = {
        s.name: {split: len(files) for split, files in s.files.items()}
        for s in known_ood(load_organized(tmp_path / "out"))
    }
    assert kinds == {
        name: {
            split: found[folder] for split, folder in (("val", f"val{end}"), ("test", f"test{end}"))
        }
        for name, end in (("not_plants", ""), ("cups", "/cups"), ("old_toys", "/old_toys"))
    }
    with pytest.raises(SystemExit):
        known_ood(load_organized(tmp_path / "out"), [f"cups={tmp_path / 'one'}"])


# endregion

# region killed


def command(output: Path, raw: Path, workers: int = 1) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "01_reorganize.py"),
        str(raw),
        "--output",
        str(output),
        "--workers",
        str(workers),
    ]


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except (OSError, IndexError):
            continue
    return found


def test_killed_and_started_again_it_ends_the_same(tmp_path):
    raw = tiny_data.make_raw(tmp_path / "raw", each=40)
    assert organize(tmp_path / "whole", raw) == 0
    process = subprocess.Popen(
        command(tmp_path / "out", raw), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    store, workers = tmp_path / "out.store", []
    limit = time.monotonic() + 30
    while (
        time.monotonic() < limit and len(list(store.glob("*/*.jpg")) if store.is_dir() else []) < 40
    ):
        time.sleep(0.002)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.is_dir(), "killed half way"
    assert not (tmp_path / "out").exists(), "killed half way"
    time.sleep(1.0)
    alive = [
        pid
        for pid in workers
        if Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()
    ]
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    with (store / "journal.bin").open("ab") as journal:
        journal.write(b"cut short")
    assert organize(tmp_path / "out", raw) == 0
    assert digest(tmp_path / "out") == digest(tmp_path / "whole"), "byte for byte"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw", "whole"]
    if sys.platform == "linux":
        assert not alive, f"worker processes {alive} outlived the run that was killed"


@pytest.mark.parametrize(
    ("flags", "work", "after"), [([], "link", 40), (["--shards", 0.03], "_write_shard", 2)]
)
def test_a_disk_that_fills_while_pictures_are_placed(
    tmp_path, monkeypatch, refused, flags, work, after
):
    from common.organize import placing, shards

    raw = tiny_data.make_raw(tmp_path / "raw")
    assert organize(tmp_path / "whole", raw, *flags) == 0
    module, done = (placing if work == "link" else shards), []
    honest = getattr(module, work)

    def filling(*args, **kwargs):
        if len(done) == after:
            raise OSError(errno.ENOSPC, "No space left on device", "somewhere")
        done.append(args)
        return honest(*args, **kwargs)

    monkeypatch.setattr(module, work, filling)
    refused("the disk is full", organize, tmp_path / "out", raw, *flags)
    assert not (tmp_path / "out").exists()
    assert len(done) == after
    monkeypatch.setattr(module, work, honest)
    assert organize(tmp_path / "out", raw, *flags) == 0
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw", "whole"]


# endregion

# region inputs of other kinds


def test_labels_from_a_csv_with_groups(tmp_path):
    """A camera trap: loose files, a table, and stations that must not be on both sides."""
    rows = ["file,station,animal"]
    (tmp_path / "set").mkdir()
    for n, (species, disease) in enumerate(sorted(set(tiny_data.CLASSES.values()))[:2]):
        for k in range(30):
            Image.fromarray(tiny_data.draw(species, disease, k)).save(
                tmp_path / "set" / f"{n}_{k}.png"
            )
            rows.append(f"{n}_{k}.png,S{k % 10},{['forest hog', 'leopard'][n]}")
    rows += ["gone.png,S1,leopard"]
    Image.fromarray(tiny_data.draw("corn", "healthy", 99)).save(tmp_path / "set" / "loose.png")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    flags = [
        "--labels",
        tmp_path / "labels.csv",
        "--columns",
        "label=animal",
        "group=station",
        "--levels",
        1,
        "--near",
        -1,
    ]
    assert organize(tmp_path / "out", tmp_path / "set", *flags) == 0
    kept, rejected = (
        rows_of(tmp_path / "out" / "manifest.csv"),
        rows_of(tmp_path / "out" / "rejected.csv"),
    )
    assert Counter(r["species"] for r in kept) == {"forest_hog": 30, "leopard": 30}
    split_of = {}
    for row in kept:
        station = int(Path(row["source"]).stem.split("_")[1]) % 10
        assert split_of.setdefault(station, row["split"]) == row["split"]
    assert set(split_of.values()) == {"train", "val", "test"}
    assert {(Path(r["source"]).name, r["reason"]) for r in rejected} == {
        ("gone.png", "missing"),
        ("loose.png", "no_class"),
    }


def test_a_given_split_is_kept_or_made_anew_and_checked_either_way(tmp_path, capsys):
    for folder, numbers in (
        ("train", range(20)),
        ("valid", range(20, 25)),
        ("test", range(24, 30)),
    ):
        for name, class_idx in list(tiny_data.CLASSES.items())[:3]:
            (tmp_path / "raw" / folder / name).mkdir(parents=True)
            for k in numbers:  # picture 24 stands in valid and in test
                Image.fromarray(tiny_data.draw(*class_idx, k)).save(
                    tmp_path / "raw" / folder / name / f"{k}.png"
                )
        copy = Image.fromarray(tiny_data.draw("apple", "healthy", 3))
        copy.save(
            tmp_path / "raw" / folder / "Apple___healthy" / f"again in {folder}.jpg", quality=40
        )  # a near-duplicate everywhere
    given = {"train": "train", "valid": "val", "test": "test"}
    assert organize(tmp_path / "kept", tmp_path / "raw", "--keep-split") == 0
    assert "the source has a split of its own: 61 train, 16 val, 19 test" in capsys.readouterr().out
    kept = rows_of(tmp_path / "kept" / "manifest.csv")
    assert all(r["split"] == given[Path(r["source"]).parts[-3]] for r in kept)
    assert Counter(r["split"] for r in kept) == {"train": 60, "val": 12, "test": 19}, (
        "of exact copies the one held out most stays"
    )
    report = (tmp_path / "kept" / "report.md").read_text()
    assert "kept as the source gives it, with what leaks" in report
    assert "5 exact copies stood in two parts" in report
    assert organize(tmp_path / "ours", tmp_path / "raw") == 0
    report = (tmp_path / "ours" / "report.md").read_text()
    assert "Groups never straddle a split" in report
    assert "in the split that the source gives" in report
    ours = rows_of(tmp_path / "ours" / "manifest.csv")
    assert (
        len(
            {
                r["split"]
                for r in ours
                if "again in" in r["source"]
                or (
                    r["source"].endswith("/3.png")
                    and r["disease"] == "healthy"
                    and r["species"] == "apple"
                )
            }
        )
        == 1
    )


def test_whole_species_and_diseases_are_held_out(tmp_path, refused):
    from common.train.dataset import load_organized

    raw = tiny_data.make_raw(tmp_path / "raw", each=6)
    flags = ["--holdout-species", "apple", "--holdout-diseases", "early_blight"]
    assert organize(tmp_path / "out", raw, *flags) == 0
    kept = rows_of(tmp_path / "out" / "manifest.csv")
    held = {
        (r["split"], r["species"], r["disease"]) for r in kept if r["split"].startswith("holdout")
    }
    assert held == {
        ("holdout_species", "apple", "healthy"),
        ("holdout_species", "apple", "scab"),
        ("holdout_diseases", "tomato", "early_blight"),
    }
    assert all((tmp_path / "out" / r["path"]).is_file() for r in kept)
    assert (tmp_path / "out" / "holdout/species/apple/scab").is_dir()
    data = load_organized(tmp_path / "out")
    assert data.tree.species == ("corn", "tomato")
    assert data.tree.diseases[1] == (
        "healthy",
        "late_blight",
    )
    assert sum(len(split) for split in data.splits.values()) == 24
    assert organize(tmp_path / "chosen", raw, "--holdout-species", 1) == 0
    assert (
        len(
            {
                r["species"]
                for r in rows_of(tmp_path / "chosen" / "manifest.csv")
                if r["split"] == "holdout_species"
            }
        )
        == 1
    )
    refused(("no class pear", "apple"), organize, tmp_path / "no", raw, "--holdout-species", "pear")
    refused("fewer than two classes", organize, tmp_path / "no", raw, "--holdout-species", 3)
    assert not list(tmp_path.glob("no*"))


# endregion

# region outputs of other kinds


def test_shards_hold_what_files_hold(tmp_path):
    from common.train.dataset import load_organized

    raw = tiny_data.make_raw(tmp_path / "raw", each=12)
    assert organize(tmp_path / "files", raw) == 0
    assert organize(tmp_path / "shards", raw, "--shards", 0.05) == 0
    assert len(list((tmp_path / "shards" / "train").glob("shard-*.tar"))) > 1
    assert not list((tmp_path / "shards").rglob("*.jpg"))
    files, shards = load_organized(tmp_path / "files"), load_organized(tmp_path / "shards")
    for name in ("train", "val", "test"):
        one, two = files.splits[name], shards.splits[name]
        assert [one.read(i) for i in range(len(one))] == [two.read(i) for i in range(len(two))]
        assert (one.class_idx == two.class_idx).all()


def test_pictures_that_need_no_change_are_links_unless_copies_are_asked_for(tmp_path):
    raw = tiny_data.make_raw(tmp_path / "raw", each=4)
    for flags, linked in (([], True), (["--copy"], False)):
        out = tmp_path / f"out{len(flags)}"
        assert organize(out, raw, *flags) == 0
        jpegs = [r for r in rows_of(out / "manifest.csv") if r["source"].endswith(".JPG")]
        assert jpegs
        assert all(os.path.samefile(r["source"], out / r["path"]) == linked for r in jpegs)
    first, second = ((tmp_path / f"out{k}" / "manifest.csv").read_bytes() for k in (0, 1))
    assert first == second


def test_the_report_shows_every_class(tmp_path):
    raw = tiny_data.make_raw(tmp_path / "raw", each=4)
    assert organize(tmp_path / "out", raw, "--report") == 0
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert len(list((tmp_path / "out" / "report").glob("*__*.jpg"))) == 7
    assert "early_blight" in page.lower().replace(" ", "_")


def test_undo_takes_back_what_was_made_and_nothing_else(tmp_path, refused, capfd):
    raw = tiny_data.make_raw(tmp_path / "raw", each=4)
    before = digest(raw)
    assert organize(tmp_path / "out", raw, "--report") == 0
    assert organize(tmp_path / "out", "--undo") == 0
    assert not (tmp_path / "out").exists()
    assert organize(tmp_path / "out", raw, "--shards") == 0
    (tmp_path / "out" / "train" / "notes.txt").write_text("mine")
    refused("notes.txt", organize, tmp_path / "out", raw, "--fresh")
    assert organize(tmp_path / "out", "--undo") == 0
    assert "notes.txt" in capfd.readouterr().out
    assert digest(tmp_path / "out").keys() == {"train/notes.txt"}
    assert digest(raw) == before
    refused("not made by this script", organize, raw, "--undo")
    assert digest(raw) == before


def test_copies_by_name_stay_together_unless_told_otherwise(tmp_path):
    raw = tiny_data.make_raw(tmp_path / "raw", each=4)
    for k in range(4):  # other pictures, whose names say that they were made from photo 00
        Image.fromarray(tiny_data.draw("corn", "healthy", 50 + k)).save(
            raw / "corn healthy" / f"photo 00_{90 * k + 90}deg.png"
        )
    groups = []
    for name, flags in (("out", []), ("alone", ["--group-by"])):
        assert organize(tmp_path / name, raw, "--near", -1, *flags) == 0
        groups.append(
            {
                r["group"]
                for r in rows_of(tmp_path / name / "manifest.csv")
                if "corn healthy/photo 00" in r["source"]
            }
        )
    assert len(groups[0]) == 1
    assert len(groups[1]) == 5


# endregion

# region mistakes


def test_bad_input_is_told_and_nothing_is_left(tmp_path, refused):
    out = tmp_path / "new" / "organized"
    (tmp_path / "empty").mkdir()
    one = tmp_path / "one"
    shutil.copytree(
        tiny_data.make_raw(tmp_path / "raw", each=3) / "corn healthy", one / "corn healthy"
    )
    broken = tmp_path / "broken"
    for name in ("corn healthy", "Apple___healthy"):
        (broken / name).mkdir(parents=True)
        for k in range(4):
            (broken / name / f"{k}.jpg").write_bytes(
                b"version https://git-lfs.github.com/spec/v1\n"
            )
    loose = tmp_path / "loose"
    loose.mkdir()
    Image.fromarray(tiny_data.draw("corn", "healthy", 1)).save(loose / "a.png")
    file = loose / "a.png"
    for words, source in (
        (("there is no folder", "nowhere"), tmp_path / "nowhere"),
        ("no files", tmp_path / "empty"),
        ("only one class", one),
        (("not one usable picture", "text"), broken),
        ("no class folder", loose),
        ("is a file", file),
    ):
        refused(words, organize, out, source)
        left = [
            p
            for p in (tmp_path / "new").rglob("*")
            if p.name != "organized.store" and "organized.store" not in p.parts
        ]
        assert not left, (source, left)
    for words, flags in (
        ("--demo", []),
        ("--val", [one, "--val", 0.5, "--test", 0.4]),
        ("--long-side", [one, "--long-side", 10]),
        ("--near", [one, "--near", 20]),
        ("no file", [one, "--names", tmp_path / "none.csv"]),
        ("each other", [tmp_path, "--dry-run"]),
    ):
        refused(words, organize, out, *flags)


def test_nothing_usable_leaves_no_store_behind(tmp_path, refused):
    for name in ("corn healthy", "Apple___healthy"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        for letter in "abc":
            (tmp_path / "broken" / name / f"{letter}.jpg").write_bytes(b"")
    refused("not one usable picture", organize, tmp_path / "new" / "organized", tmp_path / "broken")
    assert not (tmp_path / "new" / "organized.store").exists()


def test_no_workers_is_a_mistake_not_a_crash(tmp_path, refused):
    raw = tiny_data.make_raw(tmp_path / "raw", each=3)
    refused("--workers", run, "01_reorganize", raw, "--output", tmp_path / "out", "--workers", 0)


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_a_folder_that_is_not_ours_is_never_deleted(tmp_path, refused, fresh):
    raw = tiny_data.make_raw(tmp_path / "raw", each=3)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    refused("not made by", organize, precious, raw, *fresh)
    assert (precious / "thesis.txt").read_text() == "years of work"


# endregion
