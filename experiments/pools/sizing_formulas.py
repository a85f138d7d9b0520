"""Do the formulas for the size of a pool hold?

You may have read pool_size = (concurrent_requests x avg_query_time) / request_duration, with the
example of 100 requests/s x 50 ms = 5 (1.40); and the same formula with the example of 100 concurrent
requests x 50 ms / 100 ms desired response time = 50 (2.24).

24 clients send requests: 50 ms in a query, then 50 ms of other work. The mean number of connections
in use is counted, and compared with what the formulas say. Then pools of the computed size and of a
quarter of it serve the same load: once with queries that wait, as for a lock or a remote disk
(pg_sleep), and once with queries that compute.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from statistics import mean
from typing import NamedTuple

from sqlalchemy import Engine, TextClause, create_engine, text

from poolkit.experiment import Lab, experiment


class Load(NamedTuple):
    """Means of a load: requests per second, two times in seconds, connections that are in use."""

    rate: float
    response_s: float
    held_s: float
    in_use: float


def load(engine: Engine, clients: int, rounds: int, query: TextClause, elsewhere_s: float) -> Load:
    """Send requests of some clients, each client one after the other; dispose of the engine."""
    with ExitStack() as opened:
        for _ in range(engine.pool.size()):
            opened.enter_context(engine.connect())
    responses, held, in_use = [], [], []

    def client() -> None:
        for _ in range(rounds):
            began = time.perf_counter()
            with engine.connect() as connection:
                checkout = time.perf_counter()
                connection.execute(query)
            held.append(time.perf_counter() - checkout)
            time.sleep(elsewhere_s)
            responses.append(time.perf_counter() - began)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        running = [threads.submit(client) for _ in range(clients)]
        while not all(each.done() for each in running):
            in_use.append(engine.pool.checkedout())
            time.sleep(0.005)
    took = time.perf_counter() - began
    engine.dispose()
    for each in running:
        each.result()
    return Load(len(responses) / took, mean(responses), mean(held), mean(in_use))


def by_formula(found: Load, clients: int, second: float) -> dict[str, float]:
    """Return what the formulas give if a second is so many units of time."""
    rate, held, response = found.rate / second, found.held_s * second, found.response_s * second
    return {
        "requests/s x query": rate * held,
        "concurrent x query / request": clients * held / response,
        "requests/s x query / request": rate * held / response,
    }


@experiment(
    question="Do the formulas for the size of a pool hold?", rows=("1.40", "2.24"), seconds=8
)
def run(
    lab: Lab,
    *,
    clients: int = 24,
    query_ms: float = 50.0,
    elsewhere_ms: float = 50.0,
    desired_ms: float = 100.0,
    rounds: int = 10,
) -> None:
    def pool_of(size: int) -> Engine:
        engine = create_engine(lab.url(), pool_size=size, max_overflow=0)
        lab.at_end(engine.dispose)
        return engine

    lab.say(f"{clients} clients with a connection each")
    waits = text(f"SELECT pg_sleep({query_ms / 1e3})")
    free = load(pool_of(clients), clients, rounds, waits, elsewhere_ms / 1e3)
    in_seconds, in_ms = by_formula(free, clients, 1), by_formula(free, clients, 1000)
    rows = [(name, in_seconds[name], in_ms[name]) for name in in_seconds]
    rows.append(("counted", free.in_use, free.in_use))
    lab.table("Connections in use, by formula", ("", "with seconds", "with ms"), rows)
    lab.judge(
        "1.40",
        "a pool needs requests x query time / request duration, such as 100/s x 50 ms = 5",
        holds={name: 0.5 < value / free.in_use < 2 for name, value in in_seconds.items()},
        measured=f"{free.in_use:.1f} in use on average; computed with seconds and with ms: "
        + ", ".join(f"{in_seconds[n]:.3g} and {in_ms[n]:.3g} by {n}" for n in in_seconds),
        why="Little's law: the mean number in use is rate x time. Concurrent requests already are "
        "rate x duration, so only they are divided by it. A rate that is divided by it has the "
        "unit 1/s: its number changes with the unit of time. The mean is a minimum, as peaks need "
        "more, and the query time is all the time from checkout to return.",
    )

    computes = text("SELECT count(*) FROM generate_series(1, 60000)")
    with pool_of(1).connect() as connection:
        # The fastest one: what else the machine does only makes a query slower.
        alone_s = min(lab.time(lambda: connection.execute(computes), 20))
    kinds = {  # The query, its time, the time of other work, the desired response time.
        "queries that wait": (waits, query_ms / 1e3, elsewhere_ms / 1e3, desired_ms / 1e3),
        "queries that compute": (computes, alone_s, alone_s, 2 * alone_s),
    }
    holds, rows, shown = {}, [], []
    for kind, (query, needs_s, rest_s, desired_s) in kinds.items():
        size = max(4, round(clients * needs_s / desired_s))  # By the formula.
        lab.say(f"pools of {size} and {size // 4} with {kind}")
        few = load(pool_of(size // 4), clients, rounds // 2 or 1, query, rest_s).response_s
        enough = load(pool_of(size), clients, rounds, query, rest_s).response_s
        # A quarter of the connections takes four times as long, if they are the limit.
        holds[kind] = enough < 2 * desired_s < few
        rows += [(kind, desired_s * 1e3, size // 4, few * 1e3)]
        rows += [(kind, desired_s * 1e3, size, enough * 1e3)]
        shown.append(f"{enough / desired_s:.1f} times for {kind} with {size} connections")
    columns = ("", "desired ms", "pool_size", "measured ms")
    lab.table("Mean response time", columns, rows)
    lab.judge(
        "2.24",
        "a pool of concurrent requests x query time / desired response time gives that time",
        holds=holds,
        measured=f"times the desired response time: {', '.join(shown)}",
        why="The formula counts the requests that are in a query at the same time, as long as each "
        "query takes as long as alone. Queries that compute share the cores, so more of them at "
        "once only take longer. No pool size makes a wish for a response time come true.",
    )
