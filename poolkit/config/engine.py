"""Engines from settings: the preset's engine with credentials, metrics and poolkit's errors."""

from __future__ import annotations

import asyncio
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import event

from poolkit.config.metrics import PoolMetrics, measured
from poolkit.config.presets import Connector, classify_connect_failure
from poolkit.config.session import translate_refusal, translated

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import URL, Dialect, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolkit.config.credentials import Credentials, CredentialSource
    from poolkit.config.presets import EnginePreset
    from poolkit.config.settings import Settings

__all__ = ("make_async_engine", "make_engine", "start_async_engine", "start_engine")


def make_engine(settings: Settings, metrics: PoolMetrics | None = None) -> Engine:
    """Return the engine of a synchronous target; it opens no connection.

        engine = make_engine(Settings.from_environ())

    It is SQLAlchemy's own Engine. A checkout raises DatabaseUnavailable where the server or
    the network lets no connection through; the driver's own error is the cause.

    Args:
        settings: as read by `Settings.from_environ`.
        metrics: counts the pool's work, if given.

    Raises:
        ValueError: the target is asynchronous.
    """
    preset, url, options = _arguments(settings, metrics)
    engine = preset.create_engine(url, **options)
    _listen(engine, settings, metrics)
    return engine


def make_async_engine(settings: Settings, metrics: PoolMetrics | None = None) -> AsyncEngine:
    """Return the engine of an asynchronous target; otherwise as `make_engine`.

    Raises:
        ValueError: the target is synchronous.
    """
    preset, url, options = _arguments(settings, metrics)
    engine = preset.create_async_engine(url, **options)
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


class _EngineArguments(NamedTuple):
    preset: EnginePreset
    url: URL
    options: dict[str, Any]


def _arguments(settings: Settings, metrics: PoolMetrics | None) -> _EngineArguments:
    # Without the preset's own `do_connect` listener, whose place _Opener takes: the first listener
    # that returns a connection decides, and SQLAlchemy ignores `insert=True` for this event.
    preset = settings.preset.replace(retry_connect=False)
    options: dict[str, Any] = {"application_name": settings.application_name()}
    if metrics is not None:
        options["poolclass"] = measured(preset.pool_class(settings.url), metrics)
    return _EngineArguments(preset, settings.engine_url(), options)


def _listen(engine: Engine, settings: Settings, metrics: PoolMetrics | None) -> None:
    if metrics is not None:
        metrics.listen(engine.pool)
    source = None
    if settings.credentials != "url":
        # Not at the top: with a URL there is nothing to fetch, and a cold start pays for imports.
        from poolkit.config.credentials import source_for  # noqa: PLC0415

        source = source_for(settings)
    event.listen(engine, "do_connect", _Opener(settings, source, metrics))


class _Opener:
    """A `do_connect` listener: credentials, retries at a full server, and the time taken."""

    def __init__(
        self, settings: Settings, source: CredentialSource | None, metrics: PoolMetrics | None
    ) -> None:
        self.connector = Connector(settings.preset)
        self.source = source
        self.metrics = metrics

    def __call__(
        self, dialect: Dialect, record: Any, cargs: list[Any], cparams: dict[str, Any]
    ) -> Any:
        began = perf_counter()
        failed = True
        try:
            connection = self._open(dialect, cargs, cparams)
            failed = False
        except Exception as error:
            # Translated here, where a connection is being opened: later, a missing database looks
            # like a statement that names a missing object.
            refusal = translate_refusal(error, dialect)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            if self.metrics is not None:
                self.metrics.connected(perf_counter() - began, failed=failed)
        return connection

    def _open(self, dialect: Dialect, cargs: list[Any], cparams: dict[str, Any]) -> Any:
        source, connector = self.source, self.connector
        if source is None:
            return connector(dialect, None, cargs, cparams)
        credentials = source.cached() or _in_a_thread(dialect, source.fetch)
        # One deadline for both passwords. The time that AWS takes is not part of it.
        deadline = connector.deadline(dialect, cparams)
        try:
            return connector.connect(dialect, cargs, cparams | _login(credentials), deadline)
        except Exception as error:
            if classify_connect_failure(error) != "authentication":
                raise
            asked = monotonic()
            renewed = _in_a_thread(dialect, lambda: source.renew(credentials))
            if renewed is None:
                raise
            deadline += monotonic() - asked
        return connector.connect(dialect, cargs, cparams | _login(renewed), deadline)


def _login(credentials: Credentials) -> dict[str, str]:
    return {"user": credentials.user, "password": credentials.password}


def _in_a_thread(dialect: Dialect, ask: Callable[[], Any]) -> Any:
    """Fetch the credentials; in a thread where waiting would block an event loop."""
    if not dialect.is_async:
        return ask()
    from sqlalchemy.util import await_only  # noqa: PLC0415

    return await_only(asyncio.to_thread(ask))
