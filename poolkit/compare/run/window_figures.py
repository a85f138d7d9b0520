"""The figures of the measured time so far, for the thresholds that end it early.

They are those of the results, by the same accumulator, as of a second ago: by then every request that
had ended has been written and read. So requests and samples are known up to the same moment.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from poolkit.loadtest.figures import MetricAccumulator
from poolkit.loadtest.latency.counters import outcome_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolkit.activity.server import Sample
    from poolkit.loadtest.figures import Held
    from poolkit.thresholds.selector import Selector

WRITTEN_S = 1.0
"""A request that ended this long ago has been written and read by now."""


class WindowFigures:
    """Feeds an accumulator with the requests and samples of one measured time as they come.

    Args:
        begin: when it began, Unix time in seconds.
        end: when it is to end.
        target: the target's name.
        max_connections: of the server.
        sessions: the server's counter at the begin, if it is known.
        selectors: the requests that thresholds are about.
    """

    def __init__(
        self,
        begin: float,
        end: float = math.inf,
        *,
        target: str,
        max_connections: int,
        sessions: int | None,
        selectors: Iterable[Selector] = (),
    ) -> None:
        self._measured = MetricAccumulator(
            begin, end, sessions=sessions, max_connections=max_connections
        )
        self._target = target
        self._measured.select(selectors)
        self._requests: deque[tuple[float, float, float, str, str, str]] = deque()
        """Those that were read and are not counted yet, in the order in which they were written."""
        self._samples: deque[tuple[Sample, Held | None]] = deque()

    def take_request(
        self,
        due: float,
        ended: float,
        latency_ms: float,
        error: str,
        *,
        method: str = "",
        name: str = "",
    ) -> None:
        """Take a row of requests.csv."""
        self._requests.append((due, ended, latency_ms, error, method, name))

    def take_sample(self, sample: Sample, held: Held | None) -> None:
        """Take the target's connections of a moment; called in the sampler's thread."""
        self._samples.append((sample, held))

    def so_far(self, now: float, *, cold_starts: int | None = None) -> dict[str, float | None]:
        """Return the figures as of a second before `now`.

        Args:
            now: Unix time in seconds.
            cold_starts: execution environments started since the begin, for a Lambda target.
        """
        until, measured = now - WRITTEN_S, self._measured
        while self._requests and self._requests[0][1] <= until:
            scheduled, ended, latency_ms, error, method, name = self._requests.popleft()
            measured.add(scheduled, ended, latency_ms, outcome_of(error), method=method, name=name)
        while self._samples and self._samples[0][0].time <= until:
            sample, held = self._samples.popleft()
            known = {} if held is None else {self._target: held}
            measured.connections.add_sample(sample.time, sample.sessions, known)
        measured.cold_starts = cold_starts
        return measured.figures(until, self._target)
