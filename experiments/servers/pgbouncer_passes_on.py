"""When does PgBouncer give a server connection to the next client?

You may have read that session pooling holds it for the whole session, and then resets it by DISCARD
ALL (4.9); and that statement pooling holds it for a statement only: rare, and the most aggressive
(4.11).

PgBouncer gets a single server connection. One client uses it. Between two of its statements, and
within a transaction, another client looks for a variable of the first one's session: is it served, or
does it wait? `--set reset_query=` turns the reset off.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg2

from poolkit.experiment import Lab, experiment
from poolkit.experiment.lab import Pooler

MODES = ("session", "transaction", "statement")


def connect(dsn: str) -> Any:
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    return connection


def ask(connection: Any, query: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0] if cursor.description else None


def waiting_clients(pooler: Pooler) -> int:
    """Return the number of clients that wait for a server connection, as PgBouncer counts them."""
    with closing(connect(pooler.bouncer.stats_url())) as console, console.cursor() as cursor:
        cursor.execute("SHOW POOLS")
        column = [each.name for each in cursor.description].index("cl_waiting")
        return sum(row[column] for row in cursor.fetchall())


def use_once(dsn: str) -> tuple[int, str]:
    """Return the server process that serves a new client, and the tenant that is set there."""
    with closing(connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid(), coalesce(current_setting('app.tenant', true), '')")
        return cursor.fetchone()


def send_another(lab: Lab, threads: ThreadPoolExecutor, pooler: Pooler) -> tuple[Future, str]:
    """Return the future answer of another client, and whether it is served or waits."""
    before = waiting_clients(pooler)
    other = threads.submit(use_once, pooler.dsn())
    lab.wait_until(
        "the other client is served, or waits",
        lambda: other.done() or waiting_clients(pooler) > before,
    )
    return other, "served" if other.done() else "waits"


@experiment(
    question="When does PgBouncer give a server connection to the next client?",
    rows=("4.9", "4.11"),
    seconds=1,
    needs=("pgbouncer",),
)
def run(lab: Lab, *, reset_query: str = "DISCARD ALL") -> None:
    found: dict[str, list[str]] = {}
    tenants: dict[str, str] = {}
    same_backend: dict[str, bool] = {}
    settings = {"server_reset_query": reset_query}
    for mode in MODES:
        lab.say(f"{mode} pooling")
        with (
            ThreadPoolExecutor(3) as threads,
            lab.pgbouncer(pool_mode=mode, pool_size=1, settings=settings) as pooler,
            closing(connect(pooler.dsn())) as first,
        ):
            backend = ask(first, "SELECT pg_backend_pid()")
            ask(first, "SET app.tenant = 'blue'")
            other, state = send_another(lab, threads, pooler)
            found[mode] = [state]
            try:
                ask(first, "BEGIN")
                found[mode].append(send_another(lab, threads, pooler)[1])
                ask(first, "COMMIT")
            except psycopg2.Error:
                found[mode].append("BEGIN refused")
            first.close()
            # The other client has waited until now, or was served at once.
            next_backend, tenants[mode] = other.result(30)
            same_backend[mode] = next_backend == backend

    lab.table(
        "Another client, while the only server connection is in use",
        ("mode", "between two statements", "within a transaction", "it finds"),
        [(mode, *found[mode], tenants[mode] or "nothing") for mode in MODES],
    )
    is_same = same_backend["session"]
    lab.judge(
        "4.9",
        "session pooling holds a server connection while its client is connected, and then resets it",
        holds=found["session"] == ["waits", "waits"] and is_same and not tenants["session"],
        measured=f"the next client {found['session'][0]} while the first one is connected; then it "
        f"has {'the same' if is_same else 'another'} connection, and finds "
        f"{tenants['session'] or 'nothing'} of the first one's variable",
        why="In session pooling PgBouncer gives a server connection away when its client has left, "
        "after server_reset_query. The other modes run no reset.",
    )
    lab.judge(
        "4.11",
        "statement pooling holds a server connection for one statement, the shortest time of all modes",
        holds=found["statement"] == ["served", "BEGIN refused"]
        and "waits" in found["session"]
        and "waits" in found["transaction"],
        measured="between two statements and within a transaction, another client: "
        + "; ".join(f"{mode} pooling: {', '.join(found[mode])}" for mode in MODES),
        why="PgBouncer takes the connection back after each statement. A transaction would have to "
        "keep it for several, so PgBouncer refuses BEGIN in this mode, and few applications can use it.",
    )
