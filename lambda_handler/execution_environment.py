"""One execution environment's engine, from the init phase to its end.

Lambda freezes an execution environment between invokes, thaws it, takes a snapshot of it
(SnapStart), and ends it, in most cases without notice. The engine is disposed of at the two
moments that Lambda announces: SIGTERM, and the hook before a snapshot.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lambda_handler.configuration import TARGETS
from poolkit.config.engine import make_engine, start_engine
from poolkit.config.metrics import PoolMetrics
from poolkit.config.session import translated, unit_of_work
from poolkit.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from types import FrameType

    from sqlalchemy import Connection, Engine

    from poolkit.config.metrics import PoolSnapshot

DISPOSAL_LIMIT: Final = 0.4
"""Seconds: of the 500 ms between SIGTERM and SIGKILL that an internal extension gives (AWS
Lambda Developer Guide, "Lambda execution environment lifecycle", Shutdown phase)."""


class ExecutionEnvironment:
    """The engine of this execution environment, and its counters."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._metrics = PoolMetrics()
        self._make_engine()

    @classmethod
    def open(cls, environ: Mapping[str, str]) -> ExecutionEnvironment:
        """Read the settings and make the engine; connect only if the preset has `fail_fast`.

        Raises:
            ConfigurationError: a variable is missing, wrong or unsafe.
            DatabaseUnavailable: there is no database, and the preset has `fail_fast`.
        """
        settings = Settings.from_environ(
            environ, default_target=TARGETS[0], allowed_targets=TARGETS
        )
        environment = cls(settings)
        start_engine(environment.engine, settings)
        return environment

    def _make_engine(self) -> None:
        self.engine: Engine = make_engine(self.settings, self._metrics)
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    def unit_of_work(self, *, autocommit: bool = False) -> AbstractContextManager[Connection]:
        """Begin a unit of work; see `poolkit.config.session.unit_of_work`.

        Args:
            autocommit: without BEGIN and COMMIT, which saves two round trips; for what is
                one statement.
        """
        return unit_of_work(self._autocommit if autocommit else self.engine)

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """Hold one connection for several units of work, each begun by `begin()`.

        Raises:
            PoolExhausted, DatabaseUnavailable: as `unit_of_work`.
        """
        with translated():
            connection = self.engine.connect()
        with connection:
            yield connection

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


def dispose_at_end(environment: ExecutionEnvironment) -> None:
    """Register the hooks of SIGTERM and, where the runtime has it, of SnapStart."""
    previous = signal.getsignal(signal.SIGTERM)

    def end(number: int, frame: FrameType | None) -> Any:
        # In a thread: the main thread may have been interrupted while it held the very lock that
        # closing needs. Then this wait is in vain, and must end.
        disposal = threading.Thread(target=environment.dispose, daemon=True)
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
    register_before_snapshot(environment.dispose)
    register_after_restore(environment.restore)
