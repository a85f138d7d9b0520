"""The operations of the domain: functions that take a session.

The caller begins and ends the transaction. Functions that read send one statement each, so they may
run in autocommit. Asynchronous code uses the same functions through SQLAlchemy's bridge:

    article = await session.run_sync(service.get_article, 1)
"""

from collections.abc import Callable, Sequence
from hashlib import sha256

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session, defer, joinedload

from articles.chunking import cut
from articles.errors import NotFound, PreconditionFailed, StaleVersion
from articles.models import Article, Chunk, Document


def list_articles(
    session: Session, *, limit: int = 20, before: int | None = None
) -> Sequence[Article]:
    """Return at most `limit` articles, newest first, without their bodies.

    Pages follow the primary key: each costs the same, and articles that are written meanwhile
    neither repeat nor hide one.

    With `before`, the id of an article, only older ones are returned.
    """
    newest_first = select(Article).options(defer(Article.body, raiseload=True))
    if before is not None:
        newest_first = newest_first.where(Article.id < before)
    return session.scalars(newest_first.order_by(Article.id.desc()).limit(limit)).all()


def create_article(session: Session, *, title: str, body: str) -> Article:
    """Insert an article."""
    article = Article(title=title, body=body)
    session.add(article)
    session.flush()
    return article


def get_article(session: Session, article_id: int) -> Article:
    """Return an article.

    Raises:
        NotFound: there is none with this id.
    """
    article = session.get(Article, article_id)
    if article is None:
        raise NotFound("article", article_id)
    return article


def update_article(
    session: Session,
    article_id: int,
    *,
    version: int,
    title: str | None = None,
    body: str | None = None,
    precondition: Callable[[int], bool] | None = None,
) -> Article:
    """Change an article, if it still has the version that the change was made for.

    The UPDATE itself compares the version. So of two changes made for one version exactly one
    succeeds, and no lock is held between reading and writing.

    A `precondition` is called with a version, and returns whether the article may have it. It goes
    before the comparison with `version`.

    Raises:
        NotFound: there is none with this id.
        PreconditionFailed: it has a version that the precondition excludes.
        StaleVersion: it has another version by now.
    """
    # Where the precondition excludes the version that the UPDATE compares, it cannot succeed.
    if precondition is None or precondition(version):
        changed: Article | None = session.scalar(
            update(Article)
            .where(Article.id == article_id, Article.version == version)
            .values(
                title=func.coalesce(title, Article.title),
                body=func.coalesce(body, Article.body),
                version=Article.version + 1,
                updated_at=func.now(),
            )
            .returning(Article)
        )
        if changed is not None:
            return changed
    current = session.scalar(select(Article.version).where(Article.id == article_id))
    if current is None:
        raise NotFound("article", article_id)
    if precondition is not None and not precondition(current):
        raise PreconditionFailed(article_id, current)
    raise StaleVersion(article_id, version, current)


def ingest_document(
    session: Session,
    *,
    id: str,  # noqa: A002  (the document's own word)
    title: str,
    text: str,
) -> tuple[Document, bool]:
    """Store a document cut into chunks, and return it, and whether its id is new.

    Doing it again changes nothing. A document whose title or text differs from the stored one
    replaces it as a whole. Of deliveries of one id at the same time, one inserts the row; the
    others wait for its transaction to end, and then find the row.
    """
    texts = cut(text)
    values = {
        "title": title,
        "content_sha256": sha256(text.encode()).hexdigest(),
        "chunk_count": len(texts),
    }
    document = session.scalar(
        postgresql.insert(Document)
        .values(id=id, **values)
        .on_conflict_do_nothing(index_elements=[Document.id])
        .returning(Document)
    )
    is_new = document is not None
    if document is None:
        document = session.get_one(Document, id, with_for_update=True)
        if all(getattr(document, name) == value for name, value in values.items()):
            return document, False
        for name, value in values.items():
            setattr(document, name, value)
        document.ingested_at = func.now()
        session.execute(delete(Chunk).where(Chunk.document_id == id))
        session.flush()
        session.refresh(document)
    session.execute(
        insert(Chunk),
        [
            {"document_id": id, "position": position, "text": text}
            for position, text in enumerate(texts)
        ],
    )
    return document, is_new


def get_document(session: Session, document_id: str) -> Document:
    """Return a document with its chunks, read in one statement so that they belong together.

    Raises:
        NotFound: there is none with this id.
    """
    document = (
        session.scalars(
            select(Document)
            .where(Document.id == document_id)
            .options(joinedload(Document.chunks))
            # A session that has ingested the document knows it without chunks.
            .execution_options(populate_existing=True)
        )
        .unique()
        .one_or_none()
    )
    if document is None:
        raise NotFound("document", document_id)
    return document
