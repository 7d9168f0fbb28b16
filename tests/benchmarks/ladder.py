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
import shlex
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ladder_contestants import KINDS, MODEL_FLAGS, Task, figures, run_folder
from ladder_data import read_rows, split_rows, subset, write_cell

from common.console import Stopwatch, duration, fail, say, table
from common.train.dataset import load_organized

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


# region runs


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
    wanted = [args.contestants[name], Path(args.weights).name, args.judge]
    return json.dumps(
        [
            *wanted,
            args.passes or args.reference,
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

    try:
        while left or running:
            for task in list(left):
                before = needs(task, args)
                if len(running) >= args.jobs or not all(other in done for other in before):
                    continue
                left.remove(task)
                if failed := [other.name for other in before if "error" in done[other]]:
                    told(
                        task,
                        {"error": f"{failed[0]} failed, which says how many passes this takes"},
                    )
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
    finally:  # a ladder that is stopped leaves nothing running
        for _, process in running.values():
            process.terminate()


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
    args.contestants = CONTESTANTS | dict(one.partition("=")[::2] for one in args.contestant)
    args.only = args.only or list(args.contestants)
    for name in args.only:
        if name not in args.contestants:
            fail(f"--only {name}: there is no such contestant. {', '.join(args.contestants)}.")
        if args.contestants[name].partition(" ")[0] not in KINDS:
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
