"""Parts of gpu.py: the process that measures, and the sections that start programs (02a, 03, 04,
timm's train.py, pytest) and watch them from outside.
"""

import contextlib
import importlib.util
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
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
SWIN = "swin_tiny_patch4_window7_224"


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how large: the defaults on a GPU, `TINY` to see that it runs."""

    backbone: str = SWIN
    size: int = 224
    batches: tuple[int, ...] = (256, 512)
    cell_seconds: float = 3.0  # of each comparison
    compiler: str = "inductor"
    heads: tuple[int, int, int] = (320, 11_499, 256)  # species, classes, batch
    photos: int = 16_000
    judged: int = 512  # of val and of test
    large: int = 16  # drawn photos, of which the others are cuts
    long_side: int = 512
    epochs: int = 4
    latency_batches: tuple[int, ...] = (1, 8, 32)
    at_once: tuple[int, ...] = (1, 16, 64, 256)
    server_seconds: float = 3.0
    tests: str = "cuda"  # test files that name it


TINY = Sizes(
    backbone="test_resnet",
    size=32,
    batches=(4, 8),
    cell_seconds=0.05,
    compiler="eager",
    heads=(8, 40, 16),
    photos=64,
    judged=24,
    large=1,
    long_side=64,
    epochs=2,
    at_once=(1, 4),
    server_seconds=0.3,
    tests="gpu_allocated_mb",
)


@dataclass
class Bench:
    """What a section measures with, and where its figures go."""

    device: str
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

    def found(self, section: str, start: str) -> float | None:
        """The figure of an earlier section's row whose name begins so."""
        for row in self.rows:
            if row["section"] == section and row["what"].startswith(start):
                return row["figure"]
        return None

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
    # what libraries print must not come between: they get the log in place of stdout
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def emit(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=told, flush=True)

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")  # so that warm-up is measured
    import gpu_training
    from common.train.compute import choose_compute

    device = str(choose_compute(device).device)
    sections: dict[str, Callable[[Bench], None]] = gpu_training.SECTIONS | SECTIONS
    bench = Bench(device, TINY if tiny else Sizes(), folder, timm, emit)
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


