"""Many, medium and few-shot metrics: what classes with many, medium and few train pictures get
right.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.classes import ClassTree
from common.train.metrics import FEW_AT_MOST, TAIL_AT_MOST, f1_per_class


@dataclass
class HeadAnswers:
    """What heads answer for the pictures of a split. All arrays are int64 (N,).

    Attributes:
        class_idx: the true class.
        species: the predicted species.
        given: the predicted class, given the true species.
        joint: the predicted class, nothing given.
    """

    class_idx: np.ndarray
    species: np.ndarray
    given: np.ndarray
    joint: np.ndarray


def by_size(
    answers: HeadAnswers,
    tree: ClassTree,
    counts: np.ndarray,
    few: int = FEW_AT_MOST,
    medium: int = TAIL_AT_MOST,
) -> dict[str, dict[str, float]]:
    """Figures of the classes with many, medium and few train pictures (as ImageNet-LT reports them,
    Liu et al. 2019), and of all.

    Args:
        answers: of a split.
        tree: the classes.
        counts: int (classes,), train pictures per class.
        few, medium: a class with at most so many has few, or medium; all others many.

    Returns:
        {`many` | `medium` | `few` | `all`: {classes, pictures, species_acc, species_f1,
        disease_acc, disease_f1, cascade_acc, cascade_f1}}. Of the group's pictures, accuracy is the
        share that is right; disease is judged given the true species, over species with two classes
        or more. F1 is the mean over the group's classes; a class's species F1 is that of its
        species. 0..1; NaN for a group without pictures.
    """
    class_species, classes = tree.class_species, tree.num_classes
    several = (np.diff(tree.offsets) > 1)[class_species]
    true = class_species[answers.class_idx]
    f1 = {
        "species": f1_per_class(true, answers.species, tree.num_species)[class_species],
        "disease": np.where(
            several, f1_per_class(answers.class_idx, answers.given, classes), np.nan
        ),
        "cascade": f1_per_class(answers.class_idx, answers.joint, classes),
    }
    right = {
        "species": answers.species == true,
        "disease": answers.given == answers.class_idx,
        "cascade": answers.joint == answers.class_idx,
    }
    present = np.bincount(answers.class_idx, minlength=classes) > 0
    groups = {
        "many": counts > medium,
        "medium": (counts > few) & (counts <= medium),
        "few": counts <= few,
        "all": np.ones(classes, bool),
    }
    figures: dict[str, dict[str, float]] = {}
    for name, group in groups.items():
        group = group & present
        row: dict[str, float] = {
            "classes": int(group.sum()),
            "pictures": int(group[answers.class_idx].sum()),
        }
        for what in right:
            classes = group & several if what == "disease" else group
            pictures = classes[answers.class_idx]
            row[f"{what}_acc"] = float(right[what][pictures].mean()) if pictures.any() else math.nan
            row[f"{what}_f1"] = float(f1[what][classes].mean()) if classes.any() else math.nan
        figures[name] = row
    return figures
