"""What a run writes while it goes: memory, and event files for TensorBoard."""

import sys
from types import SimpleNamespace

import pytest

from common.train.live_logs import LiveLog, MemoryLog, memory_now

# region memory


def test_memory_of_the_process_and_the_gpu(monkeypatch):
    assert memory_now()["ram_mb"] > 5
    figures = {
        "is_available": True,
        "is_initialized": True,
        "memory_allocated": 3 << 20,
        "memory_reserved": 5 << 20,
    }
    cuda = SimpleNamespace(**{name: lambda value=value: value for name, value in figures.items()})
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    now = memory_now()
    assert (now["gpu_allocated_mb"], now["gpu_reserved_mb"]) == (3, 5)


def test_the_memory_log_goes_on_after_a_kill(tmp_path):
    log = MemoryLog(tmp_path / "run")
    assert log.table() == ""
    log.note("start")
    log.note("epoch 1")
    with log.path.open("a") as file:
        file.write("epoch 2,1")  # cut short
    with log.path.open("a") as file:
        file.write("\n")
    again = MemoryLog(tmp_path / "run")
    again.note("start again")
    lines = again.table().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["start", "epoch 1", "start again"]
    assert "GPU" not in again.table() or memory_now()["gpu_reserved_mb"] is not None
    for epoch in range(30):
        again.note(f"epoch {epoch}")
    shown = again.table(most=6).splitlines()
    assert len(shown) == 2 + 7
    assert "..." in shown[5]
    assert "epoch 29" in shown[-1]
    MemoryLog(tmp_path / "run", fresh=True).note("anew")
    assert len(MemoryLog(tmp_path / "run").table().splitlines()) == 3


# endregion

# region live logs


class Writer:
    """Stands for TensorBoard's writer."""

    made: list["Writer"] = []

    def __init__(self, folder: str, purge_step: int | None = None) -> None:
        self.folder, self.purge_step, self.seen, self.closed = folder, purge_step, {}, False
        Writer.made.append(self)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        if tag == "other/broken":
            raise OSError("the disk is full")
        self.seen[tag, step] = value

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def tensorboard(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer)
    )
    Writer.made = []
    return Writer.made


def test_without_tensorboard_there_is_silence(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", None
    )  # as Python marks a module that cannot be imported
    log = LiveLog(tmp_path)
    log.write({"train_loss": 1.0}, 1)
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_rows_become_scalars(tmp_path, tensorboard):
    log = LiveLog(tmp_path)
    log.write(
        {
            "epoch": 2,
            "phase": "A1",
            "train_loss": 0.5,
            "species_nll": 0.4,
            "tail_f1": None,
            "macro_f1": float("nan"),
            "lr": 1e-3,
            "species_top1": 0.9,
            "wait_share": 0.1,
            "gpu_peak_mb": 7,
            "best": True,
        },
        2,
    )
    assert tensorboard[0].seen == {
        ("loss/train_loss", 2): 0.5,
        ("loss/species_nll", 2): 0.4,
        ("rate/lr", 2): 1e-3,
        ("accuracy/species_top1", 2): 0.9,
        ("machine/wait_share", 2): 0.1,
        ("machine/gpu_peak_mb", 2): 7,
    }
    log.close()
    log.close()
    log.write({"train_loss": 1.0}, 3)
    assert tensorboard[0].closed
    assert ("loss/train_loss", 3) not in tensorboard[0].seen


def test_a_run_anew_forgets_the_events_and_one_that_goes_on_hides_the_lost(tmp_path, tensorboard):
    old, mine = (
        tmp_path / "tensorboard" / "events.out.tfevents.1.host",
        tmp_path / "tensorboard" / "notes.txt",
    )
    old.parent.mkdir()
    old.write_text("")
    mine.write_text("")
    LiveLog(tmp_path, first_epoch=3)
    assert old.exists()
    assert tensorboard[-1].purge_step == 4
    LiveLog(tmp_path)
    assert not old.exists()
    assert mine.exists()
    assert tensorboard[-1].purge_step is None


def test_a_live_log_that_fails_does_not_stop_the_run(tmp_path, tensorboard, capfd):
    log = LiveLog(tmp_path)
    log.write({"broken": 1.0}, 1)
    log.write({"train_loss": 1.0}, 2)
    told = capfd.readouterr().err
    assert told.count("given up") == 1
    assert "disk is full" in told
    assert tensorboard[0].closed


# endregion
