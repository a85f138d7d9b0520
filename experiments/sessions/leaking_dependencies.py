"""Does a dependency prevent leaks that a session made by hand has?

You may have read that an AsyncSession that is never closed leaks its connection (2.21). A dependency is said
to clean up where a session made in the handler does not (2.22), although the bad example has a `finally`.

Each handler serves as many requests as the pool has connections. Their query fails. Then the connections are
counted that are out, and those that a garbage collection kills. `--set handler=succeeds` lets them succeed.
"""

import asyncio
import gc
import logging
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from poolkit.experiment import Lab, experiment

Maker = async_sessionmaker[AsyncSession]
Handler = Callable[[Maker, str], Awaitable[None]]


async def not_closed(session_maker: Maker, sql: str) -> None:
    session = session_maker()
    await session.execute(text(sql))


async def closed_at_the_end(session_maker: Maker, sql: str) -> None:
    session = session_maker()
    await session.execute(text(sql))
    await session.close()


async def closed_in_finally(session_maker: Maker, sql: str) -> None:
    session = session_maker()
    try:
        await session.execute(text(sql))
    finally:
        await session.close()


async def get_db(session_maker: Maker) -> AsyncIterator[AsyncSession]:
    async with session_maker() as session:
        yield session


async def get_db_without_finally(session_maker: Maker) -> AsyncIterator[AsyncSession]:
    session = session_maker()
    yield session
    await session.close()


def using(dependency: Callable[[Maker], AsyncIterator[AsyncSession]]) -> Handler:
    """Return a handler with a dependency: FastAPI runs it as a context manager around the handler."""

    async def handler(session_maker: Maker, sql: str) -> None:
        async with asynccontextmanager(dependency)(session_maker) as db:
            await db.execute(text(sql))

    return handler


HANDLERS: dict[str, Handler] = {
    "by hand, never closed": not_closed,
    "by hand, closed at the end": closed_at_the_end,
    "by hand, closed in finally": closed_in_finally,
    "get_db with async with": using(get_db),
    "get_db without finally": using(get_db_without_finally),
}


@experiment(
    question="Does a dependency prevent leaks that a session made by hand has?",
    rows=("2.21", "2.22"),
    seconds=1,
)
def run(lab: Lab, *, pool_size: int = 5, handler: str = "fails") -> None:
    # SQLAlchemy warns of each connection that a garbage collection kills: here they are counted.
    logger, no_output = logging.getLogger("sqlalchemy.pool"), logging.NullHandler()
    logger.addHandler(no_output)
    lab.at_end(logger.removeHandler, no_output)
    lab.at_end(gc.enable)
    sql = "SELECT 1" if handler == "succeeds" else "SELECT 1 / 0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = {way: asyncio.run(serve(lab, way, sql, pool_size)) for way in HANDLERS}
    columns = ("the session", "out", "killed by gc", "out after gc")
    table = [(way, *row) for way, row in out.items()]
    lab.table(f"After {pool_size} requests, each of which {handler}", columns, table)

    leaks = {way: row[0] > 0 for way, row in out.items()}
    shown = {way: f"{row[0]} out, {row[1]} killed" for way, row in out.items()}
    lab.judge(
        "2.21",
        "a session that is never closed leaks its connection, and a dependency closes it",
        holds={
            f"a dependency {name}": leaks["by hand, never closed"] and not leaks[f"get_db {name}"]
            for name in ("with async with", "without finally")
        },
        measured="; ".join(
            f"{way}: {shown[way]}" for way in out if "hand" not in way or "never" in way
        ),
        why="An asynchronous connection cannot be returned by the garbage collector, which may not "
        "wait for a rollback. SQLAlchemy kills it and warns. A dependency cleans up after a failed "
        "handler only in a finally or a with, because the exception is raised at its yield.",
    )
    lab.judge(
        "2.22",
        "a session that the handler makes and closes itself leaks, and that of a dependency does not",
        holds={
            f"a session {name}": leaks[f"by hand, {name}"] and not leaks["get_db with async with"]
            for name in ("closed at the end", "closed in finally")
        },
        measured="; ".join(
            f"{way}: {shown[way]}" for way in out if "closed" in way or "with " in way
        ),
        why="A finally closes the session wherever it stands. A dependency has it in one place, so "
        "that no handler can forget it. That is its advantage, and not that it closes better.",
    )


async def serve(lab: Lab, way: str, sql: str, pool_size: int) -> tuple[int, int, int]:
    engine = create_async_engine(lab.url("asyncpg"), pool_size=pool_size, max_overflow=0)
    killed: list[object] = []
    event.listen(engine.sync_engine, "close_detached", killed.append)
    try:
        gc.disable()  # it would run at some time: here it runs when the first half is counted
        for _ in range(pool_size):
            with suppress(DBAPIError):
                await HANDLERS[way](async_sessionmaker(engine), sql)
        out = engine.pool.checkedout()
        gc.enable()
        gc.collect()
        return out, len(killed), engine.pool.checkedout()
    finally:
        await engine.dispose()
