"""The endpoints answer through any driver, and as their description says."""

import json
import re

import jsonschema
import pytest

from articles.api import API, Request, Response
from articles.errors import ArticlesError, InvalidInput, MalformedJson, TooLarge
from articles.problems import problem_of
from articles.validation import MAX_BODY_BYTES

ENDPOINTS = {endpoint.name: endpoint for endpoint in API}
ARTICLE = {"title": "Title", "body": "Body"}
DOCUMENT = {"id": "report-1", "title": "Report", "text": "One. Two."}


@pytest.fixture
def call(run):
    """Call an endpoint by name, and hold each answer against its published schema."""

    def call(name, body=None, *, query=None, **path_parameters) -> Response:
        endpoint = ENDPOINTS[name]
        raw = b"" if body is None else json.dumps(body).encode()
        response = run(endpoint.handle(Request(path_parameters, query or {}, raw)))
        jsonschema.validate(json.loads(response.body), endpoint.responses[response.status])
        return response

    return call


def test_an_article_is_created_and_read_at_its_location(call):
    """Creating answers 201 with Location and ETag; reading answers the same content."""
    created = call("create_article", ARTICLE)
    assert created.status == 201
    assert created.headers == {"ETag": '"1"', "Location": f"/articles/{created.content['id']}"}
    read = call("get_article", article_id=str(created.content["id"]))
    assert (read.status, read.content, read.headers) == (200, created.content, {"ETag": '"1"'})


def test_an_article_is_updated(call):
    """Updating answers 200 with the new version in body and ETag."""
    article_id = str(call("create_article", ARTICLE).content["id"])
    updated = call("update_article", {"version": 1, "title": "New"}, article_id=article_id)
    assert (updated.status, updated.content["version"]) == (200, 2)
    assert updated.headers == {"ETag": '"2"'}


def test_articles_are_listed_page_by_page(call):
    """The next page's token leads on, until it is null."""
    for _ in range(3):
        call("create_article", ARTICLE)
    first = call("list_articles", query={"limit": ["2"]}).content
    token = first["next_page_token"]
    second = call("list_articles", query={"limit": ["2"], "page_token": [token]}).content
    assert [len(first["items"]), len(second["items"])] == [2, 1]
    assert second["next_page_token"] is None


def test_a_document_is_ingested_once(call):
    """A new id answers 201 with Location; a known one 200, changed or not."""
    created = call("ingest_document", DOCUMENT)
    again = call("ingest_document", DOCUMENT)
    changed = call("ingest_document", {**DOCUMENT, "text": "Other."})
    assert [created.status, again.status, changed.status] == [201, 200, 200]
    assert created.headers == {"Location": "/documents/report-1"}
    assert again.content == created.content
    read = call("get_document", document_id="report-1")
    assert read.content == {**changed.content, "chunks": ["Other."]}


@pytest.mark.parametrize(
    ("name", "request_", "error"),
    [
        ("list_articles", Request(query={"limit": ["0"]}), InvalidInput),
        ("create_article", Request(body=b"{"), MalformedJson),
        ("create_article", Request(body=b" " * (MAX_BODY_BYTES + 1)), TooLarge),
        ("get_article", Request({"article_id": "x"}), InvalidInput),
        ("update_article", Request({"article_id": "1"}, body=b"{}"), InvalidInput),
        (
            "update_article",
            Request({"article_id": "0"}, body=b'{"version":1,"body":""}'),
            InvalidInput,
        ),
        ("ingest_document", Request(body=b"{}"), InvalidInput),
        ("get_document", Request({"document_id": "a b"}), InvalidInput),
    ],
)
def test_bad_input_is_refused_before_a_connection_is_needed(name, request_, error):
    """`handle` itself raises, and the endpoint's description lists the problem's status."""
    with pytest.raises(error) as caught:
        ENDPOINTS[name].handle(request_)
    assert problem_of(caught.value).status in ENDPOINTS[name].problems


@pytest.mark.parametrize(
    ("name", "parameters", "body", "status"),
    [
        ("get_article", {"article_id": "1"}, None, 404),
        ("update_article", {"article_id": "1"}, {"version": 1, "body": ""}, 404),
        ("get_document", {"document_id": "a"}, None, 404),
    ],
)
def test_what_is_not_there_is_a_problem_that_the_description_lists(
    call, name, parameters, body, status
):
    """Errors that only the database can tell come out of the operation."""
    with pytest.raises(ArticlesError) as caught:
        call(name, body, **parameters)
    assert problem_of(caught.value).status == status
    assert status in ENDPOINTS[name].problems


def test_a_stale_update_is_a_conflict(call):
    """The problem tells the current version."""
    article_id = str(call("create_article", ARTICLE).content["id"])
    call("update_article", {"version": 1, "title": "New"}, article_id=article_id)
    with pytest.raises(ArticlesError) as caught:
        call("update_article", {"version": 1, "title": "Late"}, article_id=article_id)
    problem = problem_of(caught.value)
    assert (problem.status, problem.extensions) == (409, {"current_version": 2})


@pytest.mark.parametrize("endpoint", API, ids=lambda endpoint: endpoint.name)
def test_an_endpoint_describes_its_parameters(endpoint):
    """Each parameter of the path template has a schema, and only a writing one has a body."""
    assert set(re.findall(r"{(\w+)}", endpoint.path)) == set(endpoint.path_parameters)
    assert endpoint.safe == (endpoint.request_schema is None)


def test_endpoints_are_distinct():
    """No two share a name or a method and path."""
    assert len({endpoint.name for endpoint in API}) == len(API)
    assert len({(endpoint.method, endpoint.path) for endpoint in API}) == len(API)
