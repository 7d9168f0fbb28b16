"""The light model for the browser: a student's checkpoint -> exports/browser/
(common/export/browser/light_model.py says what stands there)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.console import table
from common.decide import joint_class
from common.export.browser import deferral, heads_file, light_model
from common.export.browser.light_graph import (
    LAYERS_RANK,
    RANK,
    LightGraph,
    has_exact_map,
    write_model,
)
from common.export.browser.light_model import LightModel
from common.export.calibrate import Temperatures, fit_temperatures
from common.export.graph import FeatureSpace, learn, look
from common.export.measure import check_batches
from common.files import file_sha256
from common.serve import predictor
from common.train.engine import Compute, choose_compute
from common.train.metrics import for_json, judge, summarise
from common.train.model import SwinHierarchical

KEEP = 16  # one train picture in so many is looked at again, for the means that rounding shifts

Batches = Callable[[str, int], Iterable[tuple[np.ndarray, np.ndarray]]]


@torch.inference_mode()
def _collect(
    model: SwinHierarchical, batches: Iterable[tuple[np.ndarray, np.ndarray]], compute: Compute
) -> tuple[Tensor, ...]:
    """Features (N, F), layers (N, D) and leaves int64 (N,) of a split, on the CPU."""
    model.to(compute.device)
    parts = []
    for pictures, class_idx in batches:
        _, features, layers = look(model, torch.from_numpy(pictures).to(compute.device))
        parts.append((features.float().cpu(), layers.float().cpu(), torch.from_numpy(class_idx)))
    model.cpu()
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _keeping(
    batches: Iterable[tuple[np.ndarray, np.ndarray]], some: list[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pass batches on, and keep some of their pictures."""
    for pictures, class_idx in batches:
        some.append(pictures[::KEEP])
        yield pictures, class_idx


@dataclass(frozen=True)
class Written:
    """exports/browser/ before anything but temperatures is fitted.

    light: its files, ready to run (`light.outputs` is a `measure.Run` whose scores `light.scores`
    names); content: light.json as it stands; learned: the learned score of the strangers that were
    shown, float32 (M,), each by a fit that has not seen it, or None."""

    model: SwinHierarchical
    light: LightModel
    temperatures: Temperatures
    content: dict[str, Any]
    learned: np.ndarray | None


