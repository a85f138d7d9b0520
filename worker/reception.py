"""The parent process's side: messages that are no task, and a failure outside of a task.

A message that is no task of this worker becomes a dead letter, whatever is wrong with
it. The parent process, which receives messages, has no
database. So it sends such a message as a task of its own, and a child records it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback  # type: ignore[attr-defined]
from celery.exceptions import Reject, SoftTimeLimitExceeded
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu.exceptions import ContentDisallowed, DecodeError

from worker.broker import RECORD_DEAD_LETTER

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from kombu.message import Message

logger = logging.getLogger(__name__)


class KeepingConsumer(Consumer):
    """Celery's consumer, which by itself drops an undecodable message and ends on a malformed one."""

    connection_errors: tuple[type[Exception], ...]

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Send the undecodable message to the dead-letter table, then acknowledge it."""
        bury_unreadable(self.app, message, exc)
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
                bury_unreadable(self.app, message, error)
                if not message.acknowledged:
                    message.ack_log_error(logger, self.connection_errors)

        return on_task_received


class DeliveredRequest(Request):
    """A delivery as the parent process sees it."""

    def on_failure(self, exc_info: ExceptionInfo, *args: Any, **kwargs: Any) -> None:
        """Requeue a task that the soft time limit struck just outside of it.

        Its signal may come while Celery packs up how the task ended, such as a refused retry.
        Celery takes that for the task's failure, and would acknowledge the message.
        """
        error = exc_info.exception
        error = error.exc if isinstance(error, ExceptionWithTraceback) else error
        if isinstance(error, SoftTimeLimitExceeded):
            try:
                raise Reject(error, requeue=True) from error  # noqa: TRY301  (for its traceback)
            except Reject:
                exc_info = ExceptionInfo()  # of the exception being handled
        super().on_failure(exc_info, *args, **kwargs)


def bury_unreadable(app: Celery, message: Message, error: Any) -> None:
    """Send a message that is no task of this worker to the dead-letter table.

    Raises:
        kombu.exceptions.OperationalError: the broker does not take it.
    """
    found: Any = message.headers
    headers = found if isinstance(found, dict) else {}
    body: Any = message.body
    text = body.decode("utf-8", "backslashreplace") if isinstance(body, bytes) else str(body)
    app.send_task(
        RECORD_DEAD_LETTER,
        kwargs={
            "source": str(headers.get("task") or "unknown"),
            "message_id": str(headers.get("id") or message.delivery_tag),
            "payload": text,
            "error": f"no task of this worker: {error!r}",
        },
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
