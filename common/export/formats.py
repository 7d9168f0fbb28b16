"""What belongs to an exported file beside its weights: metadata, a check in a fresh process, a
Triton model repository. No torch.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from common.classes import ClassTree
from common.export.quantize import KEEP_FLOAT
from common.files import whole, write_text
from common.serve.predictor import OUTPUTS

BATCH_TOLERANCE = 1e-5  # greatest difference that another batch may make to a probability
SUM_TOLERANCE = 1e-3
TIMEOUT = 600  # seconds for the check in a fresh process
_ROOT = Path(__file__).resolve().parents[2]


class FormatError(ValueError):
    """An exported file that is not as the contract says; the message says which file and what is
    wrong with it.
    """


# region metadata


def metadata(bundle: Mapping[str, Any], precision: str) -> dict[str, str]:
    """Compose what a file says about itself.

    Args:
        bundle: bundle.json, as far as it does not concern single models.
        precision: such as `fp32` or `int8, static`.

    Returns:
        texts only, as ONNX has it; lists are JSON.
    """
    tree, size = ClassTree.from_json(bundle["tree"]), bundle["preprocessing"]["size"]
    return {
        "name": bundle["name"],
        "version": bundle["version"],
        "weights_sha256": bundle["version"],
        "precision": precision,
        "created": bundle["created"],
        "class_tree": tree.fingerprint(),
        "species": json.dumps(list(tree.species)),
        "classes": json.dumps([tree.class_name(i) for i in range(tree.num_classes)]),
        "scores": json.dumps(list(bundle["scores"])),
        "input": f"images: uint8 (N, {size}, {size}, 3), RGB, resized by Pillow's BILINEAR with "
        f"antialias",
        "outputs": "probabilities (N, classes): joint P(species) x P(disease | species), rows sum "
        "to 1; ood (N, scores): larger = farther from the training pictures; heatmap (N, h, w): "
        "0 to 1",
    }


def stamp(path: Path, facts: Mapping[str, str]) -> None:
    """Write metadata into an ONNX file, in place of all it had but the names of weights that stay
    float; the file is replaced whole or not at all.
    """
    model = onnx.load(path)
    kept = {e.key: e.value for e in model.metadata_props if e.key == KEEP_FLOAT}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**kept, **facts})
    with whole(path) as aside:
        onnx.save(model, aside)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of an ONNX file."""
    return {
        entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props
    }


# endregion

# region a fresh process


def check_fresh(
    path: Path,
    pictures: np.ndarray,
    tree: ClassTree,
    scores: Sequence[str],
    batch_tolerance: float = BATCH_TOLERANCE,
) -> dict[str, Any]:
    """Run a file in a new process that has nothing but onnxruntime and numpy, and hold it to the
    contract.

    Args:
        path: the file.
        pictures: uint8 (N, size, size, 3), N at least 3; 8 or so.
        tree, scores: what its outputs should be of.
        batch_tolerance: greatest difference of a probability between one by one, all at once and a
            ragged last batch.

    Returns:
        what `standalone.examine` found.

    Raises:
        FormatError: where the process fails, or the contract is broken; all that is wrong is named.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "pictures.npy", np.ascontiguousarray(pictures))
        code = (
            "import json, sys, numpy; from common.export.standalone import examine; "
            "print(json.dumps(examine(sys.argv[1], numpy.load(sys.argv[2]))))"
        )
        try:
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    code,
                    str(path.resolve()),
                    str(Path(folder) / "pictures.npy"),
                ],
                cwd=_ROOT,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise FormatError(
                f"{path.name} gave no answer within {TIMEOUT} s in a fresh process."
            ) from None
    if done.returncode:
        raise FormatError(
            f"{path.name} does not run in a fresh process: "
            f"{(done.stderr.strip().splitlines() or ['no message'])[-1][:300]}"
        )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    wrong = _wrong(found, len(pictures), pictures.shape[1], tree, scores, batch_tolerance)
    if wrong:
        raise FormatError(f"{path.name} breaks the contract: " + "; ".join(wrong))
    return found


def _wrong(
    found: Mapping[str, Any],
    count: int,
    size: int,
    tree: ClassTree,
    scores: Sequence[str],
    tolerance: float,
) -> list[str]:
    wrong = []
    if found["others"]:
        wrong.append(f"the fresh process imported {', '.join(found['others'])}")
    if found["inputs"] != [["images", "tensor(uint8)", [None, size, size, 3]]]:
        wrong.append(f"its inputs are {found['inputs']}")
    names = [name for name, _, _ in found["outputs"]]
    if names != list(OUTPUTS) or any(kind != "tensor(float)" for _, kind, _ in found["outputs"]):
        return [*wrong, f"its outputs are {found['outputs']}"]
    if any(shape[:1] != [None] for _, _, shape in found["outputs"]):
        wrong.append("an output has a fixed batch")
    shapes = found["shapes"]
    if shapes["probabilities"] != [count, tree.num_classes] or shapes["ood"] != [
        count,
        len(scores),
    ]:
        wrong.append(
            f"probabilities are {shapes['probabilities']} and ood {shapes['ood']}, for "
            f"{tree.num_classes} classes and "
            f"{len(scores)} scores"
        )
    if len(shapes["heatmap"]) != 3 or not (
        0 <= found["ranges"]["heatmap"][0] <= found["ranges"]["heatmap"][1] <= 1 + 1e-6
    ):
        wrong.append(
            f"its heatmap is {shapes['heatmap']} from {found['ranges']['heatmap'][0]:g} to "
            f"{found['ranges']['heatmap'][1]:g}"
        )
    if not np.isfinite([end for ends in found["ranges"].values() for end in ends]).all():
        wrong.append("it gives values that are no numbers")
    if not max(abs(total - 1) for total in found["sums"]) <= SUM_TOLERANCE:
        wrong.append(f"its probabilities sum to {found['sums'][0]:.4f} to {found['sums'][1]:.4f}")
    if not found["batches"]["probabilities"] <= tolerance:
        wrong.append(
            f"another batch changes a probability by {found['batches']['probabilities']:.1e}, "
            f"{tolerance:.0e} is allowed"
        )
    return wrong


# endregion

# region Triton


def write_triton(
    folder: Path,
    model: Path,
    bundle: Mapping[str, Any],
    *,
    name: str = "foliar",
    max_batch: int = 32,
    delay_us: int = 2000,
) -> Path:
    """Lay a model out as a repository of the Triton Inference Server:
    `<folder>/<name>/1/model.onnx` with config.pbtxt.

    Beside them stand labels.txt, a class per line, by which Triton's classification answers in
    words; and bundle.json, by which a client decides as 04 does: thresholds and the class tree.
    `tritonserver --model-repository <folder>` serves it.

    Args:
        folder: of the repository; made where it is missing. What stands under `<folder>/<name>` is
            replaced.
        model: the file to copy, of this bundle.
        bundle: contents of bundle.json.
        name: of the model.
        max_batch: most pictures that Triton may put together.
        delay_us: microseconds that a request may wait for company.

    Returns:
        `<folder>/<name>`.

    Raises:
        FormatError: where `<folder>/<name>` is there and was not made by this function, or the
            model breaks the contract.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise FormatError(f"{name!r} is no name for a model: letters, digits, _ . and - only")
    target = folder / name
    if target.exists() and not (target / "config.pbtxt").is_file():
        raise FormatError(f"{target} is there and is no Triton model. Choose another folder.")
    tree = ClassTree.from_json(bundle["tree"])
    text = triton_config(model, name, tree, max_batch, delay_us)
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    try:
        (aside / "1").mkdir()
        shutil.copyfile(model, aside / "1" / "model.onnx")
        write_text(
            aside / "labels.txt",
            "".join(tree.class_name(i) + "\n" for i in range(tree.num_classes)),
        )
        write_text(aside / "bundle.json", json.dumps(bundle, indent=1))
        write_text(aside / "config.pbtxt", text)
        aside.chmod(0o755)  # mkdtemp keeps others out, and the server often is another user
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return target


