"""How long does it take to borrow a connection, and to return it?

You may have read that a pool lends a connection in less than 1 ms, and takes it back in less than 1 ms
(0.15); and that `getconn` of psycopg2's pools takes less than 1 ms (3.7).

An engine, an engine with pool_pre_ping, and a pool of psycopg2 each lend a connection for a query, in
turn: on the loopback address, and with TLS at three distances.
"""

import time

from psycopg2.pool import SimpleConnectionPool
from sqlalchemy import Engine, create_engine, text

from poolkit.experiment import Lab, experiment
from poolkit.experiment.lab import milliseconds
from poolkit.local.distance import NAMED_DISTANCES


def use_engine(engine: Engine) -> tuple[float, float]:
    begin = time.perf_counter()
    connection = engine.connect()
    borrowed = time.perf_counter()
    connection.execute(text("SELECT 1"))
    used = time.perf_counter()
    connection.close()
    return borrowed - begin, time.perf_counter() - used


def use_pool(pool: SimpleConnectionPool) -> tuple[float, float]:
    begin = time.perf_counter()
    connection = pool.getconn()
    borrowed = time.perf_counter()
    connection.cursor().execute("SELECT 1")
    used = time.perf_counter()
    pool.putconn(connection)
    return borrowed - begin, time.perf_counter() - used


@experiment(
    question="How long does it take to borrow a connection, and to return it?",
    rows=("0.15", "3.7"),
    seconds=7,
)
def run(lab: Lab, *, minconn: int = 1, times: int = 15) -> None:
    lends: dict[tuple[str, str], list[tuple[float, float]]] = {}
    ways = ("engine", "engine that pings", "psycopg2 pool")
    for place, (rtt_s, meaning, _) in NAMED_DISTANCES.items():
        lab.say(f"{place}: {meaning}")
        with lab.network(rtt_s=rtt_s, tls=rtt_s > 0) as line:
            engine = create_engine(line.address.url())
            lab.at_end(engine.dispose)
            pinging = create_engine(line.address.url(), pool_pre_ping=True)
            lab.at_end(pinging.dispose)
            pool = SimpleConnectionPool(minconn, 5, line.address.dsn())
            lab.at_end(pool.closeall)
            use_engine(engine)
            use_engine(pinging)
            # The network decides about the longest distance, so a few will do.
            for _ in range(times if rtt_s < 0.01 else 3):
                lends.setdefault((place, "engine"), []).append(use_engine(engine))
                lends.setdefault((place, "engine that pings"), []).append(use_engine(pinging))
                lends.setdefault((place, "psycopg2 pool"), []).append(use_pool(pool))

    # The fastest, not the median: what else the machine does lengthens the others.
    borrow, give_back = (
        {key: min(each[step] for each in found) for key, found in lends.items()} for step in (0, 1)
    )
    rows = [
        (f"{step}, {way}", *(took[place, way] * 1e3 for place in NAMED_DISTANCES))
        for way in ways
        for step, took in (("borrow", borrow), ("return", give_back))
    ]
    lab.table("Milliseconds", ("what", *NAMED_DISTANCES), rows)

    if not lab.distance.is_none:
        lab.note(f"The distance of this run ({lab.distance}) is added to each of those named here.")
    # Within an availability zone a return takes nearly 1 ms, too near the limit for a verdict.
    judged = ("loopback", "cross-az", "cross-region")
    shown = {
        step: ", ".join(f"{milliseconds(took[place, 'engine'])} {place}" for place in judged)
        for step, took in (("borrow", borrow), ("return", give_back))
    }
    lab.judge(
        "0.15",
        "an engine lends a connection in less than 1 ms, and takes it back in less than 1 ms",
        holds={
            place: max(borrow[place, "engine"], give_back[place, "engine"]) < 1e-3
            for place in judged
        },
        measured=f"borrow {shown['borrow']}; return {shown['return']}",
        why="To borrow is to take a connection from a queue in this process, unless pool_pre_ping "
        "asks the server first. To return one ends its transaction: the ROLLBACK of "
        "reset_on_return is a round trip.",
    )
    getconn = {place: borrow[place, "psycopg2 pool"] for place in NAMED_DISTANCES}
    lab.judge(
        "3.7",
        "getconn takes less than 1 ms",
        holds={place: took < 1e-3 for place, took in getconn.items()},
        measured=", ".join(f"{milliseconds(took)} {place}" for place, took in getconn.items()),
        why="getconn takes a connection from a list. The pool keeps up to minconn of them there. If "
        "all of them are in use, getconn is a connect.",
    )
