"""Settings and a preset become an Engine or an AsyncEngine."""

from __future__ import annotations

import asyncio
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from poolkit.config.metrics import PoolMetrics, measured
from poolkit.config.presets import Connector, classify_connect_failure
from poolkit.config.session import translate_refusal, translated

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Dialect, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolkit.config.credentials import Credentials, CredentialSource
    from poolkit.config.presets import EnginePreset
    from poolkit.config.settings import Settings


def make_engine(settings: Settings, metrics: PoolMetrics | None = None) -> Engine:
    """Return the engine of a synchronous target; it opens no connection.

    Its checkouts raise DatabaseUnavailable where a connection cannot be opened, for whatever
    reason the server or the network gives; the driver's own error is the cause.

    Args:
        settings: as read by `Settings.from_environ`.
        metrics: counts what the pool does, if given.

    Raises:
        ValueError: the target is asynchronous.
    """
    preset = _without_connector(settings.preset)
    options = _measured_pool(settings, metrics)
    engine = preset.create_engine(
        settings.engine_url(), application_name=settings.application_name(), **options
    )
    _listen(engine, settings, metrics)
    return engine


def make_async_engine(settings: Settings, metrics: PoolMetrics | None = None) -> AsyncEngine:
    """Return the engine of an asynchronous target; otherwise as `make_engine`.

    Raises:
        ValueError: the target is synchronous.
    """
    preset = _without_connector(settings.preset)
    options = _measured_pool(settings, metrics)
    engine = preset.create_async_engine(
        settings.engine_url(), application_name=settings.application_name(), **options
    )
    _listen(engine.sync_engine, settings, metrics)
    return engine


def start_engine(engine: Engine, settings: Settings) -> int:
    """Open the connections that the preset asks for at start, and return how many.

    Raises:
        DatabaseUnavailable: there is no database, and the preset says `fail_fast`.
    """
    with translated():
        return settings.preset.start(engine)


async def start_async_engine(engine: AsyncEngine, settings: Settings) -> int:
    """As `start_engine`, for an asynchronous engine."""
    with translated():
        return await settings.preset.start_async(engine)


def _without_connector(preset: EnginePreset) -> EnginePreset:
    """Return the preset without its own `do_connect` listener: `_Opener` takes its place.

    The first listener that returns a connection decides, and SQLAlchemy takes no notice of
    `insert=True` for this event.
    """
    return preset.replace(retry_connect=False)


def _measured_pool(settings: Settings, metrics: PoolMetrics | None) -> dict[str, Any]:
    if metrics is None:
        return {}
    return {"poolclass": measured(settings.preset.pool_class(settings.url), metrics)}


def _listen(engine: Engine, settings: Settings, metrics: PoolMetrics | None) -> None:
    if metrics is not None:
        metrics.listen(engine.pool)
    event.listen(engine, "do_connect", _Opener(settings, _source(settings), metrics))


def _source(settings: Settings) -> CredentialSource | None:
    if settings.credentials == "url":
        return None
    # Not at the top: with a URL there is nothing to fetch, and a cold start pays for imports.
    from poolkit.config.credentials import source_for  # noqa: PLC0415

    return source_for(settings)


class _Opener:
    """A `do_connect` listener: credentials, patience with a full server, and the time taken."""

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
            # Said here, where it is known that a connection was being opened: afterwards, a
            # missing database cannot be told from a statement that names a missing thing.
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
        credentials = source.cached() or _off_the_loop(dialect, source.fetch)
        # One for both passwords. AWS has limits of its own, and its time is not the database's.
        deadline = connector.deadline(dialect, cparams)
        try:
            return connector.connect(dialect, cargs, cparams | _login(credentials), deadline)
        except Exception as error:
            if classify_connect_failure(error) != "authentication":
                raise
            asked = monotonic()
            renewed = _off_the_loop(dialect, lambda: source.renew(credentials))
            if renewed is None:
                raise
            deadline += monotonic() - asked
        return connector.connect(dialect, cargs, cparams | _login(renewed), deadline)


def _login(credentials: Credentials) -> dict[str, str]:
    return {"user": credentials.user, "password": credentials.password}


def _off_the_loop(dialect: Dialect, ask: Callable[[], Any]) -> Any:
    """Ask AWS; in a thread where waiting here would stop an event loop."""
    if not dialect.is_async:
        return ask()
    from sqlalchemy.util import await_only  # noqa: PLC0415

    return await_only(asyncio.to_thread(ask))
