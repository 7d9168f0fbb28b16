"""Every column of the recipe tables on fitting small data, end to end: 01, training, the test
split.

  python tests/benchmarks/protocols.py --flowers DIR --camera-trap DIR --coffee DIR --plants DIR
  python tests/benchmarks/protocols.py ... --weights FILE --backbone mobilenetv2_100 --backbone-args
  pad_type=same --pixel-mean 0.5 \
      --pixel-std 0.5

flowers: a folder per class, for the flat columns but the camera traps'. camera-trap: pictures below
it and labels.csv (file, label, station). coffee: pictures named by id below it and labels.csv (id,
predominant_stress as a number 0 to 4). plants: a folder per species and disease. Data that is not
given is left out, and said so.

Backbone, size, batch and epochs are shrunk by flags; rates, losses, augmentation, frozen parts and
all else stay the column's. Each phase is checked: that its rates in log.jsonl are those of the
column's cosine at that step, that what it freezes ends with the weights it began with, and that
something else moved. The exit code is 1 where a column does not run, a check fails, or its best
checkpoint is right on fewer test pictures than the answer `always the commonest class` is.
"""

import argparse
import contextlib
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from common.console import Stopwatch, duration, say, table
from common.files import write_rows
from common.train import checkpoint, recipes
from common.train.dataset import Organized, load_organized
from common.train.model import SwinHierarchical
from common.train.optim import rate_at, trainable_names
from common.train.recipes import COLUMNS, Phase, Recipe

STRESSES = (
    "healthy",
    "leaf miner",
    "rust",
    "phoma",
    "cercospora",
)  # what the numbers of the coffee set stand for
EPOCHS = (
    "species_warmup_epochs",
    "species_finetune_epochs",
    "species_final_epochs",
    "disease_heads_epochs",
    "disease_boost_epochs",
    "joint_epochs",
)
State = dict[str, torch.Tensor]


class Problem(Exception):
    """What is wrong with a column, in words."""


# region data


def flowers(given: Path, store: Path, args: argparse.Namespace) -> list[object]:
    """Flags of 01 for a folder of flat classes."""
    return [given, "--levels", 1]


def camera_trap(given: Path, store: Path, args: argparse.Namespace) -> list[object]:
    """Flags of 01 for labels in a CSV, split by station, a quarter to test as in the source;
    classes of one or two pictures stay out.
    """
    return [
        given,
        "--labels",
        given / "labels.csv",
        "--columns",
        "file=file",
        "label=label",
        "group=station",
        "--levels",
        1,
        "--small-classes",
        "drop",
        "--test",
        0.25,
    ]


def coffee(given: Path, store: Path, args: argparse.Namespace) -> list[object]:
    """Flags of 01 for a CSV of ids and numbers: a names file says what each number stands for."""
    names = store / "coffee_names.csv"
    write_rows(
        names,
        ("name", "species", "disease"),
        [(number, "coffee", stress) for number, stress in enumerate(STRESSES)],
    )
    return [
        given,
        "--labels",
        given / "labels.csv",
        "--columns",
        "file=id",
        "label=predominant_stress",
        "--names",
        names,
    ]


def plants(given: Path, store: Path, args: argparse.Namespace) -> list[object]:
    """Flags of 01 for folders of species and disease: links to a few pictures of each class."""
    for folder in sorted(p for p in given.iterdir() if p.is_dir()):
        (store / "plants_links" / folder.name).mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir())[: args.per_class]:
            with contextlib.suppress(FileExistsError):
                (store / "plants_links" / folder.name / file.name).symlink_to(file.resolve())
    return [store / "plants_links"]


SETS: dict[str, Callable[[Path, Path, argparse.Namespace], list[object]]] = {
    "flowers": flowers,
    "camera_trap": camera_trap,
    "plants": plants,
    "coffee": coffee,
}


