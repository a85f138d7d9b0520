"""Events as AWS documents them, of each service that can invoke a function, and its context."""

import base64
import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote_plus, urlencode

from awslambdaric.lambda_context import LambdaContext

from poolkit.lambda_fleet.events import http_api_event as event
from poolkit.lambda_fleet.http_protocol import Request

_numbers = itertools.count()

Query = Sequence[tuple[str, str]]
Event = dict[str, Any]

HTTP_API_REQUEST_ID = "JKJaXmPLvHcESHA="
REST_API_REQUEST_ID = "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"
FUNCTION_URL_REQUEST_ID = "e1506fd5-9e7b-434f-bd42-4f8fa224b599"
TRACE_ID = "Root=1-5c536348-3d683b8b04734faae651f476"


def _body(body: bytes | None, *, binary: bool) -> dict[str, Any]:
    if body is None:
        return {"isBase64Encoded": False}
    if binary:
        return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}
    return {"body": body.decode(), "isBase64Encoded": False}


def _joined(query: Query) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in query:
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def _several(query: Query) -> dict[str, list[str]]:
    several: dict[str, list[str]] = {}
    for name, value in query:
        several.setdefault(name, []).append(value)
    return several


def http_api(method, path, query=(), body=None, *, binary=False) -> Event:
    """API Gateway Developer Guide, "AWS Lambda proxy integrations for HTTP APIs", format 2.0."""
    client = {"protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "agent"}
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": urlencode(query),
        "cookies": ["cookie1", "cookie2"],
        "headers": {"accept": "*/*", "content-type": "application/json", "header2": "a,b"},
        **({"queryStringParameters": _joined(query)} if query else {}),
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api-id",
            "authentication": None,
            "domainName": "id.execute-api.us-east-1.amazonaws.com",
            "domainPrefix": "id",
            "http": {"method": method, "path": path, **client},
            "requestId": HTTP_API_REQUEST_ID,
            "routeKey": "$default",
            "stage": "$default",
            "time": "12/Mar/2020:19:03:58 +0000",
            "timeEpoch": 1583348638390,
        },
        "stageVariables": {"stageVariable1": "value1"},
        **_body(body, binary=binary),
    }


def function_url(method, path, query=(), body=None, *, binary=False) -> Event:
    """AWS Lambda Developer Guide, "Invoking Lambda function URLs", request payload."""
    event = http_api(method, path, query, body, binary=binary)
    event["requestContext"] |= {
        "accountId": "anonymous",
        "apiId": "urlid1234",
        "domainName": "urlid1234.lambda-url.us-west-2.on.aws",
        "domainPrefix": "urlid1234",
        "requestId": FUNCTION_URL_REQUEST_ID,
    }
    del event["stageVariables"]
    return event


def rest_api(method, path, query=(), body=None, *, binary=False) -> Event:
    """API Gateway Developer Guide, "Input format of a Lambda function for proxy integration"."""
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": {"Accept": "*/*", "Content-Type": "application/json"},
        "multiValueHeaders": {"Accept": ["*/*"], "Content-Type": ["application/json"]},
        "queryStringParameters": dict(query) or None,
        "multiValueQueryStringParameters": _several(query) or None,
        "pathParameters": {"proxy": path.lstrip("/")},
        "stageVariables": None,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "1234567890",
            "authorizer": None,
            "domainName": "1234567890.execute-api.us-east-1.amazonaws.com",
            "domainPrefix": "1234567890",
            "extendedRequestId": "JHcmEJ8RIAMFbDg=",
            "httpMethod": method,
            "identity": {"sourceIp": "192.0.2.1", "userAgent": "agent", "user": None},
            "path": f"/prod{path}",
            "protocol": "HTTP/1.1",
            "requestId": REST_API_REQUEST_ID,
            "requestTime": "09/Apr/2015:12:34:56 +0000",
            "requestTimeEpoch": 1428582896000,
            "resourceId": "123456",
            "resourcePath": "/{proxy+}",
            "stage": "prod",
        },
        "body": None,
        **_body(body, binary=binary),
    }


