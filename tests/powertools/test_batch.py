"""Batches of SQS messages: what is done, what is given up, what comes again."""

import json

import pytest
from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent_function
from lambda_events import http_api, new_context, sqs
from sqlalchemy import text

from poolkit.errors import DatabaseUnavailable, UnknownEvent
from poolkit.powertools import SqlPersistenceLayer, instrument, process_sqs_batch

NOTHING_FAILED = {"batchItemFailures": []}


def failures(event, *numbers):
    """Return the answer that names these of the batch's messages as failed."""
    ids = [event["Records"][number]["messageId"] for number in numbers]
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in ids]}


@pytest.fixture
def handle(environment, log):
    """Give a function that handles an event: each message is the id of a note to be written."""
    return handling(environment, log)


def handling(environment, log):
    def write_note(record):
        note = int(record.body)  # poison: ValueError
        with environment.session() as session:
            session.execute(text("INSERT INTO notes VALUES (:id, 'text')"), {"id": note})

    @instrument(environment, log.logger)
    def handler(event, context):
        return process_sqs_batch(
            event, write_note, environment, logger=log.logger, give_up_on=(ValueError, TypeError)
        )

    return lambda event: handler(json.loads(json.dumps(event)), new_context())


def notes(database):
    return [row["id"] for row in database.execute("SELECT id FROM notes ORDER BY id")]


def test_a_batch_takes_one_connection(handle, environment, database):
    """Nothing is reported as failed, and nothing is kept."""
    assert handle(sqs("1", "2", "3")) == NOTHING_FAILED
    assert notes(database) == [1, 2, 3]
    assert environment.snapshot().opened == 1
    database.wait_for_backends(0, "lambda:")


def test_a_poison_message_is_kept_with_its_error_and_not_delivered_again(
    handle, environment, database, log, capsys
):
    """The messages beside it are handled; a log line and a metric tell of it."""
    event = sqs("1", "poison", "3", receive_count=2)
    assert handle(event) == NOTHING_FAILED
    assert notes(database) == [1, 3]
    (letter,) = database.execute("SELECT * FROM dead_letters")
    assert letter["source"] == "arn:aws:sqs:us-east-2:123456789012:documents"
    assert letter["message_id"] == event["Records"][1]["messageId"]
    assert (letter["payload"], letter["attempts"]) == ("poison", 2)
    assert letter["error_type"] == "builtins.ValueError"
    (line,) = log.lines()
    assert (line["level"], line["message_id"]) == ("WARNING", letter["message_id"])
    (metrics,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert metrics["DeadLetters"] == [1.0]


def test_only_the_message_that_failed_is_delivered_again(handle, database, log):
    """An error that is not given up on is no fault of its neighbours; it is logged."""
    database.execute("INSERT INTO notes VALUES (2, 'there')")
    event = sqs("1", "2", "3")
    assert handle(event) == failures(event, 1)
    assert notes(database) == [1, 2, 3]
    assert database.execute("SELECT * FROM dead_letters") == []
    (line,) = log.lines()
    assert line["message_id"] == event["Records"][1]["messageId"]
    assert "UniqueViolation" in line["exception"]


def test_every_message_that_failed_is_named(handle, database):
    """Also if that is all of them: no exception, for both mean the same to SQS."""
    database.execute("INSERT INTO notes VALUES (1, 'there')")
    for queue in ("documents", "documents.fifo"):
        event = sqs("1", "1", queue=queue)
        assert handle(event) == failures(event, 0, 1)


def test_in_a_fifo_queue_a_failure_stops_its_message_group_alone(handle, database):
    """A later message of the group must not overtake the one that failed."""
    database.execute("INSERT INTO notes VALUES (1, 'there')")
    event = sqs("1", "2", "3", queue="documents.fifo")
    event["Records"][2]["attributes"]["MessageGroupId"] = "another"
    assert handle(event) == failures(event, 0, 1)
    assert notes(database) == [1, 3]


def test_message_groups_of_a_standard_queue_have_no_order(handle, database):
    """There they are for fairness, and a failure stops no other message."""
    database.execute("INSERT INTO notes VALUES (1, 'there')")
    event = sqs("1", "2")
    for record in event["Records"]:
        record["attributes"]["MessageGroupId"] = "tenant"
    assert handle(event) == failures(event, 0)


def test_a_message_without_attributes_can_be_given_up(handle, database):
    """A hand-made event may lack them."""
    event = sqs("poison")
    del event["Records"][0]["attributes"], event["Records"][0]["eventSourceARN"]
    assert handle(event) == NOTHING_FAILED
    (letter,) = database.execute("SELECT source, attempts FROM dead_letters")
    assert (letter["source"], letter["attempts"]) == ("sqs", 1)


def test_without_a_database_the_whole_batch_comes_again(open_environment, database, log):
    """One attempt to connect, and then an error rather than one attempt per message."""
    environment = open_environment(database.url("").replace(database.name, "no_such_database"))
    with pytest.raises(DatabaseUnavailable):
        handling(environment, log)(sqs("1", "2"))


def test_a_message_that_is_delivered_twice_is_handled_once(environment, database, log):
    """With Powertools' Idempotency in the message's own unit of work."""
    config = IdempotencyConfig()

    @idempotent_function(
        data_keyword_argument="message",
        persistence_store=SqlPersistenceLayer(environment),
        config=config,
    )
    def add(*, message, session):
        session.execute(text("INSERT INTO notes SELECT count(*), 'text' FROM notes"))

    def write_note(record):
        with environment.session() as session:
            add(message={"id": record.message_id}, session=session)

    for _ in range(2):
        config.register_lambda_context(new_context())
        answer = process_sqs_batch(sqs("1", "2"), write_note, environment, logger=log.logger)
        assert answer == NOTHING_FAILED
    assert notes(database) == [0, 1]


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"Records": []},
        {"Records": [{"eventSource": "aws:s3"}]},
        {"Records": [None]},
        {"Records": "abc"},
        {"Records": [{"eventSource": "aws:sqs"}]},
        http_api("GET", "/"),
    ],
    ids=lambda event: str(event)[:40],
)
def test_an_unknown_event_is_an_error(handle, event):
    """The message says what was wanted and what was found."""
    with pytest.raises(UnknownEvent, match=r"wanted a batch of SQS messages, found an object"):
        handle(event)
