"""How fast photos are answered here: reading, the model, and both, compared with the model alone in
the same run.
"""

import contextlib
import itertools
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from common.console import fail, table
from common.files import cores
from common.images import ImageError
from common.serve.answer import PhotoResult, read_photo, views
from common.serve.batch.ensembles import Ensemble
from common.serve.batch.predictions import in_order

MOST = 256  # photos that are used
ROUNDS = 9
SECONDS = 1.0  # of one round of one way


def measure(ensemble: Ensemble, photos: Sequence[Path], threads: int, mode: str) -> list[str]:
    """Answer photos again and again, on one thread and on several, in turn with the models alone on
    pictures in memory.

    Args:
        ensemble: the models, and whether a photo is seen in several views.
        photos: the first `MOST` that can be read are used.
        threads: how many photos at once in the second part.
        mode: as for `decide.decide`.

    Returns:
        lines to print: the machine, and a table with p50 and p95 in milliseconds of each step,
        photos per second, and what share that is of the models alone.

    Raises:
        SystemExit: where none of the photos can be read.
    """
    usable, pictures = [], []
    for photo in photos[:MOST]:
        with contextlib.suppress(ImageError, OSError):
            read = read_photo(ensemble.predictors, photo, tta=ensemble.tta)
            pictures.append([views(one) for one in read])
            usable.append(photo)
    if not usable:
        fail(f"none of the first {min(len(photos), MOST)} photos can be read, such as {photos[0]}.")

    def whole(photo: Path) -> tuple[PhotoResult, float]:
        start = time.perf_counter()
        result = ensemble.run(photo)
        ensemble.decide(result, mode)
        return result, 1000 * (time.perf_counter() - start)

    def bare(views: list[np.ndarray]) -> None:
        for predictor, view in zip(ensemble.predictors, views, strict=True):
            predictor.session.run(None, {"images": view})

    rows = []
    for count in dict.fromkeys((1, threads)):
        rates, timed = np.empty((ROUNDS, 2)), []
        for row in rates:
            row[1], _ = _rate(bare, pictures, count)
            row[0], found = _rate(whole, usable, count)
            timed += found
        steps = np.array([(1000 * result.decode, 1000 * result.model, ms) for result, ms in timed])
        p50, p95 = np.quantile(steps, (0.5, 0.95), axis=0)
        # by round: what else the machine does affects both alike
        share = np.median(rates[:, 0] / rates[:, 1])
        rows.append(
            (
                count,
                *(f"{usual:.2f} / {most:.2f}" for usual, most in zip(p50, p95, strict=True)),
                *(f"{rate:.1f}" for rate in np.median(rates, axis=0)),
                f"{share:.2f}",
            )
        )
    size = sum(predictor.card.size_mb for predictor in ensemble.predictors)
    return [
        f"machine  {processor()}; onnxruntime {onnxruntime.__version__}, "
        f"{ensemble.predictors[0].session.get_providers()[0]}",
        f"models   {', '.join(ensemble.names)}: {size:.1f} MB"
        + (", each photo in three views" if ensemble.tta else ""),
        f"photos   {len(usable)}, {ROUNDS} rounds of {SECONDS:g} s; p50 / p95 in ms of one photo",
        "",
        table(rows, ("threads", "decode", "model", "all", "photos/s", "session.run/s", "share")),
    ]


def _rate(job: Callable[[Any], Any], items: Sequence[Any], threads: int) -> tuple[float, list[Any]]:
    """Run a job over items, round and round, for `SECONDS`; how many a second, and the results."""
    start = time.perf_counter()
    supply = itertools.takewhile(
        lambda _: time.perf_counter() < start + SECONDS, itertools.cycle(items)
    )
    found = list(in_order(job, supply, threads, 4 * threads))
    return len(found) / (time.perf_counter() - start), found


def processor() -> str:
    """The processor's name and the number of its cores, as far as the system tells."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        told = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        name = next(told, name)
    return f"{name}, {cores()} cores"
