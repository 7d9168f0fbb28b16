"""What the hierarchy costs: a training step of the hierarchical model against the bare backbone with a head of 1,000 classes.

  python tests/benchmarks/step.py                                        Swin-Tiny, 224 px, batch 8, one thread
  python tests/benchmarks/step.py --device cuda --batch 256 --rounds 50  on a GPU, with images/s and peak memory

Both take uint8 pictures through normalisation, backbone, loss, backward, clipping and fused AdamW, in the same precision; interleaved,
so that the machine's moods hit both alike. The hierarchical model has 320 species and 11,499 diseases and trains all of it (phase B3).
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common import recipes  # noqa: E402
from common.augment import Mix  # noqa: E402
from common.console import table  # noqa: E402
from common.engine import choose_compute, training_step  # noqa: E402
from common.model import SwinHierarchical  # noqa: E402
from common.optim import make_optimizer, set_trainable  # noqa: E402
from common.taxonomy import ClassTree  # noqa: E402


def tree_of(species: int, leaves: int) -> ClassTree:
    """A tree of so many species and leaves, long-tailed."""
    sizes = np.maximum(1, np.random.default_rng(0).pareto(1.5, species) * leaves / species).astype(int)
    sizes = np.maximum(1, sizes * leaves // sizes.sum())
    sizes[0] += leaves - sizes.sum()
    return ClassTree(tuple(f"s{i}" for i in range(species)), tuple(tuple(f"d{j}" for j in range(n)) for n in sizes))


def main() -> None:
    """Print the two times and their ratio."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--backbone", default="swin_tiny_patch4_window7_224")
    flags.add_argument("--size", type=int, default=224)
    flags.add_argument("--batch", type=int, default=8)
    flags.add_argument("--rounds", type=int, default=9)
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--device", default="auto")
    flags.add_argument("--precision", default="auto")
    args = flags.parse_args()
    torch.set_num_threads(args.threads)
    compute = choose_compute(args.device, args.precision)
    recipe = replace(recipes.get("hierarchical"), backbone=args.backbone, image_size=args.size, batch_size=args.batch)
    (phase,) = recipes.joint_phases(recipe)
    tree = tree_of(320, 11_499)
    images = torch.randint(0, 256, (args.batch, args.size, args.size, 3), dtype=torch.uint8, device=compute.device)
    leaf = torch.randint(tree.num_leaves, (args.batch,), device=compute.device)
    target = torch.randint(1000, (args.batch,), device=compute.device)

    model = SwinHierarchical(args.backbone, tree, image_size=args.size).to(compute.device, memory_format=torch.channels_last)
    set_trainable(model, phase)
    optimizer, scaler = make_optimizer(model, phase, recipe), compute.scaler()
    mix = Mix(torch.arange(args.batch, device=compute.device))

    bare = SwinHierarchical(args.backbone, tree_of(2, 2), image_size=args.size)  # for its normalisation; its heads stay unused
    bare.backbone = timm.create_model(args.backbone, num_classes=1000, **({"img_size": args.size} if "swin" in args.backbone else {}))
    bare = bare.to(compute.device, memory_format=torch.channels_last).train()
    plain, plain_scaler = torch.optim.AdamW(bare.backbone.parameters(), lr=1e-5, fused=True), compute.scaler()

    def hierarchical() -> None:
        training_step(model, optimizer, scaler, images, leaf, mix, phase=phase, recipe=recipe, compute=compute, rate=1e-5,
                      device_batch=args.batch)

    def flat() -> None:
        plain.zero_grad(set_to_none=True)
        with compute.autocast():
            logits = bare.backbone(bare.normalise(images))
        plain_scaler.scale(nn.functional.cross_entropy(logits.float(), target)).backward()
        plain_scaler.unscale_(plain)
        nn.utils.clip_grad_norm_(bare.backbone.parameters(), 1.0)
        plain_scaler.step(plain)
        plain_scaler.update()

    times: dict[str, list[float]] = {"hierarchical": [], "bare backbone": []}
    for turn in range(args.rounds + 1):
        for name, step in (("hierarchical", hierarchical), ("bare backbone", flat)):
            start = time.perf_counter()
            step()
            if compute.device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratios = np.array(times["hierarchical"]) / np.array(times["bare backbone"])
    print(f"{args.backbone}, {args.size} px, batch {args.batch}, {compute}, torch {torch.__version__}, {args.threads} threads\n")
    print(table([(name, f"{1e3 * value:.1f}", f"{args.batch / value:.1f}") for name, value in medians.items()], ("step", "ms", "images/s")))
    print(f"\nhierarchical / bare: {np.median(ratios):.3f} (median of {args.rounds} pairs; 1.03 is wanted at most)")
    if compute.device.type == "cuda":
        print(f"peak memory, both models: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
