"""Which of ONNX Runtime's providers runs the model: the best that is installed and loads, or the
one that a person names.
"""

from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from common.console import warn
from common.serve.batcher import Batcher
from common.serve.predictor import SIZES, BundleError, Predictor, read_bundle

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}  # the best first
GPUS = ("cuda", "migraphx", "rocm")  # batches and FP16 are faster there
# By default the CUDA provider tries all of cuDNN's ways at every new size of batch: 10 s for 16
# sizes, where the heuristic takes 31 ms and runs as fast.
OPTIONS = {"cuda": {"cudnn_conv_algo_search": "HEURISTIC"}}
# the sizes of batches, where not all of `SIZES`: these compile the model for each, which takes long
BATCHES = {"migraphx": (1, 32), "rocm": (1, 32)}
# greatest mean total variation distance between a provider's answers and the CPU's
APART = 0.02


def installed() -> list[str]:
    """The short names of the providers that this ONNX Runtime was built with, best first."""
    found = onnxruntime.get_available_providers()
    return [name for name, full in PROVIDERS.items() if full in found]


def open_predictor(
    folder: Path | str, model: str | None, provider: str, threads: int = 1
) -> tuple[Predictor, str]:
    """Load a model of an exports folder on a provider.

    Args:
        folder: the exports folder.
        model: a file of it; None takes the FP16 or FP32 file on a GPU, the bundle's default on the
            CPU, and elsewhere the default or, where the provider does not run that rightly, the
            FP32 file.
        provider: a key of `PROVIDERS`, or `auto`: the best that is installed and loads; those that
            do not are told of.
        threads: of one run.

    Returns:
        the predictor and the provider's short name.

    Raises:
        BundleError: as `Predictor`, and where the provider named is not installed, does not load,
            or answers otherwise than the CPU does.
    """
    here = installed()
    if provider != "auto" and provider not in here:
        raise BundleError(
            f"the provider '{provider}' is not in this ONNX Runtime. It has: {', '.join(here)}. "
            f"Others come with packages of "
            "their own, such as onnxruntime-gpu for cuda."
        )
    for name in here if provider == "auto" else [provider]:
        if name == "cpu":
            return Predictor(folder, model, threads), name
        for file in [model] if model else _files(name, folder):
            try:
                return _open(folder, file, name, threads), name
            except Exception as error:  # a driver may fail in any way, when loading or running
                why = f"{file or 'the model'}: {str(error)[:300]}"
                if provider == "auto" or not model:
                    warn(f"the provider '{name}' is installed but does not work here with {why}")
        if provider != "auto":
            raise BundleError(f"the provider '{name}' does not work here: {why}")
    raise BundleError(f"none of the providers {', '.join(here)} works")


def _open(folder: Path | str, model: str | None, provider: str, threads: int) -> Predictor:
    """Load a model on a provider, hold its answers against those on the CPU, and warm its batches
    up. Raises BundleError where they differ, or the provider leaves the model to the CPU.
    """
    if provider == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # of the pip packages; without, it runs on the CPU in silence
    predictor = Predictor(
        folder, model, threads, [PROVIDERS[provider], PROVIDERS["cpu"]], OPTIONS.get(provider)
    )
    if (active := predictor.session.get_providers()[0]) != PROVIDERS[provider]:
        raise BundleError(
            f"ONNX Runtime took {active} in its place; its libraries or the device are missing"
        )
    on_cpu, nodes = nodes_on_cpu(predictor.session)
    if on_cpu:
        warn(f"{on_cpu} of the model's {nodes} nodes run on the CPU, not on {provider}")
    if 0 < nodes == on_cpu:
        raise BundleError("it leaves the whole model to the CPU")
    size = predictor.bundle.size
    coarse = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    pictures = np.stack(
        [cv2.resize(picture, (size, size), interpolation=cv2.INTER_CUBIC) for picture in coarse]
    )
    found, known = (
        one.run(pictures).probabilities for one in (predictor, Predictor(folder, model, threads))
    )
    if (apart := float(np.abs(found - known).sum(axis=1).mean()) / 2) > APART:
        raise BundleError(
            f"it answers otherwise than the CPU does: probabilities are {apart:.3f} apart, more "
            f"than {APART}"
        )
    if provider in GPUS:
        predictor.submit = Batcher(predictor.run, size, BATCHES.get(provider, SIZES)).submit
    return predictor


def nodes_on_cpu(session: onnxruntime.InferenceSession) -> tuple[int, int]:
    """How many nodes of a session's graph its first provider leaves to the CPU, and of how many;
    (0, 0) where ONNX Runtime is older than 1.24 and does not tell.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return 0, 0
    parts = [
        (part.ep_name, len(part.get_nodes()))
        for part in session.get_provider_graph_assignment_info()
    ]
    return sum(n for name, n in parts if name == PROVIDERS["cpu"]), sum(n for _, n in parts)


def _files(provider: str, folder: Path | str) -> list[str]:
    """Files of a bundle to try on a provider, the fastest first: some providers read INT8 files in
    a way of their own.
    """
    bundle = read_bundle(folder)
    first = (
        ["fp16", "fp32"]
        if provider in GPUS
        else [bundle.models[bundle.default_model].precision, "fp32"]
    )
    return list(
        dict.fromkeys(
            file
            for wanted in first
            for file, card in bundle.models.items()
            if card.precision == wanted
        )
    )
