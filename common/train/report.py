"""What a person reads of a trained model: report.md with the tail first, its pictures, classes.csv
and report.json.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.console import header, say, table
from common.files import write_rows, write_text
from common.train import plots
from common.train.intervals import bootstrap, wilson
from common.train.metrics import (
    DECISIONS,
    TAIL_AT_MOST,
    ClassFigures,
    Judged,
    class_figures,
    confused_pairs,
    decision_figures,
    error_budget,
    for_json,
    summarise,
)

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
    tree: ClassTree,
    class_sizes: np.ndarray,
    train_sizes: np.ndarray,
    *,
    title: str,
    checkpoint: str,
    split: str = "val",
    history: Sequence[dict[str, Any]] = (),
    memory: str = "",
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Write and print the report of a judged split: report.md, report.json, classes.csv and its
    pictures.

    Args:
        folder: where the files go; it is made.
        judged: outcomes of the split, every picture once.
        tree: the classes.
        class_sizes, train_sizes: int (classes,), pictures per class over all splits (which decides
            what is rare) and in train.
        title: heading.
        checkpoint: name of the judged checkpoint.
        split: name of the split, for headings.
        history: rows of log.jsonl, drawn as curves.png; none for a checkpoint judged without
            training.
        memory: `MemoryLog.table()`, or nothing.
        resamples, seed: of the bootstrap intervals.

    Returns:
        the figures of `summarise`.
    """
    if len(judged.class_idx) == 0:
        raise ValueError(f"there is no picture in the {split} split to judge")
    folder.mkdir(parents=True, exist_ok=True)
    metrics, figures = summarise(judged, tree, class_sizes), class_figures(judged, tree)
    whole, per_class = bootstrap(judged, tree, class_sizes, resamples=resamples, seed=seed)
    budget, decisions = error_budget(judged, tree), decision_figures(judged, tree)
    names = _names(tree)
    bands = size_bands(figures, class_sizes)
    classes = _class_rows(figures, per_class, names, class_sizes, train_sizes)
    write_rows(folder / "classes.csv", _CSV_TITLES, classes)
    pictures = ["confusion.png"]
    plots.confusion(judged, tree, folder / "confusion.png", split)
    if plots.within_species(judged, tree, folder / "confusion_within.png", split):
        pictures.append("confusion_within.png")
    if history:
        plots.curves(history, folder / "curves.png")
        pictures.insert(0, "curves.png")
    text = [
        f"# {title}",
        "",
        f"Checkpoint `{checkpoint}`, judged on the {split} split: {metrics['n']:,} pictures of "
        f"{int((figures.present > 0).sum()):,} of {tree.num_classes:,} classes. Intervals hold 95 "
        f"% of {resamples:,} bootstrap "
        "resamples (as many pictures of each class drawn again).",
        "",
        *_tail(figures, metrics, whole, class_sizes, bands),
        "## All figures",
        "",
        _headline(metrics, whole, tree),
        "",
        *_errors(judged, tree, names, budget, decisions),
        "## Pictures",
        "",
        *(f"![{name}]({name})" for name in pictures),
        "",
        *(["## Memory", "", memory, ""] if memory else []),
        *_class_tables(figures, classes, names, class_sizes),
    ]
    write_text(folder / "report.md", "\n".join(text))
    write_text(
        folder / "report.json",
        json.dumps(
            {
                "checkpoint": checkpoint,
                "split": split,
                "metrics": for_json(metrics),
                "intervals": {
                    key: [None if v != v else v for v in ends] for key, ends in whole.items()
                },
                "budget": budget,
                "bands": [for_json(band) for band in bands],
                "decisions": decisions,
            },
            indent=1,
        ),
    )
    header(f"{title}: {checkpoint} on {split}")
    say(
        _headline(metrics, whole, tree),
        "",
        _budget_table(budget, tree),
        "",
        f"report: {folder / 'report.md'} (every class: {folder / 'classes.csv'})",
    )
    return metrics


# region the tail, the figures, the budget


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


def _range(ends: Sequence[float]) -> str:
    return "-" if ends[0] != ends[0] else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _headline(
    metrics: dict[str, float], whole: dict[str, tuple[float, float]], tree: ClassTree
) -> str:
    """The figures with interval and target; of a tree without diseases only those that mean
    something there.
    """
    flat = tree.num_classes == tree.num_species
    rows = [
        (
            "classes right" if flat and key == "cascade_top1" else words,
            _number(metrics[key]),
            _range(whole[key]),
            f"{target:.2f}" if target and not flat else "",
        )
        for key, words, target in _FIGURES
        if not flat or key in _OF_ANY_TREE
    ]
    rows += [
        (
            "-log P(class), mean" if flat else "-log P(species), mean",
            _number(metrics["species_nll"]),
            "",
            "",
        )
    ]
    rows += (
        []
        if flat
        else [("-log P(disease given species), mean", _number(metrics["disease_nll"]), "", "")]
    )
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
    whole: dict[str, tuple[float, float]],
    class_sizes: np.ndarray,
    bands: list[dict[str, Any]],
) -> list[str]:
    tail = class_sizes <= TAIL_AT_MOST
    f1 = figures.f1[tail & (figures.present > 0)]
    told = f"{int(tail.sum()):,} of {len(tail):,} classes have {TAIL_AT_MOST} pictures or fewer"
    if len(f1):
        told += (
            f". Over the {len(f1):,} of them that have a picture in this split, F1 averages "
            f"**{_number(metrics['tail_f1'])}** "
            f"(95 %: {_range(whole['tail_f1'])}); {int((f1 < 0.7).sum()):,} lie under 0.7."
        )
    else:
        told += (
            ", none of which has a picture in this split." if tail.any() else ": there is no tail."
        )
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
    return ["## The tail", "", told, "", table(rows, titles), ""]


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


