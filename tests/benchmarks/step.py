"""What the hierarchy costs: a training step of the hierarchical model against the bare backbone
with a head of 1,000 classes.

  python tests/benchmarks/step.py
      Swin-Tiny, 224 px, batch 32, two threads
  python tests/benchmarks/step.py --batch 8 32 64 --threads 1            several batches
  python tests/benchmarks/step.py --device cuda --batch 256 \
      --rounds 50  on a GPU, with images/s and peak memory

Both take uint8 pictures through normalisation, backbone, loss, backward, clipping and fused AdamW
with the same groups and rates, in the same precision. They take turns, in the order ABBA, so that
neither the machine's moods nor a drift favours one. The hierarchical model has 320 species and
11,499 diseases and trains all of it (phase B3). `--parts` says where the time goes; on a GPU it
waits for each part.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.classes import ClassTree
from common.console import table
from common.train import recipes
from common.train.augment import Mix
from common.train.compute import Compute, choose_compute
from common.train.loop import Work, training_step
from common.train.model import SwinHierarchical
from common.train.optim import make_optimizer, set_rates, set_trainable

PARTS = ("forward and loss", "backward", "clipping", "optimizer")
CONTESTANTS = ("hierarchical", "bare backbone")


def tree_of(species: int, classes: int) -> ClassTree:
    """A tree of so many species and leaves, long-tailed."""
    sizes = np.maximum(1, np.random.default_rng(0).pareto(1.5, species) * classes / species).astype(
        int
    )
    sizes = np.maximum(1, sizes * classes // sizes.sum())
    sizes[0] += classes - sizes.sum()
    return ClassTree(
        tuple(f"s{i}" for i in range(species)),
        tuple(tuple(f"d{j}" for j in range(n)) for n in sizes),
    )


class Watch:
    """The time at the borders of a step's parts, as its gradient scaler sees them go by.

    Attributes:
        laps: seconds, of the step under way.
    """

    def __init__(self, compute: Compute, clock: Callable[[], float], waits: bool) -> None:
        self.laps: list[float] = []
        self._compute, self._clock, self._waits, self._scaler = (
            compute,
            clock,
            waits,
            compute.scaler(),
        )

    def note(self) -> None:
        """Note the time; on a GPU when it is done with all it was given."""
        if self._compute.device.type == "cuda":
            torch.cuda.synchronize()
        self.laps.append(self._clock())

    def scale(self, loss: Tensor) -> Tensor:
        """End of the forward part."""
        self._border()
        return self._scaler.scale(loss)

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """End of the backward part."""
        self._border()
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """End of the clipping, and the optimizer's part."""
        self._border()
        self._scaler.step(optimizer)

    def update(self) -> None:
        """After the optimizer."""
        self._scaler.update()

    def _border(self) -> None:
        if self._waits:
            self.note()


def make_models(
    backbone: str, size: int, device: torch.device
) -> tuple[SwinHierarchical, SwinHierarchical]:
    """Make the hierarchical model with all of it to train, and the bare backbone with a head of
    1,000 classes, which stands in the other model for its normalisation.
    """
    model = SwinHierarchical(backbone, tree_of(320, 11_499), image_size=size)
    bare = SwinHierarchical(backbone, tree_of(2, 2), image_size=size)
    fixed_size = {"img_size": size} if "swin" in backbone else {}
    bare.backbone = timm.create_model(backbone, num_classes=1000, **fixed_size)
    model, bare = (
        one.to(device, memory_format=torch.channels_last).train() for one in (model, bare)
    )
    return model, bare


