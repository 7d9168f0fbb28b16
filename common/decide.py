"""From a model's outputs to an answer: species and disease, the species alone, or a rejection that
says why.

The rule, in order: reject a picture whose OOD score exceeds its threshold, as no plant or as a
plant of unknown species, and one whose species score exceeds its own, as the latter; answer the
class where its probability reaches `rollup.disease`, unless its disease score says the disease is
unknown; else roll up to the species where its probability reaches `rollup.species`; else reject as
unsure. A poor photo explains a rejection but never causes one, unless it is all but black.
`decide_batch` applies the rule to many pictures, for measuring it; `decide` applies it to one and
adds the reasons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.classes import ClassTree

MODES = ("joint", "routed")
# the values of `Decisions.outcome`
ANSWERED, ROLLED_UP, NOT_A_PLANT, UNKNOWN_SPECIES, UNSURE = range(5)

_REASONS = {NOT_A_PLANT: "not_a_plant", UNKNOWN_SPECIES: "unknown_species", UNSURE: "unsure"}
# measure of a photo -> the reason given where it is too low
_PHOTO = {"short_side": "small", "brightness": "dark", "sharpness": "blurred"}
_BLACK = 0.25  # share of the least brightness below which nothing can be seen, whatever scores say


@dataclass(frozen=True)
class ScoreThreshold:
    """A score and the threshold above which it rejects.

    score: its name; weights: (K,), the score is this weighted sum of the model's `ood` outputs;
    threshold: the largest value accepted; quantiles: 101 non-decreasing values, the score's
    percentiles 0, 1 ... 100 on validation plants.
    """

    score: str
    weights: tuple[float, ...]
    threshold: float
    quantiles: tuple[float, ...]

    def value(self, ood: np.ndarray) -> np.ndarray:
        """The score of pictures: (..., K) -> float64 (...,). An output of weight 0 is ignored, even
        where it is NaN. Raises ValueError where there are more or fewer scores than weights.
        """
        weights = np.asarray(self.weights)
        if np.shape(ood)[-1] != len(weights):
            raise ValueError(
                f"'{self.score}' is made of {len(weights)} scores, but there are "
                f"{np.shape(ood)[-1]}"
            )
        used = np.flatnonzero(weights)
        return np.asarray(ood, np.float64)[..., used] @ weights[used]

    def exceeded(self, ood: np.ndarray) -> np.ndarray:
        """Whether the score is above the threshold: (..., K) -> bool (...,). NaN counts too."""
        return ~(self.value(ood) <= self.threshold)

    def quantile(self, value: float) -> float:
        """Share of validation plants with a lower score, 0 to 1; 1.0 from their maximum on."""
        if not value < self.quantiles[-1]:
            return 1.0
        return float(np.interp(value, self.quantiles, np.linspace(0.0, 1.0, len(self.quantiles))))


@dataclass(frozen=True)
class Rejection:
    """The thresholds and the limits of a poor photo.

    ood: above it a picture is rejected; plant: a rejected picture above it is no plant, one below
    it a plant of unknown species (None: always no plant); disease: above it the disease is unknown
    and the answer is the species (None: never); photo: least brightness (0 to 1), sharpness and
    short side (px) of a photo that is not poor; species: above it the species is unknown, too.
    """

    ood: ScoreThreshold
    plant: ScoreThreshold | None = None
    disease: ScoreThreshold | None = None
    photo: Mapping[str, float] = field(default_factory=dict)
    species: ScoreThreshold | None = None

    def exceeded(self, ood: np.ndarray) -> np.ndarray:
        """Whether pictures are rejected by their scores: (..., K) -> bool (...,)."""
        return self.ood.exceeded(ood) | (self.species.exceeded(ood) if self.species else False)

    def is_black(self, photo: Mapping[str, float]) -> bool:
        """Whether nothing can be seen in a photo of these measures."""
        return photo.get("brightness", 1.0) < _BLACK * self.photo.get("brightness", 0.0)


@dataclass(frozen=True)
class Rollup:
    """Least probability, 0 to 1, to answer at each level; `precision` is the share of correct
    answers that it was fitted for.
    """

    disease: float
    species: float
    precision: float | None = None


@dataclass(frozen=True)
class Ranked:
    """What the rule needs of N pictures' probabilities; every field is an array (N,).

    joint, routed: int64 packed index of the most probable class, and of the best class of the most
    probable species; species: int64, the most probable species; joint_p, routed_p, species_p: their
    probabilities, 0 to 1; joint_species_p: that of the species of `joint`.
    """

    joint: np.ndarray
    routed: np.ndarray
    species: np.ndarray
    joint_p: np.ndarray
    routed_p: np.ndarray
    species_p: np.ndarray
    joint_species_p: np.ndarray


@dataclass(frozen=True)
class Decisions:
    """The rule's outcome for N pictures; every field is an array (N,).

    outcome: int64, `ANSWERED`, `ROLLED_UP`, `NOT_A_PLANT`, `UNKNOWN_SPECIES` or `UNSURE`;
    class_idx: int64 packed index of the best class; species: int64 index of the species that goes
    with the outcome (the best class's, or for `ROLLED_UP` and `UNSURE` the most probable one);
    class_probability and species_probability: float64, 0 to 1, of these two; unknown_disease: bool,
    whether the disease threshold was exceeded.
    """

    outcome: np.ndarray
    class_idx: np.ndarray
    species: np.ndarray
    class_probability: np.ndarray
    species_probability: np.ndarray
    unknown_disease: np.ndarray


@dataclass(frozen=True)
class Answer:
    """One picture's answer in plain values, as `POST /predict` gives it (probabilities and quantile
    0 to 1).
    """

    decision: str  # answered, rolled_up, rejected
    level: str  # disease, species, none
    species: str | None
    disease: str | None
    healthy: bool | None
    probabilities: dict[str, float]
    path: list[dict[str, Any]]
    alternatives: list[dict[str, Any]]
    rejection: dict[str, Any]


def species_probabilities(probabilities: np.ndarray, tree: ClassTree) -> np.ndarray:
    """Sum over the classes of each species: (N, C) -> float64 (N, S), 0 to 1. Raises ValueError on
    another width.
    """
    probabilities = _check(probabilities, tree)
    return np.add.reduceat(probabilities, tree.offsets[:-1], axis=1, dtype=np.float64)


def joint_class(probabilities: np.ndarray, tree: ClassTree) -> np.ndarray:
    """The class with most P(s) P(d|s) of each row: (N, C) -> int64 (N,). Raises as above."""
    return _check(probabilities, tree).argmax(axis=1)


def rank(probabilities: np.ndarray, tree: ClassTree) -> Ranked:
    """What the rule needs of probabilities (N, C), rows summing to 1. Raises as above."""
    rows, per_species = np.arange(len(probabilities)), species_probabilities(probabilities, tree)
    species, joint = per_species.argmax(axis=1), joint_class(probabilities, tree)
    routed = np.zeros(len(rows), dtype=np.int64)
    for index in np.unique(species):
        mine, part = species == index, slice(tree.offsets[index], tree.offsets[index + 1])
        routed[mine] = part.start + probabilities[mine, part].argmax(axis=1)
    return Ranked(
        joint,
        routed,
        species,
        probabilities[rows, joint],
        probabilities[rows, routed],
        per_species[rows, species],
        per_species[rows, tree.class_species[joint]],
    )


def decide_batch(
    ranked: Ranked,
    ood: np.ndarray,
    tree: ClassTree,
    rejection: Rejection | None,
    rollup: Rollup | None,
    *,
    mode: str = "joint",
) -> Decisions:
    """Apply the rule to N pictures at once.

    Args:
        ranked: of `rank`.
        ood: (N, K), OOD scores, larger = less like the training data.
        tree: the class tree that the classes belong to.
        rejection: the thresholds; None rejects nothing by its scores.
        rollup: least probabilities per level; None always answers a class.
        mode: `joint` (the most probable class) or `routed` (the best class of the most probable
            species).

    Raises:
        ValueError: where the shapes do not fit the scores, or the mode is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode '{mode}': choose one of {', '.join(MODES)}")
    ood, count = np.asarray(ood, dtype=np.float64), len(ranked.joint)
    if ood.ndim != 2 or len(ood) != count:
        raise ValueError(f"scores of shape {ood.shape} do not belong to {count} pictures")
    routed = (ranked.routed, ranked.routed_p, ranked.species_p)
    joint = (ranked.joint, ranked.joint_p, ranked.joint_species_p) if mode == "joint" else routed
    single = np.diff(tree.offsets)[ranked.species] == 1  # such a species is its only class

    def exceeded(name: str, without: bool = False) -> np.ndarray:
        threshold = getattr(rejection, name, None)
        return np.full(count, without) if threshold is None else threshold.exceeded(ood)

    rollup = rollup or Rollup(0.0, 0.0)
    rejected, no_plant = exceeded("ood"), exceeded("plant", without=True)
    strange, unknown = rejected | exceeded("species"), exceeded("disease") & ~single
    certain = (joint[1] >= rollup.disease) & ~unknown
    sure_of_species = ranked.species_p >= rollup.species
    outcome = np.select(
        [rejected & no_plant, strange, certain, sure_of_species & single, sure_of_species],
        [NOT_A_PLANT, UNKNOWN_SPECIES, ANSWERED, ANSWERED, ROLLED_UP],
        UNSURE,
    )
    # Below its threshold the class is given up for the most probable species.
    class_idx, class_p, species_p = (
        np.where(certain, best, other) for best, other in zip(joint, routed, strict=True)
    )
    return Decisions(outcome, class_idx, tree.class_species[class_idx], class_p, species_p, unknown)


