"""One set of routes behind every service that can invoke an HTTP function."""

import json
from typing import Annotated

import pytest
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.api_gateway import CORSConfig
from aws_lambda_powertools.event_handler.exceptions import BadRequestError, NotFoundError
from aws_lambda_powertools.event_handler.openapi.params import Query
from lambda_events import MAKERS, http_api, new_context, rest_api, sqs
from pydantic import BaseModel, Field
from sqlalchemy import text

from poolkit.errors import PoolExhausted, UnknownEvent
from poolkit.powertools import Resolver, problem_response
from poolkit.problems import status_problem


@pytest.fixture(params=MAKERS)
def source(request):
    """Name each kind of event in turn."""
    return request.param


@pytest.fixture
def make_event(source):
    return MAKERS[source]


def make_app(**options):
    app = Resolver(**options)

    @app.get("/notes")
    def list_notes():
        return {"query": {name: list(values) for name, values in app.query.items()}}

    @app.post("/notes")
    def create_note():
        return Response(
            201, "application/json", {"body": app.body.decode("latin-1")}, {"ETag": "1"}
        )

    @app.get("/notes/<note_id>")
    def get_note(note_id):
        return {"id": note_id, "path": app.current_event.path}

    @app.get("/fail/<kind>")
    def fail(kind):
        raise {
            "pool": PoolExhausted("no connection to 10.0.0.1"),
            "bug": RuntimeError("secret"),
            "bad": BadRequestError("wrong"),
            "gone": NotFoundError("there is no note"),
            "own": KeyError("own"),
        }[kind]

    return app


@pytest.fixture
def call():
    return calling(make_app())


def calling(app):
    """Return a function that sends an event, and gives the status, the headers and the content."""

    def call(event):
        answer = json.loads(json.dumps(app.resolve(json.loads(json.dumps(event)), new_context())))
        single = {k.lower(): v for k, v in (answer.get("headers") or {}).items()}
        several = {k.lower(): v[0] for k, v in (answer.get("multiValueHeaders") or {}).items()}
        return answer["statusCode"], single or several, json.loads(answer["body"] or "null")

    return call


def test_an_answer_has_the_form_of_its_service(source, make_event):
    """Multi-value headers go to a REST API and to a load balancer that uses them itself."""
    answer = make_app().resolve(make_event("POST", "/notes", body=b"x"), new_context())
    assert (answer["statusCode"], answer["isBase64Encoded"]) == (201, False)
    several = source in ("rest_api", "load_balancer_multi")
    assert ("multiValueHeaders" in answer, "headers" in answer) == (several, not several)


@pytest.mark.parametrize("binary", [False, True], ids=["text", "base64"])
def test_a_body_arrives_as_it_was_sent(call, make_event, binary):
    """Its bytes, whether the service sent text or base64."""
    status, headers, content = call(
        make_event("POST", "/notes", body="grüße".encode(), binary=binary)
    )
    assert (status, headers["etag"]) == (201, "1")
    assert content["body"].encode("latin-1") == "grüße".encode()


def test_query_parameters_are_decoded_once(call, source, make_event):
    """An escaped value is decoded, a plus sign is a space, and a repeated name has two values."""
    event = make_event("GET", "/notes", [("a", "1,2"), ("b", "a b%41"), ("a", "3")])
    # A load balancer without multi-value headers drops the first value itself.
    first = [] if source == "load_balancer" else ["1,2"]
    assert call(event)[2]["query"] == {"a": [*first, "3"], "b": ["a b%41"]}


@pytest.mark.parametrize("source", ["rest_api", "function_url", "load_balancer"])
def test_escaped_paths_are_decoded(call, source):
    """All but an HTTP API leave the path as the client sent it."""
    status, _, content = call(MAKERS[source]("GET", "/%6eotes/a%7Eb"))
    assert (status, content["id"]) == (200, "a~b")


