"""Celery's settings for each broker."""

from __future__ import annotations

import os
from typing import Any, Final
from urllib.parse import urlsplit

from kombu import Exchange, Queue

from poolkit.errors import ConfigurationError

__all__ = ("broker_config", "transport_of")

_TRANSPORTS: Final = {
    "redis": "redis",
    "rediss": "redis",
    "sqs": "sqs",
    "amqp": "amqp",
    "amqps": "amqp",
    "pyamqp": "amqp",
}
# RabbitMQ counts how often a message comes back unchanged, because a worker died before the
# task's first line; a retry is another message. It is the same in every worker and sender,
# whatever its settings: RabbitMQ refuses to declare a queue again with other arguments.
_DELIVERY_LIMIT: Final = 20


def transport_of(url: str | None) -> str:
    """Return `redis`, `sqs` or `amqp` for a broker's URL, else its scheme; of several the first."""
    scheme = urlsplit((url or "amqp://").partition(";")[0]).scheme
    return _TRANSPORTS.get(scheme, scheme)


def broker_config(
    url: str,
    *,
    queue: str = "celery",
    queue_url: str | None = None,
    visibility_timeout: int | None = None,
) -> dict[str, Any]:
    """Return Celery's settings for a broker whose messages outlive workers.

        app.conf.update(broker_config("redis://localhost:6379/0", queue="orders"))

    Messages are JSON, acknowledged after the work, and fetched one at a time. A task whose process
    dies, or that exceeds its hard time limit, comes again.

    * Redis: connections that vanished are noticed within half a minute, timed-out messages within
      ten seconds.
    * SQS: the queue is used as it is, without ListQueues and CreateQueue; remote control and events
      are off, which SQS does not have.
    * RabbitMQ: a quorum queue that bounds deliveries. A message over the limit goes to the queue
      `<name>.dead`, which the operator declares. A message that has to wait does so in the broker.

    Args:
        url: `redis://`, `rediss://`, `sqs://`, `amqp://` or `amqps://`.
        queue: the only queue, and the default of everything sent.
        queue_url: SQS: the URL of the queue.
        visibility_timeout: Redis, SQS: seconds after which an unacknowledged message is delivered
            again; it must exceed the longest task. By default Celery's own.

    Raises:
        ConfigurationError: another kind of broker, or no URL of an SQS queue.
    """
    transport = transport_of(url)
    if transport not in _TRANSPORTS.values():
        allowed = ", ".join(f"{scheme}://" for scheme in _TRANSPORTS)
        raise ConfigurationError(f"the broker's URL must begin with one of {allowed}")
    return {
        "broker_url": url,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": _transport_options(
            transport, queue, queue_url, visibility_timeout
        ),
        "task_queues": [
            _quorum_queue(queue)
            if transport == "amqp"
            else Queue(queue, exchange=Exchange(queue), routing_key=queue)
        ],
        "task_default_queue": queue,
        # With pickle, anyone who can write to the queue could run code in the worker.
        "task_serializer": "json",
        "accept_content": ["json"],
        # Acknowledged after the work: a worker that dies has not taken the task with it.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # A child killed by the hard limit counts like one that died: the task comes again.
        "task_acks_on_timeout": False,
        "worker_prefetch_multiplier": 1,
        # SQS has neither; elsewhere they are traffic without a reader, unless Flower reads it.
        "worker_enable_remote_control": transport != "sqs",
        "worker_send_task_events": False,
        "task_send_sent_event": False,
    }


def _transport_options(
    transport: str, queue: str, queue_url: str | None, visibility_timeout: int | None
) -> dict[str, Any]:
    """Return kombu's options of one transport.

    Raises:
        ConfigurationError: the URL of an SQS queue is missing.
    """
    if transport == "amqp":
        return {"confirm_publish": True}
    options: dict[str, Any] = {}
    if visibility_timeout is not None:
        options["visibility_timeout"] = visibility_timeout
    if transport == "redis":
        # A peer that vanished without notice is found within half a minute. Without the timeouts
        # the loop would wait for its answer to an acknowledgement for ever (redis-py's 5 s do not
        # hold: kombu passes None).
        options |= {"socket_keepalive": True, "health_check_interval": 25}
        options |= {"socket_timeout": 30, "socket_connect_timeout": 10}
        # Look for timed-out messages every 10 s; kombu does so at each tenth of those.
        options["unacked_restore_throttle"] = 1
        return options
    if queue_url is None:
        raise ConfigurationError(
            "with sqs:// the queue is named by its URL, which is missing: the worker neither "
            "creates a queue nor looks for one"
        )
    options["region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    # A queue named here is used as it is: no ListQueues, no CreateQueue.
    options["predefined_queues"] = {queue: {"url": queue_url}}
    return options


def _quorum_queue(name: str) -> Queue:
    """Return a queue of RabbitMQ that bounds deliveries, with its dead-letter queue's name.

    Celery keeps a message that has to wait in queues of the broker's. It comes back from their
    exchange by the end of its routing key, which takes a topic exchange. From a direct one the
    message would wait in a worker, in the place of a task that could run.
    """
    return Queue(
        name,
        exchange=Exchange(name, type="topic"),
        # One word: the end of another queue's name must not be the whole of this one's.
        routing_key=name.replace(".", "%2E"),
        queue_arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": _DELIVERY_LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": f"{name}.dead",
        },
    )
