"""When tasks are scheduled, however slow the server is: an arrival rate, and each process's share.

A rate may change: `10..200/5m` is a ramp, and stages follow each other. Arrival number n of a
constant kind is scheduled when the integral of the rate over time reaches n. So every moment is
computed from the beginning, and rounding and late wake-ups never add up to a drift. Poisson
arrivals of a changing rate are those of rate 1, placed by the same integral (Lewis and Shedler 1979,
"time-scale transformation").
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import asdict, astuple, dataclass, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from poolkit.errors import ConfigurationError
from poolkit.thresholds.parse import SECONDS, duration_s

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from locust import User

Kind = Literal["constant", "poisson"]
HIGHEST_PER_S = 100_000.0
"""More than Locust can send on any machine; a higher rate is a typing error."""
LEAD_S = 0.5
"""Between the start of a test and its first arrival: users are made meanwhile."""
CLOCKS_AGREE_S = 0.25
"""A smaller difference between two machines' clocks may be the time that a message takes."""
_OPTION = "--arrival-rate"
_WANTED = (
    "wanted a number such as 50, a ramp such as 10..200/5m, or stages such as 50/1m,50..200/5m"
)
_ROUNDING = 1e-6
"""An integral of 31,500 arrivals may come out as 31,500.000000001."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A time in which the rate is constant, or rises or falls linearly."""

    start_per_s: float
    end_per_s: float
    seconds: float = math.inf

    def arrivals(self, seconds: float) -> float:
        """Return the number of arrivals in its first seconds: the integral of the rate."""
        slope = (self.end_per_s - self.start_per_s) / self.seconds
        return (self.start_per_s + slope * seconds / 2) * seconds

    def seconds_of(self, arrivals: float) -> float:
        """Return the seconds after which a number of arrivals is reached; inf if never."""
        slope = (self.end_per_s - self.start_per_s) / self.seconds
        if not slope:
            return arrivals / self.start_per_s if self.start_per_s else math.inf
        # The solution of the quadratic equation that loses no digits in a gentle slope.
        root = math.sqrt(max(0.0, self.start_per_s**2 + 2 * slope * arrivals))
        divisor = self.start_per_s + root
        return 2 * arrivals / divisor if divisor else 0.0

    def at(self, seconds: float) -> float:
        """Return the rate after some seconds."""
        if self.start_per_s == self.end_per_s:
            return self.start_per_s
        passed = min(seconds / self.seconds, 1.0)
        return self.start_per_s + (self.end_per_s - self.start_per_s) * passed

    def __str__(self) -> str:
        """Return the text from which `ArrivalRate.parse` makes the same stage."""
        rate = f"{self.start_per_s:g}"
        if self.start_per_s != self.end_per_s:
            rate += f"..{self.end_per_s:g}"
        return rate if math.isinf(self.seconds) else f"{rate}/{_time_text(self.seconds)}"


