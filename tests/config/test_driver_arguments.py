"""Each driver really takes the preset's arguments, and they are in force on server and socket."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from driving import DRIVERS, Client
from processes import wait_until
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from poolkit.config.presets import fileno_of, preset

# No target has a null pool and an event loop.
EACH_POOL = pytest.mark.parametrize(
    ("driver", "pool"),
    [*((driver, "queue") for driver in DRIVERS), ("psycopg2", "null"), ("psycopg", "null")],
)


@EACH_POOL
def test_the_servers_timeouts_are_in_force(database, make_client, pool):
    """The server reports the preset's limits for the connection."""
    limits = {"statement_timeout": 4_321, "idle_in_transaction_session_timeout": 5_432}
    limits["idle_session_timeout"] = 65_432
    client = make_client(database.url(), pool=pool, **limits)
    assert {name: client.scalar(f"SHOW {name}") for name in limits} == {
        name: f"{value}ms" for name, value in limits.items()
    }


@pytest.mark.parametrize("where", ["url", "connect_args"])
def test_options_of_ones_own_leave_the_timeouts_in_force(database, make_client, driver, where):
    """A search path does not remove the limits; a limit given there is the one that counts."""
    url, options = database.url(), {}
    if where == "url":
        given = "-c%20search_path%3Dmine%20-c%20idle_session_timeout%3D7654"
        url = f"{url}?options={given}"
    elif driver == "asyncpg":
        given = {"search_path": "mine", "idle_session_timeout": "7654"}
        options = {"connect_args": {"server_settings": given}}
    else:
        given = "-c search_path=mine -c idle_session_timeout=7654"
        options = {"connect_args": {"options": given}}
    limits = {"statement_timeout": 43_210, "idle_session_timeout": 65_432}
    client = make_client(url, options=options, **limits)
    assert client.scalar("SHOW search_path") == "mine"
    assert client.scalar("SHOW statement_timeout") == "43210ms"
    assert client.scalar("SHOW idle_in_transaction_session_timeout") == "30s"
    assert client.scalar("SHOW idle_session_timeout") == "7654ms"
    assert client.scalar("SHOW application_name").startswith("web")


def test_the_server_ends_a_long_statement(database, make_client):
    """A statement that exceeds `statement_timeout` fails with SQLSTATE 57014."""
    client = make_client(database.url(), statement_timeout=100)
    # With such a limit, a machine that stands still may end the shortest statement, too.
    wait_until(lambda: _if_in_time(client, "SELECT 1") == 1)
    with pytest.raises(DBAPIError, match="statement timeout"):
        client.scalar("SELECT pg_sleep(60)")
    wait_until(lambda: _if_in_time(client, "SELECT 1") == 1)


def _if_in_time(client, statement):
    try:
        return client.scalar(statement)
    except DBAPIError as error:
        if "statement timeout" not in str(error):
            raise
        return None


def test_the_server_shows_who_is_connected(database, make_client):
    """pg_stat_activity has the application's name."""
    client = make_client(database.url(), options={"application_name": "web:here"})
    client.scalar("SELECT 1")
    assert [row["application_name"] for row in database.backends("web:")] == ["web:here"]


@EACH_POOL
def test_the_socket_has_keepalives_and_a_user_timeout(database, make_client, pool):
    """The kernel reports the preset's TCP limits for the connection's socket."""
    limits = {"keepalives_idle": 31, "keepalives_interval": 11, "keepalives_count": 4}
    client = make_client(database.url(), pool=pool, tcp_user_timeout=32_000, **limits)

    def options(connection):
        number = fileno_of(connection.connection.dbapi_connection)
        plug = socket.socket(fileno=number)
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        found = [plug.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
        found.append(plug.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        plug.detach()
        return found

    assert client.run(options) == [31, 11, 4, 32_000, 1]


@pytest.mark.parametrize(
    ("asked", "opened"), [({}, 0), ({"pool_size": 3, "prewarm": 3}, 3), ({"fail_fast": True}, 1)]
)
def test_a_start_opens_the_connections_that_the_preset_asks_for(
    database, make_client, asked, opened
):
    """Prewarmed ones are held together, so that they differ; `fail_fast` makes sure of one."""
    client = make_client(database.url(), **asked)
    assert client.start() == len(database.backends("web")) == opened
    assert (client.pool.checkedin(), client.pool.checkedout()) == (opened, 0)


def test_a_start_without_a_database_is_an_error_if_it_must_not_fail_later(make_client):
    """With `fail_fast` the start ends with the driver's error; prewarming alone lets it go on."""
    nowhere = "postgresql+psycopg2://me:x@127.0.0.1:1/d"
    with pytest.raises((DBAPIError, OSError), match=r"refused|Connect call failed"):
        make_client(nowhere, fail_fast=True).start()
    assert make_client(nowhere, prewarm=2).start() == 0


def test_the_options_are_plain_sqlalchemy(database):
    """`engine_options` is enough for SQLAlchemy's own create_engine."""
    from sqlalchemy import create_engine

    p = preset("web", "prod")
    engine = create_engine(p.url(database.url()), **p.engine_options(database.url()))
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) == "15s"
    assert (engine.pool.size(), engine.pool._pre_ping, engine.pool._recycle) == (20, True, 3600)
    engine.dispose()


def test_further_options_win(database):
    """What the caller passes to `create_engine` overrules the preset, argument by argument."""
    engine = preset("web").create_engine(
        database.url(), echo=False, pool_size=3, connect_args={"connect_timeout": 9}
    )
    with engine.connect() as connection:
        parameters = connection.connection.dbapi_connection.get_dsn_parameters()
    assert (engine.pool.size(), parameters["connect_timeout"]) == (3, "9")
    assert parameters["keepalives_idle"] == "30"
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        *("sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?cache=shared&uri=true"),
        "sqlite:///file:any?mode=memory&uri=true",
    ],
)
def test_sqlite_in_memory_is_one_database_for_all_threads(url):
    """One connection serves every thread: a second one would see an empty database."""
    engine = preset("web", "prod").create_engine(url)
    assert isinstance(engine.pool, StaticPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t AS SELECT 42 AS n"))
    assert _in_another_thread(engine, "SELECT n FROM t") == 42
    engine.dispose()


def test_a_sqlite_file_has_a_connection_for_each_checkout(tmp_path):
    """Two checkouts of a file are two connections, and another thread may use either."""
    engine = preset("web", "prod").create_engine(f"sqlite:///{tmp_path}/file.db")
    with engine.connect() as one, engine.connect() as two:
        assert one.connection.dbapi_connection is not two.connection.dbapi_connection
    assert _in_another_thread(engine, "SELECT 1") == 1
    engine.dispose()


def _in_another_thread(engine, statement):
    def scalar():
        with engine.connect() as connection:
            return connection.scalar(text(statement))

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(scalar).result()


@pytest.mark.parametrize("name", ["", "/file.db"])
def test_aiosqlite_in_memory_and_in_a_file(tmp_path, name):
    """The asynchronous driver takes the same arguments."""
    url = f"sqlite:///{tmp_path}{name}" if name else "sqlite://"
    client = Client(preset("web_async", "prod"), url)
    client.run(lambda connection: connection.execute(text("CREATE TABLE t AS SELECT 42 AS n")))
    assert client.scalar("SELECT n FROM t") == 42
    client.close()
