"""One execution environment's engine, from the init phase of a Lambda function to its end.

    environment = ExecutionEnvironment.open()  # in the handler's module: once, in the init phase

    def handler(event, context):
        with environment.session() as session:
            session.add(Order(...))

Lambda freezes an execution environment between invokes, thaws it, takes a snapshot of it
(SnapStart), and ends it, in most cases without notice. The engine is disposed of at the two
moments that Lambda announces: SIGTERM, and the hook before a snapshot.

For synchronous engines. `poolkit.powertools` builds on it; an ASGI application under Mangum has
an event loop to close as well, see `poolkit.mangum`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event

from poolkit.config.engine import autocommit, make_engine, start_engine
from poolkit.config.metrics import PoolMetrics
from poolkit.config.session import refuse_flush, translated
from poolkit.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from types import FrameType

    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session

    from poolkit.config.metrics import PoolSnapshot

__all__ = ("TARGETS", "ExecutionEnvironment", "at_end")

TARGETS: Final = ("lambda", "lambda_warm", "lambda_proxy")
"""The presets that a function can run with; the first is the default."""

DISPOSAL_LIMIT: Final = 0.4
"""Seconds: of the 500 ms between SIGTERM and SIGKILL that an internal extension gives (AWS
Lambda Developer Guide, "Lambda execution environment lifecycle", Shutdown phase)."""


class ExecutionEnvironment:
    """The engine of this execution environment, its units of work and its counters.

    Args:
        settings: as read by `Settings.from_environ`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.dead_letters = 0
        """Messages given up since the start; see `poolkit.powertools.process_sqs_batch`."""
        # Of every checkout: there are few in an invoke, and each invoke has figures of its own.
        self._metrics = PoolMetrics(hold_sampling=1.0 if settings.hold_sampling else 0.0)
        self._held: ContextVar[Connection | None] = ContextVar("held", default=None)
        self._current: ContextVar[Callable[[], Connection] | None] = ContextVar(
            "current", default=None
        )
        self._make_engine()

    @classmethod
    def open(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        allowed_targets: Sequence[str] = TARGETS,
        hooks: bool = True,
    ) -> ExecutionEnvironment:
        """Read the settings, make the engine and register `at_end`'s hooks.

        It connects only if the preset has `fail_fast` or `prewarm`.

        Args:
            environ: by default the process's own.
            allowed_targets: the presets that the function can run with; the first is the default.
            hooks: False leaves SIGTERM and SnapStart's hooks to the caller.

        Raises:
            ConfigurationError: a variable is missing, wrong or unsafe.
            DatabaseUnavailable: there is no database, and the preset has `fail_fast`.
        """
        settings = Settings.from_environ(
            environ, default_target=allowed_targets[0], allowed_targets=allowed_targets
        )
        environment = cls(settings)
        start_engine(environment.engine, settings)
        if hooks:
            at_end(environment.dispose, after_restore=environment.restore)
        return environment

    def _make_engine(self) -> None:
        self.engine: Engine = make_engine(self.settings, self._metrics)
        self._autocommit = autocommit(self.engine)

    def session(self) -> AbstractContextManager[Session]:
        """Begin a unit of work with an ORM session, which is committed at the end of the block.

            with environment.session() as session:
                session.add(article)

        Attributes stay loaded after the commit (`expire_on_commit=False`), so an object can be
        returned from the block and serialized.

        Raises:
            PoolExhausted, DatabaseUnavailable, StatementTimeout: as `unit_of_work`.
        """
        return self._session(self.engine, reads_only=False)

    def read_session(self) -> AbstractContextManager[Session]:
        """Return an ORM session that reads, without a transaction around its statements.

        It saves two round trips, BEGIN and ROLLBACK. Each statement sees what was committed before
        it began, as everywhere at READ COMMITTED. A flush raises: it would be committed at once.
        Otherwise as `session`.
        """
        return self._session(self._autocommit, reads_only=True)

    def connection(self) -> AbstractContextManager[Connection]:
        """Begin a unit of work with a Core connection, which is committed at the end of the block.

            with environment.connection() as connection:
                connection.execute(insert(articles), {...})

        Raises:
            PoolExhausted, DatabaseUnavailable, StatementTimeout: as `unit_of_work`.
        """
        return self._connection(self.engine)

    def read_connection(self) -> AbstractContextManager[Connection]:
        """Return a Core connection in autocommit, for statements that read; as `read_session`."""
        return self._connection(self._autocommit)

    @contextmanager
    def _session(self, engine: Engine, *, reads_only: bool) -> Iterator[Session]:
        make_session = _session_class(reads_only=reads_only)
        with (
            translated(),
            make_session(self._held.get() or engine, expire_on_commit=False) as session,
            session.begin(),
            self._set(self._current, session.connection),
        ):
            yield session

    @contextmanager
    def _connection(self, engine: Engine) -> Iterator[Connection]:
        held = self._held.get()
        with translated():
            if held is None:
                with engine.begin() as connection, self._set(self._current, lambda: connection):
                    yield connection
            else:
                with held.begin(), self._set(self._current, lambda: held):
                    yield held

    @contextmanager
    def holding_connection(self) -> Iterator[None]:
        """Run all units of work in the block on one connection, one after the other.

        For a batch of messages: without a pool, a connect for each message costs more than the
        message. Sessions and connections that read have a transaction in the block, too.

        Raises:
            PoolExhausted, DatabaseUnavailable: as `unit_of_work`; before the block begins.
        """
        with translated():
            connection = self.engine.connect()
        with connection, self._set(self._held, connection):
            yield

    def current(self) -> Connection | None:
        """Return the connection of the unit of work around the caller, or None."""
        connection_of_work = self._current.get()
        return connection_of_work and connection_of_work()

    @staticmethod
    @contextmanager
    def _set(variable: ContextVar[Any], value: object) -> Iterator[None]:
        token = variable.set(value)
        try:
            yield
        finally:
            variable.reset(token)

    def snapshot(self) -> PoolSnapshot:
        """Return the pool's state and its counters."""
        return self._metrics.snapshot(self.engine.pool)

    def dispose(self) -> None:
        """Close the pool's idle connections; the next checkout opens a new one."""
        self.engine.dispose()

    def restore(self) -> None:
        """Renew the random seed and the instance's name, which all copies of a snapshot share."""
        random.seed()
        self.settings = replace(self.settings, instance=os.urandom(8).hex())
        self._make_engine()


