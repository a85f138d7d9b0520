"""How many clients can share a few connections through PgBouncer?

You may have read that with transaction pooling a client holds a connection for a transaction only, so
that more clients share the connections (4.10); and that PgBouncer keeps 100 connections to
PostgreSQL for thousands of clients (4.18).

1000 clients stay connected to a PgBouncer that opens 20 connections at most, and send a query all at
once, as a transaction of its own. Then 100 do so in a transaction that they leave open, and 100 with
session pooling. PgBouncer turns away a client whose query has waited for 2 s (120 by default).
"""

import asyncio
from collections.abc import Callable

import psycopg

from poolkit.experiment import Lab, experiment


async def serve(
    dsn: str, clients: int, backends: Callable[[], list], *, autocommit: bool
) -> tuple[int, int]:
    """Connect clients that send a query all at once, and stay until each has its answer.

    Returns:
        How many got an answer, and how many connections to PostgreSQL are open then.
    """
    at_once = asyncio.Semaphore(50)
    connections = []

    async def connect() -> None:
        async with at_once:
            connections.append(
                await psycopg.AsyncConnection.connect(
                    dsn, autocommit=autocommit, prepare_threshold=None
                )
            )

    try:
        await asyncio.gather(*(connect() for _ in range(clients)))
        queries = [connection.execute("SELECT 1") for connection in connections]
        answers = await asyncio.gather(*queries, return_exceptions=True)
        turned_away = sum(isinstance(answer, psycopg.OperationalError) for answer in answers)
        return clients - turned_away, len(backends())
    finally:
        for connection in connections:
            await connection.close()


@experiment(
    question="How many clients can share a few connections through PgBouncer?",
    rows=("4.10", "4.18"),
    seconds=10,
    needs=("pgbouncer",),
)
def run(lab: Lab, *, clients: int = 1000, pool_size: int = 20, query_wait_timeout: int = 2) -> None:
    lab.allow_open_files(5 * clients + 200)
    settings = {
        "query_wait_timeout": str(query_wait_timeout),
        "max_client_conn": str(clients + 10),
    }
    fewer = min(clients, 5 * pool_size)
    short, left_open, session = "short transactions", "transactions left open", "session pooling"
    arms = {
        short: ("transaction", True, clients),
        left_open: ("transaction", False, fewer),
        session: ("session", True, fewer),
    }
    answered, opened = {}, {}
    for name, (mode, autocommit, number) in arms.items():
        lab.say(f"{number} clients over {pool_size} connections: {name}")
        with lab.pgbouncer(pool_mode=mode, pool_size=pool_size, settings=settings) as pooler:
            answered[name], opened[name] = asyncio.run(
                serve(pooler.dsn(), number, lab.backends, autocommit=autocommit)
            )
        lab.wait_until("PgBouncer's connections end", lambda: not lab.backends())

    lab.table(
        f"A PgBouncer with default_pool_size={pool_size}",
        ("", "clients", "answered", "connections to PostgreSQL"),
        [(name, arms[name][2], answered[name], opened[name]) for name in arms],
    )
    lab.judge(
        "4.10",
        "with transaction pooling more clients share the connections than with session pooling",
        holds=answered[short] > answered[session] and answered[short] > opened[short],
        measured=f"{answered[short]} clients over {opened[short]} connections with transaction "
        f"pooling, {answered[session]} over {opened[session]} with session pooling",
        why="With session pooling a client keeps its connection until it leaves. With transaction "
        "pooling the next client gets it after each commit or rollback.",
    )
    lab.judge(
        "4.18",
        f"PgBouncer serves {clients} clients over {pool_size} connections",
        holds={
            name: answered[name] == arms[name][2] and opened[name] <= pool_size
            for name in (short, left_open)
        },
        measured=", ".join(
            f"{answered[name]} of {arms[name][2]} clients answered over {opened[name]} "
            f"connections for {name}"
            for name in (short, left_open)
        ),
        why="A client that is connected costs PgBouncer a few kilobytes, and PostgreSQL nothing. "
        "What counts is the number of transactions at the same moment. One that is held during a "
        "slow call holds a connection, behind PgBouncer as in a pool.",
    )
