"""The queue's function: documents ingested once, messages given up or delivered again."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from behaviour.lambda_face import open_face
from lambda_events import sqs
from processes import started, wait_until

NOTHING_FAILED = {"batchItemFailures": []}


def document(document_id, text="Some text."):
    return json.dumps({"id": document_id, "title": "A title", "text": text})


def failures(event, *numbers):
    """Return the answer that names these of the batch's messages as failed."""
    ids = [event["Records"][number]["messageId"] for number in numbers]
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in ids]}


def open_queue(url):
    # A statement that waits for a lock is to wait until the test ends that.
    return open_face(url, "lambda_handler.queue", POOLKIT_STATEMENT_TIMEOUT="100000")


@pytest.fixture
def queue(migrated_database):
    with open_queue(migrated_database.url(driver="")) as queue:
        yield queue


def documents(database):
    return {row["id"] for row in database.execute("SELECT id FROM documents")}


def ingests(*queues):
    """Count the documents that were really ingested, and not remembered."""
    return sum(line["message"] == "ingested" for queue in queues for line in queue.logs())


@contextmanager
def held(database, statement):
    """Keep a statement's locks until the block ends."""
    with database.connect() as connection, connection.cursor() as cursor:
        connection.autocommit = False
        cursor.execute(statement)
        yield
        connection.rollback()


def answer_without_waiting(queue, event, database):
    """Return the answer of an invoke whose every wait for a lock is ended like one too long."""
    ended = set()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(queue.invoke, event)
        while not answer.done():
            for row in database.backends("lambda"):
                statement = row["pid"], row["query_start"]
                if row["wait_event_type"] == "Lock" and statement not in ended:
                    database.execute("SELECT pg_cancel_backend(%s)", row["pid"])
                    ended.add(statement)
        return answer.result()


INSERTED = "INSERT INTO documents (id, title, content_sha256, chunk_count) VALUES ('{}', '', '', 0)"


def test_each_message_becomes_a_document(queue, migrated_database):
    """A batch takes one connection, and nothing is reported as failed."""
    assert queue.invoke(sqs(document("a"), document("b"), document("c"))) == NOTHING_FAILED
    assert documents(migrated_database) == {"a", "b", "c"}
    assert queue.environment.snapshot().opened == 1
    migrated_database.wait_for_backends(0, "lambda:")


POISON = {
    "no JSON": "{",
    "no object": "[]",
    "an unknown field": '{"id":"x","title":"t","text":"t","more":1}',
    "a bad id": '{"id":"/","title":"t","text":"t"}',
    "NUL": '{"id":"x","title":"t","text":"\\u0000"}',
    "a lone surrogate": '{"id":"x","title":"t","text":"\\ud800"}',
    "a lone surrogate, not escaped": '{"id":"x","title":"t","text":"\ud800"}',
    "empty": "",
    "too large": json.dumps({"id": "x", "title": "t", "text": "x" * 1_100_000}),
}


@pytest.mark.parametrize("body", POISON.values(), ids=POISON)
def test_a_poison_message_is_kept_with_its_error_and_not_delivered_again(
    queue, migrated_database, body
):
    """The messages beside it are ingested; SQS is told that all are done."""
    event = sqs(document("before"), body, document("after"), receive_count=2)
    assert queue.invoke(event) == NOTHING_FAILED
    assert documents(migrated_database) == {"before", "after"}
    (letter,) = migrated_database.execute("SELECT * FROM dead_letters")
    assert letter["source"] == "arn:aws:sqs:us-east-2:123456789012:documents"
    assert letter["message_id"] == event["Records"][1]["messageId"]
    assert letter["attempts"] == 2
    assert letter["error_type"] == "poolkit.errors.InvalidInput"
    assert letter["error"]


def test_a_poison_message_delivered_twice_leaves_one_record(queue, migrated_database):
    """The later delivery's record replaces the earlier one."""
    queue.invoke(sqs("{", receive_count=1))
    queue.invoke(sqs("{", receive_count=2))
    (letter,) = migrated_database.execute("SELECT * FROM dead_letters")
    assert letter["attempts"] == 2


def test_only_the_message_that_failed_is_delivered_again(queue, migrated_database):
    """The database's own failure is no fault of the message's, nor of its neighbours."""
    event = sqs(document("a"), document("b"), document("c"))
    with held(migrated_database, INSERTED.format("b")):
        answer = answer_without_waiting(queue, event, migrated_database)
    assert answer == failures(event, 1)
    assert documents(migrated_database) == {"a", "c"}
    assert migrated_database.execute("SELECT * FROM dead_letters") == []
    assert queue.invoke(event) == NOTHING_FAILED
    assert documents(migrated_database) == {"a", "b", "c"}
    assert ingests(queue) == 3


