"""What does an engine for each request cost?

You may have read two pairs of programs, and run them (1.3, 1.4). In the first pair the bad one makes
an engine in each iteration (1.5), and the good one shares an engine (1.6). In the second pair the bad
one forgets to close its connections. You may also have read that a pool avoids the cost of opening
connections (1.1), and that NullPool opens one each time (1.22) and is slow (1.49).

All ways run the same query, in turn. It returns the server process that ran it, so the number of
different processes is the number of connections that were opened.
"""

from sqlalchemy import Connection, Engine, create_engine, exc, text
from sqlalchemy.pool import NullPool

from poolkit.experiment import Lab, experiment


def bad_no_pooling(url: str, query: str) -> int:
    engine = create_engine(url)
    with engine.connect() as conn:
        pid = conn.execute(text(query)).scalar()
    engine.dispose()
    return pid


def good_with_pooling(engine: Engine, query: str) -> int:
    with engine.connect() as conn:
        return conn.execute(text(query)).scalar()


def bad_pool_exhaustion(engine: Engine, used: list[Connection]) -> None:
    for _ in range(3):
        conn = engine.connect()
        used.append(conn)
        conn.execute(text("SELECT 1"))


def good_proper_cleanup(engine: Engine, used: list[Connection]) -> None:
    for _ in range(3):
        with engine.connect() as conn:
            used.append(conn)
            conn.execute(text("SELECT 1"))


@experiment(
    question="What does an engine for each request cost?",
    rows=("1.1", "1.3", "1.4", "1.5", "1.6", "1.22", "1.49"),
    seconds=3,
)
def run(lab: Lab, *, iterations: int = 100, query_ms: float = 0.0, pool_size: int = 2) -> None:
    query = f"SELECT pg_backend_pid() FROM pg_sleep({query_ms / 1e3})"
    engine = create_engine(lab.url())
    lab.at_end(engine.dispose)
    unpooled = create_engine(lab.url(), poolclass=NullPool)

    lab.say(f"{iterations} queries with an engine for each, with NullPool, and with one engine")
    pids = {"engine per iteration": set(), "NullPool": set(), "one engine": set()}
    times = lab.time_in_turn(
        {
            "engine per iteration": lambda: pids["engine per iteration"].add(
                bad_no_pooling(lab.url(), query)
            ),
            "NullPool": lambda: pids["NullPool"].add(good_with_pooling(unpooled, query)),
            "one engine": lambda: pids["one engine"].add(good_with_pooling(engine, query)),
        },
        iterations,
    )
    ms = {way: each.median * 1e3 for way, each in times.items()}
    opened = {way: len(found) for way, found in pids.items()}
    rows = [(way, ms[way], opened[way]) for way in ms]
    lab.table(f"{iterations} queries", ("way", "ms for one, p50", "connections"), rows)
    lab.bars("One query with what it takes to get a connection (p50)", ms, unit="ms")

    lab.say(f"three queries on a pool of {pool_size}, without and with closing")
    fails = {}
    for program in (bad_pool_exhaustion, good_proper_cleanup):
        small = create_engine(lab.url(), pool_size=pool_size, max_overflow=0, pool_timeout=0.2)
        lab.at_end(small.dispose)
        used = []
        try:
            program(small, used)
            fails[program] = False
        except exc.TimeoutError:
            fails[program] = True
        for conn in used:
            conn.close()

    is_slower = {
        way: ms[way] > 2 * ms["one engine"] for way in ("engine per iteration", "NullPool")
    }
    shown = {way: f"{opened[way]} connection(s), {ms[way]:.2g} ms a query" for way in ms}
    why = (
        "The pool of a new engine is empty, so its first query pays for a connect and for SQLAlchemy's "
        "first questions to the server. A shared engine pays once, and lends the same connection each "
        "time. The longer a query takes, the less its connect matters."
    )
    lab.judge(
        "1.1",
        "a pool avoids the cost of opening connections",
        holds={
            "the number of connections": opened["one engine"] < opened["NullPool"],
            "the time of a query": is_slower["NullPool"],
        },
        measured=f"with a pool {shown['one engine']}; without {shown['NullPool']}",
        why=why,
    )
    lab.judge(
        "1.5 1.6",
        f"an engine in each of {iterations} iterations opens as many connections and is slow; one "
        "engine for all reuses its connections and is fast",
        holds=opened["engine per iteration"] == iterations > opened["one engine"]
        and is_slower["engine per iteration"],
        measured=f"engine per iteration: {shown['engine per iteration']}; one engine: "
        f"{shown['one engine']}",
        why=why,
    )
    lab.judge(
        "1.22",
        "NullPool opens a connection each time",
        holds=opened["NullPool"] == iterations,
        measured=f"{opened['NullPool']} connections for {iterations} queries",
        why="NullPool keeps nothing: a checkout connects, and giving back closes.",
    )
    lab.judge(
        "1.49",
        "NullPool is slow",
        holds=is_slower["NullPool"],
        measured=f"NullPool {ms['NullPool']:.2g} ms a query, QueuePool {ms['one engine']:.2g} ms",
        why=why,
    )
    lab.judge(
        "1.3 1.4",
        "in both pairs of programs the bad one shows a problem, and the good one solves it",
        holds={
            "no pooling": is_slower["engine per iteration"],
            "pool exhaustion": fails[bad_pool_exhaustion] and not fails[good_proper_cleanup],
        },
        measured=f"{ms['engine per iteration']:.2g} ms against {ms['one engine']:.2g} ms a query; "
        f"of three queries on a pool of {pool_size}, the last one without closing "
        f"{'fails' if fails[bad_pool_exhaustion] else 'works'}, with closing "
        f"{'fails' if fails[good_proper_cleanup] else 'works'}",
        why="The first pair differs by the connects, the second by the checkouts that never end. A "
        "pool counts an unclosed connection as in use, and refuses after pool_timeout.",
    )
