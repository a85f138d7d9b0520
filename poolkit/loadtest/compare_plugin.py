"""The additions of `poolkit compare` to Locust: a schedule, and a row for every request.

Locust loads this file beside a locustfile (`-f compare_plugin.py,loadtests/articles.py`), so the
locustfile describes a user and nothing about measuring. Environment variables control it:

- `POOLKIT_LOAD_REQUESTS`: the CSV file to write; without it this module does nothing. At the end
  load.json beside it has the report on the load.
- `POOLKIT_LOAD_RATE`: tasks per second and user. Each user then follows a fixed schedule instead of
  its own wait time, and a latency counts from the scheduled moment. So a server that stalls cannot
  hide the requests that waited behind the stall.
- `POOLKIT_LOAD_ARRIVAL_RATE`: tasks per second of all users together, each begun at its scheduled
  moment by an idle user; more users are made when all are busy. It replaces `POOLKIT_LOAD_RATE`.
  `POOLKIT_LOAD_ARRIVALS` (constant or poisson) and `POOLKIT_LOAD_MAX_USERS` belong to it.
- `POOLKIT_LOAD_FIRST`: a number of requests and a file; until the file exists, one user alone sends that
  number of requests at most.
- `POOLKIT_LOAD_HOST`: a file; Locust waits until it exists, and reads the host from it.
"""

from __future__ import annotations

import csv
import json
import math
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import gevent
from gevent.event import Event
from locust import FastHttpUser, events

from poolkit.loadtest.latency.counters import DROPPED, TIMED_OUT
from poolkit.loadtest.locust_internals import warn_if_untested
from poolkit.loadtest.open_loop.arrivals import ArrivalRate
from poolkit.loadtest.open_loop.loop import MAX_USERS, OpenLoop
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.loadtest.open_loop.user_class_queue import LATE_MS
from poolkit.loadtest.open_loop.users import Pending, UserTasks, answered
from poolkit.loadtest.request_rows import FIELDS, RequestRow, in_csv, request_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from locust import User
    from locust.env import Environment

_FLUSH_EVERY_S = 0.25
_LOOK_EVERY_S = 0.02
_FIRST_EVERY_S = 0.1


class FirstRequests:
    """Holds the load back until a file exists, but for some first requests.

    By them `poolkit compare` finds out whether the target uses the database of the run, before a
    whole load writes into another one. In a closed loop one user sends them. In an open loop they
    are arrivals at a low rate.

    Args:
        environment: Locust's.
        most: the number of these requests.
        file: is removed when it was found.
    """

    def __init__(self, environment: Environment, most: int, file: Path) -> None:
        self.is_over = False
        self._environment = environment
        self._over = Event()
        self._most, self._file = most, file
        self._sent = 0
        self._first: User | None = None
        environment.events.request.add_listener(self._on_request)  # type: ignore[no-untyped-call]
        gevent.spawn(self._look)

    def _look(self) -> None:
        while not self._file.exists():
            gevent.sleep(_LOOK_EVERY_S)
        self._file.unlink()
        self.is_over = True
        self._over.set()

    def _on_request(self, **_: Any) -> None:
        self._sent += 1

    def wait(self) -> None:
        """Wait until the whole load may begin."""
        self._over.wait()

    def wait_when_sent(self) -> None:
        """Wait, unless another first request may be sent."""
        if self._sent >= self._most:
            self.wait()

    def hold(self, user_classes: Iterable[type[User]]) -> None:
        """Hold all users of these classes but the first before their on_start."""

        def held(own: Callable[[User], None]) -> Callable[[User], None]:
            def on_start(user: User) -> None:
                if self._first in (None, user):
                    self._first = user
                else:
                    self.wait()
                own(user)

            return on_start

        # All are read before any is replaced: one class may be the parent of another.
        for user_class, own in [(one, one.on_start) for one in user_classes]:
            user_class.on_start = held(own)  # type: ignore[method-assign,assignment]

    def slow_down(self, loop: OpenLoop) -> None:
        """Begin an open loop at a low rate."""
        whole = loop.rate

        def on_start(**_: Any) -> None:
            slow = ArrivalRate.constant(
                min(whole.stages[0].start_per_s, 1 / _FIRST_EVERY_S), whole.kind
            )
            loop.restart(slow)
            gevent.spawn(go_on)

        def go_on() -> None:
            self.wait()
            loop.restart(whole)

        self._environment.events.test_start.add_listener(on_start)  # type: ignore[no-untyped-call]


