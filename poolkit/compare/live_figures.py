"""Figures of this moment, read from the file of requests while it grows."""

from __future__ import annotations

import csv
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

OVER_S = 3.0
"""The seconds that the figures look back."""


class LiveFigures:
    """Requests per second and p95 latency of the last seconds; both 0 without requests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._recent: deque[tuple[float, float, float]] = deque()
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
            self._recent.append((started, latency_ms, latency_ms - service_ms))
        oldest = time.time() - OVER_S
        while self._recent and self._recent[0][0] < oldest:
            self._recent.popleft()

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return len(self._recent) / OVER_S

    @property
    def p95_ms(self) -> float:
        """The latency that 95 of 100 requests did not exceed, in ms."""
        latencies = sorted(latency for _, latency, _ in self._recent)
        return latencies[int(len(latencies) * 0.95)] if latencies else 0.0

    @property
    def late_ms(self) -> float:
        """How much too late the latest requests were sent, in ms: there is a backlog."""
        since = time.time() - 1.0
        return max((late for started, _, late in self._recent if started > since), default=0.0)
