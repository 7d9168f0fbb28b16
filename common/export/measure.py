"""Running exported models, timing them against each other, and holding them to
limits. No torch.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.utils

from common.console import Unusable
from common.export.answers import Run
from common.serve.predictor import open_session


class LimitError(Unusable):
    """A model that is larger or slower than was asked for; the message says what, by how much, and
    how to mend it.
    """


def session_run(path: Path, threads: int = 1) -> Run:
    """Make a function that runs an ONNX file: uint8 (N, size, size, 3) -> [probabilities, ood,
    heatmap].
    """
    session = open_session(path, threads)
    return lambda pictures: session.run(None, {"images": np.ascontiguousarray(pictures)})


def measure_times(
    runs: dict[str, Run],
    picture: np.ndarray,
    rounds: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Time models on one picture, all in turn within each round so that the machine's moods hit all
    alike.

    Args:
        runs: the models by name.
        picture: uint8 (size, size, 3).
        rounds: how often each is timed, after three rounds to warm up.
        clock: seconds.

    Returns:
        {name: float64 (rounds,), milliseconds}; place i of all is from one round.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 3):
        for name, run in runs.items():
            begin = clock()
            run(picture[None])
            if i >= 3:  # the first calls allocate
                times[name].append(1000 * (clock() - begin))
    return {name: np.array(values) for name, values in times.items()}


def measure_ms(runs: dict[str, Run], picture: np.ndarray, rounds: int = 30) -> dict[str, float]:
    """Median milliseconds for one picture of each model, timed in turn."""
    return {
        name: float(np.median(values))
        for name, values in measure_times(runs, picture, rounds).items()
    }


def measure_speed(
    base: Run, other: Run, picture: np.ndarray, rounds: int = 30, resamples: int = 400
) -> tuple[float, float, float]:
    """Processor time of one model as a share of another's, so that what else runs on the machine
    does not decide.

    Args:
        base, other: the models, of one thread each: only the calling thread's time counts. Below 1,
            `other` is the faster.
        picture: uint8 (size, size, 3).
        rounds, resamples: rounds timed, and how often they are drawn again for the interval.

    Returns:
        ratio of the medians, and the ends of its 95 % bootstrap interval over rounds.
    """
    times = measure_times({"base": base, "other": other}, picture, rounds, time.thread_time)
    drawn = np.random.default_rng(0).integers(0, rounds, (resamples, rounds))
    ratios = np.median(times["other"][drawn], axis=1) / np.median(times["base"][drawn], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(np.median(times["other"]) / np.median(times["base"])), float(low), float(high)


def cost_of_scores(path: Path, picture: np.ndarray) -> dict[str, float]:
    """What the OOD scores add to a file, a second opinion included: `mb` (10^6 bytes), and `ms`,
    median for one picture (uint8, (size, size, 3)) on one thread, both beside `of_mb` and `of_ms`
    of the whole.
    """
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.onnx"
        onnx.utils.extract_model(str(path), str(bare), ["images"], ["probabilities", "heatmap"])
        ms = measure_ms({"all": session_run(path), "bare": session_run(bare)}, picture)
        mb, of_mb = (file.stat().st_size / 1e6 for file in (bare, path))
    return {"mb": of_mb - mb, "of_mb": of_mb, "ms": ms["all"] - ms["bare"], "of_ms": ms["all"]}


def check_batches(run: Run, pictures: np.ndarray) -> float:
    """Largest difference of probabilities between one batch and the same pictures one by one."""
    together = run(pictures)[0]
    return float(
        max(
            np.abs(together[i] - run(pictures[i : i + 1])[0][0]).max() for i in range(len(pictures))
        )
    )


def check_limits(
    name: str,
    size_mb: float,
    ms: float,
    max_size_mb: float | None = None,
    max_latency_ms: float | None = None,
) -> None:
    """Hold a model to the limits that were asked for.

    Args:
        name: file name, for the message.
        size_mb: 10^6 bytes.
        ms: median milliseconds for one picture on one thread.
        max_size_mb, max_latency_ms: the limits; None = none.

    Raises:
        LimitError: where a limit is passed.
    """
    if max_size_mb is not None and size_mb > max_size_mb:
        raise LimitError(
            f"{name} has {size_mb:.1f} MB, more than --max-size-mb {max_size_mb:g}. Train a "
            f"smaller --backbone, "
            "or allow more."
        )
    if max_latency_ms is not None and ms > max_latency_ms:
        raise LimitError(
            f"{name} takes {ms:.1f} ms for a picture on one thread of this machine, more than "
            f"--max-latency-ms "
            f"{max_latency_ms:g}. Train a smaller --backbone or --image-size, measure on a quiet "
            f"machine, or allow more."
        )
