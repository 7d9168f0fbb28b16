"""From photos to the answer of `POST /predict`: read and run each photo, fuse the results, decide.
The batch prediction runs its photos by the same functions.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.decide import Answer, Rejection, decide
from common.images import photo_quality
from common.serve.fusion import (
    agreement,
    apply_prior,
    best,
    condition,
    fuse_probabilities,
    fuse_quality,
    fuse_scores,
    hold_to,
    photo_weight,
)
from common.serve.photos import Photo
from common.serve.predictor import Outputs, Predictor
from common.serve.texts import english, message

MIDDLE = 0.8  # share of both sides in the middle view: training sees crops of 0.6 to 1 of the area


@dataclass(frozen=True)
class Options:
    """What a request may ask for.

    mode: `joint` or `routed`; top_k: alternatives to list; heatmap: whether to add it; species: the
    known one; precision: name of the wanted precision, None for the export's default; prior:
    weights by species; short_side: px, of the photos that these are small copies of, or None.
    """

    mode: str = "joint"
    top_k: int = 5
    heatmap: bool = False
    species: str | None = None
    precision: str | None = None
    prior: Mapping[str, float] = field(default_factory=dict)
    short_side: int | None = None


@dataclass(frozen=True)
class PhotoResult:
    """What one model, or several together, make of one photo.

    probabilities: (C,), their average, summing to 1; each: (K, C), model by model; ood: float32
    (scores,) and heatmap: float32 (h, w), 0 to 1, of the first model's plain view; width, height:
    of the upright photo, px; quality: brightness (0 to 1), sharpness and short_side (px); decode,
    model: seconds that reading and running took.
    """

    probabilities: np.ndarray
    each: np.ndarray
    ood: np.ndarray
    heatmap: np.ndarray
    width: int
    height: int
    quality: Mapping[str, float]
    decode: float
    model: float


def read_photo(
    predictors: Sequence[Predictor], source: bytes | Path, tta: bool = False, **limits: int | None
) -> list[Photo]:
    """Read a photo, once per size that is needed; one per model. Limits and errors are those of
    `images.read_sized`.
    """
    sizes = [(predictor.bundle.size, predictor.bundle.long_side) for predictor in predictors]
    read = {
        size: predictor.read(source, MIDDLE if tta else None, **limits)
        for size, predictor in dict(zip(sizes, predictors, strict=True)).items()
    }
    return [read[size] for size in sizes]


def views(photo: Photo) -> np.ndarray:
    """The views of a photo: uint8 (V, size, size, 3), the plain one first; with a middle also its
    mirror image and the middle.
    """
    if photo.middle is None:
        return photo.pixels[None]
    return np.stack([photo.pixels, photo.pixels[:, ::-1], photo.middle])


@dataclass(frozen=True)
class RunningPhoto:
    """A photo that was read, and whose outputs are on their way.

    outputs: of each model, for the views of the photo; quality as in `PhotoResult`; decode: seconds
    that reading took; begun: when the models were given it, by `time.perf_counter`.
    """

    outputs: Sequence[Future[Outputs]]
    width: int
    height: int
    quality: Mapping[str, float]
    decode: float
    begun: float


def start_photo(
    predictors: Sequence[Predictor],
    source: bytes | Path | Photo,
    *,
    short_side: int | None = None,
    tta: bool = False,
    **limits: int | None,
) -> RunningPhoto:
    """Read a photo, measure it and give it to the models.

    Args:
        predictors: one model, or several of the same classes.
        source: the photo's bytes or its path, or, of one model, the photo as it was read.
        short_side: px, of the photo that this is a small copy of; None where it is the photo.
        tta: run each model on three views of the photo instead of one.
        limits: of `images.read_sized`.

    Raises:
        ImageError: where it is no usable picture. OSError where a path cannot be read.
    """
    start = time.perf_counter()
    read = isinstance(source, Photo)
    photos = [source] if read else read_photo(predictors, source, tta, **limits)
    first, begun = photos[0], time.perf_counter()
    quality = {name: float(values[0]) for name, values in photo_quality(first.pixels[None]).items()}
    quality["short_side"] = short_side or min(first.width, first.height)
    return RunningPhoto(
        [one.submit(views(photo)) for one, photo in zip(predictors, photos, strict=True)],
        first.width,
        first.height,
        quality,
        begun - start,
        begun,
    )


def result_of(running: RunningPhoto) -> PhotoResult:
    """Wait for a photo's outputs and put them together. Raises BundleError as `Predictor.run`."""
    outputs = [one.result() for one in running.outputs]
    each = np.stack([average_views(output.probabilities) for output in outputs])
    return PhotoResult(
        average(each),
        each,
        outputs[0].ood[0],
        outputs[0].heatmap[0],
        running.width,
        running.height,
        running.quality,
        running.decode,
        time.perf_counter() - running.begun,
    )


def average(probabilities: np.ndarray) -> np.ndarray:
    """The mean over models: (K, C) -> (C,), summing to 1. A single row is returned unchanged."""
    if len(probabilities) == 1:
        return probabilities[0]
    mean = np.asarray(probabilities, np.float64).mean(axis=0)
    return mean / mean.sum()


def average_views(probabilities: np.ndarray) -> np.ndarray:
    """The geometric mean over views of one photo: (V, C) -> (C,), summing to 1. A single row is
    returned unchanged.

    Views of a photo are nearly one observation. Their geometric mean is as confident as one view,
    so that thresholds fitted on plain photos hold; the arithmetic mean is less confident, and more
    answers would be rolled up.
    """
    return fuse_probabilities(probabilities, np.ones(len(probabilities)))


