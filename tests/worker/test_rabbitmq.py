"""Workers on a real RabbitMQ, which comes neither as a wheel nor with this project.

Run where POOLKIT_TEST_RABBITMQ_URL names one, such as amqp://guest:guest@127.0.0.1:5672//.
"""

import os
from contextlib import ExitStack

import pytest
from kombu import Connection
from processes import wait_until
from working import open_site

URL = os.environ.get("POOLKIT_TEST_RABBITMQ_URL", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not URL, reason="POOLKIT_TEST_RABBITMQ_URL names no RabbitMQ"),
]


@pytest.fixture
def site(migrated_database, tmp_path):
    """Return a queue on that RabbitMQ, and a database of the test's own."""
    environ = {"WORKER_BROKER_URL": URL, "DATABASE_URL": migrated_database.url()}
    with open_site(migrated_database, environ, tmp_path) as site:
        yield site
        name = site.environ["WORKER_QUEUE"]
        with Connection(URL) as connection:
            connection.channel().queue_delete(name)
            connection.channel().exchange_delete(name)


def test_what_waits_for_its_next_try_keeps_no_other_task_waiting(site):
    """With more failed tasks than the worker takes at once, a good one is done meanwhile."""
    worker = site.start(
        POOLKIT_STATEMENT_TIMEOUT="300",
        WORKER_MAX_RETRIES="20",
        WORKER_RETRY_BACKOFF="600",
        WORKER_RETRY_BACKOFF_MAX="600",
    )
    names = [f"locked{number}" for number in range(6)]
    with ExitStack() as locks:
        for name in names:
            locks.enter_context(site.locked(name))
            site.enqueue(name)

        def failed():
            return sum("Retry in" in record["message"] for record in worker.records())

        wait_until(lambda: failed() == len(names), "every locked one to fail once")
        site.enqueue("free")
        site.wait_for_document("free")


def test_a_retry_comes_back_and_is_done_once(site):
    """Tried again and again while its row is locked, the task succeeds when that is over."""
    worker = site.start(POOLKIT_STATEMENT_TIMEOUT="300", WORKER_MAX_RETRIES="50")
    with site.locked("d1"):
        site.enqueue("d1")
        wait_until(
            lambda: sum("Retry in" in record["message"] for record in worker.records()) >= 3,
            "the third retry",
        )
    site.wait_for_document("d1")
    assert worker.stop() == 0
    assert not [record for record in worker.records() if "delayed delivery" in record["message"]]
    assert site.database.execute("SELECT * FROM dead_letters") == []


def test_a_killed_worker_s_task_is_redelivered_and_counted(site):
    """SIGKILL in the middle of a task: the next worker gets it, after a wait."""
    first = site.start(WORKER_CONCURRENCY="1")
    with site.locked("d1"):
        site.enqueue("d1")
        site.database.wait_for_lock("worker:")
        first.kill()
    site.start()
    site.wait_for_document("d1")
    assert len(site.database.execute("SELECT * FROM documents")) == 1


def test_a_poison_task_ends_in_the_dead_letter_table(site):
    """A task that breaks the contract is given up at once, on this broker as on any."""
    site.start()
    site.app.send_task("worker.ingest_document", kwargs={"document_id": "", "title": 1, "text": ""})
    assert site.wait_for_dead_letter()["attempts"] == 1
