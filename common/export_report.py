"""report.json and report.md of an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.console import table
from common.dataset import Organized


def stage_seconds(checkpoints: Path) -> dict[str, float]:
    """Seconds that training took, from its logs."""
    def logged(*folders: str) -> float:
        files = [checkpoints / folder / "log.jsonl" for folder in folders]
        rows = [json.loads(line) for f in files if f.is_file() for line in f.read_text().splitlines()]
        return round(sum(row["seconds"] for row in rows), 1)

    return {"train_species": logged("species_only"), "train_disease": logged("disease_heads", "hierarchical_full")}


def compose_report(result: dict[str, Any], data: Organized, checkpoints: Path, seconds: float) -> dict[str, Any]:
    """Compose report.json: data, test figures, rejection, models, seconds per stage."""
    cards = result["bundle"]["models"]
    main_metrics = cards["model.onnx"]["metrics"]
    return {
        "data": {"species": data.tree.num_species, "classes": data.tree.num_leaves, "tail_classes": int((data.class_sizes <= 80).sum()),
                 **{name: len(split) for name, split in data.splits.items()}},
        "test": {k: v for k, v in main_metrics.items() if not isinstance(v, dict)},
        "ood": main_metrics.get("ood", {}),
        "models": {name: {"size_mb": card["size_mb"], "precision": card["precision"],
                          **{k: v for k, v in card["metrics"].items() if k != "rejection_val"}} for name, card in cards.items()},
        "int8_tried": result["tried"], "torch_ms_p50": result["torch_ms"], "default_model": result["bundle"]["default_model"],
        "temperature": cards["model.onnx"]["temperature"], "rejection": {k: v for k, v in cards["model.onnx"]["rejection"].items()
                                                                         if k != "quantiles"},
        "rollup": cards["model.onnx"]["rollup"], "seconds": {**stage_seconds(checkpoints), "export": round(seconds, 1)}}


TARGETS = {"species_top1": 0.95, "disease_top1": 0.88, "disease_top3": 0.94, "cascade_top1": 0.90, "tail_f1": 0.80}


def report_table(report: dict[str, Any]) -> str:
    """Lay out the main figures on test beside the targets of the source."""
    names = {"species_top1": "species top-1", "disease_top1": "disease top-1, species given",
             "disease_top3": "disease top-3, species given",
             "cascade_top1": "species and disease right", "macro_f1": "macro F1", "tail_f1": "macro F1 of classes <= 80 pictures",
             "calibration_error": "calibration error"}
    rows = []
    for key, label in names.items():
        value = report["test"][key]
        rows.append((label, "-" if value is None else f"{value:.4f}", f">= {TARGETS[key]}" if key in TARGETS else ""))
    if report["ood"]:
        rows += [("pictures of no plant refused", f"{report['ood']['rejected']:.4f}", ">= 0.95"),
                 ("plants refused as strangers", f"{report['ood']['plants_lost']:.4f}", "<= 0.01"),
                 ("rejection AUROC", f"{report['ood']['auroc']:.4f}", "")]
    rows += [(f"{name}: agrees with PyTorch", f"{m['top1_agreement']:.4f}", ">= 0.99") for name, m in report["models"].items()]
    rows += [(f"{name}: ms per picture, 1 thread", f"{m['ms_p50']:.1f}", "") for name, m in report["models"].items()]
    rows += [(f"{name}: MB", f"{m['size_mb']:.2f}", "") for name, m in report["models"].items()]
    return table(rows, ("on test", "value", "target"))


def report_text(report: dict[str, Any], result: dict[str, Any]) -> str:
    """Compose report.md."""
    b = result["bundle"]
    return "\n".join([
        f"# Export of {b['backbone']} ({b['recipe']})", "",
        f"{report['data']['species']} species, {report['data']['classes']} classes; figures from {report['test']['n']} test pictures.",
        f"Default model: `{b['default_model']}`.", "", report_table(report), "", "## INT8: what was tried", "",
        "Decided on val: at least 99 % equal top-1 answers; the fastest such model is kept.", "",
        table([(r["way"], "-" if r["val_agreement"] is None else f"{r['val_agreement']:.4f}",
                "-" if r["ms_ratio"] is None else f"{r['ms_ratio']:.2f}", r["refused"] or "fit to use") for r in report["int8_tried"]],
              ("way", "agreement on val", "time / FP32", "verdict")), "", "## Fitted on val", "",
        f"Temperatures: species {report['temperature']['species']:.3f}, disease {report['temperature']['disease']:.3f}. "
        f"Strangers are refused by `{report['rejection']['score']}` above {report['rejection']['threshold']:.3f}. A leaf is answered from "
        f"probability {report['rollup']['leaf']:.3f}, a species alone from {report['rollup']['species']:.3f}, for "
        f"{report['rollup']['precision']:.0%} right answers.", "",
        "## Checks", "",
        table([(name, f"{m['max_probability_difference']:.2e}", f"{m['batch_difference']:.2e}", f"{m['species_top1']:.4f}",
                f"{m['cascade_top1']:.4f}", f"{m['macro_f1']:.4f}") for name, m in report["models"].items()],
              ("model", "largest difference to PyTorch", "batch of 8 against 8 of 1", "species", "cascade", "macro F1")), ""])
