"""A training process that can be stopped at any instruction, located, continued, or killed where it
stands (for kills.py).
"""

import ast
import faulthandler
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FEATURES, FROZEN, UNFROZEN, PIECES, SAVING, ELSEWHERE = (
    "making features",
    "training, frozen",
    "training, unfrozen",
    "mid-accumulation",
    "saving",
    "elsewhere",
)
STARTING = "starting"


def child(note: str, stack: str, script: str, argv: list[str]) -> None:
    """Run a numbered script that notes its step and piece, and that writes its stack and stops when
    SIGTSTP comes.
    """
    # in C, at any instruction; then what SIGTSTP does by itself: the whole process stops
    faulthandler.register(
        signal.SIGTSTP, file=open(stack, "ab", buffering=0), all_threads=True, chain=True
    )
    sys.path.insert(0, str(ROOT))
    from common.train import loop
    from common.train.augment import Mix
    from common.train.run import Run

    notes, at = os.open(note, os.O_WRONLY), {"phase": "", "epoch": 0, "step": 0, "piece": 0}
    take_step, training_step, apply = Run.take_step, loop.training_step, Mix.apply

    def write(**more: object) -> None:
        at.update(more)
        os.pwrite(notes, json.dumps(at).ljust(120).encode(), 0)

    def noted_take(run, work, *batch):
        write(phase=work.phase.name, epoch=run.epochs_done + 1, step=run.step + 1, piece=0)
        return take_step(run, work, *batch)

    def noted_training(*args, **kwargs):
        write(piece=0)
        return training_step(*args, **kwargs)

    def noted_apply(self, images, rows):
        write(piece=at["piece"] + 1)
        return apply(self, images, rows)

    Run.take_step, loop.training_step, Mix.apply = noted_take, noted_training, noted_apply
    sys.argv = [script, *argv]
    runpy.run_path(str(ROOT / script), run_name="__main__")


class Moment(NamedTuple):
    """Where a stopped process stands: seconds since its start, kind of place, the place in words,
    and the checkpoint being written.
    """

    after: float
    kind: str
    place: str
    partial: str


def _pieces_loop() -> range:
    """Lines of `training_step` that go over the pieces of a batch."""
    page = ROOT / "common" / "train" / "loop.py"
    for node in ast.walk(ast.parse(page.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "training_step":
            (first, *_) = [inner for inner in ast.walk(node) if isinstance(inner, ast.For)]
            return range(first.lineno, first.end_lineno + 1)
    raise RuntimeError("common/train/loop.py has no training_step")


class Stoppable:
    """A numbered script as a process.

    Args:
        script: its file name.
        flags: its command line.
        folder: where it writes checkpoints, and where the notes of its place lie.
    """

    def __init__(self, script: str, flags: list[str], folder: Path) -> None:
        self.folder, self.loop = folder, _pieces_loop()
        self.note, self.stack, self.told = (
            folder / f"{name}.txt" for name in ("note", "stack", "told")
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.note.write_text("")
        self.stack.write_text("")
        arguments = [str(self.note), str(self.stack), script, flags]
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from stopping "
            f"import child; child(*{arguments!r})"
        )
        self.start = time.monotonic()
        with self.told.open("wb") as told:  # a pipe that nobody reads would stop it, too
            # a process group of its own: one without a parent outside of it would not stop
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=ROOT,
                preexec_fn=os.setpgrp,
                stdout=told,
                stderr=told,
            )

    def stop(self) -> bool:
        """Stop it where it stands; False where it has ended.

        Raises:
            RuntimeError: where it ended by a fault.
        """
        os.truncate(self.stack, 0)
        self.process.send_signal(signal.SIGTSTP)
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return True
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            raise RuntimeError(
                f"ended with {self.process.returncode}: {self.told.read_text()[-3000:]}"
            )
        return False

    def go_on(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it where it stands; its loader workers find that out and end by themselves."""
        self.process.send_signal(signal.SIGKILL)
        if self.process.wait() != -signal.SIGKILL:
            raise RuntimeError(f"ended by {self.process.returncode}, not by SIGKILL")

    def locate(self) -> Moment:
        """Say where it stands, the innermost of the project's functions first."""
        frames = [
            (Path(file), int(line), name)
            for file, line, name in re.findall(
                r'File "([^"]+)", line (\d+) in (\S+)', self.stack.read_text()
            )
        ]
        own = [
            (file.name, line, name)
            for file, line, name in frames
            if file.parent == ROOT or ROOT / "common" in file.parents
        ]
        inside, note = (
            {(file, name) for file, _, name in own},
            json.loads(self.note.read_text() or "{}"),
        )
        partial = next(iter(self.folder.rglob("*.pt.tmp")), None)
        place, kind = (
            f"{note['phase']}, epoch {note['epoch']}, step {note['step']}"
            if note
            else "before the first step",
            ELSEWHERE,
        )
        if ("checkpoint.py", "save") in inside:
            kind = SAVING if partial else ELSEWHERE
        elif ("cached_features.py", "_fill") in inside:
            kind, place = FEATURES, f"after {place}" if note else place
        elif ("run.py", "take_step") in inside:
            kind = FROZEN if note["phase"][:2] in ("A1", "B1", "B2") else UNFROZEN
            if (
                kind == UNFROZEN
                and note["piece"] > 1
                and any(
                    (file, name) == ("loop.py", "training_step") and line in self.loop
                    for file, line, name in own
                )
            ):
                kind, place = PIECES, f"{place}, piece {note['piece']}"
        words = f"{place}; {own[0][0]}:{own[0][1]} {own[0][2]}" if own else STARTING
        return Moment(
            time.monotonic() - self.start,
            kind,
            words,
            f"{partial.name}, {partial.stat().st_size / 1e6:.2f} MB" if partial else "",
        )


def watch(
    process: Stoppable, rng: np.random.Generator, pause: float, wanted: Callable[[Moment], bool]
) -> Moment | None:
    """Stop after random pauses, `pause` seconds in the mean, until a moment is wanted, and leave
    the process standing there.

    Returns:
        the moment, or None where the process ends before.
    """
    while True:
        time.sleep(rng.exponential(pause))
        if not process.stop():
            return None
        moment = process.locate()
        if wanted(moment):
            return moment
        process.go_on()
