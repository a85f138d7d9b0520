"""The operations on articles and documents, without any input and output.

An operation is a generator: it yields a statement with its parameters, is sent the rows,
and returns a result. So one definition serves every driver: `perform` runs it on a
connection of a synchronous engine, `perform_async` on one of an asynchronous engine.

    with engine.begin() as connection:
        article = perform(connection, get_article(1))

The caller begins and ends the transaction; every operation needs one at PostgreSQL's default
isolation, READ COMMITTED. The operations that read (get_article, get_document, list_articles,
list_dead_letters) are one statement each and may run in autocommit.

The statements are made once, here, with bind parameters: SQLAlchemy keys its cache of
compiled SQL by statement, and each of these remembers its own key.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import (
    JSON,
    Integer,
    Text,
    bindparam,
    cast,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql

from articles.contract import Page, PageRequest
from articles.errors import NotFound, StaleVersion
from articles.models import (
    Article,
    ArticleSummary,
    DeadLetter,
    Document,
    articles,
    chunks,
    columns_of,
    dead_letters,
    documents,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection, Executable
    from sqlalchemy.ext.asyncio import AsyncConnection

    from articles.contract import ArticleUpdate, NewArticle, NewDocument

T = TypeVar("T")
Parameters: TypeAlias = Mapping[str, object] | Sequence[Mapping[str, object]]
Step: TypeAlias = "tuple[Executable, Parameters]"
Rows: TypeAlias = Sequence[Sequence[Any]]
Operation: TypeAlias = Generator[Step, Rows, T]

MAX_ERROR_CHARACTERS: Final = 10_000


def perform(connection: Connection, operation: Operation[T]) -> T:
    """Run an operation on a connection, and return its result."""
    rows: Rows | None = None
    while True:
        try:
            # A generator that has not begun takes None only, and so does next().
            statement, parameters = operation.send(rows)  # type: ignore[arg-type]
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        result = connection.execute(statement, parameters)
        rows = result.all() if result.returns_rows else ()


async def perform_async(connection: AsyncConnection, operation: Operation[T]) -> T:
    """Run an operation on a connection of an asynchronous engine, and return its result."""
    rows: Rows | None = None
    while True:
        try:
            statement, parameters = operation.send(rows)  # type: ignore[arg-type]
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        result = await connection.execute(statement, parameters)
        rows = result.all() if result.returns_rows else ()


_ARTICLE_COLUMNS = columns_of(articles, Article._fields)
_DOCUMENT_COLUMNS = columns_of(documents, Document._fields)
_DEAD_LETTER_COLUMNS = columns_of(dead_letters, DeadLetter._fields)

_SELECT_PAGE = (
    select(*columns_of(articles, ArticleSummary._fields))
    .where(articles.c.id <= bindparam("newest"))
    .order_by(articles.c.id.desc())
    .limit(bindparam("limit", type_=Integer))
)
_SELECT_ARTICLE = select(*_ARTICLE_COLUMNS).where(articles.c.id == bindparam("article_id"))
_SELECT_VERSION = select(articles.c.version).where(articles.c.id == bindparam("article_id"))
_INSERT_ARTICLE = (
    insert(articles)
    .values(title=bindparam("title"), body=bindparam("body"))
    .returning(*_ARTICLE_COLUMNS)
)
_UPDATE_ARTICLE = (
    update(articles)
    .where(
        articles.c.id == bindparam("article_id"),
        articles.c.version == bindparam("expected_version"),
    )
    .values(
        title=func.coalesce(bindparam("new_title", type_=Text), articles.c.title),
        body=func.coalesce(bindparam("new_body", type_=Text), articles.c.body),
        version=articles.c.version + 1,
        updated_at=func.now(),
    )
    .returning(*_ARTICLE_COLUMNS)
)


def list_articles(page: PageRequest) -> Operation[Page]:
    """List articles, newest first; ids rise in the order of creation.

    It costs the same on every page: the primary key leads to the first row, and no row
    before it is read.
    """
    # One row more than the page holds shows whether there is another page.
    rows = yield _SELECT_PAGE, {"newest": page.newest, "limit": page.limit + 1}
    items = tuple(ArticleSummary._make(row) for row in rows[: page.limit])
    if len(rows) <= page.limit:
        return Page(items, None)
    return Page(items, PageRequest(page.limit, newest=items[-1].id - 1))


def get_article(article_id: int) -> Operation[Article]:
    """Read one article.

    Raises:
        NotFound: there is none with this id.
    """
    rows = yield _SELECT_ARTICLE, {"article_id": article_id}
    if not rows:
        raise NotFound("article", article_id)
    return Article._make(rows[0])


def create_article(new: NewArticle) -> Operation[Article]:
    """Insert an article, whose id the database chooses."""
    rows = yield _INSERT_ARTICLE, {"title": new.title, "body": new.body}
    return Article._make(rows[0])


def update_article(article_id: int, change: ArticleUpdate) -> Operation[Article]:
    """Change an article, if it still has the version that the change was made for.

    The UPDATE itself compares the row's version. So of two changes made for one version exactly one
    succeeds, and no lock is held between reading and writing.

    Raises:
        NotFound: there is none with this id.
        StaleVersion: it has another version by now.
    """
    rows = yield (
        _UPDATE_ARTICLE,
        {
            "article_id": article_id,
            "expected_version": change.version,
            "new_title": change.title,
            "new_body": change.body,
        },
    )
    if rows:
        return Article._make(rows[0])
    versions = yield _SELECT_VERSION, {"article_id": article_id}
    if not versions:
        raise NotFound("article", article_id)
    raise StaleVersion(article_id, change.version, versions[0][0])


Outcome: TypeAlias = Literal["created", "replaced", "unchanged"]


class Ingested(NamedTuple):
    """The document as it is stored now, and what ingesting it did."""

    document: Document
    outcome: Outcome


class DocumentWithChunks(NamedTuple):
    """A document and the texts of its chunks, in order."""

    document: Document
    chunks: tuple[str, ...]


_INSERT_DOCUMENT = (
    postgresql.insert(documents)
    .values(
        id=bindparam("document_id"),
        title=bindparam("title"),
        content_sha256=bindparam("content_sha256"),
        chunk_count=bindparam("chunk_count"),
    )
    .on_conflict_do_nothing(index_elements=[documents.c.id])
    .returning(*_DOCUMENT_COLUMNS)
)
_LOCK_DOCUMENT = (
    select(*_DOCUMENT_COLUMNS).where(documents.c.id == bindparam("document_id")).with_for_update()
)
_UPDATE_DOCUMENT = (
    update(documents)
    .where(documents.c.id == bindparam("document_id"))
    .values(
        title=bindparam("new_title"),
        content_sha256=bindparam("new_content_sha256"),
        chunk_count=bindparam("new_chunk_count"),
        ingested_at=func.now(),
    )
    .returning(*_DOCUMENT_COLUMNS)
)
_DELETE_CHUNKS = delete(chunks).where(chunks.c.document_id == bindparam("owner"))
_INSERT_CHUNK = insert(chunks)
_SELECT_DOCUMENT = (
    select(*_DOCUMENT_COLUMNS, chunks.c.text)
    .select_from(documents.outerjoin(chunks))
    .where(documents.c.id == bindparam("document_id"))
    .order_by(chunks.c.position)
)


def ingest_document(new: NewDocument) -> Operation[Ingested]:
    """Store a document cut into chunks; doing it again changes nothing.

    Of deliveries of one id at the same time, one inserts the row; the others wait for its
    transaction to end, and then find the row there. A document whose title or text differs
    from the stored one replaces it as a whole.
    """
    # Not at the top: every cold start pays for imports, and only an ingest needs this one.
    from articles.chunking import cut  # noqa: PLC0415

    texts = [chunk.text for chunk in cut(new.text)]
    rows = yield (
        _INSERT_DOCUMENT,
        {
            "document_id": new.id,
            "title": new.title,
            "content_sha256": new.content_sha256,
            "chunk_count": len(texts),
        },
    )
    if rows:
        yield from _insert_chunks(new.id, texts)
        return Ingested(Document._make(rows[0]), "created")
    rows = yield _LOCK_DOCUMENT, {"document_id": new.id}
    stored = Document._make(rows[0])
    if (stored.title, stored.content_sha256) == (new.title, new.content_sha256):
        return Ingested(stored, "unchanged")
    rows = yield (
        _UPDATE_DOCUMENT,
        {
            "document_id": new.id,
            "new_title": new.title,
            "new_content_sha256": new.content_sha256,
            "new_chunk_count": len(texts),
        },
    )
    yield _DELETE_CHUNKS, {"owner": new.id}
    yield from _insert_chunks(new.id, texts)
    return Ingested(Document._make(rows[0]), "replaced")


def _insert_chunks(document_id: str, texts: list[str]) -> Operation[None]:
    yield (
        _INSERT_CHUNK,
        [
            {"document_id": document_id, "position": position, "text": text}
            for position, text in enumerate(texts)
        ],
    )


def get_document(document_id: str) -> Operation[DocumentWithChunks]:
    """Read a document and its chunks, in one statement so that they belong together.

    Raises:
        NotFound: there is none with this id.
    """
    rows = yield _SELECT_DOCUMENT, {"document_id": document_id}
    if not rows:
        raise NotFound("document", document_id)
    texts = tuple(row[-1] for row in rows if row[-1] is not None)
    return DocumentWithChunks(Document._make(rows[0][:-1]), texts)


_INSERT_DEAD_LETTER = postgresql.insert(dead_letters).values(
    source=bindparam("source"),
    message_id=bindparam("message_id"),
    payload=cast(bindparam("payload_text", type_=Text), JSON),
    error_type=bindparam("error_type"),
    error=bindparam("error"),
    attempts=bindparam("attempts"),
)
_RECORD_DEAD_LETTER = _INSERT_DEAD_LETTER.on_conflict_do_update(
    index_elements=[dead_letters.c.source, dead_letters.c.message_id],
    set_={
        name: _INSERT_DEAD_LETTER.excluded[name]
        for name in ("payload", "error_type", "error", "attempts", "failed_at")
    },
).returning(*_DEAD_LETTER_COLUMNS)
_SELECT_DEAD_LETTERS = (
    select(*_DEAD_LETTER_COLUMNS)
    .order_by(dead_letters.c.id.desc())
    .limit(bindparam("limit", type_=Integer))
)


def record_dead_letter(
    *, source: str, message_id: str, payload: object, error: BaseException, attempts: int
) -> Operation[DeadLetter]:
    """Record a message that was given up; the same message again replaces its record.

    A defect of the message must not prevent its record. A payload that is not JSON is stored as its
    `repr`. A character that PostgreSQL cannot store in text (NUL, a lone surrogate) is stored as
    its escape.
    """
    try:
        payload_text = json.dumps(payload, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        payload_text = json.dumps(repr(payload))
    rows = yield (
        _RECORD_DEAD_LETTER,
        {
            "source": _storable(source),
            "message_id": _storable(message_id),
            "payload_text": payload_text,
            "error_type": f"{type(error).__module__}.{type(error).__qualname__}",
            "error": _storable(str(error))[:MAX_ERROR_CHARACTERS],
            "attempts": attempts,
        },
    )
    return DeadLetter._make(rows[0])


def list_dead_letters(limit: int = 100) -> Operation[tuple[DeadLetter, ...]]:
    """List the messages that were given up, at most `limit`, latest first."""
    rows = yield _SELECT_DEAD_LETTERS, {"limit": limit}
    return tuple(DeadLetter._make(row) for row in rows)


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
