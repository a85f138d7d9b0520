"""Databases as FastAPI's dependencies: a lifespan, and sessions of one request."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import anyio
import anyio.to_thread
from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
)
from sqlalchemy.orm import Session, sessionmaker
from starlette.requests import HTTPConnection

from poolkit.config.engine import (
    autocommit,
    check_connection,
    make_async_engine,
    make_engine,
    start_async_engine,
    start_engine,
)
from poolkit.config.holds import CallSite
from poolkit.config.metrics import PoolMetrics, PoolSnapshot
from poolkit.config.session import refuse_flush, translated
from poolkit.config.settings import Settings
from poolkit.config.statement_deadline import StatementDeadline, statement_deadline
from poolkit.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    NoThread,
    NotStarted,
    PoolExhausted,
    PoolkitError,
)
from poolkit.fastapi.slots import Slots
from poolkit.fastapi.threads import Threads, is_lack_of_threads

__all__ = ("AsyncDatabase", "Database")

AnyEngine = TypeVar("AnyEngine", Engine, AsyncEngine)

READY_WITHIN: Final = 2.0
"""Seconds that a readiness check may take: less than an orchestrator's own limit."""


@dataclass(frozen=True, kw_only=True)
class _Opened(Generic[AnyEngine]):
    """What a lifespan has made."""

    settings: Settings
    metrics: PoolMetrics
    engine: AnyEngine
    reading: AnyEngine
    """The same pool in autocommit: without BEGIN and ROLLBACK, which are two round trips."""


class _Service(Generic[AnyEngine]):
    """What both kinds of database share: the settings, and the state between start and end."""

    def __init__(
        self,
        target: str,
        settings: Callable[[], Settings] | None,
        name: str | None,
        statement_deadline: float | None,
    ) -> None:
        self._read_settings = settings or (lambda: Settings.from_environ(default_target=target))
        self._name = name
        self._statement_deadline = statement_deadline
        self._opened: _Opened[AnyEngine] | None = None

    def _settings_at_start(self) -> Settings:
        if self._opened is not None:
            raise ConfigurationError("this database is open already: an application needs its own")
        settings = self._read_settings()
        if settings.preset.is_async is not isinstance(self, AsyncDatabase):
            wanted = "AsyncDatabase" if settings.preset.is_async else "Database"
            raise ConfigurationError(
                f"POOLKIT_TARGET={settings.target} needs {wanted}, not {type(self).__name__}: "
                "set another target, or write the other class"
            )
        return settings

    @property
    def opened(self) -> _Opened[AnyEngine]:
        """The engine and what belongs to it.

        Raises:
            NotStarted: the lifespan has not begun, or is over.
        """
        if self._opened is None:
            raise NotStarted(
                "the database is open during the application's lifespan only: "
                "FastAPI(lifespan=database.lifespan), in a test `with TestClient(app) as client:`"
            )
        return self._opened

    @property
    def engine(self) -> AnyEngine:
        """SQLAlchemy's engine, for work that belongs to no request."""
        return self.opened.engine

    @property
    def name(self) -> str:
        """The name that its metrics have: by default the target, such as `web`."""
        return self._name or self.opened.settings.target

    def snapshot(self) -> PoolSnapshot:
        """Return the pool's state and its counters."""
        return self.opened.metrics.snapshot(self.engine.pool)

    def call_sites(self) -> list[CallSite]:
        """Return which lines held connections, those with most idle time first."""
        return self.opened.metrics.holds.rows()

    @asynccontextmanager
    async def _watched(self, engine: Engine, settings: Settings) -> AsyncIterator[None]:
        """Close connections to a server that does not answer, and at the end all busy ones."""
        limit = self._statement_deadline
        if limit is None:
            limit = statement_deadline(settings.preset)
        deadline = StatementDeadline(engine, limit)

        async def sweep() -> None:
            while True:
                await asyncio.sleep(min(1.0, limit / 4))
                deadline.sweep()

        sweeping = asyncio.create_task(sweep())
        try:
            yield
        finally:
            sweeping.cancel()
            # A request that the server has cancelled may still wait for its statement.
            deadline.sweep(all_of_them=True)


