"""What the server counts, as Prometheus reads it (text format 0.0.4). Nothing of a photo is kept,
and nothing of who sent it. No torch."""

from __future__ import annotations

import bisect
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SHARES = tuple(round(0.05 * i, 2) for i in range(1, 21))


class Counter:
    """A number per set of labels that only grows."""

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.text, self.labels = name, text, tuple(labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        self._lock = threading.Lock()

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Add to the number of these labels."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def lines(self) -> list[str]:
        """The samples."""
        with self._lock:
            return [
                f"{self.name}{_labels(zip(self.labels, key, strict=True))} {value:g}"
                for key, value in sorted(self._values.items())
            ]


class Histogram:
    """How many values lay at or below each of `bounds`, per value of one label."""

    kind = "histogram"

    def __init__(
        self, name: str, text: str, bounds: Sequence[float] = SECONDS, label: str = ""
    ) -> None:
        self.name, self.text, self.bounds, self.label = name, text, tuple(bounds), label
        self._counts: dict[str, list[int]] = {} if label else {"": [0] * (len(bounds) + 1)}
        self._sums: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, value: float, label: str = "") -> None:
        """Count a value."""
        with self._lock:
            counts = self._counts.setdefault(label, [0] * (len(self.bounds) + 1))
            counts[bisect.bisect_left(self.bounds, value)] += 1
            self._sums[label] = self._sums.get(label, 0.0) + value

    def lines(self) -> list[str]:
        """The samples: cumulative buckets, sum and count."""
        found = []
        with self._lock:
            for label, counts in sorted(self._counts.items()):
                own = [(self.label, label)] if self.label else []
                total = 0
                for bound, count in zip((*self.bounds, "+Inf"), counts, strict=True):
                    total += count
                    found.append(f"{self.name}_bucket{_labels([*own, ('le', str(bound))])} {total}")
                found += [
                    f"{self.name}_sum{_labels(own)} {self._sums.get(label, 0.0):.6g}",
                    f"{self.name}_count{_labels(own)} {total}",
                ]
        return found


class Telemetry:
    """The server's counters and histograms. With several workers each process has its own;
    `foliar_process_info` tells them apart."""

    def __init__(self, facts: Mapping[str, str]) -> None:
        self.facts, self.started = dict(facts), time.time()
        self.requests = Counter(
            "foliar_requests_total",
            "Requests for an answer by what came of them.",
            ("outcome", "reason"),
        )
        self.responses = Counter(
            "foliar_http_responses_total", "Responses of all kinds by status.", ("status",)
        )
        self.photos = Counter("foliar_photos_total", "Photos that were read and run.")
        self.busy = Counter(
            "foliar_refused_busy_total",
            "Requests sent away with 503 before anything of them was decoded.",
        )
        self.queue = Histogram("foliar_queue_seconds", "Time that a photo waited for a runner.")
        self.compute = Histogram(
            "foliar_compute_seconds",
            "Time that reading and running took per request.",
            label="stage",
        )
        self.latency = Histogram(
            "foliar_request_seconds",
            "Time from a request's header to its answer, for requests that got one.",
        )
        self.strangeness = Histogram(
            "foliar_score_quantile",
            "Where a photo's score lies among those of validation plants. Should the "
            "photos be like these, each bucket grows alike; what drifts gathers at the end.",
            SHARES,
        )
        self.certainty = Histogram(
            "foliar_leaf_probability", "Probability of the most probable leaf.", SHARES
        )

    def answered(self, answer: Mapping[str, Any], seconds: float) -> None:
        """Count an answer of `answers.answer`."""
        self.requests.add(answer["decision"], answer["rejection"]["reason"] or "none")
        self.latency.add(seconds)
        for stage in ("decode", "model"):
            self.compute.add(answer["timings_ms"][stage] / 1000, stage)
        for photo in answer["photos"]:
            self.photos.add()
            if photo["quantile"] is not None:
                self.strangeness.add(photo["quantile"])
            self.certainty.add(photo["best_guess"]["probability"])

    def text(self, gauges: Mapping[str, float]) -> str:
        """Everything, with gauges as they are now: {name: value}."""
        found = [
            "# HELP foliar_process_info What this process serves.",
            "# TYPE foliar_process_info gauge",
            f"foliar_process_info{_labels([*self.facts.items(), ('pid', str(os.getpid()))])} 1",
        ]
        for value in vars(self).values():
            if isinstance(value, (Counter, Histogram)):
                found += [
                    f"# HELP {value.name} {value.text}",
                    f"# TYPE {value.name} {value.kind}",
                    *value.lines(),
                ]
        now = {
            **gauges,
            "process_start_time_seconds": self.started,
            "process_resident_memory_bytes": resident_bytes(),
        }
        for name, number in now.items():
            if number is not None:
                found += [f"# TYPE {name} gauge", f"{name} {number:.10g}"]
        return "\n".join(found) + "\n"


def resident_bytes() -> int | None:
    """Memory that this process holds; None where the system has no /proc."""
    if not sys.platform.startswith("linux"):
        return None
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _labels(pairs: Any) -> str:
    quoted = [
        (name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n"))
        for name, value in pairs
    ]
    return "{" + ",".join(f'{name}="{value}"' for name, value in quoted) + "}" if quoted else ""
