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
    limits.py           what cannot work is refused at the start
    redis_transport.py  `install_redis_transport`: a broker that is full, restarts, or holds garbage
    sqs_transport.py    `install_sqs_transport`: a network that fails, and short tasks
    heartbeat.py        `ready_file`, `end_stalled`: whether the worker consumes
    health.py           the health check of that file: `python -m poolkit.celery.health FILE`
    logs.py             `json_logs`: for log collectors
    metrics.py          `serve_metrics`: pools, tasks and queues of a worker, for Prometheus
    figures.py          the counters of one process, and their sum
    queues.py           `stamp_sent_time`: how long tasks wait, and the depth and age of queues

A name is imported at its first use, so a health check does not import Celery.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolkit.celery.config import broker_config
    from poolkit.celery.database import Database
    from poolkit.celery.delivery import DeliveredTask
    from poolkit.celery.heartbeat import end_stalled, ready_file, seconds_since_consuming
    from poolkit.celery.logs import json_logs
    from poolkit.celery.queues import stamp_sent_time
    from poolkit.celery.reception import keep_unreadable

__all__ = (
    "Database",
    "DeliveredTask",
    "broker_config",
    "end_stalled",
    "json_logs",
    "keep_unreadable",
    "ready_file",
    "seconds_since_consuming",
    "stamp_sent_time",
)

_MODULES = {
    "Database": "database",
    "DeliveredTask": "delivery",
    "broker_config": "config",
    "end_stalled": "heartbeat",
    "json_logs": "logs",
    "keep_unreadable": "reception",
    "ready_file": "heartbeat",
    "seconds_since_consuming": "heartbeat",
    "stamp_sent_time": "queues",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found  # so that this function is not called again
    return found
