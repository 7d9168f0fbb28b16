"""Running exported models over pictures, and timing them against each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from common.bundle import open_session

Run = Callable[[np.ndarray], list[np.ndarray]]


def run_over(run: Run, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run a model over batches: probabilities (N, leaves), ood (N, scores), true leaves (N,)."""
    parts = [(*run(pictures)[:2], leaf) for pictures, leaf in batches]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


def session_run(path: Path, threads: int = 1) -> Run:
    """Make a function that runs an ONNX file: uint8 (N, size, size, 3) -> [probabilities, ood, heatmap]."""
    session = open_session(path, threads)
    return lambda pictures: session.run(None, {"images": np.ascontiguousarray(pictures)})


def measure_ms(runs: dict[str, Run], picture: np.ndarray, rounds: int = 30) -> dict[str, float]:
    """Median milliseconds for one picture, all models interleaved in one loop so that the machine's moods hit all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 3):
        for name, run in runs.items():
            begin = time.perf_counter()
            run(picture[None])
            if i >= 3:  # the first calls allocate
                times[name].append(1000 * (time.perf_counter() - begin))
    return {name: float(np.median(values)) for name, values in times.items()}


def check_batches(run: Run, pictures: np.ndarray) -> float:
    """Largest difference of probabilities between one batch and the same pictures one by one."""
    together = run(pictures)[0]
    return float(max(np.abs(together[i] - run(pictures[i : i + 1])[0][0]).max() for i in range(len(pictures))))
