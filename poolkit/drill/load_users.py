"""Locust's users of a drill: one class for each target, or the classes of a locustfile.

`poolkit drill` loads this file beside `poolkit.loadtest.compare_plugin`, which schedules the tasks
and writes a row for each request. `POOLKIT_DRILL_LOAD` names a JSON file with the targets and the
folder (`Assignment` in run.py). In that folder `writes.csv` has a row for each write. While a file
`pause` is there, no request begins; a file `paused` says that none is in flight.
"""

from __future__ import annotations

import csv
import json
import os
import random
import time
from collections import deque
from functools import wraps
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from locust import FastHttpUser, events

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from locust.env import Environment

LOOK_EVERY_S = 0.03
_KNOWN = 200
"""The rows of a target that are read again: the latest, so that a lost one is noticed."""
_WRITES = 1 / 3
"""The share of the requests that write."""


class Pause:
    """The gate before every task, and the number of tasks that are behind it.

    Args:
        folder: of the files by which it is closed.
        on_end: called when it opens again.
    """

    def __init__(self, folder: Path, on_end: Callable[[], None]) -> None:
        self._pause, self._paused = folder / "pause", folder / "paused"
        self._on_end = on_end
        self.is_closed = False
        self._running = 0
        gevent.spawn(self._look)

    def _look(self) -> None:
        while True:
            gevent.sleep(LOOK_EVERY_S)
            was_closed, is_closed = self.is_closed, self._pause.exists()
            if was_closed and not is_closed:
                self._on_end()
            self.is_closed = is_closed
            if is_closed and not self._running and not self._paused.exists():
                self._paused.touch()

    def guarded(self, task: Callable[..., None]) -> Callable[..., None]:
        """Return a task that does nothing while the load pauses."""

        @wraps(task)
        def run(*arguments: Any) -> None:
            if self.is_closed:
                return
            self._running += 1
            try:
                task(*arguments)
            finally:
                self._running -= 1

        return run


class Writes:
    """The file of all writes: a row when a write has been answered or has failed."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("w", newline="", encoding="utf-8", buffering=1)
        self._rows = csv.writer(self._file, lineterminator="\n")

    def add(self, target: str, key: str, begun: float, status: int) -> None:
        """Add a write with the status of its answer, 0 without one."""
        self._rows.writerow((target, key, f"{begun:.6f}", status))


class Client:
    """The requests of one target, which its users share."""

    def __init__(self, assigned: Mapping[str, Any], run: str, writes: Writes) -> None:
        self.name = assigned["name"]
        self.url = assigned["url"]
        """Another one after the target was restarted."""
        traffic = assigned["traffic"]
        self._write, self._read = traffic["write"], traffic["read"]
        self._body, self._requests = traffic["body"], traffic["requests"]
        self._run, self._numbers = run, count(1)
        self._known: deque[str] = deque(maxlen=_KNOWN)
        """The paths of rows that were written."""
        self._writes = writes

    def task(self, user: FastHttpUser) -> None:
        """Send one request."""
        user.client.base_url = self.url
        if self._write and (random.random() < _WRITES or not (self._known or self._requests)):
            self._send_write(user)
        elif self._known and (not self._requests or random.random() < 0.5):
            self._send(user, self._read, random.choice(self._known))
        elif self._requests:
            request = random.choice(self._requests)
            self._send(user, request, request["path"])

    def _send(self, user: FastHttpUser, request: Mapping[str, str], path: str) -> None:
        user.client.request(request["method"], path, name=f"{self.name} {request['path']}")

    def _send_write(self, user: FastHttpUser) -> None:
        key = f"drill-{self._run}-{self.name}-{next(self._numbers)}"
        begun = time.time()
        response = user.client.request(
            self._write["method"],
            self._write["path"],
            name=f"{self.name} {self._write['path']}",
            json=_filled(self._body, key),
        )
        status = response.status_code or 0
        self._writes.add(self.name, key, begun, status)
        if 200 <= status < 300 and self._read:
            try:
                fields = response.json()
                self._known.append(self._read["path"].format(**{**fields, "key": key}))
            except (ValueError, TypeError, KeyError, IndexError):
                # An answer without these fields: its row is looked up in the table alone.
                return


def _filled(value: Any, key: str) -> Any:
    """Return a JSON value with the key in place of `{key}` in its texts."""
    if isinstance(value, str):
        return value.replace("{key}", key)
    if isinstance(value, list):
        return [_filled(each, key) for each in value]
    if isinstance(value, dict):
        return {name: _filled(each, key) for name, each in value.items()}
    return value


class Drilled:
    """The targets of this process, as the file of the assignment names them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        assignment = self._read()
        self.timeout_s: float = assignment["timeout_s"]
        writes = Writes(file.with_name("writes.csv"))
        self.clients = [Client(one, assignment["run"], writes) for one in assignment["targets"]]

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        return found

    def read_urls(self) -> None:
        """Read the URLs again: the drill may have restarted a target."""
        for client, one in zip(self.clients, self._read()["targets"], strict=True):
            client.url = one["url"]

    def user_classes(self) -> dict[str, type[FastHttpUser]]:
        """Return a class for each target, by name."""
        return {
            f"Users_{number}": type(
                f"Users_{number}",
                (FastHttpUser,),
                {"host": client.url, "tasks": [client.task], "abstract": False},
            )
            for number, client in enumerate(self.clients)
        }

    def on_init(self, environment: Environment, **_: Any) -> None:
        """Put the gate before every task, and limit every wait for an answer."""
        pause = Pause(self._file.parent, self.read_urls)
        for user_class in environment.user_classes:
            # A TaskSet of a locustfile is not held.
            tasks: list[Any] = user_class.tasks
            user_class.tasks = [
                task if isinstance(task, type) else pause.guarded(task) for task in tasks
            ]
            if issubclass(user_class, FastHttpUser):
                user_class.network_timeout = min(user_class.network_timeout, self.timeout_s)
                user_class.connection_timeout = min(user_class.connection_timeout, self.timeout_s)


if "POOLKIT_DRILL_LOAD" in os.environ:
    _drilled = Drilled(Path(os.environ["POOLKIT_DRILL_LOAD"]))
    globals().update(_drilled.user_classes())
    events.init.add_listener(_drilled.on_init)  # type: ignore[no-untyped-call]
