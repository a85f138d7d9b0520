"""The exercise: ten threads and a pool of five.

You may have read this exercise, without its solution:

1. Create a pool of 5. Ten threads take a connection each, sleep for a second and give it back.
   Observe that only five connections are open (4.39).
2. The same without a pool. Compare the latency (4.40).
3. Set pool_size above the server's max_connections. Observe the failure (4.41).

What to expect:

1. Five connections, and the last thread is done after two seconds. But only with `max_overflow=0`:
   QueuePool's default of 10 lets all ten threads open a connection. psycopg2's pool opens five, and
   raises PoolError in the other five threads.
2. Ten connections, and all threads are done after a second: they are *faster* without a pool,
   because none waits. Short queries are slower, because a connect takes longer than their wait.
3. One thread notices nothing. As many threads as pool_size get "FATAL: sorry, too many clients
   already", or "remaining connection slots are reserved".
"""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, NamedTuple

import psycopg2.pool
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from poolkit.experiment import Lab, Times, experiment
from poolkit.experiment.ground import Place


def use_engine(engine: Engine, seconds: float) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        time.sleep(seconds)


def use_psycopg2(pool: psycopg2.pool.ThreadedConnectionPool, seconds: float) -> None:
    connection = pool.getconn()
    try:
        connection.cursor().execute("SELECT 1")
        time.sleep(seconds)
    finally:
        pool.putconn(connection)


class Run(NamedTuple):
    """What the threads of one arm experienced."""

    served: Times
    errors: list[str]
    most_open: int


def in_threads(
    place: Lab | Place, number: int, use: Any, source: Any, *, hold_s: float = 0, times: int = 1
) -> Run:
    """Let threads use a pool at the same moment, and watch the server meanwhile."""
    together = Barrier(number)
    served, errors = [], []

    def work() -> None:
        together.wait()
        for _ in range(times):
            begin = time.perf_counter()
            try:
                use(source, hold_s)
                served.append(time.perf_counter() - begin)
            except (OperationalError, psycopg2.pool.PoolError) as error:
                errors.append(str(error).partition("FATAL:")[2].partition("\n")[0].strip())

    most_open = 0
    with ThreadPoolExecutor(number) as threads:
        works = [threads.submit(work) for _ in range(number)]
        while not all(done.done() for done in works):
            most_open = max(most_open, len(place.backends()))
            time.sleep(0.02)
    return Run(Times(served), errors, most_open)


@experiment(
    question="Ten threads share a pool of five: what is to be seen?",
    rows=("4.39", "4.40", "4.41"),
    seconds=10,
)
def run(
    lab: Lab, *, threads: int = 10, pool_size: int = 5, hold_s: float = 1.0, server_limit: int = 10
) -> None:
    strict = create_engine(lab.url(), pool_size=pool_size, max_overflow=0)
    overflowing = create_engine(lab.url(), pool_size=pool_size)
    without_pool = create_engine(lab.url(), poolclass=NullPool)
    psycopg2_pool = psycopg2.pool.ThreadedConnectionPool(0, pool_size, lab.dsn())
    for engine in (strict, overflowing, without_pool):
        lab.at_end(engine.dispose)
    lab.at_end(psycopg2_pool.closeall)

    held, short = {}, {}
    for name, use, source in (
        ("QueuePool", use_engine, strict),
        ("QueuePool, default overflow", use_engine, overflowing),
        ("psycopg2's pool", use_psycopg2, psycopg2_pool),
        ("no pool", use_engine, without_pool),
    ):
        lab.say(f"{name}: {threads} threads hold a connection for {hold_s:g} s each")
        held[name] = in_threads(lab, threads, use, source, hold_s=hold_s)
        if name in {"QueuePool", "no pool"}:
            short[name] = in_threads(lab, threads, use, source, times=10)
        strict.dispose()
        overflowing.dispose()
        lab.count_backends(0)

    lab.say(f"a server with max_connections={server_limit}, and pool_size={2 * server_limit}")
    with lab.new_server(max_connections=server_limit) as server:
        too_large = create_engine(server.url(), pool_size=2 * server_limit)
        lab.at_end(too_large.dispose)
        alone = in_threads(server, 1, use_engine, too_large)
        crowd = in_threads(server, 2 * server_limit, use_engine, too_large, hold_s=hold_s)

    columns = ("", "most open", "served", "failed", "first in s", "last in s")
    rows = [
        (name, run.most_open, len(run.served), len(run.errors), min(run.served), max(run.served))
        for name, run in held.items()
    ]
    lab.table(f"{threads} threads, each holds a connection for {hold_s:g} s", columns, rows)
    lab.bars("Most connections open", {n: r.most_open for n, r in held.items()}, unit="connections")
    pools = {name: run for name, run in held.items() if name != "no pool"}
    lab.judge(
        "4.39",
        f"a pool of {pool_size} serves {threads} threads over {pool_size} connections",
        holds={n: r.most_open == pool_size and not r.errors for n, r in pools.items()},
        measured="; ".join(
            f"{n}: {r.most_open} open, {len(r.errors)} failed" for n, r in pools.items()
        ),
        why="max_overflow is 10 unless it is set, so pool_size alone is no limit. psycopg2's pools "
        "have a limit and no queue: a thread that comes too late gets PoolError at once.",
    )
    with_pool, without = held["QueuePool"].served, held["no pool"].served
    short_with, short_without = short["QueuePool"].served, short["no pool"].served
    lab.judge(
        "4.40",
        "latency is lower with a pool than with a connection for each thread",
        holds={
            f"connections held for {hold_s:g} s": max(with_pool) < max(without),
            "short queries": short_with.median < short_without.median,
        },
        measured=f"held: the last thread was done after {max(with_pool):.2f} s with the pool, "
        f"{max(without):.2f} s without; short queries: {short_with} and {short_without}",
        why="A pool saves the connect and adds the wait for a free connection. The shorter a "
        "connection is in use, the more the saved connect counts. Without a pool no thread waits, "
        "and the server has a connection for each.",
    )
    refusals = ", ".join(sorted(set(crowd.errors)))
    lab.judge(
        "4.41",
        "a pool_size above the server's max_connections makes requests fail",
        holds={
            f"{2 * server_limit} threads at once": bool(crowd.errors),
            "one thread": bool(alone.errors),
        },
        measured=f"max_connections={server_limit}, pool_size={2 * server_limit}: "
        f"{len(crowd.errors)} of {2 * server_limit} threads failed ({refusals}), "
        f"{len(alone.errors)} of 1",
        why="The server does not know pool_size. It refuses a connection at the moment when one too "
        "many is opened, so this fault waits for the first busy hour. Three of max_connections are "
        "kept for superusers by default, so an application gets fewer.",
    )
