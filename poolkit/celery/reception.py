"""The parent process's side: messages that are no task, and a failure outside of a task.

The parent process, which receives messages, has no database. So a message that is no task of
this worker becomes a task of its own, which a child records as a dead letter.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from billiard import einfo
from celery import signals
from celery.exceptions import Reject, SoftTimeLimitExceeded, TimeLimitExceeded
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu.exceptions import ContentDisallowed, DecodeError

from poolkit.celery.database import Database
from poolkit.celery.delivery import DeliveredTask, dead_letter_recorded
from poolkit.errors import UnreadableMessage
from poolkit.tables import record_dead_letter

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from kombu.message import Message

__all__ = ("keep_unreadable",)

logger = logging.getLogger(__name__)

# How a child packs up its error, since billiard 4.1.
_Wrapped: Any = getattr(einfo, "ExceptionWithTraceback", ())

RECORD_DEAD_LETTER: Final = "poolkit.record_dead_letter"
"""The name of the task that records an unreadable message."""


def keep_unreadable(app: Celery, **options: Any) -> None:
    """Keep messages that are no task of this worker as dead letters, instead of dropping them.

        database = Database(app)
        keep_unreadable(app)

    These are messages with an unknown task, with a body that cannot be decoded, or of another form.
    The application needs a `Database`, and the table `dead_letters` of `poolkit.tables`.

    Args:
        app: the Celery application.
        options: of the task that records them, such as `max_retries`; see `DeliveredTask`.
    """
    app.conf.worker_consumer = f"{__name__}:{KeepingConsumer.__name__}"

    @app.task(name=RECORD_DEAD_LETTER, base=DeliveredTask, bind=True, ignore_result=True, **options)
    def record(
        task: DeliveredTask, *, source: str, message_id: str, payload: Any, error: str
    ) -> None:
        with Database.of(task.app).connection() as connection:
            record_dead_letter(
                connection,
                source=source,
                message_id=message_id,
                payload=payload,
                error=UnreadableMessage(error),
                attempts=1,
            )
        dead_letter_recorded.send(sender=task)

    def on_unreadable(sender: Any, message: Message, exc: Any = None, **kwargs: Any) -> None:
        if sender.app is app:
            _bury(app, message, exc)

    signals.task_unknown.connect(on_unreadable, weak=False)
    signals.task_rejected.connect(on_unreadable, weak=False)


class KeepingConsumer(Consumer):
    """Celery's consumer, which by itself drops an undecodable message and ends on a malformed one."""

    connection_errors: tuple[type[Exception], ...]

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Send the undecodable message to the dead-letter table, then acknowledge it."""
        _bury(self.app, message, exc)
        super().on_decode_error(message, exc)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """Return Celery's handler, wrapped so that no message ends the worker."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Message) -> None:
            try:
                _check_form(message)
                handle(message)
            # The errors of reading a malformed message; a lost broker connection is an OSError.
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                logger.exception("a message could not be read")
                _bury(self.app, message, error)
                if not message.acknowledged:
                    message.ack_log_error(logger, self.connection_errors)

        return on_task_received


class DeliveredRequest(Request):
    """A delivery of a DeliveredTask as the parent process sees it."""

    def on_failure(self, exc_info: einfo.ExceptionInfo, *args: Any, **kwargs: Any) -> None:
        """Requeue a task that a time limit has struck, where Celery would acknowledge it.

        * The hard limit, before Celery 5.7: one setting acknowledges failures and timeouts.
        * The soft limit just outside of the task, such as while Celery packs up how it ended.
        """
        error = exc_info.exception
        error = error.exc if isinstance(error, _Wrapped) else error
        if isinstance(error, TimeLimitExceeded):
            self.reject(requeue=True)
        elif isinstance(error, SoftTimeLimitExceeded):
            try:
                raise Reject(error, requeue=True) from error  # noqa: TRY301  (for its traceback)
            except Reject:
                exc_info = einfo.ExceptionInfo()  # of the exception being handled
        super().on_failure(exc_info, *args, **kwargs)


def _bury(app: Celery, message: Message, error: Any) -> None:
    """Send a message that is no task of this worker to the dead-letter table.

    Raises:
        kombu.exceptions.OperationalError: the broker does not take it.
    """
    found: Any = message.headers
    headers = found if isinstance(found, dict) else {}
    body: Any = message.body
    text = body.decode("utf-8", "backslashreplace") if isinstance(body, bytes) else str(body)
    # To a queue that this worker consumes: its command line may leave out the default one.
    consumed: dict[str, Any] = app.amqp.queues.consume_from
    default = app.conf.task_default_queue
    app.send_task(
        RECORD_DEAD_LETTER,
        kwargs={
            "source": str(headers.get("task") or "unknown"),
            "message_id": str(headers.get("id") or message.delivery_tag),
            "payload": text,
            "error": f"no task of this worker: {error!r}",
        },
        queue=default if default in consumed else next(iter(consumed)),
        # The headers would repeat the payload's beginning.
        argsrepr="()",
        kwargsrepr="{}",
    )


def _check_form(message: Message) -> None:
    """Raise here what Celery would raise in a child, where it drops the message.

    Raises:
        TypeError, ValueError: the message is no list of arguments with a number of retries.
    """
    if "task" not in message.headers:
        return
    try:
        arguments, keywords, _ = message.payload
    except (ContentDisallowed, DecodeError):
        return  # on_invalid_task or on_decode_error handles it
    retries = message.headers.get("retries") or 0
    if not (
        isinstance(arguments, list) and isinstance(keywords, dict) and isinstance(retries, int)
    ):
        raise TypeError(f"wanted a list, an object and a number of retries, not {retries!r}")
