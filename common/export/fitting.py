"""What an export fits: before the graph can be exported, temperatures on val and OOD scores on
train; on the answers of each exported model, its thresholds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common.console import progress
from common.decide import rejection_from_json
from common.export import ood, rollup
from common.export.calibrate import Temperatures, calibration_error, fit_temperatures
from common.export.graph import (
    ENOUGH,
    RANK,
    FeatureSpace,
    LearnedScore,
    ServingGraph,
    cross_fitted,
    extract_features,
)
from common.export.measure import Run, run_over
from common.export.pictures import BATCH, ROLES, SHIFTS, Pictures
from common.train.compute import choose_compute
from common.train.metrics import decision_figures, for_json, judge, summarise
from common.train.model import SwinHierarchical

SAMPLED = 16  # one train picture in so many is kept for the means of activations

# region before the graph


@torch.inference_mode()
def features_of(
    model: SwinHierarchical, batches: Any, total: int, what: str
) -> tuple[torch.Tensor, ...]:
    """Run the backbone, where there is a GPU on it.

    Args:
        model: it ends on the CPU.
        batches: of (uint8 (B, size, size, 3), class_idx int64 (B,)).
        total: how many batches, for the progress bar; what: its name.

    Returns:
        features float32 (N, F), layer statistics float32 (N, D), class_idx int64 (N,), on the CPU.
    """
    device, parts = choose_compute(precision="fp32").device, []
    model.to(device)
    for pictures, class_idx in progress(batches, total, what, "batch"):
        _, features, layers = extract_features(model, torch.from_numpy(pictures).to(device))
        parts.append((features.cpu(), layers.cpu(), torch.from_numpy(class_idx)))
    model.cpu()
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


@dataclass(frozen=True)
class Fitted:
    """What is fitted before a graph can be exported.

    Attributes:
        features, layers: `FeatureSpace` of train, with poor copies.
        temperatures: of val.
        learned: learned from val's pictures of no plant; None without them.
        held_out: float32 (M,), the learned score of these very pictures, each by a fit that has not
            seen it; None without them.
    """

    features: FeatureSpace
    layers: FeatureSpace
    temperatures: Temperatures
    learned: LearnedScore | None
    held_out: np.ndarray | None

    def graph(self, model: SwinHierarchical) -> ServingGraph:
        """Put the graph to export together, in evaluation mode on the CPU."""
        at = self.temperatures
        return ServingGraph(
            model, self.features, self.layers, at.species, at.disease, self.learned
        ).eval()


def fit_parts(
    model: SwinHierarchical,
    pictures: Pictures,
    ranks: tuple[int, int] = (RANK, RANK),
    sample: list[np.ndarray] | None = None,
) -> Fitted:
    """Fit temperatures on val, and OOD scores on train and val's pictures of no plant.

    Args:
        model: it ends on the CPU.
        pictures: at the model's size.
        ranks: of the spaces of features and of layers.
        sample: takes one train picture in `SAMPLED`, in batches.
    """

    def run(split: str, batches: Any, times: int = 1) -> tuple[torch.Tensor, ...]:
        total = times * min(len(pictures.data.splits[split]), pictures.at_most)
        return features_of(model, batches, -(-total // BATCH), f"features of {split}")

    def train() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        # with poor copies, so that a poor photo of a plant does not count as OOD
        for batch, class_idx in pictures.with_poor("train"):
            if sample is not None:
                sample.append(batch[::SAMPLED])
            yield batch, class_idx

    features, train_layers, class_idx = run("train", train(), times=2)
    spaces = [
        FeatureSpace(values, class_idx, model.class_species, rank=rank)
        for values, rank in zip((features, train_layers), ranks, strict=True)
    ]
    features, _, class_idx = run("val", pictures.batches("val"))
    with torch.inference_mode():
        hidden = model.neck(features)
        species_logits = model.species_logits(hidden).numpy()
        disease_logits = model.disease_logits(hidden, model.class_species[class_idx]).numpy()
    fitted = fit_temperatures(species_logits, disease_logits, class_idx.numpy(), model.tree)
    learned = held_out = None
    if count := pictures.count_ood("plant", "val"):
        batches = (
            (batch, np.zeros(len(batch), np.int64))
            for _, kind in pictures.ood("plant", "val")
            for batch in kind
        )
        layers = features_of(model, batches, -(-count // BATCH), "features of no plants")[1]
        if len(layers) >= ENOUGH:
            learned = LearnedScore(train_layers, layers)
            held_out = cross_fitted(train_layers, layers).numpy()
    return Fitted(*spaces, fitted, learned, held_out)


@torch.inference_mode()
def torch_answers(
    graph: ServingGraph, pictures: Pictures, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Answer a split in PyTorch, on the CPU as ONNX will be.

    Returns:
        probabilities float32 (N, classes); and int64 (N,), what one softmax over the disease heads'
        logits of all classes answers.
    """
    probabilities, flat = [], []
    for batch, _ in pictures.batches(split):
        maps = extract_features(graph.model, torch.from_numpy(batch))
        probabilities.append(graph.answer(*maps)[0].numpy())
        flat.append(
            graph.model.disease_heads.all_logits(graph.model.neck(maps[1])).argmax(dim=1).numpy()
        )
    return np.concatenate(probabilities), np.concatenate(flat)


