"""The tasks: the articles' operations on a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from articles.contract import NewDocument, dump
from articles.operations import ingest_document as ingest
from articles.operations import perform, record_dead_letter

from poolkit.config.session import unit_of_work
from worker.broker import INGEST_DOCUMENT, RECORD_DEAD_LETTER
from worker.delivery import DeliveredTask

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from worker.lifecycle import Database
    from worker.settings import WorkerSettings


class UnreadableMessage(ValueError):
    """The error of a message that is no task of this worker, in the dead-letter table."""


def register(app: Celery, settings: WorkerSettings, database: Database) -> None:
    """Register the tasks with the app."""
    functions: dict[str, Callable[..., None]] = {
        INGEST_DOCUMENT: ingest_document,
        RECORD_DEAD_LETTER: keep_dead_letter,
    }
    for name, function in functions.items():
        register_task = app.task(
            name=name, base=DeliveredTask, bind=True, settings=settings, database=database
        )
        register_task(function)


def ingest_document(task: DeliveredTask, *, document_id: str, title: str, text: str) -> None:
    """Store a document cut into chunks; delivered twice, it leaves one result.

    Raises:
        InvalidInput, TooLarge: the document breaks the contract.
        PoolExhausted, DatabaseUnavailable, StatementTimeout: see `unit_of_work`.
    """
    new = NewDocument.from_json(dump({"id": document_id, "title": title, "text": text}))
    with unit_of_work(task.database.engine) as connection:
        perform(connection, ingest(new))


def keep_dead_letter(
    task: DeliveredTask, *, source: str, message_id: str, payload: Any, error: str
) -> None:
    """Record a message that never became a task; the parent process has no database to do it.

    Raises:
        PoolExhausted, DatabaseUnavailable, StatementTimeout: see `unit_of_work`.
    """
    letter = record_dead_letter(
        source=source,
        message_id=message_id,
        payload=payload,
        error=UnreadableMessage(error),
        attempts=1,
    )
    with unit_of_work(task.database.engine) as connection:
        perform(connection, letter)
