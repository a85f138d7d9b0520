"""The exercise: ten threads and a pool of five, ten threads without a pool, a pool above the limit.

You may have read this exercise (4.39, 4.40, 4.41), without its solution:

1. Create a pool of 5. Ten threads take a connection each, sleep for a second and give it back.
   Observe that only five connections are open.
2. The same without a pool. Compare the latency.
3. Set pool_size above the server's max_connections. Observe the failure.

What to expect (a second is `hold_s` here, half as long):

1. Five connections, and the last thread is served after two turns: 2 x `hold_s`. But only with
   `max_overflow=0`. QueuePool's default of 10 lets all ten threads open a connection. psycopg2's
   pool opens five, and raises PoolError in the other five threads.
2. Ten connections, and all threads are done after one turn: without a pool these threads are
   *faster*, because five of them do not wait. For short queries it is the other way round: there
   the connect takes longer than the wait.
3. With one thread nothing happens, since a pool opens what is needed. With as many threads as
   pool_size: "FATAL: sorry, too many clients already", or "remaining connection slots are reserved".
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
    """What ten threads experienced."""

    served: Times
    failed: int
    most_open: int


def in_threads(
    place: Lab | Place, number: int, use: Callable[..., None], *arguments: Any, times: int = 1
) -> Run:
    """Call a function in threads at the same time, and watch the server meanwhile."""
    together = Barrier(number)

    def work() -> list[float]:
        served = []
        together.wait()
        for _ in range(times):
            begin = time.perf_counter()
            with suppress(OperationalError, psycopg2.pool.PoolError):
                use(*arguments)
                served.append(time.perf_counter() - begin)
        return served

    most_open = 0
    with ThreadPoolExecutor(number) as threads:
        works = [threads.submit(work) for _ in range(number)]
        while not all(work.done() for work in works):
            most_open = max(most_open, len(place.backends()))
            time.sleep(0.02)
    served = Times(each for work in works for each in work.result())
    return Run(served, number * times - len(served), most_open)


@experiment(
    question="Ten threads share a pool of five: what is to be seen?",
    rows=("4.39", "4.40", "4.41"),
    seconds=10,
)
def run(
    lab: Lab, *, threads: int = 10, pool_size: int = 5, hold_s: float = 0.5, server_limit: int = 10
) -> None:
    lab.say(f"{threads} threads hold a connection for {hold_s:g} s each, then query 10 times")
    held: dict[str, Run] = {}
    short: dict[str, Run] = {}
    for name, options in (
        ("QueuePool", {"pool_size": pool_size, "max_overflow": 0}),
        ("QueuePool, default overflow", {"pool_size": pool_size}),
        ("no pool", {"poolclass": NullPool}),
    ):
        engine = create_engine(lab.url(), **options)
        try:
            held[name] = in_threads(lab, threads, use_engine, engine, hold_s)
            short[name] = in_threads(lab, threads, use_engine, engine, 0, times=10)
        finally:
            engine.dispose()
        lab.wait_until("the engine's connections are closed", lambda: not lab.backends())
    pool = psycopg2.pool.ThreadedConnectionPool(1, pool_size, lab.dsn())
    try:
        held["psycopg2's pool"] = in_threads(lab, threads, use_psycopg2, pool, hold_s)
    finally:
        pool.closeall()

    lab.say(f"a server with max_connections={server_limit}, and pool_size={2 * server_limit}")
    with lab.new_server(max_connections=server_limit) as server:
        too_large = create_engine(server.url(), pool_size=2 * server_limit, pool_timeout=5)
        try:
            alone = in_threads(server, 1, use_engine, too_large, 0)
            crowd = in_threads(server, 2 * server_limit, use_engine, too_large, hold_s)
        finally:
            too_large.dispose()

    columns = ("", "most open", "served", "failed", "p50 in s", "last in s")
    rows = [
        (n, r.most_open, len(r.served), r.failed, r.served.median, max(r.served))
        for n, r in held.items()
    ]
    lab.table(f"{threads} threads, each holds a connection for {hold_s:g} s", columns, rows)
    times = [(n, r.served.median * 1e3, r.served.percentile(0.95) * 1e3) for n, r in short.items()]
    lab.table(f"{threads} threads, 10 short queries each", ("", "p50 in ms", "p95 in ms"), times)
    lab.bars("Most connections open", {n: r.most_open for n, r in held.items()}, unit="connections")

    pools = {name: run for name, run in held.items() if name != "no pool"}
    lab.judge(
        "4.39",
        f"a pool of {pool_size} serves {threads} threads over {pool_size} connections",
        holds={n: r.most_open == pool_size and r.failed == 0 for n, r in pools.items()},
        measured="; ".join(f"{n}: {r.most_open} open, {r.failed} failed" for n, r in pools.items()),
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
    lab.judge(
        "4.41",
        "a pool_size above the server's max_connections makes requests fail",
        holds={
            f"{2 * server_limit} threads at once": crowd.failed > 0,
            "one thread": alone.failed > 0,
        },
        measured=f"max_connections={server_limit}, pool_size={2 * server_limit}: {crowd.failed} of "
        f"{2 * server_limit} threads failed, {alone.failed} of 1; {crowd.most_open} open at the most",
        why="The setting promises nothing to the server: it is refused connections when they are "
        "needed. Such a fault waits for the first busy hour. A few of max_connections are kept for "
        "superusers, so the application gets fewer than the limit.",
    )
