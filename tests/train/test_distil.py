"""Distillation: the loss against a plain reference, and which answers of the teacher count in a
phase.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.classes import ClassTree
from common.train import recipes
from common.train.compute import choose_compute
from common.train.losses import Teacher
from common.train.model import SwinHierarchical

TREE = ClassTree(
    ("apple", "basil", "corn"), (("healthy", "rust", "scab"), ("healthy",), ("blight", "healthy"))
)
RECIPE = recipes.get("demo")
JOINT, SPECIES = recipes.joint_phases(RECIPE)[0], recipes.species_phases(RECIPE)[0]
CPU = choose_compute("cpu", "fp32")


def model(seed: int, size: int = 32) -> SwinHierarchical:
    torch.manual_seed(seed)
    made = SwinHierarchical("test_resnet", TREE, image_size=size).eval()
    for head in (made.species_head, made.disease_heads):
        torch.nn.init.normal_(head.weight, std=1.0)
    return made


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(
        0, 256, (5, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def soft(
    net: SwinHierarchical, pixels: torch.Tensor, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Species and joint classes, softened, as a textbook would compute them."""
    with torch.inference_mode():
        hidden, logits = net(pixels)
        classes = net.disease_heads.all_logits(hidden).double().numpy() / temperature
    species = np.exp(logits.double().numpy() / temperature)
    species /= species.sum(1, keepdims=True)
    joint = np.exp(classes)
    for s in range(TREE.num_species):
        part = slice(TREE.offsets[s], TREE.offsets[s + 1])
        joint[:, part] *= species[:, s : s + 1] / joint[:, part].sum(1, keepdims=True)
    return species, joint


@pytest.mark.parametrize(
    ("phase", "parts"),
    [(JOINT, (0, 1)), (SPECIES, (0,)), (replace(JOINT, species_weight=0.0), (1,))],
)
def test_the_loss_is_that_of_a_textbook(pixels, phase, parts):
    teacher, student = Teacher(model(0), 0.7, 2.0), model(1)
    loss = torch.rand(5, generator=torch.Generator().manual_seed(1))
    found = teacher.blend(loss, student, student.features(pixels), pixels, phase, CPU)
    pairs = list(zip(soft(teacher.model, pixels, 2.0), soft(student, pixels, 2.0), strict=True))
    distance = sum((pairs[i][0] * np.log(pairs[i][0] / pairs[i][1])).sum(1) for i in parts)
    assert found.detach().numpy() == pytest.approx(
        0.3 * loss.numpy() + 0.7 * 4.0 * distance, rel=1e-4
    )


def test_a_student_that_answers_as_its_teacher_has_nothing_to_learn_from_it(pixels):
    teacher, student = Teacher(model(0), 0.6, 3.0), model(0)
    found = teacher.blend(torch.ones(5), student, student.features(pixels), pixels, JOINT, CPU)
    assert found.detach().numpy() == pytest.approx(0.4, abs=1e-5)


def test_the_teacher_sees_the_students_crop_at_its_own_size(pixels, monkeypatch):
    teacher, seen = Teacher(model(0, size=48), 0.5, 1.0), []
    plain = teacher.model.features
    monkeypatch.setattr(
        teacher.model, "features", lambda images: seen.append(images) or plain(images)
    )
    student = model(1)
    teacher.blend(torch.ones(5), student, student.features(pixels), pixels, JOINT, CPU)
    assert seen[0].shape == (5, 48, 48, 3)
    assert torch.allclose(
        seen[0].mean(dim=(1, 2)), pixels.float().mean(dim=(1, 2)), atol=2.0
    )  # the same picture
    assert not any(p.requires_grad for p in teacher.model.parameters())
