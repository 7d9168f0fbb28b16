"""What --precision and kept memory are worth on this CPU: pictures a second through forward,
backward and AdamW.

  python tests/benchmarks/precision.py --backbones mobilenetv2_100 efficientnet_b0 --image-size 128
  --batch 32 python tests/benchmarks/precision.py --backbones swin_tiny_patch4_window7_224
  --image-size 224 --batch 8

Each way runs in a process of its own, the ways in turn, as kept memory cannot be given back within
one. Medians over the steps of a process, then over the rounds; ratios within a round.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.console import say, table

WAYS = (("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True))


def train(backbone: str, size: int, batch: int, precision: str, kept: bool, steps: int) -> float:
    """Pictures a second, in this process."""
    import timm
    import torch

    from common.train.compute import choose_compute
    from common.train.machine import keep_memory

    if kept:
        keep_memory()
    net = timm.create_model(backbone, num_classes=100).to(memory_format=torch.channels_last).train()
    optimizer, compute = (
        torch.optim.AdamW(net.parameters(), fused=True),
        choose_compute("cpu", precision),
    )
    images, target = (
        torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last),
        torch.randint(100, (batch,)),
    )
    times = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        with compute.autocast():
            logits = net(images)
        torch.nn.functional.cross_entropy(logits.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return batch / float(np.median(times[2:]))


def main() -> None:
    """Print a row per backbone."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument(
        "--backbones", nargs="+", default=["mobilenetv2_100", "efficientnet_b0", "resnet10t"]
    )
    flags.add_argument("--image-size", type=int, default=128)
    flags.add_argument("--batch", type=int, default=32)
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--steps", type=int, default=8)
    flags.add_argument("--one", help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.one:
        print(json.dumps(train(**json.loads(args.one))))
        return
    rows = []
    for backbone in args.backbones:
        found = np.zeros((args.rounds, len(WAYS)))
        for round_ in range(args.rounds):
            for k, (precision, kept) in enumerate(WAYS):
                one = {
                    "backbone": backbone,
                    "size": args.image_size,
                    "batch": args.batch,
                    "precision": precision,
                    "kept": kept,
                    "steps": args.steps,
                }
                done = subprocess.run(
                    [sys.executable, __file__, "--one", json.dumps(one)],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                found[round_, k] = json.loads(done.stdout.splitlines()[-1])
        rows.append(
            [
                backbone,
                *(f"{value:.1f}" for value in np.median(found, 0)),
                f"{np.median(found[:, 1] / found[:, 3]):.2f}",
                f"{np.median(found[:, 1] / found[:, 0]):.2f}",
                f"{np.median(found[:, 3] / found[:, 2]):.2f}",
            ]
        )
    say(
        table(
            rows,
            (
                "backbone",
                "fp32",
                "fp32, kept",
                "bf16",
                "bf16, kept",
                "fp32 / bf16, kept",
                "kept / not, fp32",
                "kept / not, bf16",
            ),
        )
    )


if __name__ == "__main__":
    main()
