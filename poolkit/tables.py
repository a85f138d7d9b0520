"""The tables that poolkit's integrations write to: dead letters, and records of idempotency.

They have a `MetaData` of their own, so they join a project's migrations without its models:

    # migrations/env.py
    target_metadata = [Base.metadata, poolkit.tables.metadata]

Use only `dead_letters` with `poolkit.celery`, and only `idempotency_records` with
`poolkit.powertools`; a project that uses neither needs no table of poolkit.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    cast,
    func,
    select,
    text,
)
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

__all__ = (
    "DeadLetter",
    "dead_letters",
    "idempotency_records",
    "list_dead_letters",
    "metadata",
    "record_dead_letter",
)

MAX_ERROR_CHARACTERS: Final = 10_000

metadata = MetaData(
    # Named by rule, so that a migration can drop what another one made.
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    # JSON, not JSONB: JSONB refuses NUL and lone surrogates, and a message with one of those
    # ends up here.
    Column("payload", JSON, nullable=False),
    Column("error_type", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("failed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    UniqueConstraint("source", "message_id"),
)

# The records of Powertools' Idempotency utility, whose DataRecord holds the same six values
# (aws_lambda_powertools/utilities/idempotency/persistence/datarecord.py).
idempotency_records = Table(
    "idempotency_records",
    metadata,
    Column("id", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("in_progress_expires_at", DateTime(timezone=True)),
    # The handler's answer as the JSON text that Powertools made and will parse.
    Column("response_data", Text, nullable=False, server_default=text("''")),
    Column("payload_hash", Text, nullable=False, server_default=text("''")),
    # For the deletion of expired records.
    Index(None, "expires_at"),
)


class DeadLetter(NamedTuple):
    """A message that was given up, with the error of its last attempt."""

    id: int
    source: str
    message_id: str
    payload: object
    error_type: str
    error: str
    attempts: int
    failed_at: datetime


# The statements are made once: SQLAlchemy keys its cache of compiled SQL by statement, and each of
# these remembers its own key.
_COLUMNS = [dead_letters.c[name] for name in DeadLetter._fields]
_INSERT = postgresql.insert(dead_letters).values(
    source=bindparam("source"),
    message_id=bindparam("message_id"),
    payload=cast(bindparam("payload_text", type_=Text), JSON),
    error_type=bindparam("error_type"),
    error=bindparam("error"),
    attempts=bindparam("attempts"),
)
_RECORD = _INSERT.on_conflict_do_update(
    index_elements=[dead_letters.c.source, dead_letters.c.message_id],
    set_={
        name: _INSERT.excluded[name]
        for name in ("payload", "error_type", "error", "attempts", "failed_at")
    },
).returning(*_COLUMNS)
_LIST = (
    select(*_COLUMNS).order_by(dead_letters.c.id.desc()).limit(bindparam("limit", type_=Integer))
)


def record_dead_letter(
    work: Connection | Session,
    *,
    source: str,
    message_id: str,
    payload: object,
    error: BaseException,
    attempts: int,
) -> DeadLetter:
    """Record a message that was given up; the same message again replaces its record.

        with unit_of_work(engine) as connection:
            record_dead_letter(connection, source="orders.pay", message_id="6f1e", payload=body,
                               error=error, attempts=3)

    A defect of the message must not prevent its record. A payload that is not JSON is stored as its
    `repr`. A character that PostgreSQL cannot store in text (NUL, a lone surrogate) is stored as
    its escape.

    Args:
        work: a Connection or a Session; of an AsyncSession, what `run_sync` passes. The caller
            commits.
        source: what received the message, such as a task's name. With `message_id` it names one
            record.
        message_id: the message's id at its sender or broker.
        payload: the message's content.
        error: the error of the last attempt; its text is cut at MAX_ERROR_CHARACTERS.
        attempts: the number of deliveries, the last included.
    """
    try:
        payload_text = json.dumps(payload, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        payload_text = json.dumps(repr(payload))
    row = work.execute(
        _RECORD,
        {
            "source": _storable(source),
            "message_id": _storable(message_id),
            "payload_text": payload_text,
            "error_type": f"{type(error).__module__}.{type(error).__qualname__}",
            "error": _storable(str(error))[:MAX_ERROR_CHARACTERS],
            "attempts": attempts,
        },
    ).one()
    return DeadLetter._make(row)


def list_dead_letters(work: Connection | Session, *, limit: int = 100) -> list[DeadLetter]:
    """Return the messages that were given up, at most `limit`, latest first."""
    return [DeadLetter._make(row) for row in work.execute(_LIST, {"limit": limit})]


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
