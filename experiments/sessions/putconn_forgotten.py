"""What becomes of a psycopg2 connection that is not put back?

You may have read that the pool loses a connection whose `putconn` is forgotten (3.25), or skipped by an
exception (4.30). A `finally` prevents both.

Each of three functions uses a pool of 5 five times. Then the server is asked how many connections are in a
transaction, and one more function asks for one, before and after a garbage collection.
`--set query="SELECT 1"` lets the queries succeed that fail by default.
"""

import gc
from collections.abc import Callable
from contextlib import suppress

import psycopg2
from psycopg2.pool import PoolError, SimpleConnectionPool

from poolkit.experiment import Lab, experiment


def forgotten(pool: SimpleConnectionPool, query: str) -> None:
    connection = pool.getconn()
    connection.cursor().execute(query)


def after_the_query(pool: SimpleConnectionPool, query: str) -> None:
    connection = pool.getconn()
    connection.cursor().execute(query)
    pool.putconn(connection)


def in_finally(pool: SimpleConnectionPool, query: str) -> None:
    connection = pool.getconn()
    try:
        connection.cursor().execute(query)
    finally:
        pool.putconn(connection)


@experiment(
    question="What becomes of a psycopg2 connection that is not put back?",
    rows=("3.25", "4.30"),
    seconds=1,
)
def run(lab: Lab, *, maxconn: int = 5, query: str = "SELECT 1 / 0") -> None:
    def serve(use: Callable[[SimpleConnectionPool, str], None], query: str) -> tuple[object, ...]:
        pool = SimpleConnectionPool(1, maxconn, lab.dsn())
        lab.at_end(pool.closeall)
        earlier = in_transaction()
        for _ in range(maxconn):
            with suppress(psycopg2.Error):
                use(pool, query)
        before = (in_transaction() - earlier, next_one(pool))
        gc.collect()
        return (*before, in_transaction() - earlier, next_one(pool))

    def in_transaction() -> int:
        return sum("in transaction" in backend.state for backend in lab.backends())

    def next_one(pool: SimpleConnectionPool) -> str:
        try:
            in_finally(pool, "SELECT 1")
        except PoolError:
            return "PoolError"
        return "served"

    found = {
        "forgotten": serve(forgotten, "SELECT 1"),
        "after a query that fails": serve(after_the_query, query),
        "in a finally": serve(in_finally, query),
    }
    columns = ("putconn", "out", "next getconn", "out after gc", "next getconn")
    lab.table(f"After {maxconn} uses", columns, [(way, *row) for way, row in found.items()])

    lost = {way: row[3] == "PoolError" for way, row in found.items()}
    shown = {way: f"putconn {way}: {row[0]} out, {row[2]} after gc" for way, row in found.items()}
    why = (
        "The pool refers to each connection that is out until putconn, so the garbage collector never "
        "finds one. It has no limit of time either: when all are lost, each getconn raises PoolError "
        "until the process ends. The server keeps their transactions open."
    )
    lab.judge(
        "3.25",
        "a connection without putconn is lost to the pool; a finally prevents it",
        holds=lost["forgotten"] and not lost["in a finally"],
        measured=f"{shown['forgotten']}; {shown['in a finally']}",
        why=why,
    )
    lab.judge(
        "4.30",
        "an exception before putconn loses the connection; a finally prevents it",
        holds=lost["after a query that fails"] and not lost["in a finally"],
        measured=f"{shown['after a query that fails']}; {shown['in a finally']}",
        why=why,
    )
