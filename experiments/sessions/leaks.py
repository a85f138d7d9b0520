"""Does a forgotten close leak the connection, and who has forgotten it?

You may have read that a session without a close leaks its connection and that `with` or `finally` prevent it
(1.39, 1.51), and that psycopg2's pool loses a connection without `putconn`, forgotten (3.25) or skipped by
an exception (4.30).

Each way is used as many times as the pool has connections. Then the server is asked how many are still in a
transaction, and one more request is made, before and after a garbage collection. At last poolkit's leak
detection shows the line that borrowed. `--set after_query=commit` ends the transaction without a close.
"""

import gc
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import psycopg2
from psycopg2.pool import PoolError, SimpleConnectionPool
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

import poolkit
from poolkit.experiment import Lab, experiment


def session_not_closed(engine: Engine, sql: str, after_query: str) -> None:
    session = Session(engine)
    session.execute(text(sql))
    if after_query == "commit":
        session.commit()


def session_in_with(engine: Engine, sql: str) -> None:
    with Session(engine) as session:
        session.execute(text(sql))


def session_in_finally(engine: Engine, sql: str) -> None:
    session = Session(engine)
    try:
        session.execute(text(sql))
    finally:
        session.close()


def putconn_forgotten(pool: SimpleConnectionPool, sql: str) -> None:
    connection = pool.getconn()
    connection.cursor().execute(sql)


def putconn_at_the_end(pool: SimpleConnectionPool, sql: str) -> None:
    connection = pool.getconn()
    connection.cursor().execute(sql)
    pool.putconn(connection)


def putconn_in_finally(pool: SimpleConnectionPool, sql: str) -> None:
    connection = pool.getconn()
    try:
        connection.cursor().execute(sql)
    finally:
        pool.putconn(connection)


FORGOTTEN, WITH, FINALLY = "no close", "with, query fails", "close in finally, query fails"
PUT_NEVER, PUT_LATE = "no putconn", "putconn after the query, which fails"
PUT_FINALLY = "putconn in finally, query fails"


@experiment(
    question="Does a forgotten close leak the connection, and who has forgotten it?",
    rows=("1.39", "1.51", "3.25", "4.30"),
    seconds=4,
)
def run(
    lab: Lab, *, pool_size: int = 5, after_query: str = "nothing", mistake: str = "1 / 0"
) -> None:
    engine = create_engine(lab.url(), pool_size=pool_size, max_overflow=0, pool_timeout=0.2)
    lab.at_end(engine.dispose)
    lab.at_end(gc.enable)

    def in_transaction() -> int:
        return sum(each.state.startswith("idle in transaction") for each in lab.backends())

    def is_refused(request: Callable[[], None]) -> bool:
        try:
            request()
        except (PoolTimeout, PoolError):
            return True
        return False

    def measure(
        use: Callable[[], None], request: Callable[[], None]
    ) -> tuple[int, bool, int, bool]:
        gc.collect()
        before = in_transaction()
        gc.disable()  # it would run at some time: here it runs when the first half is measured
        for _ in range(pool_size):
            with suppress(psycopg2.Error, SQLAlchemyError):
                use()
        first = (in_transaction() - before, is_refused(request))
        gc.enable()
        gc.collect()
        return (*first, in_transaction() - before, is_refused(request))

    good, failing = "SELECT 1", f"SELECT {mistake}"
    found = {}
    for way, use in {
        FORGOTTEN: partial(session_not_closed, engine, good, after_query),
        WITH: partial(session_in_with, engine, failing),
        FINALLY: partial(session_in_finally, engine, failing),
    }.items():
        found[way] = measure(use, partial(session_in_with, engine, good))
    for way, use in {
        PUT_NEVER: partial(putconn_forgotten, sql=good),
        PUT_LATE: partial(putconn_at_the_end, sql=failing),
        PUT_FINALLY: partial(putconn_in_finally, sql=failing),
    }.items():
        pool = SimpleConnectionPool(1, pool_size, lab.dsn())
        lab.at_end(pool.closeall)
        found[way] = measure(partial(use, pool), partial(putconn_in_finally, pool, good))
    columns = (f"{pool_size} uses", "out", "next refused", "out after gc", "next refused")
    lab.table("Connections that are out", columns, [(way, *row) for way, row in found.items()])

    # Who has forgotten it: leak detection logs the stack of each checkout that is out for 50 ms.
    watched = create_engine(lab.url())
    lab.at_end(watched.dispose)
    poolkit.attach(watched, poolkit.preset("web", "dev"), leak_detection_threshold=0.05)
    reports: list[logging.LogRecord] = []
    handler, logger = logging.Handler(), logging.getLogger("poolkit.holds")
    handler.emit = reports.append
    logger.addHandler(handler)
    lab.at_end(logger.removeHandler, handler)
    session_not_closed(watched, good, after_query)
    lab.wait_until("the leak is reported", lambda: reports or not watched.pool.checkedout())
    holds = [record.hold for record in reports]
    columns = ("checked out by", "in", "out for s, when reported")
    rows = [(hold["where"], hold["holder"], hold["held_s"]) for hold in holds]
    lab.table(
        "Leaks that poolkit.attach(engine, leak_detection_threshold=0.05) reports", columns, rows
    )
    gc.collect()

    def shown(*ways: str) -> str:
        return ", ".join(f"{way}: {found[way][0]} out, {found[way][2]} after gc" for way in ways)

    lab.judge(
        "1.39",
        "with and try/finally prevent the leak of a session that is not closed",
        holds=found[FORGOTTEN][0] > 0 and found[WITH][0] == found[FINALLY][0] == 0,
        measured=shown(FORGOTTEN, WITH, FINALLY),
        why="Both call close(), which ends the transaction and returns the connection, whether the "
        "query succeeds or not. commit() and rollback() return it too; only then is a close late.",
    )
    lab.judge(
        "1.51",
        "a session that is not closed has leaked its connection",
        holds={
            "the time before a garbage collection": found[FORGOTTEN][1],
            "the time after it": found[FORGOTTEN][3],
        },
        measured=shown(FORGOTTEN),
        why="Session and transaction refer to each other, so the session lives until the cyclic "
        "garbage collector finds it. Then the pool takes the connection back. Nothing decides when "
        "that is, and a session that is still referred to, by a global or a traceback, stays.",
    )
    why = (
        "psycopg2's pool refers to each connection that is out, until putconn. So the garbage "
        "collector never returns one, and the pool raises PoolError until the process ends."
    )
    lab.judge(
        "3.25",
        "without putconn a connection has leaked; putconn in a finally prevents it",
        holds=found[PUT_NEVER][3] and not found[PUT_FINALLY][3],
        measured=shown(PUT_NEVER, PUT_FINALLY),
        why=why,
    )
    lab.judge(
        "4.30",
        "an exception before putconn leaks the connection; putconn in a finally prevents it",
        holds=found[PUT_LATE][3] and not found[PUT_FINALLY][3],
        measured=shown(PUT_LATE, PUT_FINALLY),
        why=why,
    )
