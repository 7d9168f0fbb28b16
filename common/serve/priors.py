"""What a person knows beside the photo: the species, or how much likelier some are here and now. No
torch."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.serve.fusion import FLOOR

LARGEST = 1e6  # weight of a species


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
        ValueError: for an unknown species, a weight that is no number from 0 to 1,000,000, or
            weights that leave no species.
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
        try:
            weight = (
                float(value)
                if isinstance(value, (str, int, float)) and not isinstance(value, bool)
                else math.nan
            )
        except (ValueError, OverflowError):
            weight = math.nan
        if not 0 <= weight <= LARGEST:
            raise ValueError(
                f"'{str(name)[:40]}' has the weight '{str(value)[:20]}'; it should be a number "
                f"from 0 to {LARGEST:,.0f}, "
                "as in tomato:3,apple:0.5"
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
    """Multiply each leaf's probability by its species' weight: float (L,) -> float64 (L,), sum 1.

    A probability of 0 counts as 1e-12 first, so that weights on species that the photo rules out
    still leave an answer."""
    row = np.ones(tree.num_species)
    for name, weight in weights.items():
        row[tree.species.index(name)] = weight
    return _normalised(
        np.maximum(np.asarray(probabilities, np.float64), FLOOR) * row[tree.class_species]
    )


def condition(probabilities: np.ndarray, species: str, tree: ClassTree) -> np.ndarray:
    """Give a species the probability 1 and keep its diseases' proportions: float (L,) -> float64
    (L,)."""
    inside = tree.class_species == tree.species.index(species)
    return _normalised(
        np.where(inside, np.maximum(np.asarray(probabilities, np.float64), FLOOR), 0.0)
    )


def best(probabilities: np.ndarray, tree: ClassTree) -> dict[str, Any]:
    """The most probable leaf of (L,) as species, disease and probability."""
    class_idx = int(np.argmax(probabilities))
    species, disease = tree.pair(class_idx)
    return {
        "species": species,
        "disease": disease,
        "probability": float(f"{float(probabilities[class_idx]):.6g}"),
    }


def _normalised(values: np.ndarray) -> np.ndarray:
    return values / values.sum()
