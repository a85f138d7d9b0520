"""Operations do the same through a synchronous and an asynchronous driver."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import create_engine, event

from articles.chunking import cut
from articles.contract import ArticleUpdate, NewArticle, NewDocument, PageRequest
from articles.errors import NotFound, StaleVersion
from articles.models import MAX_ID
from articles.operations import (
    MAX_ERROR_CHARACTERS,
    create_article,
    get_article,
    get_document,
    ingest_document,
    list_articles,
    list_dead_letters,
    perform,
    record_dead_letter,
    update_article,
)

TEXT = "".join(f"Sentence number {n} of the document. " for n in range(100))
DOCUMENT = NewDocument(id="report-1", title="Report", text=TEXT)


def test_a_created_article_is_read_back(run):
    """Creating gives the article with its id, version 1 and both its times."""
    created = run(create_article(NewArticle(title="Tïtle 😀", body="Body")))
    assert (created.title, created.body, created.version) == ("Tïtle 😀", "Body", 1)
    assert created.created_at == created.updated_at
    assert created.created_at.utcoffset() is not None
    assert run(get_article(created.id)) == created


@pytest.mark.parametrize("article_id", [1, MAX_ID])
def test_an_unknown_article_is_not_found(run, article_id):
    """Reading and updating what is not there names what is not there."""
    with pytest.raises(NotFound, match=f"there is no article {article_id}"):
        run(get_article(article_id))
    with pytest.raises(NotFound, match=f"there is no article {article_id}"):
        run(update_article(article_id, ArticleUpdate(version=1, title="x")))


def test_an_update_changes_what_it_names_and_raises_the_version(run):
    """What the change leaves out stays as it was."""
    created = run(create_article(NewArticle(title="Title", body="Body")))
    updated = run(update_article(created.id, ArticleUpdate(version=1, body="New")))
    assert (updated.title, updated.body, updated.version) == ("Title", "New", 2)
    assert updated.updated_at > created.updated_at
    assert run(update_article(created.id, ArticleUpdate(version=2, title="T"))).body == "New"


def test_a_stale_update_changes_nothing_and_returns_the_current_version(run):
    """A change made for an earlier version is refused."""
    created = run(create_article(NewArticle(title="Title", body="Body")))
    run(update_article(created.id, ArticleUpdate(version=1, body="First")))
    with pytest.raises(StaleVersion, match="has version 2, not 1") as caught:
        run(update_article(created.id, ArticleUpdate(version=1, body="Second")))
    assert caught.value.current_version == 2
    assert run(get_article(created.id)).body == "First"


def test_paging_gives_every_article_once_newest_first(run):
    """Following the pages to the end meets each article, even if new ones come meanwhile."""
    ids = [run(create_article(NewArticle(title=str(n), body=""))).id for n in range(7)]
    found, page = [], PageRequest(limit=3)
    while page:
        answer = run(list_articles(page))
        found += [article.id for article in answer.items]
        run(create_article(NewArticle(title="late", body="")))
        page = answer.next
    assert found == ids[::-1]


@pytest.mark.parametrize(("count", "more"), [(0, False), (2, False), (3, True)])
def test_a_page_has_a_next_one_only_if_there_are_more(run, count, more):
    """A page that is just filled by the last article is the last page."""
    for n in range(count):
        run(create_article(NewArticle(title=str(n), body="")))
    answer = run(list_articles(PageRequest(limit=2)))
    assert len(answer.items) == min(count, 2)
    assert (answer.next is not None) == more


def test_an_ingested_document_is_stored_with_its_chunks(run):
    """The chunks are those that cutting the text gives, in order."""
    ingested = run(ingest_document(DOCUMENT))
    assert ingested.outcome == "created"
    found = run(get_document(DOCUMENT.id))
    assert found.document == ingested.document
    assert found.chunks == tuple(chunk.text for chunk in cut(TEXT))
    assert ingested.document.chunk_count == len(found.chunks) > 1


def test_ingesting_the_same_again_changes_nothing(run):
    """A second delivery leaves the row and its time as they were."""
    first = run(ingest_document(DOCUMENT))
    second = run(ingest_document(DOCUMENT))
    assert (second.outcome, second.document) == ("unchanged", first.document)


@pytest.mark.parametrize("change", [{"text": "Short."}, {"title": "Other"}, {"text": TEXT * 3}])
def test_ingesting_other_content_replaces_the_document(run, change):
    """Title, chunks, count and digest are those of the new content, with nothing left over."""
    first = run(ingest_document(DOCUMENT))
    changed = DOCUMENT._replace(**change)
    second = run(ingest_document(changed))
    found = run(get_document(DOCUMENT.id))
    assert second.outcome == "replaced"
    assert found.document == second.document
    assert second.document.title == changed.title
    assert second.document.content_sha256 == changed.content_sha256
    assert second.document.ingested_at > first.document.ingested_at
    assert found.chunks == tuple(chunk.text for chunk in cut(changed.text))


def test_an_unknown_document_is_not_found(run):
    """Reading what was never ingested names it."""
    with pytest.raises(NotFound, match="there is no document nothing"):
        run(get_document("nothing"))


@pytest.mark.parametrize(
    ("first_commits", "second", "outcome"),
    [
        (True, DOCUMENT, "unchanged"),
        (True, DOCUMENT._replace(text="Other."), "replaced"),
        (False, DOCUMENT, "created"),
    ],
)
def test_of_two_deliveries_at_once_one_waits_and_one_result_is_left(
    run, migrated_database, first_commits, second, outcome
):
    """The second delivery waits for the first one's transaction, then acts on how it ended."""
    with _open_transaction(migrated_database) as connection, ThreadPoolExecutor(1) as thread:
        perform(connection, ingest_document(DOCUMENT))
        waiting = thread.submit(run, ingest_document(second))
        migrated_database.wait_for_lock()
        if first_commits:
            connection.commit()
        else:
            connection.rollback()
        assert waiting.result(timeout=100).outcome == outcome
    found = run(get_document(DOCUMENT.id))
    assert found.chunks == tuple(chunk.text for chunk in cut(second.text))


