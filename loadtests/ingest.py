"""What a sender of documents does: put one on the worker's queue, see it ingested."""

from uuid import uuid4

from locust import between, task

from poolkit.compare.locust_task_user import TaskUser
from worker.app import app
from worker.client import enqueue_ingest

TEXT = "A chunk is a piece of a text that fits into one question. " * 60


class Sender(TaskUser):
    """Sends a document of some 3,500 characters, and waits until its chunks are there."""

    wait_time = between(0.2, 0.8)
    committed = "SELECT id FROM documents WHERE id = ANY(:keys)"

    @task
    def ingest(self) -> None:
        """Have one document ingested."""
        document = f"load-{uuid4()}"
        self.submit(
            "ingest",
            key=document,
            send=lambda: enqueue_ingest(app, document_id=document, title="Load", text=TEXT),
        )
