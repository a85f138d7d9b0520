"""Which connections does psycopg2's pool reuse?

You may have read that psycopg2's pool has connections ready, and that each query takes one and gives it
back (3.9); that it reuses connections (3.8); and that minconn=2 and maxconn=10 suit a small
application, 5 and 20 a medium one, 10 and 50 to 100 a large one (3.14).

Requests come in waves of 1, of minconn and of maxconn. All requests of a wave hold a connection at the
same time. The connections that served them are counted, by their processes on the server.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import psycopg_pool
from psycopg2.pool import SimpleConnectionPool, ThreadedConnectionPool

from poolkit.experiment import Lab, experiment


def connections_used(pool: Any, at_once: int, waves: int) -> int:
    """Serve waves of requests, all of a wave at once; return how many connections served them."""
    together = Barrier(at_once, timeout=30)

    def request(_: int) -> int:
        connection = pool.getconn()
        try:
            connection.cursor().execute("SELECT 1")
            together.wait()
            return connection.info.backend_pid
        finally:
            pool.putconn(connection)

    used: set[int] = set()
    with ThreadPoolExecutor(at_once) as threads:
        for _ in range(waves):
            used.update(threads.map(request, range(at_once)))
    return len(used)


@contextmanager
def opened(kind: Any, minconn: int, maxconn: int, dsn: str) -> Iterator[Any]:
    """Make a pool of psycopg2 for a block, and close it."""
    pool = kind(minconn, maxconn, dsn)
    try:
        yield pool
    finally:
        pool.closeall()


@experiment(
    question="Which connections does psycopg2's pool reuse?",
    rows=("3.8", "3.9", "3.14"),
    seconds=2,
)
def run(lab: Lab, *, minconn: int = 2, maxconn: int = 10, waves: int = 10) -> None:
    lab.say(f"{waves} waves of 1, {minconn} and {maxconn} requests")
    with opened(SimpleConnectionPool, minconn, maxconn, lab.dsn()) as pool:
        ready = len(lab.backends())
        by_one = connections_used(pool, 1, waves)
    with opened(ThreadedConnectionPool, minconn, maxconn, lab.dsn()) as pool:
        by_few = connections_used(pool, minconn, waves)
        by_many = connections_used(pool, maxconn, waves)
    with psycopg_pool.ConnectionPool(
        lab.dsn("psycopg"), min_size=minconn, max_size=maxconn, kwargs={"autocommit": True}
    ) as pool:
        by_many_of_psycopg = connections_used(pool, maxconn, waves)

    lab.table(
        f"{waves} waves of requests, minconn={minconn}, maxconn={maxconn}",
        ("", "at once", "connections opened"),
        [
            ("psycopg2's pool", 1, by_one),
            ("psycopg2's pool", minconn, by_few),
            ("psycopg2's pool", maxconn, by_many),
            ("psycopg_pool", maxconn, by_many_of_psycopg),
        ],
    )
    bars = {"psycopg2's pool": by_many, "psycopg_pool": by_many_of_psycopg}
    lab.bars(f"Connections opened for {waves} waves of {maxconn}", bars, unit="connections")
    churn = (
        "putconn keeps minconn idle connections and closes the rest. So each wave of more than "
        "minconn requests opens what the one before closed. Set minconn to the size of the waves, "
        "or use a pool that keeps idle connections for minutes, as psycopg_pool does."
    )
    lab.judge(
        "3.9",
        f"the pool has {minconn} connections ready, and each query takes one and gives it back",
        holds=ready == minconn and by_one <= minconn,
        measured=f"{ready} open before the first query, {by_one} used by {waves} queries",
        why="The constructor opens minconn connections before it returns. getconn takes the one that "
        "came back last, so a single thread always gets the same one.",
    )
    lab.judge(
        "3.8",
        "psycopg2's pool reuses connections, and no request needs a connect",
        holds={
            f"waves of {minconn} requests": by_few <= minconn,
            f"waves of {maxconn}": by_many <= maxconn,
        },
        measured=f"{by_few} opened for {waves} waves of {minconn} requests, {by_many} for {waves} "
        f"waves of {maxconn}",
        why=churn,
    )
    lab.judge(
        "3.14",
        f"minconn={minconn} and maxconn={maxconn} suit an application with up to {maxconn} requests "
        "at once",
        holds={
            "psycopg2's pool": by_many <= 2 * maxconn,
            "psycopg_pool": by_many_of_psycopg <= 2 * maxconn,
        },
        measured=f"{waves} waves of {maxconn} requests: {by_many} connections opened by psycopg2's "
        f"pool, {by_many_of_psycopg} by psycopg_pool",
        why=churn,
    )
