"""Which scores tell plants of unknown species, and what the second opinion changes in the answers.

  python tests/benchmarks/unknown_species.py --data data/organized --checkpoint FILE
  --pretrained FILE --near weeds=DIR [--holdout FILE ...]

The first table is of single scores and sums, fitted on train, with thresholds that 1 % and 5 % of
val lie above; known plants are test. `--holdout` are checkpoints that were trained without some
species (01_reorganize.py --holdout-species): there, val photos of these species are the unknown
ones. These choose; --near is only reported. The second table has the answers of the exported rule
without and with the second opinion. `--pretrained` is species_only/pretrained.pt of 02a. Networks
run once; their outputs are kept in --store.
"""

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rejection import Outputs, ood_pictures_of, pictures_of, run_model

from common.console import fail, say, table
from common.decide import Decisions, Rollup, decide_batch, rejection_from_json
from common.export import ood, rollup
from common.export.answers import Answers, sum_up
from common.export.calibrate import fit_temperature, fit_temperatures
from common.export.fitting import logits_of
from common.export.graph import (
    LEARNED,
    PRETRAINED,
    SCORES,
    FeatureSpace,
    LearnedScore,
    cross_fitted,
    gen_score,
)
from common.export.pictures import POOR_SHARE, SHIFTS
from common.export.second_opinion import KernelRegression
from common.train import checkpoint
from common.train.dataset import Organized, load_organized
from common.train.metrics import auroc
from common.train.model import SwinHierarchical

SUMS = (
    {"kernel": 1, "gen": 0.25},
    {"kernel": 1, "gen": 1},
    {"kernel": 1, "mahalanobis_class": 1},
    {"kernel": 1, "kernel, trained": 1},
    {"kernel": 1, "kernel, trained": 1, "gen": 1},
    {"gen": 1, "mahalanobis_class": 1, "layers": 1},
)


@dataclass
class Network:
    """A model, and what it makes of each group of pictures."""

    model: SwinHierarchical
    store: Path
    folders: dict[str, Path]

    def outputs(self, data: Organized, name: str, shift: str = "") -> Outputs:
        """Outputs for a split or a folder, from the store where they are; of a poor copy for some
        of the pictures.
        """
        path = self.store / f"{name} {shift or 'plain'}.pt"
        if not path.is_file():
            size = self.model.settings["image_size"]
            rows = list(
                pictures_of(data, name, size)
                if name in data.splits
                else ood_pictures_of(self.folders[name], size, data.long_side)
            )
            rows = rows[:: (POOR_SHARE if name == "train" else 2) if shift else 1]
            torch.save(run_model(self.model, rows, f"{name} {shift}", shift or None), path)
        return torch.load(path, weights_only=True)


def open_network(args: argparse.Namespace, path: Path) -> Network:
    """Load a checkpoint; its outputs for these pictures have a folder of their own."""
    payload = checkpoint.load(path, trained=False)
    pictures = hashlib.sha256(f"{load_organized(args.data).manifest_hash} {args.near}".encode())
    store = args.store / f"{checkpoint.weights_hash(payload)[:12]}-{pictures.hexdigest()[:8]}"
    store.mkdir(parents=True, exist_ok=True)
    return Network(checkpoint.build_model(payload), store, args.folders)


# region single scores


def all_scores(
    model: SwinHierarchical, train: tuple[Outputs, Outputs], groups: list[tuple[Outputs, Outputs]]
) -> list[dict[str, np.ndarray]]:
    """Every score of each group; the first chooses the temperature.

    Args:
        model: the trained one; class_idx of `train` and of the first group are its own.
        train, groups: outputs of the trained and of the pretrained network.
    """
    species = model.class_species
    spaces = [
        [FeatureSpace(part[key], train[0]["class_idx"], species) for key in ("features", "layers")]
        for part in train
    ]
    before, class_idx = train[1]["features"], train[0]["class_idx"]
    whole = FeatureSpace(before, 0 * class_idx, 0 * species[:1])
    kernels = [
        KernelRegression(p["layers"], species[train[0]["class_idx"]], model.tree.num_species)
        for p in train
    ]
    temperature = fit_temperature(
        groups[0][0]["logits"].numpy(), species[groups[0][0]["class_idx"]].numpy()
    )
    found = []
    for trained, before in groups:
        probs = (trained["logits"] / temperature).softmax(1)
        near = spaces[0][0].distances(trained["features"], probs.argmax(1))
        scores = {
            "max-softmax": -probs.amax(1),
            "energy": -trained["logits"].logsumexp(1),
            "gen": gen_score(probs),
            "mahalanobis": near[:, 0],
            "mahalanobis_class": near[:, 1],
            "layers": spaces[0][1](trained["layers"])[:, 0],
            "kernel, trained": kernels[0](trained["layers"])[:, 0],
            "mahalanobis, pretrained": spaces[1][0](before["features"])[:, 0],
            "relative mahalanobis, pretrained": _inside(spaces[1][0], before["features"])
            - _inside(whole, before["features"]),
            "layers, pretrained": spaces[1][1](before["layers"])[:, 0],
            "10th neighbour, pretrained": _neighbour(train[1]["features"], before["features"]),
            "kernel": kernels[1](before["layers"])[:, 0],
        }
        found.append({name: value.double().numpy() for name, value in scores.items()})
    spread = {name: values.std() for name, values in found[0].items()}
    for scores in found:
        for keys in SUMS:
            name = " + ".join(f"{k}" if w == 1 else f"{w} {k}" for k, w in keys.items())
            scores[name] = sum(w * scores[k] / spread[k] for k, w in keys.items())
    return found


