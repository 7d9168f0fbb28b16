"""What the sections of gpu.py measure with: the process that they run in, programs watched from
outside, turns, and drawn photos.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import load
import numpy as np
import reading

from common.classes import ClassTree
from common.images import encode_jpeg, read_rgb

ROOT = load.ROOT
CORES = load.CORES
LATER = "epochs after the first"  # part of the names of rows that are looked up
SWIN = "swin_tiny_patch4_window7_224"


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how large: the defaults on a GPU, `TINY` to see that it runs."""

    backbone: str = SWIN
    size: int = 224
    batches: tuple[int, ...] = (256, 512)  # the first is that of the other sections, too
    cell_seconds: float = 3.0  # of each comparison
    compiler: str = "inductor"
    heads: tuple[int, int, int] = (320, 11_499, 256)  # species, classes, batch
    photos: int = 16_000
    judged: int = 256  # of val and of test
    exported: int = 32  # pictures a split that 03 takes: it runs each, and copies, on the CPU, too
    large: int = 16  # drawn photos, of which the others are cuts
    long_side: int = 512
    epochs: int = 3
    compile: tuple[str, ...] = ("on", "off")  # runs of 02a
    latency_batches: tuple[int, ...] = (1, 8, 32)
    at_once: tuple[int, ...] = (64, 1, 16, 256)  # the most important first
    server_seconds: float = 3.0
    tests: str = "cuda"  # test files that name it


TINY = Sizes(
    backbone="test_resnet",
    size=32,
    batches=(4,),
    cell_seconds=0.05,
    compiler="eager",
    heads=(8, 40, 16),
    photos=64,
    judged=24,
    exported=10,
    large=1,
    long_side=64,
    epochs=2,
    compile=("off",),  # a C++ compiler takes half a minute
    at_once=(4, 1),
    server_seconds=0.3,
    tests="match_paths",
)


@dataclass
class Bench:
    """What a section measures with, and where its figures go."""

    device: str
    precision: str  # that 02a takes on it: bf16, fp16 or fp32
    sizes: Sizes
    folder: Path
    timm: Path | None
    emit: Callable[[dict[str, Any]], None]
    rows: list[dict[str, Any]] = field(default_factory=list)  # of the sections before
    deadline: float = math.inf

    def left(self) -> float:
        """Seconds until this section should be done."""
        return self.deadline - time.monotonic()

    def row(
        self,
        what: str,
        figure: float | str | None = None,
        unit: str = "",
        against: tuple[str, float] | str = "",
        ratio: float | None = None,
    ) -> None:
        """Report a row; `against` as (what, figure) is written out, and gives the ratio unless that
        is known better.
        """
        if isinstance(against, tuple):
            name, other = against
            ratio = figure / other if ratio is None and other else ratio
            against = f"{name} {other:,.0f}" if other >= 100 else f"{name} {other:.3g}"
        row = {"what": what, "figure": figure, "unit": unit, "against": against, "ratio": ratio}
        self.emit(row)

    def found(self, section: str, what: str) -> float | None:
        """The figure of an earlier section's row."""
        rows = [row for row in self.rows if (row["section"], row["what"]) == (section, what)]
        return rows[0]["figure"] if rows else None

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device != "cpu"


# region the process


