"""The loop of one process. Open: tasks begin at their scheduled moment, however slow the server is.

Locust's users make a closed loop: each waits for its answer before it goes on, so a server that
stalls gets fewer requests, and its stall hardly shows. In an open loop users wait for arrivals.
Each arrival is given to an idle user; when there is none, more are made, up to a limit.
"""

from __future__ import annotations

import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from gevent.hub import Waiter

from poolkit.errors import ConfigurationError
from poolkit.loadtest.event_loop import CALM_SHARE, WINDOW_S, EventLoopLoad
from poolkit.loadtest.locust_internals import (
    end_run_on_error,
    end_users_only_when,
    fail_run,
    listen_first,
    start_user,
    users_of,
    wait_for_arrivals,
    was_waiting,
)
from poolkit.loadtest.open_loop.arrivals import ArrivalRate, Share, of_user_class
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.loadtest.open_loop.user_class_queue import (
    ANSWER_WITHIN_S,
    LATE_MS,
    SPARE,
    Delays,
    Segment,
    UserClassQueue,
    UsersAtWork,
)
from poolkit.loadtest.open_loop.users import CutOff, RateUsers, UserTasks
from poolkit.loadtest.open_loop.users_ready import ON_START_WITHIN_S, StartTimes, UsersReady

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gevent import Greenlet
    from locust import User
    from locust.env import Environment

    from poolkit.loadtest.open_loop.user_class_queue import Cause
    from poolkit.loadtest.open_loop.users import Pending

MAX_USERS = 2000
_LOOK_EVERY_S = 0.01
_BUSY_SHARE = 0.9
_HICCUP_S = 0.01
"""Making a user costs more than serving an arrival. So a busy process leaves arrivals that are
overdue for less than this to its present users."""
_AFTER_A_FAILED_START_S = 1.0
_READINGS = 5
_MOST_SHOWN = 10_000
"""More arrivals than this would make the percentiles of a step no more exact."""
_AT_ONCE_S = 1e-4
_NO_SHARE = Share(begin=math.inf, since=math.inf)

