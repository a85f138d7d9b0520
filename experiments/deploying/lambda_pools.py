"""Which pool does a Lambda function need?

You may have read "don't pool in Lambda" (1.24): its containers are short-lived and cannot keep a
pool, so every invoke opens a connection (1.25). NullPool is said to suit short-lived processes in
general (1.26).

A local Lambda runs one function with four engines. Each execution environment is a process of its
own, which is stopped (SIGSTOP) between invokes, as Lambda freezes it. Each engine gets the same
requests, in turn. The server says which connection served a request, and which are still open when
all are frozen.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from poolkit.experiment import Lab, Times, experiment

FUNCTION = """
import os, time
from sqlalchemy import NullPool, create_engine, text

# Outside the handler: it runs once for each execution environment.
engine = create_engine(os.environ["DATABASE_URL"], OPTIONS)

def handler(event, context):
    began = time.perf_counter()
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
    took = time.perf_counter() - began
    time.sleep(0.05)  # The rest of the request. Others at this moment need other environments.
    return {"pid": pid, "took": took}
"""
NULL, KEPT, FIVE = "NullPool", "one kept connection", "a pool of 5"
POOLER = "NullPool through PgBouncer"
OPTIONS = {
    NULL: "poolclass=NullPool",
    KEPT: "pool_size=1, max_overflow=0",
    FIVE: "pool_size=5, max_overflow=0",
    POOLER: "poolclass=NullPool",
}


@experiment(
    question="Which pool does a Lambda function need?",
    rows=("1.24", "1.25", "1.26"),
    seconds=7,
    needs=("pgbouncer",),
)
def run(lab: Lab, *, invokes_each: int = 10, environments: int = 3) -> None:
    answers = {name: [] for name in OPTIONS}
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(environments))
        pooler = stack.enter_context(lab.pgbouncer(pool_size=2))
        functions = {}
        for name, options in OPTIONS.items():
            lab.say(f"starting {environments} execution environments with {name}")
            source = FUNCTION.replace("OPTIONS", options)
            url = pooler.url() if name == POOLER else lab.url()
            functions[name] = stack.enter_context(lab.function(source, url=url))
            functions[name].prewarm(environments)
        lab.say(f"{invokes_each} invokes of each execution environment")
        for _ in range(invokes_each):
            for name, function in functions.items():
                outcomes = threads.map(function.invoke, [{}] * environments)
                answers[name] += [json.loads(outcome.payload) for outcome in outcomes]
        time.sleep(0.5)  # All are frozen now, and what was closed has ended on the server.
        alive = {backend.pid for backend in lab.backends()}

    invokes = environments * invokes_each
    pids = {name: [answer["pid"] for answer in found] for name, found in answers.items()}
    opened = {name: len(set(found)) for name, found in pids.items()}
    opened_first = {name: len(set(found[:environments])) for name, found in pids.items()}
    held = {name: len(alive & set(found)) for name, found in pids.items()}
    p50_ms = {
        name: Times(answer["took"] for answer in found).median * 1e3
        for name, found in answers.items()
    }
    lab.table(
        f"{invokes} invokes in {environments} execution environments",
        (
            "engine",
            "server connections opened",
            "held while frozen",
            "connect and query, p50 in ms",
        ),
        [(name, opened[name], held[name], p50_ms[name]) for name in OPTIONS],
    )
    lab.bars("Connect and query in an invoke, p50", p50_ms, unit="ms")

    lab.judge(
        "1.24",
        "a Lambda function should have NullPool and keep no connection",
        holds={
            "connections held while frozen": held[NULL] < held[KEPT],
            "latency": p50_ms[NULL] <= 1.5 * p50_ms[KEPT],
        },
        measured=f"NullPool {p50_ms[NULL]:.1f} ms and {held[NULL]} held while frozen, one kept "
        f"connection {p50_ms[KEPT]:.1f} ms and {held[KEPT]} held",
        why="A kept connection saves the connect of every invoke but the first. Its price is one "
        "connection for each execution environment, frozen or not; so the concurrency that is "
        "reserved for the function has to fit the database. A pool of 5 keeps no more than a pool "
        "of 1, because an execution environment serves one request at a time. A pooler in between "
        "holds few connections to the server; the function's own connect then ends at the pooler.",
    )
    lab.judge(
        "1.25",
        "execution environments are too short-lived to keep a connection: each invoke opens one",
        holds=opened[KEPT] >= invokes,
        measured=f"{opened[KEPT]} connections served {invokes} invokes, with a freeze after each",
        why="Lambda freezes the process after a response and thaws it for the next request, for "
        "minutes to hours. Module variables survive that, and so does an open socket. Only the "
        "first invoke of an execution environment finds no connection.",
    )
    lab.judge(
        "1.26",
        "in a short-lived process NullPool costs nothing",
        holds={
            "one unit of work in a process": opened_first[NULL] <= opened_first[KEPT],
            f"{invokes_each} units of work": opened[NULL] <= opened[KEPT],
        },
        measured=f"NullPool opened {opened_first[NULL]} connections for one request in each of "
        f"{environments} processes and {opened[NULL]} for {invokes_each}; "
        f"a pool opened {opened_first[KEPT]} and {opened[KEPT]}",
        why="A pool saves connects from the second checkout on. A process that checks out once "
        "needs one connect either way, and NullPool closes it at once.",
    )
