"""report.html of an export: what its model got wrong on test, the plants that it rejects, and the
out-of-distribution (OOD) pictures that it lets through.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.decide import (
    ANSWERED,
    NOT_A_PLANT,
    ROLLED_UP,
    UNKNOWN_SPECIES,
    UNSURE,
    decide_batch,
    rank,
    rejection_from_json,
    rollups_from_json,
)
from common.export.answers import Run, join
from common.export.fitting import Outcome
from common.export.pictures import BATCH, OodKind, Pictures, spread
from common.files import write_text
from common.train import gallery, page, plots
from common.train.dataset import EvalViews

SHOWN = 24  # pictures of a sheet
OOD_ROLES = ("plant", "species", "disease")  # kinds of pictures that are not to be answered in full
LOOKED_AT = 500  # OOD pictures whose answer is looked up, those with the lowest scores
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
    # OOD scores first, the farthest beyond the threshold first, then those that are unsure
    beyond = rejection.ood.value(answers.ood[rejected])
    rejected = rejected[np.lexsort((-beyond, decided.outcome[rejected] == UNSURE))]
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


class _Let(NamedTuple):
    """An OOD picture that is answered: `named` with a class or with a species alone, `name`."""

    path: Path
    kind: str
    named: bool
    name: str
    probability: float
    heat: np.ndarray


def _let_through(outcome: Outcome, run: Run, rules: tuple[Any, ...]) -> page.Section:
    """OOD pictures that are answered, the surest answers first."""
    pictures, of_test, rejection = outcome.pictures, outcome.ood["test"], rules[1].ood
    kinds = [kind for kind in pictures.kinds if kind.files["test"] and kind.role in OOD_ROLES]
    rows = [(kind, path) for kind in kinds for path in pictures.ood_files(kind, "test")]
    none = np.zeros((0, len(outcome.names)), np.float32)
    ood = np.concatenate([none, *(of_test[kind.role][kind.name] for kind in kinds)])
    accepted = np.flatnonzero(~rejection.exceeded(ood))
    nearest = accepted[np.argsort(rejection.value(ood[accepted]), kind="stable")][:LOOKED_AT]
    found = _answered(pictures, [rows[i] for i in nearest.tolist()], run, rules)
    shown = [
        page.Picture(
            *gallery.thumbnail(one.path, one.heat),
            f"{one.kind}, answered as {one.name}; beside it, shaded where it counted little",
            one.kind,
            [f"answered {one.name}: {one.probability:.3f}", "" if one.named else WORDS[ROLLED_UP]],
            [str(one.path).removeprefix(f"{pictures.data.root}/")],
        )
        for one in found[:SHOWN]
    ]
    searched = f" ({LOOKED_AT} with the lowest OOD scores searched)"
    return page.Section(
        "ood",
        "OOD pictures that are answered",
        f"{gallery.shown_of(SHOWN, found)} answers to {len(rows):,} OOD pictures of test"
        f"{searched if len(accepted) > LOOKED_AT else ''}, those that name a class first, the "
        "surest first. A picture that shows a known plant does not belong among them.",
        page.sheet(shown),
    )


def _answered(
    pictures: Pictures, rows: Sequence[tuple[OodKind, Path]], run: Run, rules: tuple[Any, ...]
) -> list[_Let]:
    """Those of some OOD pictures that are answered, classes first, the surest first; the species
    alone is the right answer to an unknown disease.
    """
    if not rows:
        return []
    tree, found = rules[0], []
    batches = pictures.read([path for _, path in rows])
    probabilities, ood, heats = join([tuple(run(batch)[:3]) for batch in batches])
    decided = decide_batch(rank(probabilities, tree), ood, *rules)
    for i, (kind, path) in enumerate(rows):
        if decided.outcome[i] == ANSWERED:
            name, p = tree.display_names[decided.class_idx[i]], decided.class_probability[i]
        elif decided.outcome[i] == ROLLED_UP and kind.role != "disease":
            name, p = tree.species[decided.species[i]], decided.species_probability[i]
        else:
            continue
        named = decided.outcome[i] == ANSWERED
        found.append(_Let(path, kind.name, bool(named), name, float(p), heats[i]))
    return sorted(found, key=lambda one: (not one.named, -one.probability))