def _inside(space: FeatureSpace, features: Tensor) -> Tensor:
    """Squared distance to the nearest class mean within the directions that are kept (N,)."""
    white, rest = space._place(features)
    return space._near(white, 0 * rest, space.class_means)[:, 0].square()


def _neighbour(train: Tensor, features: Tensor, k: int = 10) -> Tensor:
    """Minus the cosine with the k-th nearest train picture (Sun et al. 2022): float (N,)."""
    return -(normalize(features) @ normalize(train).T).topk(k, dim=1).values[:, -1]


def figures(known: np.ndarray, val: np.ndarray, unknown: np.ndarray) -> list[float]:
    """AUROC, and the shares of the unknown above what 1 % and 5 % of val lie above."""
    limits = [np.quantile(val, 1 - level) for level in ood.SPECIES_LEVELS]
    return [auroc(known, unknown), *(float((unknown > limit).mean()) for limit in limits)]


def held_out(net: Network, before: Network, data: Organized) -> dict[str, list[float]]:
    """Figures of each score for the species that a network was trained without, on val."""
    tree = net.model.tree
    index = {tree.pair(c): c for c in range(tree.num_classes)}
    own = torch.tensor([index.get(data.tree.pair(c), -1) for c in range(data.tree.num_classes)])

    def part(split: str, known: bool) -> tuple[Outputs, Outputs]:
        both = net.outputs(data, split), before.outputs(data, split)
        class_idx = own[both[0]["class_idx"]]
        rows = (class_idx >= 0) == known
        return tuple(
            {key: value[rows] for key, value in (p | {"class_idx": class_idx}).items()}
            for p in both
        )

    val, unknown = all_scores(
        net.model, part("train", True), [part("val", True), part("val", False)]
    )
    return {name: figures(val[name], val[name], unknown[name]) for name in val}


# endregion

# region answers


class Rule:
    """The answers of the exported rule, from outputs that are at hand."""

    def __init__(self, net: Network, before: Network, data: Organized) -> None:
        self.net, self.before, self.data, self.model = net, before, data, net.model
        train = [
            [n.outputs(data, "train", shift) for shift in ("", *SHIFTS)] for n in (net, before)
        ]
        features, layers, class_idx = (
            torch.cat([p[key] for p in train[0]]) for key in ("features", "layers", "class_idx")
        )
        species = self.model.class_species
        self.spaces = [FeatureSpace(x, class_idx, species) for x in (features, layers)]
        strange = net.outputs(data, "not_plants")["layers"]
        self.learned = LearnedScore(layers, strange)
        self.kernel = KernelRegression(
            torch.cat([p["layers"] for p in train[1]]), species[class_idx], data.tree.num_species
        )
        val = net.outputs(data, "val")
        logits = logits_of(self.model, val["features"], val["class_idx"])
        self.at = fit_temperatures(*logits, val["class_idx"].numpy(), data.tree)
        none = self.scores("not_plants") | {LEARNED: cross_fitted(layers, strange).double().numpy()}
        poor = {shift: self.scores("val", shift) for shift in SHIFTS}
        self.fit = ood.fit(self.scores("val"), not_plants=none, poor=poor)
        self.rollup = rollup.fit(self.answers("val"), data.tree, rejection=self.rejection(None))

    def scores(self, *group: str) -> dict[str, np.ndarray]:
        """Scores of a group by name."""
        got = self.net.outputs(self.data, *group)
        probs = (got["logits"] / self.at.species).softmax(1)
        columns = [
            gen_score(probs)[:, None],
            self.spaces[0].distances(got["features"], probs.argmax(1)),
            self.spaces[1](got["layers"]),
            self.kernel(self.before.outputs(self.data, *group)["layers"]),
            self.learned(got["layers"]),
        ]
        return ood.columns(torch.cat(columns, 1).numpy(), (*SCORES, PRETRAINED, LEARNED))

    def rejection(self, level: str | None) -> Any:
        """The thresholds, with that of a level of the second opinion or without one."""
        species = self.fit["species"]
        species = species | {"threshold": species["levels"][level]} if level else None
        return rejection_from_json(self.fit | {"species": species}, (*SCORES, PRETRAINED, LEARNED))

    def answers(self, *group: str) -> Answers:
        """Answers for a group."""
        got, scores = self.net.outputs(self.data, *group), self.scores(*group)
        disease = torch.as_tensor(self.at.disease).float()[self.model.class_species]
        hidden = self.model.neck(got["features"])
        probs = self.model.probabilities(hidden, got["logits"], self.at.species, disease)
        class_idx = got["class_idx"].numpy()
        return sum_up(probs.numpy(), class_idx, self.data.tree, np.stack([*scores.values()], 1))

    def decided(self, level: str | None, *group: str) -> Decisions:
        """What becomes of a group."""
        answers, entry = self.answers(*group), self.rollup["precisions"]["0.95"]
        at = Rollup(entry["disease"], entry["species"])
        ranked, tree = answers.ranked, self.data.tree
        return decide_batch(ranked, answers.ood, tree, self.rejection(level), at)


