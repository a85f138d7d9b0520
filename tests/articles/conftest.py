"""Running operations on either driver, so that one test is for both."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from articles.operations import Operation, perform, perform_async

Run: TypeAlias = Callable[[Operation[Any]], Any]


@pytest.fixture(params=["psycopg2", "asyncpg"])
def run(request, migrated_database) -> Iterator[Run]:
    """Run an operation in a transaction of its own, through each driver in turn."""
    url = migrated_database.url(request.param)
    yield from _asynchronous(url) if request.param == "asyncpg" else _synchronous(url)


def _synchronous(url: str) -> Iterator[Run]:
    engine = create_engine(url)

    def run(operation: Operation[Any]) -> Any:
        with engine.begin() as connection:
            return perform(connection, operation)

    yield run
    engine.dispose()


def _asynchronous(url: str) -> Iterator[Run]:
    engine = create_async_engine(url)

    async def run(operation: Operation[Any]) -> Any:
        async with engine.begin() as connection:
            return await perform_async(connection, operation)

    with asyncio.Runner() as runner:
        yield lambda operation: runner.run(run(operation))
        runner.run(engine.dispose())
