"""Whether a worker consumes: a ready file that is renewed only then, and an end of a worker that is stuck.

A worker may live and yet take no task: its loop waits for a broker that has vanished, or it counts
tasks as running that ended long ago. Neither ends the process, and a mere file notices neither. So
a thread of the worker's parent process asks the loop itself, every second:

* The loop has to run a callback. A solo worker's loop runs its task meanwhile, which counts as well.
* A worker that has tasks in hand, or received one a moment ago, consumes.
* An idle worker consumes if its queues are empty. The thread reads their lengths over a
  connection of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from celery import signals
from celery.worker import state

from poolkit.celery.config import transport_of
from poolkit.celery.limits import pool_of
from poolkit.celery.queues import depth_of
from poolkit.output_file import check_regular_file

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("end_stalled", "ready_file", "seconds_since_consuming")

logger = logging.getLogger(__name__)

# Seconds. The loop of Celery wakes up at least every ten (kombu, `Hub.fire_timers`).
_EVERY: Final = 1.0
_LOOP_MAY_TAKE: Final = 15.0
# The time after which a worker without a task counts as idle, and between two looks at its queues.
_IDLE_AFTER: Final = 10.0
# For an orderly end; afterwards the process ends without one.
_GRACE: Final = 30.0
_FAILED: Final = 1
# A broker that does not answer within this time is away.
_ANSWER_WITHIN: Final = 10

_heartbeats: WeakKeyDictionary[Celery, _Heartbeat] = WeakKeyDictionary()


def ready_file(app: Celery, path: str | Path) -> None:
    """Keep a file whose modification time is the last moment at which the worker consumed.

        ready_file(app, "/tmp/ready")

    `python -m poolkit.celery.health /tmp/ready --max-age 30` checks it. The file is made when the
    worker has connected to its broker, and renewed each second. While the worker does not consume,
    its time stands still and its content is the reason. It is removed at the beginning of a
    shutdown, while the last tasks are still running.

    Raises:
        ConfigurationError: something other than a regular file is there.
    """
    check_regular_file("ready_file", Path(path))
    _heartbeat_of(app).file = Path(path)


def end_stalled(app: Celery, *, after: float = 120.0) -> None:
    """End a worker with status 1 that has not consumed for some time, although it could.

    It could if all that time its broker answered and messages waited in its queues. An orchestrator
    then starts another one. Messages that the worker had in hand are delivered again.

    Args:
        app: the Celery application.
        after: seconds.
    """
    _heartbeat_of(app).end_after = after


def seconds_since_consuming(app: Celery) -> float:
    """Return the seconds since this process last consumed: near 0 as long as it does, for a metric.

    It is infinite before the worker is ready, and in every other process.
    """
    heartbeat = _heartbeats.get(app)
    if heartbeat is None or heartbeat.consumed is None:
        return float("inf")
    return time.time() - heartbeat.consumed


def _heartbeat_of(app: Celery) -> _Heartbeat:
    heartbeat = _heartbeats.get(app)
    if heartbeat is None:
        heartbeat = _heartbeats[app] = _Heartbeat(app)
    return heartbeat


class _Heartbeat:
    """The state of one worker's consumer, and the thread that reads it."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.file: Path | None = None
        self.end_after: float | None = None
        self.consumed: float | None = None  # the time of day
        self.queues = _Queues(app)
        self.consumer: Any = None
        self.ended = threading.Event()
        # Of the monotonic clock: the last callbacks that the loop was given and has run, the last
        # message, and since when the worker has been one that could consume and does not.
        self.asked = self.ran = self.received = 0.0
        self.stuck_since: float | None = None
        signals.worker_init.connect(self._on_worker_init, weak=False)
        signals.worker_ready.connect(self._on_worker_ready, weak=False)
        signals.task_received.connect(self._on_task_received, weak=False)
        for signal in (signals.worker_shutting_down, signals.worker_shutdown):
            signal.connect(self._on_shutdown, weak=False)

    def _on_worker_init(self, sender: Any, **kwargs: Any) -> None:
        # A killed worker has left its file, in a folder that may outlive the container.
        if sender.app is self.app:
            self._remove_file()

    def _on_worker_ready(self, sender: Any, **kwargs: Any) -> None:
        if sender.app is not self.app or (self.file is None and self.end_after is None):
            return
        self.consumer = sender
        self.asked = self.ran = self.received = time.monotonic()
        self._record(None)
        threading.Thread(target=self._watch, name="heartbeat", daemon=True).start()

    def _on_task_received(self, sender: Any, **kwargs: Any) -> None:
        if sender is self.consumer:
            self.received = time.monotonic()

    def _on_shutdown(self, **kwargs: Any) -> None:
        self.ended.set()
        self._remove_file()

    def _remove_file(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.unlink(missing_ok=True)

    # -- in the thread ----------------------------------------------------------------------

    def _watch(self) -> None:
        while not self.ended.wait(_EVERY):
            now = time.monotonic()
            self._ask_the_loop(now)
            reason = self._why_not(now)
            if not self.ended.is_set():
                self._record(reason)
            if reason is None or self.queues.messages == 0 or self.queues.failure is not None:
                self.stuck_since = None
            elif self.stuck_since is None:
                self.stuck_since = now
            elif self.end_after is not None and now - self.stuck_since >= self.end_after:
                self._end(reason)

    def _ask_the_loop(self, now: float) -> None:
        # Again after a while: a reconnect drops what the loop was to run.
        if self.asked <= self.ran or now - self.asked > _LOOP_MAY_TAKE:
            self.asked = now
            self.consumer.call_soon(self._on_loop)

    def _on_loop(self) -> None:
        self.ran = time.monotonic()

    def _why_not(self, now: float) -> str | None:
        """Return the reason why the worker does not consume; None if it does."""
        is_busy = bool(state.reserved_requests)
        runs_its_task = is_busy and pool_of(self.consumer.controller) == "solo"
        if now - self.ran > _LOOP_MAY_TAKE and not runs_its_task:
            self.queues.look(self.consumer, now)
            where = "" if self.consumer.connection else ", and has no connection to the broker"
            return f"the consumer's loop has not run for {now - self.ran:.0f} s{where}"
        if is_busy or now - self.received < _IDLE_AFTER or _holds_tasks_back(self.consumer):
            self.queues.forget()
            return None
        self.queues.look(self.consumer, now)
        if self.queues.failure is not None:
            return f"the broker does not answer: {self.queues.failure}"
        if self.queues.looks_with_messages > 1:
            return (
                f"{self.queues.messages} messages wait, and the last one was received "
                f"{now - self.received:.0f} s ago"
            )
        return None

    def _record(self, reason: str | None) -> None:
        if reason is None:
            self.consumed = time.time()
        if self.file is None or self.consumed is None:
            return
        begun = self.file.with_name(f"{self.file.name}.new")
        try:
            begun.write_text(f"{reason or 'consuming'}\n", encoding="utf-8")
            os.utime(begun, (self.consumed, self.consumed))
            begun.replace(self.file)
        except OSError as error:
            logger.warning("the ready file cannot be written: %s", error)
        if self.ended.is_set():  # by the main thread, meanwhile
            self._remove_file()

    def _end(self, reason: str) -> None:
        logger.critical("the worker is stuck and ends: %s", reason)
        self._on_shutdown()
        # The loop raises WorkerShutdown, if it still runs.
        setattr(state, "should_stop", _FAILED)  # noqa: B010  (None in the stubs)
        time.sleep(_GRACE)
        os._exit(_FAILED)


def _holds_tasks_back(consumer: Any) -> bool:
    """Return whether the worker leaves messages waiting on purpose.

    Tasks with a rate limit that was reached, and `worker_eta_task_limit`, occupy the places of
    others.
    """
    if any(bucket is not None and bucket.contents for bucket in consumer.task_buckets.values()):
        return True
    limit = consumer.app.conf.get("worker_eta_task_limit")  # since Celery 5.6
    return bool(limit) and len(getattr(state, "scheduled_requests", ())) >= limit


class _Queues:
    """How many messages wait in the queues that a worker consumes.

    Over a connection of its own: the worker's belongs to the loop, which may be what is stuck.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.messages = 0
        self.looks_with_messages = 0
        self.failure: str | None = None
        self._connection: Any = None
        self._looked = 0.0

    def forget(self) -> None:
        """Start anew: the worker consumes."""
        self.messages = self.looks_with_messages = 0
        self.failure = None

    def look(self, consumer: Any, now: float) -> None:
        """Read the lengths, at most every ten seconds."""
        if now - self._looked < _IDLE_AFTER:
            return
        self._looked = now
        try:
            self.messages = sum(
                self._length_of(queue) for queue in list(consumer.task_consumer.queues)
            )
        except Exception as error:  # noqa: BLE001  (kombu does not wrap every broker's errors)
            self.forget()
            self.failure = str(error) or type(error).__name__
            self._close()
            return
        self.failure = None
        self.looks_with_messages = self.looks_with_messages + 1 if self.messages else 0

    def _length_of(self, queue: Any) -> int:
        # Another worker is the one that RabbitMQ delivers to.
        if (queue.queue_arguments or {}).get("x-single-active-consumer"):
            return 0
        if self._connection is None:
            self._connection = self._connect()
        try:
            return depth_of(self._connection.default_channel, queue.name)
        except self._connection.channel_errors:
            # The queue is missing, and RabbitMQ has closed the channel.
            self._close()
            return 0

    def _connect(self) -> Any:
        options: dict[str, Any] = {}
        transport = transport_of(self.app.conf.broker_read_url or self.app.conf.broker_url)
        if transport == "redis":
            options = {"socket_timeout": _ANSWER_WITHIN, "socket_connect_timeout": _ANSWER_WITHIN}
        elif transport == "amqp":
            options = {"read_timeout": _ANSWER_WITHIN, "write_timeout": _ANSWER_WITHIN}
        # Without heartbeats, which would have to be sent in time.
        return self.app.connection_for_read(
            connect_timeout=_ANSWER_WITHIN, heartbeat=0, transport_options=options
        )

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()
