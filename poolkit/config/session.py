"""The unit of work: begin, commit or roll back, return the connection.

A connection is held until the commit or the rollback, not only while a statement runs. With an
engine it is held from the beginning of the block, with a sessionmaker from its first statement. It
is returned at the end of the block, also after an exception.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from time import monotonic
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, exc

from poolkit.config.holds import call_site_text
from poolkit.config.presets import BreakerOpen
from poolkit.errors import (
    DatabaseUnavailable,
    LockTimeout,
    PoolExhausted,
    PoolkitError,
    StatementCancelled,
    StatementTimeout,
    TemporaryFailure,
    TransactionConflict,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import FrameType

    from sqlalchemy.engine import Dialect, ExceptionContext
    from sqlalchemy.orm import Session

__all__ = (
    "AsyncBeginnable",
    "Beginnable",
    "refuse_flush",
    "remember_failure",
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
        StatementCancelled: a statement was ended from outside, as by `pg_cancel_backend`.
        LockTimeout: a lock did not become free in time.
        TransactionConflict: a deadlock or a serialization failure; the work can be tried again.
    """
    with translated(), _named_if_nested(source), source.begin() as work:
        yield work


@asynccontextmanager
async def unit_of_work_async(source: AsyncBeginnable[Work]) -> AsyncIterator[Work]:
    """As `unit_of_work`, for an AsyncEngine or an async_sessionmaker.

    In a generator that is dropped with its request, because the client hung up, it ends soon after.
    """
    task = asyncio.current_task()
    if task is not None:
        task.add_done_callback(_collect_dropped)
    try:
        with translated(), _named_if_nested(source):
            async with source.begin() as work:
                yield work
    finally:
        if task is not None:
            task.remove_done_callback(_collect_dropped)


_collects_at, _took = 0.0, 0.0


def _collect_dropped(task: asyncio.Task[Any]) -> None:
    """Let the garbage collector end the unit of work of a task that is over.

    Starlette never closes the generator of a StreamingResponse whose client hung up. A reference cycle
    keeps it, with its connection, until the next full collection, which a quiet process does not do
    for hours. A unit of work that another task will end is no garbage, and stays as it is.
    """
    global _collects_at  # noqa: PLW0603

    def collect() -> None:
        global _took  # noqa: PLW0603
        began = monotonic()
        gc.collect()
        _took = monotonic() - began

    # Many clients may hang up: no more than a tenth of the time is for this.
    if _collects_at <= (now := monotonic()):
        pause = max(0.2, 10 * _took)
        _collects_at = now + pause
        task.get_loop().call_later(pause, collect)


class _Open:
    """A unit of work that has not ended, and the pool of its connection."""

    def __init__(self, source: object) -> None:
        bind = getattr(source, "kw", {}).get("bind") if hasattr(source, "kw") else source
        self.pool = getattr(getattr(bind, "sync_engine", bind), "pool", None)
        self.has_ended = False


_around: ContextVar[tuple[_Open, ...]] = ContextVar("poolkit_units_of_work", default=())


@contextmanager
def _named_if_nested(source: object) -> Iterator[None]:
    """Say in the error of a full pool that the caller holds a connection of it already.

    With PoolMetrics the pool itself says more: how many of its holders wait like that.
    """
    around, this = _around.get(), _Open(source)
    token = _around.set((*around, this))
    try:
        yield
    except exc.TimeoutError as error:
        is_nested = any(each.pool is this.pool and not each.has_ended for each in around)
        if this.pool is not None and is_nested and not hasattr(error, "holders_named"):
            where = call_site_text(sys._getframe())  # noqa: SLF001
            why = f"{where} holds a connection of this pool already, and waits for a second one"
            error.args = (f"{error.args[0]}; the caller at {why}", *error.args[1:])
        raise
    finally:
        this.has_ended = True
        with suppress(ValueError):  # ended in another task than it began
            _around.reset(token)


