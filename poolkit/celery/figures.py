"""Counters of one process of a worker, in a form that is written to a file, read and added."""

from __future__ import annotations

import dataclasses
import json
from bisect import bisect_left
from collections import Counter, defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from poolkit.config.holds import CallSite, merged
from poolkit.config.metrics import Histogram, PoolSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

__all__ = ("COUNTERS", "HISTOGRAMS", "TASK_BUCKETS", "Figures")

TASK_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0)
"""Upper bounds in seconds of a task's duration, and of its wait."""


class _Kind(NamedTuple):
    """A metric's help text and its labels."""

    text: str
    labels: tuple[str, ...]


COUNTERS: Final = {
    "poolkit_tasks": _Kind("Deliveries that ended.", ("task", "state")),
    "poolkit_task_errors": _Kind(
        "Deliveries that ended with an error: given up, or tried again.", ("task", "state", "error")
    ),
    "poolkit_task_redeliveries": _Kind(
        "Deliveries of a message that was delivered before: its worker died or was cut off.",
        ("task",),
    ),
    "poolkit_dead_letters": _Kind("Messages that were recorded as dead letters.", ("task",)),
}
HISTOGRAMS: Final = {
    "poolkit_task_duration_seconds": _Kind("How long deliveries ran.", ("task", "state")),
    "poolkit_task_wait_seconds": _Kind(
        "How long tasks waited from being sent, or from their eta, to their first run.", ("task",)
    ),
}
# Of processes that have ended, these are nothing. The breaker is not added up: it is open or not.
_GAUGES: Final = ("size", "checked_out", "overflow", "waiting", "breaker_open")
_POOL_HISTOGRAMS: Final = ("checkout_wait", "connect_time", "hold_time")

_Key = tuple[str, tuple[str, ...]]


class Figures:
    """Counters of a pool, its call sites, and the tasks; the caller has a lock."""

    def __init__(self) -> None:
        self.pool: defaultdict[str, float] = defaultdict(float)
        self.times: dict[str, Histogram] = {}
        self.sites: list[CallSite] = []
        self.counts: Counter[_Key] = Counter()
        self.durations: dict[_Key, tuple[list[int], list[float]]] = {}

    def count(self, name: str, *labels: str) -> None:
        """Add one to a counter."""
        self.counts[name, labels] += 1

    def observe(self, name: str, seconds: float, *labels: str) -> None:
        """Add a duration to a histogram."""
        counts, total = self._duration(name, labels)
        counts[bisect_left(TASK_BUCKETS, seconds)] += 1
        total[0] += seconds

    def _duration(self, name: str, labels: tuple[str, ...]) -> tuple[list[int], list[float]]:
        found = self.durations.get((name, labels))
        if found is None:
            found = self.durations[name, labels] = [0] * (len(TASK_BUCKETS) + 1), [0.0]
        return found

    def add_pool(self, snapshot: PoolSnapshot) -> None:
        """Add the counters of a pool."""
        for name, value in snapshot._asdict().items():
            if isinstance(value, Histogram):
                self._add_times(name, value.counts, value.total)
            else:
                self._add_pool(name, value)

    def _add_pool(self, name: str, value: float) -> None:
        before = self.pool[name]
        self.pool[name] = max(before, value) if name == "breaker_open" else before + value

    def _add_times(self, name: str, counts: list[int], total: float) -> None:
        times = self.times.setdefault(name, Histogram())
        times.counts = [a + b for a, b in zip(times.counts, counts, strict=True)]
        times.total += total

    def add(self, text: str, *, gauges: bool) -> None:
        """Add what `text` returned in another process.

        Args:
            text: the figures of that process.
            gauges: whether it still runs, so that its connections count.
        """
        found = json.loads(text)
        for name, value in found["pool"].items():
            if gauges or name not in _GAUGES:
                self._add_pool(name, value)
        for name, (counts, total) in found["times"].items():
            self._add_times(name, counts, total)
        for name, labels, number in found["counts"]:
            self.counts[name, tuple(labels)] += number
        for name, labels, counts, total in found["durations"]:
            into, seconds = self._duration(name, tuple(labels))
            into[:] = [a + b for a, b in zip(into, counts, strict=True)]
            seconds[0] += total
        self.sites = merged([*self.sites, *(CallSite(**site) for site in found["sites"])])

    def text(self) -> str:
        """Return the figures as JSON."""
        return json.dumps(
            {
                "pool": self.pool,
                "times": {name: (each.counts, each.total) for name, each in self.times.items()},
                "counts": [(*key, number) for key, number in self.counts.items()],
                "durations": [
                    (*key, counts, total) for key, (counts, (total,)) in self.durations.items()
                ],
                "sites": [dataclasses.asdict(site) for site in self.sites],
            }
        )

    def snapshot(self) -> PoolSnapshot:
        """Return the pool's counters."""
        values: dict[str, Any] = {name: self.pool[name] for name in PoolSnapshot._fields}
        times = {name: self.times.get(name, Histogram()) for name in _POOL_HISTOGRAMS}
        return PoolSnapshot(**values | times)

    def metrics(self) -> Iterator[Metric]:
        """Yield the metrics of tasks."""
        for name, (text, labels) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=labels)
            for (counted, values), number in self.counts.items():
                if counted == name:
                    counter.add_metric(values, number)
            yield counter
        bounds = (*map(str, TASK_BUCKETS), "+Inf")
        for name, (text, labels) in HISTOGRAMS.items():
            histogram = HistogramMetricFamily(name, text, labels=labels)
            for (observed, values), (counts, (total,)) in self.durations.items():
                if observed == name:
                    buckets = list(zip(bounds, map(float, accumulate(counts)), strict=True))
                    histogram.add_metric(values, buckets, total)
            yield histogram
