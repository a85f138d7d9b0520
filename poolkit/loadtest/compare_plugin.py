"""What `poolkit compare` adds to Locust: a schedule, and a row for every request.

Locust loads this file beside a locustfile (`-f locust_plugin.py,loadtests/articles.py`), so a
locustfile says what a user does and nothing about measuring. Variables direct it:

- `POOLKIT_LOAD_REQUESTS`: the CSV file to write; without it nothing here happens. At the end
  load.json beside it says how the load went.
- `POOLKIT_LOAD_RATE`: tasks per second and user. Each user then follows a fixed schedule
  instead of its own think time, and a request's latency counts from the moment it was due,
  so a server that stalls cannot hide the requests that waited behind the stall.
- `POOLKIT_LOAD_ARRIVAL_RATE`: tasks per second of all users together, each begun when it is due
  by a user that is free, of whom there are as many as it takes; goes before `POOLKIT_LOAD_RATE`.
  `POOLKIT_LOAD_ARRIVALS` (constant or poisson) and `POOLKIT_LOAD_MAX_USERS` say more about it.
- `POOLKIT_LOAD_HOST`: a file; Locust waits until it is there, and takes the host from it.
"""

from __future__ import annotations

import csv
import json
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import gevent
from locust import FastHttpUser, events

from poolkit.loadtest.open_loop.arrivals import ArrivalRate
from poolkit.loadtest.open_loop.due import Turns
from poolkit.loadtest.open_loop.lane import LATE_MS
from poolkit.loadtest.open_loop.loop import MAX_USERS, OpenLoop
from poolkit.loadtest.open_loop.report import LoopReport

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from locust import User
    from locust.env import Environment

    from poolkit.loadtest.open_loop.due import Turn

FIELDS = ("due", "started", "latency_ms", "service_ms", "method", "name", "status", "error")
_FLUSH_EVERY_S = 0.25
_LOOK_EVERY_S = 0.02


class Schedule:
    """When one user's tasks are due: a first moment, and then one every 1/rate seconds."""

    def __init__(self, rate: float, begin: float) -> None:
        self.period = 1 / rate  # s
        # Users must not tick in step, or each tick would be a burst.
        self.due = begin + random.uniform(0, self.period)

    def wait(self, turn: Turn) -> float:
        """Return the seconds until the next task is due; 0 when it is late already."""
        turn.begin(self.due)
        wait_s = max(0.0, self.due - time.time())
        self.due += self.period
        return wait_s

    def unsent(self, turn: Turn, now: float) -> Iterator[float]:
        """Yield the due times of tasks that should have begun and have not."""
        if turn.untaken is not None and turn.untaken <= now:
            yield turn.untaken
        while self.due <= now:
            yield self.due
            self.due += self.period


class Schedules:
    """A closed loop with a schedule for every user; without a rate, with its own think time."""

    def __init__(self, environment: Environment, rate: float | None) -> None:
        self.turns = Turns(environment)
        self.rate = rate
        self._schedules: dict[User, Schedule] = {}
        self._begun = self._late = 0
        self._latest_ms = 0.0
        environment.events.request.add_listener(self._on_request)  # type: ignore[no-untyped-call]
        for user_class in self.turns.follow(environment.user_classes):
            if rate is not None:
                self._direct(user_class)

    def _direct(self, user_class: type[User]) -> None:
        def wait_time(user: User) -> float:
            turn = self.turns.of(user)
            self._begun += 1
            return self._schedule(turn).wait(turn)

        user_class.wait_time = wait_time

    def _schedule(self, turn: Turn) -> Schedule:
        if turn.user not in self._schedules:
            self._schedules[turn.user] = Schedule(self.rate or 1.0, turn.since)
        return self._schedules[turn.user]

    @property
    def unanswered(self) -> list[tuple[float, float]]:
        """Due and start of the requests that have no answer."""
        return [turn.in_flight for turn in self.turns.all() if turn.in_flight is not None]

    def unsent(self, now: float) -> Iterator[float]:
        """Yield when the tasks were due that should have begun by now and have not."""
        for turn in self.turns.all() if self.rate is not None else ():
            yield from self._schedule(turn).unsent(turn, now)

    def _on_request(
        self, *, context: dict[str, Any], start_time: float | None = None, **_: Any
    ) -> None:
        late_ms = ((start_time or 0.0) - context.get("due", start_time or 0.0)) * 1000
        self._late += late_ms > LATE_MS
        self._latest_ms = max(self._latest_ms, late_ms)

    def report(self) -> LoopReport:
        """Return what became of the tasks that were due; final after the users have stopped.

        One that is late waited for its user's answer before it, or for the load generator:
        which of the two is for the results to say.
        """
        turns = self.turns.all()
        waiting = sum(turn.untaken is not None for turn in turns)
        return LoopReport(
            loop="closed",
            # Locust has a user do its first task before it asks how long to wait.
            arrivals=len(turns) + self._begun - waiting,
            late=self._late,
            latest_ms=self._latest_ms,
            unanswered=len(self.unanswered),
            users_max=len(turns),
        )


