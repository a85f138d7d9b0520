"""The presets' own pool: spikes, the order of those who wait, the bounded queue, the breaker."""

import asyncio
import contextlib
import gc
import os
import random
import select
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from driving import DRIVERS, Client, TcpProxy, small_preset
from processes import wait_until
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from poolkit.config import presets
from poolkit.config.engine import make_engine
from poolkit.config.metrics import PoolMetrics
from poolkit.config.presets import BreakerOpen, TooManyWaiting, preset
from poolkit.config.session import translate, unit_of_work
from poolkit.config.settings import Settings
from poolkit.errors import DatabaseUnavailable, PoolExhausted
from poolkit.local.ports import free_port


def in_threads(*works):
    """Run the functions at the same time; return what each returned or raised."""

    def outcome(work):
        try:
            return work()
        except Exception as error:  # noqa: BLE001
            return error

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(outcome, works))


def waiting_in(pool):
    return len(pool._waiting)


def is_whole(pool):
    """Return whether every place of an unused pool is free and nothing is under way."""
    return (pool.checkedout(), waiting_in(pool), len(pool._replacing), pool._connecting) == (
        0,
        0,
        0,
        0,
    )


@pytest.fixture
def patient(monkeypatch):
    """Let no checkout lose its patience with slow connects because the machine stands still."""
    monkeypatch.setattr(presets, "_PATIENCE", 60.0)


def wait_for_the_end_of(drivers):
    """Wait until the end of the drivers' connections has come through the proxy."""
    numbers = [each.fileno() for each in drivers]
    wait_until(lambda: len(select.select(numbers, [], [], 0)[0]) == len(numbers))


# -- a spike --------------------------------------------------------------------------------


class Front(TcpProxy):
    """A proxy behind which a connect takes longer, until `gate` is set, or fails; it counts them."""

    def __init__(self, port):
        self.connects = 0
        self.delay = 0.0  # s
        self.gate = threading.Event()
        self.gate.set()
        self.is_down = False
        super().__init__(port)

    def _serve(self, near):
        # Read before it is counted: who waits for the count may change it for the next one.
        gate, delay = self.gate, self.delay
        self.connects += 1
        gate.wait(60)
        time.sleep(delay)
        if self.is_down:
            near.close()
        else:
            super()._serve(near)

    def url(self, database, driver="psycopg2"):
        url = database.url(driver.removesuffix("_async"))
        return url.replace(f":{database.server.port}/", f":{self.port}/")


@pytest.fixture
def front(database):
    proxy = Front(database.server.port)
    yield proxy
    proxy.close()


def spike(url, driver, **changes):
    """Send 50 requests at once to a cold pool of a preset."""
    target = "web_async" if driver in ("asyncpg", "psycopg_async") else "web"
    spiky = preset(target, "prod").replace(connect_timeout=60, pool_timeout=60.0, **changes)
    client = Client(spiky, url)
    try:
        if client.runner is None:
            with ThreadPoolExecutor(50) as threads:
                list(threads.map(client.scalar, ["SELECT 1"] * 50))
        else:

            async def ask():
                async with client.engine.begin() as connection:
                    await connection.scalar(text("SELECT 1"))

            async def ask_all():
                await asyncio.gather(*(ask() for _ in range(50)))

            client.runner.run(ask_all())
        assert is_whole(client.pool)
    finally:
        client.close()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_spike_on_a_cold_pool_opens_few_connections(front, database, driver):
    """50 requests while a connect takes 150 ms open at most 10 connections; QueuePool opens 30."""
    # The pool compares the time of a request with that of a connect. Where the machine is so busy
    # that a request of 2 ms takes 50, the connect has to take longer by as much.
    for front.delay in (0.15, 1.5, 6.0):
        front.connects = 0
        spike(front.url(database, driver), driver)
        if front.connects <= 10:
            break
    assert 1 <= front.connects <= 10


def test_without_the_limit_each_request_opens_a_connection(front, database):
    """`concurrent_connects=0` is SQLAlchemy's own behaviour, up to the ceiling."""
    front.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        spiking = threads.submit(spike, front.url(database), "psycopg2", concurrent_connects=0)
        try:
            wait_until(lambda: front.connects == 30, "30 connects under way")
        finally:
            front.gate.set()
        spiking.result(60)
    assert front.connects >= 30