# endregion


@torch.inference_mode()
def main() -> None:
    """Print the tables."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--data", type=Path, default=Path("data/organized"))
    flags.add_argument("--checkpoint", type=Path, required=True)
    flags.add_argument("--pretrained", type=Path, required=True)
    flags.add_argument("--holdout", type=Path, nargs="*", default=[], metavar="CHECKPOINT")
    flags.add_argument("--near", required=True, metavar="NAME=DIR", help="plants of other species")
    flags.add_argument("--store", type=Path, default=Path("unknown_species_store"))
    args = flags.parse_args()
    near, is_named, folder = args.near.partition("=")
    if not is_named or near in ("", "val", "test", "train", "not_plants"):
        fail(f"--near {args.near}: give NAME=DIR, with a name of its own.")
    not_plants = args.data / "not_plants"
    args.folders = {near: Path(folder), "not_plants": not_plants / "val"}
    args.folders["no plants, test"] = not_plants / "test"
    if missing := [str(path) for path in args.folders.values() if not path.is_dir()]:
        fail(f"there is no folder {missing[0]}.")
    data = load_organized(args.data)
    net, before = (open_network(args, path) for path in (args.checkpoint, args.pretrained))
    groups = ("val", "test", near)
    train, *others = (
        tuple(n.outputs(data, name) for n in (net, before)) for name in ("train", *groups)
    )
    val, test, strange = all_scores(net.model, train, others)
    folds = [held_out(open_network(args, path), before, data) for path in args.holdout]
    rows = []
    for name in val:
        mean = np.mean([fold[name] for fold in folds], 0) if folds else []
        cells = [*figures(test[name], val[name], strange[name]), *mean]
        rows.append((name, *(f"{cell:.3f}" for cell in cells)))
    columns = ("AUROC", "at 1 %", "at 5 %")
    held = [f"held out: {column}" for column in columns] if folds else []
    say("", table(rows, ("score", *(f"{near}: {column}" for column in columns), *held)))

    rule, rows = Rule(net, before, data), []
    values = [
        ood.value(rule.fit["species"]["weights"], rule.scores(group)) for group in ("test", near)
    ]
    title = f"second opinion: {rule.fit['species']['score']}, AUROC {auroc(*values):.3f}"
    say("", title, "")
    poor = [("test", shift) for shift in SHIFTS]
    for group in (("val",), ("test",), (near,), ("no plants, test",), *poor):
        cells = []
        for level in (None, "0.01", "0.05"):
            share = np.bincount(rule.decided(level, *group).outcome, minlength=5)
            share = share / share.sum()
            cells += [f"{share[0]:.3f}", f"{share[1]:.3f}", f"{share[2:].sum():.3f}"]
        rows.append((" ".join(group), *cells))
    titles = [
        f"{what}, {when}"
        for when in ("without", "1 %", "5 %")
        for what in ("in full", "species", "rejected")
    ]
    say(table(rows, ("pictures", *titles)))


if __name__ == "__main__":
    main()
