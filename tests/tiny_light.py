"""A tiny exports/browser/ beside tiny_bundle's models: goes by the mean colour too, at another
size. No torch.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tiny_bundle as tiny
from onnx import TensorProto, helper, numpy_helper

from common.classes import ClassTree
from common.export.browser import heads_file
from common.files import file_sha256

SIZE, CELLS = 48, 3
SCORES = ("gen", "mahalanobis")


def model(tree: ClassTree) -> onnx.ModelProto:
    """light.onnx: the feature is the mean colour, of which a class's logit is linear; scores are
    the chance to be wrong and the distance.
    """
    colors = tiny.COLORS
    segments = (tree.class_species[:, None] == np.arange(tree.num_species)).astype(np.float32)
    constants = {
        "scale": np.float32(1 / 255),
        "weights": (2 * tiny.SHARPNESS * colors.T),
        "norms": -tiny.SHARPNESS * (colors**2).sum(1),
        "segments": segments,
        "steep": np.float32(-1 / tiny.SHARPNESS),
        "one": np.float32(1),
        "cells": np.array([0, CELLS, SIZE // CELLS, CELLS, SIZE // CELLS, 3]),
        "over": np.array([1, 2]),
        "last": np.array([-1]),
        "inside": np.array([2, 4]),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "cells"], ["blocks"]),
        helper.make_node("ReduceMean", ["blocks", "inside"], ["map"], keepdims=0),
        helper.make_node("ReduceMean", ["map", "over"], ["feature"], keepdims=0),
        helper.make_node("MatMul", ["feature", "weights"], ["products"]),
        helper.make_node("Add", ["products", "norms"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["joint"], axis=-1),
        helper.make_node("MatMul", ["joint", "segments"], ["species"]),
        helper.make_node("ReduceMax", ["joint", "last"], ["best"], keepdims=1),
        helper.make_node("Sub", ["one", "best"], ["unsure"]),
        helper.make_node("Mul", ["feature", "feature"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "last"], ["length"], keepdims=1),
        helper.make_node("Mul", ["logits", "steep"], ["partial"]),
        helper.make_node("ReduceMin", ["partial", "last"], ["near"], keepdims=1),
        helper.make_node("Add", ["near", "length"], ["distance"]),
        helper.make_node("Concat", ["unsure", "distance"], ["ood"], axis=-1),
    ]
    outputs = {"species": [tree.num_species], "feature": [3], "ood": [2], "map": [CELLS, CELLS, 3]}
    graph = helper.make_graph(
        nodes,
        "mean_color",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
            for name, shape in outputs.items()
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def add(exports: Path, tree: ClassTree = tiny.TREE, padding: int = 0, **changes: Any) -> Path:
    """Write browser/ into a folder that `tiny_bundle.make` wrote; `changes` replace keys of
    light.json. Returns browser/.

    padding: zeros (a multiple of 4) at the end of each head's record, which mean nothing there.
    """
    folder = exports / "browser"
    folder.mkdir()
    onnx.save(model(tree), folder / "light.onnx")
    sha256 = file_sha256(folder / "light.onnx")
    heads = (2 * tiny.SHARPNESS * tiny.COLORS, -tiny.SHARPNESS * (tiny.COLORS**2).sum(1))
    packed, offsets = heads_file.pack(
        tree, None, heads, np.ones(tree.num_species), bytes.fromhex(sha256[:8])
    )
    records = [
        packed[a + 4 : b] + bytes(padding) for a, b in zip(offsets, offsets[1:], strict=False)
    ]
    offsets = [start + i * padding for i, start in enumerate(offsets)]
    (folder / "heads.bin").write_bytes(
        b"".join(zlib.crc32(body).to_bytes(4, "little") + body for body in records)
    )
    card = tiny.card(folder / "light.onnx", tree.num_species)
    settings = {
        "format": 2,
        "name": "foliar",
        "version": "abc1234",
        "model": {"file": "light.onnx", "sha256": sha256},
        "heads": {
            "file": "heads.bin",
            "sha256": file_sha256(folder / "heads.bin"),
            "offsets": offsets,
        },
        "species": list(tree.species),
        "diseases": np.diff(tree.offsets).tolist(),
        "temperature": {"species": 1.0},
        "preprocessing": {
            "size": SIZE,
            "long_side": 64,
            "resize": "pillow-bilinear-antialias",
            "layout": "NHWC",
            "dtype": "uint8",
            "color": "RGB",
        },
        "scores": list(SCORES),
        "heatmap": "exact",
        "rejection": card["rejection"],
        "rollup": card["rollup"],
        # asks where the best class's odds are below about 7 to 1, and sooner for the last species
        "deferral": {
            "signals": ["confidence", "species_margin", "disease_margin", "gen"],
            "intercept": 1.0,
            "weights": [-1.0, -0.2, -0.3, 0.1],
            "mean": [1.0, 0.5, 0.5, 0.2],
            "spread": [1.0, 0.5, 0.5, 0.2],
            "species": [0.0, -0.1, 0.3],
            "threshold": 0.5,
        },
        **changes,
    }
    (folder / "light.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