def run(bench: Bench, command: Sequence[object], **environment: str) -> Told:
    """Run a program to its end, or to the section's."""
    told, begin = Told(), time.monotonic()
    with (bench.folder / "program.txt").open("w+") as errors:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            start_new_session=True,
            env=os.environ | environment,
        )
        bench.emit({"started": process.pid})

        def listen() -> None:
            for line in process.stdout:
                told.lines.append((time.monotonic() - begin, line.rstrip()))

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            told.code = process.wait(max(0.1, bench.left()))
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
    counts, begin = {}, time.perf_counter()
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        wait()
        # a block lasts long enough for the clock, and short enough for turns
        counts[name] = max(1, round(min(0.3, seconds / 6) / (time.perf_counter() - start)))
    each = sum(counts.values()) / len(counts) * (time.perf_counter() - begin)
    rounds = min(30, max(3, int(seconds / max(each, 1e-6))))
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
    tree = ClassTree(
        tuple(f"plant_{i:02d}" for i in range(8)),
        tuple(tuple(f"disease_{i:02d}_{j}" for j in range(4)) for i in range(8)),
    )
    rows = ["path,species,disease,split,width,height,offset,size"]
    for split, count in (("train", sizes.photos), ("val", sizes.judged), ("test", sizes.judged)):
        for i in range(count):
            species = tree.species[i % 8]
            disease = tree.diseases[i % 8][i // 8 % 4]
            source, width, height = distinct[i % len(distinct)]
            target = root / split / species / disease / f"{i:06d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(source)
            where = target.relative_to(root).as_posix()
            bytes_ = source.stat().st_size
            rows.append(f"{where},{species},{disease},{split},{width},{height},,{bytes_}")
    (root / "species_index.json").write_text(json.dumps(tree.to_json()))
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


# endregion

# region training scripts


def gpu_busy() -> float | None:
    """Per cent of the last moment in which the card worked, by its maker's tool; None where there
    is none.
    """
    nvidia = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    for command, pattern in (
        ([*nvidia, "-i", visible], r"^(\d+)"),
        (["rocm-smi", "--showuse"], r"GPU use \(%\): *(\d+)"),
    ):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            told = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout
            if match := re.search(pattern, told):
                return float(match[1])
    return None


@contextlib.contextmanager
def polled() -> Iterator[list[tuple[float, float]]]:
    """(seconds since now, per cent busy) twice a second while the `with` lasts; empty where no tool
    tells.
    """
    begin, end, found = time.monotonic(), threading.Event(), []

    def poll() -> None:
        while not end.is_set() and (busy := gpu_busy()) is not None:
            found.append((time.monotonic() - begin, busy))
            end.wait(0.5)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        end.set()
        thread.join(6)


def train(bench: Bench) -> None:
    """02a: its own loader, augmentation and logs, the fine-tuning phase alone, from random
    weights; compiled where 02a can, and eager where there is time.
    """
    data, sizes = organized(bench), bench.sizes
    compiles = takes("02a_train_species.py", "--compile", "train")
    for mode in ("on", "off") if compiles else ("",):
        begin, label = time.monotonic(), f"02a, compile {mode}" if mode else "02a"
        epochs = 2 if mode == "off" else sizes.epochs
        checkpoints = bench.folder / f"checkpoints{mode if mode == 'off' else ''}"
        command = [sys.executable, "02a_train_species.py", "--data", data, "--device", bench.device]
        command += ["--checkpoints", checkpoints, "--recipe", "hierarchical", "--weights", "none"]
        command += ["--backbone", sizes.backbone, "--image-size", sizes.size]
        command += ["--batch-size", sizes.batches[0], "--species-warmup-epochs", 0]
        command += ["--species-finetune-epochs", epochs, "--species-final-epochs", 0]
        command += ["--workers", max(1, CORES - 1)]
        with polled() as busy:
            told = run(bench, [*command, *(["--compile", mode] if mode else [])])
        if not tell_training(bench, label, checkpoints / "species_only", told, busy):
            return
        taken = time.monotonic() - begin
        if mode == "on" and bench.left() < 0.8 * taken:
            bench.row("02a, compile off: left out, no time")
            return


def tell_training(
    bench: Bench, label: str, folder: Path, told: Told, busy: list[tuple[float, float]]
) -> bool:
    """Report a run of 02a; False where it did not end well."""
    log = folder / "log.jsonl"
    epochs = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    if later := epochs[1:]:
        rate = statistics.median(row["images_per_second"] for row in later)
        step = bench.found("step", "compiled" if label.endswith("on") else "eager")
        alone = ("the step alone", step) if step else ""
        bench.row(f"{label}: epochs after the first", rate, "images/s", alone)
        waits = {"the first epoch": epochs[0]["wait_share"]}
        waits["epochs after the first"] = max(row["wait_share"] for row in later)
        for when, share in waits.items():
            bench.row(f"{label}: waiting for images in {when}", 100 * share, "%")
        if peak := later[-1].get("gpu_peak_mb"):
            bench.row(f"{label}: peak memory", peak / 1024, "GiB")
        ends = [at for at, line in told.lines if line.startswith("A2 ")]
        at_work = [share for at, share in busy if ends and ends[0] <= at <= ends[-1]]
        if at_work:
            mean = statistics.mean(at_work)
            bench.row(f"{label}: GPU busy from the first epoch's end to the last's", mean, "%")
    if told.code != 0:
        bench.row(f"{label}: failed: {told.why()}")
        return False
    ending = told.after_last_line()
    bench.row(f"{label}: from the last line to the end", ending, "s", "wanted: at most 2")
    bench.row(f"{label}: in all", told.seconds, "s")
    return True


def timm(bench: Bench) -> None:
    """timm's train.py on the same photos, with the same network, batch and loader processes, in
    bf16 and with its own default augmentation.
    """
    data, sizes = organized(bench), bench.sizes
    command = [sys.executable, bench.timm.resolve(), "--data-dir", data, "--val-split", "val"]
    command += ["--model", sizes.backbone, "--num-classes", 32, "--batch-size", sizes.batches[0]]
    command += ["--input-size", 3, sizes.size, sizes.size, "--opt", "adamw", "--lr", "1e-4"]
    command += ["--epochs", 2, "--warmup-epochs", 0, "--cooldown-epochs", 0, "--log-interval", 5]
    command += ["--workers", max(1, CORES - 1), "--device", bench.device]
    command += ["--output", bench.folder / "timm"]
    command += ["--amp", "--amp-dtype", "bfloat16"] if bench.on_gpu else []
    told = run(bench, command)
    text = "\n".join([told.errors, *(line for _, line in told.lines)])
    # Train: 1 [  60/62 ( 98%)]  Loss: ...  Time: 0.155s, 1650.1/s  (0.160s, 1598.2/s)  LR: ...
    shown = re.findall(r"Train: (\d+) \[.*?\([\d.]+s, *([\d.]+)/s\)", text)
    for epoch, rate in dict(shown).items():  # the last line of an epoch holds its mean
        ours = bench.found("train", "02a")
        bench.row(f"train.py: epoch {int(epoch) + 1}", float(rate), "images/s")
        if epoch == shown[-1][0] and ours:
            bench.row("02a against it", ours, "images/s", ("train.py", float(rate)))
    if told.code != 0 or not shown:
        bench.row(f"train.py: failed: {told.why()}")


def export(bench: Bench) -> None:
    """03 on what 02a trained here."""
    if not any((bench.folder / "checkpoints" / "species_only").glob("*-best.pt")):
        bench.row("left out: it exports what the section train trains")
        return
    command = [sys.executable, "03_export.py", "--data", organized(bench), "--max-pictures", 512]
    command += ["--checkpoints", bench.folder / "checkpoints", "--workers", max(1, CORES - 1)]
    command += ["--output", bench.folder / "exported"]
    on_device = takes("03_export.py", "--device", "export")
    told = run(bench, [*command, *(["--device", bench.device] if on_device else [])])
    where = f"on {bench.device}" if on_device else "on the CPU"
    if told.code != 0:
        bench.row(f"03, {where}: failed: {told.why()}")
        return
    count = min(512, bench.sizes.judged)
    bench.row(f"03, {where}, {count} pictures a split", told.seconds, "s")
    ending = told.after_last_line()
    bench.row("03: from the last line to the end", ending, "s", "wanted: at most 2")


def tests(bench: Bench) -> None:
    """The test files that name the device."""
    files = [
        path
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if bench.sizes.tests in path.read_text(encoding="utf-8")
        and path.name not in ("test_house.py", "test_gpu_benchmark.py")
    ]
    several = ["-n", min(8, CORES)] if importlib.util.find_spec("xdist") and CORES > 2 else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *several, *files]
    told = run(bench, command)
    text = "\n".join(line for _, line in told.lines)
    failed = re.findall(r"^FAILED (\S+)", text, flags=re.M)
    count = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped)", text)}
    if told.code is None or not count:
        bench.row(f"{len(files)} files: failed: {told.why()}")
        return
    named = f" ({', '.join(failed[:3])})" if failed else ""
    against = f"{count.get('failed', 0)} failed{named}, {count.get('skipped', 0)} skipped"
    bench.row(f"passed, in {len(files)} files", count.get("passed", 0), "tests", against)


