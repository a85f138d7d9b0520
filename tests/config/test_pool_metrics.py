"""What the pool did, counted: against the server's own view."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import wait_until
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeout

from poolkit.config.engine import make_async_engine, make_engine, start_async_engine, start_engine
from poolkit.config.metrics import BUCKETS, Histogram, PoolMetrics
from poolkit.config.settings import Settings
from poolkit.errors import DatabaseUnavailable


@pytest.fixture
def kit(database):
    environ = {
        "DATABASE_URL": database.url(),
        "POOLKIT_POOL_SIZE": "2",
        "POOLKIT_MAX_OVERFLOW": "1",
        "POOLKIT_POOL_TIMEOUT": "0.1",
        "POOLKIT_CONNECT_TIMEOUT": "60",
        "POOLKIT_ECHO": "off",
    }
    settings, metrics = Settings.from_environ(environ), PoolMetrics()
    engine = make_engine(settings, metrics)
    yield engine, metrics, settings
    engine.dispose()


def test_connections_are_counted_as_the_server_sees_them(kit, database):
    """Opened less closed is the number of backends, overflow and dispose included."""
    engine, metrics, _ = kit
    held = [engine.connect() for _ in range(3)]
    snapshot = metrics.snapshot(engine.pool)
    assert (snapshot.size, snapshot.checked_out, snapshot.overflow) == (2, 3, 1)
    assert snapshot.opened == len(database.backends("web")) == 3
    for connection in held:
        connection.close()
    snapshot = metrics.snapshot(engine.pool)
    assert snapshot.opened - snapshot.closed == 2
    database.wait_for_backends(2, "web")
    engine.dispose()
    with engine.connect():
        snapshot = metrics.snapshot(engine.pool)
    assert (snapshot.opened, snapshot.closed) == (4, 3)
    assert snapshot.connect_time.count == 4


def test_checkouts_and_their_waiting_are_counted(kit):
    """Each checkout is one observation; one that gave up is a timeout, and no wait is left."""
    engine, metrics, _ = kit
    held = [engine.connect() for _ in range(3)]
    with pytest.raises(PoolTimeout):
        engine.connect()
    snapshot = metrics.snapshot(engine.pool)
    assert (snapshot.checkouts, snapshot.checkout_timeouts, snapshot.waiting) == (3, 1, 0)
    for connection in held:
        connection.close()


def test_a_caller_that_waits_is_seen(database):
    """`waiting` has the callers without a connection, while they wait."""
    environ = {"DATABASE_URL": database.url(), "POOLKIT_POOL_SIZE": "1", "POOLKIT_ECHO": "off"}
    patient = {"POOLKIT_POOL_TIMEOUT": "100", "POOLKIT_CONNECT_TIMEOUT": "60"}
    settings = Settings.from_environ(environ | patient | {"POOLKIT_MAX_OVERFLOW": "0"})
    metrics = PoolMetrics()
    engine = make_engine(settings, metrics)
    with engine.connect():
        thread = threading.Thread(target=lambda: engine.connect().close())
        thread.start()
        wait_until(lambda: metrics.snapshot(engine.pool).waiting == 1)
    thread.join()
    snapshot = metrics.snapshot(engine.pool)
    assert (snapshot.waiting, snapshot.checkouts) == (0, 2)
    assert snapshot.checkout_wait.total > 0
    engine.dispose()


def test_many_threads_lose_no_count(kit):
    """Counters are exact under concurrency."""
    engine, metrics, _ = kit

    def work():
        for _ in range(50):
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))

    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(work) for _ in range(3)]:
            done.result()
    snapshot = metrics.snapshot(engine.pool)
    assert snapshot.checkouts == sum(snapshot.checkout_wait.counts) == 150


def test_a_failed_connect_is_counted(kit, database):
    """An attempt that failed is a connect failure, and no connect time."""
    environ = {"DATABASE_URL": database.url().replace(f":{database.server.port}/", ":1/")}
    settings = Settings.from_environ(environ | {"POOLKIT_FAIL_FAST": "1"})
    metrics = PoolMetrics()
    engine = make_engine(settings, metrics)
    with pytest.raises(DatabaseUnavailable, match="not available"):
        start_engine(engine, settings)
    snapshot = metrics.snapshot(engine.pool)
    assert (snapshot.connect_failures, snapshot.connect_time.count, snapshot.opened) == (1, 0, 0)


def test_the_asynchronous_engine_is_counted_too(database):
    """The same counters under asyncio."""
    environ = {"DATABASE_URL": database.url(""), "POOLKIT_TARGET": "web_async"}
    settings = Settings.from_environ(environ | {"POOLKIT_PREWARM": "2", "POOLKIT_ECHO": "off"})
    metrics = PoolMetrics()

    async def work():
        engine = make_async_engine(settings, metrics)
        assert await start_async_engine(engine, settings) == 2
        snapshot = metrics.snapshot(engine.pool)
        await engine.dispose()
        return snapshot

    snapshot = asyncio.run(work())
    assert (snapshot.opened, snapshot.checkouts, snapshot.checked_out) == (2, 2, 0)
    assert metrics.closed == 2


def test_durations_fall_into_their_buckets():
    """A bucket takes what is at most its bound; the last one takes the rest."""
    histogram = Histogram()
    for seconds in (0.0, BUCKETS[0], BUCKETS[0] * 1.01, 99.0):
        histogram.observe(seconds)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-1]) == (2, 1, 1)
    assert histogram.count == 4
