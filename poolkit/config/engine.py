"""Engines from settings: the preset's engine with credentials, metrics and poolkit's errors."""

from __future__ import annotations

import asyncio
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine.base import OptionEngine

from poolkit.config.metrics import PoolMetrics, measured
from poolkit.config.presets import (
    Connector,
    classify_connect_failure,
    drain,
    error_of_the_program,
)
from poolkit.config.session import remember_failure, translate, translate_refusal, translated
from poolkit.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection, Dialect, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolkit.config.credentials import CredentialSource
    from poolkit.config.settings import Settings

__all__ = (
    "autocommit",
    "check_connection",
    "make_async_engine",
    "make_engine",
    "start_async_engine",
    "start_engine",
)


def make_engine(settings: Settings, metrics: PoolMetrics | None = None, **options: Any) -> Engine:
    """Return the engine of a synchronous target; it opens no connection.

        engine = make_engine(Settings.from_environ())

    It is SQLAlchemy's own Engine. A checkout raises DatabaseUnavailable where the server or
    the network lets no connection through; the driver's own error is the cause.

    Args:
        settings: as read by `Settings.from_environ`.
        metrics: counts the pool's work, if given.
        options: any other argument of `sqlalchemy.create_engine`; wins over the preset.

    Raises:
        ValueError: the target is asynchronous.
    """
    metrics = _configured(metrics, settings)
    engine = settings.preset.create_engine(**_arguments(settings, options))
    _listen(engine, settings, metrics)
    return engine


def make_async_engine(
    settings: Settings, metrics: PoolMetrics | None = None, **options: Any
) -> AsyncEngine:
    """Return the engine of an asynchronous target; otherwise as `make_engine`.

    Raises:
        ValueError: the target is `web`, which has no asynchronous engine.
    """
    metrics = _configured(metrics, settings)
    engine = settings.preset.create_async_engine(**_arguments(settings, options))
    _listen(engine.sync_engine, settings, metrics)
    return engine


def start_engine(engine: Engine, settings: Settings) -> int:
    """Open the connections of the preset's `prewarm` and `fail_fast`; return their number.

    Raises:
        DatabaseUnavailable: the database cannot be reached, and `fail_fast` is set.
    """
    with translated():
        return settings.preset.start(engine)


async def start_async_engine(engine: AsyncEngine, settings: Settings) -> int:
    """As `start_engine`, for an asynchronous engine."""
    with translated():
        return await settings.preset.start_async(engine)


# Whether a write would be refused: of a standby, and of a server that was demoted.
_REFUSES_WRITES = {
    "postgresql": "SELECT current_setting('transaction_read_only')",
    "mysql": "SELECT @@global.read_only",
    "mariadb": "SELECT @@global.read_only",
}


def check_connection(connection: Connection, *, expects_writes: bool) -> None:
    """Send one statement: the server answers it, and accepts writes where they are expected.

    Args:
        connection: one without work of its own.
        expects_writes: as `EnginePreset.expects_writes`.

    Raises:
        DatabaseUnavailable: the server is read-only. The pool's connections are replaced.
    """
    statement = _REFUSES_WRITES.get(connection.dialect.name) if expects_writes else None
    found = connection.exec_driver_sql(statement or "SELECT 1").scalar()
    if statement is not None and str(found).lower() not in ("off", "0"):
        drain(connection.engine)
        raise DatabaseUnavailable("the server is read-only")


def _configured(metrics: PoolMetrics | None, settings: Settings) -> PoolMetrics | None:
    """Return the metrics with the settings; leak detection needs them, even if none are given."""
    threshold = settings.leak_detection_threshold
    if metrics is None:
        if not threshold:
            return None
        metrics = PoolMetrics()
    metrics.configure(hold_sampling=settings.hold_sampling, leak_detection_threshold=threshold)
    return metrics


