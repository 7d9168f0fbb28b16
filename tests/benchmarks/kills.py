"""A training run killed at random moments ends with the bits of a run never stopped.

  python tests/benchmarks/kills.py
      on a tiny data set that it draws and organizes
  python tests/benchmarks/kills.py --data data/organized --image-size 64 --store kills

Recipe `foliar`, shrunk: cached views in the frozen phases, weighted draws, an average of the
weights, dropout, MixUp and CutMix, every batch in several pieces, a state saved every 60 ms. 02a
and 02b run once without any of what follows: that is what all others are held against.

The killed runs are the same commands, started so that SIGTSTP writes the stack of the process and
stops it where it stands (faulthandler, in C, at any instruction). They are stopped after
random pauses, located, and continued; the k-th time that one is found at the wanted kind of place,
it gets SIGKILL instead, while it still stands there. k is drawn evenly from as many times as a run
that was never killed was found there. Then the same command runs as a person would start it, and
every checkpoint is compared. Last, a run is killed again and again, at any place, until it gets
through. The exit code is 1 where a bit differs.
"""

import argparse
import contextlib
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for part in (ROOT, ROOT / "tests"):
    sys.path.insert(0, str(part))

from stopping import (
    ELSEWHERE,
    FEATURES,
    FROZEN,
    PIECES,
    SAVING,
    STARTING,
    UNFROZEN,
    Moment,
    Stoppable,
    watch,
)

SPECIES, DISEASE = "02a_train_species.py", "02b_train_disease.py"
FOLDERS = {SPECIES: ("species_only",), DISEASE: ("disease_heads", "hierarchical_full")}
KINDS = (FEATURES, FROZEN, UNFROZEN, PIECES, SAVING)
EPOCHS = {
    SPECIES: [
        "--species-warmup-epochs",
        "2",
        "--species-finetune-epochs",
        "2",
        "--species-final-epochs",
        "1",
    ],
    DISEASE: ["--disease-heads-epochs", "2", "--disease-boost-epochs", "2", "--joint-epochs", "2"],
}

# region one row each