@pytest.mark.parametrize("note_id", ['"', "\0", "#", "?", "a%41", "\u00fc", "\u96ea", "a\\b", "`"])
def test_a_path_parameter_may_have_any_character(call, note_id):
    """Also one that Powertools' routes do not match."""
    status, _, content = call(http_api("GET", f"/notes/{note_id}"))
    assert (status, content["id"]) == (200, note_id)


def test_unknown_paths_and_methods_have_their_problems(call, make_event):
    """404, and 405 with the methods that the path has."""
    status, headers, content = call(make_event("GET", "/nowhere"))
    assert (status, headers["content-type"]) == (404, "application/problem+json")
    assert content["type"] == "about:blank"
    status, headers, _ = call(make_event("DELETE", "/notes"))
    assert (status, headers["allow"]) == (405, "GET, HEAD, POST")
    assert call(make_event("GET", "/notes/"))[0] == 404
    assert call(make_event("GET", "/notes/1/2"))[0] == 404


@pytest.mark.parametrize("binary", [False, True])
def test_a_body_over_the_limit_is_413(make_event, binary):
    """The limit counts the body's bytes, not its base64 or its characters; at any path."""
    call = calling(make_app(max_body_bytes=4))
    assert call(make_event("POST", "/notes", body="üü".encode(), binary=binary))[0] == 201
    status, _, content = call(make_event("POST", "/notes", body=b"12345", binary=binary))
    assert status == 413
    assert "4 bytes" in content["detail"]
    assert call(make_event("POST", "/nowhere", body=b"12345"))[0] == 413


@pytest.mark.parametrize(
    "body",
    [{"body": {"title": "A title"}}, {"body": "no base64", "isBase64Encoded": True}],
    ids=["object", "base64"],
)
def test_a_body_that_no_service_sends_is_malformed(call, make_event, body):
    """A hand-made event with an object as its body, or with broken base64, is the caller's error."""
    status, _, content = call({**make_event("POST", "/notes"), **body})
    assert (status, content["type"]) == (400, "/problems/malformed-json")


# -- where the path begins --------------------------------------------------------------------


def with_context(event, **members):
    return {**event, "requestContext": {**event["requestContext"], **members}}


WITHOUT_PREFIX = {
    "HTTP API, stage": with_context(http_api("GET", "/prod/notes"), stage="prod"),
    "HTTP API, stage that sam local leaves out": with_context(
        http_api("GET", "/notes"), stage="prod"
    ),
    "HTTP API, no stage": with_context(http_api("GET", "/notes"), stage=None),
    "function URL, no stage": with_context(MAKERS["function_url"]("GET", "/notes"), stage=None),
    "HTTP API, format 1.0": {"version": "1.0", **rest_api("GET", "/notes")},
    "HTTP API, format 1.0, stage": {"version": "1.0", **rest_api("GET", "/prod/notes")},
    "REST API, mapping": {
        **rest_api("GET", "/v1/notes"),
        "resource": "/notes",
        "pathParameters": None,
    },
    "REST API, mapping and proxy": {
        **rest_api("GET", "/v1/notes"),
        "pathParameters": {"proxy": "notes"},
    },
}


@pytest.mark.parametrize("event", WITHOUT_PREFIX.values(), ids=WITHOUT_PREFIX)
def test_neither_stage_nor_base_path_is_part_of_a_path(call, event):
    """Wherever the service puts them."""
    assert call(event)[0] == 200


def test_a_parameter_behind_a_base_path_is_decoded_once(call):
    """The service may have decoded it in pathParameters already."""
    event = {
        **rest_api("GET", "/v1/notes/a%2541"),
        "resource": "/notes/{id}",
        "pathParameters": {"id": "a%41"},
    }
    assert call(event)[2]["id"] == "a%41"


def test_a_base_path_of_an_http_api_is_given(source):
    """Its events do not tell it; the option is Powertools' own."""
    call = calling(make_app(strip_prefixes=["/v1"]))
    assert call(http_api("GET", "/v1/notes"))[0] == 200
    status, headers, _ = call(http_api("DELETE", "/v1/notes"))
    assert (status, headers["allow"]) == (405, "GET, HEAD, POST")