# endregion

# region serving


def provider_of(bench: Bench) -> str:
    """The best provider at hand, the CPU where that is the device; told where a GPU has none."""
    import onnxruntime

    from common.serve.providers import installed

    # finds the CUDA libraries that came with pip packages
    getattr(onnxruntime, "preload_dlls", lambda: None)()
    best = installed()[0] if bench.on_gpu else "cpu"
    if bench.on_gpu and best == "cpu":
        bench.row("measured on the CPU: this onnxruntime knows no GPU (pip install onnxruntime-gpu)")
    return best


def exports(bench: Bench) -> Path:
    """Exports with random weights, made once: 03 would refuse an INT8 model of a network that has
    learned nothing.
    """
    import swin_exports

    folder = bench.folder / "exports"
    if not (folder / "bundle.json").is_file():
        swin_exports.make(folder, bench.sizes.backbone, bench.sizes.size)
    return folder


def latency(bench: Bench) -> None:
    """FP32, FP16 and INT8 of one network, by ONNX Runtime on the best provider at hand."""
    from common.serve.predictor import Predictor
    from common.serve.providers import PROVIDERS

    folder, provider = exports(bench), provider_of(bench)
    order = list(dict.fromkeys([PROVIDERS[provider], PROVIDERS["cpu"]]))
    files = {"FP32": "model.onnx", "FP16": "model.fp16.onnx", "INT8": "model.int8.onnx"}
    threads = 1 if provider != "cpu" else CORES
    models = {name: Predictor(folder, file, threads, order) for name, file in files.items()}
    took = {model.session.get_providers()[0] for model in models.values()}
    for batch in bench.sizes.latency_batches:
        side = bench.sizes.size
        pictures = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)

        def runs(model: Predictor, pictures: np.ndarray = pictures) -> Callable[[], object]:
            return lambda: model.session.run(None, {"images": pictures})

        steps = {name: runs(model) for name, model in models.items()}
        spent = take_turns(steps, bench.sizes.cell_seconds, lambda: None)
        for name, seconds in spent.items():
            ratio = float(np.median(seconds / spent["FP32"]))
            against = ("FP32", 1000 * float(np.median(spent["FP32"]))) if name != "FP32" else ""
            what = f"{name}, batch {batch}, {', '.join(took).removesuffix('ExecutionProvider')}"
            ms = 1000 * float(np.median(seconds))
            bench.row(what, ms, "ms", against, ratio if against else None)


