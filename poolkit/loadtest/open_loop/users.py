"""The task of each user: when it was scheduled, and the requests that an end cuts off.

A latency counts from the scheduled moment of a task. A task that could not be sent at that moment
has waited, and so has its visitor. If latency counted from the sending, a stall of the server would
hide every request that waited behind it.
"""

from __future__ import annotations

import time
from functools import wraps
from inspect import getattr_static
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import gevent
from locust import User

from poolkit.loadtest.locust_internals import TAGS, USER_CLASS, has_own_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from collections.abc import Set as AbstractSet
    from typing import TypeAlias

    from locust.env import Environment

    from poolkit.loadtest.open_loop.arrivals import ArrivalRate

_REPORTED_WITHIN_S = 3600.0
"""A body of `catch_response` may take long. A start time before that is of another clock."""
_MOST_GENERATIONS = 4


class Pending(NamedTuple):
    """A request without an answer; moments are Unix times."""

    scheduled_at: float
    started_at: float


class UserTask:
    """The present task of one user.

    Its first request was scheduled with it. A later one is sent when the request before it was
    answered, so it was scheduled for the moment of its sending.
    """

    __slots__ = (
        *("_first", "_nested", "began_at", "delay_s", "first_request_at", "has_failed"),
        *("is_crowded", "scheduled_at", "sent", "waiter"),
    )

    def __init__(self) -> None:
        self.scheduled_at: float | None = None
        """Unix time; None between two tasks."""
        self.first_request_at: float | None = None
        """The same until the first request of the task is announced or answered."""
        self.sent: tuple[float, float] | None = None
        """The moments of a `Pending`; a plain tuple, because one is made for every request."""
        self.waiter: Any = None
        """gevent's Waiter, while the user waits for an arrival."""
        self.has_failed = False
        """Whether one of its requests has failed, or it has raised an exception."""
        # Of an arrival; see `UserClassQueue.begin`.
        self.began_at = self.delay_s = 0.0
        self.is_crowded = False
        self._first: float | None = None
        """When the first request was scheduled, while it is announced and not answered."""
        self._nested = 0
        """Requests that were announced after it and are not answered either."""

    def begin(self, scheduled_at: float) -> None:
        """Begin the task that was scheduled for a moment, Unix time."""
        self.scheduled_at = self.first_request_at = scheduled_at
        self._first, self._nested, self.sent, self.has_failed = None, 0, None, False

    def announce(self) -> None:
        """Note that a request is about to be sent, or was sent."""
        now = time.time()
        if self.first_request_at is None:
            if self._first is not None:
                self._nested += 1
            self.sent = (now, now)
        else:
            self._first, self._nested = self.first_request_at, 0
            self.sent = (self.first_request_at, now)
            self.first_request_at = None

    def answered(self, began: float, *, is_own: bool) -> float | None:
        """Return when the answered request was scheduled; None if it follows another of its task.

        Args:
            began: when it was sent, Unix time.
            is_own: whether the user's own greenlet reports it.
        """
        self.sent = None
        if self._first is not None:
            # Inside a `with client.get(..., catch_response=True)` are requests that end before it.
            if self._nested:
                self._nested -= 1
                return None
            first, self._first = self._first, None
            return first
        unannounced = self.first_request_at
        # Another greenlet may report the answer to a request of an earlier task.
        if unannounced is not None and (is_own or began >= unannounced):
            self.first_request_at = None
            return unannounced
        return None

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

    Locust's HTTP clients call `User.context()` for every request: it announces the request here, and
    what it returns stays as it is. When a request event is fired, the greenlet that fires it leads to
    the task, so clients that know nothing of this need no context.

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

        def on_stopping(**_: Any) -> None:
            self._stopping_at = time.time()

        environment.events.test_stopping.add_listener(on_stopping)  # type: ignore[no-untyped-call]

    def follow(self, user_classes: Iterable[type[User]]) -> list[type[User]]:
        """Follow the requests of these classes; return the new ones.

        Called with all classes at the start of each test.
        """
        self._stopping_at = None
        new = [one for one in user_classes if one not in self._followed]
        self._followed.update(new)
        tasks = self.by_user

        def announcing(user_class: type[User], own: Any) -> Callable[[User], dict[str, Any]]:
            @wraps(own)
            def context(user: User) -> dict[str, Any]:
                if type(user) is user_class:  # and not called as the parent's
                    (tasks.get(user) or self.of(user)).announce()
                return own(user)  # type: ignore[no-any-return]

            return context

        # All are read before any is replaced: one class may be the parent of another. A locustfile
        # may have an attribute of that name for something else.
        for user_class, own in [(one, getattr_static(one, "context")) for one in new]:
            if isinstance(own, FunctionType):
                user_class.context = announcing(user_class, own)  # type: ignore[assignment,method-assign]
        return new

    def of(self, user: User) -> UserTask:
        """Return the task of a user.

        It is made for the user's first request or arrival, and `on_new` is called then.
        """
        task = self.by_user.get(user)
        if task is None:
            task = self.by_user[user] = UserTask()
            # Beside the user's data, which a locustfile may write as JSON or copy.
            (user.greenlet or gevent.getcurrent()).poolkit_task = task
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


