"""The search for an INT8 model: what is tried, what goes back to float, and that nothing unproven
is written.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_nets
from onnx import numpy_helper

from common.export import int8, measure
from common.export.gate import GateResult, Side, Speed, judge_gate
from common.export.measure import (
    LimitError,
    check_batches,
    check_limits,
    measure_ms,
    measure_speed,
    session_run,
)

COUNTS = np.full(6, 50)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The same speed on every machine: half of FP32's time."""
    monkeypatch.setattr(int8, "measure_speed", lambda *_: (0.5, 0.45, 0.55))


class Judge:
    """The gate over 120 pictures that FP32 is sure of; counts its calls."""

    def __init__(self, fp32: Path, reject: tuple[str, ...] = ()) -> None:
        many, run = tiny_nets.pictures(240, seed=4), session_run(fp32)
        # the half that FP32 is surest of: of random weights, many answers are all but tied, and
        # any rounding turns these
        first, second = np.sort(run(many)[0], axis=1)[:, :-3:-1].T
        self.pictures = many[np.argsort(second - first, kind="stable")[:120]]
        self.calls, self.reject = [], reject
        self.base = self.side(run)

    def side(self, run: measure.Run) -> Side:
        probabilities, ood = run(self.pictures)[:2]
        return Side(
            probabilities.argmax(1),
            probabilities.max(1),
            self.base.class_idx if hasattr(self, "base") else probabilities.argmax(1),
            ood[:, 0],
            ood[:20, 0] + 1,
        )

    def __call__(self, way: str, run: measure.Run, speed: Speed) -> GateResult:
        self.calls.append(way)
        assert speed.weights_only == (way == "weights")
        if way in self.reject:
            speed = replace(speed, ratio=3.0, low=2.9, high=3.1)
        return judge_gate(
            way,
            self.base,
            self.side(run),
            tiny_nets.TREE,
            COUNTS,
            speed=speed,
        )


def search(folder: Path, make, reject: tuple[str, ...] = ()):
    fp32 = tiny_nets.write(folder, "model.onnx", make)
    judge = Judge(fp32, reject)
    tried = int8.search_int8(
        fp32,
        folder / "model.int8.onnx",
        [tiny_nets.pictures(16, 1), tiny_nets.pictures(16, 2)],
        tiny_nets.pictures(8, 3),
        judge,
    )
    return tried, judge


def harmed(place: int):
    """A network one of whose layers cannot be quantized: a thousandth of its input carries all that
    matters to it.

    A channel of great values without weight makes the range of the layer's input useless.
    """

    def make() -> onnx.ModelProto:
        model = tiny_nets.token_net(seed=3)
        graph = model.graph
        products = [
            node for node in graph.node if node.op_type == "MatMul" and "basis" not in node.input[1]
        ]
        weight = next(t for t in graph.initializer if t.name == products[place].input[1])
        values = numpy_helper.to_array(weight).copy()
        values[0] = 0  # what the great values are multiplied by
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        great = np.zeros(len(values), np.float32)
        great[0] = 3000.0
        graph.initializer.append(numpy_helper.from_array(great, "great"))
        added = onnx.helper.make_node(
            "Add", [products[place].input[0], "great"], ["with_great"], name="great_add"
        )
        at = list(graph.node).index(products[place])
        products[place].input[0] = "with_great"
        graph.node.insert(at, added)
        return model

    return make


def test_a_model_that_passes_is_written_once(tmp_path):
    tried, judge = search(tmp_path, tiny_nets.token_net)
    kept = int8.kept(tried)
    assert [attempt.way for attempt in tried] == ["static"], (
        "weights alone are for when nothing else passes"
    )
    assert kept
    assert kept.layers == kept.of == 3
    assert not kept.kept_float
    assert kept.builds == 1
    assert kept.to_dict()["ms_ratio"] == 0.5
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "model.int8.onnx"}
    written, fp32 = session_run(tmp_path / "model.int8.onnx"), session_run(tmp_path / "model.onnx")
    agreement = (written(judge.pictures)[0].argmax(1) == fp32(judge.pictures)[0].argmax(1)).mean()
    assert agreement == pytest.approx(kept.to_dict()["val_agreement"])
    assert agreement >= 0.99
    batch = {check.name: check for check in kept.gate.checks}["batch"]
    assert batch.passed
    assert batch.figure <= 1e-5
    json.dumps([attempt.to_dict() for attempt in tried], allow_nan=False)