# -- errors -----------------------------------------------------------------------------------


def test_a_full_pool_is_503_and_a_warning(log):
    """The log has the error's text, the answer has not."""
    status, headers, content = calling(make_app(logger=log.logger))(http_api("GET", "/fail/pool"))
    assert (status, headers["retry-after"]) == (503, "1")
    assert "10.0.0.1" not in json.dumps(content)
    (line,) = log.lines()
    assert line["level"] == "WARNING"
    assert "10.0.0.1" in line["error"]


def test_a_bug_is_500_and_an_error(log):
    """The same."""
    status, _, content = calling(make_app(logger=log.logger))(http_api("GET", "/fail/bug"))
    assert status == 500
    assert "secret" not in json.dumps(content)
    (line,) = log.lines()
    assert line["level"] == "ERROR"
    assert "RuntimeError: secret" in line["exception"]


def test_a_database_that_fails_in_a_route_is_503(open_environment, database):
    """The environment's unit of work raises poolkit's own errors."""
    app = Resolver()
    environment = open_environment(database.url("").replace(database.name, "no_such_database"))

    @app.get("/notes")
    def list_notes():
        with environment.session() as session:
            return session.execute(text("SELECT 1")).scalar()

    assert calling(app)(http_api("GET", "/notes"))[0] == 503


@pytest.mark.parametrize(("kind", "status"), [("bad", 400), ("gone", 404)])
def test_powertools_own_errors_have_their_status(call, kind, status):
    """As a problem document, with the text that the route gave."""
    found, headers, content = call(http_api("GET", f"/fail/{kind}"))
    assert (found, headers["content-type"]) == (status, "application/problem+json")
    assert content["detail"] in ("wrong", "there is no note")


def test_an_exception_handler_of_the_users_comes_first():
    """For its class and the classes below; `problem_response` makes the answer."""
    app = make_app()

    @app.exception_handler(LookupError)
    def lookup(error):
        return problem_response(status_problem(410, "gone"))

    assert calling(app)(http_api("GET", "/fail/own"))[0] == 410


class Note(BaseModel):
    text: Annotated[str, Field(max_length=5)]


def make_validating_app():
    app = Resolver(enable_validation=True)

    @app.post("/notes/<note_id>")
    def create_note(
        note_id: "int", note: "Note", copies: "Annotated[int, Query(ge=1)]" = 1
    ) -> "dict":
        return {"id": note_id, "text": note.text, "copies": copies}

    return app


def test_powertools_validation_has_problems(make_event):
    """With pydantic, and with annotations that are text, as in a module with the future import."""
    call = calling(make_validating_app())
    status, _, content = call(make_event("POST", "/notes/7", body=b'{"text":"x"}'))
    assert (status, content) == (200, {"id": 7, "text": "x", "copies": 1})
    for path, query, body, place in (
        ("/notes/x", [], b'{"text":"x"}', {"parameter": "note_id"}),
        ("/notes/7", [("copies", "0")], b'{"text":"x"}', {"parameter": "copies"}),
        ("/notes/7", [], b'{"text":"too long"}', {"pointer": "#/text"}),
    ):
        status, headers, content = call(make_event("POST", path, query, body))
        assert (status, headers["content-type"]) == (422, "application/problem+json")
        (error,) = content["errors"]
        assert place.items() <= error.items()


def test_a_content_type_that_powertools_does_not_read_is_415():
    """It is the client's error."""
    event = http_api("POST", "/notes/7", body=b"x")
    event["headers"]["content-type"] = "application/octet-stream"
    assert calling(make_validating_app())(event)[0] == 415


def test_a_route_that_is_added_late_is_found():
    """Also after the first event, as in a test or a notebook."""
    app = make_app()
    call = calling(app)
    assert call(http_api("GET", "/late"))[0] == 404
    app.get("/late")(dict)
    assert call(http_api("GET", "/late"))[0] == 200


