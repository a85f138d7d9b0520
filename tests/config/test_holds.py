"""Who holds connections: by call site and unit of work, on every driver."""

import time

import pytest
from sqlalchemy import text

from poolkit.config.holds import merged, unit
from poolkit.config.metrics import PoolMetrics, measured


@pytest.fixture
def metrics():
    return PoolMetrics(hold_sampling=1.0)


@pytest.fixture
def client(make_client, database, driver, metrics):
    options = {}
    from driving import small_preset

    options["poolclass"] = measured(small_preset(driver).pool_class(database.url()), metrics)
    client = make_client(database.url(), options=options)
    metrics.watch(client.sync_engine)
    return client


def test_a_hold_has_its_line_its_unit_and_its_busy_share(client, metrics):
    """Half a second of SQL and half a second without, at the line that asked."""
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
