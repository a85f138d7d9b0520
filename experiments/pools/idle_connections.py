"""Which connections go idle in a quiet hour: first in, first out, or last in, first out?

You may have read that the connections of a pool stay open all day (0.9). After a busy hour that depends
on the order in which the pool lends them. QueuePool lends the one that was idle longest, so each is
used now and then. With `pool_use_lifo=True` it lends the one that came back last, so the others rest.
QueuePool never closes those. The server does: `idle_session_timeout` (PostgreSQL 14).

A crowd opens pool_size connections in each of three pools. In a quiet time one request follows the
other. The idle limit is six times as long as FIFO needs to use each connection once, 1.5 s on a
machine with nothing else to do. Then the crowd comes back, and may get a closed connection.
"""

import time
from contextlib import ExitStack

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from poolkit.experiment import Lab, experiment

PID = text("SELECT pg_backend_pid()")


def crowd(engine: Engine, size: int, before: str = "SELECT 1") -> tuple[set[int], int]:
    """Hold connections at the same time; return their processes and the failed queries."""
    pids, failed = set(), 0
    with ExitStack() as held:
        for _ in range(size):
            connection = held.enter_context(engine.connect())
            try:
                connection.execute(text(before))
                connection.commit()
                pids.add(connection.scalar(PID))
            except DBAPIError:
                failed += 1
    return pids, failed


@experiment(
    question="Which connections go idle in a quiet hour: FIFO or LIFO?", rows=("0.9",), seconds=6
)
def run(lab: Lab, *, pool_size: int = 10, idle_rounds: int = 6) -> None:
    url = lab.url()
    engines = {
        "FIFO": create_engine(url, pool_size=pool_size, pool_pre_ping=True),
        "LIFO": create_engine(url, pool_size=pool_size, pool_pre_ping=True, pool_use_lifo=True),
        "LIFO, no pre-ping": create_engine(url, pool_size=pool_size, pool_use_lifo=True),
    }
    used: dict[str, set[int]] = {name: set() for name in engines}
    still: dict[str, list[tuple[float, int]]] = {name: [] for name in engines}

    def single_requests() -> None:
        for name, engine in engines.items():
            used[name] |= crowd(engine, 1)[0]
        time.sleep(0.02)

    for engine in engines.values():
        lab.at_end(engine.dispose)
        crowd(engine, pool_size)
    round_s = lab.time(single_requests, pool_size).total
    limit_s = idle_rounds * round_s
    limit = f"SET idle_session_timeout = {limit_s * 1000:.0f}"
    opened = {name: crowd(engine, pool_size, limit)[0] for name, engine in engines.items()}

    quiet_s = 2.5 * 6 * round_s
    lab.say(f"one request at a time for {quiet_s:.1f} s, and an idle limit of {limit_s:.1f} s")
    used.update((name, set()) for name in engines)
    began = time.monotonic()
    while (at := time.monotonic() - began) < quiet_s:
        alive = {backend.pid for backend in lab.backends()}
        for name in engines:
            still[name].append((at, len(alive & opened[name])))
        single_requests()

    lab.say("the crowd comes back")
    failed = {name: crowd(engine, pool_size)[1] for name, engine in engines.items()}

    left = {name: line[-1][1] for name, line in still.items()}
    lab.table(
        f"A crowd of {pool_size}, then {quiet_s:.1f} s of single requests; idle limit {limit_s:.1f} s",
        ("order", "connections used", "still open", "failed when the crowd came back"),
        [(name, len(used[name]), left[name], failed[name]) for name in engines],
    )
    shown = {name: line for name, line in still.items() if name != "LIFO, no pre-ping"}
    lab.lines(
        "Connections of the crowd that are still open", shown, unit="connections", x_title="s"
    )
    lab.judge(
        "0.9",
        "connections that were opened once stay open all day",
        holds={name: left[name] > pool_size / 2 for name in shown},
        measured=", ".join(
            f"{name}: {left[name]} of {pool_size} still open, {len(used[name])} used"
            for name in shown
        ),
        why="QueuePool has no idle limit of its own. With FIFO a quiet hour uses every connection now "
        "and then, so the server's idle limit is never reached. With LIFO the quiet hour keeps a few "
        "busy, the rest reach the limit, and the server gets them back. A pool with LIFO needs a "
        "check, such as pool_pre_ping: otherwise the next crowd meets closed connections.",
    )
