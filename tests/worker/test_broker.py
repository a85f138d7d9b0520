"""What Celery is told. RabbitMQ does not run in these tests: its settings alone are checked."""

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
    """On RabbitMQ the queue is a quorum queue whose delivery limit lies above the worker's own."""
    config = _config(WORKER_BROKER_URL="amqps://u:p@h//", WORKER_MAX_RETRIES="5")
    (queue,) = config["task_queues"]
    assert queue.queue_arguments["x-queue-type"] == "quorum"
    assert queue.queue_arguments["x-delivery-limit"] > 5
    assert queue.queue_arguments["x-dead-letter-routing-key"] == "articles.dead"
    assert "visibility_timeout" not in config["broker_transport_options"]


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