def fitting(column: str) -> tuple[str, ...]:
    """The data sets that fit a column."""
    if recipes.get(column).classes == "hierarchical":
        return ("plants", "coffee")
    return ("camera_trap",) if column.startswith("camera_trap") else ("flowers",)


# endregion

# region a column


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Send what is printed into a file."""
    with path.open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def run(script: str, log: Path, *argv: object) -> None:
    """Call a numbered script's main; what it prints goes into a file. Problem where it ends by
    anything but success.
    """
    code: object = 0
    try:
        with told(log):
            code = importlib.import_module(script).main([str(part) for part in argv])
    except SystemExit as stop:
        code = stop.code
    except Exception as error:
        with log.open("a") as file:
            traceback.print_exc(file=file)
        code = f"{type(error).__name__}: {error}"
    if code:
        last = [line for line in log.read_text().splitlines() if line.startswith("error:")]
        raise Problem(
            f"{script} ended with {code}{' (' + last[-1] + ')' if last else ''}; see {log}"
        )


def shrunk(recipe: Recipe, count: int, passes: int) -> dict[str, int]:
    """Epochs of each phase, scaled so that all of them see about `passes` pictures; at least one,
    never more than the column's.
    """
    whole = asdict(recipe)
    names = EPOCHS if recipe.classes == "hierarchical" else EPOCHS[:3]
    factor = passes / (count * sum(whole[name] for name in names))
    return {
        name: min(whole[name], max(1, round(whole[name] * factor))) if whole[name] else 0
        for name in names
    }


class Step(NamedTuple):
    """A phase as it was run: rows of log.jsonl, weights before and after, steps per epoch."""

    phase: Phase
    rows: list[dict[str, Any]]
    before: State
    after: State


def read(path: Path) -> State:
    """Weights that a checkpoint hands on: the average where there is one."""
    payload = checkpoint.load(path)
    return payload["ema"] or payload["model"]


def steps_of(recipe: Recipe, first: State, checkpoints: Path) -> Iterator[Step]:
    """The phases of a finished column, in order, from what lies in its run folders. Problem where
    something is missing there.
    """
    before = first
    for folder, phases, pattern in (
        ("species_only", recipes.species_phases(recipe), "epoch={:02d}-val_loss=*.pt"),
        ("disease_heads", recipes.disease_phases(recipe), "disease_heads_epoch={:02d}.pt"),
        ("hierarchical_full", recipes.joint_phases(recipe), "last.pt"),
    ):
        log = checkpoints / folder / "log.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()] if phases else []
        if list(dict.fromkeys(row["phase"] for row in rows)) != [phase.name for phase in phases]:
            raise Problem(
                f"{log} does not hold the phases {', '.join(phase.name for phase in phases)}"
            )
        for phase in phases:
            own = [row for row in rows if row["phase"] == phase.name]
            if len(own) != phase.epochs and not own[-1].get("stopped_early"):
                raise Problem(f"{phase.name} took {len(own)} of {phase.epochs} epochs")
            ends = folder == "disease_heads" and phase is phases[-1]
            name = "disease_heads_final.pt" if ends else pattern.format(own[-1]["epoch"])
            found = sorted((checkpoints / folder).glob(name))
            if not found:
                raise Problem(f"{phase.name} left no {name}")
            after = read(found[-1])
            yield Step(phase, own, before, after)
            before = after
        if folder == "species_only":
            before = read(checkpoint.find_best(checkpoints / folder))


def check(step: Step, recipe: Recipe, count: int, model: SwinHierarchical) -> str:
    """Hold a phase's log and weights against what it should be; returns it in words. Problem where
    they differ.
    """
    phase, steps = step.phase, max(1, count // recipe.batch_size)
    for k, row in enumerate(step.rows):
        expected = rate_at(phase, (k + 1) * steps - 1, phase.epochs * steps)
        if not np.isclose(row["lr"], expected, rtol=1e-9):
            raise Problem(
                f"{phase.name}: the rate after epoch {k + 1} is {row['lr']:g}, not {expected:g}"
            )
        if (row["backbone_lr"] == 0) != phase.frozen:
            raise Problem(f"{phase.name}: the backbone's rate is {row['backbone_lr']:g}")
    moved = {key for key, value in step.after.items() if not torch.equal(value, step.before[key])}
    trained = {
        f"backbone.{name}"
        for name in trainable_names(model.backbone, 0.0 if phase.frozen else phase.unfreeze)
    }
    weights = {name for name, _ in model.named_parameters()}
    backbone = {name for name in weights if name.startswith("backbone.")}
    if strayed := sorted((moved & backbone) - trained):
        raise Problem(f"{phase.name}: {len(strayed)} frozen weights moved, such as {strayed[0]}")
    if phase.frozen and (strayed := sorted(key for key in moved if key.startswith("backbone."))):
        raise Problem(f"{phase.name}: the frozen backbone's {strayed[0]} moved")
    other = {"species": "disease_heads.", "disease": "species_head."}.get(phase.heads)
    if other and (strayed := [key for key in moved if key.startswith(other)]):
        raise Problem(f"{phase.name}: {strayed[0]} moved")
    something = (
        phase.disease_weight > 0 or model.tree.num_species > 1
    )  # a single species leaves stage A nothing to learn
    if something and (not moved & weights or len(moved & trained) < 0.9 * len(trained)):
        raise Problem(
            f"{phase.name}: only {len(moved & trained)} of the backbone's {len(trained)} weights "
            f"that learn moved"
        )
    last = step.rows[-1]
    part = (
        f"{len(moved & backbone)} of {len(backbone)} weights of the backbone at the end by "
        f"{last['backbone_lr']:.2g}"
    )
    return (
        f"{phase.name}: {last['epoch'] - step.rows[0]['epoch'] + 1} x, {phase.lr:g} -> "
        f"{last['lr']:.2g}, " + ("backbone still" if phase.frozen else part)
    )


def one_column(column: str, data: Organized, folder: Path, args: argparse.Namespace) -> list[str]:
    """Train and judge a column; returns its row. Problem where it does not run, or not as the table
    says.
    """
    clock, count = Stopwatch(), len(data.splits["train"])
    epochs = shrunk(recipes.get(column), count, args.passes)
    changed = {
        "backbone": args.backbone,
        "backbone_args": args.backbone_args,
        "image_size": args.image_size,
        "batch_size": args.batch_size,
        "pixel_mean": args.pixel_mean,
        "pixel_std": args.pixel_std,
        **epochs,
    }
    folder.mkdir(parents=True, exist_ok=True)
    machine = [
        "--data",
        data.root,
        "--checkpoints",
        folder,
        "--workers",
        args.workers,
        "--precision",
        "fp32",
        "--device",
        args.device,
    ]
    log, flags = (
        folder / "log.txt",
        [
            part
            for name, value in changed.items()
            for part in (f"--{name.replace('_', '-')}", value)
        ],
    )
    run("02a_train_species", log, "--recipe", column, "--weights", args.weights, *machine, *flags)
    best = checkpoint.find_best(folder / "species_only")
    recipe = Recipe(**checkpoint.load(best)["recipe"])
    if odd := [
        name
        for name, value in asdict(recipe).items()
        if value != {**asdict(recipes.get(column)), **changed}[name]
    ]:
        raise Problem(f"{odd[0]} is not the column's")
    if recipe.classes == "hierarchical":
        run("02b_train_disease", log, *machine)
        best = checkpoint.find_best(folder / "hierarchical_full")
    with told(log):
        first = importlib.import_module("02a_train_species").new_model(
            args.weights, 0, recipe, data.tree
        )
    phases = [
        check(step, recipe, count, first) for step in steps_of(recipe, first.state_dict(), folder)
    ]
    script = "02b_train_disease" if recipe.classes == "hierarchical" else "02a_train_species"
    run(script, log, "--evaluate", best, "--split", "test", *machine)
    metrics = json.loads((best.with_name(f"{best.stem} on test") / "report.json").read_text())[
        "metrics"
    ]
    class_idx = data.splits["test"].class_idx
    commonest = np.bincount(class_idx).max() / len(class_idx)
    row = [
        column,
        data.root.name,
        f"{data.tree.num_classes}",
        " + ".join(str(len(s)) for s in data.splits.values()),
        "; ".join(phases),
        f"{metrics['cascade_top1']:.3f}",
        f"{1 / data.tree.num_classes:.3f}",
        f"{commonest:.3f}",
        duration(clock()),
    ]
    return row + ["" if metrics["cascade_top1"] >= commonest else "BELOW THE COMMONEST CLASS"]


# endregion


def parse() -> argparse.Namespace:
    """Parse the command line."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name in SETS:
        flags.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="DIR")
    flags.add_argument(
        "--weights",
        default="none",
        metavar="FILE",
        help="a timm state dict of --backbone (default: random weights)",
    )
    flags.add_argument("--backbone", default="test_resnet", help="in place of every column's own")
    flags.add_argument("--backbone-args", default="", metavar="NAME=VALUE,...")
    flags.add_argument("--pixel-mean", default="timm")
    flags.add_argument("--pixel-std", default="timm")
    flags.add_argument("--image-size", type=int, default=64)
    flags.add_argument("--batch-size", type=int, default=8)
    flags.add_argument(
        "--passes", type=int, default=3000, help="image passes that a column's epochs are shrunk to"
    )
    flags.add_argument("--per-class", type=int, default=12, help="pictures of each class of plants")
    flags.add_argument(
        "--columns", nargs="+", default=list(COLUMNS), choices=COLUMNS, metavar="NAME"
    )
    flags.add_argument("--workers", type=int, default=1)
    flags.add_argument("--device", default="cpu")
    flags.add_argument(
        "--store", type=Path, help="where all is kept (default: a folder that is removed)"
    )
    args = flags.parse_args()
    args.weights = args.weights if args.weights == "none" else str(Path(args.weights).absolute())
    return args


