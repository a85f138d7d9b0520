"""What the measured time has come to so far, for the thresholds that end it early.

The names are those of `poolkit.thresholds`; the definitions are those of the results
(docs/results.md), as far as they can be known in the middle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.loadtest.latency import LatencyHistogram

if TYPE_CHECKING:
    from poolkit.activity import Sample

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
IDLE_IN_TRANSACTION = ("idle in transaction", "idle in transaction (aborted)")


class WindowFigures:
    """Adds up requests and samples of one measured time.

    Args:
        begin: when it began, Unix time in seconds.
        backends: what the target's connections are called on the server.
        max_connections: how many the server takes.
    """

    def __init__(self, begin: float, *, backends: str, max_connections: int) -> None:
        self._begin = begin
        self._backends = backends
        self._max_connections = max_connections
        self._latencies = LatencyHistogram()
        self._requests = 0
        self._failed = 0
        self._served = 0
        self._samples = 0
        self._connections = 0
        self._most = 0
        self._most_idle_in_transaction = 0

    def take_request(self, due: float, ended: float, latency_ms: float, error: str) -> None:
        """Count a request; what was due before the measured time is only served in it."""
        if ended >= self._begin and error != "unsent":
            self._served += 1
        if due < self._begin:
            return
        self._requests += 1
        if error:
            self._failed += 1
        else:
            self._latencies.record(latency_ms)

    def take_sample(self, sample: Sample) -> None:
        """Count the connections of a moment."""
        if sample.time < self._begin:
            return
        states = [b.state for b in sample.backends if b.target == self._backends]
        self._samples += 1
        self._connections += len(states)
        self._most = max(self._most, len(states))
        idle = sum(state in IDLE_IN_TRANSACTION for state in states)
        self._most_idle_in_transaction = max(self._most_idle_in_transaction, idle)

    def so_far(
        self, now: float, *, opened: int | None, cold_starts: int | None = None
    ) -> dict[str, float | None]:
        """Return the figures as of now.

        Args:
            now: Unix time in seconds.
            opened: connections opened since the begin, by the server's counter.
            cold_starts: execution environments started since, where there are such.
        """
        return {
            **self._of_requests(max(1e-9, now - self._begin)),
            **self._of_connections(),
            "db.opened": opened,
            "db.opened_per_request": (
                opened / self._served if opened is not None and self._served else None
            ),
            "lambda.cold_starts": cold_starts,
        }

    def _of_requests(self, elapsed_s: float) -> dict[str, float | None]:
        found = self._latencies.percentiles(PERCENTILES)
        percentiles = {f"http.p{p:g}": ms for p, ms in zip(PERCENTILES, found, strict=True)}
        return {
            **percentiles,
            "http.max": self._latencies.max,
            "http.mean": self._latencies.mean,
            "http.errors": self._failed / self._requests if self._requests else None,
            "http.requests": self._requests,
            "http.rate": (self._requests - self._failed) / elapsed_s,
        }

    def _of_connections(self) -> dict[str, float | None]:
        if not self._samples:
            return {}
        return {
            "db.connections.max": self._most,
            "db.connections.mean": self._connections / self._samples,
            "db.connections.share": self._most / self._max_connections,
            "db.idle_in_transaction.max": self._most_idle_in_transaction,
        }
