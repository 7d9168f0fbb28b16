"""INT8 in an export: the search for a model that passes the gate on val, and its trial on test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.console import warn
from common.export import int8
from common.export.gate import GateResult, Side, Speed, judge_gate
from common.export.measure import Run, run_over, session_run
from common.export.outcomes import Outcome, outcome_of, stranger_scores
from common.export.pictures import Pictures, spread
from common.train.dataset import default_workers

QUICK = 128  # val pictures that a candidate for INT8 is judged on first


def make_int8(
    source: Path,
    target: Path,
    pictures: Pictures,
    fp32: Outcome,
    names: Sequence[str],
    bar: Mapping[str, Any],
    learned: np.ndarray | None,
    some: np.ndarray,
) -> tuple[list[int8.Attempt], Outcome | None, list[GateResult]]:
    """Search for an INT8 model that passes the gate on val, and hold it against test.

    Args:
        source: the FP32 model.
        target: the file to write; it is not there afterwards where no way passes.
        pictures: of the export.
        fp32: what the FP32 model answers for them.
        names: of the scores.
        bar: for strangers, whose score the gate compares.
        learned: as for `outcome_of`.
        some: uint8 (8, size, size, 3), for the clock and for batches.

    Returns:
        what was tried; the answers of the model that is kept, or None; the verdicts on val and on
        test, as far as they were reached.
    """
    data = pictures.data
    counts = np.bincount(data.splits["train"].class_idx, minlength=data.tree.num_classes)

    def side(outcome: Outcome, split: str) -> Side:
        return Side(
            outcome.splits[split][0],
            outcome.splits[split][2],
            *stranger_scores(outcome, bar, names, split),
        )

    def judge(way: str, run: Run, speed: Speed, difference: float) -> GateResult:
        found = outcome_of(run, pictures, learned, splits=("val",))
        return judge_gate(
            way,
            side(fp32, "val"),
            side(found, "val"),
            data.tree,
            counts,
            speed=speed,
            batch_difference=difference,
        )

    def quick(way: str, run: Run, speed: Speed, difference: float) -> GateResult:
        theirs, _, class_idx = run_over(run, pictures.batches("val", at_most=QUICK))
        ours = fp32.splits["val"][0][spread(len(fp32.splits["val"][2]), QUICK)]
        return judge_gate(
            way,
            Side(ours, class_idx),
            Side(theirs, class_idx),
            data.tree,
            counts,
            speed=speed,
            batch_difference=difference,
        )

    tried = int8.make_int8(source, target, pictures.calibration, some, judge, quick)
    kept = int8.kept(tried)
    if not kept:
        warn("NO INT8 MODEL is written: " + "; ".join(f"{row.way}: {row.refused}" for row in tried))
        return tried, None, []
    found = outcome_of(session_run(target, default_workers()), pictures, learned)
    verdict = judge_gate(
        kept.way, side(fp32, "test"), side(found, "test"), data.tree, counts, split="test"
    )
    if not verdict.passed:  # val let it pass; test may still refuse, never choose
        kept.refused = f"on test: {verdict.why()}"
        target.unlink()
        warn(f"NO INT8 MODEL is written: {kept.way}: {kept.refused}")
        return tried, None, [kept.gate, verdict]
    return tried, found, [kept.gate, verdict]
