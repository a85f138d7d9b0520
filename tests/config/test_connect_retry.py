"""Patience with a server that is full or starting, and none with a wrong password."""

import asyncio
import os
import signal
import threading
import time
from contextlib import ExitStack

import psycopg2
import pytest
from driving import PRESETS_DRIVERS, wait_until
from sqlalchemy.exc import DBAPIError

from poolkit.local.pgbouncer import EmbeddedPgBouncer, find_pgbouncer


@pytest.fixture(scope="module")
def small_server(new_postgres):
    """A server with ten connections, that can be kept from becoming ready."""
    settings = {"hot_standby": "off", "wal_level": "replica", "max_wal_senders": "0"}
    with new_postgres(max_connections=10, settings=settings) as server:
        yield server


@pytest.fixture
def full_server(small_server):
    """The same server, full; `closing` one of the connections frees a slot."""
    with ExitStack() as held:
        connections = []
        try:
            while True:
                connection = psycopg2.connect(small_server.url(driver=""))
                held.callback(connection.close)
                connections.append(connection)
        except psycopg2.OperationalError:
            assert 5 <= len(connections) <= 10
        yield small_server, connections


@PRESETS_DRIVERS
def test_a_slot_that_becomes_free_in_time_is_taken(full_server, make_client):
    """A full server is asked again until connect_timeout; the caller sees no error."""
    server, connections = full_server
    client = make_client(server.url(), connect_timeout=5)
    closer = threading.Timer(0.3, connections[0].close)
    closer.start()
    began = time.perf_counter()
    assert client.scalar("SELECT 1") == 1
    assert 0.25 < time.perf_counter() - began < 4
    closer.join()


@PRESETS_DRIVERS
def test_a_server_that_stays_full_is_the_original_error(full_server, make_client):
    """After about connect_timeout the server's own words are raised."""
    server, _ = full_server
    client = make_client(server.url(), connect_timeout=2)
    began = time.perf_counter()
    with pytest.raises(DBAPIError, match=r"too many clients|slots are reserved"):
        client.scalar("SELECT 1")
    assert 0.9 < time.perf_counter() - began < 6


def test_without_retry_a_full_server_is_an_error_at_once(full_server, make_client):
    """`retry_connect=False` leaves the decision to the caller."""
    server, _ = full_server
    client = make_client(server.url(), connect_timeout=10, retry_connect=False)
    began = time.perf_counter()
    with pytest.raises(DBAPIError, match=r"too many clients|slots are reserved"):
        client.scalar("SELECT 1")
    assert time.perf_counter() - began < 4


@pytest.mark.parametrize(
    "driver", ["asyncpg", pytest.param("psycopg_async", marks=pytest.mark.slow)]
)
def test_waiting_for_a_slot_does_not_stop_the_loop(full_server, make_client):
    """Other tasks run while one waits between two attempts."""
    server, _ = full_server
    client = make_client(server.url(), connect_timeout=2)

    async def work():
        gaps, task = [], asyncio.create_task(client.engine.connect().start())
        last = time.perf_counter()
        while not task.done():
            await asyncio.sleep(0.005)
            gaps.append(time.perf_counter() - last)
            last = time.perf_counter()
        with pytest.raises(DBAPIError):
            await task
        return gaps

    gaps = client.runner.run(work())
    assert len(gaps) > 50
    assert sorted(gaps)[len(gaps) // 2] < 0.05


def test_a_role_at_its_connection_limit_is_waited_for(database, make_client):
    """A limit of one role is SQLSTATE 53300 as well."""
    role = f"limited_{os.getpid()}"
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'of-this-test' CONNECTION LIMIT 1")
    url = f"postgresql+psycopg2://{role}:of-this-test@127.0.0.1:{database.server.port}/"
    try:
        only = psycopg2.connect((url + database.name).replace("+psycopg2", ""))
        client = make_client(url + database.name, connect_timeout=5)
        closer = threading.Timer(0.2, only.close)
        closer.start()
        assert client.scalar("SELECT 1") == 1
        closer.join()
        client.dispose()
        database.wait_for_backends(0, "web")
    finally:
        database.execute(f"DROP ROLE {role}")


@PRESETS_DRIVERS
def test_a_server_that_is_starting_up_is_waited_for(small_server, make_client):
    """SQLSTATE 57P03 while a standby is being promoted costs time, not an error."""
    data = small_server._started_server()._data
    account = small_server._started_server()._account
    small_server.stop()
    (data / "standby.signal").touch()
    account.give(data / "standby.signal")
    starter = threading.Thread(target=small_server.start)
    starter.start()
    try:
        wait_until(lambda: "not accepting connections" in _refusal(small_server), timeout_s=20)
        client = make_client(small_server.url(), connect_timeout=10)
        promoter = threading.Timer(0.3, _promote, [data, account, small_server])
        promoter.start()
        began = time.perf_counter()
        assert client.scalar("SELECT 1") == 1
        assert time.perf_counter() - began > 0.25
    finally:
        promoter.join()
        starter.join(60)


def _refusal(server):
    try:
        psycopg2.connect(server.url(driver="")).close()
    except psycopg2.OperationalError as error:
        return str(error)
    return ""


def _promote(data, account, server):
    (data / "promote").touch()
    account.give(data / "promote")
    os.kill(server.pid, signal.SIGUSR1)


def test_a_wrong_password_is_not_tried_again(database, make_client, monkeypatch):
    """Trying again cannot help, and could lock the account."""
    from poolkit.config import presets

    monkeypatch.setattr(presets, "_sleep", lambda *_: pytest.fail("tried again"))
    url = database.url().replace(f":{database.server.password()}@", ":wrong@")
    client = make_client(url, connect_timeout=5)
    with pytest.raises(DBAPIError, match="password authentication failed"):
        client.scalar("SELECT 1")


@PRESETS_DRIVERS
@pytest.mark.skipif(find_pgbouncer() is None, reason="no pgbouncer on PATH")
def test_a_full_pgbouncer_is_waited_for(postgres, tmp_path, make_client):
    """PgBouncer's own limit has another message, and is treated alike."""
    with EmbeddedPgBouncer(postgres, tmp_path, max_client_connections=1) as bouncer:
        only = psycopg2.connect(bouncer.url(driver=""))
        client = make_client(bouncer.url(), connect_timeout=5, transaction_pooling=True)
        closer = threading.Timer(0.3, only.close)
        closer.start()
        assert client.scalar("SELECT 1") == 1
        closer.join()