class Database(_Service[Engine]):
    """A database for endpoints that are plain functions, on a synchronous engine.

    database = Database()
    reports = Database(settings=lambda: Settings.from_environ(REPORTS), name="reports")

    As many requests as the pool has connections work at a time; the others wait for their turn
    without a thread, for `pool_timeout` at most. So FastAPI's threads never wait for a connection,
    and a request that holds one always finds a thread.
    """

    def __init__(
        self,
        target: str = "web",
        *,
        settings: Callable[[], Settings] | None = None,
        sessions: sessionmaker[Any] | None = None,
        name: str | None = None,
        statement_deadline: float | None = None,
    ) -> None:
        """Store the arguments; the lifespan uses them.

        Args:
            target: the preset, where `POOLKIT_TARGET` is not set.
            settings: returns the settings; by default they are read from the environment.
            sessions: makes the sessions, for another class or other options than SQLAlchemy's
                own, such as `sessionmaker(class_=sqlmodel.Session)`.
            name: tells several databases apart in the metrics.
            statement_deadline: seconds after which a statement without an answer costs its
                connection; by default statement_timeout and 2 s. `math.inf` for never.
        """
        super().__init__(target, settings, name, statement_deadline)
        # A session that has ended must not check out a connection that nothing returns.
        sessions = sessions or sessionmaker(close_resets_only=False)
        self._make_session, self._make_reader = sessions, _readers(sessions)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Read the settings, make the engine and start it; dispose of it at the end.

            app = FastAPI(lifespan=database.lifespan)

        A lifespan of your own contains it: `async with database.lifespan(app): ...`.

        Raises:
            ConfigurationError: a setting is missing or wrong.
            DatabaseUnavailable: there is no database, and the preset has `fail_fast`.
            NoThread: not even one thread can be started.
        """
        settings, metrics = self._settings_at_start(), PoolMetrics()
        engine = make_engine(settings, metrics)
        count = settings.preset.max_connections_per_process
        self._slots = Slots(
            count,
            settings.preset.pool_timeout,
            metrics,
            max_waiting=settings.preset.max_waiting,
        )
        self._threads = Threads(count)
        # Whatever these threads do ends within the time of a connect and of a statement.
        limit = self._statement_deadline or statement_deadline(settings.preset)
        self._longest_standstill_s = 2 * (settings.preset.connect_timeout + limit) + 10
        self._probe_limiter = anyio.CapacityLimiter(1)
        # Threads for all requests that may have a connection, beside those for all other work.
        limiter = anyio.to_thread.current_default_thread_limiter()
        limiter.total_tokens += count
        try:
            async with self._watched(engine, settings):
                await self._in_thread(lambda: start_engine(engine, settings))
                reading = autocommit(engine)
                self._opened = _Opened(
                    settings=settings, metrics=metrics, engine=engine, reading=reading
                )
                yield
        finally:
            self._opened = None
            limiter.total_tokens -= count
            self._threads.shutdown(wait=False, cancel_futures=True)
            engine.dispose()

    async def session(self, request: HTTPConnection) -> AsyncIterator[Session]:
        """Yield a session; commit after the endpoint, before the response is sent.

            SessionDep = Annotated[Session, Depends(database.session, scope="function")]

        An exception, HTTPException included, rolls back. An endpoint may commit by itself. The
        session is over before background tasks and streams run: `unit_of_work(database.engine)`
        is for them.

        Raises:
            PoolExhausted: no connection became free within `pool_timeout`.
            DatabaseUnavailable, StatementTimeout: as `unit_of_work`.
        """
        is_late = _watch_for_response(request)
        engine = self.engine
        taken = await self._slots.take()
        try:
            with translated():
                session = self._make_session(bind=engine)
                try:
                    yield session
                except BaseException:
                    await self._end(session.close)
                    raise
                await self._end(_committing(session), session)
        finally:
            self._slots.give_back(taken)
        _refuse_late_commit(is_late)

    async def read_session(self, request: HTTPConnection) -> AsyncIterator[Session]:
        """Yield a session that reads, without a transaction around its statements.

            ReadSessionDep = Annotated[Session, Depends(database.read_session, scope="function")]

        It saves two round trips, BEGIN and ROLLBACK. Each statement sees what was committed before
        it began, as everywhere at READ COMMITTED. A flush raises: it would be committed at once.
        Without `scope="function"` it stays open while a StreamingResponse is sent.

        Raises:
            PoolExhausted, DatabaseUnavailable, StatementTimeout: as `session`.
        """
        engine = self.opened.reading
        taken = await self._slots.take()
        try:
            with translated():
                session = self._make_reader(bind=engine)
                try:
                    yield session
                except BaseException:
                    # If the request was cancelled, its thread may still use the connection.
                    await self._end(session.close)
                    raise
                # In autocommit libpq's drivers give a connection back without a round trip.
                if engine.dialect.name == "postgresql":
                    session.close()
                else:
                    await self._end(session.close)
        finally:
            self._slots.give_back(taken)

    async def connection(self, request: HTTPConnection) -> AsyncIterator[Connection]:
        """Yield a Core connection; commit and errors as in `session`."""
        is_late = _watch_for_response(request)
        async with self._connected(self.engine) as connection:
            yield connection
            await self._end(_committing(connection), connection)
        _refuse_late_commit(is_late)

    async def read_connection(self, request: HTTPConnection) -> AsyncIterator[Connection]:
        """Yield a Core connection that reads, in autocommit; otherwise as `read_session`."""
        async with self._connected(self.opened.reading) as connection:
            yield connection

    async def check(self) -> None:
        """Send the database a statement, without waiting for a connection.

        Raises:
            PoolExhausted: every connection is in use.
            DatabaseUnavailable: there is none, it does not answer within READY_WITHIN, or it is
                read-only and the settings expect writes.
        """
        reading = self.opened.reading
        expects_writes = self.opened.settings.expects_writes
        taken = self._slots.take_now()

        def ask() -> None:
            with translated(), reading.connect() as connection:
                check_connection(connection, expects_writes=expects_writes)

        asked = asyncio.get_running_loop().run_in_executor(self._threads, ask)
        # The slot is free again when the thread is, which may be after the answer.
        asked.add_done_callback(lambda _: self._slots.give_back(taken))
        done, _ = await asyncio.wait([asked], timeout=READY_WITHIN)
        if not done:
            asked.add_done_callback(asyncio.Future.exception)  # so that asyncio reports no loss
            raise DatabaseUnavailable(f"no answer within {READY_WITHIN:g} s")
        asked.result()

    async def check_threads(self) -> None:
        """Check that endpoints still find threads; the database is not asked.

        Raises:
            NoThread: none can be started and none is idle, or the work of the threads stands still
                for longer than a database that is away or frozen can explain.
        """
        if self._opened is None:
            return
        standstill_s = self._threads.standstill_s
        if standstill_s > self._longest_standstill_s:
            raise NoThread(f"no thread has ended its work for {standstill_s:.0f} s")
        try:
            # FastAPI's threads, but not its limiter: requests that wait for it are no reason.
            await anyio.to_thread.run_sync(int, limiter=self._probe_limiter)
        except RuntimeError as error:
            if not is_lack_of_threads(error):
                raise
            raise NoThread("no thread can be started, and none is idle") from error

    @asynccontextmanager
    async def _connected(self, engine: Engine) -> AsyncIterator[Connection]:
        taken = await self._slots.take()
        held: list[Connection] = []
        try:
            with translated():
                try:
                    # A list, so that a request cancelled meanwhile closes its connection too.
                    await self._in_thread(lambda: held.append(engine.connect()))
                    yield held[0]
                finally:
                    if held:
                        await self._in_thread(held[0].close)
        finally:
            self._slots.give_back(taken)

    async def _end(
        self, work: Callable[[], object], subject: Session | Connection | None = None
    ) -> None:
        """Run `work` in a thread; without a thread if the subject has no transaction."""
        if subject is None or subject.in_transaction():
            await self._in_thread(work)
        else:
            subject.close()

    async def _in_thread(self, work: Callable[[], object]) -> None:
        """Run `work` in a thread to its end, even if the request is cancelled meanwhile.

        The threads are not FastAPI's, all of which may be waiting.
        """
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        with anyio.CancelScope(shield=True):  # against anyio, which cancels again and again
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                await asyncio.wait([running])
                running.exception()  # so that asyncio does not report it as lost
                raise


class AsyncDatabase(_Service[AsyncEngine]):
    """A database for endpoints that are coroutines, on an asynchronous engine.

    database = AsyncDatabase()
    SessionDep = Annotated[AsyncSession, Depends(database.session, scope="function")]
    """

    def __init__(
        self,
        target: str = "web_async",
        *,
        settings: Callable[[], Settings] | None = None,
        sessions: async_sessionmaker[Any] | None = None,
        name: str | None = None,
        statement_deadline: float | None = None,
    ) -> None:
        """Store the arguments, which are those of `Database`; the lifespan uses them."""
        super().__init__(target, settings, name, statement_deadline)
        # Nothing may be loaded from an attribute later, as SQLAlchemy's own page on asyncio says.
        sessions = sessions or async_sessionmaker(expire_on_commit=False, close_resets_only=False)
        self._make_session, self._make_reader = sessions, _async_readers(sessions)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Read the settings, make the engine and start it; as `Database.lifespan`."""
        settings, metrics = self._settings_at_start(), PoolMetrics()
        engine = make_async_engine(settings, metrics)
        try:
            async with self._watched(engine.sync_engine, settings):
                await start_async_engine(engine, settings)
                reading = AsyncEngine(autocommit(engine.sync_engine))
                self._opened = _Opened(
                    settings=settings, metrics=metrics, engine=engine, reading=reading
                )
                yield
        finally:
            self._opened = None
            await engine.dispose()

    async def session(self, request: HTTPConnection) -> AsyncIterator[AsyncSession]:
        """Yield a session; commit after the endpoint, before the response: as `Database.session`."""
        is_late = _watch_for_response(request)
        with translated():
            async with _Closing(self._make_session(bind=self.engine)) as session:
                yield session
                await session.commit()
        _refuse_late_commit(is_late)

    async def read_session(self, request: HTTPConnection) -> AsyncIterator[AsyncSession]:
        """Yield a session that reads, in autocommit: as `Database.read_session`."""
        with translated():
            async with _Closing(self._make_reader(bind=self.opened.reading)) as session:
                yield session

    async def connection(self, request: HTTPConnection) -> AsyncIterator[AsyncConnection]:
        """Yield a Core connection; commit and errors as in `session`."""
        is_late = _watch_for_response(request)
        with translated():
            async with self.engine.connect() as connection:
                yield connection
                await connection.commit()
        _refuse_late_commit(is_late)

    async def read_connection(self, request: HTTPConnection) -> AsyncIterator[AsyncConnection]:
        """Yield a Core connection that reads, in autocommit."""
        with translated():
            async with self.opened.reading.connect() as connection:
                yield connection

    async def check_threads(self) -> None:
        """Do nothing: coroutines need no threads."""

    async def check(self) -> None:
        """Send the database a statement, without waiting for a connection: as `Database.check`."""
        opened = self.opened
        count = opened.settings.preset.max_connections_per_process
        if self.snapshot().checked_out >= count:
            raise PoolExhausted(f"all {count} connections are checked out")
        try:
            async with asyncio.timeout(READY_WITHIN):
                with translated():
                    async with opened.reading.connect() as connection:
                        await connection.run_sync(
                            check_connection, expects_writes=opened.settings.expects_writes
                        )
        except TimeoutError as error:
            if isinstance(error, PoolkitError):
                raise
            raise DatabaseUnavailable(f"no answer within {READY_WITHIN:g} s") from None


