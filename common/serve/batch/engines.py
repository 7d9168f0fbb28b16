"""--predict's rows inside engines that spread work over machines, such as Ray Data and Dask: how to
write that is in common/serve/CLUSTERS.md.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.serve.batch.ensembles import Ensemble, open_models
from common.serve.batch.predictions import COLUMNS, Job, answer, in_order, start
from common.serve.http.work_queue import settle_process


@dataclass(frozen=True)
class Rows:
    """Answers photos in any process: it travels as its options, and each process opens the models
    once.

    exports, model, provider, tta, mode and threads are as the flags of 04; model is a tuple.
    """

    exports: str = "exports"
    model: tuple[str, ...] = ()
    provider: str = "auto"
    tta: bool = False
    mode: str = "joint"
    threads: int = 1

    def rows(
        self, files: Sequence[str], contents: Sequence[bytes] | None = None
    ) -> list[dict[str, Any]]:
        """Answer photos by path, or by their bytes, where the file system is not shared.

        Returns:
            a row per photo, in order: {column: value} of `COLUMNS`; None where a column is empty.

        Raises:
            BundleError: as `open_models`.
        """
        ensemble = _ensemble(self.exports, self.model, self.provider, self.tta)
        job = Job((), Path(), np.empty(0), self.mode)
        sources = map(Path, files) if contents is None else contents
        started = in_order(
            lambda source: start(ensemble, source), sources, self.threads, 4 * self.threads
        )
        return [
            dict.fromkeys(COLUMNS) | answer(ensemble, job, Path(file), one)["row"]
            for file, one in zip(files, started, strict=True)
        ]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """`rows` by column, of a batch with the columns `path` and perhaps `bytes`."""
        rows = self.rows(batch["path"], batch.get("bytes"))
        return {column: [row[column] for row in rows] for column in COLUMNS}


@functools.cache
def _ensemble(exports: str, model: tuple[str, ...], provider: str, tta: bool) -> Ensemble:
    settle_process()
    return Ensemble([one for one, _ in open_models(Path(exports), model, provider)], tta)
