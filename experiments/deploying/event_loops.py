"""To which event loop does an engine belong?

You may have read that the application's lifespan makes the engine and disposes of it at the end
(2.5), and that the engine's place is app.state, not a global variable (2.6).

Every web server, every asyncio.run and every asynchronous test has an event loop of its own. An
application is started several times one after the other, and several times at once in threads. Its
engine is made in the lifespan, or once at import. What goes wrong there leaves broken connections
behind, so it runs in a process of its own: this file itself.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from threading import Barrier

from fastapi import FastAPI
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from poolkit.experiment import Lab, experiment

LIFESPAN, MODULE = "made in the lifespan", "made at import"
DISPOSED, UNPOOLED = "made at import, disposed in each loop", "made at import, NullPool"
REQUESTS = 20


async def query(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return await connection.scalar(text("SELECT pg_backend_pid()"))


def application(engine_is: str, module_engine: AsyncEngine) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = module_engine
        if engine_is == LIFESPAN:
            app.state.engine = create_async_engine(os.environ["DATABASE_URL"])
        yield
        if engine_is in (LIFESPAN, DISPOSED):
            await app.state.engine.dispose()

    return FastAPI(lifespan=lifespan)


async def serve(app: FastAPI, together: Barrier) -> int:
    """Start, send requests until one fails or hangs, stop; return the number of answers."""
    answered = 0
    async with app.router.lifespan_context(app):
        together.wait()  # Until the other loops are there; nothing else runs in this one yet.
        with suppress(Exception):
            for _ in range(REQUESTS):
                await asyncio.wait_for(query(app.state.engine), 5)
                answered += 1
    return answered


def program(starts: int, loops: int) -> None:
    engines = []  # Garbage collection would close connections.
    for engine_is in (LIFESPAN, MODULE, DISPOSED, UNPOOLED):
        poolclass = NullPool if engine_is == UNPOOLED else None
        engine = create_async_engine(os.environ["DATABASE_URL"], poolclass=poolclass)
        engines.append(engine)
        app = application(engine_is, engine)
        answers = [asyncio.run(serve(app, Barrier(1))) for _ in range(starts)]
        print(json.dumps(["in turn", engine_is, answers]), flush=True)
        sys.stdin.readline()  # Until the connections are counted.
    for engine_is in (LIFESPAN, MODULE):
        engine = create_async_engine(os.environ["DATABASE_URL"])
        together = Barrier(loops, timeout=30)
        with ThreadPoolExecutor(loops) as threads:
            futures = [
                threads.submit(asyncio.run, serve(application(engine_is, engine), together))
                for _ in range(loops)
            ]
        print(json.dumps(["at once", engine_is, [each.result() for each in futures]]), flush=True)
        sys.stdin.readline()
    os._exit(0)  # Broken connections would only print tracebacks.


@experiment(
    question="To which event loop does an engine belong?",
    rows=("2.5", "2.6"),
    seconds=10,
)
def run(lab: Lab, *, starts: int = 3, loops: int = 2, driver: str = "asyncpg") -> None:
    lab.say(f"{starts} starts one after the other, then {loops} at once, with each engine")
    answers, left = {}, {}
    command = [sys.executable, __file__, str(starts), str(loops)]
    environ = os.environ | {"DATABASE_URL": lab.url(driver)}
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE) | {"stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environ, text=True, **pipes) as child:
        lab.at_end(child.kill)
        before = 0
        for line in child.stdout:
            when, engine_is, answered = json.loads(line)
            answers[when, engine_is] = answered
            open_now = lab.count_backends(before, within_s=0.5)
            left[when, engine_is], before = open_now - before, open_now
            child.stdin.write("\n")
            child.stdin.flush()
    rows = [
        (engine_is, when, found, left[when, engine_is])
        for (when, engine_is), found in answers.items()
    ]
    columns = ("engine", "loops", "answers", "connections left")
    lab.table(f"Answers to {REQUESTS} requests from each event loop", columns, rows)

    in_turn = {engine_is: answers["in turn", engine_is] for engine_is in (LIFESPAN, MODULE)}
    at_once = {engine_is: answers["at once", engine_is] for engine_is in (LIFESPAN, MODULE)}
    lab.judge(
        "2.5",
        "the lifespan has to make the engine, and to dispose of it",
        holds={
            "the requests of the first start": in_turn[MODULE][0] < in_turn[LIFESPAN][0],
            "the requests of all starts": sum(in_turn[MODULE]) < sum(in_turn[LIFESPAN]),
            "what stays open": left["in turn", LIFESPAN] < left["in turn", MODULE],
        },
        measured=f"answers in {starts} starts of {REQUESTS} requests: {in_turn[LIFESPAN]} with an "
        f"engine of the lifespan, {in_turn[MODULE]} with one of the module; connections left open: "
        f"{left['in turn', LIFESPAN]} and {left['in turn', MODULE]}",
        why="A connection of asyncpg belongs to the event loop that opened it; psycopg's works in "
        "any. What a loop leaves in the pool, the next loop checks out. So a loop must dispose of "
        "what it opened, or keep nothing (NullPool).",
    )
    lab.judge(
        "2.6",
        "the engine belongs in app.state, and not in a variable of the module",
        holds=sum(at_once[MODULE]) < sum(at_once[LIFESPAN]),
        measured=f"{loops} event loops at once, {REQUESTS} requests each: {at_once[LIFESPAN]} answers "
        f"with an engine for each application, {at_once[MODULE]} with one for all",
        why="An AsyncEngine is made for one event loop: its queue and its locks are asyncio's, and "
        "wake only tasks of their own loop. app.state gives each application its own. Where a "
        "process has one application, a variable does the same.",
    )


if __name__ == "__main__":
    program(int(sys.argv[1]), int(sys.argv[2]))
