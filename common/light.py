"""The light model for the browser: a student's checkpoint -> exports/browser/ (common/browser.py says what stands there)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from common import browser, deferral, heads_file, quantize
from common.browser import LightModel
from common.calibrate import Temperatures, fit_temperatures
from common.console import table
from common.decide import joint_leaf
from common.engine import Compute, choose_compute
from common.files import file_sha256
from common.graph import FeatureSpace, export_onnx, gen_score, look
from common.measure import check_batches
from common.metrics import for_json, judge, summarise
from common.model import SwinHierarchical
from common.ranges import observe

SCORES = ("gen", "mahalanobis", "layers")
RANK, LAYERS_RANK = 32, 16  # directions that the spaces keep: two bytes each per feature on the wire
KEEP = 16  # one train picture in so many is looked at again, for the means that rounding shifts

Batches = Callable[[str, int], Iterable[tuple[np.ndarray, np.ndarray]]]


class LightGraph(nn.Module):
    """What light.onnx computes; the disease heads stay outside."""

    def __init__(self, model: SwinHierarchical, near: FeatureSpace, near_layers: FeatureSpace, temperature: float, exact: bool) -> None:
        """Put the parts together; `exact` as `has_exact_map` says."""
        super().__init__()
        self.model, self.near, self.near_layers, self.temperature, self.exact = model, near, near_layers, float(temperature), exact

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixels uint8 (N, size, size, 3) -> species, feature, ood, map as common/browser.py has them."""
        feature_map, features, layers = look(self.model, images)
        hidden = self.model.neck(features)
        species = (self.model.species_scores(hidden) / self.temperature).softmax(dim=1)
        ood = torch.cat([gen_score(species)[:, None], self.near(features), self.near_layers(layers)], dim=1)
        places = places_of(self.model, feature_map)
        return species, hidden, ood, places if self.exact else places.square().mean(dim=-1, keepdim=True)


def places_of(model: SwinHierarchical, feature_map: Tensor) -> Tensor:
    """A backbone's last map in any of timm's layouts -> (N, h, w, C)."""
    if feature_map.dim() == 3:  # tokens: a square of positions behind the class tokens
        side = int(feature_map.shape[1] ** 0.5)
        return feature_map[:, -side * side:].unflatten(1, (side, side))
    return feature_map if getattr(model.backbone, "output_fmt", "NCHW") == "NHWC" else feature_map.permute(0, 2, 3, 1)


@torch.inference_mode()
def has_exact_map(model: SwinHierarchical, images: Tensor) -> bool:
    """Whether the heads are linear on the mean of the last map, so that a leaf's logit is the mean of its heatmap plus a bias.

    Args:
        images: uint8 (N, size, size, 3), to try it on.
    """
    feature_map, features, _ = look(model, images)
    mean = places_of(model, feature_map).mean(dim=(1, 2))
    return isinstance(model.neck, nn.Identity) and mean.shape == features.shape and bool(
        (mean - features).abs().max() <= 1e-4 * features.abs().max().clamp_min(1e-6))


