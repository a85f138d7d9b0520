"""May threads share psycopg2's pools?

You may have read to use psycopg2's `SimpleConnectionPool`, with getconn and putconn around each query
(3.6), or its `ThreadedConnectionPool` (4.25); and that maxconn protects the database (3.13).

One thread sends queries one after the other. Then more threads than maxconn take a connection at the
same moment, each from an empty pool.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from psycopg2.pool import PoolError, SimpleConnectionPool, ThreadedConnectionPool

from poolkit.experiment import Lab, experiment

Pool = SimpleConnectionPool | ThreadedConnectionPool


def query(pool: Pool) -> int:
    """Send a query as the texts do; return the process of its connection on the server."""
    connection = pool.getconn()
    try:
        connection.cursor().execute("SELECT 1")
        return connection.info.backend_pid
    finally:
        pool.putconn(connection)


def refused_in_a_rush(pool: Pool, threads: int) -> int:
    """Return how many threads get no connection if all take one at the same moment and keep it."""
    together = Barrier(threads, timeout=30)

    def take(_: int) -> bool:
        together.wait()
        try:
            pool.getconn()
        except PoolError:
            return False
        return True

    with ThreadPoolExecutor(threads) as executor:
        return list(executor.map(take, range(threads))).count(False)


@experiment(question="May threads share psycopg2's pools?", rows=("3.6", "3.13", "4.25"), seconds=2)
def run(lab: Lab, *, maxconn: int = 10, threads: int = 20, queries: int = 100) -> None:
    pool = SimpleConnectionPool(1, maxconn, lab.dsn())
    try:
        used = len({query(pool) for _ in range(queries)})
    finally:
        pool.closeall()

    most, refused = {}, {}
    for kind in (SimpleConnectionPool, ThreadedConnectionPool):
        lab.say(f"{threads} threads take a connection from a {kind.__name__}")
        lab.count_backends(0)
        pool = kind(0, maxconn, lab.dsn())
        try:
            refused[kind.__name__] = refused_in_a_rush(pool, threads)
            most[kind.__name__] = len(lab.backends())
        finally:
            pool.closeall()
    pool = ThreadedConnectionPool(1, maxconn, lab.dsn())
    try:
        refused_of_few = refused_in_a_rush(pool, maxconn)
    finally:
        pool.closeall()
    simple, threaded = most["SimpleConnectionPool"], most["ThreadedConnectionPool"]

    lab.table(
        f"{threads} threads take a connection at the same moment, maxconn={maxconn}",
        ("", "open", "threads with PoolError"),
        [(name, most[name], refused[name]) for name in most],
    )
    lab.bars(f"Connections open, maxconn={maxconn}", most, unit="connections")
    measured = (
        f"{threads} threads: {simple} open with SimpleConnectionPool, {threaded} with "
        f"ThreadedConnectionPool, of maxconn={maxconn}"
    )
    why = (
        "SimpleConnectionPool has no lock. A connect takes some ms, and threads that come meanwhile do "
        "not see its connection in the count, so each opens one. ThreadedConnectionPool holds a lock "
        "for that time: its limit holds, and no other thread can take or give back a connection."
    )
    lab.judge(
        "3.6",
        "a SimpleConnectionPool, with getconn and putconn around each query, serves an application",
        holds={"one thread": used == 1, "threads that share it": simple <= maxconn},
        measured=f"one thread: {used} connection for {queries} queries; {measured}",
        why=why,
    )
    lab.judge(
        "3.13",
        "maxconn protects the database from too many connections",
        holds={name: number <= maxconn for name, number in most.items()},
        measured=measured,
        why="maxconn is a limit for one pool in one process, so four worker processes open up to four "
        "times as many. It is no limit at all for threads that share a SimpleConnectionPool.",
    )
    lab.judge(
        "4.25",
        "a ThreadedConnectionPool lets threads share connections",
        holds={
            f"{maxconn} threads": refused_of_few == 0,
            f"{threads} threads": refused["ThreadedConnectionPool"] == 0,
        },
        measured=f"{refused_of_few} of {maxconn} threads got PoolError, and "
        f"{refused['ThreadedConnectionPool']} of {threads}; maxconn={maxconn}",
        why="Its lock makes getconn and putconn safe for threads, but it has no queue: a thread that "
        "finds all connections in use gets PoolError. So maxconn must not be smaller than the number "
        "of threads.",
    )
