"""Locust's users, made to wait for arrivals wherever they would wait for time to pass."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from locust.exception import StopUser
from locust.user.task import (
    LOCUST_STATE_RUNNING,
    LOCUST_STATE_STOPPING,
    LOCUST_STATE_WAITING,
    TaskSet,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from locust import User

# ruff: noqa: SLF001  (a user's state is Locust's own way to say whether it may be ended at once)


def was_waiting(user: User) -> bool:
    """Tell whether a user that has ended was between two tasks."""
    return user._state == LOCUST_STATE_WAITING


def make_wait(
    user_classes: Iterable[type[User]],
    *,
    arrived: Callable[[User], None],
    wait: Callable[[User], bool],
) -> None:
    """Have the users of these classes wait before their first task and between any two.

    Args:
        user_classes: none of which has been given here before.
        arrived: is called with a user that is ready for its first task.
        wait: is called with a user that has nothing to do, and returns when it has; True if it
            did not have to wait.
    """
    # First all are looked up, then replaced: one may be the parent of another.
    for user_class, own in [(one, one.on_start) for one in user_classes]:
        _wait_first(user_class, own, arrived, wait)
        _wait_between(user_class, wait)


def _wait_first(
    user_class: type[User],
    own: Any,
    arrived: Callable[[User], None],
    wait: Callable[[User], bool],
) -> None:
    def on_start(user: User) -> None:
        own(user)
        if type(user) is user_class:  # and not called as the parent's
            arrived(user)
            # A shorter way than by wait_time, after which Locust sleeps for 0 s.
            user._taskset_instance.wait = partial(_wait, user, wait)  # type: ignore[method-assign,union-attr]
            # Locust itself ends one that is to stop, before its first task; from here it would be an error.
            if user._state != LOCUST_STATE_STOPPING:
                _wait(user, wait)

    user_class.on_start = on_start  # type: ignore[assignment,method-assign]


def _wait(user: User, wait: Callable[[User], bool]) -> None:
    """Wait in the place of `TaskSet.wait`."""
    if user._state == LOCUST_STATE_STOPPING:
        raise StopUser
    user._state = LOCUST_STATE_WAITING
    if wait(user):
        gevent.sleep(0)  # a user that always has something to do leaves the others some time
    user._state = LOCUST_STATE_RUNNING


def _wait_between(user_class: type[User], wait: Callable[[User], bool]) -> None:
    def wait_time(user: User) -> float:
        wait(user)
        return 0.0

    user_class.wait_time = wait_time
    for task_set in _task_sets(user_class.tasks):
        # One that has its own would begin tasks that are not due.
        task_set.wait_time = TaskSet.wait_time  # type: ignore[method-assign]


def _task_sets(tasks: Any) -> Iterator[type[TaskSet]]:
    for task in tasks or ():
        if isinstance(task, type) and issubclass(task, TaskSet):
            yield task
            yield from _task_sets(task.tasks)
