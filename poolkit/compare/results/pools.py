"""The pools of a target: the settings in force, what was used of them, and who held connections.

The target's own processes report both (`poolkit.config.hold_records`). Of a deployed target, and of
pools that are not SQLAlchemy's, nothing is known.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit.config.holds import CallSite, merged

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from poolkit.compare.results.run_folder import PoolRow

LONG_HOLD_MS = 50.0
"""The p95 of hold times from which a low share of SQL in them is worth a sentence."""
LITTLE_SQL = 0.5
"""The share of the hold time in which SQL ran, below which connections are held over something else."""


@dataclass(frozen=True, kw_only=True)
class HoldSite:
    """The checkouts of one line for one unit of work, in the measured time."""

    where: str
    """Such as `app/views.py:41 in list_orders`."""
    unit: str
    """Such as `GET /orders`; empty outside any request or task."""
    count: int
    held_s: float
    """The time for which these held a connection, added up."""
    idle_s: float | None
    """The part of it in which no SQL ran; None if its SQL is not seen."""
    busy_share: float | None
    """The share of it in which SQL ran."""
    p95_ms: float | None
    """None if none of them was over at the end."""
    longest_ms: float
    out_ms: float
    """The age of the oldest that was not over at the end; 0 without one."""
    nested: int
    """Checkouts by a unit of work that had a connection already."""
    after_response: int
    """Those that were still out when the response had been sent."""


@dataclass(frozen=True, kw_only=True)
class HoldResult:
    """How long a target's checkouts held connections, and which lines did."""

    p95_ms: float | None
    busy_share: float | None
    nested_checkouts: int
    after_response: int
    sites: tuple[HoldSite, ...]
    """Those with most idle time first."""


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """The settings of one pool, as a process had them; None for what the pool does not have."""

    pool: str
    """Its class, such as `QueuePool`."""
    pool_size: int | None
    max_overflow: int | None
    timeout_s: float | None
    recycle_s: float | None
    """Seconds after which a connection is replaced; below 0 for never."""
    pre_ping: bool | None
    driver: str

    @property
    def most(self) -> int | None:
        """The most connections in one process; None for no limit."""
        if self.pool in ("StaticPool", "AssertionPool"):
            return 1
        size, overflow = self.pool_size, self.max_overflow
        # SQLAlchemy: a size of 0, or an overflow of -1, means no limit.
        return size + overflow if size and overflow is not None and overflow >= 0 else None

    @property
    def described(self) -> str:
        """Its pool and its numbers, such as `QueuePool 5+10`."""
        if self.pool_size is None:
            return self.pool
        overflow = "unlimited" if self.max_overflow == -1 else self.max_overflow
        return f"{self.pool} {self.pool_size}+{overflow}"


@dataclass(frozen=True, kw_only=True)
class PoolResult:
    """The pool of a target that had most checkouts in the measured time, in all its processes."""

    settings: PoolSettings
    others: tuple[PoolSettings, ...]
    """The settings of its other pools on the same database."""
    processes: int
    """Those that checked out connections."""
    threads: int
    """The most in one process."""
    checkouts: int
    timeouts: int
    """Checkouts that got no connection within the pool's timeout."""
    out_max: int | None
    """The most connections checked out at once from one process's pool; None where not counted."""
    overflow_max: int | None
    """The most of these beyond pool_size."""
    waited_p95_ms: float | None
    """From asking for a connection to having it: the queue, and opening one."""
    waited_max_ms: float | None
    mean_out: float | None = None
    """The mean number of connections checked out in all processes together; None if not known."""

    @property
    def is_full(self) -> bool:
        """True if a process had every connection of its pool in use at once."""
        return self.settings.most is not None and (self.out_max or 0) >= self.settings.most


def pool_result(rows: Sequence[PoolRow], *, mean_out: float | None) -> PoolResult | None:
    """Return the pool with most checkouts; None if no process has reported one.

    Args:
        rows: of pools.csv.
        mean_out: by the hold times.
    """
    found: dict[PoolSettings, list[PoolRow]] = defaultdict(list)
    for row in rows:
        found[_settings_of(row)].append(row)
    if not found:
        return None
    settings = max(found, key=lambda one: sum(row.checkouts for row in found[one]))
    used = [row for row in found[settings] if row.checkouts or row.timeouts]
    out = [row.out_max for row in used if row.out_max is not None]
    checkouts = sum(row.checkouts for row in used)
    size = settings.pool_size
    return PoolResult(
        settings=settings,
        others=tuple(one for one in found if one != settings),
        processes=len({row.pid for row in used or found[settings]}),
        threads=max(row.threads for row in found[settings]),
        checkouts=checkouts,
        timeouts=sum(row.timeouts for row in used),
        out_max=max(out, default=None),
        overflow_max=max(0, max(out) - size) if out and size else None,
        waited_p95_ms=_waited_p95_ms(used),
        waited_max_ms=max(row.waited_max_s for row in used) * 1000 if checkouts else None,
        mean_out=mean_out,
    )


def _settings_of(row: PoolRow) -> PoolSettings:
    return PoolSettings(
        pool=row.pool,
        pool_size=row.pool_size,
        max_overflow=row.max_overflow,
        timeout_s=row.timeout_s,
        recycle_s=row.recycle_s,
        pre_ping=row.pre_ping,
        driver=row.driver,
    )


def _waited_p95_ms(rows: Iterable[PoolRow]) -> float | None:
    waits = [
        CallSite("", "", 0, 0.0, 0.0, 0.0, row.waited_max_s, spread=spread_of_text(row.waits))
        for row in rows
        if row.waits
    ]
    return merged(waits)[0].p95_s * 1000 if waits else None


def spread_of_text(text: str) -> tuple[tuple[int, float], ...]:
    """Return durations by bucket from the text of a row, such as `-8:3 1:1`."""
    pairs = (pair.partition(":") for pair in text.split())
    return tuple((int(bucket), float(number)) for bucket, _, number in pairs)


def is_held_idle(holds: HoldResult | HoldSite | None) -> bool:
    """Return whether connections were held for long, and mostly without SQL; False if not known."""
    if holds is None or holds.p95_ms is None or holds.busy_share is None:
        return False
    return holds.p95_ms >= LONG_HOLD_MS and holds.busy_share < LITTLE_SQL