def make_steps(
    models: tuple[SwinHierarchical, SwinHierarchical],
    batch: int,
    compute: Compute,
    scalers: Sequence[Any],
) -> list[Callable[[], object]]:
    """Make a training step of each model, in the order of `CONTESTANTS`, on a batch of noise."""
    model, bare = models
    device, size, tree = compute.device, model.settings["image_size"], model.tree
    recipe = replace(
        recipes.get("hierarchical"),
        backbone=model.settings["backbone"],
        image_size=size,
        batch_size=batch,
    )
    (phase,) = recipes.joint_phases(recipe)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
    class_idx, target = (
        torch.randint(tree.num_classes, (batch,), device=device),
        torch.randint(1000, (batch,), device=device),
    )
    mix = Mix(torch.arange(batch, device=device))
    set_trainable(model, phase)
    optimizer = make_optimizer(model, phase, recipe)
    parameters = list(bare.backbone.parameters())
    groups = [
        {
            "params": [p for p in parameters if (p.ndim > 1) == decays],
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    plain, scaler = torch.optim.AdamW(groups, lr=1e-5, fused=True), scalers[1]

    work = Work(model, optimizer, scalers[0], compute, phase, recipe, batch, batch)
    set_rates(optimizer, 1e-5)

    def hierarchical() -> None:
        training_step(work, images, class_idx, mix)

    def flat() -> None:
        plain.zero_grad(set_to_none=True)
        with compute.autocast():
            logits = bare.backbone(bare.normalise(images))
        scaler.scale(nn.functional.cross_entropy(logits.float(), target)).backward()
        scaler.unscale_(plain)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(plain)
        scaler.update()

    return [hierarchical, flat]


def race(args: argparse.Namespace, batch: int, compute: Compute) -> np.ndarray:
    """Time both: seconds float (2, rounds, parts), one part unless all are asked for."""
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    watches = [Watch(compute, clock, args.parts) for _ in CONTESTANTS]
    models = make_models(args.backbone, args.size, compute.device)
    steps = make_steps(models, batch, compute, watches)
    seconds = np.zeros((2, args.rounds, len(PARTS) if args.parts else 1))
    for turn in range(-2, args.rounds):  # the first two warm up
        for k in (0, 1) if turn % 4 in (0, 3) else (1, 0):
            watches[k].laps.clear()
            watches[k].note()
            steps[k]()
            watches[k].note()
            if turn >= 0:
                seconds[k, turn] = np.diff(watches[k].laps)
    return seconds


def error_of_median(values: np.ndarray) -> float:
    """Standard error of the median, by 1,000 bootstrap draws."""
    return float(
        np.median(np.random.default_rng(0).choice(values, (1000, len(values))), axis=1).std()
    )


def main() -> None:
    """Print the times and their ratio."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--backbone", default="swin_tiny_patch4_window7_224")
    flags.add_argument("--size", type=int, default=224)
    flags.add_argument("--batch", type=int, nargs="+", default=[32])
    flags.add_argument(
        "--rounds",
        type=int,
        default=12,
        help="pairs of steps; a multiple of 2 keeps the order balanced",
    )
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--device", default="auto")
    flags.add_argument("--precision", default="auto")
    flags.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time, for a machine with other work",
    )
    flags.add_argument(
        "--parts", action="store_true", help="forward, backward, clipping and optimizer apart"
    )
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    compute = choose_compute(args.device, args.precision)
    on_gpu = compute.device.type == "cuda"
    print(
        f"{args.backbone}, {args.size} px, {compute}, torch {torch.__version__}, {args.threads} "
        f"threads, {args.clock} time, "
        f"{args.rounds} pairs"
    )
    for batch in args.batch:
        seconds = race(args, batch, compute)
        whole = seconds.sum(axis=2)
        rows = [
            (name, f"{1e3 * value:.1f}", f"{batch / value:.1f}")
            for name, value in zip(CONTESTANTS, np.median(whole, axis=1), strict=True)
        ]
        print(f"\nbatch {batch}\n" + table(rows, ("step", "ms", "images/s")))
        ratios = whole[0] / whole[1]
        print(
            f"hierarchical / bare: {np.median(ratios):.4f} +- {error_of_median(ratios):.4f} "
            f"(median over pairs; 1.03 is wanted at most)"
        )
        if args.parts:
            more = seconds[0] - seconds[1]
            rows = [
                (
                    name,
                    f"{1e3 * np.median(seconds[1, :, i]):.1f}",
                    f"{1e3 * np.median(more[:, i]):.1f}",
                    f"{1e3 * error_of_median(more[:, i]):.1f}",
                    f"{100 * np.median(more[:, i] / whole[1]):.2f}",
                )
                for i, name in enumerate(PARTS)
            ]
            print(
                table(
                    rows, ("part", "bare, ms", "the hierarchy's more, ms", "+-", "% of a bare step")
                )
            )
        if on_gpu:
            print(f"peak memory, both models: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
