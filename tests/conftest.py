"""What every test may ask for: a real PostgreSQL, databases of its own, nothing left behind."""

import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from hypothesis import HealthCheck, settings
from processes import CACHE, ROOT, wait_until
from psycopg2 import sql
from psycopg2.extras import RealDictCursor

from poolkit.local.broker import EmbeddedBroker
from poolkit.local.postgres import APP_ROLE, EmbeddedPostgres

# The same inputs in each run, on CI as here, and no limit that a busy machine would exceed. For
# others: --hypothesis-profile default
settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

# A shell has what it starts in the background ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SERVERS = frozenset(
    {"bare_runtime", "broker", "built", "moto_server", "new_postgres", "postgres", "reported"}
)
"""Fixtures that start a server or take seconds: a test that asks for one is not in the fast lane."""
STARTED = ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen")
"""What Python's audit hooks call the start of a process."""
SESSION_VARIABLE = "POOLKIT_TEST_SESSION"


def pytest_xdist_auto_num_workers() -> int:
    """Run one more test at a time than there are cores: most wait for a server."""
    return (os.cpu_count() or 1) + 1


OF_THE_SAMPLE = frozenset({"built", "migrated_template"})
"""Fixtures that are made of the sample: its package, its tables."""
# A project with a domain of its own may have deleted the sample, and kept its tests.
SAMPLE_IS_HERE = (ROOT / "articles").is_dir()
collect_ignore = [] if SAMPLE_IS_HERE else ["sample"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the sample, and those that start no process and no server.

    The latter are `pure`: `make test-fast` runs these. The former are skipped without the sample.
    """
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if ROOT / "tests/sample" in item.path.parents or not OF_THE_SAMPLE.isdisjoint(fixtures):
            item.add_marker(pytest.mark.sample)
        if item.get_closest_marker("sample") and not SAMPLE_IS_HERE:
            item.add_marker(pytest.mark.skip(reason="the sample was deleted"))
        others = any(map(item.get_closest_marker, ("alone", "process", "slow")))
        if not others and SERVERS.isdisjoint(fixtures):
            item.add_marker(pytest.mark.pure)


_starts: list[str] = []
"""The processes that the running test has started, by the name of the audit event."""
sys.addaudithook(lambda event, _: _starts.append(event) if event in STARTED else None)


@pytest.fixture(autouse=True)
def _pure_tests_start_no_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hold the tests of the fast lane to what the lane promises."""
    _starts.clear()
    yield
    if _starts and request.node.get_closest_marker("pure"):
        pytest.fail(
            f"starts a process ({_starts[0]}), which a test of the fast lane does not:"
            " mark the test, or its module, with pytest.mark.process"
        )


def _started_by(session: str) -> list[psutil.Process]:
    """Find what this test session started and what that started in turn."""
    children = set(psutil.Process().children(recursive=True))
    for process in psutil.process_iter():
        try:
            if process.environ().get(SESSION_VARIABLE) == session:
                children.add(process)
        except (psutil.Error, OSError):
            continue
    children.discard(psutil.Process())
    return [process for process in children if not _is_harmless(process)]


def _is_harmless(process: psutil.Process) -> bool:
    """Tell whether it has ended, or is Python's own tracker of shared memory."""
    try:
        return (
            process.status() == psutil.STATUS_ZOMBIE
            or "multiprocessing.resource_tracker" in " ".join(process.cmdline())
        )
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(autouse=True)
def _no_unit_of_an_earlier_test() -> None:
    """Begin each test outside any unit of work: all tests of a process share one context."""
    if (holds := sys.modules.get("poolkit.config.holds")) is not None:
        holds._unit.set(None)


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Fail the session if a process that a test started still runs at its end."""
    session = secrets.token_hex(8)
    os.environ[SESSION_VARIABLE] = session
    yield
    deadline = time.monotonic() + 30
    while (left := _started_by(session)) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=0.2)
    del os.environ[SESSION_VARIABLE]
    assert not left, f"processes left by the tests: {[_named(process) for process in left]}"


def _named(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())}"
    except psutil.Error:
        return f"{process.pid}, which has just ended"


@pytest.fixture(scope="session")
def new_postgres(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EmbeddedPostgres]:
    """Give a function that makes a PostgreSQL of a test's own, to be stopped and started."""

    def make(**options: Any) -> EmbeddedPostgres:
        directory = _fast_directory() or tmp_path_factory.mktemp("postgres")
        return EmbeddedPostgres(directory, durable=False, cache_dir=CACHE, **options)

    return make


@pytest.fixture(scope="session")
def postgres(new_postgres: Callable[..., EmbeddedPostgres]) -> Iterator[EmbeddedPostgres]:
    """One PostgreSQL for the session, with 100 connections; not durable, hence fast."""
    with new_postgres(settings={"max_wal_size": "128MB"}) as server:
        yield server


def _fast_directory() -> Path | None:
    """Find a file system in memory with room enough, where there is one.

    CREATE DATABASE copies 300 files: 25 ms there, 300 ms on a virtual disk.
    """
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30:
        return memory
    return None


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """One Valkey for the session; its queues are shared, so tests name their own."""
    with EmbeddedBroker(tmp_path_factory.mktemp("broker")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    """Serve AWS's APIs once, for it takes half a second to stop; give the address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def served_aws(moto_server: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Give an AWS with nothing in it: boto3 finds it, and other processes do by these variables."""
    reset = urllib.request.Request(f"{moto_server}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=60).close()
    variables = {
        "AWS_ENDPOINT_URL": moto_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def data_path(tmp_path: Path) -> Iterator[Path]:
    """Give a folder for servers' files, in memory where that is possible."""
    if (memory := _fast_directory()) is None:
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(prefix="poolkit-test-", dir=memory))
    path.chmod(0o755)  # the account that runs PostgreSQL under root has to reach it
    yield path
    shutil.rmtree(path)


@dataclass(frozen=True, kw_only=True)
class Database:
    """A database of one test's own; its owner is the application's role."""

    name: str
    server: EmbeddedPostgres = field(repr=False)

    def url(self, driver: str = "psycopg2") -> str:
        return self.server.url(self.name, driver)

    def admin_url(self, driver: str = "psycopg2") -> str:
        return self.server.admin_url(self.name, driver)

    def monitor_url(self, driver: str = "psycopg2") -> str:
        """Return the URL of the role that has pg_monitor alone."""
        return self.server.monitor_url(self.name, driver)

    @contextmanager
    def connect(self) -> Iterator[Any]:
        """Give a psycopg2 connection of the superuser, in autocommit, closed afterwards."""
        with _connect(self.server, self.name) as connection:
            yield connection

    def execute(self, statement: str, *parameters: Any) -> list[dict[str, Any]]:
        """Run one statement as the superuser over a new connection; return its rows."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return [] if cursor.description is None else [dict(row) for row in cursor]

    def backends(self, application_name_prefix: str = "") -> list[dict[str, Any]]:
        """Return this database's clients in pg_stat_activity, the asking one excepted.

        Autovacuum comes by whenever it wants to.
        """
        return self.execute(
            "SELECT * FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND starts_with(application_name, %s)",
            application_name_prefix,
        )

    def terminate_backends(self) -> None:
        """End every backend but the asking one, and wait until they have."""
        # pg_terminate_backend's own wait looks every 100 ms.
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        self.wait_for_backends(0)

    def wait_for_backends(
        self, count: int, application_name_prefix: str = "", timeout_s: float = 60.0
    ) -> list[dict[str, Any]]:
        """Wait until there are so many: a closed connection's backend takes a moment to end."""
        found: list[dict[str, Any]] = []

        def are_there() -> bool:
            found[:] = self.backends(application_name_prefix)
            return len(found) == count

        wait_until(are_there, lambda: f"{count} backends; found {found}", timeout_s)
        return found

    def wait_for_lock(self, application_name_prefix: str = "") -> dict[str, Any]:
        """Wait until a backend waits for a lock, and return the first that does."""

        def waiting() -> list[dict[str, Any]]:
            found = self.backends(application_name_prefix)
            return [backend for backend in found if backend["wait_event_type"] == "Lock"]

        return wait_until(waiting, "a backend that waits for a lock")[0]

    def abandoned(self) -> int:
        """Return how many sessions ended because their client was gone, without a goodbye.

        A backend counts its session before it leaves pg_stat_activity.
        """
        (row,) = self.execute(
            "SELECT sessions_abandoned FROM pg_stat_database WHERE datname = current_database()"
        )
        return int(row["sessions_abandoned"])


@contextmanager
def _connect(server: EmbeddedPostgres, database: str = "postgres") -> Iterator[Any]:
    connection = psycopg2.connect(
        server.admin_url(database, driver=""), cursor_factory=RealDictCursor, connect_timeout=60
    )
    try:
        connection.autocommit = True
        yield connection
    finally:
        connection.close()


@dataclass(frozen=True)
class Administration:
    """Makes databases of a server, over one connection that is kept.

    A backend that has made one before needs a third of the time for the next.
    """

    server: EmbeddedPostgres
    connection: Any

    @contextmanager
    def new_database(self, template: str) -> Iterator[Database]:
        """Make a database from a template and drop it afterwards, with its connections."""
        name = f"test_{secrets.token_hex(6)}"
        self._execute(
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(APP_ROLE), sql.Identifier(template)
            )
        )
        try:
            yield Database(name=name, server=self.server)
        finally:
            self._execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def _execute(self, statement: sql.Composed) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(statement)


@pytest.fixture(scope="session")
def administration(postgres: EmbeddedPostgres) -> Iterator[Administration]:
    with _connect(postgres) as connection:
        yield Administration(postgres, connection)


@pytest.fixture
def database(administration: Administration) -> Iterator[Database]:
    with administration.new_database("template0") as database:
        yield database


@pytest.fixture(scope="session")
def migrated_template(administration: Administration) -> Iterator[str]:
    """Migrate one database, once, for `migrated_database` to copy."""
    from poolkit.alembic import Scripts

    with administration.new_database("template0") as template:
        Scripts(ROOT / "articles/migrations").upgrade(template.url())
        template.wait_for_backends(0)
        yield template.name


@pytest.fixture
def migrated_database(administration: Administration, migrated_template: str) -> Iterator[Database]:
    """Give a database of the test's own that has the sample domain's tables."""
    with administration.new_database(migrated_template) as database:
        yield database


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment without any package, as a user's has no poolkit."""
    folder = tmp_path_factory.mktemp("environment") / "bare"
    venv.create(folder, symlinks=True, with_pip=False)
    return folder / "bin" / "python"
