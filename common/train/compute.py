"""Where a run computes: device and precision, copies to and from the device, and the processes that
torchrun started.

Several processes are one run: each takes its share of a batch, gradients are summed and outcomes
gathered.
"""

import contextlib
import datetime
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.console import fail
from common.files import cores

BUCKET = 6 * 2**20  # numbers summed at once, 25 MB: few calls, and the first one begins early

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

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA or ROCm GPU, which copies while it computes."""
        return self.device.type == "cuda"

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast context of the backbone; heads and losses are float32 always."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def upload(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the device, beside what a GPU still computes; nobody waits for it."""
        if not self.on_gpu:
            return tensor.to(self.device)
        copying, computing = _copy_stream(self.device), torch.cuda.current_stream(self.device)
        with torch.cuda.stream(copying):
            copy = tensor.pin_memory().to(self.device, non_blocking=True)
        computing.wait_stream(copying)
        copy.record_stream(computing)  # its memory is not reused before that is done
        return copy

    def download(self, *tensors: Tensor) -> Callable[[], list[np.ndarray]]:
        """Begin to copy tensors to the host.

        Returns:
            a function that waits for the copies and returns them.
        """
        copies = [tensor.to("cpu", non_blocking=self.on_gpu) for tensor in tensors]
        done = torch.cuda.current_stream(self.device).record_event() if self.on_gpu else None

        def wait() -> list[np.ndarray]:
            if done is not None:
                done.synchronize()
            return [copy.numpy() for copy in copies]

        return wait

    def empty_cache(self) -> None:
        """Give memory that nothing uses back to the device."""
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).empty_cache()

    def scaler(self) -> torch.amp.GradScaler:
        """Return the gradient scaler: at work for fp16, passing through otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        names = {"cuda": torch.cuda.get_device_name, "mps": lambda _: "Apple GPU"}
        name = names.get(self.device.type, lambda _: "CPU")(self.device)
        return f"{self.device} ({name}), {str(self.dtype).removeprefix('torch.')}"


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device's memory is full: torch has a class of its own for it
    on GPUs, and messages elsewhere.
    """
    told = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in told or "MPS backend out of memory" in told)
    )


