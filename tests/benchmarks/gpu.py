"""Everything that a GPU is bought for, measured in under six minutes, in one table.

  python tests/benchmarks/gpu.py --out gpu.md gpu.json       on an NVIDIA or AMD card
  python tests/benchmarks/gpu.py --timm FILE                 against timm's train.py, too
  python tests/benchmarks/gpu.py --only step train           some sections
  python tests/benchmarks/gpu.py --device cpu --tiny         the whole on a CPU, to see that it runs

Sections, in this order:
  card      the card, its driver, and the versions that matter
  step      a training step of Swin-Tiny 224, batch 256, in the precision that 02a takes: against
            the bare backbone, and compiled
  train     02a with its own loader on 16,000 drawn photos of 512 px
  timm      timm's train.py on the same photos (--timm)
  export    03 on what 02a trained, else random weights; always before server and latency
  server    04 at 64, 1, 16 and 256 requests at once, against the model alone and decoding alone
  precisions  the step at batch 512, and in bf16, fp16, fp32 with and without TF32
  ladder    the step from plain float32 on, one thing added at a time; calls that wait for the GPU
  latency   FP16, FP32 and INT8 in ONNX Runtime at batch 1, 8 and 32
  heads     packed disease heads against a loop
  cached    features computed once, and heads trained on them
  tests     the tests that touch the device

The sections down to `server` fit in six minutes on an H100. Those after it share what is left, or
have a second run: README.md has both commands. Each section has seconds of its own. One that fails
or takes too long is told in the table, and the rest goes on; the table is written after each
section, so that a run that is stopped loses nothing. What is compared takes turns, after a warm-up;
a GPU has finished whenever the clock is read; figures are medians. `ratio` is the figure over that
of the column `against`.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from common.console import duration, fail, parser, say, table
from common.files import write_text

# Seconds that a section may take at most when the whole has six minutes, what is wanted of a GPU
# first. Expected of an H100, down to `server`: the start 10, then 2, 57, 90, 40, 55 and 57, or 311
# in all; the others with start, card and exports of random weights (25): 95, 70, 15, 5, 30 and 45,
# or 297 in all.
SECTIONS = {
    "card": 10,
    "step": 70,
    "train": 110,
    "timm": 45,
    "export": 90,
    "server": 65,
    "precisions": 110,
    "ladder": 85,
    "latency": 20,
    "heads": 10,
    "cached": 40,
    "tests": 60,
}
TITLES = ("section", "what", "figure", "unit", "against", "ratio")
GRACE = 5.0  # seconds between being asked to stop and being killed
Row = dict[str, Any]


def shown(value: object) -> str:
    """A cell: numbers of three digits that mean something."""
    if isinstance(value, (int, float)):
        return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return "" if value is None else str(value)


class Report:
    """The rows so far; printed as they come, and written to the files of --out."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files, self.rows = files, []

    def add(self, row: Row) -> None:
        """Print a row and keep it."""
        self.rows.append(dict.fromkeys(TITLES) | row)
        cells = [shown(self.rows[-1][title]) for title in TITLES]
        say("  ".join(cell for cell in cells if cell))

    def table(self) -> str:
        """All rows, laid out."""
        return table([[shown(row[t]) for t in TITLES] for row in self.rows], TITLES)

    def write(self) -> None:
        """Write the files: JSON where a name ends so, else Markdown."""
        for file in self.files:
            as_json = file.suffix == ".json"
            text = json.dumps(self.rows, indent=1) if as_json else self.table()
            write_text(file, text + "\n")


