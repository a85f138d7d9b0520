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
| `WORKER_READY_FILE` | none | a file that exists while the worker takes tasks |

With RabbitMQ a wait is rounded up to a whole second (`worker.delivery.wait_before_retry`).

Celery enforces the two time limits in `prefork` alone: a thread cannot be killed. In the
other pools `statement_timeout` is what ends a task that hangs in the database.

The database has poolkit's own variables (`poolkit.config.settings`).
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from poolkit.config.variables import refuse_misspelt
from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Transport: TypeAlias = Literal["redis", "sqs", "amqp"]

_PREFIX = "WORKER_"
_TRANSPORTS: dict[str, Transport] = {
    "redis": "redis",
    "rediss": "redis",
    "sqs": "sqs",
    "amqp": "amqp",
    "amqps": "amqp",
}
_POOLS = ("prefork", "threads", "solo")
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
# Amazon SQS Developer Guide, "Amazon SQS visibility timeout": 12 hours at most.
_SQS_LONGEST_VISIBILITY = 43_200
_RANGES: dict[str, tuple[float, float]] = {
    "concurrency": (1, 256),
    "task_soft_time_limit": (1, 43_200),
    "task_time_limit": (1, 43_200),
    "max_retries": (0, 100),
    "retry_backoff": (0, 3_600),
    "retry_backoff_max": (0, 3_600),
    "visibility_timeout": (1, 604_800),
    "max_tasks_per_child": (0, 1_000_000),
}


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How the worker runs; times are in seconds.

    `repr` does not show the broker's URL, which holds a password.

    Raises:
        ConfigurationError: a value is out of its range, or two do not fit together.
    """

    broker_url: str = field(repr=False)
    queue: str = "articles"
    queue_url: str | None = None
    pool: str = "prefork"
    concurrency: int = 4
    task_soft_time_limit: int = 240
    task_time_limit: int = 300
    max_retries: int = 8
    retry_backoff: float = 1.0
    retry_backoff_max: float = 60.0
    visibility_timeout: int = 900
    max_tasks_per_child: int = 1000
    log_level: str = "INFO"
    ready_file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse values that are out of range or do not fit together."""
        _choice("WORKER_POOL", self.pool, _POOLS)
        _choice("WORKER_LOG_LEVEL", self.log_level, _LOG_LEVELS)
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigurationError(
                    f"{_variable(name)} must be from {low:g} to {high:g}, "
                    f"not {getattr(self, name)!r}"
                )
        _choice("the scheme of WORKER_BROKER_URL", self._scheme, tuple(_TRANSPORTS))
        if self.task_soft_time_limit >= self.task_time_limit:
            raise ConfigurationError(
                f"WORKER_TASK_SOFT_TIME_LIMIT ({self.task_soft_time_limit} s) must be less than "
                f"WORKER_TASK_TIME_LIMIT ({self.task_time_limit} s): the task needs the time "
                "between them to roll back"
            )
        # A task that waits for its next try stays unacknowledged with the worker, too.
        longest = self.task_time_limit + self.retry_backoff_max
        if self.transport != "amqp" and self.visibility_timeout <= longest:
            raise ConfigurationError(
                f"WORKER_VISIBILITY_TIMEOUT ({self.visibility_timeout} s) must exceed "
                f"WORKER_TASK_TIME_LIMIT + WORKER_RETRY_BACKOFF_MAX ({longest:g} s): a task that "
                "runs longer than it would be delivered a second time while it runs"
            )
        if self.transport == "sqs" and self.queue_url is None:
            raise ConfigurationError(
                "WORKER_QUEUE_URL is not set; with sqs:// it names the queue, which the "
                "worker neither creates nor looks for"
            )
        if self.transport == "sqs" and self.visibility_timeout > _SQS_LONGEST_VISIBILITY:
            raise ConfigurationError(
                f"WORKER_VISIBILITY_TIMEOUT must be {_SQS_LONGEST_VISIBILITY} s (12 hours) at "
                f"most with SQS, not {self.visibility_timeout}"
            )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> WorkerSettings:
        """Read the variables above.

        Args:
            environ: by default the process's own.

        Raises:
            ConfigurationError: a variable is missing, wrong or misspelt; the message names it.
        """
        environ = os.environ if environ is None else environ
        known = [_variable(field.name) for field in dataclasses.fields(cls)]
        refuse_misspelt(environ, known, prefix=_PREFIX)
        # Each variable is read as the type that its field is declared with.
        readers: dict[Any, Callable[[str], Any]] = {
            "int": int,
            "float": float,
            "Path | None": Path,
        }
        given: dict[str, Any] = {}
        for setting in dataclasses.fields(cls):
            variable = _variable(setting.name)
            if text := environ.get(variable, "").strip():
                try:
                    given[setting.name] = readers.get(setting.type, str)(text)
                except ValueError:
                    wanted = "a whole number" if setting.type == "int" else "a number"
                    raise ConfigurationError(f"{variable} must be {wanted}, not {text!r}") from None
        if "broker_url" not in given:
            raise ConfigurationError(
                "WORKER_BROKER_URL is not set; it says where the tasks come from, such as "
                "redis://:<password>@<host>:6379/0, sqs:// or amqps://<user>:<password>@<host>//"
            )
        return cls(**given)

    @property
    def transport(self) -> Transport:
        """The kind of broker that the URL names."""
        return _TRANSPORTS[self._scheme]

    @property
    def _scheme(self) -> str:
        return urlsplit(self.broker_url).scheme


def _variable(name: str) -> str:
    return f"{_PREFIX}{name.upper()}"


def _choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{what} must be one of {', '.join(allowed)}, not {value!r}")
