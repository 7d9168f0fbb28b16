"""report.html of an export: what its model got wrong on test, the plants that it rejects, and the
out-of-distribution (OOD) pictures that it lets through.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.decide import (
    ANSWERED,
    NOT_A_PLANT,
    ROLLED_UP,
    UNKNOWN_SPECIES,
    UNSURE,
    decide_batch,
    rejection_from_json,
    rollups_from_json,
)
from common.export.answers import Run
from common.export.fitting import Outcome
from common.export.pictures import BATCH, spread
from common.files import write_text
from common.train import gallery, page, plots
from common.train.dataset import EvalViews

SHOWN = 24  # pictures of a sheet
OOD_ROLES = ("plant", "species", "disease")  # kinds of pictures that are not to be answered in full
WORDS = {
    ANSWERED: "",
    ROLLED_UP: "answers the species alone",
    NOT_A_PLANT: "rejected: not a plant",
    UNKNOWN_SPECIES: "rejected: unknown species",
    UNSURE: "rejected: unsure",
}


def write_page(folder: Path, result: Mapping[str, Any], outcome: Outcome, run: Run) -> None:
    """Write report.html and its confusion.png.

    Args:
        folder: of the export.
        result: what `export` of 03 returns.
        outcome, run: of the FP32 model, whose figures report.md has, too.
    """
    card, data = result["bundle"]["models"]["model.onnx"], outcome.pictures.data
    rejection = rejection_from_json(card["rejection"], outcome.names)
    rollup = next(iter(rollups_from_json(card["rollup"]).values()))  # the default
    rules = data.tree, rejection, rollup
    answers, split = outcome.splits["test"], data.splits["test"]
    decided = decide_batch(answers.ranked, answers.ood, *rules)
    rejected = np.flatnonzero(decided.outcome >= NOT_A_PLANT)
    score = rejection.ood.value(answers.ood[rejected])
    rejected = rejected[np.lexsort((-score, decided.outcome[rejected] == UNSURE))]
    numbers = spread(len(split), outcome.pictures.at_most)
    views = EvalViews(split, outcome.pictures.size)

    def heat(rows: np.ndarray) -> np.ndarray:
        parts = np.array_split(rows, -(-len(rows) // BATCH))
        batches = (np.stack([views[i][0].numpy() for i in numbers[part]]) for part in parts)
        return np.concatenate([run(batch)[2] for batch in batches])

    shown = gallery.Gallery(
        data,
        "test",
        gallery.grade(answers.judged, data.tree),
        heat,
        numbers=numbers,
        note=lambda i: WORDS[int(decided.outcome[i])],
        also=rejected[:SHOWN].tolist(),
    )
    plots.confusion(answers.judged, data.tree, folder / "confusion.png", "test")
    count, wrong = len(answers.class_idx), len(shown.mistakes)
    lead = (
        f"{count:,} pictures of test: the best class is wrong for {wrong:,} ({wrong / count:.1%}). "
        f"At the default precision of {rollup.precision:g}, the rule rejects "
        f"{len(rejected):,} ({len(rejected) / count:.1%}), and answers the species alone for "
        f"{int((decided.outcome == ROLLED_UP).sum()):,}."
    )
    parts = [
        *shown.answers(),
        page.Section(
            "rejected",
            "Known plants that are rejected",
            f"{gallery.shown_of(SHOWN, rejected)} rejections, those by OOD score before "
            "those that are unsure, the highest score first.",
            page.sheet(shown.pictures(rejected[:SHOWN])),
        ),
        _let_through(outcome, run, rules),
        shown.confusion(folder),
        shown.by_class(),
    ]
    title = f"What {result['bundle']['backbone']} got wrong on test"
    write_text(folder / "report.html", page.sections(title, [lead, *shown.advice()], parts))


def _let_through(outcome: Outcome, run: Run, rules: tuple[Any, ...]) -> page.Section:
    """OOD pictures that are answered, those that name a class first, the surest first; the species
    alone is the right answer to an unknown disease.
    """
    pictures, tree, total, found = outcome.pictures, rules[0], 0, []
    for kind in pictures.kinds:
        if kind.role not in OOD_ROLES or not kind.files["test"]:
            continue
        ranked, ood = (part[kind.role][kind.name] for part in (outcome.ranked, outcome.ood["test"]))
        decided = decide_batch(ranked, ood, *rules)
        total += len(ood)
        for i, path in enumerate(pictures.ood_files(kind, "test")):
            if decided.outcome[i] == ANSWERED:
                name, p = tree.display_names[decided.class_idx[i]], decided.class_probability[i]
            elif decided.outcome[i] == ROLLED_UP and kind.role != "disease":
                name, p = tree.species[decided.species[i]], decided.species_probability[i]
            else:
                continue
            found.append((int(decided.outcome[i]), float(p), name, kind.name, path))
    found.sort(key=lambda one: (one[0] != ANSWERED, -one[1]))
    shown = [
        page.Picture(
            *gallery.thumbnail(path, run(next(pictures.read([path])))[2][0]),
            f"{kind}, answered as {name}; beside it, shaded where it counted little",
            kind,
            [f"answered {name}: {p:.3f}", WORDS[depth]],
            [str(path).removeprefix(f"{pictures.data.root}/")],
        )
        for depth, p, name, kind, path in found[:SHOWN]
    ]
    return page.Section(
        "ood",
        "OOD pictures that are answered",
        f"{gallery.shown_of(SHOWN, found)} answers to {total:,} OOD pictures of test, those that "
        "name a class first, the surest first. A picture that shows a known plant does not belong "
        "among them.",
        page.sheet(shown),
    )
