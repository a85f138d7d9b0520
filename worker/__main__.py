"""`python -m worker`: run a worker, or put a document on its queue.

    python -m worker                                       run until SIGTERM
    python -m worker enqueue --id a1 --title T < text      prints the task's id

SIGTERM is a warm shutdown: no more tasks are taken, the running ones are finished, then
the connections are closed and the process ends with 0. Give it the time for that: the stop
timeout of the supervisor (ECS `stopTimeout`, Kubernetes `terminationGracePeriodSeconds`)
should exceed WORKER_TASK_TIME_LIMIT. Where it cannot (ECS on Fargate: 120 s at most), SIGKILL
ends the running tasks, and the broker delivers them again. SIGQUIT is a cold shutdown.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 done, 1 worker or broker failed, 2 wrong settings or input."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command")
    enqueue = commands.add_parser("enqueue", help="put a document on the queue")
    enqueue.add_argument("--id", required=True, help="the document's id")
    enqueue.add_argument("--title", required=True, help="the document's title")
    options = parser.parse_args(arguments)
    try:
        # Not at the top: it reads the settings, which --help does not need.
        from worker.celery import app  # noqa: PLC0415
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if options.command == "enqueue":
        return send(options.id, options.title, sys.stdin.read())
    # Messages between workers have no reader here, and SQS cannot carry them.
    worker = app.Worker(
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        optimization="fair",
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def send(document_id: str, title: str, text: str) -> int:
    """Put a document on the queue, print the task's id, and return the exit status."""
    # A worker does not send.
    from pydantic import ValidationError  # noqa: PLC0415

    from articles.schemas import NewDocument  # noqa: PLC0415
    from worker.celery import app  # noqa: PLC0415
    from worker.tasks import ingest_document  # noqa: PLC0415

    try:
        NewDocument(id=document_id, title=title, text=text)
    except ValidationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        sent = ingest_document.delay(document_id=document_id, title=title, text=text)
    except Exception as error:  # noqa: BLE001  (kombu does not wrap every broker's errors)
        # as_uri masks the password.
        where = app.connection_for_write().as_uri()
        sys.stderr.write(f"the broker, {where}, does not take the task: {error}\n")
        return 1
    sys.stdout.write(f"{sent.id}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
