"""The unit of work, written once for engines and session factories, threads and event loop."""

import asyncio
import gc
import socket

import pytest
from processes import ROOT
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from poolkit.config.engine import make_engine
from poolkit.config.session import unit_of_work, unit_of_work_async
from poolkit.config.settings import Settings
from poolkit.errors import DatabaseUnavailable, PoolExhausted, StatementTimeout

KINDS = ("engine", "sessionmaker", "async engine", "async sessionmaker", "async psycopg engine")
OPTIONS = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.2}


class Work:
    """A unit of work of one kind: `run` gives `execute` to a function and returns its result."""

    def __init__(self, kind: str, database) -> None:
        self.is_async = kind.startswith("async")
        driver = "psycopg" if "psycopg" in kind else "asyncpg" if self.is_async else "psycopg2"
        make = create_async_engine if self.is_async else create_engine
        self.engine = make(database.url(driver), **OPTIONS)
        self.pool = getattr(self.engine, "sync_engine", self.engine).pool
        self.runner = asyncio.Runner()
        factory = async_sessionmaker if self.is_async else sessionmaker
        self.source = factory(self.engine) if "sessionmaker" in kind else self.engine

    def run(self, work, then=lambda: None):
        """Run `work(execute)` in a unit of work, and `then` inside it afterwards."""
        if self.is_async:
            return self.runner.run(self._run_async(work, then))
        with unit_of_work(self.source) as connection:
            result = work(lambda statement: connection.execute(text(statement)))
            then()
            return result

    async def _run_async(self, work, then):
        async with unit_of_work_async(self.source) as connection:
            sync = getattr(connection, "sync_session", None) or connection.sync_connection
            result = await connection.run_sync(
                lambda _: work(lambda statement: sync.execute(text(statement)))
            )
            then()
            return result

    def scalar(self, statement):
        return self.run(lambda execute: execute(statement).scalar())

    def close(self) -> None:
        if self.is_async:
            self.runner.run(self.engine.dispose())
        else:
            self.engine.dispose()
        self.runner.close()


@pytest.fixture(params=KINDS)
def work(request, database):
    database.execute("CREATE TABLE t (n int PRIMARY KEY)")
    database.execute("GRANT ALL ON t TO PUBLIC")
    work = Work(request.param, database)
    yield work
    assert work.pool.checkedout() == 0, "a connection was not given back"
    work.close()


def insert(execute):
    execute("INSERT INTO t VALUES (1)")


def test_success_commits(work, database):
    """Other sessions see the block's changes once it has ended."""
    work.run(insert)
    assert len(database.execute("SELECT * FROM t")) == 1
    assert work.pool.checkedout() == 0


def test_a_connection_is_held_until_the_block_ends(work):
    """By an engine's unit of work from the beginning on, by a session's from its first statement."""
    held = []
    work.run(lambda execute: held.append(work.pool.checkedout()))
    work.run(lambda execute: execute("SELECT 1").all(), lambda: held.append(work.pool.checkedout()))
    at_once = not isinstance(work.source, sessionmaker | async_sessionmaker)
    assert held == [int(at_once), 1]
    assert work.pool.checkedout() == 0


@pytest.mark.parametrize(
    "kind", [ValueError, KeyError, SystemExit, asyncio.CancelledError, KeyboardInterrupt]
)
def test_any_exception_rolls_back(work, database, kind):
    """Nothing of a failed block stays, also after Ctrl-C; the exception is the caller's own."""
    error = kind("mine")

    def fail():
        raise error

    with pytest.raises(kind) as caught:
        work.run(insert, fail)
    # Under asyncio, Ctrl-C is raised anew by the runner.
    assert caught.value is error or kind is KeyboardInterrupt
    assert work.pool.checkedout() == 0
    assert database.execute("SELECT * FROM t") == []


def test_an_exhausted_pool_is_named(work):
    """No free connection within pool_timeout is PoolExhausted, which is a TimeoutError."""
    with pytest.raises(PoolExhausted) as caught:  # noqa: PT012  (one of the two)
        if work.is_async:
            work.runner.run(_two_at_once_async(work.source))
        else:
            _two_at_once(work.source)
    assert isinstance(caught.value, TimeoutError)


