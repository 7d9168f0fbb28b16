"""The demo's exported models on demo pictures drawn with another seed: nothing was trained, fitted
or chosen on them.

python tests/benchmarks/fresh_demo.py --exports exports --pictures /some/empty/folder
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.classes import slug
from common.console import table
from common.demo.pictures import CLASSES, make_demo
from common.images import ImageError
from common.serve.predictor import Predictor
from common.train.metrics import auroc, judge, summarise


def run(
    predictor: Predictor, files: list[tuple[Path, int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answer all files that can be read: probabilities (N, classes), OOD scores (N,
    scores), leaves (N,).
    """
    pictures, classes = [], []
    for path, class_idx in files:
        try:
            pictures.append(predictor.read(path).pixels)
            classes.append(class_idx)
        except ImageError:  # the defects planted in the demo
            continue
    outputs = [predictor.run(np.stack(pictures[i : i + 64])) for i in range(0, len(pictures), 64)]
    return (
        np.concatenate([o.probabilities for o in outputs]),
        np.concatenate([o.ood for o in outputs]),
        np.array(classes),
    )


def main() -> None:
    """Print a table, a row per exported model."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--exports", type=Path, default=Path("exports"))
    flags.add_argument(
        "--pictures", type=Path, required=True, help="folder to draw into; kept for the next time"
    )
    flags.add_argument("--seed", type=int, default=7, help="of the drawing; the demo itself has 0")
    args = flags.parse_args()
    made, rows = make_demo(args.pictures, seed=args.seed), []
    truth = {folder: (species, disease) for folder, species, disease, _ in CLASSES}
    for name in Predictor(args.exports).bundle.models:
        predictor = Predictor(args.exports, name)
        tree, thresholds = predictor.bundle.tree, predictor.card.rejection
        index = {tree.pair(i): i for i in range(tree.num_classes)}
        plants = [
            (path, index[tuple(map(slug, truth[folder.name]))])
            for folder in sorted(Path(made["plants"]).iterdir())
            for path in sorted(folder.iterdir())
        ]
        probabilities, known, class_idx = run(predictor, plants)
        strange = run(
            predictor, [(path, 0) for path in sorted(Path(made["not_plants"]).iterdir())]
        )[1]
        m = summarise(
            judge(probabilities, class_idx, tree),
            tree,
            np.bincount(class_idx, minlength=tree.num_classes),
        )
        rows.append(
            (
                name,
                m["n"],
                *(
                    f"{m[k]:.4f}"
                    for k in ("species_top1", "disease_top1", "cascade_top1", "macro_f1")
                ),
                *(f"{thresholds.ood.exceeded(ood).mean():.4f}" for ood in (strange, known)),
                f"{auroc(thresholds.ood.value(known), thresholds.ood.value(strange)):.4f}",
            )
        )
    print(
        table(
            rows,
            (
                "model",
                "leaves",
                "species",
                "disease",
                "both",
                "macro F1",
                "OOD rejected",
                "false rejection rate",
                "AUROC",
            ),
        )
    )


if __name__ == "__main__":
    main()
