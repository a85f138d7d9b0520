"""What do the drivers' pools do when all of their connections are in use?

You may have read that psycopg2's pool makes new requests wait when maxconn connections are in use
(3.12), and that a full pool makes a request wait or fail, so it needs a timeout (4.37).

Each pool lends all of its connections, then one more is asked for. First no connection comes back,
then one does.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import asyncpg
import sqlalchemy.exc
from psycopg2.pool import PoolError, ThreadedConnectionPool
from psycopg_pool import ConnectionPool, PoolTimeout
from sqlalchemy import Connection, create_engine

from poolkit.experiment import Lab, experiment


class Answer(NamedTuple):
    """What the request got without help, after how long, and what it got when one came back."""

    alone: str
    after_s: float
    helped: str


def ask(size: int, pause_s: float, *, take: Any, give: Any) -> Answer:
    """Lend all connections of a pool, and ask for one more, twice."""
    lent = [take() for _ in range(size)]

    def one_more() -> str:
        try:
            lent.append(take())
        except (sqlalchemy.exc.TimeoutError, PoolError, PoolTimeout) as error:
            return type(error).__name__
        return "served"

    began = time.perf_counter()
    alone = one_more()
    after_s = time.perf_counter() - began
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(one_more)
        time.sleep(pause_s)
        give(lent.pop(0))
    for connection in lent:
        give(connection)
    return Answer(alone, after_s, waiting.result())


async def ask_asyncpg(dsn: str, size: int, pause_s: float, timeout_s: float | None) -> Answer:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=size) as pool:
        lent = [await pool.acquire() for _ in range(size)]

        async def one_more() -> str:
            try:
                # This limit is the experiment's own: acquire without a timeout waits for ever.
                async with asyncio.timeout(5 * pause_s):
                    lent.append(await pool.acquire(timeout=timeout_s))
            except TimeoutError as error:
                return "still waits" if timeout_s is None else type(error).__name__
            return "served"

        began = time.perf_counter()
        alone = await one_more()
        after_s = time.perf_counter() - began
        waiting = asyncio.create_task(one_more())
        await asyncio.sleep(pause_s)
        await pool.release(lent.pop(0))
        helped = await waiting
        for connection in lent:
            await pool.release(connection)
        return Answer(alone, after_s, helped)


@experiment(
    question="What do the drivers' pools do when all of their connections are in use?",
    rows=("3.12", "4.37"),
    seconds=9,
)
def run(lab: Lab, *, size: int = 5, max_overflow: int = 0, timeout_s: float = 0.8) -> None:
    engine = create_engine(
        lab.url(), pool_size=size, max_overflow=max_overflow, pool_timeout=timeout_s
    )
    threaded = ThreadedConnectionPool(1, size, lab.dsn())
    queueing = ConnectionPool(
        lab.dsn("psycopg"), min_size=1, max_size=size, timeout=timeout_s, open=True
    )
    for close in (engine.dispose, threaded.closeall, queueing.close):
        lab.at_end(close)
    lab.say(f"pools of {size}, all in use, and one request more")
    half_s, dsn = timeout_s / 2, lab.dsn("asyncpg")
    answers = {
        "QueuePool": ask(size, half_s, take=engine.connect, give=Connection.close),
        "psycopg2's pool": ask(size, half_s, take=threaded.getconn, give=threaded.putconn),
        "psycopg_pool": ask(size, half_s, take=queueing.getconn, give=queueing.putconn),
        "asyncpg's pool": asyncio.run(ask_asyncpg(dsn, size, half_s, timeout_s)),
        "asyncpg's, no timeout": asyncio.run(ask_asyncpg(dsn, size, half_s, None)),
    }
    lab.table(
        "One request too many",
        ("pool", "answer", "after s", "answer when a connection comes back"),
        [(pool, *answer) for pool, answer in answers.items()],
    )
    answer = answers["psycopg2's pool"]
    lab.judge(
        "3.12",
        "when maxconn connections are in use, psycopg2's pool makes a new request wait",
        holds=answer.after_s >= half_s,
        measured=f"{answer.alone} after {answer.after_s * 1e3:.1f} ms",
        why="psycopg2's pools have no queue: getconn returns a connection or raises PoolError. To "
        "wait for one, use QueuePool or psycopg_pool, or a semaphore around getconn.",
    )
    lab.judge(
        "4.37",
        "a full pool makes a request wait or fail, and only a timeout ends the wait",
        holds={pool: answer.alone != "served" for pool, answer in answers.items()},
        measured=", ".join(
            f"{pool}: {answer.alone} after {answer.after_s:.1f} s"
            for pool, answer in answers.items()
        ),
        why="QueuePool (pool_timeout) and psycopg_pool (timeout) give up after 30 s by default, and "
        "psycopg2's pools at once. asyncpg's acquire waits without a limit unless it gets a timeout.",
    )
