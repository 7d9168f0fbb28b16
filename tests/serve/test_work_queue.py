"""The queue's batches for a GPU, the choice of a provider, and what is counted."""

import re
import threading

import numpy as np
import onnxruntime
import pytest
import tiny_bundle as tiny

from common.serve import providers
from common.serve.http.metrics import Telemetry
from common.serve.http.work_queue import Batcher, Busy, WorkQueue
from common.serve.predictor import BundleError, Outputs, Predictor


class Device:
    """Stands for a GPU: gives back each picture's first value, and waits until it may begin."""

    def __init__(self):
        self.free, self.sizes, self.begun, self.fail = (
            threading.Event(),
            [],
            threading.Semaphore(0),
            False,
        )

    def run(self, batch):
        self.sizes.append(len(batch))
        self.begun.release()
        assert self.free.wait(10)
        if self.fail:
            raise RuntimeError("the device fell over")
        first = batch[:, 0, 0, :1].astype(np.float32)
        return Outputs(first, first + 1, first[:, :, None])


def test_pictures_that_wait_are_run_together_and_each_gets_its_own_numbers():
    device, found = Device(), {}
    batcher = Batcher(device.run, most=4)

    def bring(value):
        found[value] = batcher.run(np.full((1, 2, 2, 3), value, np.uint8))

    threads = [threading.Thread(target=bring, args=(value,)) for value in range(8)]
    threads[0].start()
    assert device.begun.acquire(timeout=10)  # alone, it does not wait for company
    for thread in threads[1:]:
        thread.start()
    while len(batcher._waiting) < 7:
        threading.Event().wait(0.005)
    device.free.set()
    for thread in threads:
        thread.join(10)
    assert device.sizes == [1, 4, 4]  # the last 3 are filled up to 4
    assert {value: float(outputs.probabilities[0, 0]) for value, outputs in found.items()} == {
        value: float(value) for value in range(8)
    }
    assert all(
        outputs.ood.shape == (1, 1) and outputs.heatmap.shape == (1, 1, 1)
        for outputs in found.values()
    )


def test_a_failing_run_reaches_everyone_in_it_and_the_next_goes_on():
    device = Device()
    device.fail = True
    device.free.set()
    batcher = Batcher(device.run, most=4)
    with pytest.raises(RuntimeError, match="fell over"):
        batcher.run(np.zeros((1, 2, 2, 3), np.uint8))
    device.fail = False
    assert batcher.run(np.full((1, 2, 2, 3), 9, np.uint8)).probabilities[0, 0] == 9


def test_warming_up_runs_each_size_once():
    device = Device()
    device.free.set()
    Batcher(device.run, most=32).warm(2)
    assert device.sizes == [1, 2, 4, 8, 16, 32]


