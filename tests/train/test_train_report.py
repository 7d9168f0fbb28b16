"""Reports and intervals of training: against slow references, and as files a person reads."""

import csv
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from judged_data import outcomes, tree_of

from common.train import plots
from common.train import report as reports
from common.train.metrics import (
    Judged,
    bootstrap,
    class_figures,
    f1_per_class,
    summarise,
    wilson,
)
from common.train.report import evaluate_report, size_bands

TREE = tree_of(5, 14)

# region intervals


def slow_bootstrap(
    judged: Judged, tree, sizes: np.ndarray, resamples: int, seed: int
) -> tuple[dict, np.ndarray]:
    """The same draws, picture by picture."""
    by_class = {
        c: np.flatnonzero(judged.class_idx == c).tolist()
        for c in np.unique(judged.class_idx).tolist()
    }
    order = [i for members in by_class.values() for i in members]
    f1s, rows = [], []
    for k in range(resamples):
        rng = np.random.default_rng([seed, k])
        draws, lots = rng.random(len(order), dtype=np.float32), []
        for place, i in enumerate(order):
            members = by_class[int(judged.class_idx[i])]
            at = int(draws[place] * np.float32(len(members) + 1))
            lots.append(members[at] if at < len(members) else None)
        lent = [order[j] for j in rng.integers(0, len(order), lots.count(None)).tolist()]
        truth, said, hits, species, told = [], [], [], 0, []
        for i, drawn in zip(order, lots, strict=True):
            donor = lent.pop(0) if drawn is None else drawn
            hit = judged.joint[donor] == judged.class_idx[donor]
            truth.append(judged.class_idx[i])
            said.append(judged.class_idx[i] if drawn is None and hit else judged.joint[donor])
            hits.append(hit)
            species += judged.species[donor] == tree.class_species[judged.class_idx[donor]]
            if len(tree.diseases[tree.class_species[judged.class_idx[i]]]) > 1:
                told.append(judged.rank[donor] == 0)
        truth, said, hits = map(np.array, (truth, said, hits))
        f1 = [
            2 * hits[truth == c].sum() / ((truth == c).sum() + (said == c).sum()) for c in by_class
        ]
        f1s.append(f1)
        rows.append(
            {
                "macro_f1": np.mean(f1),
                "tail_f1": np.mean(
                    [v for v, c in zip(f1, by_class, strict=True) if sizes[c] <= 80]
                ),
                "cascade_top1": hits.mean(),
                "species_top1": species / len(order),
                "disease_top1": np.mean(told),
            }
        )
    reported = summarise(judged, tree, sizes)
    whole = {}
    for key in rows[0]:
        values = np.array([row[key] for row in rows])
        whole[key] = np.quantile(values, [0.025, 0.975]) - values.mean() + reported[key]
    return whole, np.quantile(f1s, [0.025, 0.975], axis=0).T


def test_bootstrap_equals_the_slow_one():
    judged, sizes = outcomes(TREE, 150)
    got, per_class = bootstrap(judged, TREE, sizes, resamples=40, seed=3)
    want, want_per_class = slow_bootstrap(judged, TREE, sizes, 40, 3)
    for key, ends in want.items():
        assert got[key] == pytest.approx(ends, abs=1e-6), key
    np.testing.assert_allclose(per_class[np.unique(judged.class_idx)], want_per_class, atol=1e-6)


def test_bootstrap_is_a_function_of_the_seed_and_holds_the_figures():
    judged, sizes = outcomes(TREE, 400)
    first, again, other = (
        bootstrap(judged, TREE, sizes, resamples=100, seed=s)[0] for s in (0, 0, 1)
    )
    assert first == again != other
    reported = summarise(judged, TREE, sizes)
    for key, (low, high) in first.items():
        assert low < reported[key] < high or reported[key] in (low, high), key
    assert first["macro_f1"][1] - first["macro_f1"][0] < 0.2


def test_classes_without_pictures_and_trees_without_a_tail():
    judged, _ = outcomes(TREE, 60)
    judged.class_idx[judged.class_idx == 6] = 0
    whole, per_class = bootstrap(judged, TREE, np.full(14, 500), resamples=20)
    assert np.isnan(per_class[6]).all()
    assert np.isfinite(per_class[0]).all()
    assert np.isnan(whole["tail_f1"]).all()


