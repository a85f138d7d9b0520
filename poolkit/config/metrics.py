"""What a pool does, counted: checkouts and how long they waited, connections opened and closed.

Plain numbers in plain Python: a web service renders them for Prometheus, a Lambda function
as embedded metrics. Pool events are the witness here; `pg_stat_activity` is the truth.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sqlalchemy import event, exc

if TYPE_CHECKING:
    from sqlalchemy.pool import Pool, PoolProxiedConnection

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds: from a checkout that finds a connection to `pool_timeout`."""


@dataclass
class Histogram:
    """Durations in seconds, counted by bucket; `counts` has one more place for the rest."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration; the caller holds the lock."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.counts)

    def copy(self) -> Histogram:
        """Return a snapshot; the caller holds the lock."""
        return Histogram(list(self.counts), self.total)


class PoolSnapshot(NamedTuple):
    """The counters at one moment. Times are in seconds.

    `waiting` counts the callers that have asked for a connection and do not have it yet,
    be it that all are checked out, that one is being opened, or that one is being pinged.
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


class PoolMetrics:
    """Counters of one engine's pool, kept across `dispose()`; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.waiting = 0
        self.timeouts = 0
        self.opened = 0
        self.closed = 0
        self.connect_failures = 0
        self.checkout_wait = Histogram()
        self.connect_time = Histogram()
        self._queued = threading.local()

    def listen(self, pool: Pool) -> None:
        """Count the connections that this pool opens and closes."""
        event.listen(pool, "connect", self._on_connect)
        event.listen(pool, "close", self._on_close)
        event.listen(pool, "close_detached", self._on_close_detached)

    def waited(self, seconds: float) -> None:
        """Record a checkout that got its connection after so many seconds."""
        seconds += self._queued.__dict__.pop("seconds", 0.0)
        with self._lock:
            self.waiting -= 1
            self.checkout_wait.observe(seconds)

    def queued(self, seconds: float) -> None:
        """Record that a wait before the pool, begun with `began_waiting`, is over.

        A web service lets only as many threads at the pool as it has connections. The wait
        for such a thread is part of this thread's next checkout, which adds it to its own.
        """
        self._queued.seconds = seconds
        with self._lock:
            self.waiting -= 1

    def began_waiting(self) -> None:
        """Record that a caller asks for a connection."""
        with self._lock:
            self.waiting += 1

    def gave_up(self, *, timed_out: bool) -> None:
        """Record a checkout that failed."""
        self._queued.__dict__.pop("seconds", None)
        with self._lock:
            self.waiting -= 1
            self.timeouts += timed_out

    def connected(self, seconds: float, *, failed: bool) -> None:
        """Record an attempt to open a connection."""
        with self._lock:
            if failed:
                self.connect_failures += 1
            else:
                self.connect_time.observe(seconds)

    def snapshot(self, pool: Pool) -> PoolSnapshot:
        """Return the counters and the pool's own state, as of now."""
        with self._lock:
            return PoolSnapshot(
                size=_gauge(pool, "size"),
                checked_out=_gauge(pool, "checkedout"),
                overflow=max(0, _gauge(pool, "overflow")),
                waiting=self.waiting,
                checkouts=self.checkout_wait.count,
                checkout_timeouts=self.timeouts,
                opened=self.opened,
                closed=self.closed,
                connect_failures=self.connect_failures,
                checkout_wait=self.checkout_wait.copy(),
                connect_time=self.connect_time.copy(),
            )

    def _on_connect(self, connection: Any, record: Any) -> None:
        with self._lock:
            self.opened += 1

    def _on_close(self, connection: Any, record: Any) -> None:
        with self._lock:
            self.closed += 1

    def _on_close_detached(self, connection: Any) -> None:
        with self._lock:
            self.closed += 1


def _gauge(pool: Pool, name: str) -> int:
    """NullPool and StaticPool have no size, and say so by having no such method."""
    method = getattr(pool, name, None)
    return int(method()) if callable(method) else 0


AnyPool = TypeVar("AnyPool", bound="Pool")


def measured(poolclass: type[AnyPool], metrics: PoolMetrics) -> type[AnyPool]:
    """Return a pool class that times each checkout.

    A subclass, because SQLAlchemy has no event for "a caller begins to wait", and because
    `Engine.dispose()` makes the new pool from the old one's class.
    """

    def connect(self: AnyPool) -> PoolProxiedConnection:
        began = perf_counter()
        metrics.began_waiting()
        try:
            connection = poolclass.connect(self)
        except BaseException as error:
            metrics.gave_up(timed_out=isinstance(error, exc.TimeoutError))
            raise
        metrics.waited(perf_counter() - began)
        return connection

    return type(f"Measured{poolclass.__name__}", (poolclass,), {"connect": connect})