@torch.inference_mode()
def _collect(model: SwinHierarchical, batches: Iterable[tuple[np.ndarray, np.ndarray]], compute: Compute) -> tuple[Tensor, ...]:
    """Features (N, F), layers (N, D) and leaves int64 (N,) of a split, on the CPU."""
    model.to(compute.device)
    parts = []
    for pictures, leaf in batches:
        _, features, layers = look(model, torch.from_numpy(pictures).to(compute.device))
        parts.append((features.float().cpu(), layers.float().cpu(), torch.from_numpy(leaf)))
    model.cpu()
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _keeping(batches: Iterable[tuple[np.ndarray, np.ndarray]], some: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pass batches on, and keep some of their pictures."""
    for pictures, leaf in batches:
        some.append(pictures[::KEEP])
        yield pictures, leaf


def write_model(graph: LightGraph, path: Path, size: int, pictures: Sequence[np.ndarray]) -> None:
    """Write light.onnx: weights as int8 per output channel, unfolded to float when the file is loaded.

    The species head and depthwise convolutions too: only weights are rounded, not what they are multiplied with; and biases take
    back by how much that shifts the mean of each output.

    Args:
        graph: in evaluation mode, on the CPU.
        path: of the file.
        size: the student's pixels per side.
        pictures: uint8 batches (N, size, size, 3) of train, to see these means on.

    Raises:
        Exception: as `graph.export_onnx`; onnx.checker.ValidationError.
    """
    plain = path.with_suffix(".plain.onnx")
    try:
        export_onnx(graph, str(plain), size, browser.OUTPUTS)
        fused = quantize.load_fused(plain)
        seen = observe(fused, [node.input[0] for node in fused.graph.node if node.op_type == "Conv"], pictures)
        small = quantize.weights(_bare(_half(fused, "basis")), smallest=1, depthwise=True, seen=seen)
        onnx.checker.check_model(small)
        onnx.save(small, path)
    finally:
        plain.unlink(missing_ok=True)


def _half(model: onnx.ModelProto, part: str) -> onnx.ModelProto:
    """Store weights with a word in their name as float16: what is left of a feature outside of a basis drowns in int8's rounding."""
    casts = []
    for tensor in model.graph.initializer:
        if part in tensor.name and tensor.data_type == TensorProto.FLOAT:
            casts.append(helper.make_node("Cast", [tensor.name + "_half"], [tensor.name], to=TensorProto.FLOAT))
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name + "_half"))
    nodes = [*casts, *(copy.deepcopy(node) for node in model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leave out where each node came from, and name weights by number: such words would be a fifth of the file."""
    graph = model.graph
    names = {tensor.name: f"w{i}" for i, tensor in enumerate(graph.initializer)}
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    for node in graph.node:
        node.name, node.input[:] = "", [names.get(name, name) for name in node.input]
    del graph.value_info[:]
    return model


@dataclass(frozen=True)
class Written:
    """exports/browser/ before anything but temperatures is fitted.

    light: its files, ready to run (`light.outputs` is a `measure.Run` whose scores `SCORES` names); content: light.json as it stands.
    """

    model: SwinHierarchical
    light: LightModel
    temperatures: Temperatures
    content: dict[str, Any]


def write_browser(model: SwinHierarchical, folder: Path, batches: Batches, settings: Mapping[str, Any]) -> Written:
    """Write light.onnx, heads.bin and light.json of a student; its temperatures are fitted on val.

    Args:
        model: the student, in evaluation mode, on the CPU.
        folder: exports/browser; it is made.
        batches: (`train` or `val`, size) -> the split's pictures uint8 (N, size, size, 3) and leaves int64 (N,).
        settings: further values of light.json: name, version, preprocessing (as bundle.json has it; its size is set here).

    Raises:
        Exception: what the exporter raises for a backbone that it cannot trace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size, compute, tree = int(model.settings["image_size"]), choose_compute(precision="fp32"), model.tree
    some: list[np.ndarray] = []
    features, layers, leaf = _collect(model, _keeping(batches("train", size), some), compute)
    near = [FeatureSpace(values, leaf, model.leaf_species, rank=rank) for values, rank in ((features, RANK), (layers, LAYERS_RANK))]
    features, _, leaf = _collect(model, batches("val", size), compute)
    fitted = _temperatures(model, features, leaf)
    exact = has_exact_map(model, torch.from_numpy(next(iter(batches("val", size)))[0][:8]))
    write_model(LightGraph(model, *near, fitted.species, exact).eval(), folder / browser.MODEL, size, some)
    sha256 = file_sha256(folder / browser.MODEL)
    species = None if model.species_head is None else _arrays(model.species_head)
    packed, offsets = heads_file.pack(tree, species, _arrays(model.disease_heads), fitted.disease, bytes.fromhex(sha256[:8]))
    (folder / browser.HEADS).write_bytes(packed)
    content = {**settings, "format": browser.FORMAT, "model": {"file": browser.MODEL, "sha256": sha256},
               "heads": {"file": browser.HEADS, "sha256": file_sha256(folder / browser.HEADS), "offsets": offsets},
               "species": list(tree.species), "diseases": np.diff(tree.offsets).tolist(), "temperature": {"species": fitted.species},
               "preprocessing": {**settings["preprocessing"], "size": size}, "scores": list(SCORES),
               "heatmap": "exact" if exact else "activity", "rejection": None, "rollup": None, "deferral": None}
    _write_settings(folder, content)
    return Written(model, LightModel(folder), fitted, content)


def finish_browser(written: Written, val: tuple[np.ndarray, ...], test: tuple[np.ndarray, ...], server: Mapping[str, np.ndarray],
                   card: Mapping[str, Any], pictures: Iterable[tuple[np.ndarray, np.ndarray]], class_sizes: np.ndarray) -> dict[str, Any]:
    """Fit the deferral, check the files, complete light.json and judge the light model alone and with the server.

    Args:
        written: of `write_browser`.
        val, test: (probabilities, ood, leaf) of `written.light.outputs` over the splits (`measure.run_over`).
        server: {"val": int (N,), "test": int (N,)}, the leaf that the served model answers for each of these pictures.
        card: "rejection" and "rollup" fitted on val, as bundle.json has them for every model.
        pictures: those of `test` in batches, in the same order.
        class_sizes: int (leaves,), pictures per class.

    Returns:
        plain values: `test` (figures), `files` (bytes), `first_answer` (bytes and heads of it), `checks`, `temperature`, `deferral` (of
        val and test, by `deferral.judge_deferral`), `backbone`, `size`, `heatmap`, `rule`.

    Raises:
        ValueError: where the files answer differently from the student, or head by head from all heads at once.
    """
    folder, tree, gen = written.light.folder, written.model.tree, SCORES.index("gen")
    splits = {"val": val, "test": test}
    seen = {name: deferral.signals(found[0], found[1][:, gen], tree) for name, found in splits.items()}
    right = {name: (joint_leaf(found[0], tree) == found[2], np.asarray(server[name]) == found[2]) for name, found in splits.items()}
    rule = deferral.fit_deferral(*seen["val"], *right["val"], tree.num_species)
    content = written.content | {"rejection": card["rejection"], "rollup": card["rollup"], "deferral": rule.to_json()}
    _write_settings(folder, content)
    checks = _checks(written.model, LightModel(folder), written.temperatures, pictures, test[0])
    files = {name: browser.wire_bytes((folder / name).read_bytes()) for name in (browser.MODEL, browser.SETTINGS, browser.HEADS)}
    return {"backbone": written.model.settings["backbone"], "size": written.light.size, "heatmap": content["heatmap"],
            "test": for_json(summarise(judge(test[0], test[2], tree), tree, class_sizes)), "files": files,
            "first_answer": browser.first_answer(files, np.diff(written.light.offsets), checks.pop("fetched")), "checks": checks,
            "temperature": written.temperatures.to_json(),
            "deferral": {name: deferral.judge_deferral(rule, *seen[name], *right[name]) for name in splits}, "rule": rule.to_json()}


@torch.inference_mode()
def _temperatures(model: SwinHierarchical, features: Tensor, leaf: Tensor) -> Temperatures:
    hidden = model.neck(features)
    return fit_temperatures(model.species_logits(hidden).numpy(), model.disease_logits(hidden, model.leaf_species[leaf]).numpy(),
                            leaf.numpy(), model.tree)


def _arrays(layer: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()


@torch.inference_mode()
def _checks(model: SwinHierarchical, light: LightModel, temperatures: Temperatures,
            batches: Iterable[tuple[np.ndarray, np.ndarray]], test: np.ndarray, most: int = 500) -> dict[str, Any]:
    """Compare the files with the student in floats, a batch with its pictures, and the page's way with all heads at once."""
    disease = torch.from_numpy(np.asarray(temperatures.disease, np.float32))[model.leaf_species]
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
                if found[row].max() - found[row, answer.leaf] > 1e-5:
                    raise ValueError(f"test picture {done + row}: head by head the light model answers leaf {answer.leaf}, with all "
                                     f"heads {found[row].argmax()}")
                fetched.append(answer.fetched)
        done += len(pictures)
    if done >= 50 and same < 0.97 * done:
        raise ValueError(f"light.onnx answers differently from the student it was made of: top-1 agrees on {same / done:.1%} of test")
    return {"top1_agreement": same / max(done, 1), "max_probability_difference": worst, "batch_difference": together, "fetched": fetched}


def _write_settings(folder: Path, content: Mapping[str, Any]) -> None:
    (folder / browser.SETTINGS).write_text(json.dumps(content, allow_nan=False, separators=(",", ":")), encoding="utf-8")


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Lay out the light model's part of report.md: lines of Markdown, from what `finish_browser` returns."""
    first, checks, m, rule = report["first_answer"], report["checks"], report["test"], deferral.from_json(report["rule"])

    def size(value: int | None) -> str:
        return "-" if value is None else f"{value / 1000:,.0f} KB"

    rows = [(name, *(size(values[way]) for way in ("raw", "gzip", "brotli"))) for name, values in report["files"].items()]
    rows.append(("before the first answer", *(size(first[way]) for way in ("raw", "gzip", "brotli"))))
    return ["## The light model, for the browser", "",
            f"{report['backbone']} at {report['size']} px. On {m['n']} test pictures: species {m['species_top1']:.4f}, species and disease "
            f"{m['cascade_top1']:.4f}, macro F1 {m['macro_f1']:.4f}. Its heatmap is "
            + ("exact: a leaf's logit is its mean." if report["heatmap"] == "exact" else
               "only how active each place is: layers follow the pooling."),
            "", table(rows, ("file", "bytes", "gzip", "brotli")), "",
            f"An answer needs {first['heads_fetched']:.2f} disease heads, {first['head_bytes'] / 1000:.1f} KB of heads.bin. The files "
            f"agree with the student in floats on {checks['top1_agreement']:.4f} of test (largest difference of a probability "
            f"{checks['max_probability_difference']:.1e}; a batch of 8 against 8 of 1: {checks['batch_difference']:.1e}).", "",
            *deferral.report_lines(report["deferral"]["val"], report["deferral"]["test"], rule)]
