"""What does it cost to hold a connection during a slow call?

You may have read that a session must not stay open during `sleep(60)` (0.35). Connections that are held
during a call of an external API are said to exhaust the pool (4.31).

20 requests come at once to a pool of 5. Each queries, and then waits for something slow: a sleep, an API, or
a client that reads its response slowly. It waits inside its session, or after the close. 0.15 s stand for
the minute, and the pool refuses a request after twice that time. `--set pool_size=20` has room for all.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from poolkit.experiment import Lab, Times, experiment

QUERY = text("SELECT number FROM generate_series(1, 10) AS number")
INSIDE, AFTER = "in the session", "after its close"


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


def serve_at_once(threads: ThreadPoolExecutor, request: Callable[[], None], times: int) -> int:
    """Serve the same request several times at once, and return how often the pool has refused."""
    refused = 0
    for served in [threads.submit(request) for _ in range(times)]:
        try:
            served.result()
        except PoolTimeout:
            refused += 1
    return refused


@experiment(
    question="What does it cost to hold a connection during a slow call?",
    rows=("0.35", "4.31"),
    seconds=6,
)
def run(lab: Lab, *, pool_size: int = 5, requests: int = 20, slow_s: float = 0.15) -> None:
    engine = create_engine(lab.url(), pool_size=pool_size, max_overflow=0, pool_timeout=2 * slow_s)
    lab.at_end(engine.dispose)
    threads = ThreadPoolExecutor(requests)
    lab.at_end(threads.shutdown)
    api = ThreadingHTTPServer(("127.0.0.1", 0), SlowApi)
    serving = threading.Thread(target=api.serve_forever)
    serving.start()
    for end in (serving.join, api.server_close, api.shutdown):
        lab.at_end(end)
    spans: list[tuple[float, float]] = []  # when slow parts began and ended

    def slow_part(action: Callable[[], object]) -> None:
        began = time.perf_counter()
        action()
        spans.append((began, time.perf_counter()))

    def sleep() -> None:
        slow_part(partial(time.sleep, slow_s))

    def call_api() -> None:
        connection = HTTPConnection("127.0.0.1", api.server_port)
        connection.request("GET", f"/{slow_s}")
        slow_part(connection.getresponse)
        connection.close()

    def read_slowly(response: Iterator[int]) -> None:
        next(response)  # from here on the generator has its session
        slow_part(lambda: [time.sleep(slow_s / 8) for _ in islice(response, 8)])
        list(response)  # the last row, after which the generator closes the session

    ways: dict[tuple[str, str], Callable[[], None]] = {
        ("sleep", INSIDE): lambda: slow_inside(engine, sleep),
        ("sleep", AFTER): lambda: slow_after(engine, sleep),
        ("API call", INSIDE): lambda: slow_inside(engine, call_api),
        ("API call", AFTER): lambda: slow_after(engine, call_api),
        ("slow client", INSIDE): lambda: read_slowly(stream_inside(engine)),
        ("slow client", AFTER): lambda: read_slowly(stream_after(engine)),
    }
    most, refused, rate = defaultdict(int), defaultdict(list), defaultdict(list)
    serve_at_once(threads, lambda: slow_after(engine, lambda: None), requests)  # opens connections
    lab.say(f"{requests} requests on {pool_size} connections, in {len(ways)} ways, 3 times each")
    for way, request in [*ways.items()] * 3:
        spans.clear()
        began = time.perf_counter()
        refused[way].append(serve_at_once(threads, request, requests))
        rate[way].append(len(spans) / (time.perf_counter() - began))
        together = [sum(begin <= moment < end for begin, end in spans) for moment, _ in spans]
        most[way] = max([most[way], *together])

    served = {way: Times(rates).median for way, rates in rate.items()}
    columns = ("slow part", "most at once", "served per s", "refused")
    table = [(" ".join(way), most[way], served[way], min(refused[way])) for way in ways]
    lab.table(f"{requests} requests on a pool of {pool_size}", columns, table)
    bars = {" ".join(way): value for way, value in served.items()}
    lab.bars(f"{requests} requests on a pool of {pool_size}", bars, unit="served/s")

    kinds = list(dict.fromkeys(kind for kind, _ in ways))
    lab.judge(
        "0.35",
        "a session should be closed before something slow, and not be held meanwhile",
        holds={kind: most[kind, INSIDE] <= pool_size < most[kind, AFTER] for kind in kinds},
        measured="; ".join(
            f"{kind} {INSIDE}: {most[kind, INSIDE]} at once, {served[kind, INSIDE]:.0f}/s, "
            f"{AFTER}: {most[kind, AFTER]} at once, {served[kind, AFTER]:.0f}/s"
            for kind in kinds
        ),
        why="A pool serves at most its size / the time for which a request holds its connection. Inside "
        "the session that time is the whole request, and only as many requests are slow at once as "
        "there are connections. After the close it is the query, and any number is slow at once.",
    )
    by_api = {where: min(refused["API call", where]) for where in (INSIDE, AFTER)}
    lab.judge(
        "4.31",
        "connections that are held during an external call exhaust the pool",
        holds=by_api[INSIDE] > by_api[AFTER],
        measured=f"refused: {by_api[INSIDE]} of {requests} requests that call {INSIDE}, "
        f"{by_api[AFTER]} of those that call {AFTER}",
        why="While the connections wait for another service, the database has nothing to do, and yet "
        "the pool has none left. A request that gets none within pool_timeout fails.",
    )
