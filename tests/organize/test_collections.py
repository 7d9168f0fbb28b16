"""Whole collections as people have them, through 01_reorganize: what a dry run says of each folder,
answers, and versions of one leaf.
"""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import run
from PIL import Image


def leaf(path: Path, seed: int, change: str = "") -> None:
    """A drawn picture of 96 px, of its own for each seed; change: "gray" or "cut"."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
    if change == "gray":
        image = image.convert("L")
    if change == "cut":
        pixels = np.asarray(image).copy()
        pixels[pixels.sum(axis=2) < 380] = 0
        image = Image.fromarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def plain(root: Path, *folders: str, n: int = 3) -> Path:
    for k, folder in enumerate(folders):
        for i in range(n):
            leaf(root / folder / f"{i}.jpg", 100 * k + i)
    return root


def organize(output: Path, *flags: object) -> int:
    return run("01_reorganize", *flags, "--output", output, "--workers", 1)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read(tmp_path: Path, *flags: object) -> dict[str, dict]:
    """{folder: row} of a dry run's JSON."""
    out = tmp_path / "dry.json"
    assert organize(tmp_path / "out", *flags, "--dry-run", "--json", out) == 0
    assert not (tmp_path / "out").exists()
    found = json.loads(out.read_text(encoding="utf-8"))["folders"]
    return {row.get("folder") or row["path"]: row for row in found}


# region the dry run


def test_a_dry_run_says_how_each_folder_is_read(tmp_path):
    source = plain(tmp_path / "mango_leaf_disease", "Train/Anthracnose", "Test/Healthy", "icons/x")
    leaf(source / "1.jpg", 1)
    found = read(tmp_path, source)
    assert found["Train/Anthracnose"] == {
        "source": "mango_leaf_disease",
        "folder": "Train/Anthracnose",
        "files": 3,
        "species": "mango",
        "disease": "anthracnose",
        "split": "train",
        "asked": True,
        "decision": found["Train/Anthracnose"]["decision"],
    }
    assert "title" in found["Train/Anthracnose"]["decision"]
    assert found["Test/Healthy"]["split"] == "test"
    assert found["."]["species"] is None
    assert set(found) == {"Train/Anthracnose", "Test/Healthy", "icons/x", "."}


def test_json_on_stdout_is_nothing_but_json(tmp_path, capfd):
    source = plain(tmp_path / "photos", "Tomato___rust", "Tomato___healthy")
    assert organize(tmp_path / "out", source, "--dry-run", "--json", "-") == 0
    found = json.loads(capfd.readouterr().out)["folders"]
    assert [row["disease"] for row in found] == ["healthy", "rust"]


def test_one_question_a_source(tmp_path, capfd):
    source = plain(tmp_path / "mango_pictures", "Anthracnose", "Healthy", "Powdery mildew")
    review = tmp_path / "review.csv"
    assert organize(tmp_path / "out", source, "--dry-run", "--review", review) == 0
    (row,) = rows_of(review)
    assert (row["source"], row["name"], row["species"]) == ("mango_pictures", "*", "mango")
    assert row["decision"] == "crop from the title"
    assert "mango from the title, for names that say no plant? 3" in capfd.readouterr().out
    again = tmp_path / "again.csv"
    assert (
        organize(tmp_path / "out", source, "--names", review, "--dry-run", "--review", again) == 0
    )
    assert rows_of(again) == []
    review.write_text(review.read_text().replace(",mango,", ",lemon,"))
    assert read(tmp_path, source, "--names", review)["Healthy"]["species"] == "lemon"


def test_each_folder_is_asked_about_where_they_differ(tmp_path):
    folders = ("a/mango_rust", "a/healthy", "b/tomato_rust", "b/healthy", "c/x/healthy", "healthy")
    places = {"a": "north", "b": "south", "c": "east"}
    named = [f"{places.get(f[0], '')}{f[1:]}" if f[1] == "/" else f for f in folders]
    source = plain(tmp_path / "pictures", *named)
    review = tmp_path / "review.csv"
    assert organize(tmp_path / "out", source, "--dry-run", "--review", review) == 0
    rows = {row["name"]: row for row in rows_of(review)}
    assert rows["north/*"]["species"] == "mango"
    assert rows["south/*"]["species"] == "tomato"
    assert rows["healthy"]["decision"] == rows["east/x/healthy"]["decision"] == "left out"
    before = read(tmp_path, source)
    after = read(tmp_path, source, "--names", review)
    assert {k: r["species"] for k, r in after.items()} == {
        k: r["species"] for k, r in before.items()
    }
    assert not after["north/healthy"]["asked"]
    given = tmp_path / "given.csv"
    given.write_text("name,species,disease\neast/*,fig,\n./*,plum,\n")
    found = read(tmp_path, source, "--names", given)
    assert found["east/x/healthy"]["species"] == "fig"
    assert found["healthy"]["species"] == "plum"
    assert found["north/healthy"]["species"] == "mango"


def test_a_run_without_a_class_writes_what_to_answer(tmp_path, refused):
    source = plain(tmp_path / "pictures", "Anthracnose", "Healthy")
    refused("no class can be read", organize, tmp_path / "out", source)
    assert [row["name"] for row in rows_of(tmp_path / "review.csv")] == ["Anthracnose", "Healthy"]
    assert not (tmp_path / "out").exists()
    assert read(tmp_path, source, "--species", "mango")["Healthy"]["species"] == "mango"
    assert read(tmp_path, f"mango={source}")["Healthy"]["asked"] is False


