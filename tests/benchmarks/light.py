"""The light model: bytes before its first answer at full size, rounding of its heads, and a student
taught against one untaught.

  python tests/benchmarks/light.py size
      320 species, 11,499 diseases, random weights; a minute
  python tests/benchmarks/light.py train --data data/organized \
      --teacher checkpoints/hierarchical_full/epoch=12-best.pt \\
      --recipe light_demo --weights checkpoints/hierarchical_full/epoch=12-best.pt --store DIR

`train` runs 02a and 02b twice with one recipe, with --teacher and without, writes both students as
03 does, and judges them on test beside the teacher: alone, and where unsure photos go to the
teacher. A run that was stopped goes on. Brotli sizes need that package.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from common.classes import ClassTree
from common.console import say, table
from common.decide import joint_class
from common.export.answers import run_over
from common.export.browser import heads_file
from common.export.browser.light_export import finish_browser, report_lines, write_browser
from common.export.browser.light_graph import (
    LAYERS_RANK,
    RANK,
    LightGraph,
    has_exact_map,
    write_model,
)
from common.export.browser.light_model import first_answer, wire_bytes
from common.export.fitting import torch_answers
from common.export.graph import FeatureSpace, LearnedScore, extract_features
from common.export.pictures import Pictures
from common.files import file_sha256
from common.train import checkpoint, recipe_flags, recipes
from common.train.compute import choose_compute
from common.train.dataset import EvalViews, Organized, load_organized, make_loader
from common.train.model import SwinHierarchical

# region size


def large_tree(species: int = 320, classes: int = 11_499) -> ClassTree:
    """A tree of that many leaves: 1 to some 150 diseases a species, with names as long as real
    ones.
    """
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 0.8, species)
    counts = np.maximum(1, np.floor(share / share.sum() * classes).astype(int))
    counts[: classes - counts.sum()] += 1
    words = [
        "bacterial",
        "leaf",
        "spot",
        "early",
        "late",
        "blight",
        "powdery",
        "mildew",
        "rust",
        "mosaic",
        "virus",
        "wilt",
        "scab",
        "rot",
    ]
    diseases = tuple(
        tuple(f"{'_'.join(rng.choice(words, 2))}_{i}" for i in range(n)) for n in counts
    )
    return ClassTree(tuple(f"{rng.choice(words)}_plant_{i}" for i in range(species)), diseases)


@torch.inference_mode()
def size(args: argparse.Namespace) -> None:
    """Print the bytes of a student with random weights, and what rounding its heads to int8 or
    float16 changes.
    """
    tree, recipe = large_tree(), recipes.get("light")
    torch.manual_seed(0)
    model = SwinHierarchical(recipe.backbone, tree, **recipe_flags.model_settings(recipe)).eval()
    for head in (model.species_head, model.disease_heads):
        torch.nn.init.normal_(head.weight, std=0.3)
    class_idx = torch.randint(0, tree.num_classes, (3000,))
    images = torch.randint(0, 256, (4, recipe.image_size, recipe.image_size, 3), dtype=torch.uint8)
    layers = extract_features(model, images)[2].shape[1]
    near = [
        FeatureSpace(torch.randn(3000, width), class_idx, model.class_species, rank=rank)
        for width, rank in ((model.num_features, RANK), (layers, LAYERS_RANK))
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "light.onnx"
        learned = LearnedScore(torch.randn(300, layers), torch.randn(100, layers))
        write_model(
            LightGraph(model, *near, 1.0, has_exact_map(model, images), learned),
            path,
            recipe.image_size,
            [images.numpy()],
        )
        data, sha256 = path.read_bytes(), file_sha256(path)
    weight, bias = (model.disease_heads.weight.numpy(), model.disease_heads.bias.numpy())
    packed, offsets = heads_file.pack(
        tree,
        (model.species_head.weight.numpy(), model.species_head.bias.numpy()),
        (weight, bias),
        np.ones(tree.num_species),
        bytes.fromhex(sha256[:8]),
    )
    settings = json.dumps(
        {
            "species": tree.species,
            "diseases": np.diff(tree.offsets).tolist(),
            "heads": {"offsets": offsets},
            "deferral": {
                "species": np.random.default_rng(0)
                .normal(0, 0.1, tree.num_species)
                .round(6)
                .tolist()
            },
        }
    ).encode()
    files = {
        "light.onnx": wire_bytes(data),
        "light.json": wire_bytes(settings),
        "heads.bin": {"raw": len(packed), "gzip": None, "brotli": None},
    }  # byte ranges travel as they are
    first = first_answer(files, np.diff(offsets), [])
    rows = [
        (name, *(f"{v:,}" if v else "-" for v in values.values())) for name, values in files.items()
    ]
    rows += [
        ("one head, mean", f"{first['head_bytes']:,}", "", ""),
        ("one head, largest", f"{first['head_bytes_most']:,}", "", ""),
        (
            "before the first answer",
            *(f"{first[way]:,}" if first[way] else "-" for way in ("raw", "gzip", "brotli")),
        ),
    ]
    say(
        table(
            rows,
            (f"{tree.num_species} species, {tree.num_classes:,} leaves", "bytes", "gzip", "brotli"),
        ),
        "",
    )

    features = np.abs(np.random.default_rng(1).normal(0, 1, (2000, weight.shape[1]))).astype(
        np.float32
    )
    species = np.random.default_rng(2).integers(0, tree.num_species, 2000)
    drift: dict[str, list[float]] = {"int8": [], "float16": []}
    same = {"int8": 0, "float16": 0}
    for row, s in zip(features, species, strict=True):
        classes = slice(tree.offsets[s], tree.offsets[s + 1])
        logits = weight[classes] @ row + bias[classes]
        head = heads_file.unpack(packed[offsets[s] : offsets[s + 1]], bytes.fromhex(sha256[:8]))
        for name, found in (
            ("int8", head.rows @ row + head.bias),
            (
                "float16",
                weight[classes].astype(np.float16).astype(np.float32) @ row + bias[classes],
            ),
        ):
            drift[name].append(float(np.abs(found - logits).max() / max(logits.std(), 1e-6)))
            same[name] += int(found.argmax() == logits.argmax())
    say(
        table(
            [(name, f"{np.median(drift[name]):.4f}", f"{same[name] / 2000:.4f}") for name in drift],
            ("heads stored as", "drift of logits, in standard deviations", "same disease first"),
        )
    )


# endregion

# region train


def train(args: argparse.Namespace) -> None:
    """Train with and without the teacher, write both students, and print what each is worth."""
    data = load_organized(args.data)
    served = checkpoint.build_model(checkpoint.load(args.teacher))

    def batches(split: str, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for pictures, class_idx in make_loader(
            EvalViews(data.splits[split], side), args.workers, batch_size=32
        ):
            yield pictures.numpy(), class_idx.numpy()

    @torch.inference_mode()
    def teacher_answers(split: str) -> np.ndarray:
        parts = []
        for pictures, _ in batches(split, served.settings["image_size"]):
            hidden, logits = served(torch.from_numpy(pictures))
            parts.append(joint_class(served.probabilities(hidden, logits).numpy(), data.tree))
        return np.concatenate(parts)

    server = {split: teacher_answers(split) for split in ("val", "test")}
    truth = np.asarray(data.splits["test"].class_idx)
    species = data.tree.class_species
    right = server["test"] == truth
    rows = [
        (
            "teacher",
            float((species[server["test"]] == species[truth]).mean()),
            float(right.mean()),
            None,
            None,
            None,
        )
    ]
    for name, flags in (("taught", ["--teacher", str(args.teacher)]), ("untaught", [])):
        folder = args.store / name
        began = time.monotonic()
        for script in (
            ["02a_train_species.py", f"--weights={args.weights}"],
            ["02b_train_disease.py"],
        ):
            args.store.mkdir(parents=True, exist_ok=True)
            with folder.with_suffix(".log").open("a") as log:
                subprocess.run(
                    [
                        sys.executable,
                        script[0],
                        f"--data={args.data}",
                        f"--checkpoints={folder}",
                        f"--recipe={args.recipe}",
                        f"--seed={args.seed}",
                        f"--workers={args.workers}",
                        *script[1:],
                        *flags,
                        *args.flag,
                    ],
                    cwd=ROOT,
                    check=True,
                    stdout=log,
                    stderr=log,
                )
        seconds = time.monotonic() - began
        best = checkpoint.find_best(folder / "hierarchical_full") or checkpoint.find_best(
            folder / "species_only"
        )
        student = checkpoint.build_model(checkpoint.load(best))
        report = written_and_judged(student, folder / "browser", data, args.workers, server)
        test = report["test"]
        rows.append(
            (
                name,
                test["species_top1"],
                test["cascade_top1"],
                report["deferral"]["test"]["hybrid"],
                report["deferral"]["test"]["sent"],
                seconds,
            )
        )
        say("", f"== {name}", *report_lines(report))
    say(
        "",
        table(
            [
                (
                    r[0],
                    *("-" if v is None else f"{v:.4f}" for v in r[1:5]),
                    "-" if r[5] is None else f"{r[5]:.0f}",
                )
                for r in rows
            ],
            (
                "on test",
                "species",
                "species and disease",
                "with the teacher's help",
                "photos sent",
                "seconds",
            ),
        ),
    )


def written_and_judged(
    student: SwinHierarchical,
    folder: Path,
    data: Organized,
    workers: int,
    server: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Write a student's files as 03 does, without rejection and roll-up."""
    side, device = student.settings["image_size"], choose_compute(precision="fp32").device
    own = Pictures(data, side, [], 10_000, workers)
    settings = {"name": "foliar", "version": "-", "preprocessing": {}}
    written = write_browser(student, folder, own, settings, device)
    reference = torch_answers(written.fitted.graph(student), own, device)
    tables = {"val": None, "test": reference.probabilities}
    splits = {
        split: run_over(
            written.light.outputs, own.batches(split), data.tree, table, written.signals
        )
        for split, table in tables.items()
    }
    return finish_browser(
        written,
        splits,
        reference.joint,
        server,
        {"rejection": None, "rollup": None},
        own.batches("test"),
        data.class_sizes,
    )


# endregion


def main() -> None:
    """Run one of the two; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("size")
    flags = kinds.add_parser("train")
    flags.add_argument("--data", type=Path, required=True)
    flags.add_argument("--teacher", type=Path, required=True)
    flags.add_argument("--recipe", default="light_demo")
    flags.add_argument("--weights", default="none")
    flags.add_argument("--store", type=Path, required=True)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--workers", type=int, default=2)
    flags.add_argument(
        "--flag",
        action="append",
        default=[],
        help="a further flag of 02a and 02b, as --flag=--joint-epochs=2",
    )
    args = parser.parse_args()
    size(args) if args.kind == "size" else train(args)


if __name__ == "__main__":
    main()
