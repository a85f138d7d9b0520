"""Distributing arrivals to idle users, and making more users when all are busy."""

from __future__ import annotations

import math
import time
from array import array
from functools import partial
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import gevent

from poolkit.loadtest.event_loop import WINDOW_S, EventLoopLoad
from poolkit.loadtest.locust_internals import end_run_on_error, start_user, users_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gevent import Greenlet
    from locust import User
    from locust.env import Environment

    from poolkit.loadtest.open_loop.users import UserTask

LATE_MS = 50.0
"""The delay that a task may have: some switches of a busy process, too short to be noticed."""
TOLERATED_SHARE = 0.01
"""Late arrivals below this share do not touch the p99."""
TOLERATED_COUNT = 5
TOLERATED_MS = 1000.0

Cause: TypeAlias = Literal["busy", "users", "starting"]
"""What an overdue arrival waits for: this process, a user below --max-users, a user that starts."""

_LOOK_EVERY_S = 0.01
_BUSY_SHARE = 0.9
_CALM_SHARE = 0.5
_HICCUP_S = 0.01
"""Making a user costs more than serving an arrival. So a busy process leaves arrivals that are
overdue for less than this to its present users."""
_SPARE = 0.1
"""Users made beyond those that are missing now, as a share of the present users."""
_AFTER_A_FAILED_START_S = 1.0
_READINGS = 5
_AT_ONCE_S = 1e-4


class Lateness(NamedTuple):
    """Arrivals that began more than `LATE_MS` late, and the longest delay in ms."""

    late: int
    latest_ms: float


class UserClassQueue:
    """The arrivals of one user class in the order of their schedule, and its idle users.

    Moments are of the monotonic clock. The stream of arrivals is read only when a user is idle:
    the overdue arrivals are a position in it, not a list that grows.
    """

    def __init__(self, user_class: type[User]) -> None:
        self.user_class = user_class
        self.per_s = 0.0
        self.next_at = math.inf
        """When the next arrival is scheduled."""
        self.last_at = -math.inf
        """When the last arrival that has begun was scheduled."""
        self.idle: dict[UserTask, None] = {}
        """The waiting users: last in, first out, so connections stay warm."""
        self.starting: set[User] = set()
        """Users that were made for this queue and have not waited yet."""
        self.failing = False
        """Whether the last user that was made ended in its on_start."""
        self.no_growth_before = -math.inf
        self.begun = self.finished = 0
        self.dropped = array("d")
        """When the arrivals that were never begun were scheduled; known at the end."""
        self.dropped_ms: list[float] = []
        """How long each of them had waited."""
        self.late = 0
        self.latest_ms = 0.0
        self.overdue_s: dict[Cause, float] = {}
        """Seconds in which an arrival was overdue, by what it waited for."""
        self._stream: Iterator[float] = iter(())

    def take(self, now: float) -> float:
        """Return the scheduled moment of the next arrival, which begins now."""
        scheduled_at = self.last_at = self.next_at
        self.next_at = next(self._stream)
        self.begun += 1
        late_ms = (now - scheduled_at) * 1000
        if late_ms > LATE_MS:
            self.late += 1
            self.latest_ms = max(self.latest_ms, late_ms)
        return scheduled_at

    def overdue(self, now: float) -> int:
        """Return the approximate number of arrivals that should have begun by now."""
        return 0 if self.next_at > now else int((now - self.next_at) * self.per_s) + 1

    def continue_with(self, stream: Iterator[float], since: float, per_s: float) -> None:
        """Go on with another stream from a moment on; what was scheduled before it stays."""
        before = takewhile(lambda moment: moment < since, chain([self.next_at], self._stream))
        self._stream = chain(before, stream)
        self.next_at = next(self._stream)
        self.per_s = per_s

    def close(self, now: float) -> None:
        """Begin no more arrivals: those scheduled by now that have not begun are dropped."""
        while self.next_at <= now:
            self.drop(self.next_at, now)
            self.next_at = next(self._stream)
        self.next_at = math.inf

    def drop(self, scheduled_at: float, now: float) -> None:
        """Count an arrival that never began."""
        self.dropped.append(scheduled_at)
        late_ms = (now - scheduled_at) * 1000
        self.dropped_ms.append(max(0.0, late_ms))
        if late_ms > LATE_MS:
            self.late += 1
            self.latest_ms = max(self.latest_ms, late_ms)

    @property
    def arrivals(self) -> int:
        """The number of arrivals that have begun or were dropped."""
        return self.begun + len(self.dropped)

    def lateness(self, now: float) -> Lateness:
        """Return the lateness of all arrivals up to now, begun or not."""
        overdue_ms = max(0.0, now - self.next_at) * 1000
        late = self.late + self.overdue(now - LATE_MS / 1000)
        return Lateness(late, max(self.latest_ms, overdue_ms))

    def is_saturated(self, now: float) -> bool:
        """Return whether its schedule was missed by more than the tolerance."""
        late, latest_ms = self.lateness(now)
        tolerated = max(TOLERATED_COUNT, TOLERATED_SHARE * self.arrivals)
        return late > tolerated or latest_ms > TOLERATED_MS

    def saturation_text(self, now: float, reasons: Mapping[Cause, str]) -> str:
        """Return how far the schedule was not kept, and why."""
        seconds = self.overdue_s
        cause: Cause = max(seconds, key=lambda one: seconds[one], default="busy")
        late, latest_ms = self.lateness(now)
        return (
            f"class {self.user_class.__name__} began {late:,} of "
            f"{self.arrivals + self.overdue(now):,} arrivals more than {LATE_MS:g} ms late, "
            f"the latest by {latest_ms:,.0f} ms: {reasons[cause]}"
        )


