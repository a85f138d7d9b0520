"""A Locust user for queue workers: a task counts as done when its result is committed.

The time runs from the moment the task is due (see `locust_plugin`) to the moment another
session sees its row, asked for every 5 ms; so latencies of workers are exact to 5 ms, and to
what the database takes to answer. It is said when that is much.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import gevent
from gevent.event import AsyncResult, Event
from locust import User
from locust.exception import StopTest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from poolkit.config.presets import preset
from poolkit.loadtest.off_hub import OffHub

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment
    from sqlalchemy import Connection

ASK_EVERY_S = 0.005
SLOW_S = 0.05
"""An answer that takes longer is seen in the latencies of the tasks that wait for it."""

SILENT_S = 1.0
"""A database that answers at all does so sooner."""

logger = logging.getLogger("poolkit.loadtest")


class CommittedRows:
    """One connection that waits for many keys; it is named `loadtest:…` on the server."""

    def __init__(self, url: str, query: str) -> None:
        self._connection = _connect(url)
        self._query = text(query)
        self._waiting: dict[str, AsyncResult[None]] = {}
        self._any = Event()
        self._off_hub = OffHub()
        self._asked: float | None = None
        self._slowest_s = SLOW_S
        gevent.spawn(self._ask)

    @property
    def silent_s(self) -> float:
        """For how long the database has not answered the present question; 0 without one."""
        return 0.0 if self._asked is None else time.monotonic() - self._asked

    def wait(self, key: str, timeout_s: float) -> bool:
        """Wait until the query returns the key; False if it did not in time.

        Raises:
            SQLAlchemyError: the database could not be asked.
        """
        found = self._waiting.setdefault(key, AsyncResult())
        self._any.set()
        try:
            found.get(timeout=timeout_s)
        except gevent.Timeout:
            return False
        finally:
            self._waiting.pop(key, None)
        return True

    def _ask(self) -> None:
        while True:
            self._any.wait()
            if not self._waiting:
                self._any.clear()
                continue
            self._asked = time.monotonic()
            self._look(list(self._waiting))
            self._say_when_slow(self.silent_s)
            self._asked = None
            gevent.sleep(ASK_EVERY_S)

    def _look(self, keys: list[str]) -> None:
        """Ask for these; those that came meanwhile are asked for the next time."""
        try:
            committed = self._off_hub.ask(partial(self._committed, keys))
        except SQLAlchemyError as error:
            self._give_up(keys, error)
            return
        for key in committed:
            if key in self._waiting:
                self._waiting[key].set()

    def _committed(self, keys: list[str]) -> list[str]:
        rows = self._connection.execute(self._query, {"keys": keys})
        return [key for (key,) in rows]

    def _give_up(self, keys: list[str], error: SQLAlchemyError) -> None:
        """Fail those that were asked for, at once and with the reason."""
        for key in keys:
            if key in self._waiting:
                self._waiting[key].set_exception(error)
        # What was lost is connected again by the next question, after a rollback only.
        with suppress(SQLAlchemyError):
            self._off_hub.ask(self._connection.rollback)

    def _say_when_slow(self, took_s: float) -> None:
        # Each time it is much slower than ever before: some lines a run, however slow.
        if took_s > self._slowest_s:
            self._slowest_s = 2 * took_s
            logger.warning(
                "the database took %.0f ms to say which tasks are done: the latencies of those that "
                "waited for it are longer by up to that",
                took_s * 1000,
            )


def _connect(url: str) -> Connection:
    script = preset("script")
    engine = create_engine(
        script.url(url),
        poolclass=NullPool,
        connect_args={"application_name": f"loadtest:{os.getpid()}"},
    )
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")


class TaskUser(User):
    """Sends tasks and waits for their committed results.

    A subclass sets `committed`: a query that returns those of `:keys` that are there, such as
    `SELECT id FROM documents WHERE id = ANY(:keys)`. `DATABASE_URL` says where to ask.
    """

    abstract = True
    committed: ClassVar[str]
    needs: ClassVar[tuple[tuple[str, str], ...]] = (
        (
            "DATABASE_URL",
            "to look for results there as a role that may read them; --database-url is who watches",
        ),
    )
    """What it reads from the environment, and what for; looked at before the load."""
    result_timeout = 30.0
    """Seconds after which a task counts as failed."""

    rows: ClassVar[CommittedRows | None] = None

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        kind = type(self)
        if kind.rows is None:
            kind.rows = self._connect()

    def _connect(self) -> CommittedRows:
        """Open the one connection that all users of a class ask over.

        Raises:
            StopTest: it cannot be had; Locust tells why, and ends with exit status 1.
        """
        try:
            return CommittedRows(os.environ["DATABASE_URL"], self.committed)
        except SQLAlchemyError as error:
            # No failure of the target, whose tasks nobody would see done.
            self.environment.process_exit_code = 1
            said = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise StopTest(
                f"cannot look for the results of tasks: {said}; the load generator needs a "
                "connection of its own beside the target's: leave it one, or raise max_connections"
            ) from None

    def submit(self, name: str, key: str, send: Callable[[], object]) -> None:
        """Send a task, wait until `key` is committed, and report both as one request."""
        context = self.context()
        started, began = time.time(), time.perf_counter()
        error: Exception | None = None
        try:
            send()
            assert self.rows is not None  # noqa: S101  (__init__)
            if not self.rows.wait(key, self.result_timeout):
                error = TimeoutError(self._no_result(self.rows))
        except Exception as failure:  # noqa: BLE001  (whatever it is, it is this request's result)
            error = failure
        self._report(name, started, time.perf_counter() - began, error, context)

    def _no_result(self, rows: CommittedRows) -> str:
        said = f"no result within {self.result_timeout:g} s"
        is_silent = rows.silent_s > SILENT_S
        return f"{said}: the database does not answer whether there is one" if is_silent else said

    def _report(
        self,
        name: str,
        started: float,
        seconds: float,
        error: Exception | None,
        context: dict[str, Any],
    ) -> None:
        self.environment.events.request.fire(
            request_type="TASK",
            name=name,
            response_time=seconds * 1000,
            response_length=0,
            response=None,
            context=context,
            exception=error,
            start_time=started,
        )
