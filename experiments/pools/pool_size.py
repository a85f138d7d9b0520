"""How many connections should a pool have?

You may have read that a load that computes needs (cores x 2) + disks connections (4.12); that more of
them help a load that waits for I/O, and too many cost context switches (4.13); and that 2 are for a
light load and 20 for a heavy one (1.10).

40 clients without a pause use pools of several sizes. Their queries compute, or wait (pg_sleep
stands for a lock, or for a disk that is never busy), or read pages. The pages are 45 MB behind 1 MB
of shared buffers, and come from the disk itself: `--set direct_io=off` lets the kernel cache them.
The cores are those of this machine: `--set cores=8` if the database has others.
"""

import os
from contextlib import ExitStack

from sqlalchemy import create_engine, text

from poolkit.experiment import Lab, experiment

COMPUTE, WAIT, READ = "queries that compute", "queries that wait", "queries that read"
QUERIES = {
    COMPUTE: "SELECT count(*) FROM generate_series(1, 60000)",
    WAIT: "SELECT pg_sleep(0.05)",
    READ: "SELECT count(filler) FROM pages "
    "WHERE id IN (SELECT 1 + (random() * 39999)::int FROM generate_series(1, 40))",
}
PAGES = """
    CREATE TABLE pages AS
        SELECT id, repeat('x', 1000) AS filler FROM generate_series(1, 40000) AS id;
    ALTER TABLE pages ADD PRIMARY KEY (id);
    ANALYZE pages;
"""


@experiment(
    question="How many connections should a pool have?",
    rows=("1.10", "4.12", "4.13"),
    seconds=18,
)
def run(
    lab: Lab,
    *,
    clients: int = 40,
    cores: int = os.cpu_count() or 1,
    disks: int = 1,
    seconds: float = 0.3,
    direct_io: str = "data",
) -> None:
    rule = 2 * cores + disks
    sizes = sorted({2, cores, rule, 20, clients})
    rates: dict[str, dict[int, float]] = {}

    def queries_per_second(url: str, query: str, size: int) -> float:
        engine = create_engine(url, pool_size=size, max_overflow=0)
        lab.at_end(engine.dispose)
        with ExitStack() as opened:
            for _ in range(size):
                opened.enter_context(engine.connect())

        def request() -> None:
            with engine.connect() as connection:
                connection.execute(text(query))

        rate = lab.rate(request, threads=clients, seconds=seconds)
        engine.dispose()
        return rate

    def sweep(kind: str, url: str) -> None:
        lab.say(f"{clients} clients with {kind}, pools of {', '.join(map(str, sizes))}")
        first, second = (
            {size: queries_per_second(url, QUERIES[kind], size) for size in sizes} for _ in range(2)
        )
        rates[kind] = {size: (first[size] + second[size]) / 2 for size in sizes}

    sweep(COMPUTE, lab.url())
    sweep(WAIT, lab.url())
    lab.say("a server with 1 MB of shared buffers, and 45 MB of pages")
    settings = {"shared_buffers": "1MB", "debug_io_direct": "" if direct_io == "off" else direct_io}
    with lab.new_server(settings=settings) as server:
        engine = create_engine(server.url())
        with engine.begin() as connection:
            connection.execute(text(PAGES))
        engine.dispose()
        sweep(READ, server.url())

    rows = [(kind, *(f"{rate:.0f}" for rate in rates[kind].values())) for kind in rates]
    lab.table(
        f"Queries per second of {clients} clients, on {cores} cores", ("pool_size", *sizes), rows
    )

    def of_best(size: int) -> dict[str, float]:
        """Return the part of the best throughput that a size reaches, for each kind of query."""
        return {kind: found[size] / max(found.values()) for kind, found in rates.items()}

    def gain(small: int, large: int) -> dict[str, float]:
        """Return how many times the throughput the larger pool has, for each kind of query."""
        return {kind: found[large] / found[small] for kind, found in rates.items()}

    def shown(values: dict[str, float], unit: str) -> str:
        return ", ".join(f"{value:{unit}} for {kind}" for kind, value in values.items())

    lab.lines(
        "Throughput by the size of the pool",
        {kind: [(size, of_best(size)[kind] * 100) for size in sizes] for kind in rates},
        unit="% of the best",
        x_title="pool_size",
    )
    lab.judge(
        "4.12",
        "(cores x 2) + disks connections are enough",
        # Generous: on a busy machine, more server processes get a larger share of the cores.
        holds={kind: gain(rule, clients)[kind] < 2.5 for kind in (COMPUTE, WAIT)},
        measured=f"with {clients} in place of {rule}, times: {shown(gain(rule, clients), '.1f')}",
        why="Queries that compute cannot use more than the cores. Queries that wait use none, so "
        "the pool needs one connection for each. A disk serves several reads at once: how many, "
        "only a measurement tells.",
    )
    more = gain(cores, clients)
    lab.judge(
        "4.13",
        "more connections help queries that wait for I/O, and too many slow the server down",
        holds={f"the gain of {kind}": more[kind] > 1.5 for kind in (WAIT, READ)}
        | {f"the loss of {COMPUTE}": of_best(clients)[COMPUTE] < 0.5},
        measured=f"with {clients} in place of {cores}, times: {shown(more, '.1f')}",
        why="A switch between processes costs microseconds, a query milliseconds. Too many "
        "connections move the queue from the pool into the server. There each query holds memory "
        "and locks while it waits for a core.",
    )
    lab.judge(
        "1.10",
        "a heavy load needs a pool of 20 rather than 2",
        holds={kind: gain(2, 20)[kind] > 4 for kind in (COMPUTE, WAIT)},
        measured=f"{clients} clients with 20 in place of 2, times: {shown(gain(2, 20), '.1f')}",
        why="Not the number of clients decides, but how many of their queries can make progress "
        "at the same moment.",
    )
