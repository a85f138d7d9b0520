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
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from poolkit.config.holds import CallSite

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
    "busy_seconds": "The part of the hold time in which SQL ran.",
    "unseen_seconds": "The part of the hold time with the driver's own connection, whose SQL is not seen.",
    "nested_checkouts": "Checkouts of a unit of work that had a connection of the pool already.",
    "held_after_response": "Connections still out when the response was sent, or the task was over.",
    "leaked": "Connections out for more than the leak detection threshold, or never closed.",
}
_HISTOGRAMS: Final = {
    "checkout_wait": "How long checkouts waited for their connection.",
    "connect_time": "How long opening a connection took.",
    "hold_time": "How long connections were out.",
}
# A histogram's name and unit.
_NAMES: Final = {"hold_time": "hold"}
_SITE_COUNTERS: Final = {
    "checkouts": ("count", "Checkouts of a line of code."),
    "seconds": ("held_s", "How long the connections of a line were out."),
    "busy_seconds": ("busy_s", "The part of it in which SQL ran."),
    "unseen_seconds": ("unseen_s", "The part of it with the driver's own connection."),
    "nested": ("nested", "Checkouts of a line whose unit of work had a connection already."),
    "after_response": ("after_response", "Connections of a line still out after the response."),
    "leaked": ("leaked", "Connections of a line that were leaked."),
}
_SITE_GAUGES: Final = {
    "p95_seconds": ("p95_s", "The 95th percentile of a line's hold time."),
    "longest_seconds": ("longest_s", "The longest hold time of a line."),
}
MAX_SITES: Final = 50
"""Call sites of a pool in an answer to a scrape: those with most idle time."""
_BOUNDS: Final = (*map(str, BUCKETS), "+Inf")


class PoolCollector(Collector):
    """One or more pools as Prometheus metrics `poolkit_pool_...`; times in seconds.

    Each metric has the label `target`, the pool's name. Two pools belong in one collector: two
    collectors would give each metric twice, which Prometheus refuses.
    """

    def __init__(
        self,
        snapshots: Callable[[], Mapping[str, PoolSnapshot]],
        call_sites: Callable[[], Mapping[str, Sequence[CallSite]]] | None = None,
    ) -> None:
        """Store the functions that a scrape calls.

        Args:
            snapshots: returns each pool's state by name.
            call_sites: returns who held each pool's connections, `metrics.holds.rows()`.
        """
        self._snapshots = snapshots
        self._call_sites = call_sites

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
            metric = f"poolkit_pool_{_NAMES.get(field, field)}_seconds"
            times = HistogramMetricFamily(metric, text, labels=["target"])
            for name, snapshot in snapshots.items():
                histogram: Histogram = getattr(snapshot, field)
                # In Prometheus each bucket includes the smaller ones.
                cumulative = map(float, accumulate(histogram.counts))
                buckets = list(zip(_BOUNDS, cumulative, strict=True))
                times.add_metric([name], buckets, histogram.total)
            yield times
        if self._call_sites is not None:
            yield from self._of_call_sites(self._call_sites())

    def _of_call_sites(self, pools: Mapping[str, Sequence[CallSite]]) -> Iterator[Metric]:
        labels = ["target", "where", "unit"]
        for kind, metrics in (
            (CounterMetricFamily, _SITE_COUNTERS),
            (GaugeMetricFamily, _SITE_GAUGES),
        ):
            for metric, (field, text) in metrics.items():
                family = kind(f"poolkit_hold_site_{metric}", text, labels=labels)
                for name, rows in pools.items():
                    for row in rows[:MAX_SITES]:
                        family.add_metric([name, row.where, row.unit], getattr(row, field))
                yield family


def exposition(
    snapshots: Mapping[str, PoolSnapshot],
    call_sites: Mapping[str, Sequence[CallSite]] | None = None,
) -> bytes:
    """Return the answer to a scrape, in Prometheus' text format.

    Args:
        snapshots: each pool's state, by the name that its metrics have as the label `target`.
        call_sites: who held each pool's connections, by the same name.
    """
    registry = CollectorRegistry(auto_describe=False)
    sites = None if call_sites is None else lambda: call_sites
    registry.register(PoolCollector(lambda: snapshots, sites))
    return generate_latest(registry)
