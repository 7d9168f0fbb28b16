"""light.onnx: what the light model computes, and how it becomes a small file."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from common.export import quantize
from common.export.browser import light_model
from common.export.graph import (
    LEARNED,
    FeatureSpace,
    LearnedScore,
    export_onnx,
    extract_features,
    gen_score,
)
from common.train.model import SwinHierarchical, places_of

SCORES = ("gen", "mahalanobis", "layers")
RANK, LAYERS_RANK = (
    32,
    12,
)  # directions that the spaces keep: two bytes each per feature on the wire


class LightGraph(nn.Module):
    """What light.onnx computes; the disease heads stay outside."""

    def __init__(
        self,
        model: SwinHierarchical,
        near: FeatureSpace,
        near_layers: FeatureSpace,
        temperature: float,
        exact: bool,
        learned: LearnedScore | None = None,
    ) -> None:
        """Put the parts together; `exact` as `has_exact_map` says, `learned` where there are
        pictures of no plant.
        """
        super().__init__()
        self.model, self.near, self.near_layers, self.temperature, self.exact = (
            model,
            near,
            near_layers,
            float(temperature),
            exact,
        )
        self.learned, self.scores = learned, SCORES + ((LEARNED,) if learned else ())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixels uint8 (N, size, size, 3) -> species, feature, ood, map as
        common/export/browser/light_model.py has them.
        """
        feature_map, features, layers = extract_features(self.model, images)
        hidden = self.model.neck(features)
        species = (self.model.species_scores(hidden) / self.temperature).softmax(dim=1)
        ood = [gen_score(species)[:, None], self.near(features), self.near_layers(layers)]
        ood += [self.learned(layers)] if self.learned else []
        places = places_of(self.model, feature_map)
        return (
            species,
            hidden,
            torch.cat(ood, dim=1),
            places if self.exact else places.square().mean(dim=-1, keepdim=True),
        )


@torch.inference_mode()
def has_exact_map(model: SwinHierarchical, images: Tensor) -> bool:
    """Whether the heads are linear on the mean of the last map, so that a class's logit is the mean
    of its heatmap plus a bias.

    Args:
        images: uint8 (N, size, size, 3), to try it on.
    """
    feature_map, features, _ = extract_features(model, images)
    mean = places_of(model, feature_map).mean(dim=(1, 2))
    return (
        isinstance(model.neck, nn.Identity)
        and mean.shape == features.shape
        and bool((mean - features).abs().max() <= 1e-4 * features.abs().max().clamp_min(1e-6))
    )


def write_model(graph: LightGraph, path: Path, size: int, pictures: Sequence[np.ndarray]) -> None:
    """Write light.onnx: weights as int8 per output channel, unfolded to float when the file is
    loaded.

    The species head and depthwise convolutions too: only weights are rounded, not what they are
    multiplied with; and biases take back by how much that shifts the mean of each output.

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
        export_onnx(graph, str(plain), size, light_model.OUTPUTS)
        fused = quantize.load_fused(plain)
        read = [node.input[0] for node in fused.graph.node if node.op_type == "Conv"]
        stats = quantize.observe(fused, read, pictures)
        fine = {
            f"{path}.{name}"
            for path, module in graph.named_modules()
            for name in getattr(module, "fp16_weights", ())
        }
        bare = _bare(_to_fp16(fused, fine))
        small = quantize.weights(bare, smallest=1, depthwise=True, stats=stats)
        scales = [t.name for t in small.graph.initializer if t.name.endswith("_scale")]
        small = _to_fp16(small, scales)  # float16 is far finer than int8
        onnx.checker.check_model(small)
        onnx.save(small, path)
    finally:
        plain.unlink(missing_ok=True)


def _to_fp16(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Store weights of these names as float16, with a Cast."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name in names and tensor.data_type == TensorProto.FLOAT:
            small, name = tensor.name + "_fp16", tensor.name
            casts.append(helper.make_node("Cast", [small], [name], to=TensorProto.FLOAT))
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, small))
    quantize.put(model.graph, [*casts, *model.graph.node])
    return model


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leave out where each node came from, and name weights by number: such words would be a fifth
    of the file.
    """
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
    onnx.helper.set_model_props(model, {quantize.KEEP_FLOAT: "[]"})
    return model
