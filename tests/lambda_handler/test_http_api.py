"""The HTTP function behind every service that can invoke it, against a real PostgreSQL."""

import json

import pytest
from behaviour.lambda_events import CORRELATION_IDS, MAKERS, http_api, rest_api, sqs
from behaviour.lambda_face import open_face

from lambda_handler.configuration import FunctionSettings
from lambda_handler.events import UnknownEvent
from poolkit.errors import ConfigurationError

NEW = b'{"title":"A title","body":"gr\xc3\xbc\xc3\x9fe"}'


@pytest.fixture(params=MAKERS)
def source(request):
    """Name each kind of event in turn."""
    return request.param


@pytest.fixture
def make_event(source):
    return MAKERS[source]


@pytest.fixture
def face(migrated_database):
    with open_face(migrated_database.url(driver="")) as face:
        yield face


def header(result, name):
    """Read a header of an answer, whichever of the two forms it has."""
    single = {k.lower(): v for k, v in (result.get("headers") or {}).items()}
    several = {k.lower(): v for k, v in (result.get("multiValueHeaders") or {}).items()}
    return single[name] if single else ",".join(several[name])


@pytest.mark.parametrize("binary", [False, True], ids=["text", "base64"])
def test_an_article_is_created_and_read(face, source, make_event, binary):
    """Each kind of event reaches the endpoints, and the answer has the form of its service.

    Multi-value headers go to a REST API and to a load balancer that uses them itself.
    """
    created = face.invoke(make_event("POST", "/articles", body=NEW, binary=binary))
    assert (created["statusCode"], created["isBase64Encoded"]) == (201, False)
    assert header(created, "location") == "/articles/1"
    read = face.invoke(make_event("GET", "/articles/1"))
    assert read["statusCode"] == 200
    assert header(read, "content-type") == "application/json"
    assert header(read, "etag") == '"1"'
    assert json.loads(read["body"])["body"] == "grüße"
    assert read["body"] == created["body"]
    several = source in ("rest_api", "load_balancer_multi")
    assert ("multiValueHeaders" in read, "headers" in read) == (several, not several)


def test_bytes_that_are_no_utf8_are_malformed(face, make_event):
    """A binary body reaches the check for UTF-8 as it was sent."""
    answer = face.invoke(make_event("POST", "/articles", body=b'{"title":"\xff"}', binary=True))
    assert answer["statusCode"] == 400


def test_query_parameters_are_decoded_once(face, source, make_event):
    """An escaped value is decoded, a plus sign is a space, and a repeated name has two values."""
    answer = face.invoke(make_event("GET", "/articles", [("limit", "1"), ("page_token", "a b%41")]))
    assert answer["statusCode"] == 422
    (error,) = json.loads(answer["body"])["errors"]
    assert error["parameter"] == "page_token"
    assert face.invoke(make_event("GET", "/articles", [("limit", "1")]))["statusCode"] == 200
    answer = face.invoke(make_event("GET", "/articles", [("limit", "1"), ("limit", "2")]))
    # A load balancer without multi-value headers drops the first value itself.
    assert answer["statusCode"] == (200 if source == "load_balancer" else 422)


def test_paths_and_methods_without_an_endpoint_have_their_problems(face, make_event):
    """404 names the path, 405 the methods, and a quotation mark makes a bad id, not a new path."""
    unknown = face.invoke(make_event("GET", "/nowhere"))
    assert unknown["statusCode"] == 404
    assert header(unknown, "content-type") == "application/problem+json"
    assert json.loads(unknown["body"])["detail"] == "there is nothing at /nowhere"
    wrong_method = face.invoke(make_event("DELETE", "/articles/1"))
    assert wrong_method["statusCode"] == 405
    assert header(wrong_method, "allow") == "GET, PATCH"
    assert face.invoke(make_event("GET", '/articles/"'))["statusCode"] == 422


def test_escaped_paths_are_decoded(face):
    """A load balancer and a function URL leave the path as the client sent it."""
    for name in ("load_balancer", "load_balancer_multi", "function_url"):
        assert face.invoke(MAKERS[name]("GET", "/%61rticles"))["statusCode"] == 200


