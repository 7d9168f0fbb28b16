"""What an exported model answers for all pictures of an export, and what is fitted on it: its entry
in bundle.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.decide import rejection_from_json
from common.export import ood, rollup
from common.export.calibrate import calibration_error
from common.export.measure import Run, run_over
from common.export.pictures import ROLES, SHIFTS, Pictures, fit_photo
from common.images import photo_quality
from common.train.metrics import decision_figures, for_json, judge, summarise

Scores = dict[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """Answers of one model.

    Attributes:
        splits: {`val` | `test`: (probabilities float32 (N, classes), ood float32 (N, scores),
            class_idx int64 (N,))}.
        ood: {split: {role: {kind: ood (M, scores)}}}.
        poor: {split: {kind of poor photo: ood (M, scores)}}.
    """

    splits: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    ood: dict[str, dict[str, dict[str, np.ndarray]]]
    poor: dict[str, dict[str, np.ndarray]]

    def shown(self, role: str, names: Sequence[str]) -> Scores | None:
        """Scores of all OOD pictures of val of a role; None where there are none."""
        kinds = self.ood["val"][role]
        return ood.columns(np.concatenate([*kinds.values()]), names) if kinds else None


def outcome_of(
    run: Run,
    pictures: Pictures,
    learned: np.ndarray | None = None,
    splits: Sequence[str] = ("val", "test"),
) -> Outcome:
    """Run a model over everything.

    Args:
        run: uint8 (N, size, size, 3) -> probabilities, ood, ...
        pictures: at the model's size.
        learned: last score of val's OOD pictures of role `plant`, all kinds in a row, by fits that
            have not seen them.
        splits: which; poor photos are left out where it is one alone.
    """

    def scores(batches: Any) -> np.ndarray:
        return np.concatenate([run(batch)[1] for batch in batches])

    kinds = {
        split: {
            role: {kind: scores(batches) for kind, batches in pictures.ood(role, split)}
            for role in ROLES
        }
        for split in splits
    }
    if learned is not None and "val" in kinds:
        done = 0
        for columns in kinds["val"]["plant"].values():
            columns[:, -1] = learned[done : done + len(columns)]
            done += len(columns)
    poor = {
        split: {kind: scores(batch for batch, _ in pictures.poor(kind, split)) for kind in SHIFTS}
        for split in (splits if len(splits) > 1 else ())
    }
    return Outcome({split: run_over(run, pictures.batches(split)) for split in splits}, kinds, poor)


def photo_limits(pictures: Pictures) -> dict[str, float]:
    """Limits below which a photo counts as poor, from val: {measure: limit}."""
    parts = [photo_quality(batch) for batch, _ in pictures.batches("val")]
    val = pictures.data.splits["val"]
    quality = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return fit_photo(
        {**quality, "short_side": np.minimum(val.width, val.height).astype(np.float64)}
    )


def fit_thresholds(
    outcome: Outcome,
    names: Sequence[str],
    tree: ClassTree,
    photo: Mapping[str, float],
    precision: float,
    precisions: Sequence[float] = rollup.PRECISIONS,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit on val what decides: thresholds of rejection, and those of the wanted precisions.

    Returns:
        {"rejection", "rollup"} as bundle.json has them, and what fitting saw of val.
    """
    probabilities, scores, class_idx = outcome.splits["val"]
    rejection = ood.fit(
        ood.columns(scores, names),
        not_plants=outcome.shown("plant", names),
        unknown_species=outcome.shown("species", names),
        unknown_diseases=outcome.shown("disease", names),
        poor={kind: ood.columns(values, names) for kind, values in outcome.poor["val"].items()},
    )
    on_val = rejection.pop("val")
    rejection["photo"] = dict(photo)
    fitted = rollup.fit(
        probabilities,
        class_idx,
        tree,
        ood=scores,
        rejection=rejection_from_json(rejection, names),
        precisions=precisions,
        default=precision,
    )
    return {"rejection": rejection, "rollup": fitted}, on_val


def evaluate_thresholds(
    outcome: Outcome,
    fitted: Mapping[str, Any],
    names: Sequence[str],
    tree: ClassTree,
    class_sizes: np.ndarray,
    flat: np.ndarray | None = None,
) -> dict[str, Any]:
    """Evaluate a model with its thresholds on test; `flat` is what one softmax over all classes
    answers, where it is at hand, int (N,).

    Returns:
        plain values: the figures of `metrics.summarise`, calibration_error, `ood` (of
        `ood.judge`; empty without OOD pictures), `rejection` (the same, always), `rollup` (of
        `rollup.judge` per precision), `decisions`.
    """
    probabilities, scores, class_idx = outcome.splits["test"]
    judged, read = (
        judge(probabilities, class_idx, tree, flat),
        rejection_from_json(fitted["rejection"], names),
    )
    kinds = {
        kind: ood.columns(values, names)
        for role in ROLES[:2]
        for kind, values in outcome.ood["test"][role].items()
    }
    judged_ood = ood.judge(
        fitted["rejection"],
        ood.columns(scores, names),
        kinds,
        {kind: ood.columns(values, names) for kind, values in outcome.poor["test"].items()},
    )
    return {
        **for_json(summarise(judged, tree, class_sizes)),
        "calibration_error": calibration_error(judged.confidence, judged.joint == judged.class_idx),
        "ood": judged_ood if kinds else {},
        "rejection": judged_ood,
        "decisions": decision_figures(judged, tree),
        "rollup": {
            name: rollup.judge(entry, probabilities, class_idx, tree, ood=scores, rejection=read)
            for name, entry in fitted["rollup"]["precisions"].items()
        },
    }


def ood_scores(
    outcome: Outcome, rejection: Mapping[str, Any], names: Sequence[str], split: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """The OOD score of a threshold, of the split's plants (N,) and of its pictures of no plant
    (M,); None where there are none.
    """
    weights, kinds = rejection["weights"], outcome.ood[split]["plant"]
    outside = (
        ood.value(weights, ood.columns(np.concatenate([*kinds.values()]), names)) if kinds else None
    )
    return ood.value(weights, ood.columns(outcome.splits[split][1], names)), outside
