"""Bad input: a clear problem document each, and nothing written."""

import json
from urllib.parse import quote

import pytest
from behaviour.face import problem_of

ARTICLE = {"title": "Title", "body": "Body"}
TOO_MUCH = b'{"title": "x", "body": "' + b"x" * (10 * 1024 * 1024) + b'"}'

# No article's, or no numbers at all.
NO_NUMBERS = ("0", "-1", "9223372036854775808", "1" * 100, "x", "%00", "1.5")
MALFORMED = {
    "half an object": b'{"title": "x"',
    "no JSON": b"title=x&body=y",
    "invalid UTF-8": b'{"title": "\xff", "body": ""}',
}
# Whether a parser refuses these, or a schema does, is a framework's own business.
UNUSABLE = {
    "nothing": b"",
    "too deep": b"[" * 100_000,
    "a lone surrogate": b'{"title": "\\ud800", "body": ""}',
    "NaN": b'{"title": NaN, "body": ""}',
    "too many digits": b'{"title": ' + b"1" * 5_000 + b"}",
    "a string": b'"title"',
}
INVALID = {
    "an array": ([], "#"),
    "a missing member": ({"title": "x"}, "#/body"),
    "an unknown member": ({**ARTICLE, "color": "red"}, "#/color"),
    "a wrong type": ({**ARTICLE, "title": 7}, "#/title"),
    "null": ({**ARTICLE, "body": None}, "#/body"),
    "NUL": ({**ARTICLE, "body": "a\0b"}, "#/body"),
    "blank": ({**ARTICLE, "title": "  "}, "#/title"),
    "too long": ({**ARTICLE, "title": "x" * 201}, "#/title"),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_json_is_400(shared_face, body):
    """What is not JSON answers 400, and nothing is stored."""
    problem_of(shared_face.request("POST", "/articles", body=body), 400)
    assert shared_face.request("GET", "/articles").json()["items"] == []


@pytest.mark.parametrize("body", UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_hardly_json_is_the_client_s_error(shared_face, body):
    """It answers 400 or 422, never 500, and nothing is stored."""
    answer = shared_face.request("POST", "/articles", body=body)
    assert answer.status in {400, 422}
    problem_of(answer, answer.status)
    assert shared_face.request("GET", "/articles").json()["items"] == []


@pytest.mark.parametrize(("body", "pointer"), INVALID.values(), ids=INVALID)
def test_json_that_breaks_the_schema_is_422(shared_face, body, pointer):
    """What is JSON but no article answers 422, and points to the member."""
    problem = problem_of(shared_face.request("POST", "/articles", body=body), 422)
    assert problem["type"] == "/problems/invalid-input"
    # One framework reports the first error, another one all of them.
    assert pointer in [error["pointer"] for error in problem["errors"]]
    assert shared_face.request("GET", "/articles").json()["items"] == []


@pytest.mark.parametrize("path", ["/articles", "/documents"])
def test_a_body_of_10_mib_is_413(shared_face, path):
    """A body over the limit answers 413, which names the limit."""
    problem = problem_of(shared_face.request("POST", path, body=TOO_MUCH), 413)
    assert "1048576 bytes" in problem["detail"]


@pytest.mark.parametrize(
    ("path", "query", "named"),
    [
        *((f"/articles/{number}", {}, "article_id") for number in NO_NUMBERS),
        *((f"/documents/{name}", {}, "document_id") for name in ("-x", "x" * 129, "a b", "%00")),
        ("/articles", {"limit": "0"}, "limit"),
        ("/articles", {"limit": "101"}, "limit"),
        ("/articles", {"limit": "ten"}, "limit"),
        ("/articles", {"limit": ""}, "limit"),
        ("/articles", {"before": "0"}, "before"),
        ("/articles", {"before": "ten"}, "before"),
        ("/articles", {"before": "9223372036854775808"}, "before"),
    ],
)
def test_a_bad_parameter_is_422(shared_face, path, query, named):
    """One of path or query that is out of range, or no number, is named."""
    problem = problem_of(shared_face.request("GET", path, query=query), 422)
    assert [error["parameter"] for error in problem["errors"]] == [named]


def test_an_unknown_parameter_is_ignored(shared_face):
    """A query may carry what belongs to others, such as a campaign's name."""
    assert shared_face.request("GET", "/articles", query={"utm_source": "x"}).status == 200


def test_an_answer_repeats_no_value_of_the_input(shared_face):
    """What a client sent stays out of the problem document, and a lone surrogate breaks nothing."""
    for name in ("hint", "\ud800"):
        secret = {"title": 7, "body": "hunter2\0", name: "hunter2"}
        answer = shared_face.request("POST", "/articles", body=secret)
        problem_of(answer, answer.status)
        assert answer.status in {400, 422}
        assert b"hunter2" not in answer.body


@pytest.mark.parametrize("path", ["/", "/nothing", "/articles/", "/articles/1/2", "/documents"])
def test_a_path_that_is_not_there_is_404(shared_face, path):
    """An unknown path answers 404, a trailing slash included; it is not redirected."""
    method = "GET" if path != "/documents" else "POST"
    answer = shared_face.request(method, path if path != "/documents" else "/documents/")
    problem_of(answer, 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/articles", "GET, HEAD, POST"),
        ("PUT", "/articles/1", "GET, HEAD, PATCH"),
        ("GET", "/documents", "POST"),
        ("POST", "/documents/x", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_there_is_405(shared_face, method, path, allowed):
    """A wrong method answers 405, and Allow lists all that the path has."""
    answer = shared_face.request(method, path, body=ARTICLE if method != "GET" else None)
    problem_of(answer, 405)
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    "content_type",
    [
        *(None, "", "nonsense", "text/plain", "text/plain; charset=utf-8", "text/json"),
        *("application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
        *("application/jsonp", "application/xml", "text/plain, application/json"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_body_that_does_not_say_that_it_is_json_is_415(shared_face, method, content_type):
    """A page of another site can send such a body with the user's cookies, but not one of JSON."""
    answer = shared_face.request(
        method,
        "/articles" if method == "POST" else "/articles/1",
        body={**ARTICLE, "version": 1} if method == "PATCH" else ARTICLE,
        headers={"content-type": content_type},
    )
    problem_of(answer, 415)
    assert shared_face.request("GET", "/articles").json()["items"] == []


@pytest.mark.parametrize("query", ["&".join(f"q{n}" for n in range(9_000)), "x=" + "y" * 60_000])
def test_a_long_query_is_414_with_a_short_answer(shared_face, query):
    """Neither many parameters nor a long one make the answer long."""
    answer = shared_face.request("GET", f"/articles?{query}")
    problem_of(answer, 414)
    assert len(answer.body) < 1_000


@pytest.mark.parametrize(
    "members", [{f"m{n}": n for n in range(60_000)}, {f"{n}" + "ü😀" * 9_000: 0 for n in range(9)}]
)
@pytest.mark.parametrize("path", ["/articles", "/documents"])
def test_many_or_long_unknown_members_have_a_short_answer(shared_face, path, members):
    """A body of a megabyte with a mistake every few bytes has a few kilobytes of answer."""
    body = json.dumps(members, ensure_ascii=False).encode()
    answer = shared_face.request("POST", path, body=body)
    problem_of(answer, 422)
    assert len(answer.body) < 10_000


@pytest.mark.parametrize("version", [2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**400, 1e300, 1.5, -1])
def test_a_version_that_no_article_has_is_422(shared_face, version):
    """A number that the column cannot hold or raise never reaches the database."""
    change = {"version": version, "title": "x"}
    problem_of(shared_face.request("PATCH", "/articles/1", body=change), 422)


@pytest.mark.parametrize("number", ["1.0", "1e0", "+1", "01", " 1", "1_0", "\u0661", "0x1"])
def test_a_number_in_a_url_has_one_spelling(shared_face, number):
    """Another one is refused, in the path and in the query, so that a thing has one URL."""
    problem_of(shared_face.request("GET", f"/articles/{quote(number)}"), 422)
    for name in ("limit", "before"):
        problem_of(shared_face.request("GET", "/articles", query={name: number}), 422)
