"""The tables, and the records that operations read from them.

A record's fields are columns' names, and the statements select them in the fields' order
(`columns_of`), so a row becomes a record by position. Records are named tuples. At import they cost
a tenth of a frozen dataclass, and to make one a third. Core tables are enough: mapping classes with
the ORM would double what a Lambda function imports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

MAX_ID = 2**63 - 1
MAX_VERSION = 2**31 - 1
MAX_TITLE_CHARACTERS = 200
MAX_BODY_CHARACTERS = 100_000
MAX_TEXT_CHARACTERS = 200_000
DOCUMENT_ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$"

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


def _moment(name: str) -> Column[datetime]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


articles = Table(
    "articles",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("version", Integer, nullable=False, server_default=text("1")),
    _moment("created_at"),
    _moment("updated_at"),
    CheckConstraint("version > 0", name="version_is_positive"),
)

documents = Table(
    "documents",
    metadata,
    # The sender chooses it, so that sending again means the same document.
    Column("id", Text, primary_key=True),
    Column("title", Text, nullable=False),
    Column("content_sha256", Text, nullable=False),
    Column("chunk_count", Integer, nullable=False),
    _moment("ingested_at"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("document_id", Text, ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
    CheckConstraint("position >= 0", name="position_is_not_negative"),
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
    _moment("failed_at"),
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


class ArticleSummary(NamedTuple):
    """An article without its body: what a list shows, so that a page stays small."""

    id: int
    title: str
    version: int
    created_at: datetime
    updated_at: datetime


class Article(NamedTuple):
    """A whole article; `version` rises by one with each update."""

    id: int
    title: str
    body: str
    version: int
    created_at: datetime
    updated_at: datetime


class Document(NamedTuple):
    """An ingested document without its chunks."""

    id: str
    title: str
    content_sha256: str
    chunk_count: int
    ingested_at: datetime


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


def columns_of(table: Table, names: Iterable[str]) -> list[Column[Any]]:
    """Return the columns of `table` with these names, in their order, for a record's fields."""
    return [table.c[name] for name in names]
