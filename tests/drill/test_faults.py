"""Each fault of a drill on a real PostgreSQL: it is felt while it lasts, and is undone."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import psutil
import psycopg2
import pytest
from processes import wait_until

from poolkit.drill.faults import FAULTS, Fault, Scene
from poolkit.errors import DrillError, ServerStartError
from poolkit.local.network import Network
from poolkit.local.postgres import EmbeddedPostgres
from poolkit.local.processes import Supervisor

BY_NAME = {fault.name: fault for fault in FAULTS}


@dataclass
class Stage:
    """A server behind a network, and the application's way to it."""

    server: EmbeddedPostgres
    network: Network
    scene: Scene
    during: list[Any] = field(default_factory=list)

    def connect(self, timeout_s: int = 60) -> Any:
        url = self.server.url(driver="").replace(f":{self.server.port}/", f":{self.network.port}/")
        connection = psycopg2.connect(url, connect_timeout=timeout_s)
        connection.autocommit = True
        return connection

    def query(self, text: str = "SELECT 1", timeout_s: int = 60) -> Any:
        with contextlib.closing(self.connect(timeout_s)) as connection:
            cursor = connection.cursor()
            cursor.execute(text)
            return cursor.fetchone() if cursor.description else None

    def make(
        self, name: str, look: Callable[[], Any], *, before: Callable[[], Any] = lambda: None
    ) -> Any:
        """Make a fault; return what `look` returns, or the error that it raises, meanwhile."""

        def wait(_: float) -> None:
            try:
                self.during.append(look())
            except (psycopg2.Error, DrillError) as error:
                self.during.append(error)

        self.scene.wait = wait
        fault = BY_NAME[name]
        assert not fault.missing(self.scene.has)
        with fault.around(self.scene):
            before()
            fault.run(self.scene)
            assert self.query("INSERT INTO drilled (key) VALUES ('after') RETURNING key")
        return self.during[-1]


@pytest.fixture(scope="module")
def running(
    new_postgres: Callable[..., EmbeddedPostgres], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    with ExitStack() as parts:
        supervisor = parts.enter_context(Supervisor(tmp_path_factory.mktemp("log")))
        server = parts.enter_context(new_postgres(max_connections=20))
        network = parts.enter_context(Network(server.host, server.port))
        scene = Scene(
            seconds=0.1,
            admin_url=server.admin_url(driver=""),
            role="poolkit",
            tables=["drilled"],
            server=server,
            network=network,
            supervisor=supervisor,
            parts=parts,
        )
        stage = Stage(server, network, scene)
        stage.query("CREATE TABLE drilled (key text)")
        yield stage


@pytest.fixture
def stage(running: Stage) -> Stage:
    running.during.clear()
    return running


def test_every_fault_has_a_name_and_says_what_it_does():
    assert len(BY_NAME) == len(FAULTS)
    assert all(fault.does and not fault.does.endswith(".") for fault in FAULTS)


def test_killed_backends_are_gone_and_new_ones_work(stage):
    with contextlib.closing(stage.connect()) as connection:
        # It lasts one round, so it does not wait.
        BY_NAME["kill_backends"].run(stage.scene)
        with pytest.raises(psycopg2.OperationalError):
            connection.cursor().execute("SELECT 1")
    assert stage.query() == (1,)


def test_a_demoted_server_refuses_writes_until_the_fault_ends(stage):
    def write() -> None:
        # The server reads its settings again a moment after the call.
        while stage.query("INSERT INTO drilled VALUES ('x') RETURNING 1"):
            time.sleep(0.02)

    error = stage.make("demote", write)
    assert error.pgcode == "25006"


def test_a_crashed_server_is_away_and_comes_back(stage):
    assert isinstance(stage.make("crash", stage.query), psycopg2.OperationalError)


def test_a_restart_ends_connections(stage):
    with contextlib.closing(stage.connect()) as connection:
        BY_NAME["restart"].run(stage.scene)
        with pytest.raises(psycopg2.OperationalError):
            connection.cursor().execute("SELECT 1")
    assert stage.query() == (1,)


def test_a_frozen_server_answers_nothing_and_every_process_goes_on_afterwards(stage):
    def statuses() -> set[str]:
        postmaster = psutil.Process(stage.server.pid)
        found = set()
        for each in (postmaster, *postmaster.children(recursive=True)):
            # A backend of a moment ago may end meanwhile.
            with contextlib.suppress(psutil.NoSuchProcess):
                found.add(each.status())
        # One that ended before the freeze: the postmaster is too frozen to wait for it.
        return found - {psutil.STATUS_ZOMBIE}

    assert stage.make("freeze", statuses) == {psutil.STATUS_STOPPED}
    assert psutil.STATUS_STOPPED not in statuses()


def test_a_full_server_refuses_the_application_but_not_its_owner(stage):
    def refused() -> Exception:
        with stage.scene.admin() as cursor:
            cursor.execute("SELECT 1")
        with pytest.raises(psycopg2.OperationalError) as error:
            stage.query()
        return error.value

    # A backend that is still on its way out would leave its place free afterwards.
    with contextlib.closing(psycopg2.connect(stage.scene.admin_url)) as watching:
        watching.autocommit = True
        cursor = watching.cursor()

        def alone() -> bool:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            )
            return bool(cursor.fetchone() == (1,))

        error = stage.make(
            "fill_connections", refused, before=lambda: wait_until(alone, "the others' end")
        )
    assert isinstance(error, psycopg2.OperationalError), error
    assert "connection slots are reserved" in str(error) or "too many clients" in str(error)


