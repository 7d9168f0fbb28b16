"""Contestants on 500 to 4,000 real photos: Foliar's recipes, a linear probe, timm's own train.py.

  python tests/benchmarks/ladder.py --data data/organized --weights FILE --timm train.py \
      --image-size 160 --equal passes time
  python tests/benchmarks/ladder.py ... --judge val --only auto foliar \
      --contestant "auto, mixed=--recipe auto --mix-share 0.5"
      to try something: val alone is looked at

Per seed the photos are split anew, whole groups at a time (70 : 15 : 15 of each class). A size is
a number of photos in all: that share of each class's train and val photos is learned from and
chosen on, and the photos of a smaller size are among those of a larger one. Test is the whole test
split of the seed at every size, so that figures compare.

Contestants have the same backbone, weights, image size and photos, and choose on val. --equal
passes: each learns from as many passes over the photos as the --reference took (or --passes). time:
each gets the passes that fill the reference's time, by its own seconds a pass; what a tuned
contestant tries besides its choice is not counted. Results are written as they come to
results.jsonl, and a run that stands there is not repeated.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import runpy
import shlex
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from cached import new_model
from ladder_data import read_rows, split_rows, subset, write_cell

from common.console import Stopwatch, duration, fail, say, table
from common.export.calibrate import calibration_error
from common.train import checkpoint, recipes
from common.train.compute import choose_compute
from common.train.dataset import EvalViews, Organized, load_organized, make_loader
from common.train.loop import evaluate
from common.train.metrics import Judged, f1_per_class, join, judge
from common.train.recipe_flags import arguments, channels

PEER = "timm --opt adamw --weight-decay 0.05 --warmup-epochs 1 --smoothing 0.1 --crop-pct 1.0 -b 32"
CONTESTANTS = {  # flags of 02a, of timm's train.py (a|b: val chooses), or the probe
    "auto": "--recipe auto",
    "two_core": "--recipe two_core",
    "foliar": "--recipe foliar",
    "hierarchical": "--recipe hierarchical",
    "linear probe": "probe",
    "timm, its defaults": "timm",
    "timm, AdamW": f"{PEER} --lr 5e-4",
    "timm, tuned": f"{PEER} --lr 2e-4|5e-4|1e-3",
}
MODEL_FLAGS = ("backbone", "backbone-args", "image-size", "pixel-mean", "pixel-std")
EPOCHS = (
    "species_warmup_epochs",
    "species_finetune_epochs",
    "species_final_epochs",
    "disease_heads_epochs",
    "disease_boost_epochs",
    "joint_epochs",
)
# name: factor, decimals, title
FIGURES = {
    "species": (100, 1, "species"),
    "both": (100, 1, "both right"),
    "macro_f1": (100, 1, "macro F1"),
    "few_f1": (100, 1, "few-shot F1"),
    "ece": (100, 1, "ECE"),
    "nll": (1, 3, "NLL"),
    "passes": (1, 0, "passes"),
    "minutes": (1, 1, "minutes"),
}


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


# region contestants


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
    epochs = sum(len(log.read_text().splitlines()) for log in folder.glob("*/log.jsonl"))
    best = checkpoint.find_best(folder / "hierarchical_full")
    best = best or checkpoint.find_best(folder / "species_only")
    compute = choose_compute(args.device, "fp32")
    net = checkpoint.build_model(checkpoint.load(best)).to(compute.device)
    return Trained(evaluate(net, batches(args, data, args.judge), compute), epochs, seconds)


def batches(args: argparse.Namespace, data: Organized, split: str) -> Any:
    """Pictures of a split as the served model sees them, and their classes."""
    return make_loader(EvalViews(data.splits[split], args.image_size), args.workers)


def linear_probe(
    words: list[str], args: argparse.Namespace, data: Organized, task: Task, passes: int
) -> Trained:
    """Logistic regression over all classes on features of the untouched backbone; val chooses how
    it is regularised.
    """
    compute, clock = choose_compute(args.device, "fp32"), Stopwatch()
    model = new_model(args, data.tree, task.seed, compute)
    features, class_idx = {}, {}
    for name in dict.fromkeys(("train", "val", args.judge)):
        with torch.inference_mode():
            parts = [
                (model.features(images.to(compute.device)).cpu(), y)
                for images, y in batches(args, data, name)
            ]
        features[name], class_idx[name] = (torch.cat(part) for part in zip(*parts, strict=True))
    mean, std = features["train"].mean(0), features["train"].std(0) + 1e-6
    features = {name: (values - mean).clone() / std for name, values in features.items()}

    def fit(decay: float) -> torch.nn.Linear:
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
        return linear.requires_grad_(False)

    fitted = [fit(decay) for decay in (1e-5, 1e-4, 1e-3, 1e-2)]
    right = [(net(features["val"]).argmax(1) == class_idx["val"]).float().mean() for net in fitted]
    best = fitted[int(torch.stack(right).argmax())]
    probs = best(features[args.judge]).softmax(1).numpy()
    return Trained(judge(probs, class_idx[args.judge].numpy(), data.tree), 1, clock(), len(fitted))


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


# endregion

# region runs


def run_folder(args: argparse.Namespace, task: Task) -> Path:
    """Where a run keeps what it writes; beside it stands its .log."""
    name = "".join(c if c.isalnum() else "_" for c in task.name)
    return args.out / "runs" / f"{task.size}_{task.seed}_{task.equal}_{name}"


def work(args: argparse.Namespace, task: Task, passes: int) -> None:
    """Do one run, in a process of its own; its output goes to the log, the result beside it."""
    folder = run_folder(args, task)
    shutil.rmtree(folder, ignore_errors=True)  # a run that goes on would have no time
    with folder.with_suffix(".log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if args.jobs > 1:
        torch.set_num_threads(1)
    try:
        data = load_organized(args.out / "cells" / f"{task.size}_{task.seed}")
        words = shlex.split(args.contestants[task.name])
        trained = KINDS[words[0]](words, args, data, task, passes)
        folder.with_suffix(".json").write_text(json.dumps(figures(trained, data)))
        shutil.rmtree(folder, ignore_errors=True)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def setting(args: argparse.Namespace, name: str) -> str:
    """All that a result depends on besides its task."""
    wanted = [args.contestants[name], Path(args.weights).name, args.passes, args.judge]
    return json.dumps(
        [
            *wanted,
            args.precision,
            args.flag,
            *(getattr(args, k.replace("-", "_")) for k in MODEL_FLAGS),
        ]
    )


def finished(args: argparse.Namespace) -> dict[Task, dict[str, Any]]:
    """Results that stand in results.jsonl and were made by these settings."""
    found = {}
    file = args.out / "results.jsonl"
    for line in file.read_text().splitlines() if file.is_file() else ():
        row = json.loads(line)
        task = Task(row["seed"], row["size"], row["name"], row["equal"])
        if task.name in args.contestants and row["setting"] == setting(args, task.name):
            found[task] = row
    return found


def needs(task: Task, args: argparse.Namespace) -> list[Task]:
    """The runs that say how many passes this one takes."""
    reference = Task(task.seed, task.size, args.reference)
    if task.equal == "time":
        return [reference, Task(task.seed, task.size, task.name)]
    return [] if args.passes or task == reference else [reference]


def passes_of(task: Task, args: argparse.Namespace, done: Mapping[Task, dict[str, Any]]) -> int:
    """Passes that a run takes; 0 = what its own recipe says."""
    rows = [done[other] for other in needs(task, args)]
    if task.equal == "time":
        reference, own = rows
        each = own["minutes"] / own["passes"] / own["tried"]
        return max(1, round(reference["minutes"] / each))
    return rows[0]["passes"] if rows else args.passes


def run_all(tasks: list[Task], args: argparse.Namespace, done: dict[Task, dict[str, Any]]) -> None:
    """Run the tasks, --jobs at once, each as soon as what it needs is there."""
    running: dict[int, tuple[Task, Any]] = {}
    left, total = list(tasks), len(tasks)

    def told(task: Task, result: dict[str, Any]) -> None:
        done[task] = {**asdict(task), "setting": setting(args, task.name), **result}
        with (args.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(done[task]) + "\n")
        what = result.get("error") or ", ".join(
            f"{title} {f * result[key]:.{digits}f}" for key, (f, digits, title) in FIGURES.items()
        )
        at = f"{total - len(left) - len(running)} of {total}"
        say(f"{at}: {task.size} photos, seed {task.seed}, equal {task.equal}, {task.name}: {what}")
        (args.out / "ladder.md").write_text(report(done, args) + "\n")

    while left or running:
        for task in list(left):
            before = needs(task, args)
            if len(running) >= args.jobs or not all(other in done for other in before):
                continue
            left.remove(task)
            if failed := [other.name for other in before if "error" in done[other]]:
                told(task, {"error": f"{failed[0]} failed, which says how many passes this takes"})
                continue
            process = multiprocessing.get_context("fork").Process(
                target=work, args=(args, task, passes_of(task, args, done))
            )
            process.start()
            running[process.sentinel] = task, process
        for sentinel in wait(list(running)):
            task, process = running.pop(sentinel)
            process.join()
            file = run_folder(args, task).with_suffix(".json")
            if process.exitcode == 0:
                told(task, json.loads(file.read_text()))
            else:
                log = file.with_suffix(".log").read_text().strip().splitlines()
                last = log[-1][:160] if log else "nothing was printed"
                told(task, {"error": f"exit code {process.exitcode}: {last}"})


# endregion

# region the table


def mean_and_spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Mean (standard deviation over seeds); of one seed, the value alone."""
    text = f"{np.mean(values):{sign}.{digits}f}"
    return f"{text} ({np.std(values, ddof=1):.{digits}f})" if len(values) > 1 else text


