"""The engine of this process: opened after the fork, closed before the end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from poolkit.config.engine import make_engine, start_engine

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from poolkit.config.settings import Settings

CLIENT_CHECK_INTERVAL = 1_000
"""Milliseconds between the server's looks at whether its client still lives.

Without it a backend whose client was killed in the middle of a statement runs that
statement to its end, and holds its locks and its connection as long (PostgreSQL 14+,
20.3.2, `client_connection_check_interval`)."""


class Database:
    """Holds one engine, and refuses to hand it to any process but the one that opened it."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._pid = 0

    @property
    def engine(self) -> Engine:
        """The engine of this process.

        Raises:
            RuntimeError: there is none, or it was opened before a fork.
        """
        if self._engine is None:
            raise RuntimeError("the database is not open in this process; call open() first")
        if self._pid != os.getpid():
            raise RuntimeError(
                f"the engine was opened in process {self._pid} and must not be used in its fork "
                f"{os.getpid()}: both would talk over the same connections"
            )
        return self._engine

    def open(self, settings: Settings) -> None:
        """Make the engine, and open the connections that the preset asks for at start.

        Raises:
            DatabaseUnavailable: there is no database, and the preset has `fail_fast`.
        """
        self._forget_inherited()
        engine = make_engine(settings)
        if engine.dialect.name == "postgresql" and not settings.preset.transaction_pooling:
            event.listen(engine, "connect", _notice_a_dead_client)
        self._engine, self._pid = engine, os.getpid()
        start_engine(engine, settings)

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose(close=self._pid == os.getpid())

    def _forget_inherited(self) -> None:
        """Let go of a parent's connections without a word to the server, which is still in use."""
        if self._engine is not None and self._pid != os.getpid():
            self.close()


def _notice_a_dead_client(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute(
            "SELECT set_config(name, %s, false) FROM pg_settings"
            " WHERE name = 'client_connection_check_interval'",
            (str(CLIENT_CHECK_INTERVAL),),
        )
    finally:
        cursor.close()
    connection.commit()
