"""The loss of a phase: species and disease terms, each focal loss or cross-entropy with label
smoothing; and distillation, where a trained model's answers are targets as well.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from common.train.compute import Compute
from common.train.model import SwinHierarchical
from common.train.recipes import Phase, Recipe


def hierarchical_loss(
    model: SwinHierarchical, features: Tensor, class_idx: Tensor, phase: Phase, recipe: Recipe
) -> Tensor:
    """Species loss plus disease loss of each sample under its own species' head, weighted by the
    phase.

    A flat model has one loss over all its classes. Where the phase has a prior, log-priors are
    added to the logits (balanced softmax, Ren et al. 2020), as `model.use_counts` set them.

    Args:
        features: float (N, features), pooled.
        class_idx: int64 (N,), true classes.

    Returns:
        float32 (N,).
    """
    hidden, species = model.neck(features), model.class_species[class_idx]
    if model.flat:
        logits = model.disease_heads.all_logits(hidden)
        return phase.species_weight * class_loss(
            logits + model.class_prior if phase.prior else logits, class_idx, recipe
        )
    loss = features.new_zeros(len(class_idx), dtype=torch.float32)
    if phase.species_weight > 0:
        logits = model.species_logits(hidden)
        loss = loss + phase.species_weight * class_loss(
            logits + model.species_prior if phase.prior else logits, species, recipe
        )
    if phase.disease_weight > 0 and model.disease_heads.widest > 1:
        own = model.disease_heads.class_of[species]
        logits = model.disease_logits(hidden, species)
        logits = logits + model.class_prior[own] if phase.prior else logits
        loss = loss + phase.disease_weight * class_loss(
            logits, class_idx - own[:, 0], recipe, model.disease_heads.sizes[species]
        )
    return loss


def class_loss(
    logits: Tensor, target: Tensor, recipe: Recipe, classes: Tensor | None = None
) -> Tensor:
    """Loss of the recipe's kind with its label smoothing, one value per sample.

    Args:
        logits: float (N, C).
        target: int64 (N,).
        classes: int64 (N,), how many of the C columns are real for each row, as for `focal_loss`.

    Returns:
        float32 (N,).
    """
    if recipe.loss == "cross_entropy":
        return cross_entropy(logits, target, smoothing=recipe.label_smoothing, classes=classes)
    return focal_loss(
        logits,
        target,
        gamma=recipe.focal_gamma,
        alpha=recipe.focal_alpha,
        smoothing=recipe.label_smoothing,
        classes=classes,
    )


def cross_entropy(
    logits: Tensor, target: Tensor, *, smoothing: float = 0.0, classes: Tensor | None = None
) -> Tensor:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7), one value per sample; no
    (N, C) target is made.

    Args:
        logits: float (N, C).
        target: int64 (N,).
        smoothing: share of the target spread evenly over the classes, 0..1.
        classes: int64 (N,), how many of the C columns are real for each row; None: all are.

    Returns:
        float32 (N,).
    """
    log_probs = F.log_softmax(logits.float(), dim=1)
    loss = -log_probs.gather(1, target[:, None]).squeeze(1)
    if smoothing > 0:
        if classes is None:
            spread = -log_probs.mean(dim=1)
        else:
            padding = torch.arange(logits.shape[1], device=logits.device) >= classes[:, None]
            spread = -log_probs.masked_fill(padding, 0.0).sum(dim=1) / classes
        loss = (1.0 - smoothing) * loss + smoothing * spread
    return loss


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
    smoothing: float = 0.0,
    classes: Tensor | None = None,
) -> Tensor:
    """Focal loss, `-alpha * sum_c q_c (1 - p_c)^gamma log p_c`, one value per sample.

    For a hard target without smoothing it is equation 5 of Lin et al. 2017 with one alpha for all
    classes. It is linear in the target q, so that the loss of a mixed target is the mixture of the
    losses. gamma 0 and alpha 1 give cross-entropy.

    Args:
        logits: float (N, C).
        target: int64 (N,) class indices, or float (N, C) distributions.
        gamma: focusing exponent, >= 0.
        alpha: factor.
        smoothing: share of the target spread evenly over the classes, 0..1.
        classes: int64 (N,), how many of the C columns are real for each row (the first ones); the
            rest is padding that must hold very negative finite logits. None: all are.

    Returns:
        float32 (N,).
    """
    log_probs = F.log_softmax(logits.float(), dim=1)
    if target.dim() == 1:
        target = torch.zeros_like(log_probs).scatter_(1, target[:, None], 1.0)
    if smoothing > 0:
        if classes is None:
            spread = torch.full_like(log_probs, 1.0 / logits.shape[1])
        else:
            real = torch.arange(logits.shape[1], device=logits.device) < classes[:, None]
            spread = real / classes[:, None]
        target = target * (1.0 - smoothing) + spread * smoothing
    weight = (
        target if gamma == 0 else target * (1.0 - log_probs.exp()).clamp_min(1e-7) ** gamma
    )  # the root of 0 has no slope
    return -alpha * (weight * log_probs).sum(dim=1)


