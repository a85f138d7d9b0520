"""How do the pools of psycopg2, psycopg, asyncpg and SQLAlchemy grow and shrink?

You may have read that psycopg2's pool opens minconn connections at the start, grows to maxconn, and
takes connections back for reuse (3.10); and that it opens new ones when it has fewer than minconn
(3.11).

Four pools go the same way. Each is made, lends all of its connections, gets them back, rests, loses
them at the server, and serves again. QueuePool gets minconn as pool_size, and the rest as overflow.
The idle times after which pools close connections are minutes by default, and less than 1 s here.
asyncpg's pool keeps min_size connections since version 0.32; before, it closed these as well.
`full_pools` shows one request too many, and `sharing_psycopg2_pools` what threads may share.
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

STEPS = ("made", "all lent", "given back", "rested", "failed queries", "served again")


def walk(
    lab: Lab, size: int, *, take: Any, query: Any, give: Any, close: Any, rest: Any = time.sleep
) -> list[int]:
    """Take a pool through its life; return the connections that are open after each step."""
    try:
        rest(0.2)
        open_after = [len(lab.backends())]
        lent = [take() for _ in range(size)]
        open_after.append(len(lab.backends()))
        for connection in lent:
            give(connection)
        for seconds in (0.2, 1.5):
            rest(seconds)
            open_after.append(len(lab.backends()))
        lab.terminate()
        lab.count_backends(0)
        rest(0.2)
        failed = 0
        for _ in range(size):
            connection = take()
            try:
                query(connection)
            except Exception:  # noqa: BLE001  (each driver has its own)
                failed += 1
            give(connection)
        rest(0.2)
        return [*open_after, failed, len(lab.backends())]
    finally:
        close()
        lab.count_backends(0)


@experiment(
    question="How do the pools of psycopg2, psycopg, asyncpg and SQLAlchemy grow and shrink?",
    rows=("3.10", "3.11"),
    seconds=12,
)
def run(lab: Lab, *, minconn: int = 2, maxconn: int = 10) -> None:
    live = partial(walk, lab, maxconn)

    def query(connection: Any) -> None:
        connection.cursor().execute("SELECT 1")

    lab.say(f"psycopg2: from {minconn} to {maxconn} connections and back")
    simple = SimpleConnectionPool(minconn, maxconn, lab.dsn())
    lives = {
        "psycopg2": live(
            take=simple.getconn, query=query, give=simple.putconn, close=simple.closeall
        )
    }
    lab.say("psycopg_pool")
    # Otherwise its warnings about dead connections go to the terminal.
    logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())
    sizes = {"min_size": minconn, "max_size": maxconn}
    pool = ConnectionPool(lab.dsn("psycopg"), **sizes, max_idle=0.15, open=True)
    lives["psycopg_pool"] = live(
        take=pool.getconn, query=query, give=pool.putconn, close=pool.close
    )
    lab.say("asyncpg")
    with asyncio.Runner() as runner:
        wait = runner.get_loop().run_until_complete
        opening = asyncpg.create_pool(
            lab.dsn("asyncpg"), **sizes, max_inactive_connection_lifetime=0.8
        )
        async_pool = wait(opening)
        lives["asyncpg"] = live(
            take=lambda: wait(async_pool.acquire()),
            query=lambda connection: wait(connection.fetchval("SELECT 1")),
            give=lambda connection: wait(async_pool.release(connection)),
            close=async_pool.terminate,
            rest=lambda seconds: wait(asyncio.sleep(seconds)),
        )
    lab.say("QueuePool")
    engine = create_engine(lab.url(), pool_size=minconn, max_overflow=maxconn - minconn)
    lives["QueuePool"] = live(
        take=engine.connect,
        query=lambda connection: connection.execute(text("SELECT 1")),
        give=Connection.close,
        close=engine.dispose,
    )
    lab.table(
        f"Open connections: minimum {minconn}, maximum {maxconn}",
        ("", *lives),
        zip(STEPS, *lives.values(), strict=True),
    )
    made, all_lent, given_back, _, failed, served_again = lives["psycopg2"]
    lab.judge(
        "3.10",
        "psycopg2's pool opens minconn connections, grows to maxconn, and takes them back for reuse",
        holds={
            "the start": made == minconn,
            "the growth": all_lent == maxconn,
            "the way back": given_back == maxconn,
        },
        measured=f"{made} open at the start, {all_lent} when all are lent, {given_back} when they "
        "are back",
        why="putconn closes a connection if minconn are idle already. So minconn is what the pool "
        "keeps, and what it opens beyond that serves once. The pools of psycopg and asyncpg keep a "
        "connection until it was idle for minutes.",
    )
    lab.judge(
        "3.11",
        "psycopg2's pool opens new connections when it has fewer than minconn",
        holds=served_again >= minconn,
        measured=f"all were lost: {failed} queries failed, then {served_again} of {minconn} are "
        f"open; psycopg_pool has {lives['psycopg_pool'][-1]}",
        why="Only the constructor opens minconn connections. putconn drops a dead one, and getconn "
        "opens one if none is idle. psycopg_pool refills itself. A pool does not look at a "
        "connection before it lends it, unless it is told to (pool_pre_ping, check=).",
    )
