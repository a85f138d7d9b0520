"""The start of an open loop: arrivals are scheduled once `--users` have ended their `on_start`.

A login in `on_start`, a table that a `test_start` listener fills, or a slow ramp takes seconds, in
which no user can take an arrival. Arrivals that were scheduled meanwhile would all be late, and
their latencies would be those of the start. So the clock of the arrivals begins afterwards, and
the report says how long the start took.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import gevent

from poolkit.loadtest.locust_internals import living_users, spawning_has_ended

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from gevent import Greenlet
    from locust import User
    from locust.env import Environment

ON_START_WITHIN_S = 60.0
"""A user that is still in its on_start after this time is taken for one that never ends it."""
_LOOK_EVERY_S = 0.02


class StartTimes(NamedTuple):
    """How long the start of a test took, in seconds; None for a part that has not ended."""

    listeners_s: float | None = None
    """From the start to the first user: the `test_start` listeners."""
    users_s: float | None = None
    """From the first user to the end of the last on_start: the spawning and the logins."""


class UsersReady:
    """Waits until every user that Locust starts has ended its on_start, or has failed in it.

    Args:
        environment: Locust's.
        is_ready: returns whether a user has ended its on_start.
        user_classes: the classes whose users take arrivals; others are not waited for.
        within_s: the longest time in an on_start.
        on_ready: called once, when the arrivals may begin.
        on_stuck: called with the reason instead, when a user does not end its on_start in time.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        is_ready: Callable[[User], bool],
        user_classes: Container[type[User]],
        within_s: float,
        on_ready: Callable[[], None],
        on_stuck: Callable[[str], None],
    ) -> None:
        self._environment, self._within_s = environment, within_s
        self._is_ready, self._user_classes = is_ready, user_classes
        self._on_ready, self._on_stuck = on_ready, on_stuck
        self._began = time.monotonic()
        self._spawned = False
        self._first_user_at: float | None = None
        self._ready_at: float | None = None
        self._in_on_start: dict[User, float] = {}
        """When each user was first seen that has not ended its on_start."""
        self._waiting: Greenlet = gevent.spawn(self._wait)

    def spawned(self) -> None:
        """Note Locust's `spawning_complete`; on a worker that is a message of its master."""
        self._spawned = True

    def stop(self) -> None:
        """Wait no longer: the test has ended."""
        self._waiting.kill(block=False)

    @property
    def times(self) -> StartTimes:
        """How long each part of the start took."""
        if self._first_user_at is None:
            return StartTimes()
        users_s = None if self._ready_at is None else self._ready_at - self._first_user_at
        return StartTimes(self._first_user_at - self._began, users_s)

    def waits_for(self) -> str:
        """Return what the start is waiting for now; empty when the users are ready."""
        if self._ready_at is not None:
            return ""
        now = time.monotonic()
        if self._first_user_at is None:
            return f"the test_start listeners had run for {now - self._began:.1f} s"
        if self._in_on_start:
            longest_s = now - min(self._in_on_start.values())
            return (
                f"{len(self._in_on_start):,} of {len(living_users(self._environment)):,} users were "
                f"in their on_start, the first for {longest_s:.1f} s"
            )
        return "users were still being started (--spawn-rate)"

    def _wait(self) -> None:
        while True:
            now = time.monotonic()
            # A worker may receive the end of the spawning before it has started its last users.
            has_ended = self._spawned and spawning_has_ended(self._environment)
            living = [
                user for user in living_users(self._environment) if type(user) in self._user_classes
            ]
            if self._first_user_at is None and (living or has_ended):
                self._first_user_at = now
            self._in_on_start = {
                user: self._in_on_start.get(user, now)
                for user in living
                if not self._is_ready(user)
            }
            if has_ended and not self._in_on_start:
                self._ready_at = now
                self._on_ready()
                return
            stuck = [
                one for one, since in self._in_on_start.items() if now - since > self._within_s
            ]
            if stuck:
                names = ", ".join(sorted({type(user).__name__ for user in stuck}))
                self._on_stuck(
                    f"{len(stuck):,} of {len(living):,} users ({names}) have not ended their on_start "
                    f"within {self._within_s:g} s, so no arrival can begin; repair on_start, or allow "
                    "it more time with --on-start-within"
                )
                return
            gevent.sleep(_LOOK_EVERY_S)
