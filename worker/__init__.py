"""The queue worker: Celery tasks that do the articles' ingest.

Composition root: `app.py`, for `celery -A worker.app` and `python -m worker`. Everything
else is free of side effects at import.

    settings.py   WORKER_* environment variables, read once, checked, frozen
    broker.py     what Celery is told about the broker and about acknowledging
    database.py   the engine of one process, never shared across a fork
    delivery.py   retries, redeliveries, and the dead-letter table
    reception.py  messages that are no task of this worker
    redis_transport.py  entries of a Redis queue that are no message
    tasks.py      the tasks themselves
    lifecycle.py  what happens when a worker or one of its children starts and ends
    logs.py       log records as JSON, one a line
    client.py     putting a task on the queue
    app.py        wires all of it
"""
