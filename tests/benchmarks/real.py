"""Recipes on real photos against a linear probe and against flat fine-tuning as timm does it, all
with the same image passes.

  python tests/benchmarks/real.py --data data/organized --weights FILE [--backbone-args ... \
      --pixel-mean ... --pixel-std ...]
  python tests/benchmarks/real.py ... --largest 45 --smallest 3
      on a long tail of the same photos, another one per seed

A recipe runs through 02a and 02b as a person would run them, at a budget of two CPU cores: its
epochs are scaled to --passes, the rates of its unfrozen phases by --rate, and its augmentation is
that of recipe `two_core`; everything else is its column. The linear probe is the best of several
regularised logistic regressions on features of the frozen backbone. timm's is timm's own
augmentation, AdamW and cosine. Each is chosen on val and reported on test. A run that was stopped
goes on.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from cached import add_flags, new_model
from few_shot import HeadAnswers, by_size, long_tail

from common.console import Stopwatch, duration, progress, say, table
from common.train import checkpoint, recipes
from common.train.compute import choose_compute
from common.train.dataset import EvalViews, Organized, Split, load_organized, make_loader
from common.train.loop import evaluate
from common.train.machine import keep_memory
from common.train.metrics import Judged, judge
from common.train.recipe_flags import arguments, channels

EPOCHS = (
    "species_warmup_epochs",
    "species_finetune_epochs",
    "species_final_epochs",
    "disease_heads_epochs",
    "disease_boost_epochs",
    "joint_epochs",
)
RATES = (
    "species_finetune_lr",
    "species_finetune_lr_end",
    "species_final_lr",
    "species_final_lr_end",
    "joint_lr",
    "joint_lr_end",
)
LIGHT = ("augment", "tier2_share", "mix_share", "randaugment_ops")
FIGURES = (
    ("all", "species_acc"),
    ("all", "disease_acc"),
    ("all", "cascade_acc"),
    ("all", "cascade_f1"),
    ("few", "cascade_f1"),
)


# region the data


def write_long_tail(data: Organized, folder: Path, args: argparse.Namespace, seed: int) -> Path:
    """Write an organized data set whose train split is the long tail of a seed; pictures stay where
    they are.
    """
    kept = long_tail(data.splits["train"], data.tree.num_classes, args.largest, args.smallest, seed)
    names = {str(kept.path(i).relative_to(data.root)) for i in range(len(kept))}
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (data.root / "manifest.csv").open(newline="") as source,
        (folder / "manifest.csv").open("w", newline="") as target,
    ):
        reader = csv.DictReader(source)
        writer = csv.DictWriter(target, reader.fieldnames or [])
        writer.writeheader()
        writer.writerows(
            {**row, "path": str(data.root.resolve() / row["path"])}
            for row in reader
            if row["split"] != "train" or row["path"] in names
        )
    (folder / "species_index.json").write_text((data.root / "species_index.json").read_text())
    return folder


# endregion

# region contestants


def scaled(name: str, args: argparse.Namespace) -> list[str]:
    """Flags that scale a recipe's epochs to --passes, each phase at least one, and its unfrozen
    rates by --rate.
    """
    recipe = asdict(recipes.get(name))
    wanted = np.array([recipe[key] for key in EPOCHS], float)
    exact = wanted * args.passes / wanted.sum()
    epochs = np.where(wanted > 0, np.maximum(np.floor(exact), 1), 0)
    while epochs.sum() != args.passes:  # largest remainder
        step = 1 if epochs.sum() < args.passes else -1
        open_ = (wanted > 0) & (epochs + step >= 1)
        epochs[np.argmax(np.where(open_, step * (exact - epochs), -np.inf))] += step
    flags = [
        f"--{key.replace('_', '-')}={int(value)}" for key, value in zip(EPOCHS, epochs, strict=True)
    ]
    flags += [f"--{key.replace('_', '-')}={recipe[key] * args.rate:g}" for key in RATES]
    flags += [f"--{key.replace('_', '-')}={getattr(recipes.get('two_core'), key)}" for key in LIGHT]
    return [
        *flags,
        f"--backbone={args.backbone}",
        f"--image-size={args.image_size}",
        f"--batch-size={args.batch_size}",
        f"--backbone-args={args.backbone_args}",
        f"--pixel-mean={args.pixel_mean}",
        f"--pixel-std={args.pixel_std}",
        f"--cached-views={min(recipe['cached_views'], int(epochs[0]), int(epochs[3]))}",
    ]


def by_recipe(name: str, *changed: str) -> Callable[..., Judged]:
    """Train with 02a and 02b; `changed` are further flags."""

    def run(args: argparse.Namespace, data: Organized, seed: int, folder: Path) -> Judged:
        machine = [
            f"--data={data.root}",
            f"--checkpoints={folder}",
            f"--seed={seed}",
            f"--workers={args.workers}",
            f"--device={args.device}",
            f"--precision={args.precision}",
        ]
        flags = [*machine, f"--recipe={name}", *scaled(name, args), *args.flag, *changed]
        for script in (
            ["02a_train_species.py", f"--weights={args.weights}"],
            ["02b_train_disease.py"],
        ):
            with (folder.with_suffix(".log")).open("a") as log:
                subprocess.run(
                    [sys.executable, script[0], *flags, *script[1:]],
                    cwd=ROOT,
                    check=True,
                    stdout=log,
                    stderr=log,
                )
        best = checkpoint.find_best(folder / "hierarchical_full") or checkpoint.find_best(
            folder / "species_only"
        )
        model, compute = (
            checkpoint.build_model(checkpoint.load(best)),
            choose_compute(args.device, "fp32"),
        )
        batches = make_loader(EvalViews(data.splits["test"], args.image_size), args.workers)
        return evaluate(model.to(compute.device), batches, compute)

    return run


def linear_probe(args: argparse.Namespace, data: Organized, seed: int, folder: Path) -> Judged:
    """Logistic regression over all leaves on features of the untouched backbone; val chooses how it
    is regularised.
    """
    compute = choose_compute(args.device, "fp32")
    model = new_model(args, data.tree, seed, compute)
    features, class_idx = {}, {}
    for name, split in data.splits.items():
        with torch.inference_mode():
            parts = [
                (model.features(images.to(compute.device)).cpu(), y)
                for images, y in make_loader(EvalViews(split, args.image_size), args.workers)
            ]
        features[name], class_idx[name] = (torch.cat(part) for part in zip(*parts, strict=True))
    mean, std = features["train"].mean(0), features["train"].std(0) + 1e-6
    features = {name: (values - mean).clone() / std for name, values in features.items()}

    def fit(decay: float) -> Callable[[Tensor], Tensor]:
        linear = torch.nn.Linear(features["train"].shape[1], data.tree.num_classes)
        torch.nn.init.zeros_(linear.weight)
        optimizer = torch.optim.LBFGS(
            linear.parameters(), max_iter=300, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = (
                cross_entropy(linear(features["train"]), class_idx["train"])
                + decay * linear.weight.square().sum()
            )
            value.backward()
            return value

        optimizer.step(loss)
        return lambda x: linear(x).detach()

    fitted = [fit(decay) for decay in (1e-5, 1e-4, 1e-3, 1e-2)]
    best = max(
        fitted,
        key=lambda net: float((net(features["val"]).argmax(1) == class_idx["val"]).float().mean()),
    )
    return judge_flat(best(features["test"]), class_idx["test"], data)


class TimmViews(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A split under one of timm's transforms."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        with Image.open(self.split.path(i)) as picture:
            return self.transform(picture.convert("RGB")), int(self.split.class_idx[i])


def flat_timm(args: argparse.Namespace, data: Organized, seed: int, folder: Path) -> Judged:
    """One softmax over all leaves, timm's defaults: crops of 8 to 100 %, flip, jitter 0.4,
    smoothing 0.1, cosine; with AdamW.
    """
    torch.manual_seed(seed)
    mean, std = channels("pixel_mean", args.pixel_mean), channels("pixel_std", args.pixel_std)
    norm: dict[str, Any] = {"mean": mean, "std": std} if mean else {}
    net = timm.create_model(
        args.backbone, num_classes=data.tree.num_classes, **arguments(args.backbone_args)
    )
    pretrained = torch.load(args.weights, weights_only=True)
    net.load_state_dict(
        {k: v for k, v in pretrained.items() if not k.startswith("classifier.")}, strict=False
    )
    net = net.to(memory_format=torch.channels_last)
    views = {
        name: TimmViews(
            split, create_transform(args.image_size, is_training=name == "train", **norm)
        )
        for name, split in data.splits.items()
    }
    loader = torch.utils.data.DataLoader(
        views["train"], args.batch_size, shuffle=True, drop_last=True, num_workers=args.workers
    )
    optimizer = create_optimizer_v2(net, "adamw", lr=args.timm_lr, weight_decay=0.05)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=args.passes * len(loader),
        lr_min=1e-6,
        warmup_t=len(loader),
        warmup_lr_init=1e-6,
        t_in_epochs=False,
    )
    step, best, answers = 0, -1.0, torch.empty(0)
    for _ in progress(range(args.passes), desc=f"timm, seed {seed}", unit="epoch"):
        net.train()
        for images, class_idx in loader:
            schedule.step_update(step)
            step += 1
            optimizer.zero_grad()
            cross_entropy(
                net(images.to(memory_format=torch.channels_last)), class_idx, label_smoothing=0.1
            ).backward()
            optimizer.step()
        logits, class_idx = _logits(net, views["val"], args)
        if (right := float((logits.argmax(1) == class_idx).float().mean())) > best:
            best, (answers, truth) = right, _logits(net, views["test"], args)
    return judge_flat(answers, truth, data)


@torch.inference_mode()
def _logits(
    net: torch.nn.Module, views: TimmViews, args: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    net.eval()
    parts = [
        (net(images), class_idx)
        for images, class_idx in torch.utils.data.DataLoader(views, 64, num_workers=args.workers)
    ]
    return torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])


def judge_flat(logits: Tensor, class_idx: Tensor, data: Organized) -> Judged:
    """Judge one softmax over all leaves; a species' probability is the sum over its leaves."""
    return judge(
        logits.float().softmax(1).numpy(), class_idx.numpy(), data.tree, logits.argmax(1).numpy()
    )


