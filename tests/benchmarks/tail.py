"""Ways to treat rare classes on a long-tailed version of a data set: many, medium and few, mean and
spread over seeds.

  python tests/benchmarks/tail.py --data data/organized --weights FILE [--backbone-args ...
  --pixel-mean ... --pixel-std ...]

Each seed makes a long tail of its own of the train split (which classes are rare, and which of
their pictures stay); val and test stay as they are. Heads are trained plainly on cached features of
the frozen backbone, or, with --finetune-epochs, of one that was trained on the long tail first;
then each method goes on from them. Val chooses tau; test is reported."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cached import add_flags, judged_splits, new_model  # noqa: E402  (the benchmark beside this one)

from common.console import progress, say, table  # noqa: E402
from common.train import recipes  # noqa: E402
from common.train.cached_features import cache_views  # noqa: E402
from common.train.compute import Compute, choose_compute  # noqa: E402
from common.train.dataset import (  # noqa: E402
    EpochSampler,
    Organized,
    Split,
    TrainViews,
    boost_weights,
    load_organized,
    make_loader,
    rare_weights,
)
from common.train.loop import seed_step  # noqa: E402
from common.train.model import SwinHierarchical  # noqa: E402
from common.train.recipes import Recipe  # noqa: E402
from common.train.shots import by_size  # noqa: E402
from common.train.tail import Method, Schedule, adjusted_loss, answer, head_state, retrain_heads  # noqa: E402

State = dict[str, Tensor]


def long_tail(split: Split, classes: int, largest: int, smallest: int, seed: int) -> Split:
    """Keep a part of the pictures: class sizes fall geometrically from `largest` to `smallest`, as
    far as a class has so many."""
    rng = np.random.default_rng([seed, 4])
    rank = rng.permutation(classes)
    sizes = np.round(largest * (smallest / largest) ** (rank / max(classes - 1, 1))).astype(int)
    order = rng.permutation(len(split))
    keep = np.sort(
        np.concatenate(
            [
                order[split.class_idx[order] == class_idx][: sizes[class_idx]]
                for class_idx in range(classes)
            ]
        )
    )
    return replace(
        split,
        **{
            name: getattr(split, name)[keep]
            for name in ("file", "offset", "size", "class_idx", "width", "height")
        },
    )


def fine_tune(
    model: SwinHierarchical,
    split: Split,
    recipe: Recipe,
    args: argparse.Namespace,
    seed: int,
    compute: Compute,
) -> None:
    """Train everything with plain cross-entropy on shuffled pictures; what an earlier run made is
    loaded."""
    done = args.store / f"finetuned_{seed}_{args.finetune_epochs}_{len(split)}.pt"
    if done.is_file():
        model.load_state_dict(torch.load(done, weights_only=True))
        return
    sampler = EpochSampler(len(split), args.batch_size, seed)
    loader = make_loader(TrainViews(split, recipe, seed), args.workers, sampler=sampler)
    model.train().requires_grad_(True)
    groups = [
        {"params": list(model.backbone.parameters()), "share": 1.0},
        {"params": model.head_parameters("all"), "share": args.head_share},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.finetune_lr, weight_decay=0.05, fused=True)
    prior = [
        torch.zeros(n, device=compute.device)
        for n in (model.tree.num_species, model.tree.num_classes)
    ]
    steps = args.finetune_epochs * len(sampler)
    for epoch in progress(
        range(args.finetune_epochs), desc=f"fine-tuning, seed {seed}", unit="epoch"
    ):
        sampler.epoch = epoch
        for step, (images, class_idx) in enumerate(loader):
            seed_step(seed, epoch, step)
            for group in optimizer.param_groups:
                group["lr"] = (
                    args.finetune_lr
                    * group["share"]
                    * 0.5
                    * (1 + np.cos(np.pi * (epoch * len(sampler) + step) / steps))
                )
            with compute.autocast():
                features = model.features(images.to(compute.device))
            loss = adjusted_loss(
                model,
                model.neck(features),
                class_idx.to(compute.device),
                prior,
                None,
                Schedule(smoothing=0.1),
            ).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    torch.save(model.state_dict(), done)
    model.eval()


def contestants(
    train: Callable[..., State], random: State, sampling: dict[str, np.ndarray]
) -> dict[str, State]:
    """Train heads by every method, all for as long; `train(start, method, weights, focal, epochs,
    rate)` goes on from `start`."""
    cross, prior = Method("heads"), Method("heads", prior=1.0)
    half = train(random, cross)  # plain heads, from which the others go on

    def source(name: str, method: Method, focal: bool) -> State:
        """The source's two phases: rare classes weighted, then boosted, at half the rate for a
        quarter of the epochs."""
        first = train(random, method, sampling[f"{name} rare"], focal, 1.5)
        return train(first, method, sampling[f"{name} boost"], focal, 0.5, 0.5)

    plain, balanced = train(half, cross), train(half, prior)
    return {
        "plain": plain,
        "focal": train(train(random, cross, None, True), cross, None, True),
        "source: focal, sampler 80/50, boost": source("given", cross, True),
        "source: focal, sampler few/medium, boost": source("scaled", cross, True),
        "sampler few/medium, boost": source("scaled", cross, False),
        "balanced sampling (cRT)": train(half, "balanced_sampling"),
        "lws": train(half, "lws"),
        "tau": train(plain, "tau"),
        "half of balanced softmax's prior": train(half, Method("heads", prior=0.5)),
        "balanced softmax": balanced,
        "balanced softmax from random heads": train(train(random, prior), prior),
        "balanced softmax + tau": train(balanced, "tau"),
        "balanced softmax + balanced sampling": train(
            half, Method("heads", prior=1.0, sampling="balanced")
        ),
        "balanced softmax + sampler few/medium, boost": source("scaled", prior, False),
        "balanced softmax + focal": train(half, prior, None, True),
        "balanced softmax + focal + sampler, boost": source("scaled", prior, True),
    }


def one_seed(
    args: argparse.Namespace, data: Organized, seed: int, compute: Compute
) -> dict[str, dict[str, dict[str, float]]]:
    """Make the long tail of a seed and judge every method on test: {method: {many | medium | few |
    all: figures}}."""
    recipe = replace(
        recipes.get(args.recipe),
        image_size=args.image_size,
        batch_size=args.batch_size,
        mix_share=0.0,
    )
    split = long_tail(
        data.splits["train"], data.tree.num_classes, args.largest, args.smallest, seed
    )
    counts = np.bincount(split.class_idx, minlength=data.tree.num_classes)
    model, places = new_model(args, data.tree, seed, compute), argparse.Namespace(**vars(args))
    if args.finetune_epochs:
        fine_tune(model, split, recipe, args, seed, compute)
        places.store = args.store / f"finetuned_{seed}"
    features = cache_views(
        model,
        split,
        recipe,
        compute,
        places.store / f"tail_{seed}",
        args.views,
        seed,
        args.workers,
        args.batch_size,
        manifest_hash=data.manifest_hash,
    )
    judged = judged_splits(model, data, compute, places)
    scaled = replace(recipe, rare_below=args.medium + 1, very_rare_below=args.few + 1)
    sampling = {
        f"{name} {kind}": weigh(split, counts, r)
        for name, r in (("given", recipe), ("scaled", scaled))
        for kind, weigh in (("rare", rare_weights), ("boost", boost_weights))
    }

    def train(
        start: State,
        method: Method | str,
        weights: np.ndarray | None = None,
        focal: bool = False,
        epochs: float = 1.0,
        rate: float = 1.0,
    ) -> State:
        loss = {"gamma": 2.0, "alpha": 0.25, "smoothing": 0.1} if focal else {}
        schedule = Schedule(
            epochs=round(args.epochs * epochs),
            lr=args.lr * rate,
            batch_size=args.batch_size,
            **loss,
        )
        model.load_state_dict(start, strict=False)
        return retrain_heads(
            model, features, judged["val"], method, counts, schedule, seed, compute, weights
        )

    fresh = head_state(new_model(args, data.tree, seed, compute))
    return {
        name: by_size(
            answer(model, judged["test"], compute, state), data.tree, counts, args.few, args.medium
        )
        for name, state in contestants(train, fresh, sampling).items()
    }


def main() -> None:
    """Print the tables."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(flags)
    flags.add_argument("--recipe", default="hierarchical", help="whose augmentation is used")
    flags.add_argument("--epochs", type=int, default=30, help="of the heads")
    flags.add_argument("--lr", type=float, default=2e-3)
    flags.add_argument("--views", type=int, default=4)
    flags.add_argument(
        "--largest", type=int, default=45, help="train pictures of the largest class"
    )
    flags.add_argument("--smallest", type=int, default=3)
    flags.add_argument(
        "--few", type=int, default=8, help="a class with at most so many train pictures has few"
    )
    flags.add_argument("--medium", type=int, default=20)
    flags.add_argument(
        "--finetune-epochs", type=int, default=0, help="0: the backbone stays as its weights are"
    )
    flags.add_argument("--finetune-lr", type=float, default=5e-4)
    flags.add_argument(
        "--head-share",
        type=float,
        default=4.0,
        help="the heads' rate while fine-tuning, as a multiple of the backbone's",
    )
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    data, compute = load_organized(args.data), choose_compute(args.device, args.precision)
    args.store.mkdir(parents=True, exist_ok=True)
    found = [one_seed(args, data, seed, compute) for seed in range(args.seeds)]
    (args.store / "tail.json").write_text(json.dumps(found, indent=1))
    tree, train = data.tree, data.splits["train"]
    for seed in range(args.seeds):
        sizes = np.sort(
            np.bincount(
                long_tail(train, tree.num_classes, args.largest, args.smallest, seed).class_idx,
                minlength=tree.num_classes,
            )
        )
        say(
            f"seed {seed}: {sizes.sum():,} train pictures, per class {sizes[-1]} to {sizes[0]}, "
            f"median {np.median(sizes):g}; "
            + ", ".join(
                f"{found[seed]['plain'][g]['classes']} classes with {g}"
                for g in ("many", "medium", "few")
            )
        )

    def cells(name: str, picks: list[tuple[str, str]]) -> list[str]:
        values = 100 * np.array(
            [[run[name][group][what] for group, what in picks] for run in found]
        )
        spread = values.std(0, ddof=1) if len(found) > 1 else 0 * values[0]
        return [f"{m:.1f} ({s:.1f})" for m, s in zip(values.mean(0), spread, strict=True)]

    for what in ("f1", "acc"):
        say(
            "",
            f"{what}, %: mean (standard deviation) over {args.seeds} seeds; cascade by size of "
            f"class, then all classes",
        )
        picks = [(g, f"cascade_{what}") for g in ("many", "medium", "few", "all")]
        picks += [
            ("few", f"disease_{what}"),
            ("all", f"disease_{what}"),
            ("all", f"species_{what}"),
        ]
        say(
            table(
                [[name, *cells(name, picks)] for name in found[0]],
                (
                    "method",
                    "many",
                    "medium",
                    "few",
                    "all",
                    "few, disease",
                    "all, disease",
                    "all, species",
                ),
            )
        )
    if args.seeds > 1:
        say("", "difference to plain on equal pictures, points, with its standard error")
        picks = [(g, "cascade_f1") for g in ("many", "medium", "few", "all")] + [
            ("all", "cascade_acc"),
            ("few", "cascade_acc"),
        ]
        rows = []
        for name in found[0]:
            off = 100 * np.array(
                [[run[name][g][w] - run["plain"][g][w] for g, w in picks] for run in found]
            )
            rows.append(
                [name]
                + [
                    f"{m:+.1f} ({s:.1f})"
                    for m, s in zip(
                        off.mean(0), off.std(0, ddof=1) / len(found) ** 0.5, strict=True
                    )
                ]
            )
        say(
            table(
                rows, ("method", "many F1", "medium F1", "few F1", "all F1", "all acc", "few acc")
            )
        )


if __name__ == "__main__":
    main()
