"""A client-side limit for statements, for a server that enforces none itself.

`statement_timeout` is the server's to enforce. A server that stands still, or whose proxy does, does
not enforce it. Its kernel may still acknowledge what is sent, so no TCP option ends the wait.
Here the client ends it: it shuts the connection's socket down, and the driver reports a lost
connection to the thread or the task that waits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from poolkit.config.presets import fileno_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine

    from poolkit.config.presets import EnginePreset

__all__ = ("StatementDeadline", "statement_deadline")

logger = logging.getLogger(__name__)

_WITH_CURSOR = ("do_execute", "do_executemany", "do_execute_no_params")
_WITH_CONNECTION = ("do_commit", "do_rollback")


MARGIN: Final = 2.0
"""Seconds that the server's own statement_timeout gets to strike first: its error says more."""


def statement_deadline(preset: EnginePreset) -> float:
    """Return the seconds within which the server answers a statement, or infinity."""
    return preset.statement_timeout / 1000 + MARGIN if preset.statement_timeout else float("inf")


class StatementDeadline:
    """Shuts down connections whose server has not answered within `seconds`.

    It replaces methods of the engine's own dialect, because SQLAlchemy has no event for the end
    of a commit. Another part of the program calls `sweep` about once a second.
    """

    def __init__(self, engine: Engine, seconds: float) -> None:
        self.seconds = seconds
        self._busy: dict[Any, float] = {}
        self._lock = threading.Lock()
        dialect = engine.dialect
        for names, connection_of in (
            (_WITH_CURSOR, _connection_of_cursor),
            (_WITH_CONNECTION, lambda connection: connection),
        ):
            for name in names:
                setattr(dialect, name, self._timed(getattr(dialect, name), connection_of))

    def sweep(self, *, all_of_them: bool = False) -> None:
        """Shut down every connection that is over its time, or at the program's end all busy ones."""
        latest = monotonic() if all_of_them else monotonic() - self.seconds
        late = {each: since for each, since in self._busy.copy().items() if since <= latest}
        for connection, since in late.items():
            with self._lock:
                if self._busy.pop(connection, None) is not None:
                    waited = monotonic() - since
                    logger.warning("no answer for %.1f s: a connection is given up", waited)
                    _shut_down(connection)

    def _timed(
        self, method: Callable[..., Any], connection_of: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        """Return the method of the dialect with its time in `_busy`."""
        busy, lock = self._busy, self._lock

        def timed(subject: Any, *arguments: Any, **options: Any) -> Any:
            connection = connection_of(subject)
            busy[connection] = monotonic()
            try:
                return method(subject, *arguments, **options)
            finally:
                if busy.pop(connection, None) is None:
                    # `sweep` is about to shut the socket down. Before it has, the socket must not
                    # be closed: its number could be another one's by then.
                    with lock:
                        pass

        return timed


def _connection_of_cursor(cursor: Any) -> Any:
    # SQLAlchemy's cursors over asynchronous drivers have no `connection`.
    adapted = getattr(cursor, "_adapt_connection", None)
    return cursor.connection if adapted is None else adapted


def _shut_down(connection: Any) -> None:
    fileno = fileno_of(connection)
    if fileno is None:
        return
    # A duplicate, so that closing it leaves the driver's own number alone.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fileno)) as sock:
        sock.shutdown(socket.SHUT_RDWR)