CONTESTANTS: dict[str, Callable[..., Judged]] = {
    "linear probe": linear_probe,
    "flat, as timm": flat_timm,
    "hierarchical": by_recipe("hierarchical"),
    "hierarchical, plain cross-entropy": by_recipe(
        "hierarchical", "--loss=cross_entropy", "--tail=none"
    ),
    "foliar, no tail treatment": by_recipe("foliar", "--tail=none"),
    "foliar": by_recipe("foliar"),
}


# endregion


def main() -> None:
    """Print the table."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(flags)
    flags.set_defaults(batch_size=32)
    flags.add_argument("--passes", type=int, default=8, help="image passes: epochs of all phases")
    flags.add_argument(
        "--rate",
        type=float,
        default=5.0,
        help="factor of the unfrozen rates, which are those of a Swin",
    )
    flags.add_argument("--timm-lr", type=float, default=5e-4)
    flags.add_argument(
        "--largest",
        type=int,
        default=0,
        help="train pictures of the largest class of a long tail; 0: all pictures",
    )
    flags.add_argument("--smallest", type=int, default=3)
    flags.add_argument(
        "--few",
        type=int,
        default=0,
        help="a class with at most so many train pictures has few (0: 8 of a long tail, else 40)",
    )
    flags.add_argument(
        "--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS), metavar="NAME"
    )
    flags.add_argument(
        "--flag",
        action="append",
        default=[],
        metavar="--NAME=VALUE",
        help="a further flag of 02a and 02b",
    )
    args = flags.parse_args()
    args.few = args.few or (8 if args.largest else 40)
    args.data, args.store, args.weights = (
        Path(p).resolve() for p in (args.data, args.store, args.weights)
    )
    torch.set_num_threads(args.threads or torch.get_num_threads())
    keep_memory()
    whole, found = load_organized(args.data), {name: [] for name in args.only}
    for seed in range(args.seeds):
        data = (
            load_organized(write_long_tail(whole, args.store / f"tail_{seed}", args, seed))
            if args.largest
            else whole
        )
        counts = np.bincount(data.splits["train"].class_idx, minlength=data.tree.num_classes)
        for name in args.only:
            folder = args.store / f"{name.replace(' ', '_').replace(',', '')}_{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            result = folder.with_suffix(".json")
            if not result.is_file():
                clock = Stopwatch()
                judged = CONTESTANTS[name](args, data, seed, folder)
                answers = HeadAnswers(
                    judged.class_idx, judged.species, given(judged, data), judged.joint
                )
                figures = {
                    **by_size(answers, data.tree, counts, args.few, max(20, args.few)),
                    "seconds": clock(),
                }
                result.write_text(json.dumps(figures))
            found[name].append(json.loads(result.read_text()))
            say(
                f"seed {seed}, {name}: "
                + ", ".join(f"{g} {w} {found[name][-1][g][w]:.4f}" for g, w in FIGURES)
            )
    rows = []
    for name, runs in found.items():
        values = 100 * np.array([[run[group][what] for group, what in FIGURES] for run in runs])
        spread = values.std(0, ddof=1) if len(runs) > 1 else np.zeros(len(FIGURES))
        rows.append(
            [
                name,
                *(f"{m:.1f} ({s:.1f})" for m, s in zip(values.mean(0), spread, strict=True)),
                duration(float(np.mean([run["seconds"] for run in runs]))),
            ]
        )
    few = found[args.only[0]][0]["few"]["classes"]
    say(
        "",
        f"{args.backbone}, {args.image_size} px, {args.passes} passes, "
        f"{len(data.splits['train']):,} train and "
        f"{len(data.splits['test']):,} test pictures, {few} classes with at most {args.few}; %: "
        f"mean (standard deviation) over "
        f"{args.seeds} seeds",
        table(
            rows,
            (
                "method",
                "species",
                "disease given species",
                "cascade",
                "macro F1",
                "few-shot F1",
                "time",
            ),
        ),
    )


def given(judged: Judged, data: Organized) -> np.ndarray:
    """Best leaf given the true species; where it is wrong, which one it is does not matter to
    accuracy, and F1 is not asked for.
    """
    wrong = data.tree.offsets[data.tree.class_species[judged.class_idx]]
    wrong = np.where(
        wrong == judged.class_idx,
        wrong + (np.diff(data.tree.offsets)[data.tree.class_species[judged.class_idx]] > 1),
        wrong,
    )
    return np.where(judged.rank == 0, judged.class_idx, wrong)


if __name__ == "__main__":
    main()
