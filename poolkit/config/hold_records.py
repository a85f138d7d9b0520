"""The holds and the pools of this process as a file, for another process that measures it.

`poolkit compare` sets the variable `_POOLKIT_HOLDS_FOLDER` for a target. Each of the target's processes then
writes one file there, several times a second: its tables of `poolkit.config.holds`, who holds a
connection now, and each pool's settings and use. The use counts from the last change of the file
`window` in that folder, so that peaks are those of the measured time. This file imports the standard library only, and runs on Python 3.9: the shim of
`poolkit compare` loads it into applications that do not have poolkit.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Any, Optional

FOLDER = "_POOLKIT_HOLDS_FOLDER"
WINDOW = "window"
"""The file whose change begins a measured time."""
EVERY_S = 0.25
_MOST_WAITS = 100_000
"""Waits that are kept until the next record; a process writes one every quarter of a second."""

_tables: list[Any] = []
_uses: list[PoolUse] = []
_writing = threading.Lock()
_written = 0.0
_since = 0


class PoolUse:
    """The settings of an engine's pool, and what was used of it since the measured time began.

    The private attributes of SQLAlchemy's pools that are read here exist from 1.4 to 2.1; a missing
    one is recorded as None.

    Args:
        engine: a synchronous Engine, an asynchronous one's too.
        bucket: returns the number of a duration's bucket, as `poolkit.config.holds` has them.
    """

    def __init__(self, engine: Any, bucket: Any) -> None:
        self._engine = weakref.ref(engine)
        self._bucket = bucket
        self._settings: dict[str, Any] = {}
        self.begin_again()

    def begin_again(self) -> None:
        """Forget the use so far."""
        self._waits: deque[float] = deque(maxlen=_MOST_WAITS)
        self._spread: dict[int, int] = {}
        self._longest_s = 0.0
        self.checkouts = 0
        self.timeouts = 0
        self.out_max: Optional[int] = None  # noqa: UP045  (Python 3.9)

    def took(self, pool: Any, waited_s: float) -> None:
        """Count a checkout, and how long it waited: in the queue, and for a new connection."""
        self._waits.append(waited_s)
        # NullPool and StaticPool do not count what is out.
        checked_out = getattr(pool, "checkedout", None)
        if checked_out is not None:
            out = int(checked_out())
            if self.out_max is None or out > self.out_max:
                self.out_max = out

    def row(self) -> dict[str, Any]:
        """Return settings and use for JSON."""
        for waited_s in [self._waits.popleft() for _ in range(len(self._waits))]:
            self.checkouts += 1
            bucket = self._bucket(waited_s)
            self._spread[bucket] = self._spread.get(bucket, 0) + 1
            self._longest_s = max(self._longest_s, waited_s)
        engine = self._engine()
        if engine is not None:
            self._settings = _settings(engine)
        return {
            **self._settings,
            "checkouts": self.checkouts,
            "timeouts": self.timeouts,
            "out_max": self.out_max,
            "waited_max_s": self._longest_s,
            "waits": sorted(self._spread.items()),
        }


def _settings(engine: Any) -> dict[str, Any]:
    pool, url = engine.pool, engine.url
    names = {each.__name__ for each in type(pool).__mro__}
    # AsyncAdaptedQueuePool is one, too.
    is_queue = "QueuePool" in names
    return {
        "pool": type(pool).__name__.replace("Measured", ""),
        "pool_size": pool.size() if is_queue else None,
        "max_overflow": getattr(pool, "_max_overflow", None) if is_queue else None,
        "timeout_s": getattr(pool, "_timeout", None) if is_queue else None,
        "recycle_s": getattr(pool, "_recycle", None),
        "pre_ping": getattr(pool, "_pre_ping", None),
        "driver": engine.dialect.driver,
        "backend": engine.dialect.name,
        "port": url.port,
    }


def record(holds: Any, use: Optional[PoolUse] = None) -> None:  # noqa: UP045  (Python 3.9)
    """Write a table of this process and of its forked children, if the variable names a folder.

    Args:
        holds: a `Holds`.
        use: of the same engine's pool.
    """
    folder = os.environ.get(FOLDER)
    if not folder or any(holds is table for table in _tables):
        return
    _tables.append(holds)
    if use is not None:
        _uses.append(use)
    if len(_tables) > 1:
        return
    _start(folder)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _start(folder))
    if os.environ.get("AWS_LAMBDA_RUNTIME_API"):
        # Lambda freezes an idle process, and with it the thread. A wrapper of the one table is enough.
        end = holds.end

        def end_and_write(connection: Any, record: Any) -> None:
            end(connection, record)
            if time.monotonic() - _written > EVERY_S / 5:
                _write(folder)

        holds.end = end_and_write


def _start(folder: str) -> None:
    global _writing  # noqa: PLW0603
    # Another thread of the parent may have had it at the fork.
    _writing = threading.Lock()
    for use in _uses:
        use.begin_again()

    def write_again_and_again() -> None:
        while True:
            _write(folder)
            time.sleep(EVERY_S)

    # Without a thread to be had there is no figure, and the application goes on.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=write_again_and_again, name="poolkit-holds", daemon=True).start()


def _write(folder: str) -> None:
    """Replace the file of this process, or leave it: the application matters more than that."""
    global _since, _written  # noqa: PLW0603
    with _writing, contextlib.suppress(Exception):
        since = _window_of(folder)
        if since != _since:
            _since = since
            for use in _uses:
                use.begin_again()
        found: list[dict[str, Any]] = []
        for holds in _tables:
            found += [vars(row) for row in holds.rows()]
        now = [vars(holding) for holds in _tables for holding in holds.holding()]
        file = Path(folder, f"{os.getpid()}.json")
        partial = file.with_suffix(".partial")
        pools = [use.row() for use in _uses]
        values = {"time": time.time(), "rows": found, "out": now, "since": since, "pools": pools}
        text = json.dumps({**values, "threads": threading.active_count()})
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
        _written = time.monotonic()


def _window_of(folder: str) -> int:
    """Return when the measured time began, in nanoseconds; 0 before it."""
    try:
        return Path(folder, WINDOW).stat().st_mtime_ns
    except FileNotFoundError:
        return 0
