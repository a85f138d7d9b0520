"""A batch of SQS messages: each document ingested once, each poison message given up.

| event | answer to SQS | result |
|---|---|---|
| ingested, now or by an earlier delivery | done | the document |
| the message breaks the contract | done, because it will always break it | a row in `dead_letters` |
| the database fails, or time is up | failed: deliver it again | nothing |
| another invoke works on it right now | failed: deliver it again | that invoke's record |

The last one ends by itself. A record in progress expires when the invoke that wrote it would
have timed out, so after a crash a later delivery takes over.

The queue needs `ReportBatchItemFailures` in its event source mapping, a visibility timeout
of six times the function's timeout (AWS Lambda Developer Guide, "Using Lambda with Amazon
SQS"), and a dead-letter queue for messages that keep failing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from aws_lambda_powertools.utilities.batch import (
    BatchProcessor,
    EventType,
    SqsFifoPartialProcessor,
)
from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent_function

from articles.contract import NewDocument
from articles.errors import InvalidInput, TooLarge
from articles.operations import ingest_document, perform, record_dead_letter
from lambda_handler.events import sqs_records
from lambda_handler.idempotency import SqlPersistenceLayer
from lambda_handler.telemetry import Telemetry
from poolkit.config.session import unit_of_work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from aws_lambda_powertools import Logger
    from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
    from sqlalchemy import Connection

    from lambda_handler.configuration import FunctionSettings
    from lambda_handler.execution_environment import ExecutionEnvironment

Handler: TypeAlias = "Callable[[dict[str, Any], Any], dict[str, Any]]"

REMEMBERED_FOR: Final = 86_400
"""Seconds that a message's id is kept. Duplicates come within hours, and a later one does no harm:
to ingest a document again changes nothing."""


def make_handler(
    environment: ExecutionEnvironment, settings: FunctionSettings, stream: TextIO | None = None
) -> Handler:
    """Return the Lambda handler of the queue.

    It raises UnknownEvent for an event that is not a batch of SQS messages, and
    DatabaseUnavailable where not even one message could be tried; SQS then delivers the
    whole batch again.

    Args:
        environment: whose engine it uses.
        settings: the function's own.
        stream: where log lines go; by default standard output.
    """
    telemetry = Telemetry(environment, settings, stream)

    def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
        records = sqs_records(event)
        with (
            telemetry.invoke(context, context.aws_request_id),
            environment.connected() as connection,
        ):
            batch = IngestBatch(connection, context, telemetry.logger)
            return batch.process(records)

    return handler


class IngestBatch:
    """One invoke's messages, all on one connection: a connect costs more than an ingest."""

    def __init__(self, connection: Connection, context: Any, logger: Logger) -> None:
        self._connection = connection
        self._logger = logger
        self._done = SqlPersistenceLayer(self._unit_of_work)
        self._ingest_once = idempotent_function(
            self._ingest,
            data_keyword_argument="message",
            persistence_store=self._done,
            config=IdempotencyConfig(
                expires_after_seconds=REMEMBERED_FOR,
                hash_function="sha256",
                lambda_context=context,
            ),
            key_prefix="ingest",
        )

    def process(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Handle every message, and return the ids of those to be delivered again."""
        # It has the methods of a logging.Logger, which is not its base class.
        logger: Any = self._logger
        # A FIFO queue's messages must not overtake one that failed.
        is_fifo = str(records[0].get("eventSourceARN", "")).endswith(".fifo")
        processor = (
            SqsFifoPartialProcessor(logger=logger)
            if is_fifo
            else BatchProcessor(EventType.SQS, logger=logger)
        )
        # Without it a batch that failed as a whole raises; the ids mean the same to SQS.
        processor.raise_on_entire_batch_failure = False
        # As many as ten batches write, so that expired records do not pile up.
        self._done.purge(limit=100)
        with processor(records=records, handler=self._handle):
            processor.process()
        return dict(processor.response())

    def _handle(self, record: SQSRecord) -> None:
        """Ingest a message's document once, or record the message as a dead letter."""
        self._logger.append_keys(message_id=record.message_id)
        try:
            new = NewDocument.from_json(record.body.encode("utf-8", "surrogatepass"))
        except (InvalidInput, TooLarge) as error:
            letter = record_dead_letter(
                source=record.event_source_arn,
                message_id=record.message_id,
                payload=record.body,
                error=error,
                attempts=int(record.attributes.approximate_receive_count),
            )
            with self._unit_of_work() as connection:
                perform(connection, letter)
            self._logger.warning("given up", error=str(error))
            return
        # By the message, not by the document: a document may be sent again on purpose, to
        # go back to its state before another change.
        message = {"queue": record.event_source_arn, "message_id": record.message_id}
        self._ingest_once(message=message, new=new)

    def _ingest(self, *, message: dict[str, str], new: NewDocument) -> dict[str, str]:
        with self._unit_of_work() as connection:
            ingested = perform(connection, ingest_document(new))
        self._logger.info("ingested", document_id=new.id, outcome=ingested.outcome)
        return {"document_id": new.id, "outcome": ingested.outcome}

    @contextmanager
    def _unit_of_work(self) -> Iterator[Connection]:
        with unit_of_work(self._connection):
            yield self._connection
