"""The arrivals of one user class: which have begun, how they ended, and why some were late."""

from __future__ import annotations

import math
from array import array
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from locust import User

    from poolkit.loadtest.open_loop.users import UserTask

LATE_MS = 50.0
"""The delay that a task may have: some switches of a busy process, too short to be noticed."""
ANSWER_WITHIN_S = 1.0
"""A visitor notices a wait of a second: an arrival that is answered later is late."""
TOLERATED_SHARE = 0.01
"""Late arrivals below this share do not touch the p99."""
TOLERATED_COUNT = 5
TOLERATED_MS = 1000.0
SPARE = 0.1
"""Users made beyond those that are missing now, as a share of the present users."""
_SLOWER = 2.0
"""A server whose tasks take this many times as long with all users busy is at its limit."""

Cause: TypeAlias = Literal["busy", "users", "starting"]
"""The reason why an arrival is overdue: this process is busy, --max-users, or users that start."""


class UsersAtWork:
    """How many users of this process have a task now, of how many at most; all classes share it."""

    def __init__(self, most: int) -> None:
        self.most = most
        """The share of this process in --max-users."""
        self.processes = 1
        """How many processes share --max-users."""
        self.now = 0

    @property
    def option(self) -> str:
        """The option that limits the users, with its value where several processes share it."""
        shared = f" {self.most * self.processes:,} in {self.processes} processes"
        return f"--max-users{shared if self.processes > 1 else ''}"


class Mean:
    """The mean of some durations, in seconds; None without one."""

    __slots__ = ("count", "total")

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, seconds: float) -> None:
        """Add one."""
        self.total += seconds
        self.count += 1

    def at_least(self, unfinished: Iterable[float]) -> float | None:
        """Return the mean of these and of unfinished ones, which have taken this long until now.

        An unfinished one counts where it raises the mean: one that has just begun says nothing.
        """
        mean = self.total / self.count if self.count else 0.0
        longer = [seconds for seconds in unfinished if seconds > mean]
        count = self.count + len(longer)
        return (self.total + sum(longer)) / count if count else None


class Lateness(NamedTuple):
    """Arrivals that began more than `LATE_MS` late, and the longest delay in ms."""

    late: int
    latest_ms: float


class Delays(NamedTuple):
    """How late the arrivals of a loop were, up to a moment."""

    arrivals: int
    late: int
    overdue_s: Mapping[Cause, float]

    def cause_since(self, before: Delays) -> Cause | None:
        """Return why arrivals have begun late since then; None if they did not, or too few of them."""
        late = self.late - before.late
        if late <= max(TOLERATED_COUNT, TOLERATED_SHARE * (self.arrivals - before.arrivals)):
            return None
        seconds = {
            one: self.overdue_s[one] - before.overdue_s.get(one, 0.0) for one in self.overdue_s
        }
        cause: Cause = max(seconds, key=lambda one: seconds[one], default="busy")
        return cause


class Segment(NamedTuple):
    """The arrivals of a queue from a moment on."""

    since: float
    expected: Callable[[float, float], float]
    """Returns the number of arrivals between two moments: the integral of the rate."""


