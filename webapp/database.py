"""The database as the endpoints see it: one interface, over two kinds of engine.

The synchronous engine runs a whole unit of work in one worker thread. FastAPI's own way, a
generator as a dependency of a plain function, hops into a thread three times per request: to
begin, to run the endpoint, to end.

The asynchronous engine runs a whole unit of work in the request's task.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeAlias, TypeVar

from articles.operations import Operation, perform, perform_async
from fastapi import Depends, Request
from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine

from poolkit.config.engine import (
    make_async_engine,
    make_engine,
    start_async_engine,
    start_engine,
)
from poolkit.config.metrics import PoolMetrics, PoolSnapshot
from poolkit.config.presets import EnginePreset
from poolkit.config.session import unit_of_work, unit_of_work_async
from poolkit.config.settings import Settings
from poolkit.errors import DatabaseUnavailable, PoolExhausted
from webapp.configuration import WebSettings
from webapp.worker_threads import WorkerThreads

T = TypeVar("T")

MARGIN = 2.0
"""Seconds that the server's own limits get to strike first, because their errors say more."""

READY_WITHIN = 2.0
"""Seconds that a readiness check may take: less than an orchestrator's own limit."""


class Database(Protocol):
    """The database as a dependency of an endpoint; each call is one unit of work."""

    async def run(self, operation: Operation[T], *, autocommit: bool = False) -> T:
        """Run an operation in a transaction of its own, committed before this returns.

        Args:
            operation: as `articles.operations` makes them.
            autocommit: without BEGIN and COMMIT, which saves two round trips; for an
                operation that is one statement.

        Raises:
            PoolExhausted: no connection became free within `pool_timeout`.
            DatabaseUnavailable: there is no database, or it does not answer.
            StatementTimeout: a statement took longer than `statement_timeout`.
        """
        ...

    async def check(self) -> None:
        """Send the database a statement, without waiting for a connection.

        Raises:
            PoolExhausted: every connection is checked out.
            DatabaseUnavailable: there is none, or it does not answer within READY_WITHIN.
        """
        ...

    def snapshot(self) -> PoolSnapshot:
        """Return the pool's state and its counters."""
        ...


OpenDatabase: TypeAlias = Callable[[Settings, PoolMetrics], AbstractAsyncContextManager[Database]]
"""Makes the engine and opens the first connections; disposes of it at the end."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The product of the lifespan; an application has it as `app.state.resources`."""

    database: Database
    settings: Settings
    web: WebSettings


# Asynchronous though it waits for nothing: FastAPI runs a plain function in a thread.
async def database_of(request: Request) -> Database:
    """Return the application's database; a dependency."""
    resources: Resources = request.app.state.resources
    return resources.database


DatabaseDependency = Annotated[Database, Depends(database_of)]


def deadline_of(preset: EnginePreset) -> float | None:
    """Return the time limit of a unit of work in seconds, without the wait for its connection.

    The server enforces `statement_timeout`, so a server that has stopped does not enforce it.
    This limit is for that case. None where the preset sets no limit.
    """
    if not preset.statement_timeout:
        return None
    return preset.connect_timeout + preset.statement_timeout / 1000 + MARGIN


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

        def work() -> T:
            with unit_of_work(engine) as connection:
                return perform(connection, operation)

        return await self._threads.run(work)

    async def check(self) -> None:
        """See `Database.check`."""

        def work() -> None:
            with unit_of_work(self._autocommit) as connection:
                connection.exec_driver_sql("SELECT 1")

        # As many threads as connections: a free thread means a free connection.
        await self._threads.run_now(work, READY_WITHIN)

    def snapshot(self) -> PoolSnapshot:
        """See `Database.snapshot`."""
        return self._metrics.snapshot(self._engine.pool)


@asynccontextmanager
async def open_threaded_database(
    settings: Settings, metrics: PoolMetrics
) -> AsyncIterator[ThreadedDatabase]:
    """Make the engine and the threads, start them, and end them afterwards.

    Raises:
        DatabaseUnavailable: there is no database, and the preset has `fail_fast`.
    """
    preset = settings.preset
    engine = make_engine(settings, metrics)
    threads = WorkerThreads(
        preset.max_connections_per_process,
        patience=preset.pool_timeout,
        deadline=deadline_of(preset),
        metrics=metrics,
    )

    # Each job has the socket that its thread waits on, for `Job.hang_up`.
    def on_checkout(connection: Any, *_: Any) -> None:
        if job := threads.current_job():
            fileno = getattr(connection, "fileno", None)
            job.holds(fileno() if fileno else None)

    def on_leave(*_: Any) -> None:
        if job := threads.current_job():
            job.holds(None)

    # First in the list, because the preset's own check at checkout may wait for the server, too.
    event.listen(engine.pool, "checkout", on_checkout, insert=True)
    event.listen(engine.pool, "checkin", on_leave, insert=True)
    event.listen(engine.pool, "close", on_leave, insert=True)
    try:
        await asyncio.to_thread(start_engine, engine, settings)
        yield ThreadedDatabase(engine, threads, metrics)
    finally:
        threads.close()
        engine.dispose()


class AsyncDatabase:
    """`Database` over an asynchronous engine."""

    def __init__(self, engine: AsyncEngine, settings: Settings, metrics: PoolMetrics) -> None:
        preset = settings.preset
        self._engine = engine
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._connections = preset.max_connections_per_process
        deadline = deadline_of(preset)
        # Unlike a thread's, the wait for a connection is part of the task's time.
        self._deadline = None if deadline is None else deadline + preset.pool_timeout
        self._metrics = metrics

    async def run(self, operation: Operation[T], *, autocommit: bool = False) -> T:
        """See `Database.run`."""
        engine = self._autocommit if autocommit else self._engine
        async with _deadline(self._deadline), unit_of_work_async(engine) as connection:
            return await perform_async(connection, operation)

    async def check(self) -> None:
        """See `Database.check`."""
        if self.snapshot().checked_out >= self._connections:
            raise PoolExhausted(f"all {self._connections} connections are checked out")
        async with (
            _deadline(READY_WITHIN),
            unit_of_work_async(self._autocommit) as connection,
        ):
            await connection.exec_driver_sql("SELECT 1")

    def snapshot(self) -> PoolSnapshot:
        """See `Database.snapshot`."""
        return self._metrics.snapshot(self._engine.pool)


@asynccontextmanager
async def open_async_database(
    settings: Settings, metrics: PoolMetrics
) -> AsyncIterator[AsyncDatabase]:
    """Make the engine, start it, and dispose of it afterwards.

    Raises:
        DatabaseUnavailable: there is no database, and the preset has `fail_fast`.
    """
    engine = make_async_engine(settings, metrics)
    try:
        await start_async_engine(engine, settings)
        yield AsyncDatabase(engine, settings, metrics)
    finally:
        await engine.dispose()


@asynccontextmanager
async def _deadline(seconds: float | None) -> AsyncIterator[None]:
    timeout = asyncio.timeout(seconds)
    try:
        async with timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise DatabaseUnavailable(f"no answer within {seconds:g} s") from None
