"""The end of each message: done, tried again, or kept in the dead-letter table.

A message is given up only when the database holds its dead letter. Until then it stays in
circulation, with growing waits in between. So an outage of the database, however long,
loses nothing.

Each delivery costs one of `max_retries`:

* an operational error (the pool, the server, a deadlock, the soft time limit) publishes the
  message again, to be taken up after a random wait, and acknowledges this delivery;
* after a worker died, or was killed by the hard time limit, the broker redelivers the message.
  The redelivery is published again in the same way, before any work is done, because brokers
  report that a message was redelivered, but not all of them how often.

Anything else is the message's own fault: another try would fail again.
"""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING, Any, NoReturn

from articles.operations import perform, record_dead_letter
from celery import Task
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded, WorkerLostError
from celery.utils.log import get_task_logger
from sqlalchemy.exc import DBAPIError

from poolkit.config.session import unit_of_work
from poolkit.errors import TemporaryFailure

if TYPE_CHECKING:
    from worker.lifecycle import Database
    from worker.settings import WorkerSettings

logger = get_task_logger(__name__)

# serialization_failure, deadlock_detected, lock_not_available (PostgreSQL, Appendix A).
_TRANSIENT_STATES = frozenset({"40001", "40P01", "55P03"})
# 2 ** 30 exceeds any bound, and is still a float.
_MOST_DOUBLINGS = 30
# Seconds; far from any soft time limit.
_LONGEST_PAUSE = 5.0


class DeliveredTask(Task):  # type: ignore[type-arg]
    """A task that follows the rules above; `register` sets its `database` and `settings`."""

    database: Database
    settings: WorkerSettings
    # The parent process's side of a delivery.
    Request = "worker.reception:DeliveredRequest"
    # Counted here, because giving up has to reach the dead-letter table first.
    max_retries = None
    # Celery would check a signature when it publishes a message again, too late for that.
    typing = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task once; see the module's docstring."""
        try:
            if is_redelivered(self.request):
                text = (
                    "the worker died, was killed by the hard time limit or lost its broker while "
                    "it had this task"
                )
                self._failed(WorkerLostError(text), may_pass=True)
            try:
                return self.run(*args, **kwargs)
            except (Ignore, Reject, Retry):
                raise
            except Exception as error:  # noqa: BLE001  (whatever it is, it has to be kept)
                self._failed(error, may_pass=is_operational(error))
        except (Ignore, Reject, Retry):
            raise
        except Exception as error:
            # For example the soft time limit, while a failure was being handled. Celery would
            # acknowledge the message.
            raise Reject(error, requeue=True) from error

    def _try_again(self, error: Exception) -> NoReturn:
        try:
            self.retry(exc=error, countdown=wait_before_retry(self.request.retries, self.settings))
        except Reject as rejected:
            # The broker did not take the new message, and Celery would drop the old one, too.
            # Requeued without a pause, it would come back at once.
            time.sleep(random.uniform(0, min(self.settings.retry_backoff_max, _LONGEST_PAUSE)))
            raise Reject(rejected, requeue=True) from error
        raise AssertionError("retry() always raises")  # pragma: no cover

    def _failed(self, error: Exception, *, may_pass: bool) -> NoReturn:
        """Try the message again if that may help and tries are left; else give it up."""
        request = self.request
        if may_pass and request.retries < self.settings.max_retries:
            self._try_again(error)
        letter = record_dead_letter(
            source=self.name,
            message_id=str(request.id),
            payload={"args": request.args, "kwargs": request.kwargs},
            error=error,
            attempts=request.retries + 1,
        )
        try:
            with unit_of_work(self.database.engine) as connection:
                perform(connection, letter)
        except Exception as obstacle:  # noqa: BLE001  (not recorded is not given up)
            logger.warning("dead letter could not be recorded, will try again: %s", obstacle)
            self._try_again(error)
        kind = type(error).__name__
        logger.error("gave up after %d deliveries: %s: %s", request.retries + 1, kind, error)
        # Not Reject: SQS would keep a rejected message for its own dead-letter queue.
        raise Ignore


def is_operational(error: Exception) -> bool:
    """Return whether the same message may succeed later.

    `TemporaryFailure` is the definition that the HTTP deployables share. A worker also tries again
    after its own time limit, and after a conflict with another transaction: it has the time, while
    an HTTP client decides for itself.
    """
    if isinstance(error, TemporaryFailure | SoftTimeLimitExceeded):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return state in _TRANSIENT_STATES


def is_redelivered(request: Any) -> bool:
    """Return whether the broker delivered this very message before.

    Redis (through kombu) and RabbitMQ set a flag; SQS counts receives.
    """
    if (request.delivery_info or {}).get("redelivered"):
        return True
    received = (request.properties or {}).get("delivery_info", {}).get("sqs_message", {})
    return int(received.get("Attributes", {}).get("ApproximateReceiveCount", 1)) > 1


def wait_before_retry(retries: int, settings: WorkerSettings) -> float:
    """Return the seconds until the next try: random, and whole ones on RabbitMQ.

    RabbitMQ keeps the message meanwhile in queues for 1, 2, 4 s and so on, and Celery cannot use
    them for a part of a second.
    """
    wait = full_jitter(retries, settings)
    return math.ceil(wait) if settings.transport == "amqp" else wait


def full_jitter(retries: int, settings: WorkerSettings) -> float:
    """Return the seconds to wait: random up to a bound that doubles ("full jitter").

    Exponential Backoff and Jitter, AWS Architecture Blog, 2015.
    """
    bound = settings.retry_backoff * 2.0 ** min(retries, _MOST_DOUBLINGS)
    return random.uniform(0, min(bound, settings.retry_backoff_max))
