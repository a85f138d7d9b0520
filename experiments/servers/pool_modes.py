"""What survives in which mode of PgBouncer?

You may have read that temporary tables and prepared statements do not outlive a transaction in
transaction pooling (4.35), and that session pooling is for those who need such state (4.36).

A client sets something up, and uses it in its next statement, which is a transaction of its own. Then
it leaves, and two others look for what it has left. PgBouncer takes its two server connections in
turn, so the next statement runs on the other one, as it may under load.

`--set in_turn=0` gives a client that is alone the same server connection each time, as on a
developer's machine. `--set reset_query=` turns the reset off.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import product
from typing import Any

import asyncpg
import psycopg
import psycopg2

from poolkit.experiment import Lab, experiment

PREPARED, LOCAL = "query, driver prepares", "BEGIN, SET LOCAL"
FEATURES = {  # what the client sets up, and what is true for a session that has it
    "SET": ("SET app.tenant{n} = 'blue'", "SELECT current_setting('app.tenant{n}', true) = 'blue'"),
    "temporary table": ("CREATE TEMP TABLE mine{n} AS SELECT true AS ok", "SELECT ok FROM mine{n}"),
    "advisory lock": (
        "SELECT pg_advisory_lock({n})",
        "SELECT EXISTS (SELECT FROM pg_locks WHERE objid = {n} AND pid = pg_backend_pid())",
    ),
    "LISTEN": ("LISTEN news{n}", "SELECT 'news{n}' IN (SELECT pg_listening_channels())"),
    "PREPARE": ("PREPARE is_more{n} (int) AS SELECT $1 > 0", "EXECUTE is_more{n} (1)"),
    PREPARED: ("SELECT {n} > 0", "SELECT {n} > 0"),
    LOCAL: (
        "BEGIN; SET LOCAL app.tenant{n} = 'red'",
        "SELECT current_setting('app.tenant{n}', true) = 'red'",
    ),
}
LASTING = ("temporary table", "PREPARE", PREPARED)  # beyond a transaction
IS_PREPARED = (  # by a driver; PgBouncer gives names of its own
    "SELECT EXISTS (SELECT FROM pg_prepared_statements "
    "WHERE statement = 'SELECT {n} > 0' AND name NOT LIKE 'PGBOUNCER%')"
)
ERRORS = (psycopg2.Error, psycopg.Error, asyncpg.PostgresError, asyncpg.InterfaceError)
DRIVERS = ("psycopg2", "psycopg", "asyncpg")
MODES = ("session", "transaction", "statement")


@contextmanager
def client(driver: str, dsn: str, *, prepares: bool = False) -> Iterator[Callable[[str], Any]]:
    """Connect, and yield a function that runs a statement and returns its first value."""
    if driver == "asyncpg":
        size = 100 if prepares else 0  # 100 is its default
        with asyncio.Runner() as runner:
            connection = runner.run(asyncpg.connect(dsn, statement_cache_size=size))
            try:
                yield lambda statement: runner.run(connection.fetchval(statement))
            finally:
                runner.run(connection.close())
        return
    if driver == "psycopg":
        # By default it prepares a query that runs for the sixth time; with 0, each one.
        connection = psycopg.connect(dsn, prepare_threshold=0 if prepares else None)
    else:
        connection = psycopg2.connect(dsn)  # which prepares nothing

    def run_statement(statement: str) -> Any:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None

    with closing(connection):
        connection.autocommit = True
        yield run_statement


def measure(dsn: str, feature: str, driver: str, n: int) -> tuple[bool, bool]:
    """Return whether a feature works, and whether it leaks; `n` makes its names unique."""
    set_up, query = (text.format(n=n) for text in FEATURES[feature])
    works = leaks = False
    with client(driver, dsn, prepares=feature == PREPARED) as first, suppress(*ERRORS):
        for statement in set_up.split("; "):
            first(statement)
        works = bool(first(query))
        if feature == LOCAL:
            first("COMMIT")
    left = IS_PREPARED.format(n=n) if feature == PREPARED else query
    with client("psycopg2", dsn) as second, client("psycopg2", dsn) as third:
        for later in (second, third):
            with suppress(*ERRORS):
                leaks |= bool(later(left))
    return works, leaks


@experiment(
    question="What survives in which mode of PgBouncer, and what does the next client get?",
    rows=("4.35", "4.36"),
    seconds=2,
    needs=("pgbouncer",),
)
def run(lab: Lab, *, reset_query: str = "DISCARD ALL", in_turn: int = 1) -> None:
    settings = {"server_round_robin": str(in_turn), "server_reset_query": reset_query}
    settings["min_pool_size"] = "2"
    works, leaks = {}, {}
    for mode in MODES:
        lab.say(f"{len(FEATURES)} features with {len(DRIVERS)} drivers, {mode} pooling")
        with (
            lab.pgbouncer(pool_mode=mode, pool_size=2, settings=settings) as pooler,
            client("psycopg2", pooler.dsn()) as other,
        ):
            if in_turn and mode != "session":
                pids = partial(other, "SELECT pg_backend_pid()")
                lab.wait_until("connections take turns", lambda pid=pids: pid() != pid())
            for n, (feature, driver) in enumerate(product(FEATURES, DRIVERS), start=100):
                key = (feature, driver, mode)
                works[key], leaks[key] = measure(pooler.dsn(), feature, driver, n)
            version = pooler.version

    effect = {k: ("works" if works[k] else "breaks") + ", leaks" * leaks[k] for k in works}
    pairs = list(product(FEATURES, DRIVERS))
    rows = [(*pair, *(effect[*pair, mode] for mode in MODES)) for pair in pairs]
    lab.table("What a client finds in its next statement", ("feature", "driver", *MODES), rows)
    lost = [(f, d) for f, d in pairs if f in LASTING and (f, d) != (PREPARED, "psycopg2")]
    kept = [f"{f} with {d}" for f, d in lost if works[f, d, "transaction"]] or ["none"]
    lab.judge(
        "4.35",
        "in transaction pooling temporary tables and prepared statements do not outlive a transaction",
        holds={f"{f} with {d}": not works[f, d, "transaction"] for f, d in lost},
        measured=f"with PgBouncer {version}, of {len(lost)} these were there in the next "
        f"transaction: {', '.join(kept)}",
        why="The next transaction may run on another server connection. A client alone, as on a "
        "developer's machine, gets the same one again, and all seems well. From 1.21 on PgBouncer "
        "can repeat what a driver prepares (max_prepared_statements), but no PREPARE in SQL.",
    )
    good = {m: sum(works[*pair, m] for pair in pairs) for m in MODES}
    bad = {m: sum(leaks[*pair, m] for pair in pairs) for m in MODES}
    clean = [m for m in MODES if good[m] == len(pairs) and bad[m] == 0]
    lab.judge(
        "4.36",
        "session state needs session pooling",
        holds=clean == ["session"],
        measured=", ".join(f"{m}: {good[m]} of {len(pairs)} work, {bad[m]} leak" for m in MODES),
        why="Session pooling keeps all of it, and shares nothing until the client leaves. A service "
        "with a pool of its own never leaves, so it saves no connection. Most use transaction "
        "pooling with SET LOCAL, and one direct connection for LISTEN.",
    )
