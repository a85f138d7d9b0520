"""PgBouncer in transaction mode before the embedded PostgreSQL, where its program is there."""

import secrets
import shutil
from pathlib import Path
from typing import ClassVar

import psycopg2

from poolkit.errors import BinaryMissingError, StateDirectoryError
from poolkit.local.accounts import Account, server_account
from poolkit.local.loopback_server import LoopbackServer
from poolkit.local.postgres import APP_ROLE, DATABASE, EmbeddedPostgres

# Who may ask PgBouncer about itself (SHOW POOLS); it is no role of PostgreSQL's.
STATS_USER = "poolkit_stats"
DEFAULT_POOL_SIZE = 20
"""default_pool_size, unless set (PgBouncer, config.md)."""
# Where distributions put it and an ordinary user's PATH does not look.
_MORE_PLACES = "/usr/sbin:/usr/local/sbin:/opt/homebrew/bin"


def find_pgbouncer() -> Path | None:
    """Find PgBouncer's program on PATH or where packages install it; None if there is none."""
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path=_MORE_PLACES)
    return None if found is None else Path(found)


class EmbeddedPgBouncer(LoopbackServer):
    """One PgBouncer in transaction mode, for as long as it is open.

    A context manager: entering starts it, leaving stops it. Clients log in with the
    application role's password by SCRAM-SHA-256, and PgBouncer logs in to PostgreSQL with
    what it learned from them (SCRAM pass-through), as the server's own secret is all it has. Like RDS Proxy, it refuses clients that send `options` at connect.

    Args:
        postgres: the server it stands before, started.
        state_dir: where its files go, in a new directory that is removed at the end.
        pool_size: connections to PostgreSQL for each database (`default_pool_size`).
        max_client_connections: clients at once (`max_client_conn`).
        port: the port to listen on; 0 for any free one.

    """

    name: ClassVar[str] = "PgBouncer"

    def __init__(
        self,
        postgres: EmbeddedPostgres,
        state_dir: Path,
        *,
        pool_size: int = DEFAULT_POOL_SIZE,
        max_client_connections: int = 1000,
        port: int = 0,
    ) -> None:
        super().__init__(state_dir, port=port)
        self._postgres = postgres
        self._pool_size = pool_size
        self._max_client_connections = max_client_connections
        self._stats_password = secrets.token_urlsafe(24)
        self._runs_as: Account | None = None

    def url(self, database: str = DATABASE, driver: str = "psycopg2") -> str:
        """Return the application's URL through PgBouncer."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        password = self._postgres.password(APP_ROLE)
        return f"{scheme}://{APP_ROLE}:{password}@{self.host}:{self.port}/{database}"

    def stats_url(self) -> str:
        """Return a libpq URL of the admin console, for SHOW POOLS and the like.

        The console speaks the simple protocol alone, without transactions: autocommit.
        """
        where = f"{self.host}:{self.port}/pgbouncer"
        return f"postgresql://{STATS_USER}:{self._stats_password}@{where}"

    def _program(self) -> Path:
        program = find_pgbouncer()
        if program is None:
            raise BinaryMissingError(
                "there is no pgbouncer on PATH: install it (Debian: apt install pgbouncer), "
                "or leave out the targets that need it"
            )
        return program

    def _account(self) -> Account:
        if self._runs_as is None:
            self._runs_as = server_account()
        return self._runs_as

    def _arguments(self, directory: Path) -> list[str]:
        return [str(directory / "pgbouncer.ini")]

    def _prepare(self, directory: Path) -> bytes:
        """Write the configuration and the list of passwords, for its account's eyes alone."""
        # From a password in clear, PgBouncer before 1.25 derives a secret for each login of a client:
        # 8 ms of its only thread, which would be most of what a comparison finds.
        users = {APP_ROLE: self._postgres.scram_secret(), STATS_USER: self._stats_password}
        files = {
            "users.txt": "".join(f'"{name}" "{word}"\n' for name, word in users.items()),
            "pgbouncer.ini": self._configuration(directory),
        }
        try:
            for name, text in files.items():
                path = directory / name
                path.touch(mode=0o600)
                path.write_text(text)
                self._account().give(path)
        except OSError as error:
            raise StateDirectoryError(f"cannot write to {directory}: {error.strerror}") from None
        return b""

    def _configuration(self, directory: Path) -> str:
        return f"""\
[databases]
* = host={self._postgres.host} port={self._postgres.port}

[pgbouncer]
listen_addr = {self.host}
listen_port = {self.port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {directory / "users.txt"}
stats_users = {STATS_USER}
pool_mode = transaction
default_pool_size = {self._pool_size}
max_client_conn = {self._max_client_connections}
# JDBC and others send it to every server. Not "options": ignored, a statement_timeout that
# a client asks for would be lost without a word.
ignore_startup_parameters = extra_float_digits
# A line for each client would be most of what it does under load.
log_connections = 0
log_disconnections = 0
"""

    def _answers(self) -> bool:
        """Ask its admin console, which needs no PostgreSQL behind it."""
        try:
            connection = psycopg2.connect(self.stats_url(), connect_timeout=2)
        except psycopg2.OperationalError:
            return False
        connection.close()
        return True
