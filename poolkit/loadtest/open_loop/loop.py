"""An open loop: tasks begin at their scheduled moment, whatever the server does.

Locust's users make a closed loop: each waits for its answer before it goes on, so a server
that stalls is asked less, and its stall hardly shows. Here users wait for arrivals. Each arrival is
handed to a user that is free; when none is, more are made, up to a limit.
"""

from __future__ import annotations

import logging
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from gevent.hub import Waiter

from poolkit.errors import ConfigurationError
from poolkit.loadtest.open_loop.cut_off import CutOff, Waits
from poolkit.loadtest.open_loop.dispatch import HandingOut, wall_clock_s
from poolkit.loadtest.open_loop.due import Turns
from poolkit.loadtest.open_loop.lane import BUSY, STARTING, USERS, Lane, shared
from poolkit.loadtest.open_loop.parts import Part
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.loadtest.open_loop.users import make_wait, was_waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gevent import Greenlet
    from locust import User
    from locust.env import Environment

    from poolkit.loadtest.open_loop.arrivals import ArrivalRate

MAX_USERS = 2000
LEAD_S = 0.5
"""Between the start of a test and its first arrival: users are made meanwhile."""

logger = logging.getLogger("poolkit.loadtest")


class OpenLoop:
    """Has the users of this process begin the arrivals of a rate.

    Args:
        environment: Locust's; its user classes are made to wait for arrivals instead of for
            their own think time.
        rate: of all processes of the run together.
        max_users: how many users there may be at once.
        dealt: whether a master says which part of the rate is this process's; otherwise it has
            all of it, from the start of a test.

    Raises:
        ConfigurationError: max_users is not above 0.
    """

    def __init__(
        self,
        environment: Environment,
        rate: ArrivalRate,
        *,
        max_users: int = MAX_USERS,
        dealt: bool = False,
    ) -> None:
        if max_users < 1:
            raise ConfigurationError(f"--max-users is {max_users}; wanted 1 or more")
        self.rate = rate
        self.turns = Turns(environment)
        """When the task of each user was due."""
        self._unanswered: list[tuple[float, float]] = []
        self._waits = Waits(environment)
        self._lanes: dict[type[User], Lane] = {}
        self._environment, self._max_users, self._dealt = environment, max_users, dealt
        self._handing: HandingOut | None = None
        self._stopped, self._said = True, False
        events = environment.events
        if not dealt:
            events.test_start.add_listener(self._on_start)  # type: ignore[no-untyped-call]
        events.test_stopping.add_listener(self._on_stopping)  # type: ignore[no-untyped-call]
        self._keep_users()

    def report(self) -> LoopReport:
        """Return what became of the arrivals so far; final after the test has stopped."""
        self._account_for_ended()
        now = time.monotonic()
        lanes = list(self._lanes.values())
        waiting = sum(lane.overdue(now) for lane in lanes)
        lateness = [lane.lateness(now) for lane in lanes]
        return LoopReport(
            loop="open",
            rate=self.rate.per_s,
            kind=self.rate.kind,
            arrivals=sum(lane.arrivals for lane in lanes) + waiting,
            late=sum(late for late, _ in lateness),
            latest_ms=max((ms for _, ms in lateness), default=0.0),
            unsent=sum(len(lane.unsent) for lane in lanes) + waiting,
            unanswered=sum(lane.begun - lane.finished for lane in lanes),
            users_max=self._handing.users_max if self._handing else 0,
            saturated_by=self._saturated_by(),
        )

    @property
    def unanswered(self) -> list[tuple[float, float]]:
        """Due and start of the requests without an answer, after the test has stopped."""
        self._account_for_ended()
        return self._unanswered

    def unsent(self, now: float | None = None) -> Iterator[float]:
        """Yield when the arrivals were due that nobody began, after the test has stopped.

        `now` is there for whoever has another schedule in its place.
        """
        self._account_for_ended()
        ahead = wall_clock_s()
        for lane in self._lanes.values():
            yield from (due + ahead for due in lane.unsent)

    def take_cut_off(self) -> CutOff:
        """Return how long those without an answer had waited that were cut off since the last call."""
        self._account_for_ended()
        unsent_ms: list[float] = []
        for lane in self._lanes.values():
            unsent_ms += lane.unsent_ms
            lane.unsent_ms.clear()
        return CutOff(unanswered_ms=self._waits.take(), unsent_ms=unsent_ms)

    # -- the test ---------------------------------------------------------------------------

    def prepare(self) -> None:
        """Begin a test, in which nothing is due yet. Users that come from now on wait."""
        new = self.turns.follow(self._environment.user_classes)
        make_wait(new, arrived=self._on_arrived, wait=self._wait)
        self._lanes = {one: Lane(one) for one in self._environment.user_classes}
        self._unanswered.clear()
        self._stopped = self._said = False
        self._handing = HandingOut(
            self._environment,
            list(self._lanes.values()),
            max_users=self._max_users,
            each_window=self._say_when_saturated,
        )
        self._handing.start()

    def take_part(self, part: Part) -> None:
        """Begin this part of the arrivals from its `since` on, instead of the one before it."""
        mine = part.moved(-wall_clock_s())
        self._max_users = part.max_users
        if self._handing is not None:
            self._handing.max_users = part.max_users
        weights = [float(one.weight) for one in self._lanes]
        for number, lane in enumerate(self._lanes.values()):
            stream = shared(mine.due_times(self.rate), weights, number)
            per_s = self.rate.per_s / part.of * weights[number] / sum(weights)
            lane.continue_with(stream, mine.since, per_s)

    def _on_start(self, **_: Any) -> None:
        self.prepare()
        self.take_part(whole(self._max_users))

    def _on_stopping(self, **_: Any) -> None:
        if self._stopped or self._handing is None:
            return
        self._stopped = True
        self._handing.stop()
        # Locust itself takes some 50 ms to get here, in which nothing can be handed out; but users help
        # themselves, and what was due before an arrival that is begun counts, whichever class it has.
        begun = max(lane.last_due for lane in self._lanes.values())
        for lane in self._lanes.values():
            lane.close(max(self._handing.looked_at, begun))

    # -- the users --------------------------------------------------------------------------

    def _keep_users(self) -> None:
        """Have Locust end users only at the end: in between, their number follows the need."""
        runner: Any = self._environment.runner
        stop_users = runner.stop_users

        def stop_at_the_end(counts: dict[str, int]) -> None:
            if self._stopped:
                stop_users(counts)

        runner.stop_users = stop_at_the_end

    def _on_arrived(self, user: User) -> None:
        lane = self._lanes[type(user)]
        lane.starting.discard(user)
        lane.failing = False
        user.greenlet.rawlink(partial(self._on_end, user))

    def _wait(self, user: User) -> bool:
        """Wait until there is an arrival for this user; True if there was one already."""
        turn = self.turns.of(user)
        lane = self._lanes[type(user)]
        if turn.due is not None:
            lane.finished += 1
            turn.end()
        now = time.monotonic()
        if lane.next_due <= now:
            turn.begin(lane.take(now) + wall_clock_s())
            return True
        lane.idle[turn] = None
        turn.waiter = Waiter()
        try:
            turn.waiter.get()
        finally:
            lane.idle.pop(turn, None)
        return False

    def _on_end(self, user: User, greenlet: Greenlet) -> None:
        self._account(user)

    def _account_for_ended(self) -> None:
        """Account for users of whose end gevent has not told yet."""
        for turn in self.turns.all():
            if turn.user.greenlet.dead:
                self._account(turn.user)

    def _account(self, user: User) -> None:
        """Count what a user that has ended left open."""
        turn = self.turns.forget(user)
        lane = self._lanes.get(type(user))
        if turn is None or turn.due is None or lane is None:
            return
        if was_waiting(user):  # ended before it could begin
            lane.begun -= 1
            lane.give_up(turn.due - wall_clock_s(), time.monotonic())
        elif turn.unanswered is None:
            lane.finished += 1
        else:
            self._unanswered.append(turn.unanswered)
            self._waits.note(turn.unanswered[0])

    # -- saturation -------------------------------------------------------------------------

    def _saturated_by(self) -> str:
        reasons = {
            BUSY: "this process is busy, a core is used up; use --processes, or do less in a task",
            USERS: f"all {self._max_users:,} users (--max-users) were waiting for answers",
            STARTING: "new users take long to start, or fail (on_start); have more of them ready (--users)",
        }
        now = time.monotonic()
        saturated = [lane for lane in self._lanes.values() if lane.is_saturated(now)]
        return "; ".join(lane.words(now, reasons) for lane in saturated)

    def _say_when_saturated(self) -> None:
        if self._said or self._dealt:  # a master says it for its workers
            return
        now = time.monotonic()
        if any(lane.is_saturated(now) for lane in self._lanes.values()):
            self._said = True
            logger.warning("saturated: %s", self._saturated_by())


def whole(max_users: int) -> Part:
    """Return all of a rate, from `LEAD_S` from now on."""
    begin = time.time() + LEAD_S
    return Part(begin=begin, since=begin, seed=random.getrandbits(53), max_users=max_users)