def choose_compute(
    device: str = "auto", precision: str = "auto", slow_in_bf16: bool = False
) -> Compute:
    """Choose device and precision: bf16 where the hardware has it, fp16 elsewhere on a CUDA or ROCm
    GPU, fp32 elsewhere.

    Args:
        device: what torch.device takes, or `auto`: a CUDA or ROCm GPU, else Apple's, else the CPU.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
        slow_in_bf16: whether a CPU would rather train the network in fp32.

    Raises:
        SystemExit: for a device that is not there, or a precision that it lacks.
    """
    has_mps = torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        fail(
            f"--device {device} is unknown. Use auto, cpu, cuda, cuda:1 (ROCm is called cuda too) "
            f"or mps."
        )
    if place.type == "cuda" and place.index is not None and torch.cuda.is_available():
        if place.index >= torch.cuda.device_count():
            fail(
                f"--device {device}: torch sees {torch.cuda.device_count()} GPUs here, and cuda:0 "
                f"is the first. (torchrun starts --nproc_per_node processes, one for each.)"
            )
        torch.cuda.set_device(place)  # or pinned memory would be registered with the first
    if place.type == "mps" and not has_mps:
        fail("--device mps, but torch sees no Apple GPU here. --device cpu runs without.")
    if place.type == "cuda" and not torch.cuda.is_available():
        fail(
            "--device cuda, but torch sees no GPU: the driver is missing, or this torch was built "
            "for another one. "
            "README, Troubleshooting, says how to check; --device cpu runs without."
        )
    if place.type == "cpu":  # torch counts the processors of the machine, not of a container
        torch.set_num_threads(min(torch.get_num_threads(), cores()))
    if precision == "auto":
        if place.type == "cuda":
            precision = (
                "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            )
        else:
            fast = place.type == "cpu" and _cpu_has_bf16() and not slow_in_bf16
            precision = "bf16" if fast else "fp32"
    if precision == "fp16" and place.type != "cuda":
        fail("--precision fp16 needs a CUDA or ROCm GPU. Use fp32, or bf16 on a CPU.")
    if precision == "bf16" and place.type == "mps":
        fail("--precision bf16 is not tried on Apple's GPUs. Use fp32.")
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

    def total(self, value: Tensor) -> Tensor:
        """Sum of a tensor over all processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all must ask at the same point. No GPU is waited
        for.
        """
        return bool(self.total(torch.tensor(float(flag)))) if self.size > 1 else flag

    def average_buffers(self, *models: nn.Module) -> None:
        """Average floating-point buffers, such as the statistics of batch norms, which each process
        gathers on its share.
        """
        for buffer in (b for model in models for b in model.buffers() if self.size > 1):
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


class GradientSum:
    """Sums gradients over all processes while the backward pass goes on.

    Parameters stand in buckets, the last first, as the backward pass reaches them. A bucket whose
    gradients are all there is sent while those below it are still computed. All processes send the
    same buckets in the same order, also one that ran out of memory: `finish` sends what is missing
    as zeros. Torch's DistributedDataParallel would wait for that process forever.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], world: World) -> None:
        self.buckets: list[list[nn.Parameter]] = []
        self.armed = False
        filled = BUCKET
        for parameter in reversed(parameters if world.size > 1 else ()):
            if filled >= BUCKET:
                self.buckets.append([])
                filled = 0
            self.buckets[-1].append(parameter)
            filled += parameter.numel()
        # made now, and the processes connected, as `finish` must work where memory has run out
        self.flat = [torch.cat([p.detach().reshape(-1) for p in b]) for b in self.buckets]
        for flat in self.flat:
            dist.all_reduce(flat)
        self.sent: list[dist.Work] = []
        self.missing = [len(bucket) for bucket in self.buckets]
        self.hooks = [
            p.register_post_accumulate_grad_hook(functools.partial(self._ready, i))
            for i, bucket in enumerate(self.buckets)
            for p in bucket
        ]

    def _ready(self, bucket: int, _: Tensor) -> None:
        if self.armed:
            self.missing[bucket] -= 1
            while len(self.sent) < len(self.buckets) and not self.missing[len(self.sent)]:
                self._send()

    @torch.no_grad()
    def _send(self) -> None:
        i = len(self.sent)
        for parameter, part in self._parts(i):
            part.zero_() if parameter.grad is None else part.copy_(parameter.grad)
        self.sent.append(dist.all_reduce(self.flat[i], async_op=True))

    def _parts(self, bucket: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter of a bucket, and its place in what is sent."""
        parameters = self.buckets[bucket]
        parts = self.flat[bucket].split([p.numel() for p in parameters])
        return ((p, part.view_as(p)) for p, part in zip(parameters, parts, strict=True))

    @torch.no_grad()
    def finish(self, keep: bool = True) -> None:
        """Wait for the sums and make them the gradients (keep); one that is missing here counts as
        0.
        """
        while len(self.sent) < len(self.buckets):
            self._send()
        for i, sent in enumerate(self.sent):
            sent.wait()
            for parameter, part in self._parts(i) if keep else ():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.copy_(part)
        self.sent, self.armed = [], False
        self.missing = [len(bucket) for bucket in self.buckets]

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self.hooks:
            hook.remove()


def join(device: torch.device) -> World:
    """Join the other processes where torchrun started several: NCCL (RCCL) between GPUs, gloo
    between CPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE_PROCESS
    if not dist.is_initialized():
        # evaluation and saving may keep the others waiting for longer than the half hour that is
        # usual
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=datetime.timedelta(hours=4),
        )
    return World(dist.get_rank(), dist.get_world_size())


def shut_down() -> None:
    """Leave the other processes at the end of a run."""
    if dist.is_initialized():
        dist.destroy_process_group()


# endregion
