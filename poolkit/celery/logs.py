"""Logs as JSON lines, for log collectors."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from celery import signals
from celery._state import get_current_task

__all__ = ("JsonFormatter", "json_logs")


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
