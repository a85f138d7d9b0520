"""What happens when many requests come at once, without a pool and with one?

You may have read that with a connection for each request thousands are attempted, and PostgreSQL
refuses what exceeds max_connections (4.3, 4.19); and that a service scales badly without a pool,
because it soon hits that limit, and well with one (3.30).

Everything here is a fifth as large: a server with max_connections=20 stands for one with 100, and
200 requests for 1000. All requests are in progress at the same moment.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import psycopg2
from sqlalchemy import Engine, create_engine, text

from poolkit.experiment import Lab, experiment


def serve_without_pool(dsn: str, requests: int) -> int:
    """Return how many requests are served with a connection of its own for each."""
    all_tried = Barrier(requests, timeout=60)

    def request() -> None:
        try:
            connection = psycopg2.connect(dsn)
        finally:
            all_tried.wait()  # So a connection is in use until the last request has tried.
        connection.cursor().execute("SELECT 1")
        connection.close()

    with ThreadPoolExecutor(requests) as threads:
        tries = [threads.submit(request) for _ in range(requests)]
    return sum(each.exception() is None for each in tries)


def serve_with_pool(engine: Engine, requests: int) -> int:
    """Return how many requests are served with connections of the pool."""
    all_here = Barrier(requests, timeout=60)

    def request() -> None:
        all_here.wait()
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    with ThreadPoolExecutor(requests) as threads:
        tries = [threads.submit(request) for _ in range(requests)]
    return sum(each.exception() is None for each in tries)


@experiment(
    question="What happens when many requests come at once, without a pool and with one?",
    rows=("3.30", "4.3", "4.19"),
    seconds=4,
)
def run(lab: Lab, *, max_connections: int = 20, pool_size: int = 10, requests: int = 200) -> None:
    lab.say(f"{requests} requests at once on a server with max_connections={max_connections}")
    with lab.new_server(max_connections=max_connections) as server:
        without = serve_without_pool(server.dsn(), requests)
        lab.wait_until("the connections end", lambda: not server.backends())

        engine = create_engine(server.url(), pool_size=pool_size, max_overflow=0)
        pooled = serve_with_pool(engine, requests)
        opened = len(server.backends())
        engine.dispose()

    rows = [
        ("a connection for each request", requests, without, requests - without),
        (f"a pool of {pool_size}", opened, pooled, requests - pooled),
    ]
    columns = ("", "connections tried", "requests served", "failed")
    lab.table(f"{requests} requests at once on max_connections={max_connections}", columns, rows)
    lab.judge(
        "4.3 4.19",
        "with a connection for each request, the requests beyond max_connections fail",
        holds=without < requests,
        measured=f"{without} of {requests} requests served, {requests - without} refused",
        why="The server does not queue connects. It refuses at once what exceeds max_connections, "
        "and the request fails unless it tries again.",
    )
    lab.judge(
        "3.30",
        "a service without a pool hits the limit of the database, one with a pool scales",
        holds=without < requests == pooled,
        measured=f"{without} of {requests} requests served without a pool, {pooled} over "
        f"{opened} connections with one",
        why="A pool turns a burst into a queue in front of a few connections. A short wait costs "
        "less than an error. It helps for as long as the queue drains within pool_timeout.",
    )
