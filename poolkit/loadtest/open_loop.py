"""An open loop: tasks begin at their scheduled moment, whatever the server does.

Locust's users make a closed loop: each waits for its answer before it goes on, so a server
that stalls is asked less, and its stall hardly shows. Here users wait for arrivals. Each arrival is
handed to a user that is free; when none is, one more is made, up to a limit.
"""

from __future__ import annotations

import logging
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from gevent.hub import Waiter
from locust.exception import StopUser
from locust.runners import locust_exception_handler
from locust.user.task import (
    LOCUST_STATE_RUNNING,
    LOCUST_STATE_STOPPING,
    LOCUST_STATE_WAITING,
    TaskSet,
)

from poolkit.errors import ConfigurationError
from poolkit.loadtest.arrivals import due_times
from poolkit.loadtest.due import Turns
from poolkit.loadtest.lane import BUSY, LATE_MS, STARTING, USERS, Lane, shared
from poolkit.loadtest.loop_report import LoopReport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gevent import Greenlet
    from locust import User
    from locust.env import Environment

    from poolkit.loadtest.arrivals import ArrivalRate

MAX_USERS = 2000
LEAD_S = 0.5
"""Between the start of a test and its first arrival: users are made meanwhile."""
_LOOK_EVERY_S = 0.01
_LOOK_AT_LEAST_EVERY_S = 0.25
_BUSY_SHARE = 0.9
_AFTER_A_FAILED_START_S = 1.0

logger = logging.getLogger("poolkit.loadtest")


