"""What a person reads of a trained model: report.md with the tail first, its pictures, classes.csv
and report.json.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.console import header, say, table
from common.files import write_rows, write_text
from common.train import plots
from common.train.dataset import Organized
from common.train.metrics import (
    DECISIONS,
    TAIL_AT_MOST,
    ClassFigures,
    Judged,
    bootstrap,
    class_figures,
    confused_pairs,
    decision_figures,
    error_budget,
    for_json,
    summarise,
    wilson,
)

RESAMPLES = 1000  # of the bootstrap intervals
SHOWN = 50  # rows of a class table in report.md; classes.csv has all
BANDS = (
    (1, 19),
    (20, 49),
    (50, TAIL_AT_MOST),
    (TAIL_AT_MOST + 1, 199),
    (200, None),
)  # pictures per class over all splits
_FIGURES = (  # key, words, target of the hierarchical system's plan
    ("tail_f1", "F1, mean over the tail's classes", 0.80),
    ("macro_f1", "F1, mean over all classes", None),
    ("cascade_top1", "species and disease right (joint)", 0.90),
    ("species_top1", "species right", 0.95),
    ("disease_top1", "disease right, species given", 0.88),
    ("disease_top3", "disease among the first 3, species given", 0.94),
    ("routed_top1", "species and disease right (routed)", None),
)
_OF_ANY_TREE = ("tail_f1", "macro_f1", "cascade_top1")


def evaluate_report(
    folder: Path,
    judged: Judged,
    data: Organized,
    *,
    title: str,
    checkpoint: str,
    split: str = "val",
    history: Sequence[dict[str, Any]] = (),
    memory: str = "",
) -> dict[str, float]:
    """Write and print the report of a judged split: report.md, report.json, classes.csv and its
    pictures.

    Args:
        folder: where the files go; it is made.
        judged: outcomes of the split, every picture once.
        data: gives the classes, and the pictures of each over all splits (which decides what is
            rare) and in train.
        title: heading.
        checkpoint: name of the judged checkpoint.
        split: name of the split, for headings.
        history: rows of log.jsonl, drawn as curves.png; none for a checkpoint judged without
            training.
        memory: `MemoryLog.table()`, or nothing.

    Returns:
        the figures of `summarise`.

    Raises:
        ValueError: where the split holds no picture.
    """
    if len(judged.class_idx) == 0:
        raise ValueError(f"there is no picture in the {split} split to judge")
    folder.mkdir(parents=True, exist_ok=True)
    tree, class_sizes = data.tree, data.class_sizes
    metrics, figures = summarise(judged, tree, class_sizes), class_figures(judged, tree)
    intervals, f1_intervals = bootstrap(judged, tree, class_sizes, resamples=RESAMPLES)
    bands, decisions = size_bands(figures, class_sizes), decision_figures(judged, tree)
    headline = _headline(metrics, intervals, tree)
    budget = error_budget(judged, tree)
    budget_table, names = _budget_table(budget, tree), tree.display_names
    classes = _class_rows(figures, f1_intervals, names, class_sizes, data.train_sizes)
    write_rows(folder / "classes.csv", _CSV_TITLES, classes)
    paragraphs = [
        f"# {title}",
        f"Checkpoint `{checkpoint}`, judged on the {split} split: {metrics['n']:,} pictures of "
        f"{int((figures.present > 0).sum()):,} of {tree.num_classes:,} classes. Intervals hold 95 "
        f"% of {RESAMPLES:,} bootstrap resamples (as many pictures of each class drawn again).",
        *_tail(figures, metrics, intervals, class_sizes, bands),
        *("## All figures", headline),
        *("## Where the errors come from", budget_table),
        *(_decisions(decisions) if tree.num_classes > tree.num_species else []),
        *(_worst_species(judged, tree) if tree.num_classes > tree.num_species else []),
        *_confusions(judged, names),
        *(
            "## Pictures",
            "What it got wrong: [report.html](report.html)",
            "\n".join(f"![{name}]({name})" for name in _draw(folder, judged, tree, split, history)),
        ),
        *(("## Memory", memory) if memory else ()),
        *_class_tables(figures, classes, names, class_sizes),
    ]
    write_text(folder / "report.md", "\n\n".join(paragraphs) + "\n")
    content = {
        "checkpoint": checkpoint,
        "split": split,
        "metrics": for_json(metrics),
        "intervals": {
            key: [None if v != v else v for v in ends] for key, ends in intervals.items()
        },
        "budget": budget,
        "bands": [for_json(band) for band in bands],
        "decisions": decisions,
    }
    write_text(folder / "report.json", json.dumps(content, indent=1))
    header(f"{title}: {checkpoint} on {split}")
    where = f"report: {folder / 'report.md'} (every class: {folder / 'classes.csv'})"
    say(headline, "", budget_table, "", where)
    return metrics


def _draw(
    folder: Path, judged: Judged, tree: ClassTree, split: str, history: Sequence[dict[str, Any]]
) -> list[str]:
    """Draw the pictures that there is something to draw for; their names."""
    if history:
        plots.curves(history, folder / "curves.png")
    plots.confusion(judged, tree, folder / "confusion.png", split)
    within = plots.within_species(judged, tree, folder / "confusion_within.png", split)
    drawn = {"curves.png": history, "confusion.png": True, "confusion_within.png": within}
    return [name for name, there in drawn.items() if there]


# region the tail, the figures, the budget


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


def _range(ends: Sequence[float]) -> str:
    return "-" if ends[0] != ends[0] else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _headline(
    metrics: dict[str, float], intervals: dict[str, tuple[float, float]], tree: ClassTree
) -> str:
    """The figures with interval and target; of a tree without diseases only those that mean
    something there.
    """
    flat = tree.num_classes == tree.num_species
    rows = [
        (
            "classes right" if flat and key == "cascade_top1" else words,
            _number(metrics[key]),
            _range(intervals[key]),
            f"{target:.2f}" if target and not flat else "",
        )
        for key, words, target in _FIGURES
        if not flat or key in _OF_ANY_TREE
    ]
    nll = {"-log P(class), mean" if flat else "-log P(species), mean": "species_nll"}
    if not flat:
        nll["-log P(disease given species), mean"] = "disease_nll"
    rows += [(words, _number(metrics[key]), "", "") for words, key in nll.items()]
    return table(rows, ("figure", "value", "95 % interval", "target"))


def size_bands(figures: ClassFigures, class_sizes: np.ndarray) -> list[dict[str, Any]]:
    """Sum the classes up by how many pictures they have, fewest first.

    Args:
        figures: of each class.
        class_sizes: int (classes,), pictures per class.

    Returns:
        per band `from` and `to` pictures (None = no end), `classes`, `judged` (classes with a
        picture), `pictures` judged, `recall` and `f1` (means over its judged classes, 0..1, NaN
        without), `f1_zero` and `f1_low` (classes at 0, under 0.7).
    """
    bands = []
    for low, high in BANDS:
        inside = (class_sizes >= low) & (class_sizes <= (high or np.inf))
        here = inside & (figures.present > 0)
        bands.append(
            {
                "from": low,
                "to": high,
                "classes": int(inside.sum()),
                "judged": int(here.sum()),
                "pictures": int(figures.present[here].sum()),
                "recall": float(figures.recall[here].mean()) if here.any() else np.nan,
                "f1": float(figures.f1[here].mean()) if here.any() else np.nan,
                "f1_zero": int((figures.f1[here] == 0).sum()),
                "f1_low": int((figures.f1[here] < 0.7).sum()),
            }
        )
    return bands


def _tail(
    figures: ClassFigures,
    metrics: dict[str, float],
    intervals: dict[str, tuple[float, float]],
    class_sizes: np.ndarray,
    bands: list[dict[str, Any]],
) -> list[str]:
    tail = class_sizes <= TAIL_AT_MOST
    f1 = figures.f1[tail & (figures.present > 0)]
    found = ", none of which has a picture in this split." if tail.any() else ": there is no tail."
    if len(f1):
        found = (
            f". Over the {len(f1):,} of them that have a picture in this split, F1 averages "
            f"**{_number(metrics['tail_f1'])}** (95 %: {_range(intervals['tail_f1'])}); "
            f"{int((f1 < 0.7).sum()):,} lie under 0.7."
        )
    sizes = f"{int(tail.sum()):,} of {len(tail):,} classes have {TAIL_AT_MOST} pictures or fewer"
    rows = [
        (
            f"{b['from']} to {b['to']}" if b["to"] else f"{b['from']} and more",
            f"{b['classes']:,}",
            f"{b['judged']:,}",
            f"{b['pictures']:,}",
            _number(b["recall"]),
            _number(b["f1"]),
            f"{b['f1_zero']:,}",
            f"{b['f1_low']:,}",
        )
        for b in bands
    ]
    titles = (
        "pictures of a class",
        "classes",
        "judged",
        "pictures judged",
        "mean recall",
        "mean F1",
        "F1 = 0",
        "F1 < 0.7",
    )
    return ["## The tail", sizes + found, table(rows, titles)]


def _budget_table(budget: dict[str, int], tree: ClassTree) -> str:
    n, wrong = budget["n"], budget["wrong"]
    lines = [
        ("wrong answers (joint)", "wrong", True),
        ("- another species", "species_errors", True),
        ("- the right species, another disease", "disease_errors", True),
        ("of these, right if routed", "routing_gains", True),
        (
            "of these, the species head is right, the joint answer of another species",
            "species_head_only",
            True,
        ),
        ("besides: right, but wrong if routed", "routing_losses", False),
    ][: 6 if tree.num_classes > tree.num_species else 1]
    return table(
        [
            (
                words,
                f"{budget[key]:,}",
                f"{budget[key] / n:.2%}",
                f"{budget[key] / wrong:.1%}" if inside and wrong else "",
            )
            for words, key, inside in lines
        ],
        ("what went wrong", "pictures", "of all", "of the wrong ones"),
    )


def _decisions(decisions: dict[str, dict[str, float]]) -> list[str]:
    figures = ("class", "species", "macro_f1")
    rows = [
        (name, *(_number(row[key]) for key in figures), DECISIONS[name])
        for name, row in decisions.items()
    ]
    return [
        "### Ways to decide",
        table(rows, ("decision", "class right", "species right", "macro F1", "what it is")),
        "Species right: row `routed` by the largest sum over a species' classes, row `joint` by "
        "the species of the best class.",
    ]


def _worst_species(judged: Judged, tree: ClassTree) -> list[str]:
    species, answered = tree.class_species[judged.class_idx], tree.class_species[judged.joint]
    wrong = judged.joint != judged.class_idx
    total, missed, other = (
        np.bincount(species[chosen], minlength=tree.num_species)
        for chosen in (slice(None), wrong, species != answered)
    )
    rows = [
        (
            tree.species[s],
            f"{total[s]:,}",
            f"{missed[s]:,}",
            f"{missed[s] / total[s]:.1%}",
            f"{other[s]:,}",
            f"{missed[s] - other[s]:,}",
            f"{missed[s] / wrong.sum():.1%}",
        )
        for s in np.argsort(-missed, kind="stable")[:12].tolist()
        if missed[s]
    ]
    kinds = ("another species", "another disease", "of all errors")
    titles = ("species", "pictures", "wrong", "share", *kinds)
    return ["### Species with most errors", table(rows, titles)] if rows else []


def _confusions(judged: Judged, names: Sequence[str]) -> list[str]:
    pairs, counts = confused_pairs(judged.class_idx, judged.joint)
    rows = [
        (names[a], names[b], f"{count:,}")
        for (a, b), count in zip(pairs[:15].tolist(), counts[:15].tolist(), strict=True)
    ]
    titles = ("true class", "answered", "pictures")
    return ["### Most frequent confusions", table(rows, titles)] if rows else []


# endregion

# region classes

_CSV_TITLES = (
    "class",
    "pictures",
    "train",
    "judged",
    "precision",
    "recall",
    "f1",
    "f1_low",
    "f1_high",
    "recall_low",
    "recall_high",
    "taken_for",
    "taken",
)


def _class_rows(
    figures: ClassFigures,
    f1_ends: np.ndarray,
    names: Sequence[str],
    class_sizes: np.ndarray,
    train_sizes: np.ndarray,
) -> list[tuple[object, ...]]:
    """One row per class in the columns of classes.csv, rarest first; cells that are not known are
    empty.
    """
    recall_ends = wilson(figures.hits, figures.present)
    numbers = np.column_stack([figures.precision, figures.recall, figures.f1, f1_ends, recall_ends])
    cells = [["" if v != v else f"{v:.4f}" for v in row] for row in numbers.tolist()]
    counts = np.column_stack([class_sizes, train_sizes, figures.present]).tolist()
    taken = [
        ("", "") if to < 0 else (names[to], times)
        for to, times in zip(figures.taken_for.tolist(), figures.taken.tolist(), strict=True)
    ]
    return [
        (names[i], *counts[i], *cells[i], *taken[i])
        for i in np.argsort(class_sizes, kind="stable").tolist()
    ]


def _class_tables(
    figures: ClassFigures,
    rows: list[tuple[object, ...]],
    names: Sequence[str],
    class_sizes: np.ndarray,
) -> list[str]:
    """All classes where they fit on a page, otherwise the rarest and the worst."""
    note = (
        "`pictures` are those of all splits. The interval of recall is Wilson's, that of F1 the "
        "bootstrap's. Every class is in [classes.csv](classes.csv)."
    )
    if len(rows) <= 2 * SHOWN:
        return ["## Classes, rarest first", note, _class_table(rows)]
    by_name = {row[0]: row for row in rows}
    judged = np.flatnonzero(figures.present > 0)
    order = np.lexsort((class_sizes[judged], -figures.present[judged], figures.f1[judged]))
    return [
        f"## The {SHOWN} rarest classes",
        note,
        _class_table(rows[:SHOWN]),
        f"## The {SHOWN} worst classes",
        "By F1; of equal ones, that with most judged pictures first.",
        _class_table([by_name[names[i]] for i in judged[order[:SHOWN]].tolist()]),
    ]


def _class_table(rows: Sequence[tuple[object, ...]]) -> str:
    """Rows of classes.csv as a table, rounded."""
    shown = []
    for *counts, taken_for, taken in rows:
        cells = [float(cell) if cell != "" else math.nan for cell in counts[4:]]
        precision, recall, f1 = map(_number, cells[:3])
        others = f"{taken_for} ({taken})" if taken_for else ""
        ends = _range(cells[5:7]), _range(cells[3:5])
        shown.append((*counts[:4], precision, recall, ends[0], f1, ends[1], others))
    measured = ("precision", "recall", "recall 95 %", "F1", "F1 95 %", "mostly taken for")
    return table(shown, ("class", "pictures", "train", "judged", *measured))


# endregion
