"""Counters of a pool: checkouts and their waits, connections opened and closed.

Plain numbers in plain Python: a web service renders them for Prometheus, a Lambda function
as embedded metrics. They count the work of this process; `pg_stat_activity` is the truth about the
server.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakSet

from sqlalchemy import event, exc

from poolkit.config.holds import (
    HOLD_SAMPLING,
    Holds,
    bucket_of,
    connections_out,
    forget_connections_out,
)
from poolkit.config.presets import TooManyWaiting

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.pool import Pool, PoolProxiedConnection

    from poolkit.config.hold_records import PoolUse

__all__ = ("BUCKETS", "Histogram", "PoolMetrics", "PoolSnapshot", "measured")

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds: from a checkout that finds a connection to `pool_timeout`."""


@dataclass
class Histogram:
    """Durations in seconds, counted by bucket; `counts` has one more place for the rest."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def observe(self, durations: list[float]) -> None:
        """Count durations; the caller holds the lock."""
        durations = sorted(durations)  # one search for each bucket, not for each duration
        counted = 0
        for number, bound in enumerate(BUCKETS):
            up_to = bisect_right(durations, bound, lo=counted)
            self.counts[number] += up_to - counted
            counted = up_to
        self.counts[-1] += len(durations) - counted
        self.total += sum(durations)

    @property
    def count(self) -> int:
        """The number of durations."""
        return sum(self.counts)


class _Times:
    """Durations that each thread adds without a lock, and that `waited` counts a thousand at a time.

    A lock for each would be a third of what the metrics of a checkout cost.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._histogram = Histogram()
        self.new: deque[float] = deque()
        """Those that are not counted yet."""

    def count(self) -> Histogram:
        """Return the histogram of all durations."""
        with self._lock:
            # Other threads add to it meanwhile.
            self._histogram.observe([self.new.popleft() for _ in range(len(self.new))])
            return replace(self._histogram, counts=self._histogram.counts.copy())


class PoolSnapshot(NamedTuple):
    """The counters at one moment. Times are in seconds.

    `waiting` is the number of callers that have asked for a connection and do not have it yet:
    because all are checked out, one is being opened, or one is being pinged.

    `hold_time` has every checkout that came back. `busy_seconds` is the part of it in which SQL ran,
    and `unseen_seconds` the part in which the program had the driver's own connection.
    """

    size: int
    checked_out: int
    overflow: int
    waiting: int
    checkouts: int
    checkout_timeouts: int
    opened: int
    closed: int
    connect_failures: int
    checkout_wait: Histogram
    connect_time: Histogram
    shed: int = 0
    breaker_open: bool = False
    hold_time: Histogram = Histogram()
    busy_seconds: float = 0.0
    unseen_seconds: float = 0.0
    nested_checkouts: int = 0
    held_after_response: int = 0
    leaked: int = 0


# The metrics and the wait of the present request; a list, because the thread that counts the wait has
# a copy of the request's context.
_queued: ContextVar[tuple[PoolMetrics | None, list[float]]] = ContextVar(
    "poolkit_queued", default=(None, [])
)


