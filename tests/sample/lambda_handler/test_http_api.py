"""The articles API behind every service that can invoke its function, against a real PostgreSQL."""

import json

import pytest
from behaviour.lambda_face import open_face
from lambda_events import MAKERS

NEW = b'{"title":"A title","body":"gr\xc3\xbc\xc3\x9fe"}'


@pytest.fixture
def face(migrated_database):
    with open_face(migrated_database.url(driver="")) as face:
        yield face


def header(result, name):
    """Read a header of an answer, whichever of the two forms it has."""
    single = {k.lower(): v for k, v in (result.get("headers") or {}).items()}
    several = {k.lower(): v for k, v in (result.get("multiValueHeaders") or {}).items()}
    return single[name] if single else ",".join(several[name])


@pytest.mark.parametrize("make_event", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("binary", [False, True], ids=["text", "base64"])
def test_an_article_is_created_and_read(face, make_event, binary):
    """Each kind of event reaches the endpoints."""
    created = face.invoke(make_event("POST", "/articles", body=NEW, binary=binary))
    assert (created["statusCode"], created["isBase64Encoded"]) == (201, False)
    assert header(created, "location") == "/articles/1"
    read = face.invoke(make_event("GET", "/articles/1"))
    assert read["statusCode"] == 200
    assert header(read, "content-type") == "application/json"
    assert header(read, "etag") == '"1"'
    assert json.loads(read["body"])["body"] == "grüße"
    assert read["body"] == created["body"]


def test_an_unexpected_error_is_logged_and_not_told(face, migrated_database):
    """500 without the error's text, and one line with it."""
    migrated_database.execute("DROP TABLE articles")
    answer = face.request("GET", "/articles")
    assert answer.status == 500
    assert b"articles" not in answer.body
    (line,) = face.logs()
    assert line["level"] == "ERROR"
    assert "UndefinedTable" in line["exception"]