def main() -> int:
    """Print one row per column and data set."""
    args, rows, wrong = parse(), [], 0
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as passing:
        store = (args.store or Path(passing)).absolute()
        store.mkdir(parents=True, exist_ok=True)
        for name, flags_of in SETS.items():
            columns, given = [c for c in args.columns if name in fitting(c)], getattr(args, name)
            if given is None or not columns:
                say(
                    f"{name}: not given, left out ({', '.join(columns)})"
                    if columns
                    else f"{name}: no column asks for it"
                )
                continue
            try:
                flags = [
                    *flags_of(given.absolute(), store, args),
                    "--output",
                    store / name,
                    "--workers",
                    1,
                ]
                run("01_reorganize", store / f"{name}.txt", *flags)
            except Problem as problem:
                say(f"{name}: {problem}")
                wrong += 1
                continue
            data = load_organized(store / name)
            for column in columns:
                try:
                    row = one_column(column, data, store / "runs" / f"{column}_{name}", args)
                except Problem as problem:
                    row = [column, name, *[""] * 7, str(problem)]
                wrong += bool(row[-1])
                rows.append(row)
                say(" | ".join(row))
    start = "random weights" if args.weights == "none" else f"weights of {Path(args.weights).name}"
    say(
        "",
        f"every column with {args.backbone} from {start}, {args.image_size} px, batch "
        f"{args.batch_size}, {args.passes} image passes "
        f"or an epoch of each phase, seed 0, torch {torch.__version__}, {torch.get_num_threads()} "
        f"threads; accuracy: test pictures whose "
        "class is right",
        table(
            rows,
            (
                "column",
                "data",
                "classes",
                "train + val + test",
                "phases: epochs, rate of the heads, backbone",
                "test accuracy",
                "chance",
                "commonest class",
                "time",
                "wrong",
            ),
        ),
    )
    say("", f"{len(rows)} runs, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