def test_long_work_still_fills_the_pool(database):
    """Requests that hold their connections get new ones, a few at a time, up to the ceiling."""
    patient = preset("web", "prod").replace(connect_timeout=60, pool_timeout=60.0)
    engine = patient.create_engine(database.url())
    all_there = threading.Barrier(30)

    def hold():
        with engine.connect():
            all_there.wait(60)

    assert in_threads(*[hold] * 30) == [None] * 30
    assert (engine.pool.overflow(), engine.pool.checkedin()) == (0, 20)
    engine.dispose()


def test_slow_connects_hold_the_others_back_for_a_second(front, database):
    """Then these open their own: two connects that hang do not stop the pool from growing."""
    two = preset("web", "prod").replace(concurrent_connects=2, connect_timeout=60)
    engine = two.create_engine(front.url(database))
    held = engine.connect()
    opened = front.gate
    closed = front.gate = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        slow = [threads.submit(lambda: engine.connect().close()) for _ in range(2)]
        try:
            wait_until(lambda: front.connects == 3, 30)
            front.gate = opened
            began = time.monotonic()
            with engine.connect():
                waited = time.monotonic() - began
            assert waited > 0.9
            assert not any(each.done() for each in slow)
        finally:
            closed.set()
        for each in slow:
            each.result(60)
    held.close()
    assert is_whole(engine.pool)
    engine.dispose()


@pytest.mark.usefixtures("patient")
def test_dead_connections_are_replaced_a_few_at_a_time(front, database):
    """After a restart, a full pool of dead ones does not become as many connects at once."""
    two = preset("web", "prod").replace(concurrent_connects=2, connect_timeout=60)
    engine = two.create_engine(front.url(database))
    held = [engine.connect() for _ in range(8)]
    drivers = [connection.connection.dbapi_connection for connection in held]
    for connection in held:
        connection.close()
    database.terminate_backends()
    wait_for_the_end_of(drivers)
    front.delay, front.connects, most = 0.15, 0, []

    def ask():
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            most.append(engine.pool._connecting)

    assert in_threads(*[ask] * 8) == [None] * 8
    assert max(most) <= 2
    assert is_whole(engine.pool)
    engine.dispose()


# -- the order ------------------------------------------------------------------------------


def test_a_returned_connection_goes_to_the_longest_waiting(database):
    """Not to a newcomer, and not to the last one, whether idle ones are used LIFO or not."""
    small = preset("web", "prod").replace(
        pool_size=1, max_overflow=0, pool_timeout=60.0, connect_timeout=60
    )
    engine = small.create_engine(database.url())
    served = []

    def work(name):
        with engine.connect():
            served.append(name)

    held = engine.connect()
    threads = []
    for name in range(4):
        threads.append(threading.Thread(target=work, args=(name,)))
        threads[-1].start()
        wait_until(lambda: waiting_in(engine.pool) == len(threads), 30)
    held.close()
    work("newcomer")
    for thread in threads:
        thread.join()
    assert served == [0, 1, 2, 3, "newcomer"]
    engine.dispose()


def test_after_a_failed_connect_the_next_one_gets_its_turn(database):
    """Its error is raised once, where the connect failed; the others connect for themselves."""
    settings = preset("web", "prod").replace(concurrent_connects=1, pool_timeout=60.0)
    port = free_port()
    down = database.url().replace(f":{database.server.port}/", f":{port}/")
    engine = settings.create_engine(down)
    began = time.monotonic()
    outcomes = in_threads(*[engine.connect] * 8)
    assert {type(each) for each in outcomes} == {OperationalError}
    assert len(set(map(id, outcomes))) == 8
    assert is_whole(engine.pool)
    assert time.monotonic() - began < 30  # well below 8 x pool_timeout
    engine.dispose()


