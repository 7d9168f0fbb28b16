"""report.json, report.md, README.md (the model card) and the pictures of an export."""

import json
import os
import sys
import webbrowser
from pathlib import Path
from typing import Any

from common.console import say, table
from common.export import (
    calibrate,
    gate,
    model_card,
    ood,
    open_world,
    plots,
    rollup,
    second_opinion,
)
from common.export.browser import light_export
from common.export.calibrate import calibration_figures
from common.export.measure import session_run
from common.export.report_page import write_page
from common.files import write_text
from common.train.dataset import Organized, default_workers
from common.train.metrics import DECISIONS


def stage_seconds(checkpoints: Path, student: Path | None) -> dict[str, float]:
    """Seconds that training took, from the logs in the folder of the runs and beside the student's
    checkpoint.
    """

    def logged(*folders: str, root: Path = checkpoints) -> float:
        files = [root / folder / "log.jsonl" for folder in folders]
        rows = [
            json.loads(line) for f in files if f.is_file() for line in f.read_text().splitlines()
        ]
        return round(sum(row["seconds"] for row in rows), 1)

    runs = ("species_only", "disease_heads", "hierarchical_full")
    light = {"train_light": logged(*runs, root=student.parent.parent)} if student else {}
    return {"train_species": logged(runs[0]), "train_disease": logged(*runs[1:]), **light}


def write_report(
    folder: Path,
    result: dict[str, Any],
    data: Organized,
    checkpoints: Path,
    student: Path | None,
    seconds: float,
) -> str:
    """Write report.json, report.md with its pictures, README.md and report.html.

    Args:
        folder: of the export.
        result: what `export` of 03 returns.
        data: the organized data.
        checkpoints, student: where the logs of the training runs are: the folder of the runs, and
            the light model's checkpoint.
        seconds: that the export took.

    Returns:
        the table of the main figures.
    """
    report = compose_report(result, data, checkpoints, student, seconds)
    write_text(folder / "report.json", json.dumps(report, indent=1))
    write_text(folder / "report.md", report_text(report, result))
    truth = result["outcomes"]["model.onnx"].splits["test"].class_idx
    text = model_card.compose(report, result["bundle"], data, truth)
    write_text(folder / "README.md", text)
    draw(folder, result, data)
    run = session_run(folder / "model.onnx", default_workers())
    write_page(folder, result, result["outcomes"]["model.onnx"], run)
    return report_table(report)


def compose_report(
    result: dict[str, Any], data: Organized, checkpoints: Path, student: Path | None, seconds: float
) -> dict[str, Any]:
    """Compose report.json: data, test figures, rejection, calibration, decisions, models, the gate,
    the light model, seconds.
    """
    content, tree = result["bundle"], data.tree
    cards, main = content["models"], content["models"]["model.onnx"]
    answers = result["outcomes"]["model.onnx"].splits["test"]
    return {
        "data": {
            "species": tree.num_species,
            "classes": tree.num_classes,
            "tail_classes": int((data.class_sizes <= 80).sum()),
            **{name: len(split) for name, split in data.splits.items()},
        },
        "test": {k: v for k, v in main["metrics"].items() if not isinstance(v, dict)},
        "ood": main["metrics"]["ood"],
        "open_world": open_world.judge(result["outcomes"]["model.onnx"], main),
        "calibration": {
            when: calibration_figures(found, tree, data.class_sizes)
            for when, found in (("before", answers.also), ("after", answers))
        },
        "decisions": main["metrics"]["decisions"],
        "models": {
            name: {
                "size_mb": card["size_mb"],
                "precision": card["precision"],
                **{k: v for k, v in card["metrics"].items() if k != "rejection_val"},
            }
            for name, card in cards.items()
        },
        "int8_tried": [attempt.to_dict() for attempt in result["tried"]],
        "gate": [verdict.to_dict() for verdict in result["verdicts"]],
        "torch_ms_p50": result["torch_ms"],
        "default_model": content["default_model"],
        "browser": result["browser"],
        "temperature": main["temperature"],
        "rejection": {k: v for k, v in main["rejection"].items() if k != "quantiles"},
        "rollup": {**main["rollup"], "test": main["metrics"]["rollup"]},
        "seconds": {**stage_seconds(checkpoints, student), "export": round(seconds, 1)},
    }


TARGETS = {
    "species_top1": 0.95,
    "disease_top1": 0.88,
    "disease_top3": 0.94,
    "cascade_top1": 0.90,
    "tail_f1": 0.80,
}


def report_table(report: dict[str, Any]) -> str:
    """Lay out the main figures on test beside the targets of the source."""
    names = {
        "species_top1": "species top-1",
        "disease_top1": "disease top-1, species given",
        "disease_top3": "disease top-3, species given",
        "cascade_top1": "species and disease right",
        "macro_f1": "macro F1",
        "tail_f1": "macro F1 of classes <= 80 pictures",
        "calibration_error": "calibration error",
    }
    test, error = report["test"], report["calibration"]["after"]["all"]["error"]
    rows = [
        (
            label,
            "-" if test[key] is None else f"{test[key]:.4f}",
            f">= {TARGETS[key]}" if key in TARGETS else "",
        )
        for key, label in names.items()
    ]
    rows += [("calibration error without chance", f"{error:.4f}", "<= 0.03")]
    if report["ood"]:
        rows += [
            ("pictures of no plant rejected", f"{report['ood']['rejected']:.4f}", ">= 0.95"),
            (
                "false rejection rate",
                f"{report['ood']['false_rejection_rate']:.4f}",
                "<= 0.01",
            ),
            ("rejection AUROC", f"{report['ood']['auroc']:.4f}", ""),
        ]
    rows += [
        (f"{name}: {label}", format(card[key], digits), target)
        for label, key, digits, target in (
            ("agrees with PyTorch", "top1_agreement", ".4f", ">= 0.99"),
            ("ms per picture, 1 thread", "ms_p50", ".1f", ""),
            ("MB", "size_mb", ".2f", ""),
        )
        for name, card in report["models"].items()
    ]
    if report["browser"]:
        found = report["browser"]["deferral"]["test"]
        rows += [
            ("light model: species and disease right", f"{found['browser']:.4f}", ""),
            (
                f"the same, {found['sent']:.0%} of photos sent to the server",
                f"{found['hybrid']:.4f}",
                f"server {found['server']:.4f}",
            ),
        ]
    return table(rows, ("on test", "value", "target"))


