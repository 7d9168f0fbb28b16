"""Heads trained on K cached views of each picture against exact per-epoch views: what is lost, and
what time is saved.

  python tests/benchmarks/cached.py --data data/organized --weights FILE [--backbone-args ...
  --pixel-mean ... --pixel-std ...]

The backbone is frozen. As many views as there are epochs are stored: then no view comes twice,
which is what drawing them anew in every epoch is (tests/test_cached.py holds stored features
against those of the views). Each seed trains equal heads for the same epochs on all of them and on
1, 2, 4 and 8 drawn among them. Augmentation is that of the recipe, without MixUp and CutMix, which
stored features rule out. Nothing is chosen, so that val and test are judged together. A run that
was stopped goes on.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from few_shot import HeadAnswers, by_size

from common.classes import ClassTree
from common.console import Stopwatch, duration, say, table
from common.train import checkpoint, recipes
from common.train.augment import step_draws
from common.train.cached_features import CachedViews, Extraction, cache_eval, cache_views
from common.train.compute import Compute, choose_compute
from common.train.dataset import EpochSampler, Organized, TrainViews, load_organized
from common.train.losses import focal_loss
from common.train.model import SwinHierarchical
from common.train.recipe_flags import arguments, channels

FIGURES = ("species_acc", "disease_acc", "cascade_acc", "cascade_f1")


def add_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags of the data and the backbone; the names are those of 02a."""
    flags.add_argument("--data", type=Path, default=Path("data/organized"))
    flags.add_argument(
        "--weights", required=True, metavar="FILE", help="a timm state dict or a Foliar checkpoint"
    )
    flags.add_argument("--backbone", default="mobilenetv2_100")
    flags.add_argument("--backbone-args", default="", metavar="NAME=VALUE,...")
    flags.add_argument("--pixel-mean", default="timm")
    flags.add_argument("--pixel-std", default="timm")
    flags.add_argument("--image-size", type=int, default=128)
    flags.add_argument("--batch-size", type=int, default=64)
    flags.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    flags.add_argument("--device", default="auto")
    flags.add_argument("--workers", type=int, default=1)
    flags.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument(
        "--store", type=Path, default=Path("features"), help="folder for features and results"
    )


def new_model(
    args: argparse.Namespace, tree: ClassTree, seed: int, compute: Compute
) -> SwinHierarchical:
    """Build the model: the backbone from --weights, random heads."""
    torch.manual_seed(seed)
    model = SwinHierarchical(
        args.backbone,
        tree,
        image_size=args.image_size,
        backbone_args=arguments(args.backbone_args),
        pixel_stats=(
            channels("pixel_mean", args.pixel_mean),
            channels("pixel_std", args.pixel_std),
        ),
    )
    checkpoint.load_backbone(model, Path(args.weights))
    return model.eval().to(compute.device, memory_format=torch.channels_last)


def judged_splits(
    model: SwinHierarchical, data: Organized, compute: Compute, args: argparse.Namespace
) -> dict[str, CachedViews]:
    """Features of val and test."""
    extraction = Extraction(model, compute, args.batch_size, args.workers, data.manifest_hash)
    return {
        name: cache_eval(extraction, data.splits[name], args.store / name)
        for name in ("val", "test")
    }


