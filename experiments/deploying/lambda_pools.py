"""Which pool does a Lambda function need?

You may have read "don't pool in Lambda" (1.24): its containers are short-lived and cannot keep a
pool, so every invoke opens a connection (1.25). NullPool is said to suit short-lived processes in
general (1.26), and the advice for Lambda is NullPool with connect_timeout=5 (1.33).

A local Lambda runs one function with four pools. Each execution environment is a process of its own,
which is stopped (SIGSTOP) between invokes, as Lambda freezes it. At last the database falls silent,
and functions wait for it. Time is scaled there: 2 s stand for the 5 s of the advice, 1.2 s for the
3 s after which Lambda ends a function by default, and 4 s for a limit of 10 s.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from poolkit.experiment import Lab, Times, experiment
from poolkit.lambda_fleet import FunctionConfig, LambdaFleet, Status

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


@contextmanager
def function(options: str, url: str, timeout_s: float = 30.0) -> Iterator[LambdaFleet]:
    """Run the function on the local Lambda."""
    with TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text(FUNCTION.replace("OPTIONS", options))
        limits = {"timeout_s": timeout_s, "init_limit_s": 60}
        env = {"DATABASE_URL": url}
        config = FunctionConfig(handler="app.handler", task_root=folder, env=env, **limits)
        with LambdaFleet(config, log_dir=Path(folder, "logs")) as fleet:
            yield fleet


def invoke_while_silent(lab: Lab, connect_timeout_s: int) -> dict[str, Status]:
    """Return how Lambda says that an invoke ended, by the conditions."""
    timeout = f", connect_args={{'connect_timeout': {connect_timeout_s}}}"
    arms = {
        "a function timeout of 1.2 s": (timeout, 1.2),
        "a function timeout of 4 s": (timeout, 4.0),
        "no connect_timeout": ("", 4.0),
    }
    with ExitStack() as stack:
        line = stack.enter_context(lab.network())
        threads = stack.enter_context(ThreadPoolExecutor(len(arms)))
        fleets = []
        for extra, limit_s in arms.values():
            options = OPTIONS[NULL] + extra
            fleets.append(stack.enter_context(function(options, line.address.url(), limit_s)))
            fleets[-1].prewarm(1)
        line.network.go_silent()
        outcomes = threads.map(lambda fleet: fleet.invoke({}), fleets)
        return {arm: outcome.status for arm, outcome in zip(arms, outcomes, strict=True)}


@experiment(
    question="Which pool does a Lambda function need?",
    rows=("1.24", "1.25", "1.26", "1.33"),
    seconds=15,
    needs=("pgbouncer",),
)
def run(
    lab: Lab, *, invokes_each: int = 10, environments: int = 3, connect_timeout_s: int = 2
) -> None:
    answers = {name: [] for name in OPTIONS}
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(environments))
        pooler = stack.enter_context(lab.pgbouncer(pool_size=2))
        fleets = {}
        for name, options in OPTIONS.items():
            lab.say(f"starting {environments} execution environments with {name}")
            url = pooler.url() if name == POOLER else lab.url()
            fleets[name] = stack.enter_context(function(options, url))
            fleets[name].prewarm(environments)
        lab.say(f"{invokes_each} invokes of each execution environment")
        for _ in range(invokes_each):
            for name, fleet in fleets.items():
                outcomes = threads.map(fleet.invoke, [{}] * environments)
                answers[name] += [json.loads(outcome.payload) for outcome in outcomes]
        time.sleep(0.5)  # All are frozen now, and what was closed has ended on the server.
        alive = {backend.pid for backend in lab.backends()}

    invokes = environments * invokes_each
    pids = {name: [answer["pid"] for answer in found] for name, found in answers.items()}
    opened = {name: len(set(found)) for name, found in pids.items()}
    opened_first = {name: len(set(found[:environments])) for name, found in pids.items()}
    held = {name: len(alive & set(found)) for name, found in pids.items()}
    p50 = {name: Times(each["took"] for each in found).median for name, found in answers.items()}
    lab.table(
        f"{invokes} invokes in {environments} execution environments",
        (
            "engine",
            "server connections opened",
            "held while frozen",
            "connect and query, p50 in ms",
        ),
        [(name, opened[name], held[name], p50[name] * 1e3) for name in OPTIONS],
    )
    lab.bars("Connect and query, p50", {name: p50[name] * 1e3 for name in p50}, unit="ms")

    lab.judge(
        "1.24",
        "a Lambda function should have NullPool and keep no connection",
        holds={
            "connections held while frozen": held[NULL] < held[KEPT],
            "latency": p50[NULL] <= 1.5 * p50[KEPT],
        },
        measured=f"NullPool {p50[NULL] * 1e3:.1f} ms and {held[NULL]} held while frozen, one kept "
        f"connection {p50[KEPT] * 1e3:.1f} ms and {held[KEPT]} held",
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
    lab.say("invokes while the database is silent")
    ends = invoke_while_silent(lab, connect_timeout_s)
    without = ends.pop("no connect_timeout")
    lab.judge(
        "1.33",
        "with connect_timeout=5 a function survives a database that does not answer",
        holds={where: status is Status.HANDLER_ERROR for where, status in ends.items()},
        measured=f"with {connect_timeout_s} s for 5 s, "
        + "; ".join(f"{where}: {status}" for where, status in ends.items())
        + f"; without connect_timeout: {without}",
        why="connect_timeout turns the wait into an exception, which the handler can answer, and "
        "the execution environment stays warm. That works only if it is shorter than the "
        "function's own limit; otherwise Lambda ends the process first, and the caller gets a "
        "timeout. libpq by itself waits until the operating system gives up, minutes later.",
    )
