"""Stage 3: export the trained model as ONNX, quantize it, calibrate it, fit the rejection of
out-of-distribution pictures, and check it all.

Reads   checkpoints/hierarchical_full/*-best.pt (else disease_heads/, species_only/),
data/organized/ Writes  exports/: model.onnx (FP32), model.fp16.onnx, model.int8.onnx, browser/ with
--browser,
        bundle.json, report.md with its pictures, report.json
Next    04_serve.py

  python 03_export.py
  python 03_export.py --ood documents=~/scans --unknown-plants ~/photos/garden
      with further out-of-distribution pictures: half choose thresholds, half are reported
  python 03_export.py --browser checkpoints/light/hierarchical_full/epoch=10-best.pt

Temperatures, thresholds and roll-up are fitted on val for each model; every figure of the reports
is from test. An INT8 model that does not pass the gate (common/export/gate.py) is not written, and
the report says what was tried. Takes two minutes for the demo.
"""

import argparse
import datetime
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from common.console import Stopwatch, duration, fail, friendly, header, parser, say, warn
from common.export import formats, fp16, int8
from common.export.browser.light_export import export_browser
from common.export.calibrate import Temperatures
from common.export.fitting import build_graph, fit_parts, torch_answers
from common.export.graph import export_onnx
from common.export.measure import LimitError, check_batches, check_limits, measure_ms, session_run
from common.export.outcomes import (
    Outcome,
    evaluate_thresholds,
    fit_thresholds,
    outcome_of,
    photo_limits,
)
from common.export.pictures import Pictures, known_ood
from common.export.report import compose_report, draw, report_table, report_text
from common.files import file_sha256, write_text
from common.serve import predictor
from common.train import checkpoint
from common.train.dataset import Organized, default_workers, load_organized
from common.train.model import SwinHierarchical

FP32, FP16, INT8 = "model.onnx", "model.fp16.onnx", "model.int8.onnx"
SAME = 1e-4  # greatest difference of a probability between PyTorch and ONNX


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    flags = parser(__doc__)
    flags.add_argument(
        "--data",
        type=Path,
        default=Path("data/organized"),
        help="folder written by 01_reorganize.py",
    )
    flags.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="where the run folders stand"
    )
    flags.add_argument(
        "--checkpoint",
        type=Path,
        help="the checkpoint to export (default: the best of the last stage)",
    )
    flags.add_argument("--output", type=Path, default=Path("exports"))
    flags.add_argument(
        "--precision-wanted",
        type=float,
        default=0.95,
        help="least share of right answers among those given, unless the caller asks for another "
        "(default 0.95)",
    )
    flags.add_argument(
        "--ood",
        nargs="+",
        default=[],
        metavar="[NAME=]DIR",
        help="further pictures that show no plant",
    )
    flags.add_argument(
        "--unknown-plants",
        nargs="+",
        default=[],
        metavar="[NAME=]DIR",
        help="pictures of plants that no class knows",
    )
    flags.add_argument(
        "--browser",
        type=Path,
        metavar="CHECKPOINT",
        help="a small model to answer in the browser: writes browser/",
    )
    flags.add_argument(
        "--triton",
        type=Path,
        metavar="DIR",
        help="also lay the model out as a Triton model repository",
    )
    flags.add_argument("--max-size-mb", type=float, help="fail where the served model is larger")
    flags.add_argument(
        "--max-latency-ms",
        type=float,
        help="fail where the served model takes longer for a picture, on one thread",
    )
    flags.add_argument(
        "--max-pictures",
        type=int,
        default=10000,
        help="pictures per split to fit and check with (default 10000)",
    )
    flags.add_argument("--workers", type=int, default=default_workers())
    flags.add_argument(
        "--fresh",
        action="store_true",
        help="export again, even where the same checkpoint was exported",
    )
    args = flags.parse_args(argv)
    if not 0.5 <= args.precision_wanted < 1 or args.max_pictures < 10 or args.workers < 0:
        fail(
            "--precision-wanted must be 0.5 to 1, --max-pictures at least 10, --workers at least 0."
        )
    return args


