"""A connection is returned with an open transaction: what does its next user see?

You may have read that the next user gets a dirty connection and a wrong state (4.22, 4.33). So a user must
commit or roll back before the return (4.23).

In each pool, a first user inserts a row and returns the connection without a commit. A second user gets the
same connection, counts the rows, and commits. Then the same, with a commit before the return. SQLAlchemy's
pool is used by a Session and by `raw_connection()`, with several values of `pool_reset_on_return`.
`--set before_return=rollback` lets the first user roll back.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
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
Borrow, Return, Then = Callable[[], Any], Callable[[Any], None], Callable[[], None]


def driver_users(borrow: Borrow, give_back: Return, end: str, returned: Then) -> int:
    connection = borrow()
    connection.cursor().execute(INSERT)
    if end != "nothing":
        getattr(connection, end)()
    give_back(connection)
    returned()
    connection = borrow()
    rows = count(connection)
    give_back(connection)
    return rows


def session_users(engine: Engine, end: str, returned: Then) -> int:
    with Session(engine) as db:
        db.execute(text(INSERT))
        if end != "nothing":
            getattr(db, end)()
    returned()
    with Session(engine) as db:
        rows = db.scalar(text(COUNT))
        db.commit()
    return rows


async def asyncpg_users(dsn: str, end: str, returned: Then) -> int:
    async with asyncpg.create_pool(dsn, min_size=1) as pool:
        connection = await pool.acquire()
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(INSERT)
        if end != "nothing":
            await getattr(transaction, end)()
        await pool.release(connection)
        returned()
        async with pool.acquire() as connection:
            return await connection.fetchval(COUNT)


def count(connection: Any) -> int:
    cursor = connection.cursor()
    cursor.execute(COUNT)
    (rows,) = cursor.fetchone()
    connection.commit()
    return rows


@experiment(
    question="A connection is returned with an open transaction: what does its next user see?",
    rows=("4.22", "4.23", "4.33"),
    seconds=2,
)
def run(lab: Lab, *, before_return: str = "nothing") -> None:
    observer = psycopg2.connect(lab.dsn())
    lab.at_end(observer.close)
    observer.autocommit = True
    observer.cursor().execute("CREATE TABLE notes (number int)")
    # psycopg_pool and asyncpg log what they roll back: for a column of the table, not the terminal.
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append
    for logger in (logging.getLogger("psycopg.pool"), logging.getLogger("asyncio")):
        logger.addHandler(handler)
        lab.at_end(logger.removeHandler, handler)

    engines = {}
    for reset in ("rollback", "commit", None):
        engines[reset] = create_engine(lab.url(), pool_reset_on_return=reset)
        lab.at_end(engines[reset].dispose)
    psycopg2s = SimpleConnectionPool(1, 5, lab.dsn())
    lab.at_end(psycopg2s.closeall)
    psycopgs = ConnectionPool(lab.dsn("psycopg"), min_size=1, open=True)
    lab.at_end(psycopgs.close)

    def raw(reset: str | None) -> Callable[..., int]:
        return partial(driver_users, engines[reset].raw_connection, lambda used: used.close())

    ways: dict[str, Callable[..., int]] = {
        "a Session": partial(session_users, engines["rollback"]),
        "a Session, reset None": partial(session_users, engines[None]),
        "raw_connection": raw("rollback"),
        "raw, reset commit": raw("commit"),
        "raw, reset None": raw(None),
        "psycopg2's pool": partial(driver_users, psycopg2s.getconn, psycopg2s.putconn),
        "psycopg_pool": partial(driver_users, psycopgs.getconn, psycopgs.putconn),
        "asyncpg's pool": lambda *rest: asyncio.run(asyncpg_users(lab.dsn("asyncpg"), *rest)),
    }

    table, between, is_dirty, kept = [], [], {}, {}

    def returned() -> None:
        is_open = "idle in transaction" in {backend.state for backend in lab.backends()}
        between.append((is_open, count(observer)))

    for way, two_users in ways.items():
        for end in ("commit", before_return):
            observer.cursor().execute("DELETE FROM notes")
            logged.clear()
            seen = two_users(end, returned)
            kept[way, end] = count(observer)
        is_open, committed = between[-1]
        is_dirty[way] = seen > committed
        table.append((way, is_open, committed, seen, kept[way, before_return], bool(logged)))
    columns = ("returned by", "still open", "committed", "next user sees", "kept", "logged")
    lab.table(f"A row inserted, {before_return}, the connection returned", columns, table)
    defaults = [way for way in ways if "reset" not in way]

    lab.judge(
        "4.22 4.33",
        "the next user of a connection gets the open transaction of the one before",
        holds={
            "pools as they are made": any(is_dirty[way] for way in defaults),
            "raw_connection() with reset_on_return=None": is_dirty["raw, reset None"],
        },
        measured=f"in {sum(is_dirty.values())} of {len(ways)} ways the next user saw a row that was "
        "not committed",
        why="A pool ends what is open when a connection comes back: SQLAlchemy's, psycopg2's, "
        "psycopg_pool's and asyncpg's roll back. A Session rolls back itself before that, so "
        "reset_on_return matters only where SQLAlchemy does not manage the transaction. With None "
        "that one stays open, and the next user's commit decides about the rows of both.",
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
        why="The pool's rollback protects the next user and loses the row of the first one, without "
        "an error; psycopg_pool and asyncpg log it. reset_on_return='commit' keeps the row where "
        "SQLAlchemy does not manage the transaction, even if the work failed halfway.",
    )
