"""How do the pools of psycopg2, psycopg, asyncpg and SQLAlchemy grow and shrink?

You may have read that psycopg2's pool opens minconn connections at the start, grows to maxconn, and
takes connections back for reuse (3.10); and that it opens new ones when it has fewer than minconn
(3.11).

Four pools go the same way: each is made, lends all of its connections, gets them back, rests, loses
them at the server, and serves again. QueuePool gets minconn as pool_size and the rest as overflow.
The idle times after which pools close connections are minutes by default, and a second here.
"""

import asyncio
import logging
import time
from typing import Any

import asyncpg
from psycopg2.pool import SimpleConnectionPool
from psycopg_pool import ConnectionPool
from sqlalchemy import Connection, create_engine, text

from poolkit.experiment import Lab, experiment

FAILED = "failed queries"
Steps = dict[str, int]


def walk(lab: Lab, size: int, *, take: Any, query: Any, give: Any, rest: Any = time.sleep) -> Steps:
    """Take a pool through its life; return the connections that are open after each step."""
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
    lab.wait_until("the server has ended the connections", lambda: not lab.backends())
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


def query_psycopg2(connection: Any) -> None:
    connection.cursor().execute("SELECT 1")


def walk_psycopg2(lab: Lab, least: int, most: int) -> Steps:
    pool = SimpleConnectionPool(least, most, lab.dsn())
    try:
        return walk(lab, most, take=pool.getconn, query=query_psycopg2, give=pool.putconn)
    finally:
        pool.closeall()


def query_psycopg(connection: Any) -> None:
    connection.execute("SELECT 1")
    connection.commit()


def walk_psycopg_pool(lab: Lab, least: int, most: int) -> Steps:
    # Otherwise its warnings about dead connections go to the terminal.
    logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())
    with ConnectionPool(lab.dsn("psycopg"), min_size=least, max_size=most, max_idle=0.2) as pool:
        return walk(lab, most, take=pool.getconn, query=query_psycopg, give=pool.putconn)


def walk_asyncpg(lab: Lab, least: int, most: int) -> Steps:
    async def make() -> asyncpg.Pool:
        return await asyncpg.create_pool(
            lab.dsn("asyncpg"), min_size=least, max_size=most, max_inactive_connection_lifetime=1
        )

    async def take() -> Any:
        return await pool.acquire()

    with asyncio.Runner() as loop:
        pool = loop.run(make())
        try:
            return walk(
                lab,
                most,
                take=lambda: loop.run(take()),
                query=lambda connection: loop.run(connection.fetchval("SELECT 1")),
                give=lambda connection: loop.run(pool.release(connection)),
                rest=lambda seconds: loop.run(asyncio.sleep(seconds)),
            )
        finally:
            pool.terminate()


def query_sqlalchemy(connection: Connection) -> None:
    connection.execute(text("SELECT 1"))


def walk_queue_pool(lab: Lab, least: int, most: int) -> Steps:
    engine = create_engine(lab.url(), pool_size=least, max_overflow=most - least)
    try:
        return walk(lab, most, take=engine.connect, query=query_sqlalchemy, give=Connection.close)
    finally:
        engine.dispose()


@experiment(
    question="How do the pools of psycopg2, psycopg, asyncpg and SQLAlchemy grow and shrink?",
    rows=("3.10", "3.11"),
    seconds=13,
)
def run(lab: Lab, *, minconn: int = 2, maxconn: int = 10) -> None:
    lives: dict[str, Steps] = {}
    for pool, life in (
        ("psycopg2", walk_psycopg2),
        ("psycopg_pool", walk_psycopg_pool),
        ("asyncpg", walk_asyncpg),
        ("QueuePool", walk_queue_pool),
    ):
        lab.say(f"{pool}: from {minconn} to {maxconn} connections and back")
        lives[pool] = life(lab, minconn, maxconn)
        lab.wait_until("the pool is closed", lambda: not lab.backends())
    psycopg2_life = lives["psycopg2"]
    rows = [(step, *(life[step] for life in lives.values())) for step in psycopg2_life]
    lab.table(f"Open connections: minimum {minconn}, maximum {maxconn}", ("", *lives), rows)
    steps = [step for step in psycopg2_life if step != FAILED]
    lab.lines(
        "Open connections: made (0), all lent, given back, rested, served after a loss (4)",
        {pool: [(n, life[step]) for n, step in enumerate(steps)] for pool, life in lives.items()},
        unit="connections",
        x_title="step",
    )
    lab.judge(
        "3.10",
        "psycopg2's pool opens minconn connections at the start, grows to maxconn, and takes them "
        "back for reuse",
        holds={
            "the start": psycopg2_life["made"] == minconn,
            "the growth": psycopg2_life["all lent"] == maxconn,
            "the way back": psycopg2_life["given back"] == maxconn,
        },
        measured=f"{psycopg2_life['made']} open at the start, {psycopg2_life['all lent']} when all "
        f"are lent, {psycopg2_life['given back']} when they are back",
        why="putconn closes a connection if minconn are idle already. So minconn is what the pool "
        "keeps, not only what it starts with, and what it grows beyond that is opened for one use. "
        "psycopg_pool and asyncpg's pool keep what they opened until it was idle for minutes.",
    )
    lab.judge(
        "3.11",
        "psycopg2's pool opens new connections when it has fewer than minconn",
        holds=psycopg2_life["served again"] >= minconn,
        measured=f"after the loss of all: {psycopg2_life[FAILED]} queries failed, then "
        f"{psycopg2_life['served again']} of {minconn} open; "
        f"psycopg_pool has {lives['psycopg_pool']['served again']}",
        why="Only the constructor opens minconn connections. A dead one is dropped when it comes "
        "back, and getconn opens one if none is idle. There is no thread that could fill the pool, "
        "as psycopg_pool has. No pool here looks at a connection before it lends it, but asyncpg "
        "notices in its event loop that the server closed one.",
    )
