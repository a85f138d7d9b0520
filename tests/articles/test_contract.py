"""What comes in is checked in one place, and what goes out looks the same everywhere."""

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from articles.contract import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    ArticleUpdate,
    NewArticle,
    NewDocument,
    Page,
    PageRequest,
    article_id_from,
    article_json,
    document_id_from,
    document_json,
    dump,
    page_json,
)
from articles.errors import InvalidInput
from articles.models import MAX_ID, MAX_TEXT_CHARACTERS, Article, ArticleSummary, Document
from articles.validation import MAX_BODY_BYTES, MAX_ERRORS

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_bodies_become_what_they_describe():
    """Each kind of body is read into its record, absent members of a change into None."""
    assert NewArticle.from_json(b'{"title": "a", "body": ""}') == NewArticle("a", "")
    assert ArticleUpdate.from_json(b'{"version": 1, "body": "b"}') == ArticleUpdate(1, None, "b")
    document = NewDocument.from_json(b'{"id": "a", "title": "b", "text": "\\u00e9"}')
    assert document == NewDocument("a", "b", "é")
    assert document.content_sha256 == hashlib.sha256("é".encode()).hexdigest()


def test_a_document_that_is_decoded_already_is_checked_alike():
    """A queue's own decoder may produce anything; only a sound object passes."""
    sound = {"id": "a", "title": "b", "text": "c"}
    assert NewDocument.from_object(sound) == NewDocument("a", "b", "c")
    for broken in [None, "a", [sound], {**sound, "text": b"c"}, {**sound, 1: 2}]:
        with pytest.raises(InvalidInput):
            NewDocument.from_object(broken)


def test_a_broken_body_is_refused_with_all_its_errors():
    """The exception holds every error and its message names every place."""
    with pytest.raises(InvalidInput, match="#/id: is required; #/title: must be a string") as e:
        NewDocument.from_json(b'{"title": 1, "text": "x"}')
    assert [error.pointer for error in e.value.errors] == ["#/id", "#/title"]


def test_the_longest_text_fits_into_the_largest_body():
    """A document of the most characters that may be sent, of four bytes each, is not too large."""
    raw = dump({"id": "a", "title": "b", "text": "😀" * MAX_TEXT_CHARACTERS})
    assert len(raw) <= MAX_BODY_BYTES
    assert len(NewDocument.from_json(raw).text) == MAX_TEXT_CHARACTERS


@pytest.mark.parametrize("text", ["1", "42", str(MAX_ID)])
def test_an_article_id_is_read_from_a_path(text):
    """Any id that the database can give is accepted."""
    assert article_id_from(text) == int(text)


@pytest.mark.parametrize(
    "text",
    [
        *("0", "-1", "+1", "01", " 1", "1 ", "1\n", "1.0", "1_0", "x", "", "\uff11"),
        *(str(MAX_ID + 1), "9" * 5_000),
    ],
)
def test_an_article_id_that_cannot_be_is_refused(text):
    """Only one way of writing a number is accepted, and only numbers in range."""
    message = f"article_id: must be a whole number from 1 to {MAX_ID}"
    with pytest.raises(InvalidInput, match=message):
        article_id_from(text)


@pytest.mark.parametrize("text", ["a", "A.b_c~d-9", "7" * 128])
def test_a_document_id_is_read_from_a_path(text):
    """Ids are made of what a URL carries unescaped."""
    assert document_id_from(text) == text


@pytest.mark.parametrize(
    "text", ["", ".hidden", "a/b", "a b", "a\n", "ä", "a\0", "a\ud800", "x" * 129]
)
def test_a_document_id_that_cannot_be_is_refused(text):
    """An id that could not be sent cannot be asked for either."""
    with pytest.raises(InvalidInput, match="document_id: "):
        document_id_from(text)


def test_a_query_without_parameters_asks_for_the_newest_articles():
    """Limit and place have defaults."""
    assert PageRequest.from_query({}) == PageRequest(limit=DEFAULT_LIMIT, newest=MAX_ID)


@given(st.integers(1, MAX_LIMIT), st.integers(0, MAX_ID))
def test_a_page_token_leads_back_to_its_place(limit, newest):
    """A token is read back whatever the limit of the next request is."""
    query = {"limit": [str(limit)], "page_token": [PageRequest(5, newest).token]}
    assert PageRequest.from_query(query) == PageRequest(limit, newest)


@given(st.integers(0, MAX_ID), st.integers(0, 15), st.characters(codec="utf-8"))
def test_a_damaged_page_token_is_refused(newest, index, character):
    """A token with any character changed does not lead elsewhere."""
    token = PageRequest(newest=newest).token
    damaged = token[:index] + character + token[index + 1 :]
    if damaged != token:
        with pytest.raises(InvalidInput, match="page_token: must be given once, as next_page"):
            PageRequest.from_query({"page_token": [damaged]})


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ({"limit": ["0"]}, "limit"),
        ({"limit": ["101"]}, "limit"),
        ({"limit": ["-1"]}, "limit"),
        ({"limit": ["ten"]}, "limit"),
        ({"limit": ["\uff11"]}, "limit"),
        ({"limit": [""]}, "limit"),
        ({"limit": ["1", "2"]}, "limit"),
        ({"page_token": [""]}, "page_token"),
        ({"page_token": ["x" * 16]}, "page_token"),
        ({"page_token": [PageRequest().token] * 2}, "page_token"),
        ({"page_token": [PageRequest().token + "A"]}, "page_token"),
        ({"page_token": [PageRequest().token + "=="]}, "page_token"),
        ({"pagetoken": ["x"]}, "pagetoken"),
    ],
)
def test_a_query_that_breaks_the_contract_is_refused(query, parameter):
    """The error names the parameter; a misspelt one is not passed over."""
    with pytest.raises(InvalidInput) as caught:
        PageRequest.from_query(query)
    assert [error.parameter for error in caught.value.errors] == [parameter]


def test_an_answer_does_not_grow_with_the_parameters_sent():
    """Of many unknown parameters only the first are listed."""
    with pytest.raises(InvalidInput) as caught:
        PageRequest.from_query({f"p{n}": ["x"] for n in range(1_000)})
    assert len(caught.value.errors) == MAX_ERRORS


def test_times_are_utc_whatever_time_zone_the_session_has():
    """Moments are RFC 3339 with microseconds and Z, so that drivers cannot differ."""
    there = MOMENT.astimezone(timezone(timedelta(hours=2)))
    content = article_json(Article(1, "a", "b", 1, there, there))
    assert content["created_at"] == "2026-01-02T03:04:05.000000Z"


def test_a_page_lists_summaries_and_the_next_token():
    """The last page's token is null; no item has a body."""
    summary = ArticleSummary(1, "a", 1, MOMENT, MOMENT)
    following = PageRequest(newest=0)
    assert page_json(Page((summary,), following))["next_page_token"] == following.token
    last = page_json(Page((summary,), None))
    assert last["next_page_token"] is None
    assert "body" not in last["items"][0]


def test_a_document_has_its_chunks_only_where_they_are_given():
    """What ingesting answers does not repeat the text."""
    document = Document("a", "b", "c", 1, MOMENT)
    assert "chunks" not in document_json(document)
    assert document_json(document, ("x",))["chunks"] == ["x"]


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_what_is_dumped_is_compact_json_in_utf_8(content):
    """It reads back as it was, lone surrogates too, with no white space between tokens."""
    assert json.loads(dump(content).decode("utf-8")) == content
    assert dump({"ä": [1, "\ud800"]}) == '{"ä":[1,"\\ud800"]}'.encode()
