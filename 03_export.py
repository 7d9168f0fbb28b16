"""Stage 3: export the trained model as ONNX, quantize it, calibrate it, fit the refusal of strangers, and check it all.

Reads   checkpoints/hierarchical_full/*-best.pt (else species_only/*-best.pt), data/organized/
Writes  exports/: model.onnx (FP32), model.int8.onnx, bundle.json, report.md, report.json
Next    04_serve.py

  python 03_export.py
  python 03_export.py --checkpoint checkpoints/hierarchical_full/epoch=10-best.pt --output exports

Temperatures, threshold and roll-up are fitted on val for each model; every figure of the reports is from test. An INT8
model that answers differently from FP32 on more than 1 % of val is not written, and the report says what was tried.
Takes about a minute for the demo, and a few for a Swin-Tiny on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from common import bundle, calibrate, checkpoint, images, quantize
from common.console import Stopwatch, duration, fail, friendly, header, parser, progress, say, warn
from common.dataset import EvalViews, Organized, Split, default_workers, load_organized, make_loader
from common.engine import choose_compute
from common.export_report import compose_report, report_table, report_text
from common.files import file_sha256, write_text
from common.graph import SCORES, FeatureSpace, ServingGraph, export_onnx, look
from common.measure import Run, check_batches, measure_ms, run_over, session_run
from common.metrics import for_json, judge, summarise
from common.model import SwinHierarchical

AGREEMENT = 0.99  # least share of equal top-1 answers between INT8 and FP32


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    flags = parser(__doc__)
    flags.add_argument("--data", type=Path, default=Path("data/organized"), help="folder written by 01_reorganize.py")
    flags.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="where the run folders stand")
    flags.add_argument("--checkpoint", type=Path, help="the checkpoint to export (default: the best of the last stage)")
    flags.add_argument("--output", type=Path, default=Path("exports"))
    flags.add_argument("--precision-wanted", type=float, default=0.95,
                       help="least share of right answers among those given, for the roll-up (default 0.95)")
    flags.add_argument("--max-pictures", type=int, default=10000, help="pictures per split to fit and check with (default 10000)")
    flags.add_argument("--workers", type=int, default=default_workers())
    flags.add_argument("--fresh", action="store_true", help="export again, even where the same checkpoint was exported")
    args = flags.parse_args(argv)
    if not 0.5 <= args.precision_wanted < 1 or args.max_pictures < 10 or args.workers < 0:
        fail("--precision-wanted must be 0.5 to 1, --max-pictures at least 10, --workers at least 0.")
    return args


# region pictures and features


def batches_of(split: Split, size: int, args: argparse.Namespace, batch_size: int = 32,
               at_most: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (uint8 (N, size, size, 3), leaf int64 (N,)) of at most --max-pictures pictures, evenly spread over the split."""
    views: Any = EvalViews(split, size)
    at_most = at_most or args.max_pictures
    if len(split) > at_most:
        views = torch.utils.data.Subset(views, np.linspace(0, len(split) - 1, at_most).astype(int).tolist())
    for pictures, leaf in make_loader(views, args.workers, batch_size=batch_size):
        yield pictures.numpy(), leaf.numpy()


def strangers_of(data: Organized, split: str, size: int, at_most: int) -> Iterator[np.ndarray]:
    """Yield the pictures of no plant that 01 set aside for a split: uint8 (N, size, size, 3), N up to 32."""
    folder = data.root / "not_plants" / split
    found = sorted(map(str, folder.glob("*.jpg")))[:at_most]
    for start in range(0, len(found), 32):
        yield np.stack([images.resize_to_model(images.read_rgb(p, min_side=1), size) for p in found[start : start + 32]])