@dataclass(frozen=True)
class ArrivalRate:
    """The number of tasks per second, and their distribution over time.

    Its last stage goes on for ever, at the rate that it ends with, unless the rate `ends`.

    Raises:
        ConfigurationError: a rate is below 0 or above 100,000 a second, or the kind is unknown.
    """

    stages: tuple[Stage, ...]
    kind: Kind = "constant"
    """constant: evenly spaced. poisson: independent of each other, as visitors arrive; the gaps of
    a rate that does not change are exponentially distributed with a mean of 1/rate."""
    ends: bool = False
    """Whether nothing arrives after the last stage."""
    by_class: tuple[tuple[str, float], ...] = ()
    """The names of user classes with a rate of their own each; empty if they share by weight."""

    def __post_init__(self) -> None:
        rates = [each for one in self.stages for each in (one.start_per_s, one.end_per_s)]
        for each in rates:
            if not 0 <= each <= HIGHEST_PER_S:  # also for nan, which compares false
                raise ConfigurationError(_no_rate(each))
        if self.kind not in get_args(Kind):
            raise ConfigurationError(
                f"--arrivals is {self.kind!r}; wanted one of {', '.join(get_args(Kind))}"
            )

    @classmethod
    def constant(cls, per_s: float, kind: Kind = "constant") -> ArrivalRate:
        """Return a rate that never changes, in arrivals per second."""
        return cls((Stage(per_s, per_s),), kind)

    @classmethod
    def parse(cls, text: str, kind: str = "constant") -> ArrivalRate:
        """Return the rate of two option values, such as "50/1m,50..200/5m" and "poisson".

        Raises:
            ConfigurationError: as for the class, or the text is no rate, or nothing ever arrives.
        """
        parts = [part.strip() for part in text.split(",")]
        if "=" in text:
            by_class = _by_class(parts, text)
            total = math.fsum(by_class.values())
            return cls((Stage(total, total),), cast("Kind", kind), by_class=tuple(by_class.items()))
        stages = tuple(_stage(part, text) for part in parts)
        for number, (stage, part) in enumerate(zip(stages, parts, strict=True), 1):
            if math.isinf(stage.seconds) and (number < len(parts) or ".." in part):
                raise ConfigurationError(
                    f"{_OPTION} is {text!r}, and {part} has no duration; only the last stage may have "
                    f"none, if its rate does not change; {_WANTED}"
                )
        if not any(one.start_per_s or one.end_per_s for one in stages):
            raise ConfigurationError(_no_rate(0.0))
        return cls(stages, cast("Kind", kind))

    def weights(self, user_classes: Sequence[type[User]]) -> list[float]:
        """Return the share of each class in the arrivals: its own rate, or its weight."""
        if not self.by_class:
            return [float(one.weight) for one in user_classes]
        rates = dict(self.by_class)
        return [rates[one.__name__] for one in user_classes]

    @property
    def is_plain(self) -> bool:
        """Whether it is one number, for all classes and at all times."""
        return not self.changes and not self.by_class

    @property
    def changes(self) -> bool:
        """Whether the rate is not the same at all times."""
        return len({each for one in self.stages for each in (one.start_per_s, one.end_per_s)}) > 1

    @property
    def seconds(self) -> float:
        """The time of all stages together; inf if the last has no duration."""
        return math.fsum(stage.seconds for stage in self.stages)

    def at(self, seconds: float) -> float:
        """Return the rate in force some seconds after the beginning; at the end, the last one."""
        for stage in self.stages:
            if seconds < stage.seconds:
                return stage.at(max(0.0, seconds))
            seconds -= stage.seconds
        return self.stages[-1].end_per_s

    def arrivals(self, seconds: float) -> float:
        """Return the number of arrivals in the first seconds: the integral of the rate."""
        total = 0.0
        for stage in self.stages:
            if seconds <= stage.seconds:
                return total + stage.arrivals(max(0.0, seconds))
            total += stage.arrivals(stage.seconds)
            seconds -= stage.seconds
        return total if self.ends else total + seconds * self.stages[-1].end_per_s

    def seconds_of(self, arrivals: float) -> float:
        """Return the seconds after which a number of arrivals is reached; inf if never.

        A rate of 0 reaches none: the arrival after it is scheduled at its end.
        """
        passed = 0.0
        for stage in self.stages:
            of_stage = math.inf if math.isinf(stage.seconds) else stage.arrivals(stage.seconds)
            if arrivals < of_stage:
                return passed + stage.seconds_of(arrivals)
            arrivals -= of_stage
            passed += stage.seconds
        last = self.stages[-1].end_per_s
        if self.ends or not last or math.isinf(passed):
            return math.inf
        return passed + arrivals / last

    def to_message(self) -> dict[str, Any]:
        """Return the message to a worker."""
        return {
            "stages": [astuple(one) for one in self.stages],
            "kind": self.kind,
            "ends": self.ends,
            "by_class": self.by_class,
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> ArrivalRate:
        """Return the rate of a message."""
        stages = tuple(Stage(*one) for one in message["stages"])
        by_class = tuple((name, per_s) for name, per_s in message["by_class"])
        return cls(stages, message["kind"], message["ends"], by_class)

    def __str__(self) -> str:
        """Return the text from which `parse` makes the same rate."""
        if self.by_class:
            return ",".join(f"{name}={per_s:g}" for name, per_s in self.by_class)
        return ",".join(map(str, self.stages))


def _no_rate(per_s: float) -> str:
    return (
        f"{_OPTION} is {per_s:g}; wanted arrivals per second, "
        f"above 0 and at most {HIGHEST_PER_S:,.0f}"
    )


def _by_class(parts: Sequence[str], whole: str) -> dict[str, float]:
    """Return the rate of each user class of a text such as "Reader=50,Writer=5"."""
    found: dict[str, float] = {}
    for part in parts:
        name, _, number = (each.strip() for each in part.partition("="))
        try:
            per_s = float(number)
        except ValueError:
            per_s = math.nan
        if not name or name in found or not 0 < per_s <= HIGHEST_PER_S:  # false for nan too
            raise ConfigurationError(
                f"{_OPTION} is {whole!r}, and {part!r} is no rate of a user class; wanted each class "
                "once with a number above 0, such as Reader=50,Writer=5"
            )
        found[name] = per_s
    return found


def _stage(part: str, whole: str) -> Stage:
    """Return the stage of a text such as "50", "50/1m" or "10..200/5m"."""
    rates, slash, duration = part.partition("/")
    seconds = math.inf
    if slash:
        # A bare number is in seconds, as for Locust's --run-time.
        is_bare = duration.strip().isascii() and duration.strip().isdecimal()
        seconds = float(duration) if is_bare else duration_s(duration) or 0.0
        if not seconds:
            raise ConfigurationError(
                f"{_OPTION} is {whole!r}, and {duration.strip()!r} is not a duration such as 30s, 5m or "
                f"1h30m; a rate is always per second; {_WANTED}"
            )
    start, dots, end = rates.partition("..")
    try:
        return Stage(float(start), float(end) if dots else float(start), seconds)
    except ValueError:
        raise ConfigurationError(
            f"{_OPTION} is {whole!r}; wanted a number of arrivals per second; {_WANTED}"
        ) from None


def _time_text(seconds: float) -> str:
    """Return a duration in the largest unit in which it is a whole number."""
    for unit in ("h", "m"):
        if seconds % SECONDS[unit] == 0:
            return f"{seconds / SECONDS[unit]:g}{unit}"
    return f"{seconds:.12g}s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The arrivals of a rate that one process begins. Moments are Unix times in seconds.

    The shares of a constant kind interleave: together they are the whole rate. Those of a Poisson
    process are independent Poisson processes of a rate/of each.
    """

    begin: float
    """When the rate begins: the first arrival of all shares is scheduled then."""
    since: float
    """This share applies from then on; there may have been another distribution before."""
    passed: float = 0.0
    """The integral of the rates that were in force before `begin`, so a new rate keeps the beat."""
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

    @property
    def number(self) -> int:
        """The number of arrivals of this share before `begin`."""
        return max(0, math.ceil((math.ceil(self.passed - _ROUNDING) - self.index) / self.of))

    def changed(self, before: ArrivalRate, now: float) -> Share:
        """Return the share of another rate, which is in force from a moment on.

        A rate that changes every second keeps its sum: what is left of an arrival at the end of a
        second is not lost.

        Args:
            before: the rate up to then.
            now: the moment.
        """
        begin = max(now, self.begin)
        passed = self.passed + before.arrivals(begin - self.begin)
        return replace(self, begin=begin, since=begin, passed=passed, seed=self.seed + 1)

    def scheduled_times(self, rate: ArrivalRate) -> Iterator[float]:
        """Yield the moments of this share's arrivals; without an end, unless the rate has one."""
        since_s = max(0.0, self.since - self.begin)
        if rate.kind == "poisson":
            chance = random.Random(f"{self.seed}/{self.index}/{self.of}")
            reached = rate.arrivals(since_s)
            while True:
                # The time to the first arrival is distributed as any other gap.
                reached += chance.expovariate(1 / self.of)
                moment = rate.seconds_of(reached)
                if math.isinf(moment):
                    return
                yield self.begin + moment
        number = max(0, math.ceil(self.passed - _ROUNDING))
        if since_s:
            number = max(number, int(self.passed + rate.arrivals(since_s)))
            # By the sum of the last line: rounded otherwise, an arrival on the boundary is missed.
            while self.begin + rate.seconds_of(number - self.passed) < self.since:
                number += 1
        per_s, begin = rate.stages[0].start_per_s, self.begin
        if len(rate.stages) == 1 and per_s and not rate.changes and not rate.ends:
            # The usual rate, at a third of the processor time: this runs for every arrival.
            for each in count(number + (self.index - number) % self.of, self.of):
                yield begin + max(0.0, each - self.passed) / per_s
        last = self.passed + rate.arrivals(math.inf) - _ROUNDING if rate.ends else math.inf
        for each in count(number + (self.index - number) % self.of, self.of):
            moment = rate.seconds_of(each - self.passed) if each < last else math.inf
            if math.isinf(moment):
                return
            yield self.begin + max(0.0, moment)

    def expected(self, rate: ArrivalRate, since: float, until: float) -> float:
        """Return the number of arrivals of this share between two moments; the integral."""
        since = max(self.begin, since)
        if until <= since:
            return 0.0
        return (rate.arrivals(until - self.begin) - rate.arrivals(since - self.begin)) / self.of

    def count(self, rate: ArrivalRate, until: float) -> int:
        """Return its number of arrivals before a moment; of Poisson arrivals, the average."""
        return math.floor(self.expected(rate, self.since, until) + _ROUNDING)

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
    moments: Iterator[float], weights: Sequence[float], index: int, number: int = 0
) -> Iterator[float]:
    """Return the arrivals that one of several user classes serves, in proportion to its weight.

    The class that is furthest behind its share is next. So the shares are right at any moment, and
    each class computes its own arrivals alone.

    Args:
        moments: of all classes.
        weights: of the classes.
        index: of the class in `weights`.
        number: of the arrivals before the first of `moments`: a rate that changes every second
            would begin with the same class each time.
    """
    if len(weights) == 1:
        return moments
    return _in_turns(moments, weights, index, number)


def _in_turns(
    moments: Iterator[float], weights: Sequence[float], index: int, number: int
) -> Iterator[float]:
    total = sum(weights)
    behind = [0.0] * len(weights)
    # With whole weights, the classes take turns in a pattern as long as their sum.
    before = number % int(total) if total >= 1 and float(total).is_integer() else 0
    for moment in chain([None] * before, moments):
        behind = [credit + weight for credit, weight in zip(behind, weights, strict=True)]
        chosen = behind.index(max(behind))
        behind[chosen] -= total
        if chosen == index and moment is not None:
            yield moment
