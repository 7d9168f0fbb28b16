"""`SwinHierarchical`: any timm backbone, a species head, and one linear disease head per species, stored packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from common.taxonomy import ClassTree

PADDING = -1e9  # logit of a column beyond a species' diseases: finite, so that 0 x it is 0, and its probability is 0


# region disease heads


class DiseaseHeads(nn.Module):
    """One linear layer per species as a single matrix: the rows of species s are offsets[s]:offsets[s + 1].

    Parameters: weight float32 (leaves, features), bias float32 (leaves,).
    """

    def __init__(self, features: int, tree: ClassTree) -> None:
        super().__init__()
        sizes = np.diff(tree.offsets)
        self.weight = nn.Parameter(torch.empty(tree.num_leaves, features))
        self.bias = nn.Parameter(torch.zeros(tree.num_leaves))
        nn.init.trunc_normal_(self.weight, std=0.02)
        columns = np.arange(sizes.max())
        self.widest = int(sizes.max())
        # (species, widest): the leaf in each column; padded columns point at leaf 0 and are masked
        real = columns < sizes[:, None]
        self.register_buffer("sizes", torch.from_numpy(sizes.copy()), persistent=False)
        self.register_buffer("real", torch.from_numpy(real), persistent=False)
        self.register_buffer("leaf_of", torch.from_numpy(np.where(real, tree.offsets[:-1, None] + columns, 0)), persistent=False)
        self.offsets = tree.offsets.tolist()

    def forward(self, features: Tensor, species_idx: Tensor) -> Tensor:
        """Compute the disease logits of each sample under its own species.

        On a CPU only the heads of the species present are multiplied (`_SortedHeads`); elsewhere one large product
        beats many small launches. Both equal a ModuleDict of nn.Linear.

        Args:
            features: float (N, features).
            species_idx: int64 (N,).

        Returns:
            float32 (N, widest): columns beyond the species' diseases hold `PADDING`.
        """
        features = features.float()
        if features.device.type == "cpu":
            return _SortedHeads.apply(features, self.weight, self.bias, species_idx, self.offsets, self.widest)
        logits = self.all_logits(features).gather(1, self.leaf_of[species_idx])
        return logits.masked_fill(~self.real[species_idx], PADDING)

    def all_logits(self, features: Tensor) -> Tensor:
        """Compute the logits of all leaves: float (N, features) -> float32 (N, leaves)."""
        return torch.nn.functional.linear(features.float(), self.weight, self.bias)

    def segment_softmax(self, logits: Tensor) -> Tensor:
        """Softmax within each species: logits float (N, leaves) -> P(disease given species) float (N, leaves)."""
        padded = logits[:, self.leaf_of.flatten()].unflatten(1, self.leaf_of.shape)  # (N, species, widest)
        probs = padded.masked_fill(~self.real, PADDING).softmax(dim=2)
        return probs.flatten(1)[:, self.real.flatten().nonzero().squeeze(1)]


class _SortedHeads(torch.autograd.Function):
    """Rows sorted by species, one small product per species present; the gradient touches each weight once.

    With 11,499 leaves a batch of 256 holds half of 320 species: all logits would cost several times the work, and
    a loop over modules spends its time in autograd's bookkeeping.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, species_idx: Tensor, offsets: list[int],
                widest: int) -> Tensor:
        order = torch.argsort(species_idx, stable=True)
        present, counts = torch.unique_consecutive(species_idx[order], return_counts=True)
        present, ends = present.tolist(), counts.cumsum(0).tolist()
        rows = features[order]
        logits = features.new_full((len(rows), widest), PADDING)
        start = 0
        for species, end in zip(present, ends, strict=True):
            a, b = offsets[species], offsets[species + 1]
            torch.addmm(bias[a:b], rows[start:end], weight[a:b].t(), out=logits[start:end, : b - a])
            start = end
        ctx.save_for_backward(rows, weight, order)
        ctx.layout = (present, ends, offsets)
        result = torch.empty_like(logits)
        result[order] = logits
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, order = ctx.saved_tensors
        present, ends, offsets = ctx.layout
        grad = grad[order]
        grad_rows, grad_weight = torch.empty_like(rows), torch.empty_like(weight)
        grad_bias = weight.new_zeros(len(weight))
        start = written = 0
        for species, end in zip(present, ends, strict=True):
            a, b = offsets[species], offsets[species + 1]
            piece = grad[start:end, : b - a]
            grad_weight[written:a].zero_()  # species between two present ones; every row is written exactly once
            torch.mm(piece.t(), rows[start:end], out=grad_weight[a:b])
            torch.mm(piece, weight[a:b], out=grad_rows[start:end])
            torch.sum(piece, dim=0, out=grad_bias[a:b])
            start, written = end, b
        grad_weight[written:].zero_()
        grad_features = torch.empty_like(grad_rows)
        grad_features[order] = grad_rows
        return grad_features, grad_weight, grad_bias, None, None, None


