"""The database of a Celery application: one engine in each process.

When a child ends, and how its connection is closed (Celery 5.7, billiard 4.3):

* warm shutdown and recycling (`max_tasks_per_child`): billiard calls the child's
  `worker_process_shutdown` before `os._exit`, so the engine is disposed of and the server
  gets a proper end of the session;
* the hard time limit: SIGTERM, and 0.1 s later SIGKILL, so mostly nothing of the child runs.
  The kernel closes the socket; the server notices at once when idle, and within
  CLIENT_CHECK_INTERVAL in the middle of a statement;
* the worker itself killed: each child has asked the kernel to be killed with its parent
  (Linux), and its connection ends as with the time limit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from celery import signals
from sqlalchemy import event
from sqlalchemy.orm import sessionmaker

from poolkit.celery.limits import (
    GREENLETS,
    check_capacity,
    check_features,
    check_limits,
    most_tasks,
    pool_of,
)
from poolkit.celery.queues import stamp_sent_time
from poolkit.config.engine import make_engine, start_engine
from poolkit.config.holds import Unit, unit
from poolkit.config.metrics import PoolMetrics, PoolSnapshot
from poolkit.config.session import unit_of_work
from poolkit.config.settings import Settings
from poolkit.errors import ConfigurationError, PoolkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session

__all__ = ("CLIENT_CHECK_INTERVAL", "Database")

logger = logging.getLogger(__name__)

CLIENT_CHECK_INTERVAL: Final = 1_000
"""Milliseconds between the server's checks that its client still lives.

