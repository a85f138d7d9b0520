"""Engine presets: which pool and which limits, for each target in each environment.

This file imports the standard library and SQLAlchemy, nothing else. Copy it into a
project and it gives the same engines there:

    from presets import preset

    engine = preset("web", "prod").create_engine(url)

`EnginePreset.engine_options` returns the plain keyword arguments of SQLAlchemy's own
`create_engine`. `EnginePreset.create_engine` adds five things to SQLAlchemy's pools. A check at
checkout costs a poll of the socket instead of a round trip. Recycling does not reopen all
connections at the same moment. A connect is tried again while the server is full or starting. A
forked process begins with an empty pool. A spike of requests does not open a connection for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib
import inspect
import ipaddress
import logging
import math
import os
import queue
import random
import re
import select
import socket
import ssl
import threading
import time
import traceback
import types
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, cast, overload
from urllib.parse import unquote

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DisconnectionError,
    InvalidatePoolError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import (
    AsyncAdaptedQueuePool,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util import get_cls_kwargs
from sqlalchemy.util.queue import Empty

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from sqlalchemy.engine import Connection, Dialect, Engine, ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

__all__ = (
    "APPLICATION_NAME_BYTES",
    "ENVIRONMENTS",
    "TARGETS",
    "BreakerOpen",
    "Connector",
    "EnginePreset",
    "PresetError",
    "TooManyWaiting",
    "classify_connect_failure",
    "drain",
    "empty_after_fork",
    "error_of_the_program",
    "fileno_of",
    "parse_url",
    "preset",
)

TARGETS = ("web", "web_async", "worker", "lambda", "lambda_warm", "lambda_proxy", "script")
ENVIRONMENTS = ("dev", "staging", "prod", "high_traffic")

# pg_stat_activity.application_name: NAMEDATALEN - 1 (PostgreSQL, 20.3.1).
APPLICATION_NAME_BYTES = 63

_log = logging.getLogger(__name__)
_MISSING = "opened %d of %d connections at start: %s"

PoolKind: TypeAlias = Literal["queue", "null"]
ConnectFailure: TypeAlias = Literal["full", "starting", "read_only", "authentication"]


# -- the preset -----------------------------------------------------------------------------


class PresetError(ValueError):
    """A preset, or a URL for it, is wrong.

    Attributes:
        fields: the preset's fields that are at fault, such as `pool_size`; `url` for a URL.
    """

    def __init__(self, message: str, *fields: str) -> None:
        super().__init__(message)
        self.fields = fields


def _setting(default: Any, why: str, unit: str = "") -> Any:
    """Declare a dataclass field that carries its reason and its unit."""
    return field(default=default, metadata={"why": why, "unit": unit})


@dataclass(frozen=True, kw_only=True)
class EnginePreset:
    """The engine settings of one target in one environment.

    Raises:
        PresetError: a field is out of its range; the message names it and says what is allowed.
    """

    target: str
    environment: str
    driver: str = _setting("", "the driver for a URL that names none; empty: the target's own")
    why: str = _setting("", "why this target is set up this way")

    pool: PoolKind = _setting("queue", "queue keeps connections, null opens one per checkout")
    pool_size: int = _setting(5, "connections kept open when idle", "connections")
    max_overflow: int = _setting(
        10, "more for a burst; closed on return if pool_size are idle", "connections"
    )
    pool_timeout: float = _setting(
        30.0, "how long a checkout waits before the pool counts as exhausted", "s"
    )
    max_waiting: int = _setting(
        0,
        "checkouts that may wait at a full pool; a further one is refused at once; 0: no limit",
        "checkouts",
    )
    concurrent_connects: int = _setting(
        4,
        "connections that are opened at the same time; other checkouts wait for a returned "
        "connection or for their turn to open one, for 1 s at most; 0: no limit",
        "connections",
    )
    breaker_failures: int = _setting(
        0,
        "failed connects in a row after which none is tried for breaker_pause; checkouts that need "
        "a new connection fail meanwhile; 0: never",
        "connects",
    )
    breaker_pause: float = _setting(
        5.0,
        "time without connects after breaker_failures; then one checkout tries, and the others "
        "follow if it succeeds",
        "s",
    )
    pool_recycle: float = _setting(
        3600.0,
        "a connection older than this is replaced at checkout: it spreads load after a "
        "failover, and stays under the idle limits of proxies; -1: never",
        "s",
    )
    pool_recycle_jitter: float = _setting(
        0.05,
        "each connection recycles up to this share earlier, so that they do not all "
        "reconnect at once",
        "share",
    )
    pool_use_lifo: bool = _setting(
        False,
        "last in, first out: connections that a quiet hour does not need go idle and can be closed",
    )
    pool_pre_ping: bool = _setting(True, "check a connection at checkout, replace a dead one")
    ping_after_idle: float = _setting(
        0.5,
        "a connection used more recently than this is checked by polling its socket only, "
        "without a round trip (HikariCP's aliveBypassWindowMs); 0: ping at every checkout",
        "s",
    )
    retry_connect: bool = _setting(
        True,
        "on 53300 (too many clients), 57P03 (starting up) and a server that "
        "target_session_attrs refuses, try again with full jitter until connect_timeout is spent",
    )
    prewarm: int = _setting(
        0, "connections opened at start, before the first request", "connections"
    )
    fail_fast: bool = _setting(
        False, "without a database the start fails, instead of the first request"
    )

    connect_timeout: int = _setting(
        5, "how long opening a connection may take, with all attempts and pauses", "s"
    )
    target_session_attrs: str = _setting(
        "read-write",
        "libpq's parameter; read-write: connect only to a server that accepts writes; any: also to "
        "a standby. The URL's value wins; not sent with transaction_pooling",
    )
    statement_timeout: int = _setting(15_000, "the server ends a longer statement; 0: never", "ms")
    idle_in_transaction_session_timeout: int = _setting(
        30_000, "the server ends a session that sits in an open transaction; 0: never", "ms"
    )
    idle_session_timeout: int = _setting(
        0, "the server ends a session that does nothing (PostgreSQL 14+); 0: never", "ms"
    )
    keepalives_idle: int = _setting(30, "silence before the first TCP keepalive probe", "s")
    keepalives_interval: int = _setting(10, "between TCP keepalive probes", "s")
    keepalives_count: int = _setting(3, "unanswered probes before the connection is dead", "probes")
    tcp_user_timeout: int = _setting(
        30_000, "how long sent data may stay unacknowledged (Linux)", "ms"
    )
    transaction_pooling: bool = _setting(
        False,
        "behind PgBouncer or RDS Proxy: no startup options, no prepared statement that "
        "outlives a transaction",
    )
    echo: bool = _setting(False, "log every statement")

    def __post_init__(self) -> None:
        """Check every field, and the fields that depend on each other."""
        _choice("target", self.target, TARGETS)
        _choice("environment", self.environment, ENVIRONMENTS)
        if not self.driver:
            object.__setattr__(self, "driver", _TARGET[self.target].get("driver", "psycopg2"))
        by_backend = [
            *(_SYNC_DRIVERS.values() if self.target != "web_async" else ()),
            *(_ASYNC_DRIVERS.values() if self.target != "web" else ()),
        ]
        fitting = tuple(dict.fromkeys(driver for drivers in by_backend for driver in drivers))
        if self.driver in _DRIVERS and self.driver not in fitting:
            raise _does_not_fit(self.driver, self, fitting, field="driver")
        _choice("driver", self.driver, fitting)
        _choice("pool", self.pool, ("queue", "null"))
        _choice("target_session_attrs", self.target_session_attrs, _SESSION_ATTRS)
        for setting in dataclasses.fields(self):
            name, value, kind = setting.name, getattr(self, setting.name), type(setting.default)
            if kind is bool and not isinstance(value, bool):
                raise PresetError(f"{name} must be true or false, not {value!r}", name)
            if name not in _RANGES:
                continue
            low, high = _RANGES[name]
            numeric = isinstance(value, (int, float) if kind is float else int)
            never = name == "pool_recycle" and value == -1
            if isinstance(value, bool) or not numeric or not (low <= value <= high or never):
                number = "a number" if kind is float else "a whole number"
                rest = ", or -1 for never" if name == "pool_recycle" else ""
                allowed = f"{number} from {low:g} to {high:g}{rest}"
                raise PresetError(f"{name} must be {allowed}, not {value!r}", name)
        if self.pool == "null" and self.target in _MANY_AT_ONCE:
            raise PresetError(
                f"pool must be queue for target {self.target!r}: a null pool would open a "
                "connection for every request in flight, without a limit; behind PgBouncer or "
                "RDS Proxy use a small pool and transaction_pooling",
                "pool",
            )
        if self.pool == "queue" and self.prewarm > self.pool_size:
            raise PresetError(
                f"prewarm must not exceed pool_size ({self.pool_size}), not {self.prewarm}: "
                "overflow connections are closed as soon as they come back",
                "prewarm",
                "pool_size",
            )

    @property
    def is_async(self) -> bool:
        """Whether the engine is SQLAlchemy's AsyncEngine: for web_async, and with such a driver."""
        return self.target == "web_async" or self.driver in ("asyncpg", "asyncmy", "aiosqlite")

    @property
    def max_connections_per_process(self) -> int:
        """The most connections that one process of this target holds at once.

        QueuePool enforces it. NullPool enforces nothing. Its number is 1, because its process does
        one thing at a time: an invoke, a task of a worker's child, or a script's unit of work.
        Targets that do many things at once have no null pool.
        """
        return self.pool_size + self.max_overflow if self.pool == "queue" else 1

    def per_task(self) -> EnginePreset:
        """Return this preset for a process that runs one task at a time: a pool of 1+0.

        For a prefork child of Celery: `preset("worker", "prod").per_task()`.
        """
        if self.pool == "null":
            return self
        return self.replace(pool_size=1, max_overflow=0, prewarm=min(self.prewarm, 1))

    def asynchronous(self) -> EnginePreset:
        """Return this preset for an event loop, such as `preset("lambda").asynchronous()`.

        A null pool opens a connection for each unit of work. An event loop that has several of them
        under way at once opens as many, without a limit.

        Raises:
            ValueError: the target is web, which has a sibling of its own: web_async.
        """
        if self.is_async:
            return self
        if self.target == "web":
            raise ValueError("target 'web' is synchronous: use create_engine, or target web_async")
        return self.replace(driver="asyncpg")

    def replace(self, **changes: Any) -> EnginePreset:
        """Return a copy with some fields changed, such as `preset("web").replace(pool_size=7)`.

        Raises:
            PresetError: there is no such field, or its value is out of range.
        """
        allowed = tuple(f.name for f in dataclasses.fields(self))
        for name in changes:
            _choice(name, name, allowed, label="preset field")
        return dataclasses.replace(self, **changes)

    def url(self, url: str | URL) -> URL:
        """Return the URL with its driver named, and its TLS parameters as that driver takes them.

        `postgresql://` and `postgres://` (which platforms set) get this preset's driver;
        since SQLAlchemy 2.1 they would otherwise mean psycopg 3.

        Raises:
            PresetError: it is not a URL, its driver does not fit this target, or the driver cannot
                do what one of its parameters asks for.
        """
        url = parse_url(url)
        backend, _, named = url.drivername.partition("+")
        _choice("url", backend, tuple(_SYNC_DRIVERS), label="database")
        drivers = (_ASYNC_DRIVERS if self.is_async else _SYNC_DRIVERS)[backend]
        # A chosen driver is kept or refused; only the target's own may be replaced.
        own = "asyncpg" if self.is_async else "psycopg2"
        chosen = self.driver in drivers or self.driver != own
        driver = named or (self.driver if chosen else drivers[0])
        if driver not in drivers:
            fitting = [f"{backend}+{d}" for d in drivers]
            field = "url" if named else "driver"
            raise _does_not_fit(f"{backend}+{driver}", self, fitting, field=field)
        url = _checked_url(url)
        # The password of the client's key is an argument: the engine's URL would show it.
        query = {k: v for k, v in url.query.items() if k != "sslpassword"}
        if driver == "asyncpg":
            _refuse_for_asyncpg(url)
            url = url.set(database=str(query.pop("dbname", url.database or "")) or None)
            if "sslmode" in query:
                query["ssl"] = query.pop("sslmode")
            if _needs_context(url):
                query.pop("ssl", None)
            query = {k: v for k, v in query.items() if k in _ASYNCPG_BY_NAME}
        return url.set(drivername=f"{backend}+{driver}", query=query)

    def engine_options(
        self, url: str | URL, *, application_name: str | None = None
    ) -> dict[str, Any]:
        """Return the keyword arguments of `create_engine` or `create_async_engine` for this URL.

        Plain SQLAlchemy settings only, so `pool_pre_ping` is a round trip at every checkout;
        `create_engine` below replaces it by the cheaper check.

        Args:
            url: the URL as configured; a parameter named in it wins over the preset, and
                its `options` are added to the preset's.
            application_name: shown by `pg_stat_activity`, cut to 63 bytes; by default the URL's,
                or else `<target>:<host>-<pid>`.

        Raises:
            PresetError: as `url()`.
        """
        configured, url = parse_url(url), self.url(url)
        named = application_name or str(configured.query.get("application_name", ""))
        name = _cut(named) if named else self.application_name()
        driver = url.get_driver_name()
        arguments = _DRIVERS[driver](self, driver, configured, name)
        named_in_url = set(url.query) - {"application_name", "options"}
        arguments = {k: v for k, v in arguments.items() if k not in named_in_url}
        options: dict[str, Any] = {"echo": self.echo, "poolclass": self.pool_class(url)}
        if issubclass(options["poolclass"], QueuePool):  # AsyncAdaptedQueuePool is one, too
            options |= {
                "pool_size": self.pool_size,
                "max_overflow": self.max_overflow,
                "pool_timeout": self.pool_timeout,
                "pool_use_lifo": self.pool_use_lifo,
            }
            if url.get_backend_name() != "sqlite":  # no server that could close a connection
                options["pool_recycle"] = self.pool_recycle
                options["pool_pre_ping"] = self.pool_pre_ping
        return options | {"connect_args": arguments}

    def expects_writes(self, url: str | URL) -> bool:
        """Return whether the connections to this URL must accept writes.

        They need not if `target_session_attrs` admits a standby, in the preset, in the URL or in
        PGTARGETSESSIONATTRS, nor if the URL's `options` make every transaction read-only.

        Raises:
            PresetError: it is not a URL.
        """
        url = parse_url(url)
        default = os.environ.get("PGTARGETSESSIONATTRS") or self.target_session_attrs
        asked = url.query.get("target_session_attrs", default)
        return asked in ("read-write", "primary") and not _asks_for_read_only(url.query)

    def application_name(self) -> str:
        """Return the name of this process's connections: `<target>:<host>-<pid>`."""
        return _cut(f"{self.target}:{socket.gethostname()}-{os.getpid()}")

    def pool_class(self, url: str | URL) -> type[Pool]:
        """Return SQLAlchemy's pool class for this preset and URL.

        Raises:
            PresetError: it is not a URL.
        """
        url = parse_url(url)
        if url.get_backend_name() == "sqlite":
            # SQLite, "URI Filenames": file:any?mode=memory
            named = url.database in (None, "") or ":memory:" in str(url.database)
            if named or url.query.get("mode") == "memory":
                # A second connection to :memory: would be a second, empty database.
                return StaticPool
        if self.pool == "null":
            return NullPool
        return AsyncAdaptedQueuePool if self.is_async else QueuePool

    def own_pool_class(self, url: str | URL) -> type[Pool]:
        """Return the pool class of `create_engine`: `pool_class` with the limits of this preset.

        A new class each time, for one engine: `Engine.dispose()` makes the next pool from its
        pool's class, and what the circuit breaker knows outlives the pool.

        Raises:
            PresetError: it is not a URL.
        """
        plain = self.pool_class(url)
        if not issubclass(plain, QueuePool):
            return plain
        own = _AsyncPresetPool if issubclass(plain, AsyncAdaptedQueuePool) else _PresetPool
        limits = {
            "max_waiting": self.max_waiting,
            "concurrent_connects": self.concurrent_connects,
            "breaker": _Breaker(self.breaker_failures, self.breaker_pause),
        }
        return type(plain.__name__, (own,), limits)

    def create_engine(
        self, url: str | URL, *, application_name: str | None = None, **options: Any
    ) -> Engine:
        """Return an engine with this preset's options and checks; it opens no connection.

        Args:
            url: a SQLAlchemy URL.
            application_name: as in `engine_options`.
            options: any other argument of `sqlalchemy.create_engine`; wins over the preset.
                In `connect_args`, `options` and `server_settings` are added to the preset's.

        Raises:
            PresetError: as `url()`.
            ValueError: the target is asynchronous.
        """
        if self.is_async:
            raise ValueError(f"target {self.target!r} is asynchronous: use create_async_engine")
        merged = self._merged(url, application_name, options)
        engine = create_engine(self.url(url), **merged)
        _refuse_unknown(engine)
        self._add_checks(engine, pings=options.get("pool_pre_ping", self.pool_pre_ping), recycle=-1)
        return engine

    def create_async_engine(
        self, url: str | URL, *, application_name: str | None = None, **options: Any
    ) -> AsyncEngine:
        """Return an asynchronous engine; otherwise as `create_engine`.

        Every target but web has one: `preset("script").create_async_engine(url)` has a null pool. The
        driver is the URL's, or else asyncpg.

        Raises:
            PresetError: as `url()`.
            ValueError: the target is web.
        """
        # Not at the top: it needs greenlet, which a Lambda function has no use for.
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

        if not self.is_async:
            bare = parse_url(url)
            if self.driver == "psycopg" and bare.drivername == "postgresql":
                url = bare.set(drivername="postgresql+psycopg")
            chosen = self.asynchronous()
            return chosen.create_async_engine(url, application_name=application_name, **options)
        merged = self._merged(url, application_name, options)
        engine = create_async_engine(self.url(url), **merged)
        _refuse_unknown(engine.sync_engine)
        # What libpq does on its socket by the URL's parameters, _KeepAlive does on asyncpg's.
        query = parse_url(url).query if engine.dialect.driver == "asyncpg" else {}
        named = {k: _number(query, k, int) for k in _ON_THE_SOCKET if k in query}
        self.replace(**named)._add_checks(  # noqa: SLF001  (of its own class)
            engine.sync_engine, pings=options.get("pool_pre_ping", self.pool_pre_ping), recycle=-1
        )
        return engine

    def _merged(
        self, url: str | URL, application_name: str | None, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the engine's options with the caller's, which win."""
        merged = self.engine_options(url, application_name=application_name)
        merged["poolclass"] = self.own_pool_class(url)
        preset_args, caller_args = merged["connect_args"], options.get("connect_args", {})
        merged["connect_args"] = {**preset_args, **caller_args}
        # A server setting of the preset is not lost to one of another name.
        if "options" in preset_args and "options" in caller_args:
            both = f"{preset_args['options']} {caller_args['options']}"
            merged["connect_args"]["options"] = both
        if "server_settings" in preset_args and "server_settings" in caller_args:
            settings = {**preset_args["server_settings"], **caller_args["server_settings"]}
            merged["connect_args"]["server_settings"] = settings
        if _asks_for_read_only(caller_args):
            merged["connect_args"] = {
                k: v
                for k, v in merged["connect_args"].items()
                if k != "target_session_attrs" or k in caller_args
            }
        if self.ping_after_idle > 0:
            merged.pop("pool_pre_ping", None)  # _CheckoutCheck takes its place
        # The preset's numbers fit its own pool. SQLAlchemy refuses those that another class does not
        # take, and all of them beside a pool that exists already.
        instance = options.get("pool") is not None
        poolclass = options.get("poolclass") or merged["poolclass"]
        taken = () if instance else get_cls_kwargs(poolclass)
        for name, argument in _POOL_ARGUMENTS.items():
            if argument not in taken:
                merged.pop(name, None)
        if instance:
            del merged["poolclass"]
        return merged | {k: v for k, v in options.items() if k != "connect_args"}

    def add_checks(self, engine: Engine) -> None:
        """Add the checks of this preset to an engine that does not have them yet.

        `create_engine` has done it. For the engine of another library, see `poolkit.attached`.
        """
        self._add_checks(engine, pings=self.pool_pre_ping, recycle=self.pool_recycle)

    def _add_checks(self, engine: Engine, *, pings: bool, recycle: float) -> None:
        if engine in _checked:
            return
        _checked.add(engine)
        empty_after_fork(engine)
        if engine.dialect.name == "sqlite":  # no server that could be full, or close connections
            return
        event.listen(engine, "do_connect", _ProcessName(self))
        vars(engine.dialect)["connect"] = Connector(self, engine.dialect)
        event.listen(engine.pool, "connect", _KeepAlive(self))
        failover = _ReadOnlyServer(self, engine.dialect)
        event.listen(engine, "handle_error", failover.on_error)
        if engine.dialect.driver in ("asyncpg", "asyncmy"):
            event.listen(engine.pool, "connect", _note_event_loop)
            event.listen(engine.pool, "checkout", _refuse_other_event_loop)
        if not isinstance(engine.pool, NullPool):
            _CheckoutCheck(self, engine, pings=pings, recycle=recycle).listen(engine.pool)
        if isinstance(engine.pool, QueuePool):
            _drains[engine.dialect] = coming_back = _Drain()
            event.listen(engine.pool, "connect", coming_back.on_connect)
            event.listen(engine.pool, "checkin", coming_back.on_checkin)
        # Behind the check, whose ping brings what the server reports.
        event.listen(engine.pool, "checkout", failover.on_checkout)

    def start(self, engine: Engine) -> int:
        """Open the connections that `prewarm` and `fail_fast` ask for; return their number.

        Raises:
            Exception: a connection cannot be opened, and `fail_fast` is set. It is the error of
                a first checkout: SQLAlchemy's DBAPIError, as a rule.
        """
        opened = 0
        # Held together: one after the other, the pool would give the same connection each time.
        with contextlib.ExitStack() as held:
            try:
                for _ in range(max(self.prewarm, int(self.fail_fast))):
                    held.enter_context(engine.connect())
                    opened += 1
            except Exception as error:
                if self.fail_fast:
                    raise
                # Any kind of error: a lasting one comes again at the first request.
                _log.warning(_MISSING, opened, self.prewarm, error)
        return opened

    async def start_async(self, engine: AsyncEngine) -> int:
        """As `start`, for an asynchronous engine."""
        opened = 0
        async with contextlib.AsyncExitStack() as held:
            try:
                for _ in range(max(self.prewarm, int(self.fail_fast))):
                    await held.enter_async_context(engine.connect())
                    opened += 1
            except Exception as error:
                if self.fail_fast:
                    raise
                _log.warning(_MISSING, opened, self.prewarm, error)
        return opened


# The preset's options of `create_engine` that go to the pool, and their names there.
_POOL_ARGUMENTS = {
    "pool_size": "pool_size",
    "max_overflow": "max_overflow",
    "pool_timeout": "timeout",
    "pool_recycle": "recycle",
    "pool_use_lifo": "use_lifo",
    "pool_pre_ping": "pre_ping",
}


def _cut(name: str) -> str:
    """Return what the server keeps of a name: by bytes, never in the middle of a character."""
    return name.encode()[:APPLICATION_NAME_BYTES].decode(errors="ignore")


# The lowest and the highest allowed value of each field. In SQLAlchemy, pool_size 0 and
# max_overflow -1 mean "no limit"; a preset exists to state one.
_RANGES: dict[str, tuple[float, float]] = {
    "pool_size": (1, 10_000),
    "max_overflow": (0, 10_000),
    "pool_timeout": (0, 3_600),
    "max_waiting": (0, 100_000),
    "concurrent_connects": (0, 10_000),
    "breaker_failures": (0, 1_000),
    "breaker_pause": (0.1, 3_600),
    "pool_recycle": (1, 7 * 86_400),
    "pool_recycle_jitter": (0, 0.5),
    "ping_after_idle": (0, 3_600),
    "prewarm": (0, 10_000),
    "connect_timeout": (1, 300),
    "statement_timeout": (0, 86_400_000),
    "idle_in_transaction_session_timeout": (0, 86_400_000),
    "idle_session_timeout": (0, 86_400_000),
    "keepalives_idle": (1, 7_200),
    "keepalives_interval": (1, 7_200),
    "keepalives_count": (1, 127),
    "tcp_user_timeout": (0, 3_600_000),
}


def _choice(name: str, value: str, allowed: tuple[str, ...], *, label: str = "") -> None:
    if value in allowed:
        return
    import difflib  # noqa: PLC0415  (only a mistake needs it, and every import needs time)

    begins = [name for name in allowed if str(value).startswith(name)]  # production -> prod
    close = difflib.get_close_matches(str(value), allowed, n=1) or begins
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise PresetError(
        f"{label or name} {value!r} is unknown{hint}; allowed: {', '.join(allowed)}", name
    )


# -- the table ------------------------------------------------------------------------------

_WEB_WHY = (
    "A long-lived process whose many threads share connections. A checkout waits 10 s at the "
    "most, so that a full pool becomes a 503 before the load balancer gives up."
)
_WARM_WHY = (
    "One connection per execution environment, kept between invokes. Freezing does not close "
    "it, so reserved concurrency is the connection ceiling; the server ends the ones that "
    "stay frozen (idle_session_timeout)."
)
# The ceiling of a null pool is 1+0, as long as its process does one thing at a time.
_NULL_POOL: dict[str, Any] = {"pool": "null", "pool_size": 1, "max_overflow": 0}
_LAMBDA_LIMITS: dict[str, Any] = {
    # Connect 5 s + statement 10 s leave a function with a timeout of 25 s time to answer.
    "connect_timeout": 5,
    "statement_timeout": 10_000,
    # Shorter than any freeze: a sandbox frozen in a transaction must not hold its locks.
    "idle_in_transaction_session_timeout": 10_000,
}

# A target's settings in every environment.
_TARGET: dict[str, dict[str, Any]] = {
    "web": {"why": _WEB_WHY, "pool_timeout": 10.0, "pool_use_lifo": True},
    "web_async": {
        "why": "One event loop; a coroutine that waits for a connection costs no thread.",
        "driver": "asyncpg",
        "pool_use_lifo": True,
    },
    "worker": {
        "why": "Fewer concurrent tasks than a web process has requests, and they may wait. A "
        "prefork child runs one task at a time: give it per_task().",
        "statement_timeout": 120_000,
        "idle_in_transaction_session_timeout": 60_000,
    },
    "lambda": {
        "why": "No connection outlives an invoke, so a frozen execution environment holds "
        "none. Every unit of work pays for a connect.",
        **_NULL_POOL,
        **_LAMBDA_LIMITS,
    },
    "lambda_warm": {
        "why": _WARM_WHY,
        "pool_size": 1,
        "max_overflow": 0,
        "pool_timeout": 5.0,
        "pool_recycle": 1800.0,
        "idle_session_timeout": 300_000,
        **_LAMBDA_LIMITS,
    },
    "lambda_proxy": {
        "why": "RDS Proxy or PgBouncer keeps the connections; a second pool here would only "
        "hold its clients' slots. Timeouts belong on the role or the proxy: startup options "
        "are refused, and SET pins the connection.",
        **_NULL_POOL,
        "transaction_pooling": True,
        **_LAMBDA_LIMITS,
    },
    "script": {"why": "Runs once, one unit of work at a time.", **_NULL_POOL},
}

# Targets whose one process serves many requests at once.
_MANY_AT_ONCE = ("web", "web_async")

# A target's settings in one environment, which win.
_ENVIRONMENT: dict[str, dict[str, dict[str, Any]]] = {
    "web": {
        "dev": {"pool_size": 5, "max_overflow": 10, "echo": True},
        "staging": {"pool_size": 10, "max_overflow": 10},
        "prod": {"pool_size": 20, "max_overflow": 10, "pool_recycle": 3600.0},
        "high_traffic": {"pool_size": 50, "max_overflow": 100, "pool_recycle": 1800.0},
    },
    "web_async": {
        "dev": {"pool_size": 5, "max_overflow": 10, "echo": True},
        "staging": {"pool_size": 10, "max_overflow": 10},
        "prod": {"pool_size": 20, "max_overflow": 40, "pool_timeout": 30.0},
        "high_traffic": {
            "pool_size": 50,
            "max_overflow": 100,
            "pool_timeout": 10.0,
            "pool_recycle": 1800.0,
        },
    },
    "worker": {
        "dev": {"pool_size": 2, "max_overflow": 2},
        "staging": {"pool_size": 5, "max_overflow": 5},
        "prod": {"pool_size": 5, "max_overflow": 5, "pool_timeout": 30.0, "pool_recycle": 1800.0},
        "high_traffic": {"pool_size": 5, "max_overflow": 5, "pool_recycle": 900.0},
    },
}


def preset(target: str, environment: str = "dev") -> EnginePreset:
    """Return the preset of a target in an environment.

    For example `preset("web", "prod").create_engine(url)`.

    Args:
        target: one of `TARGETS`.
        environment: one of `ENVIRONMENTS`.

    Raises:
        PresetError: there is no such target or environment; the message lists them.
    """
    _choice("target", target, TARGETS)
    _choice("environment", environment, ENVIRONMENTS)
    numbers = _ENVIRONMENT.get(target, {}).get(environment, {})
    return EnginePreset(target=target, environment=environment, **{**_TARGET[target], **numbers})


# -- URLs -----------------------------------------------------------------------------------

_ESCAPES = "@ is %40, / %2F, : %3A, ? %3F, # %23 and % %25"
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# A JDBC URL's spelling, which libpq's URIs allow.
_SSL_FLAGS = {"true": "require", "false": "disable"}
# The parameters that SQLAlchemy or `_startup_options` reads more than once.
_REPEATED = ("host", "port", "options", "plugin")

# libpq's parameters (PostgreSQL 18, 32.1.2), as asyncpg has them. By the same name:
_ASYNCPG_BY_NAME = frozenset(
    {"host", "port", "user", "password", "passfile", "ssl", "target_session_attrs"}
    | {"krbsrvname", "gsslib", "prepared_statement_cache_size", "async_fallback", "plugin"}
)
# As an SSLContext:
_IN_CONTEXT = frozenset(
    {"sslrootcert", "sslcert", "sslkey", "sslcrl", "sslcrldir"}
    | {"ssl_min_protocol_version", "ssl_max_protocol_version"}
)
# As options of the socket, which are fields of the preset:
_ON_THE_SOCKET = (
    *("keepalives_idle", "keepalives_interval", "keepalives_count"),
    "tcp_user_timeout",
)
# asyncpg's own, which are numbers:
_ASYNCPG_NUMBERS: dict[str, type[int | float]] = {
    "command_timeout": float,
    "statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
}
# As other arguments, in `_asyncpg`:
_ASYNCPG_OTHERWISE = frozenset(
    {"application_name", "connect_timeout", "options", "dbname", "sslmode", "sslpassword"}
    | {"sslnegotiation", "fallback_application_name"}
)
# Not at all, but for the values that ask for what asyncpg does anyway. Where it says "()" there are
# none. What a parameter protects from must not be lost in silence.
_ASYNCPG_ONLY: dict[str, tuple[str, ...]] = {
    "channel_binding": ("disable", "prefer"),
    "client_encoding": ("utf8", "UTF8", "utf-8", "UTF-8", "auto"),
    "gssdelegation": ("0",),
    "gssencmode": ("disable", "prefer"),
    "hostaddr": (),
    "keepalives": ("1",),
    "load_balance_hosts": ("disable",),
    "max_protocol_version": ("3.0", "latest"),
    "min_protocol_version": ("3.0",),
    "oauth_client_id": (),
    "oauth_client_secret": (),
    "oauth_issuer": (),
    "oauth_scope": (),
    "replication": ("false", "off", "no", "0"),
    "require_auth": (),
    "requirepeer": (),
    "scram_client_key": (),
    "scram_server_key": (),
    "service": (),
    "servicefile": (),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslkeylogfile": (),
    "sslsni": ("1",),
}
_LIBPQ_PARAMETERS = (
    _ASYNCPG_BY_NAME
    | _IN_CONTEXT
    | _ASYNCPG_OTHERWISE
    | frozenset(_ON_THE_SOCKET)
    | frozenset(_ASYNCPG_ONLY)
)


def parse_url(url: str | URL) -> URL:
    """Return SQLAlchemy's URL; `postgres://` is taken for `postgresql://`.

    Several hosts may be written as libpq's URIs have them: `//h1:5432,h2:5432/database`.

    Raises:
        PresetError: it is not a URL, or has an @ that is not escaped. The message has no part of it.
    """
    if isinstance(url, URL):
        if "@" in (url.host or "")[1:]:
            raise _not_escaped()
        return url
    text = url.strip()
    if text.startswith("postgres://"):  # SQLAlchemy dropped this spelling in 1.4
        text = "postgresql" + text.removeprefix("postgres")
    scheme, _, rest = text.partition("://")
    hosts = ""
    if not scheme.startswith("sqlite"):
        # As SQLAlchemy, which ends the password at the first @. What follows it would be the host,
        # and errors name hosts.
        found = re.match(r"(?:[^:/]*(?::[^@]*)?@)?", rest)
        login = found.group() if found else ""
        place, has_query, query = rest[len(login) :].partition("?")
        named = [each.partition("=") for each in query.split("&")]
        astray = any("@" in value + key and key not in _LIBPQ_PARAMETERS for key, _, value in named)
        # h:5432/d?password=a@b has no user, but SQLAlchemy takes all before the @ for one.
        if "@" in place or astray or re.search(r"\?.*=", login):
            raise _not_escaped()
        hosts, slash, database = place.partition("/")
        if "," in hosts and scheme.startswith("postgresql"):
            text = f"{scheme}://{login}{slash}{database}{has_query}{query}"
        else:
            hosts = ""
    try:
        parsed = make_url(text)
        several = _several(hosts.split(",")) if hosts else {}
    except (ArgumentError, ValueError):
        # The cause would print the URL, and so the password.
        raise PresetError(
            "not a database URL; wanted driver://user:password@host:port/database, where in user "
            f"and password {_ESCAPES}",
            "url",
        ) from None
    if str(parsed.host).upper().startswith("%2F"):  # libpq's form of a Unix socket's directory
        several = {"host": unquote(str(parsed.host)), "port": str(parsed.port or 5432)}
        parsed = _without_host(parsed)
    return parsed.update_query_dict(several)


def _not_escaped() -> PresetError:
    return PresetError(
        "the user name, the password or a parameter has an @ that is not escaped: there, "
        + _ESCAPES,
        "url",
    )


def _without_host(url: URL) -> URL:
    """Return the URL with its hosts in the query alone; `URL.set` takes None for no change."""
    return URL.create(
        url.drivername, url.username, url.password, database=url.database, query=url.query
    )


def _several(hosts: Sequence[str]) -> dict[str, str]:
    """Return the parameters of several hosts, each `name`, `name:port` or `[address]:port`."""
    names, ports = [], []
    for host in hosts:
        name, _, port = host.removeprefix("[").rpartition("]:" if host[:1] == "[" else ":")
        if not name:
            name, port = host.strip("[]"), "5432"
        names.append(name)
        ports.append(str(int(port)))
    return {"host": ",".join(names), "port": ",".join(ports)}


def _checked_url(url: URL) -> URL:
    """Return the URL with its parameters in one spelling; refuse those that cannot be meant.

    The user, the password and `ssl` move to their usual places, where SQLAlchemy masks them.
    """
    for name, value in url.query.items():
        if not isinstance(value, str) and name not in _REPEATED:
            raise PresetError(f"the URL's parameter {name} is given twice", "url")
    if url.get_backend_name() != "postgresql":
        return url
    query = dict(url.query)
    flag = str(query.pop("ssl", ""))
    mode = str(query.get("sslmode", _SSL_FLAGS.get(flag, flag)))
    if flag and mode != _SSL_FLAGS.get(flag, flag):
        raise PresetError("the URL's parameters ssl and sslmode differ; leave one out", "url")
    if mode:
        _choice("url", mode, _SSL_MODES, label="sslmode")
        query["sslmode"] = mode
    # libpq reads a revocation list only where it has a root certificate to check by.
    lists = [name for name in ("sslcrl", "sslcrldir") if name in query]
    if lists and mode not in ("disable", "verify-ca", "verify-full") and "sslrootcert" not in query:
        raise PresetError(
            f"{lists[0]} has no effect without a root certificate: add sslrootcert and "
            "sslmode=verify-full",
            "url",
        )
    hosts = query.get("host", ())
    hosts = (hosts,) if isinstance(hosts, str) else tuple(hosts)
    if any(host.startswith("[") for host in hosts):  # SQLAlchemy does not know IPv6 here
        query |= _several([each for host in hosts for each in host.split(",")])
    if "," in (url.host or ""):
        names = str(url.host).split(",")
        query |= _several([f"[{name}]:{url.port or 5432}" for name in names])
        url = _without_host(url)
    user, password = query.pop("user", url.username), query.pop("password", url.password)
    return url.set(
        username=None if user is None else str(user),
        password=None if password is None else str(password),
        query=query,
    )


def _refuse_for_asyncpg(url: URL) -> None:
    """Refuse the parameters that asyncpg lacks: dropped in silence, they would protect nobody."""
    psycopg = "leave it out, or use psycopg: postgresql+psycopg://"
    query = {name: str(value) for name, value in url.query.items()}
    for name, value in query.items():
        if name in _ASYNCPG_ONLY:
            allowed = _ASYNCPG_ONLY[name]
            if value not in allowed:
                only = f" but {' or '.join(allowed)}" if allowed else ""
                raise PresetError(f"asyncpg has no {name}{only}; {psycopg}", "url")
        elif name not in _LIBPQ_PARAMETERS and name not in _ASYNCPG_NUMBERS:
            raise _unknown_parameter("asyncpg", name)
    mode = query.get("sslmode")
    ignored = sorted(_IN_CONTEXT.intersection(query))
    if ignored and mode in ("allow", "prefer"):
        raise PresetError(
            f"with sslmode={mode} asyncpg does not read {ignored[0]}: write sslmode=require, "
            "verify-ca or verify-full",
            "url",
        )
    if "sslnegotiation" in query:
        _choice("url", query["sslnegotiation"], ("postgres", "direct"), label="sslnegotiation")
        if query["sslnegotiation"] == "direct" and mode not in _SSL_MODES[3:] and not ignored:
            raise PresetError("sslnegotiation=direct needs sslmode=require or more", "url")


def _refuse_unknown(engine: Engine) -> None:
    """Refuse the URL's parameters that the driver would refuse at the first connect.

    Such as a misspelling, or one of a newer libpq than the driver's.
    """
    driver, query = engine.dialect.driver, engine.url.query
    unknown: list[str] = []
    if driver in ("psycopg2", "psycopg"):
        own = ("host", "port", "plugin", "autocommit", "prepare_threshold")
        if driver == "psycopg2":
            check = importlib.import_module("psycopg2.extensions").make_dsn
        else:
            check = importlib.import_module("psycopg.conninfo").make_conninfo
        for name in query:
            try:
                check(**({} if name in own else {name: "1"}))
            except Exception:  # noqa: BLE001  (the driver's own ProgrammingError)
                unknown.append(name)
    elif driver in ("pymysql", "asyncmy"):
        connection = importlib.import_module(f"{driver}.connection{'s' * (driver == 'pymysql')}")
        with contextlib.suppress(ValueError, TypeError):  # of another build
            taken = inspect.signature(connection.Connection.__init__).parameters
            unknown = [k for k in query if k not in taken and k not in _MYSQL_PACKED]
    if unknown:
        raise _unknown_parameter(driver, unknown[0])


def _unknown_parameter(driver: str, name: str) -> PresetError:
    import difflib  # noqa: PLC0415  (as in _choice)

    near = difflib.get_close_matches(name, _LIBPQ_PARAMETERS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near and near[0] != name else ""
    return PresetError(
        f"the installed {driver} has no parameter {name!r}{hint}; correct it in the URL, or leave "
        "it out",
        "url",
    )


# SQLAlchemy makes one argument of these (sqlalchemy/dialects/mysql/mysqldb.py).
_MYSQL_PACKED = frozenset(
    {"ssl_ca", "ssl_key", "ssl_cert", "ssl_capath", "ssl_cipher", "ssl_check_hostname", "plugin"}
)


def _number(query: Mapping[str, Any], name: str, kind: type[int | float]) -> int | float:
    try:
        return kind(query[name])
    except ValueError:
        raise PresetError(f"the URL's {name} must be a number", "url") from None


def _does_not_fit(
    driver: str, preset: EnginePreset, fitting: Sequence[str], *, field: str
) -> PresetError:
    kind = "asynchronous" if preset.is_async and preset.target != "web" else "synchronous"
    return PresetError(
        f"driver {driver} does not fit the {kind} target {preset.target!r}; "
        f"use one of: {', '.join(fitting)}",
        field,
    )


# -- each driver's own arguments ------------------------------------------------------------


def _server_timeouts(preset: EnginePreset) -> dict[str, str]:
    # A transaction pooler refuses them, or sets them for other clients too.
    if preset.transaction_pooling:
        return {}
    timeouts = {
        "statement_timeout": preset.statement_timeout,
        "idle_in_transaction_session_timeout": preset.idle_in_transaction_session_timeout,
        "idle_session_timeout": preset.idle_session_timeout,
    }
    return {name: str(value) for name, value in timeouts.items() if value}


def _startup_options(preset: EnginePreset, url: URL) -> str:
    """Return the preset's server settings and the URL's; of two, the later one wins."""
    own = [f"-c {name}={value}" for name, value in _server_timeouts(preset).items()]
    in_url = url.query.get("options", ())
    return " ".join([*own, *([in_url] if isinstance(in_url, str) else in_url)])


_SESSION_ATTRS = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")


def _session_attrs(preset: EnginePreset, url: URL) -> dict[str, str]:
    """Return the argument that makes the driver refuse a server which is read-only.

    PostgreSQL 14 and later report that they are while a client logs in; of an older one the driver
    asks it, in one round trip. A transaction pooler's report is that of some server, at some time.
    """
    # libpq's and asyncpg's own variable, which an argument would hide.
    named = os.environ.get("PGTARGETSESSIONATTRS")
    if named or preset.transaction_pooling or preset.target_session_attrs == "any":
        return {}
    if _asks_for_read_only(url.query):
        return {}
    return {"target_session_attrs": preset.target_session_attrs}


def _asks_for_read_only(arguments: Mapping[str, Any]) -> bool:
    """Return whether a URL's parameters or a driver's arguments make transactions read-only."""
    settings = dict(arguments.get("server_settings") or {})
    options = [arguments.get("options") or "", settings.get("options") or ""]
    name = "default_transaction_read_only"
    texts = [f"{name}={settings.get(name, 'off')}", *map(str, options)]
    return any(re.search(rf"{name}\s*=\s*'?(on|true|yes|1)", text, re.IGNORECASE) for text in texts)


def _libpq(preset: EnginePreset, driver: str, url: URL, name: str) -> dict[str, Any]:
    """Return the arguments of psycopg2 and psycopg: libpq's parameters (PostgreSQL, 32.1.2)."""
    arguments: dict[str, Any] = {
        "connect_timeout": preset.connect_timeout,
        "keepalives": 1,
        "keepalives_idle": preset.keepalives_idle,
        "keepalives_interval": preset.keepalives_interval,
        "keepalives_count": preset.keepalives_count,
        "tcp_user_timeout": preset.tcp_user_timeout,
        "application_name": name,
    }
    arguments |= _session_attrs(preset, url)
    if options := _startup_options(preset, url):
        arguments["options"] = options
    if "sslpassword" in url.query:
        arguments["sslpassword"] = url.query["sslpassword"]
    # libpq goes on without a revocation list that it cannot read.
    _refuse_unreadable(url, "sslcrl", "sslcrldir")
    if driver == "psycopg" and preset.transaction_pooling:
        arguments["prepare_threshold"] = None  # never prepare by name
    return arguments


def _asyncpg(preset: EnginePreset, driver: str, url: URL, name: str) -> dict[str, Any]:
    """Return the arguments of asyncpg; its TCP options are set on the socket (_KeepAlive)."""
    settings = {"application_name": name}
    timeout: float | None = float(preset.connect_timeout)
    if "connect_timeout" in url.query:
        timeout = _number(url.query, "connect_timeout", float)
    # libpq waits without a limit for 0 and less; asyncpg would give up at once.
    timeout = timeout if timeout and timeout > 0 else None
    arguments: dict[str, Any] = {"timeout": timeout, "server_settings": settings}
    arguments |= _session_attrs(preset, url)
    if _needs_context(url):
        arguments["ssl"] = _tls_context(url)
    if url.query.get("sslnegotiation") == "direct":
        arguments["direct_tls"] = True
    for own, kind in _ASYNCPG_NUMBERS.items():
        if own in url.query:
            arguments[own] = _number(url.query, own, kind)
    if "options" in url.query:
        # All settings in one text: one under its own name would win over the URL's.
        settings["options"] = _startup_options(preset, url)
    else:
        settings.update(_server_timeouts(preset))
    if preset.transaction_pooling:
        arguments["statement_cache_size"] = 0
        arguments["prepared_statement_cache_size"] = 0  # SQLAlchemy's own
        arguments["prepared_statement_name_func"] = lambda: ""
    return arguments


def _needs_context(url: URL) -> bool:
    """asyncpg.connect takes certificates in an SSLContext only; `disable` needs none."""
    mode = url.query.get("sslmode", url.query.get("ssl"))
    return mode not in ("disable", "false") and not _IN_CONTEXT.isdisjoint(url.query)


def _tls_context(url: URL) -> ssl.SSLContext:
    named = {key: str(value) for key, value in url.query.items()}
    _refuse_unreadable(url, "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslcrldir")
    authority = named.get("sslrootcert", "system")
    context = ssl.create_default_context(cafile=None if authority == "system" else authority)
    # With a root certificate, libpq's `require` is its `verify-ca` (PostgreSQL, 32.19.1).
    context.check_hostname = named.get("sslmode", named.get("ssl", "verify-full")) == "verify-full"
    if "sslrootcert" not in named and named.get("sslmode", named.get("ssl")) in ("require", "true"):
        context.verify_mode = ssl.CERT_NONE
    for limit in ("minimum", "maximum"):
        version = named.get(f"ssl_{limit[:3]}_protocol_version")
        if version is not None:
            allowed = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
            _choice("url", version, allowed, label=f"ssl_{limit[:3]}_protocol_version")
            setattr(context, f"{limit}_version", ssl.TLSVersion[version.replace(".", "_")])
    if "sslcrl" in named or "sslcrldir" in named:
        context.load_verify_locations(named.get("sslcrl"), named.get("sslcrldir"))
        # As libpq: of each certificate in the chain.
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if named.get("sslnegotiation") == "direct":
        context.set_alpn_protocols(["postgresql"])
    if "sslcert" in named:
        # Without a password OpenSSL would ask for it on the process's terminal.
        password = named.get("sslpassword", "")
        context.load_cert_chain(named["sslcert"], named.get("sslkey"), password)
    return context


def _refuse_unreadable(url: URL, *parameters: str) -> None:
    for name in parameters:
        path = str(url.query.get(name, ""))
        if path and path != "system" and not os.access(path, os.R_OK):
            raise PresetError(f"{name}: there is no {path}, or it cannot be read", "url")


def _mysql(preset: EnginePreset, driver: str, url: URL, name: str) -> dict[str, Any]:
    """Return the arguments of PyMySQL, mysqlclient and asyncmy."""
    arguments: dict[str, Any] = {"connect_timeout": preset.connect_timeout}
    if driver != "mysqldb":  # mysqlclient has no argument for it
        arguments["program_name"] = name  # performance_schema.session_connect_attrs
    if preset.statement_timeout:
        # The server's own limit should come first, so that the caller sees its error.
        arguments["read_timeout"] = preset.statement_timeout // 1000 + 5
        if driver != "asyncmy":
            arguments["write_timeout"] = arguments["read_timeout"]
    if not preset.transaction_pooling:
        # One command for both servers: MySQL runs the text in /*!50708 */ (MariaDB passes
        # over versions from 50700), MariaDB alone runs the text in /*M! */.
        # In whole seconds. 0 would be no limit, and of wait_timeout an error.
        transaction = math.ceil(preset.idle_in_transaction_session_timeout / 1000)
        idle = math.ceil(preset.idle_session_timeout / 1000)
        arguments["init_command"] = (
            "SET SESSION lock_wait_timeout = 50"
            + (f", SESSION wait_timeout = {idle}" if idle else "")
            + f" /*!50708 , SESSION max_execution_time = {preset.statement_timeout} */"
            f" /*M! , SESSION max_statement_time = {preset.statement_timeout / 1000:g} */"
            f" /*M!100301 , SESSION idle_transaction_timeout = {transaction} */"
        )
    return arguments


def _sqlite(preset: EnginePreset, driver: str, url: URL, name: str) -> dict[str, Any]:
    # The pool gives a connection to any thread, one at a time.
    return {"timeout": float(preset.connect_timeout), "check_same_thread": False}


_DRIVERS: dict[str, Callable[[EnginePreset, str, URL, str], dict[str, Any]]] = {
    "psycopg2": _libpq,
    "psycopg": _libpq,
    "asyncpg": _asyncpg,
    "pymysql": _mysql,
    "mysqldb": _mysql,
    "asyncmy": _mysql,
    "pysqlite": _sqlite,
    "aiosqlite": _sqlite,
}
_SYNC_DRIVERS = {
    "postgresql": ("psycopg2", "psycopg"),
    "mysql": ("pymysql", "mysqldb"),
    "mariadb": ("pymysql", "mysqldb"),
    "sqlite": ("pysqlite",),
}
_ASYNC_DRIVERS = {
    "postgresql": ("asyncpg", "psycopg"),
    "mysql": ("asyncmy",),
    "mariadb": ("asyncmy",),
    "sqlite": ("aiosqlite",),
}


# -- the pool -------------------------------------------------------------------------------

# Seconds without a connection opened or given to one that waits, after which those that wait for
# their turn open their own: a few connects that hang must not stop the others.
_PATIENCE = 1.0


class TooManyWaiting(PoolTimeout):
    """A checkout was refused at once, because `max_waiting` others wait at a full pool.

    Attributes:
        retry_after: seconds after which the queue is probably short enough, from 1 to 30.
    """

    def __init__(self, text: str, retry_after: int) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class BreakerOpen(OperationalError):
    """A checkout needed a new connection, and no connect is tried after `breaker_failures`.

    SQLAlchemy's OperationalError, as the failed connects before it: handlers of these work.

    Attributes:
        retry_after: seconds until a connect is tried again, from 1 to 30.
    """

    def __init__(self, text: str, retry_after: int) -> None:
        super().__init__(None, None, ConnectionError(text))
        self.retry_after = retry_after


class _Breaker:
    """Whether a connect is worth a try: closed, open for a pause, then half open for one probe.

    Times are wall-clock times, as those of `_CheckoutCheck`. Changed under the pool's lock.

    Attributes:
        shown_as: returns what a checkout raises in place of BreakerOpen.
    """

    def __init__(self, failures: int, pause: float) -> None:
        self.limit = failures
        self.pause = pause
        self.failures = 0
        self.reason = ""
        self.next_try = 0.0
        self.is_probing = False
        self.shown_as: Callable[[BreakerOpen], BaseException] = lambda error: error

    @property
    def is_open(self) -> bool:
        """Whether connects fail: none is tried but a probe, once the pause is over."""
        return 0 < self.limit <= self.failures

    def seconds_left(self) -> float:
        left = self.next_try - time.time()
        return left if 0 < left <= 2 * self.pause else 0.0  # else the clock was set back

    def allows_connect(self) -> bool:
        """Return whether a connect may begin; with an open breaker, this one is the probe."""
        if not self.is_open:
            return True
        if self.is_probing or self.seconds_left():
            return False
        self.is_probing = True
        return True

    def connect_ended(self, error: BaseException | None, dialect: Any) -> None:
        if error is None:
            self.failures = 0
            return
        # The server's answer to a wrong password comes at once, and ends with the rotation. An
        # error of the program itself, and a cancelled task, say nothing about the server.
        errors = [each for each in (error, error.__cause__) if each is not None]
        if any(classify_connect_failure(each) == "authentication" for each in errors):
            return
        drivers = getattr(getattr(dialect, "dbapi", None), "Error", OSError)
        # SQLAlchemy 2.0 lets asyncpg's errors through as they are; these have an SQLSTATE.
        if not isinstance(error, (OSError, drivers)) and not hasattr(error, "sqlstate"):
            return
        self.failures += 1
        self.reason = str(error).strip().partition("\n")[0] or type(error).__name__
        # Processes that opened together do not probe together.
        self.next_try = time.time() + self.pause * random.uniform(0.75, 1.25)

    def error(self) -> BreakerOpen:
        left = self.seconds_left()
        return BreakerOpen(
            f"no connect is tried for another {left:.1f} s, because {self.failures} in a row have "
            f"failed; the last one with: {self.reason}",
            _retry_after(left),
        )


def _averaged(mean: float, value: float) -> float:
    """Return a moving average over about the last eight values; the first one counts in full."""
    return mean + (value - mean) / 8 if mean else value


def _retry_after(seconds: float) -> int:
    return min(max(math.ceil(seconds), 1), 30)


class _Idle:
    """The idle connections of a pool: what QueuePool needs of a queue, without waiting in it."""

    def __init__(self, maxsize: int, *, use_lifo: bool) -> None:
        self.maxsize = maxsize
        self.use_lifo = use_lifo
        self.records: deque[Any] = deque()
        self.put = self.records.append
        self.take = self.records.pop if use_lifo else self.records.popleft

    def qsize(self) -> int:
        return len(self.records)

    def get(self, _block: Any = None) -> Any:
        try:
            return self.take()
        except IndexError:
            raise Empty from None


# What a waiting checkout may receive in place of a connection: a turn to open one, or nothing.
_TURN, _NOTHING = object(), object()


class _WaitingThread:
    """A thread that waits in the pool. What it receives is set, under the lock, before it wakes."""

    def __init__(self) -> None:
        self.received: Any = None
        self.is_patient = True
        self.asleep = threading.Lock()
        self.asleep.acquire()
        self.wake = self.asleep.release

    def wait(self, seconds: float) -> None:
        self.asleep.acquire(timeout=min(max(seconds, 0), threading.TIMEOUT_MAX))


class _WaitingTask:
    """A task that waits in the pool, as `_WaitingThread`; the others may be of other event loops."""

    def __init__(self) -> None:
        self.received: Any = None
        self.is_patient = True
        self.loop = asyncio.get_running_loop()
        self.woken = self.loop.create_future()

    def wake(self) -> None:
        """Wake the task; RuntimeError if its event loop is closed."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:  # the garbage collector returns connections in any thread
            here = None
        if here is self.loop:
            self.woken.set_result(None)
        else:
            self.loop.call_soon_threadsafe(self.woken.set_result, None)

    def wait(self, seconds: float) -> None:
        from sqlalchemy.util import await_only  # noqa: PLC0415

        if seconds > 0:
            # Unlike wait_for it neither cancels the future, nor swallows a cancellation.
            await_only(asyncio.wait((self.woken,), timeout=seconds))


class _PresetPool(QueuePool):
    """A QueuePool in which a spike of requests does not open a connection for each.

    SQLAlchemy's own opens one for every checkout that finds none idle, and that one cannot use what
    comes back meanwhile (HikariCP, "Welcome to the Jungle"). Here `concurrent_connects` checkouts
    open one. The others wait for a connection that comes back or for their turn to open one. The
    longest waiting is first, and no newcomer overtakes it.

    The counts are QueuePool's: `size + _overflow` connections are open or being opened. Each step
    on a deque is atomic and leaves a consistent state. So the lock may be taken again in the middle
    of one, by the garbage collector or a signal's handler that returns a connection.
    """

    max_waiting = 0
    concurrent_connects = 0
    breaker = _Breaker(0, 1.0)

    _queue_class: Any = _Idle
    _pool: Any
    _waiter: Any = _WaitingThread

    def __init__(self, *args: Any, **options: Any) -> None:
        self._lock = threading.RLock()
        # Checkouts that wait for a connection or a turn. And those that have a connection, but a
        # dead one, and wait for a turn to replace it.
        self._waiting: deque[Any] = deque()
        self._replacing: deque[Any] = deque()
        self._connecting = 0
        self._mean_hold = 0.0  # s
        self._mean_connect = 0.0  # s
        self._moved = 0.0  # when a connection was last opened, or given to one that waited
        super().__init__(*args, **options)

    def retry_after(self, waiting: int) -> int:
        """Return the seconds until that many waiting checkouts will be served, from 1 to 30.

        The connections serve them side by side: mean hold time x (waiting + 1) / connections.
        """
        limited = self._max_overflow >= 0
        connections = self.size() + self._max_overflow if limited else self.checkedout()
        return _retry_after(self._mean_hold * (waiting + 1) / max(connections, 1))

    def connect(self) -> Any:
        while True:
            try:
                return super().connect()
            except BreakerOpen as error:
                # What was given out was dead, and is gone. Another one may be alive.
                if self._pool.qsize():
                    continue
                shown = self.breaker.shown_as(error)
                if shown is error:
                    raise
                raise shown from error

    def dispose(self) -> None:
        super().dispose()
        self._serve()

    def _do_get(self) -> Any:
        with self._lock:
            opens = False
            if not self._waiting:
                try:
                    idle = self._pool.take()
                except IndexError:
                    opens = self._take_turn(is_patient=True)
                else:
                    idle.held_since = time.monotonic()
                    return idle
            if not opens:
                self._refuse_if_full()
        record: Any = _TURN if opens else self._wait(self._waiting)
        if record is _TURN:
            record = self._in_turn(self._create_connection, places=1)
        record.held_since = time.monotonic()
        return record

    def _do_return_conn(self, record: Any) -> None:
        with self._lock:
            held = time.monotonic() - getattr(record, "held_since", math.inf)
            if held >= 0:
                self._mean_hold = _averaged(self._mean_hold, held)
            size, is_surplus = self._pool.maxsize, False
            if record.dbapi_connection is None:  # invalidated or detached: its place is free
                self._overflow -= 1
            elif self._waiting or not size or self._pool.qsize() < size:
                self._pool.put(record)
            else:
                is_surplus = True
            if self._waiting:
                self._serve()
        if is_surplus:
            try:
                record.close()
            finally:
                with self._lock:
                    self._overflow -= 1
                    self._serve()

    def _may_grow(self) -> bool:
        return self._max_overflow < 0 or self._overflow < self._max_overflow

    def _take_turn(self, *, is_patient: bool) -> bool:
        """Reserve a place in the pool, and a turn to open a connection, if there are both."""
        limit = self.concurrent_connects if is_patient else 0
        if (limit and self._connecting >= limit) or not self._may_grow():
            return False
        if not self.breaker.allows_connect():
            return False
        self._overflow += 1
        self._connecting += 1
        return True

    def _refuse_if_full(self) -> None:
        """Raise if a further checkout must not wait."""
        waiting, is_down = len(self._waiting), self.breaker.is_open
        if is_down and self.checkedout() <= self._connecting:
            raise self.breaker.error()  # there is none that could come back
        if self.max_waiting:
            # While the pool may grow, some of them wait for their turn only.
            free = 0 if is_down else max(self._max_overflow - self._overflow, 0)
            if waiting >= self.max_waiting + free and self._max_overflow >= 0:
                raise TooManyWaiting(
                    f"{waiting} checkouts wait already for one of {self.checkedout()} connections "
                    f"(max_waiting is {self.max_waiting})",
                    self.retry_after(waiting),
                )

    def _wait(self, queue: deque[Any]) -> Any:
        """Wait in one of the queues; return a connection or _TURN.

        Raises:
            BreakerOpen: the breaker allows no connect.
            sqlalchemy.exc.TimeoutError: no connection came back within `timeout`.
        """
        ends = time.monotonic() + self._timeout
        waiter = self._waiter()
        try:
            with self._lock:
                queue.append(waiter)
                self._serve()  # a connection may have come back since the first look
            while waiter.received is None:
                waiter.wait(min(ends - time.monotonic(), _PATIENCE))
                now = time.monotonic()
                if now >= ends or now - self._moved >= _PATIENCE:
                    waiter.is_patient = False  # from now on it needs a place, and no turn
                    self._serve()
                if now >= ends or (self.breaker.is_open and self._may_grow()):
                    break
            self._withdraw(waiter, queue)
        except BaseException:  # cancelled or interrupted: the next one gets what it has received
            self._withdraw(waiter, queue)
            if waiter.received is _TURN:
                self._turn_ended(places=int(queue is self._waiting))
            elif waiter.received is not _NOTHING:
                waiter.received.held_since = math.inf
                self._do_return_conn(waiter.received)
            raise
        if waiter.received is not _NOTHING:
            return waiter.received
        if self.breaker.is_open:
            raise self.breaker.error()
        error = PoolTimeout(
            f"QueuePool limit of size {self.size()} overflow {self.overflow()} reached, "
            f"connection timed out, timeout {self._timeout:.2f}",
            code="3o7r",
        )
        vars(error)["retry_after"] = self.retry_after(len(self._waiting))
        raise error

    def _withdraw(self, waiter: Any, queue: deque[Any]) -> None:
        """Let a waiter that has received nothing receive nothing any more."""
        with self._lock:
            if waiter.received is None:
                waiter.received = _NOTHING
                with contextlib.suppress(ValueError):  # interrupted before it was in the queue
                    queue.remove(waiter)

    def _serve(self) -> None:
        """Give what there is to those who wait: connections, turns, or the breaker's refusal."""
        with self._lock:
            self._serve_replacing()
            while self._waiting:
                first = self._waiting[0]
                try:
                    given = self._pool.take()
                except IndexError:
                    # One is opened at a time. More are only where the last one in the queue would
                    # wait much longer for what comes back: in a spike all hold times are longer.
                    wait = len(self._waiting) * self._mean_hold / max(self.checkedout(), 1)
                    if first.is_patient and self._connecting and wait <= 3 * self._mean_connect:
                        break
                    if not self._take_turn(is_patient=first.is_patient):
                        break
                    given = _TURN
                if self._give(self._waiting, given):
                    self._moved = time.monotonic()
                    continue
                if given is _TURN:
                    self._turn_ended(places=1)
                else:
                    self._pool.put(given)
            if self.breaker.is_open and self.checkedout() <= self._connecting:
                while self._waiting:
                    self._give(self._waiting, _NOTHING)

    def _serve_replacing(self) -> None:
        while self._replacing:
            is_patient = self._replacing[0].is_patient
            if is_patient and self._connecting >= self.concurrent_connects:
                return
            if not self.breaker.allows_connect():
                self._give(self._replacing, _NOTHING)
                continue
            self._connecting += 1
            if not self._give(self._replacing, _TURN):
                self._connecting -= 1

    def _give(self, queue: deque[Any], given: Any) -> bool:
        """Give something to the first of a queue that can still be woken."""
        while queue:
            waiter = queue.popleft()
            waiter.received = given
            # A task of a closed event loop never wakes.
            with contextlib.suppress(RuntimeError):
                waiter.wake()
                return True
        return False

    def _should_wrap_creator(self, creator: Any) -> Any:
        """Return the function that opens every connection of the pool, with its turn."""
        connect = super()._should_wrap_creator(creator)

        def connect_in_turn(record: Any) -> Any:
            # A new record comes from `_do_get`; the attribute is the last that its __init__ sets.
            if not hasattr(record, "finalize_callback"):
                return connect(record)
            with self._lock:
                waits = 0 < self.concurrent_connects <= self._connecting
                if not waits:
                    if not self.breaker.allows_connect():
                        raise self.breaker.error()
                    self._connecting += 1
            if waits:
                self._wait(self._replacing)
            return self._in_turn(lambda: connect(record), places=0)

        return connect_in_turn

    def _in_turn(self, connect: Callable[[], Any], *, places: int) -> Any:
        """Connect; then the turn is over, and after a failure so many places are free."""
        failure: BaseException | None = None
        began = time.monotonic()
        try:
            return connect()
        except BaseException as error:
            failure = error
            raise
        finally:
            with self._lock:
                self._moved = time.monotonic()
                self._mean_connect = _averaged(self._mean_connect, self._moved - began)
                self.breaker.connect_ended(failure, self._dialect)
                self._turn_ended(places=places if failure else 0)

    def _turn_ended(self, *, places: int) -> None:
        with self._lock:
            self._connecting -= 1
            self._overflow -= places
            self.breaker.is_probing = False
            self._serve()


class _AsyncPresetPool(_PresetPool, AsyncAdaptedQueuePool):
    """The same for an AsyncEngine: tasks wait."""

    _waiter = _WaitingTask


# -- additions to SQLAlchemy's pools --------------------------------------------------------

# The engines that have the checks of a preset.
_checked: weakref.WeakSet[Engine] = weakref.WeakSet()


def classify_connect_failure(error: BaseException) -> ConnectFailure | None:
    """Return why opening a connection failed, if another attempt can help; else None.

    psycopg2 and psycopg carry no SQLSTATE on a failed connect, so the server's English
    messages decide there (PostgreSQL, Appendix A). A server with another lc_messages is not
    recognised: its first error is raised.
    """
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state in _BY_SQLSTATE:
        return _BY_SQLSTATE[state]
    code = error.args[0] if error.args else None
    if isinstance(code, int):
        return _BY_MYSQL_ERROR.get(code)
    message = str(error)
    for text, failure in _BY_MESSAGE:
        if text in message:
            return failure
    return None


_BY_SQLSTATE: dict[str, ConnectFailure] = {
    "53300": "full",
    "57P03": "starting",
    "28P01": "authentication",
    "28000": "authentication",
}
_BY_MYSQL_ERROR: dict[int, ConnectFailure] = {
    1040: "full",
    1203: "full",
    1045: "authentication",
}
_BY_MESSAGE: tuple[tuple[str, ConnectFailure], ...] = (
    ("too many clients", "full"),
    ("remaining connection slots are reserved", "full"),
    ("too many connections for", "full"),
    ("no more connections allowed", "full"),  # PgBouncer, max_client_conn
    ("database system is starting up", "starting"),
    ("database system is not accepting connections", "starting"),  # about to be promoted
    ("not yet accepting connections", "starting"),
    ("database system is in recovery mode", "starting"),
    ("database system is shutting down", "starting"),
    ("session is read-only", "read_only"),  # libpq's own, as the next one
    ("server is in hot standby mode", "read_only"),
    ("None of the hosts match the target attribute", "read_only"),  # asyncpg's
    ("password authentication failed", "authentication"),
    ("PAM authentication failed", "authentication"),  # RDS, an IAM token that has expired
)


class Connector:
    """Takes the place of a dialect's `connect`: retries while the server is full or starting up.

    In the dialect and not a `do_connect` listener, because the first listener that returns a
    connection ends their chain. So an application's own listeners are called as on any engine,
    and this retries the connect with what they made of its arguments.

    All attempts of a checkout share one deadline, and each may take the time that is left.
    Drivers that take whole seconds get it rounded up. libpq makes at least 2 s of it
    (PostgreSQL, 32.1.2), so that an attempt begun just in time may end 2 s late.

    Between attempts it sleeps for a random time up to a bound that doubles ("full jitter",
    Exponential Backoff and Jitter, AWS Architecture Blog, 2015). So clients that were
    refused together do not try again together.
    """

    first_delay = 0.05  # s
    longest_delay = 1.0  # s

    def __init__(self, preset: EnginePreset, dialect: Dialect) -> None:
        self.budget = float(preset.connect_timeout)  # s
        # A read-only server may be about to be promoted.
        self.waits_for = ("full", "starting", "read_only") if preset.retry_connect else ()
        self.dialect = dialect
        self.open = dialect.connect

    def __call__(self, *cargs: Any, **cparams: Any) -> Any:
        """Open a DB-API connection, or raise the last error once the budget is spent."""
        return self.connect(cargs, cparams, self.deadline(cparams))

    def deadline(self, cparams: Mapping[str, Any]) -> float:
        """Return the monotonic time at which opening a connection, begun now, must end.

        A limit in the URL or in `connect_args` wins over the preset's.
        """
        _, seconds = _connect_limit(self.dialect, cparams)
        return time.monotonic() + (seconds or self.budget)

    def connect(self, cargs: Sequence[Any], cparams: Mapping[str, Any], deadline: float) -> Any:
        """Open a DB-API connection before the deadline, or raise the last error."""
        bound = self.first_delay
        refusal: Exception | None = None
        name, seconds = _connect_limit(self.dialect, cparams)
        while True:
            if seconds:
                left = deadline - time.monotonic()
                # asyncpg takes fractions. A limit of 0 would mean none.
                limit = max(left, 0.1) if name == "timeout" else max(math.ceil(left), 1)
                cparams = {**cparams, name: limit}
            try:
                if not seconds:
                    return self.open(*cargs, **cparams)
                return _open_in_time(self.dialect, self.open, cargs, cparams, deadline)
            except Exception as error:
                own = error_of_the_program(error)
                if own is not None:
                    raise own from own.__cause__
                failure, delay = classify_connect_failure(error), random.uniform(0, bound)
                # An event loop's clock may be that coarse.
                left = deadline - 0.01 - time.monotonic()
                if failure == "read_only" and refusal is None and left > 0:
                    connection = self._ask_despite_report(cargs, cparams)
                    if connection is not None:
                        return connection
                if failure is None and refusal is not None and left <= 0:
                    # This attempt was cut short; the server's refusal before says more.
                    raise refusal from error
                if failure not in self.waits_for or left <= delay:
                    raise
                refusal = error.with_traceback(None)  # its frames hold this variable
            _sleep(self.dialect, delay)
            # A promotion ends the wait for a writer from one moment to the next, and nothing has to
            # recover from a crowd.
            longest = self.longest_delay / 4 if failure == "read_only" else self.longest_delay
            bound = min(bound * 2, longest)

    def _ask_despite_report(self, cargs: Sequence[Any], cparams: Mapping[str, Any]) -> Any:
        """Return a connection to a server that accepts writes, although it was reported not to.

        PgBouncer repeats to each client what a server has reported at its first login, until it is
        reloaded (pgbouncer#859). Then every connect with `target_session_attrs` would fail.
        """
        if cparams.get("target_session_attrs") != "read-write":
            return None
        try:
            connection: Any = self.open(*cargs, **{**cparams, "target_session_attrs": "any"})
        except Exception:  # noqa: BLE001  (the first refusal says more)
            return None
        is_read_only = True
        with contextlib.suppress(self.dialect.loaded_dbapi.Error):
            cursor = connection.cursor()
            cursor.execute("SHOW transaction_read_only")
            is_read_only = cursor.fetchall()[0][0] != "off"
            cursor.close()
            self.dialect.do_rollback(connection)
        if not is_read_only:
            return connection
        self.dialect.do_terminate(connection)
        return None


# -- hosts and their names -------------------------------------------------------------------


def _open_in_time(
    dialect: Dialect,
    connect: Callable[..., Any],
    cargs: Sequence[Any],
    cparams: Mapping[str, Any],
    deadline: float,
) -> Any:
    """Call the driver, so that no silent host or resolver takes the time of all others.

    Of several hosts asyncpg gives the first one all the time there is (asyncpg#1155), and libpq gives
    `connect_timeout` to each. Both libpq and PyMySQL wait for a resolver as long as it takes.
    """
    if dialect.driver == "asyncpg":
        return _open_one_of(connect, cargs, cparams, deadline)
    if dialect.driver in ("psycopg2", "psycopg"):
        cparams = _with_addresses(dialect, cparams, deadline)
    elif dialect.driver in ("pymysql", "mysqldb") and _is_name(str(cparams.get("host") or "")):
        # TLS needs the name, so the driver looks it up again; a resolver that has just answered will.
        _look_up(dialect, str(cparams["host"]), deadline - time.monotonic())
    return connect(*cargs, **cparams)


def _open_one_of(
    connect: Callable[..., Any], cargs: Sequence[Any], cparams: Mapping[str, Any], deadline: float
) -> Any:
    """Connect to the first of several hosts that lets asyncpg in, each with a share of the time."""
    hosts, ports = cparams.get("host"), cparams.get("port")
    if isinstance(hosts, str | None):
        return connect(*cargs, **cparams)
    wanted = cparams.get("target_session_attrs")
    kinds = ("standby", "any") if wanted == "prefer-standby" else (wanted,)
    ports = ports if isinstance(ports, list | tuple) else [ports] * len(hosts)
    tries = [
        {"host": host, "port": port, "target_session_attrs": kind}
        for kind in kinds
        for host, port in zip(hosts, ports, strict=True)
    ]
    for left_to_try in range(len(tries), 0, -1):
        share = max((deadline - time.monotonic()) / left_to_try, 0.1)
        try:
            return connect(*cargs, **{**cparams, **tries[-left_to_try], "timeout": share})
        except Exception as error:
            # As libpq: a server's refusal is final, but for one that is starting. A server of the
            # wrong kind has no SQLSTATE.
            is_final = getattr(error, "sqlstate", None) not in (None, "57P03")
            if left_to_try == 1 or is_final or error_of_the_program(error) is not None:
                raise
    raise AssertionError("unreachable")


def _with_addresses(dialect: Any, cparams: Mapping[str, Any], deadline: float) -> Mapping[str, Any]:
    """Return libpq's parameters with the addresses of the hosts, and a limit for each address.

    libpq checks a certificate by `host`, connects to `hostaddr`, and looks nothing up then. Hosts
    without a name are as they were.
    """
    hosts = str(cparams.get("host") or "").split(",")
    ports = str(cparams.get("port") or "").split(",")
    names = sum(map(_is_name, hosts))
    if cparams.get("hostaddr") or not (names or len(hosts) > 1):
        return cparams
    if len(ports) not in (1, len(hosts)):
        return cparams  # libpq's error says it
    found: list[tuple[str, str, str]] = []
    failure: OSError | None = None
    for host, port in zip(hosts, ports * len(hosts) if len(ports) == 1 else ports, strict=True):
        addresses = [""]  # libpq's own way, without a resolver
        if _is_name(host):
            # Of several hosts the others need some time, too.
            left = (deadline - time.monotonic()) / (names + (len(hosts) > 1))
            names -= 1
            try:
                addresses = _look_up(dialect, host, max(left, 0.1))
            except OSError as error:
                if error_of_the_program(error) is not None:
                    raise
                failure = error
                continue
        found += [(host, address, port) for address in addresses]
    if not found:
        text = f'could not translate host name "{hosts[-1]}" to address: {failure}'
        raise dialect.loaded_dbapi.OperationalError(text) from failure
    share = math.ceil((deadline - time.monotonic()) / len(found))
    return {
        **cparams,
        "host": ",".join(host for host, _, _ in found),
        "hostaddr": ",".join(address for _, address, _ in found),
        "port": ",".join(port for _, _, port in found),
        "connect_timeout": max(share, 1),
    }


def _is_name(host: str) -> bool:
    """Return whether a host has to be looked up: no address, no socket, not this machine."""
    if not host or host == "localhost" or host.startswith(("/", "@")):
        return False
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False


def _look_up(dialect: Dialect, host: str, seconds: float) -> list[str]:
    """Return the addresses of a name.

    Raises:
        OSError: there is none; a TimeoutError if the resolver is silent for so many seconds.
    """
    silent = TimeoutError(f"the resolver did not answer within {seconds:.1f} s")
    if dialect.is_async:
        from sqlalchemy.util import await_only  # noqa: PLC0415

        asked = asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        try:
            found = await_only(asyncio.wait_for(asked, seconds))
        except TimeoutError:
            raise silent from None
        return _addresses(found)
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    thread = _LookUp.idle()
    if thread is None:  # there is none to be had: without a limit
        return _addresses(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    thread.questions.put((host, answers))
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise silent from None
    if isinstance(answer, Exception):
        raise answer
    return _addresses(answer)


def _addresses(found: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _LookUp(threading.Thread):
    """A thread that looks names up, because waiting for a thread can have a limit.

    It is kept for the next connect, so that only the first one starts a thread. One that a silent
    resolver holds up returns later.
    """

    waiting: ClassVar[list[_LookUp]] = []

    def __init__(self) -> None:
        super().__init__(daemon=True, name="poolkit-look-up")
        self.process = os.getpid()
        self.questions: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @classmethod
    def idle(cls) -> _LookUp | None:
        """Return a thread that waits for a question, or None where none can be started."""
        with contextlib.suppress(IndexError):
            while True:
                thread = cls.waiting.pop()
                if thread.process == os.getpid():  # a fork copies no threads
                    return thread
        thread = cls()
        try:
            thread.start()
        except RuntimeError:
            return None
        return thread

    def run(self) -> None:
        while True:
            host, answers = self.questions.get()
            try:
                answers.put(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
            except Exception as error:  # noqa: BLE001  (also a name that cannot be encoded)
                answers.put(error)
            self.waiting.append(self)


def _connect_limit(dialect: Dialect, cparams: Mapping[str, Any]) -> tuple[str, float]:
    """Return the argument that limits an attempt, and its seconds.

    They are 0 if no limit, or no number, is given.
    """
    name = "timeout" if dialect.driver == "asyncpg" else "connect_timeout"
    try:
        return name, max(float(cparams.get(name) or 0), 0.0)
    except (TypeError, ValueError):  # the driver will refuse it
        return name, 0.0


def _sleep(dialect: Dialect, seconds: float) -> None:
    if not dialect.is_async:
        time.sleep(seconds)
        return
    from sqlalchemy.util import await_only  # noqa: PLC0415

    await_only(asyncio.sleep(seconds))


class _ProcessName:
    """A `do_connect` listener that names the process which opens the connection.

    The engine may have been made before a fork, with the parent's process id in its arguments. A
    name of the user's own stays.
    """

    def __init__(self, preset: EnginePreset) -> None:
        self.preset = preset
        self.ours = {preset.application_name()}

    def __call__(
        self, dialect: Dialect, record: Any, cargs: list[Any], cparams: dict[str, Any]
    ) -> None:
        arguments, key = cparams, "application_name"
        if dialect.driver == "asyncpg":
            # A copy: SQLAlchemy passes the same inner dictionary each time.
            arguments = cparams["server_settings"] = {**cparams.get("server_settings", {})}
        elif dialect.name in ("mysql", "mariadb"):
            key = "program_name"
            if dialect.driver == "mysqldb":  # has no argument for it
                return
        if key not in arguments or arguments[key] in self.ours:
            arguments[key] = self.preset.application_name()
            # SQLAlchemy 2.0 passes this dictionary each time, also in a child's own children.
            self.ours.add(arguments[key])


def error_of_the_program(error: BaseException) -> OSError | None:
    """Return the OSError that the program itself raised while a driver was at work, or None.

    A handler of `signal.alarm` raises TimeoutError, and a function that reads a token raises
    FileNotFoundError. Both are OSErrors, as a network's errors are, but they are not raised in a
    driver's code or in the code under it. PyMySQL makes an error of its own of any OSError.
    Then the original is in the error's context.

    Args:
        error: what a driver raised.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
            packages = [str(f.f_globals.get("__name__")).partition(".")[0] for f in frames]
            # A context that the driver caught begins in the driver. One that begins elsewhere was
            # being handled by the program when it asked for a connection.
            caught = cause is error or bool(packages and packages[0] in _UNDER_A_CONNECT)
            if caught and packages and packages[-1] not in _UNDER_A_CONNECT:
                return cause
        cause = cause.__context__
    return None


# The packages of a driver's own OSErrors: drivers, and what they use to reach the network.
_UNDER_A_CONNECT = frozenset(
    {"asyncmy", "asyncpg", "MySQLdb", "psycopg", "psycopg2", "psycopg_binary", "psycopg_c"}
    | {"pymysql", "sqlalchemy"}
    | {"asyncio", "concurrent", "eventlet", "gevent", "selectors", "socket", "ssl", "uvloop"}
)


# -- forks, and slots that come back ---------------------------------------------------------


def empty_after_fork(engine: Engine) -> None:
    """Empty the engine's pool in each forked child; safe to call twice.

    Parent and child would otherwise talk to the server over one socket: gunicorn with `preload`,
    Celery's prefork pool, multiprocessing, uWSGI. The child never closes its copies of the
    connections, because that would end the parent's sessions.
    """
    pool: Any = engine.pool
    if engine.dialect.name == "sqlite" and isinstance(pool, StaticPool | SingletonThreadPool):
        return  # an in-memory database is copied by the fork
    if not isinstance(pool, _Guard):
        # The object's new class stays after `dispose()`, which makes the next pool from it.
        pool.__class__ = type(type(pool).__name__, (_Guard, type(pool)), {})
        pool.poolkit_process = os.getpid()
    pool.poolkit_engine = engine
    _forkable().add(engine)


@functools.cache
def _forkable() -> weakref.WeakSet[Engine]:
    """Return the engines to empty; the first call registers the hook."""
    engines: weakref.WeakSet[Engine] = weakref.WeakSet()

    def empty_pools() -> None:
        for engine in list(engines):
            engine.dispose(close=False)

    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=empty_pools)
    return engines


class _Guard(Pool):
    """A base of each pool's class, in front of SQLAlchemy's own.

    It keeps the connections of another process from being used or closed. Python runs the hook above
    for its own forks, and not for those that C code makes. So each checkout compares process ids.
    """

    poolkit_engine: Engine
    poolkit_process: int

    def connect(self) -> PoolProxiedConnection:
        if self.poolkit_process == os.getpid():
            return super().connect()
        with _replacing:
            if self.poolkit_engine.pool is self:
                self.poolkit_engine.dispose(close=False)
        return self.poolkit_engine.pool.connect()

    def dispose(self) -> None:
        if self.poolkit_process == os.getpid():
            super().dispose()

    def recreate(self) -> Pool:
        pool: Any = super().recreate()
        pool.poolkit_engine, pool.poolkit_process = self.poolkit_engine, os.getpid()
        if self.poolkit_process != os.getpid():
            _keep_unused(self)
        return cast("Pool", pool)

    def _create_connection(self) -> ConnectionPoolEntry:
        return _Slot(self)


_replacing = threading.Lock()
_inherited: list[Pool] = []


def _keep_unused(pool: Any) -> None:
    """Keep a parent's pool for good, and make its connections send nothing.

    Connections that threads of the parent have checked out are collected in the child, and
    SQLAlchemy rolls back what is collected.
    """
    driver, pool._dialect = pool._dialect.driver, _Mute()  # noqa: SLF001
    _inherited.append(pool)
    if driver == "mysqldb":
        # mysqlclient ends the parent's session when a connection is collected, at the latest at the
        # interpreter's end (apache/airflow#56044). psycopg2 and psycopg compare process ids.
        import ctypes  # noqa: PLC0415

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pool))


class _Mute:
    """Stands in for the dialect of a pool whose connections are another process's."""

    is_async = False
    has_terminate = False

    def do_nothing(self, connection: Any) -> None:
        pass

    do_rollback = do_commit = do_close = do_terminate = do_nothing


class _Slot(_ConnectionRecord):
    """SQLAlchemy's record, which returns to its pool whatever interrupts its return.

    Written for SQLAlchemy 2.0.36 to 2.1.9. There a `checkin` listener that raises costs the slot. In
    2.0.36 so does a task that is cancelled again while its connection is closed.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool: Any = pool
        self.was_checked_in = False
        try:
            super().__init__(pool)
        except BaseException:
            # A `connect` listener raised. SQLAlchemy 2.0 leaves the new connection to the garbage
            # collector, which can close no asynchronous one.
            connection, self.dbapi_connection = getattr(self, "dbapi_connection", None), None
            if connection is not None:
                self.pool._close_connection(connection, terminate=True)  # noqa: SLF001
            raise

    def checkin(self, _fairy_was_created: bool = True) -> None:  # noqa: FBT001, FBT002
        is_out = not _fairy_was_created or self.fairy_ref is not None
        self.was_checked_in = True
        try:
            super().checkin(_fairy_was_created)
        except BaseException as error:
            frames = traceback.walk_tb(error.__traceback__)
            if is_out and not any(f.f_code.co_name == "_return_conn" for f, _ in frames):
                self.pool._return_conn(self)  # noqa: SLF001
            raise

    def _checkin_failed(
        self,
        err: BaseException,
        _fairy_was_created: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        self.was_checked_in = False
        try:
            super()._checkin_failed(err, _fairy_was_created)
        except BaseException:
            if not self.was_checked_in:
                self.dbapi_connection = None
                self.checkin(_fairy_was_created)
            raise


# -- the check at checkout -------------------------------------------------------------------


class _State:
    """The state of one pooled connection. Times are in seconds since the epoch."""

    __slots__ = ("connection", "expires", "fileno", "is_closed", "last_used", "poll")

    def __init__(self, connection: Any, now: float, expires: float) -> None:
        driver = _driver_connection(connection)
        self.connection = connection
        self.last_used = now
        self.expires = expires
        self.fileno = _fileno(driver)
        self.is_closed = _closed_test(driver)
        self.poll: Callable[[float], list[Any]] | None = None
        if self.fileno is not None:
            poller = select.poll()
            poller.register(self.fileno, select.POLLIN)
            self.poll = poller.poll


class _CheckoutCheck:
    """Pool listeners that check at checkout whether a connection is alive and young enough.

    A server that ends a session sends something: after a terminated backend, a restart, an
    idle timeout. So a poll of the socket that finds nothing to read excludes these cases, without a
    round trip. It cannot see a peer that vanished without sending anything; the ping after
    `ping_after_idle` seconds is for that.

    Times are wall-clock times: a frozen virtual machine's monotonic clock may stand still.
    """

    def __init__(
        self, preset: EnginePreset, engine: Engine, *, pings: bool, recycle: float
    ) -> None:
        self.dialect = engine.dialect
        # The pool's own limit wins, be it the preset's or the caller's.
        own = getattr(engine.pool, "_recycle", -1)
        self.recycle = own if own >= 0 else recycle
        self.jitter = preset.pool_recycle_jitter
        self.bypass = preset.ping_after_idle
        # A pool that pings at each checkout needs no second opinion.
        self.checks = pings and self.bypass > 0 and not getattr(engine.pool, "_pre_ping", False)
        # A ping may take as long as a new connection would.
        self.ping_timeout = preset.connect_timeout

    def listen(self, pool: Pool) -> None:
        event.listen(pool, "connect", self.on_connect)
        if self.checks:
            event.listen(pool, "checkin", self.on_checkin)
        if self.checks or self.recycle >= 0:
            event.listen(pool, "checkout", self.on_checkout)

    def on_connect(self, connection: Any, record: Any) -> None:
        now = time.time()
        early = random.uniform(0, self.jitter)
        expires = now + self.recycle * (1 - early) if self.recycle >= 0 else float("inf")
        # An attribute, because `record.info` is the application's to empty.
        record.poolkit_state = _State(connection, now, expires)

    def on_checkin(self, connection: Any, record: Any) -> None:
        state = getattr(record, "poolkit_state", None)
        if state is not None:  # or it was opened before `listen`
            state.last_used = time.time()

    def on_checkout(self, connection: Any, record: Any, proxy: Any) -> None:
        state: _State | None = getattr(record, "poolkit_state", None)
        if state is None or state.connection is not connection:
            # Opened before `listen`, or another listener failed when it was: of unknown age.
            self.on_connect(connection, record)
            state = cast("_State", record.poolkit_state)
            state.last_used = 0.0
        now = time.time()
        if now >= state.expires:
            raise DisconnectionError("connection is older than pool_recycle")
        if not self.checks:
            return
        # A negative idle time means that the clock was set back: unknown, so ping.
        if (
            0 <= now - state.last_used < self.bypass
            and state.poll is not None
            and not state.is_closed()
            and not state.poll(0)
        ):
            return
        try:
            _ping(self.dialect, connection, state, self.ping_timeout)
        except DisconnectionError:
            raise
        except Exception as error:
            own = error_of_the_program(error)
            if own is not None:
                raise own from own.__cause__
            if not isinstance(error, _connection_errors(self.dialect)):
                raise
            raise DisconnectionError(f"connection did not answer a ping: {error}") from error


def _connection_errors(dialect: Any) -> tuple[type[BaseException], ...]:
    dbapi = dialect.loaded_dbapi
    if not dialect.is_async:  # these drivers make their own of the operating system's errors
        return (dbapi.Error,)
    asyncpg = getattr(dbapi, "asyncpg", None)
    # SQLAlchemy 2.0 does not wrap all of its errors.
    own = () if asyncpg is None else (asyncpg.PostgresError, asyncpg.InternalClientError)
    return (dbapi.Error, OSError, *own)


def _ping(dialect: Any, connection: Any, state: _State, seconds: float) -> None:
    """Ping by the dialect's `do_ping`, and raise InvalidatePoolError where no answer comes.

    The kernel's own limits (keepalives, tcp_user_timeout) end a connection whose peer is gone. They
    do not end one through a proxy, or to a frozen server whose kernel still answers. Most drivers
    wait in C for as long as it takes. So the question is sent, the answer is waited for here, and
    then it is read. That needs no thread (there is none at the interpreter's end) and no file.
    """
    driver = _driver_connection(connection)
    ask = _exchange_of(driver, dialect)
    silent = InvalidatePoolError(f"connection did not answer a ping within {seconds:g} s")
    if ask is None and dialect.is_async:
        _ping_with_timer(dialect, connection, driver, seconds, silent)
        return
    if ask is None or state.poll is None or state.fileno is None:
        dialect.do_ping(connection)
        return
    deadline = time.monotonic() + seconds
    fileno, poll = state.fileno, state.poll

    def wait() -> None:
        left = deadline - time.monotonic()
        if dialect.is_async:
            from sqlalchemy.util import await_only  # noqa: PLC0415

            answered = left > 0 and await_only(_readable(fileno, left))
        else:
            answered = left > 0 and bool(poll(math.ceil(left * 1000)))
        if not answered:
            raise silent

    dialect.do_ping(_Pinged(lambda statement: ask(statement, wait)))


class _Pinged:
    """Stands in for a driver's connection in `do_ping`."""

    autocommit = True
    closed = False

    def __init__(self, ask: Callable[[str], None]) -> None:
        self.execute = ask

    def ping(self, *reconnect: bool) -> None:
        self.execute("SELECT 1")

    def cursor(self) -> _Pinged:
        return self

    def close(self) -> None:
        pass


async def _readable(fileno: int, seconds: float) -> bool:
    """Return whether a socket becomes readable in time."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool] = loop.create_future()

    def end(result: bool) -> None:  # noqa: FBT001
        if not answer.done():
            answer.set_result(result)

    timer = loop.call_later(seconds, end, False)
    loop.add_reader(fileno, end, True)
    try:
        return await answer
    finally:
        timer.cancel()
        loop.remove_reader(fileno)


def _ping_with_timer(
    dialect: Any, connection: Any, driver: Any, seconds: float, silent: InvalidatePoolError
) -> None:
    """Ping over a driver that leaves its socket to the event loop: asyncpg, asyncmy."""
    task: Any = asyncio.current_task()
    cancelled, cut = task.cancelling(), False

    def abort() -> None:
        transport = getattr(driver, "_transport", None)
        if transport is not None:
            transport.abort()

    def cut_off() -> None:
        nonlocal cut
        cut = True
        abort()

    # SQLAlchemy 2.0 does not pass the argument that asyncmy's ping has by now.
    newer = _Pinged(lambda _: connection.ping(False))
    timer = asyncio.get_running_loop().call_later(seconds, cut_off)
    try:
        dialect.do_ping(newer if dialect.driver == "asyncmy" else connection)
    except BaseException as error:
        # At once, because SQLAlchemy would await the farewell, in a task that may be cancelled again.
        getattr(driver, "terminate", abort)()
        if task.cancelling() > cancelled and isinstance(error, Exception):
            # asyncpg was asked to stop, and failed while it told the server so.
            raise asyncio.CancelledError from error
        if cut and isinstance(error, Exception):
            raise silent from error
        raise
    finally:
        timer.cancel()
    if cut:  # the answer came just before the end
        raise silent


def _exchange_of(driver: Any, dialect: Any) -> Callable[[str, Callable[[], None]], None] | None:
    """Return a function that sends a statement, waits, and reads the answer, for drivers that can."""
    ask: Callable[[str, Callable[[], None]], None] | None = None
    if not type(dialect).do_ping.__module__.startswith("sqlalchemy."):
        pass  # a dialect of another library, with needs of its own
    elif hasattr(driver, "pgconn"):  # psycopg
        ask = functools.partial(_ask_libpq, driver.pgconn)
    elif hasattr(driver, "pgconn_ptr"):  # psycopg2
        # A build that hides its libpq is pinged without a limit.
        with contextlib.suppress(ImportError, OSError, AttributeError):
            ask = functools.partial(_ask_libpq, _Libpq(driver.pgconn_ptr))
    elif hasattr(driver, "send_query"):  # mysqlclient

        def ask(statement: str, wait: Callable[[], None]) -> None:
            driver.send_query(statement.encode())
            wait()
            driver.read_query_result()
            driver.store_result()

    elif hasattr(driver, "_read_ok_packet") and not dialect.is_async:  # PyMySQL

        def ask(statement: str, wait: Callable[[], None]) -> None:
            driver._execute_command(0x0E, b"")  # COM_PING  # noqa: SLF001
            wait()
            driver._read_ok_packet()  # noqa: SLF001

    return ask


def _ask_libpq(pgconn: Any, statement: str, wait: Callable[[], None]) -> None:
    """Execute a statement over libpq (PostgreSQL, 32.4 "Asynchronous Command Processing")."""
    pgconn.send_query(statement.encode())
    pgconn.flush()
    while True:
        while pgconn.is_busy():
            wait()
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return
        if result.status in (5, 7):  # PGRES_BAD_RESPONSE, PGRES_FATAL_ERROR
            raise DisconnectionError("the server answered a ping with an error")


class _Libpq:
    """The libpq that psycopg2 has loaded, with the methods of psycopg's PGconn.

    psycopg2 gives the pointer for this purpose (documentation, `connection.pgconn_ptr`).
    """

    def __init__(self, pgconn: int | None) -> None:
        self.pgconn = pgconn
        self.libpq = _load_libpq()

    def send_query(self, statement: bytes) -> None:
        self._check(self.libpq.PQsendQuery(self.pgconn, statement))

    def flush(self) -> None:
        self.libpq.PQflush(self.pgconn)

    def is_busy(self) -> int:
        return int(self.libpq.PQisBusy(self.pgconn))

    def consume_input(self) -> None:
        self._check(self.libpq.PQconsumeInput(self.pgconn))

    def get_result(self) -> Any:
        result = self.libpq.PQgetResult(self.pgconn)
        if not result:
            return None
        status = self.libpq.PQresultStatus(result)
        self.libpq.PQclear(result)
        return types.SimpleNamespace(status=status)

    def _check(self, succeeded: int) -> None:
        if not succeeded:
            message = self.libpq.PQerrorMessage(self.pgconn).decode(errors="replace")
            raise DisconnectionError(f"connection did not answer a ping: {message.strip()}")


@functools.cache
def _load_libpq() -> Any:
    import ctypes  # noqa: PLC0415  (the first ping needs it, the start does not)

    import psycopg2  # noqa: PLC0415

    # Functions of a shared library are found in those that it was linked with, too.
    libpq = ctypes.CDLL(psycopg2._psycopg.__file__)  # noqa: SLF001
    pointer = ctypes.c_void_p
    for name in ("PQsendQuery", "PQflush", "PQisBusy", "PQconsumeInput", "PQgetResult"):
        getattr(libpq, name).argtypes = [pointer]
    libpq.PQsendQuery.argtypes = [pointer, ctypes.c_char_p]
    libpq.PQgetResult.restype = pointer
    libpq.PQresultStatus.argtypes = libpq.PQclear.argtypes = [pointer]
    libpq.PQerrorMessage.argtypes, libpq.PQerrorMessage.restype = [pointer], ctypes.c_char_p
    return libpq


def _note_event_loop(connection: Any, record: Any) -> None:
    record.poolkit_loop = asyncio.get_running_loop()


def _refuse_other_event_loop(connection: Any, record: Any, proxy: Any) -> None:
    """Replace a connection of another event loop: each `asyncio.run` has one, and each thread.

    The streams of asyncpg and asyncmy work in the loop that opened them, and nowhere else. Not even
    a farewell can be sent in its place, so SQLAlchemy must not try to close the connection.
    """
    loop = getattr(record, "poolkit_loop", None)
    if loop is None or loop is asyncio.get_running_loop():
        return
    driver = _driver_connection(connection)
    end = getattr(driver, "terminate", None) or driver._transport.abort  # noqa: SLF001
    fileno = _fileno(driver)
    try:
        loop.call_soon_threadsafe(end)
    except RuntimeError:  # it is closed
        with contextlib.suppress(RuntimeError):
            end()
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fileno or -1)) as sock:
            sock.shutdown(socket.SHUT_RDWR)
    record.pool.dispatch.close(connection, record)
    record.dbapi_connection = None
    raise DisconnectionError("connection belongs to another event loop")


def _driver_connection(connection: Any) -> Any:
    """Return the driver's own connection; SQLAlchemy wraps those of asynchronous drivers."""
    return getattr(connection, "driver_connection", connection)


def _socket_of(driver: Any) -> Any:
    """Return the Python socket of a driver that has one, or None."""
    transport = getattr(driver, "_transport", None)  # asyncpg, asyncmy
    if transport is not None:
        return transport.get_extra_info("socket")
    return getattr(driver, "_sock", None)  # PyMySQL


def fileno_of(connection: Any) -> int | None:
    """Return the number of a pooled connection's socket, or None where it is unknown."""
    return _fileno(_driver_connection(connection))


def _fileno(driver: Any) -> int | None:
    """Return the number of a connection's socket; None where it is unknown or of no use."""
    source = driver if hasattr(driver, "fileno") else _socket_of(driver)
    if source is None or not hasattr(select, "poll"):  # Windows has no poll
        return None
    return int(source.fileno())


def _closed_test(driver: Any) -> Callable[[], Any]:
    """Return a function that is true once the driver has closed the connection."""
    is_closed = getattr(driver, "is_closed", None)  # asyncpg
    if is_closed is not None:
        return cast("Callable[[], Any]", is_closed)
    if hasattr(driver, "closed"):  # psycopg2, psycopg
        return lambda: driver.closed
    if hasattr(driver, "open"):  # PyMySQL
        return lambda: not driver.open
    return lambda: False


# -- failover -------------------------------------------------------------------------------

# The key in ConnectionPoolEntry.info.
_REPORT = "poolkit.report"

_RO_POSTGRESQL = "25006"  # read_only_sql_transaction
_RO_MYSQL = (1290, 1836, 1874)  # an option prevents it, read-only mode, InnoDB's own

# The setting of this session alone is the program's. One in the server's configuration is not.
_IS_READ_ONLY = (
    "SELECT pg_is_in_recovery() OR EXISTS (SELECT 1 FROM pg_settings"
    " WHERE name = 'default_transaction_read_only' AND setting = 'on'"
    " AND source IN ('configuration file', 'command line', 'environment variable'))"
)


class _ReadOnlyServer:
    """Listeners that drop the connections to a server which has become read-only.

    After a failover the old primary may live on as a standby. It answers reads and pings, so that
    its connections look alive, and each write fails. They have to be replaced: connecting again
    reaches the new primary, through a name that has moved or by `target_session_attrs`.

    PostgreSQL 14 and later report `in_hot_standby` and `default_transaction_read_only` with the
    answer to any statement, and the driver keeps what was reported. So a change is seen at checkout
    without a round trip. Where nobody saw it, one write fails, and its error drops them all.
    """

    def __init__(self, preset: EnginePreset, dialect: Dialect) -> None:
        self.dialect = dialect
        # A transaction pooler's report is not that of the server which runs the statement.
        self.is_reported = dialect.name == "postgresql" and not preset.transaction_pooling

    def on_checkout(self, connection: Any, record: ConnectionPoolEntry, proxy: Any) -> None:
        if not self.is_reported:
            return
        known = record.info.get(_REPORT)
        if known is not None and known.read() == known.last:  # well below a microsecond
            return
        # At first here, not at connect: a listener of the user's may have made the session read-only.
        now = _Report(_driver_connection(connection))
        if known is not None and now.became_read_only(known) and self._is_read_only(connection):
            raise InvalidatePoolError("the server has become read-only")
        record.info[_REPORT] = now

    def on_error(self, context: ExceptionContext) -> None:
        """Treat the refused write as a lost connection: it and all older ones are replaced.

        A transaction that asked for READ ONLY is a mistake of the program, and keeps its error.
        """
        connection = context.connection
        if connection is None or connection.closed or connection.invalidated:
            return
        error = context.original_exception
        if self.dialect.name == "postgresql":
            state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
            if state != _RO_POSTGRESQL:
                return
            if self._was_requested(connection):
                # Said here, where it is known: the error itself is the same in both cases.
                vars(context.sqlalchemy_exception)["read_only_was_requested"] = True
                return
        elif not (error.args and error.args[0] in _RO_MYSQL and self._is_off(connection)):
            return
        context.is_disconnect = True

    def _was_requested(self, connection: Connection) -> bool:
        """Return whether the program, its role or its URL asked for a READ ONLY transaction."""
        if connection.get_execution_options().get("postgresql_readonly"):
            return True
        driver = _driver_connection(connection.connection.dbapi_connection)
        if getattr(driver, "readonly", None) or getattr(driver, "read_only", None):
            return True  # psycopg2's and psycopg's attribute
        now = _Report(driver)
        # A server before PostgreSQL 14 reports nothing.
        if not self.is_reported or now.default is None or _is_pooled(driver):
            return False
        return not now.became_read_only(connection.info.get(_REPORT))

    def _is_read_only(self, connection: Any) -> bool:
        """Ask the server whether it is read-only for all its sessions; in one round trip."""
        try:
            cursor = connection.cursor()
            cursor.execute(_IS_READ_ONLY)
            ((found,),) = cursor.fetchall()
            cursor.close()
            self.dialect.do_rollback(connection)
        except self.dialect.loaded_dbapi.Error:
            return True
        return bool(found)

    def _is_off(self, connection: Connection) -> bool:
        """Ask MySQL or MariaDB, as error 1290 stands for several options."""
        try:
            cursor = connection.connection.cursor()
            cursor.execute("SELECT @@global.read_only")
            ((found,),) = cursor.fetchall()
            cursor.close()
        except self.dialect.loaded_dbapi.Error:
            return True
        return str(found).upper() not in ("0", "OFF")


class _Report:
    """What a server has reported to a driver: whether it is a standby, whether it refuses writes.

    Reading it takes no round trip. A value is None where nothing was reported.
    """

    __slots__ = ("default", "last", "read", "standby")

    def __init__(self, driver: Any) -> None:
        standby, default = "in_hot_standby", "default_transaction_read_only"
        read: Callable[[str], Any]
        if hasattr(driver, "get_settings"):  # asyncpg
            settings = driver.get_settings()
            read = functools.partial(_attribute, settings)
        elif hasattr(driver, "pgconn"):  # psycopg, whose `info` takes ten times as long
            standby, default = standby.encode(), default.encode()  # type: ignore[assignment]
            read = driver.pgconn.parameter_status
        else:
            read = driver.info.parameter_status
        self.read = functools.partial(read, default)
        self.last = self.read()
        # Only this one changes while a session lives.
        self.default = _text(self.last)
        self.standby = _text(read(standby))

    def became_read_only(self, before: _Report | None) -> bool:
        if before is None:
            return "on" in (self.default, self.standby)
        is_demoted = self.default == "on" and before.default != "on"
        return is_demoted or (self.standby == "on" and before.standby != "on")


def _attribute(settings: Any, name: str) -> Any:
    return getattr(settings, name, None)


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _is_pooled(driver: Any) -> bool:
    """Return whether a pooler stands between: its process id is no possible one.

    PgBouncer repeats to each client what some server has reported at some time, also in session mode.
    It makes the 8 bytes of pid and cancel key up; Linux has process ids up to 2**22.
    """
    pid = driver.get_server_pid() if hasattr(driver, "get_server_pid") else driver.info.backend_pid
    return not 0 < pid <= 2**22


@overload
def drain(engine: Engine) -> None: ...
@overload
def drain(engine: AsyncEngine) -> Awaitable[None]: ...
def drain(engine: Engine | AsyncEngine) -> Awaitable[None] | None:
    """Replace every connection of an engine's pool, without a failed request.

        drain(engine)
        await drain(async_engine)

    After the rotation of a password, a change of the schema, or a failover. Idle connections are
    closed now; those in use finish their work, and are closed when they come back. The pool itself
    stays, so its limit holds meanwhile, which `Engine.dispose()` does not promise.

    Args:
        engine: of a preset, or attached. Of any other, a busy connection is closed at its next
            checkout instead.
    """
    synchronous: Any = getattr(engine, "sync_engine", None)
    if synchronous is None:
        _drain_pool(cast("Engine", engine))
        return None
    from sqlalchemy.util import greenlet_spawn  # noqa: PLC0415

    return greenlet_spawn(_drain_pool, synchronous)


def _drain_pool(engine: Engine) -> None:
    pool, dialect = engine.pool, engine.dialect
    if not isinstance(pool, QueuePool):  # no other kind keeps connections that can be replaced
        return
    if dialect in _drains:
        _drains[dialect].begin()
    else:
        # Listeners cannot be added while other threads use the pool. This lasts until a connection's
        # next checkout.
        pool._invalidate(None)  # type: ignore[arg-type]  # noqa: SLF001
    # SQLAlchemy's own queue, as in 2.0.36 to 2.1.9. Each record goes back as soon as its connection
    # is closed, because a checkout may wait for it. It opens a new one there.
    queue, give_back = pool._pool, pool._do_return_conn  # noqa: SLF001
    idle: list[Any] = []
    with contextlib.suppress(Empty):
        while True:
            idle.append(queue.get(False))
    try:
        while idle:
            record = idle.pop()
            record.held_since = math.inf  # nobody has held it: not for _PresetPool's mean
            try:
                record.invalidate()
            finally:
                give_back(record)
    finally:  # if it was cancelled meanwhile
        for record in idle:
            give_back(record)


class _Drain:
    """Pool listeners that close old connections when they come back."""

    def __init__(self) -> None:
        self.renewed: weakref.WeakSet[ConnectionPoolEntry] | None = None

    def begin(self) -> None:
        self.renewed = weakref.WeakSet()

    def on_connect(self, connection: Any, record: ConnectionPoolEntry) -> None:
        if self.renewed is not None:
            self.renewed.add(record)

    def on_checkin(self, connection: Any, record: ConnectionPoolEntry) -> None:
        if self.renewed is None or connection is None:
            return
        if record not in self.renewed:
            record.invalidate()


# By dialect, which an engine shares with its copies with other execution options, and keeps
# when `dispose()` makes another pool with the same listeners.
_drains: weakref.WeakKeyDictionary[Dialect, _Drain] = weakref.WeakKeyDictionary()


class _KeepAlive:
    """A `connect` listener that sets on a Python socket what libpq sets by its parameters."""

    def __init__(self, preset: EnginePreset) -> None:
        self.options = {
            "TCP_KEEPIDLE": preset.keepalives_idle,
            "TCP_KEEPINTVL": preset.keepalives_interval,
            "TCP_KEEPCNT": preset.keepalives_count,
            "TCP_USER_TIMEOUT": preset.tcp_user_timeout,
        }

    def __call__(self, connection: Any, record: ConnectionPoolEntry) -> None:
        sock = _socket_of(_driver_connection(connection))
        if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in self.options.items():
            if hasattr(socket, name):  # macOS lacks two of them
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
