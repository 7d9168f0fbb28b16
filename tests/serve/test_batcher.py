"""Batches for a GPU: who runs together, on two lanes, and that everyone gets their own numbers. A
function that waits, or a session on the CPU, stands for the GPU.
"""

import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
import tiny_bundle as tiny
from conftest import ROOT

from common.serve.batch.ensembles import Ensemble
from common.serve.batch.photo_list import UNKNOWN
from common.serve.batch.predictions import Job, predict
from common.serve.batcher import LANES, Batcher
from common.serve.predictor import SIZES, BundleError, Outputs, Predictor


class Device:
    """Stands for a GPU: gives back each picture's first value. Closed, a run waits until `free`."""

    def __init__(self):
        self.free, self.begun, self.sizes, self.fail = (
            threading.Event(),
            threading.Semaphore(0),
            [],
            False,
        )
        self.free.set()

    def run(self, batch):
        self.sizes.append(len(batch))
        self.begun.release()
        assert self.free.wait(10)
        if self.fail:
            raise RuntimeError("the device fell over")
        first = batch[:, 0, 0, :1].astype(np.float32)
        return Outputs(first, first + 1, first[:, :, None])

    def close(self):
        """Have each lane wait in a run of one picture; returns the futures of these."""
        self.free.clear()
        self.sizes.clear()
        self.begun = threading.Semaphore(0)
        held = []
        for value in range(LANES):
            held.append(self.batcher.submit(picture(value)))
            assert self.begun.acquire(timeout=10)
        return held


def picture(*values):
    return np.stack([np.full((2, 2, 3), value, np.uint8) for value in values])


@pytest.fixture
def device():
    made = Device()
    made.batcher = Batcher(made.run, 2)
    yield made
    made.free.set()
    made.batcher.stop()


def test_every_lane_runs_every_size_before_the_first_picture(device):
    assert Counter(device.sizes) == dict.fromkeys(SIZES, LANES)


def test_a_size_that_does_not_run_is_named():
    def run(batch):
        if len(batch) == 12:
            raise RuntimeError("out of memory")

    with pytest.raises(BundleError, match="in batches of 12: out of memory"):
        Batcher(run, 2)


def test_where_one_lane_does_not_run_the_other_ends_too():
    before, lanes = {*threading.enumerate()}, []

    def run(batch):
        lanes.append(threading.current_thread())
        if lanes[0] is lanes[-1]:
            raise RuntimeError("out of memory")

    with pytest.raises(BundleError, match="in batches of 1: out of memory"):
        Batcher(run, 2)
    assert not {*threading.enumerate()} - before


# the lanes are in a run of 1 picture each when the process ends, and another picture waits
LEAVING = """
import os, sys, threading, time
import numpy as np
from common.serve.batcher import Batcher
begun = threading.Semaphore(0)
def run(batch):
    begun.release()
    if batch[0, 0, 0, 0]:
        while batcher._waiting:
            time.sleep(0.01)
        time.sleep(0.1)
        os.write(1, b"ran ")
batcher = Batcher(run, 2)
begun = threading.Semaphore(0)
for _ in range(2):
    batcher.submit(np.ones((1, 2, 2, 3), np.uint8))
    begun.acquire()
batcher.submit(np.ones((1, 2, 2, 3), np.uint8))
sys.exit(3)
"""


