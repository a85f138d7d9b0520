"""A connection is returned with an open transaction: what does its next user see?

You may have read that the next user gets a dirty connection and a wrong state (4.22, 4.33). So a user must
commit or roll back before the return (4.23).

In each pool, a first user inserts a row and returns the connection without a commit. A second user gets the
same connection, counts the rows, and commits. An observer counts those that are committed. Then the same, with
a commit before the return. SQLAlchemy's pool has several values of `pool_reset_on_return`.
`--set before_return=rollback` lets the first user roll back.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any

import asyncpg
import psycopg2
from psycopg2.pool import SimpleConnectionPool
from psycopg_pool import ConnectionPool
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from poolkit.experiment import Lab, experiment

INSERT = "INSERT INTO notes VALUES (1)"
COUNT = "SELECT count(*) FROM notes"


def count(connection: Any) -> int:
    cursor = connection.cursor()
    cursor.execute(COUNT)
    return cursor.fetchone()[0]


def driver_users(
    borrow: Callable[[], Any], give_back: Callable[[Any], None], end: str, observer: Any
) -> tuple[int, int]:
    connection = borrow()
    connection.cursor().execute(INSERT)
    if end != "nothing":
        getattr(connection, end)()
    give_back(connection)
    connection = borrow()
    found = count(connection), count(observer)
    connection.commit()
    give_back(connection)
    return found


def session_users(engine: Engine, end: str, observer: Any) -> tuple[int, int]:
    with Session(engine) as db:
        db.execute(text(INSERT))
        if end != "nothing":
            getattr(db, end)()
    with Session(engine) as db:
        found = db.scalar(text(COUNT)), count(observer)
        db.commit()
    return found


async def asyncpg_users(dsn: str, end: str, observer: Any) -> tuple[int, int]:
    async with asyncpg.create_pool(dsn, min_size=1) as pool:
        connection = await pool.acquire()
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(INSERT)
        if end != "nothing":
            await getattr(transaction, end)()
        await pool.release(connection)
        async with pool.acquire() as connection:
            return await connection.fetchval(COUNT), count(observer)


@experiment(
    question="A connection is returned with an open transaction: what does its next user see?",
    rows=("4.22", "4.23", "4.33"),
    seconds=1,
)
def run(lab: Lab, *, before_return: str = "nothing") -> None:
    observer = psycopg2.connect(lab.dsn())
    lab.at_end(observer.close)
    observer.autocommit = True
    observer.cursor().execute("CREATE TABLE notes (number int)")
    # psycopg_pool and asyncpg log what they roll back.
    logged, handler = [], logging.Handler()
    handler.emit = logged.append
    for logger in (logging.getLogger("psycopg.pool"), logging.getLogger("asyncio")):
        logger.addHandler(handler)
        lab.at_end(logger.removeHandler, handler)

    resets = ("rollback", "commit", None)
    engines = [create_engine(lab.url(), pool_reset_on_return=reset) for reset in resets]
    engine, commits, leaves = engines
    psycopg2s = SimpleConnectionPool(1, 5, lab.dsn())
    psycopgs = ConnectionPool(lab.dsn("psycopg"), min_size=1, open=True)
    for close in (*(each.dispose for each in engines), psycopg2s.closeall, psycopgs.close):
        lab.at_end(close)

    ways: dict[str, Callable[..., tuple[int, int]]] = {
        "a Session": partial(session_users, engine),
        "a Session, reset None": partial(session_users, leaves),
        "raw_connection": partial(driver_users, engine.raw_connection, methodcaller("close")),
        "raw, reset commit": partial(driver_users, commits.raw_connection, methodcaller("close")),
        "raw, reset None": partial(driver_users, leaves.raw_connection, methodcaller("close")),
        "psycopg2's pool": partial(driver_users, psycopg2s.getconn, psycopg2s.putconn),
        "psycopg_pool": partial(driver_users, psycopgs.getconn, psycopgs.putconn),
        "asyncpg's pool": lambda *rest: asyncio.run(asyncpg_users(lab.dsn("asyncpg"), *rest)),
    }
    table, is_dirty, kept = [], {}, {}
    defaults = [way for way in ways if "reset" not in way]
    for way, two_users in ways.items():
        for end in ("commit", before_return):
            observer.cursor().execute("DELETE FROM notes")
            logged.clear()
            seen, committed = two_users(end, observer)
            kept[way, end] = count(observer)
        is_dirty[way] = seen > committed
        table.append((way, seen, committed, kept[way, before_return], bool(logged)))
    columns = ("returned by", "next user sees", "committed then", "kept", "logged")
    lab.table(f"A row inserted, {before_return}, the connection returned", columns, table)

    lab.judge(
        "4.22 4.33",
        "the next user of a connection gets the open transaction of the one before",
        holds={
            "pools as they are made": any(is_dirty[way] for way in defaults),
            "raw_connection() with reset_on_return=None": is_dirty["raw, reset None"],
        },
        measured=f"in {sum(is_dirty.values())} of {len(ways)} ways a row that was not committed",
        why="All of these pools roll back what is open when a connection comes back. A Session does so "
        "before, so reset_on_return matters only where SQLAlchemy does not manage the transaction. With "
        "None it stays open, and the next user's commit decides about both users' rows.",
    )
    lost = {way: kept[way, "commit"] > kept[way, before_return] for way in ways}
    lab.judge(
        "4.23",
        "a user has to commit before the return",
        holds={
            "pools as they are made": all(lost[way] for way in defaults),
            "raw_connection() with reset_on_return='commit'": lost["raw, reset commit"],
        },
        measured=f"{sum(lost.values())} of {len(ways)} rows lost without a commit, "
        f"{sum(kept[way, 'commit'] == 0 for way in ways)} with one",
        why="The rollback loses the first user's row without an error; psycopg_pool and asyncpg log it. "
        "reset_on_return='commit' keeps the row where SQLAlchemy does not manage the transaction, even if "
        "the work failed halfway.",
    )