def describe(
    path: Path,
    precision: str,
    outcome: Outcome,
    pictures: Pictures,
    temperatures: Temperatures,
    names: Sequence[str],
    photo: dict[str, float],
    torch_test: np.ndarray,
    flat: np.ndarray,
    wanted: float,
) -> dict[str, Any]:
    """Fit what is fitted per model on val, judge it on test, and compose its entry in
    bundle.json.
    """
    tree = pictures.data.tree
    fitted, on_val = fit_thresholds(outcome, names, tree, photo, wanted)
    metrics = evaluate_thresholds(outcome, fitted, names, tree, pictures.data.class_sizes, flat)
    probabilities = outcome.splits["test"][0]
    metrics |= {
        "top1_agreement": float((probabilities.argmax(1) == torch_test.argmax(1)).mean()),
        "max_probability_difference": float(np.abs(probabilities - torch_test).max()),
        "rejection_val": on_val,
    }
    return {
        "sha256": file_sha256(path),
        "size_mb": round(path.stat().st_size / 1e6, 3),
        "precision": precision,
        "temperature": temperatures.to_json(),
        **fitted,
        "metrics": metrics,
    }


def pick_checkpoint(args: argparse.Namespace) -> Path:
    """Find the checkpoint to export."""
    heads = args.checkpoints / "disease_heads" / "disease_heads_final.pt"
    for found in (
        args.checkpoint,
        checkpoint.find_best(args.checkpoints / "hierarchical_full"),
        heads if heads.is_file() else None,
        checkpoint.find_best(args.checkpoints / "species_only"),
    ):
        if found:
            return found
    fail(
        f"there is no *-best.pt under {args.checkpoints}. Run 02a_train_species.py and "
        f"02b_train_disease.py first, or give a "
        "checkpoint with --checkpoint."
    )


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Export; see the module's docstring."""
    args, clock = parse(argv), Stopwatch()
    header("03 export")
    data, path = load_organized(args.data), pick_checkpoint(args)
    payload = checkpoint.load(path)
    checkpoint.require_tree(payload, data.tree, path, data.root)
    if not len(data.splits["test"]):
        fail(
            f"{args.data} has no test pictures, and an export without a test would be a guess. "
            f"Add pictures and run 01_reorganize.py."
        )
    if data.tree.num_classes > data.tree.num_species and path.parent.name == "species_only":
        warn(
            f"{path} HAS UNTRAINED DISEASE HEADS: only its species mean anything. Run "
            f"02b_train_disease.py first."
        )
    if (
        args.output.exists()
        and not (args.output / predictor.FILE_NAME).is_file()
        and (not args.output.is_dir() or any(args.output.iterdir()))
    ):
        fail(f"{args.output} is there and was not made by this script. Choose another --output.")
    version = checkpoint.weights_hash(payload)
    student = checkpoint.weights_hash(checkpoint.load(args.browser)) if args.browser else ""
    built_from = "-".join(
        map(
            str,
            (
                predictor.FORMAT,
                version,
                data.manifest_hash[:16],
                args.precision_wanted,
                args.max_pictures,
                student[:16],
                *args.ood,
                *args.unknown_plants,
            ),
        )
    )
    if not args.fresh and (args.output / predictor.FILE_NAME).is_file():
        try:
            if predictor.read_bundle(args.output).raw.get("built_from") == built_from:
                say(
                    f"{args.output} is up to date: same checkpoint, same data. --fresh exports "
                    f"again."
                )
                return 0
        except predictor.BundleError as error:
            warn(f"{error}; exporting again.")
    say(
        f"checkpoint: {path} ({payload['settings']['backbone']}, "
        f"{payload['settings']['image_size']} px)"
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_name(args.output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        result = export(checkpoint.build_model(payload), payload, data, partial, args, version[:12])
        result["bundle"]["built_from"] = built_from
        predictor.write_bundle(partial, result["bundle"])
        report = compose_report(result, data, args.checkpoints, args.browser, clock())
        write_text(partial / "report.json", json.dumps(report, indent=1))
        write_text(partial / "report.md", report_text(report, result))
        draw(partial, result, data)
        if args.triton:
            formats.write_triton(
                args.triton, partial / result["bundle"]["default_model"], result["bundle"]
            )
        shutil.rmtree(args.output, ignore_errors=True)
        os.replace(partial, args.output)
    except (LimitError, formats.FormatError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        fail(f"{error} Nothing was written.")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    say(
        "",
        report_table(report),
        f"wrote {args.output}/ (report.md says more)",
        f"time: {duration(clock())}",
        "next: python 04_serve.py",
    )
    return 0


def export(
    model: SwinHierarchical,
    payload: dict[str, Any],
    data: Organized,
    folder: Path,
    args: argparse.Namespace,
    version: str,
) -> dict[str, Any]:
    """Make, fit and check all models; returns the bundle and what the report adds to it."""
    settings, threads = payload["settings"], default_workers()
    kinds_ood = known_ood(data, args.ood, args.unknown_plants)
    pictures = Pictures(
        data, model.settings["image_size"], kinds_ood, args.max_pictures, args.workers
    )
    fitted = fit_parts(model, pictures)
    graph, temperatures, learned = build_graph(model, fitted), fitted.temperatures, fitted.held_out
    say(
        f"temperatures: species {temperatures.species:.3f}, diseases "
        f"{temperatures.disease_global:.3f} ({temperatures.disease.min():.3f} to "
        f"{temperatures.disease.max():.3f} by species)"
    )
    export_onnx(graph, str(folder / FP32), pictures.size)
    onnx.checker.check_model(str(folder / FP32))
    some = next(pictures.batches("test", batch_size=8))[0]

    @torch.inference_mode()
    def torch_run(batch: np.ndarray) -> list[np.ndarray]:
        return [t.numpy() for t in graph(torch.from_numpy(batch))]

    torch_test, flat = torch_answers(graph, pictures, "test")
    outcomes = {FP32: outcome_of(session_run(folder / FP32, threads), pictures, learned)}
    worst = float(np.abs(outcomes[FP32].splits["test"][0] - torch_test).max())
    if worst > 10 * SAME:
        fail(
            f"the exported model answers differently from PyTorch, by up to {worst:.3f} in "
            f"probability: torch {torch.__version__} does "
            f"not export {settings['backbone']} rightly. Nothing was written."
        )
    photo = photo_limits(pictures)
    decided = fit_thresholds(outcomes[FP32], graph.scores, data.tree, photo, args.precision_wanted)[
        0
    ]
    fp16.write_fp16(folder / FP32, folder / FP16, list(pictures.calibration(32)))
    outcomes[FP16] = outcome_of(session_run(folder / FP16, threads), pictures, learned)
    tried, small, verdicts = int8.export_int8(
        folder / FP32,
        folder / INT8,
        pictures,
        outcomes[FP32],
        graph.scores,
        decided["rejection"],
        learned,
        some,
    )
    outcomes |= {INT8: small} if small else {}
    kept = int8.kept(tried)
    kinds = {FP32: "fp32", FP16: "fp16", INT8: f"int8, {kept.way}" if kept else ""}
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    for name in outcomes:
        formats.stamp(
            folder / name,
            formats.metadata(
                data.tree,
                name="foliar",
                version=version,
                weights_hash=version,
                precision=kinds[name],
                size=pictures.size,
                scores=graph.scores,
                created=created,
            ),
        )
        formats.check_fresh(
            folder / name,
            some,
            data.tree,
            graph.scores,
            batch_tolerance=1e-2 if name == FP16 else formats.BATCH_TOLERANCE,
        )
    cards = {
        name: describe(
            folder / name,
            kinds[name],
            outcome,
            pictures,
            temperatures,
            graph.scores,
            photo,
            torch_test,
            flat,
            args.precision_wanted,
        )
        for name, outcome in outcomes.items()
    }
    speed = measure_ms(
        {name: session_run(folder / name) for name in cards} | {"torch": torch_run}, some[0]
    )
    for name, card in cards.items():
        card["metrics"] |= {
            "ms_p50": round(speed[name], 3),
            "batch_difference": check_batches(session_run(folder / name), some),
        }
    served = INT8 if INT8 in cards and speed[INT8] <= 1.05 * speed[FP32] else FP32
    check_limits(
        served, cards[served]["size_mb"], speed[served], args.max_size_mb, args.max_latency_ms
    )
    content = {
        "format": predictor.FORMAT,
        "name": "foliar",
        "version": version,
        "created": created,
        "versions": {
            **payload["provenance"],
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "recipe": payload["identity"]["recipe"],
        "backbone": settings["backbone"],
        "tree": data.tree.to_json(),
        "preprocessing": {
            "size": pictures.size,
            "long_side": data.long_side,
            "resize": "pillow-bilinear-antialias",
            "layout": "NHWC",
            "dtype": "uint8",
            "color": "RGB",
        },
        "scores": list(graph.scores),
        "default_model": served,
        "models": cards,
        "metrics": cards[FP32]["metrics"],
    }
    result = {
        "bundle": content,
        "tried": [row.to_dict() for row in tried],
        "verdicts": verdicts,
        "torch_ms": speed["torch"],
        "outcomes": outcomes,
        "temperatures": temperatures,
    }
    if args.browser:
        result["browser"] = export_browser(
            args.browser,
            folder / "browser",
            pictures,
            content,
            outcomes[served],
            args.precision_wanted,
        )
    return result


if __name__ == "__main__":
    raise SystemExit(main())
