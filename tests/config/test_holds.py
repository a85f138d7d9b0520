"""Who holds connections: by call site and unit of work, on every driver."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
from driving import small_preset
from processes import ROOT, wait_until
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit import attach
from poolkit.config.engine import make_engine
from poolkit.config.holds import merged, unit
from poolkit.config.metrics import PoolMetrics, measured
from poolkit.config.session import unit_of_work
from poolkit.config.settings import Settings, hold_settings
from poolkit.errors import ConfigurationError, PoolExhausted


@pytest.fixture
def metrics():
    return PoolMetrics(hold_sampling=1.0)


@pytest.fixture
def client(make_client, database, driver, metrics):
    poolclass = measured(small_preset(driver).pool_class(database.url()), metrics)
    client = make_client(database.url(), options={"poolclass": poolclass})
    metrics.watch(client.sync_engine)
    return client


def test_a_hold_has_its_line_its_unit_and_its_busy_share(client, metrics):
    """A fifth of a second of SQL and as much without, at the line that asked."""
    with unit("GET /slow"):
        client.run(
            lambda connection: (connection.execute(text("SELECT pg_sleep(0.2)")), time.sleep(0.2))
        )
    (row,) = metrics.holds.rows()
    assert row.where.startswith("tests/config/driving.py:")
    assert row.where.endswith(("in Client.run", "in Client.run.<locals>.work_async"))
    assert (row.unit, row.count, row.nested) == ("GET /slow", 1, 0)
    assert row.held_s >= 0.4
    assert 0.2 <= row.busy_s <= row.held_s - 0.2
    assert row.held_s * 0.85 <= row.p95_s <= row.longest_s == row.held_s
    snapshot = metrics.snapshot(client.pool)
    assert snapshot.hold_time.count == 1
    assert snapshot.busy_seconds == row.busy_s
    assert not metrics.holds.holding()


def test_rows_of_several_processes_are_added(client, metrics):
    """One row for each line and unit, with the percentile of all."""
    for _ in range(3):
        client.scalar("SELECT 1")
    rows = metrics.holds.rows()
    (row,) = merged(rows + rows)
    assert row.count == 6
    assert row.held_s == pytest.approx(2 * rows[0].held_s)
    assert row.p95_s == rows[0].p95_s


# -- one engine, for what does not depend on the driver ----------------------------------------


@pytest.fixture
def attached(database):
    engine = create_engine(database.url(), pool_size=3, max_overflow=0, pool_timeout=1)
    yield attach(engine, hold_sampling=1.0)
    engine.dispose()


def test_a_second_checkout_of_a_unit_thread_or_task_is_nested(attached):
    """A checkout beside one of another thread is not, unless both belong to one unit."""
    engine, metrics = attached.engine, attached.metrics
    with engine.connect(), engine.connect():  # nested
        pass
    assert metrics.nested_checkouts == 1
    with engine.connect(), ThreadPoolExecutor(1) as threads:
        threads.submit(lambda: engine.connect().close()).result()
    assert metrics.nested_checkouts == 1
    with unit("GET /orders"), engine.connect(), ThreadPoolExecutor(1) as threads:
        threads.submit(copy_context().run, lambda: engine.connect().close()).result()
    assert metrics.nested_checkouts == 2
    (nested,) = [row for row in metrics.holds.rows() if row.nested and row.unit]
    assert (nested.unit, nested.nested) == ("GET /orders", 1)


def test_a_task_that_another_one_started_has_no_part_in_its_connections(database):
    """A service that holds one for its whole life has no nested checkouts in its tasks."""

    async def work():
        engine = create_async_engine(database.url(driver="asyncpg"))
        attached = attach(engine, hold_sampling=1.0)

        async def handle():
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))

        async with engine.connect():
            await asyncio.gather(handle(), handle())
        await engine.dispose()
        return attached.metrics

    metrics = asyncio.run(work())
    assert metrics.nested_checkouts == 0
    assert {row.where.rpartition(" in ")[2].rpartition(".")[2] for row in metrics.holds.rows()} == {
        "handle",
        "work",
    }


def test_a_full_pool_says_that_its_holders_wait_for_a_second_connection(attached):
    """All at once, so that none of them can get one; the line of the second checkout is named."""
    engine, gate, errors = attached.engine, threading.Barrier(3), []
    holds, all_ask = attached.metrics.holds, threading.Barrier(3)
    asking = holds.asking

    def asking_together(beside):
        # Before any of them waits: the first one to give up tells who waits by then.
        key = asking(beside)
        all_ask.wait(60)
        return key

    holds.asking = asking_together

    def request():
        try:
            with unit_of_work(engine) as outer:
                outer.execute(text("SELECT 1"))
                gate.wait()
                with unit_of_work(engine) as audit:  # a second one
                    audit.execute(text("SELECT 2"))
        except PoolExhausted as error:
            errors.append(str(error))

    threads = [threading.Thread(target=request) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file = "tests/config/test_holds.py"
    lines = (ROOT / file).read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if text.endswith("# a second one"))
    assert any("3 of 3 connections are held by callers" in text for text in errors)
    assert any(f"{file}:{line} in " in text for text in errors)


def test_the_sql_of_a_raw_connection_is_unknown_and_not_idle(attached):
    """The driver's own connection runs SQL that no one sees."""
    raw = attached.engine.raw_connection()
    raw.cursor().execute("SELECT 1")
    raw.close()
    (row,) = attached.metrics.holds.rows()
    assert row.unseen_s == row.held_s
    assert row.busy_share is None


