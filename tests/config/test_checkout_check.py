"""The check at checkout: what it costs, what it sees, and how long it may take."""

import asyncio
import threading
import time
from contextlib import contextmanager

import pytest
from driving import PRESETS_DRIVERS, patient_driver, small_preset
from processes import wait_until
from sqlalchemy import event, text

from poolkit.config.presets import preset


def _terminate(database, pid):
    database.execute("SELECT pg_terminate_backend(%s, 60000)", pid)


@contextmanager
def _later(seconds):
    """Let the wall clock be ahead, which no pause of the machine can hide or imitate."""
    real = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + seconds)
        yield


def _statements(database, like):
    rows = database.execute(
        "SELECT coalesce(sum(calls), 0) AS calls FROM pg_stat_statements s"
        " JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = current_database()"
        " AND query LIKE %s",
        like,
    )
    return int(rows[0]["calls"])


def test_a_busy_pool_is_not_pinged(database, make_client):
    """Connections used a moment ago are checked without a round trip."""
    client = make_client(database.url(), ping_after_idle=60)
    for _ in range(50):
        client.scalar("SELECT 1")
    assert client.pings == 0


def test_the_server_sees_no_ping_on_a_busy_pool(postgres, database):
    """The server's own count of statements has the work and nothing else."""
    if not database.execute("SELECT 1 AS n FROM pg_extension WHERE extname = 'pg_stat_statements'"):
        database.execute("CREATE EXTENSION pg_stat_statements")
    from driving import Client

    counted = {}
    for name, idle in (("skipping", 60.0), ("pinging", 0.0)):
        client = Client(small_preset("psycopg2", ping_after_idle=idle, pool_size=1), database.url())
        client.scalar("SELECT 1 AS warm")
        database.execute("SELECT pg_stat_statements_reset()")
        for _ in range(20):
            client.scalar("SELECT 'work' AS work")
        counted[name] = _statements(database, "SELECT $1")
        client.close()
    assert counted["skipping"] == 0
    assert counted["pinging"] == 20


def test_an_idle_connection_is_pinged(database, make_client):
    """After `ping_after_idle` seconds the next checkout sends one ping."""
    client = make_client(database.url(), ping_after_idle=60)
    backend = client.backend()
    with _later(61):
        assert client.backend() == backend
        assert client.pings == 1
        assert client.backend() == backend
    assert client.pings == 1


def test_a_clock_that_was_set_back_means_a_ping(database, make_client):
    """An idle time that cannot be known is not taken for a short one."""
    client = make_client(database.url(), ping_after_idle=60)
    backend = client.backend()
    with _later(-3_600):
        assert client.backend() == backend
    assert client.pings == 1


def test_a_terminated_backend_costs_no_request(database, make_client):
    """A backend killed between two checkouts is replaced before the statement runs."""
    client = make_client(database.url(), ping_after_idle=60)
    first = client.backend()
    _terminate(database, first)
    began = time.perf_counter()
    second = client.backend()
    assert second != first
    assert time.perf_counter() - began < client.preset.connect_timeout / 2, "waited for an answer"
    assert client.backend() == second


def test_all_backends_terminated_at_once(database, make_client):
    """Each connection of the pool is found dead in turn; none reaches the caller."""
    client = make_client(database.url(), ping_after_idle=60, pool_size=3, prewarm=3)
    assert client.start() == 3
    for row in database.wait_for_backends(3, "web"):
        _terminate(database, row["pid"])
    for _ in range(6):
        assert client.scalar("SELECT 1") == 1


def test_an_idle_session_timeout_costs_no_request(database, make_client):
    """A session that the server ended for idleness is replaced."""
    client = make_client(database.url(), ping_after_idle=60)
    first = client.run(_with_little_patience)
    database.wait_for_backends(0, "web")
    assert client.backend() != first


def _with_little_patience(connection):
    # Not from the start: so long may pass between connecting and the first statement.
    connection.execute(text("SET idle_session_timeout = 50"))
    return connection.scalar(text("SELECT pg_backend_pid()"))


