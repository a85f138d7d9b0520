"""The loop of one process. Open: tasks begin at their scheduled moment, whatever the server does.

Locust's users make a closed loop: each waits for its answer before it goes on, so a server that
stalls gets fewer requests, and its stall hardly shows. In an open loop users wait for arrivals.
Each arrival is given to an idle user; when there is none, more are made, up to a limit.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from gevent.hub import Waiter

from poolkit.errors import ConfigurationError
from poolkit.loadtest.locust_internals import (
    end_users_only_when,
    wait_for_arrivals,
    was_waiting,
)
from poolkit.loadtest.open_loop.arrivals import Share, of_user_class
from poolkit.loadtest.open_loop.dispatch import (
    Cause,
    Dispatcher,
    UserClassQueue,
    unix_time_ahead_s,
)
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.loadtest.open_loop.users import CutOff, TimedOut, UserTasks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from locust import User
    from locust.env import Environment

    from poolkit.loadtest.open_loop.arrivals import ArrivalRate
    from poolkit.loadtest.open_loop.users import Pending

MAX_USERS = 2000

logger = logging.getLogger("poolkit.loadtest")


class OpenLoop:
    """Makes the users of this process begin the arrivals of a rate.

    Args:
        environment: Locust's; its user classes wait for arrivals instead of for their own wait
            time.
        rate: of all processes of the run together.
        max_users: the highest number of users at once.
        distributed: whether a master assigns this process its share of the rate; otherwise it has
            the whole rate, from the start of a test.

    Raises:
        ConfigurationError: max_users is not above 0.
    """

    def __init__(
        self,
        environment: Environment,
        rate: ArrivalRate,
        *,
        max_users: int = MAX_USERS,
        distributed: bool = False,
    ) -> None:
        if max_users < 1:
            raise ConfigurationError(f"--max-users is {max_users}; wanted 1 or more")
        self.rate = rate
        self.tasks = UserTasks(environment)
        self._timed_out: list[Pending] = []
        self._waits = TimedOut(environment)
        self._queues: dict[type[User], UserClassQueue] = {}
        self._environment, self._max_users = environment, max_users
        self._distributed = distributed
        self._dispatcher: Dispatcher | None = None
        self._stopped, self._warned = True, False
        events = environment.events
        if not distributed:
            events.test_start.add_listener(self._on_start)  # type: ignore[no-untyped-call]
        events.test_stopping.add_listener(self._on_stopping)  # type: ignore[no-untyped-call]
        end_users_only_when(environment, lambda: self._stopped)

    # -- the figures ------------------------------------------------------------------------

    def report(self) -> LoopReport:
        """Return the outcome of the arrivals so far; final after the test has stopped."""
        self._account_for_ended()
        now = time.monotonic()
        queues = list(self._queues.values())
        overdue = sum(queue.overdue(now) for queue in queues)
        lateness = [queue.lateness(now) for queue in queues]
        return LoopReport(
            loop="open",
            rate=self.rate.per_s,
            kind=self.rate.kind,
            arrivals=sum(queue.arrivals for queue in queues) + overdue,
            late=sum(one.late for one in lateness),
            latest_ms=max((one.latest_ms for one in lateness), default=0.0),
            dropped=sum(len(queue.dropped) for queue in queues) + overdue,
            timed_out=sum(queue.begun - queue.finished for queue in queues),
            users_max=self._dispatcher.users_max if self._dispatcher else 0,
            saturated_by=self._saturated_by(),
        )

    def timed_out(self) -> list[Pending]:
        """Return the requests without an answer, after the test has stopped."""
        self._account_for_ended()
        return self._timed_out

    def dropped(self, now: float | None = None) -> Iterator[float]:
        """Yield when the arrivals that never began were scheduled, after the test has stopped.

        `now` is there for a closed loop with a schedule, which takes the place of this one.
        """
        self._account_for_ended()
        ahead_s = unix_time_ahead_s()
        for queue in self._queues.values():
            yield from (moment + ahead_s for moment in queue.dropped)

    def take_cut_off(self) -> CutOff:
        """Return what was cut off since the last call."""
        self._account_for_ended()
        dropped_ms: list[float] = []
        for queue in self._queues.values():
            dropped_ms += queue.dropped_ms
            queue.dropped_ms.clear()
        return CutOff(timed_out_ms=self._waits.take(), dropped_ms=dropped_ms)

    def _saturated_by(self) -> str:
        reasons: dict[Cause, str] = {
            "busy": "this process is busy, a core is used up; use --processes, or do less in a task",
            "users": f"all {self._max_users:,} users (--max-users) were waiting for answers",
            "starting": (
                "new users take long to start, or fail (on_start); have more of them ready (--users)"
            ),
        }
        now = time.monotonic()
        saturated = [queue for queue in self._queues.values() if queue.is_saturated(now)]
        return "; ".join(queue.saturation_text(now, reasons) for queue in saturated)

    def _warn_when_saturated(self) -> None:
        if self._warned or self._distributed:  # a master warns for its workers
            return
        now = time.monotonic()
        if any(queue.is_saturated(now) for queue in self._queues.values()):
            self._warned = True
            logger.warning("saturated: %s", self._saturated_by())

    # -- the test ---------------------------------------------------------------------------

    def prepare(self) -> None:
        """Begin a test without any arrival yet. Users that start from now on wait."""
        user_classes = self._environment.user_classes
        new = self.tasks.follow(user_classes)
        wait_for_arrivals(new, arrived=self._on_arrived, wait=self._wait)
        self._queues = {one: UserClassQueue(one) for one in user_classes}
        self._timed_out.clear()
        self._stopped = self._warned = False
        self._dispatcher = Dispatcher(
            self._environment,
            list(self._queues.values()),
            max_users=self._max_users,
            each_window=self._warn_when_saturated,
        )
        self._dispatcher.start()

    def take_share(self, share: Share) -> None:
        """Begin a share's arrivals from its `since` on, instead of those of the share before it."""
        monotonic = share.shifted(-unix_time_ahead_s())
        self._max_users = share.max_users
        if self._dispatcher is not None:
            self._dispatcher.max_users = share.max_users
        weights = [float(one.weight) for one in self._queues]
        for index, queue in enumerate(self._queues.values()):
            stream = of_user_class(monotonic.scheduled_times(self.rate), weights, index)
            per_s = self.rate.per_s / share.of * weights[index] / sum(weights)
            queue.continue_with(stream, monotonic.since, per_s)

    def _on_start(self, **_: Any) -> None:
        self.prepare()
        self.take_share(Share.whole(self._max_users))

    def _on_stopping(self, **_: Any) -> None:
        if self._stopped or self._dispatcher is None:
            return
        self._stopped = True
        self._dispatcher.stop()
        # Locust takes some 50 ms to get here, in which the dispatcher cannot run; but users serve
        # themselves. What was scheduled before an arrival that has begun counts, of any class.
        begun = max(queue.last_at for queue in self._queues.values())
        for queue in self._queues.values():
            queue.close(max(self._dispatcher.looked_at, begun))

    # -- the users --------------------------------------------------------------------------

    def _on_arrived(self, user: User) -> None:
        queue = self._queues[type(user)]
        queue.starting.discard(user)
        queue.failing = False
        user.greenlet.rawlink(lambda _: self._account(user))

    def _wait(self, user: User) -> bool:
        """Wait until there is an arrival for this user; True if there was one already."""
        task = self.tasks.of(user)
        queue = self._queues[type(user)]
        if task.scheduled_at is not None:
            queue.finished += 1
            task.end()
        now = time.monotonic()
        if queue.next_at <= now:
            task.begin(queue.take(now) + unix_time_ahead_s())
            return True
        queue.idle[task] = None
        task.waiter = Waiter()
        try:
            task.waiter.get()
        finally:
            queue.idle.pop(task, None)
        return False

    def _account_for_ended(self) -> None:
        """Account for users whose end gevent has not reported yet."""
        for task in self.tasks.all():
            if task.user.greenlet.dead:
                self._account(task.user)

    def _account(self, user: User) -> None:
        """Count the task that a user left unfinished when it ended."""
        task = self.tasks.forget(user)
        queue = self._queues.get(type(user))
        if task is None or task.scheduled_at is None or queue is None:
            return
        if was_waiting(user):  # ended before it could begin
            queue.begun -= 1
            queue.drop(task.scheduled_at - unix_time_ahead_s(), time.monotonic())
        elif task.unfinished is None:
            queue.finished += 1
        else:
            self._timed_out.append(task.unfinished)
            self._waits.add(task.unfinished.scheduled_at)