def test_batches_give_the_models_own_numbers(exports):
    """Each thread gets, to the bit, the row of the batch that its own picture was in; only rounding
    depends on the company.
    """
    predictor, ran = Predictor(exports), []

    def run(batch):
        ran.append((batch.copy(), predictor.run(batch)))
        return ran[-1][1]

    batcher, found = Batcher(run, 8), [None] * 6
    pictures = np.random.default_rng(0).integers(
        0, 256, (6, 1, tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8
    )

    def bring(i):
        found[i] = batcher.run(pictures[i])

    threads = [threading.Thread(target=bring, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    rows = {batch[i].tobytes(): (outputs, i) for batch, outputs in ran for i in range(len(batch))}
    for picture, got in zip(pictures, found, strict=True):
        outputs, i = rows[picture[0].tobytes()]
        for name in ("probabilities", "ood", "heatmap"):
            assert (getattr(got, name)[0] == getattr(outputs, name)[i]).all(), name
        # the tiny model's distances are differences of large sums, which magnifies the rounding of
        # a batch
        assert np.abs(got.probabilities - predictor.run(picture).probabilities).max() < 1e-4


def test_places_are_bounded_in_number_and_bytes():
    queue = WorkQueue(1, 1, memory=100)
    with queue.place(500):  # a large body alone is let in
        with pytest.raises(Busy):
            with queue.place(1):
                pass
    with queue.place(60), queue.place(40):
        with pytest.raises(Busy, match="busy"):
            with queue.place(0):
                pass
    assert queue.taken == queue.held == 0
    queue.draining = True
    with pytest.raises(Busy, match="draining"):
        with queue.place(0):
            pass
    queue.stop()


@pytest.fixture
def installed(monkeypatch):
    """Make ONNX Runtime report a provider beside the CPU's."""

    def install(name):
        found = [name, "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: found)

    return install


@pytest.fixture
def labelled_int8(tmp_path):
    """A folder whose INT8 file says so in bundle.json: its path, and a function that writes it
    with other values.
    """
    folder = tiny.make(tmp_path / "exports")

    def write(precision="int8, static", **changes):
        bundle = tiny.describe(folder) | changes
        bundle["models"]["model.int8.onnx"]["precision"] = precision
        tiny.write_bundle(folder, bundle)

    write()
    return folder, write


def test_the_cpu_is_what_auto_comes_to_where_nothing_else_is(exports, installed):
    installed("AzureExecutionProvider")
    predictor, name = providers.open_predictor(exports, None, "auto")
    assert name == "cpu"
    assert predictor.card.file == "model.int8.onnx"
    with pytest.raises(BundleError, match="'cuda' is not in this ONNX Runtime. It has: cpu"):
        providers.open_predictor(exports, None, "cuda")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_load_is_told_of_and_replaced_unless_it_was_named(
    exports, installed, capsys
):
    installed("CUDAExecutionProvider")
    # the real session falls back to the CPU by itself, without an error: that must not pass unseen
    predictor, name = providers.open_predictor(exports, None, "auto")
    assert name == "cpu"
    assert predictor.run(np.zeros((1, tiny.SIZE, tiny.SIZE, 3), np.uint8)).probabilities.shape == (
        1,
        6,
    )
    assert "'cuda' is installed but does not work here" in capsys.readouterr().err
    with pytest.raises(BundleError, match="'cuda' does not work here"):
        providers.open_predictor(exports, None, "cuda")


def test_a_gpu_gets_the_fp16_file_and_else_the_fp32_one(labelled_int8):
    folder, write = labelled_int8
    assert providers._files("cuda", folder) == ["model.onnx"]
    assert providers._files("openvino", folder) == ["model.int8.onnx", "model.onnx"]
    write("fp16")
    assert providers._files("migraphx", folder) == ["model.int8.onnx", "model.onnx"]


def test_a_provider_that_answers_otherwise_is_not_used(
    labelled_int8, installed, monkeypatch, capsys
):
    """A provider that reads the INT8 file in a way of its own gets the FP32 one; one that reads
    both wrongly is left alone.
    """
    folder, write = labelled_int8
    write(default_model="model.int8.onnx")
    wrong = {"model.int8.onnx"}

    class Elsewhere(Predictor):
        def __init__(self, folder, model=None, threads=1, providers=None):
            super().__init__(folder, model, threads)
            self.elsewhere = providers is not None
            self.session = type(
                "Session",
                (),
                {"run": self.session.run, "get_providers": lambda _: providers or ["CPU"]},
            )()

        def run(self, batch):
            found = super().run(batch)
            off = getattr(self, "elsewhere", False) and self.card.file in wrong
            return (
                Outputs(np.roll(found.probabilities, 1, axis=1), found.ood, found.heatmap)
                if off
                else found
            )

    monkeypatch.setattr(providers, "Predictor", Elsewhere)
    installed("OpenVINOExecutionProvider")
    predictor, name = providers.open_predictor(folder, None, "auto")
    assert name == "openvino"
    assert predictor.card.file == "model.onnx"
    assert "model.int8.onnx: it answers otherwise than the CPU does" in capsys.readouterr().err
    wrong.add("model.onnx")
    assert providers.open_predictor(folder, None, "auto")[1] == "cpu"
    with pytest.raises(BundleError, match="answers otherwise"):
        providers.open_predictor(folder, None, "openvino")


def samples(text):
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = re.fullmatch(
                r'([a-zA-Z_:][a-zA-Z0-9_:]*(?:\{(?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*\})?) (\S+)', line
            ).groups()
            assert name not in found
            found[name] = float(value)
    return found


def test_labels_are_escaped_and_every_metric_is_explained():
    telemetry = Telemetry({"model": 'a"b\\\n'})
    telemetry.responses.labels("200").inc()
    text = telemetry.text().decode()
    name = next(name for name in samples(text) if name.startswith("foliar_process_info"))
    assert r'model="a\"b\\\n"' in name
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M)
    helped = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.M))
    assert all(helped[name] for name, _ in kinds)
    assert ("foliar_queue_seconds", "histogram") in kinds
    assert ("foliar_in_flight", "gauge") in kinds


def test_an_answer_is_counted():
    telemetry = Telemetry({"model": "m"})
    telemetry.in_flight.set(3)
    telemetry.answered(
        {
            "decision": "rejected",
            "rejection": {"reason": "dark"},
            "timings_ms": {"decode": 2, "model": 40},
            "photos": [
                {"quantile": 0.97, "best_guess": {"probability": 0.4}},
                {"quantile": None, "best_guess": {"probability": 1.0}},
            ],
        },
        0.06,
    )
    found = samples(telemetry.text().decode())
    assert found['foliar_requests_total{outcome="rejected",reason="dark"}'] == 1
    assert found["foliar_in_flight"] == 3
    assert found["foliar_photos_total"] == 2
    assert found["foliar_score_quantile_count"] == 1
    assert found['foliar_score_quantile_bucket{le="0.95"}'] == 0
    assert found['foliar_score_quantile_bucket{le="1.0"}'] == 1
    assert found['foliar_compute_seconds_sum{stage="model"}'] == pytest.approx(0.04)
