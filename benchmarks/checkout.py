"""Checkout, `SELECT 1`, checkin: poolkit's engine against SQLAlchemy's own with pre-ping.

`python benchmarks/checkout.py [--rounds 15]` starts a PostgreSQL of its own and prints a table for
each driver and each number of threads or tasks. poolkit's engine counts its pool's work and should
cost at most 0.90 of the bare one with `pool_pre_ping`, because it saves most pings.

The measurement of who holds connections should cost at most 3 % of a checkout. It is the difference
of the processor time with and without it, which a busy machine changes less than the time by the
clock, as a share of the latter.
"""

import asyncio
import statistics
import sys
import threading
from functools import partial
from time import perf_counter, process_time

from harness import compare, machine, postgresql, read_options
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit.config.engine import make_async_engine, make_engine
from poolkit.config.metrics import PoolMetrics
from poolkit.config.settings import Settings

CALLS = 600
SELECT_ONE = text("SELECT 1")
BARE = "bare, pre-ping"
SAMPLED = "poolkit, holds sampled"
OFF = "poolkit, holds off"


def engines(url, target, make_kit, make_bare):
    variables = {"POOLKIT_TARGET": target, "POOLKIT_ENVIRONMENT": "prod", "DATABASE_URL": url}
    settings = Settings.from_environ(variables)
    preset = settings.preset
    make_bare = partial(
        make_bare,
        url,
        pool_size=preset.pool_size,
        max_overflow=preset.max_overflow,
        pool_recycle=preset.pool_recycle,
    )
    return {
        BARE: make_bare(pool_pre_ping=True),
        SAMPLED: make_kit(settings, PoolMetrics()),
        OFF: make_kit(settings, PoolMetrics(hold_sampling=0)),
        "poolkit, no metrics": make_kit(settings),
        "bare, no pre-ping": make_bare(pool_pre_ping=False),
    }


def in_threads(engine, threads):
    def loop():
        for _ in range(CALLS // threads):
            with engine.connect() as connection:
                connection.execute(SELECT_ONE).scalar()

    workers = [threading.Thread(target=loop) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


async def in_tasks(engine, tasks):
    async def loop():
        for _ in range(CALLS // tasks):
            async with engine.connect() as connection:
                (await connection.execute(SELECT_ONE)).scalar()

    await asyncio.gather(*(loop() for _ in range(tasks)))


def timed(work):
    """Return an arm that returns the seconds of a call by the clock, and of the processor."""

    def arm():
        began, cpu = perf_counter(), process_time()
        work()
        return (perf_counter() - began) / CALLS, (process_time() - cpu) / CALLS

    return arm


def measure(title, engines, work, rounds):
    """Print the table of one driver and number; return the two ratios that the goals are about."""
    arms = {name: timed(partial(work, engine)) for name, engine in engines.items()}
    result = compare(arms, rounds=rounds, warmup=2)
    clock, cpu = result.part(0), result.part(1)
    print(f"\n{title}: one checkout + SELECT 1 + checkin", flush=True)
    print(clock.table(baseline=BARE))
    pairs = zip(cpu.figures[SAMPLED], cpu.figures[OFF], strict=True)
    cost = statistics.median(sampled - off for sampled, off in pairs)
    share = cost / clock.median(OFF)
    by_clock = clock.ratio(SAMPLED, to=OFF)
    print(
        f"holds cost {cost * 1e6:.1f} µs of processor time: {share:.1%}; by the clock x {by_clock:.3f}"
    )
    return clock.ratio(SAMPLED, to=BARE), share


def main():
    rounds = read_options(__doc__, rounds=15).rounds
    print(machine("sqlalchemy", "psycopg2-binary", "psycopg", "asyncpg"))
    ratios = []
    with postgresql(durable=False) as server, asyncio.Runner() as runner:
        for driver in ("psycopg2", "psycopg"):
            made = engines(server.url(driver=driver), "web", make_engine, create_engine)
            for count in (1, 10):
                work = partial(in_threads, threads=count)
                ratios.append(measure(f"{driver}, {count} thread(s)", made, work, rounds))
            for engine in made.values():
                engine.dispose()
        url = server.url(driver="asyncpg")
        made = engines(url, "web_async", make_async_engine, create_async_engine)
        for count in (1, 10):

            def work(engine, tasks=count):
                runner.run(in_tasks(engine, tasks))

            ratios.append(measure(f"asyncpg, {count} task(s)", made, work, rounds))
        for engine in made.values():
            runner.run(engine.dispose())
    worst = max(ratio for ratio, _ in ratios)
    cost = max(share for _, share in ratios)
    print(
        f"\nworst ratio of poolkit with metrics to bare with pre-ping: {worst:.3f} (at most 0.90)"
    )
    print(f"worst cost of holds: {cost:.1%} of a checkout (at most 3 %)")
    return 0 if worst <= 0.90 and cost <= 0.03 else 1


if __name__ == "__main__":
    sys.exit(main())
