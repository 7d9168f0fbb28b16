"""The loop over the batches of an epoch: what happens between a picture's arrival and the
optimizer's step, and around it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from common.console import Stopwatch, fail, progress, say, warn
from common.train.augment import Mix, draw_mix
from common.train.engine import DeviceFull, require_finite, step_draws, training_step
from common.train.optim import rate_at
from common.train.recipes import Phase, Recipe
from common.train.signals import StopRequest

if TYPE_CHECKING:
    from common.train.run import Run


def train_epoch(run: Run, epoch: int, phase: Phase) -> float:
    """Train one epoch, from the step at which the run stopped if it did.

    Returns:
        the mean loss of its batches.

    Raises:
        SystemExit: after saving, where a signal asked to stop; or where the loss is no number or
            memory runs out for good.
    """
    steps, args, device = len(run.sampler), run.args, run.compute.device
    run.sampler.epoch, run.sampler.first_step = epoch, run.step
    total = torch.tensor(run.loss_sum, dtype=torch.float64, device=device)
    clock, before, saved, waited, started = (
        Stopwatch(),
        run.seconds,
        time.monotonic(),
        0.0,
        run.step,
    )
    batches = iter(run.loader)
    with (
        StopRequest() as stop,
        progress(
            range(run.step, steps), desc=f"{phase.name} {epoch + 1}/{run.total_epochs}", unit="step"
        ) as bar,
    ):
        for step in bar:
            asked = time.perf_counter()
            images, class_idx = next(batches)
            waited += time.perf_counter() - asked
            images, class_idx = (
                images.to(device, non_blocking=True),
                class_idx.to(device, non_blocking=True),
            )
            loss = take_step(run, images, class_idx, epoch, step, phase)
            # a step that was left out (--skip-nan) counts as one of mean loss, so that one bad
            # batch does not hide the rest
            skipped = (
                torch.isinf(loss)
                if args.skip_nan
                else torch.zeros((), dtype=torch.bool, device=device)
            )
            total += torch.where(skipped, total / max(step, 1), loss)
            run.skipped += skipped
            run.step = step + 1
            if run.average is not None:
                run.average.update(run.model, (epoch - run.phase_start) * steps + step)
            if step % 20 == 19 or run.step == steps:
                require_finite(float(total), epoch, step, run.compute)
                bar.set_postfix_str(
                    _progress(run, float(total), waited / clock(), (run.step - started) / clock()),
                    refresh=False,
                )
            stopping = run.world.any(bool(stop.asked), device)
            if stopping or time.monotonic() - saved > 60 * args.save_minutes and run.step < steps:
                require_finite(float(total), epoch, step, run.compute)
                run.loss_sum, run.seconds, saved = float(total), before + clock(), time.monotonic()
                run.save_last()
            if stopping:
                say(
                    f"stopped by {stop.asked or 'a signal'} after step {run.step} of {steps} of "
                    f"epoch {epoch + 1}, and saved. The same "
                    "command goes on from there."
                )
                raise SystemExit(143)
    run.seconds, run.wait_share = before + clock(), waited / max(clock(), 1e-9)
    if (
        run.wait_share > 0.1 and clock() > 10
    ):  # the protocol wants the device busy for 90 % of the time
        warn(
            f"{run.wait_share:.0%} of the time went into waiting for pictures: more --workers, a "
            f"faster disk, or smaller "
            "stored pictures (01_reorganize.py --long-side) would help."
        )
    run.world.average_buffers(run.model)
    run.loss_sum = float(total)
    if clock() > 60:
        run.save_last()  # a kill while val is judged costs no epoch
    return float(total) / steps


def take_step(
    run: Run, images: Tensor, class_idx: Tensor, epoch: int, step: int, phase: Phase
) -> Tensor:
    """Take a step, in smaller pieces where memory runs out; the same step, as its draws depend on
    (seed, epoch, step) alone."""
    steps, args = len(run.sampler), run.args
    seed, rng = step_draws(args.seed, epoch, step)
    count = min(run.recipe.batch_size, run.sampler.count)
    recipe = (
        run.recipe if images.dim() == 4 else replace(run.recipe, mix_share=0.0)
    )  # cached features cannot be mixed
    mix = draw_mix(count, recipe.image_size, recipe, rng, images.device)
    if (
        run.world.size > 1
    ):  # this process has its own rows, and behind them those they are mixed with
        share = run.world.share(count)
        own = share.stop - share.start
        rows = torch.arange(own, device=images.device)
        mix = Mix(rows + own if mix.share < 1 else rows, mix.share, mix.box)
    while True:
        try:
            return training_step(
                run.model,
                run.optimizer,
                run.scaler,
                images,
                class_idx,
                mix,
                phase=phase,
                recipe=run.recipe,
                compute=run.compute,
                rate=rate_at(phase, (epoch - run.phase_start) * steps + step, phase.epochs * steps),
                device_batch=args.device_batch,
                seed=seed,
                skip_nan=args.skip_nan,
                teacher=run.teacher,
                world=run.world,
                count=count,
            )
        except DeviceFull:
            if args.device_batch == 1:
                fail(
                    "the device's memory does not hold a single picture of this model: a smaller "
                    "--image-size or --backbone."
                )
            args.device_batch = -(-args.device_batch // 2)
            if images.device.type == "cuda":
                torch.cuda.empty_cache()
            warn(
                f"out of memory: going on with {args.device_batch} pictures at once and "
                f"{-(-count // args.device_batch)} pieces per "
                f"step, the same {count} pictures in all (--device-batch {args.device_batch} "
                f"starts so)"
            )


def _progress(run: Run, total: float, waiting: float, rate: float) -> str:
    parts = [
        f"loss {total / run.step:.3f}",
        f"{rate * run.recipe.batch_size:.0f} img/s",
        f"waiting for data {waiting:.0%}",
    ]
    if run.compute.device.type == "cuda":
        parts.append(f"GPU {torch.cuda.max_memory_reserved() / 2**30:.1f} GB")
    return ", ".join(parts)


def partners(recipe: Recipe, seed: int, epoch: int, step: int, count: int) -> np.ndarray | None:
    """With which row each row of a batch is mixed; the loaders of several processes must know
    before the step does."""
    mix = draw_mix(
        count, recipe.image_size, recipe, step_draws(seed, epoch, step)[1], torch.device("cpu")
    )
    return mix.partner.numpy() if mix.share < 1 else None
