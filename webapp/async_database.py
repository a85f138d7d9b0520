"""The database over an asynchronous engine: a whole unit of work in the request's task."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from articles.operations import Operation, perform_async
from poolkit.config.engine import make_async_engine, start_async_engine
from poolkit.config.session import unit_of_work_async
from poolkit.errors import DatabaseUnavailable, PoolExhausted
from webapp.database import READY_WITHIN, deadline_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolkit.config.metrics import PoolMetrics, PoolSnapshot
    from poolkit.config.settings import Settings

T = TypeVar("T")


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
        DatabaseUnavailable: there is no database, and the preset says `fail_fast`.
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
