"""What claims without an experiment are about, where no other test shows it."""

import asyncio
import logging
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from sqlalchemy import QueuePool, create_engine


@pytest.fixture
def pool_log(caplog):
    """A function that uses a pool at a level of logging, and returns what was logged."""

    def use(level):
        caplog.clear()
        with caplog.at_level(level, logger="sqlalchemy.pool"):
            engine = create_engine("sqlite://", poolclass=QueuePool)
            engine.connect().close()
            engine.dispose()
        return " ".join(record.getMessage() for record in caplog.records)

    return use


def test_checkouts_are_logged_at_debug_not_at_info(pool_log):
    """INFO has the end of a pool, and DEBUG each checkout and return too."""
    info, debug = pool_log(logging.INFO), pool_log(logging.DEBUG)
    assert "Pool disposed" in info
    assert "checked out" not in info
    assert "checked out from pool" in debug
    assert "being returned to pool" in debug


def test_a_startup_handler_beside_a_lifespan_is_not_called():
    """`on_event` is deprecated, and an application that has a lifespan ignores it."""
    happened = []

    @asynccontextmanager
    async def lifespan(app):
        happened.append("lifespan")
        yield

    app = FastAPI(lifespan=lifespan)
    with pytest.warns(DeprecationWarning, match="on_event is deprecated"):
        app.on_event("startup")(lambda: happened.append("on_event"))

    async def start():
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(start())
    assert happened == ["lifespan"]
