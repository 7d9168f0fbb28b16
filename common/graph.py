"""The graph that is exported: pixels in; calibrated joint probabilities, stranger scores and a heatmap out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.model import SwinHierarchical

SCORES = ("gen", "mahalanobis_species", "mahalanobis_leaf")
GEN_GAMMA, GEN_TOP = 0.1, 100


class FeatureSpace(nn.Module):
    """Mahalanobis distances of L2-normalised features to class means, under one shared covariance.

    Lee et al. 2018 with the normalisation of Mueller and Hein 2025 ("Mahalanobis++"). The features are whitened once, so
    that a distance to all means is one matrix product.
    """

    def __init__(self, features: Tensor, leaf: Tensor, leaf_species: Tensor, shrinkage: float = 0.05) -> None:
        """Fit means and covariance.

        Args:
            features: float (N, F) of training pictures, plain (they are normalised here).
            leaf: int64 (N,), their leaves.
            leaf_species: int64 (leaves,), species of each leaf.
            shrinkage: share of the covariance that is replaced by its mean variance on the diagonal, 0..1.
        """
        super().__init__()
        unit = nn.functional.normalize(features.double(), dim=1)
        count = torch.bincount(leaf, minlength=len(leaf_species)).double()
        leaf_means = torch.zeros(len(leaf_species), unit.shape[1], dtype=torch.float64).index_add_(0, leaf, unit)
        species = int(leaf_species.max()) + 1
        species_count = torch.zeros(species, dtype=torch.float64).index_add_(0, leaf_species, count)
        species_means = torch.zeros(species, unit.shape[1], dtype=torch.float64).index_add_(0, leaf_species, leaf_means)
        species_means /= species_count.clamp_min(1)[:, None]
        seen = count > 0
        leaf_means = torch.where(seen[:, None], leaf_means / count.clamp_min(1)[:, None], species_means[leaf_species])
        spread = unit - leaf_means[leaf]
        covariance = spread.T @ spread / max(len(unit), 1)
        variance = covariance.diagonal().mean().clamp_min(1e-12)
        covariance = (1 - shrinkage) * covariance + shrinkage * variance * torch.eye(len(covariance), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(covariance)
        whiten = vectors / values.clamp_min(1e-12).sqrt()  # (F, F): unit @ whiten has identity covariance
        centre = unit.mean(0)
        self.register_buffer("centre", centre.float())
        self.register_buffer("whiten", whiten.float())
        # stored as the product needs them, so that they keep their names in the exported graph and stay float there
        self.register_buffer("species_means", ((species_means - centre) @ whiten).float().T.contiguous())  # (F, species)
        self.register_buffer("leaf_means", ((leaf_means - centre) @ whiten).float().T.contiguous())  # (F, leaves)

    def forward(self, features: Tensor) -> Tensor:
        """Features float (N, F) -> float32 (N, 2): distance to the nearest species mean and to the nearest leaf mean."""
        white = (nn.functional.normalize(features, dim=1) - self.centre) @ self.whiten
        nearest = []
        for means in (self.species_means, self.leaf_means):
            squared = (white * white).sum(1, keepdim=True) - 2 * (white @ means) + (means * means).sum(0)
            nearest.append(squared.clamp_min(0.0).amin(dim=1).sqrt())
        return torch.stack(nearest, dim=1)


def gen_score(species_probs: Tensor) -> Tensor:
    """Generalised entropy of the species probabilities (Liu et al. 2023, GEN): float (N, S) -> float (N,), larger = stranger."""
    top = species_probs.topk(min(GEN_TOP, species_probs.shape[1]), dim=1).values.clamp(1e-12, 1.0)
    return (top**GEN_GAMMA * (1.0 - top).clamp_min(1e-12) ** GEN_GAMMA).sum(dim=1)


class ServingGraph(nn.Module):
    """A trained model with everything that belongs to an answer, as one graph."""

    def __init__(self, model: SwinHierarchical, space: FeatureSpace, species_temperature: float, disease_temperature: float) -> None:
        super().__init__()
        self.model, self.space = model, space
        self.species_temperature, self.disease_temperature = species_temperature, disease_temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Answer a batch.

        Args:
            images: uint8 (N, size, size, 3), RGB.

        Returns:
            probabilities float32 (N, leaves), ood float32 (N, len(SCORES)), heatmap float32 (N, h, w), 0..1.
        """
        model = self.model
        feature_map = model.feature_map(images)
        features = model.backbone.forward_head(feature_map, pre_logits=True)
        species_logits = model.species_head(features)
        probabilities = model.probabilities(features, species_logits, self.species_temperature, self.disease_temperature)
        species_probs = (species_logits / self.species_temperature).softmax(dim=1)
        ood = torch.cat([gen_score(species_probs)[:, None], self.space(features)], dim=1)
        return probabilities, ood, self._heatmap(feature_map, probabilities.argmax(dim=1))

    def _heatmap(self, feature_map: Tensor, leaf: Tensor) -> Tensor:
        """Class activation of the predicted leaf; where layers follow the pooling, how active each position is."""
        model = self.model
        if feature_map.dim() == 3:  # tokens: a square of positions behind the class tokens
            side = int(feature_map.shape[1] ** 0.5)
            feature_map = feature_map[:, -side * side:].unflatten(1, (side, side))
        elif getattr(model.backbone, "output_fmt", "NCHW") != "NHWC":
            feature_map = feature_map.permute(0, 2, 3, 1)
        if feature_map.shape[-1] == model.num_features:
            weight = model.species_head.weight[model.leaf_species[leaf]] + model.disease_heads.weight[leaf]
            activation = (feature_map * weight[:, None, None, :]).sum(dim=-1)
        else:
            activation = feature_map.square().mean(dim=-1)
        low, high = activation.amin(dim=(1, 2), keepdim=True), activation.amax(dim=(1, 2), keepdim=True)
        return (activation - low) / (high - low).clamp_min(1e-6)


def export_onnx(graph: ServingGraph, path: str, size: int) -> None:
    """Write a graph as ONNX with a dynamic batch, by torch's current exporter.

    Raises:
        Exception: whatever the exporter raises for a backbone it cannot trace.
    """
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    torch.onnx.export(graph.eval(), (images,), path, input_names=["images"], output_names=["probabilities", "ood", "heatmap"],
                      dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=4096)}}, dynamo=True,
                      external_data=False, optimize=True, verbose=False)
