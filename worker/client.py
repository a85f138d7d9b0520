"""Sends tasks to the queue: for applications, load tests and the command line.

A sender needs the broker's settings, and no database.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from articles.contract import NewDocument, dump
from kombu.exceptions import OperationalError

from articles.errors import TooLarge
from worker.broker import INGEST_DOCUMENT

if TYPE_CHECKING:
    from celery import Celery

MAX_ARGUMENT_BYTES = 524_288
"""The most bytes that a task's arguments may have as JSON.

SQS carries 1,048,576 bytes (Amazon SQS Developer Guide, "Message quotas"); Celery encodes
the arguments in Base64, kombu the whole, and both add headers. That makes 16/9 of half of it,
with 100 KiB to spare. It is the same for every broker, so that a move to another one is safe.
"""


def enqueue_ingest(app: Celery, *, document_id: str, title: str, text: str) -> str:
    """Ask for a document to be ingested; return the task's id.

    Raises:
        InvalidInput, TooLarge: the worker would give the document up; nothing is sent.
        kombu.exceptions.OperationalError: the broker cannot be reached, or refuses the task.
    """
    NewDocument.from_json(dump({"id": document_id, "title": title, "text": text}))
    arguments = {"document_id": document_id, "title": title, "text": text}
    if len(json.dumps(arguments)) > MAX_ARGUMENT_BYTES:
        raise TooLarge(MAX_ARGUMENT_BYTES)
    # The errors that kombu does not wrap for every broker, of a connection that is not opened here.
    connection = app.connection_for_write()
    refusals = (*connection.connection_errors, *connection.channel_errors)
    if connection.transport.driver_type == "sqs":
        # kombu does not count SQS's own refusals among its errors.
        from botocore.exceptions import ClientError  # noqa: PLC0415  (other brokers do without)

        refusals = (*refusals, ClientError)
    try:
        # Without the two reprs the message's headers would repeat the text's beginning.
        sent = app.send_task(
            INGEST_DOCUMENT, kwargs=arguments, argsrepr="()", kwargsrepr=repr(document_id)
        )
    except refusals as error:
        raise OperationalError(str(error)) from error
    return str(sent.id)
