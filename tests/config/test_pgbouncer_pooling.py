"""Transaction pooling through a real PgBouncer, which moves transactions between servers."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from driving import Client
from programs import needs_pgbouncer
from sqlalchemy import text

from poolkit.config.presets import preset
from poolkit.local.pgbouncer import EmbeddedPgBouncer

pytestmark = needs_pgbouncer

STATEMENTS = (
    "SELECT 1",
    "SELECT ARRAY[1, 2] AS numbers",
    "SELECT 'a'::mood AS mood",
    "SELECT ARRAY['a'::mood] AS moods",
    """SELECT '{"a": 1}'::jsonb AS document""",
    "SELECT ROW(1, 'x')::pair AS pair",
)


@pytest.fixture
def bouncer(postgres, database, tmp_path):
    database.execute("CREATE TYPE mood AS ENUM ('a', 'b')")
    database.execute("CREATE TYPE pair AS (n int, t text)")
    with EmbeddedPgBouncer(postgres, tmp_path, pool_size=2) as bouncer:
        yield bouncer


def _transaction(connection, number):
    for statement in STATEMENTS:
        assert connection.execute(text(statement)).first() is not None
    bound = connection.execute(text("SELECT CAST(:n AS int) + 1"), {"n": number})
    assert bound.scalar() == number + 1


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_threads_share_two_server_connections(bouncer, database, driver):
    """Many concurrent transactions, no error about a prepared statement, no startup option."""
    patient = preset("lambda_proxy", "prod").replace(connect_timeout=60)
    engine = patient.create_engine(bouncer.url(database.name, driver))

    def work(offset):
        for number in range(offset, offset + 5):
            with engine.begin() as connection:
                _transaction(connection, number)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(0, 80, 10)))  # an error in a thread is raised here
    # PgBouncer's own connections carry the application's name on to the server.
    assert 1 <= len(database.backends("lambda_proxy")) <= 2


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("ping_after_idle", [0.5, 0])
def test_tasks_share_two_server_connections(bouncer, database, driver, ping_after_idle):
    """The asynchronous drivers, which prepare everything, prepare without a name here."""
    pooled = preset("web_async", "prod").replace(
        transaction_pooling=True,
        pool_size=8,
        max_overflow=0,
        ping_after_idle=ping_after_idle,
        connect_timeout=60,
    )
    client = Client(pooled, bouncer.url(database.name, driver))

    async def task(offset):
        for number in range(offset, offset + 5):
            async with client.engine.begin() as connection:
                await connection.run_sync(_transaction, number)

    async def all_tasks():
        await asyncio.gather(*(task(10 * n) for n in range(8)))

    client.runner.run(all_tasks())
    assert 1 <= len(database.backends("web_async")) <= 2
    client.close()


def test_the_other_presets_are_refused_there(bouncer, database):
    """What sends startup options does not pass: the reason for the preset of its own."""
    engine = preset("lambda", "prod").create_engine(bouncer.url(database.name))
    with pytest.raises(Exception, match="options"), engine.connect():
        pass