def decide(
    probabilities: np.ndarray,
    ood: np.ndarray,
    tree: ClassTree,
    rejection: Rejection | None,
    rollup: Rollup | None,
    *,
    mode: str = "joint",
    top_k: int = 5,
    photo: Mapping[str, float] | None = None,
) -> Answer:
    """Turn one picture's numbers into an answer.

    Args:
        probabilities: (C,), joint P(species, disease), summing to 1.
        ood: (K,), OOD scores.
        tree, rejection, rollup, mode: as for `decide_batch`.
        top_k: how many alternatives to list, most probable first.
        photo: measures of the photo (`brightness`, `sharpness`, `short_side`), compared with
            `rejection.photo`; None compares nothing.

    Raises:
        ValueError: as `decide_batch`.
    """
    probabilities = np.asarray(probabilities, np.float64)
    ood = np.asarray(ood, np.float64)
    ranked = rank(probabilities[None], tree)
    decided = decide_batch(ranked, ood[None], tree, rejection, rollup, mode=mode)
    black = rejection is not None and rejection.is_black(photo or {})
    outcome, class_idx = UNSURE if black else int(decided.outcome[0]), int(decided.class_idx[0])
    species_name, disease_name = tree.pair(class_idx)
    class_p, species_p = float(decided.class_probability[0]), float(decided.species_probability[0])
    given = class_p / species_p if species_p > 0 else 0.0
    path = [
        {"level": "species", "name": species_name, "probability": _round(species_p)},
        {"level": "disease", "name": disease_name, "probability": _round(class_p)},
    ]
    answered = outcome == ANSWERED
    decision, level, depth = {
        ANSWERED: ("answered", "disease", 2),
        ROLLED_UP: ("rolled_up", "species", 1),
    }.get(outcome, ("rejected", "none", 0))
    return Answer(
        decision=decision,
        level=level,
        species=species_name if depth else None,
        disease=disease_name if answered else None,
        healthy=disease_name == "healthy" if answered and disease_name != species_name else None,
        probabilities={
            "species": _round(species_p),
            "disease_given_species": _round(given),
            "joint": _round(class_p),
        },
        path=path[:depth],
        alternatives=alternatives(probabilities, tree, top_k),
        rejection=_reasons(outcome, bool(decided.unknown_disease[0]), ood, rejection, photo or {}),
    )


