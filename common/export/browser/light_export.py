"""The light model for the browser: a student's checkpoint -> exports/browser/
(common/export/browser/light_model.py says what stands there).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.console import table
from common.export.answers import Answers, Batches
from common.export.browser import deferral, heads_file, light_model
from common.export.browser.light_graph import (
    LAYERS_RANK,
    RANK,
    LightGraph,
    has_exact_map,
    write_model,
)
from common.export.browser.light_model import LightModel
from common.export.fitting import (
    Fitted,
    Outcome,
    evaluate_thresholds,
    fit_parts,
    fit_thresholds,
    outcome_of,
    torch_answers,
)
from common.export.measure import check_batches
from common.export.pictures import Pictures
from common.files import file_sha256
from common.serve import predictor
from common.train import checkpoint
from common.train.metrics import for_json, summarise
from common.train.model import SwinHierarchical


def export_browser(
    path: Path,
    folder: Path,
    bundle: Mapping[str, Any],
    served: Outcome,
    precision: float,
    device: torch.device,
) -> dict[str, Any]:
    """Write exports/browser/ from a student's checkpoint and judge it alone and with the served
    model.

    Args:
        path: the student's checkpoint.
        folder: exports/browser.
        bundle: bundle.json so far.
        served: what the served model answers.
        precision: wanted by default.
        device: where PyTorch computes.

    Returns:
        what `finish_browser` reports, and `thresholds`: figures of `evaluate_thresholds`.

    Raises:
        SystemExit: where the checkpoint cannot be read or knows other classes.
    """
    payload, data = checkpoint.load(path), served.pictures.data
    checkpoint.require_tree(payload, data.tree, path, data.root)
    model = checkpoint.build_model(payload)
    own = replace(served.pictures, size=int(model.settings["image_size"]))
    settings = {key: bundle[key] for key in ("name", "version", "preprocessing")}
    written = write_browser(model, folder, own, settings, device)
    reference = torch_answers(written.fitted.graph(model), own, device)
    found = outcome_of(
        "the light model",
        written.light.outputs,
        own,
        written.light.scores,
        written.fitted.held_out,
        reference=reference,
        also=dict.fromkeys(("val", "test"), written.signals),
    )
    card, _ = fit_thresholds(found, precision)
    report = finish_browser(
        written,
        found.splits,
        reference.joint,
        {split: answers.ranked.joint for split, answers in served.splits.items()},
        card,
        own.batches("test"),
        data.class_sizes,
    )
    return report | {"thresholds": evaluate_thresholds(found, card)}


@dataclass(frozen=True)
class Written:
    """exports/browser/ before anything but temperatures is fitted.

    light: its files, ready to run (`light.outputs` is a `measure.Run` whose scores `light.scores`
    names); content: light.json as it stands; fitted: its parts.
    """

    model: SwinHierarchical
    light: LightModel
    content: dict[str, Any]
    fitted: Fitted

    def signals(
        self, probabilities: np.ndarray, _: np.ndarray, ood: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the deferral goes by, of a batch: for `also` of `answers.run_over`."""
        gen = ood[:, self.light.scores.index("gen")]
        return deferral.signals(probabilities, gen, self.model.tree)


