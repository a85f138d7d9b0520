"""Patience with a server that is full or starting, and none with a wrong password."""

import asyncio
import os
import signal
import threading
import time
from contextlib import ExitStack

import asyncpg
import psycopg2
import pytest
from driving import PRESETS_DRIVERS, Clock
from processes import wait_until
from programs import needs_pgbouncer
from sqlalchemy.exc import DBAPIError

from poolkit.config import presets
from poolkit.local.pgbouncer import EmbeddedPgBouncer

# SQLAlchemy 2.0 does not wrap what asyncpg raises while it connects.
REFUSED = (DBAPIError, asyncpg.PostgresError)
# Of the server's ten, three are kept for superusers.
SLOTS = 7


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
        while len(connections) < SLOTS:
            # The backends of an earlier test may still be about to end.
            connections.append(wait_until(lambda: _connected(small_server)))
            held.callback(connections[-1].close)
        assert _connected(small_server) is None
        yield small_server, connections


def _connected(server):
    """Connect, or give None where there is no room."""
    try:
        return psycopg2.connect(server.url(driver=""))
    except psycopg2.OperationalError as error:
        if presets.classify_connect_failure(error) != "full":
            raise
        return None


@pytest.fixture
def when_refused(monkeypatch):
    """Have something done once an attempt was refused; give the pauses between attempts, in s."""
    pauses, real = [], presets._sleep

    def arrange(act=lambda: None):
        def sleep(dialect, seconds):
            pauses.append(seconds)
            if len(pauses) == 1:
                act()
            real(dialect, seconds)

        monkeypatch.setattr(presets, "_sleep", sleep)
        return pauses

    return arrange


@PRESETS_DRIVERS
def test_a_slot_that_becomes_free_in_time_is_taken(full_server, make_client, when_refused):
    """A connect to a full server is tried again until connect_timeout; the caller sees no error."""
    server, connections = full_server
    client = make_client(server.url())
    pauses = when_refused(connections[0].close)
    assert client.scalar("SELECT 1") == 1
    assert pauses


@pytest.fixture
def clock(monkeypatch):
    """Have pauses end at once, and remember them."""
    clock = Clock()
    monkeypatch.setattr(presets, "time", clock)
    monkeypatch.setattr(presets, "_sleep", clock.sleep)
    return clock


@PRESETS_DRIVERS
def test_a_server_that_stays_full_is_the_original_error(full_server, make_client, clock):
    """At the end of connect_timeout, and not before, the server's own words are raised."""
    server, _ = full_server
    client = make_client(server.url(), connect_timeout=20)
    began = clock.monotonic()
    with pytest.raises(REFUSED, match=r"too many clients|slots are reserved"):
        client.scalar("SELECT 1")
    # The last pause, of a second at most, would have been too long.
    assert clock.monotonic() - began > 18.9
    assert sum(clock.pauses) < 20


@pytest.mark.parametrize("driver", ["psycopg2"])
def test_pauses_are_random_below_a_bound_that_doubles(full_server, make_client, clock):
    """Full jitter: what was refused together does not come back together, or in a rush."""
    server, _ = full_server
    client = make_client(server.url(), connect_timeout=20)
    with pytest.raises(REFUSED):
        client.scalar("SELECT 1")
    for number, pause in enumerate(clock.pauses):
        assert 0 <= pause <= min(0.05 * 2**number, 1)
    assert len(set(clock.pauses)) == len(clock.pauses) > 1
    assert max(clock.pauses) > 0.05


@PRESETS_DRIVERS
def test_attempts_share_one_deadline(full_server, make_client, make_proxy, clock, monkeypatch):
    """A server that is silent after a refusal has what is left, and the refusal is the error."""
    server, _ = full_server
    proxy = make_proxy(server.port)
    url = server.url().replace(f":{server.port}/", f":{proxy.port}/")

    def sleep(dialect, seconds):
        proxy.flowing.clear()
        clock.sleep(dialect, 98)

    monkeypatch.setattr(presets, "_sleep", sleep)
    client = make_client(url, connect_timeout=100)
    began = time.monotonic()
    with pytest.raises(REFUSED, match=r"too many clients|slots are reserved"):
        client.scalar("SELECT 1")
    assert clock.pauses == [98]
    assert time.monotonic() - began < 50


