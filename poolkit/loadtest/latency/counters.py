"""The requests of a load test, counted by outcome and latency.

`RequestCounters` counts those of a measured time, `Latencies` has one for each method and name, and
`RecentRequests` makes the figures of the last seconds. Nothing here imports Locust.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

from poolkit.loadtest.latency.histogram import LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Outcome: TypeAlias = Literal["answered", "failed", "timed_out", "dropped"]
"""The outcome of a request.

- answered: a success.
- failed: an answer that is an error, or none because of an error.
- timed_out: no answer when the run, or the request's user, ended.
- dropped: scheduled and never sent, because every user was busy.
"""
_ENDED = ("answered", "failed")
FAILURES: tuple[Outcome, ...] = ("failed", "timed_out", "dropped")
TIMED_OUT, DROPPED = "unanswered", "unsent"
"""The last two in the column `error` of requests.csv."""

LONG_MS = 1000.0
"""A user notices a wait of a second; few requests take longer than the 99th percentile."""
LONG_PERCENTILE = 99.0
LOCAL_WINDOW_S = 2
REPORTED_WINDOW_S = 6
"""Workers report every three seconds: in less than two reports a chart would jump."""


def outcome_of(error: str) -> Outcome:
    """Return the outcome of a row of requests.csv, whose column `error` is empty for a success."""
    if not error:
        return "answered"
    return "timed_out" if error == TIMED_OUT else "dropped" if error == DROPPED else "failed"


class LatenciesAtLeast:
    """Percentiles, maximum and mean in ms, with lower bounds for requests without an answer.

    Each figure is the higher of two: that of the answered requests, and that of all, in which a
    request without an answer counts with the time it had waited. Its own latency would have been longer,
    so no figure is above the true one, and a request sent just before the end lowers none.

    Without an answered request every figure is None.
    """

    def __init__(self, answered: LatencyHistogram, waited: Iterable[LatencyHistogram] = ()) -> None:
        self.histograms = [answered]
        """That of the answered requests, and that of all if there are others."""
        others = [histogram for histogram in waited if histogram.count]
        if others:
            everything = LatencyHistogram()
            for part in (answered, *others):
                everything.add(part)
            self.histograms.append(everything)

    @property
    def max(self) -> float | None:
        """The longest."""
        return _highest([one.max for one in self.histograms])

    @property
    def mean(self) -> float | None:
        """The mean."""
        return _highest([one.mean for one in self.histograms])

    def percentiles(self, wanted: Sequence[float]) -> list[float | None]:
        """Return several percentiles, given in rising order."""
        found = (one.percentiles(wanted) for one in self.histograms)
        return list(map(_highest, zip(*found, strict=True)))


def _highest(found: Sequence[float | None]) -> float | None:
    # The first is that of the answered requests, without which nothing is known.
    return None if found[0] is None else max(ms for ms in found if ms is not None)


class RequestCounters:
    """The requests of a measured time, fed row by row; those of several processes add up.

    Args:
        begin: when the measured time begins, Unix time in seconds.
        end: when it ends.
    """

    __slots__ = ("_ended_later", "_histograms", "begin", "end")

    def __init__(self, begin: float = 0.0, end: float = math.inf) -> None:
        self.begin, self.end = begin, end
        self._histograms: dict[str, LatencyHistogram] = {}
        self._ended_later: Counter[str] = Counter()
        """By outcome, the requests in the histograms that ended after the measured time."""

    def add(self, scheduled: float, ended: float, latency_ms: float, outcome: Outcome) -> None:
        """Count one request.

        Args:
            scheduled: when it should have started, Unix time in seconds.
            ended: when it was answered, failed or given up; not before `scheduled`.
            latency_ms: from `scheduled` to `ended`; without an answer a lower bound.
            outcome: how it ended.
        """
        name: str = outcome
        if scheduled < self.begin:
            name = f"earlier_{outcome}"
            if outcome not in _ENDED or ended < self.begin:
                return
        elif scheduled >= self.end:
            return
        self.histogram(name).record(latency_ms)
        if ended >= self.end:
            self._ended_later[outcome] += 1

    def merge(self, other: RequestCounters) -> None:
        """Add what another process, or another second, has counted."""
        self._ended_later.update(other._ended_later)
        for name, histogram in other._histograms.items():
            self.histogram(name).add(histogram)

    @property
    def answered_in_time(self) -> int:
        """The requests that were answered in the measured time, whenever scheduled."""
        return self._in_time("answered")

    @property
    def served(self) -> int:
        """The requests that were answered or failed in the measured time, whenever scheduled."""
        return self._in_time("answered") + self._in_time("failed")

    def _in_time(self, outcome: Outcome) -> int:
        counted = self.of(outcome).count + self.of(outcome, earlier=True).count
        return counted - self._ended_later[outcome]

    def histogram(self, name: str) -> LatencyHistogram:
        """Return the histogram of an outcome, to be recorded in."""
        found = self._histograms.get(name)
        if found is None:
            found = self._histograms[name] = LatencyHistogram()
        return found

    def of(self, outcome: Outcome, *, earlier: bool = False) -> LatencyHistogram:
        """Return the latencies of one outcome; a view, not a copy.

        Args:
            outcome: answered, failed, timed_out or dropped.
            earlier: the requests that were scheduled before the measured time and ended in it. They
                are served in it, but are not in its latencies and errors.
        """
        name = f"earlier_{outcome}" if earlier else outcome
        return self._histograms.get(name) or LatencyHistogram()

    @property
    def latency(self) -> LatenciesAtLeast:
        """The latencies of the answered requests, and at least of those that never were."""
        return LatenciesAtLeast(self.of("answered"), [self.of("timed_out"), self.of("dropped")])

    @property
    def long_ms(self) -> float:
        """The wait after which a request without an answer is an error.

        It is the 99th percentile of the answered requests, or a second if that is longer. A request
        that was sent just before the end, or usually takes two seconds, is not an error.
        """
        return max(LONG_MS, self.of("answered").percentile(LONG_PERCENTILE) or 0.0)

    @property
    def timed_out(self) -> int:
        """The number of requests without an answer that count as errors; the others do not count."""
        waiting = self.of("timed_out")
        return waiting.count_above(self.long_ms) if waiting.count else 0

    @property
    def errors(self) -> int:
        """The number of requests that failed, timed out or were dropped."""
        return self.of("failed").count + self.timed_out + self.of("dropped").count

    @property
    def count(self) -> int:
        """The number of requests that were scheduled in the measured time and had an outcome."""
        return self.of("answered").count + self.errors

    def to_message(self) -> dict[str, Any]:
        """Return the counts for a message from one process to another.

        A histogram is one flat list, index and count of each bucket in turn: a mapping would turn
        the numbers into strings on its way through JSON.
        """
        numbers = {
            name: [number for bucket in histogram.buckets() for number in bucket]
            for name, histogram in self._histograms.items()
        }
        return {"ended_later": dict(self._ended_later), "latencies": numbers}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> RequestCounters:
        """Return the counters of a message.

        Their requests have been counted by the sender's measured time, which is not in the message.
        """
        found = cls()
        found._ended_later.update(message["ended_later"])
        for name, numbers in message["latencies"].items():
            found.histogram(name).add_buckets(zip(numbers[::2], numbers[1::2], strict=True))
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RequestCounters) and self.to_message() == other.to_message()

    __hash__ = None  # type: ignore[assignment]  # it changes


class Name(NamedTuple):
    """A row of Locust's statistics: a method and a name, "GET" and "/articles/[id]"."""

    method: str
    name: str


