"""The tables of the integrations, on every kind of session and connection."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from poolkit.tables import (
    MAX_ERROR_CHARACTERS,
    list_dead_letters,
    metadata,
    record_dead_letter,
)


class Endless(list):
    """A list that contains itself."""

    def __init__(self):
        super().__init__()
        self.append(self)


@pytest.fixture
def tables(database) -> Any:
    """Give a database with the integrations' tables and no other."""
    engine = create_engine(database.url(), poolclass=NullPool)
    metadata.create_all(engine)
    return database


@pytest.fixture(params=["connection", "session", "async session"])
def run(request, tables) -> Callable[..., Any]:
    """Call a function with a connection or session, in a transaction of its own."""
    engine = create_engine(tables.url(), poolclass=NullPool)
    async_engine = create_async_engine(tables.url("asyncpg"), poolclass=NullPool)

    async def run_async(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        async with async_sessionmaker(async_engine).begin() as session:
            return await session.run_sync(function, **arguments)

    def run(function: Callable[..., Any], **arguments: Any) -> Any:
        if request.param == "async session":
            return asyncio.run(run_async(function, arguments))
        source = engine if request.param == "connection" else sessionmaker(engine)
        with source.begin() as work:
            return function(work, **arguments)

    return run


@pytest.mark.parametrize(
    ("payload", "kept"),
    [
        ({"id": "a", "n": [1, None, True, "ä"]}, {"id": "a", "n": [1, None, True, "ä"]}),
        ("nul \0 and lone \ud800", "nul \0 and lone \ud800"),
        (b"\xff\x00raw", repr(b"\xff\x00raw")),
        (float("nan"), "nan"),
        (Endless(), "[[...]]"),
        (None, None),
    ],
    ids=["json", "unstorable-text", "bytes", "nan", "endless", "null"],
)
def test_dead_letter_keeps_its_message_whatever_it_is(run, payload, kept):
    """JSON is kept as it is, NUL and lone surrogates included, anything else as its repr."""
    given = {"source": "ingest\0", "message_id": "m\ud800", "error": ValueError("bad")}
    letter = run(record_dead_letter, **given, payload=payload, attempts=3)
    assert (letter.payload, letter.attempts) == (kept, 3)
    assert (letter.source, letter.message_id) == ("ingest\\x00", "m\\ud800")
    assert (letter.error_type, letter.error) == ("builtins.ValueError", "bad")
    assert run(list_dead_letters) == [letter]


def test_dead_letter_keeps_its_error_within_bounds(run):
    """An error's text is stored escaped, and cut where it is longer than a page can use."""
    error = LookupError("no article\0" + "x" * MAX_ERROR_CHARACTERS)
    given = {"source": "s", "message_id": "m", "payload": None, "error": error}
    letter = run(record_dead_letter, **given, attempts=1)
    assert letter.error.startswith("no article\\x00xxx")
    assert len(letter.error) == MAX_ERROR_CHARACTERS


def test_same_message_dead_again_replaces_its_record(run):
    """A source and a message's id name one record, which holds the last failure."""
    letters = []
    for source, n in [("a", 1), ("b", 2), ("a", 3)]:
        given = {"source": source, "message_id": "m", "payload": n, "error": ValueError(str(n))}
        letters.append(run(record_dead_letter, **given, attempts=n))
    assert letters[2].id == letters[0].id
    assert letters[2].failed_at > letters[0].failed_at
    assert run(list_dead_letters) == [letters[1], letters[2]]
    assert run(list_dead_letters, limit=1) == [letters[1]]


def test_tables_equal_those_that_autogenerate_finds(tables):
    """A migration made from this metadata has nothing left to change."""
    with create_engine(tables.url(), poolclass=NullPool).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
