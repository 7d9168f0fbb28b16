"""One training run in its folder: flags, resume, the loop over batches, logs, checkpoints, and what is left at the end."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from common import checkpoint, plots
from common.augment import draw_mix
from common.console import Stopwatch, fail, header, progress, say, table, warn
from common.dataset import (
    EpochSampler,
    EvalViews,
    Organized,
    TrainViews,
    boost_weights,
    make_loader,
    rare_weights,
)
from common.engine import (
    Compute,
    evaluate,
    make_optimizer,
    rate_at,
    require_finite,
    seed_step,
    set_trainable,
    training_step,
)
from common.files import write_text
from common.metrics import Judged, for_json, summarise
from common.model import SwinHierarchical
from common.recipes import Phase, Recipe


class Run:
    """A training run that can be killed at any moment and started again.

    All state is in `last.pt`: weights, optimizer, epoch, step, history. The random draws follow from (seed, epoch, step),
    so that a resumed run takes the same steps as one never stopped.
    """

    def __init__(self, folder: Path, phases: list[Phase], *, model: SwinHierarchical, data: Organized, recipe: Recipe,
                 recipe_name: str, overridden: dict[str, Any], compute: Compute, args: argparse.Namespace,
                 start_from: str) -> None:
        """Prepare the folder; `start_from` names the initial weights, as part of what must not change on a resume."""
        self.folder, self.phases, self.model, self.data, self.recipe = folder, phases, model, data, recipe
        self.compute, self.args = compute, args
        self.identity = {"recipe": recipe_name, **{k: v for k, v in asdict(recipe).items() if k != "source"}, "seed": args.seed,
                         "data": data.manifest_hash, "start_from": start_from}
        self.config = {key: {"value": value, "from": "flag" if key in overridden else f"recipe {recipe_name}"}
                       for key, value in asdict(recipe).items()}
        self.config |= {key: {"value": str(value), "from": "machine"} for key, value in vars(args).items()
                        if key in ("device", "precision", "device_batch", "workers", "data", "seed", "weights")}
        self.config["compute"] = {"value": str(compute), "from": "derived"}
        self.epochs_done = self.step = 0
        self.loss_sum = self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.resumed: dict[str, Any] | None = None
        self.trained = False  # whether this process trained anything
        self.val = make_loader(EvalViews(data.splits["val"], recipe.image_size), args.workers,
                               batch_size=min(256, max(64, args.device_batch)))

    # region start and resume

    def resume(self) -> None:
        """Load `last.pt` if there is one.

        Raises:
            SystemExit: where the folder holds a run with other settings.
        """
        last = self.folder / "last.pt"
        if self.args.fresh:
            for old in [*self.folder.glob("*.pt*"), self.folder / "report.md"]:
                old.unlink(missing_ok=True)
        if not last.is_file():
            return
        payload = checkpoint.load(last)
        checkpoint.require_tree(payload, self.data.tree, last, self.data.root)
        theirs = payload["identity"]
        odd = [f"{k} is {self.identity.get(k)!s:.60}, was {theirs.get(k)!s:.60}" for k in sorted(self.identity | theirs)
               if self.identity.get(k) != theirs.get(k)]
        if odd:
            fail(f"{self.folder} holds a run with other settings ({'; '.join(odd[:4])}). Add --fresh to start over (its "
                 "checkpoints are deleted), or choose another --checkpoints folder.")
        self.model.load_state_dict(payload["model"])
        self.epochs_done, self.step = payload["epochs_done"], payload["step"]
        self.loss_sum, self.seconds, self.history = payload["loss_sum"], payload["seconds"], payload["history"]
        if self.epochs_done < self.total_epochs:
            self.resumed = payload
            say(f"going on with {last}: {self.epochs_done} of {self.total_epochs} epochs done"
                + (f" and {self.step} steps of the next" if self.step else ""))

    @property
    def total_epochs(self) -> int:
        """Epochs of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def epochs(self) -> Iterator[tuple[int, Phase]]:
        """Yield (epoch counted from 0 over all phases, its phase), with model and optimizer ready for it."""
        if self.epochs_done >= self.total_epochs:
            return
        self.trained = True
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "config.json", json.dumps(self.config, indent=1))
        self.model.to(self.compute.device, memory_format=torch.channels_last)
        first = 0
        for phase in self.phases:
            self.phase, self.phase_start = phase, first
            if first + phase.epochs > self.epochs_done:
                self._begin_phase(phase)
            for epoch in range(first, first + phase.epochs):
                if epoch >= self.epochs_done:
                    set_trainable(self.model, phase)
                    yield epoch, phase
            first += phase.epochs

    def _begin_phase(self, phase: Phase) -> None:
        split, recipe = self.data.splits["train"], self.recipe
        weigh = {"rare": rare_weights, "boost": boost_weights}.get(phase.sampling)
        weights = weigh(split, self.data.class_sizes, recipe) if weigh else None
        self.sampler = EpochSampler(len(split), recipe.batch_size, self.args.seed, weights)
        self.loader = make_loader(TrainViews(split, recipe, self.args.seed), self.args.workers, sampler=self.sampler,
                                  pin_memory=self.compute.device.type == "cuda")
        set_trainable(self.model, phase)
        self.optimizer, self.scaler = make_optimizer(self.model, phase, recipe), self.compute.scaler()
        if self.resumed and self.resumed["phase"] == phase.name and self.resumed["optimizer"]:
            self.optimizer.load_state_dict(self.resumed["optimizer"])
            self.scaler.load_state_dict(self.resumed["scaler"])
        self.resumed = None

    # endregion

    def train_epoch(self, epoch: int, phase: Phase) -> float:
        """Train one epoch, from the step at which the run stopped if it did.

        Returns:
            the mean loss of its batches.
        """
        steps, args, device = len(self.sampler), self.args, self.compute.device
        self.sampler.epoch, self.sampler.first_step = epoch, self.step
        total = torch.tensor(self.loss_sum, dtype=torch.float64, device=device)
        clock, before, saved, waited = Stopwatch(), self.seconds, time.monotonic(), 0.0
        batches = iter(self.loader)
        with progress(range(self.step, steps), desc=f"{phase.name} {epoch + 1}/{self.total_epochs}", unit="step") as bar:
            for step in bar:
                asked = time.perf_counter()
                images, leaf = next(batches)
                waited += time.perf_counter() - asked
                images, leaf = images.to(device, non_blocking=True), leaf.to(device, non_blocking=True)
                # the step's randomness: mixing from rng, dropout and stochastic depth from torch's generator
                rng = seed_step(args.seed, epoch, step)
                mix = draw_mix(len(images), self.recipe.image_size, self.recipe, rng, device)
                done = (epoch - self.phase_start) * steps + step
                total += training_step(self.model, self.optimizer, self.scaler, images, leaf, mix, phase=phase,
                                       recipe=self.recipe, compute=self.compute, device_batch=args.device_batch,
                                       rate=rate_at(phase, done, phase.epochs * steps))
                self.step = step + 1
                if step % 20 == 19 or self.step == steps:
                    require_finite(float(total), epoch, step, self.compute)
                    bar.set_postfix_str(f"loss {float(total) / self.step:.3f}, waiting for data {waited / clock():.0%}", refresh=False)
                if time.monotonic() - saved > 60 * args.save_minutes and self.step < steps:
                    require_finite(float(total), epoch, step, self.compute)
                    self.loss_sum, self.seconds, saved = float(total), before + clock(), time.monotonic()
                    self.save_last()
        self.seconds, self.wait_share = before + clock(), waited / max(clock(), 1e-9)
        if self.wait_share > 0.1 and clock() > 10:  # the protocol wants the device busy for 90 % of the time
            warn(f"{self.wait_share:.0%} of the time went into waiting for pictures: more --workers, a faster disk, or smaller "
                 "stored pictures (01_reorganize.py --long-side) would help.")
        return float(total) / steps

    def evaluate(self) -> tuple[Judged, dict[str, float]]:
        """Judge the model on val: outcomes per picture, and their summary."""
        judged = evaluate(self.model, self.val, self.compute)
        return judged, summarise(judged, self.data.tree, self.data.class_sizes)

    def end_epoch(self, epoch: int, phase: Phase, loss: float, metrics: dict[str, float], score: float) -> bool:
        """Record an epoch: history, log.jsonl, a printed row.

        Args:
            score: what the run chooses its best epoch by, larger = better.

        Returns:
            whether this is the best epoch so far.
        """
        require_finite(metrics["species_nll"] + metrics["disease_nll"], epoch, len(self.sampler) - 1, self.compute)  # before any save
        best = all(score > row["score"] for row in self.history)
        steps = len(self.sampler)
        row = for_json({"epoch": epoch + 1, "phase": phase.name, "train_loss": loss, "score": score,
               "lr": rate_at(phase, (epoch + 1 - self.phase_start) * steps - 1, phase.epochs * steps),
               "seconds": round(self.seconds, 1), "images_per_second": round(steps * self.recipe.batch_size / self.seconds, 1),
               "wait_share": round(self.wait_share, 3), **{k: v for k, v in metrics.items() if k != "n"}})
        if torch.cuda.is_available():
            row["gpu_peak_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
        self.history.append(row)
        self.epochs_done, self.step, self.loss_sum, self.seconds = epoch + 1, 0, 0.0, 0.0
        write_text(self.folder / "log.jsonl", "".join(json.dumps(r) + "\n" for r in self.history))
        say(f"{phase.name:<17} {epoch + 1:>3}/{self.total_epochs}  loss {loss:.4f}  species {metrics['species_top1']:.4f}  "
            f"disease {metrics['disease_top1']:.4f}  cascade {metrics['cascade_top1']:.4f}  macro F1 {metrics['macro_f1']:.4f}  "
            f"tail F1 {metrics['tail_f1']:.4f}  {row['images_per_second']:.0f} img/s{'  *' if best else ''}")
        return best

    # region checkpoints

    def payload(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Return what every checkpoint of this run holds, without the state of the optimizer."""
        return {**checkpoint.describe_model(self.model), "identity": self.identity, "epochs_done": self.epochs_done,
                "metrics": metrics, "ema": None, "recipe": asdict(self.recipe), "provenance": checkpoint.provenance(),
                "manifest_hash": self.data.manifest_hash, "rng": {"seed": self.args.seed, "is": "f(seed, epoch, step)"}}

    def save(self, name: str, judged: Judged, metrics: dict[str, float]) -> None:
        """Save the model under a name, with the F1 of each rare disease among its metrics."""
        checkpoint.save(self.folder / name,
                        self.payload({**metrics, "tail_f1_per_class": plots.tail_f1(judged, self.data.tree, self.data.class_sizes)}))

    def save_best(self, name: str, judged: Judged, metrics: dict[str, float]) -> None:
        """Save the model as the best so far and delete the best before it."""
        self.save(name, judged, metrics)
        for old in self.folder.glob("*-best.pt"):
            if old.name != name:
                old.unlink()

    def save_last(self) -> None:
        """Save everything needed to go on."""
        mid_phase = self.epochs_done < self.phase_start + self.phase.epochs
        checkpoint.save(self.folder / "last.pt", {
            **self.payload(self.history[-1] if self.history else {}), "step": self.step, "loss_sum": self.loss_sum,
            "seconds": self.seconds, "history": self.history, "phase": self.phase.name,
            "optimizer": self.optimizer.state_dict() if mid_phase else None, "scaler": self.scaler.state_dict()})

    # endregion

    def finish(self, best: Path, title: str) -> None:
        """Write curves, confusion matrix and report of the best checkpoint, judged on val, unless they are there."""
        if (self.folder / "report.md").is_file() and not self.trained:
            say(f"{self.folder} is trained already ({self.total_epochs} epochs). --fresh trains it again.")
            return
        model = checkpoint.build_model(checkpoint.load(best)).to(self.compute.device, memory_format=torch.channels_last)
        judged = evaluate(model, self.val, self.compute)
        metrics = summarise(judged, self.data.tree, self.data.class_sizes)
        plots.curves(self.history, self.folder / "curves.png")
        plots.confusion(judged, self.data.tree, self.folder / "confusion.png")
        rows = plots.class_rows(judged, self.data.tree, self.data.class_sizes)
        text = [f"# {title}", "", f"Best checkpoint: `{best.name}`, judged on the val split ({metrics['n']} pictures).", "",
                table([(k, f"{v:.4f}" if isinstance(v, float) else v) for k, v in metrics.items()], ("metric", "val")), "",
                "![curves](curves.png) ![confusion](confusion.png)", "", "## Classes, rarest first", "",
                table(rows, ("class", "pictures", "val pictures", "precision", "recall", "F1")), ""]
        write_text(self.folder / "report.md", "\n".join(text))
        header(title)
        say(f"best: {best} - species {metrics['species_top1']:.4f}, disease {metrics['disease_top1']:.4f}, "
            f"cascade {metrics['cascade_top1']:.4f} on val", f"report: {self.folder / 'report.md'}")
