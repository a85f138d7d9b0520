"""The arrivals of one user class, and its users that wait for them."""

from __future__ import annotations

import math
from array import array
from itertools import chain, takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from locust import User

    from poolkit.loadtest.open_loop.due import Turn

LATE_MS = 50.0
"""How late a task may begin: a few turns of a busy process, and well under what a person feels."""
TOLERATED_SHARE = 0.01
"""Late arrivals that do not yet touch the p99."""
TOLERATED_COUNT = 5
TOLERATED_MS = 1000.0

BUSY, USERS, STARTING = "busy", "users", "starting"


class Lane:
    """The arrivals of a user class, handed out in the order in which they are due.

    The stream is read only when somebody is there to serve an arrival: what is overdue is a
    moment in it, not a list that grows.
    """

    def __init__(self, user_class: type[User]) -> None:
        self.user_class = user_class
        self.per_s = 0.0
        self.next_due = math.inf
        self.idle: dict[Turn, None] = {}
        """The users that wait; the last to come is the first to go, so connections stay warm."""
        self.starting: set[User] = set()
        """Users that were made for this lane and have not waited yet."""
        self.failing = False
        """Whether the last user that was made ended in its on_start."""
        self.no_growth_before = -math.inf
        self.begun = self.finished = 0
        self.last_due = -math.inf
        """When the last one was due that was begun."""
        self.unsent = array("d")
        """When the arrivals were due that nobody took; known at the end."""
        self.unsent_ms: list[float] = []
        """For how long each of them had waited."""
        self.late = 0
        self.latest_ms = 0.0
        self.overdue_s: dict[str, float] = {}
        """For how many seconds arrivals were overdue, by what they waited for."""
        self._stream: Iterator[float] = iter(())

    def take(self, now: float) -> float:
        """Return the due moment of the next arrival, which begins now."""
        due = self.last_due = self.next_due
        self.next_due = next(self._stream)
        self.begun += 1
        late_ms = (now - due) * 1000
        if late_ms > LATE_MS:
            self._be_late(late_ms)
        return due

    def overdue(self, now: float) -> int:
        """Return about how many arrivals are due now."""
        return 0 if self.next_due > now else int((now - self.next_due) * self.per_s) + 1

    def continue_with(self, stream: Iterator[float], since: float, per_s: float) -> None:
        """Go on with another stream from this moment on; what is due before it stays due."""
        before = takewhile(lambda due: due < since, chain([self.next_due], self._stream))
        self._stream = chain(before, stream)
        self.next_due = next(self._stream)
        self.per_s = per_s

    def close(self, now: float) -> None:
        """Take no more arrivals: those that are due by now and were not taken are unsent."""
        while self.next_due <= now:
            self.give_up(self.next_due, now)
            self.next_due = next(self._stream)
        self.next_due = math.inf

    def give_up(self, due: float, now: float) -> None:
        """Count an arrival that nobody began."""
        self.unsent.append(due)
        late_ms = (now - due) * 1000
        self.unsent_ms.append(max(0.0, late_ms))
        if late_ms > LATE_MS:
            self._be_late(late_ms)

    @property
    def arrivals(self) -> int:
        """How many tasks were due and are begun, or given up."""
        return self.begun + len(self.unsent)

    def wait_for(self, cause: str, seconds: float) -> None:
        """Note what overdue arrivals have waited for."""
        self.overdue_s[cause] = self.overdue_s.get(cause, 0.0) + seconds

    def lateness(self, now: float) -> tuple[int, float]:
        """Return how many arrivals were late up to now, and the most in ms; begun or not."""
        overdue_ms = max(0.0, now - self.next_due) * 1000
        return self.late + self.overdue(now - LATE_MS / 1000), max(self.latest_ms, overdue_ms)

    def is_saturated(self, now: float) -> bool:
        """Tell whether its schedule was not kept, by more than what does not matter."""
        late, latest_ms = self.lateness(now)
        tolerated = max(TOLERATED_COUNT, TOLERATED_SHARE * self.arrivals)
        return late > tolerated or latest_ms > TOLERATED_MS

    def words(self, now: float, reasons: Mapping[str, str]) -> str:
        """Return what was not kept, and why."""
        cause = max(self.overdue_s, key=lambda one: self.overdue_s[one], default=BUSY)
        late, latest_ms = self.lateness(now)
        return (
            f"class {self.user_class.__name__} began {late:,} of "
            f"{self.arrivals + self.overdue(now):,} arrivals more than {LATE_MS:g} ms late, "
            f"the latest by {latest_ms:,.0f} ms: {reasons[cause]}"
        )

    def _be_late(self, late_ms: float) -> None:
        self.late += 1
        self.latest_ms = max(self.latest_ms, late_ms)


def shared(stream: Iterator[float], weights: Sequence[float], mine: int) -> Iterator[float]:
    """Yield those arrivals of a stream that one of several classes serves, in even turns.

    Whoever is furthest behind their share is next, so the shares hold at any moment and each
    class with the same stream knows its own arrivals without asking.
    """
    if len(weights) == 1:
        yield from stream
    total = sum(weights)
    behind = [0.0] * len(weights)
    for due in stream:
        behind = [credit + weight for credit, weight in zip(behind, weights, strict=True)]
        chosen = behind.index(max(behind))
        behind[chosen] -= total
        if chosen == mine:
            yield due