def work(folder: Path, device: str, tiny: bool, timm: Path | None) -> int:
    """Measure a section for each line {"section", "seconds", "rows"} of stdin; answer with rows,
    a line each, and {"done": true}.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped on the way out
    emit = load.apart()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")  # so that warm-up is measured
    from common.train.compute import choose_compute

    compute = choose_compute(device)  # stops where there is no such device, before the rest loads
    import gpu_scripts
    import gpu_training

    gpu_training.take(compute.device)
    names = {dtype: name for name, (dtype, _) in gpu_training.PRECISIONS.items()}
    sections = gpu_training.SECTIONS | gpu_scripts.SECTIONS
    device, precision = str(compute.device), names[compute.dtype]
    bench = Bench(device, precision, TINY if tiny else Sizes(), folder, timm, emit)
    emit({"ready": True})
    for line in sys.stdin:
        order = json.loads(line)
        bench.rows, bench.deadline = order["rows"], time.monotonic() + order["seconds"]
        try:
            sections[order["section"]](bench)
        except Exception as error:
            message = " ".join(str(error).split()) or "no message"
            bench.row(f"failed: {type(error).__name__}: {message[:200]}")
        gpu_training.clean_up()
        emit({"done": True})
    return 0


@dataclass
class Told:
    """What a program printed to stdout, and when: seconds after its start."""

    lines: list[tuple[float, str]] = field(default_factory=list)
    errors: str = ""
    seconds: float = 0.0
    code: int | None = None  # None: it took too long and was killed

    def after_last_line(self) -> float:
        """Seconds from its last line to its end."""
        return self.seconds - (self.lines[-1][0] if self.lines else 0.0)

    def why(self) -> str:
        """Why it did not end well."""
        last = [line for line in self.errors.splitlines() if line.strip()]
        return "took too long" if self.code is None else f"code {self.code}: {last[-1:]}"[:200]


def run(bench: Bench, command: Sequence[object], spare: float = 0.0) -> Told:
    """Run a program to its end, or until the section has so many seconds left."""
    told, begin = Told(), time.monotonic()
    with (bench.folder / "program.txt").open("w+") as errors:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        bench.emit({"started": process.pid})

        def listen() -> None:
            for line in process.stdout:
                told.lines.append((time.monotonic() - begin, line.rstrip()))

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            told.code = process.wait(max(0.1, bench.left() - spare))
        except subprocess.TimeoutExpired:
            pass
        finally:
            told.seconds = time.monotonic() - begin
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            bench.emit({"ended": process.pid})
        listener.join(2)
        errors.seek(0)
        told.errors = errors.read()
    return told


def takes(script: str, flag: str, package: str) -> bool:
    """Whether a numbered script has a flag, by its source and its package's: --help would cost
    seconds.
    """
    files = [ROOT / script, *(ROOT / "common" / package).glob("*.py")]
    return any(f'"{flag}"' in path.read_text(encoding="utf-8") for path in files)


def take_turns(
    steps: dict[str, Callable[[], object]], seconds: float, wait: Callable[[], None]
) -> dict[str, np.ndarray]:
    """Time steps that take turns, in the order ABBA, for about so many seconds in all.

    The clock is read once a few steps, after `wait` for the device, so that launches overlap with
    computing as they do in a run.

    Returns:
        seconds of a step, per name and round; at least 3 rounds.
    """
    for step in (*steps.values(), *steps.values()):
        step()
    wait()
    counts, each = {}, 0.0
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        wait()
        taken = time.perf_counter() - start
        # a block lasts long enough for the clock, and short enough for turns
        counts[name] = max(1, round(min(0.3, seconds / 6) / taken))
        each += counts[name] * taken
    rounds = min(30, max(3, int(seconds / each)))
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name in list(steps)[:: 1 if turn % 4 in (0, 3) else -1]:
            start = time.perf_counter()
            for _ in range(counts[name]):
                steps[name]()
            wait()
            found[name].append((time.perf_counter() - start) / counts[name])
    return {name: np.array(values) for name, values in found.items()}


# endregion

# region photos


def cuts(seed: int, long_side: int, count: int = 16) -> list[bytes]:
    """Draw a photo of 12 megapixels, and cut it: JPEGs of this long side, as 01 stores them."""
    scenes = (reading.soil, reading.background, reading.grass, reading.classes)
    rng = np.random.default_rng(seed)
    large, found = scenes[seed % len(scenes)](rng), []
    for _ in range(count):
        side = int(rng.integers(1024, 2800))
        x, y = (int(rng.integers(0, full - side)) for full in (large.shape[1], large.shape[0]))
        part = np.ascontiguousarray(large[y : y + side * 3 // 4, x : x + side])
        found.append(encode_jpeg(read_rgb(encode_jpeg(part, 90), long_side=long_side)))
    return found


def organized(bench: Bench) -> Path:
    """An organized data set of drawn photos, made once. A few hundred differ, the others are links
    to them, so that drawing takes seconds; decoding and augmentation do not notice.
    """
    sizes, root = bench.sizes, bench.folder / "organized"
    if (root / "manifest.csv").is_file():
        return root
    processes, made = min(CORES, sizes.large), []
    if processes > 1:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            made = list(pool.map(cuts, range(sizes.large), [sizes.long_side] * sizes.large))
    else:
        made = [cuts(seed, sizes.long_side) for seed in range(sizes.large)]
    (root / "distinct").mkdir(parents=True, exist_ok=True)
    distinct: list[tuple[Path, int, int]] = []
    for data in (data for part in made for data in part):
        height, width = read_rgb(data).shape[:2]
        distinct.append((root / "distinct" / f"{len(distinct)}.jpg", width, height))
        distinct[-1][0].write_bytes(data)
    # species of one class each, which stage A alone can learn: 03 then exports what it is made for
    tree = ClassTree(tuple(f"plant_{i:02d}" for i in range(16)), (("drawn",),) * 16)
    rows = ["path,species,disease,split,width,height,dataset,offset,size"]
    for split, count in (("train", sizes.photos), ("val", sizes.judged), ("test", sizes.judged)):
        for i in range(count):
            k = i % len(distinct)
            species = tree.species[16 * k // len(distinct)]  # cuts of one large photo
            source, width, height = distinct[k]
            target = root / split / species / "drawn" / f"{i:06d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
            where = target.relative_to(root).as_posix()
            bytes_ = source.stat().st_size
            rows.append(f"{where},{species},drawn,{split},{width},{height},drawn,,{bytes_}")
    (root / "species_index.json").write_text(json.dumps(tree.to_json()))
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


# endregion