class Bench:
    """The data, the commands and the runs never stopped."""

    def __init__(self, args: argparse.Namespace, store: Path) -> None:
        self.args, self.store, self.rng = args, store, np.random.default_rng(args.seed)
        machine = [
            "--device-batch",
            str(args.device_batch),
            "--save-minutes",
            "0.001",
            "--workers",
            str(args.workers),
            "--precision",
            "fp32",
            "--device",
            "cpu",
            "--data",
            str(args.data),
        ]
        self.flags = {script: [*machine, *EPOCHS[script]] for script in FOLDERS}
        self.flags[SPECIES] += [
            "--recipe",
            "foliar",
            "--weights",
            "none",
            "--backbone",
            args.backbone,
            "--image-size",
            str(args.image_size),
            "--batch-size",
            str(args.batch_size),
            "--cached-views",
            "3",
            "--ema-decay",
            "0.9",
            "--tail",
            "softmax_and_sampler",
            "--neck",
            "dropout=0.3,width=48,dropout_after=0.15",
        ]
        self.found_at: dict[str, Counter[str]] = {}

    def whole(self, script: str, checkpoints: Path) -> str:
        """Run a command to its end, as a person does; returns what it said about going on."""
        done = subprocess.run(
            [sys.executable, script, *self.flags[script], "--checkpoints", str(checkpoints)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{script} ended with {done.returncode}: {done.stderr[-3000:]}")
        said = re.findall(r"going on with (\S+): (.*)", done.stdout)
        return "; ".join(f"{Path(path).parent.name}: {rest}" for path, rest in said) or "the start"

    def folder(self, script: str, name: str) -> Path:
        """A fresh checkpoints folder; for 02b with the species checkpoint of the run never
        stopped.
        """
        checkpoints = self.store / name
        shutil.rmtree(checkpoints, ignore_errors=True)
        if script == DISEASE:
            shutil.copytree(self.store / "never" / "species_only", checkpoints / "species_only")
        return checkpoints

    def compare(self, script: str, checkpoints: Path) -> str:
        """Hold the checkpoints of a script's folders against those of the run never stopped."""
        from same_runs import same_run

        try:
            found = np.sum(
                [
                    same_run(self.store / "never" / name, checkpoints / name)
                    for name in FOLDERS[script]
                ],
                axis=0,
            )
        except AssertionError as error:
            return f"DIFFERS: {error}"
        left = sorted(
            str(p.relative_to(checkpoints))
            for p in checkpoints.rglob("*")
            if p.name.endswith(".tmp") or p.name == "features"
        )
        return f"equal: {found[0]} files, {found[1]} tensors" + (
            f"; left behind: {', '.join(left)}" if left else ""
        )

    def start(self, script: str, checkpoints: Path) -> Stoppable:
        """Start a script so that it can be stopped anywhere."""
        return Stoppable(
            script, [*self.flags[script], "--checkpoints", str(checkpoints)], checkpoints
        )

    def never_killed(self, script: str) -> list[str]:
        """Stop a script again and again to its end: counts how often it is found where, and shows
        that stopping changes nothing.
        """
        checkpoints, found_at = self.folder(script, f"stopped_{script[:3]}"), Counter()
        watch(
            self.start(script, checkpoints),
            self.rng,
            self.args.pause,
            lambda moment: bool(found_at.update([moment.kind])),
        )
        self.found_at[script] = found_at
        found = ", ".join(f"{kind} {found_at[kind]}" for kind in (*KINDS, ELSEWHERE))
        return [
            script[:3],
            "",
            f"never killed, stopped {sum(found_at.values())} times",
            found,
            "",
            "",
            self.compare(script, checkpoints),
        ]

    def killed(self, script: str, kind: str, name: str) -> list[str]:
        """Kill one run at a moment of a kind, let the same command go on, compare."""
        often, moment = self.found_at[script][kind], None
        while moment is None:
            checkpoints, skip, found_at = (
                self.folder(script, name),
                int(self.rng.integers(max(1, often))),
                Counter(),
            )

            def wanted(moment: Moment, skip: int = skip, found_at: Counter[str] = found_at) -> bool:
                found_at[moment.kind] += 1
                return moment.kind == kind and found_at[kind] > skip

            process = self.start(script, checkpoints)
            moment = watch(process, self.rng, self.args.pause, wanted)
            often = found_at[
                kind
            ]  # where it ended before, as the machine's speed is not what it was
        process.kill()
        went = self.whole(script, checkpoints)
        return [
            script[:3],
            f"{moment.after:.2f} s",
            kind,
            moment.place,
            moment.partial,
            went,
            self.compare(script, checkpoints),
        ]

    def again_and_again(self, script: str, name: str) -> list[str]:
        """Kill a run at any place, again and again, until it gets through; lives grow, or it might
        never.
        """
        checkpoints, deaths, life = self.folder(script, name), [], self.args.life
        while True:
            span, begun = self.rng.exponential(life), []

            def wanted(moment: Moment, span: float = span, begun: list[float] = begun) -> bool:
                if not begun and moment.place != STARTING:
                    begun.append(moment.after)
                return bool(begun) and moment.after > begun[0] + span

            process = self.start(script, checkpoints)
            moment = watch(process, self.rng, self.args.pause, wanted)
            if moment is None:
                break
            process.kill()
            deaths.append(moment.kind)
            life *= 1.2
        found = ", ".join(f"{kind} {count}" for kind, count in Counter(deaths).most_common())
        return [
            script[:3],
            "",
            f"killed {len(deaths)} times on its way",
            found,
            "",
            "",
            self.compare(script, checkpoints),
        ]


# endregion


def make_data(folder: Path) -> Path:
    """Draw the tests' tiny data set and organize it."""
    import tiny_data

    raw, data = tiny_data.make_raw(folder / "raw", each=16), folder / "organized"
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        if importlib.import_module("01_reorganize").main(
            [str(raw), "--output", str(data), "--workers", "1"]
        ):
            raise RuntimeError(f"01 could not organize the tiny data set: {said.getvalue()}")
    return data


def main() -> int:
    """Print a row per kill."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument(
        "--data", type=Path, help="an organized data set (default: a tiny one is made)"
    )
    flags.add_argument("--backbone", default="test_resnet")
    flags.add_argument("--image-size", type=int, default=32)
    flags.add_argument("--batch-size", type=int, default=12)
    flags.add_argument(
        "--device-batch", type=int, default=4, help="below the batch size, so that gradients add up"
    )
    flags.add_argument("--workers", type=int, default=1)
    flags.add_argument("--seed", type=int, default=0, help="of the moments")
    flags.add_argument(
        "--pause",
        type=float,
        default=0.01,
        help="mean seconds between two stops of a process",
    )
    flags.add_argument(
        "--kills", type=int, default=10, help="single kills, the kinds of place in turn"
    )
    flags.add_argument(
        "--life",
        type=float,
        default=1.0,
        help="seconds of the first life of a run that is killed again and again; 0: no such run",
    )
    flags.add_argument(
        "--store", type=Path, help="where the runs are kept (default: a folder that is removed)"
    )
    args = flags.parse_args()
    if not 0 < args.device_batch < args.batch_size:
        flags.error("--device-batch must be below --batch-size")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from common.console import say, table

    with tempfile.TemporaryDirectory() as passing:
        store = (args.store or Path(passing)).absolute()
        store.mkdir(parents=True, exist_ok=True)
        args.data = (args.data or make_data(Path(passing))).absolute()
        bench, rows = Bench(args, store), []

        def add(row: list[str]) -> None:
            say(" | ".join(row))
            rows.append(row)

        shutil.rmtree(store / "never", ignore_errors=True)
        for script in FOLDERS:
            bench.whole(script, store / "never")
        for script in FOLDERS:
            add(bench.never_killed(script))
        plan = [(script, kind) for kind in KINDS for script in FOLDERS]
        for n in range(args.kills):
            add(bench.killed(*plan[n % len(plan)], f"killed_{n}"))
        for script in FOLDERS if args.life else ():
            add(bench.again_and_again(script, f"again_{script[:3]}"))
    titles = (
        "run",
        "killed after",
        "moment",
        "where it stood",
        "being written",
        "went on from",
        "what came of it",
    )
    say(
        "",
        f"{args.backbone}, {args.image_size} px, batch {args.batch_size} in pieces of "
        f"{args.device_batch}, {args.workers} workers, "
        f"seed {args.seed}, OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}",
        table(rows, titles),
    )
    different = sum("equal" not in row[-1] for row in rows)
    say("", f"{len(rows)} runs, {different} of them different from the run never stopped")
    return int(different > 0)


if __name__ == "__main__":
    raise SystemExit(main())