def test_intervals_of_classes_of_one_to_three_pictures_hold_the_mean():
    """Of 40 repeated judgements nearly all intervals hold the mean; each class drawn from alone
    they hold 60 %.
    """
    rng = np.random.default_rng(1)
    tree, zeros = tree_of(15, 60), np.zeros(200)
    class_idx = np.repeat(np.arange(60), rng.integers(1, 4, 60))
    chance = rng.beta(4, 1.2, 60)[class_idx]
    trials = []
    for trial in range(40):
        right = rng.random(len(class_idx)) < chance
        joint = np.where(
            right,
            class_idx,
            class_idx // 4 * 4 + (class_idx + rng.integers(1, 4, len(class_idx))) % 4,
        )
        judged = Judged(
            class_idx,
            joint,
            joint,
            joint,
            tree.class_species[joint],
            1 - right,
            *[zeros[: len(class_idx)]] * 4,
        )
        ends = bootstrap(judged, tree, np.full(60, 9), resamples=80, seed=trial)[0]["tail_f1"]
        trials.append((f1_per_class(class_idx, joint, 60).mean(), *ends))
    value, low, high = np.array(trials).T
    held = ((low <= value.mean()) & (value.mean() <= high)).mean()
    assert 0.8 <= held <= 1, held
    assert (high - low).mean() < 6 * value.std(), held


def test_a_class_with_all_right_is_not_certain():
    judged, sizes = outcomes(TREE, 200, accuracy=0.7)
    rare = np.flatnonzero(np.bincount(judged.class_idx, minlength=14) > 2)[-1]
    judged.joint[judged.class_idx == rare] = rare
    low, high = bootstrap(judged, TREE, sizes, resamples=300)[1][rare]
    assert low < 1
    assert high > low


def test_wilson_by_known_values():
    np.testing.assert_allclose(
        wilson(np.array([0, 5, 10, 0]), np.array([10, 10, 10, 0])),
        [[0, 0.2775], [0.2366, 0.7634], [0.7225, 1], [np.nan, np.nan]],
        atol=2e-4,
    )


# endregion

# region report


@pytest.fixture
def no_drawing(monkeypatch):
    """Leave the pictures out, which test_plots looks at."""
    for name in ("confusion", "within_species"):
        monkeypatch.setattr(plots, name, lambda *_: False)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(reports, "RESAMPLES", 10)


