"""The bars that an answer must pass, as bundle.json has them: strangeness per level, probability per level. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BARS = ("stranger", "plant", "disease")
PHOTO = ("short_side", "brightness", "sharpness")  # what is measured of a photo


@dataclass(frozen=True)
class Bar:
    """A score that tells strangers from plants, and where to draw the line.

    score: its name; weights: of the model's `ood` outputs in its sum (K,); threshold: the greatest sum still accepted;
    quantiles: the sum's percentiles 0, 1 ... 100 on validation plants (101 values, never falling).
    """

    score: str
    weights: tuple[float, ...]
    threshold: float
    quantiles: tuple[float, ...]

    def value(self, ood: np.ndarray) -> np.ndarray:
        """The sum for pictures: (..., K) -> float64 (...,). An output without weight does not matter, not even as NaN."""
        weights = np.asarray(self.weights)
        used = np.flatnonzero(weights)
        return np.asarray(ood, np.float64)[..., used] @ weights[used]

    def exceeded(self, ood: np.ndarray) -> np.ndarray:
        """Whether pictures are strangers: (..., K) -> bool (...,). What is no number is one too."""
        return ~(self.value(ood) <= self.threshold)

    def quantile(self, value: float) -> float:
        """Share of validation plants with a smaller sum, 0 to 1; 1.0 at and beyond the largest one seen."""
        if not value < self.quantiles[-1]:
            return 1.0
        return float(np.interp(value, self.quantiles, np.linspace(0.0, 1.0, len(self.quantiles))))


@dataclass(frozen=True)
class Rejection:
    """The bars: `stranger` refuses; `plant` says of what is refused whether it is a plant at all (None: nothing is said to be
    one); `disease` keeps the answer at the species (None: never). `photo` holds the least brightness (0 to 1), sharpness and
    short side (px) of a photo that is not poor.
    """

    stranger: Bar
    plant: Bar | None = None
    disease: Bar | None = None
    photo: Mapping[str, float] = field(default_factory=dict)

    @property
    def score(self) -> str:
        """Name of the score that refuses."""
        return self.stranger.score

    @property
    def threshold(self) -> float:
        """The greatest score that is not refused."""
        return self.stranger.threshold


@dataclass(frozen=True)
class Rollup:
    """Least probability, 0 to 1, to answer at a level; `precision` is the share of right answers it was fitted for."""

    leaf: float
    species: float
    precision: float | None = None


def rejection_from_json(data: Mapping[str, Any] | None, scores: Sequence[str]) -> Rejection | None:
    """Read {"score", "weights", "threshold", "quantiles"}, which is the bar for strangers, with "plant" and "disease" of the
    same kind, and "photo", {measure: limit}; None stays None.

    Args:
        data: the plain values; without "weights" the score is the output of its name; the last three may be missing or None.
        scores: the names of the model's `ood` columns in order.

    Raises:
        ValueError, KeyError, TypeError: where a value is missing or makes no sense.
    """
    if data is None:
        return None
    photo = {str(name): float(limit) for name, limit in (data.get("photo") or {}).items()}
    if unknown := [name for name in photo if name not in PHOTO]:
        raise ValueError(f"it measures '{unknown[0]}' of a photo; known are {', '.join(PHOTO)}")
    if not np.isfinite(list(photo.values())).all():
        raise ValueError("its limits of a poor photo must be finite")
    return Rejection(_bar_from_json(data, scores), *(_bar_from_json(data[name], scores) if data.get(name) else None for name in BARS[1:]),
                     photo)


def _bar_from_json(data: Mapping[str, Any], scores: Sequence[str]) -> Bar:
    weights = data.get("weights") or {data["score"]: 1.0}
    if unknown := [name for name in weights if name not in scores]:
        raise ValueError(f"it rejects by '{unknown[0]}', but the model's scores are {', '.join(scores) or 'none'}")
    row = tuple(float(weights.get(name, 0.0)) for name in scores)
    quantiles, threshold = tuple(float(value) for value in data["quantiles"]), float(data["threshold"])
    if len(quantiles) != 101 or not np.isfinite([*row, *quantiles, threshold]).all() or (np.diff(quantiles) < 0).any():
        raise ValueError("its rejection needs finite weights and threshold, and 101 finite percentiles that never fall")
    return Bar(str(data["score"]), row, threshold, quantiles)


def rollups_from_json(data: Mapping[str, Any] | None) -> dict[str, Rollup]:
    """Read {"default": name, "precisions": {name: {"leaf", "species"}}}; a name is a precision such as "0.95".

    Returns:
        the bars by name, the default first; nothing for None.

    Raises:
        ValueError, KeyError, TypeError: where a value is missing or makes no sense.
    """
    if data is None:
        return {}
    default, named = data["default"], data["precisions"]
    if default not in named:
        raise ValueError(f"its roll-up's default precision {default!r} is not among {', '.join(named) or 'none'}")
    rollups = {name: Rollup(float(named[name]["leaf"]), float(named[name]["species"]), float(name))
               for name in (default, *(name for name in named if name != default))}
    # A bar above 1 is how a fit says "never answer at this level"; below 0 or NaN is a mistake.
    if not all(rollup.leaf >= 0 and rollup.species >= 0 for rollup in rollups.values()):
        raise ValueError("its roll-up needs probabilities for `leaf` and `species` that are not negative")
    return rollups
