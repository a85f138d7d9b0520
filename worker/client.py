"""Putting tasks on the queue: for applications, load tests and the command line.

A sender needs the broker's settings, and no database.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kombu.exceptions import OperationalError

from articles.contract import NewDocument, dump
from articles.errors import TooLarge
from worker.tasks import INGEST_DOCUMENT

if TYPE_CHECKING:
    from celery import Celery

MAX_ARGUMENT_BYTES = 524_288
"""The most bytes that a task's arguments may have as JSON.

SQS carries 1,048,576 bytes (Amazon SQS Developer Guide, "Message quotas"); Celery encodes
the arguments in Base64, kombu does so with the whole, and both add headers: 16/9 of half
of it, and 100 KiB to spare. The same for every broker, so that changing it changes nothing.
"""


def enqueue_ingest(app: Celery, *, document_id: str, title: str, text: str) -> str:
    """Ask for a document to be ingested; return the task's id.

    Raises:
        InvalidInput, TooLarge: the worker would give the document up; nothing is sent.
        kombu.exceptions.OperationalError: the broker is not there, or does not take it.
    """
    NewDocument.from_json(dump({"id": document_id, "title": title, "text": text}))
    arguments = {"document_id": document_id, "title": title, "text": text}
    if len(json.dumps(arguments)) > MAX_ARGUMENT_BYTES:
        raise TooLarge(MAX_ARGUMENT_BYTES)
    try:
        # Without these, the message's headers would repeat the text's beginning.
        sent = app.send_task(
            INGEST_DOCUMENT, kwargs=arguments, argsrepr="()", kwargsrepr=repr(document_id)
        )
    except _broker_errors(app) as error:
        raise OperationalError(str(error)) from error
    return str(sent.id)


def _broker_errors(app: Celery) -> tuple[type[BaseException], ...]:
    """Return what the app's kind of broker raises where kombu has not put it in its own word."""
    connection = app.connection_for_write()  # not opened for this
    known = (*connection.connection_errors, *connection.channel_errors)
    if connection.transport.driver_type != "sqs":
        return known
    from botocore.exceptions import ClientError  # noqa: PLC0415  (other brokers do without)

    # What SQS itself answers, kombu does not count among its errors.
    return (*known, ClientError)
