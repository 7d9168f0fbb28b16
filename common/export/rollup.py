"""Answers at the depth one can stand behind: thresholds per precision, with a promise that holds
for finite val splits. No torch.

Answers roll up as in hierarchical selective classification (Goren et al., NeurIPS 2024): the class
where its probability reaches the threshold, else the species where its own does, else none. The
thresholds are found by fixed-sequence testing (Angelopoulos et al., "Learn then Test", 2021) with
exact binomial tails, along two sequences of hypotheses that share the risk DELTA:

- class and species at one threshold, tested downwards (`CLASS_SHARE` of the risk). A threshold is
  taken where both the class answers and all answers given are shown to be right as often as wanted;
  the first that is not ends the sequence.
- species alone, tested downwards (the rest): what remains where diseases are told apart too badly.

The promise: of repeated val splits, a share of at least 1 - DELTA gives thresholds with which, on
further pictures drawn as val was, the class answers, and all answers given, are right at least as
often as wanted; for each precision by itself. It is exact for probabilities and thresholds that do
not depend on val. The candidates stand fixed, and where a sequence begins follows from the
probabilities, never from the truth; but temperatures (and the epoch) were chosen on val too. What
that costs is measured in tests/benchmarks/rollup.py. The promise says nothing about pictures of
another kind than val's, and nothing about single classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.console import table
from common.decide import (
    ANSWERED,
    ROLLED_UP,
    UNSURE,
    Decisions,
    Rejection,
    Rollup,
    decide_batch,
)
from common.export.answers import Answers
from common.export.bounds import at_least, claims, lower, pictures_needed

PRECISIONS = (0.90, 0.95, 0.99)
DELTA = 0.1  # how often, of repeated val splits, a promise may fail
CLASS_SHARE = 0.8  # of DELTA goes to the sequence that names diseases
NEVER = 2.0  # a threshold that no probability reaches
CANDIDATES = np.append(
    1 / (1 + np.exp(-np.arange(10.0, -4.01, -0.25))), 0.0
)  # thresholds in the order of testing


def name_of(precision: float) -> str:
    """The name of a precision in bundle.json: 0.95 -> "0.95", 0.975 -> "0.975"."""
    return f"{precision:.2f}" if abs(precision - round(precision, 2)) < 1e-9 else f"{precision:.6g}"


# region fitting


@dataclass(frozen=True)
class _Tests:
    """Per candidate threshold and promise (K, promises): answers it speaks of, how many are wrong,
    how many the probabilities foretell.
    """

    given: np.ndarray
    wrong: np.ndarray
    foretold: np.ndarray

    def begin(self, risk: float) -> int:
        """The candidate of which the probabilities foretell the strongest promise (Wilson's bound);
        the truth has no say in it.
        """
        z, n = NormalDist().inv_cdf(1 - risk), np.maximum(self.given, 1e-9)
        share = 1 - self.foretold / n
        low = (
            share
            + z * z / (2 * n)
            - z * np.sqrt(np.maximum(share * (1 - share), 0) / n + (z / n / 2) ** 2)
        ) / (1 + z * z / n)
        return int(np.where(self.given > 0, low, 0).min(1).argmax())

    def holds(self, k: int, risk: float) -> float:
        """What a candidate can promise, tested alone: a lower bound of the share of right answers,
        0..1.
        """
        return min(
            at_least(int(n - wrong), int(n), 1 - risk) if n else 0.0
            for n, wrong in zip(self.given[k], self.wrong[k], strict=True)
        )

    def walk(self, precision: float, risk: float) -> int | None:
        """The last candidate up to which every one is shown to keep the precision; None where the
        first is not.
        """

        def kept(k: int) -> bool:
            return all(
                claims(n - wrong, n, precision, 1 - risk)
                for n, wrong in zip(self.given[k], self.wrong[k], strict=True)
            )

        k = self.begin(risk)
        if not kept(k):
            return None
        while k + 1 < len(CANDIDATES) and kept(k + 1):
            k += 1
        return k


def _tests(answers: Answers, tree: ClassTree, full: Decisions) -> tuple[_Tests, _Tests]:
    """Count for the sequence of one threshold for class and species, and for that of species alone;
    `full` decides without thresholds.
    """
    accepted = _accepted(full)
    class_idx, best, species_p = (
        values[accepted]
        for values in (answers.class_idx, answers.ranked.species, answers.ranked.species_p)
    )
    class_p = np.where(full.unknown_disease, -1.0, full.class_probability)[accepted]
    single = np.diff(tree.offsets)[best] == 1
    wrong_class, wrong_species = (
        full.class_idx[accepted] != class_idx,
        best != tree.class_species[class_idx],
    )

    def count(names_classes: bool) -> _Tests:
        given, wrong, foretold = [], [], []
        for threshold in CANDIDATES:
            certain = (class_p >= threshold) & names_classes
            rolled_up = ~certain & (species_p >= threshold)
            groups = (
                [(certain, rolled_up & single), (certain, rolled_up)]
                if names_classes
                else [(certain, rolled_up)]
            )
            given.append([a.sum() + b.sum() for a, b in groups])
            wrong.append([wrong_class[a].sum() + wrong_species[b].sum() for a, b in groups])
            foretold.append([(1 - class_p)[a].sum() + (1 - species_p)[b].sum() for a, b in groups])
        return _Tests(np.array(given), np.array(wrong), np.array(foretold))

    return count(True), count(False)


def _accepted(decided: Decisions) -> np.ndarray:
    return (
        (decided.outcome == ANSWERED) | (decided.outcome == ROLLED_UP) | (decided.outcome == UNSURE)
    )


def fit(
    answers: Answers,
    tree: ClassTree,
    *,
    rejection: Rejection | None = None,
    precisions: Sequence[float] = PRECISIONS,
    default: float = 0.95,
) -> dict[str, Any]:
    """Find the thresholds of each precision on val; see the module's docstring for the promise.

    Args:
        answers: of the model.
        tree: the classes.
        rejection: thresholds of its scores; pictures that they reject get no answer and do not
            count.
        precisions: wanted shares of right answers among those given, between 0 and 1.
        default: the precision that is used where none is asked for; it is fitted too.

    Returns:
        {"default": name, "delta": DELTA, "precisions": {name: entry}}, as bundle.json has it. An
        entry: `disease` and `species`, the thresholds (2 = never answer at this level); `promised`:
            whether
        the precision is promised; `holds`: what the thresholds do promise, the precision, or else a
        lower bound at the one threshold of which most can be said; `answers`: `disease` or
        `species`, the depth;
        `needs`: fewest answers, all right, that the promise takes; `val`: figures of `judge`, on
        the pictures they were fitted on.
    """
    full = decide_batch(answers.ranked, answers.ood, tree, rejection, Rollup(0.0, 0.0))
    with_classes, alone = _tests(answers, tree, full)
    risks = CLASS_SHARE * DELTA, (1 - CLASS_SHARE) * DELTA
    entries: dict[str, Any] = {}
    for precision in sorted({*precisions, default}):
        depth, k = "disease", with_classes.walk(precision, risks[0])
        if k is None and (k := alone.walk(precision, risks[1])) is not None:
            depth = "species"
        promised, start = k is not None, with_classes.begin(risks[0])
        threshold = (
            float(CANDIDATES[start if k is None else k]) if _accepted(full).any() else precision
        )  # nothing to fit: as if calibrated
        entry = {
            "disease": threshold if depth == "disease" else NEVER,
            "species": threshold,
            "promised": promised,
            "answers": depth,
            "holds": precision if promised else with_classes.holds(start, risks[0]),
            "needs": pictures_needed(precision, 0, 1 - risks[0]),
        }
        entries[name_of(precision)] = entry | {"val": judge(entry, answers, tree, rejection)}
    return {"default": name_of(default), "delta": DELTA, "precisions": entries}


# endregion

# region judging


def judge(
    entry: Mapping[str, Any], answers: Answers, tree: ClassTree, rejection: Rejection | None = None
) -> dict[str, Any]:
    """Measure the thresholds of one precision.

    Args:
        entry: with `disease` and `species`, as `fit` returns it.
        answers, tree, rejection: as for `fit`.

    Returns:
        n pictures; rejected as out-of-distribution; given, wrong: answers and wrong ones;
        disease_given, disease_wrong: those that name a class; species_given, species_wrong: those
            that
        stop at the species (counts). coverage, disease_coverage: shares of the n answered;
        precision,
        disease_precision: shares of right answers with precision_low, disease_precision_low, their
            lower
        95 % bounds (Clopper-Pearson); None without answers.
    """
    rollup, class_idx = Rollup(entry["disease"], entry["species"]), answers.class_idx
    decided = decide_batch(answers.ranked, answers.ood, tree, rejection, rollup)
    named, rolled_up = decided.outcome == ANSWERED, decided.outcome == ROLLED_UP
    wrong_class = int((decided.class_idx != class_idx)[named].sum())
    wrong_species = int((decided.species != tree.class_species[class_idx])[rolled_up].sum())
    n, classes, species = len(class_idx), int(named.sum()), int(rolled_up.sum())
    given, wrong = classes + species, wrong_class + wrong_species

    def shares(prefix: str, answers: int, misses: int) -> dict[str, float | None]:
        return {
            f"{prefix}coverage": answers / n if n else None,
            f"{prefix}precision": 1 - misses / answers if answers else None,
            f"{prefix}precision_low": at_least(answers - misses, answers) if answers else None,
        }

    return {
        "n": n,
        "rejected": int((~_accepted(decided)).sum()),
        "given": given,
        "wrong": wrong,
        "disease_given": classes,
        "disease_wrong": wrong_class,
        "species_given": species,
        "species_wrong": wrong_species,
        **shares("", given, wrong),
        **shares("disease_", classes, wrong_class),
    }


def report_lines(fitted: Mapping[str, Any], test: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lay out thresholds, promises and what test shows as lines of report.md; `test` has `judge`'s
    figures by name of precision.
    """

    def share(row: Mapping[str, Any], key: str, low: bool = True) -> str:
        if row[key] is None:
            return "-"
        return f"{row[key]:.2%}" + (f" (>= {lower(row[key + '_low'])})" if low else "")

    rows, notes, sure = [], [], 1 - fitted["delta"]
    for name, entry in fitted["precisions"].items():
        row = test[name]
        thresholds = [
            f"{entry[level]:.3f}" if entry[level] <= 1 else "never"
            for level in ("disease", "species")
        ]
        rows.append(
            (
                name + (" (default)" if name == fitted["default"] else ""),
                *thresholds,
                "yes" if entry["promised"] else f"only {entry['holds']:.3f}",
                share(row, "precision"),
                share(row, "coverage", False),
                share(row, "disease_precision"),
                share(row, "disease_coverage", False),
            )
        )
        if not entry["promised"]:
            notes.append(
                f"At {name} the {entry['val']['n']:,} val pictures do not carry the promise: it "
                f"takes {entry['needs']:,} answers "
                f"that are all right, or more with errors among them. With these thresholds "
                f"{entry['holds']:.1%} can be promised."
            )
        elif entry["answers"] == "species":
            notes.append(
                f"At {name} no disease is named: val does not show that diseases are told apart "
                f"so well. Species are."
            )
    return [
        table(
            rows,
            (
                "precision",
                "threshold for a class",
                "threshold for a species",
                "promised",
                "right on test (95 % bound)",
                "answered",
                "class answers right",
                "class answered",
            ),
        ),
        "",
        *notes,
        f"Promised with {sure:.0%} confidence: class answers, and all answers given, are right at "
        f"least so often on pictures drawn as "
        "val was (OOD pictures left out).",
    ]


# endregion
