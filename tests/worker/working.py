"""Real workers in processes of their own, with real brokers and a real database."""

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

from worker.broker import celery_config
from worker.client import enqueue_ingest
from worker.settings import WorkerSettings

QUICK = {
    "WORKER_CONCURRENCY": "2",
    "WORKER_MAX_RETRIES": "3",
    "WORKER_RETRY_BACKOFF": "0.2",
    "WORKER_RETRY_BACKOFF_MAX": "0.5",
    # A machine that stands still is not to look like a database that does.
    "POOLKIT_CONNECT_TIMEOUT": "60",
}


def child_pid(backend: dict[str, Any]) -> int:
    """Return the process id in `worker:<host>-<pid>`."""
    return int(backend["application_name"].rpartition("-")[2])


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

    def enqueue(self, document_id: str, text: str = "Some text.") -> str:
        return enqueue_ingest(self.app, document_id=document_id, title="A title", text=text)

    def documents(self) -> list[str]:
        return [row["id"] for row in self.database.execute("SELECT id FROM documents ORDER BY id")]

    def wait_for_document(self, document_id: str) -> None:
        wait_until(lambda: document_id in self.documents(), f"document {document_id}")

    def wait_for_dead_letter(self) -> dict[str, Any]:
        """Return the one dead letter there is."""
        query = "SELECT * FROM dead_letters"
        rows = wait_until(lambda: self.database.execute(query), "dead letter")
        assert len(rows) == 1
        return rows[0]

    @contextmanager
    def locked(self, document_id: str) -> Iterator[None]:
        """Make every ingest of this document wait until the block ends."""
        with self.database.connect() as connection:
            connection.autocommit = False
            with connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO documents (id, title, content_sha256, chunk_count)"
                    " VALUES (%s, 'other', '', 0)",
                    (document_id,),
                )
            yield
            connection.rollback()


class Worker(RunningProcess):
    """`python -m worker` in a process of its own."""

    def __init__(self, ready_file: Path, environ: dict[str, str]) -> None:
        self.ready_file = ready_file
        super().__init__(
            *(sys.executable, "-m", "worker"),
            environ={**environ, "WORKER_READY_FILE": str(ready_file)},
        )

    def stop(self) -> int:
        """Ask for a warm shutdown and return the exit status."""
        return self.terminate()

    def records(self) -> list[dict[str, Any]]:
        """Return what it logged."""
        return [json.loads(line) for line in self.text.splitlines() if line[:1] == "{"]

    def logged(self, words: str) -> bool:
        return any(words in record["message"] for record in self.records())


@contextmanager
def open_site(database: Any, environ: dict[str, str], directory: Path) -> Iterator[Site]:
    """Return a site, and end its workers afterwards."""
    environ = QUICK | environ | {"WORKER_QUEUE": f"articles-{secrets.token_hex(4)}"}
    app = Celery("sender", set_as_current=False)
    app.conf.update(celery_config(WorkerSettings.from_environ(environ)))
    site = Site(database, environ, directory, app)
    try:
        yield site
    finally:
        for worker in site.workers:
            worker.kill()
        app.close()
