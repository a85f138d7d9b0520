"""What happens if pool_size is above the server's max_connections?

You may have read this exercise, without its solution: set pool_size above max_connections, and observe
the failure (4.41).

A server of its own has max_connections=10, and the pool has pool_size=20. First one request comes,
then as many as the pool has connections. Each keeps its connection.

What to expect: one request notices nothing. Of twenty, most get "FATAL: sorry, too many clients
already", or "remaining connection slots are reserved".
"""

from contextlib import ExitStack

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import OperationalError

from poolkit.experiment import Lab, experiment


def refusals(engine: Engine, requests: int) -> list[str]:
    """Take connections and keep them; return the server's reasons for those that fail."""
    reasons = []
    with ExitStack() as held:
        for _ in range(requests):
            try:
                held.enter_context(engine.connect())
            except OperationalError as error:
                reasons.append(str(error.orig).rpartition("FATAL:")[2].strip())
    return reasons


@experiment(
    question="What happens if pool_size is above the server's max_connections?",
    rows=("4.41",),
    seconds=2,
)
def run(lab: Lab, *, max_connections: int = 10, pool_size: int = 20) -> None:
    lab.say(f"a server with max_connections={max_connections}, and pool_size={pool_size}")
    with lab.new_server(max_connections=max_connections) as server:
        engine = create_engine(server.url(), pool_size=pool_size)
        lab.at_end(engine.dispose)
        of_one = refusals(engine, 1)
        of_all = refusals(engine, pool_size)
    lab.judge(
        "4.41",
        "a pool_size above the server's max_connections makes requests fail",
        holds={f"{pool_size} requests at once": bool(of_all), "one request": bool(of_one)},
        measured=f"max_connections={max_connections}, pool_size={pool_size}: {len(of_all)} of "
        f"{pool_size} requests failed ({', '.join(sorted(set(of_all)))}), {len(of_one)} of 1",
        why="The server does not know pool_size. It refuses the connection that is one too many, so "
        "this fault waits for the first busy hour. Three of max_connections are kept for "
        "superusers by default, so an application gets fewer.",
    )
