"""What Celery is told. Of RabbitMQ, what goes out to it; `test_rabbitmq.py` needs one that runs."""

import pytest
from celery import Celery, signals
from kombu.exceptions import OperationalError

from worker.broker import celery_config
from worker.settings import WorkerSettings


def _config(**environ: str):
    return celery_config(WorkerSettings.from_environ(environ))


def test_messages_are_acknowledged_after_the_work_one_at_a_time():
    """Late acknowledgement, requeueing when a worker is lost or timed out, and no prefetching."""
    config = _config(WORKER_BROKER_URL="redis://x")
    assert config["task_acks_late"]
    assert config["task_reject_on_worker_lost"]
    assert not config["task_acks_on_timeout"]
    assert config["worker_prefetch_multiplier"] == 1


def test_nothing_but_json_is_accepted():
    """A pickled message would run whatever it says."""
    config = _config(WORKER_BROKER_URL="redis://x")
    assert config["accept_content"] == ["json"]
    assert config["task_serializer"] == "json"


def test_rabbitmq_queue_is_replicated_and_bounds_deliveries():
    """On RabbitMQ the queue is a quorum queue whose broken messages leave it in the end."""
    config = _config(WORKER_BROKER_URL="amqps://u:p@h//")
    (queue,) = config["task_queues"]
    assert queue.queue_arguments["x-queue-type"] == "quorum"
    assert queue.queue_arguments["x-dead-letter-routing-key"] == "articles.dead"
    assert "visibility_timeout" not in config["broker_transport_options"]


def test_rabbitmq_queue_is_the_same_for_workers_and_senders_of_any_settings():
    """RabbitMQ refuses a worker whose queue is there already, and with other arguments."""
    url = "amqps://u:p@h//"
    (queue,) = _config(WORKER_BROKER_URL=url)["task_queues"]
    (other,) = _config(WORKER_BROKER_URL=url, WORKER_MAX_RETRIES="50")["task_queues"]
    assert queue.queue_arguments == other.queue_arguments
    assert queue.queue_arguments["x-delivery-limit"] > 1


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


def test_a_queue_s_name_is_one_word_of_a_routing_key():
    """What comes back by `#.articles` is not what was sent to the queue `prod.articles`."""
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
