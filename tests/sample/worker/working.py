"""Real workers of the sample in processes of their own, with a real broker and database."""

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery
from processes import RunningProcess, wait_until

from poolkit.celery import broker_config

QUICK = {
    "WORKER_CONCURRENCY": "2",
    "WORKER_MAX_RETRIES": "3",
    "WORKER_RETRY_BACKOFF": "0.2",
    "WORKER_RETRY_BACKOFF_MAX": "0.5",
    # A machine that stands still is not to look like a database that does.
    "POOLKIT_CONNECT_TIMEOUT": "60",
}


@dataclass
class Site:
    """A queue and a database of one test's own, and the workers started there."""

    database: Any
    environ: dict[str, str]
    directory: Path
    app: Celery
    workers: list["Worker"] = field(default_factory=list)

    def start(self, **environ: str) -> "Worker":
        """Start a worker and wait until it is ready."""
        ready_file = self.directory / f"worker{len(self.workers)}.ready"
        worker = Worker(ready_file, self.environ | environ)
        self.workers.append(worker)
        worker.wait_until(ready_file.exists, "worker ready")
        return worker

    def send(self, document_id: str, text: str = "Some text.") -> str:
        arguments = {"document_id": document_id, "title": "A title", "text": text}
        return str(self.app.send_task("worker.ingest_document", kwargs=arguments).id)

    def documents(self) -> list[str]:
        return [row["id"] for row in self.database.execute("SELECT id FROM documents ORDER BY id")]

    def wait_for_document(self, document_id: str) -> None:
        wait_until(lambda: document_id in self.documents(), f"document {document_id}")


class Worker(RunningProcess):
    """`python -m worker` in a process of its own."""

    def __init__(self, ready_file: Path, environ: dict[str, str]) -> None:
        self.ready_file = ready_file
        super().__init__(
            *(sys.executable, "-m", "worker"),
            environ={**environ, "WORKER_READY_FILE": str(ready_file)},
        )

    def records(self) -> list[dict[str, Any]]:
        """Return what it logged."""
        return [json.loads(line) for line in self.text.splitlines() if line[:1] == "{"]

    def logged(self, words: str) -> bool:
        return any(words in record["message"] for record in self.records())


@contextmanager
def open_site(database: Any, broker_url: str, directory: Path) -> Iterator[Site]:
    """Return a site, and end its workers afterwards."""
    queue = f"articles-{secrets.token_hex(4)}"
    environ = {"WORKER_BROKER_URL": broker_url, "WORKER_QUEUE": queue}
    app = Celery("sender", set_as_current=False)
    app.conf.update(broker_config(broker_url, queue=queue))
    site = Site(database, QUICK | environ | {"DATABASE_URL": database.url()}, directory, app)
    try:
        yield site
    finally:
        for worker in site.workers:
            worker.kill()
        app.close()
