"""What Celery is told: when to acknowledge, how long a task may take, and about the broker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kombu import Exchange, Queue

if TYPE_CHECKING:
    from worker.settings import WorkerSettings

# What RabbitMQ counts is a message coming back as it was, because a worker died before the
# task's first line; a retry is another message. The same in every worker and sender, whatever
# its settings: RabbitMQ refuses to declare a queue that is there with other arguments.
_DELIVERY_LIMIT = 20


def celery_config(settings: WorkerSettings) -> dict[str, Any]:
    """Return Celery's configuration."""
    return {
        "broker_url": settings.broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": _transport_options(settings),
        "task_queues": [_queue(settings)],
        "task_default_queue": settings.queue,
        **_messages(),
        **_acknowledging(),
        **_running(settings),
    }


def _messages() -> dict[str, Any]:
    return {
        # Pickle would run whatever somebody who can write to the queue wants run.
        "task_serializer": "json",
        "accept_content": ["json"],
        # Results are rows in the database; nobody asks a result backend.
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        # SQS has neither; elsewhere they are traffic that no one here reads.
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "task_send_sent_event": False,
    }


def _acknowledging() -> dict[str, Any]:
    return {
        # After the work: a worker that dies has not taken the task with it.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # A child killed by the hard limit counts like one that died: the task comes again,
        # and is given up when it has come too often.
        "task_acks_on_timeout": False,
        "worker_prefetch_multiplier": 1,
    }


def _running(settings: WorkerSettings) -> dict[str, Any]:
    return {
        "worker_pool": settings.pool,
        "worker_concurrency": settings.concurrency,
        "worker_max_tasks_per_child": settings.max_tasks_per_child or None,
        "task_soft_time_limit": settings.task_soft_time_limit,
        "task_time_limit": settings.task_time_limit,
        "worker_redirect_stdouts": False,
        "worker_consumer": "worker.reception:KeepingConsumer",
    }


def _transport_options(settings: WorkerSettings) -> dict[str, Any]:
    if settings.transport == "amqp":
        return {"confirm_publish": True}
    options: dict[str, Any] = {"visibility_timeout": settings.visibility_timeout}
    if settings.transport == "redis":
        return options | {
            # A peer that vanished without a word is found within half a minute.
            "socket_keepalive": True,
            "health_check_interval": 25,
            # Look for timed-out messages every 10 s; kombu's own rule is each tenth time of those.
            "unacked_restore_throttle": 1,
        }
    return options | {
        "region": _region(),
        # A queue named here is used as it is: no ListQueues, no CreateQueue.
        "predefined_queues": {settings.queue: {"url": settings.queue_url}},
    }


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def _queue(settings: WorkerSettings) -> Queue:
    if settings.transport == "amqp":
        return _replicated_queue(settings)
    return Queue(settings.queue, Exchange(settings.queue), routing_key=settings.queue)


def _replicated_queue(settings: WorkerSettings) -> Queue:
    """Return a queue of RabbitMQ that a message which has to wait does not occupy.

    Celery lets such a message wait in queues of the broker's, from whose exchange it comes
    back by the end of its routing key. That takes a topic exchange; from a direct one, the
    message would wait in a worker, in the place of one that could be worked on.
    """
    # One word: the end of another queue's name must not be the whole of this one's.
    routing_key = settings.queue.replace(".", "%2E")
    exchange = Exchange(settings.queue, type="topic")
    return Queue(
        settings.queue, exchange, routing_key=routing_key, queue_arguments=_quorum(settings)
    )


def _quorum(settings: WorkerSettings) -> dict[str, Any]:
    """Return the arguments of a replicated queue that bounds deliveries (RabbitMQ, "Quorum Queues").

    What exceeds the limit goes to the queue `<name>.dead`, which whoever runs the broker declares.
    """
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": _DELIVERY_LIMIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": f"{settings.queue}.dead",
    }
