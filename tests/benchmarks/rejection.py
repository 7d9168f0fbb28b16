"""OOD scores of any checkpoint, per kind of out-of-distribution picture, and for kinds that nothing
was fitted on.

  python tests/benchmarks/rejection.py --data data/organized --checkpoint FILE --ood
  photos=DIR documents=DIR --near flowers=DIR

Spaces are fitted on train and poor copies of it, thresholds on val, every figure is from test. Half
of the pictures of each kind that is no plant (by the hash of the file) are for fitting: the learned
score and the choice of the sum of scores; the other half is reported. In the last table one kind at
a time is left out of the fit, and all of it is reported. The backbone runs once; its outputs are
kept in --store.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common import images
from common.console import fail, progress, say, table
from common.export import ood
from common.export.bounds import at_least
from common.export.calibrate import fit_temperature
from common.export.graph import (
    LEARNED,
    SCORES,
    FeatureSpace,
    LearnedScore,
    cross_fitted,
    extract_features,
    gen_score,
)
from common.export.pictures import SHIFTS, shifted
from common.train import checkpoint
from common.train.dataset import EvalViews, Organized, load_organized
from common.train.metrics import auroc
from common.train.model import SwinHierarchical

# features, layers, species logits and class_idx (of OOD pictures: 1 for those to fit on, else 0)
Outputs = dict[str, torch.Tensor]


def pictures_of(data: Organized, split: str, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the pictures of a split, uint8 (size, size, 3), with their classes."""
    views = EvalViews(data.splits[split], size)
    for i in range(len(views)):
        yield views[i][0].numpy(), int(views[i][1])