class OpenLoop:
    """Hands the arrivals of a rate to the users of this process.

    Args:
        environment: Locust's; its user classes are made to wait for arrivals instead of for
            their own think time.
        rate: of all processes of the run together.
        max_users: how many users there may be at once, in all processes together.

    Raises:
        ConfigurationError: max_users is not above 0.
    """

    def __init__(
        self, environment: Environment, rate: ArrivalRate, *, max_users: int = MAX_USERS
    ) -> None:
        if max_users < 1:
            raise ConfigurationError(f"--max-users is {max_users}; wanted 1 or more")
        self.rate, self.max_users = rate, max_users
        self.turns = Turns(environment)
        """When the task of each user was due."""
        self.unanswered: list[tuple[float, float]] = []
        """Due and start of the requests without an answer, after the test has stopped."""
        self.lanes: dict[type[User], Lane] = {}
        self._environment = environment
        self._stopped_at: float | None = None
        self._users_max = 0
        self._lag_s = self._cpu_share = 0.0
        self._handing: Greenlet | None = None
        self._said = False
        for event, listener in (
            (environment.events.test_start, self._on_start),
            (environment.events.test_stopping, self._on_stopping),
            (environment.events.test_stop, self._on_stop),
        ):
            event.add_listener(listener)  # type: ignore[no-untyped-call]
        self._keep_users()

    def report(self) -> LoopReport:
        """Return what became of the arrivals so far; final after the test has stopped."""
        now = time.monotonic()
        lanes = list(self.lanes.values())
        waiting = 0 if self._stopped_at is not None else sum(lane.overdue(now) for lane in lanes)
        unsent = sum(len(lane.unsent) for lane in lanes)
        return LoopReport(
            loop="open",
            rate=self.rate.per_s,
            kind=self.rate.kind,
            arrivals=sum(lane.arrivals for lane in lanes) + waiting,
            late=sum(lane.late for lane in lanes),
            latest_ms=max((lane.latest_ms for lane in lanes), default=0.0),
            unsent=unsent + waiting,
            unanswered=sum(lane.begun - lane.finished for lane in lanes),
            users_max=self._users_max,
            saturated_by=self._saturated_by(),
        )

    def unsent(self, now: float | None = None) -> Iterator[float]:
        """Yield when the arrivals were due that nobody began, after the test has stopped.

        `now` is there for whoever has another schedule in its place.
        """
        ahead = wall_clock_s()
        for lane in self.lanes.values():
            yield from (due + ahead for due in lane.unsent)

    # -- the test ---------------------------------------------------------------------------

    def _on_start(self, **_: Any) -> None:
        self._adopt()
        self._stopped_at, self._users_max, self._said = None, 0, False
        self.unanswered.clear()
        self._lag_s = self._cpu_share = 0.0
        self.lanes = self._new_lanes(time.monotonic() + LEAD_S)
        runner = self._runner
        self._handing = runner.greenlet.spawn(self._hand_out_all)
        self._handing.link_exception(locust_exception_handler(self._environment))

    def _new_lanes(self, begin: float) -> dict[type[User], Lane]:
        classes = self._environment.user_classes
        weights = [float(one.weight) for one in classes]
        seed = random.getrandbits(64)
        return {
            one: Lane(
                one,
                self.rate.per_s * weights[number] / sum(weights),
                shared(due_times(self.rate, begin=begin, seed=seed), weights, number),
            )
            for number, one in enumerate(classes)
        }

    def _on_stopping(self, **_: Any) -> None:
        if self._stopped_at is not None or not self.lanes:
            return
        now = self._stopped_at = time.monotonic()
        if self._handing is not None:
            self._handing.kill(block=False)
        for lane in self.lanes.values():
            lane.close(now, self._cause())

    def _on_stop(self, **_: Any) -> None:
        for turn in self.turns.all():
            self._account(turn.user)

    # -- the users --------------------------------------------------------------------------

    def _keep_users(self) -> None:
        """Have Locust end users only at the end: in between, their number follows the need."""
        runner = self._runner
        stop_users = runner.stop_users

        def stop_at_the_end(counts: dict[str, int]) -> None:
            if self._stopped_at is not None:
                stop_users(counts)

        runner.stop_users = stop_at_the_end

    def _adopt(self) -> None:
        """Have users wait for arrivals where Locust lets them say how long they wait."""
        new = self.turns.follow(self._environment.user_classes)
        for user_class, own in [(one, one.on_start) for one in new]:
            self._wait_first(user_class, own)
            self._wait_between(user_class)

    def _wait_first(self, user_class: type[User], own: Any) -> None:
        def on_start(user: User) -> None:
            own(user)
            if type(user) is not user_class:  # called as the parent's
                return
            self._arrive(user)
            user._state = LOCUST_STATE_WAITING  # noqa: SLF001  (as TaskSet.wait does: may be killed)
            self._next(user)
            user._state = LOCUST_STATE_RUNNING  # noqa: SLF001

        user_class.on_start = on_start  # type: ignore[assignment,method-assign]

    def _wait_between(self, user_class: type[User]) -> None:
        def wait_time(user: User) -> float:
            self._next(user)
            return 0.0

        user_class.wait_time = wait_time
        for task_set in _task_sets(user_class.tasks):
            # One that has its own would begin tasks that were not due.
            task_set.wait_time = TaskSet.wait_time  # type: ignore[method-assign]

    def _next(self, user: User) -> None:
        """Wait until there is an arrival for this user."""
        turn = self.turns.of(user)
        lane = self.lanes[type(user)]
        if turn.due is not None:
            lane.finished += 1
            turn.end()
        now = time.monotonic()
        if lane.next_due <= now:
            turn.begin(lane.take(now, self._cause()) + wall_clock_s())
            return
        lane.idle[turn] = None
        turn.waiter = Waiter()
        try:
            turn.waiter.get()
        finally:
            lane.idle.pop(turn, None)

    def _arrive(self, user: User) -> None:
        if user._state == LOCUST_STATE_STOPPING:  # noqa: SLF001
            raise StopUser
        self.lanes[type(user)].starting.discard(user)
        user.greenlet.rawlink(partial(self._on_end, user))

    def _on_end(self, user: User, greenlet: Greenlet) -> None:
        self._account(user)

    def _account(self, user: User) -> None:
        """Count what a user that has ended left open."""
        turn = self.turns.forget(user)
        lane = self.lanes.get(type(user))
        if turn is None or turn.due is None or lane is None:
            return
        if user._state == LOCUST_STATE_WAITING:  # noqa: SLF001  (killed before it could begin)
            lane.begun -= 1
            lane.give_up(turn.due - wall_clock_s(), time.monotonic(), self._cause())
        elif turn.in_flight is None:
            lane.finished += 1
        else:
            self.unanswered.append(turn.in_flight)

    # -- handing out ------------------------------------------------------------------------

    @property
    def _runner(self) -> Any:
        return self._environment.runner

    def _hand_out_all(self) -> None:
        planned = time.monotonic()
        since, cpu_s = planned, time.process_time()
        while True:
            now = time.monotonic()
            self._lag_s = now - planned
            self._users_max = max(self._users_max, len(self._runner.user_greenlets))
            if now - since >= _LOOK_AT_LEAST_EVERY_S:
                used = time.process_time()
                self._cpu_share, since, cpu_s = (used - cpu_s) / (now - since), now, used
                self._say_when_saturated()
            for lane in self.lanes.values():
                self._hand_out(lane, now)
            planned = self._next_look(now)
            gevent.sleep(max(0.0, planned - time.monotonic()))

    def _next_look(self, now: float) -> float:
        due = min(lane.next_due for lane in self.lanes.values())
        if due <= now:
            due = now + _LOOK_EVERY_S  # users that become free help themselves
        return min(due, now + _LOOK_AT_LEAST_EVERY_S)

    def _hand_out(self, lane: Lane, now: float) -> None:
        loop, ahead = gevent.get_hub().loop, wall_clock_s()
        while lane.next_due <= now:
            if not lane.idle:
                self._grow(lane, now)
                break
            turn, _ = lane.idle.popitem()
            turn.begin(lane.take(now, self._cause()) + ahead)
            loop.run_callback(turn.waiter.switch, None)  # type: ignore[union-attr]

    def _grow(self, lane: Lane, now: float) -> None:
        """Make users for what is overdue, unless it is this process that cannot follow."""
        group = self._runner.user_greenlets
        missing = lane.overdue(now) - len(lane.starting)
        room = self.max_users - len(group)
        if self._lag_s * 1000 > LATE_MS or now < lane.no_growth_before:
            return
        for _ in range(min(missing, room)):
            user = lane.user_class(self._environment)
            lane.starting.add(user)
            user.start(group).rawlink(partial(self._on_started, lane, user))

    def _on_started(self, lane: Lane, user: User, greenlet: Greenlet) -> None:
        if user in lane.starting:  # it ended in its on_start
            lane.starting.discard(user)
            lane.no_growth_before = time.monotonic() + _AFTER_A_FAILED_START_S

    # -- saturation -------------------------------------------------------------------------

    def _cause(self) -> str:
        """Return why an arrival that is late now is late."""
        if self._lag_s * 1000 > LATE_MS or self._cpu_share > _BUSY_SHARE:
            return BUSY
        if len(self._runner.user_greenlets) >= self.max_users:
            return USERS
        return STARTING

    def _saturated_by(self) -> str:
        reasons = {
            BUSY: "this process is busy, a core is used up; use --processes, or do less in a task",
            USERS: f"all {self.max_users:,} users (--max-users) were waiting for answers",
            STARTING: "new users take long to start (on_start); have more of them ready (--users)",
        }
        return "; ".join(lane.words(reasons) for lane in self.lanes.values() if lane.is_saturated)

    def _say_when_saturated(self) -> None:
        if self._said:
            return
        why = self._saturated_by()
        if why:
            self._said = True
            logger.warning("saturated: %s", why)


def wall_clock_s() -> float:
    """Return how far Unix time is ahead of the monotonic clock, by which arrivals are due.

    The wall clock is set now and then while a test runs; a schedule by it would stand still, or
    rush. So a moment becomes Unix time only when it is handed out.
    """
    return time.time() - time.monotonic()


def _task_sets(tasks: Any) -> Iterator[type[TaskSet]]:
    for task in tasks or ():
        if isinstance(task, type) and issubclass(task, TaskSet):
            yield task
            yield from _task_sets(task.tasks)
