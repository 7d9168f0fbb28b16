"""report.html of a run: which pictures it shows, in which order, and that it is one sound file."""

import csv
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from judged_data import outcomes, tree_of
from PIL import Image

from common import images
from common.train import gallery, page
from common.train.compute import choose_compute
from common.train.dataset import load_organized
from common.train.gallery import Gallery, Graded, grade, least_sure, surest_mistakes
from common.train.metrics import judge
from common.train.model import SwinHierarchical
from common.train.report_page import write_page

GRADED = Graded(
    ("a", "b", "c"),
    np.array([0, 0, 0, 0, 1, 1, 1, 2]),
    np.array([0, 1, 2, 0, 1, 1, 0, 2]),
    np.array([0.9, 0.4, 0.01, 0.6, 0.5, 0.99, 0.1, 0.7]),
    np.array([0.9, 0.6, 0.98, 0.6, 0.5, 0.99, 0.8, 0.7]),
)


class Page(HTMLParser):
    """What a browser would make of a page: tags with their attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


def paths(html: str, key: str) -> list[str]:
    """The first line of small print below each picture of a section."""
    part = html.split(f'<section id="{key}">')[1].split("</section>")[0]
    return re.findall(r"</(?:span|strong)><small>([^<]*)", part)


# region what is shown


def test_the_surest_mistakes_and_the_least_sure_answers_come_first():
    assert surest_mistakes(GRADED).tolist() == [2, 6, 1], "by P(answered) - P(given)"
    assert least_sure(GRADED).tolist() == [4, 3, 7, 0, 5]


def test_typical_and_odd_pictures_of_the_worst_classes(monkeypatch):
    found = gallery.typical_and_odd(GRADED)
    assert [(c, round(f1, 3)) for c, f1, *_ in found] == [(0, 0.571), (1, 0.667), (2, 0.667)]
    assert [(t.tolist(), o.tolist()) for *_, t, o in found] == [
        ([0, 3], [2, 1]),
        ([5, 4], [6]),
        ([7], []),
    ]
    monkeypatch.setattr(gallery, "CLASSES", 1)
    assert [c for c, *_ in gallery.typical_and_odd(GRADED)] == [0]


def test_before_disease_heads_have_learned_species_are_compared():
    tree = tree_of(2, 4)
    probabilities = np.array([[0.1, 0.5, 0.4, 0], [0.3, 0.3, 0.35, 0.05]])
    judged = judge(probabilities, np.array([0, 3]), tree)
    both, species = grade(judged, tree), grade(judged, tree, species_only=True)
    assert both.names == ("plant_0/ill_0", "plant_0/ill_1", "plant_1/ill_0", "plant_1/ill_1")
    assert (both.given.tolist(), both.answered.tolist()) == ([0, 3], [1, 2])
    np.testing.assert_allclose(both.given_p, [0.1, 0.05])
    np.testing.assert_allclose(both.answered_p, [0.5, 0.35])
    assert (species.given.tolist(), species.answered.tolist()) == ([0, 1], [0, 0])
    np.testing.assert_allclose(species.given_p, [0.6, 0.4])
    np.testing.assert_allclose(species.answered_p, [0.6, 0.6])


def test_thumbnails_keep_their_shape_and_shade_what_counts_little(tmp_path):
    Image.new("RGB", (400, 200), (200, 200, 200)).save(tmp_path / "a.png")
    jpeg, width, height = gallery.thumbnail(tmp_path / "a.png")
    assert (width, height) == (160, 80)
    heat = np.zeros((4, 4), np.float32)
    heat[:, 2:] = 1
    jpeg, width, height = gallery.thumbnail(tmp_path / "a.png", heat)
    assert (width, height) == (2 * 160 + gallery.GAP, 80)
    half = images.read_rgb(jpeg, min_side=1)[:, 160 + gallery.GAP :].astype(int)
    assert (abs(half[:, 130:] - 200) < 6).all(), "where it looked, the photo is as it was"
    assert (half[:, :30] < 70).all()


# endregion

# region the page


@pytest.fixture(scope="module")
def written(data, tmp_path_factory) -> tuple[str, np.ndarray, np.ndarray]:
    """The page of a made-up judgement of the tiny val split: HTML, true classes, answers."""
    folder = tmp_path_factory.mktemp("page")
    probabilities, truth = made_up(data)
    judged = judge(probabilities, truth, data.tree)
    html = [write(folder, judged, data) for _ in range(2)]
    assert html[0] == html[1], "the same pictures give the same bytes"
    return html[0], truth, judged.joint


def made_up(data) -> tuple[np.ndarray, np.ndarray]:
    truth = data.splits["val"].class_idx.astype(np.int64)
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet(np.full(data.tree.num_classes, 0.3), len(truth))
    probabilities[: len(truth) // 2] += 2 * np.eye(data.tree.num_classes)[truth[: len(truth) // 2]]
    return probabilities / probabilities.sum(1, keepdims=True), truth


def write(folder: Path, judged, data, run: str = "hierarchical_full") -> str:
    torch.manual_seed(0)
    model = SwinHierarchical("test_resnet", data.tree, image_size=32).eval()
    Image.new("RGB", (8, 8)).save(folder / "curves.png")
    best = Path(run) / "epoch=01-best.pt"
    write_page(folder, judged, data, "val", model, choose_compute("cpu", "fp32"), best)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_pictures_stand_in_order_below_their_paths(written, data):
    html, truth, joint = written
    probabilities, _ = made_up(data)
    rows = np.arange(len(truth))
    margin = probabilities[rows, truth] - probabilities[rows, joint]
    wrong = sorted(rows[truth != joint], key=lambda i: margin[i])
    assert len(wrong) > 2
    names = [data.splits["val"].path(i).relative_to(data.root).as_posix() for i in rows]
    assert paths(html, "mistakes") == [names[i] for i in wrong]
    right = sorted(rows[truth == joint], key=lambda i: probabilities[i, joint[i]])
    assert paths(html, "unsure") == [names[i] for i in right]
    assert set(paths(html, "classes")) == set(names), "few pictures: all are typical or odd"
    first = wrong[0]
    told = html.split('<section id="mistakes">')[1].split("</li>")[0]
    given, answered = (data.tree.class_name(int(k[first])) for k in (truth, joint))
    assert f"given {given}: {probabilities[first, truth[first]]:.3f}" in told
    assert f"answered {answered}: {probabilities[first, joint[first]]:.3f}" in told
    with (data.root / "manifest.csv").open(newline="") as file:
        source = {row["path"]: row["source"] for row in csv.DictReader(file)}[names[first]]
    assert source
    assert f"<small>{source}</small>" in told, "what a person has to move"


def test_a_manifest_may_name_pictures_elsewhere_in_full(data, tmp_path):
    for name in ("species_index.json", "build_info.json"):
        shutil.copy(data.root / name, tmp_path)
    with (
        (data.root / "manifest.csv").open(newline="") as source,
        (tmp_path / "manifest.csv").open("w", newline="") as target,
    ):
        rows = csv.DictReader(source)
        writer = csv.DictWriter(target, rows.fieldnames)
        writer.writeheader()
        writer.writerows({**row, "path": data.root.resolve() / row["path"]} for row in rows)
    moved = load_organized(tmp_path)
    probabilities, truth = made_up(moved)
    html = write(tmp_path, judge(probabilities, truth, moved.tree), moved)
    assert moved.splits["val"].path(0).as_posix() in html


def test_the_page_is_one_file_that_needs_nothing(written):
    read = Page(written[0])
    for tag, attributes in read.tags:
        assert tag not in ("script", "link", "iframe")
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert attributes["src"].startswith("data:image/")
            assert attributes["alt"]
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in written[0]
    keys = {attributes["id"] for tag, attributes in read.tags if tag == "section"}
    links = {attributes["href"][1:] for tag, attributes in read.tags if tag == "a"}
    assert keys == links == {"mistakes", "unsure", "confusion", "classes", "curves"}
    assert "--review-labels" in read.words


def test_a_species_checkpoint_is_judged_by_species(data, tmp_path):
    probabilities, truth = made_up(data)
    judged = judge(probabilities, truth, data.tree)
    html = write(tmp_path, judged, data, "species_only")
    wrong = data.tree.class_species[truth] != judged.species
    assert len(paths(html, "mistakes")) == wrong.sum()
    assert "/" not in re.search("<strong>given ([^:]*):", html)[1]


def test_hostile_names_stay_words():
    evil = '"><script>alert(1)</script>&amp;\udcff'
    one = page.Picture(b"jpeg", 160, 90, evil, evil, [evil, ""], [evil, ""])
    table = page.rows_table([(evil, 1)], (evil, "n"))
    html = page.sections(evil, [evil], [page.Section("a", evil, evil, page.sheet([one]) + table)])
    read = Page(html)
    told = evil.replace("\udcff", "?")
    assert not [tag for tag, _ in read.tags if tag == "script"]
    assert read.words.count(told) == 11
    assert [attributes["alt"] for tag, attributes in read.tags if tag == "img"] == [told]
    html.encode()


def test_with_thousands_of_classes_the_page_is_small_and_few_pictures_are_read(tmp_path):
    tree, n = tree_of(3000, 11_499), 40_000
    judged, _ = outcomes(tree, n)
    read, rng = [], np.random.default_rng(0)
    noise = images.encode_jpeg(rng.integers(0, 256, (160, 160, 3), np.uint8), 95)
    split = SimpleNamespace(
        path=lambda i: tmp_path / "val" / f"{i}.jpg",
        read=lambda i: read.append(i) or noise,  # JPEG has nothing larger than noise
        offset=np.full(n, 512),
    )
    data = SimpleNamespace(root=tmp_path, splits={"val": split})
    (tmp_path / "manifest.csv").write_text("split,source\n" + "val,a.jpg\n" * n)
    heat = rng.random((gallery.MISTAKES, 7, 7))
    shown = Gallery(data, "val", grade(judged, tree), lambda rows: heat[: len(rows)])
    parts = [*shown.answers(), shown.confusion(tmp_path), shown.by_class()]
    html = page.sections("x", shown.advice(), parts)
    assert len(html) < 9e6
    assert len(read) <= 60 + 24 + 60 * 5
    assert html.count("<h3>") == 60
    wrong, there = (judged.joint != judged.class_idx).sum(), len(np.unique(judged.class_idx))
    assert f"60 of {wrong:,} wrong answers" in html, "how many are left out is said"
    assert f"The 60 worst of {there:,} classes" in html
    assert html.count("<tr>") == 1 + gallery.PAIRS
    assert html.count(".jpg, at byte 512</small>") == len(read), "a place in a shard"


def test_it_fits_a_phone_and_every_picture_can_be_seen(written, tmp_path, browser):
    (tmp_path / "report.html").write_text(written[0], encoding="utf-8")
    tab = browser.page((tmp_path / "report.html").as_uri(), 390, 800, mobile=True, dark=True)
    tab.wait("document.readyState == 'complete'")
    assert tab.js("document.documentElement.scrollWidth") <= 390
    assert tab.wait("document.images.length && [...document.images].every(i => i.naturalWidth)")
    assert tab.complaints() == []


# endregion
