"""What HTTP clients and callers of Invoke get."""

import base64
import csv
import http.client
import json
import socket
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from processes import wait_until

from poolkit.lambda_fleet import Status

pytestmark = pytest.mark.process

ECHO = "def handler(event, context): return event"
# Answers with what stands in the request's body.
SAY = """
    import json

    def handler(event, context):
        return json.loads(event["body"])
"""
JSON = {"content-type": "application/json"}
INTERNAL_SERVER_ERROR = (500, b'{"message":"Internal Server Error"}')


def say(call, fleet, answer):
    return call(fleet, method="POST", body=json.dumps(answer).encode(), headers=JSON)


def raw(fleet, data, *, until_closed=True):
    """Send bytes as they are; return all that comes back."""
    address = urlsplit(fleet.url)
    with socket.create_connection((address.hostname, address.port), timeout=100) as client:
        client.sendall(data)
        if until_closed:
            client.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := client.recv(65_536):
            received += chunk
        return received


def test_a_request_becomes_a_version_2_event(start, call):
    """Every documented field is there, in the shape of an HTTP API."""
    fleet = start(ECHO)
    answer = call(
        fleet,
        "/articles/a%20b?tag=x&tag=y&q=%C3%A9",
        method="POST",
        body=b'{"a": 1}',
        headers={"X-Two": "1", "Content-Type": "application/json", "Cookie": "a=1; b=2"},
    )
    event = json.loads(answer.body)
    context = event.pop("requestContext")
    headers = event.pop("headers")
    assert event == {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/articles/a b",
        "rawQueryString": "tag=x&tag=y&q=%C3%A9",
        "cookies": ["a=1", "b=2"],
        "queryStringParameters": {"tag": "x,y", "q": "é"},
        "body": '{"a": 1}',
        "isBase64Encoded": False,
    }
    assert headers["x-two"] == "1"
    assert "cookie" not in headers
    assert context["http"]["method"] == "POST"
    assert context["http"]["path"] == "/articles/a b"
    assert context["http"]["protocol"] == "HTTP/1.1"
    assert context["http"]["sourceIp"] == "127.0.0.1"
    assert context["requestId"] == answer.header("apigw-requestid")


def test_the_answer_becomes_the_response(start, call):
    """Status, headers, cookies and body are the function's."""
    answer = say(
        call,
        start(SAY),
        {
            "statusCode": 201,
            "headers": {"Location": "/articles/1", "X-Count": 2, "Content-Length": "999"},
            "cookies": ["a=1; Path=/", "b=2"],
            "body": "made é",
        },
    )
    assert (answer.status, answer.body) == (201, "made é".encode())
    assert answer.header("location") == "/articles/1"
    assert answer.header("x-count") == "2"
    assert answer.header("content-type") == "text/plain;charset=UTF-8"
    cookies = [value for name, value in answer.headers if name == "set-cookie"]
    assert cookies == ["a=1; Path=/", "b=2"]


@pytest.mark.parametrize(
    ("answer", "body"),
    [({"id": 1}, b'{"id": 1}'), ("text", b"text"), ([1, 2], b"[1, 2]"), (None, b"null")],
)
def test_an_answer_without_a_status_is_a_200(start, call, answer, body):
    """A bare value becomes a JSON body."""
    response = say(call, start(SAY), answer)
    assert (response.status, response.body) == (200, body)
    assert response.header("content-type") == "application/json"


