"""Celery's settings for each broker, messages before they are sent, and limits that fit together.

`test_rabbitmq.py` needs a RabbitMQ that runs; here only the messages to it are tested.
"""

import os
from types import SimpleNamespace

import pytest
from celery import Celery, signals
from kombu.exceptions import OperationalError
from redis.exceptions import OutOfMemoryError, ResponseError

from poolkit.celery import DeliveredTask, broker_config, ready_file, redis_transport
from poolkit.celery.config import transport_of
from poolkit.celery.limits import check_limits
from poolkit.errors import ConfigurationError


def test_messages_are_json_and_acknowledged_after_the_work_one_at_a_time():
    """A message outlives its worker; none is fetched ahead; a pickled one could run any code."""
    config = broker_config("redis://x")
    assert config["task_acks_late"]
    assert config["task_reject_on_worker_lost"]
    assert not config["task_acks_on_timeout"]
    assert config["worker_prefetch_multiplier"] == 1
    assert config["accept_content"] == ["json"]
    assert config["task_serializer"] == "json"


def test_rabbitmq_queue_is_replicated_and_bounds_deliveries():
    """A quorum queue, whose message over the limit goes to a queue of its own."""
    config = broker_config("amqps://u:p@h//", queue="orders", visibility_timeout=900)
    (queue,) = config["task_queues"]
    assert queue.queue_arguments["x-queue-type"] == "quorum"
    assert queue.queue_arguments["x-dead-letter-routing-key"] == "orders.dead"
    assert queue.queue_arguments["x-delivery-limit"] > 1
    assert "visibility_timeout" not in config["broker_transport_options"]


def _publishing(countdown: float, queue: str = "orders"):
    """Return exchange and routing key of a message for a RabbitMQ that is not there."""
    sent = []
    app = Celery("sender", set_as_current=False)
    app.conf.update(broker_config("amqp://127.0.0.1:1//", queue=queue))
    app.conf.broker_transport_options |= {"max_retries": 1, "interval_start": 0}

    def note(exchange, routing_key, **_):
        sent.append((getattr(exchange, "name", exchange), routing_key))

    signals.before_task_publish.connect(note)
    try:
        with pytest.raises(OperationalError):
            app.send_task("a.task", countdown=countdown, retry=False)
    finally:
        signals.before_task_publish.disconnect(note)
        app.close()
    (only,) = sent
    return only


def test_what_waits_on_rabbitmq_waits_in_the_broker(caplog):
    """A message with a countdown goes to the broker's own queues for those, not to a worker."""
    exchange, routing_key = _publishing(countdown=30)
    assert exchange == "celery_delayed_27"
    assert routing_key.endswith(".1.1.1.1.0.orders")
    assert _publishing(countdown=0) == ("orders", "orders")
    assert caplog.messages == []
    # One word of the key: `#.orders` must not match the queue `prod.orders`.
    _, routing_key = _publishing(countdown=1, queue="prod.orders")
    assert routing_key.rpartition(".")[2] == "prod%2Eorders"


def test_sqs_queue_is_used_as_it_is(monkeypatch):
    """On SQS the queue is named by its URL, the region comes from the environment, and nothing is broadcast."""
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    url = "https://sqs.example/1/orders"
    config = broker_config("sqs://", queue="orders", queue_url=url, visibility_timeout=900)
    options = config["broker_transport_options"]
    assert options["predefined_queues"] == {"orders": {"url": url}}
    assert options["region"] == "eu-west-3"
    assert options["visibility_timeout"] == 900
    assert not config["worker_enable_remote_control"]
    assert not config["task_send_sent_event"]


@pytest.mark.parametrize(
    ("url", "words"),
    [("kafka://x", "must begin with one of redis"), ("sqs://", "named by its URL")],
)
def test_broker_that_cannot_serve_is_refused(url, words):
    """Another kind of broker, and SQS without the URL of its queue."""
    with pytest.raises(ConfigurationError, match=words):
        broker_config(url)


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        *((None, "amqp"), ("pyamqp://h", "amqp"), ("rediss://h", "redis")),
        *(("amqp://a;amqp://b", "amqp"), ("sentinel://h", "sentinel")),
    ],
)
def test_kind_of_broker_is_read_from_its_url(url, transport):
    """Also of several, and of Celery's default; an unknown one keeps its scheme."""
    assert transport_of(url) == transport


def _check(*, soft=None, hard=None, strict=True, url="redis://h", **options):
    app = Celery("limits", broker=url, set_as_current=False)
    app.conf.broker_transport_options = options

    @app.task(base=DeliveredTask, retry_backoff_max=60, shared=False)
    def some():
        pass

    worker = SimpleNamespace(soft_time_limit=soft, time_limit=hard)
    try:
        check_limits(app, worker, strict=strict)
    finally:
        app.close()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"soft": 30, "hard": 30}, "must be less than the hard one"),
        ({"hard": 300, "visibility_timeout": 360}, r"\(360 s\) must exceed .* \(360 s\)"),
        ({"hard": 3_600}, "the visibility timeout"),
        ({"url": "sqs://", "hard": 1_800}, "the visibility timeout"),
        ({"url": "sqs://", "visibility_timeout": 43_201}, "12 hours"),
    ],
)
def test_limits_that_do_not_fit_are_refused(limits, words, caplog):
    """A task that outlasts the visibility timeout would run twice at once; in dev a warning says so."""
    with pytest.raises(ConfigurationError, match=words):
        _check(**limits)
    _check(**limits, strict=False)
    assert "refused outside dev" in caplog.text


def test_limits_that_fit_are_accepted():
    """Also those of RabbitMQ, which redelivers when a connection ends, not after a time."""
    _check(soft=240, hard=300, visibility_timeout=900)
    _check(url="amqp://h", hard=7_200)
    _check()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_ready_file_that_is_a_folder_or_a_pipe_is_refused(tmp_path, make):
    """The file is replaced each second; whatever else is there is left alone."""
    make(tmp_path / "ready")
    app = Celery("refused", set_as_current=False)
    with pytest.raises(ConfigurationError, match=r"ready_file: .*/ready is not a regular file"):
        ready_file(app, tmp_path / "ready")


def test_error_of_a_full_redis_is_recognised_with_and_without_its_class():
    """redis-py before 4.6 has no class, and leaves the code in the text."""
    full = redis_transport._is_full
    assert full(ResponseError("OOM command not allowed when used memory > 'maxmemory'."))
    assert full(OutOfMemoryError("command not allowed when used memory > 'maxmemory'."))
    assert not full(ResponseError("unknown command"))
