"""Log records as JSON, one a line, on standard error; with the task they belong to."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from celery._state import get_current_task


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
            **_task(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _task() -> dict[str, Any]:
    # None outside a task, which the stubs do not say.
    task: Any = get_current_task()
    if task is None:
        return {}
    return {"task": task.name, "task_id": task.request.id, "retries": task.request.retries}


def configure(level: str) -> None:
    """Send everything from `level` up to standard error; a second call changes nothing."""
    root = logging.getLogger()
    root.setLevel(level)
    if any(isinstance(handler.formatter, JsonFormatter) for handler in root.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root.handlers = [handler]
