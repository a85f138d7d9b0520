"""How many connections may a pool open, and how many does it keep?

You may have read that pool_size=5 and max_overflow=10 allow 15 connections (1.12); that
`max_overflow=0` is a strict limit (1.13); and that a request reuses a returned connection, without a
new login (4.5).

Requests take connections and keep them until one is refused, and the server is asked how many are
open. Then a crowd of requests comes twice, once as large as pool_size and once as large as the limit.
The connections that are opened for the second crowd are counted.
"""

from contextlib import ExitStack, suppress

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import TimeoutError as PoolTimeout

from poolkit.experiment import Lab, experiment


def hold(engine: Engine, requests: int, held: ExitStack) -> None:
    """Take connections, and keep them as long as `held` is open."""
    for _ in range(requests):
        held.enter_context(engine.connect())


@experiment(
    question="How many connections may a pool open, and how many does it keep?",
    rows=("1.12", "1.13", "4.5"),
    seconds=1,
)
def run(lab: Lab, *, pool_size: int = 10, max_overflow: int = 20, requests: int = 31) -> None:
    most = {}
    for size, overflow in ((5, 10), (10, 0)):
        lab.say(f"{requests} requests, pool_size={size} and max_overflow={overflow}")
        lab.count_backends(0)
        engine = create_engine(lab.url(), pool_size=size, max_overflow=overflow, pool_timeout=0.1)
        lab.at_end(engine.dispose)
        with ExitStack() as held:
            with suppress(PoolTimeout):
                hold(engine, requests, held)
            most[f"{size} + {overflow}"] = len(lab.backends())
        engine.dispose()
    lab.bars(f"Open connections of {requests} requests", most, unit="connections")
    lab.judge(
        "1.12 1.13",
        "the limit is pool_size + max_overflow: 5 + 10 = 15; and 10 without overflow",
        holds=most == {"5 + 10": 15, "10 + 0": 10},
        measured=f"{requests} requests: "
        + ", ".join(f"{number} open with {sizes}" for sizes, number in most.items()),
        why="The pool counts its connections under a lock before it opens one, so threads that come "
        "at the same moment do not exceed the limit. max_overflow=-1 removes it.",
    )

    lab.say(f"crowds of requests, pool_size={pool_size} and max_overflow={max_overflow}")
    engine = create_engine(lab.url(), pool_size=pool_size, max_overflow=max_overflow)
    lab.at_end(engine.dispose)
    opened: list[object] = []
    event.listen(engine, "connect", lambda connection, record: opened.append(connection))
    opened_again = {}
    for crowd in (pool_size, pool_size + max_overflow):
        for _ in range(2):
            before = len(opened)
            with ExitStack() as held:
                hold(engine, crowd, held)
        opened_again[crowd] = len(opened) - before
    lab.judge(
        "4.5",
        "a returned connection is reused, so a request needs no new login",
        holds={f"{crowd} requests at once": new == 0 for crowd, new in opened_again.items()},
        measured=", ".join(
            f"{new} opened for a second crowd of {crowd}" for crowd, new in opened_again.items()
        ),
        why="The pool keeps pool_size connections. What a crowd needs beyond them is opened for it, "
        "and closed when it comes back: a load above pool_size logs in all the time.",
    )
