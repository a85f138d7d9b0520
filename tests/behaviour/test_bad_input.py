"""Bad input: a clear problem document each, and nothing written."""

import json

import pytest
from behaviour.face import problem_of

ARTICLE = {"title": "Title", "body": "Body"}
TOO_MUCH = b'{"title": "x", "body": "' + b"x" * (10 * 1024 * 1024) + b'"}'

# No article's, or no numbers at all.
NO_NUMBERS = ("0", "-1", "9223372036854775808", "1" * 100, "1.0", "x", "%00", "1e3", "%D9%A3", "01")
MALFORMED = {
    "nothing": b"",
    "half an object": b'{"title": "x"',
    "invalid UTF-8": b'{"title": "\xff", "body": ""}',
    "a name twice": b'{"title": "x", "title": "y", "body": ""}',
    "NaN": b'{"title": NaN, "body": ""}',
    "a byte order mark": b'\xef\xbb\xbf{"title": "x", "body": ""}',
    "too deep": b"[" * 100_000,
    "too many digits": b'{"title": ' + b"1" * 5_000 + b"}",
}
INVALID = {
    "an array": ([], "#"),
    "a missing member": ({"title": "x"}, "#/body"),
    "an unknown member": ({**ARTICLE, "color": "red"}, "#/color"),
    "a wrong type": ({**ARTICLE, "title": 7}, "#/title"),
    "null": ({**ARTICLE, "body": None}, "#/body"),
    "NUL": ({**ARTICLE, "body": "a\0b"}, "#/body"),
    "a lone surrogate": ({**ARTICLE, "title": "\ud800"}, "#/title"),
    "blank": ({**ARTICLE, "title": "  "}, "#/title"),
    "too long": ({**ARTICLE, "title": "x" * 201}, "#/title"),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_json_is_400(shared_face, body):
    """What is not JSON answers 400 as malformed, and nothing is stored."""
    problem = problem_of(shared_face.request("POST", "/articles", body=body), 400)
    assert problem["type"] == "/problems/malformed-json"
    assert shared_face.request("GET", "/articles").json()["items"] == []


@pytest.mark.parametrize(("body", "pointer"), INVALID.values(), ids=INVALID)
def test_json_that_breaks_the_schema_is_422(shared_face, body, pointer):
    """What is JSON but no article answers 422, and points to the member."""
    problem = problem_of(shared_face.request("POST", "/articles", body=body), 422)
    assert problem["type"] == "/problems/invalid-input"
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert shared_face.request("GET", "/articles").json()["items"] == []


@pytest.mark.parametrize("path", ["/articles", "/documents"])
def test_a_body_of_10_mib_is_413(shared_face, path):
    """A body over the limit answers 413, which names the limit."""
    problem = problem_of(shared_face.request("POST", path, body=TOO_MUCH), 413)
    assert "1048576 bytes" in problem["detail"]


@pytest.mark.parametrize(
    ("path", "query", "named"),
    [
        *((f"/articles/{number}", {}, ["article_id"]) for number in NO_NUMBERS),
        *((f"/documents/{name}", {}, ["document_id"]) for name in ("-x", "x" * 129, "a b")),
        ("/documents/%00", {}, ["document_id", "document_id"]),  # NUL breaks two rules
        ("/articles", {"limit": "0"}, ["limit"]),
        ("/articles", {"limit": "101"}, ["limit"]),
        ("/articles", {"limit": "ten"}, ["limit"]),
        ("/articles", {"limit": ""}, ["limit"]),
        ("/articles", {"limit": ["1", "2"]}, ["limit"]),
        ("/articles", {"offset": "10"}, ["offset"]),
        ("/articles", {"page_token": "AAAAAAAAAAAAAAAA"}, ["page_token"]),
        ("/articles", {"page_token": ""}, ["page_token"]),
        ("/articles", {"page_token": "not a token"}, ["page_token"]),
    ],
)
def test_a_bad_parameter_is_422(shared_face, path, query, named):
    """One of path or query: unknown, given twice, out of range or damaged. It is named."""
    problem = problem_of(shared_face.request("GET", path, query=query), 422)
    assert [error["parameter"] for error in problem["errors"]] == named


def test_a_page_token_that_was_tampered_with_is_422(face):
    """A real token with any single character changed is refused."""
    for _ in range(2):
        face.request("POST", "/articles", body=ARTICLE)
    token = face.request("GET", "/articles", query={"limit": "1"}).json()["next_page_token"]
    for position, character in enumerate(token):
        changed = token[:position] + ("A" if character != "A" else "B") + token[position + 1 :]
        answer = face.request("GET", "/articles", query={"page_token": changed})
        problem_of(answer, 422)


@pytest.mark.parametrize("path", ["/", "/nothing", "/articles/", "/articles/1/2", "/documents"])
def test_a_path_that_is_not_there_is_404(shared_face, path):
    """An unknown path answers 404, a trailing slash included; it is not redirected."""
    method = "GET" if path != "/documents" else "POST"
    answer = shared_face.request(method, path if path != "/documents" else "/documents/")
    problem_of(answer, 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/articles", "GET, POST"),
        ("PUT", "/articles/1", "GET, PATCH"),
        ("GET", "/documents", "POST"),
        ("POST", "/documents/x", "GET"),
    ],
)
def test_a_method_that_is_not_there_is_405(shared_face, method, path, allowed):
    """A wrong method answers 405, and Allow lists all that the path has."""
    answer = shared_face.request(method, path, body=ARTICLE if method != "GET" else None)
    problem_of(answer, 405)
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "nonsense", ""])
def test_a_body_is_json_whatever_its_content_type_says(face, content_type):
    """The API knows one format, so a wrong label does no harm."""
    body = json.dumps(ARTICLE).encode()
    answer = face.request("POST", "/articles", body=body, headers={"content-type": content_type})
    assert answer.status == 201


def test_a_body_that_is_not_json_is_400_though_it_says_json(shared_face):
    """A form, labelled as JSON or not, is not JSON."""
    for content_type in ("application/json", "application/x-www-form-urlencoded"):
        headers = {"content-type": content_type}
        answer = shared_face.request("POST", "/articles", body=b"title=x&body=y", headers=headers)
        problem_of(answer, 400)