@PRESETS_DRIVERS
def test_a_restarted_server_costs_no_request(new_postgres, make_client):
    """A server that was restarted between two checkouts fails no statement."""
    with new_postgres() as server:
        client = make_client(server.url(), ping_after_idle=60, prewarm=2)
        client.start()
        server.restart()
        for _ in range(4):
            assert client.scalar("SELECT 1") == 1


@PRESETS_DRIVERS
def test_a_silent_peer_is_given_up_in_bounded_time(
    postgres, database, make_client, make_proxy, driver
):
    """A ping without an answer ends after `connect_timeout`, once for the whole pool."""
    proxy = make_proxy(postgres.port)
    url = database.url().replace(f":{postgres.port}/", f":{proxy.port}/")
    client = make_client(
        url, options=patient_driver(driver), ping_after_idle=60, connect_timeout=1, prewarm=2
    )
    assert client.start() == 2
    opened = client.listen_connects()
    proxy.fall_silent_until_the_next()  # who comes when the ping was given up
    rescue = threading.Timer(60, proxy.resume)  # or it would hang, were the ping never given up
    rescue.start()
    began = time.perf_counter()
    with _later(61):
        assert client.scalar("SELECT 1") == 1
        assert 0.9 < time.perf_counter() - began < 30
        assert (len(opened), client.pings) == (1, 1)
        assert client.start() == 2
    rescue.cancel()
    rescue.join()
    assert (len(opened), client.pings) == (2, 1), "the other one was asked as well"


def test_old_connections_are_replaced_at_checkout(database, make_client):
    """A connection past its time is closed and replaced, without an error for the caller."""
    client = make_client(database.url(), pool_recycle=3_000, ping_after_idle=3_600)
    first = client.backend()
    with _later(2_700):  # the jitter takes 150 s at most
        assert client.backend() == first
    with _later(3_001):
        second = client.backend()
        assert second != first
        assert client.backend() == second
    database.wait_for_backends(1, "web")


def test_recycling_is_spread(database):
    """Expiry times lie within the jitter's share and differ between connections."""
    jittered = preset("web", "prod").replace(
        pool_size=20, pool_recycle=1_000, prewarm=20, connect_timeout=60
    )
    engine = jittered.create_engine(database.url())
    ages = []

    def note(connection, record):
        state = record.poolkit_state
        ages.append(state.expires - state.last_used)

    event.listen(engine.pool, "connect", note)
    assert jittered.start(engine) == 20
    engine.dispose()
    assert all(950 <= age <= 1_000 for age in ages)
    assert max(ages) - min(ages) > 10
    assert len(set(ages)) == 20


def test_without_recycling_nothing_expires(database, make_client):
    """`pool_recycle=-1` keeps a connection for good."""
    client = make_client(database.url(), pool_recycle=-1, ping_after_idle=3_600)
    first = client.backend()
    with _later(10**7):
        assert client.backend() == first
    assert client.pings == 1


def test_the_check_can_be_switched_off(database, make_client):
    """`pool_pre_ping=False` checks nothing, not even after a long time."""
    client = make_client(database.url(), pool_pre_ping=False, ping_after_idle=60)
    client.scalar("SELECT 1")
    with _later(61):
        client.scalar("SELECT 1")
    assert client.pings == 0


def test_zero_pings_at_every_checkout(database, make_client):
    """`ping_after_idle=0` is SQLAlchemy's own pre-ping."""
    client = make_client(database.url(), ping_after_idle=0)
    client.scalar("SELECT 1")
    assert client.pool._pre_ping
    client.scalar("SELECT 1")
    assert client.pings == 1


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_a_cancelled_task_gives_its_connection_back(database, make_client):
    """Cancelling a task in the middle of a statement leaves no connection checked out."""
    client = make_client(database.url(), pool_size=1)

    def is_asleep():
        return any(row["wait_event"] == "PgSleep" for row in database.backends("web"))

    async def cancel_one():
        async def work():
            async with client.engine.begin() as connection:
                await connection.execute(text("SELECT pg_sleep(50)"))

        task = asyncio.create_task(work())
        await asyncio.to_thread(wait_until, is_asleep)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    client.runner.run(cancel_one())
    assert client.pool.checkedout() == 0
    assert client.scalar("SELECT 1") == 1
    wait_until(lambda: len(database.backends("web")) == 1)
