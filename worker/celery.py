"""The Celery application: `celery -A worker worker`, or `python -m worker`.

Reads WORKER_* at import, and connects to nothing: the broker is reached when the worker starts
or a task is sent, the database when a worker's process starts.
"""

from __future__ import annotations

from celery import Celery

from poolkit.celery import (
    Database,
    broker_config,
    end_stalled,
    json_logs,
    keep_unreadable,
    ready_file,
)
from poolkit.celery.metrics import serve_metrics
from poolkit.celery.redis_transport import install_redis_transport
from poolkit.celery.sqs_transport import install_sqs_transport
from worker.settings import WorkerSettings

settings = WorkerSettings.from_environ()
RETRIES = settings.model_dump(include={"max_retries", "retry_backoff", "retry_backoff_max"})

install_redis_transport()
install_sqs_transport()
app = Celery("worker", include=["worker.tasks"])
app.conf.update(
    broker_config(
        settings.broker_url,
        queue=settings.queue,
        queue_url=settings.queue_url,
        visibility_timeout=settings.visibility_timeout,
    ),
    # Results are rows in the database, so a result backend would have no reader.
    task_ignore_result=True,
    worker_enable_remote_control=settings.remote_control,
    worker_send_task_events=settings.remote_control,
    worker_pool=settings.pool,
    worker_concurrency=settings.concurrency,
    worker_max_tasks_per_child=settings.max_tasks_per_child or None,
    task_soft_time_limit=settings.task_soft_time_limit,
    task_time_limit=settings.task_time_limit,
)
database = Database(app)
keep_unreadable(app, **RETRIES)
json_logs(settings.log_level)
if settings.ready_file is not None:
    ready_file(app, settings.ready_file)
if settings.stall_timeout:
    end_stalled(app, after=settings.stall_timeout)
if settings.metrics_port is not None:
    serve_metrics(app, port=settings.metrics_port)
