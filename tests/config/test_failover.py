"""A server that becomes read-only, a standby that is promoted, and a pool that is drained."""

import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import psycopg2
import pymysql
import pytest
from driving import PRESETS_DRIVERS, Client, Clock, small_preset
from processes import run, wait_until
from programs import needs_pgbouncer
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from poolkit import drain
from poolkit.config import presets
from poolkit.config.presets import classify_connect_failure
from poolkit.config.session import sqlstate, translate
from poolkit.errors import DatabaseUnavailable
from poolkit.local.pgbouncer import EmbeddedPgBouncer

pytestmark = pytest.mark.process
WRITE = "INSERT INTO written VALUES (1)"


class Servers:
    """A primary and its hot standby."""

    def __init__(self, primary, standby):
        self.primary, self.standby = primary, standby

    def execute(self, *statements):
        connection = psycopg2.connect(
            self.primary.admin_url(driver=""),
            options="-c default_transaction_read_only=off",
            connect_timeout=60,
        )
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
        connection.close()
        return rows

    @contextmanager
    def demoted(self, *, new_sessions_write):
        """Make the primary read-only while its sessions live on.

        A database's own setting decides for new sessions alone: they find another primary, so to say.
        """
        own = "off" if new_sessions_write else "on"
        self.execute(
            f"ALTER DATABASE poolkit SET default_transaction_read_only = {own}",
            "ALTER SYSTEM SET default_transaction_read_only = on",
            "SELECT pg_reload_conf()",
        )
        self.wait_for("on")
        try:
            yield
        finally:
            self.execute(
                "ALTER DATABASE poolkit RESET default_transaction_read_only",
                "ALTER SYSTEM RESET default_transaction_read_only",
                "SELECT pg_reload_conf()",
            )
            self.wait_for("off")

    def end_sessions(self):
        """End the application's sessions, and wait until who holds them can see that."""
        ended = self.execute(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'poolkit'"
        )
        # A backend leaves pg_stat_activity before it closes its connection.
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid, _ in ended), "the backends' end")

    def wait_for(self, setting):
        """Wait until the postmaster has read its configuration, and signalled its sessions."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            connection = psycopg2.connect(self.primary.admin_url("postgres", driver=""))
            found = connection.info.parameter_status("default_transaction_read_only")
            connection.close()
            if found == setting:
                return
            time.sleep(0.02)
        raise AssertionError(f"default_transaction_read_only never became {setting}")

    def url(self, *servers, query=""):
        hosts = "&".join(f"host=127.0.0.1:{server.port}" for server in servers)
        password = self.primary.password()
        return f"postgresql+psycopg2://poolkit:{password}@/poolkit?{hosts}{query}"


@pytest.fixture(scope="module")
def servers(new_postgres):
    with new_postgres() as primary:
        found = Servers(primary, primary.standby())
        found.execute("CREATE TABLE written (n int)", "GRANT ALL ON written TO poolkit")
        with found.standby:
            yield found


def write(connection):
    connection.execute(text(WRITE))


def attempt(client, work=write):
    """Return the error of a unit of work, None for success."""

    def commit(connection):
        work(connection)
        connection.commit()

    async def run():
        async with client.engine.connect() as connection:
            await connection.run_sync(commit)

    try:
        if client.runner is not None:
            client.runner.run(run())
        else:
            with client.engine.connect() as connection:
                commit(connection)
    except (DBAPIError, OSError) as error:  # asyncpg lets the operating system's own through
        return error
    return None


# -- a primary that is demoted while its sessions live on --------------------------------------


def test_a_write_that_a_demoted_server_refuses_is_the_last_one(make_client, servers):
    """It counts as a lost connection, and every older connection of the pool is replaced."""
    # Without pings, which would bring the news.
    client = make_client(servers.primary.url(), ping_after_idle=3600)
    before = two_connections(client)
    with servers.demoted(new_sessions_write=True):
        errors = [attempt(client) for _ in range(6)]
        refused = [error for error in errors if error is not None]
        assert len(refused) == 1
        assert isinstance(translate(refused[0]), DatabaseUnavailable)
        assert not before & two_connections(client)


def two_connections(client):
    """Check out both connections of the pool at once, and return their backends."""
    if client.runner is None:
        with client.engine.connect() as one, client.engine.connect() as other:
            return {each.scalar(text("SELECT pg_backend_pid()")) for each in (one, other)}

    async def ask():
        async with client.engine.connect() as one, client.engine.connect() as other:
            return {await each.scalar(text("SELECT pg_backend_pid()")) for each in (one, other)}

    return client.runner.run(ask())


@PRESETS_DRIVERS
def test_a_ping_brings_the_news_before_a_write_fails(make_client, servers):
    """The server reports that it is read-only with any answer, and the checkout reads it."""
    client = make_client(servers.primary.url(), ping_after_idle=0.001)
    assert attempt(client) is None
    with servers.demoted(new_sessions_write=True):
        assert [attempt(client) for _ in range(4)] == [None] * 4


@PRESETS_DRIVERS
def test_a_read_brings_the_news_before_a_write_fails(make_client, servers):
    client = make_client(servers.primary.url(), ping_after_idle=3600)
    before = two_connections(client)
    with servers.demoted(new_sessions_write=True):
        # One of the two has heard of it, and the other goes with it.
        client.scalar("SELECT 1")
        assert attempt(client) is None
        assert not before & two_connections(client)


def test_of_many_threads_only_those_in_flight_have_a_refused_write(servers):
    """Whatever is checked out after the first refusal is a new connection."""
    preset = small_preset("psycopg2", pool_size=8, ping_after_idle=3600)
    client = Client(preset, servers.primary.url())
    start = threading.Barrier(8)

    def writing(_):
        start.wait(60)
        return [attempt(client) for _ in range(20)]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(writing, range(8)))
        with servers.demoted(new_sessions_write=True):
            rows = list(threads.map(writing, range(8)))
    client.close()
    assert all(error is None for row in rows for error in row[1:])


def ask_for_read_only(connection):
    connection.execute(text("SET TRANSACTION READ ONLY"))
    write(connection)


def ask_by_option(connection):
    write(connection.execution_options(postgresql_readonly=True))


def begin_read_only(connection):
    connection.execution_options(isolation_level="AUTOCOMMIT")
    connection.exec_driver_sql("BEGIN READ ONLY")
    try:
        write(connection)
    finally:
        connection.exec_driver_sql("ROLLBACK")


def in_a_savepoint(connection):
    connection.execute(text("SET TRANSACTION READ ONLY"))
    with pytest.raises(DBAPIError), connection.begin_nested():
        write(connection)
    # The transaction goes on, as everywhere after a savepoint.
    assert connection.scalar(text("SELECT 42")) == 42
    write(connection)


@pytest.mark.parametrize(
    "work", [ask_for_read_only, ask_by_option, begin_read_only, in_a_savepoint]
)
def test_a_transaction_that_asked_for_read_only_keeps_its_error(make_client, servers, work):
    """It is a mistake of the program: no connection is lost, and no 503 hides it."""
    client = make_client(servers.primary.url(), pool_size=1)
    before = client.backend()
    error = attempt(client, work)
    assert error is not None
    assert not error.connection_invalidated
    assert translate(error) is None
    assert client.backend() == before
    assert attempt(client) is None


@PRESETS_DRIVERS
@pytest.mark.parametrize("way", ["url", "argument", "listener", "role"])
def test_an_engine_that_is_read_only_from_the_start_keeps_its_errors(
    make_client, servers, driver, way
):
    """Its URL, its arguments, a listener or its role asked for it; connecting is not refused."""
    url, arguments, changes = servers.primary.url(), {}, {}
    setting = {"default_transaction_read_only": "on"}
    if way == "url":
        url += "?options=-c%20default_transaction_read_only%3Don"
    elif way == "argument" and driver == "asyncpg":
        arguments = {"server_settings": setting}
    elif way == "argument":
        arguments = {"options": "-c default_transaction_read_only=on"}
    elif way == "role":
        servers.execute("ALTER ROLE poolkit SET default_transaction_read_only = on")
        changes = {"target_session_attrs": "any"}
    try:
        client = make_client(url, options={"connect_args": arguments}, pool_size=1, **changes)
        if way == "listener":
            event.listen(client.pool, "connect", read_only_session)
        before = client.backend()
        error = attempt(client)
        assert error is not None
        assert translate(error) is None
        assert client.backend() == before
    finally:
        servers.execute("ALTER ROLE poolkit RESET default_transaction_read_only")


def read_only_session(connection, record):
    cursor = connection.cursor()
    cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    cursor.close()
    connection.commit()


class SessionPooling(EmbeddedPgBouncer):
    """PgBouncer with a server connection for each client, as long as the client stays."""

    def _prepare(self, directory):
        answer = super()._prepare(directory)
        file = directory / "pgbouncer.ini"
        text = file.read_text().replace("pool_mode = transaction", "pool_mode = session")
        ignored = "options, statement_timeout, idle_in_transaction_session_timeout"
        file.write_text(text.replace("extra_float_digits\n", f"extra_float_digits, {ignored}\n"))
        return answer


@needs_pgbouncer
def test_a_pooler_s_outdated_report_hides_no_failover(servers, tmp_path_factory):
    """PgBouncer tells a new client what the server was once: the refused write counts."""
    state = tmp_path_factory.mktemp("pgbouncer")
    with SessionPooling(servers.primary, state) as pooler:
        first = Client(small_preset("psycopg2"), pooler.url())
        assert attempt(first) is None  # PgBouncer has heard that the server is writable
        first.close()
        with servers.demoted(new_sessions_write=False):
            servers.end_sessions()
            for driver in ("psycopg2", "psycopg", "asyncpg"):
                url = pooler.url().replace("psycopg2", driver)
                client = Client(small_preset(driver), url)
                error = attempt(client)
                client.close()
                assert sqlstate(error.orig) == "25006"
                assert isinstance(translate(error), DatabaseUnavailable)


@needs_pgbouncer
def test_a_pooler_s_outdated_report_refuses_no_connection(servers, tmp_path_factory):
    """PgBouncer goes on to say that the server is read-only, which it was at the first login."""
    with SessionPooling(servers.primary, tmp_path_factory.mktemp("pgbouncer")) as pooler:
        with servers.demoted(new_sessions_write=False):
            first = Client(small_preset("psycopg2", target_session_attrs="any"), pooler.url())
            assert attempt(first) is not None
            first.close()
        servers.end_sessions()
        for driver in ("psycopg2", "psycopg", "asyncpg"):
            client = Client(small_preset(driver), pooler.url().replace("psycopg2", driver))
            assert attempt(client) is None
            client.close()


# -- a standby, and its promotion --------------------------------------------------------------


@PRESETS_DRIVERS
def test_while_nobody_is_primary_connecting_waits_until_its_timeout(
    make_client, servers, monkeypatch
):
    """A standby is refused, because it is read-only, and asked again, because it may be promoted."""
    clock = Clock()
    monkeypatch.setattr(presets, "time", clock)
    monkeypatch.setattr(presets, "_sleep", clock.sleep)
    client = make_client(servers.standby.url(), connect_timeout=20, retry_connect=True)
    began = clock.monotonic()
    with pytest.raises(Exception, match=r"read-only|target attribute") as caught:
        client.scalar("SELECT 1")
    # The last pause, of a quarter of a second at most, would have been too long.
    assert clock.monotonic() - began > 19.7
    assert sum(clock.pauses) < 20
    assert classify_connect_failure(getattr(caught.value, "orig", caught.value)) == "read_only"


@PRESETS_DRIVERS
def test_a_service_may_be_pointed_at_a_standby_on_purpose(make_client, servers):
    """It reads there, and its writes are its own mistake."""
    for url, changes in (
        (servers.standby.url(), {"target_session_attrs": "any"}),
        (servers.standby.url() + "?target_session_attrs=any", {}),
    ):
        client = make_client(url, pool_size=1, **changes)
        before = client.backend()
        error = attempt(client)
        assert error is not None
        assert not error.connection_invalidated
        assert client.backend() == before


@PRESETS_DRIVERS
def test_writes_go_on_with_the_promoted_standby(make_client, new_postgres):
    """Both hosts stand in the URL; the connect that began before the promotion ends at it."""
    with new_postgres() as primary, primary.standby() as standby:
        servers = Servers(primary, standby)
        servers.execute("CREATE TABLE written (n int)", "GRANT ALL ON written TO poolkit")
        client = make_client(servers.url(primary, standby))
        assert attempt(client) is None
        standby.wait_until_caught_up()
        primary.kill()
        promoting = threading.Timer(0.5, standby.promote)
        promoting.start()
        deadline = time.monotonic() + 60
        errors = []
        while (error := attempt(client)) is not None:
            errors.append(error)
            assert time.monotonic() < deadline
        promoting.join()
        assert client.scalar("SELECT inet_server_port()") == standby.port
        assert all(isinstance(translate(error), DatabaseUnavailable) for error in errors)


# -- MySQL and MariaDB -------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["pymysql", "asyncmy"])
def test_a_mariadb_that_becomes_read_only_costs_one_write_and_no_other_option_does(mariadb, driver):
    """Error 1290 is that of several options, so the server is asked which one it was."""
    login = make_url(mariadb.url()).translate_connect_args(username="user")
    admin = pymysql.connect(**login).cursor()
    admin.execute("CREATE OR REPLACE TABLE written (n int)")
    # Without the privilege to write nevertheless.
    admin.execute(f"CREATE OR REPLACE USER writer@'%' IDENTIFIED BY '{login['password']}'")
    admin.execute(f"GRANT ALL ON {login['database']}.* TO writer@'%'")
    admin.execute("GRANT FILE ON *.* TO writer@'%'")
    preset = small_preset("asyncpg" if driver == "asyncmy" else "psycopg2")
    url = mariadb.url(driver).replace("//poolkit:", "//writer:")
    client = Client(preset.replace(driver=driver, ping_after_idle=3600), url)
    try:
        connection_id = "SELECT connection_id()"
        before = client.scalar(connection_id)
        admin.execute("SET GLOBAL read_only = 1")
        refused = attempt(client)
        admin.execute("SET GLOBAL read_only = 0")
        assert isinstance(translate(refused), DatabaseUnavailable)
        assert attempt(client) is None
        after = client.scalar(connection_id)
        assert after != before

        elsewhere = attempt(client, lambda c: c.execute(text("SELECT 1 INTO OUTFILE '/etc/x'")))
        assert elsewhere is not None
        assert not elsewhere.connection_invalidated
        assert client.scalar(connection_id) == after
    finally:
        admin.execute("SET GLOBAL read_only = 0")
        client.close()
        admin.connection.close()


# -- drain -------------------------------------------------------------------------------------


def test_drain_closes_idle_connections_now_and_busy_ones_on_return(make_client, servers):
    """No work fails meanwhile, and none is opened beyond the pool's limit."""
    client = make_client(servers.primary.url())
    before = two_connections(client)

    def drained(connection):
        held = connection.scalar(text("SELECT pg_backend_pid()"))
        drain_it(client)
        others = ",".join(map(str, before - {held}))
        alive = f"SELECT pid FROM pg_stat_activity WHERE pid IN ({others})"
        wait_until(lambda: not servers.execute(alive), "the idle connection to be closed")
        write(connection)

    assert attempt(client, drained) is None
    assert client.pool.checkedout() == 0
    after = two_connections(client)
    assert not before & after
    assert two_connections(client) == after  # and these stay


