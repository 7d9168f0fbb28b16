"""What belongs to an exported file beside its weights: metadata, a check in a fresh process, a
Triton model repository. No torch.
"""

import json
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
from common.console import Unusable
from common.export.quantize import KEEP_FLOAT
from common.files import follow, stand_in, whole, write_text
from common.serve.predictor import OUTPUTS, SIZES

BATCH_TOLERANCE = 1e-5  # greatest difference that another batch may make to a probability
SUM_TOLERANCE = 1e-3
TRITON_NAME = "foliar"
_TRITON_TYPES = {onnx.TensorProto.UINT8: "TYPE_UINT8", onnx.TensorProto.FLOAT: "TYPE_FP32"}
TIMEOUT = 600  # seconds for the check in a fresh process
_ROOT = Path(__file__).resolve().parents[2]


class FormatError(Unusable):
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
    """Sentences on what breaks the contract."""
    outputs, expected = found["outputs"], [(name, "tensor(float)") for name in OUTPUTS]
    if [(name, kind) for name, kind, _ in outputs] != expected:
        return [f"its outputs are {outputs}"]
    shapes, (least, most) = found["shapes"], found["ranges"]["heatmap"]
    probabilities, ood = shapes["probabilities"], shapes["ood"]
    changed = found["batches"]["probabilities"]
    checks = (
        (not found["others"], f"the fresh process imported {', '.join(found['others'])}"),
        (
            found["inputs"] == [["images", "tensor(uint8)", [None, size, size, 3]]],
            f"its inputs are {found['inputs']}",
        ),
        (all(shape[0] is None for _, _, shape in outputs), "an output has a fixed batch"),
        (
            probabilities == [count, tree.num_classes] and ood == [count, len(scores)],
            f"probabilities are {probabilities} and ood {ood}, for {tree.num_classes} classes and "
            f"{len(scores)} scores",
        ),
        (
            len(shapes["heatmap"]) == 3 and 0 <= least <= most <= 1 + 1e-6,
            f"its heatmap is {shapes['heatmap']} from {least:g} to {most:g}",
        ),
        (np.isfinite([*found["ranges"].values()]).all(), "it gives values that are no numbers"),
        (
            max(abs(total - 1) for total in found["sums"]) <= SUM_TOLERANCE,
            f"its probabilities sum to {found['sums'][0]:.4f} to {found['sums'][1]:.4f}",
        ),
        (
            changed <= tolerance,
            f"another batch changes a probability by {changed:.1e}, {tolerance:.0e} is allowed",
        ),
    )
    return [sentence for right, sentence in checks if not right]


# endregion

# region Triton


def write_triton(folder: Path, model: Path, bundle: Mapping[str, Any]) -> Path:
    """Lay a model out as a repository of the Triton Inference Server:
    `<folder>/foliar/1/model.onnx` with config.pbtxt.

    Beside them stand labels.txt, a class per line, by which Triton's classification answers in
    words; and bundle.json, by which a client decides as 04 does: thresholds and the class tree.
    `tritonserver --model-repository <folder>` serves it.

    Args:
        folder: of the repository; made where it is missing. What stands under `<folder>/foliar` is
            replaced.
        model: the file to copy, of this bundle.
        bundle: contents of bundle.json.

    Returns:
        `<folder>/foliar`.

    Raises:
        FormatError: where `<folder>/foliar` is there and was not made by this function, or the
            model breaks the contract.
    """
    target = follow(folder / TRITON_NAME)
    if target.exists() and not (target / "config.pbtxt").is_file():
        raise FormatError(f"{target} is there and is no Triton model. Choose another folder.")
    tree = ClassTree.from_json(bundle["tree"])
    text = triton_config(model, tree)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{TRITON_NAME}-", dir=target.parent) as aside:
        made = Path(aside) / TRITON_NAME
        (made / "1").mkdir(parents=True)
        shutil.copyfile(model, made / "1" / "model.onnx")
        labels = "".join(tree.class_name(i) + "\n" for i in range(tree.num_classes))
        write_text(made / "labels.txt", labels)
        write_text(made / "bundle.json", json.dumps(bundle, indent=1))
        write_text(made / "config.pbtxt", text)
        stand_in(made, target)
    return target


def triton_config(model: Path, tree: ClassTree) -> str:
    """Compose config.pbtxt from the signature of an ONNX file: types and sizes as they are, -1
    where a side is free.

    As 04 does it on a GPU: batches of up to 32, for which a request may wait 2 ms; two instances,
    so that one copies while the other computes; cuDNN's ways chosen by its heuristic, as trying
    them all takes most of a second for every new size of batch; these sizes run once before Triton
    calls the model ready.

    Raises:
        FormatError: where a first side is not free, or a type is none of the contract's.
    """
    graph = onnx.load(model, load_external_data=False).graph
    parts = [f'name: "{TRITON_NAME}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: {SIZES[-1]}']
    for kind, infos in (("input", graph.input), ("output", graph.output)):
        rows = []
        for info in infos:
            tensor = info.type.tensor_type
            sides, known = tensor.shape.dim, _TRITON_TYPES.get(tensor.elem_type)
            if known is None or not sides or sides[0].HasField("dim_value"):
                raise FormatError(
                    f"{model.name}: `{info.name}` has a fixed batch, or a type that the contract "
                    f"does not know"
                )
            # dim_value is 0 where a side is free
            dims = ", ".join(str(side.dim_value or -1) for side in sides[1:])
            labels = '\n    label_filename: "labels.txt"' if info.name == OUTPUTS[0] else ""
            rows.append(
                f'  {{\n    name: "{info.name}"\n    data_type: {known}\n'
                f"    dims: [ {dims} ]{labels}\n  }}"
            )
        parts.append(f"{kind} [\n" + ",\n".join(rows) + "\n]")
    parts += [
        f"dynamic_batching {{\n  preferred_batch_size: [ {', '.join(map(str, SIZES[7:]))} ]\n"
        "  max_queue_delay_microseconds: 2000\n}",
        "instance_group [\n  {\n    count: 2\n    kind: KIND_AUTO\n  }\n]",
        "model_warmup [\n" + ",\n".join(_warm_up(count, graph.input) for count in SIZES) + "\n]",
    ]
    facts = read_metadata(model)
    texts = {key: facts[key] for key in ("version", "precision", "weights_sha256") if key in facts}
    parts += [
        f'parameters {{\n  key: "{key}"\n  value: {{ string_value: {json.dumps(text)} }}\n}}'
        for key, text in {
            "cudnn_conv_algo_search": "1",  # the heuristic
            "class_tree": tree.fingerprint(),
            **texts,
        }.items()
    ]
    return "\n".join(parts) + "\n"


def _warm_up(count: int, inputs: Sequence[onnx.ValueInfoProto]) -> str:
    """A request of black pictures that fills a batch."""
    rows = [
        f'    inputs {{\n      key: "{info.name}"\n      value {{\n        data_type: TYPE_UINT8\n'
        f"        dims: [ {', '.join(str(side.dim_value) for side in sides[1:])} ]\n"
        "        zero_data: true\n      }\n    }"
        for info in inputs
        for sides in [info.type.tensor_type.shape.dim]
    ]
    return f'  {{\n    name: "{count}"\n    batch_size: {count}\n' + "\n".join(rows) + "\n  }"


# endregion