# endregion


class SwinHierarchical(nn.Module):
    """Backbone -> pooled feature -> species head and packed disease heads.

    The input is uint8 pixels; normalisation happens on the device, so that a quarter of the bytes travels there and
    the exported graph has it too.
    """

    def __init__(self, backbone: str, tree: ClassTree, *, image_size: int = 224, backbone_args: dict[str, Any] | None = None,
                 mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, pretrained: bool = False) -> None:
        """Build the model; heads are random, the backbone is timm's pretrained one where asked for.

        Args:
            backbone: timm model name.
            tree: classes, in index order.
            image_size: side of the input, px.
            backbone_args: further arguments of timm.create_model.
            mean, std: of the input per channel, 0..1; None takes those of the backbone's pretrained weights.
            pretrained: load timm's weights (needs the network or a cache).

        Raises:
            RuntimeError, ValueError, OSError: what timm raises for an unknown name, bad arguments or missing weights.
        """
        super().__init__()
        self.tree = tree
        self.backbone = _create_backbone(backbone, image_size, pretrained, backbone_args or {})
        cfg = self.backbone.pretrained_cfg
        self.settings = {"backbone": backbone, "backbone_args": dict(backbone_args or {}), "image_size": image_size,
                         "mean": [float(v) for v in (mean or cfg["mean"])], "std": [float(v) for v in (std or cfg["std"])]}
        self.num_features = int(getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features)
        self.species_head = nn.Linear(self.num_features, tree.num_species)
        nn.init.trunc_normal_(self.species_head.weight, std=0.02)
        nn.init.zeros_(self.species_head.bias)
        self.disease_heads = DiseaseHeads(self.num_features, tree)
        self.register_buffer("mean", torch.tensor(self.settings["mean"]) * 255.0, persistent=False)
        self.register_buffer("std", torch.tensor(self.settings["std"]) * 255.0, persistent=False)
        self.register_buffer("leaf_species", torch.from_numpy(tree.leaf_species.copy()), persistent=False)

    def feature_map(self, images: Tensor) -> Tensor:
        """Run the backbone: uint8 or float (N, size, size, 3), 0..255 -> its last feature map, in the backbone's layout."""
        return self.backbone.forward_features(self.normalise(images))

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels uint8 or float (N, size, size, 3), 0..255 -> float (N, 3, size, size), of mean 0 and deviation 1."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)  # NHWC seen as NCHW: channels_last, no copy

    def features(self, images: Tensor) -> Tensor:
        """Pixels (N, size, size, 3), 0..255 -> pooled feature float32 (N, features)."""
        return self.backbone.forward_head(self.feature_map(images), pre_logits=True).float()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (N, size, size, 3), 0..255 -> (feature float32 (N, features), species logits float32 (N, species))."""
        features = self.features(images)
        return features, self.species_logits(features)

    def species_logits(self, features: Tensor) -> Tensor:
        """Feature float (N, features) -> species logits float32 (N, species); in float32 even under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return self.species_head(features.float())

    def disease_logits(self, features: Tensor, species_idx: Tensor) -> Tensor:
        """Feature (N, features), species int64 (N,) -> disease logits float32 (N, widest), padded (see `DiseaseHeads`)."""
        with torch.autocast(features.device.type, enabled=False):
            return self.disease_heads(features, species_idx)

    def probabilities(self, features: Tensor, species_logits: Tensor, species_temperature: float = 1.0,
                      disease_temperature: float = 1.0) -> Tensor:
        """Joint P(species) x P(disease given species) of every leaf.

        Returns:
            float32 (N, leaves); rows sum to 1.
        """
        species = (species_logits / species_temperature).softmax(dim=1)
        disease = self.disease_heads.segment_softmax(self.disease_heads.all_logits(features) / disease_temperature)
        return species[:, self.leaf_species] * disease

    def head_parameters(self, part: str) -> list[nn.Parameter]:
        """Parameters of `species`, `disease` or `all` heads."""
        species, disease = list(self.species_head.parameters()), list(self.disease_heads.parameters())
        return {"species": species, "disease": disease, "all": species + disease}[part]


def _create_backbone(name: str, image_size: int, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    arguments = {"num_classes": 0, "pretrained": pretrained, **arguments}
    try:
        return timm.create_model(name, img_size=image_size, **arguments)
    except TypeError as error:  # convolutional networks take any size and no such argument
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **arguments)