# -- still SQLAlchemy's pool ----------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_pool_is_sqlalchemy_s_own_class_and_stays_so(make_client, database):
    """An instance of QueuePool with true counts, also after `dispose()`."""
    client = make_client(database.url(), pool_size=2, max_overflow=1)
    kind = AsyncAdaptedQueuePool if client.preset.is_async else QueuePool
    for _ in range(2):
        pool = client.pool
        assert isinstance(pool, kind)
        assert type(pool).__name__ == kind.__name__
        assert (pool.size(), pool.overflow(), pool.checkedin()) == (2, -2, 0)
        client.scalar("SELECT 1")
        assert (pool.overflow(), pool.checkedin(), pool.checkedout()) == (-1, 1, 0)
        assert "Connections in pool: 1" in pool.status()
        client.dispose()
        assert client.pool is not pool


def test_a_pool_class_of_the_user_s_wins(database):
    """The preset's own is for engines without one."""

    class Mine(QueuePool):
        pass

    engine = preset("web", "prod").create_engine(database.url(), poolclass=Mine)
    assert isinstance(engine.pool, Mine)
    assert not hasattr(engine.pool, "breaker")
    settings = Settings.from_environ({"DATABASE_URL": database.url()})
    engine = make_engine(settings, PoolMetrics(), poolclass=Mine)
    assert isinstance(engine.pool, Mine)
    assert not hasattr(engine.pool, "breaker")


def test_an_unlimited_pool_stays_unlimited(database):
    """`max_overflow=-1` and `pool_size=0` of the user's mean what they mean in SQLAlchemy."""
    for options in ({"max_overflow": -1, "pool_size": 1}, {"pool_size": 0}):
        engine = preset("web", "prod").create_engine(database.url(), **options)
        held = [engine.connect() for _ in range(4)]
        assert engine.pool.checkedout() == 4
        for connection in held:
            connection.close()
        assert engine.pool.checkedout() == 0
        engine.dispose()


def test_an_invalidated_connection_frees_its_place(database):
    """So does a detached one: the place is not kept by an entry without a connection."""
    small = preset("web", "prod").replace(pool_size=1, max_overflow=0, pool_timeout=0.0)
    engine = small.create_engine(database.url())
    for lose in ("invalidate", "detach"):
        connection = engine.connect()
        getattr(connection, lose)()
        connection.close()
        assert is_whole(engine.pool)
    with engine.connect():
        pass
    engine.dispose()


# -- nothing is lost ------------------------------------------------------------------------


# SQLAlchemy 2.0 drops the connection whose task was cancelled in a `connect` listener.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_cancelled_tasks_lose_no_place(make_client, database, driver):
    """Cancelled at any moment: while they wait, connect, work or return the connection.

    MagicStack/asyncpg#464 and #467, sqlalchemy/sqlalchemy#12099.
    """
    client = make_client(database.url(), pool_size=2, max_overflow=1, pool_timeout=0.05)
    chance = random.Random(7)

    async def work():
        async with client.engine.begin() as connection:
            await connection.execute(text("SELECT pg_sleep(0.002)"))
            if chance.random() < 0.2:
                await connection.invalidate()

    async def storm():
        for _ in range(15):
            tasks = [asyncio.create_task(work()) for _ in range(12)]
            for task in tasks:
                asyncio.get_running_loop().call_later(chance.random() * 0.05, task.cancel)
            await asyncio.gather(*tasks, return_exceptions=True)
            if chance.random() < 0.3:
                await client.engine.dispose()
        # A task that was cancelled while it gave its connection back leaves that to another one.
        async with asyncio.timeout(60):
            while not is_whole(client.pool):  # noqa: ASYNC110  (a return sets no event)
                await asyncio.sleep(0.01)
        held = [await client.engine.connect() for _ in range(3)]
        for connection in held:
            await connection.close()

    client.runner.run(storm())
    # psycopg keeps the socket of a cancelled connect until then, and the server its session.
    gc.collect()


