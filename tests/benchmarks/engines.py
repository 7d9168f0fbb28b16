"""One exported file in other engines: the same pictures through ONNX Runtime, OpenVINO and
onnxruntime-node.

  python tests/benchmarks/engines.py --exports exports --data data/organized
  python tests/benchmarks/engines.py --exports exports --data data/organized --node DIR
      a folder with node_modules/onnxruntime-node

Prints per model file and engine how far the probabilities and scores are from ONNX Runtime's, how
often the best class is the same, and whether a batch of 8 equals 8 of 1. Engines that are not
installed are left out. Needs no torch.
"""

import argparse
import csv
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.console import fail, say, table
from common.serve.predictor import OUTPUTS, Predictor, onnxruntime

BATCH = 8
NODE = """
const ort = require("onnxruntime-node"), fs = require("fs");
const [model, input, output, count, size, batch, names] = process.argv.slice(1);
(async () => {
  const session = await ort.InferenceSession.create(model, { intraOpNumThreads: 1 });
  const bytes = new Uint8Array(fs.readFileSync(input)), each = size * size * 3, parts = [];
  for (let at = 0; at < count; at += Number(batch)) {
    const many = Math.min(batch, count - at);
    const images = new ort.Tensor("uint8", bytes.subarray(at * each, (at + many) * each), [many,
      +size, +size, 3]);
    const found = await session.run({ images }, names.split(","));
    for (const name of names.split(","))
      parts.push(Buffer.from(Float32Array.from(found[name].data).buffer));
  }
  fs.writeFileSync(output, Buffer.concat(parts));
})().catch((error) => { console.error(error); process.exit(1); });
"""
Answers = tuple[np.ndarray, np.ndarray]  # probabilities (N, classes), scores (N, K)


def read_pictures(predictor: Predictor, data: Path, count: int) -> np.ndarray:
    """Test pictures, evenly spread: uint8 (N, size, size, 3)."""
    with open(data / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test" and not row["offset"]]
    if not rows:
        fail(f"{data} has no test pictures that are files of their own (shards are not read here)")
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    return np.stack([predictor.read(data / rows[i]["path"]).pixels for i in chosen])


def in_batches(run: Callable[[np.ndarray], Answers], pictures: np.ndarray, batch: int) -> Answers:
    """Run over all pictures."""
    parts = [run(pictures[start : start + batch]) for start in range(0, len(pictures), batch)]
    probabilities, ood = zip(*parts, strict=True)
    return np.concatenate(probabilities), np.concatenate(ood)


def openvino_answers(path: Path, pictures: np.ndarray, batch: int) -> Answers | None:
    """Run in OpenVINO, in float32 where the model is."""
    try:
        import openvino
    except ImportError:
        return None
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    places = [
        next(i for i, output in enumerate(compiled.outputs) if name in output.names)
        for name in OUTPUTS[:2]
    ]

    def run(part: np.ndarray) -> Answers:
        found = compiled({0: np.ascontiguousarray(part)})
        return found[places[0]].copy(), found[places[1]].copy()

    return in_batches(run, pictures, batch)


def node_answers(
    path: Path, pictures: np.ndarray, batch: int, modules: Path | None, classes: int, scores: int
) -> Answers | None:
    """Run in onnxruntime-node."""
    if modules is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in", Path(folder) / "out"
        source.write_bytes(pictures.tobytes())
        subprocess.run(
            [
                "node",
                "-e",
                NODE,
                str(path.resolve()),
                str(source),
                str(target),
                str(len(pictures)),
                str(pictures.shape[1]),
                str(batch),
                ",".join(OUTPUTS[:2]),
            ],
            check=True,
            cwd=modules,
        )
        found, probabilities, ood = np.fromfile(target, np.float32), [], []
    at = 0
    for start in range(0, len(pictures), batch):
        many = min(batch, len(pictures) - start)
        probabilities.append(found[at : at + many * classes].reshape(many, classes))
        ood.append(
            found[at + many * classes : at + many * (classes + scores)].reshape(many, scores)
        )
        at += many * (classes + scores)
    return np.concatenate(probabilities), np.concatenate(ood)


def main(argv: list[str] | None = None) -> int:
    """Print the table; see the module's docstring."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--exports", type=Path, default=Path("exports"))
    flags.add_argument("--data", type=Path, default=Path("data/organized"))
    flags.add_argument("--count", type=int, default=500, help="pictures")
    flags.add_argument("--node", type=Path, help="folder that holds node_modules/onnxruntime-node")
    args = flags.parse_args(argv)
    rows = []
    for name in Predictor(args.exports).bundle.models:
        predictor = Predictor(args.exports, name)
        tree, pictures, path = (
            predictor.bundle.tree,
            read_pictures(predictor, args.data, args.count),
            args.exports / name,
        )

        def own(part: np.ndarray, predictor: Predictor = predictor) -> Answers:
            found = predictor.run(part)
            return found.probabilities, found.ood

        want = in_batches(own, pictures, BATCH)
        engines = {
            "ONNX Runtime, one by one": in_batches(own, pictures, 1),
            "OpenVINO": openvino_answers(path, pictures, BATCH),
            "onnxruntime-node": node_answers(
                path, pictures, BATCH, args.node, tree.num_classes, len(predictor.bundle.scores)
            ),
        }
        for engine, got in engines.items():
            if got is not None:
                score = np.abs(got[1] - want[1]) / np.maximum(np.abs(want[1]).mean(axis=0), 1e-9)
                rows.append(
                    (
                        name,
                        engine,
                        len(pictures),
                        f"{np.abs(got[0] - want[0]).max():.1e}",
                        f"{(got[0].argmax(1) == want[0].argmax(1)).sum()}",
                        f"{score.max():.1e}",
                    )
                )
    say(
        f"{platform.machine()}, onnxruntime {onnxruntime.__version__}; against ONNX Runtime in "
        f"batches of {BATCH}",
        "",
        table(
            rows,
            (
                "model",
                "engine",
                "pictures",
                "largest difference of a probability",
                "same best class",
                "of a score, relative",
            ),
        ),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
