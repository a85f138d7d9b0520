"""What people get wrong about engines, sessions and pools, stated by running it; and counted."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import wait_until
from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from poolkit.config.engine import make_async_engine, make_engine, start_async_engine, start_engine
from poolkit.config.metrics import BUCKETS, Histogram, PoolMetrics
from poolkit.config.presets import preset
from poolkit.config.settings import Settings
from poolkit.errors import DatabaseUnavailable


@pytest.mark.parametrize("target", ["web", "worker", "lambda", "lambda_warm", "lambda_proxy"])
def test_an_engine_opens_no_connection_when_it_is_made(database, target):
    """The first checkout opens the first connection; `create_engine` opens none."""
    engine = preset(target, "prod").create_engine(database.url())
    assert database.backends(target) == []
    engine.dispose()


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_a_session_holds_its_connection_until_its_transaction_ends(database, end):
    """From the first statement to commit, rollback or close: not only while a query runs."""
    engine = create_engine(database.url())
    session = Session(engine)
    assert engine.pool.checkedout() == 0
    session.execute(text("SELECT 1")).all()
    assert engine.pool.checkedout() == 1
    state = database.backends()[0]["state"]
    getattr(session, end)()
    assert (state, engine.pool.checkedout()) == ("idle in transaction", 0)
    session.close()
    engine.dispose()


def test_a_queue_pool_ends_at_size_plus_overflow(database):
    """The next checkout waits, and fails after pool_timeout; no further backend is made."""
    small = preset("web", "prod").replace(
        pool_size=2, max_overflow=1, pool_timeout=0.1, connect_timeout=60
    )
    engine = small.create_engine(database.url())
    held = [engine.connect() for _ in range(3)]
    with pytest.raises(PoolTimeout):
        engine.connect()
    assert len(database.backends("web")) == 3 == small.max_connections_per_process
    for connection in held:
        connection.close()
    database.wait_for_backends(2, "web")
    engine.dispose()


@pytest.mark.parametrize(("lifo", "next_one"), [(True, "second"), (False, "first")])
def test_a_lifo_pool_hands_out_what_came_back_last(database, lifo, next_one):
    """What a quiet hour does not need stays at the bottom; a FIFO pool keeps all of it busy."""
    settings = preset("web", "prod").replace(pool_use_lifo=lifo, connect_timeout=60)
    engine = settings.create_engine(database.url())
    connections = {"first": engine.connect(), "second": engine.connect()}
    drivers = {name: c.connection.dbapi_connection for name, c in connections.items()}
    for connection in connections.values():
        connection.close()
    with engine.connect() as connection:
        assert connection.connection.dbapi_connection is drivers[next_one]
    engine.dispose()


def test_a_null_pool_ends_nowhere(database):
    """NullPool opens one for each checkout; what bounds it is who checks out."""
    engine = preset("lambda", "prod").replace(connect_timeout=60).create_engine(database.url())
    held = [engine.connect() for _ in range(5)]
    assert len(database.backends("lambda")) == 5
    for connection in held:
        connection.close()
    database.wait_for_backends(0, "lambda")


def test_lambda_warm_keeps_one(database):
    """One connection per execution environment, the same one at each invoke."""
    warm = preset("lambda_warm", "prod").replace(connect_timeout=60)
    engine = warm.create_engine(database.url())
    backends = set()
    for _ in range(3):
        with engine.connect() as connection:
            backends.add(connection.scalar(text("SELECT pg_backend_pid()")))
    assert len(backends) == 1
    engine.dispose()


# -- counted --------------------------------------------------------------------------------


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
    histogram.observe([99.0, BUCKETS[0], 0.0, BUCKETS[0] * 1.01])
    histogram.observe([99.0])
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-1]) == (2, 1, 2)
    assert histogram.count == 5
    assert histogram.total == pytest.approx(198 + BUCKETS[0] * 2.01)
