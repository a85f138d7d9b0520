"""Operations do the same through a synchronous and an asynchronous driver."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, event, inspect
from sqlalchemy.orm import Session

from articles import service
from articles.chunking import cut
from articles.errors import NotFound, StaleVersion
from articles.models import MAX_ID

TEXT = "".join(f"Sentence number {n} of the document. " for n in range(100))
DOCUMENT = {"id": "report-1", "title": "Report", "text": TEXT}


def test_a_created_article_is_read_back(run):
    """Creating gives the article with its id, version 1 and both its times."""
    created = run(service.create_article, title="Tïtle 😀", body="Body")
    assert (created.title, created.body, created.version) == ("Tïtle 😀", "Body", 1)
    assert created.created_at == created.updated_at
    assert created.created_at.utcoffset() is not None
    read = run(service.get_article, created.id)
    assert (read.title, read.updated_at) == (created.title, created.updated_at)


@pytest.mark.parametrize("article_id", [1, MAX_ID])
def test_an_unknown_article_is_not_found(run, article_id):
    """Reading and updating what is not there names what is not there."""
    with pytest.raises(NotFound, match=f"there is no article {article_id}"):
        run(service.get_article, article_id)
    with pytest.raises(NotFound, match=f"there is no article {article_id}"):
        run(service.update_article, article_id, version=1, title="x")


def test_an_update_changes_what_it_names_and_raises_the_version(run):
    """What the change leaves out stays as it was."""
    created = run(service.create_article, title="Title", body="Body")
    updated = run(service.update_article, created.id, version=1, body="New")
    assert (updated.title, updated.body, updated.version) == ("Title", "New", 2)
    assert updated.updated_at > created.updated_at
    assert run(service.update_article, created.id, version=2, title="T").body == "New"


def test_a_stale_update_changes_nothing_and_returns_the_current_version(run):
    """A change made for an earlier version is refused."""
    created = run(service.create_article, title="Title", body="Body")
    run(service.update_article, created.id, version=1, body="First")
    with pytest.raises(StaleVersion) as refused:
        run(service.update_article, created.id, version=1, body="Second")
    assert (refused.value.expected, refused.value.current) == (1, 2)
    assert run(service.get_article, created.id).body == "First"


def test_of_two_updates_at_once_one_succeeds(migrated_database):
    """Both read version 1; the second waits for the first, and then finds version 2."""
    engine = create_engine(migrated_database.url("psycopg2"))

    def update(title: str) -> int | None:
        try:
            with Session(engine) as session, session.begin():
                return service.update_article(session, article_id, version=1, title=title).version
        except StaleVersion:
            return None

    with Session(engine) as session, session.begin():
        article_id = service.create_article(session, title="Title", body="Body").id
    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(update, ("a", "b")), key=str) == [2, None]
    engine.dispose()


def test_pages_are_newest_first_and_hold_no_bodies(run):
    """`before` continues where a page ended; bodies stay in the database."""
    ids = [run(service.create_article, title=str(n), body="Body").id for n in range(5)]
    first = run(service.list_articles, limit=3)
    assert [article.id for article in first] == ids[:1:-1]
    assert inspect(first[0]).unloaded == {"body"}
    rest = run(service.list_articles, limit=3, before=first[-1].id)
    assert [article.id for article in rest] == ids[1::-1]


def test_a_document_is_stored_with_its_chunks(run):
    """The chunks are those of the text, in order."""
    document, is_new = run(service.ingest_document, **DOCUMENT)
    assert is_new
    stored = run(service.get_document, "report-1")
    assert [chunk.text for chunk in stored.chunks] == cut(TEXT)
    assert stored.chunk_count == len(stored.chunks) > 1
    assert stored.content_sha256 == document.content_sha256


def test_a_document_ingested_again_changes_nothing(run):
    """Not even the time of ingestion."""
    first, _ = run(service.ingest_document, **DOCUMENT)
    again, is_new = run(service.ingest_document, **DOCUMENT)
    assert not is_new
    assert again.ingested_at == first.ingested_at


def test_another_text_replaces_the_document(run):
    """Its chunks and its time of ingestion are new, and no chunk of the old text is left."""
    first, _ = run(service.ingest_document, **DOCUMENT)
    replaced, is_new = run(service.ingest_document, **DOCUMENT | {"text": "Short.", "title": "New"})
    assert not is_new
    assert replaced.ingested_at > first.ingested_at
    stored = run(service.get_document, "report-1")
    assert (stored.title, "".join(chunk.text for chunk in stored.chunks)) == ("New", "Short.")
    assert stored.chunk_count == len(stored.chunks)


def test_an_unknown_document_is_not_found(run):
    """The error names the document."""
    with pytest.raises(NotFound, match="there is no document none"):
        run(service.get_document, "none")


def test_of_deliveries_at_once_one_inserts(migrated_database):
    """Eight deliveries of one document leave one document and its chunks once."""
    engine = create_engine(migrated_database.url("psycopg2"), pool_size=8)

    def ingest(_: int) -> bool:
        with Session(engine) as session, session.begin():
            return service.ingest_document(session, **DOCUMENT)[1]

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(ingest, range(8))) == [False] * 7 + [True]
    with Session(engine) as session:
        assert len(service.get_document(session, "report-1").chunks) == len(cut(TEXT))
    engine.dispose()


@pytest.mark.parametrize(
    "read",
    [
        lambda session: service.get_document(session, "report-1"),
        lambda session: service.get_article(session, 1),
        service.list_articles,
    ],
    ids=["get_document", "get_article", "list_articles"],
)
def test_reading_is_one_statement(migrated_database, read):
    """So it is consistent even in autocommit."""
    engine = create_engine(migrated_database.url("psycopg2"))
    with Session(engine) as session, session.begin():
        service.create_article(session, title="Title", body="Body")
        service.ingest_document(session, **DOCUMENT)
    statements = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    with Session(engine) as session:
        read(session)
    assert len(statements) == 1
    engine.dispose()
