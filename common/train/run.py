"""One training run in its folder: flags, resume, the loop over batches, logs, checkpoints, and what
is left at the end.
"""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from common.console import Stopwatch, fail, progress, say, warn
from common.files import write_text
from common.train import checkpoint, loop
from common.train.cached_features import HeadsOnFeatures, cache_phase
from common.train.compiling import BackboneCompiler
from common.train.compute import Compute
from common.train.dataset import EvalViews, Feed, TrainViews, make_loader, phase_sampler
from common.train.live_logs import LiveLog, MemoryLog
from common.train.machine import Setup
from common.train.metrics import Judged, for_json, join, summarise, tail_f1
from common.train.model import SwinHierarchical
from common.train.optim import Average, make_optimizer, rate_at, set_trainable
from common.train.recipes import Phase, Recipe
from common.train.report_page import write_reports
from common.train.signals import StopRequest


class Run(contextlib.AbstractContextManager["Run"]):
    """A training run that can be killed at any moment and started again.

    All state is in `last.pt`: weights, optimizer, epoch, step, history. The random draws follow
    from (seed, epoch, step), so that a resumed run takes the same steps as one never stopped.
    Train inside a `with`: however that ends, no worker of a loader is left.
    """

    def __init__(
        self,
        folder: Path,
        phases: list[Phase],
        model: SwinHierarchical,
        setup: Setup,
        start_from: str,
    ) -> None:
        """Begin at epoch 0; `start_from` names the initial weights, which must be the same on a
        resume.
        """
        self.folder, self.phases, self.model, self.setup = folder, phases, model, setup
        self.args, self.data, self.recipe = setup.args, setup.data, setup.recipe
        self.compute, self.world = setup.compute, setup.world
        self.identity = setup.identity() | {"start_from": start_from}
        self.total_epochs = sum(phase.epochs for phase in phases)
        self.epochs_done = self.step = 0
        self.loss_sum = self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.resumed: dict[str, Any] | None = None
        self.work: loop.Work | None = None
        self.memory = MemoryLog(folder, fresh=self.args.fresh)
        self.skipped = 0
        self.compiler = BackboneCompiler(self.args.compile, self.compute, self.world)
        self.open = contextlib.ExitStack()  # what ends with the phase, or with the run

    def __exit__(self, *_: object) -> None:
        self.open.close()

    # region start and resume

    def resume(self) -> None:
        """Load `last.pt` if there is one.

        Raises:
            SystemExit: where the folder holds a run with other settings.
        """
        last = self.folder / "last.pt"
        if self.args.fresh and self.world.is_main:
            for old in [*self.folder.glob("*.pt*"), *self.folder.glob("report.*")]:
                old.unlink(missing_ok=True)
        self.world.barrier()
        if not last.is_file():
            return
        payload = checkpoint.load(last)
        checkpoint.require_tree(payload, self.data.tree, last, self.data.root)
        theirs = payload["identity"]
        odd = [
            f"{k} is {self.identity.get(k)!s:.60}, was {theirs.get(k)!s:.60}"
            for k in sorted(self.identity | theirs)
            if self.identity.get(k) != theirs.get(k)
        ]
        if odd:
            fail(
                f"{self.folder} holds a run with other settings ({'; '.join(odd[:4])}). Add "
                "--fresh to start over (its checkpoints are deleted), or choose another "
                "--checkpoints folder."
            )
        self.model.load_state_dict(payload["model"])
        self.epochs_done, self.step = payload["epochs_done"], payload["step"]
        self.loss_sum, self.seconds = payload["loss_sum"], payload["seconds"]
        self.history = payload["history"]
        if self.epochs_done < self.total_epochs:
            self.resumed = payload
            say(
                f"going on with {last}: {self.epochs_done} of {self.total_epochs} epochs done"
                + (f" and {self.step} steps of the next" if self.step else "")
            )

    def epochs(self) -> Iterator[tuple[int, Phase]]:
        """Yield (epoch counted from 0 over all phases, its phase), with model and optimizer ready
        for it.
        """
        if self.epochs_done >= self.total_epochs:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.world.is_main:
            write_text(self.folder / "config.json", json.dumps(self.setup.config(), indent=1))
            self.live = LiveLog(self.folder, self.epochs_done)
            self.memory.note("loaded")
        self.model.to(self.compute.device, memory_format=torch.channels_last)
        self.model.run_backbone = self.compiler
        first = 0
        for phase in self.phases:
            self.phase, self.phase_start = phase, first
            if first + phase.epochs > self.epochs_done:
                self._begin_phase(phase)
            for epoch in range(first, first + phase.epochs):
                if epoch >= self.epochs_done:  # a phase that ended early counts as done
                    set_trainable(self.model, phase)
                    yield epoch, phase
            first += phase.epochs
            self.open.close()
            if self.average is not None:
                self.average.copy_to(self.model)
        self.world.barrier()  # the others read what the first wrote
        if self.world.is_main:
            self.live.close()
            # gigabytes that nobody needs any more
            shutil.rmtree(self.folder / "features", ignore_errors=True)

    def _begin_phase(self, phase: Phase) -> None:
        saved, self.resumed = self.resumed or {}, None
        within = saved.get("phase") == phase.name and saved["optimizer"] is not None
        if not within and saved.get("ema") is not None:
            # the phase that ended gave its average to this one
            self.model.load_state_dict(saved["ema"])
        recipe = self.recipe
        if phase.cached_views:
            recipe = replace(recipe, mix_share=0.0)  # pixels can be mixed, features cannot
        self.sampler = phase_sampler(phase, self.data, recipe, self.args.seed, self.world)
        if phase.prior:
            self.model.use_counts(self.data.train_sizes)
        self.work = work = self._work(phase, recipe)
        self.open.callback(work.gradients.close)
        if within:
            work.optimizer.load_state_dict(saved["optimizer"])
            work.scaler.load_state_dict(saved["scaler"])
            self.skipped += saved["skipped"]
            if work.average is not None:
                work.average.model.load_state_dict(saved["ema"])

    def _work(self, phase: Phase, recipe: Recipe) -> loop.Work:
        """What the steps of a phase work with, and the feeds of their batches and of val's."""
        args, pin_memory = self.args, self.compute.on_gpu
        model, teacher, workers = self.model, self.setup.teacher, args.workers
        images: Any = TrainViews(self.data.splits["train"], recipe, args.seed)
        self.sampler.start(range(self.epochs_done, self.phase_start + phase.epochs), self.step)
        batch_size = min(recipe.batch_size, self.sampler.count)
        self.compiler.begin(*self._sizes(batch_size))
        if phase.cached_views:  # the backbone stands still: its features are computed once
            images, self.val_batches = cache_phase(phase, model, self.setup, self.folder)
            self.compiler.begin()
            model, teacher, workers = HeadsOnFeatures(model), None, 0
        else:
            views, size = EvalViews(self.data.splits["val"], recipe.image_size), self.eval_batch
            mine = range(len(views))[self.world.share(len(views))]
            batches = [mine[i : i + size] for i in range(0, len(mine), size)]
            loader = make_loader(views, workers, sampler=cycle(batches), pin_memory=pin_memory)
            self.val_batches = self._feed(loader, len(batches))
        loader = make_loader(images, workers, sampler=self.sampler, pin_memory=pin_memory)
        self.train_batches = self._feed(loader, len(self.sampler))
        set_trainable(self.model, phase)
        return loop.Work(
            model=model,
            optimizer=make_optimizer(self.model, phase, recipe),
            scaler=self.compute.scaler(),
            compute=self.compute,
            phase=phase,
            recipe=recipe,
            batch_size=batch_size,
            device_batch=args.device_batch,
            first_epoch=self.phase_start,
            seed=args.seed,
            average=Average(self.model, recipe.ema_decay) if recipe.ema_decay else None,
            teacher=teacher,
            world=self.world,
            skip_nan=args.skip_nan,
        )

    def _feed(self, loader: DataLoader[Any], batches: int) -> Feed:
        return self.open.enter_context(contextlib.closing(Feed(loader, batches)))

    def _sizes(self, batch_size: int) -> set[int]:
        """Images that go through the network at once: pieces of this process's share of a batch,
        and val's batches.
        """
        share = self.world.share(batch_size)
        mine, at_once = share.stop - share.start, self.args.device_batch
        return {min(at_once, mine), mine % at_once, self.eval_batch} - {0}

    @property
    def eval_batch(self) -> int:
        """Images per batch of val."""
        return min(128, max(64, self.args.device_batch))

    @property
    def average(self) -> Average | None:
        """Moving average of the weights in the present phase."""
        return self.work.average if self.work else None

    @property
    def models(self) -> list[SwinHierarchical]:
        """What learns, and its average where there is one."""
        return [self.model, *([self.average.model] if self.average else [])]

    # endregion

    # region the epoch

    def train_epoch(self, epoch: int, phase: Phase) -> float:
        """Train one epoch, from the step at which the run stopped if it did.

        Returns:
            mean loss of its batches.

        Raises:
            SystemExit: after saving, where a signal asked to stop; or where the loss is not finite,
                or the device cannot hold a single image.
        """
        steps, first, noted = len(self.sampler), self.step, (0.0, self.step)
        clock, before, saved, waited = Stopwatch(), self.seconds, time.monotonic(), 0.0
        losses = loop.train_epoch(
            self.work, self.train_batches, epoch, first, steps, take_step=self.take_step
        )
        title = f"{phase.name} {epoch + 1}/{self.total_epochs}"
        unread: list[Tensor] = []  # losses that are still on the device
        with StopRequest() as stop, progress(losses, steps - first, title, "step") as bar:
            for loss, seconds in bar:
                waited += seconds
                unread.append(loss)
                self.step += 1
                stopping = self.world.any(bool(stop.asked))
                minutes = (time.monotonic() - saved) / 60
                due = self.world.any(minutes > self.args.save_minutes) and self.step < steps
                logged = self.step % 20 == 0 or self.step == steps
                if logged or stopping or due:  # reading a loss waits for the device: rarely
                    self._read_losses(unread)
                    require_finite(self.loss_sum, epoch, self.step - 1, self.compute)
                if logged:
                    seconds_per_step = (clock() - noted[0]) / (self.step - noted[1])
                    noted = (clock(), self.step)
                    phase_end = (self.phase_start + phase.epochs - epoch) * steps
                    self.compiler.note(seconds_per_step, phase_end - self.step)
                    rate = (self.step - first) / clock() * self.recipe.batch_size
                    bar.set_postfix_str(self._postfix(waited / clock(), rate), refresh=False)
                if stopping or due:
                    self.seconds, saved = before + clock(), time.monotonic()
                    self.save_last()
                if stopping:
                    say(
                        f"stopped by {stop.asked or 'a signal'} after step {self.step} of {steps} "
                        f"of epoch {epoch + 1}, and saved. The same command goes on from there."
                    )
                    raise SystemExit(143)
        self.seconds, self.wait_share = before + clock(), waited / max(clock(), 1e-9)
        if self.wait_share > 0.1 and clock() > 10:  # the protocol wants the device 90 % busy
            warn(
                f"{self.wait_share:.0%} of the time was spent waiting for images: more --workers, "
                "a faster disk or smaller stored images (01_reorganize.py --long-side) would help."
            )
        self.world.average_buffers(*self.models)
        if self.world.any(clock() > 60):
            self.save_last()  # a kill during the evaluation costs no epoch
        return self.loss_sum / steps

    def _read_losses(self, unread: list[Tensor]) -> None:
        """Add up losses; a step that was left out (--skip-nan) counts as one of mean loss."""
        done = self.step - len(unread)
        for i, loss in enumerate(torch.stack(unread).tolist(), done):
            if self.args.skip_nan and math.isinf(loss):
                self.skipped += 1
                loss = self.loss_sum / max(i, 1)
            self.loss_sum += loss
        unread.clear()

    def take_step(self, work: loop.Work, *batch: Any) -> Tensor:
        """Take a training step, in smaller pieces where memory runs out. It is the same step, as
        its draws depend on (seed, epoch, step) alone.
        """
        while True:
            try:
                return loop.training_step(work, *batch)
            except loop.OutOfMemory:
                if work.device_batch == 1:
                    fail(
                        "the device cannot hold a single image of this model: choose a smaller "
                        "--image-size or --backbone."
                    )
                self.args.device_batch = work.device_batch = -(-work.device_batch // 2)
                self.compute.empty_cache()
                self.compiler.sizes |= self._sizes(work.batch_size)
                warn(
                    f"out of memory: going on with {work.device_batch} images at once and "
                    f"{-(-work.batch_size // work.device_batch)} pieces per step, the same "
                    f"{work.batch_size} images in all (--device-batch {work.device_batch} starts "
                    "so)"
                )

    def _postfix(self, waiting: float, rate: float) -> str:
        gigabytes = torch.cuda.max_memory_reserved() / 2**30 if self.compute.on_gpu else 0.0
        told = f"loss {self.loss_sum / self.step:.3f}, {rate:.0f} img/s, waiting for data"
        return f"{told} {waiting:.0%}" + (f", GPU {gigabytes:.1f} GB" if gigabytes else "")

    def evaluate(self) -> tuple[Judged, dict[str, float]]:
        """Judge the model, or its average where there is one, on val: outcomes per picture, and
        their summary.
        """
        model = self.average.model if self.average else self.model
        model = HeadsOnFeatures(model) if self.work.phase.cached_views else model
        judged = loop.evaluate(model, self.val_batches, self.compute)
        judged = join(self.world.gather(judged))
        return judged, summarise(judged, self.data.tree, self.data.class_sizes)

    def end_epoch(self, epoch: int, phase: Phase, loss: float, metrics: dict[str, float]) -> bool:
        """Record an epoch: history, log.jsonl, a printed row. A phase that has not improved for
        `patience` epochs ends here.

        Returns:
            whether this is the best epoch so far, by what the phase asks for.
        """
        score, steps = phase.score(metrics), len(self.sampler)
        nll = metrics["species_nll"] + metrics["disease_nll"]
        require_finite(nll, epoch, steps - 1, self.compute)  # before any save
        best = all(score > row["score"] for row in self.history)
        last_step, all_steps = (epoch + 1 - self.phase_start) * steps - 1, phase.epochs * steps
        rates = [g["lr"] for g in self.work.optimizer.param_groups if not g["head"]]
        row = for_json(
            {
                "epoch": epoch + 1,
                "phase": phase.name,
                "train_loss": loss,
                "score": score,
                "lr": rate_at(phase, last_step, all_steps),
                "backbone_lr": max(rates, default=0.0),
                "seconds": round(self.seconds, 1),
                "images_per_second": round(steps * self.recipe.batch_size / self.seconds, 1),
                "wait_share": round(self.wait_share, 3),
                "skipped_steps": self.skipped,
                **{k: v for k, v in metrics.items() if k != "n"},
            }
        )
        if torch.cuda.is_available():
            row["gpu_peak_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
        self.history.append(row)
        self.epochs_done, self.step, self.loss_sum, self.seconds = epoch + 1, 0, 0.0, 0.0
        self.skipped = 0
        scores = [r["score"] for r in self.history if r["phase"] == phase.name]
        stalled = 0 < phase.patience <= len(scores) - 1 - int(np.argmax(scores))
        if stalled and self.epochs_done < self.phase_start + phase.epochs:
            row["stopped_early"] = True
            self.epochs_done = self.phase_start + phase.epochs
            say(f"{phase.name} ends early: no better for {phase.patience} epochs")
        if self.world.is_main:
            lines = [json.dumps(r) + "\n" for r in self.history]
            write_text(self.folder / "log.jsonl", "".join(lines))
            self.live.write(row, epoch + 1)
            self.memory.note(f"epoch {epoch + 1}")
        say(
            f"{phase.name:<17} {epoch + 1:>3}/{self.total_epochs}  loss {loss:.4f}  "
            f"species {metrics['species_top1']:.4f}  disease {metrics['disease_top1']:.4f}  "
            f"cascade {metrics['cascade_top1']:.4f}  macro F1 {metrics['macro_f1']:.4f}  "
            f"tail F1 {metrics['tail_f1']:.4f}  {row['images_per_second']:.0f} img/s"
            f"{'  *' if best else ''}"
        )
        return best

    # region checkpoints

    def payload(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Return what every checkpoint of this run holds, without the state of the optimizer."""
        return {
            **checkpoint.describe_model(self.model),
            "identity": self.identity,
            "epochs_done": self.epochs_done,
            "metrics": metrics,
            "ema": self.average.model.state_dict() if self.average else None,
            "recipe": asdict(self.recipe),
            "provenance": checkpoint.provenance(),
            "manifest_hash": self.data.manifest_hash,
            "rng": {"seed": self.args.seed, "is": "f(seed, epoch, step)"},
        }

    def save(self, name: str, judged: Judged, metrics: dict[str, float]) -> None:
        """Save the model under a name, with the F1 of each rare disease among its metrics."""
        if self.world.is_main:
            rare = tail_f1(judged, self.data.tree, self.data.class_sizes)
            payload = self.payload(metrics | {"tail_f1_per_class": rare})
            checkpoint.save(self.folder / name, payload)

    def save_best(self, name: str, judged: Judged, metrics: dict[str, float]) -> None:
        """Save the model as the best so far and delete the best before it."""
        self.save(name, judged, metrics)
        for old in self.folder.glob("*-best.pt"):
            if self.world.is_main and old.name != name:
                old.unlink()

    def save_last(self) -> None:
        """Save everything needed to go on."""
        self.world.average_buffers(*self.models)
        if not self.world.is_main:
            return
        mid_phase = self.epochs_done < self.phase_start + self.phase.epochs
        checkpoint.save(
            self.folder / "last.pt",
            {
                **self.payload(self.history[-1] if self.history else {}),
                "step": self.step,
                "loss_sum": self.loss_sum,
                "skipped": self.skipped,
                "seconds": self.seconds,
                "history": self.history,
                "phase": self.phase.name,
                "optimizer": self.work.optimizer.state_dict() if mid_phase else None,
                "scaler": self.work.scaler.state_dict(),
            },
        )

    # endregion

    def finish(self, best: Path, title: str) -> None:
        """Write curves, confusion matrix and report of the best checkpoint, judged on val, unless
        they are there.
        """
        if not self.world.is_main:
            return
        if (self.folder / "report.html").is_file() and self.work is None:  # the last file of it
            say(
                f"{self.folder} is trained already: {self.total_epochs} epochs (--fresh repeats it)"
            )
            return
        compute, views = self.compute, EvalViews(self.data.splits["val"], self.recipe.image_size)
        model = checkpoint.build_model(checkpoint.load(best))
        model.to(compute.device, memory_format=torch.channels_last)
        workers, size = self.args.workers, self.eval_batch
        batches = make_loader(views, workers, batch_size=size, pin_memory=compute.on_gpu)
        logs = {"history": self.history, "memory": self.memory.table()}
        parts = model, batches, self.data, compute
        write_reports(self.folder, best, *parts, split="val", title=title, **logs)


def require_finite(loss: float, epoch: int, step: int, compute: Compute) -> None:
    """Stop over a loss that is not a number, with what to try; nothing has been saved since the
    last good checkpoint.

    Raises:
        SystemExit: where the loss is NaN or infinite.
    """
    if not math.isfinite(loss):
        overflow = " fp16 overflows in Swin's attention: use --precision bf16."
        fail(
            f"the loss is {loss} in epoch {epoch + 1}, around step {step}."
            f"{overflow if compute.dtype == torch.float16 else ''} Try a tenth of the learning "
            "rate, or --precision fp32, which tells overflow from divergence. The last checkpoint "
            "is good: the same command with another --precision goes on from it; with another "
            "rate, add --fresh to start over."
        )
