"""What is fitted before a graph can be exported: temperatures on val, the scores of strangers on
train."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from common.console import progress, say
from common.export.calibrate import Temperatures, fit_temperatures
from common.export.graph import FeatureSpace, ServingGraph, learn, look
from common.export.pictures import BATCH, Pictures
from common.train.compute import choose_compute
from common.train.model import SwinHierarchical


@torch.inference_mode()
def features_of(
    model: SwinHierarchical, batches: Any, total: int, what: str
) -> tuple[torch.Tensor, ...]:
    """Run the backbone, where there is a GPU on it.

    Args:
        model: it ends on the CPU.
        batches: of (uint8 (B, size, size, 3), leaf int64 (B,)).
        total: how many batches, for the progress bar; what: its name.

    Returns:
        features float32 (N, F), layer statistics float32 (N, D), leaves int64 (N,), on the CPU.
    """
    compute, parts = choose_compute(precision="fp32"), []
    model.to(compute.device)
    for pictures, class_idx in progress(batches, total, what, "batch"):
        _, features, layers = look(model, torch.from_numpy(pictures).to(compute.device))
        parts.append((features.cpu(), layers.cpu(), torch.from_numpy(class_idx)))
    model.cpu()
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def build_graph(
    model: SwinHierarchical, pictures: Pictures
) -> tuple[ServingGraph, Temperatures, np.ndarray | None]:
    """Fit temperatures on val and the scores of strangers on train.

    Returns:
        the graph to export, in evaluation mode on the CPU; its temperatures; and, where there are
        pictures of no plant to learn from, the learned score of those of val, float32 (M,), each by
        a fit that has not seen it.
    """

    def run(split: str, batches: Any, times: int = 1) -> tuple[torch.Tensor, ...]:
        total = times * min(len(pictures.data.splits[split]), pictures.at_most)
        return features_of(model, batches, -(-total // BATCH), f"features of {split}")

    # with poor copies: so a poor photo of a leaf is no stranger, and is not learned to be one
    features, train_layers, class_idx = run("train", pictures.with_poor("train"), times=2)
    spaces = [
        FeatureSpace(values, class_idx, model.class_species) for values in (features, train_layers)
    ]
    features, _, class_idx = run("val", pictures.batches("val"))
    with torch.inference_mode():
        hidden = model.neck(features)
        species_logits, disease_logits = (
            model.species_logits(hidden),
            model.disease_logits(hidden, model.class_species[class_idx]),
        )
    fitted = fit_temperatures(
        species_logits.numpy(), disease_logits.numpy(), class_idx.numpy(), model.tree
    )
    say(
        f"temperatures: species {fitted.species:.3f}, disease {fitted.disease_global:.3f} "
        f"({fitted.disease.min():.3f} to "
        f"{fitted.disease.max():.3f} by species)"
    )
    learned = held = None
    if count := pictures.count_strangers("plant", "val"):
        shown = (
            (batch, np.zeros(len(batch), np.int64))
            for _, batches in pictures.strangers("plant", "val")
            for batch in batches
        )
        learned, held = learn(
            train_layers, features_of(model, shown, -(-count // BATCH), "features of strangers")[1]
        )
    return (
        ServingGraph(model, *spaces, fitted.species, fitted.disease, learned).eval(),
        fitted,
        held,
    )


@torch.inference_mode()
def torch_answers(
    graph: ServingGraph, pictures: Pictures, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Answer a split in PyTorch, on the CPU as ONNX will be.

    Returns:
        probabilities float32 (N, leaves); and int64 (N,), what one softmax over the disease heads'
        logits of all leaves answers.
    """
    probabilities, flat = [], []
    for batch, _ in pictures.batches(split):
        seen = look(graph.model, torch.from_numpy(batch))
        probabilities.append(graph.answer(*seen)[0].numpy())
        flat.append(
            graph.model.disease_heads.all_logits(graph.model.neck(seen[1])).argmax(dim=1).numpy()
        )
    return np.concatenate(probabilities), np.concatenate(flat)