class Recorder:
    """Writes every request as a row, and at the end those that were never sent or answered."""

    def __init__(
        self, environment: Environment, file: TextIO, schedules: Schedules | OpenLoop
    ) -> None:
        self.environment = environment
        self.file = file
        self.rows = csv.writer(file, lineterminator="\n")
        self.rows.writerow(FIELDS)
        self.schedules = schedules
        environment.events.request.add_listener(self.on_request)  # type: ignore[no-untyped-call]
        environment.events.quitting.add_listener(self.on_quitting)  # type: ignore[no-untyped-call]
        gevent.spawn(self._flush_regularly)

    def on_request(
        self,
        *,
        request_type: str,
        name: str,
        response_time: float,
        context: dict[str, Any],
        response: Any = None,
        exception: BaseException | None = None,
        start_time: float | None = None,
        **_: Any,
    ) -> None:
        """Write the row of a request that was answered or failed; times are in ms."""
        started = start_time or time.time() - response_time / 1000
        due = min(context.get("due", started), started)
        status = getattr(response, "status_code", 0) or 0
        kind = "" if exception is None else str(status or type(exception).__name__)
        latency_ms = (started - due) * 1000 + response_time
        self._write((due, started, latency_ms, response_time), (request_type, name, status, kind))

    def _write(
        self, numbers: tuple[float, float, float, float], rest: tuple[str, str, int, str]
    ) -> None:
        # At thousands of rows a second the load generator has no time for a dict of each.
        self.rows.writerow([*[f"{number:.6f}" for number in numbers], *rest])

    def on_quitting(self, **_: Any) -> None:
        """Write what the end of the run cut off: it counts as failed, not as never there."""
        asked = time.time()
        if self.environment.runner is not None:
            # Locust stops its users after this event; what is in flight may be answered yet.
            self.environment.runner.stop()
        now = time.time()
        report = self.schedules.report()
        for due, started in self.schedules.unanswered:
            self._write_lost(due, started, now, "unanswered")
        unsent = list(self.schedules.unsent(asked))
        for due in unsent:
            self._write_lost(due, asked, asked, "unsent")
        self.file.close()
        if report.loop == "closed":
            report = _with_unsent(report, unsent, asked)
        _write_report(Path(self.file.name).with_name("load.json"), report)

    def _write_lost(self, due: float, started: float, now: float, error: str) -> None:
        times = (due, started, (now - due) * 1000, (now - started) * 1000)
        self._write(times, ("", "", 0, error))

    def _flush_regularly(self) -> None:
        # Whoever shows progress reads the file while it grows; a kill loses a moment, not all.
        while not self.file.closed:
            try:
                self.file.flush()
            except OSError as error:
                # Rows that are lost are no rows to draw conclusions from.
                sys.stderr.write(f"{self.file.name} cannot be written: {error.strerror}\n")
                os._exit(os.EX_IOERR)
            gevent.sleep(_FLUSH_EVERY_S)


def _with_unsent(report: LoopReport, unsent: list[float], asked: float) -> LoopReport:
    late_ms = [(asked - due) * 1000 for due in unsent]
    return replace(
        report,
        arrivals=report.arrivals + len(unsent),
        late=report.late + sum(ms > LATE_MS for ms in late_ms),
        latest_ms=max([report.latest_ms, *late_ms]),
        unsent=len(unsent),
    )


def _write_report(file: Path, report: LoopReport) -> None:
    # Whole or not there at all, as its reader expects.
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(report.plain(), indent=2) + "\n", encoding="utf-8")
    partial.replace(file)


@events.init.add_listener  # type: ignore[untyped-decorator]
def _record(environment: Environment, **_: Any) -> None:
    path = os.environ.get("POOLKIT_LOAD_REQUESTS")
    if path is None:
        return
    _verify_certificates(environment.user_classes)
    schedules = _schedules(environment)
    file = open(path, "w", newline="", encoding="utf-8")  # noqa: PTH123, SIM115  (closed at quit)
    Recorder(environment, file, schedules)
    if "POOLKIT_LOAD_HOST" in os.environ:
        environment.host = _wait_for_host(Path(os.environ["POOLKIT_LOAD_HOST"]))


def _verify_certificates(user_classes: Iterable[type[User]]) -> None:
    """Have users look whom they talk to, which Locust's own default does not."""
    for user_class in user_classes:
        if not issubclass(user_class, FastHttpUser):
            continue
        between = user_class.__mro__[: user_class.__mro__.index(FastHttpUser)]
        if not any("insecure" in vars(one) for one in between):
            user_class.insecure = False


def _schedules(environment: Environment) -> Schedules | OpenLoop:
    arrivals = os.environ.get("POOLKIT_LOAD_ARRIVAL_RATE")
    if arrivals:
        rate = ArrivalRate.parse(arrivals, os.environ.get("POOLKIT_LOAD_ARRIVALS", "constant"))
        most = os.environ.get("POOLKIT_LOAD_MAX_USERS")
        return OpenLoop(environment, rate, max_users=int(most) if most else MAX_USERS)
    rate_per_user = os.environ.get("POOLKIT_LOAD_RATE")
    return Schedules(environment, float(rate_per_user) if rate_per_user else None)


def _wait_for_host(file: Path) -> str:
    """Wait for the target; whoever started this Locust ends it if there will be none."""
    while not file.exists():
        time.sleep(_LOOK_EVERY_S)
    host = file.read_text(encoding="utf-8")
    file.unlink()
    return host
