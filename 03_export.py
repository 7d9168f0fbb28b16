"""Stage 3: export the trained model as ONNX, quantize it, calibrate it, fit the rejection of
out-of-distribution pictures, and check it all.

Reads   checkpoints/hierarchical_full/*-best.pt (else disease_heads/, species_only/),
        checkpoints/species_only/pretrained.pt, data/organized/
Writes  exports/: model.onnx (FP32), model.fp16.onnx, model.int8.onnx, browser/ with --browser,
        bundle.json, report.md with its pictures, report.html, report.json, README.md (model card);
        advice.csv, empty, which is yours to fill in and is never replaced; reference/ with
        --reference; the page as a folder for any web host with --static
Next    04_serve.py

  python 03_export.py
  python 03_export.py --ood documents=~/scans --unknown-plants ~/photos/garden
      with further out-of-distribution pictures: half choose thresholds, half are reported
  python 03_export.py --browser checkpoints/light/hierarchical_full/epoch=10-best.pt
  python 03_export.py --reference 3 plants
      adds three typical train pictures per class of the source `plants`, for the page to show
  python 03_export.py --static site
      writes the page of an export that has a light model, for GitHub Pages or any web host

Temperatures, thresholds and roll-up are fitted on val for each model; every figure of the reports
is from test. An INT8 model that does not pass the gate (common/export/gate.py) is not written, and
the report says what was tried. Takes two minutes for the demo.
"""

import argparse
import datetime
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from common.console import Stopwatch, Unusable, duration, fail, friendly, header, parser, say, warn
from common.export import formats, fp16, int8
from common.export.answers import Answers, sum_up
from common.export.browser.light_export import export_browser
from common.export.calibrate import Temperatures, retemper
from common.export.fitting import Fitted, Outcome, describe, fit_parts, outcome_of, torch_answers
from common.export.flags import add_flags, check_flags
from common.export.graph import export_onnx
from common.export.measure import (
    check_batches,
    check_limits,
    cost_of_scores,
    measure_ms,
    session_run,
)
from common.export.pictures import Pictures, known_ood
from common.export.reference import free_pictures, write_reference
from common.export.report import write_report
from common.export.second_opinion import WORTH, load_pretrained
from common.files import claim, file_sha256, stand_in
from common.serve import predictor
from common.serve.advice import ADVICE, REFERENCE, begin_advice, describe_advice
from common.serve.texts import english, read_texts
from common.train import checkpoint
from common.train.compute import choose_compute
from common.train.dataset import Organized, default_workers, load_organized

FP32, FP16, INT8 = "model.onnx", "model.fp16.onnx", "model.int8.onnx"
SAME = 1e-3  # greatest difference of a probability between PyTorch and ONNX


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    flags = parser(__doc__)
    add_flags(flags)
    args = flags.parse_args(argv)
    check_flags(args, flags)
    args.texts = read_texts(args.texts) if args.texts else english()
    args.compute = choose_compute(args.device, "fp32")
    return args


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
        f"02b_train_disease.py first, or give a checkpoint with --checkpoint."
    )


def check_inputs(args: argparse.Namespace, data: Organized, path: Path) -> None:
    """Stop, or warn, where the data, the checkpoint at `path` or --output will not do."""
    out = args.output = claim(args.output)
    if args.triton:
        claim(args.triton / formats.TRITON_NAME)
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
    made_here = (out / predictor.FILE_NAME).is_file()
    if out.exists() and not made_here and (not out.is_dir() or any(out.iterdir())):
        fail(f"{out} is there and was not made by this script. Choose another --output.")


def if_worth_it(fitted: Fitted) -> Fitted:
    """Take the second opinion out where it tells left-out species too badly."""
    if fitted.second is None or fitted.left_out["auroc"] >= WORTH:
        return fitted
    warn(
        f"NO SECOND OPINION: it tells left-out species with an AUROC of "
        f"{fitted.left_out['auroc']:.3f}, less than {WORTH}, which is not worth its time. "
        f"--second-opinion takes it all the same."
    )
    return replace(fitted, second=None)


