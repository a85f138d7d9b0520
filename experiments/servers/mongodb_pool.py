"""What do the options of MongoDB's pool do?

You may have read that Motor's client takes `maxPoolSize=50`, `minPoolSize=10`, `maxIdleTimeMS=45000`
and `serverSelectionTimeoutMS=5000` (2.26). Motor is retired; its successor is PyMongo's own
AsyncMongoClient, which has the same options.

A client with these options is started, left alone, asked for twice as many queries at once as its
pool may have connections, and left alone again. PyMongo's pool events count the connections. Times
are scaled down: 450 ms stand for 45 s, and 500 ms for 5 s.
"""

import asyncio
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from statistics import median
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.errors import ServerSelectionTimeoutError
from pymongo.monitoring import ConnectionPoolListener

from poolkit.experiment import Lab, experiment

SLOW = {"$where": "sleep(400) || true"}


class PoolEvents(ConnectionPoolListener):
    """Counts what PyMongo's pool reports."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.open = self.opened = 0
        self.line = [(0.0, 0)]

    def count(self, change: int) -> None:
        self.open += change
        self.opened += change > 0
        self.line.append((time.monotonic() - self.began, self.open))

    def connection_created(self, event: Any) -> None:
        self.count(1)

    def connection_closed(self, event: Any) -> None:
        self.count(-1)

    # An error, unless each event has a method.
    pool_created = pool_ready = pool_cleared = pool_closed = lambda self, event: None
    connection_ready = connection_checked_out = connection_checked_in = pool_created
    connection_check_out_started = connection_check_out_failed = pool_created


async def happens(condition: Callable[[], bool]) -> bool:
    """Return whether a condition becomes true within 5 s."""
    for _ in range(500):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


async def search(timeout_ms: int) -> float:
    """Return how long a command waits for a server that never answers, in seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mongodb://127.0.0.1:{silent.getsockname()[1]}"
        async with AsyncMongoClient(url, serverSelectionTimeoutMS=timeout_ms) as client:
            began = time.monotonic()
            with suppress(ServerSelectionTimeoutError):
                await client.admin.command("ping")
            return time.monotonic() - began


@experiment(
    question="What do the options of MongoDB's pool do?",
    rows=("2.26",),
    seconds=7,
    needs=("mongodb",),
)
def run(
    lab: Lab, *, most: int = 50, fewest: int = 10, max_idle_ms: int = 450, search_ms: int = 500
) -> None:
    options = {"maxPoolSize": most, "minPoolSize": fewest, "maxIdleTimeMS": max_idle_ms}
    with lab.mongodb() as url:
        asyncio.run(measure(lab, url, options, search_ms))


async def measure(lab: Lab, url: str, options: dict[str, int], search_ms: int) -> None:
    most, fewest = options["maxPoolSize"], options["minPoolSize"]
    events = PoolEvents()
    async with AsyncMongoClient(url, event_listeners=[events], **options) as client:
        seen = {"AsyncMongoClient()": events.open}
        version = (await client.server_info())["version"]
        documents = client[f"poolkit_{secrets.token_hex(4)}"].documents
        await documents.insert_one({"n": 1})
        seen["one command"] = events.open
        await happens(lambda: events.open >= fewest)
        seen["a pause"] = filled = events.open

        lab.say(f"{2 * most} queries at once, then none")
        await asyncio.gather(*(documents.find_one(SLOW) for _ in range(2 * most)))
        seen[f"{2 * most} queries at once"] = peak = max(count for _, count in events.line)
        shrank = await happens(lambda: events.open <= fewest)
        opened, pause = events.opened, []
        for _ in range(100):
            pause.append(events.open)
            await asyncio.sleep(0.025)
        seen["another pause, median"] = resting = int(median(pause))
        reopened = events.opened - opened
        await documents.drop()

    lab.say("a command for a server that does not answer")
    searched_s = await search(search_ms)

    if not lab.distance.is_none:
        lab.note("--rtt and --tls do not apply to MongoDB.")
    lab.table("Connections in the pool", ("after", "open"), seen.items())
    lab.lines("Connections in the pool", {"open": events.line}, unit="open", x_title="time in s")
    lab.judge(
        "2.26",
        "the options set the most and the fewest connections, how long one may be idle, and how long "
        "a command looks for a server",
        holds={
            "maxPoolSize": fewest < peak <= most,
            "minPoolSize": filled >= fewest and resting >= fewest,
            "maxIdleTimeMS": shrank,
            "serverSelectionTimeoutMS": -0.1 < searched_s - search_ms / 1e3 < 10,
        },
        measured=f"MongoDB {version}: {filled} connections before the load, at most {peak} for "
        f"{2 * most} queries at once, {min(pause)} to {max(pause)} after it, of which {reopened} were "
        "opened anew in 2.5 s; with "
        f"serverSelectionTimeoutMS={search_ms} a command waited {searched_s:.2f} s for a server that "
        "does not answer",
        why="A task of the client looks after the pool every second: it closes what was idle for too "
        "long, the kept connections as well, and opens what is missing. Each server of a replica set "
        "has a pool of its own. The limit for a wait for a connection is waitQueueTimeoutMS.",
    )
