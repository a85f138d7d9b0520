"""What `poolkit compare` adds to Locust: a schedule for every user, a row for every request.

Locust loads this file beside a locustfile (`-f locust_plugin.py,loadtests/articles.py`), so a
locustfile says what a user does and nothing about measuring. Three variables direct it:

- `POOLKIT_LOAD_REQUESTS`: the CSV file to write; without it nothing here happens.
- `POOLKIT_LOAD_RATE`: tasks per second and user. Each user then follows a fixed schedule
  instead of its own think time, and a request's latency counts from the moment it was due,
  so a server that stalls cannot hide the requests that waited behind the stall.
- `POOLKIT_LOAD_HOST`: a file; Locust waits until it is there, and takes the host from it.
"""

from __future__ import annotations

import csv
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import gevent
from locust import User, events

if TYPE_CHECKING:
    from locust.env import Environment

FIELDS = ("due", "started", "latency_ms", "service_ms", "method", "name", "status", "error")
_FLUSH_EVERY_S = 0.25
_LOOK_EVERY_S = 0.02


class Schedule:
    """When one user's tasks are due: a first moment, and then one every 1/rate seconds."""

    def __init__(self, rate: float) -> None:
        self.period = 1 / rate  # s
        # Users must not tick in step, or each tick would be a burst.
        self.due = time.time() + random.uniform(0, self.period)
        self.current: float | None = None
        """The due time of the task that runs, until its first request has taken it."""
        self.in_flight: tuple[float, float] | None = None
        """Due and start of the request that has no answer yet."""

    def wait(self) -> float:
        """Return the seconds until the next task is due; 0 when it is late already."""
        self.current = self.due
        self.due += self.period
        return max(0.0, self.current - time.time())

    def take(self) -> float:
        """Return the due time of a request that starts now.

        A task's first request was due with the task; the later ones when the one before
        them was answered, which is now.
        """
        now = time.time()
        due, self.current = self.current or now, None
        self.in_flight = (due, now)
        return due

    def unsent(self, now: float) -> list[float]:
        """Return the due times of tasks that should have begun and have not."""
        late = [] if self.current is None or self.current > now else [self.current]
        due = self.due
        while due <= now:
            late.append(due)
            due += self.period
        return late


class Recorder:
    """Writes every request as a row, and at the end those that were never sent or answered."""

    def __init__(self, environment: Environment, file: TextIO, rate: float | None) -> None:
        self.environment = environment
        self.file = file
        self.rows = csv.DictWriter(file, FIELDS)
        self.rows.writeheader()
        self.rate = rate
        self.schedules: dict[User, Schedule] = {}
        for user_class in environment.user_classes:
            self._direct(user_class)
        environment.events.request.add_listener(self.on_request)  # type: ignore[no-untyped-call]
        environment.events.quitting.add_listener(self.on_quitting)  # type: ignore[no-untyped-call]
        gevent.spawn(self._flush_regularly)

    def _direct(self, user_class: type[User]) -> None:
        recorder = self

        def context(user: User) -> dict[str, Any]:
            return recorder.context(user)

        def wait_time(user: User) -> float:
            return recorder.schedule(user).wait()

        # Locust's own places for a user class to say what it does about either.
        user_class.context = context  # type: ignore[assignment,method-assign]
        if self.rate is not None:
            user_class.wait_time = wait_time

    def schedule(self, user: User) -> Schedule:
        """Return a user's schedule, which begins when it is first asked for."""
        if user not in self.schedules:
            self.schedules[user] = Schedule(self.rate or 1.0)
        return self.schedules[user]

    def context(self, user: User) -> dict[str, Any]:
        """Locust asks for this when a request starts, and hands it to `on_request`."""
        if self.rate is None:
            return {}
        schedule = self.schedule(user)
        return {"due": schedule.take(), "schedule": schedule}

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
        if "schedule" in context:
            context["schedule"].in_flight = None
        status = getattr(response, "status_code", 0) or 0
        self._write(
            due=due,
            started=started,
            latency_ms=(started - due) * 1000 + response_time,
            service_ms=response_time,
            method=request_type,
            name=name,
            status=status,
            error="" if exception is None else str(status or type(exception).__name__),
        )

    def _write(self, **row: Any) -> None:
        rounded = {k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()}
        self.rows.writerow({"method": "", "name": "", "status": 0, **rounded})

    def on_quitting(self, **_: Any) -> None:
        """Write what the end of the run cut off: it counts as failed, not as never there."""
        asked = time.time()
        if self.environment.runner is not None:
            # Locust stops its users after this event; what is in flight may be answered yet.
            self.environment.runner.stop()
        now = time.time()
        for schedule in self.schedules.values():
            if schedule.in_flight is not None:
                due, started = schedule.in_flight
                self._write_lost(due, started, now, "unanswered")
            for due in schedule.unsent(asked) if self.rate is not None else ():
                self._write_lost(due, asked, asked, "unsent")
        self.file.close()

    def _write_lost(self, due: float, started: float, now: float, error: str) -> None:
        self._write(
            due=due,
            started=started,
            latency_ms=(now - due) * 1000,
            service_ms=(now - started) * 1000,
            error=error,
        )

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


@events.init.add_listener  # type: ignore[untyped-decorator]
def _record(environment: Environment, **_: Any) -> None:
    path = os.environ.get("POOLKIT_LOAD_REQUESTS")
    if path is None:
        return
    rate = os.environ.get("POOLKIT_LOAD_RATE")
    file = open(path, "w", newline="", encoding="utf-8")  # noqa: PTH123, SIM115  (closed at quit)
    Recorder(environment, file, float(rate) if rate else None)
    if "POOLKIT_LOAD_HOST" in os.environ:
        environment.host = _wait_for_host(Path(os.environ["POOLKIT_LOAD_HOST"]))


def _wait_for_host(file: Path) -> str:
    """Wait for the target; whoever started this Locust ends it if there will be none."""
    while not file.exists():
        time.sleep(_LOOK_EVERY_S)
    host = file.read_text(encoding="utf-8")
    file.unlink()
    return host
