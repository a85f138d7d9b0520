"""How many connections do 100 concurrent requests need?

You may have read that 5 connections are too few for 100 concurrent requests and 20 + 40 are adequate
(2.19), and that an exhausted pool is cured by a larger one, or by a commit (1.37).

Here a real server answers many requests at once. FastAPI runs each dependency and each endpoint that
is a plain `def` in one of 40 threads. First a request needs one connection, for a short or a long
query; then two connections. Last, a dependency makes a query and keeps its connection, while the
request waits for a thread that runs its endpoint. A `pool_timeout` of 1 s stands for 30 s.
"""

import http.client
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Annotated, NamedTuple

from fastapi import Depends, FastAPI
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from poolkit.experiment import Lab, experiment


def make_app(engine: Engine) -> FastAPI:
    app = FastAPI()

    def query(db: Session, seconds: float) -> None:
        db.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})

    @app.get("/one-connection/{seconds}")
    def one_connection(seconds: float) -> None:
        with Session(engine) as db:
            query(db, seconds)

    @app.get("/two-connections/{seconds}")
    def two_connections(seconds: float) -> None:
        with Session(engine) as db:
            query(db, seconds)
            with Session(engine) as log:
                query(log, seconds)

    def get_db() -> Iterator[Session]:
        with Session(engine) as db:
            yield db

    def get_user(
        db: Annotated[Session, Depends(get_db)], seconds: float, *, commit: bool = False
    ) -> None:
        query(db, seconds)
        if commit:
            db.commit()

    @app.get("/two-threads/{seconds}", dependencies=[Depends(get_user)])
    def two_threads(db: Annotated[Session, Depends(get_db)], seconds: float) -> None:
        query(db, seconds)

    return app


class Load(NamedTuple):
    """How requests at the same time ended."""

    failed: int
    took_s: float
    standstill: float
    """The share of the time in which all connections were borrowed, and none had work."""


def load(lab: Lab, path: str, pool_size: int, requests: int, pool_timeout: float) -> Load:
    limits = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": pool_timeout}
    engine = create_engine(lab.url(), **limits)
    for connection in [engine.connect() for _ in range(pool_size)]:
        connection.close()
    together = Barrier(requests)
    with lab.serve(make_app(engine)) as port, ThreadPoolExecutor(requests) as clients:

        def status(_: int) -> int:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            client.connect()
            together.wait()
            client.request("GET", path)
            found = client.getresponse().status
            client.close()
            return found

        began, standstills = time.monotonic(), []
        answers = [clients.submit(status, number) for number in range(requests)]
        while not all(answer.done() for answer in answers):
            states = [backend.state for backend in lab.backends()]
            standstills.append(states == ["idle in transaction"] * pool_size)
            time.sleep(0.05)
        took_s = time.monotonic() - began
        failed = sum(answer.result() == 500 for answer in answers)
    engine.dispose()
    lab.count_backends(0)
    return Load(failed, took_s, sum(standstills) / len(standstills))


@experiment(
    question="How many connections do 100 concurrent requests need?",
    rows=("1.37", "2.19"),
    seconds=20,
    needs=("own server",),
)
def run(lab: Lab, *, requests: int = 100, pool_timeout: float = 1.0) -> None:
    # With 100, a pool of 40 leaves it to chance whether the waiting requests fill all threads.
    many = requests * 3 // 2
    needs = {
        "a short query": ("/one-connection/0.01", requests, (5, 60)),
        "a long query": ("/one-connection/0.3", requests, (5, 60)),
        "two connections": ("/two-connections/0.05", requests, (5, 60)),
        "two threads": ("/two-threads/0.1", many, (15, 40)),
        "two threads, commit": ("/two-threads/0.1?commit=1", many, (15,)),
    }
    found: dict[tuple[str, int], Load] = {}
    rows = []
    for need, (path, count, pools) in needs.items():
        for pool in pools:
            lab.say(f"{count} requests that need {need}, {pool} connections")
            found[need, pool] = load(lab, path, pool, count, pool_timeout)
            rows.append((need, count, pool, *found[need, pool][:2], f"{found[need, pool][2]:.0%}"))
    columns = ("a request needs", "requests", "connections", "failed", "took, s", "standstill")
    lab.table("Requests at once, and their errors", columns, rows)
    lab.bars(
        "Failed requests",
        {f"{need}, {pool} connections": each.failed for (need, pool), each in found.items()},
        unit="requests",
    )
    failed = {key: each.failed for key, each in found.items()}
    singles = ("a short query", "a long query", "two connections")
    lab.judge(
        "2.19",
        f"5 connections are too few for {requests} concurrent requests, and 60 are enough",
        holds={need: failed[need, 5] > 0 and failed[need, 60] == 0 for need in singles},
        measured="failed with 5, and with 60: "
        + "; ".join(f"{need} {failed[need, 5]}, {failed[need, 60]}" for need in singles),
        why="Requests queue for a connection, and fail if the queue takes longer than pool_timeout: "
        "waiting requests x query time / connections. A request that holds one connection and waits "
        "for a second stops all others, as soon as the pool consists of such first connections. "
        "With 40 threads, 41 connections are enough to rule that out.",
    )
    lab.judge(
        "1.37",
        "an exhausted pool is cured by a larger pool, or by a commit",
        holds={
            "a pool of 20 + 20": failed["two threads", 40] == 0,
            "a commit after the query": failed["two threads, commit", 15] == 0,
        },
        measured=f"{many} requests: {failed['two threads', 15]} failed with 15 connections, "
        f"{failed['two threads', 40]} with 40, {failed['two threads, commit', 15]} with 15 and a "
        f"commit; all connections were idle in transaction "
        f"{found['two threads', 15].standstill:.0%} of the time",
        why="Requests that wait for a connection occupy all 40 threads. The requests that have the "
        "connections wait for a thread, behind them. Neither moves until pool_timeout. A commit "
        "before the next thread returns the connection. So does a `with Session()` inside one "
        "function; a limit of the requests at once, as many as connections, prevents it too.",
    )
