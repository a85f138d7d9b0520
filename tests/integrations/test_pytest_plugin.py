"""The fixture `pool_baseline`, as another project's tests use it."""

import pytest
from processes import run_python

TESTS = """
import asyncio, os, time
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

SELECT = text("SELECT 1")
kept, kept_async = [], []


@pytest.fixture
def engine():
    engine = create_engine(os.environ["URL"])
    yield engine
    engine.dispose()


def test_clean(engine, pool_baseline):
    pool_baseline(engine, idle_ms=60_000)
    with Session(engine) as session:
        session.execute(SELECT)


def test_out(engine, pool_baseline):
    connection = engine.connect()  # out
    connection.execute(SELECT)
    kept.append(connection)


def test_collected(engine, pool_baseline):
    Session(engine).execute(SELECT)  # collected


def test_idle(engine, pool_baseline):
    pool_baseline(engine, idle_ms=50)
    with Session(engine) as session:
        session.execute(SELECT)  # idle
        time.sleep(0.2)


def test_slow_sql_is_not_idle(engine, pool_baseline):
    began = time.perf_counter()
    with Session(engine) as session:
        session.execute(text("SELECT pg_sleep(0.4)"))
    # All but the sleep, however long a busy machine takes.
    pool_baseline(engine, idle_ms=(time.perf_counter() - began - 0.4) * 1000)


def test_raw_connection_is_not_idle(engine, pool_baseline):
    pool_baseline(idle_ms=50)
    raw = engine.raw_connection()
    time.sleep(0.1)
    raw.close()


def test_other_engine(engine, pool_baseline):
    pool_baseline(create_engine("sqlite://"))
    kept.append(engine.connect())


def test_async_out(pool_baseline):
    async def work():
        engine = create_async_engine(os.environ["ASYNC_URL"])
        connection = await engine.connect()  # async out
        await connection.execute(SELECT)
        return engine, connection

    runner = asyncio.Runner()
    kept_async.extend([runner, *runner.run(work())])


def test_async_clean(pool_baseline):
    async def work():
        engine = create_async_engine(os.environ["ASYNC_URL"])
        async with engine.connect() as connection:
            await connection.execute(SELECT)
        await engine.dispose()

    asyncio.run(work())


def test_dialect_is_as_it_was(engine, pool_baseline):
    with engine.connect():
        pass
    assert "do_execute" in vars(engine.dialect)
    pool_baseline.stop()
    assert "do_execute" not in vars(engine.dialect)
    pool_baseline.start()


def test_end():
    runner, engine, connection = kept_async
    runner.run(connection.close())
    runner.run(engine.dispose())
    runner.close()
"""
FAULTS = {
    "test_out": ("did not come back", "# out"),
    "test_collected": ("was never closed", "# collected"),
    "test_idle": ("without SQL", "# idle"),
    "test_async_out": ("did not come back", "# async out"),
}


@pytest.mark.process
def test_a_connection_that_is_kept_or_idle_fails_its_test_with_its_line(database, tmp_path):
    """Each fault is an error of its own test; tests without one pass."""
    file = tmp_path / "test_shop.py"
    file.write_text(TESTS)
    urls = {"URL": database.url(), "ASYNC_URL": database.url("asyncpg")}
    # Under its module's name, so that it is this checkout's, installed or not.
    plugin = ["-p", "no:poolkit", "-p", "poolkit.pytest_plugin"]
    options = ["-q", "-rA", "--no-header", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    done = run_python("-u", "-m", "pytest", *plugin, *options, file, environ=urls)
    lines = TESTS.splitlines()
    for test, (what, comment) in FAULTS.items():
        line = next(i for i, each in enumerate(lines, 1) if each.endswith(comment))
        _, _, report = done.stdout.partition(f"ERROR at teardown of {test} ")
        (message,) = [each for each in report.splitlines()[1:2] if each]
        assert what in message
        assert f"test_shop.py:{line} in {test}" in message
    assert done.stdout.count("ERROR at teardown") == len(FAULTS)


@pytest.mark.process
def test_the_plugin_costs_pytest_next_to_nothing():
    """It imports neither SQLAlchemy nor the rest of poolkit before a test asks for the fixture."""
    code = "import sys, pytest, poolkit.pytest_plugin; print(*sys.modules)"
    found = run_python("-c", code).stdout.split()
    assert "sqlalchemy" not in found
    assert {each for each in found if each.startswith("poolkit")} == {
        "poolkit",
        "poolkit.pytest_plugin",
    }
