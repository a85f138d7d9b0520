"""What does it cost to hold a connection during a slow call?

You may have read that a session must not stay open during `sleep(60)` (0.35), and that a connection that is
held during a call of an external API exhausts the pool (4.31).

20 requests come at once to a pool of 5. Each queries, and then waits for something slow: a sleep, a call over
HTTP, or a client that reads a streamed response slowly. One way keeps the session open meanwhile, the other
way closes it first. 0.15 s stand for the minute. At last the requests wait for a connection for 0.3 s at most.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from poolkit.experiment import Lab, experiment

QUERY = text("SELECT number FROM generate_series(1, 10) AS number")


HELD, RETURNED = "with the session open", "after the close"


class SlowApi(BaseHTTPRequestHandler):
    """An API that answers `GET /0.1` after 0.1 s."""

    def do_GET(self) -> None:
        """Answer late."""
        time.sleep(float(self.path.strip("/")))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Keep the terminal clean."""


def slow_inside(engine: Engine, slow: Callable[[], None]) -> None:
    with Session(engine) as db:
        db.scalars(QUERY).all()
        slow()


def slow_afterwards(engine: Engine, slow: Callable[[], None]) -> None:
    with Session(engine) as db:
        db.scalars(QUERY).all()
    slow()


def stream_rows(engine: Engine) -> Iterator[int]:
    with Session(engine) as db:
        yield from db.scalars(QUERY)


def stream_list(engine: Engine) -> Iterator[int]:
    with Session(engine) as db:
        rows = db.scalars(QUERY).all()
    yield from rows


def read_slowly(response: Iterable[int], slow_s: float) -> None:
    for _ in response:
        time.sleep(slow_s / 10)


@experiment(
    question="What does it cost to hold a connection during a slow call?",
    rows=("0.35", "4.31"),
    seconds=8,
)
def run(lab: Lab, *, pool_size: int = 5, requests: int = 20, slow_s: float = 0.15) -> None:
    engine = create_engine(lab.url(), pool_size=pool_size, max_overflow=0, pool_timeout=30)
    lab.at_end(engine.dispose)
    impatient = create_engine(
        lab.url(), pool_size=pool_size, max_overflow=0, pool_timeout=2 * slow_s
    )
    lab.at_end(impatient.dispose)
    api = ThreadingHTTPServer(("127.0.0.1", 0), SlowApi)
    serving = threading.Thread(target=api.serve_forever)
    serving.start()
    for end in (serving.join, api.server_close, api.shutdown):
        lab.at_end(end)
    threads = ThreadPoolExecutor(requests)
    lab.at_end(threads.shutdown)

    def at_once(request: Callable[[], None]) -> int:
        """Serve the requests at the same time, and return how many the pool has refused."""
        refused = 0
        for served in [threads.submit(request) for _ in range(requests)]:
            try:
                served.result()
            except PoolTimeout:
                refused += 1
        return refused

    def sleep() -> None:
        time.sleep(slow_s)

    def call_api() -> None:
        connection = HTTPConnection("127.0.0.1", api.server_port)
        connection.request("GET", f"/{slow_s}")
        connection.getresponse().close()
        connection.close()

    ways = {
        ("a sleep", HELD): partial(slow_inside, engine, sleep),
        ("a sleep", RETURNED): partial(slow_afterwards, engine, sleep),
        ("an HTTP call", HELD): partial(slow_inside, engine, call_api),
        ("an HTTP call", RETURNED): partial(slow_afterwards, engine, call_api),
        ("streaming", HELD): lambda: read_slowly(stream_rows(engine), slow_s),
        ("streaming", RETURNED): lambda: read_slowly(stream_list(engine), slow_s),
    }
    lab.say(f"{requests} requests on {pool_size} connections, in 6 ways, 3 times each")
    times = lab.time_in_turn({way: partial(at_once, use) for way, use in ways.items()}, 3)
    rate = {way: requests / took.median for way, took in times.items()}
    kinds = list(dict.fromkeys(kind for kind, _ in ways))
    table = [(kind, rate[kind, HELD], rate[kind, RETURNED]) for kind in kinds]
    lab.table("Requests per second", ("during", HELD, RETURNED), table)
    bars = {f"{kind}, {how}": value for (kind, how), value in rate.items()}
    lab.bars(f"{requests} requests on a pool of {pool_size}", bars, unit="requests/s")

    lab.say(f"the same with a pool_timeout of {2 * slow_s:g} s")
    at_once(partial(slow_afterwards, impatient, lambda: None))  # opens the connections
    refused = {
        HELD: at_once(partial(slow_inside, impatient, sleep)),
        RETURNED: at_once(partial(slow_afterwards, impatient, sleep)),
    }

    lab.judge(
        "0.35",
        "the session should be closed before something slow, and not held open meanwhile",
        holds={kind: rate[kind, RETURNED] > 1.5 * rate[kind, HELD] for kind in kinds},
        measured=", ".join(
            f"{kind}: {rate[kind, HELD]:.0f} requests/s {HELD}, {rate[kind, RETURNED]:.0f} {RETURNED}"
            for kind in kinds
        ),
        why="A pool serves at most its size / the time that each request holds a connection. Held "
        "during the slow part, that time is the whole request; closed before, it is the query, and "
        "then any number of requests wait for the slow part at once.",
    )
    lab.judge(
        "4.31",
        "connections that are held during an external call exhaust the pool",
        holds=refused[HELD] > 0 and refused[RETURNED] < refused[HELD],
        measured=f"{refused[HELD]} of {requests} requests got TimeoutError from the pool {HELD}, "
        f"{refused[RETURNED]} {RETURNED}",
        why="While the connections wait for the other service, the database has nothing to do, and "
        "yet the pool has none left. A request that finds none within pool_timeout fails.",
    )
