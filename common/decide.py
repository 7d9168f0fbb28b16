"""From a model's numbers to an answer: species and disease, species alone, or an honest refusal.

The rule, in order: refuse a stranger (its score lies above the threshold); answer the leaf where its probability
reaches `rollup.leaf`; else answer the species where its probability reaches `rollup.species`; else refuse as unsure.
`decide_batch` is the rule over many pictures, for measuring it; `decide` is the same rule over one, with words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common.taxonomy import ClassTree

MODES = ("joint", "routed")
ANSWERED, ROLLED_UP, STRANGER, UNSURE = range(4)  # the values of `Decisions.outcome`

_STRANGER_TEXT = ("This does not look like any plant I have learned. Take a close, sharp photo of a single leaf in "
                  "daylight and try again. If the plant is not on my list, I cannot name it.")
_UNSURE_TEXT = ("I cannot tell this plant with enough certainty. Try a closer, sharper photo of a single leaf in even "
                "daylight, against a plain background, or photograph another leaf of the same plant.")


@dataclass(frozen=True)
class Rejection:
    """The score that tells strangers from plants, and where to draw the line.

    score: its name; column: its place among the model's `ood` outputs, >= 0; threshold: the greatest value still
    accepted; quantiles: the score's percentiles 0, 1 ... 100 on validation plants (101 values, never falling).
    """

    score: str
    column: int
    threshold: float
    quantiles: tuple[float, ...]

    def quantile(self, value: float) -> float:
        """Share of validation plants with a smaller score, 0 to 1; 1.0 at and beyond the largest one seen."""
        if not value < self.quantiles[-1]:
            return 1.0
        return float(np.interp(value, self.quantiles, np.linspace(0.0, 1.0, len(self.quantiles))))


@dataclass(frozen=True)
class Rollup:
    """Least probability, 0 to 1, to answer at a level; `precision` is the share of right answers it was fitted for."""

    leaf: float
    species: float
    precision: float | None = None


@dataclass(frozen=True)
class Decisions:
    """The rule's outcome for N pictures; every field is an array (N,).

    outcome: int64, `ANSWERED`, `ROLLED_UP`, `STRANGER` or `UNSURE`; leaf: int64 packed index of the best leaf, and
    species: int64 index of the species that goes with the outcome (the best leaf's, or for `ROLLED_UP` and `UNSURE`
    the most probable one); leaf_probability and species_probability: float64, 0 to 1, of these two.
    """

    outcome: np.ndarray
    leaf: np.ndarray
    species: np.ndarray
    leaf_probability: np.ndarray
    species_probability: np.ndarray


@dataclass(frozen=True)
class Answer:
    """One picture's answer in plain values, as `POST /predict` gives it (probabilities and quantile 0 to 1)."""

    decision: str  # answered, rolled_up, rejected
    level: str  # leaf, species, none
    species: str | None
    disease: str | None
    healthy: bool | None
    probabilities: dict[str, float]
    path: list[dict[str, Any]]
    alternatives: list[dict[str, Any]]
    rejection: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain values that `json.dumps` takes."""
        return asdict(self)


def species_probabilities(probabilities: np.ndarray, tree: ClassTree) -> np.ndarray:
    """Sum the leaves of each species: (N, L) -> float64 (N, S), 0 to 1. Raises ValueError on another width."""
    probabilities = _check(probabilities, tree)
    return np.add.reduceat(probabilities, tree.offsets[:-1], axis=1, dtype=np.float64)


def joint_leaf(probabilities: np.ndarray, tree: ClassTree) -> np.ndarray:
    """The most probable leaf of each row, argmax of P(s) P(d|s): (N, L) -> int64 (N,). Raises as above."""
    return _check(probabilities, tree).argmax(axis=1)


def routed_leaf(probabilities: np.ndarray, tree: ClassTree) -> np.ndarray:
    """The best leaf of the most probable species: (N, L) -> int64 (N,). Raises as above."""
    best = species_probabilities(probabilities, tree).argmax(axis=1)
    return _best_leaf_of(_check(probabilities, tree), best, tree)


def decide_batch(probabilities: np.ndarray, ood: np.ndarray, tree: ClassTree, rejection: Rejection | None,
                 rollup: Rollup | None, *, mode: str = "joint") -> Decisions:
    """Apply the rule to N pictures at once.

    Args:
        probabilities: (N, L), joint P(species, disease), rows summing to 1.
        ood: (N, K), larger = stranger.
        tree: the class tree the columns belong to.
        rejection: which score refuses, and above what; None refuses no stranger.
        rollup: least probabilities per level; None always answers a leaf.
        mode: `joint` (the most probable leaf) or `routed` (the best leaf of the most probable species).

    Raises:
        ValueError: where the shapes do not fit the tree or the scores, or the mode is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode '{mode}': choose one of {', '.join(MODES)}")
    probabilities = _check(probabilities, tree)
    ood = np.asarray(ood, dtype=np.float64)
    if ood.ndim != 2 or len(ood) != len(probabilities):
        raise ValueError(f"scores of shape {ood.shape} do not belong to {len(probabilities)} pictures")
    if rejection is not None and rejection.column >= ood.shape[1]:
        raise ValueError(f"the score '{rejection.score}' is column {rejection.column} of only {ood.shape[1]}")
    rows = np.arange(len(probabilities))
    per_species = species_probabilities(probabilities, tree)
    best_species = per_species.argmax(axis=1)
    leaf = joint_leaf(probabilities, tree) if mode == "joint" else _best_leaf_of(probabilities, best_species, tree)
    leaf_p = probabilities[rows, leaf]
    best_p = per_species[rows, best_species]
    single = np.diff(tree.offsets)[best_species] == 1  # naming such a species names its only leaf

    outcome = np.full(len(rows), ANSWERED)
    if rollup is not None:
        outcome = np.select([leaf_p >= rollup.leaf, (best_p >= rollup.species) & single, best_p >= rollup.species],
                            [ANSWERED, ANSWERED, ROLLED_UP], UNSURE)
        # Below the leaf's bar the answer climbs: to the most probable species, and to its leaf where it has but one.
        leaf = np.where(leaf_p >= rollup.leaf, leaf, _best_leaf_of(probabilities, best_species, tree))
    if rejection is not None:
        outcome = np.where(ood[:, rejection.column] <= rejection.threshold, outcome, STRANGER)  # NaN is a stranger too
    species = tree.leaf_species[leaf]
    return Decisions(outcome, leaf, species, probabilities[rows, leaf], per_species[rows, species])


