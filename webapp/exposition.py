"""The pool's counters as Prometheus metrics, named `poolkit_pool_...`; times in seconds.

They are this process's. With `--processes` each process counts for itself, and a scrape
reaches any one of them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from poolkit.config.metrics import BUCKETS, Histogram, PoolSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

_GAUGES = {
    "size": "Connections that the pool keeps open when idle.",
    "checked_out": "Connections in use.",
    "overflow": "Connections open beyond the size.",
    "waiting": "Callers that have asked for a connection and do not have it yet.",
}
_COUNTERS = {
    "checkouts": "Checkouts that got a connection.",
    "checkout_timeouts": "Checkouts that gave up after pool_timeout.",
    "opened": "Connections opened.",
    "closed": "Connections closed.",
    "connect_failures": "Attempts to open a connection that failed.",
}
_HISTOGRAMS = {
    "checkout_wait": "How long checkouts waited for their connection.",
    "connect_time": "How long opening a connection took.",
}


class PoolCollector(Collector):
    """One snapshot of one pool."""

    def __init__(self, target: str, snapshot: PoolSnapshot) -> None:
        self._labels = [target]
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Give every metric, each with the label `target`."""
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"poolkit_pool_{name}", text, labels=["target"])
            gauge.add_metric(self._labels, getattr(self._snapshot, name))
            yield gauge
        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"poolkit_pool_{name}", text, labels=["target"])
            counter.add_metric(self._labels, getattr(self._snapshot, name))
            yield counter
        for name, text in _HISTOGRAMS.items():
            family = HistogramMetricFamily(f"poolkit_pool_{name}_seconds", text, labels=["target"])
            histogram: Histogram = getattr(self._snapshot, name)
            family.add_metric(self._labels, _cumulative(histogram), histogram.total)
            yield family


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))
