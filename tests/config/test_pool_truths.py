"""What people get wrong about engines, sessions and pools, stated by running it."""

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from poolkit.config.presets import preset


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
