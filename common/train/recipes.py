"""The recipe of a training run: its settings, the published protocols by name
(common/train/protocols.py), and the phases made of it.

`python -m common.train.recipes` prints the tables of the README.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from common.console import fail, table
from common.train.protocols import TABLES, UNUSED, Ours


def _row(
    meaning: str, unit: str = "", *, choices: tuple[str, ...] = (), most: float | None = None
) -> Any:
    return field(metadata={"meaning": meaning, "unit": unit, "choices": choices, "most": most})


METRICS = ("species_top1", "disease_top1", "cascade_top1", "macro_f1", "loss")


@dataclass(frozen=True)
class Recipe:
    """Everything about a training run that a paper would state. Epoch counts may be 0: the phase is
    left out."""

    source: str = _row("where the column comes from")
    classes: str = _row(
        "hierarchical: species, then diseases; flat: one softmax over all leaves",
        choices=("hierarchical", "flat"),
    )
    backbone: str = _row("timm model name")
    backbone_args: str = _row("extra arguments of timm.create_model, as name=value,name=value")
    drop_path: str = _row(
        "stochastic depth: largest share of skipped blocks; `timm` takes the backbone's own"
    )
    neck: str = _row(
        "layers before the heads, as dropout=0.3,width=512,dropout_after=0.15; nothing: none"
    )
    image_size: int = _row("side of the square picture the model sees", "px")
    pixel_mean: str = _row(
        "mean of the input per channel, 0..1; `timm` takes that of the backbone's weights"
    )
    pixel_std: str = _row("standard deviation of the input per channel")
    batch_size: int = _row("pictures per optimizer step", "images")
    weight_decay: float = _row("of AdamW")
    decay_on: str = _row(
        "what weight decay pulls at: matrices, or all parameters", choices=("matrices", "all")
    )
    betas: str = _row("of AdamW: memory of the mean and of the square of the gradient")
    clip_norm: float = _row("largest norm of the gradient; 0 = not clipped")
    layer_decay: float = _row(
        "each block of the backbone learns at this share of the rate of the one above; 1 = alike",
        most=1.0,
    )
    cosine_end: str = _row(
        "last rate of the backbone: scaled like its first, or the same as the heads'",
        choices=("scaled", "same"),
    )
    ema_decay: float = _row("moving average of the weights; 0 = none", most=0.9999999)
    best_by: str = _row(
        "the best epoch has most of this on val; stage: species_top1 in A, disease_top1 in B1 and "
        "B2, cascade_top1 in B3",
        choices=("stage", *METRICS),
    )
    patience: int = _row(
        "a phase ends after so many epochs without a better one; 0 = never early", "epochs"
    )
    cached_views: int = _row(
        "frozen phases learn from features of so many views of each picture; 0 = new views each "
        "epoch"
    )

    species_sampling: str = _row(
        "A1 to A3: as they come, or each class as often as any other",
        choices=("shuffle", "balanced"),
    )
    species_warmup_epochs: int = _row("A1: heads of stage A (a flat recipe's only stage)", "epochs")
    species_warmup_unfreeze: float = _row(
        "A1: share of the backbone's blocks that learn, from the top", most=1.0
    )
    species_warmup_lr: float = _row("A1: first rate")
    species_warmup_lr_end: float = _row("A1: last rate of the cosine; equal = constant")
    species_finetune_epochs: int = _row("A2: heads and backbone", "epochs")
    species_finetune_unfreeze: float = _row(
        "A2: share of the backbone's blocks that learn", most=1.0
    )
    species_finetune_lr: float = _row("A2: first rate")
    species_finetune_lr_end: float = _row("A2: last rate of the cosine")
    species_final_epochs: int = _row("A3: heads, and the backbone slower", "epochs")
    species_final_unfreeze: float = _row("A3: share of the backbone's blocks that learn", most=1.0)
    species_final_lr: float = _row("A3: first rate of the heads")
    species_final_lr_end: float = _row("A3: last rate of the heads")
    species_final_backbone_scale: float = _row(
        "A3: the backbone's first rate as a share of the heads'"
    )

    disease_heads_epochs: int = _row("B1: all disease heads, backbone frozen", "epochs")
    disease_heads_lr: float = _row("B1: constant rate")
    disease_boost_epochs: int = _row(
        "B2: the same again; with tail sampler, rare classes oversampled", "epochs"
    )
    disease_boost_lr: float = _row("B2: constant rate")
    joint_epochs: int = _row("B3: everything, species and disease loss together", "epochs")
    joint_lr: float = _row("B3: first rate")
    joint_lr_end: float = _row("B3: last rate of the cosine")

    loss: str = _row("focal or cross_entropy", choices=("focal", "cross_entropy"))
    focal_gamma: float = _row("focal loss: how strongly easy pictures are faded out")
    focal_alpha: float = _row("focal loss: factor")
    label_smoothing: float = _row("share of the target spread over all classes", most=0.999)
    disease_weight: float = _row("joint loss = species + this x disease")
    tail: str = _row(
        "against rarity: samplers in B1 and B2, log-priors in the loss, both, or heads scaled "
        "after training (lws, tau)",
        choices=("sampler", "none", "balanced_softmax", "softmax_and_sampler", "lws", "tau"),
    )
    rare_below: int = _row("a class under this many pictures is rare", "images")
    rare_weight: float = _row("tail sampler, B1: sampling weight of a rare class")
    very_rare_below: int = _row("a class under this many pictures is very rare", "images")
    very_rare_weight: float = _row("tail sampler, B1: sampling weight of a very rare class")
    boost_share: float = _row(
        "tail sampler, B2: least share of an epoch that rare classes fill", most=1.0
    )

    augment: str = _row("tiers 1 and 2, by level (common/train/augment_levels.py)")
    tier2_share: float = _row(
        "tier 2: share of pictures with blur, Gaussian or ISO noise", most=1.0
    )
    mix_share: float = _row("tier 3: share of batches with MixUp or CutMix", most=1.0)
    mixup_alpha: float = _row("tier 3: Beta(a, a) of MixUp; 0 = none")
    cutmix_alpha: float = _row("tier 3: Beta(a, a) of CutMix; 0 = none")
    randaugment_ops: int = _row("tier 3: RandAugment N; 0 = none")
    randaugment_magnitude: int = _row("tier 3: RandAugment M, of 10", most=10)


COLUMNS = tuple(name for _, columns, _ in TABLES for name in columns)


def get(name: str) -> Recipe:
    """Return one column of the tables.

    Raises:
        SystemExit: for a name that is no column; the message lists those that are.
    """
    if name not in COLUMNS:
        fail(
            f"there is no recipe `{name}`.{did_you_mean(name, COLUMNS)} Recipes: "
            f"{', '.join(COLUMNS)} "
            "(python -m common.train.recipes prints them)."
        )
    return Recipe(**{f.name: _value(name, f.name) for f in fields(Recipe)})


def _value(column: str, row: str) -> Any:
    for _, columns, cells in TABLES:
        if column in columns:
            found = cells.get(row, (UNUSED,) * len(columns))[columns.index(column)]
            found = found.value if isinstance(found, Ours) else found
            return _value(COLUMNS[0], row) if found == UNUSED else found
    raise KeyError(column)


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """Return " Did you mean `x`?" for the closest of the names, or nothing where none is close."""
    close = get_close_matches(name, names, 1, cutoff=0.6)
    return f" Did you mean `{close[0]}`?" if close else ""


# region phases


@dataclass(frozen=True)
class Phase:
    """One phase of training, as the loop runs it.

    Attributes:
        name: for logs and pictures.
        epochs: how many.
        lr, lr_end: rate of the heads at the first and after the last step; equal = constant, else
            cosine.
        heads: which heads learn: `species`, `disease` or `all`.
        backbone_scale: the backbone's rate as a share of the heads'; 0 = frozen.
        sampling: `shuffle`, `balanced`, `rare` (B1's weights) or `boost` (B2's).
        species_weight, disease_weight: weights of the two losses; a flat model has one loss, and
            both are 1.
        unfreeze: share of the backbone's blocks that learn, counted from the top, 0..1.
        layer_decay: rate of a block as a share of that of the one above.
        same_end: the backbone's cosine ends at `lr_end`, too, not at its share of it.
        prior: the loss adds the log-prior of the classes to the logits (balanced softmax).
        cached_views: learn from features of so many views of each picture; 0 = from pictures. Only
            while the backbone is frozen.
        best_by: one of METRICS.
        patience: epochs without a better one before the phase ends; 0 = never.
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
    unfreeze: float = 1.0
    layer_decay: float = 1.0
    same_end: bool = False
    prior: bool = False
    cached_views: int = 0
    best_by: str = "cascade_top1"
    patience: int = 0

    @property
    def frozen(self) -> bool:
        """Whether the backbone stands still."""
        return self.backbone_scale == 0

    def score(self, metrics: Mapping[str, float]) -> float:
        """Score an epoch by `best_by`, larger = better; the smaller loss decides between equals.

        Args:
            metrics: of `metrics.summarise`.
        """
        if self.best_by == "loss":
            return -(
                self.species_weight * metrics["species_nll"]
                + self.disease_weight * metrics["disease_nll"]
            )
        nll = {"species_top1": ("species_nll",), "disease_top1": ("disease_nll",)}.get(
            self.best_by, ("species_nll", "disease_nll")
        )
        return metrics[self.best_by] - 1e-6 * sum(metrics[name] for name in nll)