# region distillation


class Teacher:
    """A frozen model that answers beside the one that learns (Hinton et al. 2015).

    The loss of a picture becomes `(1 - share) x its own + share x T^2 x (KL of species + KL of
    classes)`, both models seeing the same augmented and mixed pixels; each at its own size, so
    that a teacher of 224 px can teach a student of 96.
    """

    def __init__(self, model: SwinHierarchical, share: float, temperature: float) -> None:
        """Freeze the model.

        Args:
            model: the teacher, on the student's device.
            share: weight of the teacher's answers, 0..1.
            temperature: T; both distributions are softened by it.
        """
        self.model = model.requires_grad_(False).eval()
        self.share, self.temperature = share, temperature

    def blend(
        self,
        loss: Tensor,
        student: SwinHierarchical,
        features: Tensor,
        pixels: Tensor,
        phase: Phase,
        compute: Compute,
    ) -> Tensor:
        """Blend the loss of each picture with its distance to the teacher's answer, of species and
        of classes, as the phase has losses.

        A phase without a disease loss leaves the disease heads as they are, and their answers say
        nothing yet.

        Args:
            loss: float (N,), against the labels.
            student: the model that learns; `features` float (N, F), its own, with their graph.
            pixels: uint8 or float (N, size, size, 3), 0..255, as the student saw them.
            phase: what is trained.

        Returns:
            float32 (N,).
        """
        with torch.no_grad(), compute.autocast():
            theirs = self.model.features(_resized(pixels, self.model.settings["image_size"]))
        with torch.no_grad():
            target = _soft(self.model, theirs, self.temperature)
        answer = _soft(student, features, self.temperature)
        learned = (phase.species_weight > 0, phase.disease_weight > 0)
        distance = sum(
            F.kl_div(a, t, reduction="none", log_target=True).sum(dim=1)
            for a, t, wanted in zip(answer, target, learned, strict=True)
            if wanted
        )
        return (1 - self.share) * loss + self.share * self.temperature**2 * distance


def _soft(model: SwinHierarchical, features: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of species (N, S) and of classes (N, C), softened."""
    hidden = model.neck(features)
    species = model.species_logits(hidden)
    classes = model.probabilities(hidden, species, temperature, temperature)
    return (species / temperature).log_softmax(dim=1), classes.clamp_min(1e-12).log()


def _resized(pixels: Tensor, size: int) -> Tensor:
    if pixels.shape[1] == size:
        return pixels
    planes = pixels.permute(0, 3, 1, 2).float()
    return F.interpolate(
        planes, (size, size), mode="bilinear", antialias=True, align_corners=False
    ).permute(0, 2, 3, 1)


# endregion
