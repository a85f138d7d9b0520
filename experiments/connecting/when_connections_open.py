"""When does a pool open its connections?

You may have read that `create_engine(pool_size=10)` opens ten connections at the start and keeps ten
ready (0.6, 0.8, 1.9, 2.3). Here an engine is made, used by one thread, then by ten at once, and the
server is asked after each step how many connections it has.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from sqlalchemy import create_engine, text

from poolkit.experiment import Lab, experiment


@experiment(
    question="When does a pool open its connections?",
    rows=("0.6", "0.8"),
    seconds=2,
)
def run(lab: Lab, *, pool_size: int = 10, prewarm: int = 0) -> None:
    engine = create_engine(lab.url(), pool_size=pool_size)
    opened = [engine.connect() for _ in range(prewarm)]
    for connection in opened:
        connection.close()
    after = {"create_engine": len(lab.backends())}

    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    after["one query"] = len(lab.backends())

    together = Barrier(pool_size)

    def query() -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            together.wait()

    with ThreadPoolExecutor(pool_size) as threads:
        for done in [threads.submit(query) for _ in range(pool_size)]:
            done.result()
    after[f"{pool_size} queries at once"] = len(lab.backends())

    lab.table("Connections on the server", ("after", "open"), after.items())
    lab.bars("Connections on the server", after, unit="connections")
    lab.judge(
        "0.8",
        f"create_engine opens {pool_size} connections",
        holds=after["create_engine"] == pool_size,
        measured=f"{after['create_engine']} open after create_engine, "
        f"{after['one query']} after the first query",
        why="A pool opens a connection when a checkout finds none idle. Until the first checkout "
        "it has none, and a service that serves one request at a time never needs a second one.",
    )
    lab.judge(
        "0.6",
        f"the pool always has {pool_size} connections ready",
        holds=min(after.values()) >= pool_size,
        measured=f"between {min(after.values())} and {max(after.values())} of {pool_size} open",
        why="pool_size is the number of connections that the pool keeps when they come back. "
        "It is reached only after so many were in use at the same moment.",
    )
    engine.dispose()