class ClosedLoop:
    """A closed loop as Locust runs it, with the requests that have no answer at the end.

    Locust reports a request only when it has ended, and forgets one whose user is ended. Here it is
    counted if its user announces requests by calling `User.context()` before (`FastHttpUser` and
    `TaskUser` do), one request of a user at a time.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._tasks = UserTasks(environment, self._on_new)
        self._waits = TimedOut(environment)
        environment.events.test_start.add_listener(self.follow)  # type: ignore[no-untyped-call]

    def report(self) -> LoopReport:
        """Return the report of a closed loop."""
        return LoopReport()

    def follow(self, **_: Any) -> None:
        """Follow the users of a test's classes; of no class twice."""
        self._tasks.follow(self._environment.user_classes)

    def take_cut_off(self) -> CutOff:
        """Return what was cut off since the last call."""
        for task in self._tasks.all():
            # gevent reports an end a moment later.
            if task.user.greenlet is not None and task.user.greenlet.dead:
                self._account(task.user)
        return CutOff(timed_out_ms=self._waits.take())

    def _on_new(self, user: User) -> None:
        if user.greenlet is not None:
            user.greenlet.rawlink(lambda _: self._account(user))

    def _account(self, user: User) -> None:
        task = self._tasks.forget(user)
        # A task may have given up waiting for an answer, and ended.
        if task is not None and task.unfinished is not None and not was_waiting(user):
            self._waits.add(task.unfinished.scheduled_at)
