"""Does a script need a pool?

You may have read that simple scripts that run once need no pool (3.20), and neither do programs that
send one query after the other in one thread (3.21).

A script does one unit of work, with and without a pool; the network counts its connections. Then a
program sends queries one after the other: with a connection for each, with one kept connection, and
with a pool.
"""

from contextlib import closing

import psycopg2
from psycopg2.pool import SimpleConnectionPool

from poolkit.experiment import Lab, experiment


def connection_for_each(dsn: str, queries: int) -> None:
    for _ in range(queries):
        with closing(psycopg2.connect(dsn)) as connection:
            connection.cursor().execute("SELECT 1")
            connection.commit()


def one_kept_connection(dsn: str, queries: int) -> None:
    with closing(psycopg2.connect(dsn)) as connection:
        for _ in range(queries):
            connection.cursor().execute("SELECT 1")
            connection.commit()


def a_pool(dsn: str, queries: int) -> None:
    pool = SimpleConnectionPool(1, 5, dsn)
    try:
        for _ in range(queries):
            connection = pool.getconn()
            connection.cursor().execute("SELECT 1")
            connection.commit()
            pool.putconn(connection)
    finally:
        pool.closeall()


@experiment(question="Does a script need a pool?", rows=("3.20", "3.21"), seconds=2)
def run(lab: Lab, *, units: int = 1, queries: int = 40) -> None:
    opened = {}
    with lab.network() as line:
        for name, way in (("without", connection_for_each), ("with", a_pool)):
            before = line.network.figures().accepted
            way(line.address.dsn(), units)
            opened[name] = line.network.figures().accepted - before

    lab.say(f"{queries} queries one after the other, in three ways")
    ways = {
        "a connection for each query": lambda: connection_for_each(lab.dsn(), queries),
        "one kept connection": lambda: one_kept_connection(lab.dsn(), queries),
        "a pool": lambda: a_pool(lab.dsn(), queries),
    }
    times = lab.time_in_turn(ways, 5)
    # The fastest round, not the median: what else the machine does lengthens the others.
    each_ms = {name: min(found) / queries * 1e3 for name, found in times.items()}
    lab.table("A query in one thread", ("way", "ms for each"), each_ms.items())
    lab.bars("A query in one thread", each_ms, unit="ms")
    lab.judge(
        "3.20",
        "a simple script that runs once needs no pool",
        holds=opened["without"] <= opened["with"],
        measured=f"connections opened for {units} units of work: {opened['without']} without a "
        f"pool, {opened['with']} with one",
        why="A pool saves connects from the second checkout on, and a script with one unit of work "
        "has only one. It needs to close its connection, which a context manager does.",
    )
    lab.judge(
        "3.21",
        "a program that sends one query after the other needs no pool",
        holds={
            name: each_ms[name] <= 3 * each_ms["a pool"]
            for name in ("one kept connection", "a connection for each query")
        },
        measured=", ".join(f"{each:.2f} ms with {name}" for name, each in each_ms.items()),
        why="What saves time is to use a connection again. One thread needs only one, and a "
        "variable keeps it as well as a pool does. A pool also replaces a connection that died, if "
        "it checks; a program that runs for days has to do that by itself.",
    )
