"""What do psycopg2's pools do for one thread, and for many?

You may have read to use psycopg2's `SimpleConnectionPool` with getconn and putconn for every query
(3.6, 3.9), or its `ThreadedConnectionPool` (4.25); that such a pool reuses connections (3.8); that
maxconn protects the database (3.13); and that minconn=2 and maxconn=10 suit a small application, 5
and 20 a medium one, 10 and 50 to 100 a large one (3.14).

Requests come in waves of 1, of minconn and of maxconn, and the connections that served them are
counted. At last twice as many threads as maxconn take a connection at the same moment.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Barrier
from typing import Any

import psycopg_pool
from psycopg2.pool import PoolError, SimpleConnectionPool, ThreadedConnectionPool

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


def rush(lab: Lab, pool: SimpleConnectionPool | ThreadedConnectionPool, threads: int) -> int:
    """Let threads take a connection at the same moment and keep it; return how many are open."""
    together = Barrier(threads)

    def take(_: int) -> None:
        together.wait()
        with suppress(PoolError):
            pool.getconn()

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(take, range(threads)))
    return len(lab.backends())


@contextmanager
def opened(kind: Any, *arguments: Any) -> Iterator[Any]:
    pool = kind(*arguments)
    try:
        yield pool
    finally:
        pool.closeall()


@experiment(
    question="What do psycopg2's pools do for one thread, and for many?",
    rows=("3.6", "3.8", "3.9", "3.13", "3.14", "4.25"),
    seconds=6,
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

    lab.say(f"{2 * maxconn} threads take a connection at the same moment")
    most = {}
    for kind in (SimpleConnectionPool, ThreadedConnectionPool):
        lab.wait_until("the pool before is closed", lambda: not lab.backends())
        with opened(kind, 0, maxconn, lab.dsn()) as pool:
            most[kind.__name__] = rush(lab, pool, 2 * maxconn)
    simple, threaded = most["SimpleConnectionPool"], most["ThreadedConnectionPool"]

    lab.bars(
        f"Connections opened for {waves} waves of requests, minimum {minconn}, maximum {maxconn}",
        {
            "psycopg2, 1 at once": by_one,
            f"psycopg2, {minconn} at once": by_few,
            f"psycopg2, {maxconn} at once": by_many,
            f"psycopg_pool, {maxconn} at once": by_many_of_psycopg,
        },
        unit="connections",
    )
    lab.table(
        f"Open when {2 * maxconn} threads come at once, maxconn={maxconn}",
        ("", "open"),
        most.items(),
    )
    shared = f"{2 * maxconn} threads at once: {simple} open with SimpleConnectionPool, {threaded} "
    shared += f"with ThreadedConnectionPool, of maxconn={maxconn}"
    race = (
        "SimpleConnectionPool has no lock. Threads that come while another one's connect is under "
        "way do not see its connection in the count, so each opens one. ThreadedConnectionPool "
        "holds a lock meanwhile: no thread can take or give back a connection during a connect."
    )
    churn = (
        "putconn keeps minconn idle connections and closes the rest. So each wave of more than "
        "minconn requests opens what the one before closed. Set minconn to the size of the waves, "
        "or use a pool that keeps idle connections for minutes, as psycopg_pool does."
    )
    lab.judge(
        "3.6",
        "a SimpleConnectionPool, with getconn and putconn around each query, serves an application",
        holds={"one thread": by_one <= minconn, "many threads": simple <= maxconn},
        measured=f"one thread: {by_one} connection for {waves} requests; {shared}",
        why=race,
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
            f"up to minconn={minconn} at once": by_few <= minconn,
            f"up to maxconn={maxconn} at once": by_many <= maxconn,
        },
        measured=f"{by_few} opened for {waves} waves of {minconn} requests, {by_many} for {waves} "
        f"waves of {maxconn}",
        why=churn,
    )
    lab.judge(
        "3.14",
        f"minconn={minconn} and maxconn={maxconn} suit an application that has up to {maxconn} "
        "requests at once",
        holds={
            "psycopg2's pool": by_many <= 2 * maxconn,
            "psycopg_pool": by_many_of_psycopg <= 2 * maxconn,
        },
        measured=f"{waves} waves of {maxconn} requests: {by_many} connections opened by psycopg2's "
        f"pool, {by_many_of_psycopg} by psycopg_pool",
        why=churn,
    )
    lab.judge(
        "3.13",
        "maxconn protects the database from too many connections",
        holds={kind: open_ <= maxconn for kind, open_ in most.items()},
        measured=shared,
        why=race + " And it is a limit for one process: four workers may open four times as many.",
    )
    lab.judge(
        "4.25",
        "a ThreadedConnectionPool lets threads share connections",
        holds=threaded <= maxconn and by_few <= minconn,
        measured=f"{by_few} connections used by {minconn} threads; {threaded} open for "
        f"{2 * maxconn} threads with maxconn={maxconn}",
        why="Its lock makes getconn and putconn safe for threads. A thread that finds all in use "
        "gets PoolError, so the number of threads must not exceed maxconn.",
    )
