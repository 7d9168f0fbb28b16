"""report.html of an export: plants that are rejected, and OOD pictures that are answered."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.decide import rank
from common.export import report, report_page
from common.export.answers import join, sum_up
from common.export.fitting import Outcome
from common.export.pictures import OodKind, Pictures

ROLLUP = {"default": "0.95", "precisions": {"0.95": {"disease": 0.6, "species": 0.8}}}
REJECTION = {"score": "far", "threshold": 5.0, "quantiles": np.linspace(0, 9, 101).tolist()}
# OOD pictures by their grey: probability of the first class and of the second, which are of one
# species, and their score
GREYS = {10: (0.9, 0.05, 1.0), 60: (0.7, 0.2, 2.0), 110: (0.5, 0.45, 3.0), 160: (0.3, 0.25, 4.0)}
GREYS |= {210: (0.95, 0.0, 8.0)}  # the one is unsure, the other rejected


def run(batch: np.ndarray) -> list[np.ndarray]:
    """A model that goes by the grey of the first pixel."""
    near = [min(GREYS, key=lambda grey: abs(grey - int(one[0, 0, 0]))) for one in batch]
    probabilities = np.zeros((len(batch), 7), np.float32)
    probabilities[:, 0], probabilities[:, 1], ood = np.array([GREYS[grey] for grey in near]).T
    probabilities[:, 6] = 1 - probabilities.sum(1)
    return [probabilities, ood[:, None].astype(np.float32), np.ones((len(batch), 4, 4))]


def made_up(data, folder: Path) -> tuple[dict, Outcome]:
    """The tiny test split with made-up answers, and five OOD pictures of two kinds behind one that
    is damaged.
    """
    (folder / "damaged.png").write_bytes(b"no picture")
    for grey in GREYS:
        Image.new("RGB", (40, 40), (grey,) * 3).save(folder / f"grey_{grey}.png")
    things = [folder / "damaged.png", *(folder / f"grey_{grey}.png" for grey in (10, 160, 60))]
    leaves = [folder / f"grey_{grey}.png" for grey in (110, 210)]
    kinds = [OodKind("things", "plant", {"val": [], "test": things})]
    kinds += [OodKind("leaves", "species", {"val": leaves, "test": leaves})]
    pictures = Pictures(data, 32, kinds, 100, 0)
    ood, ranked = {}, {}
    for role in ("plant", "species", "disease"):
        ood[role], ranked[role] = {}, {}
        for name, batches in pictures.ood(role, "test"):
            probabilities, ood[role][name], _ = join([tuple(run(batch)) for batch in batches])
            ranked[role][name] = rank(probabilities, data.tree)
    truth = data.splits["test"].class_idx.astype(np.int64)
    probabilities = np.full((len(truth), 7), 0.01) + 0.93 * np.eye(7)[truth]
    probabilities[3] = 1 / 7  # unsure
    score = np.zeros((len(truth), 1), np.float32)
    score[[1, 6]] = [[6], [7]]
    answers = sum_up(probabilities, truth, data.tree, score)
    card = {"rejection": REJECTION, "rollup": ROLLUP}
    bundle = {"backbone": "tiny", "models": {"model.onnx": card}}
    outcome = Outcome(pictures, ("far",), {"test": answers}, {"test": ood}, ranked, {"test": {}})
    return {"bundle": bundle}, outcome


def section(html: str, key: str) -> str:
    return html.split(f'<section id="{key}">')[1].split("</section>")[0]


@pytest.fixture(scope="module")
def html(data, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("export_page")
    report_page.write_page(folder, *made_up(data, folder), run)
    assert (folder / "confusion.png").is_file()
    return (folder / "report.html").read_text(encoding="utf-8")


def test_false_rejections_stand_before_unsure_answers(html, data):
    part = section(html, "rejected")
    names = [data.splits["test"].path(i).name for i in (6, 1, 3)]
    assert re.findall(r"/([^/<]*)</small><small>", part) == names
    assert part.count("rejected: not a plant") == 2
    assert part.count("rejected: unsure") == 1
    assert "the rule rejects 3 (30.0%)" in html


def test_ood_pictures_that_are_answered_classes_first(html, data):
    part = section(html, "ood")
    assert re.findall(r"(grey_\d+)\.png</small>", part) == ["grey_10", "grey_60", "grey_110"]
    assert "3 answers to 5 OOD pictures" in part, "the damaged one does not count"
    assert re.findall(r"<strong>(\w+)<", part) == ["things", "things", "leaves"]
    first, species = data.tree.class_name(0), data.tree.species[0]
    assert re.findall(r"<span>answered ([^:]*: [\d.]*)</span>", part) == [
        f"{first}: 0.900",
        f"{first}: 0.700",
        f"{species}: 0.950",
    ]
    assert part.count("answers the species alone") == 1


def test_the_species_is_the_right_answer_to_an_unknown_disease(data, tmp_path):
    result, outcome = made_up(data, tmp_path)
    leaves = OodKind("leaves", "disease", outcome.pictures.kinds[1].files)
    outcome.pictures.kinds[1] = leaves
    for found in (outcome.ood["test"], outcome.ranked):
        found["species"], found["disease"] = found["disease"], found["species"]
    report_page.write_page(tmp_path, result, outcome, run)
    part = section((tmp_path / "report.html").read_text(encoding="utf-8"), "ood")
    assert re.findall(r"(grey_\d+)\.png</small>", part) == ["grey_10", "grey_60"]


def test_ood_pictures_that_the_second_opinion_rejects_are_not_answered(data, tmp_path):
    result, outcome = made_up(data, tmp_path)
    species = {"species": {**REJECTION, "threshold": 1.5}}
    result["bundle"]["models"]["model.onnx"] = {"rejection": REJECTION | species, "rollup": ROLLUP}
    report_page.write_page(tmp_path, result, outcome, run)
    part = section((tmp_path / "report.html").read_text(encoding="utf-8"), "ood")
    assert re.findall(r"(grey_\d+)\.png</small>", part) == ["grey_10"]


def test_without_ood_pictures_the_section_is_empty(data, tmp_path):
    result, outcome = made_up(data, tmp_path)
    outcome.pictures.kinds.clear()
    report_page.write_page(tmp_path, result, outcome, run)
    part = section((tmp_path / "report.html").read_text(encoding="utf-8"), "ood")
    assert "0 answers to 0 OOD pictures" in part
    assert "<img" not in part


def test_it_is_opened_only_for_a_person_at_a_screen(monkeypatch, tmp_path, capsys):
    opened, page = [], tmp_path / "report.html"
    monkeypatch.setattr(report.webbrowser, "open", opened.append)
    monkeypatch.setattr(report.sys, "platform", "linux")
    for name in ("CI", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for terminal, variables in (
        (False, {"DISPLAY": ":0"}),
        (True, {}),
        (True, {"DISPLAY": ":0", "CI": "1"}),
    ):
        with monkeypatch.context() as at:
            at.setattr(report.sys.stdout, "isatty", lambda terminal=terminal: terminal)
            for name, value in variables.items():
                at.setenv(name, value)
            report.open_page(page)
            assert not opened, variables
    assert capsys.readouterr().out.count(str(page)) == 3, "it is always named"
    monkeypatch.setattr(report.sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    report.open_page(page)
    assert opened == [page.as_uri()]
