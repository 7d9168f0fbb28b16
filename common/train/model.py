"""`SwinHierarchical`: any timm backbone, a species head, and one linear disease head per species,
stored packed.

The same model is flat where asked for: one softmax over all classes, of which a species'
probability is the sum.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from common.classes import ClassTree
from common.train.heads import DiseaseHeads


class Neck(nn.Module):
    """Dropout, linear, ReLU, dropout between the pooled feature and the heads: float (N, features)
    -> float (N, width).
    """

    def __init__(
        self, features: int, width: int, dropout: float = 0.0, dropout_after: float = 0.0
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(features, width)
        self.dropout, self.dropout_after = nn.Dropout(dropout), nn.Dropout(dropout_after)

    def forward(self, features: Tensor) -> Tensor:
        """Compute what the heads see."""
        return self.dropout_after(self.linear(self.dropout(features)).relu())

    def pull_back(self, weight: Tensor, features: Tensor) -> Tensor:
        """Gradient of a head's logit by the pooled feature: rows of the head float (N, width),
        features (N, F) -> (N, F).

        A network of ReLUs is linear around each point, so that with a constant it gives the logit
        exactly.
        """
        return (weight * (self.linear(features) > 0)) @ self.linear.weight


class SwinHierarchical(nn.Module):
    """Backbone -> pooled feature -> neck -> species head and packed disease heads.

    The input is uint8 pixels; normalisation happens on the device, so that a quarter of the bytes
    travels there and the exported graph has it too. The neck is the identity unless asked for; what
    leaves it is called hidden.
    """

    def __init__(
        self,
        backbone: str,
        tree: ClassTree,
        *,
        image_size: int = 224,
        backbone_args: dict[str, Any] | None = None,
        pixel_stats: tuple[Sequence[float] | None, Sequence[float] | None] = (None, None),
        pretrained: bool = False,
        classes: str = "hierarchical",
        neck: dict[str, float] | None = None,
    ) -> None:
        """Build the model; heads are random, the backbone is timm's pretrained one where asked for.

        Args:
            backbone: timm model name.
            tree: classes, in index order.
            image_size: side of the input, px.
            backbone_args: further arguments of timm.create_model.
            pixel_stats: mean and standard deviation of the input per channel, 0..1; None takes that
                of the backbone's pretrained weights.
            pretrained: load timm's weights (needs the network or a cache).
            classes: `hierarchical`, or `flat`: no species head, one softmax over the logits of all
                classes.
            neck: arguments of `Neck` after the first; None = no neck.

        Raises:
            RuntimeError, ValueError, OSError: what timm raises for an unknown name, bad arguments
                or missing weights.
        """
        super().__init__()
        if classes not in ("hierarchical", "flat"):
            raise ValueError(f"classes is {classes!r}: it must be hierarchical or flat.")
        self.tree, self.flat = tree, classes == "flat"
        self.pretrained = pretrained  # whether the backbone has learned, and not from these photos
        self.backbone = create_backbone(backbone, image_size, pretrained, backbone_args or {})
        cfg, (mean, std) = self.backbone.pretrained_cfg, pixel_stats
        self.settings = {
            "backbone": backbone,
            "backbone_args": dict(backbone_args or {}),
            "image_size": image_size,
            "mean": [float(v) for v in (mean or cfg["mean"])],
            "std": [float(v) for v in (std or cfg["std"])],
            "classes": classes,
            "neck": dict(neck) if neck else None,
        }
        self.num_features = int(
            getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features
        )
        width = int(neck["width"]) if neck else self.num_features
        self.species_head = None if self.flat else nn.Linear(width, tree.num_species)
        if self.species_head is not None:
            nn.init.trunc_normal_(self.species_head.weight, std=0.02)
            nn.init.zeros_(self.species_head.bias)
        self.disease_heads = DiseaseHeads(width, tree)
        self.neck = Neck(self.num_features, **neck) if neck else nn.Identity()
        self.register_buffer("mean", torch.tensor(self.settings["mean"]) * 255.0, persistent=False)
        self.register_buffer("std", torch.tensor(self.settings["std"]) * 255.0, persistent=False)
        self.register_buffer(
            "class_species", torch.from_numpy(tree.class_species.copy()), persistent=False
        )
        self.run_backbone = run_backbone  # training may put a compiled one in its place
        # log-priors of a loss that asks for them (`use_counts`); they follow from the data, so no
        # checkpoint holds them
        self.register_buffer("species_prior", None, persistent=False)
        self.register_buffer("class_prior", None, persistent=False)

    def use_counts(self, counts: np.ndarray) -> None:
        """Take the train split's pictures per class, int (classes,), for the log-prior of
        `losses.hierarchical_loss`.
        """
        self.species_prior, self.class_prior = (
            prior.to(self.mean.device) for prior in log_priors(self.tree, counts)
        )

    def feature_map(self, images: Tensor) -> Tensor:
        """Run the backbone: uint8 or float (N, size, size, 3), 0..255 -> its last feature map, in
        the backbone's layout.
        """
        return self.backbone.forward_features(self.normalise(images))

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels uint8 or float (N, size, size, 3), 0..255 -> float (N, 3, size, size), of mean 0
        and deviation 1.
        """
        # NHWC seen as NCHW: channels_last, no copy
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def features(self, images: Tensor) -> Tensor:
        """Pixels (N, size, size, 3), 0..255 -> pooled feature float32 (N, features)."""
        return self.run_backbone(self, images)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (N, size, size, 3), 0..255 -> (hidden float32 (N, width), species logits float32
        (N, species)).
        """
        hidden = self.neck(self.features(images))
        return hidden, self.species_logits(hidden)

    def species_logits(self, hidden: Tensor) -> Tensor:
        """What leaves the neck, float (N, width) -> species logits float32 (N, species); in float32
        even under autocast.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return self.species_scores(hidden.float())

    def species_scores(self, hidden: Tensor) -> Tensor:
        """Compute `species_logits` in the precision of the context, as a graph to be exported needs
        it.
        """
        if self.species_head is not None:
            return self.species_head(hidden)
        return self.disease_heads.segment_logsumexp(self.disease_heads.all_logits(hidden))

    def disease_logits(self, hidden: Tensor, species_idx: Tensor) -> Tensor:
        """Hidden (N, width), species int64 (N,) -> disease logits float32 (N, widest), padded (see
        `DiseaseHeads`).
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return self.disease_heads(hidden, species_idx)

    def probabilities(
        self,
        hidden: Tensor,
        species_logits: Tensor,
        species_temperature: float = 1.0,
        disease_temperature: float = 1.0,
    ) -> Tensor:
        """Joint P(species) x P(disease given species) of every class; of a flat model, at
        temperatures 1, its softmax.

        Returns:
            float32 (N, classes); rows sum to 1.
        """
        species = (species_logits / species_temperature).softmax(dim=1)
        disease = self.disease_heads.segment_softmax(
            self.disease_heads.all_logits(hidden) / disease_temperature
        )
        return species[:, self.class_species] * disease

    def class_gradient(self, features: Tensor, class_idx: Tensor) -> Tensor:
        """Gradient of the predicted class's logits (its species' and its own) by the feature.

        Args:
            features: float (N, features), pooled.
            class_idx: int64 (N,).

        Returns:
            float (N, features).
        """
        weight = self.disease_heads.weight[class_idx]
        if self.species_head is not None:
            weight = self.species_head.weight[self.class_species[class_idx]] + weight
        return self.neck.pull_back(weight, features) if isinstance(self.neck, Neck) else weight

    def heatmap(self, feature_map: Tensor, features: Tensor, class_idx: Tensor) -> Tensor:
        """Class activation map; where layers follow the pooling, how active each position is.

        Args:
            feature_map: the backbone's last, in its layout.
            features: float (N, features), pooled.
            class_idx: int64 (N,), the predicted classes.

        Returns:
            float (N, h, w), 0..1.
        """
        places = places_of(self, feature_map)
        if places.shape[-1] == self.num_features:
            weights = self.class_gradient(features, class_idx)[:, None, None, :]
            activation = (places * weights).sum(dim=-1)
        else:
            activation = places.square().mean(dim=-1)
        low, high = activation.amin((1, 2), keepdim=True), activation.amax((1, 2), keepdim=True)
        return (activation - low) / (high - low).clamp_min(1e-6)

    def head_parameters(self, part: str) -> list[nn.Parameter]:
        """Parameters of `species`, `disease` or `all` heads.

        The neck learns with `species` and `all`, and stands still while disease heads alone learn:
        the species head relies on it. A flat model has one head, which is `all` and `species` with
        the neck, and `disease` without.
        """
        species = list(self.species_head.parameters()) if self.species_head is not None else []
        disease, neck = list(self.disease_heads.parameters()), list(self.neck.parameters())
        return {
            "species": (disease if self.flat else species) + neck,
            "disease": disease,
            "all": species + disease + neck,
        }[part]


def run_backbone(model: SwinHierarchical, images: Tensor) -> Tensor:
    """Run a model's backbone and pooling; see `SwinHierarchical.features`."""
    return model.backbone.forward_head(model.feature_map(images), pre_logits=True).float()


