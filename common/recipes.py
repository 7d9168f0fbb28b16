"""The published training protocols as one table: a row is a setting, a column a protocol, a cell one fact.

A cell marked with `ours(...)` is not stated by the protocol's source; the README's table shows it with a star.
`python -m common.recipes` prints the table of the README.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from common.console import fail, table


def _row(meaning: str, unit: str = "") -> Any:
    return field(metadata={"meaning": meaning, "unit": unit})


@dataclass(frozen=True)
class Recipe:
    """Everything about a training run that a paper would state. Epoch counts may be 0: the phase is left out."""

    source: str = _row("where the column comes from")
    backbone: str = _row("timm model name")
    backbone_args: str = _row("extra arguments of timm.create_model, as name=value,name=value")
    image_size: int = _row("side of the square picture the model sees", "px")
    pixel_mean: str = _row("mean of the input per channel, 0..1; `timm` takes that of the backbone's weights")
    pixel_std: str = _row("standard deviation of the input per channel")
    batch_size: int = _row("pictures per optimizer step", "images")
    weight_decay: float = _row("AdamW, on matrices only")
    clip_norm: float = _row("largest norm of the gradient")

    species_warmup_epochs: int = _row("A1: species head alone, backbone frozen", "epochs")
    species_warmup_lr: float = _row("A1: constant rate")
    species_finetune_epochs: int = _row("A2: everything", "epochs")
    species_finetune_lr: float = _row("A2: first rate of the cosine")
    species_finetune_lr_end: float = _row("A2: last rate of the cosine")
    species_final_epochs: int = _row("A3: everything, the backbone slower", "epochs")
    species_final_lr: float = _row("A3: rate of the head")
    species_final_backbone_scale: float = _row("A3: the backbone's rate as a share of the head's")

    disease_heads_epochs: int = _row("B1: all disease heads, backbone frozen", "epochs")
    disease_heads_lr: float = _row("B1: constant rate")
    disease_boost_epochs: int = _row("B2: the same, rare classes oversampled", "epochs")
    disease_boost_lr: float = _row("B2: constant rate")
    joint_epochs: int = _row("B3: everything, species and disease loss together", "epochs")
    joint_lr: float = _row("B3: first rate")
    joint_lr_end: float = _row("B3: last rate of the cosine")

    focal_gamma: float = _row("focal loss: how strongly easy pictures are faded out")
    focal_alpha: float = _row("focal loss: factor")
    label_smoothing: float = _row("share of the target spread over all classes")
    disease_weight: float = _row("joint loss = species + this x disease")
    rare_below: int = _row("a class under this many pictures is rare", "images")
    rare_weight: float = _row("B1: sampling weight of a rare class")
    very_rare_below: int = _row("a class under this many pictures is very rare", "images")
    very_rare_weight: float = _row("B1: sampling weight of a very rare class")
    boost_share: float = _row("B2: least share of an epoch that rare classes fill")

    augment: str = _row("tiers 1 and 2, by level (common/augment.py)")
    tier2_share: float = _row("tier 2: share of pictures with blur, Gaussian or ISO noise")
    mix_share: float = _row("tier 3: share of batches with MixUp or CutMix")
    mixup_alpha: float = _row("tier 3: Beta(a, a) of MixUp; 0 = none")
    cutmix_alpha: float = _row("tier 3: Beta(a, a) of CutMix; 0 = none")
    randaugment_ops: int = _row("tier 3: RandAugment N; 0 = none")
    randaugment_magnitude: int = _row("tier 3: RandAugment M, of 10")


class _Ours:
    def __init__(self, value: Any) -> None:
        self.value = value


def ours(value: Any) -> _Ours:
    """Mark a cell that the protocol's source does not state."""
    return _Ours(value)


COLUMNS = ("hierarchical", "two_core", "demo")

# fmt: off
TABLE: dict[str, tuple[Any, ...]] = {
    #                                hierarchical                            two_core                demo
    "source":                       ("sources/000 and 001",                  ours("for 2 cores"),    ours("for minutes")),
    "backbone":                     ("swin_tiny_patch4_window7_224.ms_in22k", ours("mobilenetv2_100"), ours("resnet10t")),
    "backbone_args":                (ours(""),                               ours(""),               ours("")),
    "image_size":                   (224,                                    ours(160),              ours(80)),
    "pixel_mean":                   (ours("timm"),                           ours("timm"),           ours("timm")),
    "pixel_std":                    (ours("timm"),                           ours("timm"),           ours("timm")),
    "batch_size":                   (256,                                    ours(32),               ours(16)),
    "weight_decay":                 (ours(0.05),                             ours(0.05),             ours(0.05)),
    "clip_norm":                    (1.0,                                    1.0,                    1.0),
    "species_warmup_epochs":        (5,                                      ours(1),                ours(1)),
    "species_warmup_lr":            (1e-3,                                   1e-3,                   1e-3),
    "species_finetune_epochs":      (20,                                     ours(2),                ours(8)),
    "species_finetune_lr":          (1e-4,                                   ours(5e-4),             ours(2e-3)),
    "species_finetune_lr_end":      (1e-6,                                   ours(1e-5),             ours(1e-4)),
    "species_final_epochs":         (5,                                      ours(1),                ours(1)),
    "species_final_lr":             (5e-6,                                   ours(5e-5),             ours(1e-4)),
    "species_final_backbone_scale": (0.1,                                    0.1,                    0.1),
    "disease_heads_epochs":         (15,                                     ours(1),                ours(1)),
    "disease_heads_lr":             (1e-3,                                   1e-3,                   ours(3e-3)),
    "disease_boost_epochs":         (5,                                      ours(1),                ours(1)),
    "disease_boost_lr":             (5e-4,                                   5e-4,                   ours(1e-3)),
    "joint_epochs":                 (10,                                     ours(10),               ours(15)),
    "joint_lr":                     (1e-5,                                   ours(5e-4),             ours(2e-3)),
    "joint_lr_end":                 (ours(1e-5),                             ours(1e-6),             ours(1e-5)),
    "focal_gamma":                  (2.0,                                    2.0,                    2.0),
    "focal_alpha":                  (0.25,                                   0.25,                   0.25),
    "label_smoothing":              (0.1,                                    0.1,                    ours(0.05)),
    "disease_weight":               (0.7,                                    0.7,                    ours(1.0)),
    "rare_below":                   (80,                                     ours(20),               80),
    "rare_weight":                  (3.0,                                    3.0,                    3.0),
    "very_rare_below":              (50,                                     ours(10),               50),
    "very_rare_weight":             (5.0,                                    5.0,                    5.0),
    "boost_share":                  (ours(0.5),                              ours(0.5),              ours(0.5)),
    "augment":                      ("full",                                 ours("gentle"),         ours("gentle")),
    "tier2_share":                  (0.3,                                    0.3,                    0.3),
    "mix_share":                    (0.5,                                    ours(0.0),              ours(0.0)),
    "mixup_alpha":                  (0.2,                                    0.2,                    0.2),
    "cutmix_alpha":                 (1.0,                                    1.0,                    1.0),
    "randaugment_ops":              (2,                                      ours(0),                ours(0)),
    "randaugment_magnitude":        (9,                                      9,                      9),
}
# fmt: on


