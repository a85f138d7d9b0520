"""Second by second: connections by target and state, beside requests and latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poolkit.activity.by_target import STATES, Connected, total

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MOST_POINTS = 900
"""A chart is some 900 pixels wide; more points than that nobody can see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Second:
    """What was seen in one second.

    Of several samples in a second, `targets` is the one with the most connections: a peak must
    not vanish between two points of a chart. It is None when the server was not or could not be
    asked, `opened` too, which counts the connections opened in that second.
    """

    time: float
    """The end of the second, Unix time."""
    targets: tuple[Connected, ...] | None
    opened: int | None
    users: int
    requests_per_s: float
    failures_per_s: float
    p95_ms: float | None
    """The rates and percentiles are those of the last seconds, see `RecentRequests`."""
    p50_ms: float | None = None
    p99_ms: float | None = None
    elsewhere: int = 0
    """Connections to the server's other databases, in the sample that `targets` is of."""

    @property
    def connections(self) -> int | None:
        """All targets' connections together."""
        return None if self.targets is None else total(self.targets).total

    @property
    def on_server(self) -> int | None:
        """The connections to all databases of the server, which its limits are about."""
        return None if self.connections is None else self.connections + self.elsewhere


class Series:
    """The seconds of a run, thinned out so that a soak test needs no more room than a spike.

    Once there are twice `MOST_POINTS`, each two neighbours become one: that with more connections,
    with the connections opened in both.
    """

    def __init__(self) -> None:
        self.points: list[Second] = []
        self.step_s = 1
        """Seconds that one point stands for."""
        self._pending: Second | None = None
        self._pending_s = 0
        self._columns = _as_columns((), (), 1)
        """Of the points up to the last call of `columns`: a page asks every second."""

    def add(self, second: Second) -> None:
        """Append a second."""
        self._pending = second if self._pending is None else fuller(self._pending, second)
        self._pending_s += 1
        if self._pending_s >= self.step_s:
            self.points.append(self._pending)
            self._pending, self._pending_s = None, 0
        if len(self.points) >= 2 * MOST_POINTS:
            self._thin_out()

    def _thin_out(self) -> None:
        pairs = zip(self.points[::2], self.points[1::2], strict=True)
        self.points = [fuller(first, second) for first, second in pairs]
        self.step_s *= 2
        self._columns = _as_columns((), (), self.step_s)

    def columns(self) -> dict[str, Any]:
        """Return the points as columns for JSON; None where nothing is known."""
        known = len(self._columns["time"])
        new, targets = self.points[known:], self._columns["targets"]
        for name in set(_names(new)) - set(targets):
            targets[name] = [None if p.targets is None else 0 for p in self.points[:known]]
        _extend(self._columns, _as_columns(new, sorted(targets), self.step_s))
        copies = {key: _copy(column) for key, column in self._columns.items()}
        return {**copies, "targets": {name: [*targets[name]] for name in sorted(targets)}}


def _as_columns(points: Sequence[Second], names: Sequence[str], step_s: int) -> dict[str, Any]:
    return {
        "time": [round(point.time, 3) for point in points],
        "targets": _columns(points, names, _by_target),
        "states": _columns(points, STATES, _by_state),
        "other_databases": [None if point.targets is None else point.elsewhere for point in points],
        "opened_per_s": [_per_s(point.opened, step_s) for point in points],
        "users": [point.users for point in points],
        "requests_per_s": [round(point.requests_per_s, 3) for point in points],
        "failures_per_s": [round(point.failures_per_s, 3) for point in points],
        "p50_ms": [point.p50_ms for point in points],
        "p95_ms": [point.p95_ms for point in points],
        "p99_ms": [point.p99_ms for point in points],
    }


def _extend(columns: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, column in more.items():
        if isinstance(column, dict):
            _extend(columns[key], column)
        else:
            columns[key].extend(column)


def _copy(column: Any) -> Any:
    return {k: [*v] for k, v in column.items()} if isinstance(column, dict) else [*column]


def fuller(first: Second, second: Second) -> Second:
    """Make one point of two: that with more connections, at the later moment."""
    seen = [one for one in (first, second) if one.connections is not None]
    most = max(seen, key=lambda one: one.connections or 0, default=second)
    opened = [one.opened for one in (first, second) if one.opened is not None]
    return Second(
        time=second.time,
        targets=most.targets,
        elsewhere=most.elsewhere,
        opened=sum(opened) if opened else None,
        users=second.users,
        requests_per_s=second.requests_per_s,
        failures_per_s=second.failures_per_s,
        # A spike of latency must survive just as one of connections does.
        p50_ms=_higher(first.p50_ms, second.p50_ms),
        p95_ms=_higher(first.p95_ms, second.p95_ms),
        p99_ms=_higher(first.p99_ms, second.p99_ms),
    )


def _higher(first: float | None, second: float | None) -> float | None:
    return max((one for one in (first, second) if one is not None), default=None)


def _names(points: Sequence[Second]) -> list[str]:
    return sorted({one.target for point in points for one in point.targets or ()})


def _columns(
    points: Sequence[Second],
    names: Sequence[str],
    counts: Callable[[Sequence[Connected]], Mapping[str, int]],
) -> dict[str, list[int | None]]:
    counted = [None if point.targets is None else counts(point.targets) for point in points]
    return {name: [None if c is None else c.get(name, 0) for c in counted] for name in names}


def _by_target(targets: Sequence[Connected]) -> dict[str, int]:
    return {one.target: one.total for one in targets}


def _by_state(targets: Sequence[Connected]) -> dict[str, int]:
    everybody = total(targets)
    return {state: getattr(everybody, state) for state in STATES}


def _per_s(opened: int | None, step_s: int) -> float | None:
    return None if opened is None else round(opened / step_s, 3)
