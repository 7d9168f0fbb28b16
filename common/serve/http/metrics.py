"""What the server counts, for Prometheus. Nothing of a photo is kept, and nothing of its sender.

With several workers, `workers.supervise` sets PROMETHEUS_MULTIPROC_DIR before they start: each then
counts into files of that folder, and any of them answers `/metrics` for all.
"""

import os
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SHARES = tuple(round(0.05 * i, 2) for i in range(1, 21))


class Telemetry:
    """The server's counters, histograms and gauges; facts are labels of `foliar_process_info`, with
    each worker's pid where there are several.
    """

    def __init__(self, facts: Mapping[str, str]) -> None:
        prometheus_client.disable_created_metrics()
        here = self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: Any = SECONDS, labels: Any = ()) -> Histogram:
            return Histogram(name, text, labels, registry=here, buckets=buckets)

        def gauge(name: str, text: str, labels: Any = (), over_workers: Any = "livesum") -> Gauge:
            return Gauge(name, text, labels, registry=here, multiprocess_mode=over_workers)

        self.requests = Counter(
            "foliar_requests_total",
            "Requests for an answer, by outcome.",
            ("outcome", "reason"),
            registry=here,
        )
        self.responses = Counter(
            "foliar_http_responses_total", "Responses of all kinds.", ("status",), registry=here
        )
        self.photos = Counter("foliar_photos_total", "Photos read and run.", registry=here)
        self.busy = Counter(
            "foliar_rejected_busy_total",
            "Requests answered with 503, since the server was full or stopping.",
            registry=here,
        )
        self.queue_seconds = histogram("foliar_queue_seconds", "Time a photo waited for a thread.")
        self.compute = histogram(
            "foliar_compute_seconds", "Time to read and to run, per request.", labels=("stage",)
        )
        self.latency = histogram(
            "foliar_request_seconds", "Time from a request's header to its answer, if it got one."
        )
        self.quantile = histogram(
            "foliar_score_quantile",
            "Quantile of a photo's OOD score among validation plants: even where photos are like "
            "those, near 1 where they drift away.",
            SHARES,
        )
        self.probability = histogram(
            "foliar_class_probability", "Probability of the most probable class.", SHARES
        )
        self.in_flight = gauge("foliar_in_flight", "Requests admitted and not yet answered.")
        self.places = gauge("foliar_places", "Most requests admitted at once.")
        self.body_bytes = gauge("foliar_body_bytes", "Bytes reserved for admitted bodies.")
        self.draining = gauge("foliar_draining", "Processes that are stopping.")
        info = gauge("foliar_process_info", "What a process serves.", tuple(facts), "liveall")
        info.labels(**facts).set(1)
        ProcessCollector(registry=here)

    def answered(self, answer: Mapping[str, Any], seconds: float) -> None:
        """Count an answer of `answer.answer`."""
        self.requests.labels(answer["decision"], answer["rejection"]["reason"] or "none").inc()
        self.latency.observe(seconds)
        for stage in ("decode", "model"):
            self.compute.labels(stage).observe(answer["timings_ms"][stage] / 1000)
        for photo in answer["photos"]:
            self.photos.inc()
            if photo["quantile"] is not None:
                self.quantile.observe(photo["quantile"])
            self.probability.observe(photo["best_guess"]["probability"])

    def text(self) -> bytes:
        """Everything in Prometheus' text format, over all workers where there are several."""
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if folder is None:
            return prometheus_client.generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        registry.register(_Processes(Path(folder)))
        for _ in range(50):
            try:
                return prometheus_client.generate_latest(registry)
            except struct.error:  # a worker that starts has a file that is still empty
                time.sleep(0.01)
        return prometheus_client.generate_latest(registry)


class _Processes:
    """The `process_*` metrics of the supervisor and of each worker, by the label `pid`: without it,
    a scrape that another worker answers would look like a reset.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # where each worker that lives has a file of gauges

    def collect(self) -> Iterable[Metric]:
        """One metric of each name, with a sample per process."""
        found: dict[str, Metric] = {}
        workers = (path.stem.split("_")[-1] for path in self.folder.glob("gauge_liveall_*.db"))
        for pid in (str(os.getppid()), *workers):
            for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():
                kept = found.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                kept.samples += [one._replace(labels={"pid": pid}) for one in metric.samples]
        return found.values()
