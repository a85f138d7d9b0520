"""The tables, as declarative models, and the limits that every schema shares."""

from datetime import datetime
from typing import Annotated

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    MetaData,
    Text,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

MAX_ID = 2**63 - 1
MAX_VERSION = 2**31 - 2  # the largest that an update can still raise in an INTEGER
MAX_TITLE_CHARACTERS = 200
MAX_BODY_CHARACTERS = 100_000
MAX_TEXT_CHARACTERS = 200_000
# PostgreSQL cannot store NUL in a text.
TEXT_PATTERN = r"^[^\x00]*$"
# Not blank. Each regular expression engine has its own idea of \s, so the spaces are listed.
_SPACES = r"\x09-\x0d\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
TITLE_PATTERN = rf"^[^\x00]*[^\x00{_SPACES}][^\x00]*$"
# What a URL carries unescaped (RFC 3986, section 2.3). Python's own `re` needs \Z for the $.
DOCUMENT_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$"

Moment = Annotated[datetime, mapped_column(DateTime(timezone=True), server_default=func.now())]


class Base(DeclarativeBase):
    """The base of all models."""

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
    type_annotation_map = {str: Text}  # noqa: RUF012  (as SQLAlchemy documents it)


class Article(Base):
    """An article; `version` rises by one with each update."""

    __tablename__ = "articles"
    __table_args__ = (CheckConstraint("version > 0", name="version_is_positive"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    title: Mapped[str]
    body: Mapped[str]
    version: Mapped[int] = mapped_column(server_default=text("1"))
    created_at: Mapped[Moment]
    updated_at: Mapped[Moment]


class Document(Base):
    """An ingested document. Its sender chooses the id, so sending again means the same document."""

    __tablename__ = "documents"

    id: Mapped[str] = mapped_column(primary_key=True)
    title: Mapped[str]
    content_sha256: Mapped[str]
    chunk_count: Mapped[int]
    ingested_at: Mapped[Moment]

    chunks: Mapped[list["Chunk"]] = relationship(order_by="Chunk.position")


class Chunk(Base):
    """A part of a document's text."""

    __tablename__ = "chunks"
    __table_args__ = (CheckConstraint("position >= 0", name="position_is_not_negative"),)

    document_id: Mapped[str] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str]
