"""Which of ONNX Runtime's providers runs the model: the best that is installed and loads, or the one that a person names. No torch."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from common.bundle import BundleError, Predictor, read_bundle
from common.console import warn

PROVIDERS = {"cuda": "CUDAExecutionProvider", "migraphx": "MIGraphXExecutionProvider", "rocm": "ROCMExecutionProvider",
             "openvino": "OpenVINOExecutionProvider", "coreml": "CoreMLExecutionProvider", "cpu": "CPUExecutionProvider"}  # best first
GPUS = ("cuda", "migraphx", "rocm")  # where batches pay, and FP16


def installed() -> list[str]:
    """The short names of the providers that this ONNX Runtime was built with, best first."""
    found = onnxruntime.get_available_providers()
    return [name for name, full in PROVIDERS.items() if full in found]


def open_predictor(folder: Path | str, model: str | None, provider: str, threads: int = 1) -> tuple[Predictor, str]:
    """Load a model of an exports folder on a provider.

    Args:
        folder: the exports folder.
        model: a file of it; None takes the FP16 or FP32 file on a GPU, where the bundle has it, and elsewhere the bundle's default.
        provider: a key of `PROVIDERS`, or `auto`: the best that is installed and loads; those that do not are told of.
        threads: of one run.

    Returns:
        the predictor and the provider's short name.

    Raises:
        BundleError: as `Predictor`, and where the provider named is not installed or does not load.
    """
    here = installed()
    if provider != "auto" and provider not in here:
        raise BundleError(f"the provider '{provider}' is not in this ONNX Runtime. It has: {', '.join(here)}. Others come with packages of "
                          "their own, such as onnxruntime-gpu for cuda.")
    for name in here if provider == "auto" else [provider]:
        if name == "cpu":
            return Predictor(folder, model, threads), name
        try:
            predictor = Predictor(folder, model or _on(name, folder), threads, [PROVIDERS[name], PROVIDERS["cpu"]])
            if (active := predictor.session.get_providers()[0]) != PROVIDERS[name]:
                raise BundleError(f"ONNX Runtime took {active} in its place; its libraries or the device are missing")
            return predictor, name
        except Exception as error:  # a driver may fail in any way, at loading or at the first run
            if provider != "auto":
                raise BundleError(f"the provider '{name}' does not work here: {str(error)[:300]}") from None
            warn(f"the provider '{name}' is installed but does not work here, so another is used: {str(error)[:200]}")
    raise BundleError(f"none of the providers {', '.join(here)} works")


def _on(provider: str, folder: Path | str) -> str | None:
    if provider not in GPUS:
        return None
    models = read_bundle(folder).models
    return next((file for wanted in ("fp16", "fp32") for file, card in models.items() if card.precision == wanted), None)
