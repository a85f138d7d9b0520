"""The requests of a Locust run by method and name, and all of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

from poolkit.loadtest.figures import LatenciesAtLeast, RequestCounters
from poolkit.loadtest.latency.histogram import LatencyHistogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from poolkit.loadtest.figures import Outcome


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
        scheduled = self.begin if scheduled is None else scheduled
        ended = self.begin if ended is None else ended
        # A plain tuple finds the same entry, and costs less to make for every request.
        found = self._counters.get((method, name))  # type: ignore[call-overload]
        (found or self.of(Name(method, name))).add(scheduled, ended, ms, outcome)

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

    def latency(self) -> LatenciesAtLeast:
        """Return the latencies of all names, at least as long as what was never answered waited."""
        total = self.total()
        return LatenciesAtLeast(self.answered(), [total.of("timed_out"), total.of("dropped")])

    def answered(self, name: Name | None = None) -> LatencyHistogram:
        """Return the histogram of answered requests, a copy; of all of them without a name."""
        return self._ended("answered", name)

    def failed(self, name: Name | None = None) -> LatencyHistogram:
        """Return the histogram of failed requests, a copy; of all of them without a name."""
        return self._ended("failed", name)

    def _ended(self, outcome: Outcome, name: Name | None) -> LatencyHistogram:
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
