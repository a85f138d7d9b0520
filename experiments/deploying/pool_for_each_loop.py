"""What does a pool give an asynchronous application?

You may have read that a pool makes an application faster, limits its connections, and keeps it from
exhausting the database (2.1).

20 tasks send 5 queries each, with a pool of 5 and with NullPool. Then several event loops run at
once, each with an engine of its own, as an engine serves one event loop only. The server says which
connections were used.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from poolkit.experiment import Lab, experiment


async def task(engine: AsyncEngine) -> list[int]:
    pids = []
    for _ in range(5):
        async with engine.connect() as connection:
            pids.append(await connection.scalar(text("SELECT pg_backend_pid()")))
    return pids


async def application(engine: AsyncEngine) -> set[int]:
    """Return the connections that 20 tasks used."""
    try:
        found = await asyncio.gather(*(task(engine) for _ in range(20)))
    finally:
        await engine.dispose()
    return {pid for pids in found for pid in pids}


@experiment(question="What does a pool give an asynchronous application?", rows=("2.1",), seconds=4)
def run(lab: Lab, *, loops: int = 3, pool_size: int = 5, driver: str = "asyncpg") -> None:
    url = lab.url(driver)

    def with_pool() -> set[int]:
        engine = create_async_engine(url, pool_size=pool_size, max_overflow=0)
        return asyncio.run(application(engine))

    def without_pool() -> set[int]:
        return asyncio.run(application(create_async_engine(url, poolclass=NullPool)))

    lab.say("100 queries of 20 tasks, with and without a pool")
    opened = {"a pool": len(with_pool()), "NullPool": len(without_pool())}
    times = lab.time_in_turn({"a pool": with_pool, "NullPool": without_pool}, 3)
    lab.say(f"the same in {loops} event loops at once")
    with ThreadPoolExecutor(loops) as threads:
        futures = [threads.submit(with_pool) for _ in range(loops)]
    several = f"{loops} loops, a pool each"
    opened[several] = len(set().union(*(future.result() for future in futures)))

    rows = [(name, opened[name], times[name].median * 1e3) for name in times]
    columns = ("engine", "connections opened", "100 queries, p50 in ms")
    lab.table("20 tasks with 5 queries each", columns, [*rows, (several, opened[several], "")])
    lab.bars("Connections opened", opened, unit="connections")
    lab.judge(
        "2.1",
        "a pool makes an application faster, limits its connections, and so spares the database",
        holds={
            "one event loop": times["a pool"].median < times["NullPool"].median / 2
            and opened["a pool"] <= pool_size,
            f"{loops} event loops with a pool each": opened[several] <= pool_size,
        },
        measured=f"a pool of {pool_size}: {times['a pool']}, {opened['a pool']} connections opened; "
        f"NullPool: {times['NullPool']}, {opened['NullPool']} opened; "
        f"{loops} loops with a pool each: {opened[several]} opened",
        why="A connection that is used again saves the connect, and a pool lets tasks wait for one of "
        "its own instead of opening more. But it counts only its own. Each event loop in each "
        "process of each instance adds a pool, and only their sum is what the database bears.",
    )
