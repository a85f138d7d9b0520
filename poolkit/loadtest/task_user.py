"""A Locust user for queue workers: a task is done when its result is committed.

The latency counts from the scheduled moment of the task to the moment at which another session sees
its row, queried every 5 ms. So latencies of workers are exact to 5 ms plus the time of the query;
a slow query is logged.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

import gevent
from gevent.event import AsyncResult, Event
from locust import User
from locust.exception import StopTest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from poolkit.config.presets import preset
from poolkit.loadtest.event_loop import InThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment

QUERY_EVERY_S = 0.005
SLOW_S = 0.05
"""A query that takes longer shows in the latencies of the tasks that wait for it."""
SILENT_S = 1.0
"""A database that works answers sooner."""

logger = logging.getLogger("poolkit.loadtest")


class CommittedRows:
    """One connection that waits for many keys; it is named `loadtest:…` on the server."""

    def __init__(self, url: str, query: str) -> None:
        engine = create_engine(
            preset("script").url(url),
            poolclass=NullPool,
            connect_args={"application_name": f"loadtest:{os.getpid()}"},
        )
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._query = text(query)
        self._waiting: dict[str, AsyncResult[None]] = {}
        self._any = Event()
        self._thread = InThread()
        self._queried_at: float | None = None
        self._slowest_s = SLOW_S
        gevent.spawn(self._query_regularly)

    @property
    def silent_s(self) -> float:
        """The seconds since the present query began; 0 without one."""
        return 0.0 if self._queried_at is None else time.monotonic() - self._queried_at

    def wait(self, key: str, timeout_s: float) -> bool:
        """Wait until the query returns the key; return False after the timeout.

        Raises:
            SQLAlchemyError: the query failed.
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

    def _query_regularly(self) -> None:
        while True:
            self._any.wait()
            if not self._waiting:
                self._any.clear()
                continue
            self._queried_at = time.monotonic()
            self._query_once(list(self._waiting))
            took_s = self.silent_s
            # Each time it is much slower than ever before: a few lines a run, however slow.
            if took_s > self._slowest_s:
                self._slowest_s = 2 * took_s
                logger.warning(
                    "the database took %.0f ms to return the finished tasks: the latencies of tasks "
                    "that waited for it are longer by up to that",
                    took_s * 1000,
                )
            self._queried_at = None
            gevent.sleep(QUERY_EVERY_S)

    def _query_once(self, keys: list[str]) -> None:
        """Query these keys; those that were added meanwhile are in the next query."""
        try:
            rows = self._thread.call(
                lambda: self._connection.execute(self._query, {"keys": keys}).all()
            )
        except SQLAlchemyError as error:
            # They fail at once and with the reason, not each after its timeout.
            for key in keys:
                if key in self._waiting:
                    self._waiting[key].set_exception(error)
            # The next query connects again, but only after a rollback.
            with suppress(SQLAlchemyError):
                self._thread.call(self._connection.rollback)
            return
        for (key,) in rows:
            if key in self._waiting:
                self._waiting[key].set()


class TaskUser(User):
    """Sends tasks and waits for their committed results.

    A subclass sets `committed`: a query that returns the committed ones of `:keys`, such as
    `SELECT id FROM documents WHERE id = ANY(:keys)`. It runs on `DATABASE_URL`.

        class Sender(TaskUser):
            committed = "SELECT id FROM documents WHERE id = ANY(:keys)"

            @task
            def ingest(self):
                key = str(uuid4())
                self.submit("ingest", key, lambda: celery.send_task("ingest", (key,)))
    """

    abstract = True
    committed: ClassVar[str]
    needs: ClassVar[tuple[tuple[str, str], ...]] = (
        (
            "DATABASE_URL",
            "to look for results there as a role that may read them; --database-url is who watches",
        ),
    )
    """Environment variables and their purpose; checked before the load."""
    result_timeout = 30.0
    """Seconds after which a task counts as failed."""

    rows: ClassVar[CommittedRows | None] = None

    def __init__(self, environment: Environment) -> None:
        """Open the one connection that all users of a class share.

        Raises:
            StopTest: it cannot be opened; Locust prints why, and ends with exit status 1.
        """
        super().__init__(environment)
        kind = type(self)
        if kind.rows is not None:
            return
        try:
            kind.rows = CommittedRows(os.environ["DATABASE_URL"], self.committed)
        except SQLAlchemyError as error:
            # Not a failure of the target, but its tasks could not be seen to finish.
            environment.process_exit_code = 1
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise StopTest(
                f"cannot look for the results of tasks: {reason}; the load generator needs a "
                "connection of its own beside the target's: leave it one, or raise max_connections"
            ) from None

    def submit(self, name: str, key: str, send: Callable[[], object]) -> None:
        """Send a task, wait until its result is committed, and report both as one request.

        Args:
            name: of the request in the statistics.
            key: that the query `committed` returns once the result is there.
            send: sends the task; an exception fails the request.
        """
        context = self.context()
        started, began = time.time(), time.perf_counter()
        error: Exception | None = None
        try:
            send()
            assert self.rows is not None  # noqa: S101  (__init__)
            if not self.rows.wait(key, self.result_timeout):
                reason = f"no result within {self.result_timeout:g} s"
                if self.rows.silent_s > SILENT_S:
                    reason += ": the database does not answer whether there is one"
                error = TimeoutError(reason)
        except Exception as failure:  # noqa: BLE001  (any exception is this request's result)
            error = failure
        self.environment.events.request.fire(
            request_type="TASK",
            name=name,
            response_time=(time.perf_counter() - began) * 1000,
            response_length=0,
            response=None,
            context=context,
            exception=error,
            start_time=started,
        )
