"""The queue's function: `lambda_handler.queue.handler`."""

from poolkit.cold_start import without_garbage_collection

with without_garbage_collection():
    from typing import Any

    from aws_lambda_powertools import Logger
    from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
    from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent_function
    from sqlalchemy.orm import Session

    from articles import service
    from lambda_handler.schemas import NewDocument
    from poolkit.errors import InvalidInput
    from poolkit.powertools import (
        ExecutionEnvironment,
        SqlPersistenceLayer,
        instrument,
        process_sqs_batch,
    )
    from poolkit.powertools.schemas import parse_body

logger = Logger(utc=True)
environment = ExecutionEnvironment.open()
# A day: duplicates come within hours, and a later one does no harm.
once = IdempotencyConfig(expires_after_seconds=86_400, hash_function="sha256")


@idempotent_function(  # type: ignore[untyped-decorator]  # Powertools types it as Any
    data_keyword_argument="message",
    persistence_store=SqlPersistenceLayer(environment),
    config=once,
    key_prefix="ingest",
)
def ingest(*, message: dict[str, str], new: NewDocument, session: Session) -> dict[str, str]:
    """Ingest a document, once for each message.

    By the message, not by the document: a document may be sent again on purpose, to go back to its
    state before another change.
    """
    service.ingest_document(session, id=new.id, title=new.title, text=new.text)
    logger.info("ingested", document_id=new.id)
    return {"document_id": new.id}


def handle(record: SQSRecord) -> None:
    """Ingest a message's document. The record of it belongs to the same transaction."""
    new = parse_body(record.body.encode("utf-8", "surrogatepass"), NewDocument)
    message = {"queue": record.event_source_arn, "message_id": record.message_id}
    with environment.session() as session:
        ingest(message=message, new=new, session=session)


@instrument(environment, logger)
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Handle a batch; a message that breaks the schema is given up."""
    once.register_lambda_context(context)
    return process_sqs_batch(event, handle, environment, logger=logger, give_up_on=InvalidInput)