class PoolMetrics:
    """Counters of one engine's pool, kept across `dispose()`; safe to use from any thread.

    metrics = PoolMetrics()
    engine = make_engine(settings, metrics)
    metrics.snapshot(engine.pool).checked_out

    In a forked child they begin at zero.

    Args:
        hold_sampling: the share, from 0 to 1, of the checkouts whose call site and SQL time are
            taken; 0 for no measurement of holds at all. By default that of the settings.

    Attributes:
        holds: who holds connections, by call site.
    """

    def __init__(self, *, hold_sampling: float | None = None) -> None:
        self._sampling = hold_sampling
        self.use: PoolUse | None = None
        """Under `poolkit compare`, the record of what is used of the pool."""
        self.holds = Holds(sampling=HOLD_SAMPLING if hold_sampling is None else hold_sampling)
        self._begin()
        _all_metrics().add(self)

    def _begin(self) -> None:
        # A lock that another thread of the parent held at the fork would never be free.
        # Reentrant: the garbage collector may return a connection while this thread has it.
        self._lock = threading.RLock()
        self._waiting: deque[None] = deque()  # its methods need no lock
        self._checkout_wait = _Times(self._lock)
        self._connect_time = _Times(self._lock)
        self._hold_time = _Times(self._lock)
        self.timeouts = 0
        self.shed = 0
        self.opened = 0
        self.closed = 0
        self.connect_failures = 0
        self.holds.begin_again(self._hold_time.new.append)

    @property
    def waiting(self) -> int:
        """The callers that wait for a connection now."""
        return len(self._waiting)

    @property
    def checkout_wait(self) -> Histogram:
        """The wait of every checkout that got a connection."""
        return self._checkout_wait.count()

    @property
    def connect_time(self) -> Histogram:
        """The time of every connect that succeeded."""
        return self._connect_time.count()

    @property
    def hold_time(self) -> Histogram:
        """The time of every checkout that came back."""
        return self._hold_time.count()

    @property
    def busy_seconds(self) -> float:
        """The part of the hold time in which SQL ran."""
        return self.holds.busy_seconds

    @property
    def nested_checkouts(self) -> int:
        """Checkouts of a unit of work that had a connection of this pool already."""
        return self.holds.nested

    @property
    def held_after_response(self) -> int:
        """Checkouts that were still out when the response had been sent, or the task was over."""
        return self.holds.after_response

    def configure(self, *, hold_sampling: float, leak_detection_threshold: float) -> None:
        """Set what is measured of holds; before `watch`.

        Args:
            hold_sampling: as above, unless these metrics were made with another one.
            leak_detection_threshold: seconds after which a checkout is logged; 0 for never.
        """
        self.holds.configure(
            sampling=hold_sampling if self._sampling is None else self._sampling,
            leak_threshold=leak_detection_threshold,
        )

    def watch(self, engine: Engine) -> None:
        """Count the work of an engine whose pool's class is `measured`."""
        if "_POOLKIT_HOLDS_FOLDER" in os.environ and self.holds.sampling > 0:
            # Under `poolkit compare` alone: a cold start must not pay for the import.
            from poolkit.config.hold_records import PoolUse, record  # noqa: PLC0415

            # The shim of `poolkit compare` may record this pool already.
            if not hasattr(engine.pool, "recorded_by_poolkit"):
                self.use = PoolUse(engine, bucket_of)
                record(self.holds, self.use)
        self.listen(engine.pool)
        self.holds.watch(engine.dialect)

    def listen(self, pool: Pool) -> None:
        """Count the connections that this pool opens and closes."""

        def on_connect(connection: Any, record: Any) -> None:
            with self._lock:
                self.opened += 1

        def on_close(connection: Any, record: Any = None) -> None:
            with self._lock:
                self.closed += 1

        event.listen(pool, "connect", on_connect)
        event.listen(pool, "close", on_close)
        event.listen(pool, "close_detached", on_close)
        if self.holds.sampling > 0:
            event.listen(pool, "checkin", self.holds.end)
            event.listen(pool, "detach", self.holds.end)

    def began_waiting(self) -> None:
        """Record that a caller asks for a connection."""
        self._waiting.append(None)

    def waited(self, seconds: float) -> float:
        """Record a checkout that got its connection after that many seconds.

        Returns:
            The whole wait, with that in front of the pool.
        """
        waits = self._checkout_wait.new
        waited = seconds + self._queued_before()
        waits.append(waited)
        self._waiting.pop()
        if len(waits) > 1000:
            for times in (self._checkout_wait, self._connect_time, self._hold_time):
                times.count()
        return waited

    def queued(self, seconds: float) -> None:
        """Record that a wait in front of the pool, begun with `began_waiting`, is over.

        A web service lets only as many requests to the pool as it has connections. A request's wait
        for a place is added to its next checkout, in whatever thread that happens.
        """
        _queued.set((self, [seconds]))
        self._waiting.pop()

    def refused(self) -> None:
        """Record a checkout that was refused at once, because too many others wait."""
        with self._lock:
            self.shed += 1

    def gave_up(self, *, timed_out: bool) -> None:
        """Record a checkout that failed."""
        self._queued_before()
        self._waiting.pop()
        if timed_out:
            with self._lock:
                self.timeouts += 1
                if self.use is not None:
                    self.use.timeouts += 1

    def _queued_before(self) -> float:
        """Return the wait in front of this pool that no checkout has counted yet."""
        owner, waits = _queued.get()
        return waits.pop() if waits and owner is self else 0.0

    def connected(self, seconds: float, *, failed: bool) -> None:
        """Record an attempt to open a connection."""
        if not failed:
            self._connect_time.new.append(seconds)
            return
        with self._lock:
            self.connect_failures += 1

    def snapshot(self, pool: Pool) -> PoolSnapshot:
        """Return the counters and the pool's own state, as of now."""
        # NullPool and StaticPool have none of these.
        methods = (getattr(pool, name, None) for name in ("size", "checkedout", "overflow"))
        with self._lock:
            size, checked_out, overflow = (int(each()) if callable(each) else 0 for each in methods)
            waits = self._checkout_wait.count()
            return PoolSnapshot(
                size=size,
                checked_out=checked_out,
                overflow=max(0, overflow),
                waiting=self.waiting,
                checkouts=waits.count,
                checkout_timeouts=self.timeouts,
                opened=self.opened,
                closed=self.closed,
                connect_failures=self.connect_failures,
                checkout_wait=waits,
                connect_time=self._connect_time.count(),
                shed=self.shed,
                breaker_open=getattr(getattr(pool, "breaker", None), "is_open", False),
                hold_time=self._hold_time.count(),
                busy_seconds=self.holds.busy_seconds,
                unseen_seconds=self.holds.unseen_seconds,
                nested_checkouts=self.holds.nested,
                held_after_response=self.holds.after_response,
                leaked=self.holds.leaked,
            )


