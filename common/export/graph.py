"""The graph that is exported: pixels in; calibrated joint probabilities, OOD scores and a
heatmap out.
"""

import json
from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from common.console import warn
from common.export.quantize import KEEP_FLOAT
from common.train.model import SwinHierarchical

SCORES = ("gen", "mahalanobis", "mahalanobis_class", "layers")
PRETRAINED = "pretrained"  # one more, where the weights before fine-tuning are at hand
LEARNED = "learned"  # the last, where the person has pictures of no plant
GEN_GAMMA, GEN_TOP = 0.1, 100
RANK = 128  # directions that a space keeps; all others share one variance
LEARNED_RANK = 256
ENOUGH = 10  # pictures of no plant, from which on a score is learned from them
LAYERS = 4  # last stages of the backbone whose statistics are taken
FAR = 1e9  # added for classes of other species: never the nearest


def extract_features(model: SwinHierarchical, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run the backbone once and take its last map, the pooled feature, and statistics of its
    stages.

    A picture of no plant gives itself away in the layers below the last: there the network has not
    yet thrown away what does not tell plants apart.

    Args:
        images: uint8 (N, size, size, 3).

    Returns:
        the last feature map in the backbone's layout; feature float (N, F); float (N, F + 2C): the
        L2-normalised feature and, normalised each, the channel means and standard deviations of the
        last `LAYERS` stages that have more than one position.
    """
    below: list[Tensor] = []
    if hasattr(model.backbone, "forward_intermediates"):
        last = min(LAYERS, len(model.backbone.feature_info))
        feature_map, stages = model.backbone.forward_intermediates(
            model.normalise(images), indices=last, output_fmt="NCHW"
        )
        below = [
            torch.cat([stage.mean(dim=(2, 3)), stage.std(dim=(2, 3))], dim=1)
            for stage in stages
            if stage.shape[2] > 1
        ]
    else:
        feature_map = model.feature_map(images)
    features = model.backbone.forward_head(feature_map, pre_logits=True)
    return (
        feature_map,
        features,
        torch.cat([nn.functional.normalize(part, dim=1) for part in (features, *below)], dim=1),
    )


class FeatureSpace(nn.Module):
    """Mahalanobis distances of L2-normalised features to species means and class means, under one
    shared covariance.

    Lee et al. 2018 with the normalisation of Mueller and Hein 2025 ("Mahalanobis++"). Only the
    `rank` directions along which train pictures vary most are whitened; what lies outside them
    counts by its length alone, in units of the mean variance there (the residual of ViM, Wang et
    al. 2022). At rank F it is the plain distance.
    """

    keep_float = True  # no INT8: distances need their digits
    fp16_weights = ("basis",)  # in the light model: INT8 would drown what lies outside of it

    def __init__(
        self,
        features: Tensor,
        class_idx: Tensor,
        class_species: Tensor,
        shrinkage: float = 0.05,
        rank: int = RANK,
    ) -> None:
        """Fit means and covariance; the covariance is about the class means, so that diseases do
        not widen it.

        Args:
            features: float (N, F) of training pictures, plain (they are normalised here).
            class_idx: int64 (N,).
            class_species: int64 (classes,), species of each class.
            shrinkage: share of the covariance that is replaced by its mean variance on the
                diagonal, 0..1.
            rank: directions kept, at most F.
        """
        super().__init__()
        unit = nn.functional.normalize(features.double(), dim=1)
        centre = unit.mean(0)
        unit = unit - centre
        basis = widest(unit, rank)
        spread = unit - _means(unit, class_idx, len(class_species))[class_idx]
        variance = (spread.square().sum() / spread.numel()).clamp_min(1e-12)
        inside = spread @ basis
        covariance = (1 - shrinkage) * (inside.T @ inside) / max(
            len(unit), 1
        ) + shrinkage * variance * torch.eye(basis.shape[1]).double()
        values, vectors = torch.linalg.eigh(covariance)
        whiten = vectors / values.clamp_min(1e-12).sqrt()  # (K, K)
        outside = (spread.square().sum() - inside.square().sum()).clamp_min(0) / (
            len(unit) * max(1, unit.shape[1] - basis.shape[1])
        )
        self.outside = (
            1.0 / float((1 - shrinkage) * outside + shrinkage * variance)
            if basis.shape[1] < unit.shape[1]
            else 0.0
        )
        self.register_buffer("centre", centre.float())
        self.register_buffer("basis", basis.float().contiguous())
        self.register_buffer("whiten", whiten.float().contiguous())
        # (K, groups), as the product needs it: so it keeps its name in the exported graph, and
        # stays float there
        for name, group, groups in (
            ("means", class_species[class_idx], int(class_species.max()) + 1),
            ("class_means", class_idx, len(class_species)),
        ):
            means = _means(
                unit, group, groups
            )  # of a group without train pictures: 0, which is the centre of all
            self.register_buffer(name, (means @ basis @ whiten).float().T.contiguous())
        self.register_buffer("class_species", class_species.clone())

    def forward(self, features: Tensor) -> Tensor:
        """Features float (N, F) -> float32 (N, 1): distance to the nearest species mean."""
        return self._near(*self._place(features), self.means)

    def distances(self, features: Tensor, species: Tensor) -> Tensor:
        """Features float (N, F), predicted species int64 (N,) -> float32 (N, 2): distance to the
        nearest species mean, and to the nearest class mean of the predicted species.
        """
        white, rest = self._place(features)
        other = (self.class_species[None, :] != species[:, None]) * FAR
        return torch.cat(
            [self._near(white, rest, self.means), self._near(white, rest, self.class_means, other)],
            dim=1,
        )

    def _place(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened coordinates (N, K), and the squared length outside of them in its own units (N,
        1).
        """
        unit = nn.functional.normalize(features, dim=1) - self.centre
        inside = unit @ self.basis
        rest = (unit * unit).sum(1, keepdim=True) - (inside * inside).sum(1, keepdim=True)
        return inside @ self.whiten, rest.clamp_min(0.0) * self.outside

    @staticmethod
    def _near(white: Tensor, rest: Tensor, means: Tensor, other: Tensor | float = 0.0) -> Tensor:
        squared = (
            (white * white).sum(1, keepdim=True)
            - 2 * (white @ means)
            + (means * means).sum(0)
            + other
        )
        return (squared.amin(dim=1, keepdim=True).clamp_min(0.0) + rest).sqrt()


class LearnedScore(nn.Module):
    """Logistic regression between train plants and pictures of no plant, over the normalised
    statistics of all layers.

    It knows only the kinds of OOD pictures that it was shown, and these very well: it is one score
    beside the distances. Poor copies of plants (`pictures.shifted`) among the plants keep it
    from taking a blurred leaf for no plant.
    """

    keep_float = True
    fp16_weights = ("weight", "bias")  # in the light model: a sum over thousands of statistics

    def __init__(
        self, plants: Tensor, ood: Tensor, decay: float = 1e-4, rank: int = LEARNED_RANK
    ) -> None:
        """Fit with both sides weighing the same.

        The inputs are standardised and projected on the `rank` directions of their greatest
        variance, in units of the root of the standard deviation there: narrow directions count for
        more than they vary, but not as much as wide ones.

        Args:
            plants, ood: float (N, D) and (M, D), the layers as `extract_features` gives them.
            decay: weight of the squared norm of the coefficients.
            rank: directions, at most D.
        """
        super().__init__()
        centre, scale = plants.double().mean(0), plants.double().std(0) + 1e-6
        x = (torch.cat([plants, ood]).double() - centre) / scale
        basis = widest(
            torch.cat([x[: len(plants)][:: 1 + len(plants) // 4000], x[len(plants) :]]), rank
        )
        along = x @ basis
        units = 10 * along[: len(plants)].std(0).clamp_min(1e-3).sqrt()
        along = torch.cat([along / units, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
        target = torch.cat([torch.zeros(len(plants)), torch.ones(len(ood))]).double()
        share = torch.where(target > 0, 0.5 / len(ood), 0.5 / len(plants))
        penalty = 2 * decay * torch.ones(along.shape[1], dtype=torch.float64)
        penalty[-1] = 1e-9  # the constant is free
        weight = torch.zeros_like(penalty)
        for _ in range(30):  # Newton's method; it settles in about ten steps
            probability = (along @ weight).clamp(-30, 30).sigmoid()
            slope = along.T @ (share * (probability - target)) + penalty * weight
            curvature = (
                along * (share * probability * (1 - probability) + 1e-12)[:, None]
            ).T @ along + penalty.diag()
            step = torch.linalg.solve(curvature, slope)
            weight = weight - step
            if step.abs().max() < 1e-6:
                break
        weight, constant = basis @ (weight[:-1] / units) / scale, weight[-1]
        self.register_buffer("weight", weight.float()[:, None])
        self.register_buffer("bias", (constant - centre @ weight).float()[None])

    def forward(self, layers: Tensor) -> Tensor:
        """Layers float (N, D) -> log-odds of no plant, float32 (N, 1)."""
        return layers @ self.weight + self.bias


def cross_fitted(plants: Tensor, ood: Tensor, folds: int = 5) -> Tensor:
    """Learned scores of OOD pictures, each by a fit that has not seen it: what unseen pictures of
    these kinds would get.

    Args:
        plants, ood: as for `LearnedScore`; OOD picture i belongs to fold i % folds.
        folds: how many fits, at most one per picture; at least 2.

    Returns:
        float32 (M,).
    """
    fold, scores = torch.arange(len(ood)) % folds, torch.zeros(len(ood))
    for k in range(min(folds, len(ood))):
        scores[fold == k] = LearnedScore(plants, ood[fold != k])(ood[fold == k])[:, 0]
    return scores


def widest(values: Tensor, rank: int) -> Tensor:
    """Directions of the greatest sums of squares: double (N, D) -> (D, rank), orthonormal (Halko et
    al. 2011: subspace iteration).
    """
    if values.shape[1] <= 2 * rank:
        return torch.linalg.eigh(values.T @ values).eigenvectors[:, -rank:]
    sketch = values @ torch.randn(
        values.shape[1], rank + 16, generator=torch.Generator().manual_seed(0), dtype=values.dtype
    )
    for _ in range(2):
        sketch = values @ torch.linalg.qr(values.T @ sketch).Q
    return torch.linalg.svd(torch.linalg.qr(sketch).Q.T @ values, full_matrices=False).Vh[:rank].T


def _means(values: Tensor, group: Tensor, groups: int) -> Tensor:
    count = torch.bincount(group, minlength=groups).clamp_min(1)
    return (
        torch.zeros(groups, values.shape[1], dtype=values.dtype).index_add_(0, group, values)
        / count[:, None]
    )


def gen_score(species_probs: Tensor) -> Tensor:
    """Generalised entropy of the species probabilities (Liu et al. 2023, GEN): float (N, S) ->
    float (N,), larger = farther from train.
    """
    top = species_probs.topk(min(GEN_TOP, species_probs.shape[1]), dim=1).values.clamp(1e-12, 1.0)
    return (top**GEN_GAMMA * (1.0 - top).clamp_min(1e-12) ** GEN_GAMMA).sum(dim=1)


class ServingGraph(nn.Module):
    """A trained model with everything that belongs to an answer, as one graph."""

    def __init__(
        self,
        model: SwinHierarchical,
        feature_space: FeatureSpace,
        layer_space: FeatureSpace,
        species_temperature: float,
        disease_temperature: float | Sequence[float] | np.ndarray,
        learned: LearnedScore | None = None,
        second: nn.Module | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            model: trained.
            feature_space, layer_space: fitted on the features and the layers of train pictures, as
                `extract_features` gives them.
            species_temperature: of the species logits.
            disease_temperature: of the disease logits: one for all, or one per species (S,).
            learned: fitted on the layers; None leaves its score out.
            second: `SecondOpinion`; None leaves its score out.
        """
        super().__init__()
        self.model, self.feature_space, self.layer_space = model, feature_space, layer_space
        self.learned, self.second = learned, second
        for part in (model.neck, model.species_head, model.disease_heads):
            if part is not None:  # INT8 ranges would clip the logits
                part.keep_float = True
        self.species_temperature = float(species_temperature)
        per_species = torch.as_tensor(np.asarray(disease_temperature, np.float32)).expand(
            model.tree.num_species
        )
        self.register_buffer("disease_temperature", per_species[model.class_species].clone())

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the columns of `ood`."""
        more = {PRETRAINED: self.second, LEARNED: self.learned}
        return (*SCORES, *(name for name, part in more.items() if part is not None))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Answer a batch.

        Args:
            images: uint8 (N, size, size, 3), RGB.

        Returns:
            probabilities float32 (N, classes), ood float32 (N, len(self.scores)), heatmap float32
            (N, h, w), 0..1.
        """
        second = None if self.second is None else self.second(images)
        return self.answer(*extract_features(self.model, images), second)

    def answer(
        self,
        feature_map: Tensor,
        features: Tensor,
        layers: Tensor,
        second: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `extract_features` saw of a batch, and the score of the second opinion if any -> the
        outputs of `forward`.
        """
        model = self.model
        hidden = model.neck(features)
        species_logits = model.species_scores(hidden)
        probabilities = model.probabilities(
            hidden, species_logits, self.species_temperature, self.disease_temperature
        )
        species_probs = (species_logits / self.species_temperature).softmax(dim=1)
        ood = [
            gen_score(species_probs)[:, None],
            self.feature_space.distances(features, species_probs.argmax(dim=1)),
            self.layer_space(layers),
        ]
        if second is not None:
            ood.append(second)
        if self.learned is not None:
            ood.append(self.learned(layers))
        return (
            probabilities,
            torch.cat(ood, dim=1),
            model.heatmap(feature_map, features, probabilities.argmax(dim=1)),
        )


def export_onnx(
    graph: nn.Module,
    path: str,
    size: int,
    outputs: Sequence[str] = ("probabilities", "ood", "heatmap"),
) -> None:
    """Write a graph as ONNX with a dynamic batch: by torch's current exporter, or by its older one
    where that fails.

    Names of the modules that declare `keep_float` are written into the file, for `quantize`. Torch
    2.6 to 2.8 need an onnxscript of their time for the current exporter, which pip no longer
    chooses.

    Raises:
        Exception: whatever the older exporter raises for a backbone that neither can trace.
    """
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    kept = [f"{n}." for n, part in graph.named_modules() if getattr(part, "keep_float", False)]
    names = {"input_names": ["images"], "output_names": list(outputs)}
    sides = {"images": {0: torch.export.Dim("batch", min=1, max=4096)}}
    export = partial(
        torch.onnx.export, graph.eval().requires_grad_(False), (images,), path, **names
    )
    try:
        export(dynamo=True, external_data=False, optimize=True, verbose=False, dynamic_shapes=sides)
    except Exception as error:
        warn(
            f"torch {torch.__version__} with this onnxscript cannot export "
            f"({type(error).__name__}); its older exporter does it."
        )
        free = {name: {0: "batch"} for name in ("images", *outputs)}
        export(dynamo=False, opset_version=17, dynamic_axes=free)
    written = onnx.load(path)
    onnx.helper.set_model_props(written, {KEEP_FLOAT: json.dumps(kept)})
    onnx.save(written, path)
