"""The faults: each is a function that makes a failure, waits, and undoes it, whatever happens.

A fault has ended when its function returns: the server takes connections again, the network passes
data on, the lock is gone. From that moment the seconds of the recovery count.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import psycopg2
from psycopg2 import sql
from sqlalchemy.engine import make_url

from poolkit.errors import DrillError, LocalStackError
from poolkit.local.processes import signals_wait
from poolkit.local.readiness import HasLogged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from poolkit.local.network import Network
    from poolkit.local.postgres import EmbeddedPostgres, Standby
    from poolkit.local.processes import Supervisor

APPLICATION_NAME = "poolkit drill"
"""The name of the drill's own connections, which no fault ends."""
_ONCE_S = 1.0
"""Between two rounds of a fault that is repeated."""
_DELAY_S = 0.2
_LOCK_TIMEOUT_S = 10
_LOOK_S = 0.05
_AT_ONCE = 8
"""Connections that are opened at the same time."""
_STOPS_WITHIN_S = 5.0
_NOT_RUNNING = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
_FILLED_ROUNDS = 3
"""The application takes connections while they are filled."""
DISK = "poolkit_drill_disk"
"""The small file system: its process, its tablespace."""
_DISK = sql.Identifier(DISK)
_DISK_BYTES = 32 * 2**20

Need: TypeAlias = Literal[
    "database", "superuser", "server", "network", "table", "root", "processes"
]
NEEDS: dict[Need, str] = {
    "database": "needs --database-url",
    "superuser": "needs a superuser in --database-url",
    "server": "needs a server that the drill has started",
    "network": "needs the drill's proxy between the application and its database",
    "table": "needs the name of a table (table in [tool.poolkit.drill], or --table)",
    "root": "needs root, to mount a small file system",
    "processes": "needs Linux, and targets that the drill has started",
}
"""What a fault needs, and the reason if it is missing."""


@dataclass(kw_only=True)
class Scene:
    """What faults may break, and how long.

    Args:
        seconds: the length of a fault.
        admin_url: the database, as a role that may end other sessions; empty for none.
        role: the application's role; its sessions are ended, its password is changed.
        tables: the tables that the load uses.
        server: the PostgreSQL that the drill has started.
        network: the proxy before it.
        supervisor: of the drill's processes.
        parts: for what must outlive a fault: it ends with the drill.
        processes: returns the first process of each target that the drill has started.
        wait: waits so many seconds; it may raise if the run ends meanwhile.
    """

    seconds: float
    admin_url: str = ""
    role: str = ""
    tables: Sequence[str] = ()
    server: EmbeddedPostgres | None = None
    network: Network | None = None
    supervisor: Supervisor | None = None
    parts: ExitStack = field(default_factory=ExitStack)
    processes: Callable[[], Sequence[int]] = tuple
    wait: Callable[[float], None] = time.sleep
    standby: Standby | None = None
    """Follows the server, if a fault has started it."""
    disk: Path = Path()
    """The small file system, if a fault has mounted it."""

    @property
    def has(self) -> set[Need]:
        """What there is of `NEEDS`."""
        found: set[Need] = set()
        if self.admin_url:
            found.add("database")
            with self.admin() as cursor:
                cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
                found |= {"superuser"} if cursor.fetchone() == (True,) else set()
        found |= {"server"} if self.server is not None else set()
        found |= {"network"} if self.network is not None else set()
        found |= {"table"} if self.tables else set()
        found |= {"root"} if os.geteuid() == 0 else set()
        if sys.platform == "linux" and self.processes():
            found.add("processes")
        return found

    @contextmanager
    def admin(self) -> Iterator[Any]:
        """Yield a cursor of a new connection past the proxy, in autocommit.

        Raises:
            DrillError: the server cannot be reached, or refuses the statement.
        """
        try:
            connection = psycopg2.connect(
                self.admin_url,
                connect_timeout=10,
                application_name=APPLICATION_NAME,
                # It must be able to undo a fault that makes the server read only.
                options="-c default_transaction_read_only=off -c statement_timeout=30s",
            )
        except psycopg2.Error as error:
            raise DrillError(f"the database of the drill: {_first_line(error)}") from None
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor
        except psycopg2.Error as error:
            raise DrillError(f"the database of the drill: {_first_line(error)}") from None
        finally:
            connection.close()

    def end_sessions(self, cursor: Any) -> int:
        """End every session of the application's role in this database; return their number."""
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND usename = %s AND application_name <> %s "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
            (self.role, APPLICATION_NAME),
        )
        (number,) = cursor.fetchone()
        return int(number)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of failure."""

    name: str
    does: str
    """Completes "the drill ...", for the list and before it touches a database of the user's."""
    needs: tuple[Need, ...]
    run: Callable[[Scene], None]
    """Makes the fault, waits `scene.seconds`, and undoes it, also if the wait raises."""

    around: Callable[[Scene], AbstractContextManager[None]] = lambda _: nullcontext()
    """Prepares the fault before the load is watched, and cleans up after the recovery.

    A `DrillError` of it says why the fault cannot be made here."""

    def missing(self, has: set[Need]) -> str:
        """Return why it cannot be made; empty if it can."""
        return next((NEEDS[need] for need in self.needs if need not in has), "")


