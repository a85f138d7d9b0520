"""The checks and the metrics of a preset for an engine that exists already.

    attached = poolkit.attach(engine, poolkit.preset("web", "prod"))
    attached.snapshot().waiting  # callers that wait for a connection now
    attached.ceiling  # the most connections of this process, None for no limit
    print(attached)  # the settings in which the engine differs from the preset

For an engine that another library makes. What a preset gives beyond this, such as the pool's size
and the server's timeouts, is decided when an engine is made: `Attached.differences` lists it.

The private attributes of SQLAlchemy's pools that are read here exist from 2.0.36 to 2.1.9; a
missing one is left out of the differences.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from sqlalchemy import Engine
from sqlalchemy.pool import AssertionPool, QueuePool, StaticPool

from poolkit.config.metrics import PoolMetrics, measured
from poolkit.config.presets import error_of_the_program
from poolkit.config.settings import hold_settings, preset_from_environ
from poolkit.errors import ConfigurationError
from poolkit.masking import masked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncEngine

    from poolkit.config.metrics import PoolSnapshot
    from poolkit.config.presets import EnginePreset

__all__ = ("Attached", "Difference", "attach")


class Difference(NamedTuple):
    """A setting in which an engine differs from a preset; `engine` is None where it has none."""

    setting: str
    preset: object
    engine: object


class Attached:
    """An engine with a preset's checks and metrics; `str()` lists what differs, one a line.

    Attributes:
        engine: the synchronous engine, an asynchronous one's too.
        preset: the preset whose checks it has.
        metrics: the counters, from the moment of `attach` on.
    """

    def __init__(self, engine: Engine, preset: EnginePreset) -> None:
        self.engine = engine
        self.preset = preset
        self.metrics = PoolMetrics()
        self._arguments: dict[str, Any] | None = None

    def snapshot(self) -> PoolSnapshot:
        """Return the counters and the pool's state, as of now."""
        return self.metrics.snapshot(self.engine.pool)

    @property
    def ceiling(self) -> int | None:
        """The most connections that this process can have open through the engine.

        None where the pool has no limit: NullPool, `pool_size=0`, `max_overflow=-1`.
        """
        pool = self.engine.pool
        if isinstance(pool, StaticPool | AssertionPool):
            return 1
        overflow = getattr(pool, "_max_overflow", -1)
        if not isinstance(pool, QueuePool) or overflow < 0 or not pool.size():
            return None
        return int(pool.size() + overflow)

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The settings in which the engine differs from the preset.

        Those of the pool are known at once, those of the connection (timeouts, keepalives) after
        the first one that was opened.
        """
        return (*self._differences_of_the_pool(), *self._differences_of_connections())

    def _differences_of_the_pool(self) -> list[Difference]:
        pool, preset = self.engine.pool, self.preset
        kind = type(pool).__name__.removeprefix("Measured")
        wanted_kind = preset.pool_class(self.engine.url).__name__
        if kind != wanted_kind:
            return [Difference("pool", wanted_kind, kind)]
        if not isinstance(pool, QueuePool):
            return []
        found = {
            "pool_size": pool.size(),
            "max_overflow": getattr(pool, "_max_overflow", preset.max_overflow),
            "pool_timeout": pool.timeout(),
            "pool_use_lifo": getattr(
                getattr(pool, "_pool", None), "use_lifo", preset.pool_use_lifo
            ),
        }
        differing = [
            Difference(name, getattr(preset, name), value)
            for name, value in found.items()
            if value != getattr(preset, name)
        ]
        if preset.ping_after_idle and getattr(pool, "_pre_ping", False):
            # SQLAlchemy's own, a round trip at each checkout in front of our check.
            differing.append(Difference("pool_pre_ping", False, True))
        return differing

    def _differences_of_connections(self) -> list[Difference]:
        if self._arguments is None:
            return []
        options = self.preset.engine_options(self.engine.url)
        return [
            Difference(name, value, self._arguments.get(name))
            for name, value in _flat(options["connect_args"]).items()
            # A URL's are text.
            if str(value) != str(self._arguments.get(name))
        ]

    def _time_connects(self) -> None:
        """Count and time the connections that the dialect opens, and store their arguments."""
        connect = self.engine.dialect.connect

        def timed(*cargs: Any, **cparams: Any) -> Any:
            self._arguments = _flat(cparams)
            began = perf_counter()
            try:
                connection = connect(*cargs, **cparams)
            except Exception as error:
                if error_of_the_program(error) is None:
                    self.metrics.connected(perf_counter() - began, failed=True)
                raise
            self.metrics.connected(perf_counter() - began, failed=False)
            return connection

        # In the dialect's place, and not as a `do_connect` listener: see Connector.
        vars(self.engine.dialect)["connect"] = timed

    def __str__(self) -> str:
        limit = "no limit" if self.ceiling is None else f"at most {self.ceiling}"
        rows = [
            f"{masked(self.engine.url.render_as_string())}: {limit} connections in this process"
        ]
        for difference in self.differences:
            engine = "not set" if difference.engine is None else repr(difference.engine)
            rows.append(
                f"  {difference.setting}: {engine}, preset {_name(self.preset)}: {difference.preset!r}"
            )
        return "\n".join(rows)


def attach(
    engine: Engine | AsyncEngine,
    preset: EnginePreset | None = None,
    *,
    hold_sampling: float | None = None,
    leak_detection_threshold: float | None = None,
) -> Attached:
    """Add a preset's checks, and metrics, to an engine that exists already.

    From now on a checkout replaces dead and old connections, and a forked child begins with an
    empty pool. Connecting is tried again while the server is full or starting. New connections have
    `application_name`, unless the engine names them itself. Errors stay SQLAlchemy's.

    Attach before the first connection: later, the counters lack what happened before.

    Args:
        engine: an Engine or an AsyncEngine, made in any way.
        preset: by default the one of POOLKIT_TARGET (`web`, or `web_async` for an AsyncEngine).
        hold_sampling: the share of checkouts whose call site and SQL time are taken, from 0 to 1;
            by default that of POOLKIT_HOLD_SAMPLING.
        leak_detection_threshold: seconds after which a checkout is logged, 0 for never; by default
            that of POOLKIT_LEAK_DETECTION_THRESHOLD.

    An engine that a preset made has the checks already. There it adds the metrics.

    Raises:
        PresetError: the preset does not fit the engine's driver.
        ConfigurationError: the engine is attached already.
    """
    synchronous = engine if isinstance(engine, Engine) else engine.sync_engine
    if preset is None:
        target = "web_async" if synchronous.dialect.is_async else "web"
        preset = preset_from_environ(default_target=target)
    if synchronous in _attached:
        raise ConfigurationError("this engine is attached already; use what attach returned")
    preset.url(synchronous.url)
    _attached.add(synchronous)
    attached = Attached(synchronous, preset)
    found, threshold = hold_settings(), leak_detection_threshold
    attached.metrics.configure(
        hold_sampling=found.hold_sampling if hold_sampling is None else hold_sampling,
        leak_detection_threshold=(
            found.leak_detection_threshold if threshold is None else threshold
        ),
    )
    # SQLAlchemy has no event for the start of a wait. The new class of the object stays after
    # `dispose()`, which makes the next pool from the class of this one.
    pool: Any = synchronous.pool
    pool.__class__ = measured(type(pool), attached.metrics)
    attached.metrics.watch(synchronous)
    preset.add_checks(synchronous)
    attached._time_connects()  # noqa: SLF001
    return attached


_attached: WeakSet[Engine] = WeakSet()


def _name(preset: EnginePreset) -> str:
    return f"{preset.target}/{preset.environment}"


def _flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a driver's arguments that can be compared, with asyncpg's server settings among them."""
    flat = {**arguments, **arguments.get("server_settings", {})}
    # The name is ours. A function cannot be compared, nor a TLS context.
    left_out = {"application_name", "program_name", "server_settings", "ssl"}
    return {k: v for k, v in flat.items() if k not in left_out and not callable(v)}