def leads(runs: Mapping[str, Mapping[int, dict[str, Any]]], reference: str) -> list[str]:
    """Say by how much the reference is ahead of the best of the others, seed by seed.

    Args:
        runs: {contestant: {seed: result}}.
    """
    lines = []
    own = runs.get(reference, {})
    for key in ("both", "macro_f1"):
        others = {
            name: [own[seed][key] - rows[seed][key] for seed in sorted(own.keys() & rows.keys())]
            for name, rows in runs.items()
            if name != reference and own.keys() & rows.keys()
        }
        if others:
            factor, digits, title = FIGURES[key]
            best = min(others, key=lambda name: np.mean(others[name]))
            ahead = mean_and_spread([factor * x for x in others[best]], digits, "+")
            lines.append(f"{title}: {reference} minus the best other ({best}): {ahead}")
    return lines


def report(done: Mapping[Task, dict[str, Any]], args: argparse.Namespace) -> str:
    """A table per size and kind of equality, and what failed."""
    parts = []
    for equal, size in itertools.product(args.equal, args.sizes):
        runs: dict[str, dict[int, dict[str, Any]]] = {}
        for name, seed in itertools.product(args.only, args.seeds):
            own = done.get(Task(seed, size, name, equal))
            if own is None and not timed(name, args):  # what equal time does not change
                own = done.get(Task(seed, size, name))
            if own and "error" not in own:
                runs.setdefault(name, {})[seed] = own
        rows = [
            [
                name,
                *([f * row[key] for row in found.values()] for key, (f, _, _) in FIGURES.items()),
            ]
            for name, found in runs.items()
        ]
        if not rows:
            continue
        digits = [d for _, d, _ in FIGURES.values()]
        one = next(iter(next(iter(runs.values())).values()))
        parts += [
            f"{size:,} photos ({one['train']:,} train, {one['val']:,} val; {one['judged']:,} of "
            f"{args.judge} judged), equal {equal}, {args.backbone}, {args.image_size} px; mean "
            f"(standard deviation over up to {len(args.seeds)} seeds)",
            table(
                [
                    [name, *(mean_and_spread(v, d) for v, d in zip(values, digits, strict=True))]
                    for name, *values in rows
                ],
                ("contestant", *(title for _, _, title in FIGURES.values())),
            ),
            *leads(runs, args.reference),
            "",
        ]
    failed = [
        f"failed: {task.name}, {task.size} photos, seed {task.seed}, equal {task.equal}: "
        f"{row['error']}"
        for task, row in done.items()
        if "error" in row
    ]
    return "\n".join([*parts, *failed])


