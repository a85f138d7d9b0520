"""What survives in which mode of PgBouncer?

You may have read that session variables and prepared statements are cleared by DISCARD ALL "or use
transaction pooling" (4.24), that temporary tables and prepared statements do not outlive a transaction
there (4.35), and that session pooling is for those who need such state (4.36).

A client sets something up, and uses it in its next statement, which is a transaction of its own.
Between the two, another client is served. Then the first one leaves, and the next client gets its
server connection: is it clean? Two server connections are enough to see all of it.

`--set busy=0` serves the other client only afterwards, as on a developer's machine, and
`--set reset_query=` turns the reset off.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from itertools import product
from typing import Any, NamedTuple

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
IS_PREPARED = (  # by a driver; PgBouncer gives names of its own
    "SELECT EXISTS (SELECT FROM pg_prepared_statements "
    "WHERE statement = 'SELECT {n} > 0' AND name NOT LIKE 'PGBOUNCER%')"
)
ERRORS = (psycopg2.Error, psycopg.Error, asyncpg.PostgresError, asyncpg.InterfaceError)
DRIVERS = ("psycopg2", "psycopg", "asyncpg")
MODES = ("session", "transaction", "statement")


@contextmanager
def client(driver: str, dsn: str, *, prepares: bool = False) -> Iterator[Callable]:
    """Connect, and return a function that runs a statement and returns its first value.

    Args:
        driver: of `DRIVERS`.
        dsn: of the database, through PgBouncer.
        prepares: whether psycopg and asyncpg shall prepare each query; psycopg2 never does.
    """
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
        connection = psycopg2.connect(dsn)
    with closing(connection):
        connection.autocommit = True
        yield partial(first_value, connection)


def first_value(connection: Any, statement: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


class Cell(NamedTuple):
    """What became of one feature with one driver in one mode."""

    works: bool
    leaks: bool  # the next client has what the first one set up

    def __str__(self) -> str:
        return ("works" if self.works else "breaks") + (", leaks" if self.leaks else "")


def measure(dsn: str, meanwhile: AbstractContextManager, feature: str, driver: str, n: int) -> Cell:
    """Fill one cell of the table; `n` keeps its names apart from those of other cells."""
    set_up, query = (text.format(n=n) for text in FEATURES[feature])
    works = leaks = False
    with client(driver, dsn, prepares=feature == PREPARED) as first, suppress(*ERRORS):
        for statement in set_up.split("; "):
            first(statement)
        with meanwhile:
            works = bool(first(query))
        if feature == LOCAL:
            first("COMMIT")
    with client("psycopg2", dsn) as next_client, suppress(*ERRORS):
        seen = IS_PREPARED.format(n=n) if feature == PREPARED else query
        leaks = bool(next_client(seen))
    return Cell(works, leaks)


@contextmanager
def serve_other(lab: Lab, other: Callable, threads: ThreadPoolExecutor, *, busy: int) -> Iterator:
    """Serve the other client: during the block, when its statement waits for a lock; or after it."""
    if not busy:
        yield
        other("SELECT 1")
        return
    lab.ask("SELECT pg_advisory_lock(1)")
    try:
        served = threads.submit(other, "SELECT 1 FROM pg_advisory_xact_lock(1)")
        waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        lab.wait_until("the other client waits", lambda: lab.ask(waits))
        yield
    finally:
        lab.ask("SELECT pg_advisory_unlock(1)")
        served.result()


@experiment(
    question="What survives in which mode of PgBouncer, and what does the next client get?",
    rows=("4.24", "4.35", "4.36"),
    seconds=8,
    needs=("pgbouncer",),
)
def run(lab: Lab, *, reset_query: str = "DISCARD ALL", busy: int = 1) -> None:
    cells: dict[tuple[str, str, str], Cell] = {}
    for mode in MODES:
        lab.say(f"{len(FEATURES)} features with {len(DRIVERS)} drivers, {mode} pooling")
        settings = {"server_reset_query": reset_query}
        with (
            lab.pgbouncer(pool_mode=mode, pool_size=2, settings=settings) as pooler,
            client("psycopg2", pooler.dsn()) as other,
            ThreadPoolExecutor(1) as threads,
        ):
            for n, (feature, driver) in enumerate(product(FEATURES, DRIVERS), start=100):
                meanwhile = serve_other(lab, other, threads, busy=busy)
                found = measure(pooler.dsn(), meanwhile, feature, driver, n)
                cells[feature, driver, mode] = found
            version = pooler.version
    judge(lab, cells, version)


def judge(lab: Lab, cells: dict[tuple[str, str, str], Cell], version: str) -> None:
    rows = []
    for feature in FEATURES:
        found = {d: tuple(str(cells[feature, d, mode]) for mode in MODES) for d in DRIVERS}
        agreed = {"all": found["psycopg2"]} if len(set(found.values())) == 1 else found
        rows += [(feature, driver, *texts) for driver, texts in agreed.items()]
    lab.table("What a client finds in its next statement", ("feature", "driver", *MODES), rows)
    lab.note(f"Measured with PgBouncer {version}.")

    each = len(FEATURES) * len(DRIVERS)
    by_mode = {m: [cell for key, cell in cells.items() if key[2] == m] for m in MODES}
    works = {m: sum(cell.works for cell in by_mode[m]) for m in MODES}
    leaks = {m: sum(cell.leaks for cell in by_mode[m]) for m in MODES}
    lasting = [(f, d) for f in ("SET", "PREPARE", PREPARED) for d in DRIVERS]
    kept = {m: sum(cells[f, d, m].leaks for f, d in lasting) for m in MODES[:2]}
    lab.judge(
        "4.24",
        "DISCARD ALL clears session variables and prepared statements, and so does transaction pooling",
        holds={f"{m} pooling": count == 0 for m, count in kept.items()},
        measured=", ".join(
            f"{count} of {len(lasting)} reached the next client in {m} pooling"
            for m, count in kept.items()
        ),
        why="PgBouncer runs server_reset_query in session pooling alone. In transaction pooling a SET "
        "stays on the server connection, and the next client has it: the search_path or the tenant "
        "of another request. SET LOCAL and pg_advisory_xact_lock end with their transaction.",
    )
    lost = {
        "temporary tables": [("temporary table", driver) for driver in DRIVERS],
        "PREPARE": [("PREPARE", driver) for driver in DRIVERS],
        "what psycopg prepares": [(PREPARED, "psycopg")],
        "what asyncpg prepares": [(PREPARED, "asyncpg")],
    }
    found = {
        name: sum(cells[f, d, "transaction"].works for f, d in keys) for name, keys in lost.items()
    }
    lab.judge(
        "4.35",
        "in transaction pooling temporary tables and prepared statements do not outlive a transaction",
        holds={name: count == 0 for name, count in found.items()},
        measured=f"still there in the next one, with PgBouncer {version}: "
        + ", ".join(f"{name} {count} of {len(lost[name])}" for name, count in found.items()),
        why="The next transaction may run on another server connection. A client alone, as on a "
        "developer's machine, gets the same one again, and all seems well. From 1.21 on PgBouncer "
        "can repeat what a driver prepares (max_prepared_statements), but no PREPARE in SQL.",
    )
    is_clean = {m: works[m] == each and leaks[m] == 0 for m in MODES}
    lab.judge(
        "4.36",
        "session state needs session pooling",
        holds=is_clean["session"] and not is_clean["transaction"],
        measured=", ".join(f"{m}: {works[m]} of {each} work, {leaks[m]} leak" for m in MODES),
        why="Session pooling keeps all of it, and shares nothing until the client leaves. A service "
        "with a pool of its own never leaves, so it saves no connection. Most use transaction "
        "pooling with SET LOCAL, and one direct connection for LISTEN.",
    )
