"""Celery's configuration: the broker, when to acknowledge, and how long a task may take."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kombu import Exchange, Queue

if TYPE_CHECKING:
    from worker.settings import WorkerSettings

INGEST_DOCUMENT = "worker.ingest_document"
RECORD_DEAD_LETTER = "worker.record_dead_letter"
"""The names of the tasks in their messages."""

# RabbitMQ counts how often a message comes back unchanged, because a worker died before the
# task's first line; a retry is another message. It is the same in every worker and sender,
# whatever its settings: RabbitMQ refuses to declare a queue again with other arguments.
_DELIVERY_LIMIT = 20


def celery_config(settings: WorkerSettings) -> dict[str, Any]:
    """Return Celery's configuration for a worker, and for a process that only sends."""
    if settings.transport == "amqp":
        transport_options: dict[str, Any] = {"confirm_publish": True}
        # A replicated queue ("Quorum Queues") that bounds deliveries. A message over the limit goes
        # to the queue `<name>.dead`, which the operator declares. Celery keeps a message that has
        # to wait in queues of the broker's, and it comes back from their exchange by the end of its
        # routing key. That takes a topic exchange. From a direct one the message would wait in a
        # worker, in the place of a task that could run.
        queue = Queue(
            settings.queue,
            Exchange(settings.queue, type="topic"),
            # One word: the end of another queue's name must not be the whole of this one's.
            routing_key=settings.queue.replace(".", "%2E"),
            queue_arguments={
                "x-queue-type": "quorum",
                "x-delivery-limit": _DELIVERY_LIMIT,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": f"{settings.queue}.dead",
            },
        )
    else:
        queue = Queue(settings.queue, Exchange(settings.queue), routing_key=settings.queue)
        transport_options = {"visibility_timeout": settings.visibility_timeout}
        if settings.transport == "redis":
            # A peer that vanished without notice is found within half a minute.
            transport_options |= {"socket_keepalive": True, "health_check_interval": 25}
            # Look for timed-out messages every 10 s; kombu does so at each tenth of those.
            transport_options["unacked_restore_throttle"] = 1
        else:
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            transport_options["region"] = region
            # A queue named here is used as it is: no ListQueues, no CreateQueue.
            transport_options["predefined_queues"] = {settings.queue: {"url": settings.queue_url}}
    return {
        "broker_url": settings.broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": transport_options,
        "task_queues": [queue],
        "task_default_queue": settings.queue,
        # With pickle, anyone who can write to the queue could run code in the worker.
        "task_serializer": "json",
        "accept_content": ["json"],
        # Results are rows in the database, so a result backend would have no reader.
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        # SQS has neither; elsewhere they are traffic without a reader.
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "task_send_sent_event": False,
        # Acknowledged after the work: a worker that dies has not taken the task with it.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        # A child killed by the hard limit counts like one that died: the task comes again,
        # and is given up when it has come too often.
        "task_acks_on_timeout": False,
        "worker_prefetch_multiplier": 1,
        "worker_pool": settings.pool,
        "worker_concurrency": settings.concurrency,
        "worker_max_tasks_per_child": settings.max_tasks_per_child or None,
        "task_soft_time_limit": settings.task_soft_time_limit,
        "task_time_limit": settings.task_time_limit,
        "worker_redirect_stdouts": False,
        "worker_consumer": "worker.reception:KeepingConsumer",
    }