Without it a backend whose client was killed in the middle of a statement runs that
statement to its end, and keeps its locks and its connection until then (PostgreSQL 14+,
20.3.2, `client_connection_check_interval`)."""

_databases: WeakKeyDictionary[Celery, Database] = WeakKeyDictionary()


class Database:
    """The engine of each process of a Celery application, with units of work and sessions.

        app = Celery("shop", broker="redis://localhost:6379/0")
        database = Database(app)

        @app.task
        def count_orders() -> int:
            with database.session() as session:
                return session.scalar(select(func.count(Order.id)))

    A worker reads the settings when it starts. A child process makes its engine after the fork,
    connects for its first task, and disconnects before it ends. A pool of threads shares one engine. In any other process (a web
    application that runs a task eagerly, a shell) the engine is made at its first use. An engine
    that was made before a fork is never used after it.

    A worker sizes its pools to the tasks that run at once: one connection in a child process or in
    a solo worker, and at least one for each thread. A soft time limit shortens
    `statement_timeout`: psycopg2 waits in C, where the limit's signal is not seen.

    Args:
        app: the Celery application; this connects its signals and opens nothing.
        default_target: the preset, where POOLKIT_TARGET is not set.
        settings: returns the settings; by default `Settings.from_environ`.
        sessions: makes the sessions, for instance `sessionmaker(class_=sqlmodel.Session)`; it is
            bound to the engine of its process.
    """

    def __init__(
        self,
        app: Celery,
        *,
        default_target: str = "worker",
        settings: Callable[[], Settings] | None = None,
        sessions: sessionmaker[Session] | None = None,
    ) -> None:
        self.app = app
        self.metrics = PoolMetrics()
        """Counters of this process's pool."""
        self._read = settings or (lambda: Settings.from_environ(default_target=default_target))
        self._sessions = sessions or sessionmaker()
        self._settings: Settings | None = None
        self._opened: tuple[int, Engine] | None = None
        self._opening = threading.Lock()
        self._units: dict[str, Unit] = {}
        _databases[app] = self
        stamp_sent_time()
        for signal, receiver in (
            (signals.worker_init, self._on_worker_init),
            (signals.worker_process_init, self._on_process_init),
            (signals.worker_process_shutdown, self._on_shutdown),
            (signals.worker_shutdown, self._on_shutdown),
            (signals.task_prerun, self._on_task_start),
            (signals.task_postrun, self._on_task_end),
        ):
            signal.connect(receiver, weak=False)

    @classmethod
    def of(cls, app: Celery) -> Database:
        """Return the database of an application, the latest if there are several.

        Raises:
            ConfigurationError: it has none.
        """
        found = _databases.get(app)
        if found is None:
            raise ConfigurationError(
                f"the Celery application {app.main!r} has no database; write "
                "`database = poolkit.celery.Database(app)` where the application is made"
            )
        return found

    @property
    def engine(self) -> Engine:
        """The engine of this process, made at its first use.

        Raises:
            ConfigurationError: the settings are wrong.
        """
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            return self._open()
        return opened[1]

    @property
    def target(self) -> str:
        """The target of the settings, such as `worker`."""
        return (self._settings or self._read()).target

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """Return a Session in a transaction: committed at the end, rolled back on any exception.

        Raises:
            PoolExhausted, DatabaseUnavailable, StatementTimeout: see `poolkit.unit_of_work`.
        """
        self.engine  # noqa: B018  (it binds the sessions)
        with unit_of_work(self._sessions) as session:
            yield session

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """Return a Connection in a transaction; otherwise as `session`."""
        with unit_of_work(self.engine) as connection:
            yield connection

    def snapshot(self) -> PoolSnapshot:
        """Return the state and the counters of this process's pool; zeros before its first use."""
        opened = self._opened
        pool: Any = opened[1].pool if opened is not None and opened[0] == os.getpid() else None
        return self.metrics.snapshot(pool)

    def close(self) -> None:
        """Close the connections of this process; a second call does nothing."""
        opened, self._opened = self._opened, None
        if opened is not None:
            pid, engine = opened
            # Of a parent process: it still uses these connections.
            engine.dispose(close=pid == os.getpid())

    def _open(self, *, connect: bool = True) -> Engine:
        """Make the engine, and open the connections that the preset asks for at start."""
        with self._opening:
            # Another thread may have been here first.
            if self._opened is not None and self._opened[0] == os.getpid():
                return self._opened[1]
            self.close()
            settings = self._settings or self._read()
            self.metrics = PoolMetrics()
            engine = make_engine(settings, self.metrics)
            if engine.dialect.name == "postgresql" and not settings.preset.transaction_pooling:
                event.listen(engine, "connect", _check_for_dead_client)
            self._sessions.configure(bind=engine)
            self._opened = os.getpid(), engine
            if connect:
                start_engine(engine, settings)
            return engine

    # -- Celery's signals -------------------------------------------------------------------

    def _on_worker_init(self, sender: Any, **kwargs: Any) -> None:
        """Read the settings; a worker without child processes opens its engine here.

        Raises:
            SystemExit: the settings are wrong; with the reason on standard error.
        """
        if sender.app is not self.app:
            return
        try:
            self._settings = settings = self._settings_for(sender)
            if pool_of(sender) in ("thread", "threads", "solo", *GREENLETS):
                self._open()
            elif settings.preset.fail_fast:
                # Before the fork, so that it is one clear error instead of children that fail.
                self._open()
                self.close()
        except Exception as error:
            # Celery logs what a receiver raises, and goes on; only this ends the worker.
            raise SystemExit(f"the worker does not start: {error}") from error

    def _settings_for(self, worker: Any) -> Settings:
        """Return the settings with a pool for the tasks that run at once, and checked limits."""
        pool, concurrency = pool_of(worker), most_tasks(worker)
        settings = self._read()
        preset = settings.preset
        check_features(self.app, worker, settings)
        check_limits(self.app, worker, strict=preset.environment != "dev")
        limits = [limit for limit in (worker.soft_time_limit, worker.time_limit) if limit]
        if limits:
            # At 90 % of the limit, in milliseconds, so that the server's error comes first.
            limit = int(min(limits) * 900)
            preset = preset.replace(statement_timeout=min(preset.statement_timeout or limit, limit))
        if pool in ("prefork", "processes", "solo") or concurrency == 1:
            preset = preset.per_task()
        elif (
            pool in ("thread", "threads")
            and concurrency is not None
            and preset.max_connections_per_process < concurrency
        ):
            # Each task of a thread may hold a connection. Greenlets are too many for that.
            preset = preset.replace(pool_size=concurrency, max_overflow=0)
        settings = dataclasses.replace(settings, preset=preset)
        processes = concurrency if pool in ("prefork", "processes") else 1
        if processes is not None:
            check_capacity(settings, processes * preset.max_connections_per_process)
        return settings

    def _on_process_init(self, **kwargs: Any) -> None:
        """Open the engine of a child process, after the fork."""
        # A thread of the parent may have held it at the moment of the fork.
        self._opening = threading.Lock()
        try:
            if self._settings is None:
                # A child that was spawned, not forked, has not seen the worker's start.
                settings = self._read()
                self._settings = dataclasses.replace(settings, preset=settings.preset.per_task())
            # Without a connection: a child that is not up within `worker_proc_alive_timeout`, 4 s, is
            # killed and replaced. While the database does not answer, none would ever be.
            self._open(connect=False)
        except PoolkitError as error:
            logger.warning("the child has no database: %s", error)

    def _on_shutdown(self, **kwargs: Any) -> None:
        """Close the connections of a child, or of a worker without children, while it still runs."""
        self.close()
        logger.debug("this process's connections are closed")

    def _on_task_start(self, task_id: str, task: Any, **kwargs: Any) -> None:
        """Begin the task's unit of work, which has its name."""
        if task.app is self.app:
            self._units[task_id] = unit(task.name).__enter__()

    def _on_task_end(self, task_id: str, task: Any = None, **kwargs: Any) -> None:
        """Report a task that kept its connection."""
        work = self._units.pop(task_id, None)
        if work is None:
            return
        out = work.still_out()
        work.responded()
        work.close()
        opened = self._opened
        if self._settings is None or opened is None or opened[0] != os.getpid():
            return
        alone = self._settings.preset.max_connections_per_process == 1
        if not out and alone:  # without a measurement of holds; NullPool does not count
            out = [""] * getattr(opened[1].pool, "checkedout", int)()
        if out:
            consequence = ", so the next task will find none" if alone else ""
            lines = " and ".join(sorted({line for line in out if line})) or "a line not taken"
            logger.error(
                "task %s has ended and still holds %d connection(s)%s; checked out at %s; "
                "close the session, or use `with database.session()`",
                work.label,
                len(out),
                consequence,
                lines,
            )


def _check_for_dead_client(connection: Any, record: Any) -> None:
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(
            "SELECT set_config(name, %s, false) FROM pg_settings"
            " WHERE name = 'client_connection_check_interval'",
            (str(CLIENT_CHECK_INTERVAL),),
        )
    connection.commit()
