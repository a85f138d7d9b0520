"""What does a pool cost that is made inside the function that uses it?

You may have read that it is a mistake to write `pool = pool.SimpleConnectionPool(...)` in a function,
because each call then makes a pool (3.24).

The function is called with a pool of its own and with one that was made before, in turn, beside a
function that has no pool and connects. Then the line is run as it is printed.
"""

import psycopg2
from psycopg2 import pool
from psycopg2.pool import SimpleConnectionPool

from poolkit.experiment import Lab, experiment


@experiment(
    question="What does a pool cost that is made inside the function that uses it?",
    rows=("3.24",),
    seconds=1,
)
def run(lab: Lab, *, calls: int = 15, minconn: int = 5, query_ms: float = 0.0) -> None:
    query = f"SELECT pg_sleep({query_ms / 1e3})"

    def bad_function() -> None:
        connection_pool = SimpleConnectionPool(minconn, 20, lab.dsn())
        conn = connection_pool.getconn()
        conn.cursor().execute(query)
        connection_pool.closeall()

    connection_pool = SimpleConnectionPool(minconn, 20, lab.dsn())
    lab.at_end(connection_pool.closeall)

    def good_function() -> None:
        conn = connection_pool.getconn()
        try:
            conn.cursor().execute(query)
        finally:
            connection_pool.putconn(conn)

    def no_pool() -> None:
        conn = psycopg2.connect(lab.dsn())
        conn.cursor().execute(query)
        conn.close()

    opened = len(lab.backends())
    lab.say(f"{calls} calls of each function")
    ways = {"a pool in each call": bad_function, "no pool": no_pool, "one pool": good_function}
    ms = {way: took.median * 1e3 for way, took in lab.time_in_turn(ways, calls).items()}
    lab.bars(f"One call (p50 of {calls})", ms, unit="ms")

    def as_printed() -> None:
        pool = pool.SimpleConnectionPool(minconn, 20, lab.dsn())  # noqa: F823
        pool.closeall()

    try:
        as_printed()
        printed = "works"
    except UnboundLocalError as error:
        printed = f"raises {type(error).__name__}"

    lab.judge(
        "3.24",
        "a pool made in each call of a function costs more than one made at the start",
        holds=ms["a pool in each call"] > 2 * ms["one pool"],
        measured=f"a pool opens {opened} connections; a call takes "
        + ", ".join(f"{each:.2g} ms with {way}" for way, each in ms.items())
        + f"; the line as printed {printed}",
        why="psycopg2 opens minconn connections when the pool is made, though the call needs one. "
        "So such a pool is slower than no pool, unless the query takes longer than all of that. "
        "As printed the line cannot run: it makes `pool` a local name, which hides the module.",
    )
