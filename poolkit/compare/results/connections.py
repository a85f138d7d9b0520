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

from poolkit.activity.by_target import IDLE, IDLE_IN_TRANSACTION
from poolkit.compare.results.wording import count
from poolkit.loadtest.figures import Held

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolkit.compare.results.run_folder import (
        ConnectionRow,
        Plan,
        PlannedTarget,
        SampleRow,
        Window,
    )
    from poolkit.loadtest.figures import MetricAccumulator

LOAD = "loadtest"
"""What the load generator's own connections are called."""
LONGEST_STEP = 3
"""Intervals: a longer time between two samples is a gap, in which nothing is known."""


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
        return sum(self.states.get(state, 0) for state in IDLE_IN_TRANSACTION)


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


def add_samples(
    measured: MetricAccumulator,
    name: str,
    samples: Sequence[SampleRow],
    seen: Sequence[Moment],
    window: Window,
) -> None:
    """Feed an accumulator with what the server said of one target.

    Args:
        measured: of the window.
        name: as of `moments`.
        samples: the rows of samples.csv.
        seen: the target's connections, as of `moments`.
        window: its counter is read where there was no sample.

    """
    counter = {sample.time: sample.sessions for sample in samples}
    for moment in seen:
        held = {name: Held(moment.total, moment.idle_in_transaction)}
        measured.connections.add_sample(moment.time, counter.get(moment.time), held)
    if not measured.connections.samples and window.sessions_to is not None:
        measured.connections.read_counter(window.sessions_to)


def connection_figures(
    plan: Plan,
    target: PlannedTarget,
    window: Window,
    measured: MetricAccumulator,
    seen: Sequence[Moment],
) -> ConnectionFigures:
    """Return the figures of one target.

    Args:
        plan: of the run.
        target: with its limits at this load.
        window: the measured time.
        measured: its figures, fed with the rows.
        seen: the target's connections, as of `moments`.

    """
    inside = [m for m in seen if window.from_ <= m.time <= window.to]
    held, opened = measured.connections.of(target.preset), measured.connections.opened
    served, ceiling = measured.requests.served, target.ceiling
    most = target.max_connections or plan.max_connections
    return ConnectionFigures(
        peak=held and held.max,
        peak_share=held and held.max / most,
        max_connections=most,
        usable_connections=target.usable_connections or plan.usable_connections,
        mean=held and held.mean,
        opened=opened,
        opened_warm_up=difference(window.sessions_before, window.sessions_from),
        opened_per_1000_requests=None if opened is None or not served else 1000 * opened / served,
        pool_events_opened=window.pool_opened,
        idle_seconds=_idle_seconds(inside, plan.interval_s, window.to),
        busy_peak=max((m.busy for m in inside), default=None),
        idle_in_transaction_peak=held and held.idle_in_transaction_max,
        at_ceiling_share=(
            sum(m.busy >= ceiling for m in inside) / len(inside) if ceiling and inside else None
        ),
        left_over=window.left_over,
        ceiling=ceiling,
        ceiling_reason=target.ceiling_reason,
        by_state=_by_state(inside),
        unseen_s=measured.connections.unseen_s(window.to),
    )


def notes(
    target: PlannedTarget, window: Window, opened: int | None, rows: Sequence[ConnectionRow]
) -> list[str]:
    """Return what belongs beside the figures: a second source that disagrees, and strangers.

    Args:
        target: as it was planned.
        window: the measured time.
        opened: connections opened by the server's counter.
        rows: the rows of connections.csv.

    """
    found = []
    events = window.pool_opened
    # Connections under way at the two ends may be in one count and not yet in the other.
    if (
        opened is not None
        and events is not None
        and abs(opened - events) > max(2, 0.02 * opened)
        and not through_pooler(target)
    ):
        found.append(f"the server counted {opened} new connections, the pools' events {events}")
    at: Counter[float] = Counter()
    names: set[str] = set()
    for row in rows:
        if window.from_ <= row.time <= window.to and row.target not in (target.preset, LOAD):
            at[row.time] += 1
            names.add(row.target or "unnamed")
    if at:
        most = count(max(at.values()), "connection")
        found.append(f"up to {most} of others at once ({', '.join(sorted(names)[:3])})")
    return found


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


def difference(begin: int | None, end: int | None) -> int | None:
    """Return how far the server's counter went; None if it was reset, as after a crash."""
    return None if begin is None or end is None or end < begin else end - begin


def through_pooler(target: PlannedTarget) -> bool:
    """Tell whether the server sees a pooler's connections instead of the target's own."""
    return bool(target.preset_fields.get("transaction_pooling"))
