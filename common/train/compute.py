"""Where a run computes: device and precision, and the processes that torchrun started.

Several processes are one run: each takes its share of a batch, gradients are summed and outcomes
gathered.
"""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.console import fail

BUCKET = 16 * 2**20  # numbers summed at once: few calls, and no second copy of a large model

# region device and precision


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


# endregion

# region processes


@dataclass(frozen=True)
class World:
    """The processes of a run, which all hold the same model and take the same steps, each on its
    share of a batch.

    Gradients are summed once per step, after accumulation, so that nothing but this class knows of
    the others.

    Attributes:
        rank: this process, 0 first; it alone writes and prints.
        size: how many there are; 1: every method is without effect.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's rows of `count`, as equal as can be, in order of rank."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by the sum over all processes; one that is missing here counts as
        0.
        """
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        waiting: list[Tensor] = []
        for parameter in parameters:
            waiting.append(parameter.grad)
            if sum(g.numel() for g in waiting) >= BUCKET or parameter is parameters[-1]:
                flat = torch.cat([g.reshape(-1) for g in waiting])
                dist.all_reduce(flat)
                for gradient, summed in zip(
                    waiting, flat.split([g.numel() for g in waiting]), strict=True
                ):
                    gradient.copy_(summed.view_as(gradient))
                waiting = []

    def total(self, value: Tensor) -> Tensor:
        """Sum of a tensor over all processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process; all must ask at the same point."""
        return bool(self.total(torch.tensor(float(flag), device=device))) if self.size > 1 else flag

    def average_buffers(self, model: nn.Module) -> None:
        """Average floating-point buffers, such as the statistics of batch norms, which each process
        gathers on its share.
        """
        if self.size > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.size

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order of rank, in every process."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()


SINGLE_PROCESS = World()


def join(device: torch.device) -> World:
    """Join the other processes where torchrun started several: NCCL (RCCL) on GPUs, gloo on CPUs.

    Raises:
        SystemExit: where there are fewer GPUs than processes on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE_PROCESS
    if device.type == "cuda":
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            fail(
                f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes here, but there are "
                f"{torch.cuda.device_count()} GPUs."
            )
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # evaluation and saving may keep the others waiting for longer than the half hour that is
        # usual
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(hours=4)
        )
    return World(dist.get_rank(), dist.get_world_size())


def shut_down() -> None:
    """Leave the other processes at the end of a run."""
    if dist.is_initialized():
        dist.destroy_process_group()


# endregion
