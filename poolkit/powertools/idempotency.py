"""Powertools' Idempotency on PostgreSQL, in the table `poolkit.tables.idempotency_records`.

The database's clock alone decides which records have expired: execution environments have clocks
of their own, and a thawed one's may be late. Powertools computes times by the local clock. Each
becomes a duration on the way in, and a time of the local clock on the way out.

Importing this module imports boto3: the package aws_lambda_powertools.utilities.idempotency
imports its DynamoDB layer whether it is used or not. Lambda's Python runtimes have boto3;
elsewhere it comes with the extra `aws`.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from aws_lambda_powertools.utilities.idempotency import BasePersistenceLayer
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
)
from aws_lambda_powertools.utilities.idempotency.persistence.datarecord import DataRecord
from sqlalchemy import (
    DateTime,
    Float,
    Interval,
    and_,
    bindparam,
    cast,
    delete,
    extract,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from poolkit.tables import idempotency_records as records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Connection

    from poolkit.execution_environment import ExecutionEnvironment

__all__ = ("SqlPersistenceLayer",)

PURGED_EVERY: Final = 10
"""Records written between two deletions of expired ones."""
PURGED: Final = 100
"""Expired records deleted at once: more than are written meanwhile, so that they do not pile up."""

# The clock and not now(), which is when the transaction began: it may have waited since.
_NOW = func.clock_timestamp(type_=DateTime(timezone=True))


def _from_now(name: str) -> ColumnElement[datetime]:
    return _NOW + bindparam(name, type_=Interval)


def _seconds_left(column: ColumnElement[Any]) -> ColumnElement[float]:
    return cast(extract("epoch", column - _NOW), Float)


_EXPIRED = or_(
    records.c.expires_at < _NOW,
    and_(records.c.status == "INPROGRESS", records.c.in_progress_expires_at < _NOW),
)
_INSERT = insert(records).values(
    id=bindparam("key"),
    status=bindparam("new_status"),
    expires_at=_from_now("lifetime"),
    in_progress_expires_at=_from_now("in_progress_lifetime"),
    response_data="",
    payload_hash=bindparam("new_payload_hash"),
)
_PUT = _INSERT.on_conflict_do_update(
    index_elements=[records.c.id],
    set_={
        name: _INSERT.excluded[name]
        for name in (
            "status",
            "expires_at",
            "in_progress_expires_at",
            "response_data",
            "payload_hash",
        )
    },
    where=_EXPIRED,
).returning(records.c.in_progress_expires_at)
_GET = select(
    records.c.status,
    _seconds_left(records.c.expires_at),
    _seconds_left(records.c.in_progress_expires_at),
    records.c.response_data,
    records.c.payload_hash,
).where(records.c.id == bindparam("key"))
_UPDATE = (
    update(records)
    .where(records.c.id == bindparam("key"))
    .values(
        status=bindparam("new_status"),
        expires_at=_from_now("lifetime"),
        in_progress_expires_at=None,
        response_data=bindparam("new_response_data"),
        payload_hash=bindparam("new_payload_hash"),
    )
)
_DELETE = delete(records).where(
    records.c.id == bindparam("key"),
    records.c.in_progress_expires_at.is_not_distinct_from(
        bindparam("held", type_=DateTime(timezone=True))
    ),
)
_PURGE = delete(records).where(
    records.c.id.in_(
        select(records.c.id)
        .where(records.c.expires_at < _NOW)
        .order_by(records.c.expires_at)
        .limit(bindparam("limit"))
        .with_for_update(skip_locked=True)
    )
)


class SqlPersistenceLayer(BasePersistenceLayer):
    """Powertools' records of finished work.

        @idempotent_function(data_keyword_argument="order", persistence_store=layer)
        def pay(*, order): ...

    Called inside a unit of work of the environment, a record belongs to its transaction: the work
    and its record are committed together, or neither is. After a crash nothing is left, and the
    next attempt begins anew; of two attempts at the same time the second waits for the first.

        with environment.session() as session:
            store_order(order=order, session=session)  # once, whatever happens

    Called outside, each record is written in a short transaction of its own, as Powertools' other
    layers do: for work beyond the database, which a rollback does not undo. An attempt that
    crashed then holds its record until its invoke would have timed out.

    Expired records are deleted along the way.

    Args:
        environment: whose engine and units of work it uses.
    """

    def __init__(self, environment: ExecutionEnvironment) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Powertools leaves its types out
        self._environment = environment
        self._held: dict[str, datetime | None] = {}
        self._puts = 0

    def purge(self, limit: int = PURGED) -> int:
        """Delete at most `limit` expired records, the oldest first, and return how many."""
        with self._begin() as connection:
            return connection.execute(_PURGE, {"limit": limit}).rowcount

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        connection = self._environment.current()
        if connection is not None:
            yield connection
            return
        with self._environment.connection() as own:
            yield own

    def _put_record(self, data_record: DataRecord) -> None:
        """Write the record unless there is one that has not expired.

        Of several writers at the same time one inserts. The others wait for its transaction, and
        then find its record.
        """
        key = data_record.idempotency_key
        in_progress_until = data_record.in_progress_expiry_timestamp
        parameters = {
            "key": key,
            "new_status": data_record.status,
            "lifetime": _lifetime(data_record.expiry_timestamp),
            "in_progress_lifetime": None
            if in_progress_until is None
            else _lifetime(in_progress_until / 1000),
            "new_payload_hash": data_record.payload_hash,
        }
        with self._begin() as connection:
            if self._puts % PURGED_EVERY == 0:
                connection.execute(_PURGE, {"limit": PURGED})
            self._puts += 1
            row = connection.execute(_PUT, parameters).one_or_none()
            existing = None if row else self._existing(connection, key)
        if row is not None:
            self._held[key] = row[0]
            return
        if existing is not None:
            self._validate_payload(data_payload=data_record, stored_data_record=existing)
            self._save_to_cache(data_record=existing)
        raise IdempotencyItemAlreadyExistsError(old_data_record=existing)

    def _get_record(self, idempotency_key: str) -> DataRecord:
        with self._begin() as connection:
            existing = self._existing(connection, idempotency_key)
        if existing is None:
            raise IdempotencyItemNotFoundError
        return existing

    def _existing(self, connection: Connection, key: str) -> DataRecord | None:
        row = connection.execute(_GET, {"key": key}).one_or_none()
        if row is None:
            return None
        status, seconds_left, in_progress_left, response_data, payload_hash = row
        now = time.time()
        return DataRecord(
            idempotency_key=key,
            status=status,
            expiry_timestamp=int(now + seconds_left),
            in_progress_expiry_timestamp=None
            if in_progress_left is None
            else int((now + in_progress_left) * 1000),
            response_data=response_data,
            payload_hash=payload_hash,
        )

    def _update_record(self, data_record: DataRecord) -> None:
        parameters = {
            "key": data_record.idempotency_key,
            "new_status": data_record.status,
            "lifetime": _lifetime(data_record.expiry_timestamp),
            "new_response_data": data_record.response_data,
            "new_payload_hash": data_record.payload_hash,
        }
        with self._begin() as connection:
            connection.execute(_UPDATE, parameters)
        self._held.pop(data_record.idempotency_key, None)

    def _delete_record(self, data_record: DataRecord) -> None:
        """Delete the record that this layer wrote, and not that of a later attempt."""
        key = data_record.idempotency_key
        held = self._held.pop(key, None)
        current = self._environment.current()
        if current is not None and not _commits_by_itself(current):
            # The rollback of the unit of work takes the record along. A statement could fail:
            # PostgreSQL refuses any after the one that failed.
            return
        with self._begin() as connection:
            connection.execute(_DELETE, {"key": key, "held": held})


def _commits_by_itself(connection: Connection) -> bool:
    return connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"


def _lifetime(until: float | None) -> timedelta:
    """Return how long from now on the local clock; `until` is in seconds since the epoch."""
    return timedelta(seconds=(until or 0) - time.time())