@pytest.mark.parametrize("binary", [False, True])
def test_a_body_over_the_limit_is_413(migrated_database, make_event, binary):
    """The limit counts the body's bytes, not its base64 or its characters."""
    with open_face(migrated_database.url(), LAMBDA_MAX_BODY_BYTES=str(len(NEW))) as face:
        event = make_event("POST", "/articles", body=NEW, binary=binary)
        assert face.invoke(event)["statusCode"] == 201
        event = make_event("POST", "/articles", body=NEW + b" ", binary=binary)
        answer = face.invoke(event)
        assert answer["statusCode"] == 413
        assert f"{len(NEW)} bytes at most" in json.loads(answer["body"])["detail"]
        assert face.invoke(make_event("POST", "/nowhere", body=NEW * 2))["statusCode"] == 413


@pytest.mark.parametrize(
    "body",
    [{"body": {"title": "A title"}}, {"body": "no base64", "isBase64Encoded": True}],
    ids=["object", "base64"],
)
def test_a_body_that_no_service_sends_is_malformed(face, make_event, body):
    """A hand-made event with an object as its body, or with broken base64, is the caller's error."""
    answer = face.invoke({**make_event("POST", "/articles"), **body})
    assert answer["statusCode"] == 400
    assert json.loads(answer["body"])["type"] == "/problems/malformed-json"


@pytest.mark.parametrize("name", ["http_api", "function_url"])
def test_an_event_without_a_stage_is_of_the_default_one(face, name):
    """A hand-made event may leave the stage out."""
    event = MAKERS[name]("GET", "/articles")
    del event["requestContext"]["stage"]
    assert face.invoke(event)["statusCode"] == 200


def test_a_named_stage_and_payload_format_1_are_understood(face):
    """An HTTP API puts its stage before the path; format 1.0 is a REST API's with a version."""
    event = http_api("GET", "/prod/articles")
    event["requestContext"]["stage"] = "prod"
    assert face.invoke(event)["statusCode"] == 200
    assert face.invoke({"version": "1.0", **rest_api("GET", "/articles")})["statusCode"] == 200


@pytest.mark.parametrize(
    "event",
    [{}, [], "text", {"requestContext": {}}, {"requestContext": {"elb": {}}}, sqs("{}")],
    ids=str,
)
def test_an_unknown_event_is_an_error(face, event):
    """The message says what was wanted and what was found."""
    with pytest.raises(UnknownEvent, match=r"wanted an event of an HTTP API .* found an? "):
        face.invoke(event)


def test_a_request_is_logged_under_the_senders_id(face, source, make_event, migrated_database):
    """What the function logs can be found by the id in the service's own log."""
    migrated_database.execute("DROP TABLE articles")
    answer = face.invoke(make_event("GET", "/articles"))
    assert answer["statusCode"] == 500
    assert "articles" not in json.loads(answer["body"])["detail"]
    (line,) = face.logs()
    assert line["correlation_id"] == CORRELATION_IDS[source]
    assert line["level"] == "ERROR"
    assert "UndefinedTable" in line["exception"]


@pytest.mark.parametrize("text", ["0", "-1", "1e3", "1048577", "²"])
def test_a_wrong_body_limit_stops_the_start(migrated_database, text):
    """The message names the variable and what is allowed."""
    with (
        pytest.raises(ConfigurationError, match=r"LAMBDA_MAX_BODY_BYTES .* 1 to 1048576"),
        open_face(migrated_database.url(), LAMBDA_MAX_BODY_BYTES=text),
    ):
        pass


def test_a_misspelt_setting_is_named_and_the_runtime_s_own_are_passed_over():
    """An unknown variable that is close to a known one stops the start."""
    FunctionSettings.from_environ({"LAMBDA_TASK_ROOT": "/var/task"})
    with pytest.raises(ConfigurationError, match=r"mean LAMBDA_MAX_BODY_BYTES\?"):
        FunctionSettings.from_environ({"LAMBDA_MAX_BODY_BYTE": "1000"})


@pytest.mark.parametrize("target", ["web", "worker", "script"])
def test_a_target_that_is_no_function_stops_the_start(migrated_database, target):
    """The message lists the targets that a function can run with."""
    with (
        pytest.raises(ConfigurationError, match="lambda, lambda_warm, lambda_proxy"),
        open_face(migrated_database.url(), POOLKIT_TARGET=target),
    ):
        pass
