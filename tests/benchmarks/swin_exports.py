"""An exports folder around Swin-Tiny INT8, FP16 and FP32 with random weights, for measurements of
the server's speed.

  python tests/benchmarks/swin_exports.py exports_swin

It has no OOD threshold and no roll-up, so every photo is answered; what it answers means
nothing.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from int8 import serving_graph

from common.classes import ClassTree
from common.export import fp16, quantize
from common.export.graph import SCORES, export_onnx
from common.files import file_sha256
from common.serve.predictor import FORMAT, write_bundle
from common.train.model import SwinHierarchical


def make(folder: Path, backbone: str = "swin_tiny_patch4_window7_224", size: int = 224) -> Path:
    """Write the folder: model.int8.onnx (static, all layers), model.fp16.onnx, model.onnx and
    bundle.json.
    """
    torch.manual_seed(0)
    tree = ClassTree(
        tuple(f"species_{i:02d}" for i in range(40)),
        tuple(("blight", "healthy", "rust") for _ in range(40)),
    )
    graph_model = SwinHierarchical(backbone, tree, image_size=size).eval()
    rng = np.random.default_rng(0)
    pictures = (
        rng.integers(0, 256, (32, 8, 8, 3))
        .repeat(size // 8, axis=1)
        .repeat(size // 8, axis=2)
        .astype(np.uint8)
    )
    batches = [(pictures[i : i + 8], rng.integers(0, tree.num_classes, 8)) for i in range(0, 32, 8)]
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(serving_graph(graph_model, iter(batches)), str(folder / "model.onnx"), size)
    fp16.write_fp16(folder / "model.onnx", folder / "model.fp16.onnx", [pictures[:8]])
    fused = quantize.load_fused(folder / "model.onnx")
    layers = quantize.layers(fused, quantize.static_kinds(fused))
    ranges = quantize.calibrate(fused, [pictures[:8]])
    onnx.save(
        quantize.static(fused, layers, ranges),
        folder / "model.int8.onnx",
    )
    cards = {
        path.name: {
            "sha256": file_sha256(path),
            "size_mb": round(path.stat().st_size / 1e6, 1),
            "precision": precision,
            "temperature": {"species": 1.0, "disease": [1.0] * tree.num_species},
            "rejection": None,
            "rollup": None,
            "metrics": {},
        }
        for path, precision in (
            (folder / "model.onnx", "fp32"),
            (folder / "model.fp16.onnx", "fp16"),
            (folder / "model.int8.onnx", "int8"),
        )
    }
    write_bundle(
        folder,
        {
            "format": FORMAT,
            "name": "foliar",
            "version": "random",
            "created": "2026-01-01T00:00:00+00:00",
            "recipe": "none",
            "backbone": backbone,
            "tree": tree.to_json(),
            "scores": list(SCORES),
            "default_model": "model.int8.onnx",
            "preprocessing": {
                "size": size,
                "resize": "pillow-bilinear-antialias",
                "layout": "NHWC",
                "dtype": "uint8",
                "color": "RGB",
                "long_side": 512,
            },
            "models": cards,
            "metrics": {},
        },
    )
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    print(make(parser.parse_args().folder))
