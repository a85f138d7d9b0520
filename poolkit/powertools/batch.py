"""Batches of SQS messages: each handled in turn, failures delivered again, poison given up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.utilities.batch import (
    BatchProcessor,
    EventType,
    SqsFifoPartialProcessor,
)

from poolkit.powertools.events import sqs_records

if TYPE_CHECKING:
    from collections.abc import Callable

    from aws_lambda_powertools import Logger
    from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

    from poolkit.execution_environment import ExecutionEnvironment

__all__ = ("process_sqs_batch",)


def process_sqs_batch(
    event: object,
    record_handler: Callable[[SQSRecord], object],
    environment: ExecutionEnvironment,
    *,
    logger: Logger,
    give_up_on: type[Exception] | tuple[type[Exception], ...] = (),
) -> dict[str, Any]:
    """Handle each message with Powertools' batch processor; return those to be delivered again.

        def handler(event, context):
            return process_sqs_batch(event, ingest, environment, logger=logger,
                                     give_up_on=ValidationError)

    | the record handler | answer to SQS | result |
    |---|---|---|
    | returns | done | |
    | raises one of `give_up_on` | done, because it will always fail | a row in `dead_letters` |
    | raises anything else | failed: deliver it again | |

    All units of work use one connection: a connect costs more than a message. In a FIFO queue the
    messages after a failed one of their group are failed untried; other groups go on.

    The queue needs `ReportBatchItemFailures` in its event source mapping, and a dead-letter queue
    for messages that keep failing. Its visibility timeout should be six times the function's
    timeout (AWS Lambda Developer Guide, "Using Lambda with Amazon SQS"). A message that was given up
    is counted in the metric `DeadLetters` of `instrument`.

    Args:
        event: the function's event.
        record_handler: called with each message.
        environment: whose connection is held; its `session()` in the handler uses it.
        logger: for what failed and what was given up; its lines have the key `message_id`.
        give_up_on: the errors of a message that no later delivery can handle.

    Raises:
        UnknownEvent: the event is not a batch of SQS messages.
        DatabaseUnavailable: not even one message could be tried; SQS delivers the batch again.
    """
    records = sqs_records(event)

    def handle(record: SQSRecord) -> None:
        logger.append_keys(message_id=record.message_id)
        try:
            record_handler(record)
        except give_up_on as error:
            _give_up(record, error, environment)
            logger.warning("given up", error=f"{type(error).__name__}: {error}")
        except Exception:
            # Powertools' processors log nothing by themselves.
            logger.warning("failed; it will be delivered again", exc_info=True)
            raise

    # Only a FIFO queue's name tells: standard queues may have message groups, too.
    is_fifo = str(records[0].get("eventSourceARN", "")).endswith(".fifo")
    processor = (
        SqsFifoPartialProcessor(skip_group_on_error=True)
        if is_fifo
        else BatchProcessor(EventType.SQS)
    )
    # Without it a batch that failed as a whole raises; the ids mean the same to SQS.
    processor.raise_on_entire_batch_failure = False
    try:
        with environment.holding_connection(), processor(records=records, handler=handle):
            processor.process()
    finally:
        logger.remove_keys(["message_id"])
    return dict(processor.response())


def _give_up(record: SQSRecord, error: Exception, environment: ExecutionEnvironment) -> None:
    # Not at the top: most invokes give nothing up, and every cold start pays for imports.
    from poolkit.tables import record_dead_letter  # noqa: PLC0415

    # An event made by hand may lack the attributes.
    attributes = record.raw_event.get("attributes") or {}
    with environment.connection() as connection:
        record_dead_letter(
            connection,
            source=str(record.raw_event.get("eventSourceARN") or "sqs"),
            message_id=record.message_id,
            payload=record.body,
            error=error,
            attempts=int(attributes.get("ApproximateReceiveCount") or 1),
        )
    environment.dead_letters += 1