def triton_config(
    model: Path, name: str, tree: ClassTree, max_batch: int = 32, delay_us: int = 2000
) -> str:
    """Compose config.pbtxt from the signature of an ONNX file: types and sizes as they are, -1
    where a side is free.

    Raises:
        FormatError: where a first side is not free, or a type is none of the contract's.
    """
    graph = onnx.load(model, load_external_data=False).graph
    parts = [
        f"name: {_quoted(name)}",
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {max_batch}",
    ]
    for kind, infos in (("input", graph.input), ("output", graph.output)):
        rows = []
        for info in infos:
            data_type, sides = info.type.tensor_type.elem_type, info.type.tensor_type.shape.dim
            type_ = {onnx.TensorProto.UINT8: "TYPE_UINT8", onnx.TensorProto.FLOAT: "TYPE_FP32"}.get(
                data_type
            )
            if type_ is None or not sides or sides[0].HasField("dim_value"):
                raise FormatError(
                    f"{model.name}: `{info.name}` has a fixed batch, or a type that the contract "
                    f"does not know"
                )
            dims = ", ".join(
                str(side.dim_value) if side.HasField("dim_value") else "-1" for side in sides[1:]
            )
            labels = (
                '\n    label_filename: "labels.txt"'
                if kind == "output" and info.name == OUTPUTS[0]
                else ""
            )
            rows.append(
                f"  {{\n    name: {_quoted(info.name)}\n    data_type: {type_}\n    dims: [ "
                f"{dims} ]{labels}\n  }}"
            )
        parts.append(f"{kind} [\n" + ",\n".join(rows) + "\n]")
    if max_batch > 1:
        preferred = ", ".join(str(size) for size in (4, 8, 16, 32) if size <= max_batch)
        sizes = f"  preferred_batch_size: [ {preferred} ]\n" if preferred else ""
        parts.append(f"dynamic_batching {{\n{sizes}  max_queue_delay_microseconds: {delay_us}\n}}")
    parts.append("instance_group [\n  {\n    count: 1\n    kind: KIND_AUTO\n  }\n]")
    facts = {
        "class_tree": tree.fingerprint(),
        **{
            key: value
            for key, value in read_metadata(model).items()
            if key in ("version", "precision", "weights_sha256")
        },
    }
    parts += [
        f"parameters {{\n  key: {_quoted(key)}\n  value: {{ string_value: {_quoted(value)} }}\n}}"
        for key, value in facts.items()
    ]
    return "\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


# endregion