def kill_backends(scene: Scene) -> None:
    """End every session of the application, once a second."""
    with scene.admin() as cursor:
        until = time.monotonic() + scene.seconds
        while True:
            scene.end_sessions(cursor)
            if time.monotonic() + _ONCE_S > until:
                return
            scene.wait(_ONCE_S)


def demote(scene: Scene) -> None:
    """Make every transaction read only, as on a primary that a failover has demoted."""

    def undo() -> None:
        with scene.admin() as cursor:
            cursor.execute("ALTER SYSTEM RESET default_transaction_read_only")
            cursor.execute("SELECT pg_reload_conf()")

    with undone(undo):
        with scene.admin() as cursor:
            cursor.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            cursor.execute("SELECT pg_reload_conf()")
        scene.wait(scene.seconds)


def restart(scene: Scene) -> None:
    """Restart the server: a fast shutdown ends every session."""
    _server_of(scene).restart()


def crash(scene: Scene) -> None:
    """Stop the server at once, and start it again after the time of the fault."""
    server = _server_of(scene)
    server.kill()
    scene.wait(scene.seconds)
    server.start()


def freeze(scene: Scene) -> None:
    """Let every process of the server stand still: connections stay open, and silent."""
    postmaster = psutil.Process(_server_of(scene).pid)
    stopped: list[psutil.Process] = []

    def thaw() -> None:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def stop(process: psutil.Process) -> None:
        stopped.append(process)
        with suppress(psutil.NoSuchProcess):
            process.suspend()
            # The signal is on its way for a moment.
            limit = time.monotonic() + _STOPS_WITHIN_S
            while process.status() not in _NOT_RUNNING and time.monotonic() < limit:
                time.sleep(0.001)

    with undone(thaw):
        # The postmaster first: from then on it starts no further process.
        stop(postmaster)
        for process in postmaster.children(recursive=True):
            stop(process)
        scene.wait(scene.seconds)


def fill_connections(scene: Scene) -> None:
    """End the application's sessions and take every connection that the server has."""
    taken: list[Any] = []

    def undo() -> None:
        for connection in taken:
            connection.close()

    def take() -> None:
        # The application may be quicker.
        with suppress(psycopg2.OperationalError):
            taken.append(
                psycopg2.connect(
                    scene.admin_url, connect_timeout=10, application_name=APPLICATION_NAME
                )
            )

    with scene.admin() as cursor, undone(undo):
        for _ in range(_FILLED_ROUNDS):
            scene.end_sessions(cursor)
            # A superuser could take the reserved ones too, and lock out the database's owner.
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for _ in range(_free_connections(cursor)):
                    pool.submit(take)
        scene.wait(scene.seconds)


def _free_connections(cursor: Any) -> int:
    cursor.execute(
        "SELECT sum(setting::int * CASE name WHEN 'max_connections' THEN 1 ELSE -1 END) "
        "- (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') "
        "FROM pg_settings WHERE name IN "
        "('max_connections', 'superuser_reserved_connections', 'reserved_connections')"
    )
    (free,) = cursor.fetchone()
    return int(free)


def lock_table(scene: Scene) -> None:
    """Lock the tables of the load, as a migration does: each statement on them waits."""
    with scene.admin() as cursor, undone(lambda: cursor.execute("ROLLBACK")):
        cursor.execute("BEGIN")
        cursor.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'")
        for table in scene.tables:
            cursor.execute(
                sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(
                    sql.Identifier(*table.split("."))
                )
            )
        scene.wait(scene.seconds)


