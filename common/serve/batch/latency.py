"""How fast photos are answered here: reading, the model, and both, compared with the model alone in
the same run.
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from common.console import fail, table
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
        try:
            pictures.append(
                [views(one) for one in read_photo(ensemble.predictors, photo, tta=ensemble.tta)]
            )
        except (ImageError, OSError):
            continue
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
        rates: dict[str, list[float]] = {"whole": [], "bare": []}
        timed: list[tuple[PhotoResult, float]] = []
        for _ in range(ROUNDS):
            rates["bare"].append(_rate(bare, pictures, count)[0])
            rate, found = _rate(whole, usable, count)
            rates["whole"].append(rate)
            timed += found
        steps = (
            [1000 * result.decode for result, _ in timed],
            [1000 * result.model for result, _ in timed],
            [ms for _, ms in timed],
        )
        # by round: what else the machine does affects both alike
        share = np.median(np.divide(rates["whole"], rates["bare"]))
        rows.append(
            (
                count,
                *(
                    f"{np.quantile(values, 0.5):.2f} / {np.quantile(values, 0.95):.2f}"
                    for values in steps
                ),
                *(f"{np.median(rates[way]):.1f}" for way in ("whole", "bare")),
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
    """Run a job over items, round and round, for `SECONDS`; how many a second, and what came of
    them.
    """
    end = time.perf_counter() + SECONDS

    def supply() -> Any:
        at = 0
        while at == 0 or time.perf_counter() < end:
            yield items[at % len(items)]
            at += 1

    start = time.perf_counter()
    found = list(in_order(job, supply(), threads))
    return len(found) / (time.perf_counter() - start), found


def processor() -> str:
    """The processor's name and the number of its cores, as far as the system tells."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(
                (line.partition(":")[2].strip() for line in file if line.startswith("model name")),
                name,
            )
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"