def decide(probabilities: np.ndarray, ood: np.ndarray, tree: ClassTree, rejection: Rejection | None,
           rollup: Rollup | None, *, mode: str = "joint", top_k: int = 5) -> Answer:
    """Turn one picture's numbers into an answer.

    Args:
        probabilities: (L,), joint P(species, disease), summing to 1.
        ood: (K,), larger = stranger.
        tree, rejection, rollup, mode: as for `decide_batch`.
        top_k: how many alternatives to list, most probable first.

    Raises:
        ValueError: as `decide_batch`.
    """
    probabilities, ood = np.asarray(probabilities, dtype=np.float64), np.asarray(ood, dtype=np.float64)
    decided = decide_batch(probabilities[None], ood[None], tree, rejection, rollup, mode=mode)
    outcome, leaf = int(decided.outcome[0]), int(decided.leaf[0])
    species_name, disease_name = tree.leaf(leaf)
    leaf_p, species_p = float(decided.leaf_probability[0]), float(decided.species_probability[0])
    given = leaf_p / species_p if species_p > 0 else 0.0
    path = [{"level": "species", "name": species_name, "probability": _round(species_p)},
            {"level": "leaf", "name": disease_name, "probability": _round(leaf_p)}]
    answered = outcome == ANSWERED
    return Answer(
        decision={ANSWERED: "answered", ROLLED_UP: "rolled_up"}.get(outcome, "rejected"),
        level={ANSWERED: "leaf", ROLLED_UP: "species"}.get(outcome, "none"),
        species=species_name if outcome in (ANSWERED, ROLLED_UP) else None,
        disease=disease_name if answered else None,
        healthy=disease_name == "healthy" if answered and disease_name != species_name else None,
        probabilities={"species": _round(species_p), "disease_given_species": _round(given), "leaf": _round(leaf_p)},
        path=path[:{ANSWERED: 2, ROLLED_UP: 1}.get(outcome, 0)],
        alternatives=alternatives(probabilities, tree, top_k),
        rejection=_rejection_words(outcome, ood, rejection),
    )