@pytest.mark.parametrize("place", [1, 2])
def test_the_harmful_layer_goes_back_to_float(place, tmp_path):
    tried, judge = search(tmp_path, harmed(place))
    static = tried[0]
    assert not static.rejected
    assert static.layers == 2
    assert static.of == 3
    assert static.builds == 2
    model = onnx.load(tmp_path / "model.int8.onnx")
    floats = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert len(static.kept_float) == 1
    assert ["embed", "up", "down"][place] + ".weight" in floats
    assert judge.calls == ["static", "static"]
    assert static.gate.passed
    assert "2 of 3" == static.to_dict()["layers"]


def test_too_slow_is_not_searched_on_and_weights_alone_come_last(tmp_path):
    tried, judge = search(tmp_path, tiny_nets.conv_net, reject=("static",))
    assert judge.calls == ["static", "weights"]
    assert "time for one picture / FP32 3.00, <= 0.95 is needed" in tried[0].rejected
    assert int8.kept(tried) is tried[1]
    assert tried[1].way == "weights"
    assert tried[1].gate.passed
    size = (tmp_path / "model.int8.onnx").stat().st_size / (tmp_path / "model.onnx").stat().st_size
    assert {check.name: check.figure for check in tried[1].gate.checks}["size"] == pytest.approx(
        size
    )


def test_where_every_way_is_rejected_nothing_is_written(tmp_path, monkeypatch):
    fp32 = tiny_nets.write(tmp_path, "model.onnx", tiny_nets.conv_net)
    real = Judge(fp32)
    others = ((values + 1) % 6 for values in (real.base.answer, real.base.class_idx))
    answer, class_idx = others  # whatever is answered is wrong
    real.base = Side(answer, real.base.confidence, class_idx)

    def tries() -> list[int8.Attempt]:
        tried = int8.search_int8(
            fp32,
            tmp_path / "model.int8.onnx",
            [tiny_nets.pictures(8, 1)],
            tiny_nets.pictures(8, 3),
            real,
        )
        assert int8.kept(tried) is None
        assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
        return tried

    tried = tries()
    assert all("same top-1 as FP32" in attempt.rejected for attempt in tried)
    assert "would have to stay float" in tried[0].rejected
    assert len(real.calls) <= 2 * (int8.ROUNDS + 1)

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr(int8.quantize, "static", broken)
    monkeypatch.setattr(int8.quantize, "weights", broken)
    assert [attempt.rejected for attempt in tries()] == ["failed: no such operator"] * 2


def test_the_search_is_deterministic(tmp_path):
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        search(tmp_path / name, harmed(2))
        files.append((tmp_path / name / "model.int8.onnx").read_bytes())
    assert files[0] == files[1]


# region measuring


def test_measuring_takes_turns():
    calls = []
    run_a, run_b = (
        lambda p, n=n: calls.append((n, p.shape)) or [np.zeros((len(p), 2)), np.zeros((len(p), 1))]
        for n in "ab"
    )
    ms = measure_ms({"a": run_a, "b": run_b}, np.zeros((4, 4, 3), np.uint8), rounds=5)
    assert set(ms) == {"a", "b"}
    assert [n for n, _ in calls] == ["a", "b"] * 8
    assert {s for _, s in calls} == {(1, 4, 4, 3)}


def test_speed_is_a_ratio_of_medians(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measure.time, "thread_time", lambda: now[0])

    def runs(ms: float, slow: int) -> measure.Run:
        calls = [0]

        def run(_: np.ndarray) -> list[np.ndarray]:
            calls[0] += 1
            now[0] += ms / 1000 * (50 if calls[0] % slow == 0 else 1)
            return []

        return run

    ratio, low, high = measure_speed(runs(10, 7), runs(4, 5), np.zeros((4, 4, 3), np.uint8))
    assert ratio == pytest.approx(0.4), (
        "every fifth call takes fifty times as long, and the median does not mind"
    )
    assert low <= 0.4 <= high, (
        "every fifth call takes fifty times as long, and the median does not mind"
    )


def test_a_batch_that_changes_answers_is_found():
    assert (
        check_batches(lambda p: [p.reshape(len(p), -1)[:, :2] / 255.0], tiny_nets.pictures(4)) == 0
    )
    assert (
        check_batches(lambda p: [p.reshape(len(p), -1)[:, :2] / p.mean()], tiny_nets.pictures(4))
        > 1e-5
    )


def test_limits_end_in_a_sentence():
    check_limits("model.onnx", 25.0, 9.0)
    check_limits("model.onnx", 25.0, 9.0, 25.0, 9.0)
    with pytest.raises(
        LimitError,
        match=r"model.onnx has 25.0 MB, more than --max-size-mb 24. .*smaller --backbone",
    ):
        check_limits("model.onnx", 25.0, 9.0, max_size_mb=24)
    with pytest.raises(
        LimitError, match=r"9.0 ms .* more than --max-latency-ms 8.5. .*quiet machine"
    ):
        check_limits("model.onnx", 25.0, 9.0, 500, 8.5)


# endregion
