"""What a sender of documents does: put one on the worker's queue, see it ingested."""

import os
from uuid import uuid4

from celery import Celery
from locust import between, task

from poolkit import loadtest
from poolkit.loadtest.task_user import TaskUser

loadtest.register()

TEXT = "A chunk is a piece of a text that fits into one question. " * 60


class Sender(TaskUser):
    """Sends a document of some 3,500 characters, and waits until its chunks are there."""

    wait_time = between(0.2, 0.8)
    committed = "SELECT id FROM documents WHERE id = ANY(:keys)"
    needs = (*TaskUser.needs, ("WORKER_BROKER_URL", "the worker's broker, to send to"))

    def on_start(self) -> None:
        """Connect to the broker that the worker's own variables name."""
        super().on_start()
        self.queue = os.environ.get("WORKER_QUEUE", "articles")
        self.sender = Celery("loadtests", broker=os.environ["WORKER_BROKER_URL"])

    @task
    def ingest(self) -> None:
        """Send one document, and wait until it is ingested."""
        document = {"document_id": f"load-{uuid4()}", "title": "Load", "text": TEXT}
        self.submit(
            "ingest",
            key=document["document_id"],
            send=lambda: self.sender.send_task(
                "worker.ingest_document", kwargs=document, queue=self.queue
            ),
        )
