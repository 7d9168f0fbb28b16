"""Several photos of one plant as one: how much each counts, what they say together, and whether
they agree. No torch.

The photos' probabilities are put together as a weighted geometric mean (a mean in log space; the
weights sum to 1). So the same photo sent twice gives the answer of one, a class that any good photo
rules out stays ruled out, and the bars that were fitted on single photos keep their meaning. The
scores of strangeness are put together as the weighted mean over the photos that were not refused;
as these scores are compared as sums, such a mean lies between the photos' own values. A photo
refused as a stranger counts nothing; where all are refused, the answer is the refusal of the least
strange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.decide import Answer

FLOOR = (
    1e-12  # least probability: a class that one photo gives 0 is not ruled out by rounding alone
)
LEAST = 0.1  # what a poor photo still counts, per measure
STRANGE = 0.9  # quantile of strangeness from which a photo counts less


@dataclass(frozen=True)
class Seen:
    """What the model made of one photo.

    probabilities float32 (L,), sum 1; ood float32 (K,); heatmap float32 (h, w), 0 to 1; width and
    height of the upright photo, px; quality: brightness (0 to 1), sharpness and short_side (px);
    decode and model: seconds that reading and running took."""

    probabilities: np.ndarray
    ood: np.ndarray
    heatmap: np.ndarray
    width: int
    height: int
    quality: Mapping[str, float]
    decode: float
    model: float


def photo_weight(
    quality: Mapping[str, float], limits: Mapping[str, float], quantile: float | None, refused: bool
) -> float:
    """How much a photo counts, 0 to 1: nothing where it is refused, less where it is poor or
    strange.

    Args:
        quality: measures of the photo.
        limits: least measures of a photo that is not poor; from twice a limit on, a measure costs
            nothing.
        quantile: share of validation plants that are less strange, 0 to 1; None where no score
            refuses.
        refused: whether the photo was refused as a stranger.
    """
    if refused:
        return 0.0
    weight = 1.0
    for name, limit in limits.items():
        if name in quality and limit > 0:
            share = quality[name] / (2 * limit)
            weight *= min(1.0, max(LEAST, share)) if share == share else LEAST
    if quantile is not None and quantile > STRANGE:
        weight *= 1 - (1 - LEAST) * (min(quantile, 1.0) - STRANGE) / (1 - STRANGE)
    return weight


def fuse_probabilities(probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted geometric mean of (N, L) by (N,), float64 (L,), sum 1. One row comes back as it is;
    no weight at all counts all alike."""
    probabilities, weights = np.asarray(probabilities, np.float64), np.asarray(weights, np.float64)
    if len(probabilities) == 1:
        return probabilities[0]
    if not weights.sum() > 0:
        weights = np.ones(len(probabilities))
    logs = (weights / weights.sum()) @ np.log(np.maximum(probabilities, FLOOR))
    fused = np.exp(logs - logs.max())
    return fused / fused.sum()


def fuse_scores(ood: np.ndarray, weights: np.ndarray, values: Sequence[float | None]) -> np.ndarray:
    """Weighted mean of (N, K) over the rows with weight; without any, the row whose refusing value
    is least. Returns float64 (K,)."""
    ood, weights = np.asarray(ood, np.float64), np.asarray(weights, np.float64)
    used = np.flatnonzero(weights > 0)
    if not len(used):
        return ood[int(np.argmin([np.inf if value is None else value for value in values]))]
    return ood[used[0]] if len(used) == 1 else (weights[used] / weights[used].sum()) @ ood[used]


def fuse_quality(photos: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The best of each measure: a refusal is put down to poor photos only where all of them are
    poor."""
    return {name: max(photo[name] for photo in photos) for name in photos[0]}


def agreement(answers: Sequence[Answer], weights: Sequence[float]) -> dict[str, Any]:
    """Say whether the photos that are sure of something say the same.

    Args:
        answers: each photo's answer by itself.
        weights: of the photos; what has none has no voice.

    Returns:
        {"agree", "level", "message"}: level is `species` or `leaf`, where they part, or None;
        message is a sentence or None.
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
            f"photo {i + 1} says "
            f"{' '.join(filter(None, (answer.species, answer.disease))).replace('_', ' ')}"
            for i, answer in voices
            if level == "species" or answer.disease is not None
        ]
        message = f"The photos disagree: {', '.join(told)}. " + (
            "Are they all of one plant?"
            if level == "species"
            else "The plant may have more than one thing, or one photo misleads."
        )
    return {"agree": level is None, "level": level, "message": message}
