"""The load: Locust in a process of its own, and figures from its rows while they grow."""

from __future__ import annotations

import csv
import sys
import time
from collections import deque
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil, sqrt
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from poolkit.compare.results.run_folder import Level
    from poolkit.compare.run.window_figures import WindowFigures

LONGER_WARM_UP_S = 8.0
"""Seconds by which a warm-up may grow while requests still wait for cold starts."""
COLD_STARTS_S = 60.0
"""The same while execution environments are in their init phase: a function that imports a web
framework takes seconds, and many at once share the machine's cores."""
OVER_S = 3.0
"""The span of the live figures."""
SETTLING_S = 0.5
"""A request that old has been answered and written by now, or is slow."""
THROTTLED = "429"
"""The status of a request for which a function had no execution environment."""
FIRST_REQUESTS = 20
"""The requests of the single user that finds out whether the target uses its database. An
application that asks it in one of five requests has done so by then with a probability of 99 %."""
FIRST_S = 8.0
"""The seconds after which the whole load begins if the first requests are not answered."""
LATE_MS = 100.0
"""A request sent this much too late waited for one before it."""
_ANSWER_GRACE_S = 15
"""Seconds that a request in flight has after the end; later answers count as timed out."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load of one measurement, and the file of its rows. Times are in seconds.

    Locust starts without a host and waits until `begin` names one: its start takes a second,
    which a target needs too.
    """

    locustfile: Path
    level: Level
    warm_up_s: float
    duration_s: float
    requests: Path
    begins_alone: bool = False
    """Whether a single user sends the first requests, until `go_on` is called."""

    @property
    def command(self) -> list[str]:
        """The command line of Locust."""
        users = self.level.users
        # Users of a closed loop start within half of the warm-up; those of an open loop at once.
        closed_rate = max(1.0, users / max(0.5, self.warm_up_s / 2))
        plugin = find_spec("poolkit.loadtest.compare_plugin")
        assert plugin is not None  # noqa: S101  (it is a module of this package)
        return [
            *(sys.executable, "-m", "locust", "--headless", "--only-summary"),
            *("-f", f"{plugin.origin},{self.locustfile}"),
            *("--users", str(users)),
            *("--spawn-rate", f"{users if self.level.is_open else closed_rate:.3f}"),
            # An upper bound in whole seconds: the measurement ends the load earlier.
            *(
                "--run-time",
                str(ceil(FIRST_S + self.warm_up_s + COLD_STARTS_S + self.duration_s) + 15),
            ),
            *("--stop-timeout", str(_ANSWER_GRACE_S)),
            # Failed requests are results, not a failure of the run.
            *("--exit-code-on-error", "0"),
        ]

    @property
    def environ(self) -> Mapping[str, str]:
        """The variables that direct the plugin."""
        level = self.level
        rates = {"POOLKIT_LOAD_RATE": str(level.rate_per_user)}
        if level.is_open:
            rates = {
                "POOLKIT_LOAD_ARRIVAL_RATE": str(level.arrival_rate),
                "POOLKIT_LOAD_ARRIVALS": level.arrivals,
                "POOLKIT_LOAD_MAX_USERS": str(level.max_users),
            }
        first = f"{FIRST_REQUESTS} {self._go_file}"
        return {
            "POOLKIT_LOAD_REQUESTS": str(self.requests),
            "POOLKIT_LOAD_HOST": str(self._host_file),
            **({"POOLKIT_LOAD_FIRST": first} if self.begins_alone else {}),
            **rates,
        }

    def begin(self, host: str) -> None:
        """Start the load on this URL.

        Raises:
            OSError: the folder of the rows cannot be written to.
        """
        # Replaced as a whole: Locust reads the file as soon as it exists.
        partial = self._host_file.with_suffix(".partial")
        partial.write_text(host, encoding="utf-8")
        partial.replace(self._host_file)

    def go_on(self) -> None:
        """Begin the whole load: until then a single user sends the first requests.

        Raises:
            OSError: the folder of the rows cannot be written to.
        """
        self._go_file.touch()

    @property
    def _go_file(self) -> Path:
        return self.requests.with_suffix(".go")

    @property
    def _host_file(self) -> Path:
        return self.requests.with_suffix(".host")


class _Recent(NamedTuple):
    """One of the last requests."""

    started: float
    latency_ms: float
    late_ms: float
    """The delay of its start behind its schedule."""


class LiveFigures:
    """Requests per second and p95 latency of the last seconds; both 0 without requests.

    Args:
        path: the file of requests.
        level: the load.
        clock: returns the Unix time.
    """

    def __init__(self, path: Path, level: Level, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self.window: WindowFigures | None = None
        """Receives every request too."""
        # Whole periods: in each of them every user has one task. An open loop has but one.
        period = 1 / (level.rate_per_user or level.offered_per_s)
        self._span_s = period * ceil(SETTLING_S / period)
        scheduled = level.offered_per_s * self._span_s
        # The least number of tasks in that span if all goes well. The last users may start a
        # moment later than their schedule.
        self._least = 0.97 * scheduled - (1 if level.is_open else 0)
        if level.arrivals == "poisson":
            self._least = scheduled - 3 * sqrt(scheduled)
        self._memory_s = max(OVER_S, self._span_s + 2 * SETTLING_S)
        self._read = 0
        self._recent: deque[_Recent] = deque()
        self._throttled = 0.0
        self.first = 0.0
        """The moment when the first request was sent."""
        self.count = 0
        self.answered = 0
        """The requests without an error."""
        self.first_failure = ""
        """The first request with an error, as text."""

    def update(self) -> int:
        """Read new rows, and return the number of requests so far."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return 0
        # An incomplete line is read again when its end is written.
        complete = text[: text.rfind(b"\n") + 1]
        self._read += len(complete)
        for row in csv.reader(complete.decode().splitlines()):
            if row[0] == "due":
                continue
            started, latency_ms, service_ms = float(row[1]), float(row[2]), float(row[3])
            self.first = min(self.first or started, started)
            self.count += 1
            self.answered += not row[7]
            if row[7] and not self.first_failure:
                self.first_failure = f"{row[4]} {row[5]}: {row[7]}"
            if row[6] == THROTTLED:
                self._throttled = max(self._throttled, started)
            self._recent.append(_Recent(started, latency_ms, latency_ms - service_ms))
            if self.window is not None:
                ended = started + service_ms / 1000
                self.window.take_request(
                    float(row[0]), ended, latency_ms, row[7], method=row[4], name=row[5]
                )
        oldest = self._clock() - self._memory_s
        while self._recent and self._recent[0].started < oldest:
            self._recent.popleft()
        return self.count

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return len(self._last_latencies()) / OVER_S

    @property
    def p95_ms(self) -> float:
        """The latency that 95 of 100 requests did not exceed, in ms."""
        latencies = sorted(self._last_latencies())
        return latencies[int(len(latencies) * 0.95)] if latencies else 0.0

    def _last_latencies(self) -> list[float]:
        since = self._clock() - OVER_S
        return [one.latency_ms for one in self._recent if one.started >= since]

    @property
    def is_steady(self) -> bool:
        """True if every user's tasks of a moment ago were sent in time and are answered.

        The answers alone would not show a target that is silent because each user waits for a
        cold start: it looks like one that answers everything at once.
        """
        until = self._clock() - SETTLING_S
        since = until - self._span_s
        scheduled = [
            one for one in self._recent if since <= one.started - one.late_ms / 1000 < until
        ]
        # A function answers 429 at once while its execution environments start.
        if self._throttled >= since:
            return False
        return len(scheduled) >= self._least and all(one.late_ms <= LATE_MS for one in scheduled)