def test_what_cannot_be_a_response_is_a_500(start, call):
    """A wrong status, body, header or cookie is the gateway's error, and the process serves on."""
    fleet = start(SAY)
    for answer in (
        {"statusCode": "none"},
        {"statusCode": 99},
        {"statusCode": True},
        {"statusCode": 200, "body": {"an": "object"}},
        {"statusCode": 200, "body": "not base64!", "isBase64Encoded": True},
        {"statusCode": 200, "headers": ["a"]},
        {"statusCode": 200, "headers": {"a b": "1"}},
        {"statusCode": 200, "headers": {"a": "1\r\nset-cookie: evil=1"}},
        {"statusCode": 200, "headers": {"a": ["1"]}},
        {"statusCode": 200, "cookies": "a=1"},
        {"statusCode": 200, "cookies": ["a=1\r\nb: 2"]},
    ):
        response = say(call, fleet, answer)
        assert (response.status, response.body) == INTERNAL_SERVER_ERROR, answer
    assert fleet.stats()["by_status"]["ok"] == 11


def test_json_that_is_nested_too_deeply_is_refused(start, call):
    """Neither a function's answer nor an Invoke payload of that kind breaks the fleet."""
    fleet = start(
        """
        def handler(event, context):
            return b"[" * 100_000 + b"]" * 100_000
        """
    )
    answer = call(fleet)
    assert (answer.status, answer.body) == INTERNAL_SERVER_ERROR
    path = "/2015-03-31/functions/function/invocations"
    assert call(fleet, path, method="POST", body=b"[" * 100_000).status == 400
    assert call(fleet, path, method="POST", body=b"{}").status == 200
    assert fleet.stats()["execution_environments_started"] == 1


def test_half_a_surrogate_pair_is_replaced(start, call):
    """JSON can hold what UTF-8 cannot; the client gets valid UTF-8."""
    source = r"""
        def handler(event, context):
            return b'{"statusCode": 200, "body": "a\ud800b"}'
    """
    answer = call(start(source))
    assert (answer.status, answer.body) == (200, b"a?b")


def test_text_that_the_runtime_cannot_send_ends_it(start, call):
    """awslambdaric itself fails on half a surrogate pair, so on Lambda too it costs a cold start."""
    fleet = start("def handler(event, context): return 'a\\ud800b'")
    assert call(fleet).status == 500
    assert fleet.records()[0].error_type == "Runtime.ExitError"


def test_a_binary_answer_is_decoded(start, call):
    """`isBase64Encoded` gives the client the bytes."""
    data = bytes(range(256))
    answer = say(
        call,
        start(SAY),
        {"statusCode": 200, "isBase64Encoded": True, "body": base64.b64encode(data).decode()},
    )
    assert answer.body == data


@pytest.mark.parametrize(
    ("content_type", "encoded"),
    [
        *(("text/plain; charset=utf-8", False), ("application/json", False)),
        *(("application/xml", False), ("image/png", True), (None, True)),
        ("application/x-www-form-urlencoded", True),
    ],
)
def test_a_body_that_is_not_text_comes_as_base64(start, call, content_type, encoded):
    """The content type decides, as it does in AWS."""
    headers = {"content-type": content_type} if content_type else {}
    event = json.loads(call(start(ECHO), method="POST", body=b"a=1", headers=headers).body)
    assert event["isBase64Encoded"] is encoded
    assert event["body"] == (base64.b64encode(b"a=1").decode() if encoded else "a=1")


def test_duplicate_headers_are_joined(start):
    """A header that comes twice is one value with a comma."""
    request = b"GET / HTTP/1.1\r\nhost: h\r\nx-a: 1\r\nX-A: 2\r\nconnection: close\r\n\r\n"
    received = raw(start(ECHO), request)
    event = json.loads(received.partition(b"\r\n\r\n")[2])
    assert event["headers"]["x-a"] == "1,2"


@pytest.mark.parametrize(
    "garbage",
    [
        *(b"\x16\x03\x01\x02\x00\x01", b"nonsense\r\n\r\n", b"\0" * 100),
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    ],
)
def test_garbage_is_a_400(start, call, garbage):
    """What is not HTTP is refused, and the next client is served."""
    fleet = start(ECHO)
    assert raw(fleet, garbage).startswith(b"HTTP/1.1 400 ")
    assert fleet.stats()["invokes"] == 0
    assert call(fleet).status == 200


