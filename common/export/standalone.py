"""A look at an exported model with nothing but onnxruntime and numpy, as somebody without this
project would take it.
"""

import sys
from typing import Any

import numpy as np
import onnxruntime


def examine(path: str, pictures: np.ndarray) -> dict[str, Any]:
    """Load a model on the CPU and run pictures through it one by one, all at once, and with a
    ragged last batch.

    Args:
        path: an .onnx file.
        pictures: uint8 (N, size, size, 3), N at least 3.

    Returns:
        `inputs`, `outputs`: rows of [name, type, shape], a dynamic side as None; `metadata`: the
        file's own; `batches`: {output: the greatest difference between any two ways to batch};
        `top1`: int (N,) as a list; `ranges`: {output: [least, greatest]}; `sums`: least and
        greatest row sum of the first output; `shapes`, `dtypes`: {output: of the whole batch};
        `others`: names of heavy packages that were imported, which should be none.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    reader = session.get_inputs()[0].name

    def run(batch: int) -> list[np.ndarray]:
        parts = [
            session.run(None, {reader: pictures[i : i + batch]})
            for i in range(0, len(pictures), batch)
        ]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    count = len(pictures)
    ragged = next((size for size in range(max(2, count // 2), count) if count % size), count)
    single, whole, uneven = run(1), run(count), run(ragged)
    difference = {
        name: float(
            max(
                np.abs(a - b).max()
                for a, b in ((single[i], whole[i]), (single[i], uneven[i]), (whole[i], uneven[i]))
            )
        )
        for i, name in enumerate(names)
    }

    def row(tensor: Any) -> list[Any]:
        return [
            tensor.name,
            tensor.type,
            [side if isinstance(side, int) else None for side in tensor.shape],
        ]

    sums = whole[0].astype(np.float64).sum(axis=-1)
    return {
        "inputs": [row(t) for t in session.get_inputs()],
        "outputs": [row(t) for t in session.get_outputs()],
        "metadata": dict(session.get_modelmeta().custom_metadata_map),
        "batches": difference,
        "top1": whole[0].argmax(axis=1).tolist(),
        "ranges": {
            name: [float(values.min()), float(values.max())]
            for name, values in zip(names, whole, strict=True)
        },
        "sums": [float(sums.min()), float(sums.max())],
        "shapes": {n: list(v.shape) for n, v in zip(names, whole, strict=True)},
        "dtypes": {n: str(v.dtype) for n, v in zip(names, whole, strict=True)},
        "others": sorted({"torch", "onnx", "timm", "cv2", "PIL"} & set(sys.modules)),
    }