class UserClassQueue:
    """The arrivals of one user class in the order of their schedule, and its idle users.

    Moments are of the monotonic clock. The stream of arrivals is read only when a user is idle:
    the overdue arrivals are a position in it, not a list that grows.
    """

    def __init__(
        self, user_class: type[User], at_work: UsersAtWork, answer_within_s: float
    ) -> None:
        self.user_class = user_class
        self.next_at = math.inf
        """When the next arrival is scheduled; inf when there is no other."""
        self.last_at = -math.inf
        """When the last arrival that has begun was scheduled."""
        self.idle: dict[UserTask, None] = {}
        """The waiting users: last in, first out, so connections stay warm."""
        self.starting: dict[User, float] = {}
        """When users were made for this queue that have not waited yet."""
        self.failing = False
        """Whether the last user that was made ended in its on_start."""
        self.no_growth_before = -math.inf
        self.begun = self.in_time = self.answered_late = self.failed = 0
        self.dropped = array("d")
        """When the arrivals that were never begun were scheduled; known at the end."""
        self.dropped_ms: list[float] = []
        """How long each of them had waited."""
        self.late = 0
        self.latest_ms = 0.0
        self.overdue_s: dict[Cause, float] = {}
        """Seconds in which an arrival was overdue, by reason."""
        self._at_work, self._answer_within_s = at_work, answer_within_s
        self._under_way: dict[UserTask, None] = {}
        self._alone, self._crowded = Mean(), Mean()
        """The durations of tasks that began while at most half of the users were at work, and of
        the others; tasks without an answer are among these, with the time they had waited."""
        self._starts = Mean()
        """The time from the constructor of a user to the end of its on_start."""
        self._stream: Iterator[float] = iter(())
        self._segments: list[Segment] = []
        """The present rate, and those before it of which an arrival is overdue."""

    def begin(self, task: UserTask, now: float, ahead_s: float) -> None:
        """Begin the next arrival.

        Args:
            task: of the user that takes it.
            now: of the monotonic clock.
            ahead_s: how far Unix time is ahead of that clock.
        """
        scheduled_at = self.last_at = self.next_at
        self.next_at = next(self._stream, math.inf)
        self.begun += 1
        task.begin(scheduled_at + ahead_s)
        task.began_at, task.delay_s = now, now - scheduled_at
        task.is_crowded = self._at_work.now * 2 > self._at_work.most
        self._at_work.now += 1
        self._under_way[task] = None
        late_ms = task.delay_s * 1000
        if late_ms > LATE_MS:
            self.late += 1
            self.latest_ms = max(self.latest_ms, late_ms)

    def finish(self, task: UserTask, now: float) -> None:
        """Count an arrival whose task has ended, by its outcome."""
        # Called for every task, as `begin` is: `_end` and `Mean.add` are written out.
        self._under_way.pop(task, None)
        self._at_work.now -= 1
        took_s = now - task.began_at
        mean = self._crowded if task.is_crowded else self._alone
        mean.total += took_s
        mean.count += 1
        if task.has_failed:
            self.failed += 1
        elif task.delay_s * 1000 <= LATE_MS and task.delay_s + took_s <= self._answer_within_s:
            self.in_time += 1
        else:
            self.answered_late += 1

    def time_out(self, task: UserTask, now: float) -> None:
        """Leave an arrival unfinished: its user ended without an answer."""
        self._end(task)
        self._crowded.add(now - task.began_at)

    def give_up(self, task: UserTask, scheduled_at: float, now: float) -> None:
        """Drop an arrival whose user ended before it could begin."""
        self._end(task)
        self.begun -= 1
        self.drop(scheduled_at, now)

    def _end(self, task: UserTask) -> None:
        self._under_way.pop(task, None)
        self._at_work.now -= 1

    def is_ready(self, user: User, now: float) -> None:
        """Note that a user has ended its on_start, and waits for its first arrival."""
        made_at = self.starting.pop(user, None)
        if made_at is not None:
            self._starts.add(now - made_at)
        self.failing = False

    def cut_off_start(self, user: User, now: float) -> None:
        """Note that a user was still in its on_start at the end, which is no failure of it."""
        took_s = now - self.starting.pop(user)
        # As `Mean.at_least` counts the starts that have not ended.
        if took_s > (self._starts.at_least(()) or 0.0):
            self._starts.add(took_s)

    def overdue(self, now: float) -> int:
        """Return the approximate number of arrivals that should have begun by now."""
        if self.next_at > now:
            return 0
        missing, until = 0.0, now
        for segment in reversed(self._segments):
            if until > segment.since:
                missing += segment.expected(max(self.next_at, segment.since), until)
                until = segment.since
        return int(missing) + 1

    def continue_with(self, stream: Iterator[float], segment: Segment) -> None:
        """Go on with another stream from a segment's beginning; arrivals before it stay.

        Both streams are read lazily, since they may have no end.
        """
        if self.next_at >= segment.since:  # as at the beginning, with an infinite one
            self._stream = stream
        else:
            present = chain([self.next_at], self._stream)
            self._stream = _followed_by(present, segment.since, stream)
        self.next_at = next(self._stream, math.inf)
        self._segments.append(segment)
        while len(self._segments) > 1 and self._segments[1].since <= self.next_at:
            self._segments.pop(0)

    def close(self, now: float) -> None:
        """Begin no more arrivals: those scheduled by now that have not begun are dropped."""
        while self.next_at <= now:
            self.drop(self.next_at, now)
            self.next_at = next(self._stream, math.inf)
        self.next_at = math.inf

    def drop(self, scheduled_at: float, now: float) -> None:
        """Count an arrival that never began.

        It counts as late too. Otherwise dropping an arrival would look better than a slow start.
        """
        self.dropped.append(scheduled_at)
        late_ms = (now - scheduled_at) * 1000
        self.dropped_ms.append(max(0.0, late_ms))
        if late_ms > LATE_MS:
            self.late += 1
            self.latest_ms = max(self.latest_ms, late_ms)

    @property
    def finished(self) -> int:
        """The arrivals whose tasks ran to their end, answered or failed."""
        return self.in_time + self.answered_late + self.failed

    @property
    def arrivals(self) -> int:
        """The number of arrivals that have begun or were dropped."""
        return self.begun + len(self.dropped)

    def lateness(self, now: float) -> Lateness:
        """Return the lateness of all arrivals up to now, begun or not."""
        overdue_ms = max(0.0, now - self.next_at) * 1000
        late = self.late + self.overdue(now - LATE_MS / 1000)
        return Lateness(late, max(self.latest_ms, overdue_ms))

    def saturated_by(self, now: float, per_s: float, users_max: int) -> str:
        """Return how far the schedule was missed, why, and a cure; empty within the tolerance.

        Args:
            now: of the monotonic clock.
            per_s: the rate of this process, all classes together.
            users_max: the highest number of its users so far.
        """
        late, latest_ms = self.lateness(now)
        tolerated = max(TOLERATED_COUNT, TOLERATED_SHARE * self.arrivals)
        if late <= tolerated and latest_ms <= TOLERATED_MS:
            return ""
        seconds = self.overdue_s
        cause: Cause = max(seconds, key=lambda one: seconds[one], default="busy")
        if cause == "busy":
            why = (
                "Locust's own process is busy, a core is used up; use --processes, or do less in a "
                "task"
            )
        elif cause == "users":
            why = self._users_are_busy(now, per_s)
        else:
            why = self._users_start(now, users_max)
        return (
            f"class {self.user_class.__name__} began {late:,} of "
            f"{self.arrivals + self.overdue(now):,} arrivals more than {LATE_MS:g} ms late, "
            f"the latest by {latest_ms:,.0f} ms: {why}"
        )

    def _users_are_busy(self, now: float, per_s: float) -> str:
        """Return whether the target is at its limit, or the number of users was too low.

        A target at its limit takes longer the more users it serves; a target that merely takes its
        time takes as long with few users as with all.
        """
        at_work = self._at_work
        alone_s = self._alone.at_least(())
        # All users are at work now.
        crowded_s = self._crowded.at_least(now - task.began_at for task in self._under_way)
        busy = f"all {at_work.most:,} users ({at_work.option}) were waiting for answers"
        if alone_s is None or (crowded_s is not None and crowded_s > _SLOWER * alone_s):
            slower = ""
            if alone_s is not None and crowded_s is not None:
                slower = (
                    f": a task took {crowded_s * 1000:,.0f} ms with most users at work, "
                    f"{alone_s * 1000:,.0f} ms with fewer"
                )
            return (
                f"{busy}, since the target is too slow for this rate{slower}; lower --arrival-rate or "
                "give the target more capacity, since more users would only wait as well"
            )
        took_s = max(alone_s, crowded_s or 0.0)
        needed = max(at_work.most + 1, math.ceil(per_s * took_s * (1 + SPARE)))
        return (
            f"{busy}, and the target took no longer than with fewer: {took_s * 1000:,.0f} ms a task; "
            f"raise --max-users to {needed * at_work.processes:,}"
        )

    def _users_start(self, now: float, users_max: int) -> str:
        if self.failing:
            return (
                "users that were made for them failed in their on_start, and failing ones are made "
                "once a second; repair on_start, whose errors are in the log"
            )
        took_s = self._starts.at_least(now - made_at for made_at in self.starting.values()) or 0.0
        return (
            f"users that were made for them were still in their on_start, which took {took_s:,.1f} s; "
            f"have {users_max:,} users ready (--users)"
        )


def _followed_by(stream: Iterator[float], since: float, after: Iterator[float]) -> Iterator[float]:
    """Yield the moments of a stream before a moment, and then those of another."""
    for moment in stream:
        if moment >= since:
            break
        yield moment
    # A rate may change every second for hours: the streams before would pile up.
    del stream
    yield from after
