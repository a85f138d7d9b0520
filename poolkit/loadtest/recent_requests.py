"""Requests per second and p95 of the last seconds, from Locust's running totals.

Locust's own "current" figures look back ten seconds and stand still while nothing is answered,
so a stall of the server would not be seen beside its connections.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from locust.runners import MasterRunner
from locust.stats import calculate_response_time_percentile, diff_response_time_dicts

if TYPE_CHECKING:
    from locust.runners import Runner

LOCAL_WINDOW_S = 2
REPORTED_WINDOW_S = 6
"""Workers report every three seconds: two reports, or a chart would jump between them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What Locust has counted so far."""

    time: float
    requests: int
    failures: int
    response_times: dict[int, int]
    """How many requests took so many ms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Figures of the last seconds; `p95_ms` is None when nothing was answered in them."""

    requests_per_s: float
    failures_per_s: float
    p95_ms: float | None


class RecentRequests:
    """Looks back over the totals of a runner: two seconds, or six when workers report to it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        window_s = REPORTED_WINDOW_S if isinstance(runner, MasterRunner) else LOCAL_WINDOW_S
        self._seen: deque[Totals] = deque(maxlen=window_s + 1)

    def look(self, now: float) -> Rates:
        """Take the totals of this moment, once a second, and return the rates up to it."""
        total = self._runner.stats.total
        latest = Totals(
            time=now,
            requests=total.num_requests,
            failures=total.num_failures,
            response_times=dict(total.response_times),
        )
        if self._seen and latest.requests < self._seen[-1].requests:
            self._seen.clear()  # the totals were set back to zero
        self._seen.append(latest)
        return _between(self._seen[0], latest)


def _between(first: Totals, last: Totals) -> Rates:
    seconds = last.time - first.time
    answered = diff_response_time_dicts(last.response_times, first.response_times)
    count = sum(answered.values())
    if seconds <= 0:
        return Rates(requests_per_s=0.0, failures_per_s=0.0, p95_ms=None)
    return Rates(
        requests_per_s=(last.requests - first.requests) / seconds,
        failures_per_s=(last.failures - first.failures) / seconds,
        p95_ms=float(calculate_response_time_percentile(answered, count, 0.95)) if count else None,
    )
