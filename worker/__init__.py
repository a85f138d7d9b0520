"""Deployable 3, the queue worker: Celery tasks that do the articles' ingest.

Composition root: `app.py`, for `celery -A worker.app` and `python -m worker`. Everything
else is free of side effects at import.

    settings.py         WORKER_* environment variables, read once, checked, frozen
    broker.py           Celery's configuration: broker, acknowledgement, limits
    delivery.py         retries, redeliveries, and the dead-letter table
    tasks.py            the tasks themselves
    client.py           sends a task to the queue
    lifecycle.py        the engine and the logs of each process, from its start to its end
    reception.py        messages that are no task of this worker
    redis_transport.py  entries of a Redis queue that are no message
    app.py              wires all of it
"""
