"""Which settings a target should have: the rules, as a function of facts.

docs/engines.md describes the rules. Here are data only; `poolkit.compare.report.advice_text` has the
sentences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from poolkit.compare.results.pools import is_held_idle

if TYPE_CHECKING:
    from poolkit.compare.results.sweep import Sweep, SweepPoint
    from poolkit.compare.results.target_result import TargetResult

Action: TypeAlias = Literal[
    "keep",
    "smaller",
    "larger",
    "set",  # by --pool-sizes, which have replaced the target's own
    "shorten holds",
    "use a pool",
    "bound concurrency",
    "unknown",
]
Reason: TypeAlias = Literal[
    "deployed",  # unknown: its processes report nothing to this run
    "not reported",  # unknown: no pool of SQLAlchemy
    "no checkout",  # unknown: nothing was used
    "not counted",  # unknown: the pool does not count what is out
    "no size in force",  # unknown: its pool stayed as it was, whatever size it was to get
    "no size sustained",  # unknown: no size of --pool-sizes sustained the load
    "unlimited",  # its pool has no limit, so only its peak is known
    "null pool",  # a connection for every checkout
    "one per environment",  # a function's execution environment
    "one task at a time",  # a worker's child
    "unused",  # far fewer in use than allowed
    "in use",  # about as many as needed
    "near limit",  # hardly more allowed than were in use, or no more; checkouts hardly waited
    "waited",  # all in use, and checkouts waited
    "no room",  # all in use, and the server has no more
    "over budget",  # its own ceiling is more than the server has
    "measured",  # by the sizes of --pool-sizes
]
Doubt: TypeAlias = Literal[
    "closed loop",
    "saturated",
    "busy machine",
    "stopped early",
    "errors",
    "short",
    "few checkouts",
    "light load",
    "once",
    "limited",  # by the pool itself, so the need beyond it is not known
]
_SERIOUS: frozenset[Doubt] = frozenset(
    {"saturated", "stopped early", "errors", "short", "few checkouts", "limited"}
)
"""These alone make a recommendation unsure."""

HEADROOM = 1.25
"""Times the peak, below which no pool is recommended."""
SAVING = 0.75
"""Of the present ceiling: a recommendation that is not below this share is no change."""
LONG_WAIT_MS = 5.0
"""The p95 of the waits from which a full pool delays requests. A checkout from a pool with a free
connection takes microseconds, and one that opens a connection some milliseconds."""
ENOUGH_S = 10.0
ENOUGH_CHECKOUTS = 200
"""Fewer show no peak: the rare moment with many requests at once may not have come."""
MOST_ERRORS = 0.01
LIGHT_LOAD = 0.5
"""Connections in use on average, below which requests hardly overlap."""
BUSY_MACHINE = 0.9
SPARE_CONNECTIONS = 3
"""Kept free for an operator and health checks."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the rules read of one target. None is "not known". Times are in ms."""

    kind: str = "web"
    is_deployed: bool = False
    pool: str = "QueuePool"
    """The class of the pool; empty if its processes reported none."""
    pool_size: int | None = 5
    max_overflow: int | None = 10
    most: int | None = 15
    """The most connections of one process; None for no limit."""
    processes: int = 1
    out_max: int | None = None
    """The most of one process's connections that were in use at once."""
    mean_out: float | None = None
    """The mean number in use, in each process."""
    server_peak: int | None = None
    """The most of the target's connections that the server had at once."""
    waited_p95_ms: float | None = None
    timeouts: int = 0
    checkouts: int = 0
    holder: str = ""
    """The line that holds connections without SQL, if there is one."""
    behind_pooler: bool = False
    usable_connections: int | None = None
    """Of the server, without its reserve."""
    concurrency: int | None = None
    """The most execution environments or children."""
    is_open_loop: bool = True
    is_saturated: bool = False
    is_busy_machine: bool = False
    is_partial: bool = False
    measured_s: float = 20.0
    error_share: float = 0.0
    has_repeats: bool = False


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A recommendation, its reason, and how sure it is."""

    action: Action
    reason: Reason
    pool_size: int | None = None
    max_overflow: int | None = None
    """What to set in each process; None where the action is not about a size."""
    basis: Literal["measured", "estimated", ""] = ""
    """By `--pool-sizes`, or from the peak of one size; empty without a size."""
    certainty: Literal["good", "fair", "low", ""] = ""
    """Empty for an unknown recommendation."""
    doubts: tuple[Doubt, ...] = ()
    holder: str = ""
    """The line whose holds to shorten."""
    try_sizes: tuple[int, ...] = ()
    """For `--pool-sizes`, to be surer."""
    budget: int | None = None
    """The most connections that the server leaves to each process; None where it is not known."""


def facts_of(target: TargetResult, cores: int) -> Facts:
    """Return the facts about one measurement.

    Args:
        target: the measurement.
        cores: of the machine; 0 if not known.
    """
    pool, found, holds = target.pool, target.connections, target.holds
    settings = pool.settings if pool is not None else None
    site = next((site for site in holds.sites if is_held_idle(site)), None) if holds else None
    processes = pool.processes if pool is not None else 1
    mean_out = pool.mean_out if pool is not None else None
    return Facts(
        kind=target.kind,
        is_deployed=target.url is not None,
        pool=settings.pool if settings is not None else "",
        pool_size=settings.pool_size if settings is not None else None,
        max_overflow=settings.max_overflow if settings is not None else None,
        most=settings.most if settings is not None else None,
        processes=processes,
        out_max=pool.out_max if pool is not None else None,
        mean_out=None if mean_out is None else mean_out / processes,
        server_peak=found.peak,
        waited_p95_ms=pool.waited_p95_ms if pool is not None else None,
        timeouts=pool.timeouts if pool is not None else 0,
        checkouts=pool.checkouts if pool is not None else 0,
        holder=" ".join(filter(None, [site.where, f"({site.unit})" if site.unit else ""]))
        if site
        else "",
        behind_pooler=target.through == "pgbouncer"
        or bool(target.preset.get("transaction_pooling") and found.uses_preset),
        usable_connections=found.usable_connections,
        concurrency=target.execution_environments if target.kind == "lambda" else target.instances,
        is_open_loop=target.step.level.is_open,
        is_saturated=target.saturated,
        is_busy_machine=bool(cores) and sum(target.cpu_share.values()) > BUSY_MACHINE * cores,
        is_partial=target.partial or bool(target.failure),
        measured_s=target.measured_s,
        error_share=target.errors / target.requests if target.requests else 0.0,
        has_repeats=bool(target.spread),
    )


def advise(facts: Facts, sweep: Sweep | None = None) -> Advice:
    """Return the recommendation for one target.

    Args:
        facts: about one measurement of it; of a sweep, that of the knee.
        sweep: of its pool sizes, if they were compared.
    """
    if reason := _why_unknown(facts, sweep):
        return Advice(action="unknown", reason=reason)
    doubts = _doubts(facts)
    found = Advice(
        action="keep",
        reason="in use",
        certainty="low" if _SERIOUS & set(doubts) else "fair",
        doubts=doubts,
        budget=_budget(facts),
    )
    if sweep is not None and sweep.knee is not None:
        return _by_sweep(found, facts, sweep, sweep.knee)
    if _takes_one_each(facts):
        # Their number is the setting, whatever the pool could hold.
        return replace(
            found,
            action="bound concurrency",
            reason="one per environment" if facts.kind == "lambda" else "one task at a time",
        )
    if facts.pool == "NullPool":
        # A connection is open for as long as it is checked out, so the server has counted them.
        advice = _sized(found, "use a pool", "null pool", _peak_of_null_pool(facts))
        # --pool-sizes cannot change it.
        return replace(advice, try_sizes=())
    return _by_peak(found, facts, facts.out_max or 0)


def _why_unknown(facts: Facts, sweep: Sweep | None) -> Reason | None:
    """Return why no settings can be recommended; None if they can."""
    reasons: dict[Reason, bool] = {
        "deployed": facts.is_deployed,
        "no size in force": sweep is not None
        and all(point.in_force is False for point in sweep.points),
        "no size sustained": sweep is not None and sweep.knee is None,
    }
    if sweep is None and not _takes_one_each(facts):
        is_null = facts.pool == "NullPool"
        reasons |= {
            "not reported": not facts.pool,
            "no checkout": not facts.checkouts and not facts.timeouts,
            "not counted": (facts.server_peak if is_null else facts.out_max) is None,
        }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _takes_one_each(facts: Facts) -> bool:
    """Return whether each execution environment, or child of a worker, uses one connection."""
    return facts.kind in ("lambda", "worker") and (facts.out_max or 0) <= 1


def _peak_of_null_pool(facts: Facts) -> int:
    return math.ceil((facts.server_peak or 0) / facts.processes)


def _doubts(facts: Facts) -> tuple[Doubt, ...]:
    """Return what makes a recommendation less sure, the serious ones first."""
    found: dict[Doubt, bool] = {
        "stopped early": facts.is_partial,
        "saturated": facts.is_saturated,
        "errors": facts.error_share > MOST_ERRORS,
        "short": facts.measured_s < ENOUGH_S,
        "few checkouts": 0 < facts.checkouts < ENOUGH_CHECKOUTS,
        "busy machine": facts.is_busy_machine,
        "closed loop": not facts.is_open_loop,
        "light load": (
            facts.mean_out is not None
            and facts.mean_out < LIGHT_LOAD
            and not _takes_one_each(facts)
        ),
    }
    return tuple(doubt for doubt, holds in found.items() if holds)


def _budget(facts: Facts) -> int | None:
    """Return the most connections that the server leaves to each process of the target.

    Behind a pooler the server has the pooler's connections, and none of these.
    """
    if facts.usable_connections is None or facts.behind_pooler:
        return None
    return max(1, (facts.usable_connections - SPARE_CONNECTIONS) // max(1, facts.processes))


def _sized(found: Advice, action: Action, reason: Reason, peak: int) -> Advice:
    """Return a recommendation of a size from the peak: twice the peak, and an overflow of the peak.

    A single run shows one peak of many, so this leaves more than `HEADROOM`; a sweep needs less.
    """
    peak = max(1, peak)
    pool_size, overflow = _within(2 * peak, peak, found.budget)
    if pool_size + overflow < math.ceil(HEADROOM * peak):
        return replace(found, action="keep", reason="no room")
    return replace(
        found,
        action=action,
        reason=reason,
        pool_size=pool_size,
        max_overflow=overflow,
        basis="estimated",
        try_sizes=_sizes_to_try((peak, 2 * peak, 4 * peak), found.budget),
    )


def _by_peak(found: Advice, facts: Facts, out: int) -> Advice:
    """Return the recommendation by the most connections that were in use at once."""
    most = facts.most
    if most is None:
        return _sized(found, "smaller", "unlimited", out)
    if out >= most and (facts.timeouts or (facts.waited_p95_ms or 0.0) >= LONG_WAIT_MS):
        return _of_full(found, facts, most)
    if found.budget is not None and most > found.budget:
        return _sized(found, "smaller", "over budget", out)
    if most < (least := math.ceil(HEADROOM * out)):
        return _of_limited(found, facts, most, least)
    smaller = _sized(found, "smaller", "unused", out)
    if smaller.pool_size is not None and smaller.pool_size + (smaller.max_overflow or 0) <= (
        SAVING * most
    ):
        return smaller
    return replace(
        smaller,
        action="keep",
        reason="in use",
        pool_size=facts.pool_size,
        max_overflow=facts.max_overflow,
    )


def _of_limited(found: Advice, facts: Facts, most: int, least: int) -> Advice:
    """Return a recommendation for a pool that was enough, with too little left for a higher peak."""
    if found.budget is not None and found.budget < least:
        return replace(found, action="keep", reason="no room")
    pool_size = facts.pool_size or 1
    return replace(
        found,
        action="larger",
        reason="near limit",
        pool_size=pool_size,
        max_overflow=least - pool_size,
        basis="estimated",
        try_sizes=_sizes_to_try((most, math.ceil(1.5 * most), 2 * most), found.budget),
    )


def _of_full(found: Advice, facts: Facts, most: int) -> Advice:
    """Return a recommendation for a full pool for which checkouts waited."""
    budget = found.budget
    found = replace(found, certainty="low", doubts=("limited", *found.doubts))
    trial = _sizes_to_try((most, math.ceil(1.5 * most), 2 * most), budget)
    if facts.holder:
        # A larger pool would let the same line hold more of the server's connections.
        return replace(
            found, action="shorten holds", reason="waited", holder=facts.holder, try_sizes=trial
        )
    doubled = 2 * (facts.pool_size or 1), 2 * max(0, facts.max_overflow or 0)
    pool_size, overflow = _within(*doubled, budget)
    if pool_size + overflow < math.ceil(HEADROOM * most):
        return replace(found, action="keep", reason="no room")
    return replace(
        found,
        action="larger",
        reason="waited",
        pool_size=pool_size,
        max_overflow=overflow,
        basis="estimated",
        try_sizes=trial,
    )


def _by_sweep(found: Advice, facts: Facts, sweep: Sweep, knee: SweepPoint) -> Advice:
    """Return the recommendation of measured sizes."""
    doubts = found.doubts if facts.has_repeats else (*found.doubts, "once")
    if sweep.peak is None:
        doubts = ("limited", *doubts)
    # The knee may be full at times and still as fast as a larger pool; its overflow covers the peak
    # of those that were not limited.
    peak = max(knee.out_max or 0, sweep.peak or 0)
    least = math.ceil(HEADROOM * peak)
    overflow = max(knee.max_overflow, math.ceil(knee.pool_size / 2), least - knee.pool_size)
    pool_size, overflow = _within(knee.pool_size, overflow, found.budget)
    if pool_size + overflow < least:
        return replace(found, action="keep", reason="no room", doubts=doubts)
    others = [point.most for point in sweep.points]
    sizes: tuple[int, ...] = ()
    if sweep.peak is None:
        # Each size was full at times: only a larger one shows the need.
        sizes = (knee.most, max(others), 2 * max(others))
    elif knee.most == min(others):
        sizes = (math.ceil(knee.most / 4), math.ceil(knee.most / 2), knee.most)
    elif knee.most == max(others):
        sizes = (knee.most, math.ceil(1.5 * knee.most), 2 * knee.most)
    is_low = bool(_SERIOUS & set(doubts))
    return replace(
        found,
        action="set",
        reason="measured",
        pool_size=pool_size,
        max_overflow=overflow,
        basis="measured",
        certainty="low" if is_low else "good" if facts.has_repeats else "fair",
        doubts=doubts,
        try_sizes=_sizes_to_try(sizes, found.budget),
    )


def _within(pool_size: int, overflow: int, budget: int | None) -> tuple[int, int]:
    """Return a size that the server has room for; the overflow gives way first."""
    if budget is None:
        return pool_size, overflow
    pool_size = min(pool_size, budget)
    return pool_size, min(overflow, budget - pool_size)


def _sizes_to_try(sizes: tuple[int, ...], budget: int | None) -> tuple[int, ...]:
    """Return the sizes that fit, each one once; empty if there are not two to compare."""
    found = sorted({size if budget is None else min(size, budget) for size in sizes})
    return tuple(found) if len(found) > 1 else ()
