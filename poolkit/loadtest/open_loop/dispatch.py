"""Handing arrivals to the users that wait for them, and making more users when all are busy."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from locust.runners import locust_exception_handler

from poolkit.loadtest.open_loop.hub_time import WINDOW_S, HubTime
from poolkit.loadtest.open_loop.lane import BUSY, LATE_MS, STARTING, USERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gevent import Greenlet
    from locust import User
    from locust.env import Environment

    from poolkit.loadtest.open_loop.lane import Lane

_LOOK_EVERY_S = 0.01
_LOOK_AT_LEAST_EVERY_S = WINDOW_S
_BUSY_SHARE = 0.9
_CALM_SHARE = 0.5
_HICCUP_S = 0.01
"""Making a user costs more than serving an arrival: in a process that has much to do, what is
overdue for no longer than this is left to the users that it has."""
_SPARE = 0.1
"""How many more users are made than are missing now, as a share of those there are."""
_AFTER_A_FAILED_START_S = 1.0
_READINGS = 5
_AT_ONCE_S = 1e-4


class HandingOut:
    """Wakes when an arrival is due, in gevent's hub, and hands it to a user.

    Args:
        environment: Locust's.
        lanes: the arrivals by user class.
        max_users: how many users there may be at once.
        each_window: is called some 10 to 20 times a second, after a look: an arrival is to cost little.
    """

    def __init__(
        self,
        environment: Environment,
        lanes: Sequence[Lane],
        *,
        max_users: int,
        each_window: Callable[[], None],
    ) -> None:
        self.max_users = max_users
        self.users_max = 0
        self.looked_at = time.monotonic()
        """When it last looked: all that was due by then is begun, or had to wait for a user."""
        self._environment, self._lanes, self._each_window = environment, lanes, each_window
        self._hub_time = HubTime()
        self._loop = gevent.get_hub().loop
        self._timer: Any = None
        self._planned = math.inf
        self._lag_s = 0.0
        self._growing: Greenlet | None = None

    def start(self) -> None:
        """Begin; from any greenlet."""
        self._hub_time.start()
        self._plan(time.monotonic())

    def stop(self) -> None:
        """Hand nothing out any more."""
        self._timer.close()
        self._timer = None
        self._hub_time.stop()
        self.users_max = max(self.users_max, len(self._users))

    def _cause(self) -> str:
        """Return what an arrival that is overdue now waits for."""
        if self._lag_s * 1000 > LATE_MS or self._hub_time.busy_share > _BUSY_SHARE:
            return BUSY
        if len(self._users) >= self.max_users:
            return USERS
        return STARTING

    @property
    def _users(self) -> Any:
        return self._environment.runner.user_greenlets  # type: ignore[union-attr]

    # -- looking ----------------------------------------------------------------------------

    def _plan(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.close()
        self._planned = moment
        # The loop's clock may have stood still since the last event.
        self._loop.update_now()
        self._timer = self._loop.timer(max(0.0, moment - time.monotonic()))
        self._timer.start(self._look)

    def _look(self) -> None:
        now, before = time.monotonic(), self.looked_at
        self.looked_at, self._lag_s = now, now - self._planned
        try:
            is_new_window = self._hub_time.look(now)
            due = [lane for lane in self._lanes if lane.next_due <= now]
            self._note_overdue(due, now, now - before)
            missing = [lane for lane in due if not self._handed_out(lane)]
            if missing:
                self._grow_beside(missing, now)
            if is_new_window:
                self.users_max = max(self.users_max, len(self._users))
                self._each_window()
        finally:
            if self._timer is not None:
                self._plan(self._next_look())

    def _note_overdue(self, lanes: Sequence[Lane], now: float, since_last_s: float) -> None:
        for lane in lanes:
            if now - lane.next_due > _HICCUP_S:
                lane.wait_for(self._cause(), min(now - lane.next_due, since_last_s))

    def _handed_out(self, lane: Lane) -> bool:
        """Hand out what is due; False if users were missing."""
        ahead = wall_clock_s()
        while lane.next_due <= (now := time.monotonic()):
            if not lane.idle:
                return False
            turn, _ = lane.idle.popitem()
            turn.begin(lane.take(now) + ahead)
            turn.waiter.switch(None)
        return True

    def _next_look(self) -> float:
        now = time.monotonic()
        due = min(lane.next_due for lane in self._lanes)
        if due <= now:
            due = now + _LOOK_EVERY_S  # users that become free help themselves
        return min(due, now + _LOOK_AT_LEAST_EVERY_S)

    # -- growing ----------------------------------------------------------------------------

    def _grow_beside(self, lanes: Sequence[Lane], now: float) -> None:
        """Make users in a greenlet: what a user class does when it is made may take time."""
        busy = self._hub_time.busy_share
        calm = busy <= _CALM_SHARE
        if busy > _BUSY_SHARE or self._lag_s * 1000 > LATE_MS:
            return  # it is this process that cannot follow
        if self._growing is not None and not self._growing.ready():
            return
        growing = [
            lane
            for lane in lanes
            if now >= lane.no_growth_before and (calm or now - lane.next_due > _HICCUP_S)
        ]
        if growing:
            self._growing = gevent.spawn(self._grow, growing)
            self._growing.link_exception(locust_exception_handler(self._environment))

    def _grow(self, lanes: Sequence[Lane]) -> None:
        for lane in lanes:
            missing = lane.overdue(time.monotonic()) - len(lane.starting)
            if missing > 0:
                # After a failed start one is enough to see whether the next one fails too.
                self._make(lane, 1 if lane.failing else missing + int(len(self._users) * _SPARE))

    def _make(self, lane: Lane, count: int) -> None:
        for _ in range(min(count, self.max_users - len(self._users))):
            if self._timer is None:
                return  # stopped
            user = lane.user_class(self._environment)
            lane.starting.add(user)
            user.start(self._users).rawlink(partial(self._on_end, lane, user))
            self.users_max = max(self.users_max, len(self._users))

    def _on_end(self, lane: Lane, user: User, greenlet: Greenlet) -> None:
        if user in lane.starting:  # its on_start failed, and would again
            lane.starting.discard(user)
            lane.failing = True
            lane.no_growth_before = time.monotonic() + _AFTER_A_FAILED_START_S


def wall_clock_s() -> float:
    """Return how far Unix time is ahead of the monotonic clock, by which arrivals are due.

    The wall clock is set now and then while a test runs; a schedule by it would stand still, or
    rush. So a moment becomes Unix time only when it is handed out.
    """
    for _ in range(_READINGS):
        begun = time.monotonic()
        ahead = time.time() - begun
        # A busy machine may let another process run between the two readings.
        if time.monotonic() - begun < _AT_ONCE_S:
            break
    return ahead
