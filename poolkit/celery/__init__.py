"""Celery with SQLAlchemy: an engine in each process, and tasks whose failures are not lost.

    from celery import Celery
    from poolkit.celery import Database, DeliveredTask

    app = Celery("shop", broker="redis://localhost:6379/0")
    database = Database(app)

    @app.task(base=DeliveredTask)
    def charge(order_id: int) -> None:
        with database.session() as session:
            session.get_one(Order, order_id).charge()

`celery -A shop worker` runs it, with each of Celery's pools of processes and threads. Each part may
be used alone:

    database.py         `Database`: the engine of each process, units of work and sessions
    delivery.py         `DeliveredTask`: retries with backoff and full jitter, and dead letters
    reception.py        `keep_unreadable`: dead letters of messages that are no task
    config.py           `broker_config`: Celery's settings for Redis, SQS and RabbitMQ
    redis_transport.py  `install_redis_transport`: a broker that is full, restarts, or holds garbage
    sqs_transport.py    `install_sqs_transport`: a network that fails, and short tasks
    supervision.py      `ready_file`, `json_logs`: for health checks and log collectors
    metrics.py          `serve_metrics`: pools, tasks and queues of a worker, for Prometheus
    figures.py          the counters of one process, and their sum
    queues.py           `stamp_sent_time`: how long tasks wait, and the depth and age of queues
"""

from __future__ import annotations

from poolkit.celery.config import broker_config
from poolkit.celery.database import Database
from poolkit.celery.delivery import DeliveredTask
from poolkit.celery.queues import stamp_sent_time
from poolkit.celery.reception import keep_unreadable
from poolkit.celery.supervision import json_logs, ready_file

__all__ = (
    "Database",
    "DeliveredTask",
    "broker_config",
    "json_logs",
    "keep_unreadable",
    "ready_file",
    "stamp_sent_time",
)
