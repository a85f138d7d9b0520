"""Who gets the last connection of a server?

You may have read that databases allow 100 to 1000 connections (3.5); that ten instances with a pool
of ten use up all 100, so that further requests wait or fail (4.17); and that one has to leave room
for administrators, replicas and other applications (4.8).

Two engines with a pool of 10 take all they can get from a server with max_connections=20. They stand
for ten instances on 100. Then others try to connect.
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import psycopg2
from psycopg2.extras import PhysicalReplicationConnection
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from poolkit.experiment import Lab, experiment

FULL, GROWING = "a request where the pool is full", "a request where it is not"
APPLICATION, ADMINISTRATOR, REPLICA = "another application", "a superuser", "a replica"


def try_one_more(connect: Callable[[], Any]) -> str:
    """Return how it ends: "opened", "refused" by the server, or "timed out" in the pool."""
    try:
        connect().close()
    except PoolTimeout:
        return "timed out"
    except (OperationalError, psycopg2.OperationalError):
        return "refused"
    return "opened"


@experiment(
    question="Who gets the last connection of a server?",
    rows=("3.5", "4.8", "4.17"),
    seconds=2,
)
def run(
    lab: Lab, *, max_connections: int = 20, reserved: int = 3, pool_timeout: float = 0.2
) -> None:
    ((default, here),) = lab.ask(
        "SELECT boot_val::int, setting::int FROM pg_settings WHERE name = 'max_connections'"
    )
    lab.judge(
        "3.5",
        "databases allow 100 to 1000 connections",
        holds={"PostgreSQL's default": 100 <= default <= 1000, "this server": 100 <= here <= 1000},
        measured=f"{default} by default, {here} on this server",
        why="PostgreSQL sets up memory for max_connections when it starts, so the number is fixed. "
        "Hosted databases derive it from the memory of the machine. A few are always reserved.",
    )
    lab.say(f"two pools take every connection of max_connections={max_connections}")
    settings = {"superuser_reserved_connections": str(reserved)}
    with (
        lab.new_server(max_connections=max_connections, settings=settings) as server,
        ExitStack() as stack,
    ):
        full, growing = (
            create_engine(server.url(), pool_size=10, max_overflow=0, pool_timeout=pool_timeout)
            for _ in range(2)
        )
        stack.callback(full.dispose)
        stack.callback(growing.dispose)
        taken = 0
        for engine in (full, growing):
            with suppress(OperationalError):
                for _ in range(10):
                    stack.enter_context(engine.connect())
                    taken += 1

        application, superuser = server.dsn(), server.postgres.admin_url(driver="")
        late = {
            FULL: try_one_more(full.connect),
            GROWING: try_one_more(growing.connect),
            APPLICATION: try_one_more(lambda: psycopg2.connect(application)),
            ADMINISTRATOR: try_one_more(lambda: psycopg2.connect(superuser)),
            REPLICA: try_one_more(
                lambda: psycopg2.connect(
                    superuser, connection_factory=PhysicalReplicationConnection
                )
            ),
        }
    lab.table(f"With {taken} of {max_connections} connections open", ("", "one more"), late.items())
    lab.judge(
        "4.17",
        "if the pools add up to max_connections, at the peak requests wait or fail",
        holds="opened" not in (late[FULL], late[GROWING], late[APPLICATION]),
        measured=f"{taken} of 20 opened; then {FULL}: {late[FULL]}; {GROWING}: {late[GROWING]}",
        why="In a full pool a request waits for pool_timeout. A pool that may still grow asks the "
        "server, which refuses at once. The reserve makes that happen before the sum is reached.",
    )
    lab.judge(
        "4.8",
        "pools have to leave room for administrators, replicas and other applications",
        holds={who: late[who] == "refused" for who in (APPLICATION, ADMINISTRATOR, REPLICA)},
        measured=", ".join(f"{who}: {late[who]}" for who in (APPLICATION, ADMINISTRATOR, REPLICA)),
        why="Ordinary roles get no connection when only superuser_reserved_connections are left, "
        "and superusers may take these. From PostgreSQL 16 on, reserved_connections do the same for "
        "members of pg_use_reserved_connections. Replicas count against max_wal_senders instead.",
    )
