"""`--pool-sizes`: one target with several sizes of its pool, and the smallest that is enough.

Two answers stand beside each other. The measured one is the knee: the smallest size whose p95 and
throughput are within 5 % of the best. The computed one is Little's law: the mean number of
connections in use is the rate of checkouts times the mean hold time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit.compare.results.levels import is_tie_of_repeats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolkit.compare.results.levels import LevelResult
    from poolkit.compare.results.run_folder import Level, Plan, PlannedTarget
    from poolkit.compare.results.wording import Spread

WITHIN = 0.05
"""The share by which p95 and throughput may be worse than the best at the knee."""
DEVIATIONS = 3.0
"""Of the number of connections in use, for which Little's law gives the mean. Where requests come
independently and no pool limits them (M/G/infinity), that number has a Poisson distribution, whose
standard deviation is the root of its mean; it is above 3 of them in 0.5 % of the time or less."""


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One size of the pool. Ranges are over the repeats."""

    name: str
    """Of the target with this size."""
    pool_size: int
    max_overflow: int
    rate: Spread | None
    """Requests answered per second."""
    p95_ms: Spread | None
    error_share: float
    out_max: int | None
    """The most connections of one process's pool that were in use at once."""
    is_full: bool
    """True if a process had all of them in use at once."""
    waited_p95_ms: float | None
    waited_max_ms: float | None
    mean_out: float | None
    """The mean number of connections in use in each process."""
    in_force: bool | None
    """Whether its processes had this size; None if they did not report it."""
    why_not: str
    """Why it cannot be the knee; empty if it can."""

    @property
    def most(self) -> int:
        """The most connections of one process."""
        return self.pool_size + self.max_overflow

    @property
    def label(self) -> str:
        """The size as `10+5`, or as `10` without an overflow."""
        return f"{self.pool_size}+{self.max_overflow}" if self.max_overflow else f"{self.pool_size}"


@dataclass(frozen=True, kw_only=True)
class LittlesLaw:
    """The connections that a process needs, by the rate of checkouts and the mean hold time."""

    mean: float
    """The mean number in use."""
    size: int
    """The same with the allowance for variance: mean + 3 x its root, rounded up."""
    measured_with: str
    """The size of the pool with which both were measured."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The sizes of one target's pool, from the smallest, at one load."""

    target: str
    level: Level
    processes: int
    points: tuple[SweepPoint, ...]
    knee: SweepPoint | None
    """The smallest size that is enough; None if no size could be judged."""
    little: LittlesLaw | None
    """None if every size was full at times: then the pool limited what it should be derived from."""
    peak: int | None
    """The most in use at once in a process whose pool was never full; None if every pool was."""


def sweeps_of(plan: Plan, levels: Mapping[str, Sequence[LevelResult]]) -> tuple[Sweep, ...]:
    """Return the sweep of each target, at the highest load that one of its sizes sustained."""
    of_target: dict[str, list[PlannedTarget]] = {}
    for planned in plan.targets:
        if planned.swept_from:
            of_target.setdefault(planned.swept_from, []).append(planned)
    return tuple(
        _sweep(name, sizes, plan.levels, levels)
        for name, sizes in of_target.items()
        if any(each.repeats for planned in sizes for each in levels.get(planned.name, ()))
    )


def _sweep(
    target: str,
    sizes: Sequence[PlannedTarget],
    loads: Sequence[Level],
    levels: Mapping[str, Sequence[LevelResult]],
) -> Sweep:
    found = [each for planned in sizes for each in levels.get(planned.name, ())]
    sustained = [load for load in loads if any(e.sustained and e.level == load for e in found)]
    level = sustained[-1] if sustained else loads[0]
    points, processes = [], 1
    for planned in sizes:
        at = [each for each in levels.get(planned.name, ()) if each.level == level]
        points.append(_point(planned, at[0] if at else None))
        pool = at[0].middle.pool if at and at[0].middle else None
        processes = max(processes, pool.processes if pool else 1)
    points.sort(key=lambda point: (point.most, point.pool_size))
    free = [each for each in points if not each.is_full and each.out_max is not None]
    return Sweep(
        target=target,
        level=level,
        processes=processes,
        points=tuple(points),
        knee=knee_of_sizes(points),
        little=littles_law(points),
        peak=max((each.out_max or 0 for each in free), default=None),
    )


def _point(planned: PlannedTarget, at: LevelResult | None) -> SweepPoint:
    size, overflow = planned.pool_size or 0, planned.max_overflow or 0
    middle = at.middle if at is not None else None
    pool = middle.pool if middle is not None else None
    why_not = "not measured" if at is None else at.why_not
    in_force = None
    if pool is not None:
        settings = pool.settings
        in_force = (settings.pool_size, settings.max_overflow) == (size, overflow)
    if pool is not None and not in_force:
        why_not = f"its pool stayed {pool.settings.described}"
    elif pool is None and not why_not:
        why_not = "its processes reported no pool, so the size may not be in force"
    return SweepPoint(
        name=planned.name,
        pool_size=size,
        max_overflow=overflow,
        rate=at.spread.get("http.rate") if at is not None else None,
        p95_ms=at.spread.get("http.p95") if at is not None else None,
        error_share=at.error_share if at is not None else 0.0,
        out_max=None if pool is None else pool.out_max,
        is_full=pool is not None and pool.is_full,
        waited_p95_ms=None if pool is None else pool.waited_p95_ms,
        waited_max_ms=None if pool is None else pool.waited_max_ms,
        mean_out=pool.mean_out / pool.processes if pool and pool.mean_out is not None else None,
        in_force=in_force,
        why_not=why_not,
    )


def knee_of_sizes(points: Sequence[SweepPoint]) -> SweepPoint | None:
    """Return the smallest size that is as good as the best; None if no size can be judged.

    A size that did not sustain the load is too small, and judged by that. As good means: p95 and throughput within 5 % of the best, or no further from it than the repeats
    differ among themselves.
    """
    known = [each for each in points if not each.why_not and each.rate and each.p95_ms]
    if not known or len([each for each in points if each.rate]) < 2:
        return None
    latencies = [each.p95_ms for each in known if each.p95_ms]
    rates = [each.rate for each in known if each.rate]
    fastest, most = min(latencies, key=lambda x: x.median), max(rates, key=lambda x: x.median)
    for each in sorted(known, key=lambda point: point.most):
        if (
            each.p95_ms
            and each.rate
            and _is_as_good(each.p95_ms, fastest, each.p95_ms.median / fastest.median)
            and _is_as_good(each.rate, most, most.median / each.rate.median)
        ):
            return each
    return max(known, key=lambda point: point.most)


def _is_as_good(one: Spread, best: Spread, ratio: float) -> bool:
    has_repeats = one.low < one.high or best.low < best.high
    return ratio <= 1 + WITHIN or (has_repeats and is_tie_of_repeats(one, best))


def littles_law(points: Sequence[SweepPoint]) -> LittlesLaw | None:
    """Return Little's law for the largest pool that was never full; None if each was."""
    free = [each for each in points if not each.is_full and each.mean_out is not None]
    if not free:
        return None
    largest = max(free, key=lambda point: point.most)
    mean = largest.mean_out or 0.0
    return LittlesLaw(mean=mean, size=size_for(mean), measured_with=largest.label)


def size_for(mean: float) -> int:
    """Return the connections for a mean number in use, with the allowance for variance."""
    return max(1, math.ceil(mean + DEVIATIONS * math.sqrt(mean)))
