"""What a run writes while it goes: event files for TensorBoard where it is installed, and the
memory that was in use.
"""

import contextlib
import csv
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.console import table, warn

# region TensorBoard

EVENTS = "tensorboard"  # folder of the event files within a run's folder
_PANELS = {
    "loss": ("loss", "_nll"),
    "accuracy": ("top1", "top3"),
    "f1": ("f1",),
    "rate": ("lr",),
    "machine": ("seconds", "per_second", "share", "_mb"),
}


class LiveLog:
    """Event files of a run, a row per epoch; does nothing where TensorBoard cannot be used."""

    def __init__(self, folder: Path, first_epoch: int = 0) -> None:
        """Open the event file in `folder`/tensorboard.

        Args:
            folder: of the run.
            first_epoch: epochs done before. Rows that an interrupted process wrote after them are
                hidden by TensorBoard; at 0 the event files of the run before are deleted.
        """
        self.writer: Any = None
        try:
            # fails where the package `tensorboard` is missing or does not fit: an incompatible
            # protobuf raises TypeError, a removed module AttributeError
            from torch.utils.tensorboard import SummaryWriter
        except Exception:
            return
        events = folder / EVENTS
        try:
            for old in events.glob("events.out.tfevents.*") if first_epoch == 0 else ():
                old.unlink()
            hidden_from = first_epoch + 1 if first_epoch else None
            self.writer = SummaryWriter(str(events), purge_step=hidden_from)
        except Exception as error:
            warn(f"there are no TensorBoard event files in {events}: {_words(error)}.")

    def write(self, row: Mapping[str, Any], epoch: int) -> None:
        """Write the finite numbers of a row under `panel/name` at this epoch; text, None and NaN
        are passed over.
        """
        numbers = {k: v for k, v in row.items() if type(v) in (int, float) and math.isfinite(v)}
        try:
            for key in numbers.keys() - {"epoch"} if self.writer else ():
                panels = (name for name, ends in _PANELS.items() if key.endswith(ends))
                self.writer.add_scalar(f"{next(panels, 'other')}/{key}", numbers[key], epoch)
            if self.writer:
                self.writer.flush()
        except Exception as error:  # a full disk or a broken package is no reason to stop a run
            warn(f"TensorBoard's event files are given up, the run goes on: {_words(error)}.")
            self.close()

    def close(self) -> None:
        """Close the event file; may be called again."""
        writer, self.writer = self.writer, None
        with contextlib.suppress(Exception):  # as above
            if writer is not None:
                writer.close()


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


# endregion

# region memory

_COLUMNS = ("ram_mb", "gpu_allocated_mb", "gpu_reserved_mb")
_TITLES = ("stage", "RAM", "GPU allocated", "GPU reserved")


def memory_now() -> dict[str, int | None]:
    """Memory of this process, MB (2^20 bytes): resident, and allocated and reserved on its GPU.

    None where the system does not tell, or where CUDA is not in use (torch is asked only where it
    is loaded).
    """
    row: dict[str, int | None] = dict.fromkeys(_COLUMNS)
    with contextlib.suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        row["ram_mb"] = int(status.split("VmRSS:")[1].split()[0]) // 1024
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_available() and cuda.is_initialized():
        row["gpu_allocated_mb"] = round(cuda.memory_allocated() / 2**20)
        row["gpu_reserved_mb"] = round(cuda.memory_reserved() / 2**20)
    return row


class MemoryLog:
    """Memory at each stage of a run, a row at a time in `memory.csv`, so that a killed run leaves
    what it knew.

    A run that goes on adds its rows below those of the process before.
    """

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        """Begin, or go on with the file of an earlier process; `fresh` forgets it at the first
        row.
        """
        self.path, self.fresh = folder / "memory.csv", fresh

    def note(self, stage: str) -> dict[str, int | None]:
        """Measure now and add a row under a name ("start", "data loaded", "epoch 3"). Returns the
        figures of `memory_now`.
        """
        row = memory_now()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begin = self.fresh or not self.path.is_file()
        self.fresh = False
        with self.path.open("w" if begin else "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if begin:
                writer.writerow(("stage", *_COLUMNS))
            writer.writerow((stage, *("" if row[name] is None else row[name] for name in _COLUMNS)))
        return row

    def table(self, most: int = 12) -> str:
        """Lay the rows out, the first and last of them where there are more than `most`; "" where
        nothing was measured.

        Columns that hold nothing (GPU figures on a CPU) are left out.
        """
        if not self.path.is_file():
            return ""
        with self.path.open(newline="", encoding="utf-8") as file:
            _, *rows = csv.reader(file)
        rows = [row for row in rows if len(row) == len(_TITLES)]  # a kill can cut one short
        kept = [i for i in range(1, len(_TITLES)) if any(row[i] for row in rows)]
        if len(rows) > most:
            rows[most // 2 : -(most - most // 2)] = [["...", *[""] * len(_COLUMNS)]]
        cells = [[row[0], *(f"{int(row[i]):,} MB" if row[i] else "" for i in kept)] for row in rows]
        return table(cells, [_TITLES[i] for i in (0, *kept)]) if rows else ""


# endregion