def species_phases(r: Recipe) -> list[Phase]:
    """Return stage A: warm-up, fine-tune, final; phases of 0 epochs are left out. A flat recipe
    trains all its leaves here."""
    shares = (
        {"heads": "all", "species_weight": 1.0, "disease_weight": 1.0}
        if r.classes == "flat"
        else {"heads": "species", "species_weight": 1.0}
    )

    def phase(
        name: str, epochs: int, lr: float, lr_end: float, unfreeze: float, scale: float
    ) -> Phase:
        return _phase(
            r,
            name,
            epochs,
            lr,
            lr_end,
            "cascade_top1" if r.classes == "flat" else "species_top1",
            unfreeze,
            scale,
            sampling=r.species_sampling,
            **shares,
        )

    return _some(
        [
            phase(
                "A1 warm-up",
                r.species_warmup_epochs,
                r.species_warmup_lr,
                r.species_warmup_lr_end,
                r.species_warmup_unfreeze,
                1.0,
            ),
            phase(
                "A2 fine-tune",
                r.species_finetune_epochs,
                r.species_finetune_lr,
                r.species_finetune_lr_end,
                r.species_finetune_unfreeze,
                1.0,
            ),
            phase(
                "A3 final",
                r.species_final_epochs,
                r.species_final_lr,
                r.species_final_lr_end,
                r.species_final_unfreeze,
                r.species_final_backbone_scale,
            ),
        ]
    )


