"""Packed disease heads against a loop over a ModuleDict of nn.Linear: milliseconds for one training step.

  python tests/benchmarks/heads.py

320 ragged species of 3 to 300 diseases, 11,499 leaves, 768 features, batch 256; loss, backward and AdamW(fused) over the heads
and the gradient of the features. The contestants take turns within one loop, so that the machine's moods hit all alike.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.console import table  # noqa: E402
from common.losses import focal_loss  # noqa: E402
from common.model import PADDING, DiseaseHeads  # noqa: E402
from common.taxonomy import ClassTree  # noqa: E402

SPECIES, LEAVES, FEATURES = 320, 11499, 768


def ragged_tree() -> ClassTree:
    """A long tail like that of the real folders."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 301, SPECIES).astype(float) ** 2
    sizes = np.clip((sizes / sizes.sum() * LEAVES).round().astype(int), 3, 300)
    sizes[:2] = 3, 300
    while sizes.sum() != LEAVES:
        i, step = rng.integers(2, SPECIES), int(np.sign(LEAVES - sizes.sum()))
        if 3 <= sizes[i] + step <= 300:
            sizes[i] += step
    return ClassTree(tuple(f"s{i}" for i in range(SPECIES)), tuple(tuple(f"d{j}" for j in range(n)) for n in sizes))


def contestants(batch: int) -> tuple[dict[str, Callable[[], None]], float, int]:
    """Make one training step per contestant, all from the same weights.

    Returns:
        the steps, the largest difference of the packed loss and feature gradient to the loop's, species in the batch.
    """
    torch.manual_seed(0)
    tree, rng = ragged_tree(), np.random.default_rng(1)
    packed, dense = DiseaseHeads(FEATURES, tree), DiseaseHeads(FEATURES, tree)
    dense.load_state_dict(packed.state_dict())
    loop = nn.ModuleDict({name: nn.Linear(FEATURES, len(tree.diseases[s])) for s, name in enumerate(tree.species)})
    with torch.no_grad():
        for s, linear in enumerate(loop.values()):
            rows = slice(int(tree.offsets[s]), int(tree.offsets[s + 1]))
            linear.weight.copy_(packed.weight[rows])
            linear.bias.copy_(packed.bias[rows])
    features = torch.randn(batch, FEATURES, requires_grad=True)
    share = np.arange(1, SPECIES + 1) ** -0.5  # pictures per species fall off too
    species = torch.from_numpy(rng.choice(SPECIES, batch, p=share / share.sum()))
    disease = (torch.from_numpy(rng.random(batch)) * packed.sizes[species]).long()

    def packed_loss() -> Tensor:
        return focal_loss(packed(features, species), disease, smoothing=0.1, classes=packed.sizes[species]).sum() / batch

    def dense_loss() -> Tensor:
        logits = dense.all_logits(features).gather(1, dense.leaf_of[species]).masked_fill(~dense.real[species], PADDING)
        return focal_loss(logits, disease, smoothing=0.1, classes=dense.sizes[species]).sum() / batch

    def loop_loss() -> Tensor:
        total = torch.zeros(())
        for s in species.unique().tolist():
            rows = species == s
            total = total + focal_loss(loop[tree.species[s]](features[rows]), disease[rows], smoothing=0.1).sum()
        return total / batch

    results = []
    for loss in (packed_loss, loop_loss):
        features.grad = None
        value = loss()
        value.backward()
        results.append((value.detach(), features.grad.clone()))
    off = max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))

    def step(loss: Callable[[], Tensor], module: nn.Module, optimizer: torch.optim.Optimizer | None) -> Callable[[], None]:
        def run() -> None:
            module.zero_grad(set_to_none=True)
            features.grad = None
            loss().backward()
            if optimizer is not None:
                optimizer.step()
        return run

    steps = {}
    for name, loss, module in (("packed, sorted rows", packed_loss, packed), ("ModuleDict loop", loop_loss, loop),
                               ("packed, all logits", dense_loss, dense)):
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
        steps[name, "forward and backward"] = step(loss, module, None)
        steps[name, "whole step"] = step(loss, module, optimizer)
    return steps, off, len(species.unique())


def main() -> int:
    """Measure and print a table."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    flags.add_argument("--batch", type=int, default=256)
    flags.add_argument("--rounds", type=int, default=25)
    flags.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = flags.parse_args()
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        steps, off, present = contestants(args.batch)
        times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
        for i in range(args.rounds + 3):
            for key, run in steps.items():
                begin = time.perf_counter()
                run()
                if i >= 3:  # the first calls allocate, the optimizer's state too
                    times[key].append(1000 * (time.perf_counter() - begin))
        ms = {key: float(np.median(values)) for key, values in times.items()}
        for (name, what), value in ms.items():
            rows.append((threads, what, name, f"{value:.1f}", f"{np.percentile(times[name, what], 90):.1f}",
                         f"{ms['ModuleDict loop', what] / value:.2f}"))
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}; batch {args.batch} holds {present} of "
          f"{SPECIES} species; packed and loop differ by {off:.1e} in loss and gradient\n")
    print(table(sorted(rows, key=lambda row: row[:2]), ("threads", "what", "heads", "ms, median", "ms, p90", "times as fast as the loop")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
