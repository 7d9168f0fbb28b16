"""The sections of gpu.py that train in the process itself: step, ladder, heads, cached features;
and what the card is.
"""

import contextlib
import gc
import itertools
import os
import re
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import heads as packed
import numpy as np
import step
import timm
import torch
from gpu_bench import CORES, LATER, ROOT, Bench, organized, take_turns

from common.serve.predictor import onnxruntime
from common.train import recipes
from common.train.augment import Mix
from common.train.cached_features import Extraction, HeadsOnFeatures, cache_views
from common.train.compute import Compute, choose_compute
from common.train.dataset import EpochSampler, TrainViews, load_organized, make_loader
from common.train.loop import OutOfMemory, Work, train_epoch, training_step
from common.train.model import SwinHierarchical
from common.train.optim import make_optimizer, set_rates, set_trainable

PRECISIONS = {  # name -> (autocast, TF32)
    "bf16": (torch.bfloat16, True),
    "fp16": (torch.float16, True),
    "fp32 in TF32": (torch.float32, True),
    "fp32": (torch.float32, False),
}
Step = Callable[[], object]


# region the device


def take(device: torch.device) -> None:
    """Make a GPU the one that is meant where none is named."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def clean_up() -> None:
    """Leave nothing to the next section: memory, compiled code, precision."""
    gc.collect()
    torch._dynamo.reset()
    use_tf32(False)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def wait_for(bench: Bench) -> Callable[[], None]:
    """What waits until the device has done all that it was given."""
    return torch.cuda.synchronize if bench.on_gpu else lambda: None


def use_tf32(on: bool) -> None:
    """Multiply float32 in TF32, or in full."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def computes(bench: Bench) -> dict[str, Compute]:
    """The precisions that the device has: name -> `Compute`."""
    device = torch.device(bench.device)
    names = list(PRECISIONS) if bench.on_gpu else ["bf16", "fp32"]  # fp16 and TF32 need a GPU
    if bench.on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        names.remove("bf16")
    return {name: Compute(device, PRECISIONS[name][0]) for name in names}


@contextlib.contextmanager
def told_if_it_fails(bench: Bench, what: str) -> Iterator[None]:
    """Report in place of a figure that memory ran out, or what else went wrong, and go on."""
    try:
        yield
    except Exception as error:  # a compiler may fail in any way
        full = isinstance(error, (OutOfMemory, torch.OutOfMemoryError))
        why = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        bench.row(f"{what}: {'out of memory' if full else why}")


