"""The unit of work: begin, commit or roll back, return the connection.

A connection is held until the commit or the rollback, not only while a statement runs. With an
engine it is held from the beginning of the block, with a sessionmaker from its first statement. It
is returned at the end of the block, also after an exception.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from traceback import walk_tb
from typing import TYPE_CHECKING, Protocol, TypeVar

from sqlalchemy import exc

from poolkit.errors import DatabaseUnavailable, PoolExhausted, PoolkitError, StatementTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from sqlalchemy.engine import Dialect
    from sqlalchemy.orm import Session

__all__ = (
    "AsyncBeginnable",
    "Beginnable",
    "refuse_flush",
    "sqlstate",
    "translate",
    "translate_driver",
    "translate_refusal",
    "translated",
    "unit_of_work",
    "unit_of_work_async",
)

Work = TypeVar("Work", covariant=True)  # noqa: PLC0105  (the word of the domain)


class Beginnable(Protocol[Work]):
    """An object with `begin()`: an Engine (gives a Connection) or a sessionmaker (a Session)."""

    def begin(self) -> AbstractContextManager[Work]:
        """Open a transaction that ends with the block."""
        ...


class AsyncBeginnable(Protocol[Work]):
    """An object with an asynchronous `begin()`: an AsyncEngine or an async_sessionmaker."""

    def begin(self) -> AbstractAsyncContextManager[Work]:
        """Open a transaction that ends with the block."""
        ...


@contextmanager
def unit_of_work(source: Beginnable[Work]) -> Iterator[Work]:
    """Commit on success, roll back on any exception, and return the connection in both cases.

        with unit_of_work(engine) as connection:
            connection.execute(text("INSERT INTO ..."))

        with unit_of_work(sessionmaker(engine)) as session:
            session.add(article)

    Args:
        source: an Engine or a sessionmaker.

    Raises:
        PoolExhausted: no connection became free within the pool's timeout.
        DatabaseUnavailable: the database cannot be reached, or went away in the middle;
            after a failed commit it is not known whether the work was done.
        StatementTimeout: a statement took longer than `statement_timeout`.
    """
    with translated(), source.begin() as work:
        yield work


@asynccontextmanager
async def unit_of_work_async(source: AsyncBeginnable[Work]) -> AsyncIterator[Work]:
    """As `unit_of_work`, for an AsyncEngine or an async_sessionmaker."""
    with translated():
        async with source.begin() as work:
            yield work


@contextmanager
def translated() -> Iterator[None]:
    """Translate database and pool errors into poolkit's exceptions; let all others through.

    For work on connections that is no unit of work.

    Raises:
        PoolExhausted, DatabaseUnavailable, StatementTimeout: as `unit_of_work`.
    """
    try:
        yield
    except Exception as error:
        known = translate(error)
        if known is None:
            raise
        raise known from error


def refuse_flush(session: Session, *_: object) -> None:
    """Refuse what a session in autocommit would write; a listener of `before_flush`.

    Raises:
        sqlalchemy.exc.InvalidRequestError: always.
    """
    raise exc.InvalidRequestError(
        "read_session reads only, and what it flushed would be committed at once: use session"
    )


def translate(error: BaseException) -> PoolkitError | None:
    """Return poolkit's exception for a failure of the database or the pool, else None."""
    if isinstance(error, exc.TimeoutError):
        return PoolExhausted(f"no connection became free: {error}")
    if isinstance(error, exc.DBAPIError):
        # A failed connect has no SQLSTATE in psycopg2 and psycopg.
        unnamed = isinstance(error, exc.OperationalError) and _code(error.orig) is None
        return translate_driver(error.orig, lost=error.connection_invalidated or unnamed)
    if isinstance(error, PoolkitError):
        return None
    # asyncpg lets the operating system's own errors through: refused, reset, no such host. The
    # work may have sockets and files of its own, whose errors are not the database's. So one
    # counts if SQLAlchemy was opening or using a connection when it was raised.
    modules = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    if not any(module.startswith(_CONNECTION) for module in modules):
        return None
    if isinstance(error, OSError):
        return DatabaseUnavailable(f"the database cannot be reached: {_first_line(error)}")
    # SQLAlchemy 2.0 does not wrap the errors that asyncpg raises while it connects.
    return translate_driver(error) if isinstance(_code(error), str) else None


