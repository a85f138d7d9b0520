"""What does it cost to hold a connection during a slow call?

You may have read that a session must not stay open during `sleep(60)` (0.35). Connections that are held
during a call of an external API are said to exhaust the pool (4.31).

20 requests come at once to a pool of 5. Each queries, and then waits for something slow: a sleep, an API, or
a client that reads its response slowly. It waits inside its session, or after the close. 0.15 s stand for
the minute, and the pool refuses a request after twice that time. `--set pool_size=20` has room for all.
"""

import asyncio
import http.client
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice

from fastapi import FastAPI
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from poolkit.experiment import Lab, experiment

QUERY = text("SELECT number FROM generate_series(1, 10) AS number")
INSIDE, AFTER = "in the session", "after its close"
api = FastAPI()


@api.get("/{seconds}")
async def slow_answer(seconds: float) -> None:
    await asyncio.sleep(seconds)


def slow_inside(engine: Engine, slow: Callable[[], None]) -> None:
    with Session(engine) as db:
        db.scalars(QUERY).all()
        slow()


def slow_after(engine: Engine, slow: Callable[[], None]) -> None:
    with Session(engine) as db:
        db.scalars(QUERY).all()
    slow()


def stream_inside(engine: Engine) -> Iterator[int]:
    with Session(engine) as db:
        yield from db.scalars(QUERY)


def stream_after(engine: Engine) -> Iterator[int]:
    with Session(engine) as db:
        rows = db.scalars(QUERY).all()
    yield from rows


@experiment(
    question="What does it cost to hold a connection during a slow call?",
    rows=("0.35", "4.31"),
    seconds=6,
)
def run(lab: Lab, *, pool_size: int = 5, requests: int = 20, slow_s: float = 0.15) -> None:
    engine = create_engine(lab.url(), pool_size=pool_size, max_overflow=0, pool_timeout=2 * slow_s)
    lab.at_end(engine.dispose)
    for connection in [engine.connect() for _ in range(pool_size)]:
        connection.close()
    slow_now: list[str] = []
    at_once: list[int] = []  # the number of requests that are slow when one more becomes slow

    @contextmanager
    def slow_part() -> Iterator[None]:
        slow_now.append("one")
        at_once.append(len(slow_now))
        yield
        slow_now.pop()

    def sleep() -> None:
        with slow_part():
            time.sleep(slow_s)

    def call_api() -> None:
        with slow_part(), closing(http.client.HTTPConnection("127.0.0.1", port)) as client:
            client.request("GET", f"/{slow_s}")
            client.getresponse().read()

    def read_slowly(response: Iterator[int]) -> None:
        next(response)  # from here on the generator has its session
        with slow_part():
            for _ in islice(response, 8):
                time.sleep(slow_s / 8)
        list(response)  # the last row, after which the generator closes the session

    ways: dict[tuple[str, str], Callable[[], None]] = {
        ("sleep", INSIDE): lambda: slow_inside(engine, sleep),
        ("sleep", AFTER): lambda: slow_after(engine, sleep),
        ("API call", INSIDE): lambda: slow_inside(engine, call_api),
        ("API call", AFTER): lambda: slow_after(engine, call_api),
        ("slow client", INSIDE): lambda: read_slowly(stream_inside(engine)),
        ("slow client", AFTER): lambda: read_slowly(stream_after(engine)),
    }
    most, served, refused, took_s = Counter(), Counter(), Counter(), Counter()
    rounds = 3
    lab.say(f"{requests} requests on {pool_size} connections, in {len(ways)} ways, {rounds} times")
    with lab.serve(api) as port, ThreadPoolExecutor(requests) as threads:
        for way, request in [*ways.items()] * rounds:
            at_once.clear()
            began = time.perf_counter()
            answers = [threads.submit(request) for _ in range(requests)]
            refused[way] += sum(isinstance(each.exception(), PoolTimeout) for each in answers)
            took_s[way] += time.perf_counter() - began
            served[way] += len(at_once)
            most[way] = max(most[way], *at_once)

    rate = {way: served[way] / took_s[way] for way in ways}
    sent = requests * rounds
    columns = ("slow part", "most at once", "served per s", f"refused of {sent}")
    table = [(" ".join(way), most[way], rate[way], refused[way]) for way in ways]
    lab.table(f"{requests} requests on a pool of {pool_size}", columns, table)
    bars = {" ".join(way): value for way, value in rate.items()}
    lab.bars(f"{requests} requests on a pool of {pool_size}", bars, unit="served/s")

    kinds = list(dict.fromkeys(kind for kind, _ in ways))
    lab.judge(
        "0.35",
        "a session should be closed before something slow, and not be held meanwhile",
        holds={kind: most[kind, INSIDE] <= pool_size < most[kind, AFTER] for kind in kinds},
        measured="; ".join(
            f"{kind} {where}: {most[kind, where]} at once, {rate[kind, where]:.0f}/s"
            for kind, where in ways
        ),
        why="A pool serves at most its size / the time for which a request holds its connection. Inside "
        "the session that time is the whole request, and only as many requests are slow at once as "
        "there are connections. After the close it is the query, and any number is slow at once.",
    )
    by_api = {where: refused["API call", where] for where in (INSIDE, AFTER)}
    lab.judge(
        "4.31",
        "connections that are held during an external call exhaust the pool",
        # On a busy machine a query, too, may wait that long.
        holds=by_api[INSIDE] >= sent / 10 and by_api[INSIDE] > 2 * by_api[AFTER],
        measured=f"refused: {by_api[INSIDE]} of {sent} requests that call {INSIDE}, "
        f"{by_api[AFTER]} of those that call {AFTER}",
        why="While the connections wait for another service, the database has nothing to do, and yet "
        "the pool has none left. A request that gets none within pool_timeout fails.",
    )
