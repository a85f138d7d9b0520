"""Second by second: connections by target and state, beside requests and latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from poolkit.activity.by_target import STATES, Connected, total
from poolkit.loadtest.latency.counters import Rates

MOST_POINTS = 900
"""A chart is about 900 pixels wide, so more points are invisible."""
_LATENCIES = ("p50_ms", "p95_ms", "p99_ms")
_COLUMNS = (
    *("time", "targets", "states", "other_databases", "opened_per_s", "users"),
    *("requests_per_s", "failures_per_s", *_LATENCIES),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Second:
    """The measurements of one second.

    Of several samples in a second, `targets` is the one with the most connections: a peak must
    not vanish between two points of a chart. `targets` and `opened` are None when the server was
    not or could not be queried.
    """

    time: float
    """The end of the second, Unix time."""
    targets: tuple[Connected, ...] | None
    opened: int | None
    """The number of connections opened in this second."""
    users: int
    rates: Rates
    elsewhere: int = 0
    """Connections to the server's other databases, in the sample of `targets`."""

    @property
    def connections(self) -> int | None:
        """The connections of all targets together."""
        return None if self.targets is None else total(self.targets).total

    @property
    def on_server(self) -> int | None:
        """The connections to all databases of the server, to which its limits apply."""
        return None if self.connections is None else self.connections + self.elsewhere


class Series:
    """The seconds of a run, thinned out so that a soak test needs no more memory than a spike.

    At twice `MOST_POINTS`, each two neighbours become one: the one with more connections, with the
    connections opened in both.
    """

    def __init__(self) -> None:
        self.points: list[Second] = []
        self.step_s = 1
        """The seconds that one point stands for."""
        self._pending: Second | None = None
        self._pending_s = 0
        self._columns = _empty_columns()
        """Of the points up to the last call of `columns`: a page asks every second."""

    def add(self, second: Second) -> None:
        """Append a second."""
        self._pending = second if self._pending is None else fuller(self._pending, second)
        self._pending_s += 1
        if self._pending_s >= self.step_s:
            self.points.append(self._pending)
            self._pending, self._pending_s = None, 0
        if len(self.points) >= 2 * MOST_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [fuller(first, second) for first, second in pairs]
            self.step_s *= 2
            self._columns = _empty_columns()

    def columns(self) -> dict[str, Any]:
        """Return the points as columns for JSON; None where a figure is unknown."""
        columns = self._columns
        known = len(columns["time"])
        new, targets = self.points[known:], columns["targets"]
        for name in {one.target for point in new for one in point.targets or ()} - set(targets):
            targets[name] = [None if p.targets is None else 0 for p in self.points[:known]]
        for point in new:
            self._append(point)
        copies = {
            key: {name: [*values] for name, values in column.items()}
            if isinstance(column, dict)
            else [*column]
            for key, column in columns.items()
        }
        return {**copies, "targets": {name: copies["targets"][name] for name in sorted(targets)}}

    def _append(self, point: Second) -> None:
        columns, is_known = self._columns, point.targets is not None
        connected = {one.target: one.total for one in point.targets or ()}
        together = total(point.targets or ())
        for name, values in columns["targets"].items():
            values.append(connected.get(name, 0) if is_known else None)
        for state, values in columns["states"].items():
            values.append(getattr(together, state) if is_known else None)
        opened = None if point.opened is None else round(point.opened / self.step_s, 3)
        columns["time"].append(round(point.time, 3))
        columns["other_databases"].append(point.elsewhere if is_known else None)
        columns["opened_per_s"].append(opened)
        columns["users"].append(point.users)
        columns["requests_per_s"].append(round(point.rates.requests_per_s, 3))
        columns["failures_per_s"].append(round(point.rates.failures_per_s, 3))
        for name in _LATENCIES:
            columns[name].append(getattr(point.rates, name))


def _empty_columns() -> dict[str, Any]:
    return {name: [] for name in _COLUMNS} | {"targets": {}, "states": {s: [] for s in STATES}}


def fuller(first: Second, second: Second) -> Second:
    """Return one point for two: the one with more connections, at the later moment."""
    known = [one for one in (first, second) if one.connections is not None]
    most = max(known, key=lambda one: one.connections or 0, default=second)
    opened = [one.opened for one in (first, second) if one.opened is not None]
    # A spike of latency must survive just as one of connections does.
    one, other = first.rates, second.rates
    rates = Rates(
        other.requests_per_s,
        other.failures_per_s,
        *(_highest(getattr(one, name), getattr(other, name)) for name in _LATENCIES),
    )
    return Second(
        time=second.time,
        targets=most.targets,
        elsewhere=most.elsewhere,
        opened=sum(opened) if opened else None,
        users=second.users,
        rates=rates,
    )


def _highest(*values: float | None) -> float | None:
    return max((one for one in values if one is not None), default=None)