class ScheduledUsers:
    """A closed loop with a schedule for every user; without a rate, with its own wait time.

    A user's schedule has a first moment, and then one every 1/rate seconds.
    """

    def __init__(
        self, environment: Environment, rate: float | None, first: FirstRequests | None = None
    ) -> None:
        # Without a rate no next task is ever scheduled.
        self.period_s = math.inf if rate is None else 1 / rate
        self._next_at: dict[User, float] = {}
        """The next scheduled moment of each user, Unix time."""
        self._begun = self._late = 0
        self._latest_ms = 0.0

        def on_new(user: User) -> None:
            # Users must not begin in step, or each beginning would be a burst.
            self._next_at[user] = time.time() + random.uniform(0, self.period_s)

        def wait_time(user: User) -> float:
            """Return the seconds until the user's next task; 0 when it is late already."""
            task = self.tasks.of(user)
            self._begun += 1
            if first is not None and not first.is_over:
                first.wait_when_sent()
                self._next_at[user] = time.time() + _FIRST_EVERY_S
            # The schedule does not wait for a late user, and so the next moments stay the same.
            scheduled_at = self._next_at[user]
            task.begin(scheduled_at)
            self._next_at[user] = scheduled_at + self.period_s
            return max(0.0, scheduled_at - time.time())

        self.tasks = UserTasks(environment, on_new)
        for user_class in self.tasks.follow(environment.user_classes):
            if rate is not None:
                user_class.wait_time = wait_time
        if first is not None:
            first.hold(environment.user_classes)

    def timed_out(self) -> list[Pending]:
        """Return the requests without an answer."""
        return [Pending(*task.sent) for task in self.tasks.by_user.values() if task.sent]

    def dropped(self, now: float) -> Iterator[float]:
        """Yield the scheduled moments of tasks that should have begun by now and have not."""
        for user, task in self.tasks.by_user.items():
            # The user may have ended its wait for a task, and not sent the first request yet.
            if task.first_request_at is not None and task.first_request_at <= now:
                yield task.first_request_at
            while self._next_at[user] <= now:
                yield self._next_at[user]
                self._next_at[user] += self.period_s

    def note_late(self, late_ms: float) -> None:
        """Note by how much a request was sent after its scheduled moment."""
        self._late += late_ms > LATE_MS
        self._latest_ms = max(self._latest_ms, late_ms)

    def report(self) -> LoopReport:
        """Return the outcome of the scheduled tasks; final after the users have stopped.

        A late task waited for its user's answer before it, or for the load generator; the results
        decide which of the two.
        """
        tasks = self.tasks.by_user.values()
        waiting = sum(task.first_request_at is not None for task in tasks)
        return LoopReport(
            loop="closed",
            # Locust runs a user's first task before it asks how long to wait.
            arrivals=len(tasks) + self._begun - waiting,
            late=self._late,
            latest_ms=self._latest_ms,
            timed_out=len(self.timed_out()),
            users_max=len(tasks),
        )


