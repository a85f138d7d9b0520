"""The metrics that a threshold can be about: the unit of each, and the limits that make sense.

How each is measured is defined once, in `poolkit.loadtest.figures.MetricAccumulator`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, TypeAlias

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind: TypeAlias = Literal["ms", "share", "per_s", "count", "ratio"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a load test.

    A figure is a number in the unit of its kind: milliseconds, a share from 0 to 1 (written and
    shown in percent), a rate per second, a count of whole things, or a ratio without a unit.
    """

    name: str
    kind: Kind
    meaning: str
    """A short text for messages about units."""
    grows: bool = False
    """Whether it only ever gets larger during a run."""
    at_end: bool = False
    """Whether it is known only when the run has ended."""
    sampled: bool = False
    """Whether it comes from samples: a missing sample may have had another value."""

    @property
    def of_requests(self) -> bool:
        """Whether it can be told apart by the name of a request."""
        return self.name.startswith("http.")

    @property
    def units(self) -> Mapping[str, Decimal]:
        """The units in which a limit may be written, each with its factor."""
        return UNITS[self.kind]


UNITS: dict[Kind, dict[str, Decimal]] = {
    "ms": {
        "us": Decimal("0.001"),
        "ms": Decimal(1),
        "s": Decimal(1000),
        "min": Decimal(60_000),
    },
    "share": {"%": Decimal("0.01")},
    "per_s": {"/s": Decimal(1)},
    "count": {},
    "ratio": {},
}
_SHOWN: dict[Kind, str] = {"ms": " ms", "share": "%", "per_s": "/s", "count": "", "ratio": ""}
"""The unit behind a value, with the space before it."""

_ALL = [
    *(
        Metric(f"http.p{p}", "ms", f"latency that {p} % do not exceed")
        for p in ("50", "90", "95", "99", "99.9")
    ),
    Metric("http.max", "ms", "longest latency", grows=True),
    Metric("http.mean", "ms", "mean latency"),
    Metric("http.errors", "share", "share of the requests that failed"),
    Metric("http.requests", "count", "requests, failed ones too", grows=True),
    Metric("http.rate", "per_s", "requests answered per second"),
    Metric("db.connections.max", "count", "most connections at once", grows=True, sampled=True),
    Metric("db.connections.mean", "ratio", "mean number of connections", sampled=True),
    Metric(
        "db.connections.share",
        "share",
        "most connections at once, as a share of max_connections",
        grows=True,
        sampled=True,
    ),
    Metric("db.opened", "count", "connections opened", grows=True),
    Metric("db.opened_per_request", "ratio", "connections opened per request"),
    Metric(
        "db.idle_in_transaction.max",
        "count",
        "most connections at once that were idle in a transaction",
        grows=True,
        sampled=True,
    ),
    Metric(
        "db.hold.p95", "ms", "time for which 95 % of the checkouts held a connection", at_end=True
    ),
    Metric(
        "db.hold.busy_share",
        "share",
        "share of the hold time in which SQL ran",
        at_end=True,
    ),
    Metric(
        "db.nested_checkouts",
        "count",
        "checkouts by a unit of work that had a connection already",
        at_end=True,
    ),
    Metric("db.left_over", "count", "connections left after the target was stopped", at_end=True),
    Metric("lambda.cold_starts", "count", "execution environments started", grows=True),
]
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}


def metric(name: str) -> Metric:
    """Return the metric of a name.

    Raises:
        ConfigurationError: there is none; the message has the nearest name, or all names.
    """
    found = METRICS.get(name)
    if found is None:
        close = difflib.get_close_matches(name.lower(), METRICS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(METRICS)}"
        raise ConfigurationError(f"{name!r} is not a metric; {hint}")
    return found


def plain(number: Decimal) -> str:
    """Return a number without exponent and without zeros behind its last digit."""
    return format(number.normalize() if number else Decimal(0), "f")


def shown(value: float, of: Metric, *, beside: float | None = None) -> str:
    """Return a value with its unit, such as "243 ms" or "0.12%".

    It has three digits, or as many as distinguish it from `beside`, a limit: a value that exceeds a
    limit must not read as if it were equal.
    """
    factor = 100 if of.kind == "share" else 1
    exact = Decimal(repr(float(value))) * factor
    limit = None if beside is None else Decimal(repr(float(beside))) * factor
    digits = max(3, exact.adjusted() + 1)
    while True:
        rounded = round(exact, digits - 1 - exact.adjusted()) if exact else exact
        if limit is None or rounded.compare(limit) == exact.compare(limit):
            return f"{plain(rounded)}{_SHOWN[of.kind]}"
        digits += 1