def write_browser(
    model: SwinHierarchical,
    folder: Path,
    pictures: Pictures,
    settings: Mapping[str, Any],
    device: torch.device,
) -> Written:
    """Write light.onnx, heads.bin and light.json of a student; its temperatures are fitted on val.

    Args:
        model: the student, in evaluation mode, on the CPU.
        folder: exports/browser; it is made.
        pictures: of the export, at the student's size.
        settings: further values of light.json: name, version, preprocessing (as bundle.json has it;
            its size is set here).
        device: where PyTorch computes.

    Raises:
        Exception: what the exporter raises for a backbone that it cannot trace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size, tree = int(model.settings["image_size"]), model.tree
    sample: list[np.ndarray] = []
    parts = fit_parts(model, pictures, device, (RANK, LAYERS_RANK), sample)
    fitted, exact = parts.temperatures, has_exact_map(model, torch.from_numpy(sample[0][:8]))
    graph = LightGraph(
        model, parts.features, parts.layers, fitted.species, exact, parts.learned
    ).eval()
    write_model(graph, folder / predictor.MODEL, size, sample)
    sha256 = file_sha256(folder / predictor.MODEL)
    species = None if model.species_head is None else _arrays(model.species_head)
    packed, offsets = heads_file.pack(
        tree, species, _arrays(model.disease_heads), fitted.disease, bytes.fromhex(sha256[:8])
    )
    (folder / predictor.HEADS).write_bytes(packed)
    content = {
        **settings,
        "format": predictor.LIGHT_FORMAT,
        "model": {"file": predictor.MODEL, "sha256": sha256},
        "heads": {
            "file": predictor.HEADS,
            "sha256": file_sha256(folder / predictor.HEADS),
            "offsets": offsets,
        },
        "species": list(tree.species),
        "diseases": np.diff(tree.offsets).tolist(),
        "temperature": {"species": fitted.species},
        "preprocessing": {**settings["preprocessing"], "size": size},
        "scores": list(graph.scores),
        "heatmap": "exact" if exact else "activity",
        "rejection": None,
        "rollup": None,
        "deferral": None,
    }
    _write_settings(folder, content)
    return Written(model, LightModel(folder), content, parts)


def finish_browser(
    written: Written,
    splits: Mapping[str, Answers],
    student: np.ndarray,
    server: Mapping[str, np.ndarray],
    card: Mapping[str, Any],
    pictures: Batches,
    class_sizes: np.ndarray,
) -> dict[str, Any]:
    """Fit the deferral, check the files, complete light.json and judge the light model alone and
    with the server.

    Args:
        written: of `write_browser`.
        splits: {"val": of `written.light.outputs`, with `written.signals`; "test": likewise,
            compared with the student in floats}.
        student: int (N,), the class that the student in floats answers for each picture of test.
        server: {"val": int (N,), "test": int (N,)}, the class that the served model answers for
            each of these pictures.
        card: "rejection" and "rollup" fitted on val, as bundle.json has them for every model.
        pictures: those of `test` in batches, in the same order.
        class_sizes: int (classes,), pictures per class.

    Returns:
        plain values: `test` (figures), `files` (bytes), `first_answer` (bytes and heads of it),
        `checks`, `temperature`, `deferral` (of val and test, by `deferral.judge_deferral`),
        `backbone`, `size`, `heatmap`, `rule`.

    Raises:
        ValueError: where the files answer differently from the student, or head by head from all
            heads at once.
    """
    folder, tree = written.light.folder, written.model.tree
    right = {
        name: (found.ranked.joint == found.class_idx, server[name] == found.class_idx)
        for name, found in splits.items()
    }
    rule = deferral.fit_deferral(*splits["val"].also, *right["val"], tree.num_species)
    content = written.content | {
        "rejection": card["rejection"],
        "rollup": card["rollup"],
        "deferral": rule.to_json(),
    }
    _write_settings(folder, content)
    checks = _checks(LightModel(folder), splits["test"], student, pictures)
    files = {
        name: light_model.wire_bytes((folder / name).read_bytes())
        for name in (predictor.MODEL, predictor.SETTINGS, predictor.HEADS)
    }
    return {
        "backbone": written.model.settings["backbone"],
        "size": written.light.size,
        "heatmap": content["heatmap"],
        "test": for_json(summarise(splits["test"].judged, tree, class_sizes)),
        "files": files,
        "first_answer": light_model.first_answer(
            files, np.diff(written.light.offsets), checks.pop("fetched")
        ),
        "checks": checks,
        "temperature": written.fitted.temperatures.to_json(),
        "deferral": {
            name: deferral.judge_deferral(rule, *found.also, *right[name])
            for name, found in splits.items()
        },
        "rule": rule.to_json(),
    }


def _arrays(layer: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()


def _checks(
    light: LightModel, test: Answers, student: np.ndarray, batches: Batches, most: int = 500
) -> dict[str, Any]:
    """Compare the files with the student in floats, a batch with its pictures, and the page's way
    with all heads at once.
    """
    fetched: list[tuple[int, ...]] = []
    together, same = 0.0, float((test.ranked.joint == student).mean())
    for pictures, _ in batches:
        if len(fetched) >= most:
            break
        together = max(together, check_batches(light.outputs, pictures[:8]))
        for picture in pictures:
            answer, best = light.answer(picture), test.ranked.joint[len(fetched)]
            if answer.class_idx != best:  # no matter where the two are all but tied
                probabilities = light.outputs(picture[None])[0][0]
                if probabilities.max() - probabilities[answer.class_idx] > 1e-5:
                    raise ValueError(
                        f"test picture {len(fetched)}: head by head the light model answers class "
                        f"{answer.class_idx}, with all heads {best}"
                    )
            fetched.append(answer.fetched)
    if len(student) >= 50 and same < 0.97:
        raise ValueError(
            f"light.onnx answers differently from the student it was made of: top-1 agrees on "
            f"{same:.1%} of test"
        )
    return {
        "top1_agreement": same,
        "max_probability_difference": float(test.difference.max()),
        "batch_difference": together,
        "fetched": fetched,
    }


def _write_settings(folder: Path, content: Mapping[str, Any]) -> None:
    (folder / predictor.SETTINGS).write_text(
        json.dumps(content, allow_nan=False, separators=(",", ":")), encoding="utf-8"
    )


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Lay out the light model's part of report.md: lines of Markdown, from what `finish_browser`
    returns.
    """
    first, checks, m, rule = (
        report["first_answer"],
        report["checks"],
        report["test"],
        deferral.from_json(report["rule"]),
    )

    def size(value: int | None) -> str:
        return "-" if value is None else f"{value / 1000:,.0f} KB"

    files = {**report["files"], "before the first answer": first}
    rows = [
        (name, *(size(values[way]) for way in ("raw", "gzip", "brotli")))
        for name, values in files.items()
    ]
    return [
        "## The light model, for the browser",
        "",
        f"{report['backbone']} at {report['size']} px. On {m['n']} test pictures: species "
        f"{m['species_top1']:.4f}, species and disease "
        f"{m['cascade_top1']:.4f}, macro F1 {m['macro_f1']:.4f}. Its heatmap is "
        + (
            "exact: a class's logit is its mean."
            if report["heatmap"] == "exact"
            else "only how active each place is: layers follow the pooling."
        ),
        "",
        table(rows, ("file", "bytes", "gzip", "brotli")),
        "",
        f"An answer needs {first['heads_fetched']:.2f} disease heads, "
        f"{first['head_bytes'] / 1000:.1f} KB of heads.bin. The files "
        f"agree with the student in floats on {checks['top1_agreement']:.4f} of test (largest "
        f"difference of a probability "
        f"{checks['max_probability_difference']:.1e}; a batch of 8 against 8 of 1: "
        f"{checks['batch_difference']:.1e}).",
        "",
        *deferral.report_lines(report["deferral"]["val"], report["deferral"]["test"], rule),
    ]