class Dispatcher:
    """Wakes in gevent's event loop when an arrival is scheduled, and gives it to an idle user.

    Args:
        environment: Locust's.
        queues: the arrivals by user class.
        max_users: the highest number of users at once.
        each_window: called some 10 to 20 times a second, since an arrival must cost little.
    """

    def __init__(
        self,
        environment: Environment,
        queues: Sequence[UserClassQueue],
        *,
        max_users: int,
        each_window: Callable[[], None],
    ) -> None:
        self.max_users = max_users
        self.users_max = 0
        """The highest number of users so far."""
        self.looked_at = time.monotonic()
        """When it last ran: an arrival scheduled before has begun, or had to wait for a user."""
        self._environment, self._queues, self._each_window = environment, queues, each_window
        self._load = EventLoopLoad()
        self._loop = gevent.get_hub().loop
        self._timer: Any = None
        self._planned_at = math.inf
        self._lag_s = 0.0
        self._growing: Greenlet | None = None

    def start(self) -> None:
        """Begin; from any greenlet."""
        self._load.start()
        self._wake_at(time.monotonic())

    def stop(self) -> None:
        """Begin no more arrivals."""
        self._timer.close()
        self._timer = None
        self._load.stop()
        self.users_max = max(self.users_max, len(users_of(self._environment)))

    def _wake_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.close()
        self._planned_at = moment
        # The loop's clock may have stood still since the last event.
        self._loop.update_now()
        self._timer = self._loop.timer(max(0.0, moment - time.monotonic()))
        self._timer.start(self._dispatch)

    @property
    def _is_behind(self) -> bool:
        """Whether this process itself cannot follow the schedule."""
        return self._lag_s * 1000 > LATE_MS or self._load.busy_share > _BUSY_SHARE

    def _dispatch(self) -> None:
        now, before = time.monotonic(), self.looked_at
        self.looked_at, self._lag_s = now, now - self._planned_at
        try:
            is_new_window = self._load.look(now)
            waiting = [queue for queue in self._queues if queue.next_at <= now]
            for queue in waiting:
                overdue_s = now - queue.next_at
                if overdue_s > _HICCUP_S:
                    full = len(users_of(self._environment)) >= self.max_users
                    cause: Cause = "busy" if self._is_behind else "users" if full else "starting"
                    waited_s = min(overdue_s, now - before)
                    queue.overdue_s[cause] = queue.overdue_s.get(cause, 0.0) + waited_s
            short = [queue for queue in waiting if not self._serve(queue)]
            if short and not self._is_behind:
                self._grow(short, now)
            if is_new_window:
                self.users_max = max(self.users_max, len(users_of(self._environment)))
                self._each_window()
        finally:
            if self._timer is not None:
                now = time.monotonic()
                next_at = min(queue.next_at for queue in self._queues)
                if next_at <= now:
                    next_at = now + _LOOK_EVERY_S  # users that become idle serve themselves
                self._wake_at(min(next_at, now + WINDOW_S))

    def _serve(self, queue: UserClassQueue) -> bool:
        """Give the scheduled arrivals to idle users; False if there were too few."""
        ahead_s = unix_time_ahead_s()
        while queue.next_at <= (now := time.monotonic()):
            if not queue.idle:
                return False
            task, _ = queue.idle.popitem()
            task.begin(queue.take(now) + ahead_s)
            task.waiter.switch(None)
        return True

    def _grow(self, queues: Sequence[UserClassQueue], now: float) -> None:
        """Make users for queues without an idle one.

        In a greenlet: the constructor of a user class may take time.
        """
        if self._growing is not None and not self._growing.ready():
            return
        calm = self._load.busy_share <= _CALM_SHARE
        growing = [
            queue
            for queue in queues
            if now >= queue.no_growth_before and (calm or now - queue.next_at > _HICCUP_S)
        ]
        if growing:
            self._growing = gevent.spawn(self._make_users, growing)
            end_run_on_error(self._environment, self._growing)

    def _make_users(self, queues: Sequence[UserClassQueue]) -> None:
        users = users_of(self._environment)
        for queue in queues:
            missing = queue.overdue(time.monotonic()) - len(queue.starting)
            if missing <= 0:
                continue
            # After a failed start, one user is enough to find out whether the next one fails too.
            wanted = 1 if queue.failing else missing + int(len(users) * _SPARE)
            for _ in range(min(wanted, self.max_users - len(users))):
                if self._timer is None:
                    return  # stopped
                user = queue.user_class(self._environment)
                queue.starting.add(user)
                start_user(self._environment, user).rawlink(partial(self._on_end, queue, user))
                self.users_max = max(self.users_max, len(users))

    def _on_end(self, queue: UserClassQueue, user: User, greenlet: Greenlet) -> None:
        if user in queue.starting:  # its on_start failed, and the next one may fail too
            queue.starting.discard(user)
            queue.failing = True
            queue.no_growth_before = time.monotonic() + _AFTER_A_FAILED_START_S


def unix_time_ahead_s() -> float:
    """Return how far Unix time is ahead of the monotonic clock, by which arrivals are scheduled.

    The wall clock may be set while a test runs; a schedule by it would stop or rush. So a
    moment becomes Unix time only when its task begins.
    """
    for _ in range(_READINGS):
        begun = time.monotonic()
        ahead = time.time() - begun
        # A busy machine may let another process run between the two readings.
        if time.monotonic() - begun < _AT_ONCE_S:
            break
    return ahead
