"""Packed disease heads against a loop over a ModuleDict of nn.Linear: time and memory of a training
step of the heads.

  python tests/benchmarks/heads.py
      320 species: 11,499 leaves of a long tail, and 96,000; batch 256 and 512
  python tests/benchmarks/heads.py --species 640 --classes 96000  ragged at that size, too
  python tests/benchmarks/heads.py --device cuda                 on a GPU
  python tests/benchmarks/heads.py --clock cpu --threads 1
      processor time, for a machine that has other work

A head has 3 to 300 diseases, 768 features; 320 species with 96,000 leaves leave no choice: every
head has 300. A step is forward, focal loss, backward to the weights and to the features, and fused
AdamW; eight batches come in turn, the contestants take turns within each round, and every other
round in reverse. Two loops are raced, as torch offers two:
  skipping  zero_grad(set_to_none=True),
    the default: AdamW leaves heads alone that have no sample in the batch; their moments stand
            still, and so do their counts of steps. Less work than the packed matrix does.
  zeros
      zero_grad(set_to_none=False): a head without a sample has a gradient of zeros,
        and AdamW decays its weights and moves it
            by what is left of its momentum. The packed matrix does just this;
              both end with the same weights, which is checked.
Memory is the peak of a fresh process for each contestant, over what it had before the heads were
made: weights, gradients, AdamW's two moments and everything passing. Four times the weights is the
least for the packed matrix.
"""

import argparse
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.classes import ClassTree
from common.console import progress, table
from common.train.heads import PADDING, DiseaseHeads
from common.train.losses import focal_loss

FEATURES, FEWEST, MOST = 768, 3, 300
BATCHES = 8
KINDS = ("packed", "loop, skipping", "loop, zeros", "packed, all logits")
Batch = tuple[
    Tensor, Tensor, Tensor
]  # features (N, 768), species (N,), disease within its species (N,)


def ragged_tree(species: int, classes: int) -> ClassTree:
    """A long tail like that of the real folders, as far as heads of 3 to 300 diseases allow."""
    if not FEWEST * species <= classes <= MOST * species:
        raise SystemExit(
            f"error: {species} heads of {FEWEST} to {MOST} diseases cannot have {classes} leaves."
        )
    shape, low, high = np.random.default_rng(0).lognormal(size=species), 0.0, 1e6

    def sizes(scale: float) -> np.ndarray:
        return np.clip(np.round(shape * scale), FEWEST, MOST).astype(int)

    for _ in range(80):  # bisection; `low` never gives too many
        middle = (low + high) / 2
        low, high = (middle, high) if sizes(middle).sum() <= classes else (low, middle)
    found = sizes(low)
    found[np.flatnonzero(found < MOST)[: classes - found.sum()]] += 1
    assert found.sum() == classes and FEWEST <= found.min() <= found.max() <= MOST
    return ClassTree(
        tuple(f"s{i}" for i in range(species)),
        tuple(tuple(f"d{j}" for j in range(n)) for n in found),
    )


def make_batches(tree: ClassTree, size: int, device: torch.device) -> list[Batch]:
    """Pictures per species fall off too."""
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
    share = np.arange(1, tree.num_species + 1) ** -0.5
    made = []
    for _ in range(BATCHES):
        species = rng.choice(tree.num_species, size, p=share / share.sum())
        disease = (rng.random(size) * np.diff(tree.offsets)[species]).astype(int)
        features = torch.randn(size, FEATURES, generator=generator).to(device).requires_grad_()
        made.append(
            (features, torch.from_numpy(species).to(device), torch.from_numpy(disease).to(device))
        )
    return made


