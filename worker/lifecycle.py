"""What happens when a worker, or one of its children, starts and ends.

When a child ends, and who closes its connection (Celery 5.7, billiard 4.3):

* warm shutdown and recycling (`max_tasks_per_child`): billiard calls the child's
  `worker_process_shutdown` before `os._exit`, so the engine is disposed and the server
  gets a proper goodbye;
* the hard time limit: SIGTERM, and 0.1 s later SIGKILL, so mostly nothing of the child runs.
  The kernel closes the socket; the server notices at once when idle, and within
  `database.CLIENT_CHECK_INTERVAL` in the middle of a statement;
* the worker itself killed: each child has asked the kernel to be killed with its parent
  (Linux), and it goes as with the time limit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from celery import signals

from poolkit.config.settings import Settings
from poolkit.errors import ConfigurationError, PoolkitError
from worker import logs
from worker.reception import bury_unreadable

if TYPE_CHECKING:
    from celery import Celery
    from kombu.message import Message

    from poolkit.config.presets import EnginePreset
    from worker.database import Database
    from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

# gevent and eventlet would share one psycopg2 connection's wait among all tasks: psycopg2
# waits inside C, where they cannot switch.
_POOLS = {"prefork": True, "threads": False, "thread": False, "solo": False}


class Lifecycle:
    """Celery's signals, connected to the database, the logs and the ready file."""

    def __init__(self, app: Celery, settings: WorkerSettings, database: Database) -> None:
        self.app = app
        self.settings = settings
        self.database = database
        self._child: Settings | None = None

    def connect(self) -> None:
        """Listen from now on."""
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
        """Set up the logs instead of Celery."""
        logs.configure(self.settings.log_level)

    def on_worker_init(self, sender: Any, **kwargs: Any) -> None:
        """Read the database's settings; a worker whose tasks are threads opens it here.

        Raises:
            SystemExit: the settings are wrong; with the reason on standard error.
        """
        try:
            self._prepare(_pool_name(sender.pool_cls), sender.concurrency)
        except Exception as error:
            # Celery logs what a receiver raises, and goes on; only this ends the worker.
            raise SystemExit(f"the worker does not start: {error}") from error

    def _prepare(self, pool: str, concurrency: int) -> None:
        settings = Settings.from_environ(default_target="worker", allowed_targets=("worker",))
        if pool not in _POOLS:
            raise ConfigurationError(
                f"the pool {pool!r} does not run here: psycopg2 waits where greenlets cannot "
                "switch, so one statement would stop all tasks; use prefork, threads or solo"
            )
        preset = self._fitted(settings.preset, 1 if pool == "solo" else concurrency)
        if not _POOLS[pool]:
            self.database.open(_with_preset(settings, preset))
            return
        self._child = _with_preset(settings, preset.per_task())
        if preset.fail_fast:
            # Before the fork, so that it is one clear error instead of children that fail.
            self.database.open(self._child)
            self.database.close()

    def _fitted(self, preset: EnginePreset, concurrency: int) -> EnginePreset:
        """Return the preset with a connection for each task, and no statement without end."""
        # psycopg2 waits in C, where the soft limit's signal is not seen: let the server strike.
        # A little before it, or the signal would be what the task sees when the wait ends.
        soft_limit = self.settings.task_soft_time_limit * 900
        preset = preset.replace(
            statement_timeout=min(preset.statement_timeout or soft_limit, soft_limit)
        )
        if concurrency == 1:
            return preset.per_task()
        if preset.max_connections_per_process < concurrency:
            return preset.replace(pool_size=concurrency, max_overflow=0)
        return preset

    def on_child_start(self, **kwargs: Any) -> None:
        """Open the engine of a prefork child, after the fork."""
        if self._child is None:
            return
        try:
            self.database.open(self._child)
        except PoolkitError as error:
            logger.warning("the database was not there when the child started: %s", error)

    def on_child_end(self, **kwargs: Any) -> None:
        """Close a prefork child's connections, as long as anything of it still runs."""
        self.database.close()
        logger.debug("the child's connections are closed")

    def on_worker_ready(self, **kwargs: Any) -> None:
        """Say that tasks are being taken: in the log, and by the ready file."""
        if self.settings.ready_file is not None:
            self.settings.ready_file.write_text("ready\n")
        logger.info("worker ready: queue %s", self.settings.queue)

    def on_worker_shutting_down(self, **kwargs: Any) -> None:
        """Say that no more tasks are being taken."""
        if self.settings.ready_file is not None:
            with contextlib.suppress(OSError):
                self.settings.ready_file.unlink(missing_ok=True)

    def on_worker_shutdown(self, **kwargs: Any) -> None:
        """Close what a worker without children opened."""
        self.database.close()

    def on_unreadable(self, message: Message, exc: Any = None, **kwargs: Any) -> None:
        """Put a message that is no task of ours on its way to the dead-letter table."""
        bury_unreadable(self.app, message, exc)


def _pool_name(pool: Any) -> str:
    """Return the pool's name, be it given as an alias or as the class that the CLI has loaded."""
    module = pool if isinstance(pool, str) else str(pool.__module__)
    return module.partition(":")[0].rpartition(".")[2]


def _with_preset(settings: Settings, preset: EnginePreset) -> Settings:
    return dataclasses.replace(settings, preset=preset)
