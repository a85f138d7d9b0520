"""Is the default pool enough, and how does one find a better size?

You may have read that SQLAlchemy's default, a pool_size of 5 and a max_overflow of 10, is already
perfect in 99 % of cases (1.46); that one starts with it and enlarges it when it is exhausted (1.52);
and that one starts small, watches and adjusts (2.27, 3.27).

The default serves a few clients and many, beside a pool with a connection for each of them. Their
queries compute, or wait as for a lock (pg_sleep). It serves bursts of a dozen requests, too. Then a small pool is doubled for as long as that brings a fifth more
throughput. A size counts as enough here if it reaches half of the best throughput.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier

from sqlalchemy import Engine, create_engine, event, text

from poolkit.experiment import Lab, experiment

QUERIES = {
    "compute": text("SELECT count(*) FROM generate_series(1, 60000)"),
    "wait": text("SELECT pg_sleep(0.05)"),
}


def connects_for_bursts(engine: Engine, bursts: int, requests: int) -> int:
    """Use that many connections at once, several times; return how many were opened in all."""
    opened = []
    event.listen(engine, "connect", lambda *_: opened.append(1))
    together = Barrier(requests, timeout=60)

    def request(_: int) -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            together.wait()
        together.wait()

    with ThreadPoolExecutor(requests) as threads:
        list(threads.map(request, range(bursts * requests)))
    engine.dispose()
    return len(opened)


@experiment(
    question="Is the default pool enough, and how does one find a better size?",
    rows=("1.46", "1.52", "2.27", "3.27"),
    seconds=12,
)
def run(lab: Lab, *, few: int = 4, burst: int = 12, many: int = 40, seconds: float = 0.5) -> None:
    def new_engine(**pool: int) -> Engine:
        engine = create_engine(lab.url(), **pool)
        lab.at_end(engine.dispose)
        return engine

    def queries_per_second(engine: Engine, kind: str, clients: int, limit: int) -> float:
        with ExitStack() as opened:  # So that no connect falls into the measured time.
            for _ in range(min(clients, limit)):
                opened.enter_context(engine.connect())

        def request() -> None:
            with engine.connect() as connection:
                connection.execute(QUERIES[kind])

        rate = lab.rate(request, threads=clients, seconds=seconds)
        engine.dispose()
        return rate

    shares, best, rows = {}, {}, []
    for kind in QUERIES:
        for clients in (few, many):
            name = f"{clients} clients that {kind}"
            lab.say(name)
            default = queries_per_second(new_engine(), kind, clients, 15)
            engine = new_engine(pool_size=clients, max_overflow=0)
            each_one = queries_per_second(engine, kind, clients, clients)
            shares[name] = default / each_one
            best[kind] = max(default, each_one)  # In the end, of many clients.
            rows.append((name, f"{default:.0f}", f"{each_one:.0f}"))
    columns = ("queries per second", "default", "a connection for each client")
    lab.table("The default pool, 5 and 10 more", columns, rows)

    bursts = f"10 bursts of {burst} requests"
    lab.say(bursts)
    connects = connects_for_bursts(new_engine(), 10, burst)
    enough = connects_for_bursts(new_engine(pool_size=burst, max_overflow=0), 10, burst)
    columns = ("connects", "default", "a connection for each request")
    lab.table("The default pool under bursts", columns, [(bursts, connects, enough)])
    lab.judge(
        "1.46",
        "the default pool is already perfect",
        holds={name: share > 0.5 for name, share in shares.items()} | {bursts: connects <= enough},
        measured=", ".join(
            f"{share:.0%} of the throughput for {name}" for name, share in shares.items()
        )
        + f"; {connects} connects for {bursts}, where {enough} are enough",
        why="15 connections are plenty for queries that compute on a few cores. Of queries that "
        "wait they let 15 run at a time, however idle the server is. And of a burst the pool keeps "
        "5 connections: the others are closed, and opened again for the next one.",
    )
    larger = {f"queries that {kind}": 1 / shares[f"{many} clients that {kind}"] for kind in QUERIES}
    lab.judge(
        "1.52",
        "if the default pool is exhausted, a larger one helps",
        holds={kind: times > 1.8 for kind, times in larger.items()},
        measured=f"{many} clients, {many} connections in place of 15: "
        + ", ".join(
            f"{times:.1f} times the throughput for {kind}" for kind, times in larger.items()
        ),
        why="An exhausted pool shows that requests wait, not for what. If the server is the "
        "bottleneck, a larger pool only lets them wait there.",
    )

    steps = {}
    for kind in QUERIES:
        lab.say(f"doubling a pool of 2 for {many} clients that {kind}")
        size, rate, gained = 2, 0.0, True
        steps[kind] = []
        while gained and size <= 2 * many:
            engine = new_engine(pool_size=size, max_overflow=0)
            before, rate = rate, queries_per_second(engine, kind, many, size)
            steps[kind].append((size, rate))
            gained = rate > 1.2 * before
            size *= 2
    lab.lines(
        f"A pool that is doubled, {many} clients",
        {f"queries that {kind}": line for kind, line in steps.items()},
        unit="queries per second",
        x_title="pool_size",
    )
    found = {kind: max(line, key=lambda step: step[1]) for kind, line in steps.items()}
    lab.judge(
        "2.27 3.27",
        "one finds the size by starting small, and adjusting by what one measures",
        holds={
            f"queries that {kind}": rate > 0.5 * best[kind] for kind, (_, rate) in found.items()
        },
        measured=", ".join(
            f"{size} connections with {rate / best[kind]:.0%} of the best throughput for queries "
            f"that {kind}"
            for kind, (size, rate) in found.items()
        ),
        why="Throughput rises with the size until something else is the limit. The number of "
        "connections in use does not show that point: it rises for as long as clients wait.",
    )