def report_text(report: dict[str, Any], result: dict[str, Any]) -> str:
    """Compose report.md."""
    content, figures, card = (
        result["bundle"],
        report["calibration"],
        result["bundle"]["models"]["model.onnx"],
    )
    species = [entry["name"] for entry in content["tree"]["species"]]
    lines = [
        f"# Export of {content['backbone']} ({content['recipe']})",
        "",
        f"{report['data']['species']} species, {report['data']['classes']} classes; figures from "
        f"{report['test']['n']} test pictures.",
        f"Default model: `{content['default_model']}`. What it got wrong, to look at: "
        "[report.html](report.html).",
        "",
        report_table(report),
        "",
        "## INT8",
        "",
        "Decided on val, held against test.",
        "",
        *gate.report_lines(result["verdicts"], report["int8_tried"]),
        "## Calibration",
        "",
        *calibrate.report_lines(
            figures["before"], figures["after"], result["temperatures"], species
        ),
        "",
        "![reliability](reliability.png)",
        "",
        "## Out-of-distribution pictures",
        "",
        *ood.report_lines(
            card["rejection"], card["metrics"]["rejection_val"], card["metrics"]["rejection"]
        ),
        *second_opinion.report_lines(card["rejection"], card["metrics"]["rejection_val"]),
        "![scores](scores.png)",
        "",
        *open_world.report_lines(report["open_world"]),
        "## How deep an answer goes",
        "",
        *rollup.report_lines(card["rollup"], card["metrics"]["rollup"]),
        "",
        "![accuracy against coverage](coverage.png)",
        "",
        table(
            [
                (
                    name,
                    *(f"{row[key]:.4f}" for key in ("class", "species", "macro_f1")),
                    DECISIONS[name],
                )
                for name, row in report["decisions"].items()
            ],
            ("decision", "class right", "species right", "macro F1", "what it is"),
        ),
        "",
        "## Checks",
        "",
        table(
            [
                (
                    name,
                    f"{m['max_probability_difference']:.2e}",
                    f"{m['batch_difference']:.2e}",
                    f"{m['species_top1']:.4f}",
                    f"{m['cascade_top1']:.4f}",
                    f"{m['macro_f1']:.4f}",
                    f"{m['ms_p50']:.1f}",
                )
                for name, m in report["models"].items()
            ],
            (
                "model",
                "largest difference to PyTorch",
                "batch of 8 against 8 of 1",
                "species",
                "cascade",
                "macro F1",
                "ms",
            ),
        ),
        "",
    ]
    if report["browser"]:
        lines += [
            *light_export.report_lines(report["browser"]),
            "",
            "![deferral](deferral.png)",
            "",
        ]
    return "\n".join(lines)


def draw(folder: Path, result: dict[str, Any], data: Organized) -> None:
    """Draw the pictures of report.md: reliability.png, coverage.png, scores.png and, with a light
    model, deferral.png.
    """
    tree, card, outcome = (
        data.tree,
        result["bundle"]["models"]["model.onnx"],
        result["outcomes"]["model.onnx"],
    )
    answers = outcome.splits["test"]
    ranked, truth = answers.ranked, answers.class_idx
    plots.reliability(
        *((a.ranked.joint_p, a.ranked.joint == truth) for a in (answers.also, answers)),
        folder / "reliability.png",
    )
    ways = {
        "joint": (ranked.joint, ranked.joint_p, ranked.joint_species_p),
        "routed": (ranked.routed, ranked.routed_p, ranked.species_p),
    }
    plots.coverage(
        {name: (p, answer == truth) for name, (answer, p, _) in ways.items()},
        {
            name: (p, tree.class_species[answer] == tree.class_species[truth])
            for name, (answer, _, p) in ways.items()
        },
        card["metrics"]["rollup"],
        folder / "coverage.png",
    )
    names, panels = result["bundle"]["scores"], []
    for title, rule in (
        ("rejected", card["rejection"]),
        ("called no plant", card["rejection"]["plant"]),
    ):
        if rule is None:
            continue
        groups = {"plants": answers.ood} | {
            k: v for r in ("plant", "species") for k, v in outcome.ood["test"][r].items()
        }
        panels.append(
            (
                title,
                {k: ood.value(rule["weights"], ood.columns(v, names)) for k, v in groups.items()},
                rule["threshold"],
            )
        )
    plots.scores(panels, folder / "scores.png")
    if result["browser"]:
        plots.deferral(result["browser"]["deferral"]["test"], folder / "deferral.png")


def open_page(page: Path) -> None:
    """Name a page, and open it in the browser where a person sits at a screen."""
    say(f"what it got wrong, to look at: {page}")
    screen = any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))) or sys.platform == "darwin"
    if screen and sys.stdout.isatty() and not os.environ.get("CI"):
        webbrowser.open(page.resolve().as_uri())


if __name__ == "__main__":  # python -m common.export.report exports/report.json
    given = Path(sys.argv[1])
    say(report_table(json.loads(given.read_text(encoding="utf-8"))))
    open_page(given.with_name("report.html"))
