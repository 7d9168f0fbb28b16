"""Small networks of the contract as ONNX, with random weights: one of convolutions, one of tokens.
No torch.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from common.classes import ClassTree
from common.export.quantize import KEEP_FLOAT

SIZE = 32
TREE = ClassTree(
    ("apple", "basil", "corn"), (("healthy", "rust", "scab"), ("healthy",), ("blight", "healthy"))
)
SCORES = ("gen", "mahalanobis")
KEPT_FLOAT = ("model.disease_heads.", "feature_space.")


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, uint8 (count, 32, 32, 3), that differ in colour and pattern."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 60, (count, 4, 4, 3)) + rng.uniform(20, 235, (count, 1, 1, 3))
    return np.clip(
        coarse.repeat(8, axis=1).repeat(8, axis=2) + rng.normal(0, 12, (count, SIZE, SIZE, 3)),
        0,
        255,
    ).astype(np.uint8)


class _Builder:
    """Collects nodes and weights; every method returns the name of the tensor it makes."""

    def __init__(self, seed: int) -> None:
        self.rng, self.nodes, self.tensors = np.random.default_rng(seed), [], {}

    def constant(self, name: str, values: object) -> str:
        self.tensors[name] = np.asarray(values)
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def normal(self, name: str, shape: tuple[int, ...], scale: float) -> str:
        return self.constant(name, self.rng.normal(0, scale, shape).astype(np.float32))

    def conv(
        self,
        name: str,
        into: str,
        out: int,
        of: int,
        kernel: int = 1,
        clip: bool = True,
        spread: float = 1.0,
        **attributes: object,
    ) -> str:
        """A convolution with a bias; `spread` makes the channels' weights differ in size by up to
        that factor.
        """
        weight = self.rng.normal(0, 1.4 / np.sqrt(of * kernel * kernel), (out, of, kernel, kernel))
        weight *= np.geomspace(1 / spread, 1, out)[:, None, None, None]
        self.constant(f"{name}.weight", weight.astype(np.float32))
        made = self.node(
            "Conv",
            [into, f"{name}.weight", self.normal(f"{name}.bias", (out,), 0.2)],
            name,
            pads=[kernel // 2] * 4,
            **attributes,
        )
        return self.node("Clip", [made, "zero", "six"], f"{name}_clipped") if clip else made

    def heads(self, features: str, feature_map: str, width: int) -> onnx.ModelProto:
        """Probabilities, scores and a heatmap over (N, width) features and an (N, width, h, w)
        map.
        """
        self.constant("last", np.array([-1]))
        logits = self.node(
            "Gemm",
            [
                features,
                self.normal("model.disease_heads.weight", (6, width), 1.5),
                self.normal("model.disease_heads.bias", (6,), 0.1),
            ],
            "logits",
            transB=1,
        )
        self.node("Softmax", [logits], "probabilities", axis=-1)
        self.node("MatMul", [features, self.normal("feature_space.basis", (width, 2), 1.0)], "ood")
        self.node(
            "Sigmoid",
            [
                self.node(
                    "ReduceMean",
                    [feature_map, self.constant("channel", np.array([1]))],
                    "activation",
                    keepdims=0,
                )
            ],
            "heatmap",
        )
        side = SIZE // 2
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
            [
                helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 6]),
                helper.make_tensor_value_info("ood", TensorProto.FLOAT, ["N", 2]),
                helper.make_tensor_value_info(
                    "heatmap",
                    TensorProto.FLOAT,
                    ["N", side, side] if "token" not in features else ["N", 8, 8],
                ),
            ],
            [numpy_helper.from_array(values, name) for name, values in self.tensors.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        helper.set_model_props(made, {KEEP_FLOAT: json.dumps(KEPT_FLOAT)})
        onnx.checker.check_model(made)
        return made

    def pixels(self) -> str:
        """Centred pixels, (N, 3, 32, 32)."""
        floats = self.node("Cast", ["images"], "floats", to=TensorProto.FLOAT)
        centred = self.node("Sub", [floats, self.constant("mean", np.float32(127.5))], "centred")
        return self.node(
            "Transpose",
            [self.node("Div", [centred, self.constant("std", np.float32(60.0))], "scaled")],
            "pixels",
            perm=[0, 3, 1, 2],
        )


def conv_net(seed: int = 4, spread: float = 1.0) -> onnx.ModelProto:
    """Stem, depthwise, and an inverted residual block: five convolutions, clipped at 6 as
    MobileNetV2's are.
    """
    b = _Builder(seed)
    b.constant("zero", np.float32(0))
    b.constant("six", np.float32(6))
    x = b.conv("stem", b.pixels(), 32, 3, 3, strides=[2, 2])
    x = b.conv("depthwise", x, 32, 1, 3, spread=spread, group=32)
    x = b.conv("point", x, 24, 32, clip=False)
    y = b.conv("expand", x, 64, 24)
    y = b.conv("project", y, 24, 64, clip=False)
    x = b.node("Relu", [b.node("Add", [x, y], "residual")], "map")
    return b.heads(
        b.node("ReduceMean", [x, b.constant("places", np.array([2, 3]))], "features", keepdims=0),
        x,
        24,
    )


def token_net(seed: int = 0) -> onnx.ModelProto:
    """Patches, a linear layer, and a pre-norm MLP with GELU: three matrix products."""
    b = _Builder(seed)
    x = b.node(
        "Reshape", [b.pixels(), b.constant("patches", np.array([0, 3, 8, 4, 8, 4]))], "patched"
    )
    x = b.node("Transpose", [x], "turned", perm=[0, 2, 4, 1, 3, 5])
    x = b.node("Reshape", [x, b.constant("tokens", np.array([0, 64, 48]))], "patch_tokens")

    def linear(name: str, into: str, of: int, out: int) -> str:
        product = b.node(
            "MatMul",
            [into, b.normal(f"{name}.weight", (of, out), 1 / np.sqrt(of))],
            f"{name}_product",
        )
        return b.node("Add", [b.normal(f"{name}.bias", (out,), 0.1), product], name)

    x = linear("embed", x, 48, 32)
    normed = b.node(
        "LayerNormalization",
        [
            x,
            b.constant("gamma", np.ones(32, np.float32)),
            b.constant("beta", np.zeros(32, np.float32)),
        ],
        "normed",
        axis=-1,
    )
    y = b.node("Gelu", [linear("up", normed, 32, 96)], "active")
    x = b.node("Add", [x, linear("down", y, 96, 32)], "token_sum")
    turned = b.node("Transpose", [x], "token_turned", perm=[0, 2, 1])
    square = b.node("Reshape", [turned, b.constant("square", np.array([0, 32, 8, 8]))], "map")
    return b.heads(
        b.node(
            "ReduceMean", [x, b.constant("places", np.array([1]))], "token_features", keepdims=0
        ),
        square,
        32,
    )


def write(
    folder: Path, name: str, make: Callable[..., onnx.ModelProto], **arguments: object
) -> Path:
    """Save a network; returns its path."""
    onnx.save(make(**arguments), folder / name)
    return folder / name
