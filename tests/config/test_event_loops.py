"""Asynchronous engines: of targets with a null pool, and in more than one event loop."""

import asyncio
import gc
import threading

import pytest
from driving import small_preset
from sqlalchemy import text
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool

from poolkit.config.engine import make_async_engine
from poolkit.config.presets import preset
from poolkit.config.settings import Settings

ASYNC = pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
# A loop that ends without `dispose()` leaves its transports to the garbage collector.
LEFT = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
COLLECTED = pytest.mark.usefixtures("collected")


@pytest.fixture
def collected():
    """Collect what the closed loops have left, while its warnings are ignored."""
    yield
    gc.collect()


@pytest.mark.parametrize(
    ("target", "poolclass"),
    [("lambda", NullPool), ("script", NullPool), ("lambda_warm", AsyncAdaptedQueuePool)],
)
@pytest.mark.parametrize("driver", ["", "asyncpg", "psycopg"])
def test_a_target_without_a_web_server_has_an_asynchronous_engine(
    target, poolclass, driver, database
):
    """With its own pool and limits; the URL's driver, or asyncpg."""
    engine = preset(target).create_async_engine(database.url(driver))

    async def ask():
        async with engine.connect() as connection:
            limit = await connection.scalar(text("SHOW statement_timeout"))
        if poolclass is NullPool:  # it keeps none
            await asyncio.to_thread(database.wait_for_backends, 0, target)
        await engine.dispose()
        return limit

    limit = asyncio.run(ask())
    assert limit == ("15s" if target == "script" else "10s")
    assert isinstance(engine.pool, poolclass)
    assert engine.dialect.driver == (driver or "asyncpg")


def test_settings_make_it_too(database):
    """A URL that names asyncpg needs POOLKIT_DRIVER, because the target is synchronous else."""
    variables = {
        "DATABASE_URL": database.url("asyncpg"),
        "POOLKIT_TARGET": "lambda",
        "POOLKIT_DRIVER": "asyncpg",
    }
    engine = make_async_engine(Settings.from_environ(variables))

    async def ask():
        async with engine.connect() as connection:
            return await connection.scalar(text("SELECT 1"))

    assert asyncio.run(ask()) == 1
    assert isinstance(engine.pool, NullPool)
    with pytest.raises(ValueError, match="web_async"):
        preset("web").asynchronous()


@LEFT
@COLLECTED
@ASYNC
def test_a_new_event_loop_gets_connections_of_its_own(driver, database):
    """One `asyncio.run` after the other, without `dispose()` between them."""
    engine = small_preset(driver, pool_size=1).create_async_engine(
        database.url(driver.removesuffix("_async"))
    )

    async def ask():
        async with engine.connect() as connection:
            return await connection.scalar(text("SELECT pg_backend_pid()"))

    pids = [asyncio.run(ask()) for _ in range(3)]
    assert engine.pool.checkedout() == 0
    if driver == "asyncpg":
        assert len(set(pids)) == 3
        # The server has ended those of the loops that are closed.
        database.wait_for_backends(1, "web")


@LEFT
@COLLECTED
@ASYNC
def test_two_event_loops_at_once_share_one_pool(driver, database):
    """Two threads, each with its loop: every request is answered, and no more are open than allowed."""
    engine = small_preset(driver, pool_size=2, pool_timeout=60).create_async_engine(
        database.url(driver.removesuffix("_async"))
    )
    answers = []

    async def ask():
        async with engine.connect() as connection:
            return await connection.scalar(text("SELECT 1"))

    async def work():
        for _ in range(15):
            answers.append(await ask())
            await asyncio.sleep(0.001)

    asyncio.run(ask())  # SQLAlchemy's first look at the server is for one loop alone
    threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [1] * 30
    assert engine.pool.checkedout() == 0