def test_headers_that_are_too_large_are_a_431(start, call):
    """API Gateway's limit is 10,240 bytes; a header without an end is cut off too."""
    fleet = start(ECHO)
    assert call(fleet, headers={"x": "y" * 10_000}).status == 200
    assert call(fleet, headers={"x": "y" * 10_240}).status == 431
    assert raw(fleet, b"GET / HTTP/1.1\r\nx: " + b"y" * 12_000_000).startswith(b"HTTP/1.1 431 ")


def test_a_body_that_is_too_large_is_a_413(start, call):
    """The event must be under 6 MB, base64 included; over 10 MB is not even read."""
    fleet = start("def handler(event, context): return len(event['body'])")
    headers = {"content-type": "text/plain"}
    assert call(fleet, method="POST", body=b"x" * 6_000_000, headers=headers).body == b"6000000"
    for size, kind in ((6_300_000, "text/plain"), (5_000_000, "image/png"), (11_000_000, "text/x")):
        answer = call(fleet, method="POST", body=b"x" * size, headers={"content-type": kind})
        assert (answer.status, answer.body) == (413, b'{"message":"Request Entity Too Large"}')
    assert fleet.stats()["invokes"] == 1


def test_a_chunked_body_that_never_ends_is_a_413(start):
    """Without a Content-Length the bytes are counted as they come."""
    fleet = start(ECHO)
    head = b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    assert raw(fleet, head + chunk * 11).startswith(b"HTTP/1.1 413 ")


def test_expect_100_continue_is_answered(start):
    """curl waits for it before a large upload."""
    received = raw(
        start(ECHO),
        b"POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n"
        b"connection: close\r\n\r\nok",
    )
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_pipelined_requests_are_answered_in_order(start):
    """Requests sent without waiting get their answers one after another."""
    fleet = start("def handler(event, context): return event['rawPath']")
    requests = [b"GET /%d HTTP/1.1\r\nhost: h\r\n\r\n" % number for number in range(5)]
    requests[-1] = requests[-1].replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    received = raw(fleet, b"".join(requests), until_closed=False)
    assert [part[:2] for part in received.split(b"\r\n\r\n")[1:]] == [
        b"/0", b"/1", b"/2", b"/3", b"/4"
    ]  # fmt: skip


def test_one_connection_serves_many_requests(start):
    """A connection is kept alive, also after a HEAD without a body."""
    fleet = start("def handler(event, context): return 'four'")
    connection = http.client.HTTPConnection(urlsplit(fleet.url).netloc, timeout=100)
    bodies = []
    for method in ("GET", "HEAD", "GET"):
        connection.request(method, "/")
        response = connection.getresponse()
        bodies.append((response.getheader("content-length"), response.read()))
    connection.close()
    assert bodies == [("4", b"four"), ("4", b""), ("4", b"four")]


def test_a_client_that_leaves_does_not_disturb_the_function(start, call, tmp_path):
    """The invoke runs to its end, and the execution environment serves the next client."""
    fleet = start(
        f"""
        import os, time

        def handler(event, context):
            while not os.path.exists({str(tmp_path / "go")!r}):
                time.sleep(0.005)
            return "done"
        """
    )
    address = urlsplit(fleet.url)
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
        wait_until(lambda: fleet.stats()["execution_environments"]["busy"] == 1)
    (tmp_path / "go").touch()
    wait_until(lambda: fleet.stats()["invokes"] == 1)
    assert call(fleet).body == b"done"
    assert fleet.stats()["execution_environments_started"] == 1


# Invoke


def aws(fleet):
    """Return boto3's client for a fleet."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    once = Config(retries={"total_max_attempts": 1})
    where = {"endpoint_url": fleet.url, "region_name": "us-east-1"}
    return boto3.client("lambda", config=once, **where, **keys)


def test_invoke_answers_with_the_functions_payload(start):
    """AWS's own client gets the payload of an event that is no HTTP request."""
    answer = aws(start(ECHO)).invoke(FunctionName="function", Payload=b'{"Records": [1]}')
    assert json.loads(answer["Payload"].read()) == {"Records": [1]}
    assert (answer["StatusCode"], answer["ExecutedVersion"]) == (200, "$LATEST")
    assert "FunctionError" not in answer