def change_password(scene: Scene) -> None:
    """Change the role's password and end its sessions; after the fault the old one is valid again."""
    role = sql.Identifier(scene.role)
    with scene.admin() as cursor:
        cursor.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (scene.role,))
        found = cursor.fetchone()
        if found is None or found[0] is None:
            raise DrillError(f"the role {scene.role} has no password that could be changed")

        def undo() -> None:
            # The stored form of a password is taken as it is (CREATE ROLE, PASSWORD).
            statement = sql.SQL("ALTER ROLE {} PASSWORD {}")
            cursor.execute(statement.format(role, sql.Literal(found[0])))

        with undone(undo):
            new = sql.Literal(secrets.token_urlsafe(24))
            cursor.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, new))
            scene.end_sessions(cursor)
            scene.wait(scene.seconds)


def black_hole(scene: Scene) -> None:
    """Pass nothing on between the application and the database, and close nothing."""
    network = _network_of(scene)
    with undone(network.restore):
        network.go_silent()
        scene.wait(scene.seconds)


def dead_connections(scene: Scene) -> None:
    """Silence the open connections; new ones work."""
    network = _network_of(scene)
    with undone(network.restore):
        network.lose_connections()
        scene.wait(scene.seconds)


def slow_network(scene: Scene) -> None:
    """Delay everything between the application and the database."""
    network = _network_of(scene)
    with undone(network.restore):
        network.delay(_DELAY_S)
        scene.wait(scene.seconds)


def refuse(scene: Scene) -> None:
    """Reset the open connections and refuse new ones."""
    network = _network_of(scene)
    with undone(network.restore):
        network.refuse()
        scene.wait(scene.seconds)


@contextmanager
def with_standby(scene: Scene) -> Iterator[None]:
    """Let a hot standby follow the server; afterwards the server that was replaced is stopped."""
    primary = _server_of(scene)
    scene.standby = scene.parts.enter_context(primary.standby())
    yield
    if scene.server is not primary:
        primary.stop()


def failover(scene: Scene) -> None:
    """Promote the standby, and lead new connections to it.

    The server of before stays up and is read only, as after a failover of Aurora: connections to it
    look healthy. From then on the standby is the server of the drill.
    """
    standby = scene.standby
    assert standby is not None  # noqa: S101  (`with_standby` has started it)
    with scene.admin() as cursor:
        cursor.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        cursor.execute("SELECT pg_reload_conf()")
        # Transactions that had begun may still write. Only then has the standby everything.
        until = time.monotonic() + _LOCK_TIMEOUT_S
        while time.monotonic() < until:
            scene.wait(_LOOK_S)
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL")
            if cursor.fetchone() == (0,):
                break
    standby.wait_until_caught_up()
    standby.promote()
    scene.server = standby
    scene.admin_url = standby.admin_url(make_url(scene.admin_url).database or "", driver="")
    _network_of(scene).lead_to(standby.host, standby.port)


@contextmanager
def on_a_small_disk(scene: Scene) -> Iterator[None]:
    """Move the tables of the load to a small file system of their own."""
    server, supervisor = _server_of(scene), scene.supervisor
    assert supervisor is not None  # noqa: S101  (it is there with a server)
    folder = Path(tempfile.mkdtemp(prefix="poolkit-drill-"))
    account = server.account
    options = f"size={_DISK_BYTES},uid={account.uid},gid={account.gid},mode=0700"
    # A process mounts it and unmounts it at its end. So it goes even if the drill is killed.
    script = (
        'mount -t tmpfs -o "$2" tmpfs "$1" || exit 1\n'
        'trap \'umount -l "$1"; rmdir "$1"; exit\' TERM INT HUP\n'
        "echo mounted\n"
        "while :; do sleep 1 & wait $!; done\n"
    )
    try:
        supervisor.start(
            DISK,
            ["/bin/sh", "-c", script, "sh", str(folder), options],
            ready=HasLogged("^mounted$"),
        )
    except LocalStackError as error:
        folder.rmdir()
        raise DrillError(f"a small file system cannot be mounted: {error}") from None
    scene.disk = folder

    def move_back() -> None:
        with scene.admin() as cursor:
            for table in scene.tables:
                cursor.execute(_alter(table, sql.SQL("RESET (fillfactor)")))
            _move_tables(scene, cursor, "pg_default")
            cursor.execute(f"DROP TABLESPACE {DISK}")
        supervisor.stop(DISK)

    with undone(move_back):
        with scene.admin() as cursor:
            location = sql.Literal(str(folder))
            cursor.execute(sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(_DISK, location))
            cursor.execute(sql.SQL("GRANT CREATE ON TABLESPACE {} TO PUBLIC").format(_DISK))
            _move_tables(scene, cursor, DISK)
            for table in scene.tables:
                # Few rows fit on a page, so that soon a page is needed that the disk lacks.
                cursor.execute(_alter(table, sql.SQL("SET (fillfactor = 10)")))
        yield