# -- what else Powertools does ----------------------------------------------------------------


def test_middlewares_routers_and_cors_are_powertools(make_event):
    """They work as they do with its own resolvers."""
    app = make_app(cors=CORSConfig(allow_origin="https://example.com"))
    seen = []

    def note(app, next_middleware):
        seen.append(app.current_event.path)
        return next_middleware(app)

    app.use([note])

    @app.get("/late", middlewares=[note])
    def late():
        return {}

    call = calling(app)
    event = make_event("GET", "/late")
    headers = {"origin": "https://example.com"}
    event = {**event, "headers": headers, "multiValueHeaders": {"origin": [headers["origin"]]}}
    status, answered, _ = call(event)
    assert (status, seen) == (200, ["/late", "/late"])
    assert answered["access-control-allow-origin"] == "https://example.com"


def test_the_resolver_itself_can_be_the_handler():
    """For a function without logs and metrics of its own."""
    assert make_app()(http_api("GET", "/notes"), new_context())["statusCode"] == 200


@pytest.mark.parametrize(
    "event",
    [
        *({}, [], "text", None, {"requestContext": {}}, {"requestContext": {"elb": {}}}),
        {"requestContext": {"http": None}, "version": "2.0"},
        {"requestContext": {"elb": {}}, "httpMethod": "GET"},
        {**http_api("GET", "/notes"), "type": "REQUEST", "routeArn": "arn"},
        {**rest_api("GET", "/notes"), "type": "REQUEST", "methodArn": "arn"},
        sqs("{}"),
    ],
    ids=lambda event: str(event)[:30],
)
def test_an_unknown_event_is_an_error(call, event):
    """The message says what was wanted and what was found."""
    with pytest.raises(UnknownEvent, match=r"wanted an event of an HTTP API .* found an? "):
        call(event)


@pytest.mark.parametrize("name", MAKERS)
def test_missing_headers_are_no_error(call, name):
    """A hand-made event may have null where a service sends an object."""
    event = MAKERS[name]("GET", "/notes")
    nothing = {key: None for key in ("headers", "multiValueHeaders") if key in event}
    assert call({**event, **nothing})[0] == 200


def test_head_is_get_without_the_body(make_event):
    """Status and headers are GET's, the length included; a route for HEAD goes first."""
    app = make_app()
    get = app.resolve(make_event("GET", "/notes"), new_context())
    head = app.resolve(make_event("HEAD", "/notes"), new_context())
    assert (head["statusCode"], head["body"]) == (200, "")
    headers = head.get("headers") or {k: v[0] for k, v in head["multiValueHeaders"].items()}
    assert headers["Content-Length"] == str(len(get["body"]))
    assert calling(app)(make_event("HEAD", "/nothing"))[0] == 404

    @app.route("/notes", method="HEAD")
    def head_of_notes():
        return Response(204, headers={"X-Own": "1"})

    assert calling(app)(make_event("HEAD", "/notes"))[0] == 204


def test_a_json_body_says_so(make_event):
    """Another content type is 415, whichever form the headers come in."""
    app = make_app()

    @app.post("/orders")
    def create_order():
        return {"length": len(app.json_body), "type": app.header("content-type")}

    event = make_event("POST", "/orders", body=b"{}")
    assert calling(app)(event)[2] == {"length": 2, "type": "application/json"}
    event = json.loads(json.dumps(event).replace("application/json", "text/plain"))
    assert calling(app)(event)[0] == 415


def test_a_long_query_is_414(make_event, call):
    """Many parameters cost time, and nothing needs them."""
    status, _, problem = call(make_event("GET", "/notes", [("x", "y" * 9_000)]))
    assert (status, problem["status"]) == (414, 414)
    assert call(make_event("GET", "/notes", [("x", "y" * 7_000)]))[0] == 200