class Chosen:
    """Some of the stored views, as if they alone were stored."""

    def __init__(self, store: CachedViews, views: np.ndarray) -> None:
        self.store, self.views, self.count = store, views, store.count

    def batch(self, items: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
        """Read items (epoch, position, i): float32 (n, features), int64 (n,)."""
        return self.store.batch(
            [
                (int(self.views[epoch % len(self.views)]), position, i)
                for epoch, position, i in items
            ]
        )


def retrain_heads(
    model: SwinHierarchical, train: Chosen, args: argparse.Namespace, seed: int, compute: Compute
) -> dict[str, Tensor]:
    """Train the neck and the heads by cross-entropy: AdamW, cosine from `args.lr` to 0. Returns
    their state, on the CPU; the model is left as it was.
    """
    before = head_state(model)
    sampler = EpochSampler(train.count, args.batch_size, seed)
    model.requires_grad_(False)
    learned = list(model.head_parameters("all"))
    for parameter in learned:
        parameter.requires_grad_(True)
    model.neck.train()
    groups = [
        {"params": [p for p in learned if (p.ndim > 1) == decays], "weight_decay": 0.05 * decays}
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=args.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(sampler))
    for epoch in range(args.epochs):
        sampler.start(range(epoch, epoch + 1))
        for step, items in enumerate(sampler):
            features, class_idx = (part.to(compute.device) for part in train.batch(items))
            torch.manual_seed(step_draws(seed, epoch, step)[0])  # dropout of the neck
            loss = head_loss(model, model.neck(features), class_idx).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            schedule.step()
    state = head_state(model)
    model.load_state_dict(before, strict=False)
    return state


def head_loss(model: SwinHierarchical, hidden: Tensor, class_idx: Tensor) -> Tensor:
    """Cross-entropy of species and disease, float32 (N,)."""
    heads, exact = model.disease_heads, {"gamma": 0.0, "alpha": 1.0, "smoothing": 0.0}
    if model.flat:
        return focal_loss(heads.all_logits(hidden), class_idx, **exact)
    species = model.class_species[class_idx]
    loss = focal_loss(model.species_logits(hidden), species, **exact)
    if heads.widest > 1:
        first, sizes = heads.class_of[species][:, 0], heads.sizes[species]
        logits = model.disease_logits(hidden, species)
        loss = loss + focal_loss(logits, class_idx - first, classes=sizes, **exact)
    return loss


def head_state(model: SwinHierarchical) -> dict[str, Tensor]:
    """Copy of everything but the backbone, on the CPU: {name: tensor}."""
    return {
        key: value.detach().cpu().clone()
        for key, value in model.state_dict().items()
        if not key.startswith("backbone.")
    }


@torch.inference_mode()
def answer(
    model: SwinHierarchical,
    cached: CachedViews,
    compute: Compute,
    state: Mapping[str, Tensor] | None = None,
) -> HeadAnswers:
    """Let the heads answer for cached features; `state`, where given, in place of the model's own
    neck and heads.
    """
    before: dict[str, Tensor] = head_state(model) if state else {}
    model.load_state_dict(dict(state or {}), strict=False)
    model.neck.eval()
    parts = []
    for start in range(0, len(cached), 1024):
        stop = min(start + 1024, len(cached))
        features, class_idx = cached.batch([(0, i, i) for i in range(start, stop)])
        hidden = model.neck(features.to(compute.device))
        probs = model.probabilities(hidden, model.species_logits(hidden))
        own = model.class_species[class_idx.to(probs.device)]
        by_species = probs.new_zeros(len(probs), model.tree.num_species).index_add_(
            1, model.class_species, probs
        )
        given = probs.masked_fill(model.class_species[None] != own[:, None], -1.0).argmax(1)
        parts.append(
            [class_idx.numpy()]
            + [t.cpu().numpy() for t in (by_species.argmax(1), given, probs.argmax(1))]
        )
    model.load_state_dict(before, strict=False)
    return HeadAnswers(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def compare(
    args: argparse.Namespace, data: Organized, compute: Compute
) -> tuple[float, dict[int, list[dict[str, float]]]]:
    """Train with every number of views: seconds per stored view of all pictures, {views: figures
    per seed}.
    """
    recipe = replace(
        recipes.get(args.recipe),
        image_size=args.image_size,
        batch_size=args.batch_size,
        mix_share=0.0,
    )
    model, split = new_model(args, data.tree, 0, compute), data.splits["train"]
    judged, counts = (
        judged_splits(model, data, compute, args),
        np.bincount(split.class_idx, minlength=data.tree.num_classes),
    )

    def cache(views: int) -> CachedViews:
        extraction = Extraction(model, compute, args.batch_size, args.workers, data.manifest_hash)
        dataset = TrainViews(split, recipe, 0)
        return cache_views(extraction, dataset, views, args.store / "train")

    cache(args.epochs - 1)
    clock, note = Stopwatch(), args.store / "seconds_per_view"
    store = cache(
        args.epochs
    )  # the last view is timed, in a run that goes on with stored ones, too
    if (seconds := clock()) > 1 or not note.is_file():
        note.write_text(f"{seconds:.2f}")
    seconds = float(note.read_text())
    found: dict[int, list[dict[str, float]]] = {views: [] for views in [*args.views, args.epochs]}
    for seed in range(args.seeds):
        model = new_model(args, data.tree, seed, compute)
        order = np.random.default_rng([seed, 5]).permutation(args.epochs)
        for views, figures in found.items():
            clock = Stopwatch()
            state = retrain_heads(model, Chosen(store, order[:views]), args, seed, compute)
            trained = clock()
            parts = [answer(model, features, compute, state) for features in judged.values()]
            both = HeadAnswers(
                *(
                    np.concatenate([getattr(part, name) for part in parts])
                    for name in ("class_idx", "species", "given", "joint")
                )
            )
            figures.append({**by_size(both, data.tree, counts)["all"], "trained": trained})
    return seconds, found


def main() -> None:
    """Print one row per number of views."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(flags)
    flags.add_argument("--recipe", default="hierarchical", help="whose augmentation is used")
    flags.add_argument("--epochs", type=int, default=16)
    flags.add_argument("--lr", type=float, default=2e-3)
    flags.add_argument("--views", type=int, nargs="+", default=[1, 2, 4, 8])
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    data, compute = load_organized(args.data), choose_compute(args.device, args.precision)
    seconds, found = compare(args, data, compute)
    exact = np.array([[run[name] for name in FIGURES] for run in found[args.epochs]])
    rows = []
    for views, runs in found.items():
        values = np.array([[run[name] for name in FIGURES] for run in runs])
        off, heads = (values - exact), float(np.mean([run["trained"] for run in runs]))
        error = off.std(0, ddof=1) / len(runs) ** 0.5
        rows.append(
            [
                f"{views} = exact" if views == args.epochs else views,
                *(
                    f"{m:.4f} ({s:.4f})"
                    for m, s in zip(values.mean(0), values.std(0, ddof=1), strict=True)
                ),
                *(
                    "" if views == args.epochs else f"{off[:, k].mean():+.4f} ({error[k]:.4f})"
                    for k in (2, 3)
                ),
                duration(views * seconds),
                duration(heads),
                f"{(args.epochs * seconds + heads) / (views * seconds + heads):.1f}",
            ]
        )
    say(
        "",
        f"{args.backbone}, {args.image_size} px, {compute}, torch threads "
        f"{torch.get_num_threads()}; {len(data.splits['train']):,} "
        f"train pictures, {args.epochs} epochs; mean (standard deviation) over {args.seeds} "
        f"seeds; differences with their standard error",
        table(
            rows,
            (
                "views",
                "species",
                "disease",
                "cascade",
                "macro F1",
                "cascade - exact",
                "macro F1 - exact",
                "features",
                "heads",
                "times as fast",
            ),
        ),
    )


if __name__ == "__main__":
    main()