class Contestant:
    """One kind of heads with its optimizer; all kinds start from the same weights.

    Attributes:
        weights: float (leaves, features), of the heads one below the other, a view or a copy.
    """

    def __init__(self, kind: str, tree: ClassTree, device: torch.device) -> None:
        torch.manual_seed(0)
        self.kind, packed = kind, DiseaseHeads(FEATURES, tree).to(device)
        self.module: nn.Module = packed
        if kind.startswith("loop"):
            self.module = nn.ModuleDict(
                {
                    name: nn.Linear(FEATURES, len(tree.diseases[s]), device=device)
                    for s, name in enumerate(tree.species)
                }
            )
            with torch.no_grad():
                for s, linear in enumerate(self.module.values()):
                    rows = slice(int(tree.offsets[s]), int(tree.offsets[s + 1]))
                    linear.weight.copy_(packed.weight[rows])
                    linear.bias.zero_()
        if (
            kind == "loop, zeros"
        ):  # from the first step on: a gradient that was never there counts as none
            for parameter in self.module.parameters():
                parameter.grad = torch.zeros_like(parameter)
        self.names, self.sizes = tree.species, packed.sizes
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-3, fused=True)

    def loss(self, batch: Batch) -> Tensor:
        """Mean focal loss of the batch."""
        features, species, disease = batch
        if not self.kind.startswith("loop"):
            heads = self.module
            if self.kind == "packed":
                logits = heads(features, species)
            else:
                logits = (
                    heads.all_logits(features)
                    .gather(1, heads.class_of[species])
                    .masked_fill(~heads.real[species], PADDING)
                )
            return focal_loss(
                logits, disease, smoothing=0.1, classes=self.sizes[species]
            ).sum() / len(features)
        total = torch.zeros((), device=features.device)
        for s in species.unique().tolist():
            rows = species == s
            total = (
                total
                + focal_loss(
                    self.module[self.names[s]](features[rows]), disease[rows], smoothing=0.1
                ).sum()
            )
        return total / len(features)

    def step(
        self, batch: Batch, now: Callable[[], float] = time.perf_counter
    ) -> tuple[float, float]:
        """Take a step; seconds of zero_grad, forward and backward, and of the optimizer."""
        begin = now()
        self.module.zero_grad(set_to_none=self.kind != "loop, zeros")
        batch[0].grad = None
        self.loss(batch).backward()
        middle = now()
        self.optimizer.step()
        return middle - begin, now() - middle

    @property
    def weights(self) -> Tensor:
        parts = (
            [m.weight for m in self.module.values()]
            if isinstance(self.module, nn.ModuleDict)
            else [self.module.weight]
        )
        return torch.cat([part.detach() for part in parts])


def compare(tree: ClassTree, batches: list[Batch], device: torch.device) -> str:
    """Say by how much the packed heads differ from the loops: loss and gradient of the features,
    then weights after a few steps.
    """
    packed, skipping, zeros = (Contestant(kind, tree, device) for kind in KINDS[:3])
    seen = []
    for contestant in (packed, zeros):
        batches[0][0].grad = None
        loss = contestant.loss(batches[0])
        loss.backward()
        seen.append((loss.detach(), batches[0][0].grad))
    first = max(float((a - b).abs().max()) for a, b in zip(*seen, strict=True))
    start = packed.weights.clone()
    for batch in batches[:4]:
        for contestant in (packed, skipping, zeros):
            contestant.step(batch)
    moved = float((packed.weights - start).abs().mean())
    same, other = (
        float((packed.weights - c.weights).abs().mean()) / moved for c in (zeros, skipping)
    )
    return (
        f"packed and loop differ by {first:.1e} at most in loss and gradient of the features; "
        f"over 4 steps of AdamW the packed weights "
        f"move by {moved:.1e} each, and end {same:.1e} of that from the loop's with zeros, "
        f"{other:.2f} of it from the skipping loop's"
    )


def race(
    tree: ClassTree, batches: list[Batch], kinds: list[str], rounds: int, now: Callable[[], float]
) -> np.ndarray:
    """Time the kinds: seconds float (kinds, rounds, 2), of forward with backward, and of the
    optimizer.
    """
    contestants = [Contestant(kind, tree, batches[0][0].device) for kind in kinds]
    seconds = np.zeros((len(kinds), rounds, 2))
    for turn in progress(
        range(-BATCHES, rounds), desc="rounds"
    ):  # first every batch once: moments are made
        for k in range(len(kinds))[:: 1 if turn % 2 else -1]:
            spent = contestants[k].step(batches[turn % BATCHES], now)
            if turn >= 0:
                seconds[k, turn] = spent
    return seconds


