"""The exercise: ten threads and a pool of five.

You may have read this exercise, without its solution:

1. Ten threads share a pool of 5. Each takes a connection, sleeps for a second and gives it back.
   Observe that only five connections are open (4.39).
2. The same without a pool. Compare the latency (4.40).

What to expect:

1. Five connections, and the last thread is done after two seconds. That needs `max_overflow=0`: by
   default ten connections are open. With psycopg2's pool, five threads get a PoolError.
2. Ten connections, and all threads are done after a second: *faster*, because none waits. Short
   queries are slower, because a connect takes longer than their wait.

The third part, a pool_size above the server's max_connections, is `above_max_connections`.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, NamedTuple

from psycopg2.pool import ThreadedConnectionPool
from sqlalchemy import Engine, NullPool, create_engine, text

from poolkit.experiment import Lab, Times, experiment


class Run(NamedTuple):
    """What happened to the threads, and the most connections that the server had meanwhile."""

    served: Times
    errors: list[str]
    most_open: int


def use(engine: Engine, hold_s: float = 0.0) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        time.sleep(hold_s)


def use_psycopg2(pool: ThreadedConnectionPool, hold_s: float) -> None:
    connection = pool.getconn()
    try:
        connection.cursor().execute("SELECT 1")
        time.sleep(hold_s)
    finally:
        pool.putconn(connection)


def in_threads(lab: Lab, number: int, action: Any, *arguments: Any, times: int = 1) -> Run:
    """Call a function in threads that start together, and watch the server."""
    together, most_open = Barrier(number, timeout=30), 0

    def thread() -> float:
        together.wait()
        began = time.perf_counter()
        for _ in range(times):
            action(*arguments)
        return time.perf_counter() - began

    with ThreadPoolExecutor(number) as threads:
        running = [threads.submit(thread) for _ in range(number)]
        while not all(each.done() for each in running):
            most_open = max(most_open, len(lab.backends()))
            time.sleep(0.02)
    errors = [str(each.exception()) for each in running if each.exception()]
    served = Times(each.result() for each in running if not each.exception())
    return Run(served, errors, most_open)


@experiment(
    question="Ten threads share a pool of five: what is to be seen?",
    rows=("4.39", "4.40"),
    seconds=8,
)
def run(lab: Lab, *, threads: int = 10, pool_size: int = 5, hold_s: float = 1.0) -> None:
    queue_pool = create_engine(lab.url(), pool_size=pool_size, max_overflow=0)
    overflowing = create_engine(lab.url(), pool_size=pool_size)
    no_pool = create_engine(lab.url(), poolclass=NullPool)
    psycopg2_pool = ThreadedConnectionPool(0, pool_size, lab.dsn())
    for dispose in (queue_pool.dispose, overflowing.dispose, psycopg2_pool.closeall):
        lab.at_end(dispose)
    held = {}
    for name, action, source in (
        ("QueuePool", use, queue_pool),
        ("QueuePool, default overflow", use, overflowing),
        ("psycopg2's pool", use_psycopg2, psycopg2_pool),
        ("no pool", use, no_pool),
    ):
        lab.say(f"{name}: {threads} threads hold a connection for {hold_s:g} s each")
        held[name] = in_threads(lab, threads, action, source, hold_s)
        queue_pool.dispose()
        overflowing.dispose()
        lab.count_backends(0)
    columns = ("", "most open", "served", "failed", "first in s", "last in s")
    rows = [
        (name, run.most_open, len(run.served), len(run.errors), min(run.served), max(run.served))
        for name, run in held.items()
    ]
    lab.table(f"{threads} threads, each holds a connection for {hold_s:g} s", columns, rows)
    lab.bars("Most connections open", {n: r.most_open for n, r in held.items()}, unit="connections")
    last, last_without = max(held["QueuePool"].served), max(held.pop("no pool").served)
    lab.judge(
        "4.39",
        f"a pool of {pool_size} serves {threads} threads over {pool_size} connections",
        holds={n: r.most_open == pool_size and not r.errors for n, r in held.items()},
        measured="; ".join(
            f"{n}: {r.most_open} open, {len(r.errors)} failed" for n, r in held.items()
        ),
        why="max_overflow is 10 unless it is set, so pool_size alone is no limit. psycopg2's pools "
        "have a limit and no queue: a thread that comes too late gets a PoolError at once.",
    )
    lab.say(f"{threads} threads send 20 short queries each")
    short = in_threads(lab, threads, use, queue_pool, times=20).served
    short_without = in_threads(lab, threads, use, no_pool, times=20).served
    lab.judge(
        "4.40",
        "latency is lower with a pool than with a connection for each thread",
        holds={
            f"connections held for {hold_s:g} s": last < last_without,
            "short queries": short.median < short_without.median,
        },
        measured=f"held: the last thread was done after {last:.2f} s with the pool, "
        f"{last_without:.2f} s without; 20 short queries: {short} and {short_without}",
        why="A pool saves the connect and adds the wait for a free connection. The shorter a "
        "connection is in use, the more the saved connect counts.",
    )
