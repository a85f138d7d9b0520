"""How long a worker's queues are, and how old the oldest task in them is."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from celery import signals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery
    from prometheus_client.core import Metric

__all__ = ("SENT_AT", "QueueSampler", "depth_of", "stamp_sent_time")

logger = logging.getLogger(__name__)

SENT_AT: Final = "poolkit_sent_at"
"""The header of a task with the time at which it was sent, in seconds since 1970."""

_EVERY: Final = 5.0  # seconds
# Seconds after which a sample says nothing about now: the broker has not answered since.
_LONGEST_AGE: Final = 15.0


def stamp_sent_time() -> None:
    """Note in each task when this process sent it, for the metrics of waits and ages.

    `Database(app)` does it as well. A process that only sends, without a `Database`, calls it once.
    """
    signals.before_task_publish.connect(_stamp, weak=False, dispatch_uid=SENT_AT)


def _stamp(headers: Any = None, **kwargs: Any) -> None:
    # The first protocol of tasks, which has no headers, gives None.
    if isinstance(headers, dict):
        headers[SENT_AT] = time.time()


class QueueSample(NamedTuple):
    """A queue at one moment; the age is None where it is unknown."""

    depth: int
    oldest_age: float | None


class QueueSampler:
    """Asks the broker every five seconds, over a connection of its own and in a thread of its own.

    A scrape does not wait for the broker. While the broker does not answer, there is no figure.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._samples: dict[str, QueueSample] = {}
        self._taken_at = float("-inf")
        self._end = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="poolkit queues", daemon=True).start()

    def stop(self) -> None:
        """Let the thread end after its present question."""
        self._end.set()

    def record(self, samples: dict[str, QueueSample]) -> None:
        """Take these for the queues' state as of now."""
        self._samples, self._taken_at = samples, time.monotonic()

    def metrics(self) -> Iterator[Metric]:
        """Yield the figures, or nothing when they are too old."""
        # Not at the top: a process that only sends need not have the package.
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415

        depth = GaugeMetricFamily(
            "poolkit_queue_depth", "Tasks that wait in the queue.", labels=["queue"]
        )
        age = GaugeMetricFamily(
            "poolkit_queue_oldest_age_seconds",
            "How long ago the oldest task in the queue was put there.",
            labels=["queue"],
        )
        if time.monotonic() - self._taken_at < _LONGEST_AGE:
            for queue, sample in self._samples.items():
                depth.add_metric([queue], sample.depth)
                if sample.oldest_age is not None:
                    age.add_metric([queue], sample.oldest_age)
        yield from (depth, age)

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                with self._app.connection_for_read(connect_timeout=_EVERY) as connection:
                    channel: Any = connection.channel()
                    while True:
                        names = list(self._app.amqp.queues.consume_from)
                        self.record({name: _sample(channel, name) for name in names})
                        if self._end.wait(_EVERY):
                            return
            except Exception as error:  # noqa: BLE001  (each broker has its own)
                logger.debug("the queues' figures are unknown: %r", error)
                self._end.wait(_EVERY)


def depth_of(channel: Any, queue: str) -> int:
    """Return the number of messages that wait in a queue.

    AMQP itself raises one of the connection's `channel_errors` for a missing queue, and closes the
    channel. To Redis a missing queue is an empty one.
    """
    if hasattr(channel, "_size"):  # of kombu's own transports, since 4.0
        return int(channel._size(queue))  # noqa: SLF001
    return int(channel.queue_declare(queue, passive=True).message_count)


def _sample(channel: Any, queue: str) -> QueueSample:
    depth = depth_of(channel, queue)
    return QueueSample(depth, _oldest_age(channel, queue) if depth else 0.0)


def _oldest_age(channel: Any, queue: str) -> float | None:
    """Return the age of the oldest task, which only Redis shows without taking it."""
    steps = getattr(channel, "priority_steps", None)
    if steps is None:
        return None
    sent = []
    for step in steps:
        key = f"{channel.global_keyprefix}{channel._q_for_pri(queue, step)}"  # noqa: SLF001
        if entry := channel.client.lindex(key, -1):
            # Sent by another program, or no task at all: its age is unknown.
            with contextlib.suppress(KeyError, TypeError, ValueError):
                sent.append(float(json.loads(entry)["headers"][SENT_AT]))
    return max(0.0, time.time() - min(sent)) if sent else None