def alternatives(probabilities: np.ndarray, tree: ClassTree, top_k: int) -> list[dict[str, Any]]:
    """The top_k most probable leaves of (L,) in falling order, each with species, disease and probability, 0 to 1."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-probabilities, kind="stable")[:max(0, top_k)]
    return [{"species": tree.leaf(int(i))[0], "disease": tree.leaf(int(i))[1], "probability": _round(probabilities[i])}
            for i in order]


def rejection_from_json(data: Mapping[str, Any] | None, scores: Sequence[str]) -> Rejection | None:
    """Read {"score", "threshold", "quantiles"}; None stays None.

    Args:
        data: the plain values.
        scores: the names of the model's `ood` columns in order.

    Raises:
        ValueError, KeyError, TypeError: where a value is missing or makes no sense.
    """
    if data is None:
        return None
    if data["score"] not in scores:
        raise ValueError(f"it rejects by '{data['score']}', but the model's scores are {', '.join(scores) or 'none'}")
    quantiles = tuple(float(value) for value in data["quantiles"])
    threshold = float(data["threshold"])
    if len(quantiles) != 101 or not np.isfinite([*quantiles, threshold]).all() or (np.diff(quantiles) < 0).any():
        raise ValueError("its rejection needs a finite threshold and 101 finite percentiles that never fall")
    return Rejection(data["score"], list(scores).index(data["score"]), threshold, quantiles)


def rollup_from_json(data: Mapping[str, Any] | None) -> Rollup | None:
    """Read {"leaf", "species", "precision"}; None stays None. Raises ValueError, KeyError or TypeError as above."""
    if data is None:
        return None
    rollup = Rollup(float(data["leaf"]), float(data["species"]),
                    None if data.get("precision") is None else float(data["precision"]))
    # A bar above 1 is how a fit says "never answer at this level"; below 0 or NaN is a mistake.
    if not (rollup.leaf >= 0 and rollup.species >= 0):
        raise ValueError("its roll-up needs probabilities for `leaf` and `species` that are not negative")
    return rollup


def _rejection_words(outcome: int, ood: np.ndarray, rejection: Rejection | None) -> dict[str, Any]:
    reason = {STRANGER: "stranger", UNSURE: "unsure"}.get(outcome)
    value = None if rejection is None or not np.isfinite(ood[rejection.column]) else float(ood[rejection.column])
    return {
        "rejected": reason is not None,
        "reason": reason,
        "message": {STRANGER: _STRANGER_TEXT, UNSURE: _UNSURE_TEXT}.get(outcome),
        "score": rejection.score if rejection else None,
        "value": None if value is None else _round(value),
        "threshold": _round(rejection.threshold) if rejection else None,
        "quantile": _round(rejection.quantile(float(ood[rejection.column]))) if rejection else None,
    }


def _best_leaf_of(probabilities: np.ndarray, species: np.ndarray, tree: ClassTree) -> np.ndarray:
    leaf = np.zeros(len(species), dtype=np.int64)
    for index in np.unique(species):  # by species, so that a large validation set needs no second (N, L) array
        rows, start = species == index, tree.offsets[index]
        leaf[rows] = start + probabilities[rows, start:tree.offsets[index + 1]].argmax(axis=1)
    return leaf


def _check(probabilities: np.ndarray, tree: ClassTree) -> np.ndarray:
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or probabilities.shape[1] != tree.num_leaves:
        raise ValueError(f"probabilities of shape {probabilities.shape} do not fit a tree of {tree.num_leaves} leaves")
    return probabilities


def _round(value: float) -> float:
    return float(f"{value:.6g}")