def timed(name: str, args: argparse.Namespace) -> bool:
    """Whether equal time asks for another run than equal passes does."""
    return name != args.reference and args.contestants[name] != "probe"


# endregion


def parse() -> argparse.Namespace:
    """Parse the command line."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = flags.add_argument
    add("--data", type=Path, default=Path("data/organized"), help="what 01_reorganize.py wrote")
    add("--weights", required=True, metavar="FILE", help="a timm state dict of the backbone")
    add("--timm", type=Path, metavar="FILE", help="train.py of timm's repository")
    add("--backbone", default="mobilenetv2_100")
    add("--backbone-args", default="", metavar="NAME=VALUE,...")
    add("--pixel-mean", default="timm")
    add("--pixel-std", default="timm")
    add("--image-size", type=int, default=160)
    add("--device", default="auto")
    add("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    add("--workers", type=int, default=1, help="loader processes of each run")
    add("--sizes", type=int, nargs="+", default=[500, 1000, 2000, 4000], help="photos in all")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--only", nargs="+", metavar="NAME", help=", ".join(CONTESTANTS))
    add(
        "--contestant",
        action="append",
        default=[],
        metavar="NAME=FLAGS",
        help="one more, or another in place of one: `NAME=--recipe X --flag ...` of 02a, or "
        "`NAME=timm --lr 1e-3|5e-4` of timm's train.py, where val chooses",
    )
    add("--flag", action="append", default=[], help="a further flag of 02a and 02b: --flag=--X=Y")
    add("--reference", default="auto", help="whose passes and time the others get")
    add("--passes", type=int, default=0, help="passes of all but `auto`; 0: the reference's")
    add("--equal", nargs="+", choices=["passes", "time"], default=["passes"])
    add("--judge", choices=["test", "val"], default="test", help="val: test is never looked at")
    add("--jobs", type=int, default=1, help="runs side by side, each with one thread if many")
    add("--out", type=Path, default=Path("ladder"), help="folder for results, cells and logs")
    args = flags.parse_args()
    args.contestants = CONTESTANTS | dict(one.split("=", 1) for one in args.contestant)
    args.only = args.only or list(args.contestants)
    for name in args.only:
        if name not in args.contestants:
            fail(f"--only {name}: there is no such contestant. {', '.join(args.contestants)}.")
        if args.contestants[name].split()[0] not in KINDS:
            fail(f"--contestant {name} must begin with one of {', '.join(KINDS)}.")
    if args.timm is None:
        args.only = [name for name in args.only if not args.contestants[name].startswith("timm")]
    for path in (Path(args.weights), args.timm):
        if path and not path.is_file():
            fail(f"there is no file {path}.")
    args.data, args.out, args.weights = (
        Path(path).resolve() for path in (args.data, args.out, args.weights)
    )
    return args


def main() -> None:
    """Write the cells, run what is not finished, print the table."""
    args = parse()
    data, rows = load_organized(args.data), read_rows(args.data)
    linked = any(args.contestants[name].startswith("timm") for name in args.only)
    for seed in args.seeds:
        split = split_rows(rows, seed)
        for size in args.sizes:
            kept = subset(rows, split, size, seed)
            write_cell(args.out / "cells" / f"{size}_{seed}", rows, kept, data, linked)
    (args.out / "runs").mkdir(parents=True, exist_ok=True)
    done = finished(args)
    tasks = [
        Task(seed, size, name, equal)
        for equal, seed, size, name in itertools.product(
            dict.fromkeys(("passes", *args.equal)), args.seeds, args.sizes, args.only
        )
        if equal == "passes" or timed(name, args)
    ]
    tasks.sort(key=lambda task: task.name != args.reference)  # the others wait for it
    for other in (other for task in tasks for other in needs(task, args)):
        if other not in tasks and other not in done:
            fail(f"{other.name} is neither finished nor in --only. Add it, or give --passes.")
    left = [task for task in tasks if "error" in done.get(task, {"error": ""})]
    for task in left:
        done.pop(task, None)
    say(f"{len(tasks)} runs, {len(tasks) - len(left)} of them finished; {args.jobs} at once")
    clock = Stopwatch()
    run_all(left, args, done)
    say("", report(done, args), f"time: {duration(clock())}")


if __name__ == "__main__":
    main()