def test_threads_that_time_out_and_fail_lose_no_place(database):
    """A pool of 2+1 under 12 threads with short limits, killed backends and lost connections."""
    small = preset("web", "prod").replace(
        pool_size=2, max_overflow=1, pool_timeout=0.02, max_waiting=6, connect_timeout=60
    )
    engine = small.create_engine(database.url())
    chance, lock, open_now = random.Random(7), threading.Lock(), [0]

    def count(by):
        with lock:
            open_now.append(open_now[-1] + by)

    event.listen(engine, "connect", lambda *_: count(1))
    event.listen(engine, "close", lambda *_: count(-1))

    def work():
        for _ in range(25):
            with contextlib.suppress(PoolTimeout, OperationalError), engine.connect() as c:
                c.execute(text("SELECT pg_sleep(0.002)"))
                if (luck := chance.random()) < 0.1:
                    c.invalidate()
                elif luck < 0.2:
                    c.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    assert in_threads(*[work] * 12) == [None] * 12
    assert is_whole(engine.pool)
    assert max(open_now) <= 3  # never above the ceiling (oracle/python-oracledb#581)
    held = [engine.connect() for _ in range(3)]
    for connection in held:
        connection.close()
    engine.dispose()


def test_ctrl_c_while_waiting_loses_no_place(database):
    """What came back at that moment goes to the next one."""
    small = preset("web", "prod").replace(
        pool_size=1, max_overflow=0, pool_timeout=60.0, connect_timeout=60
    )
    engine = small.create_engine(database.url())
    held = engine.connect()
    main = threading.main_thread().ident

    def interrupt():
        wait_until(lambda: waiting_in(engine.pool) == 1, 30)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        engine.connect()
    thread.join()
    held.close()
    with engine.connect():
        pass
    assert is_whole(engine.pool)
    engine.dispose()


def test_a_task_of_a_closed_loop_does_not_take_a_connection_with_it(database):
    """One that will never wake is passed over."""
    client = Client(small_preset("asyncpg", pool_size=1, pool_timeout=60), database.url("asyncpg"))
    pool = client.pool
    loop = asyncio.new_event_loop()
    held = client.runner.run(client.engine.connect().start())
    task = loop.create_task(client.engine.connect().start())
    loop.run_until_complete(asyncio.sleep(0.05))
    assert waiting_in(pool) == 1
    loop.close()
    client.runner.run(held.close())
    assert (pool.checkedout(), waiting_in(pool)) == (0, 0)
    assert client.scalar("SELECT 1") == 1
    task._log_destroy_pending = False
    del task
    client.close()


def test_a_child_does_not_wait_for_what_its_parent_s_threads_had(database):
    """A fork while threads wait and connect: the child's pool is empty and works."""
    small = preset("web", "prod").replace(
        pool_size=1, max_overflow=0, pool_timeout=60.0, connect_timeout=60
    )
    engine = small.create_engine(database.url())
    with ThreadPoolExecutor(2) as threads:
        held = engine.connect()
        others = [threads.submit(lambda: engine.connect().close()) for _ in range(2)]
        wait_until(lambda: waiting_in(engine.pool) == 2, 30)
        child = os.fork()
        if child == 0:
            try:
                with engine.connect() as connection:
                    connection.execute(text("SELECT 1"))
                os._exit(0 if is_whole(engine.pool) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        held.close()
        for other in others:
            other.result(60)
    engine.dispose()


def test_a_connection_that_the_garbage_collector_returns_is_given_on(database):
    """To one that waits for it, as any other."""
    small = preset("web", "prod").replace(
        pool_size=1, max_overflow=0, pool_timeout=60.0, connect_timeout=60
    )
    engine = small.create_engine(database.url())
    held = [engine.raw_connection()]
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(lambda: engine.connect().close())
        wait_until(lambda: waiting_in(engine.pool) == 1, 30)
        held.clear()
        gc.collect()
        waits.result(60)
    assert is_whole(engine.pool)
    engine.dispose()


# -- the bounded queue ----------------------------------------------------------------------


def test_beyond_max_waiting_a_checkout_is_refused_at_once(database):
    """With the seconds until the queue is served; those in the queue are served."""
    environ = {
        "DATABASE_URL": database.url(),
        "POOLKIT_POOL_SIZE": "1",
        "POOLKIT_MAX_OVERFLOW": "0",
        "POOLKIT_MAX_WAITING": "2",
        "POOLKIT_POOL_TIMEOUT": "60",
    }
    metrics = PoolMetrics()
    engine = make_engine(Settings.from_environ(environ), metrics)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(1.2)"))
    held = engine.connect()
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(lambda: engine.connect().close()) for _ in range(2)]
        wait_until(lambda: waiting_in(engine.pool) == 2, 30)
        with pytest.raises(TooManyWaiting) as refused:
            engine.connect()
        with pytest.raises(PoolExhausted) as translated, unit_of_work(engine):
            pass
        held.close()
        for each in waiting:
            each.result(60)
    assert isinstance(refused.value, PoolTimeout)
    assert refused.value.retry_after == translated.value.retry_after >= 4  # 1.2 s x 3
    snapshot = metrics.snapshot(engine.pool)
    assert (snapshot.shed, snapshot.checkout_timeouts, snapshot.waiting) == (2, 0, 0)
    engine.dispose()


