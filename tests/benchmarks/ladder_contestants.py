"""The contestants of ladder.py: how each is trained, and the figures it is judged by."""

import argparse
import itertools
import json
import runpy
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from cached import new_model
from protocols import EPOCHS
from torch import Tensor
from torch.nn.functional import cross_entropy

from common.console import Stopwatch
from common.export.calibrate import calibration_error
from common.train import checkpoint, recipes
from common.train.compute import choose_compute
from common.train.dataset import EvalViews, Organized, make_loader
from common.train.loop import evaluate
from common.train.metrics import Judged, f1_per_class, join, judge
from common.train.recipe_flags import arguments, channels

MODEL_FLAGS = ("backbone", "backbone-args", "image-size", "pixel-mean", "pixel-std")


@dataclass(frozen=True)
class Task:
    """One run: a contestant at a size and a seed, with equal `passes` or equal `time`."""

    seed: int
    size: int
    name: str
    equal: str = "passes"


@dataclass(frozen=True)
class Trained:
    """What a contestant is judged by: its outcomes, the passes over the photos that it took, and
    how many settings it tried.
    """

    judged: Judged
    passes: int
    seconds: float
    tried: int = 1


def run_folder(args: argparse.Namespace, task: Task) -> Path:
    """Where a run keeps what it writes; beside it stands its .log."""
    name = "".join(c if c.isalnum() else "_" for c in task.name)
    return args.out / "runs" / f"{task.size}_{task.seed}_{task.equal}_{name}"


def scaled(name: str, passes: int) -> list[str]:
    """Flags that scale a recipe's epochs to so many in all, each phase at least one; the frozen
    phases have no more cached views than epochs.
    """
    recipe = asdict(recipes.get(name))
    wanted = np.array([recipe[key] for key in EPOCHS], float)
    passes = max(passes, np.count_nonzero(wanted))
    exact = wanted * passes / wanted.sum()
    epochs = np.where(wanted > 0, np.maximum(np.floor(exact), 1), 0)
    while epochs.sum() != passes:  # largest remainder
        step = 1 if epochs.sum() < passes else -1
        open_ = (wanted > 0) & (epochs + step >= 1)
        epochs[np.argmax(np.where(open_, step * (exact - epochs), -np.inf))] += step
    views = min(recipe["cached_views"], int(epochs[0]), int(epochs[3]))
    return [
        *(f"--{k.replace('_', '-')}={int(n)}" for k, n in zip(EPOCHS, epochs, strict=True)),
        f"--cached-views={views}",
    ]


def by_recipe(
    words: list[str], args: argparse.Namespace, data: Organized, task: Task, passes: int
) -> Trained:
    """Train with 02a and 02b as a person would run them; recipe `auto` decides its own passes."""
    name, folder = words[words.index("--recipe") + 1], run_folder(args, task)
    machine = [f"--data={data.root}", f"--checkpoints={folder}", f"--seed={task.seed}"]
    machine += [f"--device={args.device}", f"--workers={args.workers}"]
    machine += [f"--precision={args.precision}"]
    machine += ["--compile=off"] if args.jobs > 1 else []  # compiling takes the others' cores
    model = [f"--{key}={getattr(args, key.replace('-', '_'))}" for key in MODEL_FLAGS]
    length = scaled(name, passes) if passes and name != "auto" else []
    clock = Stopwatch()
    for script, flags in (
        ("02a_train_species", [f"--weights={args.weights}", *model, *length, *words]),
        ("02b_train_disease", []),  # it takes the settings of 02a
    ):
        if code := import_module(script).main([*machine, *args.flag, *flags]):
            raise RuntimeError(f"{script} ended with exit code {code}")
    seconds = clock()
    best = checkpoint.find_best(folder / "hierarchical_full")
    best = best or checkpoint.find_best(folder / "species_only")
    compute = choose_compute(args.device, "fp32")
    net = checkpoint.build_model(checkpoint.load(best)).to(compute.device)
    size = net.settings["image_size"]  # a flag of the contestant may change it
    judged = evaluate(net, batches(args, data, args.judge, size), compute)
    return Trained(judged, passes_taken(folder), seconds)


def passes_taken(folder: Path) -> int:
    """Passes over the photos that a run of 02a and 02b took: its epochs; where a frozen phase
    learns from stored features, their views.
    """
    passes = 0
    for log in folder.glob("*/log.jsonl"):
        views = json.loads((log.parent / "config.json").read_text())["cached_views"]["value"]
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        frozen = Counter(row["phase"] for row in rows if row["backbone_lr"] == 0)
        passes += len(rows) - sum(max(0, n - views) for n in frozen.values() if views)
    return passes


def batches(args: argparse.Namespace, data: Organized, split: str, size: int = 0) -> Any:
    """Pictures of a split as the served model sees them, and their classes."""
    return make_loader(EvalViews(data.splits[split], size or args.image_size), args.workers)