def test_a_backend_that_dies_costs_its_message_and_no_other(queue, migrated_database):
    """The next message's unit of work opens another connection."""
    event = sqs(document("a"), document("b"), document("c"))
    with ThreadPoolExecutor(1) as pool, held(migrated_database, INSERTED.format("b")):
        answer = pool.submit(queue.invoke, event)
        migrated_database.wait_for_lock("lambda")
        (backend,) = migrated_database.backends("lambda:")
        migrated_database.execute("SELECT pg_terminate_backend(%s)", backend["pid"])
        assert answer.result(100) == failures(event, 1)
    assert documents(migrated_database) == {"a", "c"}


def test_a_message_delivered_twice_is_ingested_once(queue, migrated_database):
    """The second delivery is done without being worked on; so it is by another function."""
    event = sqs(document("a"))
    with open_queue(migrated_database.url()) as other:
        for _ in range(2):
            assert queue.invoke(event) == NOTHING_FAILED
            assert other.invoke(event) == NOTHING_FAILED
        assert ingests(queue, other) == 1


def test_an_old_version_can_be_sent_again(queue, migrated_database):
    """What is remembered is the message, not its content."""
    first, second, third = (document("a", text) for text in ("one", "two", "one"))
    assert queue.invoke(sqs(first, second, third)) == NOTHING_FAILED
    (chunk,) = migrated_database.execute("SELECT text FROM chunks")
    assert chunk["text"] == "one"
    assert ingests(queue) == 3


def test_duplicates_at_the_same_time_are_ingested_once(migrated_database):
    """The second invoke waits for the first one's transaction, and then finds its record."""
    event = sqs(document("a"))
    with (
        open_queue(migrated_database.url()) as first,
        open_queue(migrated_database.url()) as second,
        ThreadPoolExecutor(2) as pool,
    ):
        with held(migrated_database, INSERTED.format("a")):
            working = pool.submit(first.invoke, event)
            migrated_database.wait_for_lock("lambda")
            waiting = pool.submit(second.invoke, event)
            wait_until(
                lambda: (
                    sum(
                        row["wait_event_type"] == "Lock"
                        for row in migrated_database.backends("lambda:")
                    )
                    == 2
                ),
                "both invokes wait",
            )
        assert working.result(100) == waiting.result(100) == NOTHING_FAILED
        assert ingests(first, second) == 1


CRASHING = """
import json, sys
from lambda_events import new_context
from lambda_handler.queue import handler
handler(json.loads(sys.argv[1]), new_context(timeout_s=600))
"""


@pytest.mark.process
def test_after_a_crash_a_later_delivery_takes_over_at_once(queue, migrated_database):
    """The record went with the transaction of the crashed invoke."""
    event = sqs(document("a"))
    environ = {"PYTHONPATH": "tests", "DATABASE_URL": migrated_database.url()}
    crashing = (sys.executable, "-c", CRASHING, json.dumps(event))
    with (
        held(migrated_database, INSERTED.format("a")),
        started(*crashing, environ=environ, clean=True) as process,
    ):
        migrated_database.wait_for_lock("lambda")
        process.kill()
        migrated_database.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
            " WHERE application_name LIKE 'lambda:%%' AND pid <> pg_backend_pid()"
        )
    assert migrated_database.execute("SELECT * FROM idempotency_records") == []
    assert queue.invoke(event) == NOTHING_FAILED
    assert documents(migrated_database) == {"a"}


def test_an_older_message_does_not_replace_a_newer_one(queue, migrated_database):
    """A message whose work is done is not worked on again, whatever came between."""
    old, new = sqs(document("a", "old")), sqs(document("a", "new"))
    new["Records"][0]["messageId"] = "new"
    for event in (old, new, old):
        assert queue.invoke(event) == NOTHING_FAILED
    (chunk,) = migrated_database.execute("SELECT text FROM chunks")
    assert chunk["text"] == "new"


def test_a_log_line_names_the_message(queue):
    """What was done with a message can be found by its id."""
    event = sqs(document("a"), "{")
    queue.invoke(event)
    ingested, given_up = queue.logs()
    assert (ingested["message"], ingested["document_id"]) == ("ingested", "a")
    assert given_up["message"] == "given up"
    ids = [record["messageId"] for record in event["Records"]]
    assert [ingested["message_id"], given_up["message_id"]] == ids
