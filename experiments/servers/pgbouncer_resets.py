"""What does the next client find on PgBouncer's server connection?

You may have read that session variables and prepared statements of one client are cleared for the
next one by DISCARD ALL, or by transaction pooling (4.24).

PgBouncer gets a single server connection. A client makes what belongs to a session, and leaves. The
next client gets the same connection, and looks for it.

`--set reset_query=` turns the reset off. `--set always=1` runs it in each mode, after each transaction.
"""

from contextlib import closing
from typing import Any

import psycopg2

from poolkit.experiment import Lab, experiment

MAKE = {
    "variable (SET)": "SET app.tenant = 'blue'",
    "prepared statement": "PREPARE mine AS SELECT 1",
    "temporary table": "CREATE TEMP TABLE cart (n int)",
    "advisory lock": "SELECT pg_advisory_lock(42)",
    "LISTEN": "LISTEN news",
    "variable (SET LOCAL)": "BEGIN; SET LOCAL app.name = 'ada'; COMMIT",
}
FIND = """
    SELECT pg_backend_pid(),
        current_setting('app.tenant', true) = 'blue',
        EXISTS (SELECT FROM pg_prepared_statements WHERE name = 'mine'),
        to_regclass('pg_temp.cart') IS NOT NULL,
        EXISTS (SELECT FROM pg_locks WHERE objid = 42 AND pid = pg_backend_pid()),
        EXISTS (SELECT pg_listening_channels()),
        current_setting('app.name', true) = 'ada'
"""


def connect(dsn: str) -> Any:
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    return connection


@experiment(
    question="What does the next client find on PgBouncer's server connection?",
    rows=("4.24",),
    seconds=1,
    needs=("pgbouncer",),
)
def run(lab: Lab, *, reset_query: str = "DISCARD ALL", always: int = 0) -> None:
    settings = {"server_reset_query": reset_query, "server_reset_query_always": str(always)}
    found: dict[str, dict[str, bool]] = {}
    for mode in ("session", "transaction"):
        lab.say(f"one client after the other, {mode} pooling")
        with lab.pgbouncer(pool_mode=mode, pool_size=1, settings=settings) as pooler:
            with closing(connect(pooler.dsn())) as first, first.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                ((pid,),) = cursor.fetchall()
                for statement in MAKE.values():
                    cursor.execute(statement)
            with closing(connect(pooler.dsn())) as following, following.cursor() as cursor:
                cursor.execute(FIND)
                ((same, *seen),) = cursor.fetchall()
        found[f"{mode} pooling"] = dict(zip(MAKE, map(bool, seen), strict=True))
        if same != pid:
            lab.note(f"In {mode} pooling the next client got another server connection.")

    lab.table(
        "The next client finds",
        ("what the first one made", *found),
        [(name, *(each[name] for each in found.values())) for name in MAKE],
    )
    names = ("variable (SET)", "prepared statement")
    lab.judge(
        "4.24",
        "DISCARD ALL clears session variables and prepared statements, and so does transaction pooling",
        holds={mode: not any(each[name] for name in names) for mode, each in found.items()},
        measured="the next client finds "
        + "; ".join(
            f"{' and '.join(name for name in MAKE if each[name]) or 'nothing'} in {mode}"
            for mode, each in found.items()
        ),
        why="PgBouncer runs server_reset_query in session pooling alone, when a client has left. In "
        "transaction pooling a SET stays on the server connection, and the next client has it: the "
        "search_path or the tenant of another request. SET LOCAL and pg_advisory_xact_lock end with "
        "their transaction. server_reset_query_always resets in each mode, for a round trip more.",
    )