def test_a_delivery_that_compares_keeps_others_from_comparing(run, migrated_database):
    """Between comparing and replacing, no other delivery of the document comes in between."""
    run(ingest_document(DOCUMENT))
    changed = DOCUMENT._replace(text="Other.")
    with _open_transaction(migrated_database) as connection, ThreadPoolExecutor(1) as thread:
        first = ingest_document(changed)
        rows = connection.execute(*next(first)).all()
        compare = first.send(rows)
        rows = connection.execute(*compare).all()
        waiting = thread.submit(run, ingest_document(changed))
        migrated_database.wait_for_lock()
        outcome = perform(connection, _rest_of(first, rows)).outcome
        connection.commit()
        assert (outcome, waiting.result(timeout=100).outcome) == ("replaced", "unchanged")


def _rest_of(operation, rows):
    step = operation.send(rows)
    while True:
        rows = yield step
        try:
            step = operation.send(rows)
        except StopIteration as done:
            return done.value


def test_many_deliveries_at_once_leave_one_result(migrated_database):
    """Of eight deliveries in eight threads exactly one creates the document."""
    engine = create_engine(migrated_database.url(), pool_size=8)

    def deliver(_):
        with engine.begin() as connection:
            return perform(connection, ingest_document(DOCUMENT)).outcome

    with ThreadPoolExecutor(8) as threads:
        outcomes = sorted(threads.map(deliver, range(8)))
    engine.dispose()
    assert outcomes == ["created"] + ["unchanged"] * 7


