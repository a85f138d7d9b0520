"""What a threshold can be about: the metrics, the unit of each, and what may be said of it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, TypeAlias

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind: TypeAlias = Literal["ms", "share", "per_s", "count", "ratio"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One figure of a load test.

    A figure is a number in the unit of its kind: milliseconds, a share from 0 to 1 (written and
    shown in percent), a rate per second, a count of whole things, or a ratio without a unit.
    """

    name: str
    kind: Kind
    meaning: str
    grows: bool = False
    """Whether it only ever gets larger during a run."""
    at_end: bool = False
    """Whether it is known only when the run has ended."""
    sampled: bool = False
    """Whether it comes from samples, so that one which is missing may have been another."""

    @property
    def units(self) -> Mapping[str, Decimal]:
        """The units in which a limit may be written, each with its factor."""
        return UNITS[self.kind]

    @property
    def unit(self) -> str:
        """What stands behind a value of it, with the blank before it."""
        return _SHOWN[self.kind]


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

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        *(
            Metric(name=f"http.p{p}", kind="ms", meaning=f"latency that {p} % do not exceed")
            for p in ("50", "90", "95", "99", "99.9")
        ),
        Metric(name="http.max", kind="ms", meaning="longest latency", grows=True),
        Metric(name="http.mean", kind="ms", meaning="mean latency"),
        Metric(name="http.errors", kind="share", meaning="share of the requests that failed"),
        Metric(name="http.requests", kind="count", meaning="requests, failed ones too", grows=True),
        Metric(name="http.rate", kind="per_s", meaning="requests answered a second"),
        Metric(
            name="db.connections.max",
            kind="count",
            meaning="most connections at once",
            grows=True,
            sampled=True,
        ),
        Metric(
            name="db.connections.mean",
            kind="ratio",
            meaning="mean of connections at once",
            sampled=True,
        ),
        Metric(
            name="db.connections.share",
            kind="share",
            meaning="most connections at once, as a share of max_connections",
            grows=True,
            sampled=True,
        ),
        Metric(name="db.opened", kind="count", meaning="connections opened", grows=True),
        Metric(name="db.opened_per_request", kind="ratio", meaning="connections opened a request"),
        Metric(
            name="db.idle_in_transaction.max",
            kind="count",
            meaning="most connections at once that were idle in a transaction",
            grows=True,
            sampled=True,
        ),
        Metric(
            name="db.left_over",
            kind="count",
            meaning="connections still there after the target has ended",
            at_end=True,
        ),
        Metric(
            name="lambda.cold_starts",
            kind="count",
            meaning="execution environments that were started",
            grows=True,
        ),
    )
}


def metric(name: str) -> Metric:
    """Return the metric of a name.

    Raises:
        ConfigurationError: there is none; the message has the nearest name, or all.
    """
    found = METRICS.get(name)
    if found is None:
        close = difflib.get_close_matches(name.lower(), METRICS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(METRICS)}"
        raise ConfigurationError(f"{name!r} is no metric; {hint}")
    return found


def in_unit(value: float, kind: Kind) -> Decimal:
    """Return a value as it is shown: a share in percent, all else as it is."""
    exact = Decimal(repr(float(value)))
    return exact * 100 if kind == "share" else exact


def plain(number: Decimal) -> str:
    """Return a number without exponent and without zeros behind its last digit."""
    return format(number.normalize() if number else Decimal(0), "f")


def shown(value: float, of: Metric, *, beside: float | None = None) -> str:
    """Return a value in words, such as "243 ms" or "0.12%".

    Three digits are shown, or as many as tell it from `beside`, a limit: a value that exceeds
    one must not read as if it were equal.
    """
    exact = in_unit(value, of.kind)
    digits = max(3, exact.adjusted() + 1)
    text = _rounded(exact, digits)
    while beside is not None and _reads_as(text, beside, of) != _order(value, beside):
        digits += 1
        text = _rounded(exact, digits)
    return f"{text}{of.unit}"


def _rounded(exact: Decimal, digits: int) -> str:
    if exact:
        exact = round(exact, digits - 1 - exact.adjusted())
    return plain(exact)


def _reads_as(text: str, beside: float, of: Metric) -> int:
    limit = in_unit(beside, of.kind)
    return (Decimal(text) > limit) - (Decimal(text) < limit)


def _order(value: float, limit: float) -> int:
    return (value > limit) - (value < limit)
