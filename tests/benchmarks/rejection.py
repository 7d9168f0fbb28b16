"""Scores that tell strangers from plants, for any checkpoint: per kind of stranger, and for kinds that were never shown.

  python tests/benchmarks/rejection.py --data data/organized --checkpoint FILE --strangers photos=DIR documents=DIR flowers=DIR
  python tests/benchmarks/rejection.py ... --near flowers          kinds that are plants: nothing is fitted on them

Spaces are fitted on train, thresholds on val, every figure is from test. Half of the pictures of each kind that is no plant (by the
hash of the file) are shown: they fit the learned score, with poor copies of train among the plants, and choose the sum of scores; the
other half is reported. In the last table one kind is left out of what is shown. The backbone runs once; what it gave is kept in --store.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common import checkpoint, images, rejection  # noqa: E402
from common.calibrate import fit_temperature  # noqa: E402
from common.console import fail, progress, say, table  # noqa: E402
from common.dataset import EvalViews, Organized, load_organized  # noqa: E402
from common.graph import LEARNED, SCORES, FeatureSpace, Learned, cross_fitted, gen_score, look  # noqa: E402
from common.metrics import auroc  # noqa: E402
from common.model import SwinHierarchical  # noqa: E402
from common.poor_photos import SHIFTS, shifted  # noqa: E402

Outputs = dict[str, torch.Tensor]  # features, layers, species logits, leaf (or, of strangers, whether shown: 1 or 0)


def pictures_of(data: Organized, split: str, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the pictures of a split, uint8 (size, size, 3), with their leaves."""
    views = EvalViews(data.splits[split], size)
    for i in range(len(views)):
        yield views[i][0].numpy(), int(views[i][1])


def strangers_of(folder: Path, size: int, long_side: int | None) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the pictures below a folder, and for each whether it is shown (1) or reported (0)."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in images.SUFFIXES):
        data = path.read_bytes()
        rgb = images.read_rgb(data, long_side=long_side, min_side=1)
        yield images.resize_to_model(rgb, size), hashlib.sha256(data).digest()[0] % 2


@torch.inference_mode()
def run_model(model: SwinHierarchical, rows: list[tuple[np.ndarray, int]], what: str, shift: str | None = None) -> Outputs:
    """Run the backbone over pictures, or over their poor copies."""
    parts = []
    for start in progress(range(0, len(rows), 32), desc=what, unit="batch"):
        batch = np.stack([picture for picture, _ in rows[start : start + 32]])
        batch = shifted(batch, shift, start) if shift else batch
        _, features, layers = look(model, torch.from_numpy(batch))
        parts.append((features, layers, model.species_logits(model.neck(features))))
    names = ("features", "layers", "logits")
    return {name: torch.cat(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)} | {
        "leaf": torch.tensor([number for _, number in rows])}


