"""Several models, or several views of a photo, answering as one: their probabilities are averaged.

The first model's thresholds and its scores of the plain photo decide what is rejected and at which
level is answered: each model's scores have their own scale, and thresholds were fitted on plain
photos.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.classes import ClassTree
from common.console import table
from common.decide import Answer, decide, joint_class, species_probabilities
from common.serve.answer import PhotoResult, RunningPhoto, average, result_of, start_photo, views
from common.serve.photos import Photo
from common.serve.predictor import BundleError, Predictor
from common.serve.providers import open_predictor

ROUNDS, WARM_UP = 30, 3  # of timing the models in turn


class Ensemble:
    """One model or several of the same classes, run on one view of a photo or on three; usable from
    several threads at once.

    predictors: at least one; tta: also run the photo's mirror image and its middle, at three times
    the model's time. Raises BundleError where the models do not have the same classes in the same
    order.
    """

    def __init__(self, predictors: Sequence[Predictor], tta: bool = False) -> None:
        self.predictors, self.tta = tuple(predictors), tta
        self.tree = self.predictors[0].bundle.tree
        # rows of `systems`
        self.num_systems = 1 if len(self.predictors) == 1 else 1 + 2 * len(self.predictors)
        first = self.predictors[0].bundle
        for other in (predictor.bundle for predictor in self.predictors[1:]):
            if other.tree != first.tree:
                mine, its = (
                    {tree.class_name(i) for i in range(tree.num_classes)}
                    for tree in (first.tree, other.tree)
                )
                what = "they are the same in another order"
                if odd := sorted(mine ^ its):
                    what = f"'{odd[0]}' is known to one of them alone"
                raise BundleError(
                    f"{first.folder} and {other.folder} cannot answer together: their classes "
                    f"differ ({what}). Train and export both on the same data/organized."
                )
        self.names = name_apart(self.predictors)

    def start(self, source: bytes | Path) -> RunningPhoto:
        """Read a photo and have every model run every view: `answer.start_photo`."""
        return start_photo(self.predictors, source, tta=self.tta)

    def run(self, source: bytes | Path) -> PhotoResult:
        """Read a photo and run every model on every view."""
        return result_of(self.start(source))

    def decide(self, result: PhotoResult, mode: str) -> Answer:
        """The answer to a photo, with its best guess as the one alternative."""
        first = self.predictors[0]
        return decide(
            result.probabilities,
            result.ood,
            first.bundle.tree,
            first.card.rejection,
            first.card.rollup,
            mode=mode,
            top_k=1,
            photo=result.quality,
        )

    def systems(self, result: PhotoResult) -> np.ndarray:
        """Probabilities of all together, of each model alone, and of all without each: (1 + 2 K,
        C); K = 1: (1, C).
        """
        if self.num_systems == 1:
            return result.probabilities[None]
        without = [average(np.delete(result.each, i, axis=0)) for i in range(len(result.each))]
        return np.stack([result.probabilities, *result.each, *without])


def best(probabilities: np.ndarray, tree: ClassTree) -> tuple[np.ndarray, np.ndarray]:
    """Most probable class and most probable species of each row: (M, C) -> int64 (M,), (M,)."""
    return joint_class(probabilities, tree), species_probabilities(probabilities, tree).argmax(
        axis=1
    )


def locate(exports: Path, name: str | None) -> tuple[Path, str | None]:
    """The exports folder and the model file that --model means: a file of `exports`, another
    exports folder, or a model file in one.
    """
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
    that is not enough to tell them apart.
    """
    cards = [(predictor.card.file, predictor.bundle.folder) for predictor in predictors]
    for names in (
        [file for file, _ in cards],
        [f"{folder.absolute().name}/{file}" for file, folder in cards],
    ):
        if len(set(names)) == len(names):
            return names
    return [str(folder / file) for file, folder in cards]


def contributions(
    ensemble: Ensemble,
    photo: Sequence[Photo],
    class_idx: np.ndarray,
    species: np.ndarray,
    truth: np.ndarray,
) -> str:
    """Lay out what each model of an ensemble costs and adds.

    Args:
        ensemble: K models, at least two.
        photo: a photo as `answer.read_photo` gives it, to time the models on, one thread each, in
            turn.
        class_idx, species: int64 (N, 1 + 2 K), the answers of `Ensemble.systems`.
        truth: int64 (N,), true classes; below 0 where they are not known.

    Returns:
        a table: megabytes and milliseconds; share of right answers of the model alone and of the
        ensemble without it; what it adds, in points of "both right". Without any true class, how
        often it answers as the ensemble does.
    """
    count, known = len(ensemble.predictors), truth >= 0
    sizes = np.array([predictor.card.size_mb for predictor in ensemble.predictors])
    times = _measure_ms(ensemble.predictors, [views(one) for one in photo])
    costs = [
        (name, f"{size:.1f}", f"{ms:.2f}")
        for name, size, ms in zip(ensemble.names, sizes, times, strict=True)
    ]
    if not known.any():
        same = (class_idx[:, 1 : 1 + count] == class_idx[:, :1]).mean(axis=0)
        rows = [(*cost, f"{share:.4f}") for cost, share in zip(costs, same, strict=True)]
        return table(rows, ("model", "MB", "ms", "answers as all do"))
    both = (class_idx[known] == truth[known, None]).mean(axis=0)
    of_species = (species[known] == ensemble.tree.class_species[truth[known], None]).mean(axis=0)
    shares = np.stack([of_species[1 : 1 + count], both[1 : 1 + count], both[1 + count :]], axis=1)
    added = 100 * (both[0] - shares[:, 2])
    rows = [
        (
            *costs[i],
            *(f"{share:.4f}" for share in shares[i]),
            f"{added[i]:+.2f}",
            f"{added[i] / times[i]:+.3f}",
            f"{added[i] / sizes[i]:+.3f}",
        )
        for i in range(count)
    ]
    together = (
        f"{sizes.sum():.1f}",
        f"{times.sum():.2f}",
        f"{of_species[0]:.4f}",
        f"{both[0]:.4f}",
    )
    rows.append(("together", *together, "", "", "", ""))
    titles = "model|MB|ms|species|both right|without it|adds, points|per ms|per MB"
    return table(rows, titles.split("|"))


def _measure_ms(predictors: Sequence[Predictor], pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Median milliseconds of each model on its views of a photo, timed in turn so that what else
    the machine does affects all alike.
    """
    times = np.empty((WARM_UP + ROUNDS, len(predictors)))
    for row in times:
        for i, (predictor, batch) in enumerate(zip(predictors, pictures, strict=True)):
            start = time.perf_counter()
            predictor.run(batch)
            row[i] = 1000 * (time.perf_counter() - start)
    return np.median(times[WARM_UP:], axis=0)
