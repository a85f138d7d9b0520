"""The requests of a load test, counted by outcome and latency.

`RequestCounters` counts those of a measured time, `Latencies` has one for each method and name, and
`RecentRequests` makes the figures of the last seconds. Nothing here imports Locust.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import nlargest
from math import nextafter
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

from poolkit.loadtest.latency.histogram import LatencyHistogram, bucket_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from poolkit.thresholds.selector import Selector

Outcome: TypeAlias = Literal["answered", "failed", "timed_out", "dropped"]
"""The outcome of a request.

- answered: a success.
- failed: an answer that is an error, or none because of an error.
- timed_out: no answer when the run, or the request's user, ended.
- dropped: scheduled and never sent, because every user was busy.
"""
_ENDED: tuple[Outcome, ...] = ("answered", "failed")
FAILURES: tuple[Outcome, ...] = ("failed", "timed_out", "dropped")
TIMED_OUT, DROPPED = "unanswered", "unsent"
"""The last two in the column `error` of requests.csv."""

LONG_MS = 1000.0
"""A user notices a wait of a second; few requests take longer than the 99th percentile."""
LONG_PERCENTILE = 99.0
NAMES_A_PART = 200
"""So many names are added in about half a millisecond, a tenth of what users would notice."""
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


_NOTHING = LatencyHistogram()
"""That of an outcome which no request had."""


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
        self._ended_later: dict[str, int] = {}
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
            self._ended_later[outcome] = self._ended_later.get(outcome, 0) + 1

    def merge(self, other: RequestCounters) -> None:
        """Add what another process, or another second, has counted."""
        for outcome, count in other._ended_later.items():
            self._ended_later[outcome] = self._ended_later.get(outcome, 0) + count
        for name, histogram in other._histograms.items():
            self.histogram(name).add(histogram)

    @property
    def answered_in_time(self) -> int:
        """The requests that were answered in the measured time, whenever scheduled."""
        return self._in_time("answered")

    @property
    def failed_in_time(self) -> int:
        """The requests that failed in the measured time, whenever scheduled."""
        return self._in_time("failed")

    @property
    def served(self) -> int:
        """The requests that were answered or failed in the measured time, whenever scheduled."""
        return self.answered_in_time + self.failed_in_time

    def _in_time(self, outcome: Outcome) -> int:
        counted = self.of(outcome).count + self.of(outcome, earlier=True).count
        return counted - self._ended_later.get(outcome, 0)

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
        return self._histograms.get(f"earlier_{outcome}" if earlier else outcome, _NOTHING)

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
        histograms = self._histograms
        if len(histograms) == 1 and "answered" in histograms:
            return 0  # as of most of thousands of names
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
    """A `RequestCounters` for each method and name, and their sum.

    Names may be thousands, when an id stands in them. So a request is recorded in a dict of numbers,
    which Python's garbage collector does not go through: with an object for each name and second, its
    pauses would be the longest of the load test. Only `add_in_parts` and the outputs go through names.

    Args:
        begin: when the measured time begins, Unix time in seconds.
        end: when it ends.
    """

    def __init__(self, begin: float = 0.0, end: float = math.inf) -> None:
        self.begin, self.end = begin, end
        self._total = RequestCounters(begin, end)
        self._counters: dict[Name, RequestCounters] = {}
        self._tags: dict[str, RequestCounters] = {}
        """Those of tasks with a tag that a threshold is about."""
        self._recorded: dict[tuple[str, str, Outcome], dict[int, int]] = {}
        """Requests of the measured time, by bucket, that are not in the counters yet."""

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
        if (scheduled is None or scheduled >= self.begin) and (ended is None or ended < self.end):
            # Called for every request: one look-up, whatever the rest may count.
            counts = self._recorded.get((method, name, outcome))
            if counts is None:
                counts = self._recorded[method, name, outcome] = {}
            bucket = bucket_of(ms)
            counts[bucket] = counts.get(bucket, 0) + 1
        else:
            # While a test stops, users finish their tasks. What they send then belongs to the test,
            # as in Locust's own table, but not to the time of which the rate is.
            begun = self.begin if scheduled is None else min(scheduled, nextafter(self.end, 0))
            for counters in (self._of(Name(method, name)), self._total):
                counters.add(begun, ended or self.begin, ms, outcome)

    def _settle(self) -> None:
        """Move what was recorded into the counters."""
        recorded, self._recorded = self._recorded, {}
        for (method, name, outcome), counts in recorded.items():
            for counters in (self._of(Name(method, name)), self._total):
                counters.histogram(outcome).add_buckets(counts.items())

    def of(self, name: Name) -> RequestCounters:
        """Return the counters of a method and name."""
        self._settle()
        return self._of(name)

    def _of(self, name: Name) -> RequestCounters:
        found = self._counters.get(name)
        if found is None:
            found = self._counters[name] = RequestCounters(self.begin, self.end)
        return found

    def record_tags(
        self, tags: Iterable[str], ms: float, outcome: Outcome, *, scheduled: float, ended: float
    ) -> None:
        """Count a request for each of its tags; `record` counts it for its name."""
        for tag in tags:
            self.of_tag(tag).add(scheduled, ended, ms, outcome)

    def of_tag(self, tag: str) -> RequestCounters:
        """Return the counters of a tag."""
        found = self._tags.get(tag)
        if found is None:
            found = self._tags[tag] = RequestCounters(self.begin, self.end)
        return found

    def end_at(self, moment: float) -> None:
        """End the measured time: requests that end later are not in its rate."""
        self.end = self._total.end = moment
        for counters in (*self._counters.values(), *self._tags.values()):
            counters.end = moment

    def add(self, other: Latencies) -> None:
        """Add the counts of another."""
        for _ in self.add_in_parts(other):
            pass

    def add_in_parts(self, other: Latencies) -> Iterator[None]:
        """Add the counts of another: those of all names together first, then name by name.

        It yields after every `NAMES_A_PART`, so that users of a load test can run in between.
        """
        self._settle()
        self._total.merge(other.total())
        for tag, of_tag in other._tags.items():
            self.of_tag(tag).merge(of_tag)
        for number, ((method, name, outcome), counts) in enumerate(other._recorded.items(), 1):
            self._of(Name(method, name)).histogram(outcome).add_buckets(counts.items())
            if not number % NAMES_A_PART:
                yield
        for number, (key, counters) in enumerate(other._counters.items(), 1):
            self._of(key).merge(counters)
            if not number % NAMES_A_PART:
                yield

    def keep_in_parts(self, other: Latencies) -> Iterator[None]:
        """Add the counts of another as `add_in_parts` does, but keep them as they were recorded.

        For sums that are thrown away after some seconds, of which `histograms` is read.
        """
        self._total.merge(other._total)
        for number, (key, counts) in enumerate(other._recorded.items(), 1):
            kept = self._recorded.setdefault(key, {})
            for bucket, count in counts.items():
                kept[bucket] = kept.get(bucket, 0) + count
            if not number % NAMES_A_PART:
                yield
        for key_of, counters in other._counters.items():
            self._of(key_of).merge(counters)

    def histograms(self) -> Iterator[tuple[Name, Outcome, LatencyHistogram]]:
        """Yield the answered and the failed requests of each method and name, sorted by name."""
        keys: set[tuple[str, str, Outcome]] = {*self._recorded}
        for of_name in self._counters:
            keys |= {(*of_name, outcome) for outcome in _ENDED}
        for key in sorted(keys, key=itemgetter(1, 0, 2)):
            method, name, outcome = key
            histogram = LatencyHistogram()
            histogram.add_buckets(self._recorded.get(key, {}).items())
            if (counters := self._counters.get(Name(method, name))) is not None:
                histogram.add(counters.of(outcome))
            if outcome in _ENDED and histogram.count:
                yield Name(method, name), outcome, histogram

    def total(self) -> RequestCounters:
        """Return the counters of all names together; they are not to be changed.

        Those of a sum of others are always the same object, which grows.
        """
        if not self._recorded:
            return self._total
        total = RequestCounters(self.begin, self.end)
        total.merge(self._total)
        for (_, _, outcome), counts in self._recorded.items():
            total.histogram(outcome).add_buckets(counts.items())
        return total

    def select(self, selector: Selector) -> RequestCounters | None:
        """Return the counters of the requests of a selector; None if there are none of them."""
        if selector.key == "tag":
            return self._tags.get(selector.value)
        found = [self._counters[name] for name in self.recorded() if selector.selects(*name)]
        if len(found) < 2:
            return found[0] if found else None
        together = RequestCounters(self.begin, self.end)
        for counters in found:
            together.merge(counters)
        return together

    def recorded(self) -> list[Name]:
        """Return every method and name of which a request was recorded, in no order."""
        self._settle()
        # In one step of the interpreter, since a thread may ask while requests are recorded.
        return [*self._counters]

    def names(
        self, most: int | None = None, *, pause: Callable[[], None] = lambda: None
    ) -> list[Name]:
        """Return every method and name with a request of the measured time, sorted by name.

        `NO_NAME` is not among them.

        Args:
            most: if there are more, those with the most requests.
            pause: called after every `NAMES_A_PART` names.
        """
        self._settle()
        counted: dict[Name, int] = {}
        # In one step of the interpreter, since a thread may ask while requests are recorded.
        for number, (name, counters) in enumerate(list(self._counters.items()), start=1):
            if name != NO_NAME and (count := counters.count):
                counted[name] = count
            if not number % NAMES_A_PART:
                pause()
        names: Iterable[Name] = counted
        if most is not None and len(counted) > most:
            names = nlargest(most, counted, key=counted.__getitem__)
        return sorted(names, key=itemgetter(1, 0))

    def to_message(self) -> list[Any]:
        """Return the counts as lists, for a message to another process; a tag has no method."""
        rows = [[*name, counters.to_message()] for name, counters in self._counters.items()]
        for (method, name, outcome), counts in self._recorded.items():
            numbers = [number for bucket in counts.items() for number in bucket]
            rows.append([method, name, {"ended_later": {}, "latencies": {outcome: numbers}}])
        return rows + [[None, tag, counters.to_message()] for tag, counters in self._tags.items()]

    @classmethod
    def from_message(cls, message: Iterable[tuple[str | None, str, Mapping[str, Any]]]) -> Self:
        """Return the latencies of a message."""
        found = cls()
        for method, name, counters in message:
            part = RequestCounters.from_message(counters)
            if method is None:
                found.of_tag(name).merge(part)
                continue
            found._of(Name(method, name)).merge(part)
            found._total.merge(part)
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Latencies):
            return False
        self._settle()
        other._settle()
        return (self._counters, self._tags) == (other._counters, other._tags)

    __hash__ = None  # type: ignore[assignment]  # it changes


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
        self._seconds: deque[RequestCounters] = deque(maxlen=window)

    def look(self, now: float, second: RequestCounters) -> Rates:
        """Add the requests of a second, and return the rates up to now."""
        self._ends.append(now)
        self._seconds.append(second)
        answered, failed = LatencyHistogram(), 0
        for each in self._seconds:
            # Those that were scheduled before a reset, or end after the end, are answered too.
            answered.add(each.of("answered"))
            answered.add(each.of("answered", earlier=True))
            failed += each.of("failed").count + each.of("failed", earlier=True).count
        passed_s = now - self._ends[0]
        return Rates(
            (answered.count + failed) / passed_s if passed_s > 0 else 0.0,
            failed / passed_s if passed_s > 0 else 0.0,
            *answered.percentiles((50, 95, 99)),
        )
