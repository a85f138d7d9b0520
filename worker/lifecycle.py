"""The engine and the logs of each process, from its start to its end.

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
import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery import signals
from celery._state import get_current_task
from sqlalchemy import event

from poolkit.config.engine import make_engine, start_engine
from poolkit.config.settings import Settings
from poolkit.errors import ConfigurationError, PoolkitError
from worker.reception import bury_unreadable

if TYPE_CHECKING:
    from celery import Celery
    from kombu.message import Message
    from sqlalchemy.engine import Engine

    from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

# The pools that run here, and whether their tasks run in child processes. gevent and eventlet
# would share one psycopg2 connection's wait among all tasks: psycopg2 waits inside C, where they
# cannot switch.
_POOLS = {"prefork": True, "threads": False, "thread": False, "solo": False}

CLIENT_CHECK_INTERVAL = 1_000
"""Milliseconds between the server's checks that its client still lives.

Without it a backend whose client was killed in the middle of a statement runs that
statement to its end, and keeps its locks and its connection until then (PostgreSQL 14+,
20.3.2, `client_connection_check_interval`)."""


class Database:
    """The engine of one process; refuses to be used in any other, such as a fork."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._pid = 0

    @property
    def engine(self) -> Engine:
        """The engine of this process.

        Raises:
            RuntimeError: there is none, or it was opened before a fork.
        """
        if self._engine is None:
            raise RuntimeError("the database is not open in this process; call open() first")
        if self._pid != os.getpid():
            raise RuntimeError(
                f"the engine was opened in process {self._pid} and must not be used in its fork "
                f"{os.getpid()}: both would talk over the same connections"
            )
        return self._engine

    def open(self, settings: Settings) -> None:
        """Make the engine, and open the connections that the preset asks for at start.

        Raises:
            DatabaseUnavailable: there is no database, and the preset has `fail_fast`.
        """
        if self._pid != os.getpid():
            # Inherited from a parent that still uses its connections: `close` only forgets them.
            self.close()
        engine = make_engine(settings)
        if engine.dialect.name == "postgresql" and not settings.preset.transaction_pooling:

            @event.listens_for(engine, "connect")
            def check_for_dead_client(connection: Any, record: Any) -> None:
                with contextlib.closing(connection.cursor()) as cursor:
                    cursor.execute(
                        "SELECT set_config(name, %s, false) FROM pg_settings"
                        " WHERE name = 'client_connection_check_interval'",
                        (str(CLIENT_CHECK_INTERVAL),),
                    )
                connection.commit()

        self._engine, self._pid = engine, os.getpid()
        start_engine(engine, settings)

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose(close=self._pid == os.getpid())


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object; a line feed in a message stays inside its string."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        # None outside a task, which the stubs do not say.
        task: Any = get_current_task()
        if task is not None:
            line |= {"task": task.name, "task_id": task.request.id, "retries": task.request.retries}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Lifecycle:
    """Celery's signals, connected to the database, the logs and the ready file."""

    def __init__(self, app: Celery, settings: WorkerSettings, database: Database) -> None:
        self.app = app
        self.settings = settings
        self.database = database
        self._child: Settings | None = None

    def connect(self) -> None:
        """Connect the receivers."""
        for signal, receiver in (
            (signals.setup_logging, self.on_setup_logging),
            (signals.worker_init, self.on_worker_init),
            (signals.worker_process_init, self.on_child_start),
            (signals.worker_process_shutdown, self.on_child_end),
            (signals.worker_ready, self.on_worker_ready),
            (signals.worker_shutting_down, self.on_worker_shutting_down),
            (signals.worker_shutdown, self.on_worker_shutdown),
            (signals.task_unknown, self.on_unreadable),
            (signals.task_rejected, self.on_unreadable),
        ):
            signal.connect(receiver, weak=False)

    def on_setup_logging(self, **kwargs: Any) -> None:
        """Send JSON lines to standard error, instead of Celery's logs; a second call adds none."""
        root = logging.getLogger()
        root.setLevel(self.settings.log_level)
        if not any(isinstance(handler.formatter, JsonFormatter) for handler in root.handlers):
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(JsonFormatter())
            root.handlers = [handler]

    def on_worker_init(self, sender: Any, **kwargs: Any) -> None:
        """Read the database's settings; a worker whose tasks are threads opens it here.

        Raises:
            SystemExit: the settings are wrong; with the reason on standard error.
        """
        # The name of the pool, which is an alias, or the class that Celery's CLI has loaded.
        pool: Any = sender.pool_cls
        module = pool if isinstance(pool, str) else str(pool.__module__)
        try:
            self._open(module.partition(":")[0].rpartition(".")[2], sender.concurrency)
        except Exception as error:
            # Celery logs what a receiver raises, and goes on; only this ends the worker.
            raise SystemExit(f"the worker does not start: {error}") from error

    def _open(self, pool: str, concurrency: int) -> None:
        """Open the database, or prepare what each child opens: a connection for each task."""
        settings = Settings.from_environ(default_target="worker", allowed_targets=("worker",))
        if pool not in _POOLS:
            raise ConfigurationError(
                f"the pool {pool!r} does not run here: psycopg2 waits where greenlets cannot "
                "switch, so one statement would stop all tasks; use prefork, threads or solo"
            )
        # psycopg2 waits in C, where the soft limit's signal is not seen, so the server has to end
        # the statement. At 90 % of the limit, or the task would see the signal when the wait ends.
        soft_limit = self.settings.task_soft_time_limit * 900
        preset = settings.preset
        preset = preset.replace(
            statement_timeout=min(preset.statement_timeout or soft_limit, soft_limit)
        )
        if _POOLS[pool] or pool == "solo" or concurrency == 1:
            preset = preset.per_task()
        elif preset.max_connections_per_process < concurrency:
            preset = preset.replace(pool_size=concurrency, max_overflow=0)
        settings = dataclasses.replace(settings, preset=preset)
        if not _POOLS[pool]:
            self.database.open(settings)
            return
        self._child = settings
        if preset.fail_fast:
            # Before the fork, so that it is one clear error instead of children that fail.
            self.database.open(settings)
            self.database.close()

    def on_child_start(self, **kwargs: Any) -> None:
        """Open the engine of a prefork child, after the fork."""
        if self._child is None:
            return
        try:
            self.database.open(self._child)
        except PoolkitError as error:
            logger.warning("the database was not there when the child started: %s", error)

    def on_child_end(self, **kwargs: Any) -> None:
        """Close a prefork child's connections while the child still runs."""
        self.database.close()
        logger.debug("the child's connections are closed")

    def on_worker_ready(self, **kwargs: Any) -> None:
        """Report that the worker takes tasks: in the log, and by the ready file."""
        if self.settings.ready_file is not None:
            self.settings.ready_file.write_text("ready\n")
        logger.info("worker ready: queue %s", self.settings.queue)

    def on_worker_shutting_down(self, **kwargs: Any) -> None:
        """Remove the ready file: the worker takes no more tasks."""
        if self.settings.ready_file is not None:
            with contextlib.suppress(OSError):
                self.settings.ready_file.unlink(missing_ok=True)

    def on_worker_shutdown(self, **kwargs: Any) -> None:
        """Close the engine of a worker without children."""
        self.database.close()

    def on_unreadable(self, message: Message, exc: Any = None, **kwargs: Any) -> None:
        """Send a message that is no task of this worker to the dead-letter table."""
        bury_unreadable(self.app, message, exc)