def translate_refusal(error: Exception, dialect: Dialect) -> DatabaseUnavailable | None:
    """Return DatabaseUnavailable for an error raised while a connection was opened, else None.

    It covers every reason of the server: a missing database, a role without the right to connect, a
    certificate that is not trusted. A mistake in the arguments, found before any server was asked,
    stays the driver's own error.
    """
    if isinstance(error, PoolkitError):
        return None
    if isinstance(error, OSError):
        return DatabaseUnavailable(f"the database cannot be reached: {_first_line(error)}")
    dbapi = dialect.loaded_dbapi
    kinds: tuple[type[BaseException], ...] = (dbapi.Error,)
    asyncpg = getattr(dbapi, "asyncpg", None)
    if asyncpg is not None:  # SQLAlchemy 2.0 does not wrap its errors while it connects
        kinds += (asyncpg.PostgresError, asyncpg.InternalClientError)
    if not isinstance(error, kinds):
        return None
    mistakes = (dbapi.ProgrammingError, dbapi.InterfaceError)
    if isinstance(error, mistakes) and _code(error) is None:
        return None
    return DatabaseUnavailable(f"the database is not available: {_first_line(error)}")


def translate_driver(error: BaseException | None, *, lost: bool = False) -> PoolkitError | None:
    """Return poolkit's exception for a driver's error, else None; `lost` if a connection broke."""
    code = _code(error)
    if code in _STATEMENT_TIMEOUTS:
        return StatementTimeout("the statement took longer than statement_timeout")
    if isinstance(code, str):
        # 08 connection exception, 53 insufficient resources, 57P operator intervention,
        # 25P03 idle in transaction too long, 28 credentials refused (PostgreSQL, Appendix A).
        unavailable = code[:2] in {"08", "53", "28"} or code[:3] == "57P" or code == "25P03"
    elif hasattr(error, "sqlite_errorcode"):
        unavailable = code is not None and code & 0xFF in _SQLITE_UNAVAILABLE
    else:
        unavailable = code in _MYSQL_UNAVAILABLE
    if lost or unavailable:
        return DatabaseUnavailable(f"the database is not available: {_first_line(error)}")
    return None


def sqlstate(error: BaseException | None) -> str | None:
    """Return PostgreSQL's SQLSTATE of a driver's error, or None."""
    code = _code(error)
    return code if isinstance(code, str) else None


_CONNECTION = ("sqlalchemy.pool.", "sqlalchemy.dialects.", "sqlalchemy.connectors.")

# PostgreSQL query_canceled; MySQL ER_QUERY_TIMEOUT; MariaDB ER_STATEMENT_TIMEOUT.
_STATEMENT_TIMEOUTS = ("57014", 3024, 1969)
# MySQL: too many connections (of all, of one user), shutdown, access denied; the client's own
# "cannot connect", "gone away" and "lost connection".
_MYSQL_UNAVAILABLE = (1040, 1203, 1053, 1044, 1045, 2002, 2003, 2005, 2006, 2013)
# SQLite's result codes BUSY, LOCKED, IOERR, FULL, CANTOPEN; an extended code has more above.
_SQLITE_UNAVAILABLE = (5, 6, 10, 13, 14)


def _code(error: BaseException | None) -> str | int | None:
    """Return PostgreSQL's SQLSTATE, or the error number of SQLite or MySQL, or None."""
    number = error.args[0] if error is not None and error.args else None
    if isinstance(number, int):  # before SQLSTATE, which PyMySQL's errors have too, but vaguer
        return number
    for name in ("sqlite_errorcode", "sqlstate", "pgcode"):
        code = getattr(error, name, None)
        if isinstance(code, str | int):
            return code
    return None


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