def answer(
    predictor: Predictor,
    results: Sequence[PhotoResult],
    options: Options,
    texts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Decide about the photos of one plant, in the words of `texts` (None: English).

    Returns:
        plain values: `decide.Answer` with precision, photos (a row each), agreement, conditioned,
        prior, model, image (of the first photo), perhaps heatmap (of the photo that counts most),
        and timings_ms.
    """
    start, texts = time.perf_counter(), texts or english()
    tree, card = predictor.bundle.tree, predictor.card
    rollup = card.rollups[options.precision] if options.precision else card.rollup
    decided = partial(
        decide,
        tree=tree,
        rejection=card.rejection,
        rollup=rollup,
        mode=options.mode,
        top_k=options.top_k,
    )
    alone = [decided(s.probabilities, s.ood, photo=s.quality) for s in results]
    rejected, weights = _weights(results, alone, card.rejection)
    own = (
        [decided(_known(s.probabilities, options, tree), s.ood, photo=s.quality) for s in results]
        if options.prior or options.species
        else alone
    )
    agreed, rows = agreement(own, weights, texts), np.stack([s.probabilities for s in results])
    fused = (
        fuse_probabilities(rows, np.asarray(weights))
        if agreed["agree"]
        else np.average(rows, axis=0, weights=weights)
    )
    known, prior, conditioned = fused, None, None
    if options.prior:
        prior, known = _weighed(fused, options.prior, tree)
    if options.species:
        conditioned, known = _conditioned(known, options.species, tree, texts)
    together = own[0]
    if len(results) > 1:
        values, ood = [a.rejection["value"] for a in alone], np.stack([s.ood for s in results])
        scores = fuse_scores(ood, np.asarray(weights), values)
        together = decided(known, scores, photo=fuse_quality([s.quality for s in results]))
        together = hold_to(together, own, weights, agreed["agree"])
    if conditioned and not together.species:
        conditioned["message"] = None  # no answer that could go by what was said
    result = dict(
        vars(together),
        rejection={
            **together.rejection,
            "message": agreed["message"] or message(together.rejection, texts),
        },
        precision=options.precision or next(iter(card.rollups), None),
        photos=[
            _row(s, a, weight, r)
            for s, a, weight, r in zip(results, alone, weights, rejected, strict=True)
        ],
        agreement=agreed,
        conditioned=conditioned,
        prior=prior,
        model={"file": card.file, "version": predictor.bundle.version},
        image={"width": results[0].width, "height": results[0].height},
    )
    if options.heatmap:
        shown = results[int(np.argmax(weights))]
        result["heatmap"] = [[round(float(value), 3) for value in row] for row in shown.heatmap]
    decode, model = sum(s.decode for s in results), sum(s.model for s in results)
    result["timings_ms"] = {
        "decode": ms(decode),
        "model": ms(model),
        "total": ms(decode + model + time.perf_counter() - start),
    }
    return result


def ms(seconds: float) -> float:
    """Seconds as milliseconds with two digits."""
    return round(1000 * seconds, 2)


def _weights(
    results: Sequence[PhotoResult], alone: Sequence[Answer], rejection: Rejection | None
) -> tuple[list[bool], list[float]]:
    """Which photos have no say, and how much each counts."""
    limits = rejection.photo if rejection else {}
    rejected = [
        rejection is not None and bool(rejection.exceeded(s.ood) or rejection.is_black(s.quality))
        for s in results
    ]
    weights = [
        photo_weight(s.quality, limits, a.rejection["quantile"], r)
        for s, a, r in zip(results, alone, rejected, strict=True)
    ]
    return rejected, weights


def _known(probabilities: np.ndarray, options: Options, tree: ClassTree) -> np.ndarray:
    if options.prior:
        probabilities = apply_prior(probabilities, options.prior, tree)
    return condition(probabilities, options.species, tree) if options.species else probabilities


def _weighed(
    probabilities: np.ndarray, weights: Mapping[str, float], tree: ClassTree
) -> tuple[dict[str, Any], np.ndarray]:
    known = apply_prior(probabilities, weights, tree)
    before, after = best(probabilities, tree), best(known, tree)
    changed = (before["species"], before["disease"]) != (after["species"], after["disease"])
    return {"weights": dict(weights), "before": before, "after": after, "changed": changed}, known


def _conditioned(
    probabilities: np.ndarray, species: str, tree: ClassTree, texts: Mapping[str, str]
) -> tuple[dict[str, Any], np.ndarray]:
    before, share = (
        best(probabilities, tree),
        float(probabilities[tree.class_species == tree.species.index(species)].sum()),
    )
    agrees = before["species"] == species
    said, photo = (name.replace("_", " ") for name in (species, before["species"]))
    told = {
        "species": species,
        "agrees": agrees,
        "probability_before": float(f"{share:.6g}"),
        "best_before": before,
        "message": None if agrees else texts["said_other"].format(said=said, photo=photo),
    }
    return told, condition(probabilities, species, tree)


def _row(result: PhotoResult, alone: Answer, weight: float, rejected: bool) -> dict[str, Any]:
    return {
        "width": result.width,
        "height": result.height,
        "quality": {name: float(f"{value:.4g}") for name, value in result.quality.items()},
        "weight": round(weight, 4),
        "rejected": rejected,
        "decision": alone.decision,
        "reason": alone.rejection["reason"],
        "quantile": alone.rejection["quantile"],
        "best_guess": alone.alternatives[0],
    }