def test_a_process_that_is_left_first_ends_the_runs_that_have_begun_and_begins_no_more():
    """ONNX Runtime aborts a process that ends while a thread is inside it."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVING], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "ran ran ", "")


def test_pictures_that_wait_are_run_together_and_each_gets_its_own_numbers(device):
    held = device.close()  # each lane took one picture at once, without waiting for company
    waiting = [device.batcher.submit(picture(value)) for value in range(10, 19)]
    several = device.batcher.submit(picture(20, 21, 22))
    device.free.set()
    found = [float(one.result(10).probabilities[0, 0]) for one in held + waiting]
    assert found == [*range(LANES), *range(10, 19)]
    assert several.result(10).ood[:, 0].tolist() == [21, 22, 23]
    assert several.result(10).heatmap.shape == (3, 1, 1)
    assert device.sizes == [*[1] * LANES, 12]


def test_a_batch_is_filled_up_to_the_next_size_and_holds_at_most_the_largest(device):
    device.close()
    waiting = [device.batcher.submit(picture(*range(8))) for _ in range(3)]
    waiting += [device.batcher.submit(picture(*range(7))) for _ in range(2)]
    device.free.set()
    for one in waiting:
        assert one.result(10).probabilities[:, 0].tolist() == list(range(len(one.result().ood)))
    assert sorted(device.sizes[LANES:]) == [7, 32], "31, and one that did not fit"
    for count in (0, 33):
        with pytest.raises(ValueError, match="1 to 32"):
            device.batcher.submit(np.zeros((count, 2, 2, 3), np.uint8))


def test_a_device_may_have_sizes_of_its_own():
    device = Device()
    device.batcher = Batcher(device.run, 2, (1, 4))
    assert Counter(device.sizes) == {1: LANES, 4: LANES}
    device.close()
    waiting = [device.batcher.submit(picture(value)) for value in (5, 6)]
    device.free.set()
    assert [one.result(10).probabilities[0, 0] for one in waiting] == [5, 6]
    assert device.sizes == [*[1] * LANES, 4]
    with pytest.raises(ValueError, match="1 to 4"):
        device.batcher.submit(picture(*range(5)))
    device.batcher.stop()


def test_lanes_run_at_the_same_time():
    """Each run waits until another has begun too: with one lane, none would end."""
    together = threading.Barrier(2)

    def run(batch):
        together.wait(10)
        return Outputs(*[np.zeros((len(batch), 1, 1), np.float32)] * 3)

    batcher = Batcher(run, 2)
    for one in [batcher.submit(picture(*range(32))) for _ in range(2)]:
        one.result(10)


def test_a_failing_batch_fails_alone(device):
    device.close()
    with pytest.raises(RuntimeError, match="fell over"):
        waiting = device.batcher.submit(picture(5))
        device.fail = True
        device.free.set()
        waiting.result(10)
    device.fail = False
    assert device.batcher.submit(picture(9)).result(10).probabilities[0, 0] == 9


def test_whoever_left_is_not_run(device):
    device.close()
    first, gone, last = (device.batcher.submit(picture(value)) for value in (1, 2, 3))
    assert gone.cancel()
    device.free.set()
    assert [one.result(10).probabilities[0, 0] for one in (first, last)] == [1, 3]
    assert device.sizes == [*[1] * LANES, 2]


def test_stopping_runs_what_waits(device):
    device.close()
    waiting = [device.batcher.submit(picture(value)) for value in range(40)]
    device.free.set()
    device.batcher.stop()
    assert [one.result(0).probabilities[0, 0] for one in waiting] == list(range(40))


def test_batches_give_the_models_own_numbers(exports):
    """Each thread gets, to the bit, the row of the batch that its own picture was in; only rounding
    depends on the company.
    """
    predictor, ran = Predictor(exports), []

    def run(batch):
        ran.append((batch.copy(), predictor.run(batch)))
        return ran[-1][1]

    batcher = Batcher(run, tiny.SIZE)
    ran.clear()
    pictures = np.random.default_rng(0).integers(
        0, 256, (6, 1, tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8
    )
    found = [one.result(10) for one in [batcher.submit(one) for one in pictures]]
    rows = {batch[i].tobytes(): (outputs, i) for batch, outputs in ran for i in range(len(batch))}
    for own, got in zip(pictures, found, strict=True):
        outputs, i = rows[own[0].tobytes()]
        for name in ("probabilities", "ood", "heatmap"):
            assert (getattr(got, name)[0] == getattr(outputs, name)[i]).all(), name
        # the tiny model's distances are differences of large sums, which magnifies the rounding of
        # a batch
        assert np.abs(got.probabilities - predictor.run(own).probabilities).max() < 1e-4
    batcher.stop()


def test_predict_uses_the_same_batches(exports, tmp_path):
    photos = []
    for i in range(40):
        photos.append(tmp_path / f"p{i:02d}.png")
        photos[-1].write_bytes(tiny.picture(tiny.color_of(i % 6)) if i != 7 else b"no photo")
    tables, sizes = [], []
    for batched in (False, True):
        predictor = Predictor(exports)

        def run(batch, predictor=predictor):
            sizes.append(len(batch))
            return predictor.run(batch)

        if batched:
            predictor.submit = Batcher(run, tiny.SIZE).submit
            sizes.clear()
        job = Job(tuple(photos), tmp_path / f"{batched}.csv", np.full(40, UNKNOWN), threads=2)
        assert predict(Ensemble([predictor]), job) == 1
        tables.append(job.output.read_text().splitlines())
    assert 39 <= sum(sizes)
    assert set(sizes) <= set(SIZES)
    assert len(tables[0]) == 41
    assert [row.split(",")[:5] for row in tables[0]] == [row.split(",")[:5] for row in tables[1]]