def gather(args: argparse.Namespace, model: SwinHierarchical, data: Organized) -> dict[str, Outputs]:
    """Outputs for the splits, poor copies of val and test (`val dark`), and each kind of stranger; from --store where they are."""
    size, found = model.settings["image_size"], {}
    store = args.store / checkpoint.weights_hash(checkpoint.load(args.checkpoint))[:12]
    store.mkdir(parents=True, exist_ok=True)

    def kept(name: str, shift: str | None, rows: list[tuple[np.ndarray, int]] | None = None) -> None:
        path = store / f"{name} {shift or 'plain'}.pt"
        if not path.is_file():
            rows = rows or list(pictures_of(data, name, size) if name in data.splits else
                                strangers_of(args.strangers[name], size, data.long_side))
            torch.save(run_model(model, rows, f"{name} {shift or ''}", shift), path)
        found[f"{name} {shift}" if shift else name] = torch.load(path, weights_only=True)

    for name in ("train", "val", "test", *args.strangers):
        kept(name, None)
    for name in ("train", "val", "test"):
        rows = None if all((store / f"{name} {shift}.pt").is_file() for shift in SHIFTS) else list(pictures_of(data, name, size))
        for shift in SHIFTS:
            kept(name, shift, rows[:: max(1, len(rows) // args.poor)] if rows else None)
    return found


class Scorer:
    """All scores of outputs, with spaces fitted on train and, where strangers are shown, the learned score."""

    def __init__(self, model: SwinHierarchical, found: dict[str, Outputs]) -> None:
        train = found["train"]
        self.spaces = [FeatureSpace(train[key], train["leaf"], model.leaf_species) for key in ("features", "layers")]
        self.temperature = fit_temperature(found["val"]["logits"].numpy(), model.leaf_species[found["val"]["leaf"]].numpy())

    def plain(self, outputs: Outputs) -> dict[str, np.ndarray]:
        """The scores of the graph without the learned one, and two to compare with."""
        logits = outputs["logits"] / self.temperature
        probs = logits.softmax(1)
        ood = torch.cat([gen_score(probs)[:, None], self.spaces[0].distances(outputs["features"], probs.argmax(1)),
                         self.spaces[1](outputs["layers"])], dim=1)
        return rejection.columns(ood.numpy(), SCORES) | {"max-softmax": -probs.amax(1).numpy().astype(float),
                                                         "energy": -outputs["logits"].logsumexp(1).numpy().astype(float)}



def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value among all, from 0 on."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float)


def cell(plants: np.ndarray, strangers: np.ndarray) -> str:
    """AUROC, and the share of strangers above a threshold that loses 1 % of these plants."""
    return f"{auroc(plants, strangers):.3f} / {(strangers > rejection.highest_kept(plants)).mean():.2f}"


def part(scores: dict[str, np.ndarray], rows: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Some scores of some pictures."""
    return {name: scores[name][rows] for name in names}


def main() -> None:
    """Print the tables."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    flags.add_argument("--data", type=Path, default=Path("data/organized"))
    flags.add_argument("--checkpoint", type=Path, required=True)
    flags.add_argument("--strangers", nargs="+", required=True, metavar="NAME=DIR")
    flags.add_argument("--near", nargs="*", default=[], metavar="NAME", help="kinds of --strangers that are plants of other species")
    flags.add_argument("--poor", type=int, default=500, metavar="N", help="pictures of each split that get poor copies (default 500)")
    flags.add_argument("--store", type=Path, default=Path("rejection_store"), help="where the outputs of the backbone are kept")
    args = flags.parse_args()
    args.strangers = {name: Path(folder) for name, _, folder in (pair.partition("=") for pair in args.strangers)}
    if missing := [str(folder) for folder in args.strangers.values() if not folder.is_dir()]:
        fail(f"there is no folder {missing[0]}. Give --strangers as NAME=DIR.")
    far = [name for name in args.strangers if name not in args.near]
    data, model = load_organized(args.data), checkpoint.build_model(checkpoint.load(args.checkpoint)).eval()
    found = gather(args, model, data)
    scorer = Scorer(model, found)
    scores = {name: scorer.plain(outputs) for name, outputs in found.items() if not name.startswith("train")}
    hidden = {name: found[name]["leaf"].numpy() == 0 if name in far else np.ones(len(found[name]["leaf"]), bool) for name in scores}
    compare(scores, hidden, args, f"{model.settings['backbone']}, {model.settings['image_size']} px")
    usual = rejection.fit(part(scores["val"], hidden["val"], SCORES), poor={s: scores[f"val {s}"] for s in SHIFTS})
    whole = {name: np.ones(len(found[name]["leaf"]), bool) for name in scores}
    show("Bars fitted without a picture of a stranger", usual, scores, whole, args, SCORES)
    if far:
        names, shown = (*SCORES, LEARNED), fit_with(far, found, scores)
        show("Bars and a learned score, fitted with the shown half of each kind", shown, scores, hidden, args, names)
        rows = []
        for left in far if len(far) > 1 else []:
            bars = fit_with([kind for kind in far if kind != left], found, scores)
            judged = rejection.judge(bars, scores["test"], {left: part(scores[left], hidden[left], names)})
            rows.append((left, bars["score"], f"{judged['auroc']:.4f}", f"{judged['rejected']:.1%}",
                         f"{judged['rejected_at_1pct_plants_lost']:.1%}", f"{judged['plants_lost']:.2%}"))
        if rows:
            say("", "A kind left out of what is shown:", "",
                table(rows, ("left out", "scores", "AUROC", "refused", "at 1 % of plants lost", "plants lost")))


def compare(scores: dict[str, dict[str, np.ndarray]], hidden: dict[str, np.ndarray], args: argparse.Namespace, title: str) -> None:
    """Print the table of single scores and of GEN with Mahalanobis."""
    plants, rows = scores["test"], []
    for name in ("max-softmax", "energy", *SCORES):
        rows.append((name, *(cell(plants[name], scores[kind][name][hidden[kind]]) for kind in args.strangers)))
    for pair in (("gen", "mahalanobis"), ("gen", "layers")):
        row = []
        for kind in args.strangers:
            both = [ranks(np.concatenate([plants[name], scores[kind][name][hidden[kind]]])) for name in pair]
            row.append(cell(*np.split(sum(both), [len(plants["gen"])])))
        rows.append((f"rank mean of {' and '.join(pair)}", *row))
    counts = [f"{kind} ({hidden[kind].sum()})" for kind in args.strangers]
    say("", f"{title}, {len(plants['gen'])} test plants. AUROC / share of strangers refused at 1 % of test plants lost", "",
        table(rows, ("score", *counts)))


def fit_with(kinds: list[str], found: dict[str, Outputs], scores: dict[str, dict[str, np.ndarray]]) -> dict:
    """Fit the learned score and the bars with the shown half of some kinds; adds the learned score to all `scores`."""
    seen = {kind: found[kind]["leaf"].numpy() == 1 for kind in kinds}
    plants = torch.cat([found[name]["layers"] for name in ("train", *(f"train {shift}" for shift in SHIFTS))])
    strange = torch.cat([found[kind]["layers"][seen[kind]] for kind in kinds])
    order = torch.randperm(len(strange), generator=torch.Generator().manual_seed(0))  # all kinds in every fold
    learned, unseen = Learned(plants, strange), torch.empty(len(strange))
    unseen[order] = cross_fitted(plants, strange[order])
    with torch.inference_mode():
        for name in scores:
            scores[name][LEARNED] = learned(found[name]["layers"])[:, 0].numpy().astype(float)
    shown = [part(scores[kind], seen[kind], SCORES) for kind in kinds]
    strangers = {name: np.concatenate([values[name] for values in shown]) for name in SCORES} | {LEARNED: unseen.numpy().astype(float)}
    return rejection.fit({name: scores["val"][name] for name in (*SCORES, LEARNED)}, strangers=strangers,
                         poor={shift: scores[f"val {shift}"] for shift in SHIFTS})


def show(title: str, bars: dict, scores: dict[str, dict[str, np.ndarray]], hidden: dict[str, np.ndarray], args: argparse.Namespace,
         names: tuple[str, ...]) -> None:
    """Print what bars are worth on test, over the kinds that are no plants together and each alone."""
    far = {kind: part(scores[kind], hidden[kind], names) for kind in args.strangers if kind not in args.near}
    near = {kind: part(scores[kind], hidden[kind], names) for kind in args.near}
    poor = {shift: scores[f"test {shift}"] for shift in SHIFTS}
    say("", title, "", *rejection.report_lines(bars, bars["val"], rejection.judge(bars, scores["test"], far, poor)))
    if near:
        kinds = rejection.judge(bars, scores["test"], near)["kinds"]
        say(table([(kind, f"{row['n']}", f"{row['auroc']:.4f}", f"{row['rejected']:.1%}", f"{row['rejected_at_1pct_plants_lost']:.1%}",
                    f"{row['not_a_plant']:.1%}") for kind, row in kinds.items()],
                  ("plants of other species", "pictures", "AUROC", "refused", "at 1 % of plants lost", "of these called no plant")))


if __name__ == "__main__":
    main()