@cache
def _all_metrics() -> WeakSet[PoolMetrics]:
    """Return the counters of this process; the first call registers the hook."""
    found: WeakSet[PoolMetrics] = WeakSet()

    def begin_again() -> None:
        forget_connections_out()
        for metrics in list(found):
            metrics._begin()  # noqa: SLF001

    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=begin_again)
    return found


AnyPool = TypeVar("AnyPool", bound="Pool")


def measured(poolclass: type[AnyPool], metrics: PoolMetrics) -> type[AnyPool]:
    """Return a pool class that times each checkout.

    A subclass, because SQLAlchemy has no event for the start of a wait, and because
    `Engine.dispose()` makes the new pool from the old one's class.
    """
    holds = metrics.holds

    def connect(self: AnyPool) -> PoolProxiedConnection:
        began = perf_counter()
        metrics.began_waiting()
        is_measured = holds.sampling > 0
        beside = connections_out() if is_measured else []
        waiting = holds.asking(beside) if beside else None
        try:
            connection: Any = poolclass.connect(self)
        except BaseException as error:
            is_shed = isinstance(error, TooManyWaiting)
            is_full = isinstance(error, exc.TimeoutError) and not is_shed
            metrics.gave_up(timed_out=is_full)
            if is_shed:
                metrics.refused()
            if is_full and is_measured and (why := holds.why_full(_checked_out(self))):
                error.args = (f"{error.args[0]}; {why}", *error.args[1:])
                error.holders_named = True  # type: ignore[attr-defined]
            raise
        finally:
            if waiting is not None:
                holds.asked(waiting)
        now = perf_counter()
        waited = metrics.waited(now - began)
        if metrics.use is not None:
            metrics.use.took(self, waited)
        if is_measured:
            holds.begin(connection._connection_record, beside, now)  # noqa: SLF001
        return connection  # type: ignore[no-any-return]

    return type(f"Measured{poolclass.__name__}", (poolclass,), {"connect": connect})


def _checked_out(pool: Any) -> int:
    """Return the number of connections that are out; NullPool and StaticPool do not count."""
    return int(getattr(pool, "checkedout", int)())
