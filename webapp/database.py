"""What an endpoint asks of the database, whichever engine is behind it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeAlias, TypeVar

from fastapi import Depends, Request

from articles.operations import Operation
from poolkit.config.metrics import PoolMetrics, PoolSnapshot
from poolkit.config.presets import EnginePreset
from poolkit.config.settings import Settings
from webapp.configuration import WebSettings

T = TypeVar("T")

MARGIN = 2.0
"""Seconds that the server's own limits get to strike first, for their errors say more."""

READY_WITHIN = 2.0
"""Seconds that a readiness check may take: less than what an orchestrator waits."""


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
        """Ask the database for a sign of life, without waiting for a connection.

        Raises:
            PoolExhausted: every connection is checked out.
            DatabaseUnavailable: there is none, or it does not answer within READY_WITHIN.
        """
        ...

    def snapshot(self) -> PoolSnapshot:
        """Return what the pool does and did."""
        ...


OpenDatabase: TypeAlias = Callable[[Settings, PoolMetrics], AbstractAsyncContextManager[Database]]
"""Makes the engine and opens the first connections; disposes of it at the end."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the lifespan makes; an application has it as `app.state.resources`."""

    database: Database
    settings: Settings
    web: WebSettings


# Asynchronous though it waits for nothing: FastAPI runs a plain function in a thread.
async def _database_of(request: Request) -> Database:
    resources: Resources = request.app.state.resources
    return resources.database


DatabaseDependency = Annotated[Database, Depends(_database_of)]


def deadline_of(preset: EnginePreset) -> float | None:
    """Return how many seconds a unit of work may take, the wait for its turn not counted.

    `statement_timeout` is kept by the server, so a server that has stopped does not keep
    it; this is for that case. None where the preset sets no limit.
    """
    if not preset.statement_timeout:
        return None
    return preset.connect_timeout + preset.statement_timeout / 1000 + MARGIN
