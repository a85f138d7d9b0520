"""attach: the checks and metrics of a preset for an engine that was made without one."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from driving import Clock
from processes import wait_until
from psycopg2 import sql
from sqlalchemy import create_engine, exc, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from poolkit import ConfigurationError, PresetError, attach, preset
from poolkit.config import presets
from poolkit.config.presets import APPLICATION_NAME_BYTES

WEB = preset("web", "prod").replace(ping_after_idle=60, connect_timeout=60)


@pytest.fixture
def make_engine(database):
    """Make engines as an application does that does not know poolkit."""
    with ExitStack() as ending:

        def make(**options):
            engine = create_engine(database.url(), **options)
            ending.callback(engine.dispose)
            return engine

        yield make


def backend(engine):
    with engine.connect() as connection:
        return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()


def test_a_connection_that_the_server_closed_is_replaced_at_checkout(database, make_engine):
    """Without a ping, and also for a connection that was open before."""
    engine = make_engine()
    backend(engine)
    attached = attach(engine, WEB)
    for opened in (1, 2):
        database.terminate_backends()
        backend(engine)
        assert attached.snapshot().opened == opened


def test_the_checkout_check_costs_no_round_trip(make_engine):
    """A connection that was just used is polled, not pinged."""
    engine = make_engine()
    attach(engine, WEB)
    backend(engine)
    engine.dialect.do_ping = None  # a call would be a TypeError
    assert backend(engine) == backend(engine)


def test_new_connections_have_the_presets_name(database, make_engine):
    """`pg_stat_activity` shows target, host and process."""
    engine = make_engine()
    attach(engine, WEB)
    with engine.connect():
        (row,) = database.backends("web:")
    assert row["application_name"] == WEB.application_name()
    assert len(row["application_name"].encode()) <= APPLICATION_NAME_BYTES


def test_a_name_of_the_applications_own_stays(database, make_engine):
    """What the engine was told wins."""
    engine = make_engine(connect_args={"application_name": "shop"})
    attach(engine, WEB)
    with engine.connect():
        assert len(database.backends("shop")) == 1


def test_waits_and_timeouts_are_counted_also_after_dispose(make_engine):
    """`dispose` makes a new pool, which is measured too."""
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=60)
    attached = attach(engine, WEB)
    backend(engine)
    engine.dispose()
    with ThreadPoolExecutor(1) as thread:
        with engine.connect():
            waiting = thread.submit(backend, engine)
            wait_until(lambda: attached.snapshot().waiting == 1, "a checkout that waits")
            engine.pool._timeout = 0.1  # of the next one alone
            with pytest.raises(exc.TimeoutError):
                backend(engine)
            found = attached.snapshot()
            assert (found.waiting, found.checkout_timeouts, found.checkouts) == (1, 1, 2)
        assert waiting.result(timeout=60)
    found = attached.snapshot()
    assert (found.waiting, found.checkout_timeouts, found.checkouts) == (0, 1, 3)
    assert (found.opened, found.closed) == (2, 1)
    assert found.connect_time.count == 2
    assert isinstance(engine.pool, QueuePool)


def test_an_attempt_to_connect_to_a_full_server_is_tried_again(database, make_engine, monkeypatch):
    """The checkout waits until there is room; one that waits in vain is one failure."""
    limit = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}")
    name = sql.Identifier(database.name)
    database.execute(limit.format(name, sql.Literal(0)))
    hasty, patient = make_engine(), make_engine()
    attached = attach(hasty, WEB.replace(connect_timeout=20))
    attach(patient, WEB)
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(presets, "time", clock)
        patch.setattr(presets, "_sleep", clock.sleep)
        with pytest.raises(exc.OperationalError, match="too many connections"):
            backend(hasty)
    assert clock.pauses
    assert attached.snapshot().connect_failures == 1
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(backend, patient)
        database.execute(limit.format(name, sql.Literal(-1)))
        assert waiting.result(timeout=100)


def test_an_asynchronous_engine_is_attached_in_the_same_way(database):
    """Its checks, name and metrics are those of web_async."""

    async def scenario():
        engine = create_async_engine(database.url("asyncpg"), pool_size=2, max_overflow=1)
        attached = attach(engine)
        for _ in range(2):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
            names = database.backends("web_async:")
            database.terminate_backends()
        await engine.dispose()
        return attached, names

    attached, names = asyncio.run(scenario())
    assert len(names) == 1
    assert attached.ceiling == 3
    assert (attached.snapshot().opened, attached.snapshot().checkouts) == (2, 2)


@pytest.mark.parametrize(
    ("options", "ceiling"),
    [
        ({}, 15),
        ({"pool_size": 2, "max_overflow": 3}, 5),
        ({"max_overflow": -1}, None),
        ({"pool_size": 0}, None),
        ({"poolclass": NullPool}, None),
        ({"poolclass": StaticPool}, 1),
    ],
)
def test_the_ceiling_is_the_engines_own(make_engine, options, ceiling):
    """The preset's numbers are not the engine's; a pool without a limit has none."""
    assert attach(make_engine(**options), WEB).ceiling == ceiling


def test_what_attach_cannot_change_is_listed(make_engine):
    """The pool's settings at once, those of connections after the first one."""
    engine = make_engine(pool_size=7, connect_args={"connect_timeout": 60})
    attached = attach(engine, WEB)
    found = {each.setting: (each.preset, each.engine) for each in attached.differences}
    assert found == {
        "pool_size": (20, 7),
        "pool_timeout": (10.0, 30.0),
        "pool_use_lifo": (True, False),
    }
    backend(engine)
    found = {each.setting: each.engine for each in attached.differences}
    assert found["options"] is None
    assert "connect_timeout" not in found
    assert "pool_size: 7, preset web/prod: 20" in str(attached)
    assert str(engine.url.password) not in str(attached)


def test_another_kind_of_pool_is_the_one_difference_of_the_pool(make_engine):
    """The numbers of a QueuePool say nothing about a NullPool."""
    attached = attach(make_engine(poolclass=NullPool), WEB)
    assert [tuple(each) for each in attached.differences] == [("pool", "QueuePool", "NullPool")]


def test_an_engine_of_a_preset_gets_the_metrics_alone(database):
    """It has the checks already, and differs in nothing."""
    engine = WEB.create_engine(database.url())
    attached = attach(engine, WEB)
    backend(engine)
    assert (attached.snapshot().opened, attached.differences) == (1, ())
    engine.dispose()


def test_an_engine_is_attached_once(make_engine):
    """A second time would count everything twice."""
    engine = make_engine()
    attach(engine, WEB)
    with pytest.raises(ConfigurationError, match="attached already"):
        attach(engine, WEB)


def test_a_preset_for_the_other_kind_of_engine_is_refused(make_engine):
    """The message names a fitting driver."""
    with pytest.raises(PresetError, match="asyncpg"):
        attach(make_engine(), preset("web_async"))


def test_sqlite_gets_metrics_and_no_checks(tmp_path):
    """It has no server that could close a connection."""
    engine = create_engine(f"sqlite:///{tmp_path / 'notes.db'}")
    attached = attach(engine, WEB)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert attached.snapshot().checkouts == 1
    engine.dispose()
