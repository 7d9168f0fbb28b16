"""Pictures of an export: that they show the numbers they are given, at any size."""

import numpy as np
import pytest
from PIL import Image

from common.export import plots as export_plots


@pytest.fixture
def drawn(monkeypatch):
    """Keep the figures, and write them small."""
    from matplotlib.figure import Figure

    kept, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, path, dpi: (kept.append(figure), save(figure, path, dpi=dpi / 3)),
    )
    return kept


def answers(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    sure = rng.beta(5, 1, n)
    return sure, rng.random(n) < sure


def legend(axis) -> str:
    return " | ".join(text.get_text() for text in axis.get_legend().get_texts())


def test_accuracy_by_coverage_by_hand():
    x, y = export_plots.accuracy_by_coverage(
        np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, False, True, False])
    )
    assert x.tolist() == [0.25, 0.75, 1.0], "equals are answered together"
    assert y.tolist() == [1.0, pytest.approx(2 / 3), 0.5], "equals are answered together"
    sure, right = answers(50_000)
    x, y = export_plots.accuracy_by_coverage(sure, right)
    assert len(x) <= export_plots.MOST_POINTS
    assert x[-1] == 1
    assert y[-1] == right.mean()
    assert (np.diff(x) > 0).all()
    assert len(export_plots.accuracy_by_coverage(sure[:0], right[:0])[0]) == 0


def test_reliability_shows_bins_and_counts(tmp_path, drawn):
    (sure, right), (after, _) = answers(), answers(seed=1)
    export_plots.reliability((sure**2, right), (after, right), tmp_path / "r.png")
    assert np.median(np.asarray(Image.open(tmp_path / "r.png").convert("L"))) > 230, "light ground"
    tops, belows = drawn[0].axes[:2], drawn[0].axes[2:]
    for (confidence, hits), top, below in zip(
        ((sure**2, right), (after, right)), tops, belows, strict=True
    ):
        assert sum(patch.get_height() for patch in below.patches) == len(confidence)
        x, y = top.containers[0][0].get_data()
        assert len(x) == 15
        assert x.mean() == pytest.approx(confidence.mean(), abs=0.01)
        assert y.mean() == pytest.approx(hits.mean(), abs=0.01)
        assert "by chance" in top.get_title()


def test_coverage_draws_every_way_and_marks_the_bars(tmp_path, drawn):
    curves = {
        "joint": answers(),
        "routed": answers(seed=1),
        "flat": (answers()[0], np.arange(400) % 7 == 0),
    }
    figures = {
        "precision": 0.96,
        "precision_low": 0.94,
        "coverage": 0.9,
        "disease_precision": None,
        "disease_precision_low": None,
        "disease_coverage": 0.0,
    }
    export_plots.coverage(curves, curves, {"0.95": figures}, tmp_path / "c.png")
    left, right = drawn[0].axes
    assert all(
        f"{name}: {hits.mean():.1%} of all" in legend(left) for name, (_, hits) in curves.items()
    )
    assert "thresholds for 0.95: 96.0% of 90.0%" in legend(right)
    assert "bars for" not in legend(left)
    assert right.get_ylim()[0] > 0.3, "a way that fails does not crush the others"


def test_deferral_marks_what_was_chosen(tmp_path, drawn):
    rows = [
        {"share": share, "rule": 0.8 + 0.1 * share, "confidence": 0.8 + 0.09 * share, "best": 0.92}
        for share in (0, 0.5, 1)
    ]
    export_plots.deferral(
        {"n": 50, "browser": 0.8, "server": 0.9, "hybrid": 0.897, "sent": 0.2, "by_share": rows},
        tmp_path / "d.png",
    )
    (axis,) = drawn[0].axes
    assert "chosen on val: 20.0% sent, 89.7% right" in legend(axis)
    assert "server alone: 90.0%" in legend(axis)
    assert axis.lines[1].get_xydata().tolist() == [
        [0, 0.8],
        [50, pytest.approx(0.85)],
        [100, pytest.approx(0.9)],
    ]


def test_scores_of_every_group_with_what_is_refused(tmp_path, drawn):
    plants = np.linspace(0, 1, 100)
    panels = [
        (
            "not a plant",
            {"plants": plants, "photos": np.append(plants + 0.8, np.nan), "none": plants[:0]},
            0.995,
        ),
        ("unknown", {"plants": plants}, 5.0),
    ]
    export_plots.scores(panels, tmp_path / "s.png")
    words = [
        text.get_text() for part in drawn[0].subfigs for axis in part.axes for text in axis.texts
    ]
    assert words == [
        "plants (100): 1.0% beyond",
        "photos (101): 80.2% beyond",
        "plants (100): 0.0% beyond",
    ]
    for axis in drawn[0].subfigs[0].axes[:2]:
        assert sum(patch.get_height() for patch in axis.patches) == pytest.approx(1.0), (
            "nothing lies outside the picture"
        )
    export_plots.scores([], tmp_path / "e.png")
    assert (tmp_path / "e.png").stat().st_size > 0


def test_a_dark_style_and_pyplot_are_left_alone(tmp_path):
    import sys

    import matplotlib

    before = "matplotlib.pyplot" in sys.modules
    with matplotlib.rc_context({"figure.facecolor": "black"}):
        export_plots.deferral(
            {"n": 1, "browser": 0.5, "server": 0.5, "hybrid": 0.5, "sent": 0.0, "by_share": []},
            tmp_path / "d.png",
        )
        assert matplotlib.rcParams["figure.facecolor"] == "black"
    assert np.median(np.asarray(Image.open(tmp_path / "d.png").convert("L"))) > 230
    assert ("matplotlib.pyplot" in sys.modules) == before