def _check_table() -> None:
    names = [f.name for f in fields(Recipe)]
    if list(TABLE) != names:
        odd = sorted(set(TABLE) ^ set(names)) or "the order differs"
        raise ValueError(f"the rows of TABLE are not the fields of Recipe: {odd}")
    for name, cells in TABLE.items():
        if len(cells) != len(COLUMNS):
            raise ValueError(f"row {name} has {len(cells)} cells for {len(COLUMNS)} columns")


_check_table()


def get(name: str) -> Recipe:
    """Return one column of the table.

    Raises:
        SystemExit: for a name that is no column; the message lists those that are.
    """
    if name not in COLUMNS:
        fail(f"there is no recipe `{name}`. Recipes: {', '.join(COLUMNS)} (python -m common.recipes prints them).")
    column = COLUMNS.index(name)
    return Recipe(**{row: plain(cells[column]) for row, cells in TABLE.items()})


def plain(cell: Any) -> Any:
    """Return the value of a cell of TABLE, without the mark of `ours`."""
    return cell.value if isinstance(cell, _Ours) else cell


# region phases


@dataclass(frozen=True)
class Phase:
    """One phase of training, as the loop runs it.

    Attributes:
        name: for logs and pictures.
        epochs: how many.
        lr, lr_end: rate of the heads at the first and after the last step; equal = constant, else cosine.
        heads: which heads learn: `species`, `disease` or `all`.
        backbone_scale: the backbone's rate as a share of the heads'; 0 = frozen.
        sampling: `shuffle`, `rare` (B1's weights) or `boost` (B2's).
        species_weight, disease_weight: weights of the two losses.
    """

    name: str
    epochs: int
    lr: float
    lr_end: float
    heads: str
    backbone_scale: float = 0.0
    sampling: str = "shuffle"
    species_weight: float = 0.0
    disease_weight: float = 0.0


def species_phases(r: Recipe) -> list[Phase]:
    """Return stage A: warm-up, fine-tune, final; phases of 0 epochs are left out."""
    return _some([
        Phase("A1 warm-up", r.species_warmup_epochs, r.species_warmup_lr, r.species_warmup_lr, "species", species_weight=1.0),
        Phase("A2 fine-tune", r.species_finetune_epochs, r.species_finetune_lr, r.species_finetune_lr_end, "species", 1.0,
              species_weight=1.0),
        Phase("A3 final", r.species_final_epochs, r.species_final_lr, r.species_final_lr, "species",
              r.species_final_backbone_scale, species_weight=1.0)])


def disease_phases(r: Recipe) -> list[Phase]:
    """Return the frozen part of stage B: all disease heads, rare-class boost."""
    return _some([
        Phase("B1 disease heads", r.disease_heads_epochs, r.disease_heads_lr, r.disease_heads_lr, "disease",
              sampling="rare", disease_weight=1.0),
        Phase("B2 rare classes", r.disease_boost_epochs, r.disease_boost_lr, r.disease_boost_lr, "disease",
              sampling="boost", disease_weight=1.0)])


def joint_phases(r: Recipe) -> list[Phase]:
    """Return the end-to-end part of stage B: everything, L_species + disease_weight x L_disease."""
    return _some([Phase("B3 end to end", r.joint_epochs, r.joint_lr, r.joint_lr_end, "all", 1.0,
                        species_weight=1.0, disease_weight=r.disease_weight)])


def _some(phases: list[Phase]) -> list[Phase]:
    return [phase for phase in phases if phase.epochs > 0]


# endregion

def markdown() -> str:
    """Return the recipe table as it stands in the README; `*` marks values that the source does not state."""
    rows = []
    for f in fields(Recipe):
        cells = [f"{plain(cell)}{' *' if isinstance(cell, _Ours) else ''}" for cell in TABLE[f.name]]
        rows.append([f"`{f.name}`", *[c if c.strip() != "*" else "none *" for c in cells], f.metadata["meaning"]])
    return table(rows, ["setting", *COLUMNS, "meaning"])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    argparse.ArgumentParser(prog="python -m common.recipes", description=__doc__).parse_args(argv)
    print(markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
