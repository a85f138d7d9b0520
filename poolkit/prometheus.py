"""The counters of connection pools as Prometheus metrics, for any framework.

A service with a registry of its own adds the pool to it:

    REGISTRY.register(PoolCollector(lambda: {"web": metrics.snapshot(engine.pool)}))

A service without one answers a scrape with the pool's metrics alone:

    body, content_type = exposition({"web": metrics.snapshot(engine.pool)}), CONTENT_TYPE

The counters are those of this process. With several processes behind one address each counts for
itself, and a scrape reaches any one of them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from poolkit.config.metrics import BUCKETS, Histogram, PoolSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric

__all__ = ("CONTENT_TYPE", "PoolCollector", "exposition")

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
"""The media type of what `exposition` returns."""

_GAUGES: Final = {
    "size": "Connections that the pool keeps open when idle.",
    "checked_out": "Connections in use.",
    "overflow": "Connections open beyond the size.",
    "waiting": "Callers that have asked for a connection and do not have it yet.",
    "breaker_open": "1 while no connect is tried, because too many in a row have failed.",
}
_COUNTERS: Final = {
    "checkouts": "Checkouts that got a connection.",
    "checkout_timeouts": "Checkouts that gave up after pool_timeout.",
    "opened": "Connections opened.",
    "closed": "Connections closed.",
    "connect_failures": "Attempts to open a connection that failed.",
    "shed": "Checkouts refused at once, because max_waiting others waited.",
}
_HISTOGRAMS: Final = {
    "checkout_wait": "How long checkouts waited for their connection.",
    "connect_time": "How long opening a connection took.",
}
_BOUNDS: Final = (*map(str, BUCKETS), "+Inf")


class PoolCollector(Collector):
    """One or more pools as Prometheus metrics `poolkit_pool_...`; times in seconds.

    Each metric has the label `target`, the pool's name. Two pools belong in one collector: two
    collectors would give each metric twice, which Prometheus refuses.
    """

    def __init__(self, snapshots: Callable[[], Mapping[str, PoolSnapshot]]) -> None:
        """Store the function that returns each pool's state by name; a scrape calls it."""
        self._snapshots = snapshots

    def describe(self) -> list[Metric]:
        """Return nothing: a registry need not take a snapshot to know the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of every pool."""
        snapshots = self._snapshots()
        for kind, texts in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for field, text in texts.items():
                family = kind(f"poolkit_pool_{field}", text, labels=["target"])
                for name, snapshot in snapshots.items():
                    family.add_metric([name], getattr(snapshot, field))
                yield family
        for field, text in _HISTOGRAMS.items():
            times = HistogramMetricFamily(f"poolkit_pool_{field}_seconds", text, labels=["target"])
            for name, snapshot in snapshots.items():
                histogram: Histogram = getattr(snapshot, field)
                # In Prometheus each bucket includes the smaller ones.
                cumulative = map(float, accumulate(histogram.counts))
                buckets = list(zip(_BOUNDS, cumulative, strict=True))
                times.add_metric([name], buckets, histogram.total)
            yield times


def exposition(snapshots: Mapping[str, PoolSnapshot]) -> bytes:
    """Return the answer to a scrape, in Prometheus' text format.

    Args:
        snapshots: each pool's state, by the name that its metrics have as the label `target`.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PoolCollector(lambda: snapshots))
    return generate_latest(registry)
