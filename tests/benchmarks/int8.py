"""INT8, FP16 and FP32 of one model: milliseconds for a picture, all in turn, and the gate of every
way to INT8.

  python tests/benchmarks/int8.py
      # Swin-Tiny 224 with random weights: speed alone
  python tests/benchmarks/int8.py --checkpoint checkpoints/hierarchical_full/epoch=10-best.pt \
      --data data/organized

Within one loop each contestant answers the same picture once per round, so that the machine's moods
hit all alike. OpenVINO takes part where it is installed. With --data the ways to INT8 are searched
on val as 03 does it, and the gate is shown on val and test.
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


from common import images
from common.classes import ClassTree
from common.console import say, table
from common.export import fp16, int8, quantize
from common.export.answers import Run, run_over
from common.export.gate import GateResult, Side, Speed, judge_gate, report_lines
from common.export.graph import SCORES, FeatureSpace, ServingGraph, export_onnx, extract_features
from common.export.measure import check_batches, measure_times, session_run
from common.export.pictures import balanced
from common.serve.predictor import onnxruntime
from common.train import checkpoint
from common.train.dataset import Organized, Split, load_organized
from common.train.model import SwinHierarchical

CALIBRATION = 128  # pictures
SCORE = SCORES.index("layers")


def pictures_of(
    split: Split, size: int, at: np.ndarray | None = None, batch: int = 16
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches (uint8 (N, size, size, 3), class_idx (N,)) of a split, or of the pictures at these
    places.
    """
    at = np.arange(len(split)) if at is None else at
    for start in range(0, len(at), batch):
        part = at[start : start + batch]
        yield (
            np.stack(
                [
                    images.resize_to_model(images.read_rgb(split.read(int(i)), min_side=1), size)
                    for i in part
                ]
            ),
            np.asarray(split.class_idx)[part],
        )


def not_plants_of(data: Organized, split: str, size: int) -> Iterator[np.ndarray]:
    """Batches of the pictures of no plant that 01 set aside for a split."""
    found = sorted(map(str, (data.root / "not_plants" / split).rglob("*.jpg")))
    for start in range(0, len(found), 16):
        yield np.stack(
            [
                images.resize_to_model(images.read_rgb(path, min_side=1), size)
                for path in found[start : start + 16]
            ]
        )


@torch.inference_mode()
def serving_graph(
    model: SwinHierarchical, batches: Iterator[tuple[np.ndarray, np.ndarray]]
) -> ServingGraph:
    """Put scores fitted on these pictures behind the model; temperatures are 1."""
    parts = [
        (*extract_features(model, torch.from_numpy(pictures))[1:], torch.from_numpy(class_idx))
        for pictures, class_idx in batches
    ]
    features, layers, class_idx = (torch.cat(column) for column in zip(*parts, strict=True))
    spaces = [FeatureSpace(values, class_idx, model.class_species) for values in (features, layers)]
    return ServingGraph(model, *spaces, 1.0, 1.0).eval()


