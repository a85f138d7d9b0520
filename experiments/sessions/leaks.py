"""Does a session without a close leak its connection, and who has forgotten the close?

You may have read that a session that is not closed has leaked its connection (1.51). `with` or a `finally`
prevents it (1.39).

Sessions are used in four ways, as often as the pool has connections. Then the connections that are out are
counted, and one more session asks for one; the same again after a garbage collection. At last poolkit's
leak detection shows the line that borrowed. `--set after_query=commit` commits where the close is missing.
"""

import gc
import logging
from contextlib import suppress

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

import poolkit
from poolkit.experiment import Lab, experiment


def never_closed(engine: Engine, after_query: str = "nothing") -> Session:
    session = Session(engine)
    session.execute(text("SELECT 1"))
    if after_query == "commit":
        session.commit()
    return session


def closed_by_with(engine: Engine, sql: str) -> None:
    with Session(engine) as session:
        session.execute(text(sql))


def closed_in_finally(engine: Engine, sql: str) -> None:
    session = Session(engine)
    try:
        session.execute(text(sql))
    finally:
        session.close()


FORGOTTEN, REFERRED_TO = "never closed", "never closed, in a list"
WITH, FINALLY = "with, query fails", "finally, query fails"


@experiment(
    question="Does a session without a close leak its connection, and who has forgotten the close?",
    rows=("1.39", "1.51"),
    seconds=1,
)
def run(lab: Lab, *, pool_size: int = 5, after_query: str = "nothing") -> None:
    engine = create_engine(lab.url(), pool_size=pool_size, max_overflow=0, pool_timeout=0.1)
    lab.at_end(engine.dispose)
    # The garbage collector runs at some time; here it runs when the first half is counted.
    gc.disable()
    lab.at_end(gc.enable)
    referred_to: list[Session] = []

    def next_one() -> str:
        try:
            closed_by_with(engine, "SELECT 1")
        except PoolTimeout:
            return "refused"
        return "served"

    found = {}
    for way, use in {
        FORGOTTEN: lambda: never_closed(engine, after_query),
        REFERRED_TO: lambda: referred_to.append(never_closed(engine, after_query)),
        WITH: lambda: closed_by_with(engine, "SELECT 1 / 0"),
        FINALLY: lambda: closed_in_finally(engine, "SELECT 1 / 0"),
    }.items():
        for _ in range(pool_size):
            with suppress(DBAPIError):
                use()
        before = (engine.pool.checkedout(), next_one())
        gc.collect()
        found[way] = (*before, engine.pool.checkedout(), next_one())
        for session in referred_to:
            session.close()
    columns = (f"{pool_size} sessions", "out", "next session", "out after gc", "next session")
    lab.table("Connections that are out", columns, [(way, *row) for way, row in found.items()])

    # Leak detection logs each checkout that is out for longer than its threshold, with the stack.
    watched = create_engine(lab.url())
    lab.at_end(watched.dispose)
    poolkit.attach(watched, poolkit.preset("web", "dev"), leak_detection_threshold=0.05)
    logger, handler, reports = logging.getLogger("poolkit.holds"), logging.Handler(), []
    handler.emit = reports.append
    logger.addHandler(handler)
    lab.at_end(logger.removeHandler, handler)
    session = never_closed(watched, after_query)
    lab.at_end(session.close)
    lab.wait_until("the leak is reported", lambda: reports or not watched.pool.checkedout())
    columns = ("checked out by", "in", "out for")
    table = [(r.hold["where"], r.hold["holder"], f"{r.hold['held_s']:.2f} s") for r in reports]
    lab.table("What leak_detection_threshold=0.05 reports", columns, table)
    for report in reports:
        stack = [line for line in report.getMessage().splitlines() if __file__ in line]
        frames = "; ".join(line.split("/")[-1].replace('"', "") for line in stack)
        lab.note(f"The report has the whole stack. Its lines of this file: {frames}")

    shown = {way: f"{way}: {row[0]} out, {row[2]} after gc" for way, row in found.items()}
    lab.judge(
        "1.39",
        "connections of sessions that are not closed leak; with and finally prevent it",
        holds=found[FORGOTTEN][0] > 0 and found[WITH][0] == found[FINALLY][0] == 0,
        measured=", ".join((shown[FORGOTTEN], shown[WITH], shown[FINALLY])),
        why="Both close the session whether its query fails or not, and the close returns the "
        "connection. So does a commit or a rollback: what leaks is a transaction that never ends.",
    )
    lab.judge(
        "1.51",
        "a session that is not closed has leaked its connection",
        holds={
            "the time before a garbage collection": found[FORGOTTEN][1] == "refused",
            "the time after it": found[FORGOTTEN][3] == "refused",
            "a session that something still refers to": found[REFERRED_TO][3] == "refused",
        },
        measured=", ".join((shown[FORGOTTEN], shown[REFERRED_TO])),
        why="A session and its transaction refer to each other, so they live until the cyclic garbage "
        "collector finds them, at a time that depends on what else the program allocates. Then the pool "
        "takes the connection back. What a global, a cache or a traceback refers to is no garbage.",
    )
