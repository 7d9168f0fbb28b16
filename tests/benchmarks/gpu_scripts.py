"""The sections of gpu.py that start programs (02a, 03, 04, timm's train.py, pytest) and watch them
from outside, and those that need no torch.
"""

import contextlib
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import load
import numpy as np
from gpu_bench import CORES, LATER, ROOT, Bench, Told, organized, run, take_turns, takes

# region training scripts


def gpu_busy(number: int) -> float | None:
    """Per cent of the last moment in which the card with this number worked, by its maker's tool;
    None where there is none.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    card = visible.split(",")[number] if visible else str(number)
    nvidia = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    for command, pattern in (
        ([*nvidia, "-i", card], r"^(\d+)"),
        (["rocm-smi", "--showuse", "-d", str(number)], r"GPU use \(%\): *(\d+)"),
    ):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            told = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout
            if match := re.search(pattern, told):
                return float(match[1])
    return None


@contextlib.contextmanager
def polled(bench: Bench) -> Iterator[list[tuple[float, float]]]:
    """(seconds since now, per cent busy) twice a second while the `with` lasts; empty where no tool
    tells.
    """
    begin, end, found = time.monotonic(), threading.Event(), []
    number = int(bench.device.partition(":")[2] or 0)

    def poll() -> None:
        while bench.on_gpu and not end.is_set() and (busy := gpu_busy(number)) is not None:
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
    for mode in sizes.compile if compiles else ("",):
        begin, label = time.monotonic(), f"02a, compile {mode}" if mode else "02a"
        first = mode in ("", sizes.compile[0])  # the one that is exported
        epochs = sizes.epochs if first else 2
        checkpoints = bench.folder / ("checkpoints" if first else "checkpoints_again")
        command = [sys.executable, "02a_train_species.py", "--data", data, "--device", bench.device]
        command += ["--checkpoints", checkpoints, "--recipe", "hierarchical", "--weights", "none"]
        command += ["--backbone", sizes.backbone, "--image-size", sizes.size]
        command += ["--batch-size", sizes.batches[0], "--species-warmup-epochs", 0]
        command += ["--species-finetune-epochs", epochs, "--species-final-epochs", 0]
        command += ["--workers", max(1, CORES - 1)]
        with polled(bench) as busy:
            told = run(bench, [*command, *(["--compile", mode] if mode else [])])
        if not tell_training(bench, label, checkpoints / "species_only", told, busy):
            return
        taken = time.monotonic() - begin
        if mode == "on" and bench.left() < 0.65 * taken:
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
        how = "compiled" if label.endswith("on") else "eager"
        step = bench.found("step", f"batch {bench.sizes.batches[0]}, {bench.precision}, {how}")
        alone = ("the step alone", step) if step else ""
        bench.row(f"{label}: {LATER}", rate, "images/s", alone)
        waits = {"the first epoch": epochs[0]["wait_share"]}
        waits[LATER] = max(row["wait_share"] for row in later)
        for when, share in waits.items():
            bench.row(f"{label}: waiting for images in {when}", 100 * share, "%")
        if peak := later[-1].get("gpu_peak_mb"):
            bench.row(f"{label}: peak memory", peak / 1024, "GiB")
        ends = [at for at, line in told.lines if line.startswith("A2 ")]
        at_work = [share for at, share in busy if ends and ends[0] <= at <= ends[-1]]
        if at_work:
            mean = statistics.mean(at_work)
            bench.row(f"{label}: GPU busy from the first epoch's end to the last's", mean, "%")
    lines = [*told.errors.splitlines(), *(line for _, line in told.lines)]
    for line in [line for line in lines if label.endswith("on") and "compil" in line][:3]:
        bench.row(f"{label}: it says: {line.strip()[:150]}")
    if told.code != 0:
        bench.row(f"{label}: failed: {told.why()}")
        return False
    ending = told.after_last_line()
    bench.row(f"{label}: from the last line to the end", ending, "s", "wanted: at most 2")
    bench.row(f"{label}: in all", told.seconds, "s")
    return True


def timm(bench: Bench) -> None:
    """timm's train.py on the same photos, with the same network, batch, precision and loader
    processes, and its own default augmentation, which is lighter than that of 02a.
    """
    data, sizes = organized(bench), bench.sizes
    command = [sys.executable, bench.timm.resolve(), "--data-dir", data, "--val-split", "val"]
    command += ["--model", sizes.backbone, "--num-classes", 16, "--batch-size", sizes.batches[0]]
    command += ["--input-size", 3, sizes.size, sizes.size, "--opt", "adamw", "--lr", "1e-4"]
    command += ["--epochs", 2, "--warmup-epochs", 0, "--cooldown-epochs", 0, "--log-interval", 5]
    command += ["--workers", max(1, CORES - 1), "--device", bench.device]
    command += ["--output", bench.folder / "timm"]
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(bench.precision)
    command += ["--amp", "--amp-dtype", dtype] if dtype and bench.on_gpu else []
    told = run(bench, command)
    text = "\n".join([told.errors, *(line for _, line in told.lines)])
    # Train: 1 [  60/62 ( 98%)]  Loss: ...  Time: 0.155s, 1650.1/s  (0.160s, 1598.2/s)  LR: ...
    shown = re.findall(r"Train: (\d+) \[.*?\([\d.]+s, *([\d.]+)/s\)", text)
    rates = {int(epoch): float(rate) for epoch, rate in shown}  # an epoch's last line has its mean
    for epoch, rate in rates.items():
        bench.row(f"train.py: epoch {epoch + 1}", rate, "images/s")
    for label in ("02a", "02a, compile on", "02a, compile off"):
        if rates and (ours := bench.found("train", f"{label}: {LATER}")):
            bench.row(f"{label}: {LATER}", ours, "images/s", ("train.py", max(rates.values())))
    if told.code != 0 or not shown:
        bench.row(f"train.py: failed: {told.why()}")


def export(bench: Bench) -> None:
    """03 on what 02a trained here; exports with random weights where that gives none, as the
    sections that serve need some.
    """
    if any((bench.folder / "checkpoints" / "species_only").glob("*-best.pt")):
        export_trained(bench)
    if not (bench.folder / "exported" / "bundle.json").is_file():
        import swin_exports

        begin = time.monotonic()
        swin_exports.make(bench.folder / "exported", bench.sizes.backbone, bench.sizes.size)
        bench.row("exports with random weights", time.monotonic() - begin, "s")


def export_trained(bench: Bench) -> None:
    """Report a run of 03."""
    command = [sys.executable, "03_export.py", "--data", organized(bench)]
    command += ["--checkpoints", bench.folder / "checkpoints"]
    command += ["--output", bench.folder / "exported", "--max-pictures", bench.sizes.exported]
    command += ["--workers", min(4, max(1, CORES - 1))]
    on_device = takes("03_export.py", "--device", "export")
    also = ["--device", bench.device] if on_device else []
    told = run(bench, [*command, *also], spare=25 * bench.on_gpu)  # for random weights
    where = f"on {bench.device}" if on_device else "on the CPU"
    if told.code != 0:
        bench.row(f"03, {where}: failed: {told.why()}")
        return
    bench.row(f"03, {where}, {bench.sizes.exported} pictures a split", told.seconds, "s")
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
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *several, *files]
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

FILES = {"FP32": "model.onnx", "FP16": "model.fp16.onnx", "INT8": "model.int8.onnx"}


def provider_of(bench: Bench) -> str:
    """The best provider at hand, the CPU where that is the device; told where a GPU has none."""
    from common.serve.providers import installed, onnxruntime

    # finds the CUDA libraries that came with pip packages
    getattr(onnxruntime, "preload_dlls", lambda: None)()
    best = installed()[0] if bench.on_gpu else "cpu"
    if bench.on_gpu and best == "cpu":
        bench.row(
            "measured on the CPU: this onnxruntime knows no GPU (pip install onnxruntime-gpu)"
        )
    return best


def exports(bench: Bench) -> Path:
    """What the section export wrote; raises RuntimeError where it did not."""
    folder = bench.folder / "exported"
    if not (folder / "bundle.json").is_file():
        raise RuntimeError("it needs what the section export writes")
    return folder


def latency(bench: Bench) -> None:
    """FP32, FP16 and INT8 of one network, by ONNX Runtime on the best provider at hand."""
    from common.serve.predictor import Predictor
    from common.serve.providers import OPTIONS, PROVIDERS

    folder, provider = exports(bench), provider_of(bench)
    order = list(dict.fromkeys([PROVIDERS[provider], PROVIDERS["cpu"]]))
    threads = 1 if provider != "cpu" else CORES
    options = OPTIONS.get(provider)
    models = {
        name: Predictor(folder, file, threads, order, options)
        for name, file in FILES.items()
        if (folder / file).is_file()  # 03 keeps no INT8 model that answers otherwise
    }
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
    """Hand each process its line at once: answers a second of all, and their milliseconds."""
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda pair: pair[0](**pair[1]), zip(made, asked, strict=False)))
    rate = sum(one["answers"] / one["seconds"] for one in found)
    return rate, [ms for one in found for ms in one.get("ms", [])]


def server(bench: Bench) -> None:
    """04 behind HTTP, against the model alone and against decoding alone, whichever is less."""
    from common.serve.batcher import LANES

    sizes, folder, provider = bench.sizes, exports(bench), provider_of(bench)
    seconds, side = sizes.server_seconds, sizes.size
    batch, threads = (32, LANES) if provider != "cpu" else (1, CORES)  # as 04 runs it
    with parts(bench, 1, "raw", "--exports", folder, "--provider", provider) as made:
        line = {"threads": 1, "batch": 1, "seconds": min(1.0, seconds)}
        single = ask_all(made, [line])[0]
        line = {"threads": threads, "batch": batch, "seconds": min(0.5, seconds)}
        ask_all(made, [line])  # a GPU prepares for each thread
        line["seconds"] = seconds
        raw = ask_all(made, [line])[0]
    bench.row(f"the model alone, {provider}, batch 1, 1 thread", single, "answers/s")
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
            rate, _ = ask_many(made, port, max(sizes.at_once), seconds, side)
        bench.row(f"the client alone, {clients} processes", rate, "answers/s", limit)
        with served(bench, folder, provider) as (port, runs_on):
            if runs_on != provider:
                bench.row(f"04 runs on {runs_on}, not on {provider}")
            for at_once in sizes.at_once:
                ask_many(made, port, at_once, min(1.0, seconds), side)  # it warms up
                rate, times = ask_many(made, port, at_once, seconds, side)
                bound = limit if at_once > 1 else ("the model at batch 1", single)
                bench.row(f"04, {at_once} at once; {bound[0]} binds", rate, "answers/s", bound)
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
    photo = load.a_photo(bench.sizes.size)
    # told at once: a section that is stopped while it loads must not leave it on the GPU
    process = load.start_server(command, port, photo, lambda pid: bench.emit({"started": pid}))
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
    "export": export,
    "server": server,
    "latency": latency,
    "tests": tests,
}