NO_NAME = Name("", "")
"""The row of requests without an answer, whose names are unknown."""


class Latencies:
    """A `RequestCounters` for each method and name.

    Args:
        begin: when the measured time begins, Unix time in seconds. A request that was scheduled
            before and ended since is in the rows of names, as in Locust's own table. It is not in
            the figures of `total`.
    """

    def __init__(self, begin: float = 0.0) -> None:
        self.begin = begin
        self._counters: dict[Name, RequestCounters] = {}
        self._recording: dict[tuple[str, str, Outcome], LatencyHistogram] = {}
        """The same histograms of requests that were scheduled in the measured time."""

    def record(
        self,
        method: str,
        name: str,
        ms: float,
        *,
        outcome: Outcome = "answered",
        scheduled: float | None = None,
        ended: float | None = None,
    ) -> None:
        """Count one request; without moments one of the measured time."""
        if scheduled is None or scheduled >= self.begin:
            # Called for every request: one look-up and one call, whatever the rest may count.
            found = self._recording.get((method, name, outcome))
            if found is None:
                found = self.of(Name(method, name)).histogram(outcome)
                self._recording[method, name, outcome] = found
            found.record(ms)
        else:
            ended = self.begin if ended is None else ended
            self.of(Name(method, name)).add(scheduled, ended, ms, outcome)

    def of(self, name: Name) -> RequestCounters:
        """Return the counters of a method and name."""
        found = self._counters.get(name)
        if found is None:
            found = self._counters[name] = RequestCounters(self.begin)
        return found

    def add(self, other: Latencies) -> None:
        """Add the counts of another."""
        for name, counters in other._counters.items():
            self.of(name).merge(counters)

    def total(self) -> RequestCounters:
        """Return the counters of all names together."""
        total = RequestCounters(self.begin)
        for counters in self._counters.values():
            total.merge(counters)
        return total

    def names(self) -> list[Name]:
        """Return every method and name of which a request has ended, sorted by name."""
        ended = (name for name, counters in self._counters.items() if counters.served)
        return sorted(ended, key=lambda one: (one.name, one.method))

    def ended(
        self, outcome: Literal["answered", "failed"], name: Name | None = None
    ) -> LatencyHistogram:
        """Return the latencies of requests that were answered or failed, a copy.

        Args:
            outcome: which of the two.
            name: of which method and name; without one, of all together.
        """
        counters = self.total() if name is None else self.of(name)
        found = LatencyHistogram()
        found.add(counters.of(outcome))
        found.add(counters.of(outcome, earlier=True))
        return found

    def to_message(self) -> list[Any]:
        """Return the counts as lists, for a message to another process."""
        return [[*name, counters.to_message()] for name, counters in self._counters.items()]

    @classmethod
    def from_message(cls, message: Iterable[tuple[str, str, Mapping[str, Any]]]) -> Self:
        """Return the latencies of a message."""
        found = cls()
        for method, name, counters in message:
            found.of(Name(method, name)).merge(RequestCounters.from_message(counters))
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Latencies) and self._counters == other._counters

    __hash__ = None  # type: ignore[assignment]  # it changes