def _two_at_once(source):
    with unit_of_work(source) as outer:
        outer.execute(text("SELECT 1"))
        with unit_of_work(source) as inner:
            inner.execute(text("SELECT 1"))


async def _two_at_once_async(source):
    async with unit_of_work_async(source) as outer:
        await outer.execute(text("SELECT 1"))
        async with unit_of_work_async(source) as inner:
            await inner.execute(text("SELECT 1"))


def test_a_statement_timeout_is_named(work):
    """SQLSTATE 57014 is StatementTimeout."""

    def slow(execute):
        execute("SET LOCAL statement_timeout = 50")
        execute("SELECT pg_sleep(60)")

    with pytest.raises(StatementTimeout):
        work.run(slow)


@pytest.mark.parametrize("rest", ["SELECT 1", ""])
def test_a_lost_connection_is_named(work, database, rest):
    """A backend that is terminated during the work, or before the commit: DatabaseUnavailable."""

    def lose(execute):
        pid = execute("SELECT pg_backend_pid()").scalar()
        database.execute("SELECT pg_terminate_backend(%s, 60000)", pid)
        if rest:
            execute(rest)

    with pytest.raises(DatabaseUnavailable):
        work.run(lose)
    assert work.scalar("SELECT 1") == 1


@pytest.mark.parametrize(
    ("statement", "error"),
    [("SELECT nothing", ProgrammingError), ("INSERT INTO t VALUES (1), (1)", IntegrityError)],
)
def test_other_database_errors_stay(work, statement, error):
    """A mistake in the work is no failure of the database, and keeps its own error."""
    with pytest.raises(error):
        work.run(lambda execute: execute(statement))


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError("another service"), TimeoutError("another"), OSError("a file"),
     socket.gaierror("another name")],
)  # fmt: skip
def test_the_works_own_socket_errors_stay(work, error):
    """A call to another service that fails inside the block is not taken for the database."""

    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        work.run(lambda execute: execute("SELECT 1"), fail)
    assert caught.value is error


@pytest.mark.parametrize("where", ["refused", "no such host", "wrong password"])
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg", "psycopg async"])
def test_a_database_that_cannot_be_reached_is_named(database, driver, where):
    """Refused, not found or not let in: DatabaseUnavailable, a ConnectionError, for any driver."""
    port = database.server.port
    url = database.url(driver.split()[0])
    url = {
        "refused": url.replace(f":{port}/", ":1/"),
        "no such host": url.replace("127.0.0.1", "no-such-host.invalid"),
        "wrong password": url.replace(f":{database.server.password()}@", ":wrong@"),
    }[where]
    if driver in ("asyncpg", "psycopg async"):
        with pytest.raises(DatabaseUnavailable) as caught:
            asyncio.run(_one_async(url))
    else:
        with pytest.raises(DatabaseUnavailable) as caught, unit_of_work(create_engine(url)) as c:
            c.execute(text("SELECT 1"))
    assert isinstance(caught.value, ConnectionError)


async def _one_async(url):
    async with unit_of_work_async(create_async_engine(url)) as connection:
        await connection.execute(text("SELECT 1"))


def test_a_mistake_on_sqlite_is_no_unavailable_database():
    """SQLite calls a missing table an OperationalError, which it is not here."""
    from sqlalchemy.exc import OperationalError

    engine = create_engine("sqlite://")
    with pytest.raises(OperationalError), unit_of_work(engine) as connection:
        connection.execute(text("SELECT * FROM missing"))
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_reading_in_autocommit_sends_nothing_but_the_statement(database, driver):
    """Neither when autocommit begins nor when it ends, and units of work still have transactions."""
    variables = {
        "DATABASE_URL": database.url(driver),
        "POOLKIT_DRIVER": driver,
        "POOLKIT_ECHO": "false",
    }
    engine = make_engine(Settings.from_environ(variables))
    reading = engine.execution_options(isolation_level="AUTOCOMMIT")
    for _ in range(3):
        with reading.connect() as connection:
            connection.execute(text("SELECT 'read'"))
        (backend,) = database.backends("web:")
        assert (backend["query"], backend["state"]) == ("SELECT 'read'", "idle")
        with unit_of_work(engine) as connection:
            connection.execute(text("SELECT 'work'"))
            (backend,) = database.backends("web:")
            assert backend["state"] == "idle in transaction"
    with engine.execution_options(isolation_level="SERIALIZABLE").connect() as connection:
        assert connection.scalar(text("SHOW transaction_isolation")) == "serializable"
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"
    engine.dispose()


