"""PgBouncer in front of the embedded PostgreSQL, if PgBouncer is installed."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import psycopg2

from poolkit.errors import BinaryMissingError, StateDirectoryError
from poolkit.local.loopback_server import LoopbackServer
from poolkit.local.postgres import APP_ROLE, DATABASE, EmbeddedPostgres

# May read PgBouncer's own statistics (SHOW POOLS); it is not a role of PostgreSQL.
STATS_USER = "poolkit_stats"
DEFAULT_POOL_SIZE = 20
"""default_pool_size, unless set (PgBouncer, config.md)."""
# Where distributions put it, outside an ordinary user's PATH.
_MORE_PLACES = "/usr/sbin:/usr/local/sbin:/opt/homebrew/bin"
INSTALL_PGBOUNCER = "install PgBouncer: apt-get install pgbouncer, or brew install pgbouncer"


def find_pgbouncer() -> Path | None:
    """Return PgBouncer's program, on PATH or where packages install it; None if it is missing."""
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path=_MORE_PLACES)
    return None if found is None else Path(found)


class EmbeddedPgBouncer(LoopbackServer):
    """One PgBouncer, for as long as it is open.

    A context manager: entering starts it, leaving stops it. Clients log in with the application
    role's password by SCRAM-SHA-256. PgBouncer has only the server's own secret, so it logs in
    to PostgreSQL with what it learns from the clients (SCRAM pass-through). Like RDS Proxy, it
    refuses clients that send `options` at connect.

    Args:
        postgres: the server behind it, started.
        state_dir: where its files go, in a new directory that is removed at the end.
        pool_mode: session, transaction or statement.
        pool_size: connections to PostgreSQL for each database (`default_pool_size`).
        max_client_connections: clients at once (`max_client_conn`).
        settings: more settings of pgbouncer.ini.
        port: the port to listen on; 0 for any free one.
    """

    name: ClassVar[str] = "PgBouncer"
    slug: ClassVar[str] = "pgbouncer"

    def __init__(
        self,
        postgres: EmbeddedPostgres,
        state_dir: Path,
        *,
        pool_mode: Literal["session", "transaction", "statement"] = "transaction",
        pool_size: int = DEFAULT_POOL_SIZE,
        max_client_connections: int = 1000,
        settings: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        super().__init__(state_dir, port=port)
        self._pool_mode = pool_mode
        self._settings = dict(settings or {})
        self._postgres = postgres
        self._pool_size = pool_size
        self._max_client_connections = max_client_connections

    def url(self, database: str = DATABASE, driver: str = "psycopg2") -> str:
        """Return the application's URL through PgBouncer."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        password = self._postgres.password(APP_ROLE)
        return f"{scheme}://{APP_ROLE}:{password}@{self.host}:{self.port}/{database}"

    def stats_url(self) -> str:
        """Return a libpq URL of the admin console, for SHOW POOLS and the like.

        The console speaks the simple protocol alone, without transactions: autocommit.
        """
        address = f"{self.host}:{self.port}/pgbouncer"
        return f"postgresql://{STATS_USER}:{self._password}@{address}"

    def version(self) -> str:
        """Return the version of the running program, such as `1.18.0`."""
        connection = psycopg2.connect(self.stats_url(), connect_timeout=10)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SHOW VERSION")
                ((found,),) = cursor.fetchall()
        finally:
            connection.close()
        return str(found).removeprefix("PgBouncer ")

    def _command(self, directory: Path) -> list[str]:
        program = find_pgbouncer()
        if program is None:
            raise BinaryMissingError(
                f"pgbouncer is not on PATH; {INSTALL_PGBOUNCER}, or leave out the targets that "
                "need it"
            )
        return [str(program), str(directory / "pgbouncer.ini")]

    def _prepare(self, directory: Path) -> bytes:
        # From a password in clear text, PgBouncer before 1.25 derives a secret for each login of
        # a client: 8 ms of its only thread, which would dominate a comparison.
        users = {APP_ROLE: self._postgres.scram_secret(), STATS_USER: self._password}
        files = {
            "users.txt": "".join(f'"{name}" "{secret}"\n' for name, secret in users.items()),
            "pgbouncer.ini": f"""\
[databases]
* = host={self._postgres.host} port={self._postgres.port}

[pgbouncer]
listen_addr = {self.host}
listen_port = {self.port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {directory / "users.txt"}
stats_users = {STATS_USER}
pool_mode = {self._pool_mode}
default_pool_size = {self._pool_size}
max_client_conn = {self._max_client_connections}
# JDBC and others send it to every server. Not "options": if that were ignored, a client's
# statement_timeout would be lost in silence.
ignore_startup_parameters = extra_float_digits
# Under load, a line for each client would be most of its work.
log_connections = 0
log_disconnections = 0
{"".join(f"{name} = {value}" + chr(10) for name, value in self._settings.items())}""",
        }
        try:
            for name, text in files.items():
                path = directory / name
                path.touch(mode=0o600)
                path.write_text(text)
                self.account.give(path)
        except OSError as error:
            raise StateDirectoryError(f"cannot write to {directory}: {error.strerror}") from None
        return b""

    def _is_ready(self, directory: Path) -> bool:
        # Its admin console needs no PostgreSQL behind it.
        try:
            psycopg2.connect(self.stats_url(), connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True
