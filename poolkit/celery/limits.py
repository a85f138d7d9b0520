"""What cannot work is refused at the start of a worker, with the reason.

Celery starts in all of these cases: tasks then run twice, wait for connections that the server does
not have, or block each other.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from poolkit.celery.config import transport_of
from poolkit.config.engine import make_engine
from poolkit.errors import ConfigurationError, PoolkitError

if TYPE_CHECKING:
    from celery import Celery

    from poolkit.config.settings import Settings

__all__ = ("check_capacity", "check_features", "check_limits", "most_tasks", "pool_of")

logger = logging.getLogger(__name__)

# Celery, "Using Redis" and "Using Amazon SQS": the default visibility timeouts in seconds.
_DEFAULT_VISIBILITY: Final = {"redis": 3_600, "sqs": 1_800}
# Amazon SQS Developer Guide, "Amazon SQS visibility timeout": 12 hours at most.
_SQS_LONGEST_VISIBILITY: Final = 43_200
GREENLETS: Final = ("gevent", "eventlet")


def pool_of(worker: Any) -> str:
    """Return a worker's pool, such as `prefork`: Celery has its alias, or the class itself."""
    pool = worker.pool_cls
    module = pool if isinstance(pool, str) else str(pool.__module__)
    return module.partition(":")[0].rpartition(".")[2]


def most_tasks(worker: Any) -> int | None:
    """Return the number of tasks that a worker may run at once; None if Celery finds it later."""
    if pool_of(worker) == "solo":
        return 1
    autoscale = (worker.options or {}).get("autoscale")
    if isinstance(autoscale, str):
        autoscale = [int(number) for number in autoscale.split(",")]
    numbers = [*(autoscale or ()), worker.concurrency]
    return max(numbers) if all(isinstance(number, int) for number in numbers) else None


def check_features(app: Celery, worker: Any, settings: Settings) -> None:
    """Refuse options of the command line that do not work together.

    Raises:
        ConfigurationError: autoscaling of threads, events on SQS, or a driver that blocks greenlets.
    """
    pool = pool_of(worker)
    if (worker.options or {}).get("autoscale") and pool in ("thread", "threads", "solo"):
        raise ConfigurationError(
            f"--autoscale does not work with the pool {pool!r}, whose size cannot change; use "
            "--concurrency, or prefork"
        )
    transport = transport_of(app.conf.broker_read_url or app.conf.broker_url)
    if transport == "sqs" and worker.task_events:
        raise ConfigurationError(
            "task events (-E, worker_send_task_events) need a broker that delivers a message to "
            "each of several readers, which SQS does not; leave them out"
        )
    if pool in GREENLETS:
        _refuse_blocking_driver(pool, settings)


_ADMITTED: Final = text("""
SELECT CAST(current_setting('max_connections') AS int) AS max_connections, rolsuper, rolconnlimit, datconnlimit,
       (SELECT coalesce(sum(CAST(setting AS int)), 0) FROM pg_settings
         WHERE name LIKE '%reserved_connections') AS reserved
  FROM pg_roles, pg_database
 WHERE rolname = current_user AND datname = current_database()
""")


def check_capacity(settings: Settings, needed: int) -> None:
    """Refuse a worker that may hold more connections than its server admits.

    Behind a pooler in transaction mode the server's limit is not the worker's. A database that is away
    is not asked: the worker may wait for it.

    Args:
        settings: as the worker's processes use them.
        needed: the connections of all its tasks together.

    Raises:
        ConfigurationError: with both numbers.
    """
    if needed <= 1 or settings.preset.transaction_pooling:
        return
    # Shortly: a worker also starts while its database does not answer.
    preset = settings.preset.replace(connect_timeout=min(settings.preset.connect_timeout or 5, 5))
    engine = make_engine(dataclasses.replace(settings, preset=preset), poolclass=NullPool)
    if engine.dialect.name != "postgresql":
        return
    try:
        with engine.connect() as connection:
            row = connection.execute(_ADMITTED).one()
    except (PoolkitError, SQLAlchemyError) as error:
        logger.debug("the server's limits were not read: %s", error)
        return
    limits = {
        "max_connections, less the reserved ones": row.max_connections
        - (0 if row.rolsuper else row.reserved),
        "the role's CONNECTION LIMIT": -1 if row.rolsuper else row.rolconnlimit,
        "the database's CONNECTION LIMIT": -1 if row.rolsuper else row.datconnlimit,
    }
    for name, admitted in limits.items():
        if 0 <= admitted < needed:
            raise ConfigurationError(
                f"the tasks that run at once need {needed} connections, but the server admits "
                f"{admitted} ({name}); lower --concurrency or --autoscale, or use a pooler"
            )


def check_limits(app: Celery, worker: Any, *, strict: bool) -> None:
    """Refuse time limits with which a broker delivers a task again while it runs.

    Args:
        app: the application.
        worker: Celery's worker, which knows the limits of the command line.
        strict: raise; otherwise only log.

    Raises:
        ConfigurationError: the visibility timeout is too short, or a soft limit is no shorter than
            the hard one.
    """
    try:
        _check_limits(app, worker)
    except ConfigurationError as error:
        if strict:
            raise
        logger.warning("refused outside dev: %s", error)


def _check_limits(app: Celery, worker: Any) -> None:
    soft, hard = worker.soft_time_limit, worker.time_limit
    if soft and hard and soft >= hard:
        raise ConfigurationError(
            f"the soft time limit ({soft:g} s) must be less than the hard one ({hard:g} s): a task "
            "needs the time between them to roll back"
        )
    transport = transport_of(app.conf.broker_read_url or app.conf.broker_url)
    if transport not in _DEFAULT_VISIBILITY:
        return
    options = app.conf.broker_transport_options or {}
    visibility = options.get("visibility_timeout", _DEFAULT_VISIBILITY[transport])
    limits = [getattr(task, "time_limit", None) or hard for task in app.tasks.values()]
    waits = [getattr(task, "retry_backoff_max", 0) for task in app.tasks.values()]
    # A task that waits for its next try stays unacknowledged with the worker, too.
    longest = max(filter(None, limits), default=0) + max(waits, default=0)
    if visibility <= longest:
        raise ConfigurationError(
            f"the visibility timeout ({visibility:g} s) must exceed the longest time limit of a task "
            f"and the longest wait for a retry together ({longest:g} s): a task that takes longer "
            "is delivered a second time while it runs; it is visibility_timeout in Celery's "
            "broker_transport_options"
        )
    if transport == "sqs" and visibility > _SQS_LONGEST_VISIBILITY:
        raise ConfigurationError(
            f"the visibility timeout must be {_SQS_LONGEST_VISIBILITY} s (12 hours) at most with "
            f"SQS, not {visibility:g}"
        )


def _refuse_blocking_driver(pool: str, settings: Settings) -> None:
    """Raise ConfigurationError for psycopg2 among greenlets, unless psycogreen is installed.

    psycopg2 waits inside C, where greenlets cannot switch.
    """
    if settings.preset.url(settings.url).get_driver_name() != "psycopg2":
        return
    import psycopg2.extensions  # noqa: PLC0415  (other drivers do without it)

    if psycopg2.extensions.get_wait_callback() is None:
        raise ConfigurationError(
            f"the pool {pool!r} does not run with psycopg2, which waits where greenlets cannot "
            "switch: one statement would stop all tasks; use prefork, threads or solo, the driver "
            "psycopg (postgresql+psycopg://), or psycogreen"
        )
