"""How many connections do 100 concurrent requests need?

You may have read that 5 connections are too few for 100 concurrent requests and 20 + 40 are adequate
(2.19), and that an exhausted pool is cured by a larger one, or by a commit (1.37).

Here a real server answers many requests at once. FastAPI runs each plain `def` in one of 40 threads.
First a request needs one connection, for a short or a long query; then two connections. Last, its
dependency keeps a connection while the request waits for a second thread, which runs its endpoint;
then with a commit, and by turns. In a standstill, all connections are borrowed, and none has work.
A `pool_timeout` of 0.8 s stands for 30 s.
"""

import http.client
import time
from asyncio import Semaphore
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Barrier
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from poolkit.experiment import Lab, experiment


def make_app(engine: Engine) -> FastAPI:
    app = FastAPI()
    turns = Semaphore(engine.pool.size())

    def query(db: Session, seconds: float) -> None:
        db.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})

    @app.get("/one-connection/{seconds}")
    def one_connection(seconds: float) -> None:
        with Session(engine) as db:
            query(db, seconds)

    @app.get("/two-connections/{seconds}")
    def two_connections(seconds: float) -> None:
        with Session(engine) as db, Session(engine) as log:
            query(db, seconds)
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

    async def turn() -> AsyncIterator[None]:
        async with turns:
            yield

    app.get("/turns/{seconds}", dependencies=[Depends(turn), Depends(get_user)])(two_threads)
    return app


def load(lab: Lab, path: str, pool_size: int, requests: int, timeout: float) -> tuple[int, float]:
    limits = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": timeout}
    engine = create_engine(lab.url(), **limits)
    lab.at_end(engine.dispose)
    for connection in [engine.connect() for _ in range(pool_size)]:
        connection.close()
    together = Barrier(requests, timeout=60)
    with lab.serve(make_app(engine)) as port, ThreadPoolExecutor(requests) as clients:

        def has_failed(_: int) -> bool:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as client:
                client.connect()
                together.wait()
                client.request("GET", path)
                return client.getresponse().status == 500

        answers, standstills = [clients.submit(has_failed, each) for each in range(requests)], []
        while not all(answer.done() for answer in answers):
            states = [backend.state for backend in lab.backends()]
            standstills.append(states == ["idle in transaction"] * pool_size)
            time.sleep(0.05)
    engine.dispose()
    lab.count_backends(0)
    failed = sum(answer.result() for answer in answers)
    return failed, sum(standstills) / len(standstills)


@experiment(
    question="How many connections do 100 concurrent requests need?",
    rows=("1.37", "2.19"),
    seconds=20,
    needs=("own server",),
)
def run(lab: Lab, *, requests: int = 100, pool_timeout: float = 0.8) -> None:
    arms = {
        "a short query": ("/one-connection/0.01", (5, 60)),
        "a long query": ("/one-connection/0.3", (5, 60)),
        "two connections": ("/two-connections/0.05", (5, 60)),
        "two threads": ("/two-threads/0.1", (15, 40)),
        "two threads, commit": ("/two-threads/0.1?commit=1", (15,)),
        "two threads, turns": ("/turns/0.1", (15,)),
    }
    failed, rows = {}, []
    for need, (path, pools) in arms.items():
        for pool in pools:
            lab.say(f"{requests} requests that need {need}, {pool} connections")
            count, standstill = load(lab, path, pool, requests, pool_timeout)
            failed[f"{need}, {pool}"] = count
            rows.append((need, pool, count, f"{standstill:.0%}"))
    columns = ("a request needs", "connections", "failed", "standstill")
    lab.table(f"{requests} requests at once", columns, rows)
    lab.bars("Requests that failed", failed, unit="requests")

    # On a busy machine, some requests wait too long with any pool: few of them are no failure.
    needs, some = ("a short query", "a long query", "two connections"), requests / 5
    lab.judge(
        "2.19",
        f"5 connections are too few for {requests} concurrent requests, and 60 are enough",
        holds={need: failed[f"{need}, 5"] > some >= failed[f"{need}, 60"] for need in needs},
        measured="failed with 5, and with 60: "
        + "; ".join(f"{need} {failed[f'{need}, 5']}, {failed[f'{need}, 60']}" for need in needs),
        why="A request waits for about: requests before it x query time / connections. It fails "
        "after pool_timeout. Requests that hold one connection and wait for a second stop each "
        "other when they hold them all. With 40 threads, 41 connections rule that out.",
    )
    lab.judge(
        "1.37",
        "an exhausted pool is cured by a larger pool, or by a commit",
        holds={
            "a pool of 20 + 20": failed["two threads, 40"] <= failed["two threads, 15"] / 3,
            "a commit": failed["two threads, commit, 15"] <= failed["two threads, 15"] / 3,
        },
        measured=f"of {requests}, {failed['two threads, 15']} failed with 15 connections, "
        f"{failed['two threads, 40']} with 40; with 15, {failed['two threads, commit, 15']} "
        f"with a commit, {failed['two threads, turns, 15']} with turns",
        why="Requests that wait for a connection occupy all 40 threads, and those that have one "
        "wait behind them for a thread, until pool_timeout. A commit returns the connection before "
        "that. Turns (a semaphore) let no more requests begin than there are connections.",
    )