def organized(tree, sizes):
    """A data set of which nothing but its classes and their sizes is asked."""
    return SimpleNamespace(tree=tree, class_sizes=sizes, train_sizes=sizes // 2)


def report(folder, tree, n, **more):
    judged, sizes = outcomes(tree, n)
    metrics = evaluate_report(
        folder,
        judged,
        organized(tree, sizes),
        title="Stage B",
        checkpoint="epoch=10-best.pt",
        **more,
    )
    return judged, sizes, metrics, (folder / "report.md").read_text()


HISTORY = [
    {
        "epoch": e,
        "phase": "A1 warm-up" if e < 3 else "A2",
        "train_loss": 1 / e,
        "species_nll": 1.0,
        "disease_nll": 1.0,
        "lr": 1e-3,
        "species_top1": 0.5,
        "disease_top1": 0.5,
        "cascade_top1": 0.4,
        "macro_f1": 0.3,
        "tail_f1": None,
        "images_per_second": 9.0,
        "wait_share": 0.1,
        "score": e,
    }
    for e in (1, 2, 3, 4)
]


def test_report_of_a_run(tmp_path, capsys):
    judged, sizes, metrics, text = report(
        tmp_path / "run", TREE, 400, history=HISTORY, memory="| stage |", split="test"
    )
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "report.md",
        "report.json",
        "classes.csv",
        "curves.png",
        "confusion.png",
        "confusion_within.png",
    }
    assert metrics == summarise(judged, TREE, sizes)
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads == [
        "# Stage B",
        "## The tail",
        "## All figures",
        "## Where the errors come from",
        "### Ways to decide",
        "### Species with most errors",
        "### Most frequent confusions",
        "## Pictures",
        "## Memory",
        "## Classes, rarest first",
    ]
    assert all(
        f"![{name}]" in text for name in ("curves.png", "confusion.png", "confusion_within.png")
    )
    assert "the test split" in text
    told = capsys.readouterr().out
    assert "epoch=10-best.pt on test" in told
    assert f"{metrics['tail_f1']:.3f}" in told
    assert "another species" in told
    data = json.loads(
        (tmp_path / "run" / "report.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    assert data["budget"]["wrong"] == int((judged.joint != judged.class_idx).sum())
    assert set(data["decisions"]) == {"joint", "routed", "flat"}
    assert (
        data["intervals"]["macro_f1"][0]
        <= data["metrics"]["macro_f1"]
        <= data["intervals"]["macro_f1"][1]
    )


def test_classes_csv_holds_every_class_rarest_first(tmp_path, no_drawing):
    judged, sizes, _, text = report(tmp_path, TREE, 400)
    with (tmp_path / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["class"] for r in rows} == {TREE.class_name(i) for i in range(14)}
    assert [int(r["pictures"]) for r in rows] == sorted(sizes.tolist())
    for row in rows:
        c = next(i for i in range(14) if TREE.class_name(i) == row["class"])
        mine, named = judged.class_idx == c, judged.joint == c
        assert (int(row["judged"]), int(row["train"])) == (mine.sum(), sizes[c] // 2)
        assert float(row["recall"]) == pytest.approx((mine & named).sum() / mine.sum(), abs=1e-4)
        assert float(row["precision"]) == pytest.approx(
            (mine & named).sum() / named.sum(), abs=1e-4
        )
        wrong = judged.joint[mine & ~named]
        if len(wrong):
            counts = np.bincount(wrong, minlength=14)
            assert (
                int(row["taken"])
                == counts.max()
                == counts[[TREE.class_name(i) for i in range(14)].index(row["taken_for"])]
            )
        assert f"| {row['class']}" in text


@pytest.mark.timing
def test_a_large_report_stays_readable_and_quick(tmp_path, no_drawing):
    tree, began = tree_of(320, 11_499), time.perf_counter()
    judged, _, _, text = report(tmp_path, tree, 60_000)
    assert time.perf_counter() - began < 20
    assert len(text.splitlines()) < 230
    assert max(map(len, text.splitlines())) < 300
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 11_500
    rarest, worst = text.split("## The 50 rarest classes")[1].split("## The 50 worst classes")
    assert rarest.count("\n| plant_") == worst.count("\n| plant_") == 50
    f1 = f1_per_class(judged.class_idx, judged.joint, 11_499)
    most = max(
        np.bincount(judged.class_idx)[f1 == 0]
    )  # of the classes at F1 0 that with most judged pictures comes first
    assert int(worst.split("\n| plant_")[1].split("|")[3]) == most


def test_a_flat_tree_speaks_of_classes_alone(tmp_path, capsys, no_drawing):
    *_, text = report(tmp_path, tree_of(6, 6), 200)
    told = capsys.readouterr().out
    assert "disease" not in text.replace("Stage B", "")
    assert "disease" not in told
    assert "routed" not in text
    assert "plant_0/" not in text
    assert "| plant_0" in text


def test_a_model_that_is_always_right(tmp_path):
    (tmp_path / "confusion_within.png").write_bytes(b"of the report before")
    judged, sizes = outcomes(TREE, 300, accuracy=2.0)
    judged.routed = judged.flat = judged.joint
    judged.species = TREE.class_species[judged.joint]
    evaluate_report(tmp_path, judged, organized(TREE, sizes), title="Stage B", checkpoint="x.pt")
    assert not (tmp_path / "confusion_within.png").exists(), (
        "the picture of an earlier report is deleted"
    )
    text = (tmp_path / "report.md").read_text()
    assert "Most frequent confusions" not in text
    assert "confusion_within" not in text


def test_an_empty_split_is_refused(tmp_path):
    judged, sizes = outcomes(TREE, 0)
    with pytest.raises(ValueError, match="no picture in the test split"):
        evaluate_report(
            tmp_path / "new", judged, organized(TREE, sizes), title="", checkpoint="", split="test"
        )
    assert not (tmp_path / "new").exists()


def test_bands_add_up():
    judged, sizes = outcomes(TREE, 400)
    bands, figures = size_bands(class_figures(judged, TREE), sizes), class_figures(judged, TREE)
    assert sum(b["classes"] for b in bands) == 14
    assert sum(b["pictures"] for b in bands) == 400
    for band in bands:
        inside = (sizes >= band["from"]) & (sizes <= (band["to"] or 10**9)) & (figures.present > 0)
        assert band["judged"] == inside.sum()
        assert band["f1_low"] == (figures.f1[inside] < 0.7).sum()
        assert not inside.any() or band["f1"] == pytest.approx(figures.f1[inside].mean())


# endregion