logger = logging.getLogger("poolkit.loadtest")


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
        self.ahead_s = unix_time_ahead_s()
        """How far Unix time was ahead of the monotonic clock, 50 ms ago at most."""
        self._load = EventLoopLoad()
        self._loop = gevent.get_hub().loop
        self._timer: Any = None
        self._planned_at = math.inf
        self._growing: Greenlet | None = None

    def start(self) -> None:
        """Begin; from any greenlet."""
        self._load.start()
        now = time.monotonic()
        self._wake_at(now, now)

    def stop(self) -> None:
        """Begin no more arrivals."""
        self._timer.close()
        self._timer = None
        self._load.stop()
        self.users_max = max(self.users_max, len(users_of(self._environment)))

    def _wake_for_next(self) -> None:
        """Wake when the next arrival is scheduled, or when a window is over."""
        now = time.monotonic()
        next_at = now + WINDOW_S
        for queue in self._queues:
            next_at = min(next_at, queue.next_at)
        if next_at <= now:
            next_at = now + _LOOK_EVERY_S  # users that become idle serve themselves
        self._wake_at(next_at, now)

    def _wake_at(self, moment: float, now: float) -> None:
        """Have the event loop call `_dispatch` at a moment of the monotonic clock; now is another."""
        if self._timer is not None:
            self._timer.close()
        self._planned_at = moment
        # The loop's clock may have stood still since the last event.
        self._loop.update_now()
        self._timer = self._loop.timer(max(0.0, moment - now))
        self._timer.start(self._dispatch)

    def _dispatch(self) -> None:
        """Give every scheduled arrival to an idle user, or begin to make users for it."""
        now, before = time.monotonic(), self.looked_at
        self.looked_at, lag_s = now, now - self._planned_at
        try:
            is_new_window = self._load.look(now)
            if is_new_window:
                self.ahead_s = unix_time_ahead_s()
            # Then this process itself cannot follow the schedule, and more users would not help.
            is_behind = lag_s * 1000 > LATE_MS or self._load.busy_share > _BUSY_SHARE
            waiting = [queue for queue in self._queues if queue.next_at <= now]
            for queue in waiting:
                overdue_s = now - queue.next_at
                if overdue_s > _HICCUP_S:
                    full = len(users_of(self._environment)) >= self.max_users
                    cause: Cause = "busy" if is_behind else "users" if full else "starting"
                    waited_s = min(overdue_s, now - before)
                    queue.overdue_s[cause] = queue.overdue_s.get(cause, 0.0) + waited_s
            short = []
            for queue in waiting:
                moment = now
                while queue.next_at <= moment:
                    if not queue.idle:
                        short.append(queue)
                        break
                    task, _ = queue.idle.popitem()
                    queue.begin(task, moment, self.ahead_s)
                    task.waiter.switch(None)
                    moment = time.monotonic()
            if short and not is_behind:
                self._grow(short, now)
            if is_new_window:
                self.users_max = max(self.users_max, len(users_of(self._environment)))
                self._each_window()
        finally:
            if self._timer is not None:
                self._wake_for_next()

    def _grow(self, queues: Sequence[UserClassQueue], now: float) -> None:
        """Make users for queues without an idle one, if no users are being made already."""
        if self._growing is not None and not self._growing.ready():
            return
        calm = self._load.busy_share <= CALM_SHARE
        growing = [
            queue
            for queue in queues
            if now >= queue.no_growth_before and (calm or now - queue.next_at > _HICCUP_S)
        ]
        if growing:
            # In a greenlet: the constructor of a user class may take time.
            self._growing = gevent.spawn(self._make_users, growing)
            end_run_on_error(self._environment, self._growing)

    def _make_users(self, queues: Sequence[UserClassQueue]) -> None:
        def on_end(queue: UserClassQueue, user: User, _: Greenlet) -> None:
            if user not in queue.starting:
                return
            now = time.monotonic()
            if self._timer is None:  # the end of the test has ended it
                queue.cut_off_start(user, now)
                return
            # Its on_start failed, and the next one may fail too.
            queue.starting.pop(user)
            queue.failing = True
            queue.no_growth_before = now + _AFTER_A_FAILED_START_S

        users = users_of(self._environment)
        for queue in queues:
            missing = queue.overdue(time.monotonic()) - len(queue.starting)
            if missing <= 0:
                continue
            # After a failed start, one user is enough to find out whether the next one fails too.
            wanted = 1 if queue.failing else missing + int(len(users) * SPARE)
            for _ in range(min(wanted, self.max_users - len(users))):
                if self._timer is None:
                    return  # stopped
                made_at = time.monotonic()
                user = queue.user_class(self._environment)
                queue.starting[user] = made_at
                start_user(self._environment, user).rawlink(partial(on_end, queue, user))
                self.users_max = max(self.users_max, len(users))


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


