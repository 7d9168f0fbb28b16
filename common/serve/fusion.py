"""Putting evidence together: several photos of one plant, and what a person knows beside them.

The photos' probabilities are fused as a weighted geometric mean (a mean in log space; the weights
sum to 1). So the same photo sent twice gives the answer of one, a class that any good photo rules
out stays ruled out, and thresholds fitted on single photos keep their meaning. OOD scores are fused
as the weighted mean over the photos that were not rejected; as thresholds compare weighted sums of
scores, such a mean lies between the photos' own values. A photo that is rejected by its OOD score
or all but black counts nothing; where all are, the answer is the rejection with the lowest score.

A geometric mean may favour a compromise: what each photo thinks unlikely, but none rules out. So
what several photos are answered is what one of them was answered alone, or less (`hold_to`). A
photo's own answer is what it would get alone, with the same declared species, prior and precision.
A photo that is unsure or rejected has no voice. Photos that were answered different diseases of one
species are answered the species; those of different species, none; the answer then names them all,
and its probabilities are the mean over the photos, in which each still stands.
"""

import contextlib
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.decide import Answer

FLOOR = 1e-12  # least probability, so that rounding alone cannot rule a class out
LEAST = 0.1  # what a poor photo still counts, per measure
HIGH_QUANTILE = 0.9  # quantile of the OOD score from which a photo counts less
LARGEST = 1e6  # weight of a species


def photo_weight(
    quality: Mapping[str, float],
    limits: Mapping[str, float],
    quantile: float | None,
    rejected: bool,
) -> float:
    """How much a photo counts, 0 to 1: nothing where it is rejected, less where it is poor or its
    OOD score is high.

    Args:
        quality: measures of the photo.
        limits: least measures of a photo that is not poor; from twice a limit on, a measure costs
            nothing.
        quantile: share of validation plants with a lower OOD score, 0 to 1; None without one.
        rejected: whether the photo was rejected by its OOD score, or is all but black.
    """
    if rejected:
        return 0.0
    weight = 1.0
    for name, limit in limits.items():
        if name in quality and limit > 0:
            share = quality[name] / (2 * limit)
            weight *= min(1.0, max(LEAST, share)) if share == share else LEAST
    if quantile is not None and quantile > HIGH_QUANTILE:
        weight *= 1 - (1 - LEAST) * (min(quantile, 1.0) - HIGH_QUANTILE) / (1 - HIGH_QUANTILE)
    return weight


