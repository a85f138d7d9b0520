"""The database over a synchronous engine: a whole unit of work in one worker thread.

FastAPI's own way, a generator as a dependency of a plain function, hops into a thread
three times per request: to begin, to run the endpoint, to end.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import event

from articles.operations import Operation, perform
from poolkit.config.engine import make_engine, start_engine
from poolkit.config.session import unit_of_work
from webapp.database import READY_WITHIN, deadline_of
from webapp.worker_threads import WorkerThreads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Engine
    from sqlalchemy.pool import Pool

    from poolkit.config.metrics import PoolMetrics, PoolSnapshot
    from poolkit.config.settings import Settings

T = TypeVar("T")


class ThreadedDatabase:
    """`Database` over a synchronous engine."""

    def __init__(self, engine: Engine, threads: WorkerThreads, metrics: PoolMetrics) -> None:
        self._engine = engine
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._threads = threads
        self._metrics = metrics

    async def run(self, operation: Operation[T], *, autocommit: bool = False) -> T:
        """See `Database.run`."""
        engine = self._autocommit if autocommit else self._engine
        return await self._threads.run(partial(_unit, engine, operation))

    async def check(self) -> None:
        """See `Database.check`."""
        # As many threads as connections: a free thread means a free connection.
        await self._threads.run_now(partial(_sign_of_life, self._autocommit), READY_WITHIN)

    def snapshot(self) -> PoolSnapshot:
        """See `Database.snapshot`."""
        return self._metrics.snapshot(self._engine.pool)


@asynccontextmanager
async def open_threaded_database(
    settings: Settings, metrics: PoolMetrics
) -> AsyncIterator[ThreadedDatabase]:
    """Make the engine and the threads, start them, and end them afterwards.

    Raises:
        DatabaseUnavailable: there is no database, and the preset says `fail_fast`.
    """
    preset = settings.preset
    engine = make_engine(settings, metrics)
    threads = WorkerThreads(
        preset.max_connections_per_process,
        patience=preset.pool_timeout,
        deadline=deadline_of(preset),
        metrics=metrics,
    )
    _note_sockets(engine.pool, threads)
    try:
        await asyncio.to_thread(start_engine, engine, settings)
        yield ThreadedDatabase(engine, threads, metrics)
    finally:
        threads.close()
        engine.dispose()


def _unit(engine: Engine, operation: Operation[T]) -> T:
    with unit_of_work(engine) as connection:
        return perform(connection, operation)


def _sign_of_life(engine: Engine) -> None:
    with unit_of_work(engine) as connection:
        connection.exec_driver_sql("SELECT 1")


def _note_sockets(pool: Pool, threads: WorkerThreads) -> None:
    """Keep each job informed of the socket it waits on, for `Job.hang_up`."""

    def on_checkout(connection: Any, *_: Any) -> None:
        if job := threads.current_job():
            fileno = getattr(connection, "fileno", None)
            job.holds(fileno() if fileno else None)

    def on_leave(*_: Any) -> None:
        if job := threads.current_job():
            job.holds(None)

    # First, for the preset's own check at checkout may wait for the server, too.
    event.listen(pool, "checkout", on_checkout, insert=True)
    event.listen(pool, "checkin", on_leave, insert=True)
    event.listen(pool, "close", on_leave, insert=True)