class RunLatencies(Latencies):
    """Latencies of a whole run with their sum, which is read every second by page and thresholds.

    Without this sum, each of them would add up thousands of buckets in the process that sends the
    load.
    """

    def __init__(self, begin: float = 0.0) -> None:
        super().__init__(begin)
        self._total = RequestCounters(begin)

    def record(self, method: str, name: str, ms: float, **row: Any) -> None:
        """Count one request."""
        one = Latencies(self.begin)
        one.record(method, name, ms, **row)
        self.add(one)

    def add(self, other: Latencies) -> None:
        """Add the counts of another."""
        super().add(other)
        self._total.merge(other.total())

    def total(self) -> RequestCounters:
        """Return the counters of all names together; they are not to be changed."""
        return self._total


class Rates(NamedTuple):
    """Figures of the last seconds; percentiles are None when nothing was answered in them."""

    requests_per_s: float
    failures_per_s: float
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


class RecentRequests:
    """Rates and percentiles over the last seconds: two, or six when workers report.

    Locust's own "current" figures cover ten seconds and stay the same while nothing is answered. So
    they would not show a stall of the server beside its connections.

    Args:
        reported: whether workers report.
        now: the beginning of the first second, Unix time.
    """

    def __init__(self, *, reported: bool, now: float) -> None:
        window = REPORTED_WINDOW_S if reported else LOCAL_WINDOW_S
        self._ends: deque[float] = deque([now], maxlen=window + 1)
        self._seconds: deque[Latencies] = deque(maxlen=window)

    def look(self, now: float, second: Latencies) -> Rates:
        """Add the latencies of a second, and return the rates up to now."""
        self._ends.append(now)
        self._seconds.append(second)
        recent = Latencies()
        for each in self._seconds:
            recent.add(each)
        passed_s = now - self._ends[0]
        answered, failed = recent.ended("answered"), recent.ended("failed").count
        return Rates(
            (answered.count + failed) / passed_s if passed_s > 0 else 0.0,
            failed / passed_s if passed_s > 0 else 0.0,
            *answered.percentiles((50, 95, 99)),
        )
