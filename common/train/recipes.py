"""A recipe by its name (common/train/protocols.py), and the phases of training that it asks for.

`python -m common.train.recipes` prints the tables of common/train/RECIPES.md.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from common.console import fail, table
from common.train.protocols import BASE, FAMILIES, RECIPES, Recipe

COLUMNS = tuple(RECIPES)
AUTO = "auto"  # no column: common/train/auto.py resolves it from the data


def get(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises:
        SystemExit: for an unknown name; the message lists those that there are.
    """
    if name == AUTO:
        fail(
            "recipe auto is resolved by 02a_train_species.py, and 02b_train_disease.py finds it in "
            "the species checkpoint: leave --recipe out."
        )
    if name not in COLUMNS:
        fail(
            f"there is no recipe `{name}`.{did_you_mean(name, (AUTO, *COLUMNS))} Recipes: "
            f"{', '.join((AUTO, *COLUMNS))} "
            "(python -m common.train.recipes prints them)."
        )
    return RECIPES[name].recipe


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
        """Whether the backbone does not learn."""
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
    trains all its classes here.
    """
    flat = r.classes == "flat"
    common = {
        "heads": "all" if flat else "species",
        "sampling": r.species_sampling,
        "species_weight": 1.0,
        "disease_weight": 1.0 if flat else 0.0,
        "best_by": "cascade_top1" if flat else "species_top1",
    }
    final_scale = r.species_final_backbone_scale
    return [
        *_phase(r, "A1 warm-up", "species_warmup", r.species_warmup_unfreeze, **common),
        *_phase(r, "A2 fine-tune", "species_finetune", r.species_finetune_unfreeze, **common),
        *_phase(r, "A3 final", "species_final", r.species_final_unfreeze, final_scale, **common),
    ]


def disease_phases(r: Recipe) -> list[Phase]:
    """Return the frozen part of stage B: all disease heads, rare-class boost; nothing for a flat
    recipe.
    """
    if r.classes == "flat":
        return []
    rare, boost = ("rare", "boost") if r.tail.endswith("sampler") else ("shuffle", "shuffle")
    common = {"heads": "disease", "disease_weight": 1.0, "best_by": "disease_top1"}
    return [
        *_phase(r, "B1 disease heads", "disease_heads", 0.0, sampling=rare, **common),
        *_phase(r, "B2 rare classes", "disease_boost", 0.0, sampling=boost, **common),
    ]


def joint_phases(r: Recipe) -> list[Phase]:
    """Return the end-to-end part of stage B: everything, L_species + disease_weight x L_disease;
    nothing for a flat recipe.
    """
    if r.classes == "flat":
        return []
    weights = {"species_weight": 1.0, "disease_weight": r.disease_weight}
    return _phase(r, "B3 end to end", "joint", 1.0, heads="all", best_by="cascade_top1", **weights)


def _phase(
    r: Recipe,
    name: str,
    settings: str,
    unfreeze: float,
    scale: float = 1.0,
    *,
    best_by: str,
    **more: Any,
) -> list[Phase]:
    """A phase by the recipe's settings of this prefix (`joint` -> `joint_epochs`, `joint_lr`,
    `joint_lr_end` where there is one), or nothing where it has 0 epochs.
    """
    epochs, lr = getattr(r, f"{settings}_epochs"), getattr(r, f"{settings}_lr")
    frozen = unfreeze * scale == 0
    phase = Phase(
        name,
        epochs,
        lr,
        getattr(r, f"{settings}_lr_end", lr),
        backbone_scale=0.0 if frozen else scale,
        unfreeze=0.0 if frozen else unfreeze,
        layer_decay=r.layer_decay,
        same_end=r.cosine_end == "same",
        prior="softmax" in r.tail,
        patience=r.patience,
        cached_views=r.cached_views if frozen else 0,
        best_by=best_by if r.best_by == "stage" else r.best_by,
        **more,
    )
    return [phase] if epochs else []


# endregion


def without_effect(r: Recipe) -> set[str]:
    """Name the settings that change nothing in a run of this recipe."""
    off = {
        ("focal_",): r.loss != "focal",
        ("disease_", "joint_", "rare_", "very_rare_", "boost_"): r.classes == "flat",
        ("mixup_", "cutmix_"): r.mix_share == 0,
        ("randaugment_magnitude",): r.randaugment_ops == 0,
    }
    for stage in ("species_warmup", "species_final", "disease_heads", "disease_boost"):
        off[f"{stage}_lr", f"{stage}_unfreeze", f"{stage}_backbone"] = (
            getattr(r, f"{stage}_epochs") == 0
        )
    starts = tuple(start for group, is_off in off.items() if is_off for start in group)
    return {f.name for f in fields(r) if f.name.startswith(starts)}


def markdown() -> str:
    """Return the recipe tables of common/train/RECIPES.md; `*` marks what the source does not
    state, `-` what has no effect.
    """
    rows = [f for f in fields(Recipe) if f.name != "source"]
    same = [f.name for f in rows if len({getattr(p.recipe, f.name) for p in RECIPES.values()}) == 1]
    parts = []
    for title, columns in FAMILIES.items():
        cells = {f.name: [_cell(column, f.name) for column in columns] for f in rows}
        shown = [n for n, row in cells.items() if n not in same and set(row) != {"-"}]
        sources = [f"`{column}`: {RECIPES[column].recipe.source}" for column in columns]
        parts += [
            f"**{title}**",
            table([[f"`{name}`", *cells[name]] for name in shown], ["setting", *columns]),
            "Sources: " + "; ".join(sources) + ".",
        ]
    equal = ", ".join(f"`{name}` {getattr(BASE, name)}" for name in same)
    meanings = [
        [
            f"`{f.name}`",
            f.metadata["meaning"] + f" [{f.metadata['unit']}]" * bool(f.metadata["unit"]),
        ]
        for f in rows
    ]
    return "\n\n".join(
        [*parts, f"The same in all recipes: {equal}.", table(meanings, ["setting", "meaning"])]
    )


def _cell(column: str, name: str) -> str:
    recipe, stated = RECIPES[column].recipe, RECIPES[column].stated
    if name in without_effect(recipe):
        return "-"
    value = getattr(recipe, name)
    return f"{'none' if value == '' else value}{'' if name in stated else ' *'}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    argparse.ArgumentParser(prog="python -m common.train.recipes", description=__doc__).parse_args(
        argv
    )
    print(markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
