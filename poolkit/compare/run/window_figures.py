"""What the measured time has come to so far, for the thresholds that end it early.

The names are those of `poolkit.thresholds`; the definitions are those of the results
(docs/results.md), as far as they can be known in the middle.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from poolkit.loadtest.latency.histogram import LatencyHistogram

if TYPE_CHECKING:
    from poolkit.activity.server import Sample

WRITTEN_S = 1.0
"""A request that ended so long ago has been written and read by now."""
LEAST_OF_A_RATE_S = 1.0
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
IDLE_IN_TRANSACTION = ("idle in transaction", "idle in transaction (aborted)")


class WindowFigures:
    """Adds up requests and samples of one measured time.

    Args:
        begin: when it began, Unix time in seconds.
        backends: what the target's connections are called on the server.
        max_connections: how many the server takes.
        sessions: the server's counter at the begin, if it is known.
    """

    def __init__(
        self, begin: float, *, backends: str, max_connections: int, sessions: int | None
    ) -> None:
        self._begin = begin
        self._sessions_from = sessions
        self._sessions: deque[tuple[float, int]] = deque()
        """Newest last; the first is as old as what is known of requests."""
        self._ended: deque[tuple[float, bool]] = deque()
        """When requests ended of which not all of that time are known yet; whether they are
        answers."""
        self._backends = backends
        self._max_connections = max_connections
        self._latencies = LatencyHistogram()
        self._requests = 0
        self._failed = 0
        self._served = 0
        self._answered = 0
        self._samples = 0
        self._connections = 0
        self._most = 0
        self._most_idle_in_transaction = 0

    def take_request(self, due: float, ended: float, latency_ms: float, error: str) -> None:
        """Count a request; what was due before the measured time is only served in it."""
        if ended >= self._begin and error != "unsent":
            self._ended.append((ended, not error))
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
        self._sessions.append((sample.time, sample.sessions))
        states = [b.state for b in sample.backends if b.target == self._backends]
        self._samples += 1
        self._connections += len(states)
        self._most = max(self._most, len(states))
        idle = sum(state in IDLE_IN_TRANSACTION for state in states)
        self._most_idle_in_transaction = max(self._most_idle_in_transaction, idle)

    def so_far(self, now: float, *, cold_starts: int | None = None) -> dict[str, float | None]:
        """Return the figures as of now.

        Args:
            now: Unix time in seconds.
            cold_starts: execution environments started since the begin, where there are such.
        """
        until = now - WRITTEN_S
        while self._ended and self._ended[0][0] <= until:
            self._answered += self._ended.popleft()[1]
            self._served += 1
        return {
            **self._of_requests(),
            "http.rate": self._rate(until),
            **self._of_connections(),
            "db.opened_per_request": self._per_request(until),
            "lambda.cold_starts": cold_starts,
        }

    def _rate(self, until: float) -> float | None:
        elapsed_s = until - self._begin
        return self._answered / elapsed_s if elapsed_s >= LEAST_OF_A_RATE_S else None

    def _per_request(self, until: float) -> float | None:
        """Return connections opened a request, both as of a moment at which both are known."""
        while len(self._sessions) > 1 and self._sessions[1][0] <= until:
            self._sessions.popleft()
        if not self._served or not self._sessions or self._sessions[0][0] > until:
            return None
        opened = self._opened(self._sessions[0][1])
        return None if opened is None else opened / self._served

    def _opened(self, sessions: int) -> int | None:
        """Return how far the counter went; None if it was reset, as after a crash."""
        begin = self._sessions_from
        return None if begin is None or sessions < begin else sessions - begin

    def _of_requests(self) -> dict[str, float | None]:
        found = self._latencies.percentiles(PERCENTILES)
        percentiles = {f"http.p{p:g}": ms for p, ms in zip(PERCENTILES, found, strict=True)}
        return {
            **percentiles,
            "http.max": self._latencies.max,
            "http.mean": self._latencies.mean,
            "http.errors": self._failed / self._requests if self._requests else None,
            "http.requests": self._requests,
        }

    def _of_connections(self) -> dict[str, float | None]:
        if not self._samples:
            return {}
        return {
            "db.opened": self._opened(self._sessions[-1][1]),
            "db.connections.max": self._most,
            "db.connections.mean": self._connections / self._samples,
            "db.connections.share": self._most / self._max_connections,
            "db.idle_in_transaction.max": self._most_idle_in_transaction,
        }