@torch.inference_mode()
def features_of(model: SwinHierarchical, split: Split, args: argparse.Namespace, what: str) -> tuple[torch.Tensor, ...]:
    """Run the backbone over a split: features (N, F), layer statistics (N, F + 2C), leaves int64 (N,), all on the CPU."""
    compute, parts = choose_compute(precision="fp32"), []
    model.to(compute.device)
    total = -(-min(len(split), args.max_pictures) // 32)
    for pictures, leaf in progress(batches_of(split, model.settings["image_size"], args), total, what, "batch"):
        _, features, layers = look(model, torch.from_numpy(pictures).to(compute.device))
        parts.append((features.cpu(), layers.cpu(), torch.from_numpy(leaf)))
    model.cpu()
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


# endregion

# region fitting and checking


def build_graph(model: SwinHierarchical, data: Organized, args: argparse.Namespace) -> ServingGraph:
    """Fit temperatures on val and the feature spaces on train."""
    features, layers, leaf = features_of(model, data.splits["train"], args, "features of train")
    spaces = [FeatureSpace(values, leaf, model.leaf_species) for values in (features, layers)]
    features, _, leaf = features_of(model, data.splits["val"], args, "features of val")
    species = model.leaf_species[leaf]
    with torch.inference_mode():
        hidden = model.neck(features)
        species_logits, disease_logits = model.species_logits(hidden), model.disease_logits(hidden, species)
    several = (model.disease_heads.sizes[species] > 1).numpy()
    disease = (leaf - model.disease_heads.leaf_of[species, 0]).numpy()
    temperatures = (calibrate.fit_temperature(species_logits.numpy(), species.numpy()),
                    calibrate.fit_temperature(disease_logits.numpy()[several], disease[several]))
    say(f"temperatures: species {temperatures[0]:.3f}, disease {temperatures[1]:.3f}")
    return ServingGraph(model, *spaces, *temperatures).eval()


def describe(path: Path, precision: str, graph: ServingGraph, data: Organized, val: tuple[np.ndarray, ...], test: tuple[np.ndarray, ...],
             strangers: dict[str, np.ndarray], torch_test: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
    """Fit what is fitted per model on val, judge it on test, and compose its entry in bundle.json."""
    def columns(ood: np.ndarray) -> dict[str, np.ndarray]:
        return {name: ood[:, i] for i, name in enumerate(SCORES)}

    have = {split: len(ood) > 0 for split, ood in strangers.items()}
    rejection = calibrate.fit_rejection(columns(val[1]), columns(strangers["val"]) if have["val"] else None)
    rejection_val = rejection.pop("val")
    judged = judge(test[0], test[2], data.tree)
    metrics = for_json(summarise(judged, data.tree, data.class_sizes))
    metrics |= {"calibration_error": calibrate.calibration_error(judged.confidence, judged.joint == judged.leaf),
                "top1_agreement": float((test[0].argmax(1) == torch_test.argmax(1)).mean()),
                "max_probability_difference": float(np.abs(test[0] - torch_test).max()), "rejection_val": rejection_val}
    if have["test"]:
        metrics["ood"] = calibrate.judge_rejection(rejection, columns(test[1]), columns(strangers["test"]))
    return {"sha256": file_sha256(path), "size_mb": round(path.stat().st_size / 1e6, 3), "precision": precision,
            "temperature": {"species": graph.species_temperature, "disease": graph.disease_temperature}, "rejection": rejection,
            "rollup": calibrate.fit_rollup(val[0], val[2], data.tree, args.precision_wanted), "metrics": metrics}


# endregion


def pick_checkpoint(args: argparse.Namespace) -> Path:
    """Find the checkpoint to export."""
    heads = args.checkpoints / "disease_heads" / "disease_heads_final.pt"
    for found in (args.checkpoint, checkpoint.find_best(args.checkpoints / "hierarchical_full"), heads if heads.is_file() else None,
                  checkpoint.find_best(args.checkpoints / "species_only")):
        if found:
            return found
    fail(f"there is no *-best.pt under {args.checkpoints}. Run 02a_train_species.py and 02b_train_disease.py first, or give a "
         "checkpoint with --checkpoint.")


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Export; see the module's docstring."""
    args, clock = parse(argv), Stopwatch()
    header("03 export")
    data, path = load_organized(args.data), pick_checkpoint(args)
    payload = checkpoint.load(path)
    checkpoint.require_tree(payload, data.tree, path, data.root)
    if not len(data.splits["test"]):
        fail(f"{args.data} has no test pictures, and an export without a test would be a guess. Add pictures and run 01_reorganize.py.")
    if data.tree.num_leaves > data.tree.num_species and path.parent.name == "species_only":
        warn(f"{path} HAS UNTRAINED DISEASE HEADS: only its species mean anything. Run 02b_train_disease.py first.")
    if args.output.exists() and not (args.output / bundle.FILE_NAME).is_file() and (not args.output.is_dir() or any(args.output.iterdir())):
        fail(f"{args.output} is there and was not made by this script. Choose another --output.")
    version = checkpoint.weights_hash(payload)
    made_of = f"{version}-{data.manifest_hash[:16]}-{args.precision_wanted}-{args.max_pictures}"
    if not args.fresh and (args.output / bundle.FILE_NAME).is_file():
        try:
            if bundle.read_bundle(args.output).raw.get("made_of") == made_of:
                say(f"{args.output} is up to date: same checkpoint, same data. --fresh exports again.")
                return 0
        except bundle.BundleError as error:
            warn(f"{error}; exporting again.")
    say(f"checkpoint: {path} ({payload['settings']['backbone']}, {payload['settings']['image_size']} px)")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_name(args.output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        result = export(checkpoint.build_model(payload), payload, data, partial, args)
        result["bundle"] |= {"made_of": made_of, "version": version[:12]}
        bundle.write_bundle(partial, result["bundle"])
        report = compose_report(result, data, args.checkpoints, clock())
        write_text(partial / "report.json", json.dumps(report, indent=1))
        write_text(partial / "report.md", report_text(report, result))
        shutil.rmtree(args.output, ignore_errors=True)
        os.replace(partial, args.output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    say("", report_table(report), f"wrote {args.output}/ (report.md says more)", f"time: {duration(clock())}", "next: python 04_serve.py")
    return 0


def export(model: SwinHierarchical, payload: dict[str, Any], data: Organized, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Make, fit and check all models; returns the bundle and what the report adds to it."""
    size = model.settings["image_size"]
    graph = build_graph(model, data, args)
    fp32 = folder / "model.onnx"
    export_onnx(graph, str(fp32), size)
    onnx.checker.check_model(str(fp32))

    @torch.inference_mode()
    def torch_run(pictures: np.ndarray) -> list[np.ndarray]:
        return [t.numpy() for t in graph(torch.from_numpy(pictures))]

    def evaluate(run: Run) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], dict[str, np.ndarray]]:
        strange = {s: [run(pictures)[1] for pictures in strangers_of(data, s, size, args.max_pictures)] for s in ("val", "test")}
        return (run_over(run, batches_of(data.splits["val"], size, args)), run_over(run, batches_of(data.splits["test"], size, args)),
                {s: np.concatenate([np.zeros((0, len(SCORES)), np.float32), *parts]) for s, parts in strange.items()})

    torch_test = run_over(torch_run, batches_of(data.splits["test"], size, args))[0]
    threads = default_workers()
    outcomes = {"model.onnx": evaluate(session_run(fp32, threads))}
    tried = quantize.make_int8(
        fp32, folder / "model.int8.onnx", lambda: (p for p, _ in batches_of(data.splits["train"], size, args, 16, at_most=256)),
        lambda: batches_of(data.splits["val"], size, args), outcomes["model.onnx"][0][0].argmax(1), AGREEMENT)
    kept = quantize.kept(tried)
    if kept:
        outcomes["model.int8.onnx"] = evaluate(session_run(folder / "model.int8.onnx", threads))
        agreement = float((outcomes["model.int8.onnx"][1][0].argmax(1) == outcomes["model.onnx"][1][0].argmax(1)).mean())
        if agreement < AGREEMENT:  # val let it pass; test may still refuse, never choose
            kept.refused, kept = f"agrees on {agreement:.1%} of test, {AGREEMENT:.0%} are needed", None
            del outcomes["model.int8.onnx"]
            (folder / "model.int8.onnx").unlink()
    if not kept:
        warn("NO INT8 MODEL is written: " + "; ".join(f"{row.way}: {row.refused}" for row in tried))
    cards = {name: describe(folder / name, "fp32" if name == "model.onnx" else f"int8, {kept.way}", graph, data, val, test, strangers,
                            torch_test, args) for name, (val, test, strangers) in outcomes.items()}
    worst = cards["model.onnx"]["metrics"]["max_probability_difference"]
    if worst > 1e-3:
        fail(f"the exported model answers differently from PyTorch, by up to {worst:.3f} in probability: torch {torch.__version__} does "
             f"not export {payload['settings']['backbone']} rightly. Nothing was written.")
    pictures = next(batches_of(data.splits["test"], size, args, batch_size=8))[0]
    speed = measure_ms({name: session_run(folder / name) for name in cards} | {"torch": torch_run}, pictures[0])
    for name, card in cards.items():
        card["metrics"] |= {"ms_p50": round(speed[name], 3), "batch_difference": check_batches(session_run(folder / name), pictures)}
    faster = kept and speed["model.int8.onnx"] <= 1.05 * speed["model.onnx"]
    settings = payload["settings"]
    return {"tried": [vars(row) for row in tried], "torch_ms": speed["torch"], "bundle": {
        "format": bundle.FORMAT, "name": "foliar", "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {**payload["provenance"], "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        "recipe": payload["identity"]["recipe"], "backbone": settings["backbone"], "tree": data.tree.to_json(),
        "preprocessing": {"size": size, "long_side": data.long_side, "resize": "pillow-bilinear-antialias", "layout": "NHWC",
                          "dtype": "uint8", "color": "RGB"},
        "scores": list(SCORES), "default_model": "model.int8.onnx" if faster else "model.onnx", "models": cards,
        "metrics": cards["model.onnx"]["metrics"]}}


if __name__ == "__main__":
    raise SystemExit(main())
