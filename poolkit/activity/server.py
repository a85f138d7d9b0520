"""Queries of the server: its connections, their states and ages.

`pg_stat_activity` is the truth for connection counts. Everything here is read over one
connection of its own, named `poolkit:activity`; no connection of that name is in any list of
backends. The role needs `pg_monitor`. Times are in seconds, moments are Unix times of
this machine.

Backends are those of the one database in the URL. `max_connections` is the whole server's, so
the connections to its other databases are counted too, and only counted.

Two kinds of connections are in no sample. One opens and closes between two samples; the counter
`sessions` still counts it. The other is still being authenticated, and belongs to no database yet.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import psycopg2
from psycopg2.errors import QueryCanceled
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from poolkit.config.presets import preset
from poolkit.errors import ConfigurationError, DatabaseUnavailable, MonitoringNotAllowed

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import URL

APPLICATION_NAME = "poolkit:activity"
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 2_000
RECONNECT_EVERY_S = 0.25

# Amazon RDS reserves connections for its own roles too, with settings of its own.
_LIMITS = """
SELECT current_setting('max_connections')::int,
       current_setting('superuser_reserved_connections')::int,
       (SELECT coalesce(sum(nullif(current_setting(name, true), '')::int), 0)::int
          FROM unnest(ARRAY['reserved_connections', 'rds.rds_superuser_reserved_connections',
                            'rds.rds_reserved_connections']) AS name),
       current_setting('server_version'),
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
       current_user, pg_backend_pid()
"""

# The functions under the views pg_stat_activity and pg_stat_database (PostgreSQL, 27.2): the
# views join three catalogs and read thirty columns more. One row at least, for the counters.
# Client backends alone: walsenders have max_wal_senders of their own (PostgreSQL, 19.6.1). Backends
# of other databases are counted here and not in the query, so they cost nothing while there are
# none.
_SAMPLE = """
SELECT d.sessions, d.xacts, a.datid = d.oid, a.pid, a.application_name, a.state, a.wait_event,
       extract(epoch FROM clock_timestamp() - a.backend_start)::float8,
       extract(epoch FROM clock_timestamp() - a.state_change)::float8,
       extract(epoch FROM a.backend_start)::float8, host(a.client_addr), a.client_port,
       pg_get_userbyid(a.usesysid)
FROM (SELECT oid, pg_stat_get_db_sessions(oid) AS sessions,
             pg_stat_get_db_xact_commit(oid) + pg_stat_get_db_xact_rollback(oid) AS xacts
      FROM pg_database WHERE datname = current_database()) AS d
LEFT JOIN pg_stat_get_activity(NULL) AS a
       ON a.datid IS NOT NULL AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
          AND a.application_name IS DISTINCT FROM 'poolkit:activity'
"""

# query holds the last statement of a backend that is idle in a transaction.
_OLDEST_IDLE_IN_TRANSACTION = """
SELECT a.pid, a.application_name, extract(epoch FROM clock_timestamp() - a.xact_start)::float8,
       extract(epoch FROM clock_timestamp() - a.state_change)::float8, a.query
FROM pg_stat_get_activity(NULL) AS a JOIN pg_database AS d ON d.oid = a.datid
WHERE d.datname = current_database() AND a.state LIKE 'idle in transaction%'
ORDER BY a.state_change LIMIT 1
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One client backend of the database at one moment.

    `target` and `instance` are the two halves of `application_name`. A name without a colon is the
    target, with no instance.
    """

    target: str
    instance: str
    pid: int
    state: str
    age_s: float
    state_age_s: float
    wait_event: str
    started: float = 0.0
    """When it connected, Unix time of the server; with `pid` it names one connection."""
    client: tuple[str, int] | None = None
    """The client's address and port as the server sees them; None over a Unix socket."""
    user: str = ""
    """The role that it connected as."""

    @property
    def application_name(self) -> str:
        """The name as the client gave it."""
        return f"{self.target}:{self.instance}" if self.instance else self.target


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """All client backends of the database at one moment, and its counters.

    `sessions` counts the connections made to the database since its statistics began, the
    watching ones excepted; PostgreSQL 18 adds a session when it is first idle, in measurements
    within 2 ms. `xacts` counts transactions; a backend reports them once a second at most.
    """

    time: float
    backends: tuple[Backend, ...]
    sessions: int
    xacts: int
    elsewhere: int = 0
    """Client backends of the server's other databases, which use its limit too."""

    @property
    def on_server(self) -> int:
        """All client backends of the server, which is what `max_connections` limits."""
        return len(self.backends) + self.elsewhere

    def of(self, prefix: str) -> tuple[Backend, ...]:
        """Return the backends whose `<target>:<instance>` begins with `prefix`."""
        return tuple(b for b in self.backends if f"{b.target}:{b.instance}".startswith(prefix))


