"""Deployable 3, the queue worker: Celery tasks over the functions of `articles`.

settings.py  WORKER_* environment variables
celery.py    the application, for `celery -A worker worker` and `python -m worker`
tasks.py     the tasks
__main__.py  runs a worker, or puts a document on its queue
"""