def ood_pictures_of(
    folder: Path, size: int, long_side: int | None
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the pictures below a folder, each with 1 if it is fitted on and 0 if reported."""
    for path in sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in images.SUFFIXES
    ):
        data = path.read_bytes()
        rgb = images.read_rgb(data, long_side=long_side, min_side=1)
        yield images.resize_to_model(rgb, size), hashlib.sha256(data).digest()[0] % 2


@torch.inference_mode()
def run_model(
    model: SwinHierarchical, rows: list[tuple[np.ndarray, int]], what: str, shift: str | None = None
) -> Outputs:
    """Run the backbone over pictures, or over their poor copies."""
    parts = []
    for start in progress(range(0, len(rows), 32), desc=what, unit="batch"):
        batch = np.stack([picture for picture, _ in rows[start : start + 32]])
        batch = shifted(batch, shift, start) if shift else batch
        _, features, layers = extract_features(model, torch.from_numpy(batch))
        parts.append((features, layers, model.species_logits(model.neck(features))))
    names = ("features", "layers", "logits")
    return {
        name: torch.cat(column)
        for name, column in zip(names, zip(*parts, strict=True), strict=True)
    } | {"class_idx": torch.tensor([number for _, number in rows])}


def gather(
    args: argparse.Namespace, model: SwinHierarchical, data: Organized
) -> dict[str, Outputs]:
    """Outputs for the splits, poor copies of val and test (`val dark`), and each kind of OOD
    picture, from --store where they are.
    """
    size, found = model.settings["image_size"], {}
    store = args.store / checkpoint.weights_hash(checkpoint.load(args.checkpoint))[:12]
    store.mkdir(parents=True, exist_ok=True)

    def kept(
        name: str, shift: str | None, rows: list[tuple[np.ndarray, int]] | None = None
    ) -> None:
        path = store / f"{name} {shift or 'plain'}.pt"
        if not path.is_file():
            rows = rows or list(
                pictures_of(data, name, size)
                if name in data.splits
                else ood_pictures_of(args.ood[name], size, data.long_side)
            )
            torch.save(run_model(model, rows, f"{name} {shift or ''}", shift), path)
        found[f"{name} {shift}" if shift else name] = torch.load(path, weights_only=True)

    for name in ("train", "val", "test", *args.ood):
        kept(name, None)
    for name in ("train", "val", "test"):
        rows = (
            None
            if all((store / f"{name} {shift}.pt").is_file() for shift in SHIFTS)
            else list(pictures_of(data, name, size))
        )
        for shift in SHIFTS:
            kept(name, shift, rows[:: max(1, len(rows) // args.poor)] if rows else None)
    return found


def exchanged(found: dict[str, Outputs], far: Iterable[str]) -> dict[str, Outputs]:
    """The same with val and test in each other's place, and the two halves of the OOD
    pictures too.
    """
    places = {"val": "test", "test": "val"}
    turned = {
        " ".join([places.get(name.split()[0], name.split()[0]), *name.split()[1:]]): outputs
        for name, outputs in found.items()
    }
    return turned | {
        name: {**found[name], "class_idx": 1 - found[name]["class_idx"]} for name in far
    }


def train_with_poor(found: dict[str, Outputs], key: str) -> torch.Tensor:
    """The backbone's outputs for train and its poor copies: what 03 fits the scores on."""
    return torch.cat(
        [found[name][key] for name in ("train", *(f"train {shift}" for shift in SHIFTS))]
    )


def plain_scores(
    model: SwinHierarchical, found: dict[str, Outputs]
) -> dict[str, dict[str, np.ndarray]]:
    """The scores of the graph without the learned one, and two to compare with, of all but train;
    spaces are fitted on train.
    """
    class_idx = train_with_poor(found, "class_idx")
    near, near_layers = (
        FeatureSpace(train_with_poor(found, key), class_idx, model.class_species)
        for key in ("features", "layers")
    )
    temperature = fit_temperature(
        found["val"]["logits"].numpy(), model.class_species[found["val"]["class_idx"]].numpy()
    )
    scores = {}
    for name, outputs in found.items():
        probs = (outputs["logits"] / temperature).softmax(1)
        distances = (
            near.distances(outputs["features"], probs.argmax(1)),
            near_layers(outputs["layers"]),
        )
        outputs = torch.cat([gen_score(probs)[:, None], *distances], dim=1)
        scores[name] = ood.columns(outputs.numpy(), SCORES) | {
            "max-softmax": -probs.amax(1).numpy().astype(float),
            "energy": -outputs["logits"].logsumexp(1).numpy().astype(float),
        }
    return {name: values for name, values in scores.items() if not name.startswith("train")}


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value among all, from 0 on."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float)


def cell(plants: np.ndarray, others: np.ndarray) -> str:
    """AUROC, and the share of OOD pictures rejected at a false rejection rate of 1 %."""
    return f"{auroc(plants, others):.3f} / {(others > ood.highest_kept(plants)).mean():.2f}"


def part(
    scores: dict[str, np.ndarray], rows: np.ndarray, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Some scores of some pictures."""
    return {name: scores[name][rows] for name in names}


def main() -> None:
    """Print the tables."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--data", type=Path, default=Path("data/organized"))
    flags.add_argument("--checkpoint", type=Path, required=True)
    flags.add_argument(
        "--ood",
        nargs="+",
        required=True,
        metavar="NAME=DIR",
        help="kinds of pictures of no plant",
    )
    flags.add_argument(
        "--near",
        nargs="*",
        default=[],
        metavar="NAME=DIR",
        help="plants of other species: nothing is fitted on them",
    )
    flags.add_argument(
        "--poor",
        type=int,
        default=600,
        metavar="N",
        help="pictures of each split that get poor copies (default 600)",
    )
    flags.add_argument(
        "--store",
        type=Path,
        default=Path("rejection_store"),
        help="where the outputs of the backbone are kept",
    )
    args = flags.parse_args()
    far, near = (
        {name: Path(folder) for name, _, folder in (pair.partition("=") for pair in pairs)}
        for pairs in (args.ood, args.near)
    )
    args.ood, args.near = far | near, list(near)
    if missing := [str(folder) for folder in args.ood.values() if not folder.is_dir()]:
        fail(f"there is no folder {missing[0]}. Give --ood and --near as NAME=DIR.")
    data, model = (
        load_organized(args.data),
        checkpoint.build_model(checkpoint.load(args.checkpoint)).eval(),
    )
    found = gather(args, model, data)
    scores = plain_scores(model, found)
    hidden = {
        name: found[name]["class_idx"].numpy() == 0
        if name in far
        else np.ones(len(found[name]["class_idx"]), bool)
        for name in scores
    }
    whole = {name: np.ones(len(rows), bool) for name, rows in hidden.items()}
    usual = ood.fit(
        part(scores["val"], whole["val"], SCORES), poor={s: scores[f"val {s}"] for s in SHIFTS}
    )
    fitted = fit_with(list(far), found, scores)
    compare(
        scores,
        hidden,
        args,
        fitted,
        f"{model.settings['backbone']}, {model.settings['image_size']} px",
    )
    show("Thresholds fitted without any OOD picture", usual, scores, whole, args, SCORES)
    judged = [
        show(
            "Thresholds and a learned score, fitted with half of each kind",
            fitted,
            scores,
            hidden,
            args,
            (*SCORES, LEARNED),
        )
    ]
    turned = exchanged(found, far)
    other = plain_scores(model, turned)
    other_fit = fit_with(list(far), turned, other)
    judged.append(
        ood.judge(
            other_fit,
            other["test"],
            {kind: part(other[kind], ~hidden[kind], (*SCORES, LEARNED)) for kind in far},
        )
    )
    show_both(judged)
    rows = []
    for left in far if len(far) > 1 else []:
        fitted = fit_with([kind for kind in far if kind != left], found, scores)
        one = ood.judge(
            fitted, scores["test"], {left: part(scores[left], whole[left], (*SCORES, LEARNED))}
        )
        rows.append(
            (
                left,
                f"{one['n_ood']}",
                fitted["score"],
                f"{one['auroc']:.4f}",
                f"{one['rejected']:.1%}",
                f"{one['rejected_at_1pct_frr']:.1%}",
                f"{one['false_rejection_rate']:.2%}",
            )
        )
    if rows:
        say(
            "",
            "A kind that nothing was fitted on:",
            "",
            table(
                rows,
                (
                    "kind",
                    "pictures",
                    "scores",
                    "AUROC",
                    "rejected",
                    "at 1 % false rejection",
                    "false rejection rate",
                ),
            ),
        )


def show_both(judged: list[dict]) -> None:
    """Print what two fits are worth together, each judged on what the other was fitted with."""
    plants, others = (sum(one[key] for one in judged) for key in ("n_plants", "n_ood"))
    wrong, right = (
        sum(round(one[share] * one[count]) for one in judged)
        for share, count in (("false_rejection_rate", "n_plants"), ("rejected", "n_ood"))
    )
    say(
        "",
        f"Twice, with val and test and the halves exchanged: {right / others:.1%} of "
        f"{others} pictures of no plant rejected, "
        f"{wrong / plants:.2%} of {plants} plants (at most "
        f"{1 - at_least(plants - wrong, plants):.2%}); {right / (right + wrong):.2%} of "
        f"the rejected are OOD, with 95 % confidence at least "
        f"{at_least(right, right + wrong):.2%}.",
    )


def compare(
    scores: dict[str, dict[str, np.ndarray]],
    hidden: dict[str, np.ndarray],
    args: argparse.Namespace,
    fitted: dict,
    title: str,
) -> None:
    """Print the table of single scores, of GEN with Mahalanobis, and of the sum that was fitted."""

    def row(name: str, of: Callable[[dict[str, np.ndarray]], np.ndarray]) -> tuple[str, ...]:
        return (
            name,
            *(cell(of(scores["test"]), of(scores[kind])[hidden[kind]]) for kind in args.ood),
        )

    rows = [row(name, itemgetter(name)) for name in ("max-softmax", "energy", *SCORES)]
    for pair in (("gen", "mahalanobis"), ("gen", "layers")):
        cells = []
        for kind in args.ood:
            both = [
                ranks(np.concatenate([scores["test"][name], scores[kind][name][hidden[kind]]]))
                for name in pair
            ]
            cells.append(cell(*np.split(sum(both), [len(scores["test"]["gen"])])))
        rows.append((f"rank mean of {' and '.join(pair)}", *cells))
    rows += [
        row(LEARNED, itemgetter(LEARNED)),
        row(fitted["score"], partial(ood.value, fitted["weights"])),
    ]
    say(
        "",
        f"{title}, {len(scores['test']['gen'])} test plants. AUROC / share of OOD pictures "
        f"rejected at a false rejection rate of 1 %",
        "",
        table(rows, ("score", *(f"{kind} ({hidden[kind].sum()})" for kind in args.ood))),
    )


def fit_with(
    kinds: list[str], found: dict[str, Outputs], scores: dict[str, dict[str, np.ndarray]]
) -> dict:
    """Fit the learned score and the thresholds with half of some kinds; adds the learned score
    to all `scores`.
    """
    chosen = {kind: found[kind]["class_idx"].numpy() == 1 for kind in kinds}
    plants, strange = (
        train_with_poor(found, "layers"),
        torch.cat([found[kind]["layers"][chosen[kind]] for kind in kinds]),
    )
    learned, held_out = (
        LearnedScore(plants, strange),
        cross_fitted(plants, strange).numpy().astype(float),
    )
    with torch.inference_mode():
        for name in scores:
            scores[name][LEARNED] = learned(found[name]["layers"])[:, 0].numpy().astype(float)
    halves = [part(scores[kind], chosen[kind], SCORES) for kind in kinds]
    others = {name: np.concatenate([values[name] for values in halves]) for name in SCORES}
    return ood.fit(
        {name: scores["val"][name] for name in (*SCORES, LEARNED)},
        not_plants=others | {LEARNED: held_out},
        poor={shift: scores[f"val {shift}"] for shift in SHIFTS},
    )


def show(
    title: str,
    fitted: dict,
    scores: dict[str, dict[str, np.ndarray]],
    hidden: dict[str, np.ndarray],
    args: argparse.Namespace,
    names: tuple[str, ...],
) -> dict:
    """Print what thresholds are worth on test, over all kinds that are no plants and each alone;
    returns `ood.judge`.
    """
    far = {
        kind: part(scores[kind], hidden[kind], names) for kind in args.ood if kind not in args.near
    }
    near = {kind: part(scores[kind], hidden[kind], names) for kind in args.near}
    judged = ood.judge(
        fitted, scores["test"], far, {shift: scores[f"test {shift}"] for shift in SHIFTS}
    )
    say("", title, "", *ood.report_lines(fitted, fitted["val"], judged))
    if near:
        kinds = ood.judge(fitted, scores["test"], near)["kinds"]
        say(
            table(
                [
                    (
                        kind,
                        f"{row['n']}",
                        f"{row['auroc']:.4f}",
                        f"{row['rejected']:.1%}",
                        f"{row['rejected_at_1pct_frr']:.1%}",
                        f"{row['not_a_plant']:.1%}",
                    )
                    for kind, row in kinds.items()
                ],
                (
                    "plants of other species",
                    "pictures",
                    "AUROC",
                    "rejected",
                    "at 1 % false rejection",
                    "of these called no plant",
                ),
            )
        )
    return judged


if __name__ == "__main__":
    main()
