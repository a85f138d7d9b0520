"""The holds of this process as a file, for another process that measures it.

`poolkit compare` sets the variable `_POOLKIT_HOLDS_FOLDER` for a target. Each of the target's processes then
writes one file there, several times a second: its tables of `poolkit.config.holds`, and who holds a
connection now. This file imports the standard library only, and runs on Python 3.9: the shim of
`poolkit compare` loads it into applications that do not have poolkit.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

FOLDER = "_POOLKIT_HOLDS_FOLDER"
EVERY_S = 0.25

_tables: list[Any] = []
_writing = threading.Lock()
_written = 0.0


def record(holds: Any) -> None:
    """Write a table of this process and of its forked children, if the variable names a folder.

    Args:
        holds: a `Holds`.
    """
    folder = os.environ.get(FOLDER)
    if not folder or any(holds is table for table in _tables):
        return
    _tables.append(holds)
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

    def write_again_and_again() -> None:
        while True:
            _write(folder)
            time.sleep(EVERY_S)

    # Without a thread to be had there is no figure, and the application goes on.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=write_again_and_again, name="poolkit-holds", daemon=True).start()


def _write(folder: str) -> None:
    """Replace the file of this process, or leave it: the application matters more than that."""
    global _written  # noqa: PLW0603
    with _writing, contextlib.suppress(Exception):
        found: list[dict[str, Any]] = []
        for holds in _tables:
            found += [vars(row) for row in holds.rows()]
        now = [vars(holding) for holds in _tables for holding in holds.holding()]
        file = Path(folder, f"{os.getpid()}.json")
        partial = file.with_suffix(".partial")
        text = json.dumps({"time": time.time(), "rows": found, "out": now})
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
        _written = time.monotonic()