def write_browser(
    model: SwinHierarchical,
    folder: Path,
    batches: Batches,
    settings: Mapping[str, Any],
    strangers: Iterable[np.ndarray] = (),
) -> Written:
    """Write light.onnx, heads.bin and light.json of a student; its temperatures are fitted on val.

    Args:
        model: the student, in evaluation mode, on the CPU.
        folder: exports/browser; it is made.
        batches: (`train` or `val`, size) -> the split's pictures uint8 (N, size, size, 3) and
            leaves int64 (N,).
        settings: further values of light.json: name, version, preprocessing (as bundle.json has it;
            its size is set here).
        strangers: batches uint8 (M, size, size, 3) of val pictures of no plant, to learn a score
            from.

    Raises:
        Exception: what the exporter raises for a backbone that it cannot trace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size, compute, tree = (
        int(model.settings["image_size"]),
        choose_compute(precision="fp32"),
        model.tree,
    )
    some: list[np.ndarray] = []
    features, layers, class_idx = _collect(model, _keeping(batches("train", size), some), compute)
    near = [
        FeatureSpace(values, class_idx, model.class_species, rank=rank)
        for values, rank in ((features, RANK), (layers, LAYERS_RANK))
    ]
    shown = [
        _collect(model, [(batch, np.zeros(len(batch), np.int64))], compute)[1]
        for batch in strangers
    ]
    learned, held = learn(layers, torch.cat(shown)) if shown else (None, None)
    features, _, class_idx = _collect(model, batches("val", size), compute)
    fitted = _temperatures(model, features, class_idx)
    exact = has_exact_map(model, torch.from_numpy(next(iter(batches("val", size)))[0][:8]))
    graph = LightGraph(model, *near, fitted.species, exact, learned).eval()
    write_model(graph, folder / predictor.MODEL, size, some)
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
    return Written(model, LightModel(folder), fitted, content, held)


def finish_browser(
    written: Written,
    val: tuple[np.ndarray, ...],
    test: tuple[np.ndarray, ...],
    server: Mapping[str, np.ndarray],
    card: Mapping[str, Any],
    pictures: Iterable[tuple[np.ndarray, np.ndarray]],
    class_sizes: np.ndarray,
) -> dict[str, Any]:
    """Fit the deferral, check the files, complete light.json and judge the light model alone and
    with the server.

    Args:
        written: of `write_browser`.
        val, test: (probabilities, ood, leaf) of `written.light.outputs` over the splits
            (`measure.run_over`).
        server: {"val": int (N,), "test": int (N,)}, the leaf that the served model answers for each
            of these pictures.
        card: "rejection" and "rollup" fitted on val, as bundle.json has them for every model.
        pictures: those of `test` in batches, in the same order.
        class_sizes: int (leaves,), pictures per class.

    Returns:
        plain values: `test` (figures), `files` (bytes), `first_answer` (bytes and heads of it),
        `checks`, `temperature`, `deferral` (of val and test, by `deferral.judge_deferral`),
        `backbone`, `size`, `heatmap`, `rule`.

    Raises:
        ValueError: where the files answer differently from the student, or head by head from all
            heads at once.
    """
    folder, tree, gen = written.light.folder, written.model.tree, written.light.scores.index("gen")
    splits = {"val": val, "test": test}
    seen = {
        name: deferral.signals(found[0], found[1][:, gen], tree) for name, found in splits.items()
    }
    right = {
        name: (joint_class(found[0], tree) == found[2], np.asarray(server[name]) == found[2])
        for name, found in splits.items()
    }
    rule = deferral.fit_deferral(*seen["val"], *right["val"], tree.num_species)
    content = written.content | {
        "rejection": card["rejection"],
        "rollup": card["rollup"],
        "deferral": rule.to_json(),
    }
    _write_settings(folder, content)
    checks = _checks(written.model, LightModel(folder), written.temperatures, pictures, test[0])
    files = {
        name: light_model.wire_bytes((folder / name).read_bytes())
        for name in (predictor.MODEL, predictor.SETTINGS, predictor.HEADS)
    }
    return {
        "backbone": written.model.settings["backbone"],
        "size": written.light.size,
        "heatmap": content["heatmap"],
        "test": for_json(summarise(judge(test[0], test[2], tree), tree, class_sizes)),
        "files": files,
        "first_answer": light_model.first_answer(
            files, np.diff(written.light.offsets), checks.pop("fetched")
        ),
        "checks": checks,
        "temperature": written.temperatures.to_json(),
        "deferral": {
            name: deferral.judge_deferral(rule, *seen[name], *right[name]) for name in splits
        },
        "rule": rule.to_json(),
    }


@torch.inference_mode()
def _temperatures(model: SwinHierarchical, features: Tensor, class_idx: Tensor) -> Temperatures:
    hidden = model.neck(features)
    return fit_temperatures(
        model.species_logits(hidden).numpy(),
        model.disease_logits(hidden, model.class_species[class_idx]).numpy(),
        class_idx.numpy(),
        model.tree,
    )


def _arrays(layer: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()


@torch.inference_mode()
def _checks(
    model: SwinHierarchical,
    light: LightModel,
    temperatures: Temperatures,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    test: np.ndarray,
    most: int = 500,
) -> dict[str, Any]:
    """Compare the files with the student in floats, a batch with its pictures, and the page's way
    with all heads at once."""
    disease = torch.from_numpy(np.asarray(temperatures.disease, np.float32))[model.class_species]
    done, same, worst, fetched, together = 0, 0, 0.0, [], 0.0
    for pictures, _ in batches:
        hidden, logits = model(torch.from_numpy(pictures))
        wanted = model.probabilities(hidden, logits, temperatures.species, disease).numpy()
        found = test[done : done + len(pictures)]
        same += int((wanted.argmax(1) == found.argmax(1)).sum())
        worst = max(worst, float(np.abs(wanted - found).max()))
        if done < most:
            together = max(together, check_batches(light.outputs, pictures[:8]))
            for row, picture in enumerate(pictures):
                answer = light.answer(picture)
                if found[row].max() - found[row, answer.class_idx] > 1e-5:
                    raise ValueError(
                        f"test picture {done + row}: head by head the light model answers leaf "
                        f"{answer.class_idx}, with all "
                        f"heads {found[row].argmax()}"
                    )
                fetched.append(answer.fetched)
        done += len(pictures)
    if done >= 50 and same < 0.97 * done:
        raise ValueError(
            f"light.onnx answers differently from the student it was made of: top-1 agrees on "
            f"{same / done:.1%} of test"
        )
    return {
        "top1_agreement": same / max(done, 1),
        "max_probability_difference": worst,
        "batch_difference": together,
        "fetched": fetched,
    }


def _write_settings(folder: Path, content: Mapping[str, Any]) -> None:
    (folder / predictor.SETTINGS).write_text(
        json.dumps(content, allow_nan=False, separators=(",", ":")), encoding="utf-8"
    )


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Lay out the light model's part of report.md: lines of Markdown, from what `finish_browser`
    returns."""
    first, checks, m, rule = (
        report["first_answer"],
        report["checks"],
        report["test"],
        deferral.from_json(report["rule"]),
    )

    def size(value: int | None) -> str:
        return "-" if value is None else f"{value / 1000:,.0f} KB"

    rows = [
        (name, *(size(values[way]) for way in ("raw", "gzip", "brotli")))
        for name, values in report["files"].items()
    ]
    rows.append(
        ("before the first answer", *(size(first[way]) for way in ("raw", "gzip", "brotli")))
    )
    return [
        "## The light model, for the browser",
        "",
        f"{report['backbone']} at {report['size']} px. On {m['n']} test pictures: species "
        f"{m['species_top1']:.4f}, species and disease "
        f"{m['cascade_top1']:.4f}, macro F1 {m['macro_f1']:.4f}. Its heatmap is "
        + (
            "exact: a leaf's logit is its mean."
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
