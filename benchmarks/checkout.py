"""Checkout, `SELECT 1`, checkin: poolkit's engine against SQLAlchemy's own with pre-ping.

`python benchmarks/checkout.py` starts a PostgreSQL of its own and prints a table for each
driver and each number of threads or tasks. poolkit's engine counts its pool's work and should cost no
more than the bare one with `pool_pre_ping`, because it saves most pings.
"""

import asyncio
import sys
import tempfile
import threading
from pathlib import Path

from pairwise import compare, machine, timed
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit.config.engine import make_async_engine, make_engine
from poolkit.config.metrics import PoolMetrics
from poolkit.config.settings import Settings
from poolkit.local.postgres import EmbeddedPostgres

ROUNDS = 15
CALLS = 300
SELECT_ONE = text("SELECT 1")


def kit_settings(url, target):
    variables = {"POOLKIT_TARGET": target, "POOLKIT_ENVIRONMENT": "prod"}
    return Settings.from_environ({"DATABASE_URL": url, **variables})


def bare_options(settings, *, pre_ping):
    preset = settings.preset
    numbers = {"pool_size": preset.pool_size, "max_overflow": preset.max_overflow}
    return {**numbers, "pool_recycle": preset.pool_recycle, "pool_pre_ping": pre_ping}


def engines(url, target, make_kit, make_bare):
    settings = kit_settings(url, target)
    return {
        "bare, pre-ping": make_bare(url, **bare_options(settings, pre_ping=True)),
        "poolkit, metrics": make_kit(settings, PoolMetrics()),
        "poolkit, no metrics": make_kit(settings),
        "bare, no pre-ping": make_bare(url, **bare_options(settings, pre_ping=False)),
    }


def select_one(engine):
    with engine.connect() as connection:
        connection.execute(SELECT_ONE).scalar()


async def select_one_async(engine):
    async with engine.connect() as connection:
        (await connection.execute(SELECT_ONE)).scalar()


def in_threads(engine, threads):
    def loop():
        for _ in range(CALLS // threads):
            select_one(engine)

    workers = [threading.Thread(target=loop) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


async def in_tasks(engine, tasks):
    async def loop():
        for _ in range(CALLS // tasks):
            await select_one_async(engine)

    await asyncio.gather(*(loop() for _ in range(tasks)))


def report(title, arms):
    result = compare(arms, rounds=ROUNDS)
    scale = 1e6 / CALLS
    print(f"\n{title}: one checkout + SELECT 1 + checkin", flush=True)
    print(result.table(baseline="bare, pre-ping", scale=scale))
    return result.ratio("poolkit, metrics", to="bare, pre-ping")


def synchronous(url, driver):
    made = engines(url, "web", make_engine, create_engine)
    for threads in (1, 10):
        arms = {
            name: timed(lambda engine=engine, n=threads: in_threads(engine, n))
            for name, engine in made.items()
        }
        yield report(f"{driver}, {threads} thread(s)", arms)
    for engine in made.values():
        engine.dispose()


def asynchronous(url, driver):
    made = engines(url, "web_async", make_async_engine, create_async_engine)
    with asyncio.Runner() as runner:
        for tasks in (1, 10):
            arms = {
                name: timed(lambda engine=engine, n=tasks: runner.run(in_tasks(engine, n)))
                for name, engine in made.items()
            }
            yield report(f"{driver}, {tasks} task(s)", arms)
        for engine in made.values():
            runner.run(engine.dispose())


def main():
    print(machine("sqlalchemy", "psycopg2-binary", "psycopg", "asyncpg"))
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        with EmbeddedPostgres(Path(directory), durable=False) as server:
            ratios = [
                *synchronous(server.url(driver="psycopg2"), "psycopg2"),
                *synchronous(server.url(driver="psycopg"), "psycopg"),
                *asynchronous(server.url(driver="asyncpg"), "asyncpg"),
            ]
    worst = max(ratios)
    print(f"\nworst ratio of poolkit with metrics to bare with pre-ping: {worst:.3f} (at most 1.0)")
    return 0 if worst <= 1.0 else 1


if __name__ == "__main__":
    sys.exit(main())
