"""Worker settings: the WORKER_* environment variables, read once, checked, frozen.

| variable | default | meaning |
|---|---|---|
| `WORKER_BROKER_URL` | none, required | `redis://`, `rediss://`, `sqs://`, `amqp://` or `amqps://` |
| `WORKER_QUEUE` | `articles` | the queue's name |
| `WORKER_QUEUE_URL` | none | SQS: the queue's URL; required there |
| `WORKER_POOL` | `prefork` | `prefork`, `threads` or `solo` |
| `WORKER_CONCURRENCY` | 4 | tasks at the same time; each holds one connection at most |
| `WORKER_TASK_SOFT_TIME_LIMIT` | 240 | seconds after which the task is interrupted |
| `WORKER_TASK_TIME_LIMIT` | 300 | seconds after which its process is killed |
| `WORKER_MAX_RETRIES` | 8 | tries after the first, for operational errors |
| `WORKER_RETRY_BACKOFF` | 1 | seconds: the bound of the first wait; it doubles each time |
| `WORKER_RETRY_BACKOFF_MAX` | 60 | seconds: the bound of any wait |
| `WORKER_VISIBILITY_TIMEOUT` | 900 | seconds after which Redis or SQS deliver a task again |
| `WORKER_MAX_TASKS_PER_CHILD` | 1000 | tasks after which a child is replaced; 0: never |
| `WORKER_LOG_LEVEL` | `INFO` | `DEBUG`, `INFO`, `WARNING` or `ERROR` |
| `WORKER_READY_FILE` | none | a file that is renewed while the worker consumes |
| `WORKER_STALL_TIMEOUT` | 120 | seconds: a stuck worker ends with status 1; 0: never |
| `WORKER_REMOTE_CONTROL` | `false` | `celery inspect` and Flower; not with SQS |
| `WORKER_METRICS_PORT` | none | the port of metrics for Prometheus |

With RabbitMQ a wait is rounded up to a whole second.

Celery enforces the two time limits in `prefork` alone: a thread cannot be killed. In the
other pools `statement_timeout` is what ends a task that hangs in the database.

The database has poolkit's own variables (`poolkit.config.settings`).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from poolkit.config.variables import refuse_misspelt
from poolkit.errors import ConfigurationError
from poolkit.output_file import check_regular_file

_PREFIX = "WORKER_"

Seconds = Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)]
TimeLimit = Annotated[int, Field(ge=1, le=43_200)]


class WorkerSettings(BaseModel):
    """How the worker runs; times are in seconds.

    `repr` does not show the broker's URL, which holds a password.
    """

    model_config = ConfigDict(frozen=True)

    broker_url: str = Field(repr=False)
    queue: str = "articles"
    queue_url: str | None = None
    pool: Literal["prefork", "threads", "solo"] = "prefork"
    concurrency: int = Field(4, ge=1, le=256)
    task_soft_time_limit: TimeLimit = 240
    task_time_limit: TimeLimit = 300
    max_retries: int = Field(8, ge=0, le=100)
    retry_backoff: Seconds = 1.0
    retry_backoff_max: Seconds = 60.0
    visibility_timeout: int = Field(900, ge=1, le=604_800)
    max_tasks_per_child: int = Field(1000, ge=0, le=1_000_000)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    ready_file: Path | None = None
    stall_timeout: Seconds = 120.0
    remote_control: bool = False
    metrics_port: int | None = Field(None, ge=1, le=65_535)

    @model_validator(mode="after")
    def _limits_leave_room(self) -> "WorkerSettings":
        if self.task_soft_time_limit >= self.task_time_limit:
            raise ValueError(
                f"WORKER_TASK_SOFT_TIME_LIMIT ({self.task_soft_time_limit} s) must be less than "
                f"WORKER_TASK_TIME_LIMIT ({self.task_time_limit} s): the task needs the time "
                "between them to roll back"
            )
        # A task that waits for its next try stays unacknowledged with the worker, too.
        longest = self.task_time_limit + self.retry_backoff_max
        if not self.broker_url.startswith("amqp") and self.visibility_timeout <= longest:
            raise ValueError(
                f"WORKER_VISIBILITY_TIMEOUT ({self.visibility_timeout} s) must exceed "
                f"WORKER_TASK_TIME_LIMIT + WORKER_RETRY_BACKOFF_MAX ({longest:g} s): a task that "
                "runs longer than it would be delivered a second time while it runs"
            )
        if self.remote_control and self.broker_url.startswith("sqs"):
            raise ValueError(
                "WORKER_REMOTE_CONTROL must be false with SQS, which delivers each message to one "
                "reader only"
            )
        return self

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "WorkerSettings":
        """Read the variables above.

        Raises:
            ConfigurationError: a variable is missing, wrong or misspelt; the message names it.
        """
        known = {f"{_PREFIX}{name.upper()}": name for name in cls.model_fields}
        refuse_misspelt(environ, known, prefix=_PREFIX)
        # Empty is not set: a compose file passes an unset variable on as empty.
        given = {name: text for variable, name in known.items() if (text := environ.get(variable))}
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            found = error.errors()[0]
            if not found["loc"]:  # of two variables together; the text names them
                raise ConfigurationError(str(found["ctx"]["error"])) from None
            variable = f"{_PREFIX}{str(found['loc'][0]).upper()}"
            if found["type"] == "missing":
                raise ConfigurationError(f"{variable} is not set") from None
            raise ConfigurationError(
                f"{variable}: {found['msg']}, not {found['input']!r}"
            ) from None
        if settings.ready_file is not None:
            check_regular_file(f"{_PREFIX}READY_FILE", settings.ready_file)
        return settings
