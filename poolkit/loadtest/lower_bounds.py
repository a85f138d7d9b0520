"""The latencies of a run with those whose answers never came: at least as long as they had waited.

Each figure is the higher of two: that of the answered requests, and that of all, in which one without
an answer counts with the time it had waited when the end of the run cut it off. Its own
latency would have been longer, so no figure is above what the run would have shown; and what was sent just
before the end lowers none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.loadtest.latency import LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.loadtest.latency import Latencies

LONG_MS = 1000.0
"""What nobody waits for without noticing; and few requests take longer than their p99."""
LONG_PERCENTILE = 99.0


class LatenciesAtLeast:
    """Percentiles, maximum and mean in ms; None when nothing was answered."""

    def __init__(self, latencies: Latencies) -> None:
        self._answered = latencies.answered()
        self._all = self._answered
        if latencies.unanswered.count or latencies.unsent.count:
            self._all = LatencyHistogram()
            for part in (self._answered, latencies.unanswered, latencies.unsent):
                self._all.add(part)

    @property
    def max(self) -> float | None:
        """The longest."""
        return _higher(self._answered.max, self._all.max)

    @property
    def mean(self) -> float | None:
        """The mean."""
        return _higher(self._answered.mean, self._all.mean)

    def percentiles(self, wanted: Sequence[float]) -> list[float | None]:
        """Return several percentiles, given in rising order."""
        of_answered, of_all = (one.percentiles(wanted) for one in (self._answered, self._all))
        return list(map(_higher, of_answered, of_all))


def _higher(of_answered: float | None, of_all: float | None) -> float | None:
    if of_answered is None or of_all is None:
        return None
    return max(of_answered, of_all)


def long_ms(latencies: Latencies) -> float:
    """Return from which time on a request without an answer has failed.

    What takes a second or two as a rule must not have failed because a run ends.
    """
    return max(LONG_MS, latencies.answered().percentile(LONG_PERCENTILE) or 0.0)


def failed_unanswered(latencies: Latencies) -> int:
    """Return how many of the requests without an answer count as failed."""
    return latencies.unanswered.count_above(long_ms(latencies))


def words(latencies: Latencies) -> Iterator[str]:
    """Return what a person is told at the end of a run about what it cut off."""
    failed = failed_unanswered(latencies)
    if failed:
        yield (
            f"{latencies.unanswered.count:,} requests had no answer at the end; {failed:,} of them "
            f"had waited for more than {long_ms(latencies):,.0f} ms and count as failed"
        )