def disease_phases(r: Recipe) -> list[Phase]:
    """Return the frozen part of stage B: all disease heads, rare-class boost; nothing for a flat
    recipe."""
    rare, boost = ("rare", "boost") if r.tail.endswith("sampler") else ("shuffle", "shuffle")
    return _some(
        [
            _phase(
                r,
                "B1 disease heads",
                r.disease_heads_epochs,
                r.disease_heads_lr,
                r.disease_heads_lr,
                "disease_top1",
                0.0,
                heads="disease",
                sampling=rare,
                disease_weight=1.0,
            ),
            _phase(
                r,
                "B2 rare classes",
                r.disease_boost_epochs,
                r.disease_boost_lr,
                r.disease_boost_lr,
                "disease_top1",
                0.0,
                heads="disease",
                sampling=boost,
                disease_weight=1.0,
            ),
        ]
        if r.classes == "hierarchical"
        else []
    )


def joint_phases(r: Recipe) -> list[Phase]:
    """Return the end-to-end part of stage B: everything, L_species + disease_weight x L_disease;
    nothing for a flat recipe."""
    return _some(
        [
            _phase(
                r,
                "B3 end to end",
                r.joint_epochs,
                r.joint_lr,
                r.joint_lr_end,
                "cascade_top1",
                1.0,
                heads="all",
                species_weight=1.0,
                disease_weight=r.disease_weight,
            )
        ]
        if r.classes == "hierarchical"
        else []
    )


def _phase(
    r: Recipe,
    name: str,
    epochs: int,
    lr: float,
    lr_end: float,
    best_by: str,
    unfreeze: float,
    scale: float = 1.0,
    **more: Any,
) -> Phase:
    return Phase(
        name,
        epochs,
        lr,
        lr_end,
        backbone_scale=scale if unfreeze > 0 else 0.0,
        unfreeze=unfreeze if scale > 0 else 0.0,
        layer_decay=r.layer_decay,
        same_end=r.cosine_end == "same",
        prior="softmax" in r.tail,
        patience=r.patience,
        cached_views=0 if unfreeze * scale > 0 else r.cached_views,
        best_by=best_by if r.best_by == "stage" else r.best_by,
        **more,
    )


def _some(phases: list[Phase]) -> list[Phase]:
    return [phase for phase in phases if phase.epochs > 0]


# endregion


def markdown() -> str:
    """Return the recipe tables as they stand in the README; `*` marks values that the source does
    not state."""
    meaning = {
        f.name: f.metadata["meaning"] + (f" [{f.metadata['unit']}]" if f.metadata["unit"] else "")
        for f in fields(Recipe)
    }
    parts = []
    for title, columns, cells in TABLES:
        first = columns[0] == COLUMNS[0]
        rows = [
            [f"`{name}`", *map(_shown, row), *([meaning[name]] if first else [])]
            for name, row in cells.items()
        ]
        parts += [
            f"**{title}**",
            table(rows, ["setting", *columns, *(["meaning"] if first else [])]),
        ]
    return "\n\n".join(parts)


def _shown(cell: Any) -> str:
    value = cell.value if isinstance(cell, Ours) else cell
    return f"{'none' if value == '' else value}{' *' if isinstance(cell, Ours) else ''}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    argparse.ArgumentParser(prog="python -m common.train.recipes", description=__doc__).parse_args(
        argv
    )
    print(markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
