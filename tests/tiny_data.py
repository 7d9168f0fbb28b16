"""A tiny set of raw class folders for tests: colour tells the species, texture the disease. No
torch.
"""

import importlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

# folder name as messy as people's own -> (species, disease) as 01 should read it
CLASSES: dict[str, tuple[str, str]] = {
    "Apple___healthy": ("apple", "healthy"),
    "Apple Scab Leaf": ("apple", "scab"),
    "Corn_(maize)___Common_rust_": ("corn", "common_rust"),
    "corn healthy": ("corn", "healthy"),
    "tomato_EARLY_blight": ("tomato", "early_blight"),
    "Tomato___healthy": ("tomato", "healthy"),
    "Tomato leaf late blight": ("tomato", "late_blight"),
}
COLORS = {"apple": (40, 160, 50), "corn": (200, 190, 60), "tomato": (120, 70, 160)}
EACH = 10


def draw(species: str, disease: str, number: int, size: int = 64) -> np.ndarray:
    """Draw one picture, uint8 (size, size, 3): smooth random ground in the species' colour, the
    disease as marks on it.
    """
    kinds = sorted({d for _, d in CLASSES.values()})
    rng = np.random.default_rng([sorted(COLORS).index(species), kinds.index(disease), number])
    ground = cv2.resize(
        rng.normal(0, 35, (7, 7)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
    )
    picture = (
        np.array(COLORS[species], np.float32)
        + ground[..., None]
        + rng.normal(0, 4, (size, size, 3))
    )
    y, x = np.mgrid[:size, :size]
    if disease == "scab":
        for cx, cy in rng.integers(8, size - 8, (9, 2)):
            picture[(x - cx) ** 2 + (y - cy) ** 2 < 25] = 15
    elif disease == "common_rust":
        for cx, cy in rng.integers(4, size - 4, (30, 2)):
            picture[(x - cx) ** 2 + (y - cy) ** 2 < 4] = (190, 60, 10)
    elif disease == "early_blight":
        picture[(x + rng.integers(9)) % 10 < 3] = 25
    elif disease == "late_blight":
        picture[(y + rng.integers(9)) % 10 < 4] = (225, 225, 205)
    return np.clip(picture, 0, 255).astype(np.uint8)


def make_raw(folder: Path, each: int = EACH) -> Path:
    """Write the class folders with `each` pictures per class; half are PNG, half JPEG."""
    for name, class_idx in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            ending = "png" if number % 2 else "JPG"
            Image.fromarray(draw(*class_idx, number)).save(
                folder / name / f"photo {number:02d}.{ending}", quality=92
            )
    return folder


def make_strangers(folder: Path, count: int = 8) -> Path:
    """Write pictures of no plant: patchworks in blue and red."""
    folder.mkdir(parents=True)
    for number in range(count):
        board = np.kron(np.random.default_rng(number).integers(0, 2, (8, 8)), np.ones((8, 8), int))[
            ..., None
        ]
        picture = np.where(board, (10, 20, 240), (250, 30 * (number % 8), 0)).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"thing_{number}.png")
    return folder


def organize(folder: Path, *flags: object) -> Path:
    """Make raw folders below `folder` and organize them with 01's own main; returns
    data/organized.
    """
    raw, strangers = make_raw(folder / "raw"), make_strangers(folder / "things")
    argv = [
        raw,
        "--not-plants",
        strangers,
        "--output",
        folder / "data" / "organized",
        "--workers",
        1,
        *flags,
    ]
    assert importlib.import_module("01_reorganize").main([str(part) for part in argv]) == 0
    return folder / "data" / "organized"


# a network of a third of a million weights with batch norms, and one epoch or two of every phase
TRAIN = ["--workers", "0", "--precision", "fp32", "--device", "cpu"]
SPECIES = [
    "--recipe",
    "demo",
    "--weights",
    "none",
    "--backbone",
    "test_resnet",
    "--image-size",
    "32",
    "--batch-size",
    "8",
    "--species-warmup-epochs",
    "1",
    "--species-finetune-epochs",
    "2",
    "--species-final-epochs",
    "1",
    *TRAIN,
]
DISEASE = [
    "--disease-heads-epochs",
    "2",
    "--disease-boost-epochs",
    "1",
    "--joint-epochs",
    "2",
    *TRAIN,
]
