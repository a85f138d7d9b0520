"""When requests are due, whatever the server does: an arrival rate, and the moments it gives.

Every moment of a constant rate is computed from the beginning (begin + n / rate), so rounding and
late wake-ups never add up to a drift.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Literal, cast, get_args

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["constant", "poisson"]
HIGHEST_PER_S = 100_000.0
"""More than any machine's worth of Locust sends; a higher rate is a slip of the finger."""


@dataclass(frozen=True)
class ArrivalRate:
    """How many tasks are due a second, and how they are spread over it.

    Raises:
        ConfigurationError: the rate is not above 0 and at most 100,000 a second, or the kind is
            not known.
    """

    per_s: float
    kind: Kind = "constant"
    """constant: one every 1/rate seconds. poisson: independent of each other, as strangers come;
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
        """Return the rate that was given as text.

        Raises:
            ConfigurationError: as for the class, or it is no number.
        """
        try:
            number = float(per_s)
        except ValueError:
            raise ConfigurationError(
                f"--arrival-rate is {per_s!r}; wanted a number of arrivals per second"
            ) from None
        return cls(number, cast("Kind", kind))

    def __str__(self) -> str:
        return f"{self.per_s:g}/s {self.kind}"


def due_times(
    rate: ArrivalRate,
    *,
    begin: float,
    part: int = 0,
    of: int = 1,
    seed: int | None = None,
    since: float = -math.inf,
) -> Iterator[float]:
    """Yield the moments at which tasks are due in one of several processes, without an end.

    Args:
        rate: of all processes together.
        begin: when the first task of all is due, as Unix time in seconds.
        part: which of the processes this is, from 0.
        of: how many there are. Parts of a constant rate interleave: together they are one
            constant rate. Parts of a Poisson process are Poisson processes of a rate/of each.
        seed: makes Poisson arrivals the same again.
        since: leave out what was due before this moment.
    """
    if rate.kind == "poisson":
        return _poisson(rate.per_s / of, max(begin, since), random.Random(f"{seed}/{part}/{of}"))
    return _constant(rate.per_s, begin, part, of, since)


def _constant(per_s: float, begin: float, part: int, of: int, since: float) -> Iterator[float]:
    passed = 0 if since <= begin else int((since - begin) * per_s)
    # By the same sum as below: rounded otherwise, an arrival on the boundary would be missed.
    while begin + passed / per_s < since:
        passed += 1
    first = passed + (part - passed) % of
    return (begin + number / per_s for number in count(first, of))


def _poisson(per_s: float, begin: float, chance: random.Random) -> Iterator[float]:
    due = begin
    while True:
        # In a Poisson process the time to the first arrival is distributed as any other gap.
        due += chance.expovariate(per_s)
        yield due
