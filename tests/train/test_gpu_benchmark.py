"""tests/benchmarks/gpu.py: the whole of it at tiny size on the CPU, and what it tells where a
section fails.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from conftest import ROOT

GPU = ROOT / "tests" / "benchmarks" / "gpu.py"
# prints as timm's train.py does: mean in brackets, to stderr
TRAIN_PY = """
import argparse, sys
flags = argparse.ArgumentParser()
for name in "data-dir val-split model num-classes batch-size opt lr epochs warmup-epochs".split():
    flags.add_argument("--" + name, required=True)
for name in "cooldown-epochs log-interval workers device output".split():
    flags.add_argument("--" + name, required=True)
flags.add_argument("--input-size", nargs=3)
flags.parse_args()
for epoch, rate in ((0, 40.0), (1, 50.0)):
    for step in (0, 15):
        print(f"Train: {epoch} [{step:>4d}/16 ({6 * step:>3.0f}%)]  Loss:  2.08 (2.08)  "
              f"Time: 0.020s,  {3 * rate:>7.2f}/s  (0.020s,  {rate + step:>7.2f}/s)  "
              f"LR: 1.000e-04  Data: 0.001 (0.001)", file=sys.stderr)
"""


WORKER = """
import json, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    section = json.loads(line)["section"]
    print(json.dumps({"what": "speed", "figure": 7, "unit": "images/s"}), flush=True)
    if section == "step":
        time.sleep(60)
    if section == "train":
        sys.exit("the card fell off")
    print(json.dumps({"done": True}), flush=True)
"""


@pytest.fixture
def benchmarks(monkeypatch):
    """Import a module of tests/benchmarks by its name."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    return importlib.import_module


def measure(*flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, GPU, "--device", "cpu", "--tiny", *flags]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)


def test_the_whole_at_tiny_size(tmp_path, benchmarks):
    train_py, as_json, as_text = (tmp_path / n for n in ("train.py", "a/t.json", "a/t.md"))
    train_py.write_text(TRAIN_PY)
    done = measure("--timm", train_py, "--out", as_json, as_text)
    assert done.returncode == 0, done.stderr
    rows = json.loads(as_json.read_text())
    assert not [row["what"] for row in rows if "failed:" in row["what"] or "left" in row["what"]]
    took = {row["section"]: row["figure"] for row in rows if row["what"] == "took"}
    assert list(took) == list(benchmarks("gpu").SECTIONS), "every section, in order"
    assert as_text.read_text().count("\n") == len(rows) + 2
    found = {(row["section"], row["what"]): row for row in rows}
    assert all(row["figure"] is not None for row in rows)

    def rates(section: str) -> dict[str, float]:
        return {
            what: row["figure"]
            for (name, what), row in found.items()
            if name == section and row["unit"].endswith("/s")
        }

    least_rates = {"step": 3, "precisions": 2, "ladder": 6, "train": 1, "server": 6, "cached": 2}
    for section, least in least_rates.items():
        assert len(rates(section)) >= least, section
        assert min(rates(section).values()) > 1, section
    assert rates("timm")["train.py: epoch 1"] == 55
    assert rates("timm")["train.py: epoch 2"] == 65
    ours = next(row for row in rows if row["section"] == "timm" and row["ratio"])
    assert ours["ratio"] == pytest.approx(ours["figure"] / 65)
    waits = [row["figure"] for row in rows if "waiting for images" in row["what"]]
    assert len(waits) >= 2
    assert all(0 <= share <= 100 for share in waits)
    endings = [row["figure"] for row in rows if row["what"].endswith("last line to the end")]
    assert len(endings) >= 2
    assert all(0 < seconds < 30 for seconds in endings)
    limits = [row for row in rows if "binds" in row["what"]]
    raw, decoding = (
        next(figure for what, figure in rates("server").items() if what.startswith(start))
        for start in ("the model alone, cpu, batch 1, 2", "decoding alone")
    )
    assert limits[0]["ratio"] == pytest.approx(limits[0]["figure"] / min(raw, decoding))


