"""The unit of work: begin, commit or roll back, give the connection back.

A connection is held from the first statement until the commit, the rollback or the close,
not only while a statement runs. Whatever happens inside the block, it goes back at the end.
"""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

from sqlalchemy import exc

from poolkit.errors import DatabaseUnavailable, PoolExhausted, StatementTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from poolkit.errors import PoolkitError

Work = TypeVar("Work", covariant=True)  # noqa: PLC0105  (the word of the domain)


class Beginnable(Protocol[Work]):
    """What has `begin()`: an Engine (gives a Connection) or a sessionmaker (a Session)."""

    def begin(self) -> AbstractContextManager[Work]:
        """Open a transaction that ends with the block."""
        ...


class AsyncBeginnable(Protocol[Work]):
    """What has an asynchronous `begin()`: an AsyncEngine or an async_sessionmaker."""

    def begin(self) -> AbstractAsyncContextManager[Work]:
        """Open a transaction that ends with the block."""
        ...


@contextmanager
def unit_of_work(source: Beginnable[Work]) -> Iterator[Work]:
    """Commit on success, roll back on any exception, give the connection back either way.

    Args:
        source: an Engine or a sessionmaker.

    Raises:
        PoolExhausted: no connection became free within the pool's timeout.
        DatabaseUnavailable: the database cannot be reached, or went away in the middle;
            after a failed commit it is not known whether the work was done.
        StatementTimeout: a statement took longer than `statement_timeout`.
    """
    try:
        with source.begin() as work:
            yield work
    except (exc.TimeoutError, exc.DBAPIError, OSError) as error:
        translated = translate(error)
        if translated is None:
            raise
        raise translated from error


@asynccontextmanager
async def unit_of_work_async(source: AsyncBeginnable[Work]) -> AsyncIterator[Work]:
    """As `unit_of_work`, for an AsyncEngine or an async_sessionmaker."""
    try:
        async with source.begin() as work:
            yield work
    except (exc.TimeoutError, exc.DBAPIError, OSError) as error:
        translated = translate(error)
        if translated is None:
            raise
        raise translated from error


def translate(error: BaseException) -> PoolkitError | None:
    """Return the kit's word for a failure that is the database's or the pool's, else None."""
    if isinstance(error, exc.TimeoutError):
        return PoolExhausted(f"no connection became free: {error}")
    if not isinstance(error, exc.DBAPIError):
        return _translate_os_error(error)
    state = _sqlstate(error.orig)
    if state == "57014":  # query_canceled
        return StatementTimeout("the statement took longer than statement_timeout")
    if error.connection_invalidated or _is_unavailable(state, error):
        return DatabaseUnavailable(f"the database is not available: {_first_line(error.orig)}")
    return None


def _translate_os_error(error: BaseException) -> PoolkitError | None:
    # asyncpg lets the operating system's own errors through: refused, reset, no such host.
    # An OSError of the work itself (a file, say) has no business here: only those of a socket.
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return DatabaseUnavailable(f"the database cannot be reached: {_first_line(error)}")
    return None


def _is_unavailable(state: str | None, error: exc.DBAPIError) -> bool:
    if state is None:
        # A failed connect has no SQLSTATE in psycopg2 and psycopg.
        return isinstance(error, exc.OperationalError)
    # 08 connection exception, 53 insufficient resources, 57P operator intervention,
    # 25P03 idle in transaction too long, 28 credentials refused (PostgreSQL, Appendix A).
    return state[:2] in {"08", "53", "28"} or state[:3] == "57P" or state == "25P03"


def _sqlstate(error: BaseException | None) -> str | None:
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state if isinstance(state, str) else None


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
