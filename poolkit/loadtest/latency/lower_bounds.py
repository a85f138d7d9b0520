"""The latencies of a run with those whose answers never came: at least as long as they had waited.

Each figure is the higher of two: that of the answered requests, and that of all, in which one without
an answer counts with the time it had waited when the end of the run cut it off. Its own
latency would have been longer, so no figure is above what the run would have shown; and what was sent just
before the end lowers none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.loadtest.latency.histogram import LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.loadtest.latency.histogram import Latencies

LONG_MS = 1000.0
"""What nobody waits for without noticing; and few requests take longer than their p99."""
LONG_PERCENTILE = 99.0


class LatenciesAtLeast:
    """Percentiles, maximum and mean in ms; None when nothing was answered."""

    def __init__(self, latencies: Latencies) -> None:
        self._answered = latencies.answered()
        self._both = [self._answered]
        """That of the answered requests, and if anything was cut off that of all."""
        if latencies.unanswered.count or latencies.unsent.count:
            everything = LatencyHistogram()
            for part in (self._answered, latencies.unanswered, latencies.unsent):
                everything.add(part)
            self._both.append(everything)

    @property
    def max(self) -> float | None:
        """The longest."""
        return _higher([one.max for one in self._both])

    @property
    def mean(self) -> float | None:
        """The mean."""
        return _higher([one.mean for one in self._both])

    def percentiles(self, wanted: Sequence[float]) -> list[float | None]:
        """Return several percentiles, given in rising order."""
        return list(
            map(_higher, zip(*(one.percentiles(wanted) for one in self._both), strict=True))
        )


def _higher(found: Sequence[float | None]) -> float | None:
    known = [one for one in found if one is not None]
    return max(known) if len(known) == len(found) else None


def long_ms(latencies: Latencies) -> float:
    """Return from which time on a request without an answer has failed.

    What takes a second or two as a rule must not have failed because a run ends.
    """
    return max(LONG_MS, latencies.answered().percentile(LONG_PERCENTILE) or 0.0)


def failed_unanswered(latencies: Latencies) -> int:
    """Return how many of the requests without an answer count as failed."""
    if not latencies.unanswered.count:
        return 0  # as while a run goes on, when it is asked for every second
    return latencies.unanswered.count_above(long_ms(latencies))


def words(latencies: Latencies) -> Iterator[str]:
    """Return what a person is told at the end of a run about what it cut off."""
    failed = failed_unanswered(latencies)
    if failed:
        yield (
            f"{latencies.unanswered.count:,} requests had no answer at the end; {failed:,} of them "
            f"had waited for more than {long_ms(latencies):,.0f} ms and count as failed"
        )