def test_names_of_one_source_say_nothing_of_another(tmp_path):
    tomato = plain(tmp_path / "pv", "Tomato_Early_blight", "Tomato_Late_blight", "Tomato_healthy")
    other = plain(tmp_path / "pictures", "Anthracnose", "Healthy")
    found = read(tmp_path, tomato, f"corn={other}")
    assert found["Healthy"]["species"] == "corn"
    found = read(tmp_path, tomato, other)
    assert found["Healthy"]["species"] is None


# endregion

# region answers


def test_answers_by_source_and_path(tmp_path, refused):
    source = plain(tmp_path / "a", "Mango/Healthy", "Lemon/Healthy", "Mango/spots", "Lemon/odd")
    other = plain(tmp_path / "b", "Fig/odd", "Fig/Healthy")
    given = tmp_path / "given.csv"
    given.write_text("name,species,disease\nMango/Healthy,mango,fine\nspots,mango,black spot\n")
    found = read(tmp_path, source, other, "--names", given)
    assert found["Mango/Healthy"]["disease"] == "fine"
    assert found["Lemon/Healthy"]["disease"] == "healthy"
    assert found["Mango/spots"]["disease"] == "black spot"
    given.write_text("name,species,disease\nHealthy,mango,fine\n")
    refused("line 2: 'Healthy' stands for several names", read, tmp_path, source, "--names", given)
    given.write_text("name,species,disease\nodd,fig,rust\n")
    refused("stands for several", read, tmp_path, source, other, "--names", given)
    given.write_text("source,name,species,disease\nb,odd,fig,rust\n")
    found = read(tmp_path, source, other, "--names", given)
    assert found["Fig/odd"]["disease"] == "rust"
    given.write_text("source,name,species,disease\nc,odd,fig,rust\n")
    refused("there is no source 'c'", read, tmp_path, source, "--names", given)


def test_non_plants_among_the_classes_are_offered(tmp_path, capfd):
    names = ("Background_without_leaves", "Tomato___rust", "Tomato___healthy")
    names = [f"Plant_leave_diseases_dataset_with_augmentation/{name}" for name in names]
    found = read(tmp_path, plain(tmp_path / "photos", *names))
    assert found[names[0]]["species"] is None
    told = capfd.readouterr().err
    assert "no plants by their names, left out: Background_without_leaves" in told
    assert "--not-plants" in told


def test_slugs_of_other_scripts_can_be_read(tmp_path):
    source = plain(tmp_path / "x", "苹果___未知病斑", "番茄___早疫病", "番茄___健康")
    found = read(tmp_path, source)
    assert found["番茄___早疫病"]["disease"] == "early blight"
    assert "class" not in found["苹果___未知病斑"]["disease"]


# endregion

# region versions of one leaf

VERSIONS = {"color": "", "grayscale": "gray", "segmented": "cut"}


@pytest.fixture
def versions(tmp_path):
    """30 leaves of two classes, each in colour, gray and cut out."""
    for tag, change in VERSIONS.items():
        for i in range(30):
            name = f"Tomato___{('rust', 'healthy')[i % 2]}"
            stem = f"IMG_{i:03d}" + ("_final_masked" if tag == "segmented" else "")
            leaf(tmp_path / "village" / tag / name / f"{stem}.png", i, change)
    return tmp_path / "village"


def test_versions_of_a_leaf_never_straddle_a_split(tmp_path, versions, capfd):
    assert organize(tmp_path / "out", versions, "--near", -1) == 0
    out = capfd.readouterr().out
    assert "3 versions of the same leaves (color, grayscale, segmented)" in out
    splits: dict[str, set[str]] = {}
    for row in rows_of(tmp_path / "out" / "manifest.csv"):
        splits.setdefault(Path(row["source"]).name[:7], set()).add(row["split"])
    assert len(splits) == 30
    assert all(len(found) == 1 for found in splits.values())
    assert {next(iter(found)) for found in splits.values()} == {"train", "val", "test"}
    report = (tmp_path / "out" / "report.md").read_text()
    share = {k: float(v) for k, v in re.findall(r"(as split|split alone).*?([\d.]+)%", report)}
    assert share["as split"] == 0
    assert share["split alone"] > 60, (
        "a picture-by-picture split would have leaked, and the certificate says so"
    )


def test_one_version_alone(tmp_path, versions, refused):
    assert organize(tmp_path / "out", versions, "--versions", "color") == 0
    kept = [Path(row["source"]).parts for row in rows_of(tmp_path / "out" / "manifest.csv")]
    assert len(kept) == 30
    assert all("color" in parts for parts in kept)
    reasons = [row["reason"] for row in rows_of(tmp_path / "out" / "rejected.csv")]
    assert reasons == ["other_version"] * 60
    refused(
        "there are color, grayscale, segmented",
        organize,
        tmp_path / "new",
        versions,
        "--versions",
        "rotated",
    )


def test_augmented_copies_are_tied_to_what_they_begin_with(tmp_path):
    for i in range(12):
        name = ("cordana", "healthy")[i % 2]
        leaf(tmp_path / "banana" / "OriginalSet" / name / f"{i}.png", i)
        for k in (33, 1120):
            leaf(tmp_path / "banana" / "AugmentedSet" / name / f"_{i}_{k}.png", 50 + i * k)
    assert organize(tmp_path / "out", tmp_path / "banana", "--near", -1) == 0
    splits: dict[str, set[str]] = {}
    for row in rows_of(tmp_path / "out" / "manifest.csv"):
        stem = Path(row["source"]).stem.strip("_").split("_")[0]
        splits.setdefault(stem, set()).add(row["split"])
    assert len(splits) == 12
    assert all(len(found) == 1 for found in splits.values())


# endregion