class Worker:
    """The process that measures. It is kept from section to section, as importing torch and waking
    a GPU take seconds, and started anew after a section that had to be killed.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        flags = ["--worker", str(folder), "--device", args.device]
        flags += ["--tiny"] * args.tiny + (["--timm", str(args.timm)] if args.timm else [])
        self.log = folder / "messages.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, *flags],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.told: queue.Queue[str | None] = queue.Queue()
        self.children: set[int] = set()
        threading.Thread(target=self._listen, daemon=True).start()
        if self.told.get() is None:  # it says that it is ready, or why it cannot be
            self.process.wait()
            fail(self._last_words().removeprefix("error: "))

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.told.put(line)
        self.told.put(None)

    def run(self, section: str, seconds: float, rows: list[Row]) -> Iterator[Row]:
        """Measure a section; yields its rows, the last of which may say why there are no more."""
        order = {"section": section, "seconds": seconds, "rows": rows}
        with contextlib.suppress(OSError):  # a worker that has died is noticed below
            print(json.dumps(order), file=self.process.stdin, flush=True)
        end = time.monotonic() + seconds + GRACE
        while True:
            try:
                line = self.told.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                self.stop()
                yield {"what": f"stopped: took more than {seconds:.0f} s"}
                return
            if line is None:
                self.stop()
                yield {"what": f"failed: its process ended ({self._last_words()[:200]})"}
                return
            message = json.loads(line)
            if "started" in message:
                self.children.add(message["started"])
            elif "ended" in message:
                self.children.discard(message["ended"])
            elif "done" in message:
                return
            else:
                yield message

    def _last_words(self) -> str:
        lines = [line for line in self.log.read_text().splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.process.poll()}"

    @property
    def alive(self) -> bool:
        """Whether it can measure another section."""
        return self.process.poll() is None

    def stop(self) -> None:
        """End it and all that it started, softly at first."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        for group in (self.process.pid, *self.children):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        self.process.wait()


def measure(args: argparse.Namespace, chosen: list[str], report: Report, folder: Path) -> None:
    """Measure the sections in turn."""
    begin, worker = time.monotonic(), None
    try:
        for section in chosen:
            spare = 60 * args.minutes - (time.monotonic() - begin) - 2 * GRACE
            seconds = min(SECTIONS[section] * args.minutes / 6, spare)
            say("", f"-- {section}, at most {max(0, seconds):.0f} s")
            if seconds < 1:
                report.add({"section": section, "what": "left out: the time is over"})
                report.write()
                continue
            started = time.monotonic()
            if worker is None or not worker.alive:
                worker = Worker(args, folder)
            for row in worker.run(section, seconds, report.rows):
                report.add({"section": section} | row)
            taken = time.monotonic() - started
            report.add({"section": section, "what": "took", "figure": round(taken, 1), "unit": "s"})
            report.write()
    finally:
        if worker is not None:
            worker.stop()
        report.write()
    say("", report.table(), "", f"time: {duration(time.monotonic() - begin)}")


def main(argv: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    flags = parser(__doc__)
    add = flags.add_argument
    add("--out", type=Path, nargs="+", default=[], metavar="FILE", help=".json, or else Markdown")
    add("--only", nargs="+", choices=SECTIONS, metavar="NAME", help="sections to measure")
    add("--skip", nargs="+", choices=SECTIONS, default=[], metavar="NAME", help="to leave out")
    add("--timm", type=Path, metavar="FILE", help="train.py of timm's repository")
    add("--device", default="cuda", help="cuda (ROCm is called cuda too), cuda:1 ... or cpu")
    add("--minutes", type=float, default=6.0, help="for all sections together (default 6)")
    add("--tiny", action="store_true", help="tiny networks and pictures; figures mean nothing")
    add("--worker", type=Path, help=argparse.SUPPRESS)
    args = flags.parse_args(argv)
    if args.worker:
        import gpu_bench

        return gpu_bench.work(args.worker, args.device, args.tiny, args.timm)
    if args.timm and not args.timm.is_file():
        fail(f"there is no file {args.timm}. Take train.py out of timm's repository.")
    if args.minutes <= 0:
        fail("--minutes must be above 0.")
    wanted = {*(args.only or SECTIONS)}
    wanted |= {"export"} if wanted & {"server", "latency"} else set()  # they run what it writes
    chosen = [name for name in SECTIONS if name in wanted]
    chosen = [name for name in chosen if name not in args.skip and (name != "timm" or args.timm)]
    if not chosen:
        fail("no section is left to measure (timm needs --timm FILE).")
    for file in args.out:
        file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="foliar_gpu_", ignore_cleanup_errors=True) as folder:
        # a kill by a batch system ends in the same way as Ctrl-C: what is known is written
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            measure(args, chosen, Report(args.out), Path(folder))
        except KeyboardInterrupt:
            say("stopped")
            return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
