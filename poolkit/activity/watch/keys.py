"""Waiting for a key, for no longer than until the next look at the server."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """Give a function that waits some seconds for a key and returns it, or "" when none came.

    The terminal is put back as it was. Ctrl-C stays an interrupt.
    """
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield lambda timeout_s: _wait(descriptor, timeout_s)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _wait(descriptor: int, timeout_s: float) -> str:
    ready, _, _ = select.select([descriptor], [], [], max(0.0, timeout_s))
    return os.read(descriptor, 1).decode(errors="replace") if ready else ""