def test_a_locked_table_makes_statements_wait_and_is_free_afterwards(stage):
    error = stage.make("lock_table", lambda: stage.query("SET lock_timeout = 50; TABLE drilled"))
    assert error.pgcode == "55P03"


def test_a_changed_password_is_refused_and_valid_again_afterwards(stage):
    with contextlib.closing(stage.connect()) as connection:
        error = stage.make("change_password", stage.query)
        assert "password authentication failed" in str(error)
        with pytest.raises(psycopg2.OperationalError):
            connection.cursor().execute("SELECT 1")


@pytest.mark.parametrize("name", ["black_hole", "refuse"])
def test_without_a_network_no_connection_is_made(stage, name):
    assert isinstance(stage.make(name, lambda: stage.query(timeout_s=2)), psycopg2.OperationalError)


def use(connection: Any) -> None:
    with contextlib.suppress(psycopg2.Error):
        connection.cursor().execute("SELECT 1")


def test_dead_connections_are_silent_and_new_ones_work(stage):
    with contextlib.closing(stage.connect()) as connection:

        def silent() -> bool:
            thread = threading.Thread(target=use, args=(connection,), daemon=True)
            thread.start()
            thread.join(0.3)
            return thread.is_alive() and stage.query() == (1,)

        assert stage.make("dead_connections", silent) is True


def test_a_slow_network_is_slow_and_fast_again(stage):
    def took() -> float:
        began = time.monotonic()
        stage.query()
        return time.monotonic() - began

    assert stage.make("slow_network", took) > 1


def test_on_a_full_disk_rows_are_read_but_not_written(stage):
    reason = BY_NAME["full_disk"].missing(stage.scene.has)
    if reason:
        pytest.skip(reason)

    def write() -> None:
        stage.query("SELECT count(*) FROM drilled")
        for _ in range(1000):
            stage.query("INSERT INTO drilled SELECT repeat('x', 500) FROM generate_series(1, 50)")

    try:
        error = stage.make("full_disk", write)
    except DrillError as failure:
        pytest.skip(str(failure))
    assert error.pgcode == "53100"
    wait_until(lambda: not stage.scene.disk.exists(), "the file system is unmounted")
    assert stage.query("SELECT reltablespace FROM pg_class WHERE relname = 'drilled'") == (0,)


def test_an_undo_is_made_even_if_the_wait_is_interrupted(stage):
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    stage.scene.wait = interrupted
    for name in ("demote", "freeze", "lock_table", "change_password", "refuse"):
        with pytest.raises(KeyboardInterrupt):
            BY_NAME[name].run(stage.scene)
    wait_until(
        lambda: stage.query("SHOW default_transaction_read_only") == ("off",), "writes are allowed"
    )
    assert stage.query("INSERT INTO drilled VALUES ('again') RETURNING 1") == (1,)


def test_a_fault_whose_needs_are_not_met_says_so(stage):
    bare = Scene(seconds=0.1)
    for fault in FAULTS:
        assert fault.missing(bare.has), fault.name
    ordinary = Scene(seconds=0.1, admin_url=stage.server.url(driver=""), role="poolkit")
    possible = {fault.name for fault in FAULTS if not fault.missing(ordinary.has)}
    assert possible == {"kill_backends", "fill_connections"}


def test_a_failover_leads_new_connections_to_the_promoted_standby(stage):
    """The last test of the server: it is replaced."""
    fault: Fault = BY_NAME["failover"]
    stage.query("INSERT INTO drilled VALUES ('before')")
    stage.scene.wait = time.sleep
    with fault.around(stage.scene), contextlib.closing(stage.connect()) as old:
        fault.run(stage.scene)
        cursor = old.cursor()
        cursor.execute("SELECT 1")
        with pytest.raises(psycopg2.Error) as error:
            cursor.execute("INSERT INTO drilled VALUES ('too late')")
        assert error.value.pgcode == "25006"
        assert stage.query("INSERT INTO drilled VALUES ('after') RETURNING 1") == (1,)
    assert stage.query("SELECT count(*) > 0 FROM drilled WHERE key = 'before'") == (True,)
    with pytest.raises(ServerStartError):
        _ = stage.server.pid