class OpenLoop:
    """Makes the users of this process begin the arrivals of a rate.

    Args:
        environment: Locust's; its user classes wait for arrivals instead of for their own wait
            time.
        rate: of all processes of the run together.
        max_users: the highest number of users at once.
        on_start_within_s: the longest time of a user's on_start before the first arrival.
        answer_within_s: the time from its scheduled moment after which an answer is late.
        on_ready: called when the users are ready, if a master assigns this process its share of
            the rate; otherwise it then has the whole rate.
        on_stuck: called with the reason when they do not get ready; otherwise the run fails.

    Raises:
        ConfigurationError: max_users is not above 0.
    """

    def __init__(
        self,
        environment: Environment,
        rate: ArrivalRate,
        *,
        max_users: int = MAX_USERS,
        on_start_within_s: float = ON_START_WITHIN_S,
        answer_within_s: float = ANSWER_WITHIN_S,
        on_ready: Callable[[], None] | None = None,
        on_stuck: Callable[[str], None] | None = None,
    ) -> None:
        if max_users < 1:
            raise ConfigurationError(f"--max-users is {max_users}; wanted 1 or more")
        self.rate = rate
        self.on_end: Callable[[], None] = lambda: None
        """Called when the last stage of a rate that ends is over; not if a master assigns it."""
        self._share = _NO_SHARE
        """By the monotonic clock."""
        self.tasks = UserTasks(environment)
        self._timed_out: list[Pending] = []
        self._queues: dict[type[User], UserClassQueue] = {}
        self._bound: list[type[User]] = []
        """The classes whose users wait for arrivals, of this test and of those before."""
        self._share_classes: Sequence[type[User]] = ()
        self._environment, self._max_users = environment, max_users
        self._at_work = UsersAtWork(max_users)
        self._is_alone = on_ready is None
        self._on_start_within_s, self._answer_within_s = on_start_within_s, answer_within_s
        self._on_ready = on_ready or (lambda: self.take_share(Share.whole(self._max_users)))
        self._on_stuck = on_stuck or partial(fail_run, environment)
        self._waited_for = ""
        self._ready: set[User] = set()
        """The living users that have ended their on_start."""
        self._start: UsersReady | None = None
        self._dispatcher: Dispatcher | None = None
        self._began: float | None = None
        """When the first arrival of the test was scheduled, Unix time; None before."""
        self._stopped, self._warned = True, False
        self.has_ended = False
        """Whether the last stage of a rate that ends is over."""
        self._ended_at: float | None = None

        def on_user_error(user_instance: User, **_: Any) -> None:
            # A task that raises has no answer either, whatever its requests were.
            task = self.tasks.by_user.get(user_instance)
            if task is not None:
                task.has_failed = True

        def on_spawned(**_: Any) -> None:
            if self._start is not None:
                self._start.spawned()

        events = environment.events
        if self._is_alone:
            listen_first(events.test_start, self.prepare)
        events.spawning_complete.add_listener(on_spawned)  # type: ignore[no-untyped-call]
        events.user_error.add_listener(on_user_error)  # type: ignore[no-untyped-call]
        events.test_stopping.add_listener(self._on_stopping)  # type: ignore[no-untyped-call]
        end_users_only_when(environment, lambda: self._stopped)

    def report(self) -> LoopReport:
        """Return the outcome of the arrivals so far; final after the test has stopped."""
        self._account_for_ended()
        now = time.monotonic()
        queues = list(self._queues.values())
        overdue = sum(queue.overdue(now) for queue in queues)
        lateness = [queue.lateness(now) for queue in queues]
        times = self._start.times if self._start else StartTimes()
        return LoopReport(
            loop="open",
            rate=self.per_s,
            kind=self.rate.kind,
            stages="" if self.rate.is_plain else str(self.rate),
            began=self._began,
            listeners_s=times.listeners_s,
            users_s=times.users_s,
            waited_for=self._waited_for if self._stopped else self._waits_for(),
            arrivals=sum(queue.arrivals for queue in queues) + overdue,
            late=sum(one.late for one in lateness),
            latest_ms=max((one.latest_ms for one in lateness), default=0.0),
            dropped=sum(len(queue.dropped) for queue in queues) + overdue,
            timed_out=sum(queue.begun - queue.finished for queue in queues),
            in_time=sum(queue.in_time for queue in queues),
            answered_late=sum(queue.answered_late for queue in queues),
            failed=sum(queue.failed for queue in queues),
            answer_within_s=self._answer_within_s,
            users_max=self._dispatcher.users_max if self._dispatcher else 0,
            saturated_by=self._saturated_by(),
        )

    @property
    def begins_at(self) -> float:
        """When the first arrival is scheduled, Unix time; infinite before a test."""
        return self._share.begin + unix_time_ahead_s()

    @property
    def per_s(self) -> float:
        """The rate in force, of all processes together; after the test, the last one."""
        return self.rate.at((self._ended_at or time.monotonic()) - self._share.begin)

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
        """Return the waits that were cut off since the last call.

        Arrivals are dropped only when the test stops, or when a user ends before it could begin.
        """
        self._account_for_ended()
        dropped_ms: list[float] = []
        for queue in self._queues.values():
            dropped_ms += queue.dropped_ms
            queue.dropped_ms.clear()
        return CutOff(timed_out_ms=self.tasks.take_timed_out(), dropped_ms=dropped_ms)

    def delays(self) -> Delays:
        """Return how late the arrivals were up to now."""
        now, queues = time.monotonic(), list(self._queues.values())
        overdue_s: dict[Cause, float] = {}
        for queue in queues:
            for cause, seconds in queue.overdue_s.items():
                overdue_s[cause] = overdue_s.get(cause, 0.0) + seconds
        return Delays(
            arrivals=sum(queue.arrivals + queue.overdue(now) for queue in queues),
            late=sum(queue.lateness(now).late for queue in queues),
            overdue_s=overdue_s,
        )

    def waiting(self) -> Iterator[float]:
        """Yield the scheduled moments of the requests that have no answer yet, Unix times.

        Those of arrivals that have not begun are spread over the time in which they were scheduled.
        """
        for task in self.tasks.by_user.values():
            if task.unfinished is not None:
                yield task.unfinished.scheduled_at
        now, ahead_s = time.monotonic(), unix_time_ahead_s()
        for queue in self._queues.values():
            shown = min(queue.overdue(now), _MOST_SHOWN)
            for number in range(shown):
                yield queue.next_at + (now - queue.next_at) * number / shown + ahead_s

    def _saturated_by(self) -> str:
        now = time.monotonic()
        users_max = self._dispatcher.users_max if self._dispatcher else 0
        per_s = self.per_s / self._share.of
        saturated = (one.saturated_by(now, per_s, users_max) for one in self._queues.values())
        return "; ".join(filter(None, saturated))

    def prepare(self, **_: Any) -> None:
        """Begin a test without any arrival yet. Users that start from now on wait.

        `on_ready` is called when all that Locust starts have ended their on_start.
        """

        def look() -> None:
            if not self._is_alone:
                return  # the master warns, and ends the run
            if not self._warned and (reason := self._saturated_by()):
                self._warned = True
                logger.warning("saturated: %s", reason)
            if self.rate.ends and not self.has_ended:
                self.has_ended = time.monotonic() >= self._share.begin + self.rate.seconds
                if self.has_ended:
                    gevent.spawn(self.on_end)

        self._on_stopping()  # of a test that another listener has refused at its start
        options = self._environment.parsed_options
        has_tags = options is not None and bool(options.tags or options.exclude_tags)
        users = RateUsers.among(self._environment.user_classes, has_tags=has_tags)
        if users.beside:
            logger.info(
                "users of %s keep their own wait times beside the arrivals: fixed_count",
                ", ".join(one.__name__ for one in users.beside),
            )
        self._share_classes = users.share
        self.tasks.follow(users.beside)
        new = self.tasks.follow([*users.share, *users.idle])
        wait_for_arrivals(new, arrived=self._on_arrived, wait=self._wait)
        self._bound += new
        self._at_work = UsersAtWork(self._max_users)
        self._queues = {
            one: UserClassQueue(one, self._at_work, self._answer_within_s) for one in self._bound
        }
        self._timed_out.clear()
        self._stopped = self._warned = self.has_ended = False
        self._ended_at = None
        self._ready.clear()
        self._began, self._waited_for = None, ""
        self._share = _NO_SHARE
        self._dispatcher = Dispatcher(
            self._environment,
            list(self._queues.values()),
            max_users=self._max_users,
            each_window=look,
        )
        self._dispatcher.start()
        self._start = UsersReady(
            self._environment,
            is_ready=self._ready.__contains__,
            user_classes=self._queues,
            within_s=self._on_start_within_s,
            on_ready=self._on_ready,
            on_stuck=self._on_stuck,
        )

    def take_share(self, share: Share, rate: ArrivalRate | None = None) -> None:
        """Begin a share's arrivals from its `since` on, instead of those of the share before it.

        Args:
            share: by Unix time.
            rate: of all processes together; without it the present one.
        """
        self._began = self._began or share.since
        self._continue_with(share.shifted(-unix_time_ahead_s()), rate or self.rate)

    def change_rate(self, rate: ArrivalRate) -> None:
        """Begin the arrivals of another rate: now, or when the users of a test are ready."""
        self.has_ended = False
        if self._stopped or self._began is None:
            self.rate = rate
        else:
            self._continue_with(self._share.changed(self.rate, time.monotonic()), rate)

    def restart(self, rate: ArrivalRate) -> None:
        """Begin another rate from its first stage on: now, or when the users are ready."""
        self.rate = rate
        if self._began is not None:
            self.take_share(Share.whole(self._max_users))

    def _continue_with(self, share: Share, rate: ArrivalRate) -> None:
        """Take a share by the monotonic clock."""
        self.rate, self._share, self._max_users = rate, share, share.max_users
        self._at_work.most, self._at_work.processes = share.max_users, share.of
        if self._dispatcher is not None:
            self._dispatcher.max_users = share.max_users
        weights = rate.weights(self._share_classes)
        for index, one in enumerate(self._share_classes):
            queue = self._queues[one]
            stream = of_user_class(share.scheduled_times(rate), weights, index, share.number)
            part = weights[index] / sum(weights)

            def expected(since: float, until: float, part: float = part) -> float:
                return share.expected(rate, since, until) * part

            queue.continue_with(stream, Segment(share.since, expected))

    def _waits_for(self) -> str:
        return self._start.waits_for() if self._start is not None else ""

    def _on_stopping(self, **_: Any) -> None:
        if self._stopped or self._dispatcher is None:
            return
        self._stopped, self._ended_at = True, time.monotonic()
        self._waited_for = self._waits_for()
        if self._start is not None:
            self._start.stop()
        self._dispatcher.stop()
        # Locust takes some 50 ms to get here, in which the dispatcher cannot run; but users serve
        # themselves. So an arrival counts if a later one has begun, of any class.
        begun = max(queue.last_at for queue in self._queues.values())
        for queue in self._queues.values():
            queue.close(max(self._dispatcher.looked_at, begun))

    def _on_arrived(self, user: User) -> None:
        queue = self._queues[type(user)]
        queue.is_ready(user, time.monotonic())
        self._ready.add(user)
        user.greenlet.rawlink(lambda _: self._account(user))

    def _wait(self, user: User) -> bool:
        """Wait until there is an arrival for this user; True if there was one already."""
        # Called for every task, so no other function is called that can be spared.
        task = self.tasks.by_user.get(user) or self.tasks.of(user)
        queue = self._queues[type(user)]
        now = time.monotonic()
        if task.scheduled_at is not None:
            queue.finish(task, now)
            task.scheduled_at = task.first_request_at = None
        if queue.next_at <= now:
            assert self._dispatcher is not None  # noqa: S101  (there are arrivals)
            queue.begin(task, now, self._dispatcher.ahead_s)
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
        for user in list(self.tasks.by_user):
            if user.greenlet.dead:
                self._account(user)

    def _account(self, user: User) -> None:
        """Count the task that a user left unfinished when it ended."""
        self._ready.discard(user)
        task = self.tasks.by_user.pop(user, None)
        queue = self._queues.get(type(user))
        if task is None or task.scheduled_at is None or queue is None:
            return
        if was_waiting(user):  # ended before it could begin
            queue.give_up(task, task.scheduled_at - unix_time_ahead_s(), time.monotonic())
        elif task.unfinished is None or (task.sent is None and not self._stopped):
            # A task may end its user (`StopUser`) before it has sent anything: no answer is missing.
            queue.finish(task, time.monotonic())
        else:
            queue.time_out(task, time.monotonic())
            self._timed_out.append(task.unfinished)
            self.tasks.add_timed_out(task.unfinished.scheduled_at)


