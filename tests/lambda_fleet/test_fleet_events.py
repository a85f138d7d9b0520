"""The events of a REST API and of a load balancer, and what becomes of the function's answers."""

import base64
import json

import pytest
from aws_lambda_powertools.utilities.parser.models import AlbModel, APIGatewayProxyEventModel

pytestmark = pytest.mark.process

ECHO = """
    import json

    def handler(event, context):
        return {"statusCode": 200, "headers": {"Content-Type": "application/json"},
                "body": json.dumps(event)}
"""
ROUTES = """
    from aws_lambda_powertools.event_handler import {resolver}, Response

    app = {resolver}()

    @app.get("/notes/<name>")
    def get(name):
        return {{"name": name, "q": app.current_event.get_query_string_value("q")}}

    @app.post("/notes")
    def post():
        return Response(201, "application/json", app.current_event.body, cookies=[])

    def handler(event, context):
        return app.resolve(event, context)
"""
MANGUM = """
    from mangum import Mangum

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        body = (await receive())["body"]
        text = f"{scope['method']} {scope['path']} {scope['query_string'].decode()} {body.decode()}"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})

    handler = Mangum(app, lifespan="off")
"""
FORM = {"content-type": "application/x-www-form-urlencoded"}


def echoed(start, call, event, path="/", **request):
    return json.loads(call(start(ECHO, event=event), path, **request).body)


def test_a_rest_api_s_event_has_the_documented_shape(start, call):
    """Payload format 1.0: the path as sent, the query decoded, every value of a name."""
    event = echoed(start, call, "rest", "/a%7Eb/c?x=1&x=%C3%A9&y=", headers={"X-Mine": "m"})
    # AWS's own library for Lambda refuses what is not this shape.
    APIGatewayProxyEventModel.model_validate(event)
    assert (event["resource"], event["path"]) == ("/{proxy+}", "/a%7Eb/c")
    assert event["pathParameters"] == {"proxy": "a%7Eb/c"}
    assert event["queryStringParameters"] == {"x": "é", "y": ""}
    assert event["multiValueQueryStringParameters"] == {"x": ["1", "é"], "y": [""]}
    assert event["headers"]["X-Mine"] == "m"
    assert event["multiValueHeaders"]["X-Mine"] == ["m"]
    assert event["requestContext"]["path"] == "/prod/a%7Eb/c"
    assert (event["body"], event["isBase64Encoded"]) == (None, False)
    assert "version" not in event


def test_a_rest_api_passes_forms_on_as_text(start, call):
    """Without binary media types everything is text; bytes that are not are base64."""
    start_once = start(ECHO, event="rest")
    form = json.loads(call(start_once, method="POST", body=b"user=me", headers=FORM).body)
    assert (form["body"], form["isBase64Encoded"]) == ("user=me", False)
    binary = json.loads(call(start_once, method="POST", body=b"\xff\x00").body)
    assert base64.b64decode(binary["body"]) == b"\xff\x00"
    assert binary["isBase64Encoded"]


def test_a_load_balancer_s_event_has_the_documented_shape(start, call):
    """Path and query as they were sent, names of headers in lower case."""
    event = echoed(start, call, "alb", "/a%7Eb?x=%3F&x=2", headers={"X-Mine": "m"})
    AlbModel.model_validate(event)
    assert event["path"] == "/a%7Eb"
    assert event["queryStringParameters"] == {"x": "2"}
    assert event["headers"]["x-mine"] == "m"
    assert (event["body"], event["isBase64Encoded"]) == ("", False)


@pytest.mark.parametrize(
    ("event", "resolver"),
    [
        ("http", "APIGatewayHttpResolver"),
        ("rest", "APIGatewayRestResolver"),
        ("alb", "ALBResolver"),
    ],
)
def test_powertools_resolvers_answer_their_own_events(start, call, event, resolver):
    """The first example of its documentation works with each of the three."""
    fleet = start(ROUTES.format(resolver=resolver), event=event)
    got = call(fleet, "/notes/a?q=1")
    assert (got.status, json.loads(got.body)) == (200, {"name": "a", "q": "1"})
    headers = {"content-type": "application/json"}
    made = call(fleet, "/notes", method="POST", body=b'{"a": 1}', headers=headers)
    assert (made.status, made.body) == (201, b'{"a": 1}')
    assert call(fleet, "/none").status == 404


@pytest.mark.parametrize("event", ["http", "rest", "alb"])
def test_mangum_reads_every_event(start, call, event):
    """An ASGI application needs no setting for it, and forms arrive as they were sent."""
    fleet = start(MANGUM, event=event)
    got = call(fleet, "/form?x=1", method="POST", body=b"user=me", headers=FORM)
    assert (got.status, got.body) == (200, b"POST /form x=1 user=me")


def test_multi_value_headers_become_several_lines(start, call):
    """As for two cookies; they replace the value of the same name in `headers`."""
    source = """
        def handler(event, context):
            return {"statusCode": "200", "headers": {"Set-Cookie": "a=0", "X": "1"},
                    "multiValueHeaders": {"set-cookie": ["a=1", "b=2"]}, "body": "é"}
    """
    got = call(start(source, event="rest"))
    assert [value for name, value in got.headers if name == "set-cookie"] == ["a=1", "b=2"]
    assert (got.header("x"), got.header("content-type")) == ("1", "application/json")
    assert got.body == "é".encode()


@pytest.mark.parametrize("event", ["rest", "alb"])
@pytest.mark.parametrize(
    "answer", ["{}", "'text'", "{'statusCode': 200, 'body': {}}", "1 / 0", "{'statusCode': 'x'}"]
)
def test_what_is_no_response_is_a_bad_gateway(start, call, event, answer):
    """Both answer 502 where an HTTP API would make a response of it, or answer 500."""
    fleet = start(f"def handler(event, context): return {answer}", event=event)
    assert call(fleet).status == 502


def test_a_load_balancer_takes_one_megabyte(start, call):
    """More is refused before the function is invoked, and in its answer."""
    fleet = start(
        "def handler(event, context): return {'statusCode': 200, 'body': 'x' * 2_000_000}",
        event="alb",
    )
    assert call(fleet, method="POST", body=b"x" * 1_100_000).status == 413
    assert call(fleet).status == 502
