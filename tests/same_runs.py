"""Whether two runs left the same: every checkpoint, bit for bit."""

from pathlib import Path

import torch

FREE = {
    "seconds",
    "images_per_second",
    "wait_share",
    "command",
    "gpu_peak_mb",
}  # times and the command line may differ


def same(a: object, b: object, where: str = "") -> int:
    """Compare nested values, tensors bit for bit; returns how many tensors there are.
    AssertionError names what differs.
    """
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert set(a) - FREE == set(b) - FREE, where
        return sum(same(a[key], b[key], f"{where}/{key}") for key in a if key not in FREE)
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        return sum(same(x, y, f"{where}/{i}") for i, (x, y) in enumerate(zip(a, b, strict=True)))
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert a.shape == b.shape, where
        assert torch.equal(_bits(a), _bits(b)), where
        return 1
    assert a == b or (a != a and b != b), f"{where}: {a} and {b}"
    return 0


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return (
        tensor.contiguous().reshape(-1).view(torch.uint8)
    )  # so that 0 and -0 differ, and NaN equals itself


def same_run(one: Path, other: Path) -> tuple[int, int]:
    """Compare the checkpoints of two run folders: the same names, one of them last, one best or
    final; returns files and tensors.
    """
    names = sorted(p.name for p in one.glob("*.pt"))
    assert names == sorted(p.name for p in other.glob("*.pt")), (
        f"{other} holds other checkpoints than {names}"
    )
    assert "last.pt" in names, names
    assert any("best" in n or "final" in n for n in names), names
    return len(names), sum(
        same(*(torch.load(folder / name, weights_only=True) for folder in (one, other)), name)
        for name in names
    )