def ask_tool(command: list[str], pattern: str) -> str | None:
    """What a command prints, by a pattern; None where there is no such command."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=ROOT).stdout
        if match := re.search(pattern, told):
            return match[1].strip()
    return None


def card(bench: Bench) -> None:
    """Report the card and every version that a figure may depend on."""
    device = torch.device(bench.device)
    if bench.on_gpu:
        about = torch.cuda.get_device_properties(device)
        gib = about.total_memory / 2**30
        bench.row("card", f"{about.name}, {gib:.0f} GiB, {about.multi_processor_count} processors")
    nvidia = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = ask_tool(nvidia, r"^([\d.]+)") or ask_tool(
        ["rocm-smi", "--showdriverversion"], r"[Dd]river version: *(\S+)"
    )
    bench.row("driver", driver or "not known: neither nvidia-smi nor rocm-smi is here")
    runtime = f"CUDA {torch.version.cuda}, ROCm {torch.version.hip}"
    bench.row("torch", f"{torch.__version__}, {runtime}, cuDNN {torch.backends.cudnn.version()}")
    bench.row("timm", timm.__version__)
    providers = ", ".join(onnxruntime.get_available_providers())
    bench.row("onnxruntime", f"{onnxruntime.__version__}: {providers}")
    bench.row("processor cores", CORES, "", f"load {os.getloadavg()[0]:.1f}")
    commit = ask_tool(["git", "describe", "--always", "--dirty"], r"^(\S+)")
    bench.row("commit", commit or "not known")


# endregion

# region steps


def with_tf32(on: bool, run: Step) -> Step:
    """The same step, TF32 on or off."""

    def stepped() -> None:
        use_tf32(on)
        run()

    return stepped


def compiled(owner: Any, method: str, run: Step, compiler: str) -> Step:
    """The same step, with a method of the backbone compiled while it lasts."""
    made = torch.compile(getattr(owner, method), dynamic=False, backend=compiler)

    def stepped() -> None:
        setattr(owner, method, made)
        try:
            run()
        finally:
            delattr(owner, method)

    return stepped


def first_call(run: Step, wait: Callable[[], None]) -> float:
    """Seconds of a first step, in which everything is compiled."""
    begin = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - begin


def step_times(bench: Bench) -> None:
    """The training step as 02a runs it: against the bare backbone, and compiled against eager."""
    measure_cells(bench, [(bench.sizes.batches[0], bench.precision)])


def precisions(bench: Bench) -> None:
    """The step at the other batch sizes and precisions: all of them eager, then compiled for as
    long as there is time.
    """
    cells = [(batch, name) for batch in bench.sizes.batches for name in computes(bench)]
    # to compile takes most of the time: the precision that 02a takes is the first
    cells.sort(key=lambda cell: cell[1] != bench.precision)
    measure_cells(bench, [c for c in cells if c != (bench.sizes.batches[0], bench.precision)])


def measure_cells(bench: Bench, cells: list[tuple[int, str]]) -> None:
    """The step at some (batch, precision), the most important first."""
    sizes, wait = bench.sizes, wait_for(bench)
    models = step.make_models(sizes.backbone, sizes.size, torch.device(bench.device))
    pairs: dict[tuple[int, str], list[Step]] = {}
    for batch, name in cells:
        what, compute = f"batch {batch}, {name}, eager", computes(bench)[name]
        clean_up()
        with told_if_it_fails(bench, what):
            scalers = [compute.scaler(), compute.scaler()]
            pair = step.make_steps(models, batch, compute, scalers)
            pair = [with_tf32(PRECISIONS[name][1], run) for run in pair]
            steps = dict(zip(step.CONTESTANTS, pair, strict=True))
            spent = take_turns(steps, sizes.cell_seconds, wait)
            tell_pair(bench, what, batch, spent, step.CONTESTANTS)
            pairs[batch, name] = pair
            if bench.on_gpu and name == bench.precision:
                peak = torch.cuda.max_memory_allocated() / 2**30
                bench.row(f"{what}: peak memory, both models", peak, "GiB")
    for batch, name in pairs:
        what = f"batch {batch}, {name}, compiled"
        if not time_to_compile(bench):
            bench.row(f"{what}: left out, no time")
            continue
        clean_up()
        with told_if_it_fails(bench, what):
            ours, bare = pairs[batch, name]
            run = compiled(models[0].backbone, "forward_features", ours, sizes.compiler)
            first = first_call(run, wait)
            bench.row(f"{what}: its first step", first, "s")
            spent = take_turns({"compiled": run, "eager": ours}, sizes.cell_seconds, wait)
            tell_pair(bench, what, batch, spent, ("compiled", "eager"))
            if (batch, name) == (sizes.batches[0], bench.precision) and time_to_compile(bench):
                bare = compiled(models[1].backbone, "forward", bare, sizes.compiler)
                first_call(bare, wait)
                both = {"both compiled": run, "bare backbone compiled": bare}
                spent = take_turns(both, sizes.cell_seconds, wait)
                tell_pair(bench, f"batch {batch}, {name}, both compiled", batch, spent, tuple(both))


def time_to_compile(bench: Bench) -> bool:
    """Whether compiling a step, and measuring it, should end within the section."""
    return bench.left() > 30 * bench.on_gpu + 6 * bench.sizes.cell_seconds


def tell_pair(
    bench: Bench, what: str, batch: int, spent: dict[str, np.ndarray], names: tuple[str, str]
) -> None:
    """Report images per second of the first, against the second; the ratio is the median of those
    within each round.
    """
    ours, other = (batch / float(np.median(spent[name])) for name in names)
    ratio = float(np.median(spent[names[1]] / spent[names[0]]))
    bench.row(what, ours, "images/s", (names[1], other), ratio)


def ladder(bench: Bench) -> None:
    """The hierarchical step, from plain float32 on, one thing added at a time, at the largest batch
    that the card holds in float32.
    """
    largest = bench.sizes.batches[0]
    for batch in (largest, largest // 2, largest // 4):
        clean_up()
        with told_if_it_fails(bench, f"batch {batch}"):
            measure_ladder(bench, batch)
            return


def measure_ladder(bench: Bench, batch: int) -> None:
    """The ladder at one batch size."""
    sizes, wait, device = bench.sizes, wait_for(bench), torch.device(bench.device)
    recipe = replace(recipes.get("hierarchical"), image_size=sizes.size, batch_size=batch)
    (phase,) = recipes.joint_phases(recipe)
    shape = (batch, sizes.size, sizes.size, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    tree = step.tree_of(320, 11_499)
    class_idx = torch.randint(tree.num_classes, (batch,), device=device)
    mix = Mix(torch.arange(batch, device=device))

    def made(layout: torch.memory_format) -> SwinHierarchical:
        model = SwinHierarchical(sizes.backbone, tree, image_size=sizes.size)
        model.to(device, memory_format=layout)
        set_trainable(model, phase)
        return model

    def work(model: SwinHierarchical, dtype: torch.dtype, fused: bool) -> Work:
        optimizer = make_optimizer(model, phase, recipe)
        if not fused:  # what torch takes where nothing is said
            groups = [{**group, "fused": None} for group in optimizer.param_groups]
            optimizer = torch.optim.AdamW(groups)
        set_rates(optimizer, 1e-5)
        compute = Compute(device, dtype)
        return Work(model, optimizer, compute.scaler(), compute, phase, recipe, batch, batch)

    def stepped(work: Work, tf32: bool = True) -> Step:
        return with_tf32(tf32, lambda: training_step(work, images, class_idx, mix))

    fp32, fast = torch.float32, PRECISIONS[bench.precision][0]
    plain, channels_last = made(torch.contiguous_format), made(torch.channels_last)
    fused = work(channels_last, fast, True)
    rungs = {
        "fp32": stepped(work(plain, fp32, False), tf32=False),
        "+ TF32": stepped(work(plain, fp32, False)),
        f"+ {bench.precision}": stepped(work(plain, fast, False)),
        "+ channels last": stepped(work(channels_last, fast, False)),
        "+ fused optimizer": stepped(fused),
    }
    spent = take_turns(rungs, len(rungs) * sizes.cell_seconds, wait)
    bench.row(f"batch {batch}, fp32", batch / float(np.median(spent["fp32"])), "images/s")
    for before, name in itertools.pairwise(rungs):
        tell_pair(bench, f"batch {batch}, {name}", batch, spent, (name, before))
    if bench.on_gpu:
        bench.row("calls that wait for the GPU in 5 steps", waits_of(fused), "", "wanted: 0")
    if not time_to_compile(bench):
        bench.row(f"batch {batch}, + compiled backbone: left out, no time")
        return
    with told_if_it_fails(bench, f"batch {batch}, + compiled backbone"):
        run = compiled(channels_last.backbone, "forward_features", stepped(fused), sizes.compiler)
        first_call(run, wait)
        before, name = "+ fused optimizer", "+ compiled backbone"
        ends = {"fp32": rungs["fp32"], before: rungs[before], name: run}
        spent = take_turns(ends, len(ends) * sizes.cell_seconds, wait)
        tell_pair(bench, f"batch {batch}, {name}", batch, spent, (name, before))
        ratio = float(np.median(spent["fp32"] / spent[name]))
        bench.row(f"batch {batch}, the last against the first", ratio, "times")


def waits_of(work: Work, steps: int = 5) -> int:
    """Calls that wait for the GPU in some steps of an epoch, as torch warns of them: the mixing,
    the copies and the rates included.
    """
    size = work.recipe.image_size
    images = torch.zeros((work.batch_size, size, size, 3), dtype=torch.uint8).pin_memory()
    class_idx = torch.zeros(work.batch_size, dtype=torch.int64).pin_memory()
    losses = train_epoch(work, [(images, class_idx)] * (steps + 2), 0, 0, steps + 2)
    for _ in range(2):
        next(losses)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                next(losses)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in told)


def heads(bench: Bench) -> None:
    """Packed disease heads against a loop over those present: forward, backward and AdamW."""
    species, classes, batch = bench.sizes.heads
    device, wait = torch.device(bench.device), wait_for(bench)
    tree = packed.ragged_tree(species, classes)
    batches = packed.make_batches(tree, batch, device)

    def now() -> float:
        wait()
        return time.perf_counter()

    seconds = packed.race(tree, batches, list(packed.KINDS[:2]), 12, now).sum(axis=2)
    ours, loop = 1000 * np.median(seconds, axis=1)
    what = f"packed, {classes:,} classes, batch {batch}"
    bench.row(what, float(ours), "ms", ("loop", float(loop)))
    bench.row("loop / packed", float(np.median(seconds[1] / seconds[0])), "times")


def cached(bench: Bench) -> None:
    """Features of every photo once, with augmentation, and the heads' training on them."""
    sizes, wait, data = bench.sizes, wait_for(bench), load_organized(organized(bench))
    compute = choose_compute(bench.device)
    recipe = replace(
        recipes.get("hierarchical"),
        image_size=sizes.size,
        batch_size=sizes.batches[0],
        mix_share=0.0,
        species_warmup_unfreeze=0.0,
    )
    phase = recipes.species_phases(recipe)[0]
    model = SwinHierarchical(sizes.backbone, data.tree, image_size=sizes.size)
    model = model.eval().to(compute.device, memory_format=torch.channels_last)
    batch, workers = sizes.batches[0], max(1, CORES - 1)
    extraction = Extraction(model, compute, batch, workers, data.manifest_hash)
    views, begin = TrainViews(data.splits["train"], recipe, 0), time.perf_counter()
    features = cache_views(extraction, views, 1, bench.folder / "features")
    rate = len(features) / (time.perf_counter() - begin)
    bench.row("features, loader's start included", rate, "images/s")
    set_trainable(model, phase)
    optimizer = make_optimizer(model, phase, recipe)
    on_features = HeadsOnFeatures(model)
    work = Work(on_features, optimizer, compute.scaler(), compute, phase, recipe, batch, batch)
    sampler = EpochSampler(len(features), batch, 0)
    loader, spent = make_loader(features, 0, sampler=sampler), []
    for epoch in range(3):
        begin, sampler.epoch = time.perf_counter(), epoch
        for _ in train_epoch(work, loader, epoch, 0, len(sampler)):
            pass
        wait()
        spent.append((time.perf_counter() - begin) / (len(sampler) * batch))
    label = "02a, compile on" if bench.found("train", f"02a, compile on: {LATER}") else "02a"
    ours = bench.found("train", f"{label}: {LATER}")
    against = ("02a on images", ours) if ours else ""
    bench.row("heads on cached features", 1 / float(np.median(spent[1:])), "images/s", against)


# endregion

SECTIONS = {
    "card": card,
    "step": step_times,
    "precisions": precisions,
    "ladder": ladder,
    "heads": heads,
    "cached": cached,
}
