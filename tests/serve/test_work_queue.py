"""The queue's places, and what is counted."""

import asyncio
import functools
import re

import pytest

from common.serve.http.metrics import Telemetry
from common.serve.http.work_queue import Busy, WorkQueue


def on_loop(test):
    @functools.wraps(test)
    def run():
        asyncio.run(test())

    return run


@on_loop
async def test_places_are_bounded_in_number_and_bytes():
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