def test_of_two_updates_at_once_one_succeeds(run, migrated_database):
    """The second update of a version waits for the first, then is stale."""
    created = run(create_article(NewArticle(title="Title", body="Body")))
    with _open_transaction(migrated_database) as connection, ThreadPoolExecutor(1) as thread:
        perform(connection, update_article(created.id, ArticleUpdate(version=1, body="First")))
        waiting = thread.submit(run, update_article(created.id, ArticleUpdate(1, body="Second")))
        migrated_database.wait_for_lock()
        connection.commit()
        with pytest.raises(StaleVersion):
            waiting.result(timeout=100)
    assert run(get_article(created.id)).body == "First"


@contextmanager
def _open_transaction(database):
    engine = create_engine(database.url())
    with engine.connect() as connection:
        yield connection
    engine.dispose()


class Endless(list):
    """What JSON cannot hold, though it looks like it."""

    def __init__(self):
        super().__init__()
        self.append(self)


@pytest.mark.parametrize(
    ("payload", "kept"),
    [
        ({"id": "a", "n": [1, None, True, "ä"]}, {"id": "a", "n": [1, None, True, "ä"]}),
        ("nul \0 and lone \ud800", "nul \0 and lone \ud800"),
        (b"\xff\x00raw", repr(b"\xff\x00raw")),
        (float("nan"), "nan"),
        (Endless(), "[[...]]"),
        (None, None),
    ],
    ids=["json", "unstorable-text", "bytes", "nan", "endless", "null"],
)
def test_a_dead_letter_keeps_its_message_whatever_it_is(run, payload, kept):
    """JSON is kept as it is, NUL and lone surrogates included, anything else as its repr."""
    given = {"source": "ingest\0", "message_id": "m\ud800", "error": ValueError("bad")}
    letter = run(record_dead_letter(**given, payload=payload, attempts=3))
    assert (letter.payload, letter.attempts) == (kept, 3)
    assert (letter.source, letter.message_id) == ("ingest\\x00", "m\\ud800")
    assert (letter.error_type, letter.error) == ("builtins.ValueError", "bad")
    assert run(list_dead_letters()) == (letter,)


def test_a_dead_letter_keeps_its_error_within_bounds(run):
    """An error's text is stored escaped, and cut where it is longer than a page can use."""
    error = NotFound("article\0", "x" * MAX_ERROR_CHARACTERS)
    given = {"source": "s", "message_id": "m", "payload": None, "error": error}
    letter = run(record_dead_letter(**given, attempts=1))
    assert letter.error_type == "articles.errors.NotFound"
    assert letter.error.startswith("there is no article\\x00 xxx")
    assert len(letter.error) == MAX_ERROR_CHARACTERS


def test_the_same_message_dead_again_replaces_its_record(run):
    """A source and a message's id name one record, which holds the last failure."""
    letters = []
    for source, n in [("a", 1), ("b", 2), ("a", 3)]:
        given = {"source": source, "message_id": "m", "payload": n, "error": ValueError(str(n))}
        letters.append(run(record_dead_letter(**given, attempts=n)))
    assert letters[2].id == letters[0].id
    assert letters[2].failed_at > letters[0].failed_at
    assert run(list_dead_letters()) == (letters[1], letters[2])
    assert run(list_dead_letters(limit=1)) == (letters[1],)


def test_what_only_reads_runs_in_autocommit_and_in_one_statement(migrated_database):
    """Reading needs no transaction, and one round trip."""
    engine = create_engine(migrated_database.url())
    with engine.begin() as connection:
        article = perform(connection, create_article(NewArticle(title="a", body="b")))
        perform(connection, ingest_document(DOCUMENT))
    statements = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    reads = [get_article(article.id), get_document(DOCUMENT.id), list_articles(PageRequest())]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for operation in reads:
            perform(connection, operation)
    engine.dispose()
    assert len(statements) == len(reads)


def test_statements_are_compiled_once(migrated_database):
    """Running an operation again finds its SQL in the engine's cache."""
    engine = create_engine(migrated_database.url())
    for title in ("a", "b", "c"):
        with engine.begin() as connection:
            article = perform(connection, create_article(NewArticle(title=title, body="")))
            perform(connection, get_article(article.id))
    assert len(engine._compiled_cache) == 2
    engine.dispose()
