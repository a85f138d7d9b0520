"""Checkout, `SELECT 1`, checkin: poolkit's engine against SQLAlchemy's own with pre-ping.

`python benchmarks/checkout.py [--rounds 15]` starts a PostgreSQL of its own and prints a table for
each driver and each number of threads or tasks. poolkit's engine counts its pool's work and should
cost no more than the bare one with `pool_pre_ping`, because it saves most pings.
"""

import asyncio
import sys
import threading
from functools import partial

from harness import compare, machine, postgresql, read_options, timed
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit.config.engine import make_async_engine, make_engine
from poolkit.config.metrics import PoolMetrics
from poolkit.config.settings import Settings

CALLS = 300
SELECT_ONE = text("SELECT 1")


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
        "bare, pre-ping": make_bare(pool_pre_ping=True),
        "poolkit, holds": make_kit(settings, PoolMetrics()),
        "poolkit, holds 10 %": make_kit(settings, PoolMetrics(hold_sampling=0.1)),
        "poolkit, holds off": make_kit(settings, PoolMetrics(hold_sampling=0)),
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


def measure(title, engines, work, rounds):
    """Print the table of one driver and number; return the ratio that the goal is about."""
    arms = {name: timed(partial(work, engine), calls=CALLS) for name, engine in engines.items()}
    result = compare(arms, rounds=rounds, warmup=2)
    print(f"\n{title}: one checkout + SELECT 1 + checkin", flush=True)
    print(result.table(baseline="bare, pre-ping"))
    return result.ratio("poolkit, holds", to="bare, pre-ping")


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
    worst = max(ratios)
    print(f"\nworst ratio of poolkit with metrics to bare with pre-ping: {worst:.3f} (at most 1.0)")
    return 0 if worst <= 1.0 else 1


if __name__ == "__main__":
    sys.exit(main())
