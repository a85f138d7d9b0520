"""Which connections are left when an engine or a process ends?

You may have read that `engine.dispose()` closes all connections and returns them to the pool (2.7),
and that the engine closes all connections of the pool when the application stops (0.29).

Here an engine is disposed of while one of its connections is in use, which then comes back. Then
processes end without `dispose()`: one exits, one is killed (`kill -9`) while its connection is idle,
and one while its query runs. The network of a fourth vanishes. The server is asked which connections
it still has.
"""

import gc
import subprocess
import sys
import time
from contextlib import closing

import psycopg2
from sqlalchemy import create_engine

from poolkit.experiment import Lab, experiment

SERVICE = """
from sqlalchemy import create_engine, text
connection = create_engine(input()).connect()
connection.execute(text(f"SET client_connection_check_interval = {input()}"))
print(connection.execute(text("SELECT pg_backend_pid()")).scalar_one(), flush=True)
if input() == "query":
    connection.execute(text("SELECT pg_sleep(60)"))
"""


def start_service(lab: Lab, check_interval_ms: int) -> subprocess.Popen[str]:
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        start_new_session=True,  # Ctrl-C is not for it
    )
    lab.at_end(service.communicate)
    lab.at_end(service.kill)
    # Not as arguments: those are in the list of processes, and the URL has a password.
    service.stdin.write(f"{lab.url()}\n{check_interval_ms}\n")
    return service


@experiment(
    question="Which connections are left when an engine or a process ends?",
    rows=("0.29", "2.7"),
    seconds=9,
)
def run(lab: Lab, *, in_use: int = 1, check_interval_ms: int = 0) -> None:
    engine = create_engine(lab.url())
    lab.at_end(engine.dispose)
    used = [engine.connect() for _ in range(in_use)]
    for connection in [engine.connect() for _ in range(2)]:
        connection.close()
    left = {"before dispose()": len(lab.backends())}
    # Python shall not collect the old pool before it is told to.
    gc.disable()
    lab.at_end(gc.enable)
    engine.dispose()
    left["after dispose()"] = lab.count_backends(0, within_s=2)
    while used:
        used.pop().close()
    left["after the return of those in use"] = lab.count_backends(0, within_s=2)
    in_new_pool = engine.pool.checkedin()
    gc.collect()
    left["after Python's garbage collection"] = lab.count_backends(0)
    lab.table("dispose() with a connection in use", ("when", "open"), left.items())
    closed = left["before dispose()"] - left["after dispose()"]
    lab.judge(
        "2.7",
        "dispose() closes all connections, and returns them to the pool",
        holds={
            "closing idle connections": closed == 2,
            **({"closing connections in use": closed > 2} if in_use else {}),
            "returning them to the pool": in_new_pool > 0,
        },
        measured=f"dispose() closed {closed} of {left['before dispose()']}; "
        f"{left['after the return of those in use']} still open after their return, "
        f"{in_new_pool} of them in the engine's pool",
        why="dispose() closes the idle connections and gives the engine a new, empty pool. A "
        "connection in use goes back to the old pool, and stays open there until Python's garbage "
        "collection removes that pool.",
    )

    lab.say("four processes end")
    services = [start_service(lab, check_interval_ms) for _ in range(3)]
    pids = [int(service.stdout.readline()) for service in services]
    exits, idle, querying = services
    querying.stdin.write("query\n")
    lab.wait_until(
        "a query runs", lambda: any("pg_sleep" in backend.query for backend in lab.backends())
    )
    exits.communicate("exit\n")
    for service in (idle, querying):
        service.kill()
        service.communicate()
    with lab.network() as line, closing(psycopg2.connect(line.address.dsn())) as connection:
        pids.append(connection.info.backend_pid)
        line.network.lose_connections()
        time.sleep(2)
        open_pids = {backend.pid for backend in lab.backends()}
    ends = ("exit", "kill -9", "kill -9 in a query", "a lost network")
    is_left = {end: pid in open_pids for end, pid in zip(ends, pids, strict=True)}
    lab.terminate()
    lab.table("2 s after the end", ("end", "connection left"), is_left.items())
    lab.judge(
        "0.29",
        "no connection is left open when the application stops",
        holds={end: not left_open for end, left_open in is_left.items()},
        measured=", ".join(
            f"{end}: {'still open' if left_open else 'closed'}"
            for end, left_open in is_left.items()
        ),
        why="The operating system closes the sockets of a process that ends, however it ends. An "
        "idle server process sees that at once. One that runs a query looks at its socket only "
        "after it, unless client_connection_check_interval is set. A lost network sends nothing: "
        "the server finds out by TCP keepalive, after two hours by default on Linux.",
    )