def ratio(theirs: np.ndarray, mine: np.ndarray) -> str:
    """Median over rounds of theirs / mine, with its standard error by 500 bootstrap draws."""
    quotients = theirs / mine
    draws = np.random.default_rng(0).choice(quotients, (500, len(quotients)))
    return f"{np.median(quotients):.2f} +- {np.median(draws, axis=1).std():.2f}"


# region memory


def resident(field: str) -> float:
    """MiB of this process by the kernel's count: VmRSS now, VmHWM at most so far; nan where there
    is no such count.
    """
    status = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else float("nan")


def peak(kind: str, tree: ClassTree, batches: list[Batch], device: torch.device) -> float:
    """MiB at most while this process makes the heads and takes two rounds of steps, over what it
    had before.
    """
    before = resident("VmRSS")
    contestant = Contestant(kind, tree, device)
    for batch in [*batches, *batches]:
        contestant.step(batch)
    return (
        torch.cuda.max_memory_allocated() / 2**20
        if device.type == "cuda"
        else resident("VmHWM") - before
    )


def peak_elsewhere(
    kind: str, species: int, classes: int, batch: int, threads: int, device: str
) -> float:
    """`peak` in a fresh process."""
    done = subprocess.run(
        [
            sys.executable,
            __file__,
            "--memory-of",
            kind,
            "--species",
            str(species),
            "--classes",
            str(classes),
            "--batch",
            str(batch),
            "--threads",
            str(threads),
            "--device",
            device,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


# endregion


def main() -> int:
    """Measure and print a table."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--species", type=int, default=320)
    flags.add_argument("--classes", type=int, nargs="+", default=[11_499, 96_000])
    flags.add_argument("--batch", type=int, nargs="+", default=[256, 512])
    flags.add_argument("--rounds", type=int, default=24)
    flags.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    flags.add_argument("--device", default="cpu", help="cpu or cuda")
    flags.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time of all threads",
    )
    flags.add_argument(
        "--all-logits",
        action="store_true",
        help="race one product over all leaves, too, which is the way on a GPU",
    )
    flags.add_argument("--no-memory", action="store_true", help="time only")
    flags.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    args = flags.parse_args()
    device = torch.device(args.device)
    kinds = list(KINDS if args.all_logits else KINDS[:3])

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if args.clock == "cpu" else time.perf_counter()

    torch.set_num_threads(args.threads[0])
    if args.memory_of:
        tree = ragged_tree(args.species, args.classes[0])
        print(peak(args.memory_of, tree, make_batches(tree, args.batch[0], device), device))
        return 0
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    print(f"{name}, torch {torch.__version__}, {args.clock} time, {args.rounds} rounds\n")
    for classes in args.classes:
        tree = ragged_tree(args.species, classes)
        sizes = np.diff(tree.offsets)
        print(
            f"{args.species} species, {classes} leaves, {sizes.min()} to {sizes.max()} per head "
            f"(median {np.median(sizes):.0f}); "
            f"weights {classes * FEATURES * 4 / 2**20:.0f} MiB"
        )
        for batch in args.batch:
            rows: list[tuple[str, ...]] = []
            batches = make_batches(tree, batch, device)
            present = np.mean([len(species.unique()) for _, species, _ in batches])
            print(
                f"batch {batch}, {present:.0f} species in it: {compare(tree, batches, device)}",
                flush=True,
            )
            for threads in args.threads if device.type == "cpu" else args.threads[:1]:
                torch.set_num_threads(threads)
                seconds = race(tree, batches, kinds, args.rounds, now)
                whole = seconds.sum(axis=2)
                for k, kind in enumerate(kinds):
                    memory = (
                        "-"
                        if args.no_memory
                        else str(
                            round(
                                peak_elsewhere(
                                    kind, args.species, classes, batch, threads, args.device
                                )
                            )
                        )
                    )
                    parts = [
                        f"{1e3 * value:.1f}"
                        for value in (*np.median(seconds[k], axis=0), np.median(whole[k]))
                    ]
                    parts.append(ratio(whole[k], whole[0]) if k else "1")
                    rows.append((str(threads), kind, *parts, memory))
            columns = (
                "threads",
                "heads",
                "ms: forward, backward",
                "optimizer",
                "step",
                "/ packed",
                "peak MiB",
            )
            print("\n" + table(rows, columns) + "\n", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