@pytest.mark.parametrize("kind", ["engine", "sessionmaker"])
def test_a_full_pool_names_the_unit_of_work_that_waits_inside_another(database, kind):
    """The pool is full because of the caller itself; the line of the inner one is in the message."""
    engine = create_engine(database.url(), **OPTIONS)
    source = sessionmaker(engine) if kind == "sessionmaker" else engine
    with unit_of_work(source) as outer:
        outer.execute(text("SELECT 1"))
        full = pytest.raises(PoolExhausted, match=r"waits for a second one")
        with full as caught, unit_of_work(source) as audit:  # the second one
            audit.execute(text("SELECT 2"))
    lines = (ROOT / "tests/config/test_unit_of_work.py").read_text().splitlines()
    line = next(i for i, each in enumerate(lines, 1) if each.endswith("# the second one"))
    assert f"test_unit_of_work.py:{line} in " in str(caught.value)
    full = pytest.raises(PoolExhausted)
    # The connection is not held by a unit of work around this one.
    with engine.connect(), full as caught, unit_of_work(source) as work:
        work.execute(text("SELECT 1"))
    assert "second one" not in str(caught.value)
    engine.dispose()


def test_a_full_pool_names_the_unit_of_work_that_waits_under_asyncio(database):
    """The task that asks has one already."""

    async def work():
        engine = create_async_engine(database.url("asyncpg"), **OPTIONS)
        async with unit_of_work_async(engine):
            with pytest.raises(PoolExhausted, match=r"in .*work holds .* waits for a second one"):
                async with unit_of_work_async(engine):
                    pass
        await engine.dispose()

    asyncio.run(work())


@pytest.fixture
def dropped(database):
    """A generator with an open unit of work, in a reference cycle, whose task is over."""

    class Response:
        def __init__(self, engine):
            self.rows, self.again = self.stream(engine), self

        async def stream(self, engine):
            async with unit_of_work_async(engine) as connection:
                for number in range(3):
                    yield await connection.scalar(text(f"SELECT {number}"))

    async def request(engine, kept):
        response = Response(engine)
        assert await anext(response.rows) == 0
        if kept is not None:
            kept.append(response.rows)

    return request


@pytest.mark.filterwarnings("ignore:The garbage collector is trying:sqlalchemy.exc.SAWarning")
def test_the_unit_of_work_of_a_dropped_generator_ends_soon(database, dropped):
    """A client hung up in the middle of a stream, and Starlette closes no generator."""

    async def work() -> int:
        engine = create_async_engine(database.url("asyncpg"), **OPTIONS)
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        async with asyncio.timeout(30):
            for _ in range(3):
                await asyncio.create_task(dropped(engine, None))
                while engine.pool.checkedout():  # noqa: ASYNC110  (a collection sets no event)
                    await asyncio.sleep(0.05)
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1
        await engine.dispose()
        return engine.pool.checkedout()

    gc.collect()
    gc.disable()  # no collection that comes by chance
    try:
        assert asyncio.run(work()) == 0
    finally:
        gc.enable()


def test_a_unit_of_work_may_end_in_another_task(database, dropped):
    """A fixture of pytest does: it is no garbage, and loses nothing by a collection."""

    async def work() -> list[int]:
        engine, kept = create_async_engine(database.url("asyncpg"), **OPTIONS), []
        await asyncio.create_task(dropped(engine, kept))
        await asyncio.sleep(0.5)
        assert engine.pool.checkedout() == 1
        rest = [number async for number in kept[0]]
        assert engine.pool.checkedout() == 0
        await engine.dispose()
        return rest

    assert asyncio.run(work()) == [1, 2]
