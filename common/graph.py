"""The graph that is exported: pixels in; calibrated joint probabilities, stranger scores and a heatmap out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.console import warn
from common.model import SwinHierarchical

SCORES = ("gen", "mahalanobis", "mahalanobis_layers")
GEN_GAMMA, GEN_TOP = 0.1, 100


def look(model: SwinHierarchical, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run the backbone once and take its last map, the pooled feature, and statistics of the layers below.

    A picture of no plant gives itself away in the layers below the last: there the network has not yet thrown away what
    does not tell plants apart.

    Args:
        images: uint8 (N, size, size, 3).

    Returns:
        the last feature map in the backbone's layout; feature float (N, F); float (N, F + 2C): the L2-normalised feature and,
        normalised each, the channel means and standard deviations of the two stages before the last.
    """
    below: list[Tensor] = []
    if hasattr(model.backbone, "forward_intermediates"):
        feature_map, stages = model.backbone.forward_intermediates(model.normalise(images), indices=3, output_fmt="NCHW")
        below = [torch.cat([stage.mean(dim=(2, 3)), stage.std(dim=(2, 3))], dim=1) for stage in stages[:-1]]
    else:
        feature_map = model.feature_map(images)
    features = model.backbone.forward_head(feature_map, pre_logits=True)
    return feature_map, features, torch.cat([nn.functional.normalize(part, dim=1) for part in (features, *below)], dim=1)


class FeatureSpace(nn.Module):
    """Mahalanobis distance of L2-normalised features to the nearest species mean, under one shared covariance.

    Lee et al. 2018 with the normalisation of Mueller and Hein 2025 ("Mahalanobis++"). The features are whitened once, so
    that a distance to all means is one matrix product.
    """

    def __init__(self, features: Tensor, leaf: Tensor, leaf_species: Tensor, shrinkage: float = 0.05) -> None:
        """Fit means and covariance; the covariance is about the leaf means, so that diseases do not widen it.

        Args:
            features: float (N, F) of training pictures, plain (they are normalised here).
            leaf: int64 (N,), their leaves.
            leaf_species: int64 (leaves,), species of each leaf.
            shrinkage: share of the covariance that is replaced by its mean variance on the diagonal, 0..1.
        """
        super().__init__()
        unit = nn.functional.normalize(features.double(), dim=1)
        species = leaf_species[leaf]
        spread = unit - _means(unit, leaf, len(leaf_species))[leaf]
        covariance = spread.T @ spread / max(len(unit), 1)
        variance = covariance.diagonal().mean().clamp_min(1e-12)
        covariance = (1 - shrinkage) * covariance + shrinkage * variance * torch.eye(len(covariance), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(covariance)
        whiten = vectors / values.clamp_min(1e-12).sqrt()  # (F, F): unit @ whiten has identity covariance
        centre = unit.mean(0)
        means = _means(unit, species, int(leaf_species.max()) + 1)
        means = torch.where(means.abs().sum(1, keepdim=True) > 0, means, centre)  # a species without train pictures
        self.register_buffer("centre", centre.float())
        self.register_buffer("whiten", whiten.float())
        # (F, species), as the product needs it: so it keeps its name in the exported graph, and stays float there
        self.register_buffer("means", ((means - centre) @ whiten).float().T.contiguous())

    def forward(self, features: Tensor) -> Tensor:
        """Features float (N, F) -> float32 (N, 1): distance to the nearest species mean."""
        white = (nn.functional.normalize(features, dim=1) - self.centre) @ self.whiten
        squared = (white * white).sum(1, keepdim=True) - 2 * (white @ self.means) + (self.means * self.means).sum(0)
        return squared.amin(dim=1, keepdim=True).clamp_min(0.0).sqrt()


def _means(values: Tensor, group: Tensor, groups: int) -> Tensor:
    count = torch.bincount(group, minlength=groups).clamp_min(1)
    return torch.zeros(groups, values.shape[1], dtype=values.dtype).index_add_(0, group, values) / count[:, None]


def gen_score(species_probs: Tensor) -> Tensor:
    """Generalised entropy of the species probabilities (Liu et al. 2023, GEN): float (N, S) -> float (N,), larger = stranger."""
    top = species_probs.topk(min(GEN_TOP, species_probs.shape[1]), dim=1).values.clamp(1e-12, 1.0)
    return (top**GEN_GAMMA * (1.0 - top).clamp_min(1e-12) ** GEN_GAMMA).sum(dim=1)


class ServingGraph(nn.Module):
    """A trained model with everything that belongs to an answer, as one graph."""

    def __init__(self, model: SwinHierarchical, feature_space: FeatureSpace, layer_space: FeatureSpace, species_temperature: float,
                 disease_temperature: float) -> None:
        super().__init__()
        self.model, self.feature_space, self.layer_space = model, feature_space, layer_space
        self.species_temperature, self.disease_temperature = species_temperature, disease_temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Answer a batch.

        Args:
            images: uint8 (N, size, size, 3), RGB.

        Returns:
            probabilities float32 (N, leaves), ood float32 (N, len(SCORES)), heatmap float32 (N, h, w), 0..1.
        """
        model = self.model
        feature_map, features, layers = look(model, images)
        hidden = model.neck(features)
        species_logits = model.species_scores(hidden)
        probabilities = model.probabilities(hidden, species_logits, self.species_temperature, self.disease_temperature)
        species_probs = (species_logits / self.species_temperature).softmax(dim=1)
        ood = torch.cat([gen_score(species_probs)[:, None], self.feature_space(features), self.layer_space(layers)], dim=1)
        return probabilities, ood, self._heatmap(feature_map, features, probabilities.argmax(dim=1))

    def _heatmap(self, feature_map: Tensor, features: Tensor, leaf: Tensor) -> Tensor:
        """Class activation of the predicted leaf; where layers follow the pooling, how active each position is."""
        model = self.model
        if feature_map.dim() == 3:  # tokens: a square of positions behind the class tokens
            side = int(feature_map.shape[1] ** 0.5)
            feature_map = feature_map[:, -side * side:].unflatten(1, (side, side))
        elif getattr(model.backbone, "output_fmt", "NCHW") != "NHWC":
            feature_map = feature_map.permute(0, 2, 3, 1)
        if feature_map.shape[-1] == model.num_features:
            activation = (feature_map * model.leaf_gradient(features, leaf)[:, None, None, :]).sum(dim=-1)
        else:
            activation = feature_map.square().mean(dim=-1)
        low, high = activation.amin(dim=(1, 2), keepdim=True), activation.amax(dim=(1, 2), keepdim=True)
        return (activation - low) / (high - low).clamp_min(1e-6)


def export_onnx(graph: ServingGraph, path: str, size: int) -> None:
    """Write a graph as ONNX with a dynamic batch: by torch's current exporter, or by its older one where that fails.

    Torch 2.6 to 2.8 need an onnxscript of their time for the current exporter, which pip no longer chooses.

    Raises:
        Exception: whatever the older exporter raises for a backbone that neither can trace.
    """
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    names = {"input_names": ["images"], "output_names": ["probabilities", "ood", "heatmap"]}
    try:
        torch.onnx.export(graph.eval(), (images,), path, dynamo=True, external_data=False, optimize=True, verbose=False,
                          dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=4096)}}, **names)
    except Exception as error:
        warn(f"torch {torch.__version__} with this onnxscript cannot export ({type(error).__name__}); its older exporter does it.")
        torch.onnx.export(graph.eval(), (images,), path, dynamo=False, opset_version=17,
                          dynamic_axes={name: {0: "batch"} for names_ in names.values() for name in names_}, **names)
