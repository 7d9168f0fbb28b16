"""A tiny exports folder for tests: a hand-made ONNX model that goes by the mean colour of a
picture. No torch.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from common.classes import ClassTree
from common.files import file_sha256
from common.serve.answer import PhotoResult, result_of, start_photo
from common.serve.predictor import Predictor, write_bundle

SIZE = 32
CELLS = 4  # the heatmap's side
TREE = ClassTree(
    ("apple", "basil", "corn"), (("healthy", "rust", "scab"), ("healthy",), ("blight", "healthy"))
)
COLORS = np.array(
    [
        [0.20, 0.70, 0.20],
        [0.65, 0.45, 0.10],
        [0.30, 0.45, 0.10],  # apple: healthy, rust, scab
        [0.10, 0.30, 0.25],  # basil
        [0.80, 0.80, 0.50],
        [0.60, 0.95, 0.30],
    ],
    np.float32,
)  # corn: blight, healthy
FLAT_TREE = ClassTree(tuple("abcdef"), tuple((name,) for name in "abcdef"))
SHARPNESS = 100.0
NO_PLANT = (20, 40, 230)  # a blue that is far from every class


def color_of(class_idx: int) -> tuple[int, int, int]:
    """The RGB colour, 0 to 255, of which the model is most certain for a class."""
    return tuple(int(round(255 * float(value))) for value in COLORS[class_idx])


def between(first: int, second: int) -> tuple[int, int, int]:
    """The colour halfway between two classes, where the model is undecided."""
    return tuple(
        int(round(127.5 * float(a + b))) for a, b in zip(COLORS[first], COLORS[second], strict=True)
    )


def picture(
    color: tuple[int, int, int], size: tuple[int, int] = (80, 60), kind: str = "PNG", **save: Any
) -> bytes:
    """The bytes of a picture of one colour with a slightly lighter middle, width x height."""
    pixels = np.empty((size[1], size[0], 3), np.uint8)
    pixels[:] = color
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **save)
    return buffer.getvalue()


def halves(
    left: tuple[int, int, int], right: tuple[int, int, int], size: tuple[int, int] = (300, 200)
) -> bytes:
    """The bytes of a PNG, width x height, of one colour on the left and another on the right."""
    pixels = np.empty((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2], pixels[:, size[0] // 2 :] = left, right
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def model(
    size: int = SIZE,
    *,
    classes: int = 6,
    image_type: int = TensorProto.UINT8,
    batch: Any = "N",
    rename: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """The model: probabilities by the distance of the mean colour to each class's, ood by the least
    of these distances.

    classes, image_type, batch and rename (of outputs) make models that break the contract.
    """
    rename = rename or {}
    colors = COLORS[:classes]
    constants = {
        "scale": np.float32(1 / 255),
        "weights": 2 * colors.T,
        "norms": (colors**2).sum(1),
        "sharpness": np.float32(-SHARPNESS),
        "cells": np.array([0, CELLS, size // CELLS, CELLS, size // CELLS]),
        "over": np.array([1, 2]),
        "last": np.array([-1]),
        "inside": np.array([2, 4]),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "over"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "mean"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "last"], ["length"], keepdims=1),
        helper.make_node("MatMul", ["mean", "weights"], ["products"]),
        helper.make_node("Sub", ["norms", "products"], ["partial"]),
        helper.make_node("Add", ["partial", "length"], ["distances"]),
        helper.make_node("Mul", ["distances", "sharpness"], ["logits"]),
        helper.make_node(
            "Softmax", ["logits"], [rename.get("probabilities", "probabilities")], axis=-1
        ),
        helper.make_node(
            "ReduceMax",
            [rename.get("probabilities", "probabilities"), "last"],
            ["best"],
            keepdims=1,
        ),
        helper.make_node("Neg", ["best"], ["unsure"]),
        helper.make_node("ReduceMin", ["distances", "last"], ["nearest"], keepdims=1),
        helper.make_node("Concat", ["unsure", "nearest"], [rename.get("ood", "ood")], axis=-1),
        helper.make_node("ReduceMean", ["scaled", "last"], ["grey"], keepdims=0),
        helper.make_node("Reshape", ["grey", "cells"], ["blocks"]),
        helper.make_node(
            "ReduceMean", ["blocks", "inside"], [rename.get("heatmap", "heatmap")], keepdims=0
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "mean_color",
        [helper.make_tensor_value_info("images", image_type, [batch, size, size, 3])],
        [
            helper.make_tensor_value_info(
                rename.get("probabilities", "probabilities"), TensorProto.FLOAT, ["N", classes]
            ),
            helper.make_tensor_value_info(rename.get("ood", "ood"), TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info(
                rename.get("heatmap", "heatmap"), TensorProto.FLOAT, ["N", CELLS, CELLS]
            ),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def card(path: Path, species: int = 3, **changes: Any) -> dict[str, Any]:
    """The entry of bundle.json for a model file."""
    return {
        "sha256": file_sha256(path),
        "size_mb": round(path.stat().st_size / 1e6, 3),
        "precision": "fp32",
        "temperature": {"species": 1.0, "disease": [1.0] * species},
        "rejection": {
            "score": "mahalanobis",
            "weights": {"mahalanobis": 1.0},
            "threshold": 0.05,
            "quantiles": list(np.linspace(0, 0.06, 101)),
            "plant": None,
            "disease": None,
            "photo": {"brightness": 0.02, "short_side": 40.0},
        },
        "rollup": {
            "default": "0.95",
            "precisions": {
                "0.90": {"disease": 0.6, "species": 0.7},
                "0.95": {"disease": 0.7, "species": 0.8},
            },
        },
        "metrics": {"leaf_top1": 0.9},
        **changes,
    }


def describe(folder: Path, tree: ClassTree = TREE, **changes: Any) -> dict[str, Any]:
    """The contents of bundle.json for the model files in a folder."""
    models = {path.name: card(path, tree.num_species) for path in sorted(folder.glob("*.onnx"))}
    return {
        "format": 4,
        "name": "foliar",
        "version": "abc1234",
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"onnx": onnx.__version__},
        "recipe": "demo",
        "backbone": "mean_color",
        "tree": tree.to_json(),
        "preprocessing": {
            "size": SIZE,
            "resize": "pillow-bilinear-antialias",
            "layout": "NHWC",
            "dtype": "uint8",
            "color": "RGB",
            "long_side": 64,
        },
        "scores": ["msp", "mahalanobis"],
        "default_model": "model.int8.onnx",
        "models": models,
        "metrics": {"leaf_top1": 0.9},
        **changes,
    }


def make(folder: Path, tree: ClassTree = TREE, **changes: Any) -> Path:
    """Write the folder: model.onnx, model.int8.onnx and bundle.json. `changes` replace keys of
    bundle.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", "model.int8.onnx"):
        onnx.save(model(), folder / name)
    write_bundle(folder, describe(folder, tree, **changes))
    return folder


def run_photo(predictor: Predictor, source: bytes, **options: Any) -> PhotoResult:
    """Read a photo and run a model on it."""
    return result_of(start_photo([predictor], source, **options))