# endregion

# region on the answers of a model


@dataclass(frozen=True)
class Outcome:
    """Answers of one model for all pictures of an export.

    Attributes:
        pictures: the pictures, at the model's size.
        names: of the scores.
        splits: {`val` | `test`: (probabilities float32 (N, classes), ood float32 (N, scores),
            class_idx int64 (N,))}.
        ood: {split: {role: {kind: ood (M, scores)}}}.
        poor: {split: {kind of poor photo: ood (M, scores)}}.
    """

    pictures: Pictures
    names: Sequence[str]
    splits: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    ood: dict[str, dict[str, dict[str, np.ndarray]]]
    poor: dict[str, dict[str, np.ndarray]]

    def columns(self, split: str) -> dict[str, np.ndarray]:
        """Scores of the split's plants by name, float64 (N,) each."""
        return ood.columns(self.splits[split][1], self.names)

    def shown(self, role: str, split: str = "val") -> dict[str, np.ndarray] | None:
        """Scores of all OOD pictures of a role by name; None where there are none."""
        kinds = self.ood[split][role]
        return ood.columns(np.concatenate([*kinds.values()]), self.names) if kinds else None

    def by_kind(self, kinds: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        """Name the scores of several kinds of pictures: {kind: (M, scores)} -> {kind: {name:
        (M,)}}.
        """
        return {kind: ood.columns(values, self.names) for kind, values in kinds.items()}


def outcome_of(
    run: Run,
    pictures: Pictures,
    names: Sequence[str],
    held_out: np.ndarray | None = None,
    splits: Sequence[str] = ("val", "test"),
) -> Outcome:
    """Run a model over everything.

    Args:
        run: uint8 (N, size, size, 3) -> probabilities, ood, ...
        pictures: at the model's size.
        names: of the scores.
        held_out: of `Fitted`; it takes the place of the learned score, the last one.
        splits: which; poor photos are left out where it is one alone.
    """

    def scores(batches: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate([run(batch)[1] for batch in batches])

    kinds = {
        split: {
            role: {kind: scores(batches) for kind, batches in pictures.ood(role, split)}
            for role in ROLES
        }
        for split in splits
    }
    if held_out is not None:
        plants = list(kinds["val"]["plant"].values())
        for rows, own in zip(
            plants, np.split(held_out, np.cumsum([*map(len, plants)])[:-1]), strict=True
        ):
            rows[:, -1] = own
    poor = {
        split: {kind: scores(batch for batch, _ in pictures.poor(kind, split)) for kind in SHIFTS}
        for split in (splits if len(splits) > 1 else ())
    }
    return Outcome(
        pictures,
        names,
        {split: run_over(run, pictures.batches(split)) for split in splits},
        kinds,
        poor,
    )


def fit_thresholds(outcome: Outcome, precision: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit on val what decides: thresholds of rejection, and those of the wanted precisions.

    Args:
        outcome: of the model.
        precision: the wanted share of right answers unless the caller asks for another, 0..1.

    Returns:
        {"rejection", "rollup"} as bundle.json has them, and figures of the rejection on val.
    """
    probabilities, scores, class_idx = outcome.splits["val"]
    rejection = ood.fit(
        outcome.columns("val"),
        not_plants=outcome.shown("plant"),
        unknown_species=outcome.shown("species"),
        unknown_diseases=outcome.shown("disease"),
        poor=outcome.by_kind(outcome.poor["val"]),
    )
    on_val = rejection.pop("val")
    rejection["photo"] = outcome.pictures.photo_limits
    rollup_ = rollup.fit(
        probabilities,
        class_idx,
        outcome.pictures.data.tree,
        ood=scores,
        rejection=rejection_from_json(rejection, outcome.names),
        default=precision,
    )
    return {"rejection": rejection, "rollup": rollup_}, on_val


def evaluate_thresholds(
    outcome: Outcome, fitted: Mapping[str, Any], flat: np.ndarray | None = None
) -> dict[str, Any]:
    """Evaluate a model with its thresholds on test.

    Args:
        outcome: of the model.
        fitted: of `fit_thresholds`.
        flat: int (N,), what one softmax over all classes answers, where it is at hand.

    Returns:
        plain values: the figures of `metrics.summarise`, calibration_error, `ood` (of
        `ood.judge`; empty without OOD pictures), `rejection` (the same, always), `rollup` (of
        `rollup.judge` per precision), `decisions`.
    """
    probabilities, scores, class_idx = outcome.splits["test"]
    data, read = outcome.pictures.data, rejection_from_json(fitted["rejection"], outcome.names)
    judged = judge(probabilities, class_idx, data.tree, flat)
    kinds = outcome.ood["test"]["plant"] | outcome.ood["test"]["species"]
    rejected = ood.judge(
        fitted["rejection"],
        outcome.columns("test"),
        outcome.by_kind(kinds),
        outcome.by_kind(outcome.poor["test"]),
    )
    return {
        **for_json(summarise(judged, data.tree, data.class_sizes)),
        "calibration_error": calibration_error(judged.confidence, judged.joint == judged.class_idx),
        "ood": rejected if kinds else {},
        "rejection": rejected,
        "decisions": decision_figures(judged, data.tree),
        "rollup": {
            name: rollup.judge(entry, probabilities, class_idx, data.tree, scores, read)
            for name, entry in fitted["rollup"]["precisions"].items()
        },
    }


def describe(
    outcome: Outcome, torch_probs: np.ndarray, flat: np.ndarray, precision: float
) -> dict[str, Any]:
    """Fit what is fitted per model on val, and evaluate it on test.

    Args:
        outcome: of the model.
        torch_probs, flat: what PyTorch answers, of `torch_answers`.
        precision: as for `fit_thresholds`.

    Returns:
        "rejection", "rollup" and "metrics" of the model's entry in bundle.json.
    """
    fitted, on_val = fit_thresholds(outcome, precision)
    probabilities = outcome.splits["test"][0]
    metrics = evaluate_thresholds(outcome, fitted, flat) | {
        "top1_agreement": float((probabilities.argmax(1) == torch_probs.argmax(1)).mean()),
        "max_probability_difference": float(np.abs(probabilities - torch_probs).max()),
        "rejection_val": on_val,
    }
    return {**fitted, "metrics": metrics}


# endregion
