"""The demo's pictures: repeatable, fairly mixed, and broken only where they say so."""

import hashlib
import inspect
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from common.demo import pictures
from common.demo.leaves import SPECIES, compose, paint_leaf
from common.demo.lesions import DISEASES, infect
from common.demo.scenes import GROUNDS, Style
from common.demo.things import THINGS, draw_thing

SCALE = 0.01  # three pictures per class
KINDS = {
    "truncated",
    "zero_bytes",
    "text_pointers",
    "html_pages",
    "thumbnails",
    "duplicates",
    "near_duplicates",
    "label_conflicts",
}


TRUTH = {folder: (species, disease) for folder, species, disease, _ in pictures.CLASSES}


def style_of(seed: int, class_number: int, picture_number: int) -> Style:
    return Style(pictures.streams(seed, class_number, picture_number)[1])


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("made") / "demo"
    return folder, pictures.make_demo(folder, seed=3, workers=1, scale=SCALE)


def test_same_seed_same_bytes_for_any_number_of_workers(
    made: tuple[Path, dict], tmp_path: Path
) -> None:
    pictures.make_demo(tmp_path / "again", seed=3, workers=2, scale=SCALE)
    assert digests(tmp_path / "again") == digests(made[0])


def test_another_seed_or_picture_differs() -> None:
    assert pictures.draw_picture(3, 0, 0) == pictures.draw_picture(3, 0, 0)
    assert (
        len({pictures.draw_picture(s, c, k) for s in (3, 4) for c in (0, 9) for k in (0, 1)}) == 8
    )


def test_counts_and_marker(made: tuple[Path, dict]) -> None:
    folder, result = made
    assert result["plants"] == folder / "plants"
    assert result["not_plants"] == folder / "not_plants"
    assert result["classes"] == len(list(result["plants"].iterdir())) == len(pictures.CLASSES)
    assert result["images"] == len(list(result["plants"].glob("*/*")))
    assert result["not_plant_images"] == len(list(result["not_plants"].iterdir())) == 3
    assert json.loads((folder / pictures.MARKER).read_text())["planted"] == result["planted"]
    assert [p.name for p in folder.parent.iterdir()] == ["demo"]  # no half-made folder beside it


def test_complete_folder_is_left_alone_and_foreign_folder_refused(
    made: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result = made
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="another folder"):
        pictures.make_demo(tmp_path / "mine", scale=SCALE, workers=1)
    monkeypatch.setattr(pictures, "_draw_file", lambda job: pytest.fail("drew a picture again"))
    assert pictures.make_demo(folder, seed=3, workers=1, scale=SCALE) == result


def test_killed_run_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(job: tuple) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "_draw_file", stop)
    with pytest.raises(KeyboardInterrupt):
        pictures.make_demo(tmp_path / "demo", workers=1, scale=SCALE)
    assert not (tmp_path / "demo").exists()


def test_truth_and_long_tail() -> None:
    truth, sizes = TRUTH, pictures.class_sizes()
    assert list(truth) == list(sizes)
    assert len(set(truth.values())) == len(truth)
    assert 2500 <= sum(sizes.values()) <= 2800
    assert sum(n < 50 for n in sizes.values()) >= 4
    assert sum(50 <= n < 80 for n in sizes.values()) >= 5
    assert min(sizes.values()) >= 30
    assert max(sizes.values()) == 160
    per_species = Counter(species for species, _ in truth.values())
    assert set(per_species) == set(SPECIES)
    assert set(per_species.values()) <= {3, 4, 5}
    for species in SPECIES:
        assert (species, "healthy") in truth.values()
    assert {disease for _, disease in truth.values()} == set(DISEASES)
    assert set(pictures.class_sizes(0.001).values()) == {3}


