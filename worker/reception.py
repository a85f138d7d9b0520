"""Messages that arrive but are no task of this worker: kept as dead letters, one way or another.

The parent process, which receives messages, has no database; so it puts such a message on
its way as a task of its own, and a child records it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.worker.consumer import Consumer
from kombu.exceptions import ContentDisallowed, DecodeError

from worker.tasks import RECORD_DEAD_LETTER

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from kombu.message import Message

logger = logging.getLogger(__name__)


class KeepingConsumer(Consumer):
    """Celery's consumer, which would drop what it cannot decode, and end on a malformed body."""

    connection_errors: tuple[type[Exception], ...]

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Send the undecodable message to the dead-letter table, then acknowledge it."""
        bury_unreadable(self.app, message, exc)
        super().on_decode_error(message, exc)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """Return Celery's handler, outlived by the worker whatever is in the message."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Message) -> None:
            try:
                _check_form(message)
                handle(message)
            # What reading a malformed message raises; a lost broker connection is an OSError.
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                logger.exception("a message could not be read")
                bury_unreadable(self.app, message, error)
                if not message.acknowledged:
                    message.ack_log_error(logger, self.connection_errors)

        return on_task_received


def bury_unreadable(app: Celery, message: Message, error: Any) -> None:
    """Put a message that is no task of ours on its way to the dead-letter table.

    Raises:
        kombu.exceptions.OperationalError: the broker does not take it.
    """
    found: Any = message.headers
    headers = found if isinstance(found, dict) else {}
    app.send_task(
        RECORD_DEAD_LETTER,
        kwargs={
            "source": str(headers.get("task") or "unknown"),
            "message_id": str(headers.get("id") or message.delivery_tag),
            "payload": _text(message.body),
            "error": f"no task of this worker: {error!r}",
        },
        # The headers would repeat the payload's beginning.
        argsrepr="()",
        kwargsrepr="{}",
    )


def _check_form(message: Message) -> None:
    """Find out here what Celery would find out in a child, where it drops the message.

    Raises:
        TypeError, ValueError: the message is no list of arguments with a number of retries.
    """
    if "task" not in message.headers:
        return
    try:
        arguments, keywords, _ = message.payload
    except (ContentDisallowed, DecodeError):
        return  # on_invalid_task or on_decode_error is told
    retries = message.headers.get("retries") or 0
    if not (
        isinstance(arguments, list) and isinstance(keywords, dict) and isinstance(retries, int)
    ):
        raise TypeError(f"wanted a list, an object and a number of retries, not {retries!r}")


def _text(body: Any) -> str:
    return body.decode("utf-8", "backslashreplace") if isinstance(body, bytes) else str(body)
