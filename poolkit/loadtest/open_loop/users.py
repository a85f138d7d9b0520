"""The task of each user: when it was scheduled, and the requests that an end cuts off.

A latency counts from the scheduled moment of a task. A task that could not be sent at that moment
has waited, and so has its visitor. If latency counted from the sending, a stall of the server would
hide every request that waited behind it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import TypeAlias

    from locust import User
    from locust.env import Environment


class Pending(NamedTuple):
    """A request without an answer; moments are Unix times."""

    scheduled_at: float
    started_at: float


class UserTask:
    """The present task of one user."""

    __slots__ = ("first_request_at", "scheduled_at", "sent", "waiter")

    def __init__(self) -> None:
        self.scheduled_at: float | None = None
        """Unix time; None between two tasks."""
        self.first_request_at: float | None = None
        """The same until the first request of the task, which was scheduled with it."""
        self.sent: tuple[float, float] | None = None
        """The moments of a `Pending`, which would cost 0.1 µs more for every request."""
        self.waiter: Any = None
        """gevent's Waiter, while the user waits for an arrival."""

    def begin(self, scheduled_at: float | None) -> None:
        """Begin the task that was scheduled for a moment; None if the user only waits for one."""
        self.scheduled_at = self.first_request_at = scheduled_at

    @property
    def unfinished(self) -> Pending | None:
        """The request without an answer, or the task if it has not sent a request yet."""
        if self.sent is not None:
            return Pending(*self.sent)
        # Its user still prepares the request, or sends it without `User.context()`.
        if self.first_request_at is not None:
            return Pending(self.first_request_at, self.first_request_at)
        return None


class UserTasks:
    """The tasks of all users, and the waits of the users that ended without an answer.

    Locust's `User.context()` passes the scheduled moment of a task on to its requests.

    Args:
        environment: Locust's.
        on_new: called with a user when its first task is made.
    """

    def __init__(
        self, environment: Environment, on_new: Callable[[User], None] = lambda _: None
    ) -> None:
        self.by_user: dict[User, UserTask] = {}
        """The tasks of all users that have not ended."""
        self._environment, self._on_new = environment, on_new
        self._followed: set[type[User]] = set()
        self._stopping_at: float | None = None
        self._timed_out_ms: list[float] = []

        def on_request(*, context: Mapping[str, Any] | None = None, **_: Any) -> None:
            # Not by `scheduled_moment`: at thousands of requests a second, each call counts.
            moment = context.get("due") if context else None
            if type(moment) is ScheduledMoment:
                moment.task.sent = None

        def on_stopping(**_: Any) -> None:
            self._stopping_at = time.time()

        events = environment.events
        events.request.add_listener(on_request)  # type: ignore[no-untyped-call]
        events.test_stopping.add_listener(on_stopping)  # type: ignore[no-untyped-call]

    def follow(self, user_classes: Iterable[type[User]]) -> list[type[User]]:
        """Add the scheduled moment to the request context of these classes; return the new ones.

        Called with all classes at the start of each test.
        """
        self._stopping_at = None
        new = [one for one in user_classes if one not in self._followed]
        self._followed.update(new)
        tasks = self.by_user

        def with_moment(user_class: type[User], own: Any) -> Callable[[User], dict[str, Any]]:
            def context(user: User) -> dict[str, Any]:
                if type(user) is not user_class:  # called as the parent's
                    return own(user)  # type: ignore[no-any-return]
                task = tasks.get(user) or self.of(user)
                # The first request of a task was scheduled with it; a later one when the request
                # before it was answered, which is now.
                now = time.time()
                moment = ScheduledMoment(task.first_request_at or now)
                task.first_request_at = None
                task.sent = (moment, now)
                moment.task = task
                return {**own(user), "due": moment}

            return context

        # All are read before any is replaced: one class may be the parent of another.
        for user_class, own in [(one, one.context) for one in new]:
            # Locust's own place for data that goes with a request.
            user_class.context = with_moment(user_class, own)  # type: ignore[assignment,method-assign]
        return new

    def of(self, user: User) -> UserTask:
        """Return the task of a user.

        It is made for the user's first request or arrival, and `on_new` is called then.
        """
        task = self.by_user.get(user)
        if task is None:
            task = self.by_user[user] = UserTask()
            self._on_new(user)
        return task

    def add_timed_out(self, scheduled_at: float) -> None:
        """Count a request of a user that has just ended, by its scheduled moment in Unix time."""
        # Without --stop-timeout users end at once, and ending many takes time, in which no answer
        # can be received.
        waited_until = time.time()
        if self._stopping_at and not self._environment.stop_timeout:
            waited_until = self._stopping_at
        self._timed_out_ms.append(max(0.0, waited_until - scheduled_at) * 1000)

    def take_timed_out(self) -> list[float]:
        """Return the waits in ms of the users that have ended since the last call."""
        taken, self._timed_out_ms = self._timed_out_ms, []
        return taken


class ScheduledMoment(float):
    """When a request was scheduled, Unix time; the value of "due" in Locust's request context.

    It is a number, so a listener can write the context as JSON. It has its task, so a value that a
    locustfile put under the same key is not mistaken for it.
    """

    # Without a constructor of its own: it is made for every request.
    __slots__ = ("task",)
    task: UserTask


def scheduled_moment(context: Mapping[str, Any] | None) -> ScheduledMoment | None:
    """Return the scheduled moment in a request's context; None where it has none."""
    found = context.get("due") if context else None
    return found if isinstance(found, ScheduledMoment) else None


def latency_ms(
    start_time: float | None, response_time: float, context: Mapping[str, Any] | None
) -> float:
    """Return a request's latency in ms, from its scheduled moment.

    Args:
        start_time: when it was sent, Unix time in seconds; as in Locust's request event.
        response_time: ms from the sending to the answer.
        context: Locust's; a request without a scheduled moment counts from its sending.
    """
    scheduled_at = context.get("due") if context else None
    if type(scheduled_at) is not ScheduledMoment or start_time is None:
        return response_time
    if start_time <= scheduled_at:
        return response_time
    return float((start_time - scheduled_at) * 1000 + response_time)


class CutOff(NamedTuple):
    """The requests that the end of a run or of a user cut off, as their waits in ms.

    Without them, a server that stops answering would leave a run with nothing but the latencies of
    the time before.
    """

    timed_out_ms: Sequence[float] = ()
    """Begun, and without an answer."""
    dropped_ms: Sequence[float] = ()
    """Scheduled, and never begun."""


TakeCutOff: TypeAlias = "Callable[[], CutOff]"
"""Returns the requests that were cut off since the last call."""
