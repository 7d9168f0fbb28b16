"""From photos to the answer of `POST /predict`: read and run each, put them together with what is
known, decide. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.decide import Answer, decide
from common.images import MAX_PIXELS, photo_quality
from common.serve.fusion import (
    Seen,
    agreement,
    fuse_probabilities,
    fuse_quality,
    fuse_scores,
    photo_weight,
)
from common.serve.predictor import Outputs, Predictor
from common.serve.priors import apply_prior, best, condition


@dataclass(frozen=True)
class Options:
    """What a request may ask for.

    mode: `joint` or `routed`; top_k: alternatives to list; heatmap: whether to add it; species: the
    declared one; precision: name of the promised precision, None for the export's default; prior:
    weights by species; short_side: px, of the photos that these are small copies of, None where
    they are the photos themselves."""

    mode: str = "joint"
    top_k: int = 5
    heatmap: bool = False
    species: str | None = None
    precision: str | None = None
    prior: Mapping[str, float] = field(default_factory=dict)
    short_side: int | None = None


def look(
    predictor: Predictor,
    source: bytes | Path,
    run: Callable[[np.ndarray], Outputs] | None = None,
    max_pixels: int = MAX_PIXELS,
    short_side: int | None = None,
) -> Seen:
    """Read a photo, measure it and run the model on it.

    Args:
        predictor: the model.
        source: the photo's bytes or its path.
        run: in the place of `predictor.run`.
        max_pixels: what the header of a photo may announce before anything is decoded.
        short_side: px, of the photo that this is a small copy of; None where it is the photo
            itself.

    Raises:
        ImageError: where it is no usable picture. OSError where a path cannot be read.
    """
    start = time.perf_counter()
    photo = predictor.read(source, max_pixels=max_pixels)
    decoded = time.perf_counter()
    outputs = (run or predictor.run)(photo.pixels[None])
    done = time.perf_counter()
    quality = {name: float(values[0]) for name, values in photo_quality(photo.pixels[None]).items()}
    quality["short_side"] = short_side or min(photo.width, photo.height)
    return Seen(
        outputs.probabilities[0],
        outputs.ood[0],
        outputs.heatmap[0],
        photo.width,
        photo.height,
        quality,
        decoded - start,
        done - decoded,
    )


def answer(predictor: Predictor, seen: Sequence[Seen], options: Options) -> dict[str, Any]:
    """Decide about the photos of one plant.

    Returns:
        plain values: `decide.Answer` with precision, photos (a row each), agreement, conditioned,
        prior, model, image (of the first photo), perhaps heatmap (of the photo that counts most),
        and timings_ms.
    """
    start = time.perf_counter()
    tree, card = predictor.bundle.tree, predictor.card
    rollup = card.rollups[options.precision] if options.precision else card.rollup

    def decided(probabilities: np.ndarray, ood: np.ndarray, quality: Mapping[str, float]) -> Answer:
        return decide(
            probabilities,
            ood,
            tree,
            card.rejection,
            rollup,
            mode=options.mode,
            top_k=options.top_k,
            photo=quality,
        )

    probabilities, ood = np.stack([s.probabilities for s in seen]), np.stack([s.ood for s in seen])
    alone = [decided(s.probabilities, s.ood, s.quality) for s in seen]
    refused = card.rejection.ood.exceeded(ood) if card.rejection else np.zeros(len(seen), bool)
    limits = card.rejection.photo if card.rejection else {}
    weights = [
        photo_weight(s.quality, limits, a.rejection["quantile"], bool(r))
        for s, a, r in zip(seen, alone, refused, strict=True)
    ]
    fused = fuse_probabilities(probabilities, np.asarray(weights))
    known, prior, conditioned = fused, None, None
    if options.prior:
        known = apply_prior(fused, options.prior, tree)
        before, after = best(fused, tree), best(known, tree)
        prior = {
            "weights": dict(options.prior),
            "before": before,
            "after": after,
            "changed": (before["species"], before["disease"])
            != (after["species"], after["disease"]),
        }
    if options.species:
        conditioned, known = _conditioned(known, options.species, predictor)
    together = (
        alone[0]
        if known is fused and len(seen) == 1
        else decided(
            known,
            fuse_scores(ood, np.asarray(weights), [a.rejection["value"] for a in alone]),
            fuse_quality([s.quality for s in seen]),
        )
    )
    result = together.to_dict()
    result.update(
        precision=options.precision or next(iter(card.rollups), None),
        photos=[
            _row(s, a, weight, bool(r))
            for s, a, weight, r in zip(seen, alone, weights, refused, strict=True)
        ],
        agreement=agreement(alone, weights),
        conditioned=conditioned,
        prior=prior,
        model={"file": card.file, "version": predictor.bundle.version},
        image={"width": seen[0].width, "height": seen[0].height},
    )
    if options.heatmap:
        shown = seen[int(np.argmax(weights))]
        result["heatmap"] = [[round(float(value), 3) for value in row] for row in shown.heatmap]
    decode, model = sum(s.decode for s in seen), sum(s.model for s in seen)
    result["timings_ms"] = {
        "decode": ms(decode),
        "model": ms(model),
        "total": ms(decode + model + time.perf_counter() - start),
    }
    return result


def answer_photo(
    predictor: Predictor,
    source: bytes | Path,
    *,
    mode: str = "joint",
    top_k: int = 5,
    heatmap: bool = False,
) -> dict[str, Any]:
    """Read, run and decide one photo: `answer` over `look`, with their errors."""
    return answer(predictor, [look(predictor, source)], Options(mode, top_k, heatmap))


def ms(seconds: float) -> float:
    """Seconds as milliseconds with two digits."""
    return round(1000 * seconds, 2)


def _conditioned(
    probabilities: np.ndarray, species: str, predictor: Predictor
) -> tuple[dict[str, Any], np.ndarray]:
    tree = predictor.bundle.tree
    before, share = (
        best(probabilities, tree),
        float(probabilities[tree.class_species == tree.species.index(species)].sum()),
    )
    agrees = before["species"] == species
    message = (
        None
        if agrees
        else (
            f"You said {species.replace('_', ' ')}, and the answer goes by that. By the photo "
            f"alone I would "
            f"have said {before['species'].replace('_', ' ')}."
        )
    )
    told = {
        "species": species,
        "agrees": agrees,
        "probability_before": float(f"{share:.6g}"),
        "best_before": before,
        "message": message,
    }
    return told, condition(probabilities, species, tree)


def _row(seen: Seen, alone: Answer, weight: float, refused: bool) -> dict[str, Any]:
    return {
        "width": seen.width,
        "height": seen.height,
        "quality": {name: float(f"{value:.4g}") for name, value in seen.quality.items()},
        "weight": round(weight, 4),
        "stranger": refused,
        "decision": alone.decision,
        "reason": alone.rejection["reason"],
        "quantile": alone.rejection["quantile"],
        "best_guess": alone.alternatives[0],
    }
