"""URLs of databases that refuse every client, one for each reason why a connection cannot be opened."""

from collections.abc import Callable
from typing import Any

from poolkit.local.ports import free_port
from poolkit.local.postgres import APP_ROLE


def _no_right_to_connect(database: Any) -> str:
    database.execute(f"REVOKE CONNECT ON DATABASE {database.name} FROM PUBLIC, {APP_ROLE}")
    return database.url("")


# By what the system or the server says, each in the words of a platform: no driver named.
CLOSED: dict[str, Callable[[Any], str]] = {
    "connection refused": lambda database: f"postgresql://me:x@127.0.0.1:{free_port()}/d",
    # Of both, where it has two: asyncio has an error of its own for that.
    "refused by each address": lambda database: f"postgresql://me:x@localhost:{free_port()}/d",
    "network unreachable": lambda database: "postgresql://me:x@224.0.0.1:5432/d",  # multicast
    "no such host": lambda database: "postgresql://me:x@no-such-host.invalid/d",
    "no such socket": lambda database: "postgresql://me:x@/d?host=/no/such/directory",
    "no such database": lambda database: database.server.url("no_such_database", ""),
    "no connections allowed": lambda database: database.server.url("template0", ""),
    "no right to connect": _no_right_to_connect,
    "wrong password": lambda database: database.url("").replace(
        f":{database.server.password()}@", ":wrong@"
    ),
}
