"""A process's part of an arrival rate, as the master deals it to its workers."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from math import floor
from typing import TYPE_CHECKING, Any

from poolkit.loadtest.open_loop.arrivals import due_times

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from poolkit.loadtest.open_loop.arrivals import ArrivalRate

CLOCKS_AGREE_S = 0.25
"""Clocks that differ by less than a message may take are taken as one clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Which of a rate's arrivals one process begins. Moments are Unix times in seconds."""

    begin: float
    """When the first arrival of all parts is due."""
    since: float
    """From when on this part holds; another may have held before."""
    index: int = 0
    of: int = 1
    seed: int = 0
    max_users: int = 1

    def due_times(self, rate: ArrivalRate) -> Iterator[float]:
        """Yield when the arrivals of this part are due."""
        return due_times(
            rate, begin=self.begin, since=self.since, part=self.index, of=self.of, seed=self.seed
        )

    def count(self, rate: ArrivalRate, until: float) -> int:
        """Return how many arrivals it has before a moment; of Poisson arrivals, how many on average."""
        seconds = max(0.0, until - max(self.begin, self.since))
        return floor(seconds * rate.per_s / self.of)

    def moved(self, seconds: float) -> Part:
        """Return it by a clock that is so many seconds ahead."""
        return replace(self, begin=self.begin + seconds, since=self.since + seconds)

    def message(self) -> dict[str, Any]:
        """Return what a worker is sent."""
        return {**asdict(self), "sent": time.time()}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Part:
        """Return the part of a message, by the clock of this machine.

        Machines may not agree what time it is. Then a part begins as long after its message as it was
        to begin after it was sent.
        """
        values = dict(message)
        ahead = time.time() - values.pop("sent")
        part = cls(**values)
        return part if abs(ahead) < CLOCKS_AGREE_S else part.moved(ahead)


def parts_of(whole: Part, of: int) -> list[Part]:
    """Return the parts for so many processes; together they make up the whole."""
    return [
        replace(
            whole,
            index=index,
            of=of,
            max_users=max(1, (whole.max_users + of - 1 - index) // of),
        )
        for index in range(of)
    ]
