"""A connection that cannot be opened: the same error for every driver, whatever the reason."""

import asyncio

import pytest
from closed_databases import CLOSED
from sqlalchemy import event, text
from sqlalchemy.orm import sessionmaker

from poolkit.config.engine import make_async_engine, make_engine, start_async_engine, start_engine
from poolkit.config.session import unit_of_work, unit_of_work_async
from poolkit.config.settings import Settings
from poolkit.errors import DatabaseUnavailable


@pytest.fixture(params=CLOSED)
def closed_url(request, database):
    return CLOSED[request.param](database)


class Kit:
    """An engine of the kit for a driver, and the ways to ask it for a connection."""

    def __init__(self, driver, url, **environ) -> None:
        self.is_async = driver in ("asyncpg", "psycopg_async")
        target = "web_async" if self.is_async else "web"
        variables = {
            "DATABASE_URL": url,
            "POOLKIT_TARGET": target,
            "POOLKIT_DRIVER": driver.removesuffix("_async"),
            "POOLKIT_CONNECT_TIMEOUT": "60",
            "POOLKIT_ECHO": "off",
        }
        self.settings = Settings.from_environ(variables | environ)
        make = make_async_engine if self.is_async else make_engine
        self.engine = make(self.settings)

    def start(self):
        if self.is_async:
            return asyncio.run(start_async_engine(self.engine, self.settings))
        return start_engine(self.engine, self.settings)

    def connect(self):
        if self.is_async:
            asyncio.run(self._connect_async())
        else:
            self.engine.connect()

    async def _connect_async(self):
        await self.engine.connect()

    def work(self):
        if self.is_async:
            asyncio.run(self._work_async())
            return
        with unit_of_work(sessionmaker(self.engine)) as session:
            session.execute(text("SELECT 1"))

    async def _work_async(self):
        async with unit_of_work_async(self.engine) as connection:
            await connection.execute(text("SELECT 1"))


def test_a_closed_database_is_unavailable(driver, closed_url):
    """For each driver and reason a unit of work and a bare checkout raise DatabaseUnavailable."""
    kit = Kit(driver, closed_url)
    for attempt in (kit.work, kit.connect):
        with pytest.raises(DatabaseUnavailable, match="the database "):
            attempt()


def test_a_closed_database_ends_a_start_that_asks_for_one(driver, closed_url):
    """With `fail_fast` one error ends the start; its cause is the driver's own error."""
    with pytest.raises(DatabaseUnavailable) as caught:
        Kit(driver, closed_url, POOLKIT_FAIL_FAST="true").start()
    assert caught.value.__cause__ is not None


def test_prewarming_alone_starts_without_a_database(driver, closed_url, caplog):
    """Without `fail_fast` the start goes on, and reports what it could not open."""
    assert Kit(driver, closed_url, POOLKIT_PREWARM="2").start() == 0
    assert "opened 0 of 2 connections at start" in caplog.text


def test_a_mistake_in_the_arguments_stays_one(driver, database):
    """What no server was asked about is not called unavailable: it will not go away."""
    with pytest.raises(ValueError, match="no_such_parameter"):
        Kit(driver, database.url("") + "?no_such_parameter=1")
    kit = Kit(driver, database.url(""))
    engine = getattr(kit.engine, "sync_engine", kit.engine)
    event.listen(engine, "do_connect", lambda *given: given[-1].update(no_such_parameter=1))
    with pytest.raises(Exception, match="no_such_parameter") as caught:
        kit.connect()
    assert not isinstance(caught.value, DatabaseUnavailable)


def test_the_servers_words_are_passed_on(driver, database):
    """Who reads the log sees which database is missing."""
    with pytest.raises(DatabaseUnavailable, match='database "no_such_database" does not exist'):
        Kit(driver, database.server.url("no_such_database", "")).connect()