def test_those_who_wait_for_their_turn_in_a_spike_are_not_too_many(database):
    """The ceiling and max_waiting together bound how many are let in."""
    wide = preset("web", "prod").replace(
        pool_size=6, max_overflow=0, max_waiting=2, pool_timeout=60.0, connect_timeout=60
    )
    engine = wide.create_engine(database.url())
    release = threading.Event()

    def hold():
        with engine.connect():
            release.wait(60)

    with ThreadPoolExecutor(9) as threads:
        admitted = [threads.submit(hold) for _ in range(8)]
        wait_until(lambda: engine.pool.checkedout() == 6 and waiting_in(engine.pool) == 2, 30)
        with pytest.raises(TooManyWaiting):
            engine.connect()
        release.set()
        for each in admitted:
            each.result(60)
    engine.dispose()


def test_an_exhausted_pool_knows_when_to_come_back(database):
    """`pool_timeout` over: Retry-After is the time in which the queue is served."""
    small = preset("web", "prod").replace(
        pool_size=1, max_overflow=0, pool_timeout=0.05, connect_timeout=60
    )
    engine = small.create_engine(database.url())
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(1.2)"))
    with engine.connect(), pytest.raises(PoolTimeout) as timeout:
        engine.connect()
    assert translate(timeout.value).retry_after >= 2
    engine.dispose()


# -- the breaker ----------------------------------------------------------------------------


def fails_at_once(client, front):
    """Return the error of a checkout that no connect was tried for."""
    connects = front.connects
    with pytest.raises(BreakerOpen) as refused:
        client.scalar("SELECT 1")
    assert front.connects == connects
    return refused.value


@pytest.mark.parametrize("driver", DRIVERS)
def test_after_failed_connects_the_next_fail_at_once(make_client, front, database):
    """Until the pause is over. Then one probes: the breaker stays open, or closes."""
    client = make_client(front.url(database), breaker_failures=3, breaker_pause=60.0)
    breaker = client.pool.breaker
    front.is_down = True
    for _ in range(3):
        with pytest.raises((OperationalError, OSError)) as failed:
            client.scalar("SELECT 1")
        assert not isinstance(failed.value, BreakerOpen)
    error = fails_at_once(client, front)
    assert error.retry_after == 30
    assert isinstance(translate(error), DatabaseUnavailable)
    assert translate(error).retry_after == 30

    breaker.next_try = time.time()  # the pause is over
    with pytest.raises((OperationalError, OSError)) as failed:
        client.scalar("SELECT 1")
    assert not isinstance(failed.value, BreakerOpen)
    client.dispose()  # the next pool knows it too
    fails_at_once(client, front)

    front.is_down, breaker.next_try = False, time.time()
    assert client.scalar("SELECT 1") == 1
    assert not breaker.is_open
    assert is_whole(client.pool)


def test_one_checkout_probes_while_the_others_fail(front, database):
    """Half open: as many connects as it takes to know."""
    engine = small_preset("psycopg2", breaker_failures=1, breaker_pause=60.0).create_engine(
        front.url(database)
    )
    front.is_down = True
    with pytest.raises(OperationalError):
        engine.connect()
    front.is_down = False
    front.gate.clear()
    engine.pool.breaker.next_try = time.time()
    with ThreadPoolExecutor(1) as threads:
        probe = threads.submit(lambda: engine.connect().close())
        try:
            wait_until(lambda: front.connects == 2, 30)
            with pytest.raises(BreakerOpen):
                engine.connect()
        finally:
            front.gate.set()
        probe.result(60)
    with engine.connect(), engine.connect():
        pass
    engine.dispose()