@contextlib.contextmanager
def parts(bench: Bench, count: int, *arguments: object) -> Iterator[list[load.Part]]:
    """So many processes of load.py, ready."""
    made = [load.Part("--as", *map(str, arguments)) for _ in range(count)]
    try:
        for part in made:
            part.wait()
        yield made
    finally:
        for part in made:
            part.process.kill()


def ask_all(made: list[load.Part], asked: Sequence[dict[str, Any]]) -> tuple[float, list[float]]:
    """Hand each process its line at once: answers a second of all, and their milliseconds.

    Raises:
        RuntimeError: where an answer was none.
    """
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda pair: pair[0](**pair[1]), zip(made, asked, strict=False)))
    other = {s: n for one in found for s, n in one.get("statuses", {}).items() if s != "200"}
    if other:
        raise RuntimeError(f"the server answered with other statuses than 200: {other}")
    rate = sum(one["answers"] / one["seconds"] for one in found)
    return rate, [ms for one in found for ms in one.get("ms", [])]


def server(bench: Bench) -> None:
    """04 behind HTTP, against the model alone and against decoding alone, whichever is less."""
    sizes, folder, provider = bench.sizes, exports(bench), provider_of(bench)
    seconds, side = sizes.server_seconds, sizes.size
    batch, threads = (32, 1) if provider != "cpu" else (1, CORES)
    with parts(bench, 1, "raw", "--exports", folder, "--provider", provider) as made:
        line = {"threads": threads, "batch": batch, "seconds": seconds}
        raw = max(ask_all(made, [line])[0] for _ in range(2))
    bench.row(f"the model alone, {provider}, batch {batch}, {threads} threads", raw, "answers/s")
    with parts(bench, CORES, "decode") as made:
        line = {"side": side, "size": sizes.size, "seconds": seconds}
        decoding = ask_all(made, [line] * CORES)[0]
    bench.row(f"decoding alone, {CORES} cores, photos of {side} px", decoding, "photos/s")
    limit = ("decoding", decoding) if decoding < raw else ("the model", raw)
    clients = max(1, min(8, CORES // 2))
    with parts(bench, clients, "client") as made:
        port = load.free_port()
        with parts(bench, 1, "no_work", "--port", port):
            rate, _ = ask_many(made, port, sizes.at_once[-1], seconds, side)
        bench.row(f"the client alone, {clients} processes", rate, "answers/s", limit)
        with served(bench, folder, provider) as (port, runs_on):
            if runs_on != provider:
                bench.row(f"04 runs on {runs_on}, not on {provider}")
            for at_once in sizes.at_once:
                ask_many(made, port, at_once, min(1.0, seconds), side)  # it warms up
                rate, times = ask_many(made, port, at_once, seconds, side)
                bench.row(f"04, {at_once} at once; {limit[0]} binds", rate, "answers/s", limit)
                if times:
                    bench.row(f"04, {at_once} at once: median", statistics.median(times), "ms")


def ask_many(
    made: list[load.Part], port: int, at_once: int, seconds: float, side: int
) -> tuple[float, list[float]]:
    """Keep so many requests open, spread over the client's processes."""
    used = min(len(made), at_once)
    line = {"port": port, "seconds": seconds, "side": side, "form": False}
    shares = [at_once // used + (k < at_once % used) for k in range(used)]
    return ask_all(made, [line | {"concurrency": share} for share in shares])


@contextlib.contextmanager
def served(bench: Bench, folder: Path, provider: str) -> Iterator[tuple[int, str]]:
    """04 at work on a free port: the port, and the provider that it says it runs on."""
    port = load.free_port()
    command = [str(ROOT / "04_serve.py"), "--exports", str(folder), "--port", str(port)]
    command += ["--provider", provider, "--queue", "1024"]
    process = load.start_server(command, port, load.a_photo(bench.sizes.size))
    bench.emit({"started": process.pid})
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/model", timeout=10) as answer:
            told = json.load(answer)
        yield port, told["provider"]
    finally:
        load.stop(process)
        bench.emit({"ended": process.pid})


# endregion

SECTIONS = {
    "train": train,
    "timm": timm,
    "server": server,
    "latency": latency,
    "export": export,
    "tests": tests,
}
