"""What is gained when 1000 requests share 50 connections?

You may have read that 1000 requests share 50 connections, wait in a queue, and get a higher
throughput than without a pool (4.20); and that the load on the database is high without a pool,
because connections are opened and closed all the time, and low with one (3.29).

1000 requests come at once, to an engine with a pool of 50. Then 200 come to an engine without a pool;
they take turns, 50 at once, as the server would refuse more than 97. Then the processor time of the
server's processes is read.
"""

import asyncio
import time
from typing import NamedTuple

import psutil
from sqlalchemy import NullPool, event, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from poolkit.experiment import Lab, experiment


class Served(NamedTuple):
    """What became of the requests."""

    answered: int
    rate: float
    longest_wait_s: float
    connects: int


async def serve(engine: AsyncEngine, requests: int, at_once: int, query: str) -> Served:
    """Start all requests at the same moment; each takes a connection for one query."""
    connects, waits = [], []
    event.listen(engine.sync_engine, "connect", lambda *_: connects.append(1))
    turns = asyncio.Semaphore(at_once)
    began = time.perf_counter()

    async def request() -> bool:
        async with turns:
            try:
                async with engine.connect() as connection:
                    waits.append(time.perf_counter() - began)
                    await connection.execute(text(query))
            except PoolTimeout:
                return False
        return True

    answered = sum(await asyncio.gather(*(request() for _ in range(requests))))
    took = time.perf_counter() - began
    await engine.dispose()
    return Served(answered, answered / took, max(waits, default=0.0), len(connects))


@experiment(
    question="What is gained when 1000 requests share 50 connections?",
    rows=("3.29", "4.20"),
    seconds=3,
)
def run(lab: Lab, *, requests: int = 1000, pool_size: int = 50, pool_timeout: float = 30.0) -> None:
    query = "SELECT pg_sleep(0.005)"
    postgres = lab.place.postgres

    def cpu_s() -> float:
        """Return the processor time of all server processes that have ended."""
        if postgres is None:
            return 0.0
        times = psutil.Process(postgres.pid).cpu_times()
        return times.children_user + times.children_system

    def measure(engine: AsyncEngine, number: int, at_once: int) -> tuple[Served, float]:
        """Return what was served, and the server's ms of processor time for each request."""
        before = cpu_s()
        served = asyncio.run(serve(engine, number, at_once, query))
        lab.wait_until("the connections end", lambda: not lab.backends())
        time.sleep(0.5)  # The time of a process is added to its parent's when it has ended.
        return served, (cpu_s() - before) * 1e3 / number

    lab.say(f"{requests} requests at once on a pool of {pool_size}")
    engine = create_async_engine(
        lab.url("asyncpg"), pool_size=pool_size, max_overflow=0, pool_timeout=pool_timeout
    )
    pooled, pooled_ms = measure(engine, requests, requests)
    few = min(requests, 200)
    lab.say(f"{few} requests without a pool")
    engine = create_async_engine(lab.url("asyncpg"), poolclass=NullPool)
    alone, alone_ms = measure(engine, few, pool_size)

    lab.table(
        "Requests with a query of 5 ms",
        ("", "answered", "requests/s", "longest wait s", "connects", "CPU ms each"),
        [(f"a pool of {pool_size}", *pooled, pooled_ms), ("no pool", *alone, alone_ms)],
    )
    lab.judge(
        "4.20",
        f"{requests} requests share {pool_size} connections: they queue, and throughput is higher",
        holds=pooled.answered == requests
        and pooled.connects <= pool_size
        and pooled.rate > 1.5 * alone.rate,
        measured=f"{pooled.answered} of {requests} answered over {pooled.connects} connections, "
        f"{pooled.rate:.0f} per s with waits of up to {pooled.longest_wait_s:.2g} s; "
        f"{alone.rate:.0f} per s without a pool",
        why="A request waits for a connection that comes back, and not for a connect. The last one "
        "waits for requests x query time / connections, which has to be below pool_timeout.",
    )
    cpu = f"{alone_ms:.2g} and {pooled_ms:.2g} ms of the server's CPU each"
    if postgres is None:
        cpu = "the CPU of a server elsewhere is not measured"
    lab.judge(
        "3.29",
        "the load on the database is high without a pool, and low with one",
        holds=pooled.connects / requests < 0.2 and alone_ms >= 2 * pooled_ms,
        measured=f"{alone.connects} connects for {few} requests without a pool, {pooled.connects} "
        f"for {requests} with one; " + cpu,
        why="For each connect the server starts a process, checks a password and fills that "
        "process's caches. That is more work than a short query, and all of it ends with the "
        "connection.",
    )
