"""Running operations on either driver, so that one test is for both."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

Run: TypeAlias = Callable[..., Any]


@pytest.fixture(params=["psycopg2", "asyncpg"])
def run(request, migrated_database) -> Iterator[Run]:
    """Call an operation in a transaction of its own, through each driver in turn."""
    url = migrated_database.url(request.param)
    yield from _asynchronous(url) if request.param == "asyncpg" else _synchronous(url)


def _synchronous(url: str) -> Iterator[Run]:
    engine = create_engine(url)

    def run(operation: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            return operation(session, *args, **kwargs)

    yield run
    engine.dispose()


def _asynchronous(url: str) -> Iterator[Run]:
    engine = create_async_engine(url)

    async def run(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
            return await session.run_sync(operation, *args, **kwargs)

    with asyncio.Runner() as runner:
        yield lambda *args, **kwargs: runner.run(run(*args, **kwargs))
        runner.run(engine.dispose())