def test_planted_files_are_what_they_claim(made: tuple[Path, dict]) -> None:
    folder, result = made
    planted = result["planted"]
    assert set(planted) == KINDS
    for kind in ("truncated", "zero_bytes", "text_pointers", "html_pages"):
        for name in planted[kind]:
            with pytest.raises(OSError), Image.open(folder / name) as image:
                image.load()
    for name in planted["truncated"]:
        assert (folder / name).read_bytes()[:2] == b"\xff\xd8"
    assert all((folder / name).stat().st_size == 0 for name in planted["zero_bytes"])
    assert Image.open(folder / planted["thumbnails"][0]).size == (12, 9)
    for a, b in planted["duplicates"]:
        assert Path(a).parent == Path(b).parent
        assert (folder / a).read_bytes() == (folder / b).read_bytes()
    for a, b in planted["label_conflicts"]:
        assert (folder / a).read_bytes() == (folder / b).read_bytes()
        truth = TRUTH
        one, other = truth[Path(a).parent.name], truth[Path(b).parent.name]
        assert one[0] == other[0]
        assert one[1] != other[1]
    for a, b in planted["near_duplicates"]:
        pair = [
            ImageOps.exif_transpose(Image.open(folder / p)).convert("L").resize((32, 32))
            for p in (a, b)
        ]
        one, two = (np.asarray(p, np.float32) for p in pair)
        assert Path(a).parent == Path(b).parent
        assert (folder / a).read_bytes() != (folder / b).read_bytes()
        assert np.abs(one - two).mean() < 4
    pairs = ("duplicates", "near_duplicates", "label_conflicts")
    singles = {name for kind in KINDS.difference(pairs) for name in planted[kind]}
    twins = {copy for kind in pairs for _, copy in planted[kind]}
    assert result["images"] == sum(pictures.class_sizes(SCALE).values()) + len(singles) + len(twins)
    for path in sorted(result["plants"].glob("*/*")):  # nothing else is broken
        if str(path.relative_to(folder)) not in singles:
            with Image.open(path) as image:
                image.load()
                assert image.mode == "RGB"
                assert min(image.size) >= 170


def test_grounds_and_cameras_say_nothing_about_the_class() -> None:
    assert list(inspect.signature(Style).parameters) == ["rng"]
    styles: list[list[Style]] = []
    for number in range(len(pictures.CLASSES)):
        styles.append([style_of(0, number, k) for k in range(100)])
    kinds = sorted(GROUNDS)
    counts = np.array([[sum(s.ground == kind for s in row) for kind in kinds] for row in styles])
    chi2 = ((counts - 100 / len(kinds)) ** 2 / (100 / len(kinds))).sum()
    freedom = counts.size - len(counts)
    assert abs(chi2 - freedom) < 4 * np.sqrt(
        2 * freedom
    )  # as uneven as chance makes it, no more and no less
    for name in ("brightness", "warmth", "blur", "grain", "quality", "vignette", "width"):
        values = np.array([[getattr(s, name) for s in row] for row in styles], float)
        spread = (values.mean(1) - values.mean()) / (values.std() / 10)
        assert np.abs(spread).max() < 4.5, name
    assert len({s.orientation for row in styles for s in row}) == 4


def test_the_ground_is_the_same_whatever_lies_on_it() -> None:
    _, scene, _ = pictures.streams(0, 5, 5)
    style = Style(scene)
    state = scene.bit_generator.state
    drawn = []
    for species, disease in (("corn", "healthy"), ("corn", "common rust"), ("grape", "esca")):
        scene.bit_generator.state = state
        leaf = paint_leaf(species, np.random.default_rng(1))
        infect(leaf, disease, np.random.default_rng(2))
        leaf.alpha[:] = 0  # take the leaf away
        drawn.append(compose(leaf, style, scene))
    assert np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[0], drawn[2])


@pytest.mark.parametrize("disease", [d for d in DISEASES if d != "healthy"])
def test_a_disease_shows_on_the_blade_and_only_there(disease: str) -> None:
    species = next(s for s, d in TRUTH.values() if d == disease)
    for k in range(3):
        leaf = paint_leaf(species, np.random.default_rng([7, k]))
        before = leaf.rgb.copy()
        infect(leaf, disease, np.random.default_rng([8, k]))
        changed = np.abs(leaf.rgb - before).max(-1) > 25
        assert not changed[leaf.blade == 0].any()
        assert 0.015 < (changed & (leaf.blade > 0.5)).sum() / (leaf.blade > 0.5).sum() < 0.99


def test_pictures_are_upright_once_exif_is_followed() -> None:
    seen = set()
    for k in range(200):
        style = style_of(1, 0, k)
        if (
            style.orientation in seen
            or max(style.width, style.height) > 400
            or style.width == style.height
        ):
            continue
        seen.add(style.orientation)
        image = Image.open(io.BytesIO(pictures.draw_picture(1, 0, k)))
        assert image.getexif().get(0x0112, 1) == style.orientation
        assert ImageOps.exif_transpose(image).size == (style.width, style.height)
    assert {1, 6} <= seen


def test_every_thing_can_be_drawn_at_any_size() -> None:
    for number in range(len(THINGS)):
        for height, width in ((200, 300), (320, 240)):
            image = draw_thing(number, np.random.default_rng([number, height]), height, width)
            assert image.shape == (height, width, 3)
            assert image.dtype == np.float32
            assert image.min() >= 0
            assert image.max() <= 255
            assert np.isfinite(image).all()
            assert image.std() > 0.5
