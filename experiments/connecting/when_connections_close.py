"""When does a pool close its connections, and how long do they live?

You may have read that connections stay open all day (0.9), outlive sessions by far (0.32), and serve
thousands of sessions (0.33) and 10,000 requests (0.28), because a pool does not create them
constantly (0.27); that overflow connections are closed when they come back (1.11), as soon as the
load drops (0.21); and that `pool_recycle=3600` closes all connections every hour (0.31).

Here sessions use an engine one after the other, then at once. Overflow connections come back first,
and last. Bursts follow each other. A `pool_recycle` of 1 s stands for the hour.
"""

import time
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session

from poolkit.experiment import Lab, experiment

BURSTS = 10


def serve(engine: Engine) -> int:
    with Session(engine) as session:
        return session.execute(text("SELECT pg_backend_pid()")).scalar_one()


@experiment(
    question="When does a pool close its connections?",
    rows=("0.9", "0.21", "0.27", "0.28", "0.31", "0.32", "0.33", "1.11"),
    seconds=5,
)
def run(lab: Lab, *, pool_size: int = 10, max_overflow: int = 5, sessions: int = 2000) -> None:
    limit, more = pool_size + max_overflow, sessions // 2
    engine = create_engine(lab.url(), pool_size=pool_size, max_overflow=max_overflow)
    lab.at_end(engine.dispose)
    opened: list[float] = []
    event.listen(engine, "connect", lambda *_: opened.append(time.monotonic()))

    def pids() -> set[int]:
        return {backend.pid for backend in lab.backends()}

    lab.say(f"{sessions} sessions one after the other, then {more} by {pool_size} threads")
    served: set[int] = set()
    lives = lab.time(lambda: served.add(serve(engine)), sessions)
    age_s = time.monotonic() - opened[0]
    lab.judge(
        "0.33",
        "one connection serves thousands of sessions",
        holds=len(served) == 1 and sessions >= 1000,
        measured=f"{len(served)} connection served {sessions} sessions",
        why="A session that ends returns its connection to the pool, and the next one takes it.",
    )
    lab.judge(
        "0.32",
        "a connection lives far longer than a session",
        holds=age_s > 100 * lives.median,
        measured=f"sessions of {lives}; their connection was {age_s:.1f} s old, and still open",
        why="A connection lives as long as its pool keeps it, whatever the number of sessions.",
    )
    with ThreadPoolExecutor(pool_size) as threads:
        shared = served | set(threads.map(serve, [engine] * more))
    steady = len(opened)
    for connection in [engine.connect() for _ in range(pool_size)]:
        connection.close()
    warm = pids()

    lab.say(f"{BURSTS} bursts: {limit} connections at once, which then come back")
    open_after: list[tuple[float, float]] = []

    def survivors_of_burst(*, overflow_first: bool) -> int:
        before = pids()
        connections = [engine.connect() for _ in range(limit)]
        overflow = pids() - before
        open_after[:] = [(0, limit)]
        for number, connection in enumerate(connections[:: -1 if overflow_first else 1]):
            connection.close()
            open_after.append((number + 1, engine.pool.checkedin() + engine.pool.checkedout()))
        lab.count_backends(pool_size)
        return len(overflow & pids())

    first = survivors_of_burst(overflow_first=True)
    opened_before = len(opened)
    for _ in range(BURSTS):
        last = survivors_of_burst(overflow_first=False)
    opened_in_bursts, left = len(opened) - opened_before, open_after[-1][1]
    title = f"{limit} connections come back to a pool of {pool_size}"
    lab.lines(title, {"open": open_after}, unit="connections", x_title="returned")
    lab.judge(
        "0.21",
        "overflow connections are closed when the load drops",
        holds=open_after[1][1] == limit and left == pool_size < limit,
        measured=f"{open_after[1][1]} open after the first return, {left} after return {limit}",
        why="A connection that comes back is closed at once if pool_size connections are idle already. "
        "Each short pause between two bursts closes them.",
    )
    lab.judge(
        "1.11",
        "a connection beyond pool_size is closed when it comes back",
        holds={"one that comes back last": last == 0, "one that comes back first": first == 0},
        measured=f"of {max_overflow}, {first} stay open if they come back first, {last} if last",
        why="No connection is marked as overflow: the first pool_size that come back are kept.",
    )
    lab.judge(
        "0.27 0.28",
        f"thousands of requests share {pool_size} connections, and the pool creates no others",
        holds={
            f"up to {pool_size} at once": steady == len(shared) <= pool_size,
            f"bursts of {limit}": opened_in_bursts <= max_overflow,
        },
        measured=f"{sessions + more} sessions opened {steady}, {BURSTS} bursts {opened_in_bursts}",
        why="A pool opens a connection only if none is idle. A burst above pool_size finds too few "
        "idle ones each time, because the pool has closed the others after the last burst.",
    )

    engine.dispose()
    lab.count_backends(0)
    lab.say("a pool_recycle of 1 s, which stands for an hour")
    engine = create_engine(lab.url(), pool_size=pool_size, pool_recycle=1)
    lab.at_end(engine.dispose)
    for connection in [engine.connect() for _ in range(pool_size)]:
        connection.close()
    fresh = pids()
    time.sleep(1.5)
    idle = len(fresh - pids())
    serve(engine)
    lab.count_backends(pool_size)
    used = len(fresh - pids())
    lab.judge(
        "0.31",
        "pool_recycle closes and reopens all connections when their time is over",
        holds={"idle connections": idle == pool_size, "one checkout": used == pool_size},
        measured=f"after 1.5 s: {idle} of {pool_size} replaced; after a checkout: {used}",
        why="No clock runs in a pool. A checkout compares the age of its connection with pool_recycle, "
        "and replaces that one. Idle connections grow older.",
    )
    lab.judge(
        "0.9",
        "connections stay open all day",
        holds={
            f"up to {pool_size} at once": shared <= warm,
            "overflow": last == max_overflow,
            "pool_recycle": used == 0,
        },
        measured=f"{len(shared & warm)} of {len(shared)} still open after {sessions + more} sessions, "
        f"{last} of {max_overflow} of overflow after a burst; pool_recycle replaced {used}",
        why="A pool closes a connection if enough are idle, if it is too old, or if it failed.",
    )