@PRESETS_DRIVERS
def test_a_limit_of_the_callers_own_is_the_budget(full_server, make_client, clock):
    """`connect_timeout` in the URL wins over the preset, for all attempts together."""
    server, _ = full_server
    client = make_client(f"{server.url()}?connect_timeout=30", connect_timeout=1)
    with pytest.raises(REFUSED, match=r"too many clients|slots are reserved"):
        client.scalar("SELECT 1")
    assert 1 < clock.ahead < 30


def test_without_retry_a_full_server_is_an_error_at_once(full_server, make_client, when_refused):
    """`retry_connect=False` leaves the decision to the caller."""
    server, _ = full_server
    client = make_client(server.url(), retry_connect=False)
    pauses = when_refused()
    with pytest.raises(REFUSED, match=r"too many clients|slots are reserved"):
        client.scalar("SELECT 1")
    assert pauses == []


@pytest.mark.parametrize(
    "driver", ["asyncpg", pytest.param("psycopg_async", marks=pytest.mark.slow)]
)
def test_waiting_for_a_slot_does_not_stop_the_loop(full_server, make_client, monkeypatch):
    """Other tasks run while one waits between two attempts."""
    server, connections = full_server
    client = make_client(server.url())
    turns, meanwhile, real = [], [], presets._sleep

    def sleep(dialect, seconds):
        before = len(turns)
        real(dialect, seconds)
        meanwhile.append(len(turns) - before)
        if len(meanwhile) == 3:
            connections[0].close()

    async def other():
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    async def work():
        task = asyncio.create_task(other())
        async with client.engine.connect():
            task.cancel()

    monkeypatch.setattr(presets, "_sleep", sleep)
    client.runner.run(work())
    assert len(meanwhile) >= 3
    assert min(meanwhile) > 0


def test_a_role_at_its_connection_limit_is_waited_for(database, make_client, when_refused):
    """A limit of one role is SQLSTATE 53300 as well."""
    role = f"limited_{os.getpid()}"
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'of-this-test' CONNECTION LIMIT 1")
    url = f"postgresql+psycopg2://{role}:of-this-test@127.0.0.1:{database.server.port}/"
    try:
        only = psycopg2.connect((url + database.name).replace("+psycopg2", ""))
        client = make_client(url + database.name)
        pauses = when_refused(only.close)
        assert client.scalar("SELECT 1") == 1
        assert pauses
        client.dispose()
        database.wait_for_backends(0, "web")
    finally:
        database.execute(f"DROP ROLE {role}")


@PRESETS_DRIVERS
def test_a_server_that_is_starting_up_is_waited_for(small_server, make_client, when_refused):
    """SQLSTATE 57P03 while a standby is being promoted costs time, not an error."""
    data, account = small_server.log.parent / "data", small_server.account
    small_server.stop()
    (data / "standby.signal").touch()
    account.give(data / "standby.signal")
    starter = threading.Thread(target=small_server.start)
    starter.start()
    try:
        wait_until(lambda: "not accepting connections" in _refusal(small_server))
        client = make_client(small_server.url())
        pauses = when_refused(lambda: _promote(data, account, small_server))
        assert client.scalar("SELECT 1") == 1
        assert pauses
    finally:
        starter.join()


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
    monkeypatch.setattr(presets, "_sleep", lambda *_: pytest.fail("tried again"))
    url = database.url().replace(f":{database.server.password()}@", ":wrong@")
    client = make_client(url)
    with pytest.raises(REFUSED, match="password authentication failed"):
        client.scalar("SELECT 1")


@PRESETS_DRIVERS
@needs_pgbouncer
def test_a_full_pgbouncer_is_waited_for(postgres, tmp_path, make_client, when_refused):
    """PgBouncer's own limit has another message, and is treated alike."""
    with EmbeddedPgBouncer(postgres, tmp_path, max_client_connections=1) as bouncer:
        # Who asked whether it is ready may still be about to leave.
        only = wait_until(lambda: _connected(bouncer))
        client = make_client(bouncer.url(), transaction_pooling=True)
        pauses = when_refused(only.close)
        assert client.scalar("SELECT 1") == 1
        assert pauses
