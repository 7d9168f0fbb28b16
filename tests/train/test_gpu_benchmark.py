"""tests/benchmarks/gpu.py: the whole of it at tiny size on the CPU, and what it tells of failures."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "tests" / "benchmarks"))

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


def measure(*flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, GPU, "--device", "cpu", "--tiny", *flags]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)


def test_the_whole_at_tiny_size(tmp_path):
    train_py, as_json, as_text = (tmp_path / n for n in ("train.py", "a/t.json", "a/t.md"))
    train_py.write_text(TRAIN_PY)
    done = measure("--timm", train_py, "--out", as_json, as_text)
    assert done.returncode == 0, done.stderr
    rows = json.loads(as_json.read_text())
    assert not [row["what"] for row in rows if "failed:" in row["what"] or "left" in row["what"]]
    import gpu

    took = {row["section"]: row["figure"] for row in rows if row["what"] == "took"}
    assert list(took) == list(gpu.SECTIONS), "every section, in order"
    assert as_text.read_text().count("\n") == len(rows) + 2
    found = {(row["section"], row["what"]): row for row in rows}
    assert all(row["figure"] is not None for row in rows)

    def rates(section: str) -> dict[str, float]:
        return {
            what: row["figure"]
            for (name, what), row in found.items()
            if name == section and row["unit"].endswith("/s")
        }

    for section, least in (("step", 5), ("ladder", 6), ("train", 1), ("server", 6), ("cached", 2)):
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
    assert limits[-1]["ratio"] == pytest.approx(limits[-1]["figure"] / min(raw, decoding))


def test_a_section_that_takes_too_long_is_stopped_and_the_rest_goes_on(tmp_path):
    out = tmp_path / "t.json"
    done = measure("--only", "export", "heads", "tests", "--minutes", 0.2, "--out", out)
    assert done.returncode == 0, done.stderr