def _arguments(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the preset's `create_engine`."""
    return {
        "url": settings.engine_url(),
        # Without an instance the preset names the process, also after a fork.
        "application_name": settings.application_name() if settings.instance else None,
        **options,
    }


def _listen(engine: Engine, settings: Settings, metrics: PoolMetrics | None) -> None:
    if metrics is not None:
        # The object's new class stays after `dispose()`, which makes the next pool from it.
        pool: Any = engine.pool
        pool.__class__ = measured(type(pool), metrics)
        metrics.watch(engine)
    breaker = getattr(engine.pool, "breaker", None)
    if breaker is not None:
        breaker.shown_as = lambda error: translate(error) or error
    source = None
    if settings.credentials != "url":
        # Not at the top: with a URL there is nothing to fetch, and a cold start pays for imports.
        from poolkit.config.credentials import source_for  # noqa: PLC0415

        source = source_for(settings)
    # In the dialect's place, and not as a `do_connect` listener: see Connector.
    vars(engine.dialect)["connect"] = _Opener(settings, engine.dialect, source, metrics)
    event.listen(engine, "handle_error", remember_failure)
    if settings.sql_comments:
        # Not at the top, as above.
        from poolkit.config.sql_comments import comment_statements  # noqa: PLC0415

        comment_statements(engine)
    if engine.dialect.driver == "psycopg2":
        _switch_autocommit_locally(engine.dialect)


def _switch_autocommit_locally(dialect: Dialect) -> None:
    """Make psycopg2 leave autocommit without a round trip.

    When a connection in autocommit is returned, SQLAlchemy sets the server's isolation level again
    by its name. From then on psycopg2 sends SET at each return. psycopg2's own switch leaves the
    level alone, so there is nothing to send.
    """
    set_level, reset_level = dialect.set_isolation_level, dialect.reset_isolation_level

    def set_isolation_level(connection: Any, level: Any) -> None:
        if level == "AUTOCOMMIT":
            # As SQLAlchemy's own switch does; psycopg2 sends nothing where no transaction is open.
            connection.rollback()
            connection.autocommit = True
        else:
            set_level(connection, level)

    def reset_isolation_level(connection: Any) -> None:
        if connection.autocommit and connection.isolation_level is None:
            connection.autocommit = False
        else:
            reset_level(connection)

    # On this engine's own dialect.
    vars(dialect).update(
        set_isolation_level=set_isolation_level, reset_isolation_level=reset_isolation_level
    )


def autocommit(engine: Engine) -> Engine:
    """Return the same engine, on the same pool, with connections in autocommit.

        with autocommit(engine).connect() as connection:  # no BEGIN, and no COMMIT or ROLLBACK
            connection.execute(text("SELECT 1"))

    `engine.execution_options(isolation_level="AUTOCOMMIT")` does the same by an event of the engine, and
    an engine with events makes each connection slower.
    """
    return _Autocommit(engine, {})


class _Autocommit(OptionEngine):
    def connect(self) -> Connection:
        connection = super().connect()
        try:
            return connection.execution_options(isolation_level="AUTOCOMMIT")
        except BaseException:
            connection.close()
            raise


class _Opener:
    """Takes the place of a dialect's `connect`: credentials, retries, the time taken, and errors."""

    def __init__(
        self,
        settings: Settings,
        dialect: Dialect,
        source: CredentialSource | None,
        metrics: PoolMetrics | None,
    ) -> None:
        present: Any = dialect.connect
        # SQLite has none: it has no server to wait for.
        self.connector: Connector = (
            present if isinstance(present, Connector) else Connector(settings.preset, dialect)
        )
        self.dialect = dialect
        self.source = source
        self.metrics = metrics

    def __call__(self, *cargs: Any, **cparams: Any) -> Any:
        began = perf_counter()
        try:
            # A password in the arguments is the application's own: of `connect_args`, or of a
            # `do_connect` listener.
            if self.source is None or "password" in cparams:
                connection = self.connector(*cargs, **cparams)
            else:
                connection = self._log_in(self.source, cargs, cparams)
        except Exception as error:
            # A cancelled task, and an exception of the program's own, say nothing of the database.
            if error_of_the_program(error) is not None:
                raise
            self._count(began, failed=True)
            # Translated here, where a connection is being opened: later, a missing database looks
            # like a statement that names a missing object.
            refusal = translate_refusal(error, self.dialect)
            if refusal is None:
                raise
            raise refusal from error
        self._count(began, failed=False)
        return connection

    def _count(self, began: float, *, failed: bool) -> None:
        if self.metrics is not None:
            self.metrics.connected(perf_counter() - began, failed=failed)

    def _log_in(self, source: CredentialSource, cargs: Any, cparams: dict[str, Any]) -> Any:
        """Connect with the source's credentials; if they are refused, with renewed ones."""
        credentials = source.cached() or _in_a_thread(self.dialect, source.fetch)
        # One deadline for both passwords. The time that AWS takes is not part of it.
        deadline = self.connector.deadline(cparams)
        login = {"user": credentials.user, "password": credentials.password}
        try:
            return self.connector.connect(cargs, cparams | login, deadline)
        except Exception as error:
            if classify_connect_failure(error) != "authentication":
                raise
            asked = monotonic()
            renewed = _in_a_thread(self.dialect, lambda: source.renew(credentials))
            if renewed is None:
                raise
            deadline += monotonic() - asked
        login = {"user": renewed.user, "password": renewed.password}
        return self.connector.connect(cargs, cparams | login, deadline)


def _in_a_thread(dialect: Dialect, ask: Callable[[], Any]) -> Any:
    """Fetch the credentials; in a thread where waiting would block an event loop."""
    if not dialect.is_async:
        return ask()
    from sqlalchemy.util import await_only  # noqa: PLC0415

    return await_only(asyncio.to_thread(ask))