def up_to_date(folder: Path, built_from: str) -> bool:
    """Whether a folder holds an export of the same checkpoints, data and settings; whatever the
    settings where `built_from` ends in a dash.
    """
    if not (folder / predictor.FILE_NAME).is_file():
        return False
    try:
        made = predictor.read_bundle(folder).raw.get("built_from", "")
        return made.startswith(built_from) if built_from.endswith("-") else made == built_from
    except predictor.BundleError as error:
        warn(f"{error}; exporting again.")
        return False


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Export; see the module's docstring."""
    args, clock = parse(argv), Stopwatch()
    header("03 export")
    if args.only_page and (args.output / predictor.FILE_NAME).is_file():
        write_page(args)
        return 0
    data, path = load_organized(args.data), pick_checkpoint(args)
    payload = checkpoint.load(path)
    checkpoint.require_tree(payload, data.tree, path, data.root)
    check_inputs(args, data, path)
    free = free_pictures(data, args.reference) if args.reference else None
    version = checkpoint.weights_hash(payload)
    before = load_pretrained(args.second_opinion, path, payload)
    student = checkpoint.weights_hash(checkpoint.load(args.browser)) if args.browser else ""
    same = "-".join(map(str, [predictor.FORMAT, version, data.manifest_hash[:16]]))
    sources = [args.precision_wanted, args.max_pictures, student[:16]]
    sources += [*args.ood, *args.unknown_plants, args.second_opinion]
    sources += [before and checkpoint.weights_hash(before)]
    built_from = "-".join(map(str, [same, *sources]))
    if not args.fresh and up_to_date(args.output, f"{same}-" if args.only_adds else built_from):
        say(f"{args.output} is up to date: same checkpoint, same data. --fresh exports again.")
        add_beside(args, data, payload, free)
        return 0
    if args.static and not args.browser:
        fail("--static: a page without a server answers by a light model. Give --browser too.")
    settings = payload["settings"]
    say(f"checkpoint: {path} ({settings['backbone']}, {settings['image_size']} px)")
    say(f"device: {args.compute} for PyTorch, the CPU for the exported models")
    partial = args.output.with_name(args.output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        result = export(payload, before, data, partial, args, version[:12])
        result["browser"] = args.browser and export_browser(
            args.browser,
            partial / "browser",
            result["bundle"],
            result["outcomes"][result["bundle"]["default_model"]],
            args.precision_wanted,
            args.compute.device,
        )
        bundle = result["bundle"] | {"built_from": built_from}
        predictor.write_bundle(partial, bundle)
        told = write_report(partial, result, data, args.checkpoints, args.browser, clock())
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, Unusable):
            fail(f"{error} Nothing was written.")
        raise
    if (args.output / ADVICE).is_file():
        shutil.copy2(args.output / ADVICE, partial)
    if (args.output / REFERENCE).is_dir() and not free:
        warn(f"{args.output / REFERENCE} is gone with the old export: give --reference again.")
    stand_in(partial, args.output)
    say("", told)
    say(f"wrote {args.output}/ (report.md says more, report.html shows what it got wrong)")
    add_beside(args, data, payload, free)
    say(f"time: {duration(clock())}", "next: python 04_serve.py")
    return 0


def add_beside(
    args: argparse.Namespace,
    data: Organized,
    payload: dict[str, Any],
    free: tuple[int, dict[int, str]] | None,
) -> None:
    """Add to the export: an empty advice.csv where there is none, and the reference pictures, the
    Triton repository and the page's folder that are wanted.
    """
    begin_advice(args.output, data.tree)
    if args.triton:
        bundle = predictor.read_bundle(args.output).raw
        formats.write_triton(args.triton, args.output / bundle["default_model"], bundle)
        say(f"wrote {args.triton}/: tritonserver --model-repository {args.triton}")
    if free:
        model, device = checkpoint.build_model(payload), args.compute.device
        count, pictures = free
        folder = args.output / REFERENCE
        say(write_reference(folder, data, model, pictures, count, device, args.workers))
    say(f"advice: {describe_advice(args.output, data.tree)}")
    if args.static:
        write_page(args)


def write_page(args: argparse.Namespace) -> None:
    """Write the page of the export as a folder."""
    # here, since nothing else of an export needs the packages of a server
    from common.serve.static_site import write_static

    say(*write_static(args.static, args.output, args.texts))


