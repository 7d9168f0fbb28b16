"""Distillation: a trained model's answers as targets for a smaller one, on the same crops."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from common.classes import ClassTree
from common.train import checkpoint
from common.train.compute import Compute
from common.train.model import SwinHierarchical
from common.train.recipes import Phase


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
        self.model, self.share, self.temperature = (
            model.requires_grad_(False).eval(),
            share,
            temperature,
        )

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


def load_teacher(
    path: Path, tree: ClassTree, data: Path, device: torch.device, share: float, temperature: float
) -> Teacher:
    """Load a checkpoint as teacher.

    Raises:
        SystemExit: where it cannot be read or knows other classes.
    """
    payload = checkpoint.load(path)
    checkpoint.require_tree(payload, tree, path, data)
    return Teacher(
        checkpoint.build_model(payload).to(device, memory_format=torch.channels_last),
        share,
        temperature,
    )