def _committing(work: Session | Connection) -> Callable[[], None]:
    """Return a function that commits, and gives the connection back in any case."""

    def commit_and_close() -> None:
        try:
            work.commit()
        finally:
            work.close()

    return commit_and_close


class _Closing:
    """Closes the session at the end, in a task of its own if the request was cancelled."""

    __slots__ = ("session",)

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def __aenter__(self) -> AsyncSession:
        return self.session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        if error is None:
            await self.session.close()
        else:
            await asyncio.shield(asyncio.ensure_future(self.session.close()))


def _readers(sessions: sessionmaker[Any]) -> sessionmaker[Any]:
    """Return a sessionmaker with the same options, whose sessions refuse to flush."""
    readers = sessionmaker(class_=sessions.class_, **_options(sessions))
    event.listen(readers, "before_flush", refuse_flush)
    return readers


def _async_readers(sessions: async_sessionmaker[Any]) -> async_sessionmaker[Any]:
    options = _options(sessions)
    inner = options.get("sync_session_class") or sessions.class_.sync_session_class
    options["sync_session_class"] = _readers(sessionmaker(class_=inner)).class_
    return async_sessionmaker(class_=sessions.class_, **options)


def _options(sessions: sessionmaker[Any] | async_sessionmaker[Any]) -> dict[str, Any]:
    return {name: value for name, value in sessions.kw.items() if name != "bind"}


def _watch_for_response(request: HTTPConnection) -> list[bool]:
    """Return a list that is true once FastAPI has ended what it runs before the response.

    FastAPI keeps the exits of dependencies with `scope="function"` under this private name, from
    0.121 on. Under another name, or with Starlette alone, the list stays empty.
    """
    ended: list[bool] = []
    stack = request.scope.get("fastapi_function_astack")
    if stack is not None:
        stack.callback(ended.append, True)
    return ended


def _refuse_late_commit(is_late: list[bool]) -> None:
    if is_late:
        raise ConfigurationError(
            "the response was sent before the commit, so a failed commit would have been answered "
            'as a success: write Depends(database.session, scope="function")'
        )
