"""What does pool_pre_ping send, and what does it cost?

You may have read that pool_pre_ping sends a SELECT 1 before each use (1.18), at a slight cost (1.19).

Connections are checked out and returned, on the loopback address and over a distance: without a check,
with pool_pre_ping, and with poolkit's preset, which polls the socket and pings after half a second of
idleness. Then the server is asked what the last statement of a connection was, for two drivers.
"""

from functools import partial

from sqlalchemy import Engine, create_engine

from poolkit.config.presets import preset
from poolkit.experiment import Lab, experiment

NO_CHECK, PRE_PING, KIT = "no check", "pool_pre_ping", "poolkit"


def check_out(engine: Engine) -> None:
    with engine.connect():
        pass


@experiment(
    question="What does pool_pre_ping send, and what does it cost?",
    rows=("1.18", "1.19"),
    seconds=4,
)
def run(lab: Lab, *, rtt_ms: float = 1.5, times: int = 200, little_ms: float = 1.0) -> None:
    here, far = "on the loopback address", f"{rtt_ms:g} ms away"
    lab.say(f"{times} checkouts with each engine, {here} and {far}")
    with lab.network(rtt_s=rtt_ms / 1e3) as far_line:
        checkouts = {}
        for where, url in ((here, lab.url()), (far, far_line.address.url())):
            for arm, engine in {
                NO_CHECK: create_engine(url),
                PRE_PING: create_engine(url, pool_pre_ping=True),
                KIT: preset("web", "prod").create_engine(url),
            }.items():
                lab.at_end(engine.dispose)
                check_out(engine)
                checkouts[arm, where] = partial(check_out, engine)
        found = lab.time_in_turn(checkouts, times)
    ms = {key: each.median * 1e3 for key, each in found.items()}
    arms = (NO_CHECK, PRE_PING, KIT)
    rows = [(arm, ms[arm, here], ms[arm, far]) for arm in arms]
    lab.table(f"A checkout in ms, p50 of {times}", ("", here, far), rows)
    lab.bars(f"A checkout, {far}", {arm: ms[arm, far] for arm in arms}, unit="ms")

    last_statements = {}
    for driver in ("psycopg2", "psycopg"):
        engine = create_engine(lab.url(driver), pool_pre_ping=True)
        lab.at_end(engine.dispose)
        check_out(engine)
        check_out(engine)
        last_statements[driver] = lab.backends()[-1].query

    added = {where: ms[PRE_PING, where] - ms[NO_CHECK, where] for where in (here, far)}
    lab.judge(
        "1.19",
        f"pool_pre_ping costs little: less than {little_ms:g} ms for each checkout",
        holds={where: cost < little_ms for where, cost in added.items()},
        measured=", ".join(f"{cost:.2f} ms {where}" for where, cost in added.items())
        + f"; poolkit's check {ms[KIT, far] - ms[NO_CHECK, far]:.2f} ms {far}",
        why="A ping is a round trip at each checkout, as much as a simple query. Whether that is little "
        "depends on the distance. A poll of the socket costs no round trip.",
    )
    lab.judge(
        "1.18",
        "pool_pre_ping sends SELECT 1 before each use",
        holds={driver: sent == "SELECT 1" for driver, sent in last_statements.items()},
        measured=", ".join(f"{driver} sends {sent!r}" for driver, sent in last_statements.items()),
        why="SQLAlchemy's dialect for each driver has a ping of its own. Some send an empty statement, "
        "which is parsed faster. It is a round trip all the same.",
    )