class RateUsers(NamedTuple):
    """The user classes of a test with an arrival rate."""

    share: Sequence[type[User]]
    """Their tasks are the arrivals."""
    idle: Sequence[type[User]]
    """Their users wait for arrivals that never come: no task is left by `--tags`, or the weight is 0."""
    beside: Sequence[type[User]]
    """A class with a `fixed_count` keeps its number of users and their own wait times."""
    unbound: Sequence[type[User]]
    """They run a loop of their own, so they cannot wait for arrivals."""

    @classmethod
    def among(cls, user_classes: Iterable[type[User]], *, has_tags: bool) -> RateUsers:
        """Sort the user classes of a test.

        Args:
            user_classes: Locust's.
            has_tags: whether the test selects tasks by tags. A class without tasks may otherwise
                give them to its instances, and Locust reports it if it does not.
        """
        found = cls([], [], [], [])
        for one in user_classes:
            has_tasks = bool(one.tasks or hasattr(one, "functions")) or not has_tags
            if one.fixed_count > 0:
                kind = found.beside
            elif one.weight <= 0:
                # Locust makes no such user, so that it may even have a loop of its own.
                kind = found.idle if not has_own_loop(one) else found.beside
            elif has_own_loop(one):
                kind = found.unbound
            else:
                kind = found.share if has_tasks else found.idle
            cast("list[type[User]]", kind).append(one)
        return found

    def refusal(self, rate: ArrivalRate) -> str:
        """Return why these classes cannot have an arrival rate; empty if they can."""
        if self.unbound:
            return (
                f"--arrival-rate cannot schedule {_names(self.unbound)}: a run() of its own takes the "
                "place of Locust's tasks; make them tasks (@task), leave the class out, or set "
                "fixed_count to run it beside the arrivals"
            )
        if not self.share:
            others = (
                ("a fixed_count keeps its own number of users", self.beside),
                ("the weight 0, or no task with these tags", self.idle),
            )
            reasons = (f"{reason} ({_names(classes)})" for reason, classes in others if classes)
            return f"--arrival-rate has no user class for its arrivals: {'; '.join(reasons)}"
        if rate.by_class:
            return self._wrong_names({name for name, _ in rate.by_class})
        return ""

    def _wrong_names(self, named: AbstractSet[str]) -> str:
        share = {one.__name__ for one in self.share}
        if missing := sorted(share - named):
            return (
                f"--arrival-rate has no rate for {', '.join(missing)}; give each user class one, or name "
                "on the command line the classes that the test is to run"
            )
        for classes, why in (
            (self.beside, "its fixed_count keeps its own number of users beside the arrivals"),
            (self.idle, "its weight is 0, or no task has these tags"),
        ):
            if wrong := [one.__name__ for one in classes if one.__name__ in named]:
                return f"--arrival-rate has a rate for {', '.join(wrong)}, but {why}"
        if unknown := sorted(named - share):
            return (
                f"--arrival-rate has a rate for {', '.join(unknown)}, which is no user class of this "
                f"test; it has {', '.join(sorted(share))}"
            )
        return ""


def _names(user_classes: Iterable[type[User]]) -> str:
    return ", ".join(one.__name__ for one in user_classes)


def answered(
    start_time: object, response_time: float, *, failed: bool = False
) -> tuple[float, float]:
    """Return when a request ended, and its latency in ms from its scheduled moment.

    Call it once per request event, while it is fired. It returns no named tuple: that would cost a
    call more for every request.

    The latency counts from the scheduled moment if the event is fired by the user's greenlet, or by
    one that its task has spawned. Elsewhere, as in a real thread, it counts from the sending.

    Args:
        start_time: of the event. Locust itself ignores it, so clients also omit it, or pass a
            `datetime` or a reading of another clock.
        response_time: ms from the sending to the answer.
        failed: whether the request has failed, and with it the arrival.
    """
    now = time.time()
    began = now - response_time / 1000
    if isinstance(start_time, (int, float)) and -1 < began - start_time < _REPORTED_WITHIN_S:
        began = float(start_time)
    ended = began + response_time / 1000
    greenlet = gevent.getcurrent()
    task: UserTask | None = getattr(greenlet, "poolkit_task", None)
    is_own = task is not None
    if task is None and response_time > 0:
        task = _of_the_spawner(greenlet, "poolkit_task")
    if task is None:
        return ended, response_time
    task.has_failed = task.has_failed or failed
    scheduled_at = task.answered(began, is_own=is_own)
    if scheduled_at is None or began <= scheduled_at:
        return ended, response_time
    return ended, (began - scheduled_at) * 1000 + response_time


def tags_of_the_task() -> frozenset[str]:
    """Return the tags of the task that sends a request; call it while its event is fired.

    As for `answered`: in the user's greenlet, or in one that its task has spawned.
    """
    greenlet = gevent.getcurrent()
    tags: frozenset[str] | None = getattr(greenlet, TAGS, None)
    if tags is None:
        tags = _of_the_spawner(greenlet, TAGS)
    return tags or frozenset()


def user_class_of_the_task() -> str:
    """Return the name of the user class that sends a request; as `tags_of_the_task`.

    Empty before a user's first task, unless the user itself sends it.
    """
    greenlet: Any = gevent.getcurrent()
    found = getattr(greenlet, USER_CLASS, None) or _of_the_spawner(greenlet, USER_CLASS)
    if found is None:
        # In on_start: Locust starts a user as a greenlet with the user as its argument, which gevent
        # takes away as soon as the greenlet is to be killed.
        args = getattr(greenlet, "args", None)
        found = type(args[0]).__name__ if args and isinstance(args[0], User) else ""
    return str(found)


def _of_the_spawner(greenlet: Any, attribute: str) -> Any:
    """Return an attribute of the greenlet that spawned this one; a pool in a task does that."""
    for _ in range(_MOST_GENERATIONS):
        spawner = getattr(greenlet, "spawning_greenlet", None)
        greenlet = spawner and spawner()
        if greenlet is None:
            return None
        found = getattr(greenlet, attribute, None)
        if found is not None:
            return found
    return None


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
