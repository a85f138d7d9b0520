"""Composition root: `celery -A worker.app worker`, or `python -m worker`.

Reads WORKER_* at import, and connects to nothing: the broker is reached when the worker
starts or a task is sent, the database in `worker_init` and `worker_process_init`.
"""

from __future__ import annotations

from celery import Celery

from worker import redis_transport
from worker.broker import celery_config
from worker.lifecycle import Database, Lifecycle
from worker.settings import WorkerSettings
from worker.tasks import register

redis_transport.install()
settings = WorkerSettings.from_environ()
database = Database()
app = Celery("worker", set_as_current=False)
app.conf.update(celery_config(settings))
register(app, settings, database)
Lifecycle(app, settings, database).connect()
