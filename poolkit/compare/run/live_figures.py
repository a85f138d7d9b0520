"""Figures of this moment, read from the file of requests while it grows."""

from __future__ import annotations

import csv
import time
from collections import deque
from math import ceil, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from poolkit.compare.results.run_folder import Level
    from poolkit.compare.run.window_figures import WindowFigures

OVER_S = 3.0
"""The seconds that the figures look back."""
SETTLING_S = 0.5
"""A request of that age has been answered and written by now, or is slow."""
THROTTLED = "429"
"""The status of what a function had no execution environment for."""
LATE_MS = 100.0
"""A request sent so much too late waited for one before it."""


class LiveFigures:
    """Requests per second and p95 latency of the last seconds; both 0 without requests.

    Args:
        path: the file of requests.
        level: how much load there is.
        clock: gives the Unix time.
    """

    def __init__(self, path: Path, level: Level, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self.window: WindowFigures | None = None
        """Is given every request too."""
        # Whole periods: in each of them every user has one task. An open loop has but one.
        period = 1 / (level.rate_per_user or level.offered_per_s)
        self._span_s = period * ceil(SETTLING_S / period)
        self._due_in_span = _least_due(level, self._span_s)
        self._keep_s = max(OVER_S, self._span_s + 2 * SETTLING_S)
        self._read = 0
        self._recent: deque[tuple[float, float, float]] = deque()
        self._throttled = 0.0
        self.first = 0.0
        """The moment when the first request was sent."""
        self.count = 0

    def update(self) -> int:
        """Read what is new, and return how many requests there have been."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return 0
        # A line that is not whole yet is read again when its end has come.
        complete = text[: text.rfind(b"\n") + 1]
        self._read += len(complete)
        self._take(complete.decode().splitlines())
        return self.count

    def _take(self, lines: list[str]) -> None:
        for row in csv.reader(lines):
            if row[0] == "due":
                continue
            started, latency_ms, service_ms = float(row[1]), float(row[2]), float(row[3])
            self.first = min(self.first or started, started)
            self.count += 1
            if row[6] == THROTTLED:
                self._throttled = max(self._throttled, started)
            self._recent.append((started, latency_ms, latency_ms - service_ms))
            if self.window is not None:
                ended = started + service_ms / 1000
                self.window.take_request(float(row[0]), ended, latency_ms, row[7])
        oldest = self._clock() - self._keep_s
        while self._recent and self._recent[0][0] < oldest:
            self._recent.popleft()

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return len(self._last()) / OVER_S

    @property
    def p95_ms(self) -> float:
        """The latency that 95 of 100 requests did not exceed, in ms."""
        latencies = sorted(latency for _, latency, _ in self._last())
        return latencies[int(len(latencies) * 0.95)] if latencies else 0.0

    def _last(self) -> list[tuple[float, float, float]]:
        since = self._clock() - OVER_S
        return [row for row in self._recent if row[0] >= since]

    @property
    def is_steady(self) -> bool:
        """True if every user's tasks of a moment ago were sent in time and are answered.

        Looking at the answers alone would take a target of which nothing is heard, because
        each user waits for a cold start, for one that answers everything at once.
        """
        until = self._clock() - SETTLING_S
        since = until - self._span_s
        rows = [row for row in self._recent if since <= row[0] - row[2] / 1000 < until]
        # A function answers so at once while its execution environments start.
        if self._throttled >= since:
            return False
        return len(rows) >= self._due_in_span and all(row[2] <= LATE_MS for row in rows)


def _least_due(level: Level, span_s: float) -> float:
    """Return how many tasks there are in such a time at least, if all goes well."""
    due = level.offered_per_s * span_s
    if level.arrivals == "poisson":
        return due - 3 * sqrt(due)
    # The last users may have come a moment later than asked for.
    return 0.97 * due - (1 if level.is_open else 0)
