"""Celery's configuration, and messages before they are sent.

`test_rabbitmq.py` needs a RabbitMQ that runs; here only the messages to it are tested.
"""

import pytest
from celery import Celery, signals
from kombu.exceptions import OperationalError

from articles.errors import InvalidInput, TooLarge
from worker.broker import celery_config
from worker.client import MAX_ARGUMENT_BYTES, enqueue_ingest
from worker.settings import WorkerSettings


def _config(**environ: str):
    return celery_config(WorkerSettings.from_environ(environ))


def test_messages_are_json_and_acknowledged_after_the_work_one_at_a_time():
    """A message outlives its worker; none is fetched ahead; a pickled one could run any code."""
    config = _config(WORKER_BROKER_URL="redis://x")
    assert config["task_acks_late"]
    assert config["task_reject_on_worker_lost"]
    assert not config["task_acks_on_timeout"]
    assert config["worker_prefetch_multiplier"] == 1
    assert config["accept_content"] == ["json"]
    assert config["task_serializer"] == "json"


def test_rabbitmq_queue_is_replicated_and_bounds_deliveries():
    """A quorum queue, with the same arguments in every worker and sender, whatever its settings.

    RabbitMQ refuses a worker whose queue is there already with other arguments.
    """
    config = _config(WORKER_BROKER_URL="amqps://u:p@h//")
    (queue,) = config["task_queues"]
    assert queue.queue_arguments["x-queue-type"] == "quorum"
    assert queue.queue_arguments["x-dead-letter-routing-key"] == "articles.dead"
    assert queue.queue_arguments["x-delivery-limit"] > 1
    assert "visibility_timeout" not in config["broker_transport_options"]
    other = _config(WORKER_BROKER_URL="amqps://u:p@h//", WORKER_MAX_RETRIES="50")
    assert other["task_queues"][0].queue_arguments == queue.queue_arguments


def _publishing(countdown: float, **environ: str):
    """Return exchange and routing key of a message for a RabbitMQ that is not there."""
    sent = []
    app = Celery("sender", set_as_current=False)
    app.conf.update(_config(WORKER_BROKER_URL="amqp://127.0.0.1:1//", **environ))
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
    assert routing_key.endswith(".1.1.1.1.0.articles")
    assert _publishing(countdown=0) == ("articles", "articles")
    assert caplog.messages == []
    # One word of the key: `#.articles` must not match the queue `prod.articles`.
    _, routing_key = _publishing(countdown=1, WORKER_QUEUE="prod.articles")
    assert routing_key.rpartition(".")[2] == "prod%2Earticles"


def test_sqs_queue_is_used_as_it_is(monkeypatch):
    """On SQS the queue is named by its URL, the region comes from the environment, and nothing is broadcast."""
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    url = "https://sqs.example/1/articles"
    config = _config(WORKER_BROKER_URL="sqs://", WORKER_QUEUE_URL=url)
    options = config["broker_transport_options"]
    assert options["predefined_queues"] == {"articles": {"url": url}}
    assert options["region"] == "eu-west-3"
    assert options["visibility_timeout"] == 900
    assert not config["worker_enable_remote_control"]
    assert not config["task_send_sent_event"]


@pytest.mark.parametrize(
    ("title", "text", "error"),
    [("", "x", InvalidInput), ("t", "\u4e00" * 100_000, TooLarge)],
    ids=["bad input", "too large for SQS"],
)
def test_what_the_worker_or_a_broker_would_refuse_is_not_sent(title, text, error):
    """The refusal comes before the broker is reached; the size limit is the same for every one."""
    app = Celery("sender", broker="redis://127.0.0.1:1/0", set_as_current=False)
    with pytest.raises(error) as refused:
        enqueue_ingest(app, document_id="a", title=title, text=text)
    assert getattr(refused.value, "limit", MAX_ARGUMENT_BYTES) == MAX_ARGUMENT_BYTES