@cache
def _session_class(*, reads_only: bool) -> type[Session]:
    """Return SQLAlchemy's Session, or a subclass that refuses to flush."""
    # Not at the top: a function that uses Core alone need not import the ORM.
    from sqlalchemy.orm import Session  # noqa: PLC0415

    if not reads_only:
        return Session
    reader = type("ReadSession", (Session,), {})
    event.listen(reader, "before_flush", refuse_flush)
    return reader


def at_end(dispose: Callable[[], object], *, after_restore: Callable[[], object]) -> None:
    """Register the hooks of SIGTERM and, where the runtime has it, of SnapStart.

    Lambda sends SIGTERM only to a function with an extension, such as Lambda Insights. A handler
    of SIGTERM that exists already is called after `dispose`.

    Args:
        dispose: closes the connections; called at SIGTERM and before a snapshot.
        after_restore: called in each copy of a snapshot.
    """
    previous = signal.getsignal(signal.SIGTERM)

    def end(number: int, frame: FrameType | None) -> Any:
        # In a thread: the main thread may have been interrupted while it held the very lock that
        # closing needs. Then this wait is in vain, and must end.
        disposal = threading.Thread(target=dispose, daemon=True)
        disposal.start()
        disposal.join(DISPOSAL_LIMIT)
        if callable(previous):
            return previous(number, frame)
        return sys.exit(0)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)
    try:
        from snapshot_restore_py import (  # noqa: PLC0415  (installed with awslambdaric alone)
            register_after_restore,
            register_before_snapshot,
        )
    except ImportError:
        return
    register_before_snapshot(dispose)
    register_after_restore(after_restore)