def load_balancer(method, path, query=(), body=None, *, binary=False) -> Event:
    """Elastic Load Balancing, "Use Lambda functions as targets": values come undecoded."""
    return {
        "requestContext": {
            "elb": {
                "targetGroupArn": "arn:aws:elasticloadbalancing:us-east-2:123456789012:"
                "targetgroup/articles/abcdef0123456789"
            }
        },
        "httpMethod": method,
        "path": path,
        "queryStringParameters": {quote_plus(k): quote_plus(v) for k, v in query},
        "headers": {
            "accept": "*/*",
            "content-type": "application/json",
            "x-amzn-trace-id": TRACE_ID,
            "x-forwarded-for": "192.0.2.1",
            "x-forwarded-port": "80",
            "x-forwarded-proto": "http",
        },
        "body": "",
        **_body(body, binary=binary),
    }


def load_balancer_multi(method, path, query=(), body=None, *, binary=False) -> Event:
    """The same with the target group's multi-value headers switched on."""
    event = load_balancer(method, path, query, body, binary=binary)
    headers = event.pop("headers")
    del event["queryStringParameters"]
    quoted = [(quote_plus(name), quote_plus(value)) for name, value in query]
    return {
        **event,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "multiValueQueryStringParameters": _several(quoted),
    }


MAKERS: dict[str, Callable[..., Event]] = {
    "http_api": http_api,
    "rest_api": rest_api,
    "function_url": function_url,
    "load_balancer": load_balancer,
    "load_balancer_multi": load_balancer_multi,
}
CORRELATION_IDS = {
    "http_api": HTTP_API_REQUEST_ID,
    "rest_api": REST_API_REQUEST_ID,
    "function_url": FUNCTION_URL_REQUEST_ID,
    "load_balancer": TRACE_ID,
    "load_balancer_multi": TRACE_ID,
}


def sqs(*bodies: str, queue: str = "documents", receive_count: int = 1) -> Event:
    """AWS Lambda Developer Guide, "Using Lambda with Amazon SQS", a batch of messages."""
    return {"Records": [_message(n, body, queue, receive_count) for n, body in enumerate(bodies)]}


def _message(number: int, body: str, queue: str, receive_count: int) -> Event:
    attributes = {
        "ApproximateReceiveCount": str(receive_count),
        "SentTimestamp": "1545082649183",
        "SenderId": "AIDAIENQZJOLO23YVJ4VO",
        "ApproximateFirstReceiveTimestamp": "1545082649185",
    }
    if queue.endswith(".fifo"):
        attributes |= {"MessageGroupId": "1", "SequenceNumber": f"1884957277512601{number:04}"}
    return {
        "messageId": f"059f36b4-87a3-44ab-83d2-{number:012}",
        "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a",
        "body": body,
        "attributes": attributes,
        "messageAttributes": {},
        "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:us-east-2:123456789012:{queue}",
        "awsRegion": "us-east-2",
    }


def new_context(timeout_s: float = 30.0) -> LambdaContext:
    """Make the very object that the runtime interface client gives to a handler."""
    arn = "arn:aws:lambda:us-east-1:123456789012:function:articles"
    deadline_ms = int((time.time() + timeout_s) * 1000)
    return LambdaContext(
        f"8476a536-e9f4-11e8-9739-{next(_numbers):012}", None, None, deadline_ms, arn
    )


def http_api_event(method, path, query=None, body=None, headers=None) -> dict[str, Any]:
    """Make the event that an HTTP API makes of a request; a body that is not bytes is JSON."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    text = query if isinstance(query, str) else urlencode(query or {}, doseq=True)
    sent = {"host": "abc.execute-api.us-east-1.amazonaws.com", "user-agent": "tests"}
    if body is not None:
        sent["content-type"] = _content_type(raw)
    sent |= {name.lower(): value for name, value in (headers or {}).items()}
    sent = {name: value for name, value in sent.items() if value is not None}
    target = f"{path}?{text}" if text else path
    request = Request(
        method=method.encode(),
        target=target.encode("latin-1"),
        headers=[(name.encode(), value.encode()) for name, value in sent.items()],
        body=raw,
        http_version="1.1",
    )
    request_id = f"JKJaXmPLvHcESHA{next(_numbers)}="
    made = event(request, request_id=request_id, trace_id="Root=1-5e6722a7", source_ip="192.0.2.1")
    return json.loads(made)


def _content_type(body: bytes) -> str:
    # What is called JSON is handed over as text, in which API Gateway has replaced what was
    # not UTF-8 by U+FFFD; what is called binary arrives as it was sent.
    try:
        body.decode()
    except UnicodeDecodeError:
        return "application/binary+json"
    return "application/json"
