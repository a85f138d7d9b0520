"""What happens to request 31 of a pool with 30 connections?

You may have read that a pool of 10 with an overflow of 20 has 30 connections at the most (0.18); that
requests 11 to 30 open overflow connections (0.19); that request 31 waits until one comes back (0.20);
and that the wait ends in a `TimeoutError` after `pool_timeout` (1.14).

Each request takes a connection and keeps it, and the server is asked how many are open. Then one
request more comes: first no connection comes back, then one does.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import TimeoutError as PoolTimeout

from poolkit.experiment import Lab, experiment


def one_more(engine: Engine, held: ExitStack) -> tuple[str, float]:
    """Take and keep a connection; return `served` or the kind of error, and the seconds it took."""
    began = time.perf_counter()
    try:
        held.enter_context(engine.connect())
    except PoolTimeout as error:
        return type(error).__name__, time.perf_counter() - began
    return "served", time.perf_counter() - began


@experiment(
    question="What happens to request 31 of a pool with 30 connections?",
    rows=("0.18", "0.19", "0.20", "1.14"),
    seconds=2,
)
def run(
    lab: Lab,
    *,
    pool_size: int = 10,
    max_overflow: int = 20,
    requests: int = 31,
    timeout_s: float = 1.0,
) -> None:
    engine = create_engine(
        lab.url(), pool_size=pool_size, max_overflow=max_overflow, pool_timeout=timeout_s
    )
    lab.at_end(engine.dispose)
    lab.say(f"{requests} requests, each keeps its connection")
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
            time.sleep(timeout_s / 2)
            last.close()
            helped, helped_s = waiting.result()
        open_then = len(lab.backends())

    lab.lines(
        "Connections open on the server",
        {"open": list(open_at.items())},
        unit="connections",
        x_title="requests, each keeps its connection",
    )
    limit, before = pool_size + max_overflow, requests - 1
    lab.judge(
        "0.18",
        f"pool_size {pool_size} and max_overflow {max_overflow} make {limit} connections at the most",
        holds=max(open_at.values()) == limit and alone != "served",
        measured=f"{open_at[before]} open for {before} requests, {open_at[requests]} for {requests}",
        why="A checkout that finds none idle opens a connection, as long as fewer than pool_size + "
        "max_overflow are open. It is a limit for one engine in one process.",
    )
    lab.judge(
        "0.19",
        f"requests {pool_size + 1} to {before} are served by overflow connections",
        holds=open_at[pool_size] == pool_size and open_at[before] == before,
        measured=f"{open_at[pool_size]} open for {pool_size} requests, {open_at[before]} for {before}",
        why="An overflow connection is a connection like the others. It differs when it comes back: "
        "the pool keeps pool_size idle ones, and closes the rest.",
    )
    lab.judge(
        "0.20",
        f"request {requests} waits until a connection comes back",
        holds={
            "a connection that comes back in time": helped == "served"
            and helped_s > timeout_s / 10
            and open_then == open_at[before],
            "one that comes back later": alone == "served" and alone_s > timeout_s,
        },
        measured=f"served after {helped_s:.2f} s, when one came back; {alone} after {alone_s:.2f} s",
        why="The request gets the connection that comes back, so the pool opens none for it. The "
        "wait has a limit, pool_timeout: 30 s by default.",
    )
    lab.judge(
        "1.14",
        "a checkout that has waited for pool_timeout raises TimeoutError",
        holds=alone == "TimeoutError" and alone_s >= timeout_s,
        measured=f"{alone} after {alone_s:.2f} s with pool_timeout={timeout_s:g}",
        why="It is sqlalchemy.exc.TimeoutError and no subclass of Python's own. So `except "
        "TimeoutError` catches it only where that name was imported from SQLAlchemy.",
    )