def openvino_run(path: Path, threads: int) -> Run | None:
    """The same file in OpenVINO, where it is installed."""
    try:
        import openvino
    except ImportError:
        return None
    compiled = openvino.Core().compile_model(
        str(path),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = compiled.create_infer_request()

    def run(pictures: np.ndarray) -> list[np.ndarray]:
        found = request.infer({0: np.ascontiguousarray(pictures)})
        return [found[output].copy() for output in compiled.outputs]

    return run


def write_all(fp32: Path, calibration: list[np.ndarray]) -> dict[str, Path]:
    """Write FP16 and every way to INT8 with all its layers; {name: file}."""
    model, files = quantize.load_fused(fp32), {"FP32": fp32}
    layers = quantize.layers(model, quantize.static_kinds(model))
    made = {
        "INT8 static": quantize.static(model, layers, quantize.calibrate(model, calibration)),
        "INT8 weights": quantize.weights(onnx.load(fp32)),
        "FP16": fp16.to_fp16(onnx.load(fp32), calibration[:2]),
    }
    for name, one in made.items():
        files[name] = fp32.with_name(name.replace(" ", "_") + ".onnx")
        onnx.save(quantize.shrink_masks(one) if "INT8" in name else one, files[name])
    return files


def heads_mb(path: Path) -> float:
    """Megabytes of heads and scores, which stay float in every file."""
    model = onnx.load(path)
    return sum(
        4e-6 * np.prod(t.dims)
        for t in model.graph.initializer
        if quantize.is_kept_float(model, t.name)
    )


def speed_table(
    files: dict[str, Path], graph: ServingGraph, picture: np.ndarray, rounds: int
) -> str:
    """Time all contestants at 1 and 2 threads; all at one number of threads take turns."""

    @torch.inference_mode()
    def eager(pictures: np.ndarray) -> list[np.ndarray]:
        return [t.numpy() for t in graph(torch.from_numpy(pictures))]

    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        runs: dict[str, Run] = {
            name: session_run(path, threads) for name, path in files.items() if name != "FP16"
        }
        runs["PyTorch eager"] = eager
        for name in ("FP32", "INT8 static"):
            if run := openvino_run(files[name], threads):
                runs[f"OpenVINO, {name}"] = run
        times = measure_times(runs, picture, rounds)
        own = {
            name: run for name, run in runs.items() if "OpenVINO" not in name
        }  # that one works in threads of its own
        work = measure_times(own, picture, max(3, rounds // 3), time.thread_time)
        base = float(np.median(times["FP32"]))
        for name, values in times.items():
            path = files.get(name)
            rows.append(
                (
                    threads,
                    name,
                    f"{np.median(values):.1f}",
                    f"{np.quantile(values, 0.9):.1f}",
                    f"{np.median(values) / base:.2f}",
                    f"{np.median(work[name]) / np.median(work['FP32']):.2f}"
                    if threads == 1 and name in work
                    else "-",
                    f"{path.stat().st_size / 1e6:.1f}" if path else "-",
                    f"{path.stat().st_size / 1e6 - heads_mb(files['FP32']):.1f}" if path else "-",
                )
            )
    return table(
        rows,
        (
            "threads",
            "contestant",
            "p50 ms",
            "p90 ms",
            "p50 / FP32",
            "processor time / FP32",
            "MB",
            "MB beside heads and scores",
        ),
    )


def likeness_table(files: dict[str, Path], pictures: np.ndarray) -> str:
    """How far each file's answers are from FP32's, and from its own in another batch."""
    want, rows = session_run(files["FP32"])(pictures), []
    for name, path in files.items():
        run = session_run(path)
        got = run(pictures)
        r = np.corrcoef(*(np.log(np.maximum(p[0], 1e-9)).ravel() for p in (got, want)))[0, 1]
        rows.append(
            (
                name,
                f"{np.abs(got[0] - want[0]).max():.1e}",
                f"{r:.4f}",
                f"{(got[0].argmax(1) == want[0].argmax(1)).mean():.3f}",
                f"{check_batches(run, pictures[:8]):.1e}",
            )
        )
    return table(
        rows,
        (
            "file",
            "largest change of a probability",
            "r of log-probabilities",
            "same top-1",
            "batch of 8 against 8 of 1",
        ),
    )


def gate_lines(
    fp32: Path,
    folder: Path,
    data: Organized,
    size: int,
    calibration: list[np.ndarray],
    at_most: int,
) -> list[str]:
    """Search INT8 on val as 03 does, and lay out the gate on val and test."""
    counts = np.bincount(data.splits["train"].class_idx, minlength=data.tree.num_classes)
    splits = {
        name: list(
            pictures_of(
                data.splits[name],
                size,
                np.linspace(
                    0, len(data.splits[name]) - 1, min(at_most, len(data.splits[name]))
                ).astype(int),
            )
        )
        for name in ("val", "test")
    }
    strange = {name: list(not_plants_of(data, name, size)) for name in splits}

    def side(run: Run, name: str) -> Side:
        found = run_over(run, splits[name], data.tree)
        scores = [run(pictures)[1][:, SCORE] for pictures in strange[name]]
        return Side.of(found, found.ood[:, SCORE], np.concatenate(scores) if scores else None)

    base = {name: side(session_run(fp32), name) for name in splits}

    def judge(way: str, run: Run, speed: Speed) -> GateResult:
        return judge_gate(way, base["val"], side(run, "val"), data.tree, counts, speed=speed)

    begin, target = time.process_time(), folder / "model.int8.onnx"
    tried = int8.search_int8(fp32, target, calibration, splits["val"][0][0][:8], judge)
    spent, kept = time.process_time() - begin, int8.kept(tried)
    results = [attempt.gate for attempt in tried if attempt.gate]
    if kept:
        results.append(
            judge_gate(
                kept.way,
                base["test"],
                side(session_run(target), "test"),
                data.tree,
                counts,
                split="test",
            )
        )
    lines = [
        f"searched with {spent:.0f} s of processor time; kept: {kept.way if kept else 'none'}",
        "",
    ]
    lines += [
        f"`{attempt.way}`: back to float: {', '.join(attempt.kept_float)}"
        for attempt in tried
        if attempt.kept_float
    ]
    return lines + report_lines(results, [attempt.to_dict() for attempt in tried])


def main(argv: list[str] | None = None) -> int:
    """Print the tables; see the module's docstring."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument(
        "--checkpoint", type=Path, help="a trained model (default: --backbone with random weights)"
    )
    flags.add_argument(
        "--data",
        type=Path,
        help="folder written by 01_reorganize.py; without it only speed is measured",
    )
    flags.add_argument("--backbone", default="swin_tiny_patch4_window7_224")
    flags.add_argument("--image-size", type=int, default=224)
    flags.add_argument("--rounds", type=int, default=30)
    flags.add_argument("--at-most", type=int, default=2000, help="pictures of val and of test")
    args: Any = flags.parse_args(argv)
    torch.manual_seed(0)
    data = load_organized(args.data) if args.data else None
    tree = (
        data.tree if data else ClassTree(tuple("abcdef"), tuple(("x", "y", "z") for _ in range(6)))
    )
    model = (
        checkpoint.build_model(checkpoint.load(args.checkpoint))
        if args.checkpoint
        else SwinHierarchical(args.backbone, tree, image_size=args.image_size)
    ).eval()
    size = model.settings["image_size"]
    if data:
        train = data.splits["train"]
        batches = list(pictures_of(train, size, balanced(train.class_idx, 4 * CALIBRATION), 8))
    else:
        rng = np.random.default_rng(0)
        coarse = (
            rng.integers(0, 256, (32, 8, 8, 3))
            .repeat(-(-size // 8), axis=1)
            .repeat(-(-size // 8), axis=2)[:, :size, :size]
        )
        batches = [
            (coarse[i : i + 8].astype(np.uint8), rng.integers(0, model.tree.num_classes, 8))
            for i in range(0, 32, 8)
        ]
    calibration = [pictures for pictures, _ in batches][:: max(1, len(batches) * 8 // CALIBRATION)]
    with tempfile.TemporaryDirectory() as folder:
        graph, fp32 = serving_graph(model, iter(batches)), Path(folder) / "model.onnx"
        export_onnx(graph, str(fp32), size)
        files = write_all(fp32, calibration)
        say(
            f"{model.settings['backbone']}, {size} px; "
            f"{platform.processor() or platform.machine()}; "
            f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}",
            "",
            speed_table(files, graph, calibration[0][0], args.rounds),
            "",
            likeness_table(files, np.concatenate([pictures for pictures, _ in batches[:4]])),
            "",
        )
        if data:
            say(*gate_lines(fp32, Path(folder), data, size, calibration, args.at_most))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
