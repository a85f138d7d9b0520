"""How busy this process is, as gevent sees it: the share of time in which it waited for nothing.

Processor time would not tell: on a machine that others use too, a process that always has
something to do gets less than a core.
"""

from __future__ import annotations

import time

import gevent

WINDOW_S = 0.05
"""Whoever measures wakes the hub this often at least, by a timer."""
_FIRST, _LAST = 2, -2
"""Priorities among those that look at the beginning and the end of a wait."""


class HubTime:
    """Measures, while it runs, for how long gevent's hub waits for events."""

    def __init__(self) -> None:
        self.busy_share = 0.0
        """In the last window, between 0 and 1."""
        loop = gevent.get_hub().loop
        # What gevent itself does before a wait, it calls greenlets then, is work.
        self._before = loop.prepare(priority=_LAST)
        self._after = loop.check(priority=_FIRST)
        self._waited = 0.0
        self._began = self._window = time.monotonic()

    def start(self) -> None:
        """Begin to measure."""
        self._before.start(self._on_wait)
        self._after.start(self._on_event)
        self._began = self._window = time.monotonic()

    def stop(self) -> None:
        """End it."""
        self._before.close()
        self._after.close()

    def look(self, now: float) -> bool:
        """Begin a new window if the present one is over; `now` is of the monotonic clock.

        Returns:
            Whether it was over.
        """
        passed = now - self._window
        if passed < WINDOW_S:
            return False
        self.busy_share = max(0.0, 1 - self._waited / passed)
        self._waited, self._window = 0.0, now
        return True

    def _on_wait(self) -> None:
        self._began = time.monotonic()

    def _on_event(self) -> None:
        # Beyond a window the machine had let the process stand still: no time that it had to spare.
        self._waited += min(time.monotonic() - self._began, WINDOW_S)