def drain_it(client):
    """Drain from within the connection's own work: of an AsyncEngine, that is in a greenlet."""
    if client.runner is None:
        drain(client.engine)
    else:
        await_only(drain(client.engine))


def test_drain_is_for_any_engine_and_also_after_dispose(servers):
    """A bare engine has no state of ours; its new pool is as new."""
    engine = create_engine(servers.primary.url(), pool_size=2, max_overflow=0)
    ask = text("SELECT pg_backend_pid()")

    def pid():
        with engine.connect() as connection:
            return connection.scalar(ask)

    first = pid()
    drain(engine.execution_options(isolation_level="AUTOCOMMIT"))
    second = pid()
    engine.dispose()
    with engine.connect() as connection:
        third = connection.scalar(ask)
        drain(engine)
    fourth = pid()
    assert len({first, second, third, fourth}) == 4
    assert pid() == fourth
    engine.dispose()
    drain(create_engine("sqlite://"))


def test_no_request_fails_while_the_pool_is_drained_again_and_again(servers):
    preset = small_preset("psycopg2", pool_size=3, max_overflow=1, pool_timeout=60)
    client = Client(preset, servers.primary.url())
    ended = threading.Event()

    def writing():
        return [attempt(client) for _ in range(40)]

    def draining():
        while not ended.wait(0.05):
            drain(client.engine)

    with ThreadPoolExecutor(7) as threads:
        drains = threads.submit(draining)
        rows = [threads.submit(writing) for _ in range(6)]
        try:
            errors = [error for row in rows for error in row.result()]
        finally:
            ended.set()
        drains.result()
    assert errors == [None] * 240
    assert client.pool.checkedout() == 0
    client.close()


def test_a_preset_s_copied_file_drains_too(servers, tmp_path):
    """The preset file works alone, with SQLAlchemy only."""
    copied = tmp_path / "copied_presets.py"
    shutil.copy(presets.__file__, copied)
    done = run(sys.executable, "-c", COPIED, servers.primary.url(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


COPIED = """
import sys
from copied_presets import drain, preset
engine = preset("web", "prod").replace(connect_timeout=60).create_engine(sys.argv[1])
ask = lambda: engine.connect().exec_driver_sql("SELECT pg_backend_pid()").scalar()
before = ask()
drain(engine)
assert ask() != before
"""