def alternatives(probabilities: np.ndarray, tree: ClassTree, top_k: int) -> list[dict[str, Any]]:
    """The top_k most probable classes of (C,) in descending order, each with species, disease and
    probability, 0 to 1.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-probabilities, kind="stable")[: max(0, top_k)]
    return [
        {
            "species": tree.pair(int(i))[0],
            "disease": tree.pair(int(i))[1],
            "probability": _round(probabilities[i]),
        }
        for i in order
    ]


def _reasons(
    outcome: int,
    unknown_disease: bool,
    ood: np.ndarray,
    rejection: Rejection | None,
    photo: Mapping[str, float],
) -> dict[str, Any]:
    reason = _REASONS.get(outcome)
    threshold = rejection.ood if rejection else None
    if outcome == ROLLED_UP and unknown_disease:
        reason, threshold = "unknown_disease", rejection.disease
    if outcome == UNKNOWN_SPECIES and not threshold.exceeded(ood):
        threshold = rejection.species
    limits = rejection.photo if rejection else {}
    failed = [
        {"measure": name, "value": _round(photo[name]), "limit": _round(limits[name])}
        for name in _PHOTO
        if name in photo and name in limits and not photo[name] >= limits[name]
    ]
    if failed and outcome not in (ANSWERED, ROLLED_UP):
        reason = _PHOTO[failed[0]["measure"]]
    value = None if threshold is None else float(threshold.value(ood))
    return {
        "rejected": outcome not in (ANSWERED, ROLLED_UP),
        "reason": reason,
        "score": threshold.score if threshold else None,
        "value": None if value is None or not np.isfinite(value) else _round(value),
        "threshold": _round(threshold.threshold) if threshold else None,
        "quantile": _round(threshold.quantile(value)) if threshold else None,
        "photo": failed,
    }


def _check(probabilities: np.ndarray, tree: ClassTree) -> np.ndarray:
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or probabilities.shape[1] != tree.num_classes:
        raise ValueError(
            f"probabilities of shape {probabilities.shape} do not fit a tree of "
            f"{tree.num_classes} classes"
        )
    return probabilities


def _round(value: float) -> float:
    return float(f"{value:.6g}")


# region as bundle.json has them


def rejection_from_json(data: Mapping[str, Any] | None, scores: Sequence[str]) -> Rejection | None:
    """Read {"score", "weights", "threshold", "quantiles"}, the OOD threshold, with "plant",
    "disease" and "species" of the same form, and "photo", {measure: limit}; None stays None.

    Args:
        data: the plain values; without "weights" the score is the model's output of that name;
            "plant", "disease", "species" and "photo" may be missing or None.
        scores: the names of the model's `ood` columns, in order.

    Raises:
        ValueError, KeyError, TypeError: where a value is missing or makes no sense.
    """
    if data is None:
        return None
    photo = {str(name): float(limit) for name, limit in (data.get("photo") or {}).items()}
    if unknown := [name for name in photo if name not in _PHOTO]:
        raise ValueError(f"it measures '{unknown[0]}' of a photo; known are {', '.join(_PHOTO)}")
    if not np.isfinite(list(photo.values())).all():
        raise ValueError("its limits for poor photos must be finite")
    more = {
        name: _threshold_from_json(data[name], scores) if data.get(name) else None
        for name in ("plant", "disease", "species")
    }
    return Rejection(_threshold_from_json(data, scores), photo=photo, **more)


def _threshold_from_json(data: Mapping[str, Any], scores: Sequence[str]) -> ScoreThreshold:
    weights = data.get("weights") or {data["score"]: 1.0}
    if unknown := [name for name in weights if name not in scores]:
        raise ValueError(
            f"it rejects by '{unknown[0]}', but the model's scores are "
            f"{', '.join(scores) or 'none'}"
        )
    row = tuple(float(weights.get(name, 0.0)) for name in scores)
    quantiles, threshold = tuple(map(float, data["quantiles"])), float(data["threshold"])
    if (
        len(quantiles) != 101
        or not np.isfinite([*row, *quantiles, threshold]).all()
        or (np.diff(quantiles) < 0).any()
    ):
        raise ValueError(
            "its rejection needs finite weights and threshold, and 101 finite non-decreasing "
            "percentiles"
        )
    return ScoreThreshold(str(data["score"]), row, threshold, quantiles)


def rollups_from_json(data: Mapping[str, Any] | None) -> dict[str, Rollup]:
    """Read {"default": name, "precisions": {name: {"disease", "species"}}}; a name is a precision
    such as "0.95".

    Returns:
        the thresholds by name, the default first; nothing for None.

    Raises:
        ValueError, KeyError, TypeError: where a value is missing or makes no sense.
    """
    if data is None:
        return {}
    default, named = data["default"], data["precisions"]
    if default not in named:
        raise ValueError(
            f"its roll-up's default precision {default!r} is not among {', '.join(named) or 'none'}"
        )
    rollups = {
        name: Rollup(float(named[name]["disease"]), float(named[name]["species"]), float(name))
        for name in (default, *(name for name in named if name != default))
    }
    # Above 1 means "never answer at this level"; below 0 or NaN is a mistake.
    if not all(rollup.disease >= 0 and rollup.species >= 0 for rollup in rollups.values()):
        raise ValueError("its roll-up needs `disease` and `species` that are at least 0")
    return rollups


# endregion
