"""How many connections does a pool give out, and how does one see that it is full?

You may have read that pool_size and max_overflow together are the limit, for sync and async engines
(1.12, 2.2), and that pool_size is what psycopg2 calls maxconn (3.18). That four methods show how full
a pool is (1.35), or `size()` printed at each checkout (2.18). And that a full pool raises
`TimeoutError: QueuePool limit exceeded` (1.36).

Here pools are filled until they refuse, and their methods are called on the way.
"""

import asyncio
from contextlib import AsyncExitStack, ExitStack
from typing import Any

from psycopg2.pool import PoolError, ThreadedConnectionPool
from sqlalchemy import create_engine, event, exc
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit.experiment import Lab, experiment


@experiment(
    question="How many connections does a pool give out, and how does one see that it is full?",
    rows=("1.12", "2.2", "3.18", "1.35", "2.18", "1.36"),
    seconds=1,
)
def run(lab: Lab, *, pool_size: int = 5, max_overflow: int = 10, pool_timeout: float = 0.2) -> None:
    limits = {"pool_size": pool_size, "max_overflow": max_overflow, "pool_timeout": pool_timeout}
    total = pool_size + max_overflow
    # A pool that gives out more than this is taken for one without a limit.
    tries = total + 5
    steps, printed, refusal, given = [], [], None, {}
    engine = create_engine(lab.url(), pool_pre_ping=True, **limits)

    @event.listens_for(engine, "checkout")
    def receive_checkout(dbapi_conn: Any, connection_record: Any, connection_proxy: Any) -> None:
        printed.append(connection_proxy._pool.size())  # noqa: SLF001  (as it is printed)

    def look(after: str, in_use: int) -> None:
        pool, there = engine.pool, len(lab.backends())
        methods = (pool.size(), pool.checkedout(), pool.checkedin(), pool.overflow())
        steps.append((after, there, in_use, *methods))

    with ExitStack() as stack:
        stack.callback(engine.dispose)
        look("create_engine", 0)
        with ExitStack() as checkouts:
            for number in range(1, tries + 1):
                try:
                    checkouts.enter_context(engine.connect())
                except exc.TimeoutError as error:
                    refusal = error
                    break
                if number in (1, pool_size, total):
                    look(f"checkout {number}", number)
            given["create_engine"] = len(printed)
        lab.wait_until("the overflow is closed", lambda: len(lab.backends()) <= pool_size)
        look("all are back", 0)
    given["create_async_engine"] = asyncio.run(fill_async(lab.url("asyncpg"), limits, tries))

    pool = ThreadedConnectionPool(1, pool_size, lab.dsn())
    given["psycopg2"] = 0
    try:
        while given["psycopg2"] < tries:
            pool.getconn()
            given["psycopg2"] += 1
    except PoolError:
        pass
    finally:
        pool.closeall()

    columns = ("after", "open", "in use", "size()", "checkedout()", "checkedin()", "overflow()")
    lab.table("What the server sees, and what the methods of the pool return", columns, steps)
    measured = "at once: " + ", ".join(f"{count} by {by}" for by, count in given.items())
    why = (
        "QueuePool gives out pool_size + max_overflow connections. Then its callers wait for "
        "pool_timeout. max_overflow=-1 means no limit. The maxconn of psycopg2 is the limit itself, "
        "and a caller beyond it gets a PoolError at once."
    )
    for row, by in (("1.12", "create_engine"), ("2.2", "create_async_engine")):
        lab.judge(
            row,
            f"{by}(pool_size={pool_size}, max_overflow={max_overflow}) gives out {total}",
            holds=given[by] == total,
            measured=measured,
            why=why,
        )
    lab.judge(
        "3.18",
        "pool_size is what psycopg2 calls maxconn",
        holds=given["create_engine"] == given["psycopg2"],
        measured=measured,
        why=why,
    )
    lab.judge(
        "1.35",
        "four methods return the size, the connections in use, those beyond the size, and the idle",
        holds={
            "size()": all(step[3] == pool_size for step in steps),
            "checkedout()": all(step[4] == step[2] for step in steps),
            "checkedin()": all(step[5] == step[1] - step[2] for step in steps),
            "overflow()": all(step[6] == max(0, step[1] - pool_size) for step in steps),
        },
        measured=f"overflow() is {steps[0][6]} for the new pool; see the table",
        why="overflow() counts from -pool_size: it is the number of open connections minus "
        "pool_size. A number below zero says how many the pool may still open and keep.",
    )
    lab.judge(
        "2.18",
        "size() at each checkout shows how full the pool is",
        holds=len(set(printed)) > 1,
        measured=f"size() at {len(printed)} checkouts: {', '.join(map(str, sorted(set(printed))))}",
        why="size() returns the argument pool_size. checkedout() counts. A listener finds the "
        "engine's pool in engine.pool; `_pool` of the third argument is private.",
    )
    lab.judge(
        "1.36",
        "a full pool raises `TimeoutError: QueuePool limit exceeded`",
        holds={
            "the name": type(refusal).__name__ == "TimeoutError",
            "the text": "QueuePool limit exceeded" in str(refusal),
        },
        measured=f"{type(refusal).__module__}.{type(refusal).__name__}: {str(refusal)[:84]}",
        why="The text names both sizes and the timeout. The class is SQLAlchemy's own: `except "
        "TimeoutError` catches it only after `from sqlalchemy.exc import TimeoutError`.",
    )


async def fill_async(url: str, limits: dict[str, float], tries: int) -> int:
    """Return how many connections an async engine gives out at once."""
    engine = create_async_engine(url, pool_recycle=3600, pool_pre_ping=True, echo=False, **limits)
    try:
        async with AsyncExitStack() as checkouts:
            for number in range(tries):
                try:
                    await checkouts.enter_async_context(engine.connect())
                except exc.TimeoutError:
                    return number
            return tries
    finally:
        await engine.dispose()
