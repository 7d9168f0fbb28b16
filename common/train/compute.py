"""Where and in which precision a run computes: device, autocast, gradient scaler."""

from dataclasses import dataclass

import torch

from common.console import fail


@dataclass(frozen=True)
class Compute:
    """Where and in which precision a run computes.

    Attributes:
        device: torch device; ROCm counts as cuda.
        dtype: of autocast; float32 means autocast is off.
    """

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the backbone; heads and losses are float32 always."""
        return torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        )

    def scaler(self) -> torch.amp.GradScaler:
        """Return the gradient scaler: at work for fp16, passing through otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{self.device} ({name}), {str(self.dtype).removeprefix('torch.')}"


def choose_compute(
    device: str = "auto", precision: str = "auto", slow_in_bf16: bool = False
) -> Compute:
    """Choose device and precision: bf16 where the hardware has it, fp16 elsewhere on a GPU, fp32
    elsewhere on a CPU.

    Args:
        device: `auto`, or what torch.device takes.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
        slow_in_bf16: whether a CPU would rather train the network in fp32.

    Raises:
        SystemExit: for a device that is not there, or fp16 on a CPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        fail(
            f"--device {device} is unknown. Use auto, cpu, cuda or cuda:1 (ROCm is called cuda "
            f"too)."
        )
    if place.type == "cuda" and not torch.cuda.is_available():
        fail(
            "--device cuda, but torch sees no GPU: the driver is missing, or this torch was built "
            "for another one. "
            "README, Troubleshooting, says how to check; --device cpu runs without."
        )
    if precision == "auto":
        if place.type == "cuda":
            precision = (
                "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            )
        else:
            precision = "bf16" if _cpu_has_bf16() and not slow_in_bf16 else "fp32"
    if precision == "fp16" and place.type != "cuda":
        fail("--precision fp16 needs a GPU. On a CPU use bf16 or fp32.")
    return Compute(
        place, {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    )


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; oneDNN would emulate it elsewhere, slower than
    float32.
    """
    checks = (
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(check() for check in checks if check)
