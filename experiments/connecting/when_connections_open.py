"""When does a pool open its connections?

You may have read that `create_engine(pool_size=10)` opens ten connections at the start (0.8) and
always has ten ready (0.6, 1.9, 2.3); that the pool has a fixed size (1.21) and consists of several
connections that exist before they are needed (3.1); and that a checkout takes an idle connection,
or opens one while the limit allows it (4.15).

Here an engine is made and used once, then by ten borrowers at once, then by as many as the limit
allows. The server is asked after each step how many connections it has. Then the pools of other
libraries are made, and the server is asked again.
"""

import asyncio
from collections.abc import Callable

import asyncpg
from psycopg2.pool import SimpleConnectionPool
from psycopg_pool import ConnectionPool
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from poolkit.experiment import Lab, experiment


def query(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()


def give_back(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()


async def open_asyncpg_pool(dsn: str, look: Callable[[], int]) -> int:
    async with asyncpg.create_pool(dsn):
        return look()


@experiment(
    question="When does a pool open its connections?",
    rows=("0.6", "0.8", "1.9", "1.21", "2.3", "3.1", "4.15"),
    seconds=1,
)
def run(
    lab: Lab, *, pool_size: int = 10, max_overflow: int = 3, prewarm: int = 0, minconn: int = 1
) -> None:
    limit = pool_size + max_overflow
    engine = create_engine(
        lab.url(), pool_size=pool_size, max_overflow=max_overflow, pool_timeout=0.1
    )
    lab.at_end(engine.dispose)

    def count() -> int:
        return len(lab.backends())

    give_back([engine.connect() for _ in range(prewarm)])
    after = {"create_engine": count()}
    query(engine)
    after["one query"] = count()
    connections = [engine.connect() for _ in range(pool_size)]
    after[f"{pool_size} at once"] = count()
    connections += [engine.connect() for _ in range(max_overflow)]
    after[f"{limit} at once"] = most = count()
    try:
        give_back([engine.connect()])
        is_limit = False
    except PoolTimeoutError:
        is_limit = True
    give_back(connections)
    after["their return"] = kept = lab.count_backends(pool_size)
    idle = {backend.pid for backend in lab.backends()}
    reused = query(engine) in idle

    lab.table("Connections of an engine on the server", ("after", "open"), after.items())
    lab.bars("Connections of an engine on the server", after, unit="connections")
    start, least = after["create_engine"], min(after.values())
    numbers = f"{start} open after create_engine, {after['one query']} after the first query"
    why = (
        "A pool opens a connection when a checkout finds none idle. Until the first checkout it "
        "has none, and a service that serves one request at a time never needs a second one. "
        "pool_size is the number of connections that the pool keeps when they come back."
    )
    for rows, claim, holds in (
        ("0.8", f"create_engine opens {pool_size} connections", start == pool_size),
        ("0.6 2.3", f"the pool always has {pool_size} connections ready", least >= pool_size),
    ):
        lab.judge(rows, claim, holds=holds, measured=numbers, why=why)
    lab.judge(
        "1.9",
        f"the pool keeps {pool_size} connections open, which are always available",
        holds={"a new engine": start == pool_size, "an engine after its peak": kept == pool_size},
        measured=f"{start} open at the start, {kept} after {limit} were in use at once",
        why=why,
    )
    lab.judge(
        "1.21",
        "QueuePool keeps a fixed number of connections",
        holds=least == most,
        measured=f"between {least} and {most} open",
        why="The number grows with the connections that are in use at the same moment, up to "
        "pool_size + max_overflow. It shrinks to pool_size when they come back.",
    )
    lab.judge(
        "4.15",
        "a checkout takes an idle connection, or opens one while the limit allows it",
        holds=reused and most == limit and is_limit,
        measured=f"{most} opened for {limit} borrowers, {0 if is_limit else 1} for one more; "
        f"with {kept} idle, {0 if reused else 1}",
        why="A checkout looks for an idle connection first, then opens one if it may, and else "
        "waits up to pool_timeout seconds for one to come back.",
    )
    new = {}
    engine.dispose()
    lab.count_backends(0)
    create_engine(lab.url())
    new["SQLAlchemy with pool_size=5"] = count()
    simple_pool = SimpleConnectionPool(minconn, 20, lab.dsn())
    new[f"psycopg2 with minconn={minconn}"] = count()
    simple_pool.closeall()
    lab.count_backends(0)
    with ConnectionPool(lab.dsn("psycopg")) as psycopg_pool:
        psycopg_pool.wait()
        new["psycopg_pool with min_size=4"] = count()
    lab.count_backends(0)
    new["asyncpg with min_size=10"] = asyncio.run(open_asyncpg_pool(lab.dsn("asyncpg"), count))
    lab.judge(
        "3.1",
        "a pool is several connections that exist before they are needed",
        holds={name: found > 1 for name, found in new.items()},
        measured=", ".join(f"{name}: {found} open" for name, found in new.items()),
        why="The pools of the drivers open their minimum at the start. SQLAlchemy's has no minimum: "
        "pool_size is the most that it keeps.",
    )
