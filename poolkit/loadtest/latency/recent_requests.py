"""Requests per second and percentiles of the last seconds, from the histograms of these seconds.

Locust's own "current" figures look back ten seconds and stand still while nothing is answered,
so a stall of the server would not be seen beside its connections.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit.loadtest.latency.run_latencies import Latencies

if TYPE_CHECKING:
    from collections.abc import Sequence

LOCAL_WINDOW_S = 2
REPORTED_WINDOW_S = 6
"""Workers report every three seconds: two reports, or a chart would jump between them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Figures of the last seconds; percentiles are None when nothing was answered in them."""

    requests_per_s: float
    failures_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class RecentRequests:
    """Looks back over some intervals of a second: two, or six when workers report.

    Args:
        reported: whether workers report.
        now: the beginning of the first interval, Unix time.

    """

    def __init__(self, *, reported: bool, now: float) -> None:
        window = REPORTED_WINDOW_S if reported else LOCAL_WINDOW_S
        self._ends: deque[float] = deque([now], maxlen=window + 1)
        self._intervals: deque[Latencies] = deque(maxlen=window)

    def look(self, now: float, interval: Latencies) -> Rates:
        """Take what came since the last look, once a second, and return the rates up to now."""
        self._ends.append(now)
        self._intervals.append(interval)
        return _over(self._intervals, now - self._ends[0])


def _over(intervals: Sequence[Latencies], seconds: float) -> Rates:
    recent = Latencies()
    for interval in intervals:
        recent.add(interval)
    answered, failed = recent.answered(), recent.failed().count
    p50, p95, p99 = answered.percentiles((50, 95, 99))
    return Rates(
        requests_per_s=(answered.count + failed) / seconds if seconds > 0 else 0.0,
        failures_per_s=failed / seconds if seconds > 0 else 0.0,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
    )
