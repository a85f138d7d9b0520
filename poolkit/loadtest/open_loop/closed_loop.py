"""A closed loop, left as it is: users wait for their answers, and what has none at the end counts.

Locust says of a request only how it ended. One that waits while its user is ended, it drops.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from poolkit.loadtest.open_loop.cut_off import CutOff, Waits
from poolkit.loadtest.open_loop.due import Turns
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.loadtest.open_loop.users import was_waiting

if TYPE_CHECKING:
    from gevent import Greenlet
    from locust import User
    from locust.env import Environment


class ClosedLoop:
    """Knows which requests of this process's users have no answer.

    Those of users that say when they send (`FastHttpUser` and `TaskUser` do, by asking for
    `User.context()` before), one of a user at a time.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._turns = Turns(environment, self._on_new)
        self._waits = Waits(environment)
        environment.events.test_start.add_listener(self.follow)  # type: ignore[no-untyped-call]

    def report(self) -> LoopReport:
        """Return that it is a closed loop."""
        return LoopReport()

    def follow(self, **_: Any) -> None:
        """Follow the users of the classes that a test has; of no class twice."""
        self._turns.follow(self._environment.user_classes)

    def take_cut_off(self) -> CutOff:
        """Return what was cut off since the last call."""
        for turn in self._turns.all():
            # gevent tells of an end a moment later.
            if turn.user.greenlet is not None and turn.user.greenlet.dead:
                self._account(turn.user)
        return CutOff(unanswered_ms=self._waits.take())

    def _on_new(self, user: User) -> None:
        if user.greenlet is not None:
            user.greenlet.rawlink(partial(self._on_end, user))

    def _on_end(self, user: User, greenlet: Greenlet) -> None:
        self._account(user)

    def _account(self, user: User) -> None:
        turn = self._turns.forget(user)
        # A task may have given up waiting for an answer, and ended.
        if turn is not None and turn.unanswered is not None and not was_waiting(user):
            self._waits.note(turn.unanswered[0])