@dataclass(frozen=True, kw_only=True, slots=True)
class IdleTransaction:
    """A backend that is idle in an open transaction.

    `query` is the last statement it ran, as long as the server keeps it
    (`track_activity_query_size`, 1 kB unless set).
    """

    pid: int
    application_name: str
    transaction_age_s: float
    idle_s: float
    query: str


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """The connections that the server allows, and its version."""

    max_connections: int
    superuser_reserved: int
    reserved: int
    version: str

    @property
    def usable(self) -> int:
        """The connections left for roles without a share in the reserve (PostgreSQL, 19.3.1)."""
        return self.max_connections - self.superuser_reserved - self.reserved


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A time without samples: the server did not answer."""

    begin: float
    end: float
    reason: str


def _backend(row: tuple[Any, ...]) -> Backend:
    """Return the backend of a row of `_SAMPLE`."""
    pid, name, state, wait_event, age_s, state_age_s, started, address, port, user = row[3:]
    target, _, instance = (name or "").partition(":")
    return Backend(
        target=target,
        instance=instance,
        pid=pid,
        state=state or "unknown",
        age_s=max(0.0, age_s or 0.0),
        state_age_s=max(0.0, state_age_s or 0.0),
        wait_event=wait_event or "",
        started=started or 0.0,
        client=(address, port) if address else None,
        user=user or "",
    )


class ActivityConnection:
    """The one connection over which the server is queried; not safe for several threads.

    Args:
        url: a SQLAlchemy URL of the database to watch, or libpq's `postgresql://`.
        needs_all: refuse a role that may not see the activity of all others.

    Raises:
        ConfigurationError: the URL is not that of a PostgreSQL database.

    """

    def __init__(self, url: str | URL, *, needs_all: bool = True) -> None:
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):
            # The cause would print the URL, and so the password.
            raise ConfigurationError(
                "not a database URL; wanted postgresql://user:password@host:port/database"
            ) from None
        if parsed.get_backend_name() not in ("postgresql", "postgres"):
            raise ConfigurationError(
                f"connections can be watched on PostgreSQL only, not on {parsed.get_backend_name()}"
            )
        # Always psycopg2, whichever driver the deployables use. The URL's own parameters win.
        script = preset("script").replace(
            connect_timeout=CONNECT_TIMEOUT_S,
            statement_timeout=STATEMENT_TIMEOUT_MS,
            target_session_attrs="any",  # a standby is watched, too
        )
        bare = script.url(parsed.set(drivername="postgresql+psycopg2"))
        options = script.engine_options(bare, application_name=APPLICATION_NAME)
        # Not the URL as text: SQLAlchemy writes a space as "+", which libpq takes for a plus.
        _, named = bare.get_dialect()().create_connect_args(bare)
        own = {"application_name": APPLICATION_NAME}
        self._parameters: dict[str, Any] = {**named, **options["connect_args"], **own}
        self._connection: psycopg2.extensions.connection | None = None
        self._opened = 0
        self._needs_all = needs_all
        self.limits: ServerLimits | None = None
        """Set by `connect`."""
        self.role = ""
        """The role that asks; set by `connect`."""
        self.sees_all = True
        """Whether the role may see the activity of all others; set by `connect`."""
        self.is_pooled = False
        """Whether the connection goes through a pooler such as PgBouncer; set by `connect`."""

    def connect(self) -> ServerLimits:
        """Connect, or connect again, and return the server's limits.

        Raises:
            DatabaseUnavailable: the server cannot be reached, or has no connection left.
            MonitoringNotAllowed: the role may not see other roles' activity, and has to.
        """
        self.close()
        began = time.monotonic()
        connection = None
        try:
            connection = psycopg2.connect(**self._parameters)
        except psycopg2.Error as error:
            # Poolers refuse startup options: then each query sets its own time limit. A server that
            # is not there is not asked again.
            bare = {k: v for k, v in self._parameters.items() if k != "options"}
            if time.monotonic() - began < 1:
                with contextlib.suppress(psycopg2.Error):
                    connection = psycopg2.connect(**bare)
            if connection is None:
                message = f"cannot watch the database: {_first_line(error)}"
                raise DatabaseUnavailable(message) from None
        self._connection, self._opened = connection, self._opened + 1
        connection.autocommit = True
        try:
            ((total, superuser, reserved, version, allowed, role, pid),) = self.rows(_LIMITS)
        except DatabaseUnavailable:
            self.close()
            raise
        # A pooler gives its clients process ids of its own.
        self.is_pooled = pid != connection.info.backend_pid
        self.role, self.sees_all = role, allowed
        if self._needs_all and not allowed:
            self.close()
            raise MonitoringNotAllowed(
                f"role {role} may not read other roles' activity; "
                f'as a superuser run: GRANT pg_monitor TO "{role}"'
            )
        self.limits = ServerLimits(
            max_connections=total,
            superuser_reserved=superuser,
            reserved=reserved,
            version=version.partition(" ")[0],
        )
        return self.limits

    def sample(self) -> Sample:
        """Query the server once.

        Raises:
            DatabaseUnavailable: it did not answer; if the connection is lost, `connect` again.
        """
        rows = self.rows(_SAMPLE)
        asked = time.time()
        sessions, xacts = rows[0][:2]
        return Sample(
            time=asked,
            backends=tuple(_backend(row) for row in rows if row[2]),
            sessions=sessions - self._opened,
            xacts=xacts,
            elsewhere=sum(row[2] is False for row in rows),
        )

    def oldest_idle_in_transaction(self) -> IdleTransaction | None:
        """Return the backend that has been idle in a transaction for longest; None if there is none.

        Raises:
            DatabaseUnavailable: the server did not answer; if the connection is lost, `connect` again.
        """
        rows = self.rows(_OLDEST_IDLE_IN_TRANSACTION)
        if not rows:
            return None
        pid, name, transaction_age_s, idle_s, query = rows[0]
        return IdleTransaction(
            pid=pid,
            application_name=name or "",
            transaction_age_s=max(0.0, transaction_age_s or 0.0),
            idle_s=max(0.0, idle_s or 0.0),
            query=query or "",
        )

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query, which has a time limit.

        Raises:
            DatabaseUnavailable: the server did not answer; if the connection is lost, `connect` again.
        """
        if self._connection is None:
            raise DatabaseUnavailable("not connected to the database")
        if self.is_pooled:
            # Both statements are one transaction, after which the pooler's connection is as before.
            query = f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}; {query}"
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall()
        except psycopg2.Error as error:
            # While the server is full, a closed connection cannot be opened again.
            if not isinstance(error, QueryCanceled):
                self.close()
            raise DatabaseUnavailable(
                f"the database did not answer: {_first_line(error)}"
            ) from None

    @property
    def is_lost(self) -> bool:
        """True without a connection; a query that exceeded its time limit does not end it."""
        return self._connection is None

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            with contextlib.suppress(psycopg2.Error):
                self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class ActivitySampler:
    """The sampler that queries the server in a thread of its own, at fixed moments.

    It connects before anything else fills the server and keeps that connection. When the
    server goes away, it records a gap and connects again. When a sample takes longer than the
    interval, the missed moments are counted and the schedule stays.

    Args:
        url: as of `ActivityConnection`, or an `ActivityConnection` that is not connected.
        interval_s: seconds from one sample to the next.
        sink: called with every sample, in the sampler's thread. Its exception ends the
            sampling and is raised again by `stop`.

    """

    def __init__(
        self,
        url: str | URL | ActivityConnection,
        *,
        interval_s: float = 0.1,
        sink: Callable[[Sample], None] | None = None,
    ) -> None:
        if not interval_s > 0:
            raise ValueError(f"interval_s must be above 0, not {interval_s!r}")
        self.interval_s = interval_s
        self.missed = 0
        """Moments of the schedule that passed without a sample."""
        self._activity = url if isinstance(url, ActivityConnection) else ActivityConnection(url)
        self.gaps: tuple[Gap, ...] = ()
        """The times without an answer of the server, so far."""
        self.latest: Sample | None = None
        """The newest sample."""
        self.cpu_s = 0.0
        """Processor time that the sampling thread has used, in seconds."""
        self._sink = sink
        self._failure: BaseException | None = None
        self._news = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> ServerLimits:
        """Connect, start the thread, and return the server's limits.

        Raises:
            DatabaseUnavailable: the server cannot be reached, or has no connection left.
            MonitoringNotAllowed: the role may not see other roles' activity.
        """
        limits = self._activity.connect()
        self._thread = threading.Thread(target=self._run, name="activity", daemon=True)
        self._thread.start()
        return limits

    def stop(self) -> None:
        """Stop sampling and close the connection.

        Raises:
            Exception: the exception of the sink, if it raised one.
        """
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._activity.close()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def wait_for(
        self, condition: Callable[[Sample], bool], timeout_s: float
    ) -> tuple[bool, Sample | None]:
        """Wait for a sample from now on that meets the condition.

        Returns:
            Whether one did within `timeout_s` seconds, and the newest sample.

        """
        asked, deadline = time.time(), time.monotonic() + timeout_s
        with self._news:
            while True:
                latest = self.latest
                if latest is not None and latest.time > asked and condition(latest):
                    return True, latest
                left = deadline - time.monotonic()
                if left <= 0 or self._thread is None or not self._thread.is_alive():
                    return False, latest
                self._news.wait(min(left, 1.0))

    def wait_until_no_backends(self, prefix: str = "", timeout_s: float = 5.0) -> int:
        """Wait until no backend's `<target>:<instance>` begins with `prefix`.

        Returns:
            The number of backends left after `timeout_s` seconds; 0 when all had ended.

        """
        found, latest = self.wait_for(lambda sample: not sample.of(prefix), timeout_s)
        return 0 if found or latest is None else len(latest.of(prefix))

    def settled_sessions(self, still_s: float = 0.3, timeout_s: float = 5.0) -> int | None:
        """Wait until no connection was opened for `still_s` seconds, and return the counter `sessions`.

        Returns:
            The newest value when `timeout_s` is over; None without any sample.

        """
        seen: list[tuple[float, int]] = []

        def is_still(sample: Sample) -> bool:
            if not seen or seen[-1][1] != sample.sessions:
                seen.append((sample.time, sample.sessions))
            return sample.time - seen[-1][0] >= still_s

        _, latest = self.wait_for(is_still, timeout_s)
        return None if latest is None else latest.sessions

    def _run(self) -> None:
        start, number = time.monotonic(), 0
        try:
            while True:
                # Skip the moments that passed while the last sample was taken.
                passed = int((time.monotonic() - start) / self.interval_s)
                self.missed += max(0, passed - number)
                number = max(number, passed) + 1
                try:
                    sample = self._activity.sample()
                except DatabaseUnavailable as error:
                    # The gap begins with the last sample and ends with a new connection.
                    begin = self.latest.time if self.latest else time.time()
                    while self._activity.is_lost and not self._stopping.is_set():
                        with contextlib.suppress(DatabaseUnavailable):
                            self._activity.connect()
                            break
                        self._stopping.wait(RECONNECT_EVERY_S)
                    gap = Gap(begin=begin, end=time.time(), reason=str(error))
                    self.gaps = (*self.gaps, gap)
                else:
                    if self._sink is not None:
                        self._sink(sample)
                    with self._news:
                        self.latest = sample
                        self._news.notify_all()
                self.cpu_s = time.thread_time()
                next_at = start + number * self.interval_s
                if self._stopping.wait(max(0.0, next_at - time.monotonic())):
                    return
        except BaseException as failure:  # noqa: BLE001  (raised again by stop())
            self._failure = failure
        finally:
            with self._news:
                self._news.notify_all()


def snapshot(url: str | URL) -> Sample:
    """Query the server once, over a connection opened for it.

    Raises:
        DatabaseUnavailable: the server cannot be reached, or has no connection left.
        MonitoringNotAllowed: the role may not see other roles' activity.
    """
    with ActivityConnection(url) as activity:
        return activity.sample()


def _first_line(error: psycopg2.Error) -> str:
    """Return the first line of the driver's message: the others repeat it for each address."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
