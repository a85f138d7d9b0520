"""The latencies of a whole run, to which those of each second are added."""

from __future__ import annotations

from poolkit.loadtest.latency.histogram import Latencies, LatencyHistogram, Name


class RunLatencies(Latencies):
    """Keeps the sums over all names: page, thresholds and console ask for them every second.

    Added up when asked for, thousands of buckets of each name would be walked through in the process
    that sends the load.
    """

    def __init__(self) -> None:
        super().__init__()
        self._totals = {False: LatencyHistogram(), True: LatencyHistogram()}

    def record(self, method: str, name: str, ms: float, *, failed: bool = False) -> None:
        """Count one request."""
        super().record(method, name, ms, failed=failed)
        self._totals[failed].record(ms)

    def add(self, other: Latencies) -> None:
        """Count everything that another has counted, too."""
        super().add(other)
        self._totals[False].add(other.answered())
        self._totals[True].add(other.failed())

    def _sum(self, name: Name | None, *, failed: bool) -> LatencyHistogram:
        if name is not None:
            return super()._sum(name, failed=failed)
        total = LatencyHistogram()
        total.add(self._totals[failed])
        return total
