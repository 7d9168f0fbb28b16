"""Several processes as one run: torchrun's environment, shares of a batch, summed gradients,
gathered outcomes.
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


def local_device() -> str:
    """The GPU that torchrun's LOCAL_RANK names, as `--device auto` takes it: `cuda:1`."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


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