def export(
    payload: dict[str, Any],
    before: dict[str, Any] | None,
    data: Organized,
    folder: Path,
    args: argparse.Namespace,
    version: str,
) -> dict[str, Any]:
    """Make, fit and check all models but the light one; returns the bundle and what the report adds
    to it.
    """
    model, threads, device = checkpoint.build_model(payload), default_workers(), args.compute.device
    kinds = known_ood(data, args.ood, args.unknown_plants)
    pictures = Pictures(data, model.settings["image_size"], kinds, args.max_pictures, args.workers)
    network = before and checkpoint.build_model(before)
    fitted = fit_parts(model, pictures, device, pretrained=network)
    fitted = fitted if args.second_opinion else if_worth_it(fitted)
    graph, t = fitted.graph(model), fitted.temperatures
    say(f"temperatures: {t}")

    export_onnx(graph, str(folder / FP32), pictures.size)
    onnx.checker.check_model(str(folder / FP32))
    reference = torch_answers(graph, pictures, device)

    def without_temperatures(probabilities: np.ndarray, class_idx: np.ndarray, _: Any) -> Answers:
        plain = retemper(probabilities, data.tree, t, Temperatures.none(data.tree))
        return sum_up(plain, class_idx, data.tree)

    def answers(name: str, **also: Any) -> Outcome:
        run = session_run(folder / name, threads)
        parts = pictures, graph.scores, fitted.held_out
        return outcome_of(name, run, *parts, reference=reference, also=also)

    outcomes = {FP32: answers(FP32, test=without_temperatures)}
    check_same(outcomes[FP32], payload["settings"]["backbone"])
    entries = {FP32: describe(outcomes[FP32], reference, args.precision_wanted)}

    fp16.write_fp16(folder / FP32, folder / FP16, list(pictures.calibration(32)))
    outcomes[FP16] = answers(FP16)
    some = next(pictures.batches("test", batch_size=8))[0]
    tried, small, verdicts = int8.export_int8(
        folder / FP32,
        folder / INT8,
        outcomes[FP32],
        entries[FP32]["rejection"]["weights"],
        fitted.held_out,
        some,
        reference,
    )
    outcomes |= {INT8: small} if small else {}

    bundle = begin_bundle(payload, pictures, graph.scores, version)
    precisions = {FP32: "fp32", FP16: "fp16", INT8: f"int8, {tried[-1].way}"}
    for name in outcomes:
        formats.stamp(folder / name, formats.metadata(bundle, precisions[name]))
        tolerance = 1e-2 if name == FP16 else formats.BATCH_TOLERANCE
        formats.check_fresh(folder / name, some, data.tree, graph.scores, tolerance)
    runs = {name: session_run(folder / name) for name in outcomes}
    cost = fitted.second and cost_of_scores(folder / FP32, some[0])
    told = {"left_out": fitted.left_out, "cost": cost} if fitted.second else {}
    with torch.inference_mode():
        in_torch = {"torch": lambda batch: graph(torch.from_numpy(batch))}
        speed = measure_ms(runs | in_torch, some[0])
    cards = {}
    for name, outcome in outcomes.items():
        entry = entries.get(name) or describe(outcome, reference, args.precision_wanted)
        cards[name] = file_facts(folder / name, precisions[name], t) | entry
        cards[name]["metrics"] |= {
            "ms_p50": round(speed[name], 3),
            "batch_difference": check_batches(runs[name], some),
        }
        cards[name]["metrics"]["rejection_val"] |= told
    served = INT8 if INT8 in cards and speed[INT8] <= 1.05 * speed[FP32] else FP32
    check_limits(
        served, cards[served]["size_mb"], speed[served], args.max_size_mb, args.max_latency_ms
    )
    return {
        "bundle": bundle
        | {"default_model": served, "models": cards, "metrics": cards[FP32]["metrics"]},
        "tried": tried,
        "verdicts": verdicts,
        "torch_ms": speed["torch"],
        "outcomes": outcomes,
        "temperatures": t,
    }


def check_same(exported: Outcome, backbone: str) -> None:
    """Stop where the exported model does not answer as PyTorch does."""
    worst = float(exported.splits["test"].difference.max())
    if worst > SAME:
        fail(
            f"the exported model answers differently from PyTorch, by up to {worst:.3f} in "
            f"probability: torch {torch.__version__} does not export {backbone} correctly. Nothing "
            f"was written."
        )


def file_facts(path: Path, precision: str, temperatures: Temperatures) -> dict[str, Any]:
    """What bundle.json says of a model's file itself."""
    return {
        "sha256": file_sha256(path),
        "size_mb": round(path.stat().st_size / 1e6, 3),
        "precision": precision,
        "temperature": temperatures.to_json(),
    }


def begin_bundle(
    payload: dict[str, Any], pictures: Pictures, scores: Sequence[str], version: str
) -> dict[str, Any]:
    """Compose bundle.json but for what it says about the models."""
    return {
        "format": predictor.FORMAT,
        "name": "foliar",
        "version": version,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": payload["provenance"]
        | {"onnx": onnx.__version__, "onnxruntime": predictor.onnxruntime.__version__},
        "recipe": payload["identity"]["recipe"],
        "backbone": payload["settings"]["backbone"],
        "tree": pictures.data.tree.to_json(),
        "preprocessing": {
            "size": pictures.size,
            "long_side": pictures.data.long_side,
            "resize": "pillow-bilinear-antialias",
            "layout": "NHWC",
            "dtype": "uint8",
            "color": "RGB",
        },
        "scores": list(scores),
    }


if __name__ == "__main__":
    raise SystemExit(main())
