"""What is fitted before a graph can be exported: temperatures on val, OOD scores on train."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common.console import progress
from common.export.calibrate import Temperatures, fit_temperatures
from common.export.graph import (
    RANK,
    FeatureSpace,
    LearnedScore,
    ServingGraph,
    extract_features,
    learn,
)
from common.export.pictures import BATCH, Pictures
from common.train.compute import choose_compute
from common.train.model import SwinHierarchical

SAMPLED = 16  # one train picture in so many is kept for the means of activations


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
    compute, parts = choose_compute(precision="fp32"), []
    model.to(compute.device)
    for pictures, class_idx in progress(batches, total, what, "batch"):
        _, features, layers = extract_features(model, torch.from_numpy(pictures).to(compute.device))
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
        learned, held_out = learn(train_layers, layers)
    return Fitted(*spaces, fitted, learned, held_out)


def build_graph(model: SwinHierarchical, fitted: Fitted) -> ServingGraph:
    """Put the graph to export together, in evaluation mode on the CPU."""
    at = fitted.temperatures
    return ServingGraph(
        model, fitted.features, fitted.layers, at.species, at.disease, fitted.learned
    ).eval()


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
