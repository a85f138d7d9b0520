"""What a worker shows its supervisor: a ready file, and logs as JSON lines."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import signals
from celery._state import get_current_task

if TYPE_CHECKING:
    from celery import Celery

__all__ = ("JsonFormatter", "json_logs", "ready_file")

logger = logging.getLogger(__name__)


def ready_file(app: Celery, path: str | Path) -> None:
    """Keep a file while the worker takes tasks, for a health check: `test -f /tmp/ready`.

    It is made when the worker has connected to its broker. It is removed at the beginning of a
    shutdown, while the last tasks are still running.
    """
    path = Path(path)

    def on_worker_ready(sender: Any, **kwargs: Any) -> None:
        if sender.app is app:
            path.write_text("ready\n")

    def on_worker_shutting_down(**kwargs: Any) -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    signals.worker_ready.connect(on_worker_ready, weak=False)
    signals.worker_shutting_down.connect(on_worker_shutting_down, weak=False)


def json_logs(level: str = "INFO") -> None:
    """Log JSON lines to standard error, instead of Celery's own format.

    A line has the time, the level, the logger, the process and the message. In a task it also has
    the task's name, its id and the number of retries.
    """

    def on_setup_logging(**kwargs: Any) -> None:
        root = logging.getLogger()
        root.setLevel(level)
        # Celery sets logs up again in each child.
        if not any(isinstance(handler.formatter, JsonFormatter) for handler in root.handlers):
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(JsonFormatter())
            root.handlers = [handler]

    signals.setup_logging.connect(on_setup_logging, weak=False)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object; a line feed in a message stays inside its string."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        # None outside a task, which the stubs do not say.
        task: Any = get_current_task()
        if task is not None:
            line |= {"task": task.name, "task_id": task.request.id, "retries": task.request.retries}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
