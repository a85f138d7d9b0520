"""How do the pools of psycopg2, psycopg, asyncpg and SQLAlchemy grow and shrink?

You may have read that psycopg2's pool opens minconn connections at the start, grows to maxconn, and
takes connections back for reuse (3.10); and that it opens new ones when it has fewer than minconn
(3.11).

Four pools go the same way. Each is made, lends all of its connections, gets them back, rests, loses
them at the server, and serves again. QueuePool gets minconn as pool_size, and the rest as overflow.
The idle times after which pools close connections are minutes by default, and at most 1 s here.
asyncpg's pool keeps min_size connections since version 0.32; before, it closed these as well.
"""

import asyncio
import logging
import time
from functools import partial
from typing import Any

import asyncpg
from psycopg2.pool import SimpleConnectionPool
from psycopg_pool import ConnectionPool
from sqlalchemy import Connection, create_engine, text

from poolkit.experiment import Lab, experiment

FAILED = "failed queries"


def walk(
    lab: Lab, size: int, *, take: Any, query: Any, give: Any, close: Any, rest: Any = time.sleep
) -> dict[str, int]:
    """Take a pool through its life; return the connections that are open after each step."""
    try:
        rest(0.2)
        found = {"made": len(lab.backends())}
        lent = [take() for _ in range(size)]
        found["all lent"] = len(lab.backends())
        for connection in lent:
            give(connection)
        rest(0.2)
        found["given back"] = len(lab.backends())
        rest(2)
        found["rested"] = len(lab.backends())

        lab.terminate()
        lab.count_backends(0)
        rest(0.2)
        found[FAILED] = 0
        for _ in range(size):
            connection = take()
            try:
                query(connection)
            except Exception:  # noqa: BLE001  (each driver has its own)
                found[FAILED] += 1
            give(connection)
        rest(0.2)
        found["served again"] = len(lab.backends())
        return found
    finally:
        close()
        lab.count_backends(0)


def walk_asyncpg(lab: Lab, minconn: int, maxconn: int) -> dict[str, int]:
    async def make() -> asyncpg.Pool:
        return await asyncpg.create_pool(
            lab.dsn("asyncpg"),
            min_size=minconn,
            max_size=maxconn,
            max_inactive_connection_lifetime=1,
        )

    async def take() -> Any:
        return await pool.acquire()

    with asyncio.Runner() as loop:
        pool = loop.run(make())
        return walk(
            lab,
            maxconn,
            take=lambda: loop.run(take()),
            query=lambda connection: loop.run(connection.fetchval("SELECT 1")),
            give=lambda connection: loop.run(pool.release(connection)),
            close=pool.terminate,
            rest=lambda seconds: loop.run(asyncio.sleep(seconds)),
        )


@experiment(
    question="How do the pools of psycopg2, psycopg, asyncpg and SQLAlchemy grow and shrink?",
    rows=("3.10", "3.11"),
    seconds=13,
)
def run(lab: Lab, *, minconn: int = 2, maxconn: int = 10) -> None:
    lab.say(f"psycopg2: from {minconn} to {maxconn} connections and back")
    simple = SimpleConnectionPool(minconn, maxconn, lab.dsn())
    live = partial(walk, lab, maxconn)
    lives = {
        "psycopg2": live(
            take=simple.getconn,
            query=lambda c: c.cursor().execute("SELECT 1"),
            give=simple.putconn,
            close=simple.closeall,
        )
    }
    lab.say("psycopg_pool")
    # Otherwise its warnings about dead connections go to the terminal.
    logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())
    pool = ConnectionPool(
        lab.dsn("psycopg"), min_size=minconn, max_size=maxconn, max_idle=0.2, open=True
    )
    lives["psycopg_pool"] = live(
        take=pool.getconn,
        query=lambda c: c.execute("SELECT 1"),
        give=pool.putconn,
        close=pool.close,
    )
    lab.say("asyncpg")
    lives["asyncpg"] = walk_asyncpg(lab, minconn, maxconn)
    lab.say("QueuePool")
    engine = create_engine(lab.url(), pool_size=minconn, max_overflow=maxconn - minconn)
    lives["QueuePool"] = live(
        take=engine.connect,
        query=lambda c: c.execute(text("SELECT 1")),
        give=Connection.close,
        close=engine.dispose,
    )
    life = lives["psycopg2"]
    lab.table(
        f"Open connections: minimum {minconn}, maximum {maxconn}",
        ("", *lives),
        [(step, *(each[step] for each in lives.values())) for step in life],
    )
    lab.judge(
        "3.10",
        "psycopg2's pool opens minconn connections at the start, grows to maxconn, and takes them "
        "back for reuse",
        holds={
            "the start": life["made"] == minconn,
            "the growth": life["all lent"] == maxconn,
            "the way back": life["given back"] == maxconn,
        },
        measured=f"{life['made']} open at the start, {life['all lent']} when all are lent, "
        f"{life['given back']} when they are back",
        why="putconn closes a connection if minconn are idle already. So minconn is what the pool "
        "keeps, and what it opens beyond that serves once. psycopg_pool and asyncpg's pool keep a "
        "connection until it was idle for minutes.",
    )
    lab.judge(
        "3.11",
        "psycopg2's pool opens new connections when it has fewer than minconn",
        holds=life["served again"] >= minconn,
        measured=f"all were lost: {life[FAILED]} queries failed, then {life['served again']} of "
        f"{minconn} are open; psycopg_pool has {lives['psycopg_pool']['served again']}",
        why="Only the constructor opens minconn connections. putconn drops a dead one, and getconn "
        "opens one if none is idle. psycopg_pool has threads that refill it. A pool does not look at "
        "a connection before it lends it, unless it is told to (pool_pre_ping, check=). asyncpg's "
        "event loop notices that the server has closed one.",
    )