def _errors(
    judged: Judged,
    tree: ClassTree,
    names: list[str],
    budget: dict[str, int],
    decisions: dict[str, dict[str, float]],
) -> list[str]:
    species, answered, n = (
        tree.class_species[judged.class_idx],
        tree.class_species[judged.joint],
        tree.num_species,
    )
    out = ["## Where the errors come from", "", _budget_table(budget, tree), ""]
    if tree.num_classes > n:
        all_of, missed = (
            np.bincount(species, minlength=n),
            np.bincount(species[judged.joint != judged.class_idx], minlength=n),
        )
        other = np.bincount(species[species != answered], minlength=n)
        worst = [s for s in np.argsort(-missed, kind="stable")[:12].tolist() if missed[s]]
        out += [
            "### Ways to decide",
            "",
            table(
                [
                    (
                        name,
                        _number(row["class"]),
                        _number(row["species"]),
                        _number(row["macro_f1"]),
                        DECISIONS[name],
                    )
                    for name, row in decisions.items()
                ],
                ("decision", "class right", "species right", "macro F1", "what it is"),
            ),
            "",
            "Species right: row `routed` by the largest sum over a species' classes, row `joint` "
            "by the species of the best class.",
            "",
        ]
        out += (
            [
                "### Species with most errors",
                "",
                table(
                    [
                        (
                            tree.species[s],
                            f"{all_of[s]:,}",
                            f"{missed[s]:,}",
                            f"{missed[s] / all_of[s]:.1%}",
                            f"{other[s]:,}",
                            f"{missed[s] - other[s]:,}",
                            f"{missed[s] / budget['wrong']:.1%}",
                        )
                        for s in worst
                    ],
                    (
                        "species",
                        "pictures",
                        "wrong",
                        "share",
                        "another species",
                        "another disease",
                        "of all errors",
                    ),
                ),
                "",
            ]
            if worst
            else []
        )
    pairs, counts = confused_pairs(judged.class_idx, judged.joint)
    out += (
        [
            "### Most frequent confusions",
            "",
            table(
                [
                    (names[a], names[b], f"{count:,}")
                    for (a, b), count in zip(pairs[:15].tolist(), counts[:15].tolist(), strict=True)
                ],
                ("true class", "answered", "pictures"),
            ),
            "",
        ]
        if len(pairs)
        else []
    )
    return out


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


def _names(tree: ClassTree) -> list[str]:
    """Name of each class, without a disease where no species has two."""
    if tree.num_classes == tree.num_species:
        return list(tree.species)
    return [
        f"{species}/{disease}"
        for species, diseases in zip(tree.species, tree.diseases, strict=True)
        for disease in diseases
    ]


def _class_rows(
    figures: ClassFigures,
    f1_ends: np.ndarray,
    names: list[str],
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
    figures: ClassFigures, rows: list[tuple[object, ...]], names: list[str], class_sizes: np.ndarray
) -> list[str]:
    """All classes where they fit on a page, otherwise the rarest and the worst."""

    def shown(some: Sequence[tuple[object, ...]]) -> str:
        def cell(value: object) -> str:
            return f"{float(str(value)):.3f}" if value != "" else "-"

        def ends(low: object, high: object) -> str:
            return f"{cell(low)} to {cell(high)}" if low != "" else "-"

        return table(
            [
                (
                    *r[:4],
                    cell(r[4]),
                    cell(r[5]),
                    ends(r[9], r[10]),
                    cell(r[6]),
                    ends(r[7], r[8]),
                    f"{r[11]} ({r[12]})" if r[11] else "",
                )
                for r in some
            ],
            (
                "class",
                "pictures",
                "train",
                "judged",
                "precision",
                "recall",
                "recall 95 %",
                "F1",
                "F1 95 %",
                "mostly taken for",
            ),
        )

    note = (
        "`pictures` are those of all splits. The interval of recall is Wilson's, that of F1 the "
        "bootstrap's. "
        "Every class is in [classes.csv](classes.csv)."
    )
    if len(rows) <= 2 * SHOWN:
        return ["## Classes, rarest first", "", note, "", shown(rows), ""]
    by_name = {row[0]: row for row in rows}
    judged = np.flatnonzero(figures.present > 0)
    worst = judged[np.lexsort((class_sizes[judged], -figures.present[judged], figures.f1[judged]))][
        :SHOWN
    ]
    return [
        f"## The {SHOWN} rarest classes",
        "",
        note,
        "",
        shown(rows[:SHOWN]),
        "",
        f"## The {SHOWN} worst classes",
        "",
        "By F1; of equal ones, that with most judged pictures first.",
        "",
        shown([by_name[names[i]] for i in worst.tolist()]),
        "",
    ]


# endregion