def linear_probe(
    words: list[str], args: argparse.Namespace, data: Organized, task: Task, passes: int
) -> Trained:
    """Logistic regression over all classes on features of the untouched backbone; val chooses how
    it is regularised.
    """
    compute, clock = choose_compute(args.device, "fp32"), Stopwatch()
    model = new_model(args, data.tree, task.seed, compute)

    def extract(split: str) -> list[Tensor]:
        with torch.inference_mode():
            parts = [
                (model.features(images.to(compute.device)).cpu(), y)
                for images, y in batches(args, data, split)
            ]
        return [torch.cat(part).clone() for part in zip(*parts, strict=True)]

    (train, truth), (val, val_truth) = extract("train"), extract("val")
    mean, std = train.mean(0), train.std(0) + 1e-6

    def fit(decay: float) -> torch.nn.Linear:
        linear = torch.nn.Linear(train.shape[1], data.tree.num_classes)
        torch.nn.init.zeros_(linear.weight)
        optimizer = torch.optim.LBFGS(
            linear.parameters(), max_iter=300, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = cross_entropy(linear((train - mean) / std), truth)
            value = value + decay * linear.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        return linear.requires_grad_(False)

    fitted = [fit(decay) for decay in (1e-5, 1e-4, 1e-3, 1e-2)]
    right = [(net((val - mean) / std).argmax(1) == val_truth).float().mean() for net in fitted]
    best = fitted[int(torch.stack(right).argmax())]
    seconds = clock()
    features, class_idx = extract(args.judge)
    probs = best((features - mean) / std).softmax(1).numpy()
    return Trained(judge(probs, class_idx.numpy(), data.tree), 1, seconds, len(fitted))


def by_timm(
    words: list[str], args: argparse.Namespace, data: Organized, task: Task, passes: int
) -> Trained:
    """Train one softmax over all classes with timm's train.py, once for each of the alternatives in
    `words`; its best epoch on val is judged, and of the alternatives the best on val.
    """
    folder, on_gpu = run_folder(args, task), choose_compute(args.device, "fp32").on_gpu
    model = new_model(args, data.tree, task.seed, choose_compute("cpu", "fp32"))
    net = timm.create_model(
        args.backbone, num_classes=data.tree.num_classes, **arguments(args.backbone_args)
    )
    net.load_state_dict(model.backbone.state_dict(), strict=False)  # the head stays random
    folder.mkdir(parents=True)
    torch.save(net.state_dict(), folder / "start.pth")
    photos, size = data.root / "timm", str(args.image_size)
    common = ["--data-dir", photos, "--val-split", "validation", "--class-map"]
    common += [photos / "classes.txt", "--model", args.backbone, "--input-size", "3", size, size]
    common += ["--num-classes", data.tree.num_classes, "--initial-checkpoint", folder / "start.pth"]
    common += ["--epochs", passes, "--cooldown-epochs", 0, "--seed", task.seed]
    common += ["--workers", max(1, args.workers), "--device", "cuda" if on_gpu else "cpu"]
    common += ["--output", folder, "--checkpoint-hist", 1, "--log-interval", 1000]
    common += ["--amp", "--amp-dtype", "bfloat16"] if on_gpu and args.precision != "fp32" else []
    for flag, values in (("mean", args.pixel_mean), ("std", args.pixel_std)):
        if numbers := channels(f"pixel_{flag}", values):
            common += [f"--{flag}", *numbers]
    if args.backbone_args:
        common += ["--model-kwargs", *args.backbone_args.split(",")]
    clock, scores = Stopwatch(), {}
    for flags in itertools.product(*(word.split("|") for word in words[1:])):
        one = folder / str(len(scores))
        sys.argv = ["train.py", *map(str, [*common, "--experiment", one.name, *flags])]
        runpy.run_path(str(args.timm), run_name="__main__")
        summary = np.genfromtxt(one / "summary.csv", delimiter=",", names=True)
        scores[one] = np.max(summary["eval_top1"] - 1e-6 * summary["eval_loss"])
    seconds = clock()
    saved = torch.load(max(scores, key=scores.get) / "model_best.pth.tar", weights_only=False)
    net.load_state_dict(saved["state_dict"])
    device = "cuda" if on_gpu else "cpu"
    model, net = model.to(device), net.eval().to(device)
    with torch.inference_mode():
        parts = [
            judge(
                net(model.normalise(images.to(device))).float().softmax(1).cpu().numpy(),
                class_idx.numpy(),
                data.tree,
            )
            for images, class_idx in batches(args, data, args.judge)
        ]
    return Trained(join(parts), passes, seconds, len(scores))


KINDS = {"--recipe": by_recipe, "probe": linear_probe, "timm": by_timm}


def figures(trained: Trained, data: Organized) -> dict[str, float]:
    """Sum a run up. Few-shot: the third of the classes with the fewest train photos. Calibration is
    that of the probabilities as they come, before 03 fits any temperature.
    """
    judged, classes = trained.judged, data.tree.num_classes
    right = judged.joint == judged.class_idx
    f1 = f1_per_class(judged.class_idx, judged.joint, classes)
    few = np.argsort(data.train_sizes, kind="stable")[: classes // 3]
    return {
        "species": float((judged.species == data.tree.class_species[judged.class_idx]).mean()),
        "both": float(right.mean()),
        "macro_f1": float(np.nanmean(f1)),
        "few_f1": float(np.nanmean(f1[few])),
        "ece": calibration_error(judged.confidence, right),
        "nll": float((judged.species_nll + judged.disease_nll).mean()),
        "passes": trained.passes,
        "minutes": trained.seconds / 60,
        "tried": trained.tried,
        "train": len(data.splits["train"]),
        "val": len(data.splits["val"]),
        "judged": len(right),
    }
