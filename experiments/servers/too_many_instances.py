"""How many instances can share one PostgreSQL?

You may have read that a pool limits the connections (1.2); that instances x pool size has to stay
below max_connections (4.7); that 50 instances with a pool of 20 are too many for 100 (4.29); and that
one pool of 100 to 500 connections is too large (3.26).

Everything here is a fifth as large: a server with max_connections=20 stands for one with 100, and 10
instances for 50. An instance is an engine: the server sees connections, not machines.
"""

from contextlib import ExitStack, suppress

import psycopg2
from psycopg2.pool import SimpleConnectionPool
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from poolkit.experiment import Lab, experiment


def fill(url: str, engines: int, pool_size: int, max_overflow: int = 0) -> int:
    """Use every pool to its limit, and return how many connections the server refused."""
    refused = 0
    with ExitStack() as stack:
        for _ in range(engines):
            engine = create_engine(url, pool_size=pool_size, max_overflow=max_overflow)
            stack.callback(engine.dispose)
            for _ in range(pool_size + max_overflow):
                try:
                    stack.enter_context(engine.connect())
                except OperationalError:
                    refused += 1
    return refused


def fill_psycopg2(dsn: str, minconn: int, maxconn: int) -> int:
    """Use a pool of psycopg2 to its limit, and return how many connections it gave."""
    try:
        pool = SimpleConnectionPool(minconn, maxconn, dsn)
    except psycopg2.OperationalError:
        return 0
    given = 0
    with suppress(psycopg2.OperationalError):
        for _ in range(maxconn):
            pool.getconn()
            given += 1
    pool.closeall()
    return given


@experiment(
    question="How many instances can share one PostgreSQL?",
    rows=("1.2", "3.26", "4.7", "4.29"),
    seconds=5,
)
def run(lab: Lab, *, max_connections: int = 20, instances: int = 10, pool_size: int = 20) -> None:
    fleets = {
        "one instance with a pool of 5": (1, 5),
        "3 instances x 5": (3, 5),
        "3 x 5 with the default max_overflow": (3, 5, 10),
        "3 x 5 in two processes each": (3 * 2, 5),
        "3 x 5 and a fourth while deploying": (3 + 1, 5),
        "3 x 6 with 3 reserved": (3, 6),
        f"{instances} x {pool_size}": (instances, pool_size),
    }
    lab.say(f"fleets use their pools to the limit on max_connections={max_connections}")
    refused = {}
    with lab.new_server(max_connections=max_connections) as server:
        for name, fleet in fleets.items():
            refused[name] = fill(server.url(), *fleet)
            lab.wait_until("the connections end", lambda: not server.backends())
        given = fill_psycopg2(server.dsn(), minconn=20, maxconn=100)

    rows = []
    for name, (engines, size, *overflow) in fleets.items():
        rows.append((name, engines * size, engines * (size + sum(overflow)), refused[name]))
    columns = ("", "instances x pool size", "wanted at the peak", "refused")
    lab.table(f"Fleets on max_connections={max_connections}", columns, rows)

    one, enough, *more, huge = fleets
    lab.judge(
        "1.2",
        "a pool limits the connections to the database",
        holds={"one instance": refused[one] == 0, f"{instances} instances": refused[huge] == 0},
        measured=f"{refused[one]} refused for {one}, {refused[huge]} for {huge}",
        why="A pool counts its own connections. It does not know of the pools in other processes, "
        "and what reaches the server is their sum.",
    )
    lab.judge(
        "4.7",
        "it is enough that instances x pool size is below max_connections",
        holds={name: refused[name] == 0 for name in (enough, *more)},
        measured="; ".join(f"{name}: {refused[name]} refused" for name in (enough, *more)),
        why="The peak is instances, with those that a deployment adds, x processes x (pool_size + "
        "max_overflow). It has to fit into max_connections less the reserve and less the others.",
    )
    lab.judge(
        "4.29",
        f"{instances} instances with a pool of {pool_size} exhaust max_connections",
        holds=refused[huge] > 0,
        measured=f"{refused[huge]} of {instances * pool_size} refused on {max_connections}",
        why="Pools open connections when they are needed. So the refusals come at the peak of a "
        "whole fleet, and not in a test of one instance.",
    )
    lab.judge(
        "3.26",
        "a pool of 100 to 500 connections is too large",
        holds=given < 100,
        measured=f"a pool of 20 to 100, a fifth of it, got {given} on {max_connections}",
        why="psycopg2's pool opens minconn in its constructor. A minimum above the server's limit "
        "is an error at the start; a maximum above it is an error at the peak.",
    )
