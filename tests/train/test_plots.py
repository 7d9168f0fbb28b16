"""Pictures of training: what is drawn and named, at small and at large class counts."""

import numpy as np
import pytest
from judged_data import outcomes, tree_of
from PIL import Image

from common.train import plots
from common.train.metrics import Judged


@pytest.fixture
def drawn(monkeypatch):
    """Keep the figures that the module would close."""
    pyplot = plots._pyplot()
    kept, save = [], pyplot.Figure.savefig
    monkeypatch.setattr(pyplot, "close", kept.append)
    monkeypatch.setattr(
        pyplot.Figure, "savefig", lambda figure, path, dpi: save(figure, path, dpi=dpi / 4)
    )  # a quarter is quicker
    yield kept
    monkeypatch.undo()
    pyplot.close("all")


def history(*phases: tuple[str, int]) -> list[dict]:
    rows = []
    for name, epochs in phases:
        for _ in range(epochs):
            e = len(rows) + 1
            rows.append(
                {
                    "epoch": e,
                    "phase": name,
                    "train_loss": 1 / e,
                    "species_nll": 1 / e,
                    "disease_nll": 1 / e,
                    "lr": 1e-3 / e,
                    "species_top1": 1 - 1 / e,
                    "disease_top1": 0.5,
                    "cascade_top1": 0.4,
                    "macro_f1": 0.3,
                    "tail_f1": None if e == 1 else 0.2,
                    "images_per_second": 100.0,
                    "wait_share": 0.2,
                    "score": -abs(e - 2),
                }
            )
    return rows


def labels(axis) -> list[str]:
    return [text.get_text() for text in axis.get_yticklabels() if text.get_text()]


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


@pytest.mark.parametrize(
    "phases",
    [
        (("A1", 1),),
        (("A1", 1), ("A2", 1), ("A3", 1)),
        (("1: head", 5), ("2: top", 25), ("3: all", 30)),
    ],
)
def test_curves_mark_phases_and_the_best_epoch(phases, tmp_path, drawn):
    rows = history(*phases)
    plots.curves(rows, tmp_path / "curves.png")
    assert np.median(pixels(tmp_path / "curves.png")) > 230, "light ground"
    boundaries = np.cumsum([n for _, n in phases])[:-1] + 0.5
    best = min(len(rows), 2)
    for axis in drawn[0].axes[:5]:
        upright = [
            line.get_xdata()[0]
            for line in axis.lines
            if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
        ]
        assert sorted(upright) == sorted([*boundaries, best])
        assert axis.get_xlim() == (0.5, len(rows) + 0.5)
        ticks = [t for t in axis.get_xticks() if 1 <= t <= len(rows)]
        assert 1 <= len(ticks) <= 14
        assert all(t == int(t) for t in ticks)
    assert all(name in drawn[0].get_suptitle() for name, _ in phases)


def test_curves_leave_out_what_was_not_measured(tmp_path, drawn):
    rows = [
        {k: v for k, v in row.items() if k not in ("species_nll", "tail_f1", "wait_share", "score")}
        for row in history(("A", 3))
    ]
    for row in rows:
        row["disease_nll"] = 0.0  # a tree without diseases
    plots.curves(rows, tmp_path / "curves.png")
    named = [
        line.get_label()
        for axis in drawn[0].axes[:4]
        for line in axis.lines
        if not line.get_label().startswith("_")
    ]
    assert named == ["train", "species", "all classes", "heads"]


def test_a_small_matrix_names_all_and_shows_its_shares(tmp_path, drawn):
    tree = tree_of(8, 24)
    judged, _ = outcomes(tree, 500)
    plots.confusion(judged, tree, tmp_path / "c.png", "test")
    axis = drawn[0].axes[0]
    assert sorted(labels(axis)) == sorted(tree.species)
    assert "test" in axis.get_title()
    shares = axis.images[0].get_array()
    np.testing.assert_allclose(shares.sum(1), 1)
    order = [tree.species.index(name) for name in labels(axis)]
    truth = tree.class_species[judged.class_idx]
    for i, j in ((0, 0), (0, 1), (3, 2)):
        mine = truth == order[i]
        assert shares[i, j] == pytest.approx((judged.species[mine] == order[j]).mean())
    assert len(axis.texts) == (shares >= 0.005).sum()