def fuse_probabilities(probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted geometric mean of (N, C) by (N,), float64 (C,), sum 1. A single row is returned
    unchanged; where no row has weight, all count alike.
    """
    probabilities, weights = np.asarray(probabilities, np.float64), np.asarray(weights, np.float64)
    if len(probabilities) == 1:
        return probabilities[0]
    if not weights.sum() > 0:
        weights = np.ones(len(probabilities))
    logs = (weights / weights.sum()) @ np.log(np.maximum(probabilities, FLOOR))
    fused = np.exp(logs - logs.max())
    return fused / fused.sum()


def fuse_scores(ood: np.ndarray, weights: np.ndarray, values: Sequence[float | None]) -> np.ndarray:
    """Weighted mean of (N, K) over the rows with weight; without any, the row whose OOD score is
    lowest. Returns float64 (K,).
    """
    ood, weights = np.asarray(ood, np.float64), np.asarray(weights, np.float64)
    used = np.flatnonzero(weights > 0)
    if not len(used):
        return ood[int(np.argmin([np.inf if value is None else value for value in values]))]
    return ood[used[0]] if len(used) == 1 else (weights[used] / weights[used].sum()) @ ood[used]


def fuse_quality(photos: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The best of each measure, so that only photos that are all poor explain a rejection."""
    return {name: max(photo[name] for photo in photos) for name in photos[0]}


def agreement(
    answers: Sequence[Answer], weights: Sequence[float], texts: Mapping[str, str]
) -> dict[str, Any]:
    """Say whether the photos that name a species or disease agree.

    Args:
        answers: each photo's own.
        weights: of the photos; those of weight 0 are left out.
        texts: sentences by key.

    Returns:
        {"agree", "level", "message"}: level is `species` or `disease`, at which they differ, or
        None; message is a sentence or None.
    """
    voices = [
        (i, answer)
        for i, (answer, weight) in enumerate(zip(answers, weights, strict=True))
        if weight > 0 and answer.species is not None
    ]
    species = {answer.species for _, answer in voices}
    diseases = {answer.disease for _, answer in voices if answer.disease is not None}
    level = "species" if len(species) > 1 else "disease" if len(diseases) > 1 else None
    message = None
    if level:
        told = [
            texts["photo_says"].format(
                number=i + 1,
                name=" ".join(
                    dict.fromkeys(filter(None, (answer.species, answer.disease)))
                ).replace("_", " "),
            )
            for i, answer in voices
            if level == "species" or answer.disease is not None
        ]
        differ = texts["photos_differ"].format(told=", ".join(told))
        message = f"{differ} {texts[f'differ_{level}']}"
    return {"agree": level is None, "level": level, "message": message}


def hold_to(
    together: Answer, answers: Sequence[Answer], weights: Sequence[float], agree: bool
) -> Answer:
    """Take back from an answer to several photos what no photo was answered, or what they disagree
    about.

    Args:
        together: by their fused probabilities.
        answers, weights: as for `agreement`; agree: what it says.

    Returns:
        the answer, the species alone, or a rejection. Where they disagree the reason is
        `photos_disagree`.
    """
    voices = [a for a, weight in zip(answers, weights, strict=True) if weight > 0 and a.species]
    depth, rejection = len(together.path), dict(together.rejection)
    if {a.species for a in voices} != {together.species}:
        depth = 0
    elif {a.disease for a in voices} - {None} != {together.disease}:
        depth = min(depth, 1)
    if not agree:
        rejection["reason"] = "photos_disagree"
    elif depth == 0 and together.path:
        rejection["reason"] = "unsure"
    if depth == len(together.path):
        return replace(together, rejection=rejection)
    return replace(
        together,
        decision="rolled_up" if depth else "rejected",
        level="species" if depth else "none",
        species=together.species if depth else None,
        disease=None,
        healthy=None,
        path=together.path[:depth],
        rejection=rejection | {"rejected": depth == 0},
    )


def find_species(text: str, tree: ClassTree) -> str:
    """The species a person means: capitals, spaces and hyphens do not matter.

    Raises:
        ValueError: for a species that the model does not know, with those of similar names.
    """
    name = "_".join(text.lower().replace("-", " ").replace("_", " ").split())
    if name in tree.species:
        return name
    close = difflib.get_close_matches(name[:80], tree.species, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else " GET /model lists them."
    raise ValueError(f"the model knows no species '{text[:40]}'.{hint}")


def parse_prior(text: str, tree: ClassTree) -> dict[str, float]:
    """Read weights on species, written `tomato:3,apple:0.5` or as a JSON object; a species that is
    not named has weight 1.

    Raises:
        ValueError: for an unknown species, a weight outside 0 to 1,000,000, or
            weights that are all 0.
    """
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("the prior is no JSON object") from None
        pairs = list(found.items())
    else:
        pairs = [part.rpartition(":")[::2] for part in text.split(",") if part.strip()]
    weights: dict[str, float] = {}
    for name, value in pairs:
        weight = math.nan
        if not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError, TypeError):
                weight = float(value)
        if not 0 <= weight <= LARGEST:
            raise ValueError(
                f"'{str(name)[:40]}' has the weight '{str(value)[:20]}'; it should be a number "
                f"from 0 to {LARGEST:,.0f}, as in tomato:3,apple:0.5"
            )
        weights[find_species(name, tree)] = weight
    if not weights:
        raise ValueError("the prior names no species; it should read like tomato:3,apple:0.5")
    if len(weights) == tree.num_species and not any(weights.values()):
        raise ValueError("the prior gives every species the weight 0")
    return weights


def apply_prior(
    probabilities: np.ndarray, weights: Mapping[str, float], tree: ClassTree
) -> np.ndarray:
    """Multiply each class's probability by its species' weight: float (C,) -> float64 (C,), sum 1.

    Probabilities are raised to at least 1e-12 first, so that weights on species that the photo
    rules out still leave an answer.
    """
    row = np.ones(tree.num_species)
    for name, weight in weights.items():
        row[tree.species.index(name)] = weight
    return _normalised(
        np.maximum(np.asarray(probabilities, np.float64), FLOOR) * row[tree.class_species]
    )


def condition(probabilities: np.ndarray, species: str, tree: ClassTree) -> np.ndarray:
    """Give a species the probability 1 and keep its diseases' proportions: float (C,) -> float64
    (C,).
    """
    inside = tree.class_species == tree.species.index(species)
    return _normalised(
        np.where(inside, np.maximum(np.asarray(probabilities, np.float64), FLOOR), 0.0)
    )


def best(probabilities: np.ndarray, tree: ClassTree) -> dict[str, Any]:
    """The most probable class of (C,) as species, disease and probability."""
    class_idx = int(np.argmax(probabilities))
    species, disease = tree.pair(class_idx)
    return {
        "species": species,
        "disease": disease,
        "probability": float(f"{float(probabilities[class_idx]):.6g}"),
    }


def _normalised(values: np.ndarray) -> np.ndarray:
    return values / values.sum()
