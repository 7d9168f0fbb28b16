"""Whether the thresholds keep their promise on real answers when temperatures are fitted on the
same pictures, and what it costs in coverage.

  python tests/benchmarks/rollup.py --model exports/model.onnx --data data/organized

Takes all held-out pictures (val and test) of an exported model, in two ways. First they stand for
the world: val splits of several sizes are drawn from them with replacement, temperatures and
thresholds are fitted, and the promise is checked on all of them. Then they are split in two again
and again, class by class; temperatures and thresholds are fitted on one half and judged on the
other, as 03 does it. The temperatures in the model do not matter: all is fitted anew from its
answers. A few minutes for 1,000 pictures.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.classes import ClassTree
from common.console import table
from common.decide import species_probabilities
from common.export import calibrate, rollup
from common.export.answers import Answers, blocks, join, sum_up, take

PRECISIONS = (0.90, 0.95, 0.97, 0.99)


def logits_of(
    probabilities: np.ndarray,
    class_idx: np.ndarray,
    tree: ClassTree,
    at: calibrate.Temperatures | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Recover logits from a model's answers, so that an exported model can be calibrated anew.

    Args:
        probabilities: float (N, classes), joint, made at the temperatures `at` (None: 1).
        class_idx: int (N,), true classes.

    Returns:
        species logits float64 (N, species) and, of the true species, disease logits float64 (N,
        widest), each up to a constant per row, which no softmax sees. Probabilities below 1e-30
        count as that.
    """
    at = at or calibrate.Temperatures.none(tree)
    species, sizes = tree.class_species[class_idx], np.diff(tree.offsets)
    by_species = species_probabilities(probabilities, tree)
    columns = np.arange(sizes.max())
    picked = np.minimum(tree.offsets[species][:, None] + columns, tree.num_classes - 1)
    own = np.take_along_axis(np.asarray(probabilities), picked, axis=1).astype(np.float64)
    own = np.log(
        np.maximum(
            own / np.maximum(by_species[np.arange(len(class_idx)), species], 1e-300)[:, None], 1e-30
        )
    )
    disease = np.where(columns < sizes[species][:, None], own * at.disease[species][:, None], -1e4)
    return np.log(np.maximum(by_species, 1e-30)) * at.species, disease


def fit(
    probabilities: np.ndarray, class_idx: np.ndarray, chosen: np.ndarray, tree: ClassTree
) -> tuple[Answers, dict]:
    """Fit temperatures and thresholds on the chosen pictures; returns all answers at these
    temperatures, and the thresholds.
    """
    mine, one = probabilities[chosen], calibrate.Temperatures.none(tree)
    fitted = calibrate.fit_temperatures(
        *logits_of(mine, class_idx[chosen], tree), class_idx[chosen], tree
    )
    moved = join(
        [
            sum_up(
                calibrate.retemper(probabilities[rows], tree, one, fitted), class_idx[rows], tree
            )
            for rows in blocks(*probabilities.shape)
        ]
    )
    fitted = rollup.fit(take(moved, chosen), tree, precisions=PRECISIONS)
    return moved, fitted["precisions"]


def broken(entry: dict, figures: dict) -> bool:
    """Whether a promise is broken: of all answers, or of those that name a class where thresholds
    were fitted for them.
    """
    names = ("precision", "disease_precision") if entry["answers"] == "disease" else ("precision",)
    return any(figures[name] is not None and figures[name] < entry["holds"] for name in names)


def row(label: str, name: str, results: list[tuple[dict, dict]]) -> tuple[str, ...]:
    """One line: how often promised, how often broken, and the means where it was promised."""
    kept = [(entry, figures) for entry, figures in results if entry["promised"]]
    with_classes = [figures for entry, figures in kept if entry["answers"] == "disease"]
    mean = {
        key: np.mean([f[key] for _, f in kept if f[key] is not None]) if kept else float("nan")
        for key in ("coverage", "precision")
    }
    classes = (
        np.mean([f["disease_coverage"] for f in with_classes]) if with_classes else float("nan")
    )
    shares = [len(with_classes) / len(results), (len(kept) - len(with_classes)) / len(results)]
    return (
        label,
        name,
        *(f"{share:.0%}" for share in shares),
        f"{sum(broken(*pair) for pair in results) / len(results):.1%}",
        f"{mean['precision']:.2%}",
        f"{mean['coverage']:.1%}",
        f"{classes:.1%}",
    )


def resample(
    probabilities: np.ndarray,
    class_idx: np.ndarray,
    tree: ClassTree,
    sizes: tuple[int, ...],
    draws: int,
    seed: int = 0,
) -> str:
    """Both experiments as a table."""
    rng, rows, errors = np.random.default_rng(seed), [], []
    for n in (*sizes, 0):
        results: dict[str, list[tuple[dict, dict]]] = {rollup.name_of(p): [] for p in PRECISIONS}
        for _ in range(draws):
            if n:
                chosen, rest = rng.integers(0, len(class_idx), n), np.arange(len(class_idx))
            else:
                order = np.lexsort((rng.random(len(class_idx)), class_idx))
                halves = np.arange(len(class_idx)) % 2 == rng.integers(2)
                chosen, rest = order[halves], order[~halves]
            moved, entries = fit(probabilities, class_idx, chosen, tree)
            others = take(moved, rest)
            for name, entry in entries.items():
                results[name].append((entry, rollup.judge(entry, others, tree)))
            if not n:
                sizes = np.zeros(tree.num_classes)
                figures = calibrate.calibration_figures(others, tree, sizes)["all"]
                errors.append([figures[key] for key in ("error", "counted", "by_chance", "nll")])
        label = f"{n:,} drawn, all are the truth" if n else "halves, judged on the other"
        rows += [row(label, name, pairs) for name, pairs in results.items()]
    words = (
        "val",
        "wanted",
        "promised with leaves",
        "species only",
        "broken",
        "right",
        "answered",
        "class answered",
    )
    error = "calibration error {:.2%} (counted {:.2%}, by chance {:.2%}), NLL {:.3f}".format(
        *np.mean(errors, axis=0)
    )
    return f"{table(rows, words)}\n\nhalves, mean of {draws}: {error}"


def main() -> None:
    """Answer all held-out pictures with a model, and resample them."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--model", type=Path, required=True)
    flags.add_argument("--data", type=Path, required=True)
    flags.add_argument("--sizes", type=int, nargs="+", default=[300, 600, 2000])
    flags.add_argument("--draws", type=int, default=100)
    args = flags.parse_args()

    from common.serve.predictor import open_session
    from common.train.dataset import EvalViews, load_organized, make_loader

    data, session = load_organized(args.data), open_session(args.model)
    size, parts = session.get_inputs()[0].shape[1], []
    for split in ("val", "test"):
        for pictures, class_idx in make_loader(
            EvalViews(data.splits[split], size), 0, batch_size=32
        ):
            parts.append(
                (session.run(["probabilities"], {"images": pictures.numpy()})[0], class_idx.numpy())
            )
    probabilities, class_idx = (np.concatenate(column) for column in zip(*parts, strict=True))
    print(resample(probabilities, class_idx, data.tree, tuple(args.sizes), args.draws))


if __name__ == "__main__":
    main()
