"""Several models, or several views of a photo, answering as one: their probabilities averaged. No
torch.

The first model's bars decide what is refused and at which level is answered, by the first model's
scores of the plain photo: each model's scores have a scale of their own, and the bars were fitted
on plain photos."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.classes import ClassTree
from common.console import table
from common.decide import Answer, decide, joint_class, species_probabilities
from common.export.measure import Run, measure_ms
from common.images import photo_quality
from common.serve.predictor import BundleError, Photo, Predictor
from common.serve.providers import open_predictor

MIDDLE = 0.8  # of both sides: training sees crops of 0.6 to 1 of the area
TINY = 1e-12


@dataclass(frozen=True)
class Seen:
    """What the models make of one photo.

    probabilities: float64 (leaves,), the average, summing to 1; each: float64 (K, leaves), model by
    model; ood: float32 (scores,) of the first; photo: measures as `decide.decide` takes them;
    decode_ms, model_ms: how long reading and running took."""

    probabilities: np.ndarray
    each: np.ndarray
    ood: np.ndarray
    photo: dict[str, float]
    decode_ms: float
    model_ms: float


class Panel:
    """One model or several of the same classes, seeing a photo in one view or in several; usable
    from several threads at once.

    predictors: at least one; tta: see the photo's mirror image and its middle too, at three times
    the model's time. Raises BundleError where the models do not have the same classes in the same
    order."""

    def __init__(self, predictors: Sequence[Predictor], tta: bool = False) -> None:
        self.predictors, self.tta = tuple(predictors), tta
        first = self.predictors[0].bundle
        for other in (predictor.bundle for predictor in self.predictors[1:]):
            if other.tree != first.tree:
                mine, its = (
                    {tree.class_name(i) for i in range(tree.num_classes)}
                    for tree in (first.tree, other.tree)
                )
                odd = sorted(mine ^ its)
                what = (
                    f"'{odd[0]}' is known to one of them alone"
                    if odd
                    else "the same ones in another order"
                )
                raise BundleError(
                    f"{first.folder} and {other.folder} cannot answer together: their classes "
                    f"differ ({what}). "
                    "Train and export both on the same data/organized."
                )
        self.names = name_apart(self.predictors)

    @property
    def tree(self) -> ClassTree:
        """The class tree that all models share."""
        return self.predictors[0].bundle.tree

    @property
    def num_systems(self) -> int:
        """How many rows `systems` has."""
        return 1 if len(self.predictors) == 1 else 1 + 2 * len(self.predictors)

    def read(self, source: bytes | Path) -> list[Photo]:
        """Read a photo once per size that is needed; one per model. Raises images.ImageError;
        OSError."""
        read: dict[tuple[int, int | None], Photo] = {}
        for predictor in self.predictors:
            kind = (predictor.bundle.size, predictor.bundle.long_side)
            if kind not in read:
                read[kind] = predictor.read(source, middle=MIDDLE if self.tta else None)
        return [
            read[predictor.bundle.size, predictor.bundle.long_side] for predictor in self.predictors
        ]

    def views(self, photo: Photo) -> np.ndarray:
        """The views of a photo: uint8 (V, size, size, 3), the plain one first."""
        return (
            np.stack([photo.pixels, photo.pixels[:, ::-1], photo.middle])
            if photo.middle is not None
            else photo.pixels[None]
        )

    def look(self, source: bytes | Path) -> Seen:
        """Read a photo and run every model over every view. Raises images.ImageError; OSError;
        BundleError as `Predictor.run`."""
        start = time.perf_counter()
        photos = self.read(source)
        decoded = time.perf_counter()
        outputs = [
            predictor.run(self.views(photo))
            for predictor, photo in zip(self.predictors, photos, strict=True)
        ]
        done = time.perf_counter()
        each = np.stack([average_views(output.probabilities) for output in outputs])
        measured = {
            name: float(values[0]) for name, values in photo_quality(photos[0].pixels[None]).items()
        }
        measured["short_side"] = min(photos[0].width, photos[0].height)
        return Seen(
            average(each),
            each,
            outputs[0].ood[0],
            measured,
            1000 * (decoded - start),
            1000 * (done - decoded),
        )

    def decide(self, seen: Seen, mode: str) -> Answer:
        """The answer to a photo, with its best guess as the one alternative."""
        first = self.predictors[0]
        return decide(
            seen.probabilities,
            seen.ood,
            first.bundle.tree,
            first.card.rejection,
            first.card.rollup,
            mode=mode,
            top_k=1,
            photo=seen.photo,
        )

    def systems(self, seen: Seen) -> np.ndarray:
        """Probabilities of all together, of each model alone, and of all without each: float64 (1 +
        2 K, leaves); K = 1: (1, leaves)."""
        if self.num_systems == 1:
            return seen.probabilities[None]
        without = [average(np.delete(seen.each, i, axis=0)) for i in range(len(seen.each))]
        return np.stack([seen.probabilities, *seen.each, *without])


def average(probabilities: np.ndarray) -> np.ndarray:
    """The mean over rows: (K, leaves) -> float64 (leaves,), summing to 1."""
    mean = np.asarray(probabilities, np.float64).mean(axis=0)
    return mean / mean.sum()


def average_views(probabilities: np.ndarray) -> np.ndarray:
    """The mean over views of one photo, in logarithms: (V, leaves) -> float64 (leaves,), summing to
    1.

    Views of a photo are nearly one witness. Their mean in logarithms is as certain as one view, so
    that bars fitted on plain photos hold; a mean of probabilities is less certain, and more answers
    would be rolled up."""
    if len(probabilities) == 1:
        return average(probabilities)
    mean = np.exp(np.log(np.maximum(np.asarray(probabilities, np.float64), TINY)).mean(axis=0))
    return mean / mean.sum()


def best(probabilities: np.ndarray, tree: ClassTree) -> tuple[np.ndarray, np.ndarray]:
    """Most probable leaf and most probable species of each row: (M, leaves) -> int64 (M,), (M,)."""
    return joint_class(probabilities, tree), species_probabilities(probabilities, tree).argmax(
        axis=1
    )


def locate(exports: Path, name: str | None) -> tuple[Path, str | None]:
    """The exports folder and the model file that --model means: a file of `exports`, another
    exports folder, or a model file in one."""
    path = Path(name or "")
    if name and path.is_dir():
        return path, None
    if name and path.suffix == ".onnx" and path.parent != Path("."):
        return path.parent, path.name
    return exports, name


def open_models(
    exports: Path, names: Sequence[str] | None, provider: str
) -> list[tuple[Predictor, str]]:
    """Open models by name, each with the provider that runs it.

    Args:
        exports: the folder that plain names are looked up in, and whose default model answers
            without any.
        names: what --model gave, as `locate` reads it; None or empty: the default model.
        provider: as for `providers.open_predictor`.

    Raises:
        BundleError: as `open_predictor`, and where a model is named twice.
    """
    opened: dict[tuple[Path, str], tuple[Predictor, str]] = {}
    for name in names or [None]:
        predictor, chosen = open_predictor(*locate(exports, name), provider)
        key = (predictor.bundle.folder.resolve(), predictor.card.file)
        if key in opened:
            raise BundleError(
                f"{predictor.bundle.folder / predictor.card.file} is named twice by --model; name "
                f"each model once."
            )
        opened[key] = (predictor, chosen)
    return list(opened.values())


def name_apart(predictors: Sequence[Predictor]) -> list[str]:
    """Short names of models: the file; with its folder's name, or the folder's whole path, where
    that is not enough to tell them apart."""
    cards = [(predictor.card.file, predictor.bundle.folder) for predictor in predictors]
    for names in (
        [file for file, _ in cards],
        [f"{folder.absolute().name}/{file}" for file, folder in cards],
    ):
        if len(set(names)) == len(names):
            return names
    return [str(folder / file) for file, folder in cards]


def contributions(
    panel: Panel,
    photo: Sequence[Photo],
    class_idx: np.ndarray,
    species: np.ndarray,
    truth: np.ndarray,
) -> str:
    """Lay out what each model of an ensemble costs and adds.

    Args:
        panel: K models, at least two.
        photo: a photo as `Panel.read` gives it, to time the models with, one thread each, in turn.
        leaf, species: int64 (N, 1 + 2 K), the answers of `Panel.systems`.
        truth: int64 (N,), true leaves; below 0 where they are not known.

    Returns:
        a table: megabytes and milliseconds; share of right answers alone and in what all without it
        have; what it adds, in points of "both right". Without any true leaf, how often it answers
        as all together do.
    """
    count, known = len(panel.predictors), truth >= 0
    models = list(zip(panel.names, panel.predictors, strict=True))
    runs = {
        name: _timed(predictor, panel.views(one))
        for (name, predictor), one in zip(models, photo, strict=True)
    }
    times = measure_ms(runs, photo[0].pixels)
    rows = []
    if not known.any():
        for i, (name, predictor) in enumerate(models):
            rows.append(
                (
                    name,
                    f"{predictor.card.size_mb:.1f}",
                    f"{times[name]:.2f}",
                    f"{(class_idx[:, 1 + i] == class_idx[:, 0]).mean():.4f}",
                )
            )
        return table(rows, ("model", "MB", "ms", "answers as all do"))
    both = (class_idx[known] == truth[known, None]).mean(axis=0)
    plant = (species[known] == panel.tree.class_species[truth[known]][:, None]).mean(axis=0)
    for i, (name, predictor) in enumerate(models):
        size, added = predictor.card.size_mb, 100 * (both[0] - both[1 + count + i])
        rows.append(
            (
                name,
                f"{size:.1f}",
                f"{times[name]:.2f}",
                f"{plant[1 + i]:.4f}",
                f"{both[1 + i]:.4f}",
                f"{both[1 + count + i]:.4f}",
                f"{added:+.2f}",
                f"{added / times[name]:+.3f}",
                f"{added / size:+.3f}",
            )
        )
    rows.append(
        (
            "together",
            f"{sum(predictor.card.size_mb for predictor in panel.predictors):.1f}",
            f"{sum(times.values()):.2f}",
            f"{plant[0]:.4f}",
            f"{both[0]:.4f}",
            "",
            "",
            "",
            "",
        )
    )
    return table(
        rows,
        (
            "model",
            "MB",
            "ms",
            "species",
            "both right",
            "without it",
            "adds, points",
            "per ms",
            "per MB",
        ),
    )


def _timed(predictor: Predictor, views: np.ndarray) -> Run:
    return lambda _: [predictor.run(views).probabilities]