def _alter(table: str, change: sql.Composable) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} {}").format(sql.Identifier(*table.split(".")), change)


def _move_tables(scene: Scene, cursor: Any, tablespace: str) -> None:
    move = sql.SQL("SET TABLESPACE {}").format(sql.Identifier(tablespace))
    for table in scene.tables:
        cursor.execute(_alter(table, move))


def full_disk(scene: Scene) -> None:
    """Fill the file system of the tables: rows can be read, and no page can be added."""
    filler = scene.disk / "filler"
    with undone(lambda: filler.unlink(missing_ok=True)):
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        scene.wait(scene.seconds)


def no_files(scene: Scene) -> None:
    """Let the targets open no further file or socket, and end their sessions."""
    limits: list[tuple[psutil.Process, tuple[int, int]]] = []

    def undo() -> None:
        for process, limit in limits:
            with suppress(psutil.NoSuchProcess):
                process.rlimit(psutil.RLIMIT_NOFILE, limit)

    with undone(undo):
        for pid in scene.processes():
            with suppress(psutil.NoSuchProcess):
                first = psutil.Process(pid)
                for process in (first, *first.children(recursive=True)):
                    limit = process.rlimit(psutil.RLIMIT_NOFILE)
                    limits.append((process, limit))
                    # One more than the highest that is open: numbers in between may be free.
                    highest = max(
                        int(one.name) for one in Path(f"/proc/{process.pid}/fd").iterdir()
                    )
                    process.rlimit(psutil.RLIMIT_NOFILE, (highest + 1, limit[1]))
        with scene.admin() as cursor:
            scene.end_sessions(cursor)
        scene.wait(scene.seconds)


FAULTS: tuple[Fault, ...] = (
    Fault(
        name="kill_backends",
        does="ends every database session of the application, once a second",
        needs=("database",),
        run=kill_backends,
    ),
    Fault(
        name="demote",
        does="makes the server read-only, like the old primary after a failover",
        needs=("superuser",),
        run=demote,
    ),
    Fault(
        name="restart",
        does="restarts the server (fast shutdown)",
        needs=("server",),
        run=restart,
    ),
    Fault(
        name="crash",
        does="stops the server at once, and starts it again later",
        needs=("server",),
        run=crash,
    ),
    Fault(
        name="freeze",
        does="suspends the server's processes (SIGSTOP)",
        needs=("server",),
        run=freeze,
    ),
    Fault(
        name="fill_connections",
        does="ends the application's sessions, and opens all connections",
        needs=("database",),
        run=fill_connections,
    ),
    Fault(
        name="lock_table",
        does="locks the tables of the load (ACCESS EXCLUSIVE)",
        needs=("database", "table"),
        run=lock_table,
    ),
    Fault(
        name="change_password",
        does="changes the password of the application's role",
        needs=("superuser",),
        run=change_password,
    ),
    Fault(
        name="black_hole",
        does="the network passes no data on, and closes no connection",
        needs=("network",),
        run=black_hole,
    ),
    Fault(
        name="dead_connections",
        does="the network passes no data on for open connections only",
        needs=("network",),
        run=dead_connections,
    ),
    Fault(
        name="slow_network",
        does=f"the network delays all data by {_DELAY_S * 1000:g} ms in each direction",
        needs=("network",),
        run=slow_network,
    ),
    Fault(
        name="refuse",
        does="the network resets open connections and refuses new ones",
        needs=("network",),
        run=refuse,
    ),
    Fault(
        name="full_disk",
        does="fills the file system of the load's tables",
        needs=("server", "table", "root"),
        run=full_disk,
        around=on_a_small_disk,
    ),
    Fault(
        name="no_files",
        does="the targets can open no further file or socket",
        needs=("database", "processes"),
        run=no_files,
    ),
    # The last one: it replaces the server.
    Fault(
        name="failover",
        does="promotes a hot standby; the old server runs on, read-only",
        needs=("server", "network"),
        run=failover,
        around=with_standby,
    ),
)


def _server_of(scene: Scene) -> EmbeddedPostgres:
    assert scene.server is not None  # noqa: S101  (a fault runs only if `missing` is empty)
    return scene.server


def _network_of(scene: Scene) -> Network:
    assert scene.network is not None  # noqa: S101  (as above)
    return scene.network


@contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """Call `undo` at the end of the block, and let neither Ctrl-C nor SIGTERM interrupt it."""
    try:
        yield
    finally:
        with signals_wait():
            undo()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
