"""Several processes: what summing gradients costs a training step, three ways.

  torchrun --nproc_per_node=2 tests/benchmarks/gradients.py                       gloo, on CPUs
  torchrun --nproc_per_node=2 tests/benchmarks/gradients.py --batch 128           NCCL, where the
      machine has a GPU for each process

All steps are those of a Swin-Tiny with a head of 1,000 classes; each way takes its turn in every
round. `alone` sums nothing and is what the others are measured against.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.console import mute, say, table
from common.train.compute import Compute, GradientSum, choose_compute, join, shut_down


def main() -> None:
    """Time the ways in turns."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    flags.add_argument("--backbone", default="swin_tiny_patch4_window7_224")
    flags.add_argument("--size", type=int, default=224)
    flags.add_argument("--batch", type=int, default=8, help="pictures of each process")
    flags.add_argument("--rounds", type=int, default=12)
    args = flags.parse_args()
    compute = choose_compute()
    world = join(compute.device)
    if not world.is_main:
        mute()
    torch.manual_seed(0)
    models = [timm.create_model(args.backbone, num_classes=1000) for _ in range(4)]
    alone, late, early, wrapped = (model.to(compute.device) for model in models)
    images = torch.randn(args.batch, 3, args.size, args.size, device=compute.device)
    target = torch.randint(0, 1000, (args.batch,), device=compute.device)
    wrapped = DistributedDataParallel(wrapped)
    sums = [GradientSum(list(model.parameters()), world) for model in (late, early)]

    def step(network: nn.Module) -> None:
        network.zero_grad(set_to_none=True)
        with compute.autocast():
            logits = network(images)
        nn.functional.cross_entropy(logits.float(), target).backward()

    def after() -> None:
        step(late)
        sums[0].finish()

    def during() -> None:
        sums[1].armed = True
        step(early)
        sums[1].finish()

    ways = {
        "alone": lambda: step(alone),
        "summed after the backward pass": after,
        "summed while it goes on (GradientSum)": during,
        "DistributedDataParallel": lambda: step(wrapped),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.rounds + 2):
        for name, way in ways.items():
            seconds = timed(way, compute)
            if turn >= 2:  # the first two warm up
                times[name].append(seconds)
    base = np.median(times["alone"])
    rows = [
        (n, f"{1000 * np.median(t):.1f}", f"{np.median(t) / base:.3f}") for n, t in times.items()
    ]
    say(f"{world.size} processes, {compute}, {args.backbone}, {args.batch} pictures each")
    say(table(rows, ("way", "ms, median", "to alone")))
    shut_down()


def timed(way: Callable[[], None], compute: Compute) -> float:
    """Seconds of one step."""
    begin = time.perf_counter()
    way()
    if compute.on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