def test_a_section_that_hangs_or_dies_is_told_and_the_rest_goes_on(
    tmp_path, benchmarks, monkeypatch
):
    gpu, worker, out = benchmarks("gpu"), tmp_path / "worker.py", tmp_path / "t.json"
    worker.write_text(WORKER)
    monkeypatch.setattr(gpu, "__file__", str(worker))
    monkeypatch.setattr(gpu, "GRACE", 0.2)
    seconds = {"step": 1.0, "train": 5.0, "export": 5.0, "latency": 5.0, "tests": 0.5}
    monkeypatch.setattr(gpu, "SECTIONS", seconds)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert gpu.main(["--only", "step", "train", "latency", "tests", "--out", str(out)]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    found = [(row["section"], row["what"]) for row in json.loads(out.read_text())]
    assert [pair for pair in found if pair[1] != "took"] == [
        ("step", "speed"),
        ("step", "stopped: took more than 1 s"),
        ("train", "speed"),
        ("train", "failed: its process ended (the card fell off)"),
        ("export", "speed"),  # writes what latency runs
        ("latency", "speed"),
        ("tests", "left out: the time is over"),
    ]


def test_a_part_that_ends_says_why(tmp_path, benchmarks):
    part = benchmarks("load").Part("--as", "raw", "--exports", str(tmp_path), "--provider", "cpu")
    with pytest.raises(RuntimeError, match="^raw ended with code 1: .*holds no bundle.json"):
        part.wait()


def test_a_server_is_known_before_it_answers(benchmarks, monkeypatch):
    load, pids = benchmarks("load"), []

    def stopped(seconds: float) -> None:  # as a section that takes too long
        raise SystemExit(143)

    monkeypatch.setattr(load.time, "sleep", stopped)
    with pytest.raises(SystemExit):
        load.start_server(["-c", "import time; time.sleep(60)"], load.free_port(), b"", pids.append)
    os.killpg(pids[0], signal.SIGKILL)  # it has a group of its own
    assert os.waitpid(pids[0], 0)[0] == pids[0]


def test_the_ladder_is_told_where_no_time_is_left_to_compile(tmp_path, benchmarks):
    training, bench, rows = benchmarks("gpu_training"), benchmarks("gpu_bench"), []
    deadline = time.monotonic()
    training.measure_ladder(
        bench.Bench("cpu", "bf16", bench.TINY, tmp_path, None, rows.append, deadline=deadline), 4
    )
    told = [row["what"].removeprefix("batch 4, ") for row in rows]
    assert told == [
        "fp32",
        "+ TF32",
        "+ bf16",
        "+ channels last",
        "+ fused optimizer",
        "+ compiled backbone: left out, no time",
    ]


def test_without_a_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, GPU], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "torch sees no GPU" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("tool", "printed", "busy"),
    [
        ("nvidia-smi", "87", 87.0),
        ("nvidia-smi", "[N/A]", None),
        ("rocm-smi", "GPU[0]          : GPU use (%): 12", 12.0),
        ("other", "87", None),
    ],
)
def test_how_busy_the_card_is(tool, printed, busy, tmp_path, benchmarks, monkeypatch):
    (tmp_path / tool).write_text(f"#!/bin/sh\necho '{printed}'\n")
    (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert benchmarks("gpu_scripts").gpu_busy(0) == busy


def test_calls_that_wait_for_the_gpu_are_counted(benchmarks, monkeypatch):
    training, step = benchmarks("gpu_training"), benchmarks("step")
    modes, real = [], training.train_epoch

    def waiting(*args):  # stands for a GPU on which two calls a step wait
        for found in real(*args):
            if modes[-1:] == ["warn"]:
                for _ in range(2):
                    warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
            yield found

    monkeypatch.setattr(training, "train_epoch", waiting)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    compute = training.Compute(torch.device("cpu"), torch.float32)
    model, _ = step.make_models("test_resnet", 32, compute.device)
    recipe = training.recipes.get("hierarchical")
    recipe = training.replace(recipe, image_size=32, batch_size=2)
    (phase,) = training.recipes.joint_phases(recipe)
    optimizer = training.make_optimizer(model, phase, recipe)
    scaler = compute.scaler()
    work = training.Work(model, optimizer, scaler, compute, phase, recipe, 2, 2)
    assert training.waits_of(work, steps=3) == 6
    assert modes == ["warn", "default"]
