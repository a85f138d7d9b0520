"""What do the drivers' pools do when all of their connections are in use?

You may have read that psycopg2's pool makes new requests wait when maxconn connections are in use
(3.12), and that a full pool makes a request wait or fail, so it needs a timeout (4.37).

Each pool lends all of its connections, then one more is asked for. No connection comes back.
"""

import asyncio
import time
from contextlib import AsyncExitStack, ExitStack

import asyncpg
import psycopg2.pool
import psycopg_pool
import sqlalchemy.exc
from sqlalchemy import create_engine

from poolkit.experiment import Lab, experiment


def ask_queue_pool(url: str, size: int, overflow: int, timeout_s: float) -> tuple[str, float]:
    engine = create_engine(url, pool_size=size, max_overflow=overflow, pool_timeout=timeout_s)
    with ExitStack() as held:
        held.callback(engine.dispose)
        for _ in range(size):
            held.enter_context(engine.connect())
        begin = time.perf_counter()
        try:
            held.enter_context(engine.connect())
        except sqlalchemy.exc.TimeoutError as error:
            return type(error).__name__, time.perf_counter() - begin
        return "served", time.perf_counter() - begin


def ask_psycopg2(dsn: str, size: int) -> tuple[str, float]:
    pool = psycopg2.pool.ThreadedConnectionPool(1, size, dsn)
    try:
        for _ in range(size):
            pool.getconn()
        begin = time.perf_counter()
        try:
            pool.getconn()
        except psycopg2.pool.PoolError as error:
            return type(error).__name__, time.perf_counter() - begin
        return "served", time.perf_counter() - begin
    finally:
        pool.closeall()


def ask_psycopg_pool(dsn: str, size: int, timeout_s: float) -> tuple[str, float]:
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=size, open=True)
    with pool, ExitStack() as held:
        for _ in range(size):
            held.enter_context(pool.connection())
        begin = time.perf_counter()
        try:
            held.enter_context(pool.connection(timeout=timeout_s))
        except psycopg_pool.PoolTimeout as error:
            return type(error).__name__, time.perf_counter() - begin
        return "served", time.perf_counter() - begin


async def ask_asyncpg(dsn: str, size: int, timeout_s: float | None) -> tuple[str, float]:
    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=size) as pool,
        AsyncExitStack() as held,
    ):
        for _ in range(size):
            await held.enter_async_context(pool.acquire())
        begin = time.perf_counter()
        try:
            # This limit is the experiment's own: acquire without a timeout waits for ever.
            async with asyncio.timeout(2.5):
                await held.enter_async_context(pool.acquire(timeout=timeout_s))
        except TimeoutError as error:
            answer = "still waits" if timeout_s is None else type(error).__name__
            return answer, time.perf_counter() - begin
        return "served", time.perf_counter() - begin


@experiment(
    question="What do the drivers' pools do when all of their connections are in use?",
    rows=("3.12", "4.37"),
    seconds=6,
)
def run(lab: Lab, *, size: int = 5, max_overflow: int = 0, timeout_s: float = 1.0) -> None:
    lab.say(f"pools of {size}, all in use, and one request more")
    answers = {
        "QueuePool": ask_queue_pool(lab.url(), size, max_overflow, timeout_s),
        "psycopg2's pool": ask_psycopg2(lab.dsn(), size),
        "psycopg_pool": ask_psycopg_pool(lab.dsn("psycopg"), size, timeout_s),
        "asyncpg's pool": asyncio.run(ask_asyncpg(lab.dsn("asyncpg"), size, timeout_s)),
        "asyncpg's, no timeout": asyncio.run(ask_asyncpg(lab.dsn("asyncpg"), size, None)),
    }
    rows = [(pool, answer, f"{took:.2f}") for pool, (answer, took) in answers.items()]
    lab.table("One request too many", ("pool", "answer", "after s"), rows)

    answer, took = answers["psycopg2's pool"]
    lab.judge(
        "3.12",
        "when maxconn connections are in use, psycopg2's pool makes a new request wait",
        holds=took >= timeout_s / 2,
        measured=f"{answer} after {took * 1e3:.1f} ms",
        why="psycopg2's pools have no queue: getconn returns a connection or raises PoolError. To "
        "wait for one, use QueuePool or psycopg_pool, or a semaphore around getconn.",
    )
    lab.judge(
        "4.37",
        "a full pool makes a request wait or fail, and only a timeout ends the wait",
        holds={pool: answer != "served" for pool, (answer, _) in answers.items()},
        measured=", ".join(
            f"{pool}: {answer} after {s:.1f} s" for pool, (answer, s) in answers.items()
        ),
        why="QueuePool (pool_timeout) and psycopg_pool (timeout) give up after 30 s by default, and "
        "psycopg2's pools at once. asyncpg's acquire waits without a limit unless it gets a timeout.",
    )
