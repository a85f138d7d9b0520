"""What a target's connections came to: opened, open at once, idle, left over.

How many were opened is the difference of PostgreSQL's own counter of sessions between the
two ends of the window; the pools' events are a second witness. How many were open at once
is seen in samples, so a connection shorter than the time between two of them can be missed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from poolkit.compare.results.run_folder import ConnectionRow, SampleRow
from poolkit.compare.results.wording import count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolkit.compare.results.run_folder import Plan, PlannedTarget, TargetFolder, Window

LOAD = "loadtest"
"""What the load generator's own connections are called."""
LONGEST_STEP = 3
"""Intervals: a longer time between two samples is a gap, in which nothing is known."""
UNSEEN_STEP_S = 1.0
"""A busy machine may be late with a sample, but not so late."""
IDLE = "idle"
IN_TRANSACTION = "idle in transaction"
"""Also the beginning of `idle in transaction (aborted)`."""


@dataclass(frozen=True, kw_only=True)
class ConnectionFigures:
    """None where nothing is known. Means are over the samples of the window."""

    peak: int | None
    peak_share: float | None
    """The peak as a share of `max_connections`."""
    max_connections: int
    """Of the database that the target uses."""
    usable_connections: int | None
    """The same less the server's reserve."""
    mean: float | None
    opened: int | None
    opened_warm_up: int | None
    """Those opened before the window, while the target started and warmed up."""
    opened_per_1000_requests: float | None
    pool_events_opened: int | None
    idle_seconds: float | None
    """Over all connections, the time that they spent in the state `idle`."""
    busy_peak: int | None
    """The most that were not idle at once."""
    idle_in_transaction_peak: int | None
    """The most that waited at once inside a transaction, be it an aborted one."""
    at_ceiling_share: float | None
    """The share of samples in which as many as the ceiling were not idle."""
    left_over: int | None
    ceiling: int | None
    ceiling_reason: str
    by_state: Mapping[str, float]
    unseen_s: float
    """Seconds of the window without samples: the server could not be asked."""


@dataclass(frozen=True)
class Moment:
    """How many connections the target had in one sample, by state."""

    time: float
    states: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.states.values())

    @property
    def busy(self) -> int:
        """Those that are not idle: in a query, or in a transaction between two."""
        return self.total - self.states.get(IDLE, 0)

    @property
    def idle_in_transaction(self) -> int:
        """Those that hold a transaction open and do nothing."""
        return sum(n for state, n in self.states.items() if state.startswith(IN_TRANSACTION))


def moments(name: str, samples: Sequence[SampleRow], rows: Sequence[ConnectionRow]) -> list[Moment]:
    """Return the target's connections in every sample, also in those without any.

    Args:
        name: what its connections are called on the server: its preset's name.
        samples: the rows of samples.csv.
        rows: the rows of connections.csv.

    """
    states: dict[float, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.target == name:
            states[row.time][row.state] += 1
    times = {sample.time for sample in samples} | set(states)
    return [Moment(time, states.get(time, Counter())) for time in sorted(times)]


def connection_figures(
    plan: Plan, target: PlannedTarget, folder: TargetFolder, window: Window, served: int
) -> tuple[ConnectionFigures, tuple[str, ...]]:
    """Return the figures of one target, and the notes that belong beside them."""
    samples, rows = folder.rows(SampleRow), folder.rows(ConnectionRow)
    seen = moments(target.preset, samples.rows, rows.rows)
    inside = [m for m in seen if window.from_ <= m.time <= window.to]
    opened = _opened(window, samples.rows)
    ceiling = target.ceiling
    peak = max((m.total for m in inside), default=None)
    most = target.max_connections or plan.max_connections
    figures = ConnectionFigures(
        peak=peak,
        peak_share=None if peak is None else peak / most,
        max_connections=most,
        usable_connections=target.usable_connections or plan.usable_connections,
        mean=_mean([m.total for m in inside]),
        opened=opened,
        opened_warm_up=difference(window.sessions_before, window.sessions_from),
        opened_per_1000_requests=_per_1000(opened, served),
        pool_events_opened=window.pool_opened,
        idle_seconds=_idle_seconds(inside, plan.interval_s, window.to),
        busy_peak=max((m.busy for m in inside), default=None),
        idle_in_transaction_peak=max((m.idle_in_transaction for m in inside), default=None),
        at_ceiling_share=_mean([m.busy >= ceiling for m in inside]) if ceiling else None,
        left_over=window.left_over,
        ceiling=ceiling,
        ceiling_reason=target.ceiling_reason,
        by_state=_by_state(inside),
        unseen_s=_unseen_s(inside, window),
    )
    notes = (
        *samples.warnings,
        *rows.warnings,
        *_second_witness(target, opened, window),
        *_strangers(target, rows.rows, window),
    )
    return figures, notes


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _per_1000(opened: int | None, served: int) -> float | None:
    return None if opened is None or not served else opened * 1000 / served


def _by_state(inside: Sequence[Moment]) -> dict[str, float]:
    totals: Counter[str] = Counter()
    for moment in inside:
        totals.update(moment.states)
    return {state: count / len(inside) for state, count in totals.most_common()}


def _idle_seconds(inside: Sequence[Moment], interval_s: float, end: float) -> float | None:
    """Add up idle connections times the time until the next sample."""
    if not inside:
        return None
    times = [*(m.time for m in inside), end]
    steps = [min(b - a, LONGEST_STEP * interval_s) for a, b in pairwise(times)]
    return sum(m.states.get(IDLE, 0) * s for m, s in zip(inside, steps, strict=True))


def _unseen_s(inside: Sequence[Moment], window: Window) -> float:
    times = [window.from_, *(m.time for m in inside), window.to]
    return sum(b - a for a, b in pairwise(times) if b - a > UNSEEN_STEP_S)


def _opened(window: Window, samples: Sequence[SampleRow]) -> int | None:
    if window.sessions_from is not None and window.sessions_to is not None:
        return difference(window.sessions_from, window.sessions_to)
    inside = [s.sessions for s in samples if window.from_ <= s.time <= window.to]
    return difference(inside[0], inside[-1]) if inside else window.pool_opened


def difference(begin: int | None, end: int | None) -> int | None:
    """Return how far the server's counter went; None if it was reset, as after a crash."""
    return None if begin is None or end is None or end < begin else end - begin


def _second_witness(target: PlannedTarget, opened: int | None, window: Window) -> list[str]:
    """Say where the pools' events tell another story than the server."""
    events = window.pool_opened
    if opened is None or events is None or window.sessions_to is None:
        return []
    # Those under way at the two ends may be in one count and not yet in the other.
    if abs(opened - events) <= max(2, 0.02 * opened) or through_pooler(target):
        return []
    return [f"the server counted {opened} new connections, the pools' events {events}"]


def through_pooler(target: PlannedTarget) -> bool:
    """Tell whether the server sees a pooler's connections instead of the target's own."""
    return bool(target.preset_fields.get("transaction_pooling"))


def _strangers(target: PlannedTarget, rows: Sequence[ConnectionRow], window: Window) -> list[str]:
    at: Counter[float] = Counter()
    names: set[str] = set()
    for row in rows:
        if window.from_ <= row.time <= window.to and row.target not in (target.preset, LOAD):
            at[row.time] += 1
            names.add(row.target or "unnamed")
    if not at:
        return []
    who = ", ".join(sorted(names)[:3])
    most = count(max(at.values()), "connection")
    return [f"up to {most} of others at once ({who})"]
