"""The worker on SQS: moto's server speaks its protocol."""

import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from celery_working import Site, assert_depth_is_measured_without_age, open_site
from processes import wait_until

from poolkit.local.network import Network


@pytest.fixture
def queue_url(served_aws: dict[str, str]) -> Iterator[str]:
    """Return a queue of the test's own, found through AWS_ENDPOINT_URL."""
    sqs = boto3.client("sqs")
    # The last test's worker may be gone, its long poll is not: it would take a message.
    yield sqs.create_queue(QueueName=f"shop-{secrets.token_hex(4)}")["QueueUrl"]
    sqs.close()


@pytest.fixture
def sqs_site(queue_url: str, shop_database: Any, tmp_path: Path) -> Iterator[Site]:
    """Return a site whose broker is SQS."""
    broker = {"url": "sqs://", "queue_url": queue_url}
    environ = {"DATABASE_URL": shop_database.url()}
    with open_site(shop_database, broker, environ, tmp_path) as site:
        yield site


def test_worker_on_sqs_does_tasks_and_gives_up_bad_ones(sqs_site, queue_url):
    """Tasks go through a queue named by its URL, and each message is deleted once it is done or recorded."""
    worker = sqs_site.start()
    sqs_site.send("by-sqs")
    sqs_site.wait_for_order("by-sqs")
    sent = sqs_site.app.send_task("shop.take_order", [""])
    assert sqs_site.wait_for_dead_letter()["message_id"] == sent.id
    sqs = boto3.client("sqs")
    kinds = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")

    def is_empty() -> bool:
        found = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=list(kinds))
        return [found["Attributes"][kind] for kind in kinds] == ["0", "0"]

    wait_until(is_empty, "an empty queue")
    sqs.close()
    assert worker.stop() == 0
    sqs_site.database.wait_for_backends(0, "worker:")


def test_sqs_counts_a_receive_as_a_delivery(sqs_site, queue_url):
    """A message that SQS delivers again is counted before any work, though SQS sets no flag."""
    sqs_site.send("again")
    sqs = boto3.client("sqs")
    (received,) = sqs.receive_message(QueueUrl=queue_url)["Messages"]
    handle = received["ReceiptHandle"]
    sqs.change_message_visibility(QueueUrl=queue_url, ReceiptHandle=handle, VisibilityTimeout=0)
    sqs.close()
    worker = sqs_site.start()
    sqs_site.wait_for_order("again")
    wait_until(lambda: worker.logged("TaskLost"), "the count of the lost worker")


def test_poll_that_the_network_cuts_off_is_not_the_last(sqs_site, queue_url, moto_server):
    """A worker whose long poll is reset goes on, and takes the next message."""
    host, _, port = moto_server.removeprefix("http://").partition(":")
    sqs = boto3.client("sqs")
    # moto gives the message to the poll that was reset.
    sqs.set_queue_attributes(QueueUrl=queue_url, Attributes={"VisibilityTimeout": "2"})
    sqs.close()
    with Network(host, int(port)) as network:
        worker = sqs_site.start(AWS_ENDPOINT_URL=f"http://127.0.0.1:{network.port}")
        wait_until(lambda: network.connections, "a poll")
        network.cut()
        sqs_site.send("after")
        sqs_site.wait_for_order("after")
        assert worker.process.poll() is None
        worker.kill()


def test_queue_s_depth_is_asked_of_sqs_and_its_age_is_left_to_cloudwatch(sqs_site):
    """The metric of the depth is there; the age is ApproximateAgeOfOldestMessage, which only CloudWatch has."""
    assert_depth_is_measured_without_age(sqs_site)


@pytest.mark.slow
def test_idle_worker_on_sqs_is_healthy(sqs_site):
    """The health check reads how many messages wait, and there are none."""
    worker = sqs_site.start()
    time.sleep(25)  # idle after ten seconds, stuck after two looks at the queue
    assert worker.ready_file.read_text() == "consuming\n"
    assert worker.health(max_age=60).returncode == 0
    sqs_site.send("after")
    sqs_site.wait_for_order("after")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["segmentation fault", "out of memory"])
def test_task_that_ends_its_process_is_given_up_on_sqs(sqs_site, how):
    """SQS counts the receives, and the worker the deliveries."""
    sqs_site.start()
    sqs_site.assert_given_up(how)
