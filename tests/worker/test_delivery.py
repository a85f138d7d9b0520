"""Which failures are tried again, and after how long."""

from types import SimpleNamespace

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy.exc import DBAPIError

from articles.errors import InvalidInput
from poolkit.errors import CredentialsError, DatabaseUnavailable, PoolExhausted, StatementTimeout
from worker.delivery import full_jitter, is_operational, is_redelivered, wait_before_retry
from worker.settings import WorkerSettings

RECEIVED_TWICE = {"ApproximateReceiveCount": "2"}


def _driver_error(sqlstate: str) -> DBAPIError:
    return DBAPIError("SELECT 1", {}, SimpleNamespace(pgcode=sqlstate))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        *(CredentialsError("x"), DatabaseUnavailable("x"), PoolExhausted("x")),
        *(StatementTimeout("x"), SoftTimeLimitExceeded()),
        *map(_driver_error, ("40001", "40P01", "55P03")),
    ],
    ids=repr,
)
def test_operational_errors_are_tried_again(error):
    """What the pool, the server or another transaction caused may pass."""
    assert is_operational(error)


@pytest.mark.parametrize(
    "error", [InvalidInput(()), TypeError(), MemoryError(), _driver_error("23505")], ids=repr
)
def test_other_errors_are_not(error):
    """Bad input, a bug and a broken constraint fail again."""
    assert not is_operational(error)


def test_wait_is_random_up_to_a_bound_that_doubles():
    """Each wait lies between nothing and a bound, which doubles up to the longest, however many tries."""
    settings = WorkerSettings(broker_url="redis://x", retry_backoff=1, retry_backoff_max=60)
    for retries, bound in ((0, 1), (1, 2), (3, 8), (10, 60), (10**6, 60)):
        waits = [full_jitter(retries, settings) for _ in range(300)]
        assert 0 <= min(waits) < bound / 4
        assert bound * 3 / 4 < max(waits) <= bound


def test_rabbitmq_is_asked_for_whole_seconds():
    """Celery refuses to publish what is to wait there for less than one, but for none at all."""
    broker = {"WORKER_BROKER_URL": "amqp://x"}
    settings = WorkerSettings.from_environ(broker)
    waits = {wait_before_retry(retries, settings) for retries in (0, 1, 2) for _ in range(300)}
    assert waits == {1, 2, 3, 4}
    at_once = WorkerSettings.from_environ(broker | {"WORKER_RETRY_BACKOFF": "0"})
    assert wait_before_retry(0, at_once) == 0


@pytest.mark.parametrize(
    ("delivery_info", "properties", "expected"),
    [
        (None, None, False),
        ({"redelivered": None}, {}, False),
        ({"redelivered": True}, {}, True),
        ({}, {"delivery_info": {"sqs_message": {"Attributes": {}}}}, False),
        ({}, {"delivery_info": {"sqs_message": {"Attributes": RECEIVED_TWICE}}}, True),
    ],
)
def test_redelivery_is_seen_on_every_broker(delivery_info, properties, expected):
    """Redis and RabbitMQ set a flag, SQS counts receives."""
    request = SimpleNamespace(delivery_info=delivery_info, properties=properties)
    assert is_redelivered(request) is expected