class RequestRows:
    """Writes every request as a row, and at the end those that timed out or were dropped."""

    def __init__(
        self,
        environment: Environment,
        file: TextIO,
        loop: ScheduledUsers | OpenLoop,
        first: FirstRequests | None = None,
    ) -> None:
        self.environment, self.file, self.loop = environment, file, loop
        self._first = first
        self.rows = csv.writer(file, lineterminator="\n")
        self.rows.writerow(FIELDS)
        environment.events.request.add_listener(self.on_request)  # type: ignore[no-untyped-call]
        environment.events.quitting.add_listener(self.on_quitting)  # type: ignore[no-untyped-call]

        def flush_regularly() -> None:
            # Progress displays read the file while it grows; a kill loses a moment, not everything.
            while not file.closed:
                try:
                    file.flush()
                except OSError as error:
                    # Results from incomplete rows would be wrong.
                    sys.stderr.write(f"{file.name} cannot be written: {error.strerror}\n")
                    os._exit(os.EX_IOERR)
                gevent.sleep(_FLUSH_EVERY_S)

        gevent.spawn(flush_regularly)

    def on_request(
        self,
        *,
        request_type: str,
        name: str,
        response_time: float | None,
        response: Any = None,
        exception: BaseException | None = None,
        start_time: object = None,
        **_: Any,
    ) -> None:
        """Write the row of a request that was answered or failed; times are in ms."""
        if response_time is None:
            return  # Locust's event may be fired without a time
        ended, latency_ms = answered(start_time, response_time, failed=exception is not None)
        if isinstance(self.loop, ScheduledUsers):
            self.loop.note_late(latency_ms - response_time)
        row = request_row(
            *(ended, latency_ms, response_time),
            method=request_type,
            name=name,
            response=response,
            exception=exception,
        )
        self.rows.writerow(in_csv(row))
        if self._first is not None and not self._first.is_over:
            self.file.flush()

    def on_quitting(self, **_: Any) -> None:
        """Write the requests that the end of the run cut off; they count as failed."""
        asked = time.time()
        if self.environment.runner is not None:
            # Locust stops its users after this event; a pending request may still be answered.
            self.environment.runner.stop()
        now = time.time()
        report = self.loop.report()
        dropped = list(self.loop.dropped(asked))
        for due, started, ended, error in (
            *((*pending, now, TIMED_OUT) for pending in self.loop.timed_out()),
            *((due, asked, asked, DROPPED) for due in dropped),
        ):
            times = (due, started, (ended - due) * 1000, (ended - started) * 1000)
            self.rows.writerow(in_csv(RequestRow(*times, "", "", 0, error)))
        self.file.close()
        if report.loop == "closed":
            late_ms = [(asked - due) * 1000 for due in dropped]
            report = replace(
                report,
                arrivals=report.arrivals + len(dropped),
                late=report.late + sum(ms > LATE_MS for ms in late_ms),
                latest_ms=max([report.latest_ms, *late_ms]),
                dropped=len(dropped),
            )
        # Complete or missing, as its reader expects.
        partial = Path(self.file.name).with_name("load.partial")
        partial.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
        partial.replace(partial.with_suffix(".json"))


@events.init.add_listener  # type: ignore[untyped-decorator]
def _on_init(environment: Environment, **_: Any) -> None:
    path = os.environ.get("POOLKIT_LOAD_REQUESTS")
    if path is None:
        return
    warn_if_untested()
    for user_class in environment.user_classes:
        if issubclass(user_class, FastHttpUser):
            # Certificates are verified unless the locustfile decided it; Locust's default is not to.
            own = user_class.__mro__[: user_class.__mro__.index(FastHttpUser)]
            if not any("insecure" in vars(one) for one in own):
                user_class.insecure = False
    file = open(path, "w", newline="", encoding="utf-8")  # noqa: PTH123, SIM115  (closed at quit)
    first = None
    if "POOLKIT_LOAD_FIRST" in os.environ:
        number, go_file = os.environ["POOLKIT_LOAD_FIRST"].split(" ", 1)
        first = FirstRequests(environment, int(number), Path(go_file))
    loop: ScheduledUsers | OpenLoop
    arrivals = os.environ.get("POOLKIT_LOAD_ARRIVAL_RATE")
    if arrivals:
        rate = ArrivalRate.parse(arrivals, os.environ.get("POOLKIT_LOAD_ARRIVALS", "constant"))
        max_users = int(os.environ.get("POOLKIT_LOAD_MAX_USERS") or MAX_USERS)
        loop = OpenLoop(environment, rate, max_users=max_users)
        if first is not None:
            first.slow_down(loop)
    else:
        rate_per_user = os.environ.get("POOLKIT_LOAD_RATE")
        loop = ScheduledUsers(environment, float(rate_per_user) if rate_per_user else None, first)
    RequestRows(environment, file, loop, first)
    if "POOLKIT_LOAD_HOST" in os.environ:
        host = Path(os.environ["POOLKIT_LOAD_HOST"])
        # Without a target, `poolkit compare` ends this process.
        while not host.exists():
            time.sleep(_LOOK_EVERY_S)
        environment.host = host.read_text(encoding="utf-8")
        host.unlink()