class translated:  # noqa: N801  (used as a function; a generator is slower, for each request)
    """Translate database and pool errors into poolkit's exceptions; let all others through.

        with translated():
            ...

    For work on connections that is no unit of work.

    Raises:
        TemporaryFailure: one of its kinds, as `unit_of_work`.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        known = translate(error) if isinstance(error, Exception) else None
        if known is not None:
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
    """Return poolkit's exception for a failure of the database or the pool, else None.

    The program's own errors are None: a mistake in a statement, a connection used by two tasks at
    once, an OSError of a listener or a time limit of the program's own. docs/errors.md has the table.
    """
    if isinstance(error, PoolkitError):
        return None
    if isinstance(error, exc.SQLAlchemyError):
        return _translate_sqlalchemy(error)
    calls = _calls(error)
    if _driver_of(type(error).__module__) is not None:
        # Not from SQLAlchemy, which does not see what a driver does by itself, such as COPY. And
        # SQLAlchemy 2.0 does not wrap all errors of asyncpg.
        return translate_driver(error, lost=_is_lost(error))
    # asyncpg lets the operating system's own errors through: refused, reset, no such host. The
    # work may have sockets and files of its own, whose errors are not the database's.
    if isinstance(error, OSError | EOFError) and _is_of_driver(calls):
        if isinstance(error, TimeoutError) and not _is_opening(calls):
            return StatementTimeout("the statement took longer than the driver's own limit")
        return DatabaseUnavailable(f"the database cannot be reached: {_first_line(error)}")
    return None


def _translate_sqlalchemy(  # noqa: PLR0911  (one return for each kind)
    error: exc.SQLAlchemyError,
) -> PoolkitError | None:
    if isinstance(error, exc.TimeoutError | BreakerOpen):
        return _refused_by_the_pool(error)
    if isinstance(error, exc.PendingRollbackError):
        # The work has caught an error and gone on. 8s2b: the connection was lost. 7s2a: a flush has
        # failed, and the session's transaction, among the callers, knows with what.
        if error.code == "8s2b":
            return DatabaseUnavailable(
                "the database went away in the middle, and the work went on without rolling back"
            )
        callers = [frame.f_locals.get("self") for frame in _calls(error)]
        causes = [getattr(caller, "_rollback_exception", None) for caller in callers]
        return next((translate(cause) for cause in causes if cause is not None), None)
    # "This connection is closed": a checkout gives up after two connections that died at once.
    if type(error) is exc.InvalidRequestError and _is_call(
        _calls(error)[-1:], "sqlalchemy.pool.base", "_checkout"
    ):
        return DatabaseUnavailable("the database ends each session as soon as it has begun")
    # A preset's engine marks a write in a transaction that asked for READ ONLY: the program's own.
    requested = getattr(error, "read_only_was_requested", False)
    if not isinstance(error, exc.DBAPIError) or requested:
        return None
    if _code(error.orig) == _IN_FAILED_TRANSACTION:
        callers = [frame.f_locals.get("self") for frame in _calls(error)]
        connections = [caller for caller in callers if isinstance(caller, Connection)]
        return next((_failures[each] for each in connections if each in _failures), None)
    # MySQL's "commands out of sync" is the program's, although SQLAlchemy closes the connection.
    lost = error.connection_invalidated and _code(error.orig) != _OUT_OF_SYNC
    return translate_driver(error.orig, lost=lost)


def remember_failure(context: ExceptionContext) -> None:
    """Note what a statement has failed with; a listener of `handle_error`.

    PostgreSQL refuses all further statements of a failed transaction with 25P02, which says nothing
    of the reason. Work that has caught the first error and gone on meets only that.
    """
    error = context.original_exception
    if context.connection is not None and _code(error) != _IN_FAILED_TRANSACTION:
        _failures[context.connection] = translate_driver(error)


def _refused_by_the_pool(error: exc.TimeoutError | BreakerOpen) -> TemporaryFailure:
    refusal: TemporaryFailure = (
        DatabaseUnavailable(f"the database is not available: {error.orig}")
        if isinstance(error, BreakerOpen)
        else PoolExhausted(f"no connection became free: {error}")
    )
    # The presets' pools know when a new try makes sense, from the hold times or the pause.
    refusal.retry_after = getattr(error, "retry_after", refusal.retry_after)
    return refusal


def translate_refusal(error: Exception, dialect: Dialect) -> DatabaseUnavailable | None:
    """Return DatabaseUnavailable for an error raised while a connection was opened, else None.

    It covers every reason of the server: a missing database, a role without the right to connect, a
    certificate that is not trusted. A mistake in the arguments, found before any server was asked,
    stays the driver's own error; so does what the program raises itself, such as the TimeoutError of
    a signal handler.
    """
    if isinstance(error, PoolkitError):
        return None
    if isinstance(error, OSError):
        if not _is_of_driver(_calls(error)):
            return None
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
    kind: type[TemporaryFailure] | None = None
    if isinstance(code, str):
        by_length = [_BY_CODE[code[:n]] for n in (5, 3, 2) if code[:n] in _BY_CODE]
        kind = next(iter(by_length), None)
        if code == "57014" and "user request" in str(error):
            # One SQLSTATE for both. A server whose lc_messages is not English does not tell.
            kind = StatementCancelled
    elif hasattr(error, "sqlite_errorcode"):
        # An extended code has the primary one in its low byte.
        primary = code & 0xFF if code is not None else None
        kind = _BY_SQLITE_CODE.get(code, _BY_SQLITE_CODE.get(primary))
    elif code is not None:
        kind = _BY_CODE.get(code)
    elif error is not None and not lost:
        # A failed connect has no SQLSTATE in psycopg2 and psycopg. Neither has a mistake such as
        # two threads on one connection, so it counts only while a connection was being opened.
        opened = type(error).__name__ in _OPENING_ERRORS and _is_opening(_calls(error))
        kind = DatabaseUnavailable if opened else None
    if type(error).__name__ == "InvalidCachedStatementError":
        kind = TransactionConflict
    # Whatever the server refuses a new session for, such as a missing database. A statement that
    # misses something has other callers.
    connects = "sqlalchemy.engine.default", "connect"
    refused = error is not None and code is not None and _is_call(_calls(error), *connects)
    if kind is None and (lost or refused):
        kind = DatabaseUnavailable
    return None if kind is None else kind(f"{_TEXTS[kind]}: {_first_line(error)}")


def sqlstate(error: BaseException | None) -> str | None:
    """Return PostgreSQL's SQLSTATE of a driver's error, or None."""
    code = _code(error)
    return code if isinstance(code, str) else None


# PostgreSQL's SQLSTATEs (Appendix A), of which a longer one wins over its beginning, and the error
# numbers of MySQL and MariaDB. docs/errors.md is the same table, and a test makes each failure.
_BY_CODE: dict[str | int, type[TemporaryFailure] | None] = {
    "08": DatabaseUnavailable,  # connection exception
    "25006": DatabaseUnavailable,  # read-only transaction: a primary that was demoted
    "25P03": DatabaseUnavailable,  # idle in a transaction for too long
    "25P04": DatabaseUnavailable,  # transaction_timeout, which ends the session
    "28": DatabaseUnavailable,  # credentials refused
    "40": TransactionConflict,  # 40001 serialization failure, 40P01 deadlock
    "40002": None,  # a constraint: the program's own
    "40003": DatabaseUnavailable,  # whether the statement was completed is unknown
    "53": DatabaseUnavailable,  # disk full, out of memory, too many connections
    "55P03": LockTimeout,  # lock_timeout, NOWAIT
    "57014": StatementTimeout,  # query_canceled
    "57P": DatabaseUnavailable,  # shutdown, starting up, idle_session_timeout
    "58030": DatabaseUnavailable,  # I/O error
    1020: TransactionConflict,  # MariaDB: the record has changed since it was read
    1213: TransactionConflict,  # deadlock
    3101: TransactionConflict,  # group replication has rolled back
    1205: LockTimeout,  # innodb_lock_wait_timeout; MariaDB: NOWAIT too
    3572: LockTimeout,  # MySQL: NOWAIT
    1969: StatementTimeout,  # MariaDB: max_statement_time
    3024: StatementTimeout,  # MySQL: max_execution_time
    1317: StatementCancelled,  # KILL QUERY
    # Disk full, table full, too many connections (of all, of one user), Galera not ready, shutdown,
    # access denied, killed, idle for too long.
    **dict.fromkeys(
        (1021, 1114, 1040, 1203, 1047, 1053, 1044, 1045, 1927, 4031), DatabaseUnavailable
    ),
    # The client's own "cannot connect", "gone away" and "lost connection".
    **dict.fromkeys((2002, 2003, 2005, 2006, 2013, 2055), DatabaseUnavailable),
}
_OUT_OF_SYNC = 2014
_IN_FAILED_TRANSACTION = "25P02"
# What a connection's last statement has failed with; None is a failure of the program's own.
_failures: WeakKeyDictionary[Connection, PoolkitError | None] = WeakKeyDictionary()
# SQLite's result codes: BUSY, LOCKED; BUSY_SNAPSHOT; IOERR, FULL, CANTOPEN.
_BY_SQLITE_CODE: dict[int | None, type[TemporaryFailure]] = {
    5: LockTimeout,
    6: LockTimeout,
    517: TransactionConflict,
    10: DatabaseUnavailable,
    13: DatabaseUnavailable,
    14: DatabaseUnavailable,
}
_TEXTS: dict[type[TemporaryFailure], str] = {
    DatabaseUnavailable: "the database is not available",
    StatementTimeout: "the statement took longer than its limit",
    StatementCancelled: "the statement was cancelled from outside",
    LockTimeout: "a lock did not become free in time",
    TransactionConflict: "the transaction met another one; try it again from its beginning",
}
# The errors of a connect that have no SQLSTATE and are no mistake in its arguments.
_OPENING_ERRORS = (
    *("OperationalError", "ConnectionTimeout"),
    *("InternalClientError", "TargetServerAttributeNotMatched"),
)
_DRIVERS = (
    "psycopg2",
    "psycopg",
    "asyncpg",
    "pymysql",
    "MySQLdb",
    "asyncmy",
    "sqlite3",
    "aiosqlite",
)


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


# -- who has raised an error ------------------------------------------------------------------


def _calls(error: BaseException) -> list[FrameType]:
    """Return the frames that an error has passed, the one that raised it last."""
    return [frame for frame, _ in walk_tb(error.__traceback__)]


def _is_call(calls: list[FrameType], module: str, function: str) -> bool:
    found = ((f.f_globals.get("__name__"), f.f_code.co_name) for f in calls)
    return (module, function) in found


def _driver_of(module: str | None) -> str | None:
    package = str(module).partition(".")[0]
    return package if package in _DRIVERS else None


def _is_opening(calls: list[FrameType]) -> bool:
    """Return whether SQLAlchemy or psycopg was opening a connection."""
    return any(
        _is_call(calls, *call)
        for call in (
            ("sqlalchemy.pool.base", "__connect"),
            ("psycopg.connection", "connect"),
            ("psycopg.connection_async", "connect"),
        )
    )


def _is_of_driver(calls: list[FrameType]) -> bool:
    """Return whether a driver, or what it called of the standard library, has raised an error.

    A user's listener and a signal's handler run below SQLAlchemy or a driver too, but what they
    raise is their own.
    """
    for frame in reversed(calls):
        module = str(frame.f_globals.get("__name__"))
        package = module.partition(".")[0]
        if _driver_of(module) is not None or module == "poolkit.config.presets":
            return True
        if package not in sys.stdlib_module_names and package != "uvloop":
            return False
    return False


def _is_lost(error: BaseException) -> bool:
    """Return whether a driver's own error, that SQLAlchemy has not seen, is a lost connection.

    Such an error has no SQLSTATE, and by now the connection may be closed in any case.
    """
    if _code(error) is not None:
        return False
    if _driver_of(type(error).__module__) == "asyncpg":
        return "connection is closed" in str(error)
    cursor = getattr(error, "cursor", None)  # of psycopg2, where 2 is a connection that broke
    if cursor is not None and cursor.connection.closed == 2:
        return True
    misuse = "another command is already in progress"  # psycopg
    return type(error).__name__ == "OperationalError" and misuse not in str(error)