class ClosedLoop:
    """A closed loop as Locust runs it, with the requests that have no answer at the end.

    Locust reports a request only when it has ended, and forgets one whose user is ended. Here it is
    counted if its user announces requests by calling `User.context()` before (`FastHttpUser` and
    `TaskUser` do), one request of a user at a time.
    """

    def __init__(self, environment: Environment) -> None:
        def on_new(user: User) -> None:
            if user.greenlet is not None:
                user.greenlet.rawlink(lambda _: self._account(user))

        self._environment = environment
        self._tasks = UserTasks(environment, on_new)
        environment.events.test_start.add_listener(self.follow)  # type: ignore[no-untyped-call]

    def follow(self, **_: Any) -> None:
        """Follow the users of a test's classes; of no class twice."""
        self._tasks.follow(self._environment.user_classes)

    def take_cut_off(self) -> CutOff:
        """Return the waits that were cut off since the last call; a closed loop drops no arrivals.

        The users that have ended by then are looked for, since gevent reports an end a moment later.
        """
        for user in list(self._tasks.by_user):
            if user.greenlet is not None and user.greenlet.dead:
                self._account(user)
        return CutOff(timed_out_ms=self._tasks.take_timed_out())

    def _account(self, user: User) -> None:
        task = self._tasks.by_user.pop(user, None)
        # A task may have given up waiting for an answer, and ended.
        if task is not None and task.unfinished is not None and not was_waiting(user):
            self._tasks.add_timed_out(task.unfinished.scheduled_at)
