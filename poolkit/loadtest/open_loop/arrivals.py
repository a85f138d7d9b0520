"""When tasks are scheduled, however slow the server is: an arrival rate, and each process's share.

Every moment of a constant rate is computed from the beginning (begin + n / rate). So rounding and
late wake-ups never add up to a drift.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Kind = Literal["constant", "poisson"]
HIGHEST_PER_S = 100_000.0
"""More than Locust can send on any machine; a higher rate is a typing error."""
LEAD_S = 0.5
"""Between the start of a test and its first arrival: users are made meanwhile."""
CLOCKS_AGREE_S = 0.25
"""A smaller difference between two machines' clocks may be the time that a message takes."""


@dataclass(frozen=True)
class ArrivalRate:
    """The number of tasks per second, and their distribution over time.

    Raises:
        ConfigurationError: the rate is not above 0 and at most 100,000 a second, or the kind is
            unknown.
    """

    per_s: float
    kind: Kind = "constant"
    """constant: one every 1/rate seconds. poisson: independent of each other, as visitors arrive;
    the gaps are exponentially distributed with a mean of 1/rate."""

    def __post_init__(self) -> None:
        if not 0 < self.per_s <= HIGHEST_PER_S:  # also false for nan
            raise ConfigurationError(
                f"--arrival-rate is {self.per_s:g}; wanted arrivals per second, "
                f"above 0 and at most {HIGHEST_PER_S:,.0f}"
            )
        if self.kind not in get_args(Kind):
            raise ConfigurationError(
                f"--arrivals is {self.kind!r}; wanted one of {', '.join(get_args(Kind))}"
            )

    @classmethod
    def parse(cls, per_s: str, kind: str = "constant") -> ArrivalRate:
        """Return the rate of two option values.

        Raises:
            ConfigurationError: as for the class, or the rate is no number.
        """
        try:
            number = float(per_s)
        except ValueError:
            raise ConfigurationError(
                f"--arrival-rate is {per_s!r}; wanted a number of arrivals per second"
            ) from None
        return cls(number, cast("Kind", kind))


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The arrivals of a rate that one process begins. Moments are Unix times in seconds.

    The shares of a constant rate interleave: together they are one constant rate. Those of a
    Poisson process are independent Poisson processes of a rate/of each.
    """

    begin: float
    """When the first arrival of all shares is scheduled."""
    since: float
    """This share applies from then on; there may have been another distribution before."""
    index: int = 0
    of: int = 1
    seed: int = 0
    """Makes Poisson arrivals reproducible."""
    max_users: int = 1

    @classmethod
    def whole(cls, max_users: int) -> Share:
        """Return the one share of a process alone, which begins `LEAD_S` from now."""
        begin = time.time() + LEAD_S
        return cls(begin=begin, since=begin, seed=random.getrandbits(53), max_users=max_users)

    def split(self, of: int) -> list[Share]:
        """Return the shares of `of` processes; together they are this one."""
        return [
            replace(
                self, index=index, of=of, max_users=max(1, (self.max_users + of - 1 - index) // of)
            )
            for index in range(of)
        ]

    def shifted(self, seconds: float) -> Share:
        """Return the same share by a clock that is ahead by some seconds."""
        return replace(self, begin=self.begin + seconds, since=self.since + seconds)

    def scheduled_times(self, rate: ArrivalRate) -> Iterator[float]:
        """Yield the moments of this share's arrivals, without an end."""
        if rate.kind == "poisson":
            chance = random.Random(f"{self.seed}/{self.index}/{self.of}")
            moment = max(self.begin, self.since)
            while True:
                # The time to the first arrival is distributed as any other gap.
                moment += chance.expovariate(rate.per_s / self.of)
                yield moment
        passed = 0
        if self.since > self.begin:
            passed = int((self.since - self.begin) * rate.per_s)
            # By the sum of the last line: rounded otherwise, an arrival on the boundary is missed.
            while self.begin + passed / rate.per_s < self.since:
                passed += 1
        for number in count(passed + (self.index - passed) % self.of, self.of):
            yield self.begin + number / rate.per_s

    def count(self, rate: ArrivalRate, until: float) -> int:
        """Return its number of arrivals before a moment; of Poisson arrivals, the average."""
        seconds = max(0.0, until - max(self.begin, self.since))
        return math.floor(seconds * rate.per_s / self.of)

    def to_message(self) -> dict[str, Any]:
        """Return the message to a worker."""
        return {**asdict(self), "sent": time.time()}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Share:
        """Return the share of a message, by the clock of this machine.

        The clocks of two machines may differ. Then the time from the message to the share's
        beginning is the same here as at the sender.
        """
        values = dict(message)
        ahead = time.time() - values.pop("sent")
        share = cls(**values)
        return share if abs(ahead) < CLOCKS_AGREE_S else share.shifted(ahead)


def of_user_class(
    moments: Iterator[float], weights: Sequence[float], index: int
) -> Iterator[float]:
    """Yield the arrivals that one of several user classes serves, in proportion to its weight.

    The class that is furthest behind its share is next. So the shares are right at any moment, and
    each class computes its own arrivals alone.
    """
    if len(weights) == 1:
        yield from moments
    total = sum(weights)
    behind = [0.0] * len(weights)
    for moment in moments:
        behind = [credit + weight for credit, weight in zip(behind, weights, strict=True)]
        chosen = behind.index(max(behind))
        behind[chosen] -= total
        if chosen == index:
            yield moment
