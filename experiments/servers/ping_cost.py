"""What does pool_pre_ping send, and what does it cost?

You may have read that pool_pre_ping sends a SELECT 1 before each use (1.18), at a slight cost (1.19).

Three engines serve requests of one query and of ten: without a check, with pool_pre_ping, and with
poolkit's preset, which polls the socket and pings only after half a second of idleness. A proxy counts
the statements, each a round trip. Then checkouts are timed, directly and over a further distance, and
the server is asked what two drivers sent last.
"""

from collections.abc import Callable
from functools import partial

from sqlalchemy import Engine, create_engine, text

from poolkit.config.presets import preset
from poolkit.experiment import Lab, experiment

ARMS: dict[str, Callable[[str], Engine]] = {
    "no check": create_engine,
    "pool_pre_ping": partial(create_engine, pool_pre_ping=True),
    "poolkit": lambda url: preset("web", "prod").create_engine(url),
}


def check_out(engine: Engine) -> None:
    with engine.connect():
        pass


def serve(engine: Engine, requests: int, queries: int) -> None:
    for _ in range(requests):
        with engine.connect() as connection:
            for _ in range(queries):
                connection.execute(text("SELECT 'work'"))


def statements(lab: Lab, arm: str, requests: int, queries: int) -> int:
    """Return how many statements an engine sends for some requests, its connect included."""
    with lab.network(traces=True) as line:
        engine = ARMS[arm](line.address.url())
        serve(engine, requests, queries)
        engine.dispose()
        (trace,) = line.network.traces()
        return sum(step.messages.count("query") for step in trace.steps if step.by_client)


@experiment(
    question="What does pool_pre_ping send, and what does it cost?",
    rows=("1.18", "1.19"),
    seconds=3,
)
def run(
    lab: Lab,
    *,
    queries: int = 10,
    little_percent: float = 20.0,
    rtt_ms: float = 1.5,
    times: int = 100,
) -> None:
    lab.say(f"requests of 1 and of {queries} queries with each engine")
    trips = {
        (arm, n): (statements(lab, arm, 11, n) - statements(lab, arm, 1, n)) / 10
        for arm in ARMS
        for n in (1, queries)
    }
    here, far = "directly", f"{rtt_ms:g} ms farther"
    lab.say(f"{times} checkouts with each engine, {here} and {far}")
    with lab.network(rtt_s=rtt_ms / 1e3) as line:
        checkouts = {}
        for where, url in ((here, lab.url()), (far, line.address.url())):
            for arm, make in ARMS.items():
                engine = make(url)
                lab.at_end(engine.dispose)
                check_out(engine)
                checkouts[arm, where] = partial(check_out, engine)
        found = lab.time_in_turn(checkouts, times)
    ms = {key: each.median * 1e3 for key, each in found.items()}

    last_statements = {}
    for driver in ("psycopg2", "psycopg"):
        engine = create_engine(lab.url(driver), pool_pre_ping=True)
        lab.at_end(engine.dispose)
        check_out(engine)
        check_out(engine)
        last_statements[driver] = lab.backends()[-1].query

    lab.table(
        "Round trips of a request, and p50 of a checkout in ms",
        ("", "1 query", f"{queries} queries", f"checkout, {here}", f"checkout, {far}"),
        [(arm, trips[arm, 1], trips[arm, queries], ms[arm, here], ms[arm, far]) for arm in ARMS],
    )
    lab.bars(f"A checkout, {far}", {arm: ms[arm, far] for arm in ARMS}, unit="ms")
    pinged, bare = "pool_pre_ping", "no check"
    shares = {n: trips[pinged, n] / trips[bare, n] - 1 for n in (1, queries)}
    added = {where: ms[pinged, where] - ms[bare, where] for where in (here, far)}
    lab.judge(
        "1.19",
        f"pool_pre_ping costs little: less than {little_percent:g} % of a request's round trips",
        holds={f"requests with queries: {n}": shares[n] * 100 < little_percent for n in shares},
        measured=", ".join(
            f"{share:.0%} more for {trips[bare, n]:g} round trips" for n, share in shares.items()
        )
        + "; a checkout takes "
        + ", ".join(f"{cost:.2f} ms longer ({where})" for where, cost in added.items()),
        why="A ping is one round trip at each checkout, as much as a query. A request with one query "
        "makes three: BEGIN, the query, ROLLBACK. So what a ping costs depends on the distance and on "
        "the work that follows. A poll of the socket costs no round trip.",
    )
    lab.judge(
        "1.18",
        "pool_pre_ping sends SELECT 1 before each use",
        holds={
            driver: sent == "SELECT 1" and trips[pinged, 1] - trips[bare, 1] == 1
            for driver, sent in last_statements.items()
        },
        measured=", ".join(f"{driver} sends {sent!r}" for driver, sent in last_statements.items())
        + f"; {trips[pinged, 1] - trips[bare, 1]:g} statement more for each checkout",
        why="SQLAlchemy's dialect for each driver has a ping of its own. Some send an empty statement, "
        "which is parsed faster. It is a round trip all the same.",
    )