def test_connections_that_are_alive_are_still_given_out(front, database, monkeypatch):
    """Idle ones at once; one in use to who waits for it, for a second at most."""
    engine = small_preset(
        "psycopg2", pool_timeout=60, breaker_failures=1, breaker_pause=60.0
    ).create_engine(front.url(database))
    held = engine.connect()
    front.is_down = True
    with pytest.raises(OperationalError):
        engine.connect()
    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as threads:
        patch.setattr(presets, "_PATIENCE", 60.0)  # or it gives up while the machine stands still
        waits = threads.submit(lambda: engine.connect().close())
        wait_until(lambda: waiting_in(engine.pool) == 1 or waits.done(), 30)
        held.close()
        waits.result(60)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
        began = time.monotonic()
        with pytest.raises(BreakerOpen):
            engine.connect()
        assert time.monotonic() - began < 30  # pool_timeout is 60 s
    engine.dispose()


def test_a_dead_connection_does_not_hide_a_living_one(front, database):
    """While nothing can replace it, the next idle one is given out."""
    engine = small_preset(
        "psycopg2", pool_size=3, breaker_failures=1, breaker_pause=60.0
    ).create_engine(front.url(database))
    held = [engine.connect() for _ in range(3)]
    pids = [c.scalar(text("SELECT pg_backend_pid()")) for c in held]
    drivers = [connection.connection.dbapi_connection for connection in held]
    for connection in held:
        connection.close()
    database.execute(f"SELECT pg_terminate_backend({pids[1]}), pg_terminate_backend({pids[2]})")
    wait_for_the_end_of(drivers[1:])
    front.is_down = True
    with pytest.raises(OperationalError):  # the first dead one opens the breaker
        engine.connect()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) == pids[0]
    engine.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_wrong_password_does_not_open_the_breaker(make_client, database):
    """The server answers, and the next try may have the new password."""
    wrong = database.url().replace(f":{database.server.password()}@", ":wrong@")
    client = make_client(wrong, breaker_failures=1)
    for _ in range(2):
        with pytest.raises(Exception, match="authentication failed") as failed:
            client.scalar("SELECT 1")
        assert not isinstance(failed.value, BreakerOpen)
    assert is_whole(client.pool)


def test_an_error_of_the_program_does_not_open_the_breaker(database):
    """Nor does a cancelled task: both say nothing about the server."""
    engine = small_preset("psycopg2", breaker_failures=1).create_engine(database.url())

    @event.listens_for(engine, "connect")
    def mistaken(connection, record):
        raise LookupError("a mistake")

    for _ in range(2):
        with pytest.raises(LookupError):
            engine.connect()
    assert is_whole(engine.pool)

    client = Client(small_preset("asyncpg", breaker_failures=1), database.url("asyncpg"))

    async def cancel():
        task = asyncio.create_task(client.engine.connect().start())
        await asyncio.sleep(0)
        assert client.pool._connecting == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    client.runner.run(cancel())
    assert client.scalar("SELECT 1") == 1
    client.close()


def test_an_engine_of_settings_raises_database_unavailable(front, database):
    """With Retry-After, whether translated by a unit of work or not; and its metrics say so."""
    environ = {
        "DATABASE_URL": front.url(database),
        "POOLKIT_BREAKER_FAILURES": "1",
        "POOLKIT_BREAKER_PAUSE": "60",
    }
    metrics = PoolMetrics()
    engine = make_engine(Settings.from_environ(environ), metrics)
    front.is_down = True
    assert not metrics.snapshot(engine.pool).breaker_open
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable) as unavailable:
            engine.connect()
    assert unavailable.value.retry_after == 30
    assert isinstance(unavailable.value.__cause__, BreakerOpen)
    assert metrics.snapshot(engine.pool).breaker_open
    with pytest.raises(DatabaseUnavailable), unit_of_work(engine):
        pass
    engine.dispose()
