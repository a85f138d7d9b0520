"""When the task that a user runs was due: the moment from which its latency counts.

A task that could not be sent when it was due has waited, and whoever it stands for has
waited with it. Counted from the sending, a stall of the server would hide every request that
waited behind it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from locust import User
    from locust.env import Environment


class Turn:
    """One user's present task."""

    __slots__ = ("due", "in_flight", "since", "untaken", "user", "waiter")

    def __init__(self, user: User) -> None:
        self.user = user
        self.since = time.time()
        self.due: float | None = None
        """Unix time; None between two tasks."""
        self.untaken: float | None = None
        """The same, until the task's first request has taken it."""
        self.in_flight: tuple[float, float] | None = None
        """Due and start of the request that has no answer yet."""
        self.waiter: Any = None
        """gevent's Waiter, while the user waits for an arrival."""

    def begin(self, due: float) -> None:
        """Have the next task due at this moment."""
        self.due = self.untaken = due

    def take(self) -> float:
        """Return the due moment of a request that starts now.

        A task's first request was due with the task; a later one when the one before it was
        answered, which is now.
        """
        now = time.time()
        due, self.untaken = self.untaken or now, None
        self.in_flight = (due, now)
        return due

    @property
    def unanswered(self) -> tuple[float, float] | None:
        """Due and start of what has no answer: a request, or a task that has told of none yet."""
        if self.in_flight is None and self.untaken is not None:
            return self.untaken, self.untaken
        return self.in_flight

    def end(self) -> None:
        """Have no task."""
        self.due = self.untaken = None


class Turns:
    """The turns of all users, which Locust's `User.context()` hands to every request.

    Args:
        environment: Locust's.
        on_new: is called with a user when its first turn is made.

    """

    def __init__(
        self, environment: Environment, on_new: Callable[[User], None] = lambda _: None
    ) -> None:
        self._on_new = on_new
        self._turns: dict[User, Turn] = {}
        self._followed: set[type[User]] = set()
        environment.events.request.add_listener(self._on_request)  # type: ignore[no-untyped-call]

    def follow(self, user_classes: Iterable[type[User]]) -> list[type[User]]:
        """Have the users of these classes say when their tasks were due; return the new ones."""
        new = [one for one in user_classes if one not in self._followed]
        self._followed.update(new)
        # First all are looked up, then replaced: one may be the parent of another.
        for user_class, own in [(one, one.context) for one in new]:
            self._give_context(user_class, own)
        return new

    def of(self, user: User) -> Turn:
        """Return a user's turn."""
        turn = self._turns.get(user)
        if turn is None:
            turn = self._turns[user] = Turn(user)
            self._on_new(user)
        return turn

    def forget(self, user: User) -> Turn | None:
        """Take out the turn of a user that has ended."""
        return self._turns.pop(user, None)

    def all(self) -> list[Turn]:
        """Return the turns of all users that have not ended."""
        return list(self._turns.values())

    def _give_context(self, user_class: type[User], own: Any) -> None:
        def context(user: User) -> dict[str, Any]:
            if type(user) is not user_class:  # called as the parent's
                return own(user)  # type: ignore[no-any-return]
            turn = self.of(user)
            return {**own(user), "due": turn.take(), "turn": turn}

        # Locust's own place for a user class to say what goes with a request.
        user_class.context = context  # type: ignore[assignment,method-assign]

    def _on_request(self, *, context: Mapping[str, Any], **_: Any) -> None:
        turn = context.get("turn")
        if turn is not None:
            turn.in_flight = None


def latency_ms(
    start_time: float | None, response_time: float, context: Mapping[str, Any] | None
) -> float:
    """Return a request's latency in ms, from the moment it was due.

    Args:
        start_time: when it was sent, Unix time in seconds; as Locust's request event has it.
        response_time: ms from the sending to the answer.
        context: Locust's; without a due moment in it (a closed loop), it was due when sent.
    """
    due = context.get("due") if context else None
    if due is None or start_time is None or start_time <= due:
        return response_time
    return float((start_time - due) * 1000 + response_time)