def test_a_connection_out_when_the_response_is_sent_is_counted(attached):
    """Once, however long it stays; the response is sent before the unit ends."""
    metrics = attached.metrics
    with unit("GET /export") as work:
        with attached.engine.connect():
            work.responded()
            work.responded()
        with attached.engine.connect():
            pass
    assert metrics.held_after_response == 1
    with unit("import") as work:
        connection = attached.engine.connect()
        assert len(work.still_out()) == 1
    assert metrics.held_after_response == 2
    connection.close()


def test_a_sample_stands_for_all(database):
    """With many checkouts, the sums of those that are taken are near those of all."""
    engine = create_engine(database.url())
    metrics = attach(engine, hold_sampling=0.2).metrics
    for _ in range(2_000):
        with engine.connect():
            pass
    (row,) = metrics.holds.rows()
    assert metrics.snapshot(engine.pool).hold_time.count == 2_000
    assert len(row.spread) > 0
    assert 1_000 < row.count < 4_000
    engine.dispose()


def test_nothing_is_measured_where_it_is_switched_off(database):
    """No call sites, no hold times, and the dialect's own methods."""
    engine = create_engine(database.url())
    metrics = attach(engine, hold_sampling=0).metrics
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert metrics.holds.rows() == []
    assert metrics.snapshot(engine.pool).hold_time.count == 0
    assert metrics.snapshot(engine.pool).checkouts == 1
    assert "do_execute" not in vars(engine.dialect)
    engine.dispose()


@pytest.mark.parametrize("text", ["nan", "2", "-1", "often"])
def test_a_wrong_setting_is_refused(text):
    """The message names the variable."""
    with pytest.raises(ConfigurationError, match="POOLKIT_HOLD_SAMPLING"):
        hold_settings({"POOLKIT_HOLD_SAMPLING": text})


def test_leak_detection_works_without_metrics(database, caplog):
    """A setting alone is enough: the program need not count anything."""
    environ = {"DATABASE_URL": database.url(), "POOLKIT_LEAK_DETECTION_THRESHOLD": "0.05"}
    engine = make_engine(Settings.from_environ(environ))
    with engine.connect():
        wait_until(lambda: "poolkit.holds" in {record.name for record in caplog.records})
    engine.dispose()
