"""The end of each message: done, tried again, or kept in the dead-letter table.

A message is given up only when the database holds its dead letter. Until then it stays in
circulation, with growing waits in between. So an outage of the database, however long,
loses nothing.

Each delivery costs one of `max_retries`:

* An operational error (the pool, the server, a deadlock, the soft time limit) acknowledges this
  delivery. The message is published again, to be taken up after a random wait.
* After a worker died, or was killed by the hard time limit, the broker redelivers the message.
  The redelivery is published again in the same way, before any work is done. Brokers report that a
  message was redelivered, but not all of them how often.

Anything else is the message's own fault: another try would fail again.
"""

from __future__ import annotations

import math
import random
import time
from typing import Any, NoReturn

from celery import Task
from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.utils.dispatch import Signal
from celery.utils.log import get_task_logger

from poolkit.celery.config import transport_of
from poolkit.celery.database import Database
from poolkit.config.session import translate
from poolkit.errors import TaskGivenUp, TaskLost, TemporaryFailure
from poolkit.tables import record_dead_letter

__all__ = (
    "DeliveredTask",
    "dead_letter_recorded",
    "full_jitter",
    "is_operational",
    "is_redelivered",
)

logger = get_task_logger(__name__)

dead_letter_recorded = Signal(name="dead_letter_recorded")
"""Sent by a task when it has recorded a dead letter."""

# 2 ** 30 exceeds any bound, and is still a float.
_MOST_DOUBLINGS = 30
# Seconds; far from any soft time limit.
_LONGEST_PAUSE = 5.0
# Celery's parent process takes these for its own, and requeues the message or ends.
_CELERYS_OWN = (SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError, MemoryError)


class DeliveredTask(Task):  # type: ignore[type-arg]
    """The base of tasks that are done, tried again, or kept as a dead letter; see the module.

        @app.task(base=DeliveredTask, max_retries=5)
        def charge(order_id: int) -> None:
            with database.session() as session:
                session.get_one(Order, order_id).charge()

    The application needs a `Database`, and the table `dead_letters` of `poolkit.tables`. A task may
    run more than once, so it has to leave the same result then. A task that is given up fails in
    the ordinary way, after it was recorded: callbacks, result backends and error reporters see
    its error. Called directly or eagerly, it just runs.

    Attributes:
        max_retries: tries after the first.
        retry_backoff: seconds: the bound of the first wait; it doubles each time.
        retry_backoff_max: seconds: the bound of any wait. With RabbitMQ a wait is rounded up to a
            whole second.
    """

    abstract = True
    # The parent process's side of a delivery.
    Request = "poolkit.celery.reception:DeliveredRequest"
    acks_late = True
    reject_on_worker_lost = True
    acks_on_failure = True
    acks_on_failure_or_timeout = True
    acks_on_timeout = False
    # Checked in `apply_async`. Celery would check again when a message is published again, and so
    # prevent that a wrong one is given up.
    typing = False

    max_retries = 8
    retry_backoff = 1.0
    retry_backoff_max = 60.0

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Send the task, as Celery's own does.

        Raises:
            TypeError: the arguments do not fit the function.
        """
        if not options.get("retries"):
            self.__header__(*(args or ()), **(kwargs or {}))  # type: ignore[attr-defined]
        return super().apply_async(args, kwargs, *more, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task once; see the module's docstring."""
        if self.request.called_directly:
            return super().__call__(*args, **kwargs)
        if self.request.is_eager:
            return self.run(*args, **kwargs)
        if is_redelivered(self.request):
            lost = TaskLost(
                "the worker died, was killed by the hard time limit or lost its broker while it had "
                "this task"
            )
            self._failed(lost, may_pass=True)
        try:
            return self.run(*args, **kwargs)
        except (Ignore, Reject, Retry):
            raise
        except Exception as error:  # noqa: BLE001  (whatever it is, it has to be kept)
            self._failed(error, may_pass=is_operational(error))

    def _failed(self, error: Exception, *, may_pass: bool) -> NoReturn:
        """Try the message again if that may help and tries are left; else give it up."""
        request = self.request
        try:
            if may_pass and request.retries < self.max_retries:
                self._try_again(error)
            try:
                with Database.of(self.app).connection() as connection:
                    record_dead_letter(
                        connection,
                        source=self.name,
                        message_id=str(request.id),
                        payload={"args": request.args, "kwargs": request.kwargs},
                        error=error,
                        attempts=request.retries + 1,
                    )
                dead_letter_recorded.send(sender=self)
            except Exception as obstacle:  # noqa: BLE001  (not recorded is not given up)
                logger.warning("dead letter could not be recorded, will try again: %s", obstacle)
                self._try_again(error)
        except (Reject, Retry):
            raise
        except Exception as interruption:  # noqa: BLE001  (the message must not be lost)
            # For example the soft time limit, while a failure was being handled. Celery would
            # acknowledge the message.
            raise Reject(interruption, requeue=True) from error
        reason = f"gave up after {request.retries + 1} deliveries: {type(error).__name__}: {error}"
        logger.error(reason)
        if isinstance(error, _CELERYS_OWN):
            raise TaskGivenUp(reason) from error
        raise error

    def _try_again(self, error: Exception) -> NoReturn:
        """Publish the message again, and end this delivery.

        Not `Task.retry`: it gives a message up when `max_retries` are used up, without a record.
        """
        wait = full_jitter(self.request.retries, self.retry_backoff, self.retry_backoff_max)
        if transport_of(self.app.conf.broker_write_url or self.app.conf.broker_url) == "amqp":
            # RabbitMQ keeps the message meanwhile in queues for 1, 2, 4 s and so on: there is none
            # for a part of a second.
            wait = math.ceil(wait)
        again = self.signature_from_request(
            self.request, countdown=wait, retries=self.request.retries + 1
        )
        try:
            again.apply_async()
        except Exception as refused:  # noqa: BLE001  (kombu does not wrap every broker's errors)
            # Requeued without a pause, the message would come back at once.
            time.sleep(random.uniform(0, min(self.retry_backoff_max, _LONGEST_PAUSE)))
            raise Reject(refused, requeue=True) from error
        raise Retry(exc=error, when=wait, sig=again) from error  # type: ignore[arg-type]


def is_operational(error: Exception) -> bool:
    """Return whether the same message may succeed later.

    `TemporaryFailure` is the definition that the HTTP integrations share. A worker also tries again
    after its own time limit: it has the time, while an HTTP client decides for itself. Errors of
    SQLAlchemy and of drivers, from a session of the task's own, count as those of
    `Database.session`.
    """
    temporary = TemporaryFailure, SoftTimeLimitExceeded
    return isinstance(translate(error) or error, temporary)


def is_redelivered(request: Any) -> bool:
    """Return whether the broker delivered this very message before.

    Redis (through kombu) and RabbitMQ set a flag; SQS counts receives.
    """
    if (request.delivery_info or {}).get("redelivered"):
        return True
    received = (request.properties or {}).get("delivery_info", {}).get("sqs_message", {})
    return int(received.get("Attributes", {}).get("ApproximateReceiveCount", 1)) > 1


def full_jitter(retries: int, first_bound: float, longest: float) -> float:
    """Return the seconds to wait: random up to a bound that doubles ("full jitter").

    Exponential Backoff and Jitter, AWS Architecture Blog, 2015.
    """
    return random.uniform(0, min(first_bound * 2.0 ** min(retries, _MOST_DOUBLINGS), longest))
