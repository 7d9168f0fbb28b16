"""What leaking is worth: the test accuracy of one small model on splits that keep groups whole and
on splits that do not.

  python tests/benchmarks/leak.py --data data/organized --weights FILE [--backbone-args ...
  --pixel-mean ... --pixel-std ...]

The model is a linear layer on frozen features of the backbone. Each of the seeds draws both splits
anew with the shares of stage 1: one puts whole groups (the manifest's) into splits, one puts each
picture by itself. On the latter, test pictures that have a picture of their group in train are told
apart from the others: what a model seems to know and what it knows.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.console import table
from common.organize.duplicates import embed
from common.organize.flags import add_embed_flags
from common.organize.splits import TEST, TRAIN, split_groups


def probe(features: torch.Tensor, class_idx: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
    """Fit a linear layer on the train pictures by L-BFGS; returns the answers for all, int64
    (K,).
    """
    mean, std = features[train].mean(0), features[train].std(0) + 1e-6
    x = (features - mean) / std
    layer = torch.nn.Linear(x.shape[1], int(class_idx.max()) + 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (
            torch.nn.functional.cross_entropy(layer(x[train]), class_idx[train])
            + 1e-3 * layer.weight.square().sum()
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.inference_mode():
        return layer(x).argmax(1)


def main() -> None:
    """Print one row per kind of split."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--data", type=Path, default=Path("data/organized"))
    flags.add_argument("--seeds", type=int, default=10)
    flags.add_argument(
        "--store", type=Path, default=Path("features"), help="folder for the features"
    )
    add_embed_flags(flags)
    args = flags.parse_args()
    with (args.data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["sha256"])
    sha = np.array([list(bytes.fromhex(row["sha256"])) for row in rows], np.uint8)
    class_idx = np.unique(
        [f"{row['species']}/{row['disease']}" for row in rows], return_inverse=True
    )[1]
    first: dict[str, int] = {}
    group = np.array([first.setdefault(row["group"], k) for k, row in enumerate(rows)])
    backbone = embed.Backbone(
        args.backbone,
        args.weights,
        arguments=args.backbone_args,
        mean=args.pixel_mean,
        std=args.pixel_std,
    )
    embedder = embed.load_embedder(backbone, args.precision, 1)
    stored = embed.features(
        lambda k: (args.data / rows[k]["path"]).read_bytes(), sha, embedder, args.store
    )
    features, target = torch.from_numpy(np.array(stored, np.float32)), torch.from_numpy(class_idx)
    right: dict[str, list[float]] = {"groups kept whole": [], "each picture by itself": []}
    kin_right, rest_right, leaks = [], [], []
    for seed in range(args.seeds):
        draw = np.random.default_rng(seed).random(len(rows))
        for name, of in (
            ("groups kept whole", group),
            ("each picture by itself", np.arange(len(rows))),
        ):
            split = split_groups(class_idx, of, draw, 0.15, 0.15)
            answers = probe(features, target, torch.from_numpy(split == TRAIN)).numpy()
            test = split == TEST
            right[name].append(float((answers == class_idx)[test].mean()))
            if name != "groups kept whole":
                kin = test & np.isin(group, group[split == TRAIN])
                leaks.append(kin.sum() / test.sum())
                kin_right += (answers == class_idx)[kin].tolist()
                rest_right += (answers == class_idx)[test & ~kin].tolist()
    print(
        table(
            [
                (name, f"{np.mean(values):.4f}", f"{np.std(values, ddof=1):.4f}")
                for name, values in right.items()
            ],
            ("split", "test accuracy, class", f"spread over {args.seeds} draws"),
        )
    )
    difference = np.subtract(right["each picture by itself"], right["groups kept whole"])
    print(
        f"difference {difference.mean():+.4f} +- "
        f"{difference.std(ddof=1) / len(difference) ** 0.5:.4f} (standard error)\n"
        f"alone, {np.mean(leaks):.2%} of test pictures have kin in train: "
        f"{np.mean(kin_right):.3f} of these are right, "
        f"{np.mean(rest_right):.3f} of the others"
    )


if __name__ == "__main__":
    main()
