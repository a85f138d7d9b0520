"""What happens to request 31 of a pool with 30 connections?

You may have read that a pool of 10 with an overflow of 20 has 30 connections at the most (0.18), and
one of 5 and 10 has 15 (1.12); that requests 11 to 30 open overflow connections (0.19), and request
31 waits until one comes back (0.20); that `max_overflow=0` is a strict limit (1.13); that the wait
ends in a `TimeoutError` after `pool_timeout` (1.14); and that returned connections are reused, without
a new login for each request (4.5).

Each request takes a connection and keeps it, and the server is asked how many are open. Then one
request more comes: first no connection comes back, then one does. Later the crowd comes again.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import TimeoutError as PoolTimeout

from poolkit.experiment import Lab, experiment


def one_more(engine: Engine, held: ExitStack) -> tuple[str, float]:
    """Take and keep a connection; return `served` or the kind of error, and the seconds it took."""
    begin = time.perf_counter()
    try:
        held.enter_context(engine.connect())
    except PoolTimeout as error:
        return type(error).__name__, time.perf_counter() - begin
    return "served", time.perf_counter() - begin


def most_open(lab: Lab, size: int, overflow: int) -> int:
    """Take connections until one is refused; return how many are open."""
    engine = create_engine(lab.url(), pool_size=size, max_overflow=overflow, pool_timeout=0.1)
    lab.at_end(engine.dispose)
    lab.count_backends(0)
    with ExitStack() as held:
        while one_more(engine, held)[0] == "served":
            pass
        found = len(lab.backends())
    engine.dispose()
    return found


@experiment(
    question="What happens to request 31 of a pool with 30 connections?",
    rows=("0.18", "0.19", "0.20", "1.12", "1.13", "1.14", "4.5"),
    seconds=4,
)
def run(
    lab: Lab,
    *,
    pool_size: int = 10,
    max_overflow: int = 20,
    requests: int = 31,
    timeout_s: float = 1.0,
) -> None:
    lab.say(f"{requests} requests, each keeps its connection")
    engine = create_engine(
        lab.url(), pool_size=pool_size, max_overflow=max_overflow, pool_timeout=timeout_s
    )
    lab.at_end(engine.dispose)
    opened: list[object] = []
    event.listen(engine, "connect", lambda connection, record: opened.append(connection))
    open_at = {}
    with ExitStack() as held:
        for number in range(1, requests):
            last = held.enter_context(engine.connect())
            open_at[number] = len(lab.backends())
        alone, alone_s = one_more(engine, held)
        open_at[requests] = len(lab.backends())

        lab.say("one more waits, and a connection comes back")
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(one_more, engine, held)
            time.sleep(timeout_s / 4)
            last.close()
            helped, helped_s = waiting.result()
        open_then = len(lab.backends())

    # The crowd is gone. How many connections are opened for the next ones?
    opened_for = []
    for crowd in (pool_size, requests - 1):
        before = len(opened)
        with ExitStack() as held:
            for _ in range(crowd):
                held.enter_context(engine.connect())
        opened_for.append(len(opened) - before)
    engine.dispose()

    lab.say("pools of 5 and 10, and of 10 without overflow")
    most = {sizes: most_open(lab, *sizes) for sizes in ((5, 10), (10, 0))}
    lab.lines(
        "Connections open on the server",
        {"open": list(open_at.items())},
        unit="connections",
        x_title="requests, each keeps its connection",
    )

    limit, before_last = pool_size + max_overflow, open_at[requests - 1]
    lab.judge(
        "0.18",
        f"pool_size {pool_size} and max_overflow {max_overflow} make {limit} connections at the most",
        holds=max(open_at.values()) == limit and alone != "served",
        measured=f"{before_last} open for {requests - 1} requests, {open_at[requests]} for {requests}",
        why="A checkout that finds none idle opens a connection, as long as fewer than pool_size + "
        "max_overflow are open. It is a limit for one engine in one process.",
    )
    lab.judge(
        "1.12 1.13",
        "the limit is pool_size + max_overflow: 5 + 10 = 15; and 10 without overflow",
        holds=most == {(5, 10): 15, (10, 0): 10},
        measured=f"{most[5, 10]} open with 5 and 10, {most[10, 0]} with 10 and 0",
        why="The pool counts its connections under a lock before it opens one, so threads that come "
        "at the same moment do not exceed the limit. max_overflow=-1 removes it.",
    )
    lab.judge(
        "0.19",
        f"requests {pool_size + 1} to {requests - 1} are served by overflow connections",
        holds=open_at[pool_size] == pool_size and before_last == requests - 1,
        measured=f"{open_at[pool_size]} open for {pool_size} requests, {before_last} for {requests - 1}",
        why="An overflow connection is a connection like the others. It differs when it comes back: "
        "the pool keeps pool_size idle ones, and closes the rest.",
    )
    lab.judge(
        "0.20",
        f"request {requests} waits until a connection comes back",
        holds={
            "a connection that comes back in time": helped == "served"
            and helped_s >= timeout_s / 5
            and open_then == before_last,
            "one that comes back later": alone == "served" and alone_s > timeout_s,
        },
        measured=f"served after {helped_s:.2f} s, when one came back; {alone} after {alone_s:.2f} s",
        why="The waiting request gets the connection that comes back, so the pool opens none for it. "
        "The wait has a limit, pool_timeout: 30 s by default.",
    )
    lab.judge(
        "1.14",
        "a checkout that has waited for pool_timeout raises TimeoutError",
        holds=alone == "TimeoutError" and alone_s >= timeout_s,
        measured=f"{alone} after {alone_s:.2f} s with pool_timeout={timeout_s:g}",
        why="It is sqlalchemy.exc.TimeoutError and no subclass of Python's own. So `except "
        "TimeoutError` catches it only where that name was imported from SQLAlchemy.",
    )
    lab.judge(
        "4.5",
        "a returned connection is reused, so a request needs no new login",
        holds={
            f"{pool_size} requests at once": opened_for[0] == 0,
            f"{requests - 1} at once": opened_for[1] == 0,
        },
        measured=f"{opened_for[0]} opened for a second crowd of {pool_size}, {opened_for[1]} for one "
        f"of {requests - 1}",
        why="The pool keeps pool_size connections. What a crowd needs beyond them is opened for it, "
        "and closed when it comes back: a steady load above pool_size logs in again and again.",
    )