def places_of(model: SwinHierarchical, feature_map: Tensor) -> Tensor:
    """A backbone's last map in any of timm's layouts -> (N, h, w, C)."""
    if feature_map.dim() == 3:  # tokens: a square of positions behind the class tokens
        side = int(feature_map.shape[1] ** 0.5)
        return feature_map[:, -side * side :].unflatten(1, (side, side))
    return (
        feature_map
        if getattr(model.backbone, "output_fmt", "NCHW") == "NHWC"
        else feature_map.permute(0, 2, 3, 1)
    )


def create_backbone(
    name: str, image_size: int, pretrained: bool, arguments: dict[str, Any]
) -> nn.Module:
    """Build a timm backbone without classifier.

    Args:
        arguments: of timm.create_model; and `conv_head=False`, which takes out the convolution that
            MobileNetV3 and V4 have between pooling and classifier: the heads then stand on the
            pooled map, and their heatmap is exact.

    Raises:
        RuntimeError, ValueError, TypeError, OSError: what timm raises; ValueError where there is no
            such convolution.
    """
    arguments = {"num_classes": 0, "pretrained": pretrained, **arguments}
    conv_head = arguments.pop("conv_head", True)
    try:
        backbone = timm.create_model(name, img_size=image_size, **arguments)
    except TypeError as error:  # convolutional networks take any size and no such argument
        if "img_size" not in str(error):
            raise
        backbone = timm.create_model(name, **arguments)
    if not conv_head:
        if not hasattr(backbone, "conv_head") or getattr(backbone, "head_hidden_size", None) in (
            None,
            backbone.num_features,
        ):
            raise ValueError(
                f"conv_head=False, but {name} has no convolution between pooling and classifier."
            )
        for part in ("conv_head", "norm_head", "act2"):
            setattr(backbone, part, nn.Identity())
        backbone.head_hidden_size = backbone.num_features
    return backbone


def log_priors(tree: ClassTree, counts: np.ndarray) -> tuple[Tensor, Tensor]:
    """Log of the pictures per species and per class, to be added to the logits in training (Ren et
    al. 2020, equation 4).

    A species' pictures are divided by its number of classes: the model then answers for classes
    that come equally often, and a species of many classes comes more often than one of few. A class
    without pictures counts as one with one.

    Args:
        counts: int (classes,), pictures of the train split.

    Returns:
        float32 (species,), float32 (classes,).

    Raises:
        ValueError: where there is not one count per class.
    """
    if np.shape(counts) != (tree.num_classes,):
        raise ValueError(f"{tree.num_classes} classes, but counts of shape {np.shape(counts)}.")
    class_idx = np.maximum(np.asarray(counts, np.float64), 1.0)
    species = np.add.reduceat(class_idx, tree.offsets[:-1]) / np.diff(tree.offsets)
    return torch.from_numpy(np.log(species)).float(), torch.from_numpy(np.log(class_idx)).float()
