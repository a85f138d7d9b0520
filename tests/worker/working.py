"""Real workers in processes of their own, with real brokers and a real database."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from worker.broker import celery_config
from worker.client import enqueue_ingest
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
QUICK = {
    "WORKER_CONCURRENCY": "2",
    "WORKER_MAX_RETRIES": "3",
    "WORKER_RETRY_BACKOFF": "0.2",
    "WORKER_RETRY_BACKOFF_MAX": "0.5",
    # A machine that stands still is not to look like a database that does.
    "POOLKIT_CONNECT_TIMEOUT": "60",
}


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Return the first true answer of `condition`."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)
    return answer


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
        worker = Worker(self.directory / f"worker{len(self.workers)}", self.environ | environ)
        self.workers.append(worker)
        wait_until(worker.is_ready, "worker ready")
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
        """Let whoever ingests this document wait, for as long as the block runs."""
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

    def wait_for_waiting(self) -> dict[str, Any]:
        """Return the backend of the task that waits for a lock."""

        def waiting() -> list[dict[str, Any]]:
            backends = self.database.backends("worker:")
            return [row for row in backends if row["wait_event_type"] == "Lock"]

        return wait_until(waiting, "a task that waits for a lock")[0]


class Worker:
    """`python -m worker` in a process of its own."""

    def __init__(self, name: Path, environ: dict[str, str]) -> None:
        self.log = name.with_suffix(".log")
        self.ready_file = name.with_suffix(".ready")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker"],
                cwd=ROOT,
                env=os.environ | environ | {"WORKER_READY_FILE": str(self.ready_file)},
                stdout=log,
                stderr=log,
            )

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self.ready_file.exists()

    def stop(self) -> int:
        """Ask for a warm shutdown and wait for its end."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def records(self) -> list[dict[str, Any]]:
        """Return what it logged."""
        # The last line may be half written.
        lines = self.log.read_text().rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in lines if line[:1] == "{"]

    def logged(self, words: str) -> bool:
        return any(words in record["message"] for record in self.records())


@contextmanager
def open_site(database: Any, environ: dict[str, str], directory: Path) -> Iterator[Site]:
    """Give a site, and end its workers afterwards."""
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