def test_invoke_returns_an_unhandled_error(start):
    """A failed invoke is a 200 with `X-Amz-Function-Error`."""
    fleet = start("def handler(event, context): 1 / 0")
    answer = aws(fleet).invoke(FunctionName=fleet.config.arn, Payload=b"{}")
    assert (answer["StatusCode"], answer["FunctionError"]) == (200, "Unhandled")
    assert json.loads(answer["Payload"].read())["errorType"] == "ZeroDivisionError"


def test_invoke_is_throttled_as_lambda_throttles(start):
    """boto3 raises TooManyRequestsException; a concurrency of 0 switches the function off."""
    fleet = start(ECHO, reserved_concurrency=0)
    client = aws(fleet)
    with pytest.raises(client.exceptions.TooManyRequestsException) as caught:
        client.invoke(FunctionName="function")
    assert fleet.pids() == {}
    assert caught.value.response["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"


def test_invoke_refuses_what_lambda_refuses(start):
    """Another function, a payload that is not JSON, and one that is too large are errors."""
    fleet = start(ECHO)
    client = aws(fleet)
    with pytest.raises(client.exceptions.ResourceNotFoundException, match="Function not found"):
        client.invoke(FunctionName="another")
    with pytest.raises(client.exceptions.InvalidRequestContentException, match="Could not parse"):
        client.invoke(FunctionName="function", Payload=b"{")
    with pytest.raises(client.exceptions.RequestTooLargeException, match="6291456"):
        client.invoke(FunctionName="function", Payload=b'"' + b"x" * 6_291_456 + b'"')
    assert fleet.stats()["invokes"] == 0


def test_an_event_invoke_does_not_wait(start):
    """`Event` answers 202 at once and the function runs; `DryRun` runs nothing."""
    fleet = start(ECHO)
    client = aws(fleet)
    assert client.invoke(FunctionName="function", InvocationType="DryRun")["StatusCode"] == 204
    assert client.invoke(FunctionName="function", InvocationType="Event")["StatusCode"] == 202
    wait_until(lambda: fleet.stats()["by_status"]["ok"] == 1)
    assert [record.status for record in fleet.records()] == [Status.OK]


# The fleet itself


def test_the_fleet_can_be_watched_over_http(start, call):
    """Health, counters, usage and the invoke records; none of them is an invoke."""
    fleet = start(ECHO)
    call(fleet)
    assert call(fleet, "/_fleet/healthz").body == b'{"status":"ok"}'
    assert json.loads(call(fleet, "/_fleet/stats").body)["cold"] == 1
    assert json.loads(call(fleet, "/_fleet/usage").body)[0]["rss_bytes"] > 0
    header, line = call(fleet, "/_fleet/invokes.csv").body.decode().splitlines()
    assert header.startswith("request_id,execution_environment,arrived,cold,init_ms")
    assert line.endswith(",ok,")
    assert call(fleet, "/_fleet/nothing").status == 404
    assert fleet.stats()["invokes"] == 1


def test_the_oldest_records_are_dropped_and_counted(start, call):
    """Of twelve invokes the cold one and the five latest stay; the counters have all of them."""
    fleet = start(ECHO, records_kept=5)
    ids = [fleet.invoke({}).request_id for _ in range(12)]
    stats = fleet.stats()
    assert (stats["invokes"], stats["cold"], stats["records_dropped"]) == (12, 1, 6)
    kept = csv.DictReader(call(fleet, "/_fleet/invokes.csv").body.decode().splitlines())
    assert [row["request_id"] for row in kept] == [ids[0], *ids[-5:]]
    assert [record.cold for record in fleet.records()] == [True, *[False] * 5]
