"""Reference pictures: which are chosen, of which sources, and that they tell nothing else."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
from PIL import Image

from common import images
from common.export.graph import extract_features
from common.export.reference import SIDE, free_pictures, write_reference
from common.train.dataset import EvalViews, load_organized
from common.train.model import SwinHierarchical

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def changed(organized, tmp_path_factory):
    """The tiny set, every third train picture of source `mine`, and two of these of each class of
    one plant.
    """
    folder = shutil.copytree(organized, tmp_path_factory.mktemp("reference") / "organized")
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(row for row in rows if row["split"] == "train"):
        row["dataset"] = "theirs" if i % 3 else "mine"
        row["group"] = f"plant {i // 6}"
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return load_organized(folder)


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    return SwinHierarchical("test_resnet", data.tree, image_size=32).eval()


def test_only_the_named_sources_and_one_picture_per_plant(changed):
    count, found = free_pictures(changed, ["2", "mine"])
    class_idx = changed.splits["train"].class_idx
    assert count == 2
    assert set(found.values()) == {"mine"}
    assert all(i % 3 == 0 for i in found)
    plants = [(class_idx[i], i // 6) for i in found]
    assert len(set(plants)) == len(plants)
    assert set(plants) == {(class_idx[i], i // 6) for i in range(0, len(class_idx), 3)}
    assert len(free_pictures(changed, ["2", "mine", "theirs"])[1]) > len(found)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (["3"], ("name the sources", "mine (", "theirs (", "none is shown", "--reference 3 mine")),
        (["mine"], ("--reference mine", "1 to 10")),
        (["0", "mine"], "1 to 10"),
        (["11", "mine"], "1 to 10"),
        (["3", "mine", "their"], ("'their'", "theirs (")),
    ],
)
def test_without_a_number_and_sources_nothing_is_shown(changed, refused, wanted, words):
    refused(words, free_pictures, changed, wanted)


def nearest(data, model, free: dict[int, str], count: int) -> dict[str, list[int]]:
    """By the definition: in each class, the nearest the mean of its features first."""
    split = data.splits["train"]
    views = EvalViews(split, 32)
    rows = np.array(sorted(free))
    with torch.inference_mode():
        pictures = torch.stack([views[i][0] for i in rows.tolist()])
        features = extract_features(model, pictures)[1].numpy().astype(np.float64)
    found = {}
    for c in range(data.tree.num_classes):
        own = split.class_idx[rows] == c
        distance = ((features[own] - features[own].mean(0)) ** 2).sum(1)
        found[data.tree.class_name(c)] = rows[own][np.argsort(distance)[:count]].tolist()
    return found


def test_the_nearest_the_class_mean_are_written_small_and_without_metadata(
    changed, model, tmp_path
):
    (tmp_path / "reference" / "old").mkdir(parents=True)
    free = dict.fromkeys(range(len(changed.splits["train"])), "mine")
    told = write_reference(tmp_path / "reference", changed, model, free, 2, CPU, 0)
    index = json.loads((tmp_path / "reference" / "index.json").read_text())
    wanted = nearest(changed, model, free, 2)
    assert index == {
        name: [{"file": f"{name}/{n}.jpg", "source": "mine"} for n in (1, 2)] for name in wanted
    }
    assert len(list((tmp_path / "reference").rglob("*.jpg"))) == 14
    assert "14 of 7 classes" in told
    assert not (tmp_path / "reference" / "old").exists()
    split = changed.splits["train"]
    originals = np.stack([images.read_rgb(split.read(i)) for i in range(len(split))]).astype(int)
    for name, rows in wanted.items():
        for n, i in enumerate(rows, 1):
            made = (tmp_path / "reference" / name / f"{n}.jpg").read_bytes()
            difference = np.abs(originals - np.array(Image.open(io.BytesIO(made)))).mean((1, 2, 3))
            assert difference.argmin() == i
            assert made[2:4] == b"\xff\xe0"  # JFIF
            assert not {b"\xff\xe1", b"\xff\xe2", b"\xff\xed", b"\xff\xfe"} & {
                made[i : i + 2] for i in range(0, made.index(b"\xff\xda"))
            }, "EXIF, a profile, IPTC or a comment"


def test_large_photos_are_shrunk_and_classes_without_a_free_picture_are_told(
    changed, model, tmp_path
):
    folder = shutil.copytree(changed.root, tmp_path / "organized")
    split, last = changed.splits["train"], changed.tree.num_classes - 1
    photo = Image.effect_noise((700, 500), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x010E] = "the garden of a person"
    file = folder / split.path(0).relative_to(changed.root)
    photo.save(file, exif=exif)
    data = load_organized(folder)
    free = {i: "mine" for i, c in enumerate(split.class_idx) if i == 0 or c not in (0, last)}
    told = write_reference(tmp_path / "reference", data, model, free, 9, CPU, 0)
    assert f"none of 1 classes, such as {data.tree.class_name(last)}" in told
    index = json.loads((tmp_path / "reference" / "index.json").read_text())
    assert data.tree.class_name(last) not in index
    [only] = index[data.tree.class_name(0)]
    made = (tmp_path / "reference" / only["file"]).read_bytes()
    assert Image.open(io.BytesIO(made)).size == (SIDE, 183)
    assert b"garden" in file.read_bytes()
    assert b"garden" not in made


def test_shards_give_the_same_pictures(data, model, tmp_path):
    sharded = load_organized(tiny_data.organize(tmp_path, "--shards", 0.02))
    for name, one in (("files", data), ("shards", sharded)):
        count, free = free_pictures(one, ["2", "raw"])
        write_reference(tmp_path / name, one, model, free, count, CPU, 0)
    files, shards = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in below(tmp_path / name)}
        for name in ("files", "shards")
    )
    assert len(files) == 15
    assert files == shards


def below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