@pytest.mark.parametrize(("species", "classes"), [(320, 11_499), (3_000, 3_000)])
def test_a_large_matrix_names_the_most_confused_alone(species, classes, tmp_path, drawn):
    tree = tree_of(species, classes)
    judged, _ = outcomes(tree, 30_000, accuracy=0.99)
    mixed = np.flatnonzero(judged.class_idx == judged.joint)[
        :4000
    ]  # two species far apart, taken for each other
    a, b = int(tree.offsets[7]), int(tree.offsets[species - 9])
    judged.class_idx[mixed[:2000]], judged.class_idx[mixed[2000:]] = a, b
    judged.species[mixed] = np.where(
        np.arange(4000) % 2, tree.class_species[a], tree.class_species[b]
    )
    plots.confusion(judged, tree, tmp_path / "c.png")
    whole, zoom = drawn[0].axes[:2]
    shown = labels(zoom)
    assert len(shown) == 24
    assert abs(shown.index("plant_7") - shown.index(f"plant_{species - 9}")) == 1
    assert max(shown.index("plant_7"), shown.index(f"plant_{species - 9}")) < 8, (
        "the most confused come first"
    )
    assert whole.images[0].get_array().shape[0] <= 400
    assert max(pixels(tmp_path / "c.png").shape) < 2500 / 4
    np.testing.assert_allclose(zoom.images[0].get_array().sum(1), 1)


def test_within_the_worst_species(tmp_path, drawn):
    tree = tree_of(6, 150)
    rng = np.random.default_rng(0)
    class_idx = rng.integers(0, 150, 6000)
    species, joint = tree.class_species[class_idx], class_idx.copy()
    for s, share in (
        (4, 0.5),
        (1, 0.4),
        (5, 0.3),
        (2, 0.2),
        (0, 0.1),
    ):  # wrong diseases within the species
        wrong = (species == s) & (rng.random(6000) < share)
        joint[wrong] = tree.offsets[s] + (class_idx[wrong] - tree.offsets[s] + 1) % 25
    joint[:500] = (class_idx[:500] + 75) % 150  # other species
    zeros = np.zeros(6000)
    judged = Judged(
        class_idx,
        joint,
        joint,
        joint,
        tree.class_species[joint],
        class_idx,
        *[zeros] * 4,
    )
    assert plots.within_species(judged, tree, tmp_path / "w.png", "test")
    axes = drawn[0].axes
    assert [axis.get_title().split(":")[0] for axis in axes] == [
        "plant_4",
        "plant_1",
        "plant_5",
        "plant_2",
    ]
    for axis, s in zip(axes, (4, 1, 5, 2), strict=True):
        names, shares = labels(axis), axis.images[0].get_array()
        assert len(names) == 17
        assert names[-1] == "(9 others)"
        assert shares.shape == (17, 18)
        np.testing.assert_allclose(shares.sum(1), 1)
        mine = class_idx == tree.offsets[s] + int(names[0].split("_")[1])
        assert shares[0, 0] == pytest.approx((joint[mine] == class_idx[mine]).mean())
        assert shares[0, -1] == pytest.approx((tree.class_species[joint[mine]] != s).mean())
    right = Judged(
        class_idx,
        class_idx,
        class_idx,
        class_idx,
        species,
        class_idx,
        *[zeros] * 4,
    )
    assert not plots.within_species(right, tree, tmp_path / "w.png")
    assert not (tmp_path / "w.png").exists()


def test_block_order_puts_the_confused_together():
    rng = np.random.default_rng(2)
    groups = rng.permutation(60).reshape(
        12, 5
    )  # classes of a group are taken for each other, the first groups most often
    pairs = [
        (a, b)
        for g, group in enumerate(groups)
        for a in group
        for b in group
        if a != b
        for _ in range(40 - 3 * g)
    ]
    noise = rng.integers(0, 60, (200, 2)).tolist()
    truth, answer = np.array([*pairs, *noise]).T
    order = plots.block_order(truth, answer, 70)
    assert sorted(order.tolist()) == list(range(70))
    place = np.argsort(order)
    for g, group in enumerate(groups):
        assert np.ptp(place[group]) == 4, "a group stands together"
        assert g > 5 or abs(place[group].min() // 5 - g) <= 1, "the most confused first"
    untouched = order[-10:].tolist()
    assert untouched == list(range(60, 70)), "classes without an error come last, in order"


def test_block_order_keeps_chains_short():
    each = np.arange(
        1, 10
    )  # 0 is taken for 1 once, 1 for 2 twice ...: without a limit all would be one chain
    order = plots.block_order(
        np.repeat(each - 1, each), np.repeat(each, each), 10, longest=4
    ).tolist()
    assert [sorted(order[:4]), sorted(order[4:8]), sorted(order[8:])] == [
        [6, 7, 8, 9],
        [2, 3, 4, 5],
        [0, 1],
    ]
